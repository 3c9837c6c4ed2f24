"""Text from data, made safe to look at: nothing in it can hide, reorder or run."""

from __future__ import annotations

#: Joiners that emoji and several scripts need, a soft hyphen, and what breaks lines.
_HARMLESS = frozenset("\u200c\u200d\u00ad\n\t")


def visible(text: str) -> str:
    r"""Return text with every control character, mark of direction and the like written out.

    Examples
    --------
    >>> visible("a\x00b\u202ec")
    'a[U+0000]b[U+202E]c'
    >>> visible("two\nlines")
    'two\nlines'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _HARMLESS else " " if c.isspace() else f"[U+{ord(c):04X}]"
        for c in text.replace("\r\n", "\n")
    )


def one_line(text: str, most: int) -> str:
    r"""Return text on one line, cut to ``most`` characters.

    Examples
    --------
    >>> one_line("some  words\non two lines", 16)
    'some words on t…'
    """
    line = " ".join(visible(text[: 4 * most]).split())
    whole = len(line) <= most and len(text) <= 4 * most
    return line if whole else line[: most - 1] + "…"
