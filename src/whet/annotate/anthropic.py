"""Anthropic's messages interface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from whet.annotate.protocol import Failure, Reply, Request
from whet.annotate.web import WebBackend, answer, usage_of

#: Where the provider itself is.
ANTHROPIC_URL = "https://api.anthropic.com/v1"
_VERSION = "2023-06-01"


class AnthropicBackend(WebBackend):
    """The messages interface; the schema is the input of a tool that the model must use.

    It returns no log-probabilities: confidence comes from the agreement of samples.

    Parameters
    ----------
    model, base_url, key_env, ask, budget, cache, max_tokens, timeout
        As for :class:`whet.annotate.web.WebBackend`.

    Examples
    --------
    >>> backend = AnthropicBackend("m", base_url="http://localhost:1/v1", key_env=None)
    >>> request = Request((("system", "s"), ("user", "u")), max_tokens=5)
    >>> backend.payload(request, frozenset())["system"]
    's'
    """

    name = "anthropic"
    path = "/messages"
    home = ANTHROPIC_URL
    variable = "ANTHROPIC_API_KEY"

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"anthropic-version": _VERSION} | ({"x-api-key": key} if key else {})

    def payload(self, request: Request, unknown: AbstractSet[str]) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.longest(request, unknown),
            "messages": [
                {"role": role, "content": content}
                for role, content in request.messages
                if role != "system"
            ],
        }
        system = "\n\n".join(content for role, content in request.messages if role == "system")
        if system:
            body["system"] = system
        if "temperature" not in unknown:
            body["temperature"] = request.temperature
        if request.schema is not None and "tool_choice" not in unknown:
            body["tools"] = [
                {
                    "name": "answer",
                    "description": "Give the answer.",
                    "input_schema": request.schema,
                }
            ]
            body["tool_choice"] = {"type": "tool", "name": "answer"}
        return body

    def usage(self, body: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return prompt and completion tokens as the server counts them."""
        used = body.get("usage")
        if not isinstance(used, dict):
            return None
        prompt = [used.get("input_tokens")]
        prompt += [used.get(f"cache_{kind}_input_tokens") or 0 for kind in ("creation", "read")]
        return usage_of(*prompt, used.get("output_tokens"))

    def read(self, body: Mapping[str, Any]) -> Reply:
        """Return the tool's input or the text; thinking blocks are not read."""
        reason = body.get("stop_reason")
        if reason in ("max_tokens", "model_context_window_exceeded"):
            return Failure("truncated", "the answer is longer than allowed: raise --max-tokens")
        if reason == "refusal":
            return Failure("filtered", "the model refuses to answer")
        blocks = body["content"]
        given = [block["input"] for block in blocks if block.get("type") == "tool_use"]
        if given:
            return answer(json.dumps(given[0], ensure_ascii=False), self.usage(body))
        text = "".join(block["text"] for block in blocks if block.get("type") == "text")
        return answer(text, self.usage(body))
