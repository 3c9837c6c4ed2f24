"""A process that runs queries it does not trust, one at a time; :mod:`whet.ilr.sql_pool` starts it.

It needs the standard library alone and runs as a script under ``python -I -S``, with no
environment, in a session of its own. A line of JSON comes in, ``[path, query]``; one goes out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from urllib.parse import quote

#: Functions that a query may call: those of SQLite that compute, and touch nothing else.
_FUNCTIONS = """
-> ->> abs char coalesce concat concat_ws format glob hex if ifnull iif instr length like
likelihood likely lower ltrim max min nullif octet_length printf quote random randomblob
replace round rtrim sign soundex sqlite_version substr substring trim typeof unhex unicode
unlikely upper zeroblob

current_date current_time current_timestamp date datetime julianday strftime time timediff
unixepoch

avg count cume_dist dense_rank first_value group_concat lag last_value lead nth_value ntile
percent_rank rank row_number string_agg sum total

acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10
log2 mod pi pow power radians sin sinh sqrt tan tanh trunc

json json_array json_array_length json_each json_extract json_group_array json_group_object
json_insert json_object json_patch json_quote json_remove json_replace json_set json_tree
json_type json_valid
"""
_ALLOWED_FUNCTIONS = frozenset(_FUNCTIONS.split())
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
#: Bytes of the longest value, SQL text and LIKE pattern, and other bounds on what SQLite builds.
_SQLITE_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
#: Instructions of SQLite's machine between two looks at the clock.
_STEPS = 500
#: Seconds past its limit after which a query that never comes to look ends with the process.
GRACE = 0.5
#: What a query that took too long is told.
LATE = "over its time limit"
#: Exit code of a process that has run out of memory; the next query gets a fresh one.
OUT_OF_MEMORY = 3
#: What is wrong with a database that cannot be opened.
_DATABASE = {
    sqlite3.SQLITE_BUSY: "is locked by another program",
    sqlite3.SQLITE_NOTADB: "is no SQLite database",
    sqlite3.SQLITE_CORRUPT: "is damaged",
}


class _TooLarge(Exception):
    """The result is larger than it may be."""


class Database:
    """A database, opened for reading alone.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/a.sqlite"
    ...     with contextlib.closing(sqlite3.connect(path)) as made:
    ...         _ = made.execute("CREATE TABLE t AS SELECT 1 AS a")
    ...     database = Database(path, patience=1)
    ...     database.rows("SELECT a FROM t", seconds=5, max_rows=9, max_bytes=999)
    [[1]]
    """

    def __init__(self, path: str, *, patience: float) -> None:
        self.path = path
        self.immutable = _is_idle_wal(path)
        self.denied = ""
        self._deadline = 0.0
        self._bytes = 0
        mode = "mode=ro" + ("&immutable=1" if self.immutable else "")
        self._connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?{mode}",
            uri=True,
            timeout=patience,
            isolation_level=None,
            cached_statements=0,
        )
        self._connection.text_factory = self._text
        for name, value in (
            ("temp_store", 2),  # what is sorted stays in memory, where it is bounded
            # What SQLite advises for files from elsewhere (sqlite.org/security.html).
            ("trusted_schema", 0),
            ("cell_size_check", 1),
            ("mmap_size", 0),
        ):
            self._connection.execute(f"PRAGMA {name} = {value}")
        self._connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # or it fails
        # SQLite makes these tables on first use, and asks for more than reading then.
        self._connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
        for limit, value in _SQLITE_LIMITS.items():
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._late, _STEPS)

    def rows(self, query: str, seconds: float, max_rows: int, max_bytes: int) -> list[list[object]]:
        """Return the rows of one SELECT; raises what SQLite raises, or if there are too many."""
        self._deadline = time.monotonic() + seconds
        self._bytes, self.denied = 0, ""
        cursor = self._connection.execute(query)
        try:
            if cursor.description is None:
                raise sqlite3.ProgrammingError("it is no query")
            rows: list[list[object]] = []
            for row in cursor:
                self._bytes += 8 * len(row) + sum(len(v) for v in row if type(v) is bytes)
                if len(rows) == max_rows or self._bytes > max_bytes:
                    raise _TooLarge(f"over {max_rows:,} rows or {max_bytes:,} bytes")
                rows.append([{"hex": v.hex()} if type(v) is bytes else v for v in row])
            return rows
        finally:
            cursor.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _text(self, raw: bytes) -> str:
        self._bytes += len(raw)
        # Databases hold bytes that are not UTF-8; different ones must stay different.
        return raw.decode("utf-8", "surrogateescape")

    def _authorize(
        self, action: int, first: str | None, second: str | None, *where: str | None
    ) -> int:
        if action in _ALLOWED or (
            action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _ALLOWED_FUNCTIONS
        ):
            return sqlite3.SQLITE_OK
        self.denied = f"{second or first or 'this statement'} is not allowed: a query may only read"
        return sqlite3.SQLITE_DENY

    def _late(self) -> int:
        return int(time.monotonic() > self._deadline)


def _is_idle_wal(path: str) -> bool:
    """Whether a database keeps a write-ahead log, but has none, as nobody has it open.

    A plain reader of such a database would create two files beside it. Any other database is
    opened so that the locks of programs that write to it count.
    """
    with open(path, "rb") as file:
        header = file.read(20)
    return header[18:20] == b"\x02\x02" and not os.path.exists(path + "-wal")


def answer(database: Database, query: str, limits: dict[str, float]) -> dict[str, object]:
    """Return ``rows``, or the ``kind`` of failure with a ``detail``, of one query.

    ``kind`` is ``database`` where the database is at fault.
    """
    kind, detail = "error", ""
    try:
        rows = database.rows(
            query, limits["seconds"], int(limits["max_rows"]), int(limits["max_bytes"])
        )
        return {"rows": rows}
    except _TooLarge as error:
        kind, detail = "too_large", str(error)
    except sqlite3.Error as error:
        kind, detail = _kind(error, database)
    except sqlite3.Warning as error:  # two statements, before Python 3.12
        kind, detail = "refused", str(error)
    except (ValueError, OverflowError) as error:  # characters that no query may hold
        detail = str(error)
    shown = "".join(c if c.isprintable() else " " for c in detail[:300])
    return {"kind": kind, "detail": " ".join(shown.split())}


def _kind(error: sqlite3.Error, database: Database) -> tuple[str, str]:
    code = _code(error)
    if database.denied:
        return "refused", database.denied
    if code == sqlite3.SQLITE_INTERRUPT:
        return "timeout", LATE
    if code == sqlite3.SQLITE_TOOBIG:
        return "too_large", str(error)
    if code == sqlite3.SQLITE_READONLY or "one statement" in str(error):
        return "refused", str(error)
    if code == sqlite3.SQLITE_BUSY:
        return "database", _DATABASE[code]
    return "error", str(error)


def _code(error: Exception) -> int:
    """Return SQLite's primary code of an error, a number that it does not use where it has none."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF


