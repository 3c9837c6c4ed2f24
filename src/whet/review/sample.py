"""Which rows people are asked to label: at random, in proportion to the annotator's labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def proportional(sizes: NDArray[np.int64], n: int) -> Rows:
    """Return the stratum of each of n draws, so that every prefix is proportional.

    Parameters
    ----------
    sizes : int array of shape (K,)
        Rows of each stratum, all >= 1.
    n : int
        At most the sum of ``sizes``.

    Returns
    -------
    int64 array of shape (n,)
        After any m draws a stratum of share q has between ``q m - 1`` and ``q m + 1`` of them:
        the chairman assignment of Tijdeman (Discrete Mathematics 32, 1980), in whole numbers.

    Examples
    --------
    >>> proportional(np.array([6, 3, 1]), 10).tolist()
    [0, 1, 0, 0, 1, 0, 2, 0, 1, 0]
    """
    total, k = int(sizes.sum()), len(sizes)
    if k == 1:
        return np.zeros(n, dtype=np.int64)
    slack = 2 * k - 2
    taken = np.zeros(k, dtype=np.int64)
    drawn = np.empty(n, dtype=np.int64)
    for m in range(1, n + 1):
        due = slack * (sizes * m - taken * total)  # total * slack times (share m - taken)
        urgency = (total * slack - total - due) / sizes
        drawn[m - 1] = np.where(due >= total, urgency, np.inf).argmin()
        taken[drawn[m - 1]] += 1
    return drawn


def draw(strata: NDArray[np.int64], n: int, seed: int) -> Rows:
    """Draw rows without repetition; a larger n gives the same rows first.

    Parameters
    ----------
    strata : int array of shape (N,)
        Stratum of each row, from 0.
    n : int
        At most N.
    seed : int

    Returns
    -------
    int64 array of shape (n,)
        Row numbers: within 1 of proportional for each stratum, each row of a stratum equally
        likely.

    Examples
    --------
    >>> rows = draw(np.array([0] * 80 + [1] * 20), 10, seed=0)
    >>> len(set(rows.tolist())), int((rows >= 80).sum())
    (10, 2)
    """
    order = np.random.default_rng(seed).permutation(len(strata))
    names, codes = np.unique(strata, return_inverse=True)
    turns = proportional(np.bincount(codes), n)
    rows = np.empty(n, dtype=np.int64)
    for code in range(len(names)):
        mine = turns == code
        rows[mine] = order[codes[order] == code][: int(mine.sum())]
    return rows
