"""What the labels so far say: theta, accuracy, classes, and what more labels would buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from whet.classify.labels import MISSING, Codes
from whet.classify.priors import count_pairs, ratios_from_counts, set_shares
from whet.estimates import LEVEL, Estimate, share

#: Numbers of labels for which the expected width of the interval is given.
SIZES = (50, 100, 200)


def estimates(
    classes: Sequence[str], gold: Codes, rows: NDArray[np.int64], pseudo: Codes | None
) -> dict[str, Any]:
    """Return estimates from the labels of a random sample, for JSON.

    Parameters
    ----------
    classes : sequence of K str
    gold : int64 array of shape (n,)
        Labels.
    rows : int64 array of shape (n,)
        Their row numbers.
    pseudo : int64 array of shape (N,) or None
        The annotator's labels of the whole input, -1 where it abstained.

    Returns
    -------
    dict
        ``rows`` (n); ``classes``, for each class its ``share`` among all rows; ``accuracy`` of the
        annotator where it answered; ``labels``, for each label of the annotator its ``share`` of
        the rows and ``right``, the probability that it is right (theta's diagonal,
        :func:`whet.classify.priors.ratios_from_counts`); and ``more``: for 50, 100 and 200 labels
        the ``width`` that the interval of ``of`` (the accuracy, or else the most frequent class)
        would have if the share stays as it is. An estimate is a dict of
        :class:`whet.estimates.Estimate`, or None where no row speaks of it. Without an annotator
        ``accuracy`` is None and ``labels`` empty.

    Examples
    --------
    >>> found = estimates(["ham", "spam"], np.array([0, 1, 0, 0]), np.arange(4), None)
    >>> found["classes"][1]["share"]["value"], [more["n"] for more in found["more"]]
    (0.25, [50, 100, 200])
    """
    weight = _weights(rows, pseudo)
    shares = [_share(gold == code, weight) for code in range(len(classes))]
    accuracy, labels = None, []
    if pseudo is not None:
        given = pseudo[rows]
        said = given != MISSING
        accuracy = _share(given[said] == gold[said], weight[said])
        labels = _by_label(classes, gold, given, set_shares(pseudo, len(classes)))
    of, found = "accuracy", accuracy
    if pseudo is None and len(rows):
        top = int(np.bincount(gold, minlength=len(classes)).argmax())
        of, found = classes[top], shares[top]
    return {
        "rows": len(rows),
        "accuracy": None if accuracy is None else accuracy.as_dict(),
        "labels": labels,
        "classes": [
            {"class": name, "share": None if s is None else s.as_dict()}
            for name, s in zip(classes, shares, strict=True)
        ],
        "of": of,
        "more": expected_widths(found),
    }


def expected_widths(found: Estimate | None) -> list[dict[str, float]]:
    """Return ``n`` and ``width`` of the interval of a share for more labels, if it stays.

    Examples
    --------
    >>> [round(more["width"], 2) for more in expected_widths(Estimate(0.9, 0.8, 1.0, 30))]
    [0.17, 0.12, 0.08]
    """
    if found is None:
        return []
    expected = [(n, share(np.arange(n) < round(found.value * n))) for n in SIZES]
    return [{"n": n, "width": width.high - width.low} for n, width in expected]


def _weights(rows: NDArray[np.int64], pseudo: Codes | None) -> NDArray[np.float64]:
    """Return what each labelled row stands for: the rows of its stratum, shared out."""
    if pseudo is None:
        return np.ones(len(rows))
    strata = pseudo + 1
    size, labelled = np.bincount(strata), np.bincount(strata[rows], minlength=int(strata.max()) + 1)
    weight: NDArray[np.float64] = size[strata[rows]] / labelled[strata[rows]]
    return weight


def _share(hit: NDArray[np.bool_], weight: NDArray[np.float64]) -> Estimate | None:
    """Return a weighted share with Jeffreys' interval for Kish's effective number of rows.

    With equal weights that is :func:`whet.estimates.share`.
    """
    if not len(hit):
        return None
    value = float(weight @ hit / weight.sum())
    n = float(weight.sum() ** 2 / (weight @ weight))
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, value * n + 0.5, (1 - value) * n + 0.5) if hit.any() else 0.0
    high = beta.ppf(1 - tail, value * n + 0.5, (1 - value) * n + 0.5) if not hit.all() else 1.0
    return Estimate(value, float(low), float(high), len(hit))


def _by_label(
    classes: Sequence[str], gold: Codes, given: Codes, shares: NDArray[np.float64]
) -> list[dict[str, Any]]:
    ratios = ratios_from_counts(count_pairs(given, gold, len(classes)), shares)
    return [
        {
            "label": name,
            "share": float(shares[k]),
            "right": None
            if not ratios.n[k]
            else Estimate(
                float(ratios.theta[k, k]),
                float(ratios.low[k, k]),
                float(ratios.high[k, k]),
                int(ratios.n[k]),
            ).as_dict(),
        }
        for k, name in enumerate(classes)
        if shares[k] > 0
    ]
