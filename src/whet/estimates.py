"""Numbers with intervals: shares and paired differences of shares, from a sample of gold rows."""

from __future__ import annotations

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
