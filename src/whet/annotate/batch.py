"""OpenAI's batch interface: half the price, within a day, and resumable.

Requests are written to a file, uploaded, and waited for. A batch is remembered in the cache before
it is made, with a mark that the server keeps, so that a run which is killed at any moment finds it
again and pays for nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whet.annotate.cache import AnswerCache
from whet.annotate.openai import OpenAIBackend
from whet.annotate.prices import batch_discount
from whet.annotate.protocol import Conversation, Failure, Reply, Request, Stop
from whet.annotate.web import Refused

if TYPE_CHECKING:
    import aiohttp

#: Limits of one batch; the provider's are 50,000 requests and 200 MB.
MOST_REQUESTS, MOST_BYTES = 50_000, 100_000_000
#: Seconds between looks at a batch.
POLL = 30.0
_OVER = ("completed", "failed", "expired", "cancelled")


async def buy_batches(
    backend: OpenAIBackend,
    cache: AnswerCache,
    conversations: Callable[[], Iterable[Conversation[Any]]],
    progress: Callable[[str, int, int], None],
) -> Stop | None:
    """Answer everything that conversations ask, batch after batch.

    Parameters
    ----------
    backend : OpenAIBackend
    cache : AnswerCache
    conversations : callable
        Returns all conversations anew: after each batch, they may ask more.
    progress : callable
        Told ("batch", answered, requests of the batch).

    Returns
    -------
    Stop or None
        The limit that ended it early.

    Raises
    ------
    Stop
        If the server turns the batch down.
    """
    work = _Batches(backend, cache, progress)
    try:
        await work.finish_known()
        while True:
            stop, submitted = await work.submit(_asked(conversations(), work))
            if submitted:
                await work.finish_known()
            if stop is not None or not submitted:
                return stop
    finally:
        await backend.close()


def _asked(talks: Iterable[Conversation[Any]], work: _Batches) -> Iterator[tuple[str, Request]]:
    """Yield the requests that come next in each conversation, each once."""
    for talk in talks:
        replies: Sequence[Reply] | None = None
        while True:
            try:
                requests = next(talk) if replies is None else talk.send(replies)
            except StopIteration:
                break
            known = [(r, r.key(work.backend.route)) for r in requests]
            found = [work.reply(key) for _, key in known]
            if any(reply is None for reply in found):
                yield from (
                    (key, request)
                    for (request, key), reply in zip(known, found, strict=True)
                    if reply is None
                )
                break
            replies = [reply for reply in found if reply is not None]


class _Batches:
    def __init__(
        self,
        backend: OpenAIBackend,
        cache: AnswerCache,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.backend, self.cache, self.progress = backend, cache, progress
        self._prefix = f"batch: {backend.base_url} {backend.model} "
        self._share = 1.0 - batch_discount()
        self._failed: set[str] = set()
        self._bounds: dict[str, tuple[int, int]] = {}

    def reply(self, key: str) -> Reply | None:
        """Return what is known of a request: an answer, or that it failed in this run."""
        return self.cache.reply(key) if key in self._failed else self.cache.settled(key)

    async def submit(self, asked: Iterator[tuple[str, Request]]) -> tuple[Stop | None, int]:
        """Send as many requests as one batch takes; return why it is not more, and how many."""
        stop: Stop | None = None
        seen: set[str] = set()
        with tempfile.TemporaryFile() as file:
            for key, request in asked:
                if key in seen:
                    continue
                bound = self.backend.bound(request)
                try:
                    await self.backend.budget.admit(*bound, share=self._share, wait=False)
                except Stop as reached:
                    stop = reached
                    break
                self._bounds[key] = bound
                seen.add(key)
                line = {
                    "custom_id": key,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": self.backend.payload(request, self.backend.unknown),
                }
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                if len(seen) >= MOST_REQUESTS or file.tell() >= MOST_BYTES:
                    break
            if seen:
                file.seek(0)
                await self._create(file.read())
        return stop, len(seen)

    async def _create(self, content: bytes) -> None:
        import aiohttp

        mark = uuid.uuid4().hex
        name = self._prefix + mark
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", content, filename=f"{mark}.jsonl", content_type="application/jsonl")
        uploaded = await self._call("POST", "/files", form)
        self.cache.remember(name, "")
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"whet": mark},
        }
        # Sent once: a second attempt could make, and charge, the batch twice.
        made = await self.backend.send("POST", "/batches", body, attempts=1)
        if isinstance(made, Refused):
            unsure = made.status < 300 or made.status >= 500
            identity = await self._find(mark) if unsure else None
            if identity is None:
                self.cache.remember(name, None)
                raise self._refused(made)
            made = {"id": identity}
        self.cache.remember(name, made["id"])

    async def finish_known(self) -> None:
        """Wait for every batch that this or an earlier run has made, and keep its answers."""
        for name, known in self.cache.facts(self._prefix).items():
            identity = known or await self._find(name.removeprefix(self._prefix))
            if identity is not None:
                self.cache.remember(name, identity)
                await self._finish(identity)
            self.cache.remember(name, None)

    async def _find(self, mark: str) -> str | None:
        """Look for a batch whose making was interrupted before its name was known."""
        listed = await self._call("GET", "/batches?limit=100", None)
        for batch in listed.get("data", []):
            if (batch.get("metadata") or {}).get("whet") == mark:
                return str(batch["id"])
        return None

    async def _finish(self, identity: str) -> None:
        while True:
            batch = await self._call("GET", f"/batches/{identity}", None)
            counts = batch.get("request_counts") or {}
            total = int(counts.get("total") or 0)
            if total:
                self.progress("batch", int(counts.get("completed") or 0), total)
            if batch["status"] in _OVER:
                break
            await asyncio.sleep(POLL)
        answered = 0
        for file in (batch.get("output_file_id"), batch.get("error_file_id")):
            if file:
                answered += await self._keep(str(file))
        for bound in self._bounds.values():  # expired requests cost nothing
            await self.backend.budget.settle(bound, None, free=True, share=self._share)
        self._bounds.clear()
        if not answered:
            said = json.dumps(batch.get("errors") or {})[:300]
            raise Stop(
                f"the batch {identity} is {batch['status']} without any answer ({said}): see the "
                "provider's page, then run again, or without --batch"
            )

    async def _keep(self, file: str) -> int:
        """Store the answers of a file of results; return how many lines it has."""
        content = await self._call("GET", f"/files/{file}/content", None, lines=True)
        route, kept = self.backend.route, 0
        for line in content["lines"]:
            key, response = str(line["custom_id"]), line.get("response") or {}
            body = response.get("body") or {}
            reply: Reply
            if response.get("status_code") == 200:
                try:
                    reply = self.backend.read(body)
                except (KeyError, TypeError, IndexError, AttributeError, ValueError):
                    reply = Failure("unreachable", "the reply is none of this interface")
            else:
                said = json.dumps(line.get("error") or body.get("error") or {})
                reply = Failure("rejected", f"in the batch: {said[:200]}")
            if isinstance(reply, Failure):
                self._failed.add(key)
            bound = self._bounds.pop(key, None)
            if bound is not None:
                used = self.backend.usage(body) if response.get("status_code") == 200 else (0, 0)
                await self.backend.budget.settle(bound, used, share=self._share)
            self.cache.keep(key, route, reply)
            kept += 1
        return kept

    async def _call(
        self,
        method: str,
        path: str,
        payload: Mapping[str, Any] | aiohttp.FormData | None,
        *,
        lines: bool = False,
    ) -> dict[str, Any]:
        body = await self.backend.send(method, path, payload, lines=lines)
        if isinstance(body, Refused):
            raise self._refused(body)
        return body

    def _refused(self, refused: Refused) -> Stop:
        if refused.status in (401, 403):
            return Stop(
                f"{self.backend.base_url} turned the key down (status {refused.status}): check the "
                f"key in {self.backend.key_env}"
            )
        return Stop(
            f"the batch interface at {self.backend.base_url} does not take the call (status "
            f"{refused.status}: {refused.message}): run again, or without --batch"
        )
