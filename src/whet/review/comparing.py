"""Which of two answers is better, as people see it: pairs, sides, and scores to replace by.

The demonstration and the proposal of a row stand side by side; a draw of the row's own says which
is on the left. The table that is written is that of ``whet judge``, for ``whet replace``.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from whet.errors import WhetError
from whet.estimates import share
from whet.ilr.feedback import UNDECIDED
from whet.ilr.halves import digest
from whet.ilr.llm_judge import RIGHT as RIGHTNESS
from whet.ilr.people import COMPARISONS, JUDGED
from whet.ilr.refine import judge_proposals
from whet.ilr.rows import SameText, as_completions, read_rows
from whet.ilr.tasks.protocol import Task, criterion_of
from whet.posttrain.examples import digest as table_digest
from whet.review.answers import Sampled
from whet.review.panel import expected_widths
from whet.review.session import Answered, Session, session_file
from whet.streams import write_stream
from whet.tables import check_output

#: What a person may answer; the keys of a comparison.
LEFT, RIGHT, SAME = "left", "right", "same"
#: What people read where neither table nor task says what is better: a language model's words.
DEFAULT = f"What is better: {RIGHTNESS}"


def open_comparison(
    source: Path,
    *,
    out: Path,
    task: Task | None = None,
    n: int | None = None,
    seed: int = 0,
    seconds: float | None = None,
) -> Session:
    """Return the session of people who compare proposals with demonstrations.

    Parameters
    ----------
    source : Path
        Table with ``prompt``, ``completion`` and ``proposal``, text or messages; perhaps
        ``criterion``, one text in all rows, which people see in place of the task's.
    out : Path
        Table to write; the answers lie beside it.
    task : Task, optional
        Says which proposals agree with their demonstration and are not asked about; default: those
        that are the same text.
    n : int, optional
        So many rows, drawn; default: all.
    seed : int
        Of the rows, their order and the sides.
    seconds : float, optional
        Time limit of a row.

    Raises
    ------
    WhetError
        If the table cannot be used, no proposal differs, or ``out`` belongs to another session.
    """
    if n is not None and n < 1:
        raise WhetError(f"n = {n}: compare at least one row")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise WhetError(f"seconds = {seconds:g}: give a time above 0")
    if out.exists() and source.exists() and out.samefile(source):
        raise WhetError(f"--out {out} is the input, which whet never changes: choose another file")
    if not source.exists():
        raise WhetError(f"{source} does not exist: name a table of proposals")
    task = task or SameText()
    table = read_rows(task, str(source), ["prompt", "completion", "proposal"])
    table = as_completions(table, "proposal")
    compared = judge_proposals(table, table["proposal"].to_pylist(), task, None)
    check_output(out, compared)
    criterion = _criterion_in(table, source) or criterion_of(task) or DEFAULT
    return Session(Comparison(compared, source.name, out, n, seed, seconds, criterion))


def _criterion_in(table: pa.Table, source: Path) -> str | None:
    """Return what a table says is better, the same line in all rows, or None."""
    if "criterion" not in table.column_names:
        return None
    said = table["criterion"].to_pylist()
    row = next((row for row, other in enumerate(said) if other != said[0]), None)
    if row is not None:
        raise WhetError(
            f"the column 'criterion' of {source} has another value in row {row} than in row 0: "
            "people see one above all pairs, write the same in all rows"
        )
    if not said or said[0] is None:
        return None
    line = said[0].strip() if isinstance(said[0], str) else ""
    if not line or not line.isprintable():
        raise WhetError(
            f"the column 'criterion' of {source} holds {said[0]!r:.60}, which is no line of text: "
            "write a sentence that says what makes one answer better than another"
        )
    return line


def write_answers(source: Path, *, out: Path) -> None:
    """Write what people have answered so far, also of a session that is open or was killed.

    A session without an answer, or none, is left alone.

    Parameters
    ----------
    source, out : Path
        Of the session, see :func:`open_comparison`.

    Raises
    ------
    WhetError
        If the session cannot be read or is of other comparisons, or others changed its table.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow.parquet as pq
    >>> folder = Path(tempfile.mkdtemp())
    >>> source, out = folder / "proposals.parquet", folder / "judged.parquet"
    >>> rows = {"prompt": ["2+2", "3+3"], "completion": ["5", "5"], "proposal": ["4", "6"]}
    >>> pq.write_table(pa.table(rows), source)
    >>> with open_comparison(source, out=out) as session:  # and the process is killed
    ...     session.answer("me", 0, "same", seconds=2.0)
    >>> write_answers(source, out=out)
    >>> pq.read_table(out)["score"].to_pylist()
    [0.5, None]
    """
    path = session_file(out)
    seed = _seed_of(path) if path.is_file() else None
    if seed is not None:
        with open_comparison(source, out=out, n=1, seed=seed) as session:  # adds no row to it
            session.write()


def _seed_of(path: Path) -> int | None:
    """Return the seed of a session, or None if it has no answer, only reading.

    With another seed sides would be others; and one without an answer would be begun anew.
    """
    query = "SELECT value FROM facts WHERE name = 'seed' AND EXISTS "
    query += "(SELECT 1 FROM events WHERE kind = 'answer' AND undone = 0)"
    try:
        with closing(sqlite3.connect(path)) as db:
            if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                return None  # it is just being made
            found = db.execute(query).fetchone()
    except sqlite3.Error as error:
        raise WhetError(f"the session {path} cannot be read ({error}): restore it") from error
    return None if found is None else int(found[0])


class Comparison:
    """The work of comparing answers; see :func:`open_comparison`.

    Parameters
    ----------
    table : pyarrow.Table
        Of :func:`whet.ilr.refine.judge_proposals`, without a judge.
    title : str
        Name of the input.
    out, n, seed, seconds
        See :func:`open_comparison`.
    criterion : str, optional
        What makes an answer better, in a sentence.

    Examples
    --------
    >>> table = pa.table({"row": [0, 1], "prompt": ["2+2", "3+3"], "completion": ["5", "6"]})
    >>> work = Comparison(judge_proposals(table, ["4", "6"], SameText(), None), "p", Path("j.csv"))
    >>> [item.row for item in work.choose([])], sorted(work.shown(0).values())
    ([0], ['2+2', '4', '5'])
    """

    kind = "compare"
    show_pseudo = False

    def __init__(
        self,
        table: pa.Table,
        title: str,
        out: Path,
        n: int | None = None,
        seed: int = 0,
        seconds: float | None = None,
        criterion: str | None = None,
    ) -> None:
        self.table, self.title, self.out = table, title, out
        self.n, self.seed, self.seconds, self.criterion = n, seed, seconds, criterion
        self.classes = [LEFT, RIGHT, SAME]
        differs = ~table["agree"].to_numpy() & table["proposal"].is_valid().to_numpy()
        self._places = np.flatnonzero(differs)
        if not len(self._places):
            raise WhetError(f"no proposal of {title} differs from its demonstration: nothing to do")

    def facts(self) -> dict[str, str]:
        """Return the hash of the rows, the answers and the seed."""
        texts = self.table.select(["row", "prompt", "completion", "proposal", "agree"])
        return {
            "kind": self.kind,
            "classes": json.dumps(self.classes),
            "proposals": table_digest(texts),
            "seed": str(self.seed),
        }

    def choose(self, known: list[Sampled]) -> list[Sampled]:
        """Return the rows to compare in a drawn order: those that are known, then new ones."""
        order = np.random.default_rng(self.seed).permutation(self._places).tolist()
        n = len(order) if self.n is None else max(self.n, len(known))
        return [*known, *(Sampled(row, random=True) for row in order[len(known) : n])]

    def shown(self, row: int) -> dict[str, str]:
        """Return the prompt and the two answers, on their sides."""
        prompt, completion, proposal = (
            _text(self.table[column][row].as_py())
            for column in ("prompt", "completion", "proposal")
        )
        left, right = (proposal, completion) if self._new_is_left(row) else (completion, proposal)
        return {"prompt": prompt, LEFT: left, RIGHT: right}

    def pseudo(self, row: int) -> str | None:
        """Return None: nobody has answered before."""
        return None

    def _new_is_left(self, row: int) -> bool:
        """Return which side the proposal is on: of the row's number, not of its place in a file."""
        return bool(digest(self.seed, "side", self.table["row"][row].as_py()) & 1)

    def _score(self, answer: str, row: int) -> float:
        if answer == SAME:
            return 0.5
        return float((answer == LEFT) == self._new_is_left(row))

    def _scores(self, answered: Sequence[Answered]) -> dict[int, float]:
        """Return the mean of what annotators say of a row, or what it was settled to."""
        scores = {}
        for found in answered:
            said = [found.label] if found.disputed and found.settled else found.answers.values()
            given = [self._score(answer, found.row) for answer in said if answer is not None]
            if given:
                scores[found.row] = float(np.mean(given))
        return scores

    def panel(self, answered: Sequence[Answered], *, live: bool) -> dict[str, Any]:
        """Return how often the proposal is better, for JSON.

        Returns
        -------
        dict
            ``rows`` with a score, ``unsure`` rows without one that somebody saw, ``same`` (rows
            with a score of 0.5), ``better`` (the share of rows with a score above 0.5, an estimate
            or None) and ``more``, as for labels; ``live``, ``better`` is None: else each answer
            would tell which side was the proposal.
        """
        scores = np.array(list(self._scores(answered).values()))
        better = share(scores > 0.5) if len(scores) and not live else None
        return {
            "rows": len(scores),
            "unsure": len(answered) - len(scores),
            "same": int((scores == 0.5).sum()),
            "better": None if better is None else better.as_dict(),
            "of": "better",
            "more": expected_widths(better),
        }

    def write(self, answered: Sequence[Answered], finish: Callable[[str], None]) -> None:
        """Write the table of ``whet judge``, with ``score`` and ``failure``."""
        found = self._scores(answered)
        n = self.table.num_rows
        failures: list[str | None] = self.table["failure"].to_pylist()
        seen = {row.row for row in answered}
        for row in self._places.tolist():
            failures[row] = UNDECIDED if row in seen else "nobody answered"
            if row in found:
                failures[row] = None
        columns = {
            "score": pa.array([found.get(row) for row in range(n)], pa.float64()),
            "failure": pa.array(failures, pa.string()),
        }
        table = self.table
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        write_stream(self.out, table.schema, table.to_batches(), finish)

    def next_step(self, answered: Sequence[Answered]) -> str:
        """Return the command that takes every proposal that people found better.

        ``chosen`` has no limit on the share of rows that change: ILR's limit guards against judges
        whose scores are unreliable. Where ``whet ilr`` waits for the answers, it takes them over.
        """
        if (self.title, self.out.name) == (COMPARISONS, JUDGED) and (
            self.out.absolute().parent.parent.name == "people"
        ):
            return "run the same whet ilr command again"
        return f"whet replace {shlex.quote(str(self.out))} --mode chosen --out refined.jsonl"


def _text(value: Any) -> str:  # noqa: ANN401
    """Return text, or messages as text: who says what."""
    if isinstance(value, str):
        return value
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)
