"""The command line: one file a verb. Anything a user can mend ends with one sentence and code 2."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from cyclopts import App
from cyclopts.exceptions import CycloptsError
from rich.console import Console

from whet import __version__
from whet.cli import (
    align,
    annotate,
    bench,
    dpo,
    env,
    evaluate,
    ilr,
    judge,
    label,
    predict,
    propose,
    push,
    refine,
    replace,
    report,
    self_refine,
    sft,
)
from whet.errors import WhetError, WhetWarning

app = App(
    name="whet",
    version=__version__,
    help="Sharpen labels that nobody has time to check.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main says how to go on
)
app.command(annotate.annotate)
app.command(self_refine.self_refine)
app.command(label.label)
app.command(refine.refine)
app.command(report.report)
app.command(predict.predict)
app.command(push.push)
app.command(sft.sft)
app.command(dpo.dpo)
app.command(propose.propose)
app.command(judge.judge)
app.command(replace.replace)
app.command(evaluate.evaluate)
app.command(ilr.ilr)
app.command(align.align)
app.command(bench.app)
app.command(env.env)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 something to mend, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # labels may hold any character
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", WhetWarning)
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except WhetError as error:
        _fail(str(error))
    except CycloptsError as error:
        verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        known = f" {verb}" if verb in app else ""
        _fail(f"{' '.join(str(error).split())} See 'whet{known} --help'.")
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            f"cannot write or read{where}: {error.strerror or error}; free space or mend the "
            "permissions and run the command again, with --resume if it had finished rounds"
        )
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or (
            "interrupted; what is finished is kept: run the same command again to go on, with "
            "--resume if it has that flag"
        )
        sys.stderr.write(f"whet: {plain(said)}\n")
        raise SystemExit(130) from None


def _fail(sentence: str) -> None:
    """Print one line that a terminal cannot be hijacked with, and exit with code 2."""
    sys.stderr.write(f"whet: {plain(sentence)}\n")
    raise SystemExit(2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show whet's own warnings in one line each, and no library's."""
    del filename, lineno, file, line
    if issubclass(category, WhetWarning):
        sys.stderr.write(f"whet: warning: {plain(str(message))}\n")


def plain(text: str) -> str:
    """Return text on one line without control characters: data may hold terminal escapes."""
    return "".join(c if c.isprintable() else " " for c in text)


def console() -> Console:
    """Return the console for results: stdout, no markup from data."""
    return Console(
        markup=False,
        emoji=False,
        highlight=False,
        width=None if sys.stdout.isatty() else 10_000,  # in a file or a pipe, lines stay whole
    )
