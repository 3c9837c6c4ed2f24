"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, OpenRouter, ..."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from whet.annotate.protocol import Failure, Reply, Request
from whet.annotate.web import WebBackend, answer, usage_of

#: Where the provider itself is.
OPENAI_URL = "https://api.openai.com/v1"
#: Models that want ``max_completion_tokens`` think before they answer, and it counts the thinking.
THINKING_TOKENS = 4096


class OpenAIBackend(WebBackend):
    """Chat completions of any OpenAI-compatible server.

    The answer is constrained by a JSON schema and log-probabilities are asked for; what the server
    says it does not know (``response_format``, ``logprobs``, ``temperature``, ``max_tokens``, the
    system role) is left out from then on, and remembered in the cache.

    Parameters
    ----------
    model, base_url, key_env, ask, budget, cache, max_tokens, timeout
        As for :class:`whet.annotate.web.WebBackend`.

    Raises
    ------
    WhetError
        If the key is missing or the address is none.

    Examples
    --------
    >>> backend = OpenAIBackend("qwen3", base_url="http://localhost:8000/v1")
    >>> backend.route["model"]
    'qwen3'
    """

    name = "openai"
    path = "/chat/completions"
    home = OPENAI_URL
    variable = "OPENAI_API_KEY"

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def longest(self, request: Request, unknown: AbstractSet[str]) -> int:
        """Return the limit of an answer in tokens, thinking included."""
        thinking = THINKING_TOKENS if "max_tokens" in unknown else 0
        return self.max_tokens or request.max_tokens + thinking

    def payload(self, request: Request, unknown: AbstractSet[str]) -> dict[str, Any]:
        """Return the body of a request, without the words that the server does not know."""
        messages = [{"role": role, "content": content} for role, content in request.messages]
        if "system" in unknown and messages[0]["role"] == "system":
            system = messages.pop(0)["content"]
            messages[0] = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        limit = "max_completion_tokens" if "max_tokens" in unknown else "max_tokens"
        body[limit] = self.longest(request, unknown)
        if "temperature" not in unknown:
            body["temperature"] = request.temperature
        if request.schema is not None:
            if "response_format" not in unknown:
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": request.schema},
                }
            if "logprobs" not in unknown:
                body["logprobs"] = True
        return body

    def usage(self, body: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return prompt and completion tokens as the server counts them."""
        used = body.get("usage")
        if not isinstance(used, dict):
            return None
        return usage_of(used.get("prompt_tokens"), used.get("completion_tokens"))

    def read(self, body: Mapping[str, Any]) -> Reply:
        """Return the first choice; the thinking that servers put beside it is not read."""
        choice = body["choices"][0]
        reason, message = choice.get("finish_reason"), choice["message"]
        if reason == "length":
            return Failure("truncated", "the answer is longer than allowed: raise --max-tokens")
        if reason == "content_filter":
            return Failure("filtered", "by the server's content filter")
        if message.get("refusal"):
            return Failure("filtered", "the model refuses to answer")
        text = message.get("content")
        if not isinstance(text, str):
            return Failure("rejected", "the reply holds no text")
        return answer(text, self.usage(body), _tokens(choice.get("logprobs"), text))


def _tokens(
    logprobs: Any,  # noqa: ANN401 - JSON
    text: str,
) -> tuple[tuple[int, float], ...] | None:
    """Return byte length and log-probability of each token of the text.

    None where the server gives none, or those of another text, such as the model's thinking.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    try:
        pieces = [
            bytes(t["bytes"]) if t.get("bytes") is not None else t["token"].encode()
            for t in content or []
        ]
        chances = [round(float(t["logprob"]), 6) for t in content or []]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not pieces or not b"".join(pieces).startswith(text.encode("utf-8", "replace")):
        return None
    # Rounding may lift a certain token above 0 by a hair.
    if not all(math.isfinite(p) and p < 1e-3 for p in chances):
        return None
    return tuple((len(piece), p) for piece, p in zip(pieces, chances, strict=True))
