"""From what the command line names to a back end."""

from __future__ import annotations

from whet.annotate.anthropic import AnthropicBackend
from whet.annotate.budget import Budget
from whet.annotate.cache import AnswerCache
from whet.annotate.openai import OpenAIBackend
from whet.annotate.prices import Price, known_price, parse_price
from whet.annotate.protocol import Backend
from whet.annotate.task import Task
from whet.annotate.web import WebBackend
from whet.errors import WhetError, did_you_mean

_SERVERS: dict[str, type[WebBackend]] = {
    "openai": OpenAIBackend,
    "anthropic": AnthropicBackend,
}


def connect(
    name: str,
    model: str | None,
    *,
    base_url: str | None = None,
    key_env: str | None = None,
    budget: Budget | None = None,
    cache: AnswerCache | None = None,
    max_tokens: int | None = None,
    timeout: float = 120.0,
    ask: bool = True,
    task: Task | None = None,
    text: str = "text",
) -> Backend:
    """Return the back end that a name stands for.

    Parameters
    ----------
    name : str
        ``openai``, ``anthropic``, ``local`` or ``replay:FILE#COLUMN``.
    model : str or None
        Not needed for a replay.
    base_url : str, optional
        Address of a server; default: the provider's own.
    key_env : str, optional
        Environment variable that holds the key. The provider's own variable is read only for the
        provider's own address, so that no other server is sent its key.
    budget, cache, max_tokens, timeout
        As for :class:`whet.annotate.web.WebBackend`.
    ask : bool
        False for a plan: then no key is needed.
    task, text
        For a replay, as for :class:`whet.annotate.replay.ReplayBackend`.

    Raises
    ------
    WhetError
        If the name or the model is missing or unknown.

    Examples
    --------
    >>> connect("openai", "qwen3", base_url="http://localhost:8000/v1").route["model"]
    'qwen3'
    """
    if name.startswith("replay:"):
        from whet.annotate.replay import ReplayBackend

        if task is None:
            raise WhetError(f"--backend {name} needs the task that its labels belong to: name it")
        return ReplayBackend(name.removeprefix("replay:"), task, text)
    if name not in (*_SERVERS, "local"):
        known = [*_SERVERS, "local", "replay:FILE#COLUMN"]
        raise WhetError(f"--backend {name!r} is not known{did_you_mean(name, known)}: correct it")
    if not model:
        raise WhetError(f"--model is missing: name the model that --backend {name} should ask")
    if name == "local":
        from whet.annotate.local import LocalBackend

        if base_url is not None:
            raise WhetError(
                "--base-url does not go with --backend local, which asks no server: drop one"
            )
        return LocalBackend(model)
    return _SERVERS[name](
        model,
        base_url=base_url,
        key_env=key_env,
        ask=ask,
        budget=budget,
        cache=cache,
        max_tokens=max_tokens,
        timeout=timeout,
    )


def is_hosted(name: str, base_url: str | None) -> bool:
    """Whether a provider's own server is asked."""
    server = _SERVERS.get(name)
    return server is not None and (base_url is None or base_url.rstrip("/") == server.home)


def price_of(model: str | None, given: str | None, *, hosted: bool) -> Price | None:
    """Return what a model's tokens cost: as given, else from the table of known prices.

    Parameters
    ----------
    model : str or None
    given : str or None
        The flag ``--price IN,OUT``.
    hosted : bool
        Whether the provider's own server is asked; other servers have prices of their own.
    """
    if given is not None:
        return parse_price(given)
    return known_price(model) if hosted and model else None
