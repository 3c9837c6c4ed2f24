"""What people answered, in one SQLite file: each answer a transaction, on disk when it returns.

The file holds no text of the input: row numbers, classes, notes and times only. While an answer
stands, none is ever deleted; taking one back marks it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whet.errors import WhetError

#: "whel" in ASCII, so that no other database is taken for a session; and the format's version.
_APPLICATION, _VERSION = 0x7768656C, 1
_MAGIC = b"SQLite format 3\0"
#: Facts that are hashes.
HASHED = ("texts", "pseudo-labels", "proposals")
#: Seconds to wait for another process that writes.
_PATIENCE = 30.0

_TABLES = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE items (position INTEGER PRIMARY KEY, row INTEGER NOT NULL UNIQUE, "
    "random INTEGER NOT NULL)",
    "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT NOT NULL, "
    "row INTEGER NOT NULL, kind TEXT NOT NULL, value TEXT, seconds REAL NOT NULL, "
    "note TEXT NOT NULL, at REAL NOT NULL, undone INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE settled (row INTEGER PRIMARY KEY, value TEXT NOT NULL, who TEXT NOT NULL)",
    "CREATE TABLE outputs (sha256 TEXT PRIMARY KEY) WITHOUT ROWID",
)


@dataclass(frozen=True)
class Sampled:
    """A row that is to be answered, and whether it belongs to the random sample.

    Examples
    --------
    >>> Sampled(17, random=True).row
    17
    """

    row: int
    random: bool


@dataclass(frozen=True)
class Event:
    """What an annotator did with a row: ``answer`` (value None: unsure) or ``skip``.

    Examples
    --------
    >>> Event("me", 17, "answer", "spam", seconds=2.5, note="").value
    'spam'
    """

    who: str
    row: int
    kind: str
    value: str | None
    seconds: float
    note: str


class AnswerLog:
    """The file of a session; several threads and processes may use it at the same time.

    Parameters
    ----------
    path : Path
        SQLite file, made with mode 0600 if absent, write-ahead log beside it; its folder must
        exist, and be no network folder (SQLite's log needs shared memory).
    facts : mapping of str to str
        What the session is about. A session that exists must have the same, as far as it has them;
        one that holds no answer is begun anew.
    choose : callable
        Given the rows that the session has, in order, returns those that it shall have: the same
        ones first, then those that are new.

    Raises
    ------
    WhetError
        If the file is no session, is about something else, or cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "gold.label.sqlite"
    >>> log = AnswerLog(path, {"seed": "0"}, lambda known: [Sampled(3, random=True)])
    >>> log.add([Event("me", 3, "answer", "spam", 2.0, "")])
    >>> [event.value for event in log.events()]
    ['spam']
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, str],
        choose: Callable[[list[Sampled]], list[Sampled]],
    ) -> None:
        self.path = path
        self._facts, self._lock = dict(facts), threading.RLock()
        try:
            # SQLite gives the files of its log the mode of the database.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) not in (b"", _MAGIC):
                    raise sqlite3.DatabaseError("file is not a database")
            self._db = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                self._open(choose)
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise WhetError(
                f"the session {path} cannot be used ({error}): restore it, mend the permissions, "
                "or choose another --out"
            ) from error

    def _open(self, choose: Callable[[list[Sampled]], list[Sampled]]) -> None:
        self._db.execute("PRAGMA synchronous = FULL")  # an answer survives a power cut too
        with self._transaction():
            self._create_or_check()
            chosen = choose(self.items())
            self._db.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                [(place, item.row, item.random) for place, item in enumerate(chosen)],
            )
        self._write_ahead()

    def _create_or_check(self) -> None:
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._remember_facts()
            return
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) != (_APPLICATION, _VERSION):
            raise WhetError(
                f"{self.path} is a database, but not a session of this version of whet: choose "
                "another --out"
            )
        if not any(event.kind == "answer" for event in self.events()) and self._differing():
            for table in ("facts", "items", "events", "settled"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 (names from the line above)
        self._check_facts()
        self._remember_facts()

    def _remember_facts(self) -> None:
        facts = list(self._facts.items())
        self._db.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", facts)

    def _differing(self) -> tuple[str, str] | None:
        """Return a fact that is another in the file, and its value there."""
        there = dict(self._db.execute("SELECT name, value FROM facts"))
        named = (name for name, value in self._facts.items() if there.get(name, value) != value)
        return next(((name, there[name]) for name in named), None)

    def _check_facts(self) -> None:
        """Refuse a file that is about something else, also if it has become so since."""
        found = self._differing()
        if found is None:
            return
        name, value = found
        was = f"with {name} {value}, not {self._facts[name]}"
        if name in HASHED:  # a hash says nothing to a person
            was = f"with other {name}"
        raise WhetError(
            f"the session {self.path} was started {was}; start it with the same again, or "
            "choose another --out"
        )

    def _write_ahead(self) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:  # SQLite does not wait here while another opens it
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do all of it or nothing, with no writer in between."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise WhetError(
                    f"the session {self.path} cannot be used ({error}): free space or mend the "
                    "permissions, then run the same command again; what it holds is kept"
                ) from error

    def close(self) -> None:
        """Close the file; what was answered is on disk already."""
        with self._lock:
            self._db.close()

    def place(self, row: int) -> tuple[int, int]:
        """Return which of the rows a row is, from 1, or 0 if none, and how many there are."""
        with self._guarded():
            self._check_facts()
            (total,) = self._db.execute("SELECT COUNT(*) FROM items").fetchone()
            (place,) = self._db.execute(
                "SELECT COUNT(*) FROM items WHERE position <= "
                "(SELECT position FROM items WHERE row = ?)",
                (row if abs(row) < 2**63 else None,),  # more than SQLite can hold
            ).fetchone()
        return place, total

    def items(self) -> list[Sampled]:
        """Return the rows of the session in order; another process may have added some."""
        with self._guarded():
            self._check_facts()
            rows = self._db.execute("SELECT row, random FROM items ORDER BY position").fetchall()
        return [Sampled(row, random=bool(random)) for row, random in rows]

    def events(self) -> list[Event]:
        """Return what was done and not taken back, in order."""
        return [event for _, event in self._read()]

    def _read(self, who: str | None = None, row: int | None = None) -> list[tuple[int, Event]]:
        """Return what stands with its number: all, or of one annotator, or of one row too."""
        with self._guarded():
            rows = self._db.execute(
                "SELECT id, who, row, kind, value, seconds, note FROM events WHERE undone = 0 "
                "AND who = coalesce(?, who) AND row = coalesce(?, row) ORDER BY id",
                (who, row),
            ).fetchall()
        return [(number, Event(*fields)) for number, *fields in rows]

    def add(self, events: Sequence[Event]) -> None:
        """Store events, all or none; what already stands is not stored again."""
        with self._guarded(), self._transaction():
            self._check_facts()
            for event in events:
                last = self._read(event.who, event.row)
                if event.kind == "answer" and last and _same(last[-1][1], event):
                    continue  # a key pressed twice, an import repeated
                self._db.execute(
                    "INSERT INTO events (who, row, kind, value, seconds, note, at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(event.who, event.row, event.kind, event.value),
                        *(event.seconds, event.note, time.time()),
                    ),
                )

    def take_back(self, who: str) -> Event | None:
        """Mark the last event of an annotator as taken back, and return it."""
        with self._guarded(), self._transaction():
            mine = self._read(who)
            if not mine:
                return None
            number, event = mine[-1]
            self._db.execute("UPDATE events SET undone = 1 WHERE id = ?", (number,))
            return event

    def settled(self) -> dict[int, str]:
        """Return what disagreements were settled to, by row."""
        with self._guarded():
            return dict(self._db.execute("SELECT row, value FROM settled"))

    def settle(self, row: int, value: str, who: str) -> None:
        """Store what a disagreement is settled to."""
        with self._guarded():
            self._db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", (row, value, who))

    def unsettle(self, row: int) -> None:
        """Forget what a disagreement was settled to."""
        with self._guarded():
            self._db.execute("DELETE FROM settled WHERE row = ?", (row,))

    def note_output(self, sha256: str) -> None:
        """Remember a file that is about to be written, so that a later run knows it."""
        with self._guarded():
            self._db.execute("INSERT OR IGNORE INTO outputs VALUES (?)", (sha256,))

    def wrote(self, sha256: str) -> bool:
        """Return whether a file is one that was written before, and nobody changed since."""
        with self._guarded():
            found = self._db.execute("SELECT 1 FROM outputs WHERE sha256 = ?", (sha256,))
            return found.fetchone() is not None


def _same(last: Event, event: Event) -> bool:
    return (last.kind, last.value, last.note) == (event.kind, event.value, event.note)
