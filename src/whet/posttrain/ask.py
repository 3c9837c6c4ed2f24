"""Completions of prompts from any back end of :mod:`whet.annotate`, such as a server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whet import __version__
from whet.annotate.annotator import run_async
from whet.annotate.cache import AnswerCache
from whet.annotate.engine import Engine, recall
from whet.annotate.protocol import Answer, Backend, Conversation, Reply, Request
from whet.errors import WhetError
from whet.posttrain.examples import ROW, check_examples, digest, is_conversational
from whet.posttrain.generate import MANIFEST, RESULT
from whet.posttrain.settings import GenerateSettings
from whet.rounds import Progress
from whet.store import RunFolder, write_json, write_parquet

#: Answers that were bought; they stay, so that other settings need not buy the same again.
CACHE = "answers.sqlite"
#: Why there may be no answer, whoever asks again.
FINAL = ("truncated", "filtered", "rejected")


def generate_with(
    backend: Backend,
    table: pa.Table,
    out: Path,
    settings: GenerateSettings,
    *,
    concurrency: int = 16,
    progress: Progress | None = None,
) -> pa.Table:
    """Let the model behind a back end answer prompts.

    Text is asked as one user's message. A seed is not sent, and ``tokens_per_batch`` not used.

    Parameters
    ----------
    backend : Backend
        See :func:`whet.annotate.connect.connect`.
    table, out, settings, progress
        As for :func:`whet.posttrain.generate.generate`; ``top_p`` must be 1.
    concurrency : int
        Calls in flight.

    Returns
    -------
    pyarrow.Table
        As of :func:`whet.posttrain.generate.generate`. Where the answer was cut off, filtered or
        rejected, ``completion`` is null and ``finished`` False.

    Raises
    ------
    WhetError
        If prompts or folder cannot be used, or the back end gave up on prompts; what it answered
        is kept, and the same call goes on.

    Examples
    --------
    >>> import tempfile
    >>> class Echo:
    ...     route, at_once = {"backend": "echo"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer(request.messages[-1][1]) for request in requests]
    ...     async def close(self): ...
    >>> out = Path(tempfile.mkdtemp()) / "said"
    >>> said = generate_with(Echo(), pa.table({"prompt": ["a"]}), out, GenerateSettings())
    >>> said["completion"].to_pylist()
    ['a']
    """
    began = time.perf_counter()
    if settings.top_p < 1:
        raise WhetError(
            f"top_p = {settings.top_p} with a back end, which samples from all tokens: leave it "
            "at 1"
        )
    table, out = check_examples(table, ["prompt"]), Path(out)
    about = {
        "route": dict(backend.route),
        "data_sha256": digest(table.select([ROW, "prompt"])),
        "temperature": settings.temperature,
        "samples": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
    }
    held = RunFolder(out, about, resume=True)
    try:
        if not (out / MANIFEST).is_file():
            requests = _requests(table, settings)
            held.open()
            with AnswerCache(out / CACHE) as cache:
                replies = _replies(Engine(backend, cache, concurrency), requests, progress)
            write_parquet(out / RESULT, _table(table, replies, settings.samples))
            failures = Counter(reply.cause for reply in replies if not isinstance(reply, Answer))
            seconds = round(time.perf_counter() - began, 3)
            account = {"completions": len(replies), "failures": failures, "seconds": seconds}
            write_json(out / MANIFEST, {"whet_version": __version__, **about, **account})
        return pq.read_table(out / RESULT)
    finally:
        held.close()


def _requests(table: pa.Table, settings: GenerateSettings) -> list[Request]:
    """Return a request for each prompt and sample; equal prompts are asked each on its own."""
    requests, asked = [], Counter[tuple[tuple[str, str], ...]]()
    for prompt in table["prompt"].to_pylist():
        talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = tuple((said["role"], said["content"]) for said in talk)
        for _ in range(settings.samples):
            # The most probable answer to a question is one, however often it is asked.
            sample = asked[messages] if settings.temperature > 0 else 0
            asked[messages] += 1
            requests.append(
                Request(
                    messages,
                    settings.max_new_tokens,
                    temperature=settings.temperature,
                    sample=sample,
                )
            )
    return requests


def _ask(request: Request) -> Conversation[Reply]:
    (reply,) = yield [request]
    return reply


def _replies(engine: Engine, requests: list[Request], progress: Progress | None) -> list[Reply]:
    """Buy what the cache lacks, and return a reply for each request."""

    def talks() -> Iterator[Conversation[Reply]]:
        return (_ask(request) for request in requests)

    def done(count: int) -> None:
        if progress is not None:
            progress("generate", count, len(requests))

    run_async(engine.buy(talks(), done))
    if engine.stopped is not None:
        raise WhetError(engine.stopped.reason)
    route = engine.backend.route
    replies = [recall(talk, engine.cache, route) for talk in talks()]
    lost = [r for r in replies if not isinstance(r, Answer) and r.cause not in FINAL]
    if lost:
        raise WhetError(
            f"{len(lost):,} of {len(replies):,} prompts have no answer ({lost[0]}): run it again, "
            "which asks for these alone"
        )
    return replies


def _table(table: pa.Table, replies: list[Reply], samples: int) -> pa.Table:
    said: list[Any] = [reply.text if isinstance(reply, Answer) else None for reply in replies]
    finished = [text is not None for text in said]
    kind: pa.DataType = pa.string()
    if is_conversational(table):
        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        said = [None if text is None else [{"role": "assistant", "content": text}] for text in said]
    places = [place for place in range(table.num_rows) for _ in range(samples)]
    return pa.table(
        {
            ROW: table[ROW].take(places),
            "sample": pa.array(list(range(samples)) * table.num_rows, pa.int64()),
            "prompt": table["prompt"].take(places),
            "completion": pa.array(said, kind),
            "finished": pa.array(finished),
        }
    )
