"""How close ``whet annotate`` comes to the rate that a server allows, and what memory it takes.

Two questions, with conditions that are fixed here:

1. Rate. A local server in its own process answers each call after 200 ms; 64 calls may be in
   flight, so that the ideal is 320 calls a second. 12,800 rows, three repeats in turn: whet as the
   command runs it (cache on disk, one commit an answer), bare aiohttp as the floor, and the
   ``openai`` package where it is installed. Target: at least 95 % of the ideal, and less than 25 %
   of one core for the client. Reading the answers back and writing the table is not in the rate;
   it is the second column of seconds.
2. Memory. An annotator in this process that answers at once; 1,000 to 1,000,000 rows of a Parquet
   file; each size in a process of its own; peak of the resident set.

Run from the project's root:

    python benchmarks/throughput.py --out benchmarks/results/throughput.md
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: Share of the ideal rate, share of a core, seconds of reading back and writing.
Result = tuple[float, float, float]

SECONDS, IN_FLIGHT, ROWS, REPEATS = 0.2, 64, 12_800, 3
SIZES = (1_000, 10_000, 100_000, 1_000_000)
ANSWER = '{"label": "biased"}'
TOKENS = ['{"', "label", '":', ' "', "biased", '"}']


def serve(port: int) -> None:
    """Answer every call after SECONDS."""
    body = json.dumps(
        {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": ANSWER},
                    "logprobs": {
                        "content": [{"token": t, "logprob": -0.1, "bytes": None} for t in TOKENS]
                    },
                }
            ],
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "usage": {"prompt_tokens": 200, "completion_tokens": 6, "total_tokens": 206},
        }
    ).encode()

    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reply = head.encode() + body

    class Connection(asyncio.Protocol):
        """One keep-alive connection; as little work as can be, since it shares the machine."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.received = transport, b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            start = self.received.find(b"\r\n\r\n") + 4
            if start < 4:
                return
            length = re.search(rb"content-length: *(\d+)", self.received[:start], re.IGNORECASE)
            if len(self.received) >= start + int(length[1]):
                self.received = b""
                asyncio.get_running_loop().call_later(SECONDS, self.transport.write, reply)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


def text(i: int) -> str:
    """Return a sentence of about 40 words; no two are alike."""
    return f"Sentence {i} of a report that nobody has read. " * 5


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return calls a second over the ideal, and the share of a core, of ROWS calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return ROWS / wall * SECONDS / IN_FLIGHT, cpu / wall


def whet_client(url: str, folder: str) -> Result:
    """Buy the answers as the command does, then read them back and write the table."""
    from whet.annotate.annotator import Annotator, Columns, read_rows, write_rows
    from whet.annotate.cache import AnswerCache
    from whet.annotate.openai import OpenAIBackend
    from whet.annotate.task import load_task
    from whet.streams import RowStream

    task, columns = load_task("media_bias"), Columns("pseudo_label")
    rows = read_rows(RowStream({"text": [text(i) for i in range(ROWS)]}), task)
    cache = AnswerCache(Path(folder) / "answers.sqlite")
    backend = OpenAIBackend("m", base_url=url, key_env=None, cache=cache)
    annotator = Annotator(task, backend, cache=cache, concurrency=IN_FLIGHT)
    rate = timed(lambda: annotator.buy(rows))
    began = time.perf_counter()
    values = (columns.values(outcome) for outcome in annotator.outcomes(rows))
    write_rows(Path(folder) / "out.parquet", rows.stream, columns.fields(task), values)
    return *rate, time.perf_counter() - began


def messages(i: int) -> dict[str, Any]:
    """Return what whet would send for a row."""
    from whet.annotate.openai import OpenAIBackend
    from whet.annotate.prompts import label_request
    from whet.annotate.task import load_task

    backend = OpenAIBackend("m", base_url="http://localhost/v1", key_env=None)
    return backend.payload(label_request(load_task("media_bias"), text(i)), frozenset())


def pooled(
    call: Callable[[int], Awaitable[None]], close: Callable[[], Awaitable[None]]
) -> tuple[float, float]:
    """Run ROWS calls, IN_FLIGHT at a time."""

    async def run() -> None:
        left = iter(range(ROWS))

        async def work() -> None:
            for i in left:
                await call(i)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        await close()

    return timed(lambda: asyncio.run(run()))


def aiohttp_client(url: str, folder: str) -> Result:
    """Send the same bodies and parse the replies, and nothing else."""
    import aiohttp

    body, session = messages(0), []

    async def call(i: int) -> None:
        if not session:
            session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        async with session[0].post(url + "/chat/completions", json=body) as reply:
            json.loads(await reply.read())

    async def close() -> None:
        await session[0].close()

    return *pooled(call, close), 0.0


