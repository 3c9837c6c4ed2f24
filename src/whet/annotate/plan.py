"""What annotating a table will take, before a call is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from whet.annotate.annotator import Annotator, Progress, Rows
from whet.annotate.cache import AnswerCache
from whet.annotate.prices import Price
from whet.annotate.protocol import Conversation
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
    requests = known = size = messages = answer_bytes = done = 0
    seen: set[int] = set()
    for talk in _talks(annotator, rows):
        try:
            first = next(talk)
        except StopIteration:
            first = []
        for request in first:
            key = request.key(route)
            if int(key[:16], 16) in seen:  # rows with the same text share an answer
                continue
            seen.add(int(key[:16], 16))
            requests += 1
            if engine.cache.settled(key) is not None:
                known += 1
                continue
            size += request.prompt_bytes
            messages += len(request.messages)
            answer_bytes += max(map(len, request.choices), default=300) + 14
        done += annotator.rows_per_request
        if done % 10_000 < annotator.rows_per_request:
            progress("plan", min(done, rows.stream.num_rows), rows.stream.num_rows)
    paid = engine.cache.measured(route)
    calls = requests - known
    if paid.prompt_tokens:
        prompt = size * paid.prompt_tokens / paid.prompt_bytes
        completion = calls * paid.completion_tokens / paid.answers
        measured = paid.answers
    else:
        prompt = size / BYTES_A_TOKEN + messages * TOKENS_A_MESSAGE
        completion, measured = answer_bytes / BYTES_A_TOKEN, 0
    tokens = round(prompt), round(completion)
    cost = None if price is None else price.cost(*tokens)
    each = seconds_a_call(engine.cache, engine.backend)
    seconds = None if each is None else calls * each / engine.concurrency
    return Plan(rows.stream.num_rows, requests, known, *tokens, measured, cost, seconds)


def _talks(annotator: Annotator | SelfRefiner, rows: Rows) -> Iterator[Conversation[Any]]:
    for unit in rows.units(annotator.rows_per_request):
        yield annotator.conversation(rows.task, unit)


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
