"""Queries that nobody vouches for, run on real SQLite databases by processes that can be killed.

What a model writes may be ``DROP TABLE``, a join that takes a year or a pattern that keeps the
processor inside one call of C. So each query runs in a process of its own kind
(:mod:`whet.ilr.sql_worker`): the file is opened read-only, an authorizer allows nothing but reading
and known functions, SQLite's limits and the system's bound time, memory and size, and a process
that is late is killed and replaced. Processes serve many queries, since starting one costs more
than most queries do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeAlias, TypeVar, cast

from whet.errors import WhetError
from whet.ilr import sql_worker

Value: TypeAlias = int | float | str | bytes | None
T = TypeVar("T")
Kind: TypeAlias = Literal["timeout", "refused", "error", "too_large"]

#: Seconds past its limit after which a process is killed; its own alarm rings earlier.
KILL_AFTER = 1.0
#: Characters of a query that is worth sending.
MAX_QUERY = 100_000
#: What a timeout says.
LATE = sql_worker.LATE


@dataclass(frozen=True)
class Rows:
    """What a query returned, in its order. Text that is no UTF-8 has surrogate escapes.

    Examples
    --------
    >>> len(Rows(((1, "a"), (2, None))).rows)
    2
    """

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Failed:
    """Why a query returned nothing.

    ``timeout``: it took longer than the limit. ``refused``: it asked for more than reading, or was
    several statements. ``too_large``: the result, a value or the memory for it. ``error``: SQLite
    turned it down.

    Examples
    --------
    >>> Failed("error", "no such table: t").kind
    'error'
    """

    kind: Kind
    detail: str


Outcome: TypeAlias = Rows | Failed
Job: TypeAlias = tuple[str, str]


class _Worker:
    """A process, and the job that it is at."""

    def __init__(self, limits: str) -> None:
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
            [sys.executable, "-I", "-S", sql_worker.__file__, limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=kept,  # no key, nothing worth reading
            start_new_session=True,  # Ctrl-C is for the program that asked
        )
        self.job: Job | None = None
        self.late = 0.0
        self._reply = bytearray()

    @property
    def stdout(self) -> IO[bytes]:
        """What the process writes."""
        return cast(IO[bytes], self._process.stdout)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def start(self, job: Job, seconds: float) -> None:
        """Hand over a job."""
        self.job, self.late = job, time.monotonic() + seconds + KILL_AFTER
        line = memoryview(json.dumps(job).encode() + b"\n")
        stdin = cast(IO[bytes], self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # its end is read from stdout
            while line:
                line = line[stdin.write(line) :]

    def receive(self, longest: int) -> Iterator[tuple[Job, Outcome]]:
        """Read on; yield the job with its outcome once the reply is whole or the process gone.

        Raises
        ------
        WhetError
            If the database is at fault, or the process cannot work.
        """
        chunk = self.stdout.read(1 << 18)
        self._reply += chunk
        # It is done and writes; if that takes long, we were the slow ones.
        self.late = max(self.late, time.monotonic() + KILL_AFTER)
        if not chunk:
            yield self._finish(self._last_words())
        elif len(self._reply) > longest:
            self.end()
            yield self._finish(Failed("too_large", "a reply without end"))
        elif chunk.endswith(b"\n"):
            reply = json.loads(self._reply)
            self._reply.clear()
            yield self._finish(_outcome(self.job, reply))

    def give_up(self) -> tuple[Job, Outcome]:
        """Kill the process; return the job that was too much for it."""
        self.end()
        return self._finish(Failed("timeout", LATE))

    def _finish(self, outcome: Outcome) -> tuple[Job, Outcome]:
        job, self.job = self.job, None
        return cast(Job, job), outcome

    def _last_words(self) -> Failed:
        """Return why a process has closed its output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_AFTER)
        code = self.end()
        if code == -signal.SIGALRM:
            return Failed("timeout", LATE)
        if code in (-signal.SIGKILL, sql_worker.OUT_OF_MEMORY):  # SIGKILL: by the system
            return Failed("too_large", "over the memory that a query may take")
        if code > 0:
            raise WhetError(
                f"the process that runs queries ended with code {code}: allow it more memory, or "
                "report this with the query"
            )
        return Failed("error", f"the process ended by signal {-code}")

    def end(self) -> int:
        """Kill the process and return its exit code, once nothing of it is left."""
        self._process.kill()
        for pipe in (self._process.stdin, self.stdout):
            cast(IO[bytes], pipe).close()
        return self._process.wait()


