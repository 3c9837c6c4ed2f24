"""Iterative label refinement: half-data models propose, a judge decides, demonstrations change.

The loop is :func:`whet.rounds.run_rounds`. Its labels are the completions, an array of objects with
one entry a row: text, a list of messages, or None for a demonstration that a filter has dropped.
No round needs a model of all rows, so those that are evaluated are trained afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.ilr.arms import check_choice, check_share
from whet.ilr.feedback import Judge, Scores, judge_disagreements
from whet.ilr.halves import halves
from whet.ilr.replace import ALPHA, MODES, TIES, Decision, apply, check_collapse, decide
from whet.ilr.rows import SameText, as_completions, text_of
from whet.ilr.stages import Model, Stages, Used
from whet.ilr.tasks.protocol import Task
from whet.posttrain.settings import GenerateSettings, TrainSettings
from whet.rounds import Halt, Progress, Round, Rows, run_rounds
from whet.store import read_json, write_json, write_parquet

Objects = NDArray[np.object_]
#: What proposing, judging and replacing add, which is not a demonstration's.
JUDGED = ("proposal", "fold", "agree", "score", "failure", "choice", "replaced")


def as_objects(values: Sequence[Any]) -> Objects:
    """Return an array with one entry a value, also where these are lists.

    Examples
    --------
    >>> as_objects([["a"], ["b"]]).shape
    (2,)
    """
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def with_completions(table: pa.Table, completions: Sequence[Any] | Objects) -> pa.Table:
    """Return the demonstrations with other completions; those that are None are left out.

    Examples
    --------
    >>> table = pa.table({"prompt": ["a", "b"], "completion": ["x", "y"]})
    >>> with_completions(table, [None, "z"]).to_pylist()
    [{'prompt': 'b', 'completion': 'z'}]
    """
    at = table.column_names.index("completion")
    column = pa.array(list(completions), table.schema.field("completion").type)
    return table.set_column(at, "completion", column).filter(column.is_valid())


def answered(table: pa.Table, marker: str | None) -> pa.Table:
    """Return the rows whose completion holds the marker; others would teach to leave it out.

    Raises
    ------
    Halt
        If there is none.

    Examples
    --------
    >>> answered(pa.table({"completion": ["so 4", "#### 4"]}), "####").num_rows
    1
    """
    if marker is None:
        return table
    kept = [marker in text_of(completion) for completion in table["completion"].to_pylist()]
    if not any(kept):
        raise Halt(
            f"none of {table.num_rows:,} completions holds {marker!r}, which the task needs: the "
            "model that wrote them has not learned the task; train it longer, or mend the rows"
        )
    return table.filter(pa.array(kept))


@dataclass
class Proposer:
    """The learner of the loop: trains on some rows, and proposes completions for others.

    Parameters
    ----------
    stages : Stages
    base : Model
        Every training begins with it.
    table : pyarrow.Table
        The demonstrations before the first round.
    train : TrainSettings
    generate : GenerateSettings
        One sample a prompt; the number of the round is added to its seed.
    marker : str, optional
        See :func:`answered`.
    keep : bool
        Keep the weights of the models that proposed.
    title : str
        For the progress.

    Examples
    --------
    >>> Proposer.__dataclass_fields__["keep"].default
    False
    """

    stages: Stages
    base: Model
    table: pa.Table
    train: TrainSettings
    generate: GenerateSettings
    marker: str | None = None
    keep: bool = False
    title: str = "propose"
    _used: Used = field(default_factory=lambda: Used([], []), init=False, repr=False)

    def start_round(self, labels: Objects, number: int) -> dict[str, Any]:
        """Return what the round will use; it fills up until the round is stored."""
        del labels, number
        self._used = Used([], [])
        return {"models": self._used.models, "completions": self._used.completions}

    def fit(self, rows: Rows, labels: Objects, number: int) -> tuple[Model, int]:
        """Return a model that is trained on ``labels[rows]``, or will be when it is asked."""
        part = with_completions(self.table.take(pa.array(rows)), labels[rows])
        part = answered(part, self.marker)
        title = f"{self.title}, round {number}"
        return self.stages.sft(self.base, part, self.train, title, marker=self.marker), number

    def propose(self, model: tuple[Model, int], rows: Rows) -> Objects:
        """Return a completion for each of ``rows``."""
        proposer, number = model
        prompts = self.table.take(pa.array(rows))
        settings = replace(self.generate, seed=self.generate.seed + number)
        said = self.stages.complete(
            proposer, prompts, settings, f"{self.title}, round {number}", used=self._used
        )
        stop_if_collapsed(prompts, said["completion"].to_pylist())  # one half may do so alone
        if not self.keep:
            proposer.drop()
        return as_objects(said["completion"].to_pylist())


def judge_proposals(
    table: pa.Table, proposals: Sequence[Any], task: Task, judge: Judge | None
) -> pa.Table:
    """Compare proposals with demonstrations, and have those that differ judged.

    Parameters
    ----------
    table : pyarrow.Table
        Demonstrations: ``row``, ``prompt``, ``completion``, and what task and judge need besides.
    proposals : sequence of str, lists of messages, or None
        A row without one keeps its demonstration.
    task : Task
    judge : Judge or None
        None compares only.

    Returns
    -------
    pyarrow.Table
        The columns of ``table``, then ``proposal``, ``agree`` (bool), ``score`` (float64, null
        where there is none) and ``failure`` (string, why the judge failed, else null).

    Raises
    ------
    WhetError
        If the judge failed at every row, or the proposals have collapsed: before it is asked.
    """
    n, there = table.num_rows, [i for i, said in enumerate(proposals) if said is not None]
    part, said = table.take(pa.array(there, pa.int64())), [proposals[i] for i in there]
    if judge is not None:
        check_collapse(part["prompt"].to_pylist(), part["completion"].to_pylist(), said)
    agree = task.agree(part, part["completion"].to_pylist(), said)
    found = Scores(np.full(len(there), np.nan))
    if judge is not None:
        found = judge_disagreements(judge, part, said, agree)
    agreed, scores = np.zeros(n, dtype=bool), np.full(n, np.nan)
    agreed[there], scores[there] = agree, found.values
    failures: list[str | None] = ["no proposal"] * n
    for i, place in enumerate(there):
        failures[place] = found.failures.get(i)
    columns = {
        "proposal": pa.array(list(proposals), table.schema.field("completion").type),
        "agree": pa.array(agreed),
        "score": pa.array(scores, from_pandas=True),
        "failure": pa.array(failures, pa.string()),
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, column)
    return table


@dataclass(frozen=True)
class Rule:
    """How proposals become demonstrations; see :func:`whet.ilr.replace.decide`.

    Parameters
    ----------
    mode : str
    alpha : float
    ties : str
    seed : int

    Examples
    --------
    >>> Rule(mode="filter").alpha
    0.15
    """

    mode: str = "ilr"
    alpha: float = ALPHA
    ties: str = "draw"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("ties", self.ties, TIES)
        check_share("alpha", self.alpha)

    @property
    def asks(self) -> bool:
        """Whether it reads scores."""
        return self.mode != "naive"

    def decide(self, judged: pa.Table, number: int = 1) -> Decision:
        """Decide about the table of :func:`judge_proposals` in a round, counted from 1."""
        return decide(
            judged["agree"].to_numpy(),
            judged["score"].to_numpy() if self.asks else None,
            mode=self.mode,
            alpha=self.alpha,
            ties=self.ties,
            rows=judged["row"].to_pylist(),
            seed=self.seed + number,  # else a rule that draws would draw the same rows each time
        )


def replace_judged(judged: pa.Table, rule: Rule) -> tuple[pa.Table, Decision]:
    """Return the demonstrations after a rule, and what it decided; whoever judged them.

    Parameters
    ----------
    judged : pyarrow.Table
        ``row``, ``prompt``, ``completion``, ``proposal``, ``score`` unless the rule is naive, and
        perhaps ``agree``: without it completions agree that are the same.
    rule : Rule

    Returns
    -------
    (pyarrow.Table, Decision)
        Without the columns of a judgement; ``replaced`` (bool) says which rows changed, unless they
        were dropped.

    Raises
    ------
    WhetError
        If a column is missing or holds something else, the proposals have collapsed, or nothing
        was judged.

    Examples
    --------
    >>> judged = pa.table({"row": [0, 1], "prompt": ["a", "b"], "completion": ["x", "y"],
    ...                    "proposal": ["z", "y"], "score": [0.9, None]})
    >>> replace_judged(judged, Rule(mode="chosen"))[0]["completion"].to_pylist()
    ['z', 'y']
    """
    table = as_completions(judged, "proposal")
    old, new = table["completion"].to_pylist(), table["proposal"].to_pylist()
    kept = [a if b is None else b for a, b in zip(old, new, strict=True)]
    agree = SameText().agree(table, old, kept)
    if "agree" in table.column_names:
        agree = _column(table, "agree", pa.bool_(), "true or false")
    scores = None
    if rule.asks:
        scores = _column(table, "score", pa.float64(), "a number from 0 to 1, or nothing")
    decision = decide(
        agree,
        scores,
        mode=rule.mode,
        alpha=rule.alpha,
        ties=rule.ties,
        rows=table["row"].to_pylist(),
        seed=rule.seed,
    )
    if rule.asks and decision.disagreed and not decision.judged:
        raise WhetError(
            f"none of {decision.disagreed:,} proposals that differ has a score: have them judged, "
            "or take mode = 'naive', which asks no judge"
        )
    refined = apply(table, kept, decision)
    refined = refined.drop_columns([name for name in JUDGED if name in refined.column_names])
    if rule.mode != "filter":
        refined = refined.append_column("replaced", pa.array(decision.accepted))
    return refined, decision


def _column(table: pa.Table, name: str, kind: pa.DataType, what: str) -> NDArray[Any]:
    try:
        values = table[name].cast(kind)
    except pa.ArrowException as error:
        raise WhetError(
            f"the column {name!r} holds {table[name].type}: it needs {what} in each row"
        ) from error
    return np.array(values.fill_null(False) if kind == pa.bool_() else values.to_numpy())


class Rounds:
    """The rule of the loop and its archive: what was judged and decided, a folder a round.

    Parameters
    ----------
    folder : Path
        In it each round writes ``NN/judged.parquet``, ``NN/demonstrations.parquet`` and then
        ``NN/round.json``.
    table : pyarrow.Table
        The demonstrations before the first round, with different numbers in ``row``.
    task : Task
    judge : Judge or None
        None where the rule asks none.
    rule : Rule

    Examples
    --------
    >>> table = pa.table({"row": [0], "prompt": ["a"], "completion": ["x"]})
    >>> Rounds(Path("no/folder"), table, None, None, Rule()).load_round(1) is None
    True
    """

    def __init__(
        self,
        folder: Path,
        table: pa.Table,
        task: Task | None,
        judge: Judge | None,
        rule: Rule,
    ) -> None:
        self.folder, self.table, self.task = folder, table, task
        self.judge, self.rule = judge, rule
        self._decision: Decision | None = None

    def __call__(self, labels: Objects, proposals: Objects, number: int) -> Objects:
        """Return the labels after a round."""
        alive = np.array([i for i, label in enumerate(labels) if label is not None])
        table = with_completions(self.table, labels)
        proposed = proposals[alive].tolist()
        stop_if_collapsed(table, proposed)
        judge = self.judge if self.rule.asks else None
        assert self.task is not None  # noqa: S101 - it is None only to read an archive
        judged = judge_proposals(table, proposed, self.task, judge)
        self._decision = self.rule.decide(judged, number)
        accepted = self._decision.accepted
        after = labels.copy()
        after[alive[accepted]] = None if self.rule.mode == "filter" else proposals[alive[accepted]]
        folder = self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(
            folder / "judged.parquet", judged.append_column("accepted", pa.array(accepted))
        )
        return after

    def save_round(self, finished: Round) -> None:
        """Write the demonstrations, and the record, with which the round exists."""
        folder = self._folder(finished.number)
        table = with_completions(self.table, finished.labels)
        write_parquet(folder / "demonstrations.parquet", table)
        assert self._decision is not None  # noqa: S101 - the loop decides before it saves
        record = {**finished.record, **self._decision.as_dict(), "rows": table.num_rows}
        write_json(folder / "round.json", record)

    def load_round(self, number: int) -> Round | None:
        """Return a round that is stored whole, or None; its proposals stay on disk."""
        folder = self._folder(number)
        if not (folder / "round.json").is_file():
            return None
        table = pq.read_table(folder / "demonstrations.parquet", columns=["row", "completion"])
        said = dict(zip(table["row"].to_pylist(), table["completion"].to_pylist(), strict=True))
        labels = as_objects([said.get(row) for row in self.table["row"].to_pylist()])
        return Round(number, labels, as_objects([]), read_json(folder / "round.json"))

    def load_rounds(self, most: int) -> list[Round]:
        """Return the rounds that are stored, at most so many."""
        found = [self.load_round(number) for number in range(1, most + 1)]
        return [stored for stored in found if stored is not None]

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:02d}"


def stop_if_collapsed(table: pa.Table, proposals: Sequence[Any]) -> None:
    """Raise ``Halt`` where a model says the same to all prompts: before a judge is paid."""
    try:
        check_collapse(table["prompt"].to_pylist(), table["completion"].to_pylist(), proposals)
    except WhetError as error:
        raise Halt(str(error)) from error


@dataclass(frozen=True)
class Refined:
    """The rounds of a refinement.

    Attributes
    ----------
    rounds : list of Round
    halted : str or None
        Why it ended early.

    Examples
    --------
    >>> Refined([], "the model has collapsed").halted
    'the model has collapsed'
    """

    rounds: list[Round]
    halted: str | None


def refine(
    proposer: Proposer,
    rounds: Rounds,
    *,
    n_rounds: int,
    folds: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Refined:
    """Refine demonstrations, and go on with the rounds that are stored.

    Parameters
    ----------
    proposer : Proposer
    rounds : Rounds
    n_rounds : int
        At least 1.
    folds : int
        See :func:`whet.ilr.halves.halves`.
    seed : int
        Of the folds, which are the same in all rounds.
    progress : callable, optional
        Called with ("round", trainings done, trainings in all).

    Returns
    -------
    Refined
        With fewer rounds where a model collapsed or could not be trained.

    Raises
    ------
    WhetError
        If the judge failed at every row, or the rows cannot be split.
    """
    table = proposer.table
    parts = halves(table["prompt"].to_pylist(), folds=folds, seed=seed)
    labels = as_objects(table["completion"].to_pylist())
    try:
        found = run_rounds(
            labels,
            proposer,
            rounds,
            n_rounds=n_rounds,
            parts=parts,
            archive=rounds,
            progress=progress,
        )
    except Halt as halt:
        done = rounds.load_rounds(n_rounds)
        return Refined(done, f"stopped in round {len(done) + 1}: {halt}")
    # As they are stored, so that a run that was resumed says the same.
    return Refined(rounds.load_rounds(len(found.rounds)), found.halted)
