"""Asking a server over HTTP: what is tried again, what is not, and when to stop.

aiohttp is used directly: the providers' own packages cost several times the processor time of a
call (benchmarks/throughput.py), which matters with many calls in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from whet.annotate.budget import Budget
from whet.annotate.cache import AnswerCache
from whet.annotate.protocol import Answer, Failure, Reply, Request, Stop
from whet.errors import WhetError
from whet.extras import require

if TYPE_CHECKING:
    import aiohttp

#: Statuses that may pass: timeout, conflict, rate limit, and the server's own errors.
_PASSING = {408, 409, 429}
#: Attempts of one call, seconds before the second one (doubled each time), and the longest wait.
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 6, 0.5, 60.0
#: Waiting longer than this for a server that asks for it is left to the user.
PATIENCE = 600.0
#: Seconds over which the first calls are spread, at most; else over the time of the very first.
LONGEST_SPREAD, GOLDEN = 2.0, 0.6180339887
#: Calls in a row that failed with all their attempts: then the server counts as dead.
DEAD = 5
#: Words of a request that servers may not know, in the order in which they are given up, and what
#: a server says then. A text that is too long for the model is refused with max_tokens as well.
OPTIONAL = {
    "response_format": re.compile(r"response_format|json_schema"),
    "tool_choice": re.compile(r"tool_choice"),
    "logprobs": re.compile(r"logprobs"),
    "temperature": re.compile(r"^(?!.*(?:range|between|less than|at most)).*temperature"),
    "max_tokens": re.compile(r"^(?!.*context).*max_completion_tokens"),
    "system": re.compile(
        r"system.{0,20}\brole|\brole.{0,20}system|system (?:message|prompt|instr)"
        r"|only user and assistant|roles must alternate"
    ),
}


@dataclass(frozen=True)
class Refused:
    """A reply that is no answer.

    Attributes
    ----------
    status : int
        HTTP status; 0 for none.
    message : str
        What the server said, in one line, without the key.
    code : str
        The server's name for it, or "".

    Examples
    --------
    >>> Refused(404, "no such model").status
    404
    """

    status: int
    message: str
    code: str = ""


#: What an attempt brings: the body of a good reply, else what was wrong and the wait asked for.
Attempt = tuple[dict[str, Any] | None, Refused, float | None]


def api_key(variable: str | None, needed: bool) -> str:
    """Return the key from the environment; it is kept nowhere else.

    Raises
    ------
    WhetError
        If it is needed and not there.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if needed and not key:
        raise WhetError(
            f"the environment has no {variable}: set it to your key (whet reads keys from nowhere "
            "else)"
        )
    if not key.isprintable() or not key.isascii():
        raise WhetError(f"the key in {variable} holds characters that no key has: set it again")
    return key


