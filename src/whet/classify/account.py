"""The honest account: what the gold rows say of the new labels, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet import estimates
from whet.classify.labels import MISSING, Codes
from whet.classify.risks import FloatArray
from whet.estimates import Estimate

#: When the annotator's labels are kept, by the mean gain d on the gold rows:
#: ``safe`` if d <= 0, ``mild`` if d < 0, ``off`` never.
GUARDS = ("safe", "mild", "off")


@dataclass(frozen=True)
class Account:
    """Refined labels after the guard, and what is known of them.

    Attributes
    ----------
    labels : int array of shape (n,)
        The refined codes; none is missing.
    kept_annotator : bool
        Whether the guard put the annotator's labels back.
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
    >>> print(give_account(codes, codes, codes, "safe", whole=False).verdict.split(":")[0])
    Annotator's labels kept
    """

    labels: Codes
    kept_annotator: bool
    estimate: dict[str, Estimate]
    verdict: str


def give_account(
    pseudo: Codes, proposed: Codes, gold: Codes, guard: str, *, whole: bool
) -> Account:
    """Compare proposed with pseudo-labels on the gold rows and apply the guard.

    Parameters
    ----------
    pseudo, proposed : int arrays of shape (n,)
        The annotator's codes (-1 where it abstained) and the classifier's.
    gold : int array of shape (n,)
        Gold codes, -1 where unknown.
    guard : {"safe", "mild", "off"}
        See :data:`GUARDS`. Without gold rows nothing shows a gain, so both guards keep.
    whole : bool
        The gold rows are all rows.

    Notes
    -----
    The guard judges the rows that the annotator answered. Where it abstained there is nothing to
    keep: these rows are always filled, and filling alone is no gain.

    Examples
    --------
    >>> import numpy as np
    >>> gold = np.array([0, 1, 1, 1])
    >>> account = give_account(np.array([0, 0, 1, -1]), gold, gold, "safe", whole=True)
    >>> account.kept_annotator, round(account.estimate["gain"].value, 2)
    (False, 0.33)
    """
    known = gold != MISSING
    answered = known & (pseudo != MISSING)
    before = pseudo[answered] == gold[answered]
    proposed_right = proposed[answered] == gold[answered]
    measured = estimates.difference(proposed_right, before, whole=whole) if answered.any() else None
    kept = guard != "off" and (
        measured is None or measured.value < 0 or (measured.value == 0 and guard == "safe")
    )
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
    return Account(labels, kept, estimate, _verdict(kept, measured))


def _verdict(kept: bool, gain: Estimate | None) -> str:
    if gain is None:
        if kept:
            return (
                "Annotator's labels kept: no gold row has a label of the annotator's, so nothing "
                "shows that the classifier's are better."
            )
        return "Unknown: there are no gold rows to judge the refined labels by."
    points = (
        f"{100 * gain.value:+.1f} points, 95 % interval {100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f}, on {gain.n} gold rows"
    )
    if kept:
        return f"Annotator's labels kept: the classifier shows no gain ({points})."
    if gain.low > 0:
        return f"Refined labels are better ({points})."
    if gain.value > 0:
        return (
            f"Refined labels are used, but the gold rows cannot tell if they are better ({points})."
        )
    return f"Refined labels are NOT better ({points}), but the guard lets them pass."


def reasons(
    pseudo: Codes,
    proposed: Codes,
    refined: Codes,
    probability: FloatArray,
    from_gold: NDArray[np.bool_],
    classes: NDArray[Any],
) -> list[str]:
    """Say of each row, in words, why its label is what it is.

    Parameters
    ----------
    pseudo, proposed, refined : int arrays of shape (n,)
        Codes of the annotator, of the classifier, and of the result.
    probability : float64 array of shape (n, K)
        The classifier's.
    from_gold : bool array of shape (n,)
        Rows whose label is their gold label.
    classes : array of shape (K,)
    """
    rows = np.arange(len(pseudo))
    new = probability[rows, proposed].tolist()
    old = probability[rows, np.maximum(pseudo, 0)].tolist()
    names = [repr(label) for label in classes.tolist()]
    said = []
    for i, (annotator, classifier, result, known) in enumerate(
        zip(pseudo.tolist(), proposed.tolist(), refined.tolist(), from_gold.tolist(), strict=True)
    ):
        if known:
            said.append("gold label")
        elif annotator == MISSING:
            said.append(f"annotator abstained; classifier {new[i]:.2f}")
        elif classifier == annotator:
            said.append(f"classifier agrees {new[i]:.2f}")
        elif result == annotator:
            said.append(f"kept by the guard; classifier prefers {names[classifier]} {new[i]:.2f}")
        else:
            said.append(f"classifier {new[i]:.2f}, annotator's label {old[i]:.2f}")
    return said
