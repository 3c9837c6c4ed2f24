"""What hosted models cost: a small dated table, and prices that the user gives."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from whet.errors import WhetError

#: "openai/" before a model's name, also more than one.
_PROVIDER = re.compile(r"(?:\w[\w.-]*/)+")
#: What may follow a known name: a day or a snapshot's number. One or two digits name another model:
#: claude-opus-5-5 is no snapshot of claude-opus-5.
_SNAPSHOT = re.compile(r"[-@:](?:latest|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{3,8})")


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars per million tokens.

    Attributes
    ----------
    input : float
        Price of a million tokens of the prompt.
    output : float
        Price of a million tokens of the answer, with what the model thinks.
    checked : str or None
        Day to which the sources of the price speak, as YYYY-MM-DD; None for a user's own price.

    Examples
    --------
    >>> price = Price(input=0.25, output=2.0)
    >>> f"{price.cost(prompt_tokens=200_000, completion_tokens=10_000):.2f}"
    '0.07'
    """

    input: float
    output: float
    checked: str | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost, in US dollars."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


@functools.cache
def _table() -> dict[str, Any]:
    file = resources.files("whet.annotate") / "prices.yaml"
    table: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return table


def batch_discount() -> float:
    """Return the share of the price that providers take off for batches.

    Examples
    --------
    >>> batch_discount()
    0.5
    """
    return float(_table()["batch_discount"])


def known_price(model: str) -> Price | None:
    """Return the price of a model from the table that comes with whet, or None.

    A name counts with a provider before it and with a snapshot's day or number behind it. Any other
    ending may name another model with another price, and has none.

    Parameters
    ----------
    model : str
        Name as the provider's interface takes it.

    Returns
    -------
    Price or None
        None where the table does not hold the model: then nothing is known about its price.

    Examples
    --------
    >>> known_price("gpt-4o-mini-2024-07-18") == known_price("openai/gpt-4o-mini")
    True
    >>> known_price("gpt-4o-mini-audio-preview") is None
    True
    """
    models = _table()["models"]
    prefix = _PROVIDER.match(model)
    bare = model[prefix.end() :] if prefix else model
    for name in sorted(models, key=len, reverse=True):
        if bare == name or (bare.startswith(name) and _SNAPSHOT.fullmatch(bare.removeprefix(name))):
            entry = models[name]
            checked = entry.get("checked", _table()["checked"])
            return Price(float(entry["input"]), float(entry["output"]), str(checked))
    return None


def parse_price(text: str) -> Price:
    """Return the price that a user gives as ``IN,OUT``.

    Parameters
    ----------
    text : str
        Two numbers with a comma between them: US dollars per million tokens of input and of output.

    Raises
    ------
    WhetError
        If these are not two finite numbers of at least 0.

    Examples
    --------
    >>> parse_price("0.15,0.60")
    Price(input=0.15, output=0.6, checked=None)
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(math.isfinite(n) and n >= 0 for n in numbers):
        shown = repr(text if len(text) <= 40 else text[:40] + "...")
        raise WhetError(
            f"the price {shown} is not two numbers of at least 0 with a comma between them: give "
            "US dollars per million tokens of input and of output, such as 0.15,0.60"
        )
    return Price(numbers[0], numbers[1])
