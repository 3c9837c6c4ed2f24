"""Which of two completions is better: judges, asked in both orders, and what they failed at.

A judge gives each row s, its probability that the new completion is better than the old one:
0.5 says nothing. What a judge that reads the two side by side says depends on their order, so
:class:`BothOrders` asks twice and averages (ILR, arXiv 2501.07886, as the authors' code has it):

    s = ( P(accept | A = old, B = new) + 1 - P(accept | A = new, B = old) ) / 2

A row that a judge could not judge has s = NaN and a reason, never a number: it keeps its
demonstration and is counted (:mod:`whet.ilr.replace`).
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from whet.annotate.annotator import run_async
from whet.errors import WhetError, did_you_mean
from whet.ilr.halves import digest
from whet.ilr.tasks.protocol import Task
from whet.streams import RowStream

#: Completions of one call of a reward function.
REWARD_BATCH = 64
#: What a person may write about a pair, and the score that it stands for.
CHOICES = {"completion": 0.0, "proposal": 1.0, "tie": 0.5}
#: Why a pair has no score that people saw; they are not asked again.
UNDECIDED = "nobody could decide"


@dataclass(frozen=True)
class Scores:
    """Probabilities, one a row, and why some are missing.

    Parameters
    ----------
    values : float64 array of shape (n,)
        In 0 to 1, NaN where there is none.
    failures : dict of int to str
        Position of each row that could not be judged, with the reason.

    Raises
    ------
    WhetError
        If a value is out of range, or a failed row has one.

    Examples
    --------
    >>> Scores(np.array([0.8, np.nan]), {1: "truncated"}).failed
    1
    """

    values: NDArray[np.float64]
    failures: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        failed = np.zeros(len(self.values), dtype=bool)
        failed[list(self.failures)] = True
        wrong = np.flatnonzero(
            (self.values < 0) | (self.values > 1) | (failed & ~np.isnan(self.values))
        )
        if len(wrong):
            raise WhetError(
                f"the score of row {wrong[0]} is {self.values[wrong[0]]:g}: scores are from 0 to "
                "1, and NaN where the judge failed"
            )

    @property
    def failed(self) -> int:
        """Rows that could not be judged."""
        return len(self.failures)


class Judge(Protocol):
    """Says which of two completions of a row is better."""

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return the probability that ``new`` is the better one, for each row of ``table``."""
        ...


