"""Estimates as reports tell them: no number where too few rows are behind it."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
#: Of fewer rows than this no number is given: its interval would span nearly everything.
LEAST_ROWS = 5


def too_few(n: int) -> Json:
    """Return an estimate without numbers, from n rows.

    Examples
    --------
    >>> too_few(3)
    {'value': None, 'low': None, 'high': None, 'n': 3}
    """
    return {"value": None, "low": None, "high": None, "n": n}


def known_estimate(estimate: Json) -> Json:
    """Return an estimate, without its numbers where too few rows are behind it.

    Parameters
    ----------
    estimate : dict
        ``value``, ``low``, ``high`` and ``n``, as :meth:`whet.estimates.Estimate.as_dict` has them.

    Examples
    --------
    >>> known_estimate({"value": 1.0, "low": 0.4, "high": 1.0, "n": 3})
    {'value': None, 'low': None, 'high': None, 'n': 3}
    """
    n = estimate["n"]
    return estimate if n >= LEAST_ROWS else estimate | too_few(n)


def compared(difference: Json) -> str:
    """Say whether a difference is above 0, below it or neither.

    Parameters
    ----------
    difference : dict
        An estimate of one thing minus another, both in 0 to 1.

    Returns
    -------
    {"better", "worse", "same", "unsure", "unknown"}
        Same if no row tells them apart, unknown without numbers.

    Examples
    --------
    >>> compared({"value": 0.1, "low": 0.02, "high": 0.18, "n": 50})
    'better'
    """
    if difference["value"] is None:
        return "unknown"
    if difference["low"] > 0:
        return "better"
    if difference["high"] < 0:
        return "worse"
    return "same" if difference["low"] == difference["high"] == 0 else "unsure"


def in_points(difference: Json) -> str:
    """Return a difference with its interval as part of a sentence, in percentage points.

    Parameters
    ----------
    difference : dict
        An estimate with numbers, of one thing minus another, both in 0 to 1.

    Examples
    --------
    >>> in_points({"value": 0.1, "low": 0.02, "high": 0.18, "n": 50})
    '+10.0 points, 95 % interval +2.0 to +18.0'
    """
    value, low, high = (f"{100 * difference[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} points, 95 % interval {low} to {high}"