def confine(limits: dict[str, float]) -> None:
    """Give up, for good, what no query needs: memory beyond a bound, files that grow, cores."""
    memory = int(limits["memory"])
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        with contextlib.suppress(ValueError, OSError):  # a tighter bound is there, or none exists
            resource.setrlimit(what, (most, most))
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:  # for all connections
        connection.execute(f"PRAGMA hard_heap_limit = {memory // 2}")


def replies(limits: dict[str, float]) -> Iterator[dict[str, object]]:
    """Answer the jobs on standard input in order, keeping the last database open."""
    database: Database | None = None
    for line in iter(sys.stdin.buffer.readline, b""):
        path, query = json.loads(line)
        # SIGALRM ends the process even inside a call that never looks at the clock, also when
        # there is no parent left to do so.
        signal.setitimer(signal.ITIMER_REAL, limits["seconds"] + GRACE)
        try:
            if database is not None and (database.path != path or database.immutable):
                database.close()
                database = None
            if database is None:
                database = Database(path, patience=limits["seconds"] / 2)
            reply = answer(database, query, limits)
        except (sqlite3.Error, OSError) as error:
            reply = {"kind": "database", "detail": _DATABASE.get(_code(error), "cannot be opened")}
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield reply


def main() -> None:
    """Serve until standard input ends."""
    limits = json.loads(sys.argv[1])
    confine(limits)
    try:
        for reply in replies(limits):
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
