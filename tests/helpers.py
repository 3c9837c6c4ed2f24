"""Shared by the tests that drive whet from outside."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from whet.cli import main

#: The console script that pip installed beside this interpreter.
WHET = Path(sys.executable).with_name("whet")


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def whet(args: list[str]) -> Ended:
    """Run a command in this process, which saves the second that imports take."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),  # main() sets filters for good
    ):
        try:
            main(args)
        except SystemExit as end:
            code = end.code
    return Ended(code or 0, out.getvalue(), err.getvalue())


def whet_process(args: list[str], env: dict[str, str] | None = None, **kwargs: Any) -> Ended:
    """Run a command as users do; ``env`` adds to the environment."""
    done = subprocess.run(
        [WHET, *args],
        check=False,
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | (env or {}),
        **kwargs,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def columns(n: int = 60, labels: tuple[Any, Any] = ("money", "sport"), gold: int = 20) -> dict:
    """Return an easy corpus: every fifth pseudo-label is wrong, the first rows have gold."""
    words = ("bank stock price fund", "goal match win team")
    truth = [i % 2 for i in range(n)]
    return {
        "text": [f"{words[y]} number {i}" for i, y in enumerate(truth)],
        "llm": [labels[1 - y if i % 5 == 0 else y] for i, y in enumerate(truth)],
        "gold": [labels[y] if i < gold else None for i, y in enumerate(truth)],
    }


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, with the bytes of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
