"""Two students and the annotator, pooled on gold: the default method ("TSP").

Three sources say what a row's class is: the annotator's label, through P(label | class) from the
gold rows; student A, which learns from the annotator by EM and scores each row from a fold that
did not see it; and student B, which learns from the gold rows alone. :class:`whet.classify.pool.
Pool` weighs them on the gold rows. For that, and for every estimate, each gold row is judged by a
run that never saw its label: the whole procedure runs again without each fifth of the gold.
Round 1 learns from the annotator; each later round lets student A learn from the pooled
probabilities of the round before. The annotator's own labels are kept as evidence throughout.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from whet.classify import annotator, priors
from whet.classify.account import Proposal
from whet.classify.annotator import log_softmax
from whet.classify.classifier import fit_soft_labels
from whet.classify.features import Features, learn_directions, project
from whet.classify.gold import GoldLedger
from whet.classify.labels import MISSING, Codes
from whet.classify.learner import ratios_record
from whet.classify.pool import Pool
from whet.classify.risks import FloatArray
from whet.classify.solver import Floats, FoldSolver
from whet.errors import WhetWarning
from whet.rounds import Rule, split

#: Penalties of the students.
L2_ANNOTATOR, L2_GOLD = 0.3, 0.1
#: EM passes of student A; weight of rows without a label from the second pass on; weight of a
#: gold row in later rounds.
PASSES, UNLABELLED_WEIGHT, GOLD_WEIGHT = 6, 0.5, 2.0
#: Groups of gold rows; each is judged by a run without it.
GROUPS = 5
#: Prior median and spread of the scales of student A, student B and the annotator, in round 1
#: and in later rounds.
FIRST_SCALES = ((1.0, 0.5), (0.8, 0.5), (0.8, 0.4))
LATER_SCALES = ((1.5, 0.5), (0.5, 0.5), (0.8, 0.4))
#: A label is changed only if the new one is more probable by more than a margin.
MARGIN = 0.2
#: What the guard "safe" chooses from: a margin, and the gain on the gold rows, in standard errors,
#: that allows it (2 - 5 margin). The weaker the evidence, the fewer labels are changed.
LADDER = ((0.0, 2.0), (0.1, 1.5), (0.2, 1.0), (0.3, 0.5), (0.4, 0.0))
#: Rows of the runs that judge the gold rows: more cost time and hardly change the judgement.
HONEST_ROWS = 5_000
#: The sources in words, for reasons.
SOURCES = ("texts like it", "gold texts like it", "annotator")
#: What the gold rows are used for in every round.
PURPOSE = "annotator model, students and their weights"
#: Steps of the solver in each pass; a pass starts where the one before ended.
STEPS = 10


class Runs:
    """Both students, trained R times on the same rows with different gold labels withheld.

    Parameters
    ----------
    features : float32 array of shape (n, d)
    fold : int array of shape (n,)
    votes : int array of shape (n, m)
        Annotators' codes, -1 where they abstained.
    gold : int array of shape (n, R)
        Gold codes that each run may see, -1 elsewhere.
    n_classes : int
        K.

    Attributes
    ----------
    label : float32 array of shape (n, R, K)
        What the annotators' labels say, in nats.
    student_a, student_b : float32 arrays of shape (n, R, K)
        Log-probabilities.
    pooled : float32 array of shape (n, R, K)
        Probabilities of the last round, set from outside.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(0, 2, 200)
    >>> x = np.stack([truth + rng.normal(size=200), np.ones(200)], axis=1).astype(np.float32)
    >>> votes = np.where(rng.random(200) < 0.7, truth, 1 - truth)[:, None]
    >>> gold = np.where(np.arange(200) < 20, truth, -1)[:, None]
    >>> runs = Runs(x, np.arange(200) % 5, votes, gold, 2)
    >>> runs.learn_from_annotator()
    >>> runs.student_a.shape
    (200, 1, 2)
    """

    def __init__(
        self,
        features: Floats,
        fold: NDArray[np.int64],
        votes: Codes,
        gold: Codes,
        n_classes: int,
        confidence: FloatArray | None = None,
    ) -> None:
        self.features, self.gold, self.n_classes = features, gold, n_classes
        self.answered = (votes != MISSING).any(axis=1)
        self._solver = FoldSolver(features, fold, n_classes, L2_ANNOTATOR, GOLD_WEIGHT)
        self._weights: Floats | None = None
        self.label = np.stack(
            [
                annotator.evidence(votes, gold[:, r], n_classes, confidence)
                for r in range(gold.shape[1])
            ],
            axis=1,
        ).astype(np.float32)
        self.student_a = self.student_b = self.pooled = np.zeros_like(self.label)

    def learn_from_annotator(self) -> None:
        """Train student A: EM on the classes, with P(label | class) held fixed."""
        prior = [
            np.log(annotator.class_prior(self.label[:, r], self.gold[:, r]))
            for r in range(self.gold.shape[1])
        ]
        target = softmax(self.label + np.array(prior, dtype=np.float32), axis=-1)
        weight = np.ones(self.gold.shape, dtype=np.float32)
        weight[~self.answered] = 0.0
        for _ in range(PASSES):
            self._learn(target, np.where(self.gold == MISSING, weight, 1.0))
            target = softmax(self.student_a + self.label, axis=-1)
            weight[~self.answered] = UNLABELLED_WEIGHT

    def learn_from_gold(self) -> None:
        """Train student B on the gold rows of each run."""
        rows = np.flatnonzero((self.gold != MISSING).any(axis=1))
        if not len(rows):
            return
        seen = (self.gold[rows] != MISSING).astype(np.float32)
        target = np.eye(self.n_classes, dtype=np.float32)[self.gold[rows]]
        solver = FoldSolver(self.features[rows], None, self.n_classes, L2_GOLD)
        weights = solver.solve(_columns(target), seen, steps=2 * STEPS)
        scores = np.tensordot(self.features, weights[:, 0], axes=1)
        self.student_b = _log_probabilities(scores)

    def learn_from_pool(self) -> None:
        """Train student A anew on the pooled probabilities of the round before."""
        self._learn(self.pooled, np.where(self.gold == MISSING, 1.0, GOLD_WEIGHT))

    def evidence(self) -> Floats:
        """Return what the three sources say, shape (n, R, 3, K)."""
        return np.stack([self.student_a, self.student_b, self.label], axis=2)

    def _learn(self, target: Floats, weight: NDArray[np.floating]) -> None:
        known = self.gold != MISSING
        target[known] = np.eye(self.n_classes, dtype=np.float32)[self.gold[known]]
        self._weights = self._solver.solve(
            _columns(target), weight.astype(np.float32), self._weights, steps=STEPS
        )
        self.student_a = _log_probabilities(self._solver.scores(self._weights))


@dataclass(frozen=True)
class Fitted:
    """What a round of TSP ends with.

    Attributes
    ----------
    probability : float64 array of shape (n, K)
        Pooled; a gold row has what the run without its label says.
    evidence : float32 array of shape (n, 3, K)
        What student A, student B and the annotator add to the log-probability of each class.
    scales : float64 array of shape (3,)
        How far each source is trusted.
    without_annotator : int64 array of shape (number of gold rows,)
        What the two students alone take the gold rows for, in runs that did not see their label.

    Examples
    --------
    >>> none = np.zeros(0, dtype=np.int64)
    >>> Fitted(np.array([[0.9, 0.1]]), np.zeros((1, 3, 2)), np.ones(3), none).scales.tolist()
    [1.0, 1.0, 1.0]
    """

    probability: FloatArray
    evidence: NDArray[np.floating]
    scales: FloatArray
    without_annotator: NDArray[np.int64]


class TspLearner:
    """The learner of the loop for TSP.

    Parameters
    ----------
    votes : int array of shape (n, m)
        Annotators' codes, -1 where they abstained.
    pseudo : int array of shape (n,)
        The label that the annotators gave together.
    ledger : GoldLedger
    classes : array of shape (K,)
    groups : int array of shape (n,)
        Number of each row's text in a random order of the distinct texts. Equal texts share a
        fold, and samples are taken from the beginning of that order.
    folds, seed : int
    confidence : float array of shape (n, m), optional

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(0, 2, 300)
    >>> pseudo = np.where(rng.random(300) < 0.7, truth, 1 - truth)
    >>> ledger = GoldLedger(np.where(np.arange(300) < 40, truth, -1), None, 0)
    >>> learner = TspLearner(pseudo[:, None], pseudo, ledger, np.arange(2), np.arange(300), 5, 0)
    >>> learner.features = (truth + rng.normal(size=300))[:, None]
    >>> fitted = learner.fit(np.arange(300), pseudo, 1)
    >>> bool((fitted.probability.argmax(axis=1) == truth).mean() > (pseudo == truth).mean())
    True
    """

    def __init__(
        self,
        votes: Codes,
        pseudo: Codes,
        ledger: GoldLedger,
        classes: NDArray[Any],
        groups: NDArray[np.int64],
        folds: int,
        seed: int,
        confidence: FloatArray | None = None,
    ) -> None:
        self.votes, self.pseudo, self.ledger, self.classes = votes, pseudo, ledger, classes
        self.groups, self.folds, self.seed = groups, folds, seed
        self.confidence = confidence
        self.features: Features = np.empty((0, 0), dtype=np.float32)
        self._number, self._warned = 0, False

    def start_round(self, labels: Codes, number: int) -> dict[str, Any]:
        """Return the class ratios of the annotator's labels, for the account of round 1."""
        del labels
        gold = self.ledger.use(PURPOSE, number)
        if number > 1 or not len(self.ledger):
            return {"gold_rows": len(self.ledger)}
        k = len(self.classes)
        counts = priors.count_pairs(self.pseudo, gold, k)
        ratios = priors.ratios_from_counts(counts, priors.set_shares(self.pseudo, k))
        if ratios.kappa <= 0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"the annotator is no better than chance on the gold rows (Cohen's kappa "
                f"{ratios.kappa:.2f}): check that both columns use the same classes",
                WhetWarning,
                stacklevel=2,
            )
        return ratios_record(ratios, len(self.ledger))

    def fit(self, rows: NDArray[np.int64], labels: Codes, number: int) -> Fitted:
        """Run round ``number``, and the rounds before it that this process has not run."""
        del rows, labels
        if not 0 < self._number < number:
            self._begin()
        while self._number < number:
            self._advance()
        return self._fitted

    def propose(self, model: Fitted, rows: NDArray[np.int64]) -> FloatArray:
        """Return class probabilities of shape (len(rows), K)."""
        return model.probability[rows]

    def classifier(self, model: Fitted) -> tuple[FloatArray, FloatArray]:
        """Return coef and intercept of a linear classifier that learned the pooled labels."""
        return fit_soft_labels(self.features, *self.targets(model), L2_ANNOTATOR)

    def targets(self, model: Fitted) -> tuple[FloatArray, FloatArray]:
        """Return what a model for new texts learns: probabilities (n, K) and weights (n,)."""
        target = model.probability.copy()
        weight = np.ones(len(target))
        known = self._gold != MISSING
        target[known] = np.eye(len(self.classes))[self._gold[known]]
        weight[known] = GOLD_WEIGHT
        return target, weight

    def _begin(self) -> None:
        """Set up the run with all gold labels, and the runs that judge the gold rows."""
        k = len(self.classes)
        dense = project(self.features, learn_directions(self.features, self.groups))
        dense = np.concatenate([dense, np.ones((len(dense), 1), dtype=np.float32)], axis=1)
        fold = np.empty(len(dense), dtype=np.int64)
        for number, (_, held_out) in enumerate(
            split(len(dense), self.folds, self.groups, self.seed)
        ):
            fold[held_out] = number
        self._gold = self.ledger.use(PURPOSE, 1)
        self._rows = self.ledger.rows
        self._group = self._gold_groups()
        self._full = Runs(dense, fold, self.votes, self._gold[:, None], k, self.confidence)
        self._honest: Runs | None = None
        if len(self._rows):
            subset = self._honest_rows()
            withheld = np.repeat(self._gold[:, None], self._group.max() + 1, axis=1)
            withheld[self._rows, self._group] = MISSING
            confidence = None if self.confidence is None else self.confidence[subset]
            self._honest = Runs(
                dense[subset], fold[subset], self.votes[subset], withheld[subset], k, confidence
            )
            self._at = np.searchsorted(subset, self._rows)
        self._number = 0

    def _gold_groups(self) -> NDArray[np.int64]:
        """Deal the gold texts to groups, evenly by gold class and annotator's label."""
        # Copies of a text would judge each other: they are dealt as one.
        texts, first, text = np.unique(
            self.groups[self._rows], return_index=True, return_inverse=True
        )
        rows = self._rows[first]
        order = np.lexsort((texts, self.pseudo[rows], self._gold[rows]))
        group = np.empty(len(texts), dtype=np.int64)
        group[order] = np.arange(len(texts)) % GROUPS
        dealt: NDArray[np.int64] = group[text]
        return dealt

    def _honest_rows(self) -> NDArray[np.int64]:
        """Rows of the runs that judge gold rows: all, or the gold rows and a random sample."""
        rank = self.groups.copy()
        rank[self._rows] = -1
        size = max(HONEST_ROWS, len(self._rows))
        return np.sort(np.argsort(rank, kind="stable")[:size])

    def _advance(self) -> None:
        self._number += 1
        k, first = len(self.classes), self._number == 1
        for runs in (self._full, self._honest):
            if runs is not None and first:
                runs.learn_from_annotator()
                runs.learn_from_gold()
            elif runs is not None:
                runs.learn_from_pool()
        pool = Pool(FIRST_SCALES if first else LATER_SCALES, k, self.seed + self._number)
        gold = self._gold[self._rows]
        if self._honest is None:
            honest = np.zeros((0, len(FIRST_SCALES), k), dtype=np.float32)
        else:
            honest = self._honest.evidence()[self._at, self._group]
        weight = pool.weigh(honest, gold)
        evidence = self._full.evidence()[:, 0]
        probability = pool.mix(evidence, weight)
        self._full.pooled = probability[:, None].astype(np.float32)
        alone = np.full(len(gold), MISSING, dtype=np.int64)
        if self._honest is not None:
            students = honest.copy()
            students[:, -1] = 0.0
            pooled = np.empty_like(self._honest.label)
            every = self._honest.evidence()
            for g in range(pooled.shape[1]):
                mine, others = self._group == g, self._group != g
                trust = pool.weigh(honest[others], gold[others])
                pooled[:, g] = pool.mix(every[:, g], trust)
                alone[mine] = pool.mix(students[mine], trust).argmax(axis=1)
            self._honest.pooled = pooled
            probability[self._rows] = pooled[self._at, self._group]
            evidence[self._rows] = honest
        self._fitted = Fitted(probability, evidence, pool.mean_scales(weight), alone)


