"""The honest account: what the gold rows say of the new labels, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet import estimates
from whet.classify.labels import MISSING, Codes
from whet.classify.risks import FloatArray
from whet.estimates import Estimate

#: When the annotator's labels are kept: ``safe`` unless a proposal shows the gain on the gold rows
#: that it asks for, ``mild`` if the boldest proposal shows a loss, ``off`` never.
GUARDS = ("safe", "mild", "off")


#: Bootstrap samples of the gold rows.
RESAMPLES = 400
#: Fewer judged gold rows than this convince nobody.
LEAST_GOLD = 10


@dataclass(frozen=True)
class Proposal:
    """Labels that could replace the annotator's, and the evidence that they ask for.

    Attributes
    ----------
    labels : int array of shape (n,)
        Codes; none is missing.
    standard_errors : float
        The gain on the gold rows must exceed this many of its standard errors, 0 or more.
    margin : float
        How much more probable than the annotator's label a new one had to be.

    Examples
    --------
    >>> Proposal(np.array([0, 1]), 1.0, 0.2).margin
    0.2
    """

    labels: Codes
    standard_errors: float = 0.0
    margin: float = 0.0

    def convinces(self, pseudo: Codes, gold: Codes) -> bool:
        """Whether the gain on the gold rows that the annotator answered is large enough.

        With w of these rows won and l lost, the standard error of the gain is that of a fair coin
        thrown w + l times (McNemar's test): the proposal convinces if w - l > z sqrt(w + l),
        and if there are ten such rows at least, of two classes.
        """
        judged = (gold != MISSING) & (pseudo != MISSING)
        new, old = self.labels[judged] == gold[judged], pseudo[judged] == gold[judged]
        won, lost = int((new & ~old).sum()), int((old & ~new).sum())
        enough = len(new) >= LEAST_GOLD and len(np.unique(gold[judged])) > 1
        return bool(enough and won - lost > self.standard_errors * np.sqrt(won + lost))


@dataclass(frozen=True)
class Account:
    """Refined labels after the guard, and what is known of them.

    Attributes
    ----------
    labels : int array of shape (n,)
        The refined codes; none is missing.
    kept_annotator : bool
        Whether the guard put the annotator's labels back.
    proposal : Proposal
        What was taken, or would have been without the guard.
    estimate : dict of str to Estimate
        ``annotator``: accuracy of its labels, on the rows that it answered; ``classifier``: of
        the proposed labels on the same rows; ``classifier_gain`` and ``gain``: of the proposed
        and of the refined labels over the annotator's, on the same rows; ``filled``: of the
        refined labels on the rows on which the annotator abstained; ``refined``: of the refined
        labels on all rows. What no gold row speaks of is absent.
    verdict : str
        One sentence for a person.

    Examples
    --------
    >>> import numpy as np
    >>> codes = np.array([0, 1, 1])
    >>> account = give_account(codes, [Proposal(codes)], codes, "safe", whole=False)
    >>> print(account.verdict.split(":")[0])
    Annotator's labels kept
    """

    labels: Codes
    kept_annotator: bool
    proposal: Proposal
    estimate: dict[str, Estimate]
    verdict: str


def give_account(
    pseudo: Codes,
    proposals: Sequence[Proposal],
    gold: Codes,
    guard: str,
    *,
    whole: bool,
    probability: FloatArray | None = None,
) -> Account:
    """Compare proposed with pseudo-labels on the gold rows and apply the guard.

    Parameters
    ----------
    pseudo : int array of shape (n,)
        The annotator's codes, -1 where it abstained.
    proposals : sequence of Proposal
        From the boldest to the most cautious. ``safe`` takes the first that convinces, unless the
        corrected estimate of its gain is not positive; ``mild`` and ``off`` know the boldest only.
    gold : int array of shape (n,)
        Gold codes, -1 where unknown.
    guard : {"safe", "mild", "off"}
        See :data:`GUARDS`. Without gold rows nothing shows a gain, so both guards keep.
    whole : bool
        The gold rows are all rows.
    probability : float array of shape (n, K), optional
        Calibrated class probabilities, those of gold rows from models that did not see their
        label: the estimates of refined labels and gain are then prediction-powered, and corrected
        for the guard's choice by the same rows.

    Notes
    -----
    The guard judges the rows that the annotator answered. Where it abstained there is nothing to
    keep: these rows are always filled, and filling alone is no gain.

    Examples
    --------
    >>> import numpy as np
    >>> gold = np.array([0, 1, 1, 1] * 5)
    >>> pseudo = np.array([0, 0, 1, -1] * 5)
    >>> account = give_account(pseudo, [Proposal(gold)], gold, "safe", whole=True)
    >>> account.kept_annotator, round(account.estimate["gain"].value, 2)
    (False, 0.33)
    """
    convincing = [p for p in proposals if p.convinces(pseudo, gold)]
    chosen = convincing[0] if convincing and guard == "safe" else proposals[0]
    proposed = chosen.labels
    known = gold != MISSING
    answered = known & (pseudo != MISSING)
    before = pseudo[answered] == gold[answered]
    proposed_right = proposed[answered] == gold[answered]
    measured = estimates.difference(proposed_right, before, whole=whole) if answered.any() else None
    kept = {
        "safe": not convincing,
        "mild": measured is None or measured.value < 0,
        "off": False,
    }[guard]
    bias = 0.0 if probability is None else _optimism(pseudo, proposals, gold, guard)
    if guard == "safe" and not kept and probability is not None:
        powered = _powered(pseudo, proposed, gold, probability, kept=False, bias=bias)
        kept = powered["gain"].value <= 0 if "gain" in powered else kept
        measured = powered.get("gain", measured)
    labels = np.where(pseudo == MISSING, proposed, pseudo) if kept else proposed.copy()
    right = labels == gold
    estimate = {
        name: estimates.share(hits, whole=whole)
        for name, hits in {
            "annotator": before,
            "classifier": proposed_right,
            "filled": right[known & ~answered],
            "refined": right[known],
        }.items()
        if len(hits)
    }
    if measured is not None:
        estimate["classifier_gain"] = measured
        # Labels that were kept differ in no row, known or not: their gain is exactly zero.
        estimate["gain"] = estimates.difference(right[answered], before, whole=whole or kept)
    if probability is not None and known.any():
        estimate |= _powered(pseudo, labels, gold, probability, kept=kept, bias=bias)
    if kept and (pseudo != MISSING).all() and "annotator" in estimate:
        estimate["refined"] = estimate["annotator"]  # they are the same labels
    verdict = _verdict(kept, measured if kept else estimate.get("gain"))
    filled = int((pseudo == MISSING).sum())
    if kept and filled:
        verdict += f" The {filled:,} rows on which it abstained are filled by the classifier."
    return Account(labels, kept, chosen, estimate, verdict)


def _powered(
    pseudo: Codes, labels: Codes, gold: Codes, probability: FloatArray, *, kept: bool, bias: float
) -> dict[str, Estimate]:
    """Return prediction-powered estimates of the refined labels and of their gain."""
    rows, known = np.arange(len(labels)), gold != MISSING
    answered = pseudo != MISSING
    of_label = probability[rows, labels]
    powered = {
        "refined": estimates.prediction_powered(
            float(of_label[~known].mean()) if (~known).any() else float(of_label.mean()),
            (labels == gold)[known] - of_label[known],
            bias,
        )
    }
    judged, others = known & answered, ~known & answered
    if not kept and judged.any() and others.any():
        lead = of_label - probability[rows, pseudo]
        gain = (labels == gold)[judged].astype(np.float64) - (pseudo == gold)[judged]
        powered["gain"] = estimates.prediction_powered(
            float(lead[others].mean()), gain - lead[judged], bias
        )
        of_pseudo = of_label - lead  # so that gain and accuracies are told on the same footing
        powered["annotator, all rows"] = estimates.prediction_powered(
            float(of_pseudo[others].mean()), (pseudo == gold)[judged] - of_pseudo[judged]
        )
    return powered


def _optimism(pseudo: Codes, proposals: Sequence[Proposal], gold: Codes, guard: str) -> float:
    """Return by how much the gold rows flatter what the guard chose by them.

    The choice is made again on bootstrap samples of the gold rows: the bias is how much better
    what is chosen looks on the sample that chose it than on all gold rows (Efron, 1983).
    """
    known = np.flatnonzero(gold != MISSING)
    if guard == "off" or len(known) < LEAST_GOLD:
        return 0.0
    old, answered = pseudo[known] == gold[known], pseudo[known] != MISSING
    new = np.array([p.labels[known] == gold[known] for p in proposals])
    kept = np.where(answered, old, new[0])
    times = np.random.default_rng(0).multinomial(
        len(known), [1 / len(known)] * len(known), RESAMPLES
    )
    won, lost = (new & ~old & answered) @ times.T, (old & ~new & answered) @ times.T
    asked = np.array([p.standard_errors for p in proposals])[:, None]
    convinced = won - lost > asked * np.sqrt(won + lost) if guard == "safe" else won - lost >= 0
    choice = np.where(convinced.any(axis=0), convinced.argmax(axis=0), len(proposals))
    right = np.concatenate([new, kept[None]]).astype(np.float64)
    flattered = (right @ times.T / len(known))[choice, np.arange(RESAMPLES)]
    return float((flattered - right.mean(axis=1)[choice]).mean())


def _verdict(kept: bool, gain: Estimate | None) -> str:
    if gain is None:
        if kept:
            return (
                "Annotator's labels kept: there is no gold row that has a label of the "
                "annotator's, so nothing shows that the classifier's are better."
            )
        return "Unknown: there are no gold rows to judge the refined labels by."
    points = (
        f"{100 * gain.value:+.1f} points, 95 % interval {100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f}, on {gain.n} gold rows"
    )
    if kept:
        what = "a gain that is too small to trust" if gain.value > 0 else "no gain"
        return f"Annotator's labels kept: the classifier shows {what} ({points})."
    if gain.low > 0:
        return f"Refined labels are better ({points})."
    if gain.high > 0:
        return (
            f"Refined labels are used, but the gold rows cannot tell if they are better ({points})."
        )
    return f"Refined labels are NOT better ({points}), but the guard lets them pass."


def reasons(
    pseudo: Codes,
    proposed: Codes,
    refined: Codes,
    probability: FloatArray,
    known: Mapping[str, NDArray[np.bool_]],
    classes: NDArray[Any],
    evidence: list[str] | None = None,
) -> list[str]:
    """Say of each row, in words, why its label is what it is.

    Parameters
    ----------
    pseudo, proposed, refined : int arrays of shape (n,)
        Codes of the annotator, of the proposal, and of the result.
    probability : float64 array of shape (n, K)
        The classifier's.
    known : mapping of str to bool array of shape (n,)
        Reason -> rows whose label people gave.
    classes : array of shape (K,)
    evidence : list of str, length n, optional
        What speaks for the classifier's label.
    """
    rows = np.arange(len(pseudo))
    best = np.where(pseudo == MISSING, proposed, probability.argmax(axis=1))
    new = probability[rows, best].tolist()
    old = probability[rows, np.maximum(pseudo, 0)].tolist()
    best = best.tolist()
    names = [repr(label) for label in classes.tolist()]
    why = [""] * len(pseudo) if evidence is None else [f" ({e})" for e in evidence]
    given = {row: name for name, mask in known.items() for row in np.flatnonzero(mask).tolist()}
    said = []
    for i, (annotator, classifier, result) in enumerate(
        zip(pseudo.tolist(), proposed.tolist(), refined.tolist(), strict=True)
    ):
        if i in given:
            said.append(given[i])
        elif annotator == MISSING:
            said.append(f"annotator abstained; classifier {new[i]:.2f}{why[i]}")
        elif best[i] == annotator:
            said.append(f"classifier agrees {new[i]:.2f}{why[i]}")
        elif classifier == annotator:
            said.append(
                f"kept, too close: classifier {names[best[i]]} {new[i]:.2f}, annotator's label "
                f"{old[i]:.2f}{why[i]}"
            )
        elif result == annotator:
            said.append(
                f"kept by the guard; classifier prefers {names[classifier]} {new[i]:.2f}{why[i]}"
            )
        else:
            said.append(f"classifier {new[i]:.2f}, annotator's label {old[i]:.2f}{why[i]}")
    return said
