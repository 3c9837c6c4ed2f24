"""The command lines that do again what a folder holds, and that go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.posttrain.settings import GenerateSettings

Json = dict[str, Any]


def flag_words(flag: str, value: str) -> list[str]:
    """Return a flag and its value, in one word where the value would be taken for a flag.

    Examples
    --------
    >>> flag_words("--text", "body"), flag_words("--text", "-body")
    (['--text', 'body'], ['--text=-body'])
    """
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def changed_flags(settings: Json, defaults: Json) -> list[str]:
    """Return the flags of those settings that are not the defaults.

    Parameters
    ----------
    settings, defaults : dict
        Values by the names of settings; ``defaults`` has all names of ``settings``.

    Examples
    --------
    >>> changed_flags({"max_steps": 3, "seed": 0}, {"max_steps": None, "seed": 0})
    ['--max-steps', '3']
    """
    words = []
    for key, value in settings.items():
        if value != defaults[key]:
            flag = "--" + key.replace("_", "-")
            words += [flag] if value is True else flag_words(flag, str(value))
    return words


def generation_flags(settings: Json) -> list[str]:
    """Return the flags of generation that are not the defaults.

    Examples
    --------
    >>> generation_flags({"temperature": 0.0, "max_new_tokens": 9, "tokens_per_batch": 8192})
    ['--max-new-tokens', '9']
    """
    named = ("temperature", "max_new_tokens", "tokens_per_batch")
    return changed_flags({key: settings[key] for key in named}, asdict(GenerateSettings()))


def operand(path: str | Path) -> str:
    """Return a path as a word of a command, with ``./`` where it would be taken for a flag.

    Examples
    --------
    >>> operand("runs/a"), operand("-a")
    ('runs/a', './-a')
    """
    return f"./{path}" if str(path).startswith("-") else str(path)


def beside(folder: Path, ending: str) -> str:
    """Return the path of a folder beside another, from where the caller named that one.

    Parameters
    ----------
    folder : Path
        As the caller named it.
    ending : str
        What its name is to end with.

    Examples
    --------
    >>> beside(Path("runs/a"), "-again")
    'runs/a-again'
    """
    if folder.name in ("", ".."):  # "." and ".." are no names that can be added to
        folder = folder / ".." / folder.resolve().name
    return f"{folder}{ending}"


def into_another(words: Sequence[str], folder: Path) -> str:
    """Return a command quoted for a shell, with a folder beside ``folder`` for its output.

    A finished folder is not made anew in its own place.

    Parameters
    ----------
    words : sequence of str
    folder : Path
        As the caller named it: the command runs where that name holds.

    Examples
    --------
    >>> into_another(["whet", "refine", "my corpus.csv"], Path("runs/a"))
    "whet refine 'my corpus.csv' --out runs/a-again"
    """
    return shlex.join([*words, *flag_words("--out", beside(folder, "-again"))])


def as_given(rows: str, task: str | None, options: Sequence[str], data: Path | None) -> Json:
    """Return what a command was told of its rows and its task, as run.json keeps it.

    Parameters
    ----------
    rows : str
        A table, or a split of the task.
    task : str or None
        A name, or a file.
    options : sequence of str
        KEY=VALUE of the task.
    data : Path or None
        Folder of the task's files.

    Examples
    --------
    >>> as_given("train", "chains", ["operations=2"], None)
    {'rows': 'train', 'task': 'chains', 'options': ['operations=2'], 'data': None}
    """
    where = None if data is None else str(data)
    return {"rows": rows, "task": task, "options": [*options], "data": where}


def task_flags(given: Json) -> list[str]:
    """Return the flags of the task that a command was given; none without a task.

    Parameters
    ----------
    given : dict
        Of :func:`as_given`.

    Examples
    --------
    >>> task_flags(as_given("train", "chains", ["operations=2"], None))
    ['--task', 'chains', '--option', 'operations=2']
    """
    words = [] if given["task"] is None else flag_words("--task", given["task"])
    for option in given["options"]:
        words += flag_words("--option", option)
    return words if given["data"] is None else [*words, *flag_words("--data", given["data"])]
