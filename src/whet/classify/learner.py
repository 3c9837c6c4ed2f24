"""The learner and the rule of the loop for class labels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.classify import priors
from whet.classify.classifier import UUClassifier
from whet.classify.features import Features
from whet.classify.gold import GoldLedger
from whet.classify.labels import MISSING, Codes
from whet.classify.risks import FloatArray, class_weights
from whet.errors import WhetError, WhetWarning
from whet.rounds import Halt

#: Above this weight in the risk, small errors of theta become large errors of the risk.
LARGEST_STABLE_WEIGHT = 5.0


class RiskLearner:
    """Fits a linear classifier under a pseudo-label risk and proposes class probabilities.

    Parameters
    ----------
    method : {"silr", "uu", "pn"}
    mode : {"gold", "oracle", "released"}
        Where theta and the prior come from; see :mod:`whet.classify.priors`.
    budget : int
        Labelled rows of the mode ``released``.
    ledger : GoldLedger
    classes : array of shape (K,)
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> gold = np.array([0, 0, 1, 1, 1])
    >>> learner = RiskLearner("silr", "gold", 100, GoldLedger(gold, None, 0), np.array([0, 1]), 0)
    >>> record = learner.start_round(np.array([0, 0, 1, 1, 0]), 1)
    >>> np.round(record["theta"], 2).tolist()
    [[0.62, 0.38], [0.17, 0.83]]
    """

    def __init__(
        self,
        method: str,
        mode: str,
        budget: int,
        ledger: GoldLedger,
        classes: NDArray[Any],
        seed: int,
    ) -> None:
        self.method, self.mode, self.budget = method, mode, budget
        self.ledger, self.classes, self.seed = ledger, classes, seed
        self.features: Features = np.empty((0, 0), dtype=np.float32)
        self._ratios: dict[int, priors.ClassRatios] = {}
        self._warned = False

    def start_round(self, labels: Codes, number: int) -> dict[str, Any]:
        """Estimate the class ratios of the current labels and return them as the round's record.

        Raises
        ------
        Halt
            If the labels are all of one class, or no better than chance on the gold rows.
        """
        found = np.unique(labels[labels != MISSING])
        if len(found) < 2:
            raise Halt(
                f"every label is {self.classes.tolist()[found[0]]!r} after round {number - 1}"
            )
        ratios = self._estimate(labels, number)
        if ratios is None:
            return {}
        if self.method != "pn":
            try:
                priors.require_better_than_chance(ratios, self.classes)
            except WhetError as refusal:
                raise Halt(str(refusal)) from None
            if number == 1 and not self._warned:
                self._warned = True
                self._warn_if_unstable(ratios)
        return ratios_record(ratios, len(self.ledger))

    def fit(self, rows: NDArray[np.int64], labels: Codes, number: int) -> UUClassifier:
        """Fit a fresh classifier on the labelled ones among ``rows``."""
        ratios = self._estimate(labels, number)
        rows = rows[labels[rows] != MISSING]
        classifier = UUClassifier(
            self.method,
            theta=None if ratios is None else ratios.theta,
            prior=None if ratios is None else ratios.prior,
        )
        return classifier.fit_codes(self._take(rows), labels[rows], len(self.classes))

    def classifier(self, model: UUClassifier) -> tuple[FloatArray, FloatArray]:
        """Return coef and intercept of the classifier for new texts."""
        return model.coef_, model.intercept_

    def propose(self, model: UUClassifier, rows: NDArray[np.int64]) -> FloatArray:
        """Return class probabilities of shape (len(rows), K)."""
        return model.probabilities(self._take(rows))

    def _take(self, rows: NDArray[np.int64]) -> Features:
        whole = len(rows) == self.features.shape[0]
        taken: Features = self.features if whole else self.features[rows]
        return taken

    def _estimate(self, labels: Codes, number: int) -> priors.ClassRatios | None:
        """Class ratios of a round; the first request reads the gold labels, the others do not."""
        if not len(self.ledger):
            return None
        if number not in self._ratios:
            k = len(self.classes)
            gold = self.ledger.use(f"theta and prior ({self.mode})", number)
            share = priors.set_shares(labels, k)
            if self.mode == "released":
                rng = np.random.default_rng([self.seed, number])
                ratios = priors.released_ratios(labels, gold, self.budget, number, rng)
            else:
                count = priors.ratios_from_counts if self.mode == "gold" else priors.exact_ratios
                ratios = count(priors.count_pairs(labels, gold, k), share)
            self._ratios[number] = ratios
        return self._ratios[number]

    def _warn_if_unstable(self, ratios: priors.ClassRatios) -> None:
        unseen = self.classes[(ratios.n == 0) & (ratios.share > 0)].tolist()
        if unseen:
            warnings.warn(
                f"the annotator says {unseen[0]!r}"
                f"{f' (and {len(unseen) - 1} more)' if len(unseen) > 1 else ''} on no gold row, so "
                "how far that label can be trusted is unknown; label more gold rows, or leave the "
                "cell empty if it stands for no answer",
                WhetWarning,
                stacklevel=2,
            )
        present = ratios.share > 0
        largest = float(np.abs(class_weights(ratios.theta[present], ratios.prior)).max())
        if largest > LARGEST_STABLE_WEIGHT:
            warnings.warn(
                f"the pseudo-labelled sets have nearly the same class ratios (largest weight "
                f"{largest:.1f} in the risk, stable below {LARGEST_STABLE_WEIGHT:.0f}): the result "
                "hangs on few gold rows; label more",
                WhetWarning,
                stacklevel=2,
            )


def ratios_record(ratios: priors.ClassRatios, gold_rows: int) -> dict[str, Any]:
    """Return class ratios with their intervals as a round's record; see docs/run-folder.md."""
    return {
        "theta": ratios.theta.tolist(),
        "theta_low": ratios.low.tolist(),
        "theta_high": ratios.high.tolist(),
        "theta_n": ratios.n.tolist(),
        "share": ratios.share.tolist(),
        "prior": ratios.prior.tolist(),
        "prior_low": ratios.prior_low.tolist(),
        "prior_high": ratios.prior_high.tolist(),
        "gold_rows": gold_rows,
    }


def relabel_all(labels: Codes, proposals: FloatArray, number: int) -> Codes:
    """Replace every label by the most probable class: SILR's rule."""
    del labels, number
    best: Codes = proposals.argmax(axis=1).astype(np.int64)
    return best
