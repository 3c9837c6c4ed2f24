"""How many SQL predictions a second are judged, and how far past its limit a query can go.

1. Rate. Verdicts on the development questions of Spider (rebuilt databases): each is a prediction
   and a gold query run on a SQLite file, and their results compared as sets of rows. The
   predictions are the gold queries themselves and those of the models that the folder has. The
   ways, in turn within each repeat:

   - *whet*: the task ``sql``, which runs equal pairs of database and query once;
   - *whet, no pair twice*: the same with a comment of its own in every query;
   - *a process a verdict*: a fresh Python with nothing but ``sqlite3`` runs both queries, within
     30 seconds. Such a process can be killed, as whet's can;
   - *as released*: what the ILR paper's code does, written anew: a pool of processes, in which a
     thread a verdict has 30 seconds to open the file, for writing, and run both queries. Such a
     thread cannot be killed, and a query may change the file; so these two work on a copy.

   Target: 20 times as many as a process a verdict.
2. Lateness. Queries that would run for days, with a limit of half a second, ten times each, a
   process being started anew where the last one had to be killed.

Run from the project's root:

    python benchmarks/sql.py --data DIR --out benchmarks/results/sql.md
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from whet import __version__
from whet.ilr.sql_pool import Failed, SqlPool
from whet.ilr.tasks.sql import Sql

#: Paths, predictions and gold queries, one entry a verdict.
Work = tuple[list[str], list[str], list[str]]
#: Verdicts, 1 or 0.
Verdicts = list[int]

TIMEOUT = 30
FRESH = """
import sqlite3, sys
path, prediction, gold = sys.argv[1:]
connection = sqlite3.connect(path)
first, second = (connection.execute(query).fetchall() for query in (prediction, gold))
print(int(set(first) == set(second)))
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
LATE = {
    "recursion without end": ENDLESS,
    "the same, rows joined and sorted": ENDLESS.replace(
        "count(*) FROM r", "a.x FROM r a, r b ORDER BY b.x"
    ),
    "GLOB with a pattern of 1,000 characters": "SELECT hex(zeroblob(490000)) GLOB '*"
    + "0" * 990
    + "1'",
    "instr of half a megabyte in one": (
        "SELECT instr(hex(zeroblob(490000)), hex(zeroblob(240000)) || '1')"
    ),
}
LIMIT, LATE_REPEATS = 0.5, 10


def whet(work: Work) -> Verdicts:
    """Judge with the task, whose verdict on a gold query without rows is none."""
    paths, predictions, gold = work
    table = pa.table({"database": paths, "reference": gold})
    task = Sql("set", workers=os.cpu_count())
    return [int(score == 1) for score in task.score(table, predictions).tolist()]


def whet_once(work: Work) -> Verdicts:
    """Judge with the task, no query being like another."""
    paths, predictions, gold = work
    return whet(
        (
            paths,
            [f"{query.rstrip().rstrip(';')} /* {k} */" for k, query in enumerate(predictions)],
            [f"{query.rstrip().rstrip(';')} /* gold {k} */" for k, query in enumerate(gold)],
        )
    )


def fresh_processes(work: Work) -> Verdicts:
    """Start a process a verdict, as many at a time as there are processors."""

    def judge(row: tuple[str, str, str]) -> int:
        command = [sys.executable, "-I", "-S", "-c", FRESH, *row]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)  # noqa: S603
        return int(done.stdout or 0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(judge, zip(*work, strict=True)))


def judge_in_thread(path: str, prediction: str, gold: str) -> int:
    """Run both queries in a thread that is given up after the time limit."""
    verdict = [0]

    def run() -> None:
        with contextlib.suppress(sqlite3.Error, sqlite3.Warning):
            connection = sqlite3.connect(path)
            first, second = (connection.execute(query).fetchall() for query in (prediction, gold))
            verdict[0] = int(set(first) == set(second))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return verdict[0]


