"""Labelling on a machine without a browser: a row, a line of input, the next row."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from whet.errors import WhetError
from whet.review.session import Item, Session

#: Characters of a text that are shown at first.
_LONGEST = 4000
#: Joiners that scripts and emoji need, though Unicode counts them among the format characters.
_JOINERS = "\u200c\u200d"
_HELP = "u undo   s skip   ? unsure   n TEXT note   m more of a long text   q quit"


def inert(text: str) -> str:
    r"""Return text with which data cannot move the cursor, set colours or reverse lines.

    Line breaks and tabs stay; other characters that do not print become escapes.

    Examples
    --------
    >>> inert("a\x1b[2J\u202eb\tc")
    'a\\x1b[2J\\u202eb\tc'
    """
    return "".join(_inert(character) for character in text)


def _inert(character: str) -> str:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return character
    return " " if character.isspace() and character in "\xa0\u3000" else ascii(character)[1:-1]


def inert_line(text: str) -> str:
    r"""Return a name or a class as :func:`inert` does, on one line.

    Examples
    --------
    >>> inert_line("a\nb\u202ec")
    'a\\nb\\u202ec'
    """
    return inert(text).replace("\n", "\\n").replace("\t", "\\t")


def label_in_terminal(
    session: Session, who: str, lines: TextIO, say: Callable[[str], None]
) -> None:
    """Ask an annotator row after row, and then to settle disagreements, until done or told to quit.

    Parameters
    ----------
    session : Session
    who : str
        The annotator's name.
    lines : text stream
        What is typed, one command a line; its end quits.
    say : callable
        Prints one line.
    """
    asker = _Asker(session, who, lines, say)
    say(f"{inert_line(session.title)}: type {asker.keys}, then Enter.")
    if session.criterion is not None:
        say(inert_line(session.criterion))
    say(_HELP)
    with suppress(_Quit):
        asker.rows()
        asker.disagreements()  # only now: until then nobody learns what another answered


class _Quit(Exception):
    """The annotator has had enough."""


class _Asker:
    """One annotator at a terminal."""

    def __init__(
        self, session: Session, who: str, lines: TextIO, say: Callable[[str], None]
    ) -> None:
        self.session, self.who, self.lines, self.say = session, who, lines, say
        self.numbers: dict[str, str] = {}
        if not any(name.isdecimal() for name in session.classes):  # else 1 might be class or key
            self.numbers = {str(key): name for key, name in enumerate(session.classes, start=1)}
        shown = [inert_line(name) for name in session.classes]
        if self.numbers:
            shown = [f"{key} for {name}" for key, name in zip(self.numbers, shown, strict=True)]
        self.keys = ", ".join(shown)

    def rows(self) -> None:
        """Ask for all rows."""
        taken: Item | None = None
        while True:
            item = taken or self.session.next(self.who)
            if item is not None:
                taken = self._row(item)
                continue
            self.say("All rows are done: u takes the last answer back, Enter ends.")
            if self._read() != "u" or (taken := self.session.undo(self.who)) is None:
                return

    def _row(self, item: Item) -> Item | None:
        """Ask until a row is answered or skipped; return a row that was taken back instead."""
        self._show(item)
        note, began = item.note, time.monotonic()
        while True:
            typed = self._read()
            word, _, rest = typed.partition(" ")
            if word == "n":
                note = rest.strip()
                self.say(f"note: {inert_line(note)}")
            elif typed == "m":
                self._show(item, whole=True)
            elif typed == "u":
                if (taken := self.session.undo(self.who)) is not None:
                    return taken
                self.say("There is nothing to undo.")
            elif typed == "s":
                self.session.skip(self.who, item.row)
                return None
            elif self._answer(item, typed, time.monotonic() - began, note):
                return None

    def disagreements(self) -> None:
        """Ask what the disagreements shall be; ``u`` opens settled ones again, the last one first.

        Never an answer: those are taken back while rows are asked.
        """
        found = self.session.disagreements()
        settled = [dispute for dispute in found if dispute["settled"] is not None]
        waiting = [dispute for dispute in found if dispute["settled"] is None]
        while waiting or settled:
            if waiting:
                typed = self._settle(waiting[0])
            else:
                self.say(f"{len(settled)} settled: u opens the last of them again, Enter ends.")
                typed = self._read()
                if typed != "u":
                    return
            if typed != "u":
                dispute = waiting.pop(0)
                settled += [dispute] if typed is None else []
            elif settled:
                waiting.insert(0, settled.pop())
                self.session.unsettle(waiting[0]["row"])
            else:
                self.say("There is nothing to undo.")

    def _settle(self, dispute: dict[str, Any]) -> str | None:
        """Ask until a disagreement is settled; return ``s`` or ``u`` if one was typed instead."""
        said = ", ".join(
            f"{inert_line(who)}: {inert_line(x)}" for who, x in dispute["answers"].items()
        )
        self._show(self.session.item(dispute["row"]))
        self.say(f"Settle: {said} (s leaves it open, u opens the last settled one again)")
        while (typed := self._read()) not in ("s", "u"):
            value = self._class(typed)
            if value is not None:
                self.session.settle(dispute["row"], value, self.who)
                return None
            self.say(f"Type {self.keys}.")
        return typed

    def _answer(self, item: Item, typed: str, seconds: float, note: str) -> bool:
        """Store an answer, and return whether there was one."""
        value = None if typed == "?" else self._class(typed)
        if value is None and typed != "?":
            self.say(f"{inert_line(typed)} is neither: type {self.keys}, or {_HELP}")
            return False
        limit = self.session.seconds
        if limit is not None and seconds > limit:
            self.say(f"Too late ({seconds:.0f} of {limit:g} seconds): counted as no answer.")
            value = None
        self.session.answer(self.who, item.row, value, seconds, note)
        return True

    def _class(self, typed: str) -> str | None:
        """Return the class that a number or a name stands for."""
        name = self.numbers.get(typed, typed)
        return name if name in self.session.classes else None

    def _read(self) -> str:
        """Return the next command."""
        try:
            line = self.lines.readline()
        except UnicodeDecodeError as error:
            raise WhetError(f"what was typed is no text ({error}): type UTF-8") from error
        typed = line.strip()
        if not line or typed == "q":
            raise _Quit
        return typed

    def _show(self, item: Item, *, whole: bool = False) -> None:
        self.say("")
        self.say(f"[{item.position} of {item.total}]")
        for name, text in item.shown.items():
            if len(item.shown) > 1:
                self.say(f"--- {name}")
            self.say(inert(text if whole else text[:_LONGEST]) or "(empty)")
            if len(text) > _LONGEST and not whole:
                self.say(f"({len(text) - _LONGEST:,} more characters: m shows them)")
        if self.session.show_pseudo and item.pseudo is not None:
            self.say(f"(annotator: {inert_line(item.pseudo)})")
        if item.answered is not None:
            self.say(f"(you had answered {inert_line(item.answered)})")
