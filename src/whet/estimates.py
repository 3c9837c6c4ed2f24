"""Numbers with intervals: shares and paired differences of gold rows, means over several runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

#: Level of every interval that whet reports.
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its 95 % interval, and the rows it comes from.

    Examples
    --------
    >>> print(Estimate(0.74, 0.61, 0.85, 50))
    0.740 [0.610, 0.850] (n = 50)
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"

    def as_dict(self) -> dict[str, float | int]:
        """Return the fields and the level, for JSON."""
        return {**asdict(self), "level": LEVEL}


def share(right: NDArray[np.bool_], *, whole: bool = False) -> Estimate:
    """Estimate a share of rows from a random sample of them.

    Parameters
    ----------
    right : boolean array of shape (n,)
        n >= 1.
    whole : bool
        The rows are all there are, so that the share is exact.

    Returns
    -------
    Estimate
        The sample share with Jeffreys' interval, Beta(hits + 1/2, misses + 1/2); the ends are 0
        and 1 where no row or every row is a hit (Brown, Cai and DasGupta, 2001).

    Examples
    --------
    >>> import numpy as np
    >>> print(share(np.arange(50) < 37))
    0.740 [0.607, 0.846] (n = 50)
    """
    n, hits = len(right), int(right.sum())
    value = hits / n
    if whole:
        return Estimate(value, value, value, n)
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, hits + 0.5, n - hits + 0.5) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 0.5, n - hits + 0.5) if hits < n else 1.0
    return Estimate(value, float(low), float(high), n)


#: Before any gold row: how far off the mean of a model's predictions may be (its standard
#: deviation); the least variance of a prediction's error; and the standard deviation of what gold
#: rows cannot show, such as that they were judged by models with fewer gold rows.
MODEL_SPREAD, LEAST_VARIANCE, DOUBT = 0.10, 0.02, 0.03


def prediction_powered(
    predicted: float, error: NDArray[np.float64], optimism: float = 0.0
) -> Estimate:
    """Estimate a mean from a model's predictions for all rows and their errors on gold rows.

    Parameters
    ----------
    predicted : float
        Mean prediction over the rows in question, in -1 to 1.
    error : float array of shape (n,)
        Truth minus prediction on a random sample of rows that the model did not learn from;
        n >= 1.
    optimism : float
        Known bias of the truth on the sample, for instance since it helped to choose.

    Returns
    -------
    Estimate
        ``predicted + s mean(error) - optimism``: the prediction-powered estimate of Angelopoulos
        et al. (Science 2023), shrunk towards the model by s = t^2 / (t^2 + v) with t = 0.10 and v
        the variance of the mean error. The interval is normal, with 0.03^2 added to v. The
        constants were set so that intervals hold the truth on tuning data; docs/evidence.md.

    Examples
    --------
    >>> import numpy as np
    >>> print(prediction_powered(0.8, np.array([0.2] * 40 + [-0.8] * 10)))
    0.800 [0.674, 0.926] (n = 50)
    """
    n = len(error)
    spread = float(error.var(ddof=1)) if n > 1 else 0.25
    v = max(spread, LEAST_VARIANCE) / n
    shrink = MODEL_SPREAD**2 / (MODEL_SPREAD**2 + v)
    value = float(predicted + shrink * error.mean() - optimism)
    reach = float(norm.ppf(1 - (1 - LEVEL) / 2) * np.sqrt(v + DOUBT**2))
    low, high = max(value - reach, -1.0), min(value + reach, 1.0)
    return Estimate(min(max(value, low), high), low, high, n)


def difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, whole: bool = False
) -> Estimate:
    """Estimate share(first) - share(second), where both are judged on the same rows.

    Parameters
    ----------
    first, second : boolean arrays of shape (n,)
    whole : bool
        As in :func:`share`.

    Returns
    -------
    Estimate
        The difference with the interval of Agresti and Min (2005): half a row is added to each of
        the four cells of the paired table, and the interval lies around that shrunk difference.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.arange(50)
    >>> print(difference(rows < 37, rows < 31))
    0.120 [0.021, 0.210] (n = 50)
    """
    n = len(first)
    gains, losses = int((first & ~second).sum()), int((second & ~first).sum())
    value = (gains - losses) / n
    if whole:
        return Estimate(value, value, value, n)
    up, down, total = gains + 0.5, losses + 0.5, n + 2
    centre = (up - down) / total
    spread = np.sqrt((up + down) / total - centre**2) / np.sqrt(total)
    reach = float(norm.ppf(1 - (1 - LEVEL) / 2) * spread)
    return Estimate(value, max(centre - reach, -1.0), min(centre + reach, 1.0), n)


#: Resamples of runs and rows.
RESAMPLES = 2000


def mean_over_runs(
    columns: Sequence[NDArray[np.float64]], tests: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """Estimate what a quantity is on average over runs of an experiment, not in one of them alone.

    Parameters
    ----------
    columns : sequence of float arrays of shape (n_k,)
        For each run its value on every row of its test, as a score or a difference of two scores on
        the same row; NaN where it is not known. At least one is known in each.
    tests : sequence of hashable, optional
        What rows each run is tested on. Runs with the same value have the same rows in the same
        order, which are then drawn once for all of them. Default: each run has rows of its own.
    seed : int

    Returns
    -------
    Estimate
        The mean over runs of the mean over rows, and percentiles of 2,000 resamples: runs are
        drawn, and for each of them rows (a hierarchical bootstrap; Davison and Hinkley, 1997,
        section 3.8). Rows that runs share are drawn once for all (the pigeonhole bootstrap; Owen,
        2007): more runs on them say nothing of other rows. ``n`` counts different rows. Of a single
        run the interval is over its rows alone; of two to four runs it is too narrow.

    Examples
    --------
    >>> import numpy as np
    >>> gains = [np.repeat([1.0, 0.0], [40 + k, 60 - k]) for k in (0, 10, 2, 5, 4)]
    >>> print(mean_over_runs(gains))
    0.442 [0.390, 0.494] (n = 500)
    >>> print(mean_over_runs(gains, ["the same rows"] * 5))
    0.442 [0.348, 0.538] (n = 100)
    """
    first: dict[Hashable, int] = {}  # tests by the run that first has them
    named = [first.setdefault(test, k) for k, test in enumerate(tests or range(len(columns)))]
    shared = {test for test in named if named.count(test) > 1}
    known: dict[int, NDArray[np.bool_]] = {}
    for test, column in zip(named, columns, strict=True):
        known[test] = np.isfinite(column) | known.get(test, False)
    kept = [column[known[test]] for test, column in zip(named, columns, strict=True)]
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        means: list[float] = []
        drawn: dict[int, NDArray[np.int64]] = {}
        for k in random.integers(len(kept), size=len(kept)):
            column, test = kept[k], named[k]
            if test not in shared or test not in drawn:
                drawn[test] = random.integers(len(column), size=len(column))
            means.append(_mean(column[drawn[test]]))
        draws.append(_mean(np.array(means)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    value = _mean(np.array([_mean(column) for column in kept]))
    n = sum(int(rows.sum()) for rows in known.values())
    return Estimate(value, float(low), float(high), n)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is known, NaN where nothing is."""
    mean = float(np.add.reduce(values)) / len(values)
    if math.isnan(mean) and (known := values[np.isfinite(values)]).size:
        mean = float(known.mean())
    return mean
