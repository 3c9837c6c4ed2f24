"""Answers that were paid for, in one SQLite file that processes may share.

An answer is stored as soon as it is there, in a transaction of its own, so that a killed run loses
no more than the calls in flight. Failures are noted for the result's table, never as answers.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from whet.annotate.protocol import Answer, Failure, Reply
from whet.errors import WhetError

#: "whet" in ASCII, so that no other database is taken for a cache; and the format's version.
_APPLICATION, _VERSION = 0x77686574, 1
#: Seconds to wait for another process that writes.
_PATIENCE = 60.0

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, route TEXT NOT NULL, answer TEXT NOT NULL,
    prompt_bytes INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY, cause TEXT NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


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
    >>> cache.keep("k", {"model": "m"}, Answer("yes", 9, 1), prompt_bytes=30)
    >>> cache.get("k").text, cache.paid({"model": "m"}).prompt_tokens
    ('yes', 9)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is not None:
                # SQLite gives the files of its log the mode of the database.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
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
        found = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if tables and (found, version) != (_APPLICATION, _VERSION):
            self._db.close()
            raise WhetError(
                f"{path} is a database, but not a cache of this version of whet: name another "
                "file with --cache"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing with NORMAL; a machine without power the last answers.
        self._db.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.executescript(_TABLES)

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

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, or None where it was never answered."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer.from_json(row[0])

    def reply(self, key: str) -> Reply | None:
        """Return the answer, else the last failure, else None."""
        answer = self.get(key)
        if answer is not None:
            return answer
        row = self._db.execute(
            "SELECT cause, detail FROM failures WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else Failure(*row)

    def keep(self, key: str, route: Mapping[str, Any], reply: Reply, prompt_bytes: int = 0) -> None:
        """Store an answer, or note a failure."""
        if isinstance(reply, Failure):
            self._db.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)",
                (key, reply.cause, reply.detail),
            )
            return
        # The first of two processes that asked the same wins, so that all read the same answer.
        self._db.execute(
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
        self._db.execute("DELETE FROM failures WHERE key = ?", (key,))

    def paid(self, route: Mapping[str, Any]) -> Paid:
        """Return what the answers of a route took, of all runs."""
        return self._sum(route, 0)

    def measured(self, route: Mapping[str, Any]) -> Paid:
        """Return what those answers of a route took whose prompts' lengths are known."""
        return self._sum(route, 1)

    def _sum(self, route: Mapping[str, Any], least_bytes: int) -> Paid:
        row = self._db.execute(
            "SELECT count(*), total(prompt_bytes), total(prompt_tokens), total(completion_tokens) "
            "FROM answers WHERE route = ? AND prompt_bytes >= ?",
            (json.dumps(route, sort_keys=True), least_bytes),
        ).fetchone()
        return Paid(*(int(value) for value in row))

    def fact(self, name: str) -> str | None:
        """Return something remembered about a server, or None."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str | None) -> None:
        """Remember something about a server; None forgets it."""
        if value is None:
            self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def facts(self, prefix: str) -> dict[str, str]:
        """Return what is remembered under names with a prefix."""
        rows = self._db.execute(
            "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
        )
        return {str(name): str(value) for name, value in rows}