class Comparer(Protocol):
    """Reads two completions side by side; its answer may depend on their order."""

    def accept(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Scores:
        """Return P(accept changing answer A = ``first`` to answer B = ``second``), one a row."""
        ...


def judge_disagreements(
    judge: Judge, table: pa.Table, proposals: Sequence[Any], agree: ArrayLike
) -> Scores:
    """Judge the rows whose proposal does not agree with the demonstration.

    Parameters
    ----------
    judge : Judge
    table : pyarrow.Table of n rows
        With ``row``, ``prompt``, ``completion`` and what the judge needs besides.
    proposals : sequence of n str or lists of messages
    agree : bool array of shape (n,)

    Returns
    -------
    Scores
        Of all n rows; NaN without a failure where they agree.

    Raises
    ------
    WhetError
        If lengths differ, or the judge failed at every row that it was asked about.

    Examples
    --------
    >>> table = pa.table({"row": [0, 1], "prompt": ["a", "b"], "completion": ["x", "y"]})
    >>> judge = Reward(lambda prompts, completions, **kwargs: [len(c) for c in completions])
    >>> judge_disagreements(judge, table, ["xxx", "y"], [False, True]).values.round(2).tolist()
    [0.88, nan]
    """
    agree = np.asarray(agree, dtype=bool)
    if not len(agree) == len(proposals) == table.num_rows:
        raise WhetError(
            f"{table.num_rows} rows, {len(proposals)} proposals and {len(agree)} agreements: give "
            "one of each a row"
        )
    asked = np.flatnonzero(~agree).tolist()
    if not asked:
        return Scores(np.full(len(agree), math.nan))
    part = table.take(pa.array(asked, pa.int64()))
    found = judge.score(part, part["completion"].to_pylist(), [proposals[i] for i in asked])
    if found.failed == len(asked):
        raise WhetError(
            f"the judge failed at all {len(asked):,} rows (the first: {found.failures[0]}): "
            "mend the judge before anything is decided"
        )
    values = np.full(len(agree), math.nan)
    values[asked] = found.values
    return Scores(values, {asked[i]: why for i, why in found.failures.items()})


@dataclass(frozen=True)
class BothOrders:
    """A judge from a comparer, which is asked about each pair in both orders.

    Parameters
    ----------
    comparer : Comparer
    scoring : {"both", "released"}
        ``released`` repeats the slip in the authors' code for DPO, which builds the swapped prompt
        without swapping: P(accept) and P(reject) of *one* prompt are averaged, and every score is
        0.5 but for rounding. It is there as a baseline. Their code for ILR swaps.

    Examples
    --------
    >>> class Longer:
    ...     def accept(self, prompts, first, second):
    ...         return Scores(np.array([0.9 if len(b) > len(a) else 0.3
    ...                                 for a, b in zip(first, second)]))
    >>> table = pa.table({"row": [0], "prompt": ["a"]})
    >>> BothOrders(Longer()).score(table, ["x"], ["xx"]).values.tolist()
    [0.8]
    >>> BothOrders(Longer(), scoring="released").score(table, ["x"], ["xx"]).values.tolist()
    [0.5]
    """

    comparer: Comparer
    scoring: str = "both"

    def __post_init__(self) -> None:
        valid = ("both", "released")
        if self.scoring not in valid:
            raise WhetError(f"scoring = {self.scoring!r}{did_you_mean(self.scoring, valid)}")

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return s of each row; a row that failed in either order has none."""
        prompts, n = table["prompt"].to_pylist(), table.num_rows
        if self.scoring == "released":
            found = self.comparer.accept(prompts, old, new)
            return Scores((found.values + (1.0 - found.values)) / 2, found.failures)
        # One call for both orders, so that a comparer of any kind can do them together.
        found = self.comparer.accept([*prompts, *prompts], [*old, *new], [*new, *old])
        forth, back = found.values[:n], found.values[n:]
        return Scores((forth + (1.0 - back)) / 2, {i % n: why for i, why in found.failures.items()})


@dataclass(frozen=True)
class Oracle:
    """Judges by the task's own metric: for experiments, since it reads the references.

    s is 1 where the new completion scores higher, 0 where the old one does, 0.5 on a tie.

    Parameters
    ----------
    task : Task

    Examples
    --------
    >>> class Equal:
    ...     def score(self, table, completions):
    ...         return np.equal(table["reference"].to_pylist(), completions).astype(float)
    >>> table = pa.table({"row": [0, 1], "reference": ["4", "6"]})
    >>> Oracle(Equal()).score(table, ["5", "6"], ["4", "6"]).values.tolist()
    [1.0, 0.5]
    """

    task: Task

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return 0, 0.5 or 1 for each row."""
        gain = self.task.score(table, new) - self.task.score(table, old)
        return _from_values((np.sign(gain) + 1) / 2, "the task could not score it")


@dataclass(frozen=True)
class NoisyOracle:
    """An oracle that errs at a known rate: for experiments with unreliable feedback.

    Parameters
    ----------
    task : Task
    accuracy : float
        Probability of the right verdict, 0 to 1; each row errs independently. On a tie there is no
        right verdict, and one is drawn, as from someone who must choose.
    seed : int
        Verdicts depend on it, on ``row`` and on the two completions, not on their order nor on what
        else is judged. So the same question gets the same answer in every round.

    Raises
    ------
    WhetError
        If ``accuracy`` is no share.

    Examples
    --------
    >>> class Equal:
    ...     def score(self, table, completions):
    ...         return np.equal(table["reference"].to_pylist(), completions).astype(float)
    >>> table = pa.table({"row": range(1000), "reference": ["4"] * 1000})
    >>> judge = NoisyOracle(Equal(), accuracy=0.75)
    >>> bool(0.7 < judge.score(table, ["5"] * 1000, ["4"] * 1000).values.mean() < 0.8)
    True
    """

    task: Task
    accuracy: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise WhetError(f"accuracy = {self.accuracy}: it is a share, give it from 0 to 1")

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return 0 or 1 for each row."""
        right = Oracle(self.task).score(table, old, new)
        values, rows = right.values.copy(), table["row"].to_pylist()
        for i in np.flatnonzero(~np.isnan(values)).tolist():
            pair = (digest(old[i]), digest(new[i]))
            draw = digest(self.seed, int(rows[i]), *sorted(pair)) / 2**64
            if values[i] == 0.5:
                values[i] = (draw < 0.5) == (pair[0] < pair[1])
            elif draw >= self.accuracy:
                values[i] = 1 - values[i]
        return Scores(values, right.failures)


class ScoreFile:
    r"""Reads scores that someone else gave, or a person's choices, from a table.

    Parameters
    ----------
    path : path
        CSV, TSV, JSONL or Parquet with ``row`` and either ``score``, s in 0 to 1, or ``choice``:
        ``completion``, ``proposal`` or ``tie``. An empty cell is a row that was not judged. Where
        the file holds ``completion`` or ``proposal`` too, they must be those that are judged now.

    Raises
    ------
    WhetError
        If the file is no such table, or a row is given twice.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "judged.csv"
    >>> _ = path.write_text("row,choice\n0,proposal\n1,\n")
    >>> table = pa.table({"row": [0, 1, 2], "prompt": ["a", "b", "c"]})
    >>> found = ScoreFile(path).score(table, ["x"] * 3, ["y"] * 3)
    >>> found.values.tolist(), found.failures[1]
    ([1.0, nan, nan], 'no choice in judged.csv')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        stream = RowStream(self.path)  # which leaves the cells of a CSV as they are written
        table = pa.Table.from_batches(stream.batches(), stream.schema)
        names = table.column_names
        column = next((name for name in ("score", "choice") if name in names), None)
        if "row" not in names or column is None:
            raise WhetError(
                f"{path} has the columns {', '.join(names)}: it needs row, and score or choice"
            )
        rows = [_number(row, int) for row in table["row"].to_pylist()]
        if None in rows or len(set(rows)) < len(rows):
            raise WhetError(f"{path} has a row twice, or without its number: give each row one")
        self._column = column
        said = dict(zip(rows, table[column].to_pylist(), strict=True))
        self._values = {row: self._value(row, value) for row, value in said.items()}
        self._judged = {
            name: dict(zip(rows, table[name].to_pylist(), strict=True))
            for name in ("completion", "proposal")
            if name in names
        }

    def _value(self, row: object, said: object) -> float:
        if said is None or said == "" or said != said:
            return math.nan
        if self._column == "choice":
            if said not in CHOICES:
                raise WhetError(
                    f"row {row} of {self.path} has the choice {said!r}"
                    f"{did_you_mean(str(said), CHOICES)}: write one of these, or nothing"
                )
            return CHOICES[str(said)]
        value = _number(said, float)
        if value is None or not 0 <= value <= 1:
            raise WhetError(
                f"row {row} of {self.path} has the score {said!r}: scores are from 0 to 1, mend it"
            )
        return float(value)

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Look each row up."""
        values, failures = np.full(table.num_rows, math.nan), {}
        for i, row in enumerate(table["row"].to_pylist()):
            now = {"completion": old[i], "proposal": new[i]}
            if any(row in kept and kept[row] != now[name] for name, kept in self._judged.items()):
                failures[i] = f"{self.path.name} judged another pair"
                continue
            values[i] = self._values.get(row, math.nan)
            if math.isnan(values[i]):
                failures[i] = f"no {self._column} in {self.path.name}"
        return Scores(values, failures)


class Reward:
    """Judges by a reward function with TRL's interface: s = sigmoid(r(new) - r(old)).

    Under the Bradley-Terry model, which reward models are trained with, this is the probability
    that the new completion is preferred.

    Parameters
    ----------
    function : callable
        ``f(prompts, completions, **kwargs) -> list of float or None``, plain or async. The table's
        other columns arrive as keywords. None, and what is no finite number, is a failure.

    Examples
    --------
    >>> table = pa.table({"row": [0], "prompt": ["a"]})
    >>> judge = Reward(lambda prompts, completions, **kwargs: [len(c) for c in completions])
    >>> judge.score(table, ["xx"], ["xx"]).values.tolist()
    [0.5]
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return s of each row."""
        gain = self._rewards(table, new) - self._rewards(table, old)
        return _from_values(expit(gain), "the reward function gave no number")

    def _rewards(self, table: pa.Table, completions: Sequence[Any]) -> NDArray[np.float64]:
        rewards: list[float] = []
        for start in range(0, table.num_rows, REWARD_BATCH):
            part = table.slice(start, REWARD_BATCH)
            others = {
                name: part[name].to_pylist()
                for name in part.column_names
                if name not in ("prompt", "completion")
            }
            said = self.function(
                prompts=part["prompt"].to_pylist(),
                completions=list(completions[start : start + REWARD_BATCH]),
                **others,
            )
            if inspect.isawaitable(said):
                said = run_async(_awaited(said))
            if len(said) != part.num_rows:
                raise WhetError(
                    f"the reward function gave {len(said)} rewards for {part.num_rows} "
                    "completions: return one each, None where there is none"
                )
            rewards += [math.nan if reward is None else float(reward) for reward in said]
        values = np.array(rewards, dtype=np.float64)
        values[~np.isfinite(values)] = math.nan
        return values


def _number(cell: Any, kind: type[int] | type[float]) -> float | None:  # noqa: ANN401
    """Return what a cell holds, which in a CSV is text, as a number."""
    try:
        return kind(cell)
    except (TypeError, ValueError):
        return None


async def _awaited(work: Any) -> Any:  # noqa: ANN401
    return await work


def _from_values(values: NDArray[np.float64], reason: str) -> Scores:
    """Return scores in which NaN is a failure for one reason."""
    return Scores(values, dict.fromkeys(np.flatnonzero(np.isnan(values)).tolist(), reason))
