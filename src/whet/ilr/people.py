"""People as the judge of a run: which comparisons wait for them, and what they said.

    people/KEY/comparisons.parquet  a round's pairs that nobody has judged, KEY being of its pairs
    people/KEY/judged.parquet       what ``whet label --compare`` makes of them, from its session
    people/verdicts.parquet         what the run took over: these pairs are not asked about again

Nothing else is kept, so that a run that ended while it waited, or was killed, asks the same again.
What was taken over stays as it is, whatever is answered later.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from whet.annotate.protocol import Stop
from whet.errors import WhetError
from whet.ilr.feedback import UNDECIDED, ScoreFile, Scores
from whet.ilr.halves import digest
from whet.rounds import Halt
from whet.store import write_parquet
from whet.tables import read_table

COMPARISONS, JUDGED, VERDICTS = "comparisons.parquet", "judged.parquet", "verdicts.parquet"
#: Columns of a pair; all three files have them.
PAIR = ("prompt", "completion", "proposal")
#: Why a pair has no verdict once people have had enough.
UNANSWERED = "nobody answered"
#: What to do where answers and comparisons are not of each other.
_ANEW = "move the folder {folder} away, and the same command asks people anew"


class Verdict(NamedTuple):
    """What people said of a pair: a score, or why there is none.

    Examples
    --------
    >>> Verdict(1.0, None).score
    1.0
    """

    score: float | None
    failure: str | None


@dataclass(frozen=True)
class Waiting:
    """Comparisons that wait for people.

    Attributes
    ----------
    folder : Path
    total, left : int
        Comparisons, and how many of them nobody has answered.
    arms : tuple of str
        The arms of the run that wait for them, where that is known.

    Examples
    --------
    >>> Waiting(Path("run/people/1f"), total=20, left=12).command
    'whet label --compare run/people/1f/comparisons.parquet --out run/people/1f/judged.parquet'
    """

    folder: Path
    total: int
    left: int
    arms: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command by which people answer."""
        files = ("--compare", str(self.folder / COMPARISONS), "--out", str(self.folder / JUDGED))
        return shlex.join(["whet", "label", *files])


class PeopleWanted(Stop):
    """The run goes on when people have answered.

    Parameters
    ----------
    sessions : sequence of Waiting
        One that comes twice is one, of the arms of both.

    Attributes
    ----------
    sessions : list of Waiting

    Examples
    --------
    >>> PeopleWanted([Waiting(Path("run/people/1f"), 20, 12)]).reason
    '12 of 20 comparisons wait for people'
    """

    def __init__(self, sessions: Sequence[Waiting]) -> None:
        found: dict[Path, Waiting] = {}
        for waits in sessions:
            before = found.get(waits.folder)
            arms = () if before is None else before.arms
            found[waits.folder] = replace(waits, arms=(*arms, *waits.arms))
        self.sessions = list(found.values())
        left, total = (sum(getattr(s, name) for s in self.sessions) for name in ("left", "total"))
        super().__init__(f"{left:,} of {total:,} comparisons wait for people", fatal=False)

    def of(self, arm: str) -> list[Waiting]:
        """Return the sessions as those that an arm waits for.

        Examples
        --------
        >>> waits = PeopleWanted([Waiting(Path("run/people/1f"), 20, 12)])
        >>> PeopleWanted([*waits.of("ilr"), *waits.of("filter")]).sessions[0].arms
        ('ilr', 'filter')
        """
        return [replace(waits, arms=(arm,)) for waits in self.sessions]


def limit_said(alpha: float) -> str:
    """Return what ILR's limit means where people judge, who say yes or no.

    Examples
    --------
    >>> limit_said(0.15)
    'at most 15 % of the proposals that people judge are taken; mode: chosen takes all they prefer'
    """
    return (
        f"at most {100 * alpha:g} % of the proposals that people judge are taken; "
        "mode: chosen takes all they prefer"
    )