def _outcome(job: Job | None, reply: dict[str, Any]) -> Outcome:
    """Return a reply as Python values."""
    if "rows" in reply:
        return Rows(
            tuple(
                tuple(bytes.fromhex(v["hex"]) if type(v) is dict else v for v in row)
                for row in reply["rows"]
            )
        )
    if reply["kind"] == "database":
        path = job[0] if job else ""
        raise WhetError(
            f"the database {path} {reply['detail']}: end what uses it, or restore the file"
        )
    return Failed(reply["kind"], reply["detail"])


class SqlPool:
    """Runs queries on SQLite databases, whatever they are.

    Parameters
    ----------
    workers : int, optional
        Processes; by default as many as there are processors. They start when they are needed.
    seconds : float
        Limit of a query, wall time. Whatever it does, it has ended a second later.
    max_rows, max_bytes : int
        Most rows of a result, and most bytes of its values.
    memory : int
        Most bytes of address space of a process (where the system has such a limit); half of it is
        SQLite's.

    Examples
    --------
    >>> import sqlite3, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, SqlPool(workers=1) as pool:
    ...     path = Path(folder) / "a.sqlite"
    ...     with contextlib.closing(sqlite3.connect(path)) as made:
    ...         _ = made.execute("CREATE TABLE t AS SELECT 1 AS a")
    ...     good, bad = pool.run([(path, "SELECT a, 'b' FROM t"), (path, "DROP TABLE t")])
    >>> good, bad.kind
    (Rows(rows=((1, 'b'),)), 'refused')
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        seconds: float = 30.0,
        max_rows: int = 100_000,
        max_bytes: int = 16_000_000,
        memory: int = 1 << 30,
    ) -> None:
        self.seconds = seconds
        self._size = workers or os.cpu_count() or 1
        #: A reply is JSON: a byte takes six characters at most, a number about twenty.
        self._longest = 8 * max_bytes
        limits = {"seconds": seconds, "max_rows": max_rows, "max_bytes": max_bytes}
        self._limits = json.dumps(limits | {"memory": memory})
        self._workers: list[_Worker] = []

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
        """End all processes; a later :meth:`run` starts new ones."""
        while self._workers:
            self._workers.pop().end()

    def run(self, jobs: Sequence[tuple[str | Path, str]]) -> list[Outcome]:
        """Return what became of queries; see :meth:`map`."""
        return self.map(lambda outcome: outcome, jobs)

    def map(self, keep: Callable[[Outcome], T], jobs: Sequence[tuple[str | Path, str]]) -> list[T]:
        """Run queries, each pair of database and query once.

        Parameters
        ----------
        keep : callable
            What to keep of an outcome: a result may take megabytes, and there may be thousands.
        jobs : sequence of (path, query)

        Returns
        -------
        list
            What ``keep`` returned, in the order of the jobs. A query without ORDER BY, with
            ``random()`` or the time in it, or near its limit may return something else another
            time.

        Raises
        ------
        WhetError
            If a database is missing, locked by another program or damaged.
        """
        pairs = [(os.path.abspath(path), query) for path, query in jobs]
        for path in dict.fromkeys(path for path, _ in pairs):
            if not os.path.isfile(path):
                raise WhetError(
                    f"the database {path} does not exist: name the folder that holds the databases"
                )
        too_long = Failed("too_large", f"a query of over {MAX_QUERY:,} characters")
        kept = {pair: keep(too_long) for pair in pairs if len(pair[1]) > MAX_QUERY}
        # Neighbours share a database, which a process then opens once.
        waiting = deque(sorted(set(pairs) - kept.keys()))
        try:
            for job, outcome in self._drain(waiting):
                kept[job] = keep(outcome)
        except BaseException:  # also Ctrl-C: no reply may be taken for that of a later job
            self.close()
            raise
        return [kept[pair] for pair in pairs]

    def _drain(self, waiting: deque[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run all jobs that wait, in any order."""
        while self._hand_out(waiting):
            busy = {worker.stdout.fileno(): worker for worker in self._workers if worker.job}
            patience = min(worker.late for worker in busy.values()) - time.monotonic()
            for descriptor in wait(list(busy), max(0.0, patience)):
                yield from busy[cast(int, descriptor)].receive(self._longest)
            for worker in busy.values():
                if worker.job and time.monotonic() > worker.late:
                    yield worker.give_up()

    def _hand_out(self, waiting: deque[Job]) -> bool:
        """Give every process a job, while there are any; return whether one has a job."""
        for worker in [w for w in self._workers if not (w.job or w.alive)]:
            worker.end()
            self._workers.remove(worker)
        missing = min(self._size - len(self._workers), len(waiting))
        self._workers += [_Worker(self._limits) for _ in range(missing)]
        for worker in self._workers:
            if waiting and worker.job is None:
                worker.start(waiting.popleft(), self.seconds)
        return any(worker.job for worker in self._workers)
