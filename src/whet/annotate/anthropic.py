"""Anthropic's messages interface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from whet.annotate.protocol import Failure, Reply, Request
from whet.annotate.web import WebBackend, answer

#: Where the provider itself is.
ANTHROPIC_URL = "https://api.anthropic.com/v1"
_VERSION = "2023-06-01"


class AnthropicBackend(WebBackend):
    """The messages interface; the schema is the input of a tool that the model must use.

    It returns no log-probabilities: confidence comes from the agreement of samples.

    Parameters
    ----------
    model, base_url, key_env, budget, cache, max_tokens, timeout
        As for :class:`whet.annotate.web.WebBackend`.

    Examples
    --------
    >>> backend = AnthropicBackend("m", base_url="http://localhost:1/v1", key_env=None)
    >>> backend.payload(Request((("system", "s"), ("user", "u")), max_tokens=5))["system"]
    's'
    """

    name = "anthropic"
    path = "/messages"

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"x-api-key": key, "anthropic-version": _VERSION}

    def payload(self, request: Request) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.longest(request),
            "messages": [
                {"role": role, "content": content}
                for role, content in request.messages
                if role != "system"
            ],
        }
        system = "\n\n".join(content for role, content in request.messages if role == "system")
        if system:
            body["system"] = system
        if "temperature" not in self.unknown:
            body["temperature"] = request.temperature
        if request.schema is not None and "tool_choice" not in self.unknown:
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
        prompt = sum(
            int(used.get(name) or 0)
            for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        )
        return prompt, int(used.get("output_tokens") or 0)

    def read(self, body: Mapping[str, Any]) -> Reply:
        """Return the tool's input or the text; thinking blocks are not read."""
        reason = body.get("stop_reason")
        if reason == "max_tokens":
            return Failure("truncated", "the answer is longer than allowed: raise --max-tokens")
        if reason == "refusal":
            return Failure("filtered", "the model refuses to answer")
        blocks = body["content"]
        given = [block["input"] for block in blocks if block.get("type") == "tool_use"]
        if given:
            return answer(json.dumps(given[0], ensure_ascii=False), self.usage(body))
        text = "".join(block["text"] for block in blocks if block.get("type") == "text")
        return answer(text, self.usage(body))
