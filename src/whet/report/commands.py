"""The command line that does again what a folder holds."""

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


def into_another(words: Sequence[str], folder: Path) -> str:
    """Return a command quoted for a shell, with a folder beside ``folder`` for its output.

    A finished folder is not made anew in its own place.

    Examples
    --------
    >>> into_another(["whet", "refine", "my corpus.csv"], Path("run"))
    "whet refine 'my corpus.csv' --out run-again"
    """
    return shlex.join([*words, *flag_words("--out", f"{folder.resolve().name}-again")])
