"""A session: people answer rows one at a time, and nothing that they answered is lost.

What is asked, and what becomes of the answers, is the work's to say: classes of texts
(:mod:`whet.review.labelling`) or which of two answers is better (:mod:`whet.review.comparing`).
``open_labels`` and ``open_comparison`` there make sessions.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from whet.errors import WhetError, did_you_mean
from whet.review.agreement import kappas
from whet.review.answers import AnswerLog, Event, Sampled
from whet.store import sha256_of
from whet.tables import has_surrogate

#: Most characters of an annotator's name.
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Item:
    """A row as an annotator sees it.

    Attributes
    ----------
    row : int
        Number of the row in the input, from 0.
    shown : dict of str to str
        ``text``; in a comparison ``prompt``, ``left`` and ``right``. As it is in the input:
        hostile, and of any length.
    pseudo : str or None
        The first annotator's label, where the session has one.
    answered : str or None
        What this annotator had answered, where that was taken back.
    note : str
    position, total : int
        Place among the rows of the sample, from 1, and their number.

    Examples
    --------
    >>> Item(17, {"text": "WIN NOW"}, "spam", None, "", 1, 50).shown["text"]
    'WIN NOW'
    """

    row: int
    shown: dict[str, str]
    pseudo: str | None
    answered: str | None
    note: str
    position: int
    total: int


@dataclass(frozen=True)
class Answered:
    """What all annotators said of one row.

    Attributes
    ----------
    row : int
    random : bool
        Whether the row belongs to the random sample.
    answers : dict of str to str or None
        By annotator; None is unsure, or no answer in time.
    notes : dict of str to str
        By annotator, where there is one.
    settled : str or None
        What a disagreement was settled to.

    Examples
    --------
    >>> Answered(17, True, {"ann": "spam", "bob": None}).label
    'spam'
    >>> Answered(17, True, {"ann": "spam", "bob": "ham"}).label is None
    True
    """

    row: int
    random: bool
    answers: dict[str, str | None]
    notes: dict[str, str] = field(default_factory=dict)
    settled: str | None = None

    @property
    def disputed(self) -> bool:
        """Whether two annotators gave different answers."""
        return len({value for value in self.answers.values() if value is not None}) > 1

    @property
    def label(self) -> str | None:
        """The answer that all agree on who gave one, or that was settled; else None."""
        if self.disputed:
            return self.settled
        return next((value for value in self.answers.values() if value is not None), None)


class Work(Protocol):
    """What a session asks, and what becomes of the answers."""

    kind: str
    title: str
    classes: list[str]
    show_pseudo: bool
    seconds: float | None
    criterion: str | None
    out: Path

    def facts(self) -> dict[str, str]:
        """Return what a session that goes on must have in common with this one."""
        ...

    def choose(self, known: list[Sampled]) -> list[Sampled]:
        """Return the rows to answer: those that are known, in their order, then new ones."""
        ...

    def shown(self, row: int) -> dict[str, str]:
        """Return what an annotator sees of a row."""
        ...

    def pseudo(self, row: int) -> str | None:
        """Return the first annotator's label."""
        ...

    def panel(self, answered: Sequence[Answered], *, live: bool) -> dict[str, Any]:
        """Return estimates, for JSON.

        ``live``: for somebody who has rows left, from that person's answers in the order in which
        they were given; no number may then tell what a single answer was compared with.
        """
        ...

    def write(self, answered: Sequence[Answered], finish: Callable[[str], None]) -> None:
        """Write the output atomically; ``finish`` gets its SHA-256 before it has its name."""
        ...

    def next_step(self, answered: Sequence[Answered]) -> str:
        """Return the command that goes on from the output."""
        ...