def margin_rule(pseudo: Codes, margin: float = MARGIN) -> Rule:
    """Return the rule that changes a label only for one that is more probable by the margin.

    Where the annotator abstained, the most probable class is taken.
    """

    def decide(labels: Codes, proposals: FloatArray, number: int) -> Codes:
        del labels, number
        rows = np.arange(len(pseudo))
        best = proposals.argmax(axis=1)
        lead = proposals[rows, best] - proposals[rows, np.maximum(pseudo, 0)]
        return np.where((pseudo == MISSING) | (lead > margin), best, pseudo)

    return decide


def proposals(pseudo: Codes, probability: FloatArray, guard: str) -> list[Proposal]:
    """Return what the guard may choose from, from the boldest to the most cautious."""
    ladder = LADDER if guard == "safe" else ((MARGIN, 0.0),)
    return [
        Proposal(margin_rule(pseudo, margin)(pseudo, probability, 0), standard_errors, margin)
        for margin, standard_errors in ladder
    ]


def explain(fitted: Fitted, pseudo: Codes, probability: FloatArray) -> list[str]:
    """Say of each row what each source holds of its best class against the annotator's, as odds.

    Parameters
    ----------
    fitted : Fitted
    pseudo : int array of shape (n,)
        The annotator's codes. Where it abstained, or agrees, the best class is held against the
        second best.
    probability : float64 array of shape (n, K)
        Of the round that counts.
    """
    rows = np.arange(len(pseudo))
    best = probability.argmax(axis=1)
    others = probability.copy()
    others[rows, best] = -1.0
    rival = np.where((pseudo == MISSING) | (pseudo == best), others.argmax(axis=1), pseudo)
    lead = (fitted.evidence[rows, :, best] - fitted.evidence[rows, :, rival]) * fitted.scales
    odds = np.exp(np.minimum(np.abs(lead), np.log(999)))
    said = []
    for row_odds, row_lead in zip(odds.tolist(), lead.tolist(), strict=True):
        parts = [
            f"{name} {ratio:.1f}:1 {'for' if sign > 0 else 'against'}"
            for name, ratio, sign in zip(SOURCES, row_odds, row_lead, strict=True)
            if ratio >= 1.05
        ]
        said.append(", ".join(parts) or "no evidence either way")
    return said


def _columns(probability: NDArray[np.floating]) -> Floats:
    """Drop the first of two classes: the solver has one column for two classes."""
    columns = probability[..., 1:] if probability.shape[-1] == 2 else probability
    return np.ascontiguousarray(columns, dtype=np.float32)


def _log_probabilities(scores: Floats) -> Floats:
    if scores.shape[-1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    log_probabilities: Floats = log_softmax(scores)
    return log_probabilities
