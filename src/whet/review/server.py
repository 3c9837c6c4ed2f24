"""The page of ``whet label``: a server for one person's browser, on this machine only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError
from whet.extras import require

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from whet.review.session import Item, Session

#: Most bytes of a request's body, and most characters of what it may hold.
MOST_BYTES, MOST_NAME, MOST_NOTE, MOST_CLASS = 64 * 1024, 80, 2000, 10_000
#: Longest time on one row, a day, in seconds.
MOST_SECONDS = 86_400

#: Sent with every answer. The page needs nothing from elsewhere, is framed by nobody, and its
#: address, which holds the token, is told to nobody.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

#: Files of the page, and what they are.
ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    "text.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class _TooLarge(WhetError):
    """A request is longer than the page would ever send."""


class _RowsLeft(WhetError):
    """An annotator with rows left asks for what others have said."""


#: What each error is in HTTP; any other of whet's is a bad request.
STATUS: dict[type[WhetError], int] = {_TooLarge: 413, _RowsLeft: 403}


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Act = Callable[["Session", dict[str, Any]], dict[str, Any]]


class Guard:
    """Lets through who came by the printed address, and puts the headers on every answer.

    A page of another site can make this browser send requests here, also under a name of its own
    that it lets point to 127.0.0.1. Such requests have another ``Host`` or another ``Origin``, and
    none knows the token.

    Parameters
    ----------
    app : ASGI application
        Sees the path without the token.
    token : str
        First part of every path.
    port : int
        Port of the server, 1 to 65535.

    Examples
    --------
    >>> guard = Guard(app=None, token="secret", port=8000)
    >>> guard.refusal({"host": "127.0.0.1:8000"}, "/secret/page.css") is None
    True
    >>> guard.refusal({"host": "evil.example:8000"}, "/secret/page.css")
    (403, 'this page is served to this machine only')
    >>> guard.refusal({"host": "127.0.0.1:8000"}, "/guess/page.css")
    (404, 'not found: open the address that the command has printed')
    """

    def __init__(self, app: Any, token: str, port: int) -> None:  # noqa: ANN401
        self.app, self.token = app, token
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    def refusal(self, headers: dict[str, str], path: str) -> tuple[int, str] | None:
        """Return status and reason if a request is refused, else None.

        Parameters
        ----------
        headers : dict of str to str
            Names in small letters.
        path : str
            Begins with a slash.
        """
        host = headers.get("host", "")
        if host not in self.hosts or headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "this page is served to this machine only"
        given, slash, _ = path.removeprefix("/").partition("/")
        # in constant time, so that nothing is learned from how long a refusal takes
        known = hmac.compare_digest(given.encode(errors="replace"), self.token.encode())
        if not (known and slash):
            return 404, "not found: open the address that the command has printed"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refused = self.refusal(headers, scope["path"])
        if refused:
            await _reply({"error": refused[1]}, refused[0])(scope, receive, send_guarded)
        else:
            inner = {**scope, "path": scope["path"][1 + len(self.token) :]}
            await self.app(inner, receive, send_guarded)


def _reply(content: dict[str, Any], status: int = 200) -> Response:
    """Return an answer in JSON; ASCII only, since a text may hold half a surrogate pair."""
    from starlette.responses import Response

    body = json.dumps(content, allow_nan=False)
    return Response(body, status, media_type="application/json")


def _text(body: dict[str, Any], name: str, most: int) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise WhetError(f"{name!r} must be a text of at most {most:,} characters")
    return value


def _row(body: dict[str, Any]) -> int:
    row = body.get("row")
    if not isinstance(row, int) or isinstance(row, bool):
        raise WhetError("'row' must be the number of a row")
    return row


def _page_item(session: Session, item: Item | None) -> dict[str, Any] | None:
    """Return a row as the page gets it: the annotator's label only if it was asked for."""
    if item is None:
        return None
    return asdict(item) | {"pseudo": item.pseudo if session.show_pseudo else None}