def as_released(work: Work) -> Verdicts:
    """Judge in a pool of processes, a thread and a connection a verdict."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        waiting = [pool.apply_async(judge_in_thread, row) for row in zip(*work, strict=True)]
        return [verdict.get() for verdict in waiting]


WAYS: dict[str, Callable[[Work], Verdicts]] = {
    "whet": whet,
    "whet, no pair twice": whet_once,
    "a process a verdict": fresh_processes,
    "as released": as_released,
}


def timed(way: Callable[[Work], Verdicts], work: Work) -> tuple[Verdicts, float, float]:
    """Return the verdicts, wall seconds and processor seconds with those of all children."""

    def spent() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))

    wall, cpu = time.perf_counter(), spent()
    verdicts = way(work)
    return verdicts, time.perf_counter() - wall, spent() - cpu


def load(folder: Path) -> tuple[dict[str, list[str]], list[str], list[str], list[int]]:
    """Return predictions by who made them, gold queries, paths, and the rows that are judged."""
    task = Sql("set")
    table = task.load(folder, "test")
    gold = table["reference"].to_pylist()
    predictions = {"gold": gold}
    predictions |= {
        name[4:]: table[name].to_pylist() for name in table.column_names if name.startswith("llm_")
    }
    scores = task.score(table, gold)
    judged = [row for row, score in enumerate(scores.tolist()) if score == 1]
    return predictions, gold, table["database"].to_pylist(), judged


def copied(paths: list[str], folder: str) -> list[str]:
    """Return the paths of copies, which may be written to."""
    for path in set(paths):
        shutil.copyfile(path, Path(folder) / Path(path).name)
    return [str(Path(folder) / Path(path).name) for path in paths]


def rates(data: Path, repeats: int) -> list[str]:
    """Measure the verdicts a second of each way; return lines of the report."""
    predictions, gold, paths, judged = load(data / "spider_rebuilt")
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    differing = dict.fromkeys(WAYS, 0)
    with tempfile.TemporaryDirectory() as folder:
        copies = copied(paths, folder)
        for _ in range(repeats):
            for who, queries in predictions.items():
                expected: Verdicts = []
                for way, run in WAYS.items():
                    verdicts, wall, cpu = timed(
                        run, (paths if "whet" in way else copies, queries, gold)
                    )
                    taken.setdefault((way, who), []).append((wall, cpu))
                    expected = expected or verdicts
                    differing[way] += sum(verdicts[row] != expected[row] for row in judged)
    total = len(gold) * len(predictions)
    distinct = len(
        {pair for asked in predictions.values() for pair in zip(paths, asked, strict=True)}
    )
    lines = [
        f"{len(gold):,} questions, {len(predictions)} predictions each ({', '.join(predictions)}), "
        f"so {total:,} verdicts; {distinct:,} pairs of database and query are distinct. "
        f"{repeats} repeats, the ways in turn; medians of the repeats' sums, and least and most. "
        "*Times whet* is taken within each repeat.",
        "",
        "| way | wall, s | verdicts a second | times whet's wall | processor, s | "
        "times whet's processor | other verdicts |",
        "|---|---|---|---|---|---|---|",
    ]
    sums = {
        way: [
            [sum(taken[way, who][repeat][kind] for who in predictions) for repeat in range(repeats)]
            for kind in (0, 1)
        ]
        for way in WAYS
    }
    for way, (wall, cpu) in sums.items():
        slower, dearer = (
            [mine / whets for mine, whets in zip(ours, theirs, strict=True)]
            for ours, theirs in zip((wall, cpu), sums["whet"], strict=True)
        )
        lines.append(
            f"| {way} | {middle(wall)} | {total / statistics.median(wall):,.0f} | {middle(slower)} "
            f"| {middle(cpu)} | {middle(dearer)} | {differing[way]} |"
        )
    lines += [
        "",
        "*Other verdicts*: how often, in all repeats, a verdict differs from whet's, on the "
        f"{len(judged):,} questions whose gold query returns rows.",
        "",
        "Wall seconds for each set of predictions:",
        "",
        "| way | " + " | ".join(predictions) + " |",
        "|---|" + "---|" * len(predictions),
    ]
    for way in WAYS:
        cells = [middle([wall for wall, _ in taken[way, who]]) for who in predictions]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return lines


def lateness(data: Path) -> list[str]:
    """Measure how long past its limit a query takes; return lines of the report."""
    database = next((data / "spider_rebuilt" / "database").rglob("*.sqlite"))
    lines = [
        f"Limit {LIMIT} s, {LATE_REPEATS} runs each; seconds from handing a query over to its "
        "outcome, less the limit. Where the process had to go, its successor's start is in the "
        "next run's time.",
        "",
        "| query | median | most |",
        "|---|---|---|",
    ]
    with SqlPool(1, seconds=LIMIT) as pool:
        for name, query in LATE.items():
            late = []
            for _ in range(LATE_REPEATS):
                began = time.perf_counter()
                (outcome,) = pool.run([(database, query)])
                late.append(time.perf_counter() - began - LIMIT)
                assert isinstance(outcome, Failed)
                assert outcome.kind == "timeout"
            lines.append(f"| {name} | {statistics.median(late):.2f} | {max(late):.2f} |")
    return lines


def middle(values: list[float]) -> str:
    """Return the median with the least and the most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder that has spider_rebuilt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    lines = [
        "# SQL predictions judged",
        "",
        f"    python benchmarks/sql.py --data DIR --out {args.out} --repeats {args.repeats}",
        "",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other "
        f"programs while this ran, Python {platform.python_version()}, SQLite "
        f"{sqlite3.sqlite_version}, whet {__version__}.",
        "",
        "## Rate: Spider (rebuilt databases), development questions",
        "",
        *rates(args.data, args.repeats),
        "",
        "## Lateness",
        "",
        *lateness(args.data),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