class Session:
    """People answering the rows of a work; several threads and processes may share it.

    Parameters
    ----------
    work : Work
        The answers lie beside its output: ``gold.parquet`` has ``gold.label.sqlite``.

    Attributes
    ----------
    kind : {"label", "compare"}
    classes : list of str
        What may be answered, in the order of the keys; ``left``, ``right``, ``same`` in a
        comparison.
    show_pseudo : bool
        Whether annotators may see :attr:`Item.pseudo`.
    seconds : float or None
        Time limit of an item, in a comparison.
    criterion : str or None
        What makes an answer better, in a comparison.
    title : str
        Name of the input.

    Raises
    ------
    WhetError
        If the file of the answers cannot be used, or belongs to another input or other classes.

    Examples
    --------
    >>> import tempfile
    >>> from whet.review.labelling import open_labels
    >>> table = {"text": ["WIN NOW", "see you at 8", "FREE PRIZE"]}
    >>> out = Path(tempfile.mkdtemp()) / "gold.csv"
    >>> with open_labels(table, text="text", classes=["ham", "spam"], out=out) as session:
    ...     while (item := session.next("me")) is not None:
    ...         said = "spam" if item.shown["text"].isupper() else "ham"
    ...         session.answer("me", item.row, said, seconds=2.0)
    ...     _ = session.write()
    >>> [line.split(",")[1] for line in out.read_text().splitlines()]
    ['"gold"', '"spam"', '"ham"', '"spam"']
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self.kind, self.title = work.kind, work.title
        self.classes, self.show_pseudo = list(work.classes), work.show_pseudo
        self.seconds, self.criterion = work.seconds, work.criterion
        path = session_file(work.out)
        if work.out.exists() and not path.exists():
            raise WhetError(
                f"{work.out} exists, and no session of whet label lies beside it: choose another "
                "--out"
            )
        self._log = AnswerLog(path, work.facts(), work.choose)
        try:
            self._check_state()
        except WhetError:
            self._log.close()
            raise
        self._writing = threading.Lock()
        self._written: list[Answered] | None = None

    def _check_state(self) -> None:
        out = self._work.out
        if not self._log.items():
            raise WhetError(f"{self.title} has no row to ask about: every doubtful one has a label")
        if out.exists() and not self._log.wrote(sha256_of(out)):
            raise WhetError(
                f"{out} was changed after whet label wrote it, and would be lost: rename it, or "
                "choose another --out"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of the answers."""
        self._log.close()

    @property
    def path(self) -> Path:
        """File of the answers."""
        return self._log.path

    @property
    def items(self) -> list[Sampled]:
        """The rows of the session, in the order in which they are asked."""
        return self._log.items()

    # --- one row at a time ------------------------------------------------------------------------

    def next(self, who: str) -> Item | None:
        """Return the first row that an annotator has neither answered nor skipped.

        After these come those that were skipped, once more; then None.
        """
        who = _name(who)
        mine = [event for event in self._log.events() if event.who == who]
        last = {event.row: event for event in mine}
        skips = Counter(event.row for event in mine if event.kind == "skip")
        rows = [item.row for item in self._log.items()]
        fresh = [row for row in rows if row not in last]
        again = [row for row in rows if row in last and last[row].kind == "skip"]
        again = [row for row in again if skips[row] == 1]
        row = next(iter([*fresh, *again]), None)
        return None if row is None else self._item(row)

    def item(self, row: int) -> Item:
        """Return a row of the session, whoever answered it."""
        return self._item(row)

    def _item(self, row: int, answered: str | None = None, note: str = "") -> Item:
        place, total = self._check_row(row)
        shown, pseudo = self._work.shown(row), self._work.pseudo(row)
        return Item(row, shown, pseudo, answered, note, place, total)

    def answer(self, who: str, row: int, value: str | None, seconds: float, note: str = "") -> None:
        """Store an answer; it is on disk when this returns.

        Parameters
        ----------
        who : str
            The annotator's name.
        row : int
        value : str or None
            One of :attr:`classes`; None is unsure, in a comparison no answer in time.
        seconds : float
            Time that it took.
        note : str

        Raises
        ------
        WhetError
            If the row is not among :attr:`items`, or the value not among :attr:`classes`.
        """
        self.add([Event(who, row, "answer", value, seconds, note)])

    def skip(self, who: str, row: int) -> None:
        """Put a row off until the others are answered."""
        self.add([Event(who, row, "skip", None, 0.0, "")])

    def add(self, events: Sequence[Event]) -> None:
        """Store answers of several rows or annotators, all or none; see :meth:`answer`."""
        self._log.add([self.check(event) for event in events])

    def check(self, event: Event) -> Event:
        """Return an event with the annotator's name made plain, if it may be stored.

        Raises
        ------
        WhetError
            If the row is not among :attr:`items`, or the value not among :attr:`classes`.
        """
        self._check_row(event.row)
        if event.value is not None:
            self._check_value(event.value)
        if not (math.isfinite(event.seconds) and event.seconds >= 0):
            raise WhetError(f"seconds = {event.seconds}: give the time that it took, from 0")
        if has_surrogate(event.note):
            raise WhetError("the note holds half of a surrogate pair: write it anew")
        return replace(event, who=_name(event.who))

    def undo(self, who: str) -> Item | None:
        """Take back the last answer or skip of an annotator, and return its row, or None."""
        taken = self._log.take_back(_name(who))
        return None if taken is None else self._item(taken.row, taken.value, taken.note)

    # --- what has been answered -------------------------------------------------------------------

    def answered(self) -> list[Answered]:
        """Return what was said of each row that somebody answered, in the order of the sample."""
        last: dict[int, dict[str, Event]] = {}
        for event in self._log.events():
            last.setdefault(event.row, {})[event.who] = event
        settled, found = self._log.settled(), []
        for item in self._log.items():
            events = sorted(last.get(item.row, {}).items())
            said = {who: event for who, event in events if event.kind == "answer"}
            if said:
                answers = {who: event.value for who, event in said.items()}
                notes = {who: event.note for who, event in said.items() if event.note}
                found.append(Answered(item.row, item.random, answers, notes, settled.get(item.row)))
        return found

    def progress(self, who: str) -> dict[str, Any]:
        """Return how far an annotator is.

        Returns
        -------
        dict
            ``answered`` (rows with a class), ``unsure``, ``skipped`` and ``total`` rows, the first
            three without overlap; ``annotators``, the answered rows of each; ``median_seconds``
            of this annotator's answers, or None; those that were imported without a time, as 0
            seconds, do not count.
        """
        who = _name(who)
        last = {(event.who, event.row): event for event in self._log.events()}
        mine = [event for event in last.values() if event.who == who]
        answers = [event for event in mine if event.kind == "answer"]
        times = [event.seconds for event in answers if event.seconds]
        everyone = {event.who: 0 for event in last.values() if event.kind == "answer"}
        for event in last.values():
            if event.value is not None:
                everyone[event.who] += 1
        return {
            "answered": sum(event.value is not None for event in answers),
            "unsure": sum(event.value is None for event in answers),
            "skipped": sum(event.kind == "skip" for event in mine),
            "total": len(self._log.items()),
            "annotators": dict(sorted(everyone.items())),
            "median_seconds": statistics.median(times) if times else None,
        }

    def done(self, who: str) -> bool:
        """Return whether an annotator has no row left: each is answered, or was skipped twice.

        An answer may be unsure. Until then nothing of the others' answers may be shown.
        """
        return self.next(who) is None

    def panel(self, who: str | None = None) -> dict[str, Any]:
        """Return estimates from what has been answered, for JSON.

        See :meth:`whet.review.labelling.Labelling.panel` and
        :meth:`whet.review.comparing.Comparison.panel`.

        Parameters
        ----------
        who : str, optional
            To whom they are shown: until :meth:`done`, from that annotator's own answers only, so
            that the others' do not influence the next one. None: from all answers.
        """
        if who is None or self.done(who):
            return self._work.panel(self.answered(), live=False)
        who, random = _name(who), {item.row: item.random for item in self._log.items()}
        last: dict[int, Event] = {}
        for event in self._log.events():
            if event.who == who:
                last.pop(event.row, None)  # so that the order is that of the last answers
                last[event.row] = event
        own = [
            Answered(row, random[row], {who: event.value})
            for row, event in last.items()
            if event.kind == "answer"
        ]
        return self._work.panel(own, live=True)

    def agreement(self) -> dict[str, Any]:
        """Return how far annotators agree, for JSON.

        Returns
        -------
        dict
            ``pairs``, for each two annotators who share rows ``who`` (two names), ``n`` (rows of
            the random sample to which both gave a class), ``kappa`` (an estimate, or None) and
            ``reason`` (why there is none); ``who``, ``n``, ``kappa`` and ``reason`` of the pair
            that shares most rows; ``disagreements`` and how many of them are ``settled``, rows of
            any kind.
        """
        answered = self.answered()
        pairs = kappas([row.answers for row in answered if row.random], self.classes)
        disputed = [row for row in answered if row.disputed]
        none = {"who": None, "n": 0, "kappa": None, "reason": "no row has two annotators"}
        return {
            **max(pairs, key=lambda pair: pair["n"], default=none),
            "pairs": pairs,
            "disagreements": len(disputed),
            "settled": sum(row.settled is not None for row in disputed),
        }

    def disagreements(self) -> list[dict[str, Any]]:
        """Return the rows with different answers: ``row``, ``shown``, ``answers``, ``settled``."""
        return [
            {
                "row": row.row,
                "shown": self._work.shown(row.row),
                "answers": {who: said for who, said in row.answers.items() if said is not None},
                "settled": row.settled,
            }
            for row in self.answered()
            if row.disputed
        ]

    def settle(self, row: int, value: str, who: str) -> None:
        """Store what a disagreement is settled to, in place of what it was settled to before.

        Raises
        ------
        WhetError
            If nobody disagrees about the row, or the value is none of the classes.
        """
        self._check_row(row)
        self._check_value(value)
        if not any(found.row == row and found.disputed for found in self.answered()):
            raise WhetError(f"row {row} has no two different answers: there is nothing to settle")
        self._log.settle(row, value, _name(who))

    def unsettle(self, row: int) -> None:
        """Open a disagreement again; one that is open stays so.

        Raises
        ------
        WhetError
            If the row is not among :attr:`items`.
        """
        self._check_row(row)
        self._log.unsettle(row)

    def write(self) -> Path:
        """Write the output from what has been answered so far, and return its path."""
        with self._writing:
            answered = self.answered()
            if answered != self._written or not self._work.out.exists():
                self._work.write(answered, self._log.note_output)
                self._written = answered
        return self._work.out

    def next_step(self) -> str:
        """Return the command that goes on from the output."""
        return self._work.next_step(self.answered())

    def _check_row(self, row: int) -> tuple[int, int]:
        """Return a row's place, from 1, and the number of rows."""
        place, total = self._log.place(row)
        if not place:
            raise WhetError(
                f"row {row} is not among the {total} rows of this session: answer one that was "
                "shown"
            )
        return place, total

    def _check_value(self, value: str) -> None:
        if value not in self.classes:
            raise WhetError(
                f"{value!r} is no class of this session{did_you_mean(value, self.classes)}"
            )


def session_file(out: Path) -> Path:
    """Return the file of the answers that belongs to an output.

    Examples
    --------
    >>> session_file(Path("work/gold.parquet")).name
    'gold.label.sqlite'
    """
    return out.with_name(out.stem + ".label.sqlite")


def _name(who: str) -> str:
    """Return an annotator's name without outer blanks."""
    name = who.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise WhetError(
            f"the annotator's name {who[:_LONGEST_NAME]!r} is empty, longer than {_LONGEST_NAME} "
            "characters or not printable: give another"
        )
    return name


def outcome_counts(answered: Sequence[Answered]) -> Mapping[str, int]:
    """Count rows: ``agreed`` or settled, ``unsure`` (nobody gave a class), ``unsettled``.

    Examples
    --------
    >>> outcome_counts([Answered(1, True, {"me": "spam"}), Answered(2, True, {"me": None})])
    {'agreed': 1, 'unsure': 1, 'unsettled': 0}
    """
    labelled = sum(row.label is not None for row in answered)
    unsettled = sum(row.disputed and row.settled is None for row in answered)
    return {
        "agreed": labelled,
        "unsure": len(answered) - labelled - unsettled,
        "unsettled": unsettled,
    }
