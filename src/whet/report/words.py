"""Texts as reports keep them: their beginnings, and which words of two are the same."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Any

#: Characters and lines of a text that are compared and kept.
MOST_CHARACTERS, MOST_LINES = 1_000, 30
#: A word, with the spaces behind it.
_WORD = re.compile(r"\s*\S+\s*|\s+")


def compare_words(old: str, new: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the beginnings of two texts, word by word.

    Parameters
    ----------
    old, new : str

    Returns
    -------
    (dict, dict)
        Of each text ``characters``, how many it has; ``shown``, how many of them are compared; and
        ``parts``, those in order: ``text``, and whether it is ``changed``.

    Examples
    --------
    >>> old, new = compare_words("4 5", "4 6")
    >>> [part["text"] for part in new["parts"] if part["changed"]]
    ['6']
    """
    words = [_WORD.findall(_beginning(text)) for text in (old, new)]
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    bare = [[word.strip() for word in side] for side in words]
    matcher = SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    for tag, from_old, to_old, from_new, to_new in matcher.get_opcodes():
        for side, start, end in ((0, from_old, to_old), (1, from_new, to_new)):
            if start < end:
                text = "".join(words[side][start:end])
                word = text.rstrip()  # else the mark of a change runs on into the space behind
                for part, changed in ((word, tag != "equal"), (text[len(word) :], False)):
                    if part:
                        parts[side].append({"text": part, "changed": changed})
    first, second = (
        {
            "characters": len(text),
            "shown": sum(len(part["text"]) for part in mine),
            "parts": mine,
        }
        for text, mine in zip((old, new), parts, strict=True)
    )
    return first, second


def cut(text: str) -> dict[str, Any]:
    """Return the beginning of a text, ``text``, and how many ``characters`` the whole has.

    Examples
    --------
    >>> cut("a" * 1_200)["characters"], len(cut("a" * 1_200)["text"])
    (1200, 1000)
    """
    return {"text": _beginning(text), "characters": len(text)}


def _beginning(text: str) -> str:
    return "".join(text[:MOST_CHARACTERS].splitlines(keepends=True)[:MOST_LINES])
