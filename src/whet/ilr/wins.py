"""How often a model's completions beat another's on the same prompts, by a judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.align.compare import Measure, estimate
from whet.errors import WhetError
from whet.estimates import share
from whet.ilr.feedback import BothOrders, Comparer, Judge, Scores, judge_disagreements


def judge_wins(judge: Judge, table: pa.Table, first: pa.Table, other: pa.Table) -> pa.Table:
    """Judge the completions of one model against those of another.

    Completions that are equal are a tie and not judged.

    Parameters
    ----------
    judge : Judge
        One that reads two completions side by side is a :class:`whet.ilr.feedback.BothOrders`.
    table : pyarrow.Table
        ``row``, ``prompt`` and what the judge needs besides.
    first, other : pyarrow.Table
        ``row``, as in ``table``, and ``completion``, one a row; null is none.

    Returns
    -------
    pyarrow.Table
        For each row of ``other``, in its order: ``row``; ``win`` (float64 in 0 to 1, the
        probability that its completion beats that of ``first``, 0.5 for a tie, null where there is
        none); ``consistent`` (bool, whether both orders name the same winner, null where they were
        not asked); ``failure`` (string, why there is no ``win``).

    Raises
    ------
    WhetError
        If no row has a completion of both, one has several, or the judge failed at all.

    Examples
    --------
    >>> class Longer:
    ...     def accept(self, prompts, first, second):
    ...         return Scores(np.array([float(len(b) > len(a)) for a, b in zip(first, second)]))
    >>> table = pa.table({"row": [0, 1, 2], "prompt": ["a", "b", "c"]})
    >>> first = pa.table({"row": [0, 1, 2], "completion": ["x", "x", None]})
    >>> other = pa.table({"row": [0, 1, 2], "completion": ["xx", "x", "x"]})
    >>> wins = judge_wins(BothOrders(Longer()), table, first, other)
    >>> wins["win"].to_pylist(), wins["consistent"].to_pylist()
    ([1.0, 0.5, None], [True, None, None])
    >>> summarise_wins(wins)["rate"]["value"]
    0.75
    """
    check_single(first, "the first model")
    check_single(other, "the other model")
    rows = other["row"].to_pylist()
    old = dict(zip(first["row"].to_pylist(), first["completion"].to_pylist(), strict=True))
    new = other["completion"].to_pylist()
    both = [i for i, row in enumerate(rows) if new[i] is not None and old.get(row) is not None]
    if not both:
        raise WhetError(
            f"none of {len(rows):,} rows has a completion of both models: give completions of the "
            "same rows"
        )
    place = {row: i for i, row in enumerate(table["row"].to_pylist())}
    pairs = table.take(pa.array([place[rows[i]] for i in both]))
    if "completion" in pairs.column_names:
        pairs = pairs.drop_columns("completion")
    before, after = [old[rows[i]] for i in both], [new[i] for i in both]
    pairs = pairs.append_column("completion", pa.array(before, first["completion"].type))
    equal = np.array([a == b for a, b in zip(before, after, strict=True)])
    heard = None
    if isinstance(judge, BothOrders):
        heard = _Heard(judge.comparer)
        judge = replace(judge, comparer=heard)
    found = judge_disagreements(judge, pairs, after, equal)
    win, consistent = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    win[both] = np.where(equal, 0.5, found.values)
    if heard is not None:
        consistent[np.array(both)[~equal]] = heard.consistent()
    failures: list[str | None] = ["no completion of both"] * len(rows)
    for k, i in enumerate(both):
        failures[i] = found.failures.get(k)
    return pa.table(
        {
            "row": other["row"],
            "win": pa.array(win, from_pandas=True),
            "consistent": pa.array(consistent, from_pandas=True).cast(pa.bool_()),
            "failure": pa.array(failures, pa.string()),
        }
    )


def check_single(completions: pa.Table, name: str) -> None:
    """Raise ``WhetError`` if a row has several completions.

    Parameters
    ----------
    completions : pyarrow.Table
        With ``row``.
    name : str
        What the error calls it.

    Examples
    --------
    >>> check_single(pa.table({"row": [0, 0]}), "theirs.csv")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: theirs.csv has 2 completions of 1 rows: a judge takes one a row, keep one
    """
    rows = len(set(completions["row"].to_pylist()))
    if rows < completions.num_rows:
        raise WhetError(
            f"{name} has {completions.num_rows:,} completions of {rows:,} rows: a judge takes one "
            "a row, keep one"
        )


def summarise_wins(wins: pa.Table, seed: int = 0) -> dict[str, Any]:
    """Return the win rate and what it is made of, for JSON.

    Parameters
    ----------
    wins : pyarrow.Table
        Of :func:`judge_wins`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``rate``, the mean of ``win``, with a 95 % bootstrap interval over rows; ``won``, ``tied``
        and ``lost``, rows with a ``win`` above, at and below 0.5; ``unjudged``, rows without;
        ``consistent``, the share of pairs of which both orders name the same winner, with Jeffreys'
        interval, None where none was asked in two orders.
    """
    win = wins["win"].to_numpy(zero_copy_only=False)
    told = wins["consistent"].drop_null().to_numpy(zero_copy_only=False).astype(np.bool_)
    return {
        "rate": estimate(Measure(win, np.ones(len(win)), share=True), seed).as_dict(),
        "won": int((win > 0.5).sum()),
        "tied": int((win == 0.5).sum()),
        "lost": int((win < 0.5).sum()),
        "unjudged": int(np.isnan(win).sum()),
        "consistent": share(told).as_dict() if len(told) else None,
    }


class _Heard:
    """Hears what a comparer says of each order, of which ``BothOrders`` gives the mean."""

    def __init__(self, comparer: Comparer) -> None:
        self.comparer = comparer
        self.values: NDArray[np.float64] = np.empty(0)

    def accept(self, prompts: Any, first: Any, second: Any) -> Scores:  # noqa: ANN401
        found = self.comparer.accept(prompts, first, second)
        self.values = found.values
        return found

    def consistent(self) -> NDArray[np.float64]:
        """Return 1 where both orders name the same winner, 0 where not, NaN where one failed."""
        forth, back = np.split(self.values, 2)  # one call for both orders
        return np.where(np.isnan(forth + back), np.nan, (forth - 0.5) * (back - 0.5) < 0)