def check_url(url: str) -> str:
    """Return a server's address without its last slash.

    Raises
    ------
    WhetError
        If it is no http address, or holds a password. The message does not repeat the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise WhetError("--base-url is no http address: write http://HOST:PORT/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise WhetError(
            "--base-url holds a user, a password or a query, which would end up in files: put the "
            "key into the environment and name it with --key-env"
        )
    return url.rstrip("/")


class WebBackend:
    """A back end behind HTTP: what the providers' interfaces have in common.

    Parameters
    ----------
    model : str
        As the server names it.
    base_url : str, optional
        Address up to and including the version; default: the provider's own.
    key_env : str, optional
        Environment variable that holds the key. Default: the provider's own variable at the
        provider's own address, and no key elsewhere, so that no other server is sent it.
    ask : bool
        False for a plan: then no key is needed.
    budget : Budget, optional
    cache : AnswerCache, optional
        Remembers which words of a request the server does not know.
    max_tokens : int, optional
        Longest answer, instead of the task's; thinking counts.
    timeout : float
        Seconds until a call without a whole reply is given up.

    Examples
    --------
    >>> from whet.annotate.openai import OpenAIBackend
    >>> OpenAIBackend("m", base_url="http://localhost:8000/v1/", key_env=None).base_url
    'http://localhost:8000/v1'
    """

    name = ""
    path = ""
    at_once = 1
    #: The provider's own address, and the variable that holds its key.
    home = ""
    variable = ""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_env: str | None = None,
        ask: bool = True,
        budget: Budget | None = None,
        cache: AnswerCache | None = None,
        max_tokens: int | None = None,
        timeout: float = 120.0,
    ) -> None:
        require("aiohttp", f"the back end {self.name!r}")
        self.model = model
        self.base_url = check_url(self.home if base_url is None else base_url)
        self.key_env = key_env or (self.variable if self.base_url == self.home else None)
        self._key = api_key(self.key_env, needed=self.key_env is not None) if ask else ""
        self.tell: Callable[[str], None] = lambda said: None
        self.budget = budget or Budget()
        self.max_tokens = max_tokens
        self.timeout = timeout
        self._cache = cache
        self._fact = f"unknown words: {self.name} {self.base_url} {model}"
        known = cache.fact(self._fact) if cache is not None else None
        self.unknown: set[str] = set(json.loads(known)) if known else set()
        self._begin()
        #: Calls that were answered, and the seconds that they took together.
        self.answered, self.seconds = 0, 0.0

    def _begin(self) -> None:
        """Forget what belongs to one event loop: a back end may serve one run after another."""
        self._session: aiohttp.ClientSession | None = None
        self._first = asyncio.Lock()
        self._met, self._spread, self._waited = False, 0.0, 0
        self._stop: Stop | None = None
        self._failed_in_a_row = 0

    # --- what a provider's interface adds -------------------------------------------------------

    def headers(self, key: str) -> dict[str, str]:
        """Return the interface's headers; the key may be empty."""
        raise NotImplementedError

    def payload(self, request: Request, unknown: AbstractSet[str]) -> dict[str, Any]:
        """Return the body of a request without the words that the server does not know."""
        raise NotImplementedError

    def read(self, body: Mapping[str, Any]) -> Reply:
        """Return the reply that a body holds; raise KeyError or TypeError where it has none."""
        raise NotImplementedError

    def usage(self, body: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return prompt and completion tokens as the server counts them."""
        raise NotImplementedError

    # --- the protocol ---------------------------------------------------------------------------

    @property
    def route(self) -> dict[str, Any]:
        """What identifies the model and the way to it."""
        return {
            "backend": self.name,
            "base_url": self.base_url,
            "model": self.model,
            "max_tokens": self.max_tokens,
        }

    def longest(self, request: Request, unknown: AbstractSet[str]) -> int:
        """Return the limit of an answer in tokens."""
        del unknown
        return self.max_tokens or request.max_tokens

    async def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer each request, in order."""
        if len(requests) == 1:  # without a task of its own: each costs turns of the event loop
            return [await self._complete(requests[0])]
        return list(await asyncio.gather(*(self._complete(request) for request in requests)))

    async def _complete(self, request: Request) -> Reply:
        if not self._met:
            # The first call goes alone: it finds out what the server knows, and whether it lives.
            async with self._first:
                if not self._met and self._stop is None:
                    began = time.perf_counter()
                    reply = await self._ask(request)
                    self._met, self._spread = True, min(time.perf_counter() - began, LONGEST_SPREAD)
                    return reply
            # The others set out evenly spread (by the golden ratio, as their number is unknown):
            # where all replies come at once, each waits for all others to be handled, and again in
            # every later wave.
            self._waited += 1
            await asyncio.sleep(self._spread * (self._waited * GOLDEN % 1))
        return await self._ask(request)

    async def _ask(self, request: Request) -> Reply:
        if self._stop is not None:
            raise self._stop
        try:
            return await self._negotiate(request)
        except Stop as stop:
            self._stop = stop
            raise

    async def _negotiate(self, request: Request) -> Reply:
        """Ask, and again without each word that the server says it does not know.

        The words are given up for good only if that gets an answer: the server may have quoted
        a row's text.
        """
        unknown, trial = frozenset(self.unknown), None
        while True:
            body = await self.send(
                "POST",
                self.path,
                self.payload(request, unknown),
                self.bound(request, unknown),
                self.usage,
                attempts=None if trial is None else 2,
            )
            if isinstance(body, Refused):
                word = _unknown_word(body, unknown)
                # Some servers say no more than 500 where a chat template has no system role.
                silent = body.status == 500 and trial is None and not self._works()
                if word is None and silent and "system" not in unknown:
                    word, trial = "system", body
                if word is None:
                    return self._failure(trial or body)
                unknown |= {word}
                continue
            if not unknown <= self.unknown:
                self.unknown |= unknown
                if self._cache is not None:
                    self._cache.remember(self._fact, json.dumps(sorted(self.unknown)))
            try:
                reply = self.read(body)
            except (KeyError, TypeError, IndexError, AttributeError, ValueError):
                return self._failure(Refused(0, "the reply is none of this interface"))
            self._failed_in_a_row = 0
            return reply

    def bound(self, request: Request, unknown: AbstractSet[str] | None = None) -> tuple[int, int]:
        """Return the most tokens of a call: no token is shorter than a byte."""
        # Roles and the schema take tokens too.
        size = request.prompt_bytes + 16 * len(request.messages)
        schema = len(json.dumps(request.schema)) if request.schema else 0
        return size + schema, self.longest(request, self.unknown if unknown is None else unknown)

    def _failure(self, refused: Refused) -> Failure:
        """Return why a row has no answer, or stop where no row would have one."""
        status, said = refused.status, refused.message
        where = f"{self.model!r} at {self.base_url}"
        if status == 401 or (status == 403 and not self._works()):
            # What the server says here may hold a part of the key, so it is not shown.
            key = f"the key in {self.key_env}" if self.key_env else "--key-env, which names no key"
            raise Stop(f"{self.base_url} turned the key down (status {status}): check {key}")
        lost = status == 402 or (status == 404 and not self._works())
        if lost or refused.code == "insufficient_quota":
            raise Stop(f"{where} is not to be had (status {status}: {said}): mend this first")
        if 300 <= status < 400:
            raise Stop(f"{self.base_url} points elsewhere (status {status}): name that address")
        if refused.code == "content_filter" or "content_filter" in said:
            return Failure("filtered", said)
        self._failed_in_a_row += 1
        if 400 <= status < 500 and status not in _PASSING:
            if self._failed_in_a_row >= 4 * DEAD:
                raise Stop(f"{where} rejects the requests (status {status}: {said}): mend this")
            return Failure("rejected", f"status {status}: {said}")
        if self._failed_in_a_row >= DEAD or not (self._met or self.answered):
            raise Stop(
                f"{where} does not answer after {ATTEMPTS} attempts a call ({said}): "
                "see that the server runs, then run the same command again"
            )
        return Failure("unreachable", said)

    def _works(self) -> bool:
        """Whether this model has ever answered: then a refusal is about the row."""
        return bool(self.answered or (self._cache and self._cache.paid(self.route).answers))

    # --- HTTP -----------------------------------------------------------------------------------

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the caller bounds the calls in flight
                timeout=aiohttp.ClientTimeout(total=self.timeout),
                headers=self.headers(self._key),
                proxy=_proxy(self.base_url),  # trust_env would read passwords from .netrc, too
            )
        return self._session

    async def send(
        self,
        method: str,
        path: str,
        payload: Mapping[str, Any] | aiohttp.FormData | None,
        bound: tuple[int, int] = (0, 0),
        usage: Callable[[Mapping[str, Any]], tuple[int, int] | None] | None = None,
        *,
        lines: bool = False,
        attempts: int | None = None,
    ) -> dict[str, Any] | Refused:
        """Send a call, again where the trouble may pass, and book each attempt.

        Parameters
        ----------
        method, path : str
        payload : dict, aiohttp.FormData or None
            A dict goes as JSON.
        bound : (int, int)
            Most prompt and completion tokens.
        usage : callable, optional
            Reads the tokens from a body; without it the call is free and counts towards no limit.
        lines : bool
            The reply is JSON lines: returned as ``{"lines": [...]}``.
        attempts : int, optional
            Default: six.
        """
        refused = Refused(0, "it was never asked")
        attempts = ATTEMPTS if attempts is None else attempts
        for attempt in range(attempts):
            work = self._attempt(method, path, payload, lines=lines)
            body, refused, wait = await (
                work if usage is None else self._booked(work, bound, usage)
            )
            if body is not None:
                return body
            if not _may_pass(refused):
                return refused
            self.tell(f"no answer, attempt {attempt + 1} of {attempts}: {_said(refused)}")
            if wait is not None and wait > PATIENCE:
                return Refused(refused.status, f"{refused.message}; it asks to wait {wait:.0f} s")
            if attempt < attempts - 1:
                if wait is None:
                    wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
                    wait *= random.uniform(0.5, 1.5)  # noqa: S311 - so that calls do not march
                await asyncio.sleep(wait)
        return refused

    async def _booked(
        self,
        work: Coroutine[Any, Any, Attempt],
        bound: tuple[int, int],
        usage: Callable[[Mapping[str, Any]], tuple[int, int] | None],
    ) -> Attempt:
        """Make an attempt that the budget admits, and book what it took."""
        try:
            await self.budget.admit(*bound)
        except BaseException:
            work.close()
            raise
        began = time.perf_counter()
        try:
            body, refused, wait = await work
        except BaseException:  # cancelled: the provider may charge it all the same
            await self.budget.settle(bound, None)
            raise
        if body is None:
            await self.budget.settle(bound, None, free=refused.status >= 300)
        else:
            await self.budget.settle(bound, usage(body))
            self.answered += 1
            self.seconds += time.perf_counter() - began
        return body, refused, wait

    async def _attempt(
        self,
        method: str,
        path: str,
        payload: Mapping[str, Any] | aiohttp.FormData | None,
        *,
        lines: bool,
    ) -> Attempt:
        """Return the body of a good reply; else what was wrong, and the wait asked for."""
        import aiohttp

        try:
            async with self._open().request(
                method,
                self.base_url + path,
                data=payload if isinstance(payload, aiohttp.FormData) else None,
                json=None if isinstance(payload, aiohttp.FormData) else payload,
                allow_redirects=False,
            ) as response:
                content = await response.read()
                if self._key:  # a server may echo it
                    content = content.replace(self._key.encode(), b"***")
                status, headers = response.status, response.headers
        except TimeoutError:
            return None, Refused(0, f"no whole reply within {self.timeout:g} s"), None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return None, Refused(0, self._shown(f"{type(error).__name__}: {error}")), None
        try:
            if lines and status < 300:
                body = {"lines": [json.loads(line) for line in content.splitlines() if line]}
            else:
                body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if 200 <= status < 300:
            if isinstance(body, dict):
                return body, Refused(status, ""), None
            return None, Refused(0, "the reply is no whole JSON"), None
        return None, self._refused(status, body, content), _asked_wait(headers)

    def _refused(self, status: int, body: object, content: bytes) -> Refused:
        said: Any = body.get("error", body.get("detail", body)) if isinstance(body, dict) else None
        message, code = said, ""
        if isinstance(said, dict):
            message = said.get("message", said)
            parameter = said.get("param")
            code = str(said.get("code") or said.get("type") or "")
            if isinstance(parameter, str) and parameter not in str(message):
                message = f"{message} (parameter {parameter})"
        text = str(message) if said is not None else content.decode("utf-8", "replace")
        return Refused(status, self._shown(text), code)

    def _shown(self, text: str) -> str:
        """Return what a server said in one short line, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
        self._begin()


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date."""
    asked = headers.get("Retry-After")
    if not asked:
        return None
    try:
        seconds = float(asked)
        return max(0.0, seconds) if seconds == seconds else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address, if any."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def _said(refused: Refused) -> str:
    return f"status {refused.status}: {refused.message}" if refused.status else refused.message