def openai_client(url: str, folder: str) -> Result:
    """Send the same bodies with the openai package, retries off."""
    import openai

    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
    body = messages(0)

    async def call(i: int) -> None:
        await client.chat.completions.create(**body)

    return *pooled(call, client.close), 0.0


CLIENTS = {"whet annotate": whet_client, "aiohttp alone": aiohttp_client}


def child(name: str, url: str, pipe: Any) -> None:  # noqa: ANN401
    """Run a client in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(CLIENTS[name](url, folder))


def memory(rows: int) -> None:
    """Annotate a Parquet file of so many rows with an annotator that answers at once."""
    from whet.annotate.annotator import Annotator, Columns, read_rows, write_rows
    from whet.annotate.cache import AnswerCache
    from whet.annotate.protocol import Answer
    from whet.annotate.task import load_task
    from whet.streams import RowStream

    class AtOnce:
        route, at_once = {"backend": "at once"}, 1

        async def complete(self, requests: list[Any]) -> list[Answer]:
            await asyncio.sleep(0)
            return [Answer(ANSWER, 200, 6, ((2, -0.1), (17, -0.1))) for _ in requests]

        async def close(self) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        with pq.ParquetWriter(source, pa.schema([("text", pa.string())])) as writer:
            for start in range(0, rows, 10_000):
                stop = min(start + 10_000, rows)
                writer.write_table(pa.table({"text": [text(i) for i in range(start, stop)]}))
        task, columns = load_task("media_bias"), Columns("pseudo_label")
        cache = AnswerCache(Path(folder) / "answers.sqlite")
        annotator = Annotator(task, AtOnce(), cache=cache, concurrency=IN_FLIGHT)
        table = read_rows(RowStream(source), task)
        began = time.perf_counter()
        annotator.buy(table)
        bought = time.perf_counter()
        values = (columns.values(outcome) for outcome in annotator.outcomes(table))
        write_rows(out, table.stream, columns.fields(task), values)
        done = time.perf_counter()
        size = (Path(folder) / "answers.sqlite").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps([peak, bought - began, done - bought, size / rows]))


def rates(url: str) -> dict[str, list[Result]]:
    """Return the results of each client over the repeats, taken in turn."""
    found = {name: [] for name in CLIENTS}
    for _ in range(REPEATS):
        for name in CLIENTS:
            here, there = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=child, args=(name, url, there)
            )
            process.start()
            found[name].append(here.recv())
            process.join()
            sys.stderr.write(f"{name} {found[name][-1]}\n")
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Run both questions and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", type=int, help="one size, in this process")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    time.sleep(3)
    found = rates(f"http://127.0.0.1:{port}/v1")
    server.terminate()
    lines = [
        "# Throughput of `whet annotate`",
        "",
        "    python benchmarks/throughput.py --out benchmarks/results/throughput.md",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; server "
        "and client share the machine.",
        "",
        f"## Rate: {ROWS:,} calls of {1000 * SECONDS:.0f} ms, {IN_FLIGHT} in flight",
        "",
        f"Median of {REPEATS} repeats, and the range. The ideal is {IN_FLIGHT / SECONDS:.0f} calls "
        "a second.",
        "",
        "| client | share of the ideal rate | share of one core | reading back and writing, s |",
        "|---|---|---|---|",
    ]
    for name, runs in found.items():
        rate, core, rest = zip(*runs, strict=True)
        after = spread(rest, 2) if any(rest) else "-"
        lines.append(f"| {name} | {spread(rate)} | {spread(core)} | {after} |")
    lines += [
        "",
        "## Memory: an annotator that answers at once",
        "",
        "Each size in its own process; the cache is the size of its file a row.",
        "",
        "| rows | peak MiB | asking, s | reading back and writing, s | cache, bytes a row |",
        "|---|---|---|---|---|",
    ]
    for rows in SIZES:
        command = [sys.executable, __file__, "--out", "-", "--memory", str(rows)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
        peak, asking, writing, size = json.loads(said)
        lines.append(f"| {rows:,} | {peak:.0f} | {asking:.1f} | {writing:.1f} | {size:.0f} |")
        sys.stderr.write(f"{lines[-1]}\n")
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


try:
    import openai  # noqa: F401

    CLIENTS["openai package"] = openai_client
except ImportError:
    pass

if __name__ == "__main__":
    main()
