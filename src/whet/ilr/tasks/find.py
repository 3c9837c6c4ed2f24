"""Tasks by name, or from a file of the user's."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, cast

from whet.errors import WhetError, did_you_mean
from whet.ilr.tasks.protocol import Task

#: Name -> module and class; a module loads when its task is asked for.
_BUILT_IN = {
    "chains": ("whet.ilr.tasks.chains", "Chains"),
    "gsm8k": ("whet.ilr.tasks.gsm8k", "Gsm8k"),
    "saferpaca": ("whet.ilr.tasks.saferpaca", "SaferPaca"),
    "sql": ("whet.ilr.tasks.sql", "Sql"),
}


def known_tasks() -> list[str]:
    """Return the names of the tasks that come with whet.

    Examples
    --------
    >>> known_tasks()
    ['chains', 'gsm8k', 'saferpaca', 'sql']
    """
    return sorted(_BUILT_IN)


def load_task(source: str | Path, **options: Any) -> Task:  # noqa: ANN401
    """Return a task by its name, or from a file.

    Parameters
    ----------
    source : str or Path
        One of :func:`known_tasks`; the path of a YAML file
        (:class:`whet.ilr.tasks.custom.TemplateTask`); or the path of a Python file, **which is
        run** (:func:`whet.ilr.tasks.custom.task_from_python`). A name never becomes a path.
    **options
        Parameters of a built-in task, such as ``operations`` of ``chains``.

    Raises
    ------
    WhetError
        If there is no such task, it has no such option, or its file is no task.

    Examples
    --------
    >>> load_task("chains", operations=2).name
    'chains'
    """
    if str(source) in _BUILT_IN:
        module, name = _BUILT_IN[str(source)]
        kind = getattr(importlib.import_module(module), name)
        known = list(inspect.signature(kind).parameters)
        for option in options:
            if option not in known:
                has = did_you_mean(option, known) if known else ", which has no options"
                raise WhetError(f"the task {source} does not take {option!r}{has}: correct it")
        try:
            return cast(Task, kind(**options))
        except TypeError as error:
            raise WhetError(
                f"the task {source} does not take {options} ({error}): correct the values"
            ) from error
    path = Path(source)
    if not path.is_file() or path.suffix not in (".yaml", ".yml", ".py"):
        raise WhetError(
            f"the task {source} is neither a task of whet's{did_you_mean(str(source), _BUILT_IN)} "
            f"nor a .yaml or .py file that is there: write one of {', '.join(known_tasks())}, or "
            "the path of a file"
        )
    if options:
        raise WhetError(f"the task {source} does not take {options}: write them into the file")
    from whet.ilr.tasks.custom import task_from_python, task_from_yaml

    return task_from_python(path) if path.suffix == ".py" else task_from_yaml(path)
