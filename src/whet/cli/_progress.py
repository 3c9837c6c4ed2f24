"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_NAMES = {
    "encode": ("encoding", "texts"),
    "round": ("training", "fits"),
    "bench": ("finishing", "runs"),
    "tokens": ("reading", "texts"),
    "step": ("training", "steps"),
    "plan": ("counting", "rows"),
    "annotate": ("asking", "rows"),
    "batch": ("waiting for", "answers"),
    "generate": ("generating", "completions"),
    "score": ("scoring", "rows"),
}


class ProgressReporter:
    """A callable (stage, done, total) that shows how far the work is, on stderr.

    Parameters
    ----------
    note : callable, optional
        Returns what else to show, such as what was spent so far.

    Examples
    --------
    >>> with ProgressReporter() as report:
    ...     report("round", 1, 5)
    """

    def __init__(self, note: Callable[[], str] = str) -> None:
        self._note = note
        self._bars: Progress | None = None
        self._tasks: dict[str, object] = {}
        self._last: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, said: str) -> None:
        """Write a sentence without disturbing the bar."""
        line = "".join(c if c.isprintable() else " " for c in f"whet: {said}")
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            sys.stderr.write(line + "\n")

    def __call__(self, stage: str, done: int, total: int) -> None:
        verb, unit = _NAMES.get(stage, (stage, ""))
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(f"{verb} {unit}", total=total, note="")
            self._bars.update(self._tasks[stage], completed=done, note=self._note())  # type: ignore[arg-type]
            return
        # A line at every tenth of the work, or every ten seconds, so that logs stay short.
        when, share = self._last.get(stage, (0.0, 0.0))
        now = time.monotonic()
        if done == total or done / total - share >= 0.1 or now - when >= 10:
            self._last[stage] = (now, done / total)
            note = self._note()
            sys.stderr.write(f"whet: {verb} {done}/{total} {unit}{note and ', ' + note}\n")
