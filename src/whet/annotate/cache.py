"""Answers that were paid for, in one SQLite file that processes may share.

An answer is stored as soon as it is there, in a transaction of its own, so that a killed run loses
no more than the calls in flight. Failures are noted for the result's table, never as answers.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from whet.annotate.protocol import Answer, Failure, Reply
from whet.errors import WhetError

#: "whet" in ASCII, so that no other database is taken for a cache; and the format's version.
_APPLICATION, _VERSION = 0x77686574, 1
#: What every SQLite file begins with; SQLite itself would take a file of one byte for an empty one.
_MAGIC = b"SQLite format 3\0"
#: Seconds to wait for another process that writes.
_PATIENCE = 60.0

_TABLES = (
    "CREATE TABLE answers (key TEXT PRIMARY KEY, route TEXT NOT NULL, answer TEXT NOT NULL, "
    "prompt_bytes INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, "
    "completion_tokens INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE failures (key TEXT PRIMARY KEY, cause TEXT NOT NULL, detail TEXT NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)


@dataclass(frozen=True)
class Paid:
    """What a number of answers took, summed over them.

    Examples
    --------
    >>> Paid(2, 800, 200, 12).prompt_tokens
    200
    """

    answers: int
    prompt_bytes: int
    prompt_tokens: int
    completion_tokens: int


class AnswerCache:
    """A file of answers by the hash of their whole request.

    Parameters
    ----------
    path : Path or None
        SQLite file, made with mode 0600 if absent, write-ahead log beside it; its folder must
        exist, and be no network folder (SQLite's log needs shared memory). None keeps the answers
        in memory.

    Raises
    ------
    WhetError
        If the file is no cache, or cannot be opened.

    Examples
    --------
    >>> cache = AnswerCache(None)
    >>> _ = cache.keep("k", {"model": "m"}, Answer("yes", 9, 1), prompt_bytes=30)
    >>> cache.get("k").text, cache.paid({"model": "m"}).prompt_tokens
    ('yes', 9)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is not None:
                # SQLite gives the files of its log the mode of the database.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                with path.open("rb") as file:
                    if file.read(len(_MAGIC)) not in (b"", _MAGIC):
                        raise sqlite3.DatabaseError("file is not a database")
            self._db = sqlite3.connect(
                path or ":memory:",
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,  # one thread at a time: the event loop's
            )
            self._open(path)
        except (OSError, sqlite3.Error) as error:
            raise WhetError(
                f"the cache {path} cannot be used ({error}): name another with --cache, or "
                "remove it"
            ) from error

    def _open(self, path: Path | None) -> None:
        if not self._is_cache(path):
            # In one transaction: another process sees no cache, or a whole one.
            self._db.execute("BEGIN IMMEDIATE")
            if not self._is_cache(path):
                for statement in _TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._db.execute("COMMIT")
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:  # SQLite does not wait here while another opens it
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        # A killed process loses nothing with NORMAL; a machine without power the last answers.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _is_cache(self, path: Path | None) -> bool:
        """Whether the file holds a cache; False where it is empty; raise where it is another's."""
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return False
        found = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if (found, version) != (_APPLICATION, _VERSION):
            self._db.close()
            raise WhetError(
                f"{path} is a database, but not a cache of this version of whet: name another "
                "file with --cache"
            )
        return True

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
        """Close the file; what was kept is on disk already."""
        self._db.close()

    def _run(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise WhetError(
                f"the cache {self.path} cannot be used ({error}): free space or mend the "
                "permissions, then run the same command again; what it holds is kept"
            ) from error

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, or None where it was never answered."""
        row = self._run("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer.from_json(row[0])

    def settled(self, key: str) -> Reply | None:
        """Return what need not be asked again: an answer, or that it would be cut off once more.

        The longest answer is a part of the key: with a higher ``--max-tokens`` it is asked again.
        """
        reply = self.reply(key)
        return reply if isinstance(reply, Answer) or _cut_off(reply) else None

    def reply(self, key: str) -> Reply | None:
        """Return the answer, else the last failure, else None."""
        answer = self.get(key)
        if answer is not None:
            return answer
        row = self._run("SELECT cause, detail FROM failures WHERE key = ?", (key,)).fetchone()
        return None if row is None else Failure(*row)

    def keep(
        self, key: str, route: Mapping[str, Any], reply: Reply, prompt_bytes: int = 0
    ) -> Reply:
        """Store an answer, or note a failure; return the reply that stands.

        That is the first of two processes that asked the same, so that both go on from it.
        """
        if isinstance(reply, Failure):
            self._run(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)",
                (key, reply.cause, reply.detail),
            )
            return reply
        done = self._run(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
            (
                key,
                json.dumps(route, sort_keys=True),
                reply.to_json(),
                prompt_bytes,
                reply.prompt_tokens,
                reply.completion_tokens,
            ),
        )
        self._run("DELETE FROM failures WHERE key = ?", (key,))
        return reply if done.rowcount else self.get(key) or reply

    def paid(self, route: Mapping[str, Any]) -> Paid:
        """Return what the answers of a route took, of all runs."""
        return self._sum(route, 0)

    def measured(self, route: Mapping[str, Any]) -> Paid:
        """Return what those answers of a route took whose prompts' lengths are known."""
        return self._sum(route, 1)

    def _sum(self, route: Mapping[str, Any], least_bytes: int) -> Paid:
        row = self._run(
            "SELECT count(*), total(prompt_bytes), total(prompt_tokens), total(completion_tokens) "
            "FROM answers WHERE route = ? AND prompt_bytes >= ?",
            (json.dumps(route, sort_keys=True), least_bytes),
        ).fetchone()
        return Paid(*(int(value) for value in row))

    def fact(self, name: str) -> str | None:
        """Return something remembered about a server, or None."""
        row = self._run("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str | None) -> None:
        """Remember something about a server; None forgets it."""
        if value is None:
            self._run("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def facts(self, prefix: str) -> dict[str, str]:
        """Return what is remembered under names with a prefix."""
        rows = self._run(
            "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
        )
        return {str(name): str(value) for name, value in rows}


def _cut_off(reply: Reply | None) -> bool:
    return isinstance(reply, Failure) and reply.cause == "truncated"
