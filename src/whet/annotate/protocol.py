"""What a back end is asked and what it says: requests, answers, failures, conversations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

#: Why there is no answer. ``filtered``: by the server's content filter; ``rejected``: the server
#: will not take this request; ``unreachable``: it did not answer, retries included;
#: ``truncated``: the answer reached its length limit; ``not asked``: the run stopped before.
Cause = Literal["filtered", "rejected", "unreachable", "truncated", "not asked"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes
    ----------
    messages : tuple of (role, content)
        Roles are ``system``, ``user`` and ``assistant``; the last one is the user's.
    max_tokens : int
        Longest answer.
    schema : dict or None
        JSON schema that the answer must follow; None asks for free text.
    choices : tuple of str
        Where the answer is one label and nothing else: the classes. A back end that can score
        them need not generate.
    temperature : float
        0 for the most probable answer.
    sample : int
        Tells several answers to the same question apart.
    text : str
        The row's text as the template makes it: what a replay looks up. Not part of the key.

    Examples
    --------
    >>> request = Request((("user", "Is 'good' positive?"),), max_tokens=8)
    >>> request.key({"model": "a"}) == request.key({"model": "b"})
    False
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] = ()
    temperature: float = 0.0
    sample: int = 0
    text: str = field(default="", compare=False)

    @property
    def prompt_bytes(self) -> int:
        """Length of the messages in UTF-8 bytes."""
        return sum(len(content.encode("utf-8", "surrogatepass")) for _, content in self.messages)

    def key(self, route: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything that may change the answer: route and request."""
        whole = [
            route,
            self.messages,
            self.choices,
            self.max_tokens,
            self.schema,
            self.temperature,
            self.sample,
        ]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes
    ----------
    text : str
        The answer without the model's thinking.
    prompt_tokens, completion_tokens : int
        As the server counts them; 0 where it does not.
    tokens : tuple of (int, float) or None
        Length in UTF-8 bytes and log-probability of each token of the text, where the server
        returns them.
    probabilities : dict of str to float or None
        Probability of each of the request's choices, where the back end scores them.

    Examples
    --------
    >>> Answer.from_json(Answer("yes", 9, 1).to_json()).text
    'yes'
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: tuple[tuple[int, float], ...] | None = None
    probabilities: Mapping[str, float] | None = None

    def to_json(self) -> str:
        """Return the answer as one line of JSON; fields that are None are left out."""
        kept = {name: value for name, value in vars(self).items() if value is not None}
        return json.dumps(kept)

    @classmethod
    def from_json(cls, line: str) -> Answer:
        """Read what :meth:`to_json` wrote."""
        content = json.loads(line)
        if content.get("tokens") is not None:
            content["tokens"] = tuple((int(n), float(p)) for n, p in content["tokens"])
        return cls(**content)


@dataclass(frozen=True)
class Failure:
    """Why there is no answer; never kept as one.

    Examples
    --------
    >>> str(Failure("truncated", "64 tokens were not enough"))
    'truncated: 64 tokens were not enough'
    """

    cause: Cause
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


Reply = Answer | Failure

#: Work that asks in steps: yields the requests that it needs next, is sent their replies in the
#: same order, and returns its result. It knows neither server nor cache, so that the same code
#: runs when the answers are bought and when they are read back.
Conversation = Generator[list[Request], Sequence[Reply], T]


class Backend(Protocol):
    """Something that answers requests.

    Attributes
    ----------
    route : dict
        What identifies the model and the way to it; part of every cache key. Holds no secret.
    at_once : int
        Requests that one call of :meth:`complete` should get: 1 for a server, which is called
        many times in parallel; more where answering together is cheaper.

    Examples
    --------
    >>> class Echo:
    ...     route, at_once = {"backend": "echo"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer(request.messages[-1][1]) for request in requests]
    ...     async def close(self): ...
    >>> backend: Backend = Echo()
    """

    @property
    def route(self) -> Mapping[str, Any]:
        """What identifies the model and the way to it."""
        ...

    @property
    def at_once(self) -> int:
        """Requests that one call should get."""
        ...

    async def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer each request, in order; raise ``Stop`` where going on is pointless."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


class Stop(Exception):
    """The run ends here; what is answered is kept.

    Parameters
    ----------
    reason : str
        One sentence for the user.
    fatal : bool
        Whether the user must mend something, as opposed to a limit that was asked for.

    Examples
    --------
    >>> Stop("--max-calls 10 is reached", fatal=False).fatal
    False
    """

    def __init__(self, reason: str, *, fatal: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.fatal = reason, fatal


def together(conversations: Sequence[Conversation[T]]) -> Conversation[list[T]]:
    """Run conversations in step, so that their requests are asked at once.

    Examples
    --------
    >>> def ask(word):
    ...     (reply,) = yield [Request((("user", word),), max_tokens=1)]
    ...     return reply.text
    >>> both = together([ask("a"), ask("b")])
    >>> [request.messages[0][1] for request in next(both)]
    ['a', 'b']
    >>> both.send([Answer("A"), Answer("B")])
    Traceback (most recent call last):
    ...
    StopIteration: ['A', 'B']
    """
    results: dict[int, T] = {}
    waiting: dict[int, list[Request]] = {}

    def step(i: int, replies: Sequence[Reply] | None) -> None:
        talk = conversations[i]
        try:
            waiting[i] = next(talk) if replies is None else talk.send(replies)
        except StopIteration as done:
            waiting.pop(i, None)
            results[i] = done.value

    for i in range(len(conversations)):
        step(i, None)
    while waiting:
        replies = iter((yield [request for asked in waiting.values() for request in asked]))
        for i, asked in list(waiting.items()):
            step(i, [next(replies) for _ in asked])
    return [results[i] for i in range(len(conversations))]
