"""The flags by which verbs name a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.ilr.tasks.protocol import Task


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    """Which task, with which options, and where its files lie.

    Examples
    --------
    >>> TaskFlags(task="chains", option=("operations=2",)).load().name
    'chains'
    """

    task: Annotated[
        str | None,
        _help("chains, gsm8k, saferpaca, sql, or a .yaml or .py file (docs/ilr-tasks.md)."),
    ] = None
    option: Annotated[
        tuple[str, ...],
        Parameter(
            help="KEY=VALUE of the task, such as operations=3; as often as needed.",
            show_default=False,
            negative="",
        ),
    ] = ()
    data: Annotated[Path | None, _help("Folder of the task's files.")] = None

    def load(self) -> Task:
        """Return the task; without one named, what compares completions as text."""
        from whet.ilr.rows import Asked, SameText
        from whet.ilr.tasks.find import load_task

        if self.task is None:
            if self.option:
                raise WhetError(f"--option {self.option[0]} belongs to a task: name it with --task")
            return SameText()
        return Asked(load_task(self.task, **dict(_pair(given) for given in self.option)))


def _pair(given: str) -> tuple[str, Any]:
    import yaml

    key, sign, value = given.partition("=")
    if not sign or not key.isidentifier():
        raise WhetError(f"--option {given!r} is no KEY=VALUE: write, for example, operations=3")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise WhetError(f"--option {given!r}: the value cannot be read; mend it") from error