@dataclass(frozen=True)
class People:
    """Judges by what people say, who are asked between two runs of the command.

    A pair of equal completions is a tie that nobody is asked about.

    Parameters
    ----------
    folder : Path
        See the module.
    most : int, optional
        So many pairs of a round, drawn; the others are failures. Default: all.
    seed : int
        Of the draw, which depends on nothing else but the pairs.
    criterion : str, optional
        What makes an answer better, in a sentence; people see it.
    enough : bool
        Take over what is answered where something is, and ask no more about the rest.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow.parquet as pq
    >>> folder = Path(tempfile.mkdtemp()) / "people"
    >>> table = pa.table({"prompt": ["2 + 2?", "3 + 3?"], "completion": ["5", "6"]})
    >>> try:
    ...     People(folder).score(table, ["5", "6"], ["4", "6"])
    ... except PeopleWanted as wanted:
    ...     (session,) = wanted.sessions
    >>> session.left
    1
    >>> asked = pq.read_table(session.folder / COMPARISONS)
    >>> pq.write_table(asked.append_column("score", pa.array([1.0])), session.folder / JUDGED)
    >>> People(folder).score(table, ["5", "6"], ["4", "6"]).values.tolist()
    [1.0, 0.5]
    """

    folder: Path
    most: int | None = None
    seed: int = 0
    criterion: str | None = None
    enough: bool = False

    def score(self, table: pa.Table, old: Sequence[Any], new: Sequence[Any]) -> Scores:
        """Return the score of each pair.

        Raises
        ------
        PeopleWanted
            If pairs wait for an answer; they are written.
        WhetError
            If what was answered is about other pairs.
        Halt
            If people gave no verdict about any pair.
        """
        kind = table.schema.field("completion").type
        answers = {"completion": pa.array(list(old), kind), "proposal": pa.array(list(new), kind)}
        pairs = pa.table({"prompt": table["prompt"], **answers})
        keys = _keys(pairs)
        places: dict[int, int] = {}
        for i, key in enumerate(keys):
            if old[i] != new[i]:
                places.setdefault(key, i)
        drawn = sorted(places, key=lambda key: digest(self.seed, key))[: self.most]
        said = self._said(pairs.take(sorted(places[key] for key in drawn))) if drawn else {}
        unasked = Verdict(None, f"not one of the {self.most} pairs that people were asked about")
        values, failures = np.full(len(keys), math.nan), {}
        for i, key in enumerate(keys):
            tie = old[i] == new[i]
            verdict = Verdict(0.5, None) if tie else said.get(key, unasked)
            if verdict.score is None:
                failures[i] = str(verdict.failure)
            else:
                values[i] = verdict.score
        return Scores(values, failures)

    def _said(self, pairs: pa.Table) -> dict[int, Verdict]:
        """Return the verdicts of these pairs, or raise ``PeopleWanted``."""
        kept = self.folder / VERDICTS
        before = [read_table(kept)] if kept.is_file() else []
        known = {key: verdict for table in before for key, verdict in _verdicts(table).items()}
        keys = _keys(pairs)
        fresh = pairs.filter(pa.array([key not in known for key in keys]))
        if fresh.num_rows:
            # Named by all pairs: what is known of them may grow while people answer.
            found = self._taken_over(self.folder / f"{digest(*keys):016x}", fresh)
            write_parquet(kept, pa.concat_tables([*before, found]))
            known |= _verdicts(found)
        said = {key: known[key] for key in keys}
        if all(verdict.score is None for verdict in said.values()):
            raise Halt(f"people gave no verdict about any of {len(keys):,} comparisons")
        return said

    def _taken_over(self, folder: Path, fresh: pa.Table) -> pa.Table:
        """Return pairs with their verdicts, once people have answered."""
        answers = _answers(folder, self._asked(folder, fresh))
        found = [answers.get(key) for key in _keys(fresh)]
        waiting = Waiting(folder, len(found), found.count(None))
        if waiting.left and not (self.enough and waiting.left < len(found)):
            raise PeopleWanted([waiting])
        verdicts = [verdict or Verdict(None, UNANSWERED) for verdict in found]
        scores = pa.array([verdict.score for verdict in verdicts], pa.float64())
        failures = pa.array([verdict.failure for verdict in verdicts], pa.string())
        return fresh.append_column("score", scores).append_column("failure", failures)

    def _asked(self, folder: Path, fresh: pa.Table) -> pa.Table:
        """Return the comparisons of a folder, which hold these, and write them if they do not."""
        path = folder / COMPARISONS
        if path.is_file():
            asked = read_table(path)
            if set(_keys(fresh)) <= set(_keys(asked)):
                return asked
            if _is_answered(folder):  # a new table would fit no answer
                raise WhetError(
                    f"{path} lacks pairs that {self.folder / VERDICTS} had, and answers lie beside "
                    f"it: restore that file, or {_ANEW.format(folder=folder)}"
                )
        asked = fresh.add_column(0, "row", pa.array(range(fresh.num_rows), pa.int64()))
        if self.criterion is not None:
            asked = asked.append_column("criterion", pa.array([self.criterion] * asked.num_rows))
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(path, asked)
        return asked


def _keys(pairs: pa.Table) -> list[int]:
    """Return what tells pairs apart."""
    columns = (pairs[name].to_pylist() for name in PAIR)
    return [digest(*pair) for pair in zip(*columns, strict=True)]


def _verdicts(table: pa.Table) -> dict[int, Verdict]:
    said = map(Verdict, table["score"].to_pylist(), table["failure"].to_pylist())
    return dict(zip(_keys(table), said, strict=True))


def _answers(folder: Path, asked: pa.Table) -> dict[int, Verdict]:
    """Return what people have said so far, also that they could not decide."""
    from whet.review.comparing import write_answers

    path = folder / JUDGED
    try:  # the session may still be open, or may have been killed
        write_answers(folder / COMPARISONS, out=path)
    except WhetError as error:
        raise WhetError(f"{error}; or {_ANEW.format(folder=folder)}") from None
    if not path.is_file():
        return {}
    judged = read_table(path)
    _check_same(judged, asked, folder)
    scores = ScoreFile(path).score(
        asked, asked["completion"].to_pylist(), asked["proposal"].to_pylist()
    )
    failures = [None] * asked.num_rows
    if "failure" in judged.column_names:
        failures = judged["failure"].to_pylist()
    found = {}
    for key, score, failure in zip(_keys(asked), scores.values.tolist(), failures, strict=True):
        if not math.isnan(score):
            found[key] = Verdict(score, None)
        elif failure == UNDECIDED:
            found[key] = Verdict(None, UNDECIDED)
    return found


def _is_answered(folder: Path) -> bool:
    from whet.review.session import session_file

    judged = folder / JUDGED
    return judged.is_file() or session_file(judged).is_file()


def _check_same(judged: pa.Table, asked: pa.Table, folder: Path) -> None:
    """Raise ``WhetError`` unless the answers are about what was asked."""
    names = ("row", *PAIR)
    theirs, ours = (
        table.select([name for name in names if name in table.column_names]).to_pylist()
        for table in (judged, asked)
    )
    if theirs == ours:
        return
    same = (their == our for their, our in zip(theirs, ours, strict=False))
    first = next((i for i, equal in enumerate(same) if not equal), min(len(theirs), len(ours)))
    raise WhetError(
        f"row {first} of {folder / JUDGED} is not that of {folder / COMPARISONS}: "
        f"{_ANEW.format(folder=folder)}"
    )