def _may_pass(refused: Refused) -> bool:
    """Whether the trouble may be gone after a while."""
    if refused.code == "insufficient_quota" or refused.status == 501:
        return False
    return refused.status < 300 or refused.status in _PASSING or refused.status >= 500


def _unknown_word(refused: Refused, known: AbstractSet[str]) -> str | None:
    """Return the word of a request that a server says it does not know, if it names one."""
    if refused.status not in (400, 404, 422, 500, 501) or refused.code == "content_filter":
        return None
    said = refused.message.casefold()
    asked = (word for word, sign in OPTIONAL.items() if sign.search(said))
    return next((word for word in asked if word not in known), None)


def answer(
    text: str,
    used: tuple[int, int] | None,
    tokens: tuple[tuple[int, float], ...] | None = None,
) -> Answer:
    """Return an answer with the tokens that the server counted."""
    prompt, completion = used or (0, 0)
    # Half of a surrogate pair is no character, and no file can hold it.
    return Answer(text.encode("utf-8", "replace").decode(), prompt, completion, tokens)


def usage_of(*numbers: object) -> tuple[int, int] | None:
    """Return (prompt, completion) tokens; the last number is the completion's.

    None where one of them is no number of tokens: then nothing is known.
    """
    counted: list[int] = []
    for number in numbers:
        if not isinstance(number, int | float) or not 0 <= number < 1e9:
            return None
        counted.append(int(number))
    return sum(counted[:-1]), counted[-1]
