"""Arms judged on the same prompts: means, paired differences, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet import estimates
from whet.estimates import LEVEL, Estimate

FloatArray = NDArray[np.float64]

#: Resamples of the prompts, and how many are made at a time.
RESAMPLES, AT_ONCE = 2000, 100


@dataclass(frozen=True)
class Measure:
    """A quantity of an arm, a prompt at a time.

    Attributes
    ----------
    total : float64 array of shape (n,)
        Its sum over the completions of each prompt; NaN where the prompt says nothing.
    weight : float64 array of shape (n,)
        What to divide by: completions that count, or tokens.
    share : bool
        Each completion has a value in 0 to 1, and counts as 1.

    Examples
    --------
    >>> refusals = Measure(np.array([2.0, 0.0, np.nan]), np.array([2.0, 2.0, 0.0]))
    >>> estimate(refusals).value, estimate(refusals).n
    (0.5, 2)
    """

    total: FloatArray
    weight: FloatArray
    share: bool = False

    @property
    def known(self) -> NDArray[np.bool_]:
        """Prompts that say something."""
        return np.isfinite(self.total) & (self.weight > 0)


def by_prompt(
    prompts: NDArray[np.int64],
    n: int,
    values: FloatArray,
    weights: FloatArray | None = None,
    *,
    share: bool = False,
) -> Measure:
    """Sum values over the completions of each prompt.

    Parameters
    ----------
    prompts : int64 array of shape (m,)
        Number of the prompt of each completion, from 0 to n - 1.
    n : int
    values : float64 array of shape (m,)
        NaN where a completion does not count.
    weights : float64 array of shape (m,), optional
        1 each unless given.
    share : bool
        The values lie in 0 to 1; without weights.
    """
    counts = np.isfinite(values)
    weight = np.ones(len(values)) if weights is None else weights
    total: FloatArray = np.bincount(prompts, np.where(counts, values, 0.0), n).astype(np.float64)
    whole: FloatArray = np.bincount(prompts, np.where(counts, weight, 0.0), n).astype(np.float64)
    return Measure(np.where(whole > 0, total, np.nan), whole, share)


def estimate(measure: Measure, seed: int = 0) -> Estimate:
    """Return sum(total) / sum(weight) with a 95 % bootstrap interval over prompts.

    Prompts are drawn with their completions (a cluster bootstrap; Efron and Tibshirani, 1993,
    section 8), 2,000 times; the interval ends at percentiles. Where all prompts agree it has no
    width, though others may not agree: a share of 0 or 1 then has Jeffreys' interval over prompts.
    """
    kept = _kept(measure, measure.known)
    n = len(kept.total)
    if kept.share and n and (not kept.total.any() or (kept.total == kept.weight).all()):
        return estimates.share(kept.total > 0)
    return _bootstrap({"": kept}, {"": 1.0}, n, seed)


def difference(first: Measure, second: Measure, seed: int = 0) -> Estimate:
    """Return first - second on the prompts that both know, drawn together (paired bootstrap).

    An interval from 0 to 0 says that no prompt tells them apart: of others it says nothing.
    """
    known = first.known & second.known
    pair = {"first": _kept(first, known), "second": _kept(second, known)}
    return _bootstrap(pair, {"first": 1.0, "second": -1.0}, int(known.sum()), seed)


def _kept(measure: Measure, known: NDArray[np.bool_]) -> Measure:
    return Measure(measure.total[known], measure.weight[known], measure.share)


def _bootstrap(
    measures: Mapping[str, Measure], signs: Mapping[str, float], n: int, seed: int
) -> Estimate:
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)

    def contrast(counts: FloatArray) -> FloatArray:
        parts = (
            sign * (counts @ measures[name].total) / (counts @ measures[name].weight)
            for name, sign in signs.items()
        )
        return np.asarray(sum(parts))

    rng = np.random.default_rng(seed)
    drawn = [
        contrast(rng.multinomial(n, np.full(n, 1 / n), AT_ONCE).astype(np.float64))
        for _ in range(RESAMPLES // AT_ONCE)
    ]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail])
    value = float(contrast(np.ones((1, n)))[0])
    return Estimate(value, float(low), float(high), n)
