"""A server that speaks two interfaces of language models, and goes wrong as it is told to.

It labels a text ``spam`` where it holds the word WIN, else ``ham``, and counts tokens in a way of
its own.
"""

import asyncio
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_ROW = re.compile(r"Row (\d+)\n<text>\n(.*?)\n</text>\ncheck (\w{4})", re.DOTALL)
_TEXT = re.compile(r"<text>\n(.*?)\n</text>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A request as it arrived.

    Attributes
    ----------
    number : int
        From 0, in the order of arrival.
    nth : int
        How often the same body arrived before.
    text : str
        The text to be labelled; of a packed request, all of them.
    again : bool
        Whether an answer was turned down before.
    """

    number: int
    nth: int
    when: float
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    text: str
    rows: list[tuple[int, str, str]]
    again: bool


@dataclass
class Say:
    """What to reply; all that is left out is as it should be.

    Attributes
    ----------
    text, label : str
        The answer, or only its label.
    status, message, code, headers
        Of an error; ``echo`` puts the request's headers into its message.
    delay, drip : float
        Seconds before the reply, and between any two bytes of it.
    cut : int
        Bytes of the body to send as if they were the whole.
    drop : int
        Bytes of the body after which the connection is dropped; -1 for before the status.
    raw : bytes
        The body.
    finish, refusal, usage, logprobs
        As in the reply of OpenAI; ``logprobs`` holds (bytes, log-probability) of each token.
    rows : callable
        Changes the rows of a packed answer.
    """

    text: str | None = None
    label: str | None = None
    status: int = 200
    message: str = "something is wrong"
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    echo: bool = False
    delay: float = 0.0
    drip: float = 0.0
    cut: int | None = None
    drop: int | None = None
    raw: bytes | None = None
    finish: str | None = None
    refusal: str | None = None
    usage: Any = "counted"
    logprobs: Any = "even"
    rows: Any = None


def truth(text):
    """Return the label that this server gives."""
    return "spam" if "WIN" in text else "ham"


def tokens(text):
    """Count tokens in a way of one's own."""
    return round(1.3 * len(text.split())) + 1


def split_bytes(text, size=3, logprob=-0.01):
    """Return a text as tokens of so many bytes, whatever characters they cut."""
    whole = text.encode("utf-8", "replace")
    return [(whole[i : i + size], logprob) for i in range(0, len(whole), size)]


class LLMServer:
    """Runs in a thread of its own, on any free port.

    Parameters
    ----------
    script : None, list or callable
        What to say instead of the right answer: to each call in order, or a function of the call;
        None for a good answer.
    """

    def __init__(self, script=None):
        self.script = script
        self.calls = []
        self.in_flight = self.most_in_flight = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.port = 0
        self._bodies = Counter()
        self._lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start, on the same port as before."""
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        def run():
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._begin())
            ready.set()
            self._loop.run_forever()
            self._loop.run_until_complete(self._runner.cleanup())
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _begin(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handle_signals=False, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def wait_for(self, count, seconds=20.0):
        """Wait until so many calls have arrived."""
        end = time.monotonic() + seconds
        while len(self.calls) < count and time.monotonic() < end:
            time.sleep(0.005)
        return len(self.calls) >= count

    async def _handle(self, request):
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            call = self._record(request, await request.read())
            say = self._say(call)
            if say.delay:
                await asyncio.sleep(say.delay)
            return await self._reply(request, call, say)
        finally:
            self.in_flight -= 1

    def _record(self, request, content):
        body = json.loads(content) if content else {}
        users = [m["content"] for m in body.get("messages", []) if m["role"] == "user"]
        asked = next((u for u in reversed(users) if "<text>" in u), "")
        found = _TEXT.findall(asked)
        with self._lock:
            call = Call(
                len(self.calls),
                self._bodies[content],
                time.monotonic(),
                request.method,
                request.path,
                dict(request.headers),
                body,
                "\n".join(found),
                [(int(n), text, word) for n, text, word in _ROW.findall(asked)],
                bool(users) and "<text>" not in users[-1],
            )
            self._bodies[content] += 1
            self.calls.append(call)
        return call

    def _say(self, call):
        if callable(self.script):
            return self.script(call) or Say()
        if self.script is not None and call.number < len(self.script):
            return self.script[call.number] or Say()
        return Say()

    async def _reply(self, request, call, say):
        if say.drop == -1:
            request.transport.abort()
            raise asyncio.CancelledError
        content = self._content(call, say)[: say.cut]
        reply = web.StreamResponse(status=say.status, headers=say.headers)
        reply.content_type = "application/json"
        reply.content_length = len(content)
        await reply.prepare(request)
        if say.drop is not None:
            await reply.write(content[: say.drop])
            request.transport.close()  # what was written still arrives
            raise asyncio.CancelledError
        if say.drip:
            for i in range(len(content)):
                await reply.write(content[i : i + 1])
                await asyncio.sleep(say.drip)
        else:
            await reply.write(content)
        await reply.write_eof()
        return reply

    def _content(self, call, say):
        if say.raw is not None:
            return say.raw
        if say.status != 200:
            message = say.message
            if say.echo:
                message = f"{message} {dict(call.headers)}"
            return json.dumps({"error": {"message": message, "code": say.code}}).encode()
        anthropic = call.path.endswith("/messages")
        body = (self._messages if anthropic else self._completion)(call, say)
        return json.dumps(body).encode()

    def _answer(self, call, say):
        if say.text is not None:
            return say.text
        if call.rows:
            rows = [{"row": n, "check": word, "label": truth(t)} for n, t, word in call.rows]
            return json.dumps({"rows": say.rows(rows) if say.rows else rows})
        label = truth(call.text) if say.label is None else say.label
        return json.dumps({"label": label}, ensure_ascii=False)

    def _count(self, call, answer):
        said = [m["content"] for m in call.body["messages"]] + [call.body.get("system", "")]
        used = sum(map(tokens, said)), tokens(answer)
        self.prompt_tokens += used[0]
        self.completion_tokens += used[1]
        return used

    def _completion(self, call, say):
        answer = self._answer(call, say)
        prompt, completion = self._count(call, answer)
        message = {"role": "assistant", "content": answer}
        if say.refusal:
            message |= {"content": None, "refusal": say.refusal}
        choice = {"index": 0, "message": message, "finish_reason": say.finish or "stop"}
        if call.body.get("logprobs") and say.logprobs is not None:
            pieces = split_bytes(answer) if say.logprobs == "even" else say.logprobs
            choice["logprobs"] = {
                "content": [
                    {"token": b.decode("utf-8", "replace"), "bytes": list(b), "logprob": p}
                    for b, p in pieces
                ]
            }
        body = {"id": "x", "object": "chat.completion", "choices": [choice]}
        if say.usage == "counted":
            body["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion}
        elif say.usage is not None:
            body["usage"] = say.usage
        return body

    def _messages(self, call, say):
        answer = self._answer(call, say)
        prompt, completion = self._count(call, answer)
        block = {"type": "text", "text": answer}
        if call.body.get("tool_choice") and say.text is None:
            name = call.body["tool_choice"]["name"]
            block = {"type": "tool_use", "id": "x", "name": name, "input": json.loads(answer)}
        reason = say.finish or ("tool_use" if block["type"] == "tool_use" else "end_turn")
        body = {"id": "x", "type": "message", "content": [block], "stop_reason": reason}
        if say.usage == "counted":
            body["usage"] = {"input_tokens": prompt, "output_tokens": completion}
        elif say.usage is not None:
            body["usage"] = say.usage
        return body
