"""Cohen's kappa of each two annotators (Educational and Psychological Measurement 20, 1960).

Its interval is the middle 95 % of kappa under the posterior of the table of both people's answers:
Dirichlet, with Jeffreys' prior for whether the two agree, half a row for agreement and half a row
against it, each shared out equally. Drawing the rows again instead would give an interval without
width where two people agreed on every row, which says nothing of the rows that they did not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.estimates import LEVEL, Estimate

#: Draws from the posterior, and their seed.
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
            kappa, reason = _kappa(tuple(both))
            found.append(
                {
                    "who": [first, second],
                    "n": len(both),
                    "kappa": None if kappa is None else kappa.as_dict(),
                    "reason": reason,
                }
            )
    return found


@lru_cache(maxsize=64)  # asked for again and again while disagreements are settled
def _kappa(both: tuple[tuple[int, int], ...]) -> tuple[Estimate | None, str | None]:
    pairs, n = np.array(both), len(both)
    if n < 2:
        return None, "only one row has both annotators"
    given, codes = np.unique(pairs, return_inverse=True)
    k = len(given)
    if k == 1:
        return None, "both gave every row the same class, so that chance explains it all"
    first, second = codes.reshape(pairs.shape).T
    table = np.bincount(first * k + second, minlength=k * k).reshape(k, k)
    value = float(_values(table[None].astype(float))[0])
    agree = np.eye(k, dtype=bool)
    prior = np.where(agree, 0.5 / k, 0.5 / (k * k - k))
    rng = np.random.default_rng(_SEED)
    # Gamma draws are those of a Dirichlet up to their sum, which kappa does not depend on.
    drawn = _values(rng.standard_gamma(table + prior, (_DRAWS, k, k)))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(min(low, value)), float(max(high, value)), n), None


def _values(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return kappa of tables of counts or shares, shape (m, K, K)."""
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    hits = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    value: NDArray[np.float64] = (hits - chance) / (1 - chance)
    return value
