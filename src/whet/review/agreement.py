"""Cohen's kappa of each two annotators, with an interval from drawing rows again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.estimates import LEVEL, Estimate

#: Draws of the bootstrap, and its seed.
_DRAWS, _SEED = 2000, 0


def kappas(
    rows: Sequence[Mapping[str, str | None]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the agreement of each two annotators who share a row.

    Parameters
    ----------
    rows : sequence of mappings
        What each annotator answered; None is no answer.
    classes : sequence of str
        What may be answered.

    Returns
    -------
    list of dict
        ``who`` (two names), ``n`` (rows that both answered), ``kappa`` (dict of an
        :class:`~whet.estimates.Estimate`, or None) and ``reason`` (why there is none, or None).

    Examples
    --------
    >>> rows = [{"ann": "a", "bob": "a"}, {"ann": "b", "bob": "b"}, {"ann": "a", "bob": "b"}]
    >>> pair, = kappas(rows * 10, ["a", "b"])
    >>> pair["n"], round(pair["kappa"]["value"], 2)
    (30, 0.4)
    """
    codes = {name: code for code, name in enumerate(classes)}
    people = sorted({who for row in rows for who in row})
    found = []
    for first, second in combinations(people, 2):
        both = [
            (codes[a], codes[b])
            for row in rows
            if (a := row.get(first)) is not None and (b := row.get(second)) is not None
        ]
        if both:
            kappa, reason = _kappa(np.array(both), len(classes))
            found.append(
                {
                    "who": [first, second],
                    "n": len(both),
                    "kappa": None if kappa is None else kappa.as_dict(),
                    "reason": reason,
                }
            )
    return found


def _kappa(pairs: NDArray[np.int64], n_classes: int) -> tuple[Estimate | None, str | None]:
    n = len(pairs)
    if n < 2:
        return None, "only one row has both annotators"
    value = float(_values(pairs[None], n_classes)[0])
    if np.isnan(value):
        return None, "both gave every row the same class, so that chance explains it all"
    rng = np.random.default_rng(_SEED)
    drawn = _values(pairs[rng.integers(0, n, (_DRAWS, n))], n_classes)
    # A draw in which everything is one class has full agreement and no kappa.
    ends = np.quantile(np.nan_to_num(drawn, nan=1.0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(min(ends[0], value)), float(max(ends[1], value)), n), None


def _values(pairs: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return kappa (Cohen, 1960) of samples of pairs, shape (samples, n, 2); NaN if undefined."""
    hits = (pairs[..., 0] == pairs[..., 1]).mean(axis=1)
    shares = [
        np.stack([(pairs[..., side] == k).mean(axis=1) for k in range(n_classes)], axis=1)
        for side in (0, 1)
    ]
    chance = (shares[0] * shares[1]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value: NDArray[np.float64] = np.where(
            chance < 1 - 1e-12, (hits - chance) / (1 - chance), np.nan
        )
    return value
