"""Buys the answers that conversations need, and reads them back.

The two are separate: :meth:`Engine.buy` runs all conversations against the back end, in any order
and many at once, and keeps nothing but the cache; :func:`recall` runs them again in the rows' order
against the cache alone. So memory does not grow with the rows, and the result depends on the cache
and the input only, not on who answered first or how often the run was interrupted.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from whet.annotate.cache import AnswerCache
from whet.annotate.protocol import (
    Backend,
    Conversation,
    Failure,
    Reply,
    Request,
    Stop,
    together,
)

T = TypeVar("T")

#: Why a run ended that a signal ended.
_INTERRUPT = Stop("it was interrupted", fatal=False)


class Engine:
    """Asks a back end what a cache does not hold.

    Parameters
    ----------
    backend : Backend
    cache : AnswerCache
    concurrency : int
        Calls in flight.

    Attributes
    ----------
    stopped : Stop or None
        Why the last run ended early.
    asked : int
        Requests that went to the back end.
    tell : callable
        Given a sentence for the user while the run goes on.

    Examples
    --------
    >>> from whet.annotate.protocol import Answer
    >>> class Echo:
    ...     route, at_once = {"backend": "echo"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer(request.messages[-1][1]) for request in requests]
    ...     async def close(self): ...
    >>> def talk(word):
    ...     (reply,) = yield [Request((("user", word),), max_tokens=1)]
    ...     return reply.text
    >>> cache = AnswerCache(None)
    >>> engine = Engine(Echo(), cache)
    >>> asyncio.run(engine.buy([talk("a"), talk("b"), talk("a")].__iter__()))
    >>> engine.asked, recall(talk("b"), cache, Echo.route)
    (2, 'b')
    """

    def __init__(self, backend: Backend, cache: AnswerCache, concurrency: int = 16) -> None:
        self.backend, self.cache, self.concurrency = backend, cache, concurrency
        self.stopped: Stop | None = None
        self.asked = 0
        self.tell: Callable[[str], None] = lambda said: None
        self._slots = asyncio.Semaphore(concurrency)
        self._open = 0
        self._in_flight: dict[str, asyncio.Future[Reply]] = {}

    async def buy(
        self,
        conversations: Iterator[Conversation[Any]],
        done: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Run all conversations until each is over, or until going on is pointless.

        Parameters
        ----------
        conversations : iterator
            Taken one by one as there is room.
        done : callable
            Told how many conversations are over.

        Raises
        ------
        KeyboardInterrupt
            After SIGINT or SIGTERM, when the calls in flight, which may cost money, have been
            answered and kept; a second signal drops them.
        """
        over = 0
        self.stopped, self._slots = None, asyncio.Semaphore(self.concurrency)

        async def work() -> None:
            nonlocal over
            while self.stopped is None:
                batch = list(itertools.islice(conversations, self.backend.at_once))
                if not batch:
                    return
                try:
                    await self._talk(together(batch))
                except Stop as stop:
                    self.stopped = self.stopped or stop  # what is in flight still ends
                    return
                over += len(batch)
                done(over)

        workers = 1 if self.backend.at_once > 1 else self.concurrency
        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        try:
            with self._signals(tasks):
                await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            if self.stopped is _INTERRUPT:
                raise KeyboardInterrupt from None
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.backend.close()

    @contextmanager
    def _signals(self, tasks: list[asyncio.Task[None]]) -> Iterator[None]:
        """Let a first signal end the run after the calls in flight, and a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            if self.stopped is _INTERRUPT or not self._open:
                for task in tasks:
                    task.cancel()
            else:
                self.tell(f"{self._open} calls in flight are waited for; Ctrl-C again drops them")
            self.stopped = _INTERRUPT

        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in signals]
        for number in signals:
            loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                loop.remove_signal_handler(number)
                if handler is not None:  # None: it was not set from Python
                    signal.signal(number, handler)
        if self.stopped is _INTERRUPT:
            raise KeyboardInterrupt

    async def _talk(self, conversation: Conversation[Any]) -> None:
        replies: Sequence[Reply] | None = None
        while True:
            try:
                asked = next(conversation) if replies is None else conversation.send(replies)
            except StopIteration:
                return
            replies = await self._replies(asked)

    async def _replies(self, requests: Sequence[Request]) -> list[Reply]:
        """Return what is known, wait for what is being asked, and ask the rest, each once."""
        keys = [request.key(self.backend.route) for request in requests]
        known: dict[str, Reply] = {}
        waiting: dict[str, asyncio.Future[Reply]] = {}
        missing: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in known or key in missing or key in waiting:
                continue
            if key in self._in_flight:
                waiting[key] = self._in_flight[key]
                continue
            reply = self.cache.settled(key)
            if reply is not None:
                known[key] = reply
            else:
                missing[key] = request
        if missing:
            known |= await self._ask(missing)
        for key, future in waiting.items():
            known[key] = await future
        return [known[key] for key in keys]

    async def _ask(self, missing: dict[str, Request]) -> dict[str, Reply]:
        loop = asyncio.get_running_loop()
        futures = {key: loop.create_future() for key in missing}
        self._in_flight |= futures
        try:
            replies = await self._bought(list(missing.values()))
            for future, reply in zip(futures.values(), replies, strict=True):
                future.set_result(reply)
        except BaseException as error:
            for future in futures.values():
                if not future.done():
                    future.set_exception(
                        error if isinstance(error, Stop) else Stop(f"interrupted ({error!r})")
                    )
                    future.exception()  # seen, also where nobody waits for it
            raise
        finally:
            for key in futures:
                self._in_flight.pop(key, None)
        return dict(zip(missing, replies, strict=True))

    async def _bought(self, requests: list[Request]) -> list[Reply]:
        if self.stopped is not None:
            raise self.stopped
        if len(requests) == 1 or self.backend.at_once > 1:
            return await self._kept(requests)
        # Each reply is kept as soon as it is there: a Stop of one loses none of the others.
        talks = [self._kept([request]) for request in requests]
        parts = await asyncio.gather(*talks, return_exceptions=True)
        replies: list[Reply] = []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            replies += part
        return replies

    async def _kept(self, requests: list[Request]) -> list[Reply]:
        async with self._slots:
            self._open += 1
            try:
                replies = await self.backend.complete(requests)
            finally:
                self._open -= 1
        self.asked += len(requests)
        route = self.backend.route
        return [
            self.cache.keep(request.key(route), route, reply, request.prompt_bytes)
            for request, reply in zip(requests, replies, strict=True)
        ]


def recall(
    conversation: Conversation[T],
    cache: AnswerCache,
    route: Mapping[str, Any],
    why: str = "",
) -> T:
    """Run a conversation against the cache alone.

    Parameters
    ----------
    conversation : Conversation
    cache : AnswerCache
    route : mapping
        The back end's.
    why : str
        Why requests without a reply were not asked.
    """
    replies: Sequence[Reply] | None = None
    while True:
        try:
            asked = next(conversation) if replies is None else conversation.send(replies)
        except StopIteration as over:
            result: T = over.value
            return result
        replies = [
            cache.reply(request.key(route)) or Failure("not asked", why) for request in asked
        ]
