"""What annotating a table will take, before a call is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.annotate.annotator import Annotator, Progress, Rows, talks
from whet.annotate.cache import AnswerCache
from whet.annotate.prices import Price
from whet.annotate.protocol import Answer, Conversation, Reply, Request
from whet.annotate.self_refine import SelfRefiner
from whet.annotate.web import WebBackend

#: Before any answer of the model is known: bytes of a prompt token, and tokens that a chat
#: template adds to a message.
BYTES_A_TOKEN, TOKENS_A_MESSAGE = 4.0, 4


@dataclass(frozen=True)
class Plan:
    """The calls that a run would make, and what they would cost.

    Attributes
    ----------
    rows, requests : int
        Rows of the table, and requests they need; re-asking after a bad answer not counted.
    known : int
        Requests that the cache answers.
    prompt_tokens, completion_tokens : int
        Of the requests that are not known.
    measured : int
        Answers of this model in the cache that tokens and time are extrapolated from; 0 where
        four bytes are taken for a token.
    cost : float or None
        US dollars; None without a price.
    seconds : float or None
        Of the run at its concurrency; None where no call was ever timed.

    Examples
    --------
    >>> Plan(10, 10, 4, 600, 60, 0, None, None).calls
    6
    """

    rows: int
    requests: int
    known: int
    prompt_tokens: int
    completion_tokens: int
    measured: int
    cost: float | None
    seconds: float | None

    @property
    def calls(self) -> int:
        """Requests that would go out."""
        return self.requests - self.known


def make_plan(
    annotator: Annotator | SelfRefiner, rows: Rows, price: Price | None, progress: Progress
) -> Plan:
    """Count a run's requests over all rows, and extrapolate their tokens.

    Tokens per byte of prompt, tokens of an answer and seconds of a call are the means over the
    answers that the cache holds of the same model and route, if there are any.
    """
    engine = annotator.engine
    route = engine.backend.route
    count, done = _Count(), 0
    for talk in talks(annotator, rows):
        count.walk(talk, engine.cache, route)
        done += annotator.rows_per_request
        if done % 10_000 < annotator.rows_per_request:
            progress("plan", min(done, rows.stream.num_rows), rows.stream.num_rows)
    requests, known = count.requests, count.known
    paid = engine.cache.measured(route)
    calls = requests - known
    if paid.prompt_tokens:
        prompt = count.prompt_bytes * paid.prompt_tokens / paid.prompt_bytes
        completion = calls * paid.completion_tokens / paid.answers
        measured = paid.answers
    else:
        prompt = count.prompt_bytes / BYTES_A_TOKEN + count.messages * TOKENS_A_MESSAGE
        completion, measured = count.answer_bytes / BYTES_A_TOKEN, 0
    tokens = round(prompt), round(completion)
    cost = None if price is None else price.cost(*tokens)
    each = seconds_a_call(engine.cache, engine.backend)
    seconds = None if each is None else calls * each / engine.concurrency
    return Plan(rows.stream.num_rows, requests, known, *tokens, measured, cost, seconds)


class _Count:
    """Walks through conversations with the cache's answers, and stand-ins where it has none."""

    def __init__(self) -> None:
        self.requests = self.known = self.prompt_bytes = self.messages = self.answer_bytes = 0
        self._seen: set[int] = set()

    def walk(self, talk: Conversation[Any], cache: AnswerCache, route: Mapping[str, Any]) -> None:
        """Count the requests of a conversation in which each answer is good."""
        replies: list[Reply] | None = None
        while True:
            try:
                asked = next(talk) if replies is None else talk.send(replies)
            except StopIteration:
                return
            replies = [self._reply(request, cache, route) for request in asked]

    def _reply(self, request: Request, cache: AnswerCache, route: Mapping[str, Any]) -> Reply:
        key = request.key(route)
        reply = cache.settled(key)
        stand_in = _stand_in(request)
        short = int(key[:16], 16)
        if short not in self._seen:  # rows with the same text share an answer
            self._seen.add(short)
            self.requests += 1
            if reply is not None:
                self.known += 1
            else:
                self.prompt_bytes += request.prompt_bytes
                self.messages += len(request.messages)
                self.answer_bytes += len(stand_in.text)
        return reply or stand_in


def _stand_in(request: Request) -> Answer:
    """Return an answer of about the length that a good one has."""
    if request.schema is None:
        return Answer("x" * 400)
    fields = request.schema["properties"]
    if "label" not in fields:  # many rows, which a stand-in cannot label: counted as they are
        items = fields["rows"]["items"]["properties"]
        return Answer("x" * (60 + (300 if "explanation" in items else 0)))
    said = {"explanation": "x" * 300} if "explanation" in fields else {}
    return Answer(json.dumps(said | {"label": max(fields["label"]["enum"], key=len)}))


def _timing(backend: object) -> str | None:
    if not isinstance(backend, WebBackend):
        return None
    return f"seconds a call: {backend.name} {backend.base_url} {backend.model}"


def remember_speed(cache: AnswerCache, backend: object) -> None:
    """Remember how long a call took on average, for later plans."""
    name = _timing(backend)
    if name is not None and isinstance(backend, WebBackend) and backend.answered:
        cache.remember(name, f"{backend.seconds / backend.answered:.4f}")


def seconds_a_call(cache: AnswerCache, backend: object) -> float | None:
    """Return the remembered mean time of a call."""
    name = _timing(backend)
    known = cache.fact(name) if name is not None else None
    return None if known is None else float(known)