def _next(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    who = _text(body, "who", MOST_NAME)
    return {"item": _page_item(session, session.next(who)), "progress": session.progress(who)}


def _answer(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    value, seconds = body.get("value"), body.get("seconds")
    if value is not None:
        value = _text(body, "value", MOST_CLASS)
    if not isinstance(seconds, int | float) or not 0 <= seconds < MOST_SECONDS:
        raise WhetError(f"'seconds' must be a number from 0 to {MOST_SECONDS:,}")
    note = _text(body, "note", MOST_NOTE)
    session.answer(_text(body, "who", MOST_NAME), _row(body), value, float(seconds), note)
    return _next(session, body)


def _skip(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    session.skip(_text(body, "who", MOST_NAME), _row(body))
    return _next(session, body)


def _undo(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    """Take the last answer back; ``item`` is null where there is none."""
    who = _text(body, "who", MOST_NAME)
    item = session.undo(who)
    return {"item": _page_item(session, item), "progress": session.progress(who)}


def _panel(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    """Return the estimates; ``agreement`` is null for who has rows left."""
    who = _text(body, "who", MOST_NAME)
    progress = session.progress(who)  # first, so that no estimate is of fewer answers than it says
    agreement = session.agreement() if session.done(who) else None
    return {"progress": progress, "panel": session.panel(who), "agreement": agreement}


def _who_is_done(session: Session, body: dict[str, Any]) -> str:
    """Return the annotator's name, if what others said can no longer change an own answer."""
    who = _text(body, "who", MOST_NAME)
    if not session.done(who):
        raise _RowsLeft(f"{who!r} has rows left: answer them before you see what others have said")
    return who


def _disagreements(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    _who_is_done(session, body)
    return {"rows": session.disagreements()}


def _settle(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    who = _who_is_done(session, body)
    session.settle(_row(body), _text(body, "value", MOST_CLASS), who)
    return {"rows": session.disagreements()}


def _unsettle(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    _who_is_done(session, body)
    session.unsettle(_row(body))
    return {"rows": session.disagreements()}


def _write(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    return {"path": str(session.write()), "command": session.next_step()}


#: What the page may ask for by POST; each gets the request's JSON and returns the answer's.
ACTS: dict[str, Act] = {
    "next": _next,
    "answer": _answer,
    "skip": _skip,
    "undo": _undo,
    "panel": _panel,
    "disagreements": _disagreements,
    "settle": _settle,
    "unsettle": _unsettle,
    "write": _write,
}


async def _read_body(request: Request) -> dict[str, Any]:
    """Return a request's JSON object, or raise WhetError; never holds more than the limit."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise WhetError("the request's content type must be application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise _TooLarge(f"a request may have at most {MOST_BYTES:,} bytes; shorten the note")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WhetError("the request is not JSON") from error
    if not isinstance(body, dict):
        raise WhetError("the request must be an object of JSON")
    return body


def application(session: Session, finish: Callable[[], None]) -> Starlette:
    """Return the page and its interface, to be put behind a :class:`Guard`.

    Parameters
    ----------
    session : Session
        What is labelled; its methods run in threads.
    finish : callable
        Called, after its answer is sent, when the page asks for the end.
    """
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    def about(request: Request) -> Response:
        return _reply(
            {
                "kind": session.kind,
                "classes": session.classes,
                "show_pseudo": session.show_pseudo,
                "seconds": session.seconds,
                "title": session.title,
                "criterion": session.criterion,
            }
        )

    def asset(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in ASSETS:
            return _reply({"error": "not found"}, 404)
        data = resources.files("whet.review").joinpath("page", name).read_bytes()
        return Response(data, media_type=ASSETS[name])

    async def act(request: Request) -> Response:
        try:
            work = ACTS.get(request.path_params["act"])
            if work is None:
                return _reply({"error": "not found"}, 404)
            return _reply(await run_in_threadpool(work, session, await _read_body(request)))
        except WhetError as error:
            return _reply({"error": str(error)}, STATUS.get(type(error), 400))
        except OSError as error:  # the disk is full, the folder is gone
            return _reply({"error": f"could not be written: {error.strerror or error}"}, 507)

    async def end(request: Request) -> Response:
        response = _reply({"ended": True})
        response.background = BackgroundTask(finish)
        return response

    app = Starlette(
        routes=[
            Route("/api/about", about, methods=["GET"]),
            Route("/api/finish", end, methods=["POST"]),
            Route("/api/{act}", act, methods=["POST"]),
            Route("/", asset, methods=["GET"]),
            Route("/{name}", asset, methods=["GET"]),
        ]
    )
    app.router.redirect_slashes = False  # a redirect would lack the token
    return app


def listen(port: int | None) -> socket.socket:
    """Return a socket that listens on this machine only.

    Parameters
    ----------
    port : int or None
        1 to 65535; None: any free one.

    Raises
    ------
    WhetError
        If the port is not a port, is taken, or may not be used.

    Examples
    --------
    >>> with listen(None) as free:
    ...     free.getsockname()[0]
    '127.0.0.1'
    """
    if port is not None and not 1 <= port <= 65535:
        raise WhetError(f"--port {port} is not a port: give one from 1 to 65535")
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # else a port cannot be used for a minute after a server on it has ended
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port or 0))
        sock.listen()
    except OSError as error:
        sock.close()
        why = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        )
        raise WhetError(f"--port {port} {why}: give another, or none for any free one") from error
    return sock


@contextlib.contextmanager
def _address(path: Path, port: int | None) -> Iterator[tuple[socket.socket, str]]:
    """Give a listening socket and the token: those of the last start, where that can be.

    A page that is still open then goes on after the command was started again, and sends the
    answer that it has kept. Who serves holds a lock on the file: a second server of the session
    has an address of its own and keeps none, so that the page of the first one is not lost. The
    file is as private as the session beside it.
    """
    with contextlib.ExitStack() as stack:
        sock = None if port is None else stack.enter_context(listen(port))  # may be refused
        file = _locked(path)
        if file is not None:
            stack.callback(os.close, file)  # the lock ends with it, or with the process
        last, token = _last_address(file)
        if sock is None:
            sock = stack.enter_context(_listen_again(last))
        if file is not None:
            with contextlib.suppress(OSError):  # then the next start has another address
                kept = json.dumps({"port": sock.getsockname()[1], "token": token})
                os.ftruncate(file, 0)
                os.pwrite(file, kept.encode(), 0)
        yield sock, token


def _listen_again(last: int | None) -> socket.socket:
    try:
        return listen(last)
    except WhetError:  # something else is there now
        return listen(None)


def _locked(path: Path) -> int | None:
    """Open a file for this process alone; None if another one has it, or if it cannot be."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(file, 0o600)
    except OSError:
        os.close(file)
        return None
    return file


def _last_address(file: int | None) -> tuple[int | None, str]:
    """Return port and token of the last start, or None and a new token."""
    try:
        kept = json.loads(b"" if file is None else os.pread(file, 1000, 0))
        last, token = kept["port"], str(kept["token"])
        if last not in range(1, 65536) or not re.fullmatch(r"[\w-]{32}", token, re.ASCII):
            raise ValueError("not what was written above")
    except (OSError, ValueError, KeyError, TypeError):  # the first start, or damaged
        return None, secrets.token_urlsafe(24)
    return last, token


def _has_window() -> bool:
    """Whether a browser would open beside the terminal, and not in it."""
    shown = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, shown))


def serve(session: Session, *, port: int | None, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C, or until it is ended on the page.

    Parameters
    ----------
    session : Session
        What is labelled. Beside its file, ``gold.label.address`` keeps port and token for the
        next start, readable by the owner only; a second server of the session keeps nothing.
    port : int or None
        Port on 127.0.0.1; None: that of the last start if it is free, else any free one.
    browser : bool
        Open the page in the browser of this machine, if it has a display. Other users of the
        machine may see the address then, in the list of processes.
    say : callable
        Gets the address, a line of text.

    Raises
    ------
    WhetError
        If the extra is missing or the port cannot be used.
    """
    for module in ("starlette", "uvicorn"):
        require(module, "the page of 'whet label'")
    import uvicorn

    def finish() -> None:
        server.should_exit = True

    with _address(session.path.with_suffix(".address"), port) as (sock, token):
        own_port = sock.getsockname()[1]
        config = uvicorn.Config(
            Guard(application(session, finish), token, own_port),
            access_log=False,  # it would hold the token
            log_config=None,
            log_level=logging.ERROR,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        address = f"http://127.0.0.1:{own_port}/{token}/"
        say(f"Label at {address}")
        if browser and _has_window():  # in a thread, since some browsers keep the caller waiting
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end
            server.run(sockets=[sock])
