"""A task: what to label and how, from a YAML file or from the tasks that come with whet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whet.errors import WhetError, did_you_mean

#: ``{column}`` in a text template.
_FIELD = re.compile(r"\{\s*([^{}\s](?:[^{}]*[^{}\s])?)\s*\}")


@dataclass(frozen=True)
class Example:
    """A text with its label, shown to the model before it is asked.

    Examples
    --------
    >>> Example("a joy to watch", "positive").label
    'positive'
    """

    text: str
    label: str
    explanation: str | None = None


@dataclass(frozen=True)
class Task:
    """What a model is asked about each text.

    Attributes
    ----------
    name : str
        Short name.
    instruction : str
        What to decide, in a sentence or two.
    classes : dict of str to str
        Class names in order, each with its description ("" for none). At least two.
    examples : tuple of Example
        Shown before the text; none by default.
    gold_examples : int
        Examples of each class to draw from the gold column; 0 for none. Their rows are not asked,
        so that they count in no estimate of the annotator.
    template : str
        The text of a row, from its columns in braces.
    explain : bool
        Whether the model explains before it decides.

    Examples
    --------
    >>> task = Task("sentiment", "Is the review positive?", {"positive": "", "negative": ""})
    >>> task.render({"text": "a joy"})
    'a joy'
    """

    name: str
    instruction: str
    classes: Mapping[str, str]
    examples: tuple[Example, ...] = ()
    gold_examples: int = 0
    template: str = "{text}"
    explain: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.classes, Mapping) or len(self.classes) < 2:
            raise WhetError(
                f"the classes of the task {self.name!r} are {self.classes!r}: give a dict of at "
                "least two names, each with a description or ''"
            )

    @property
    def columns(self) -> list[str]:
        """The columns that the template names."""
        return list(dict.fromkeys(_FIELD.findall(self.template)))

    def render(self, row: Mapping[str, str]) -> str:
        """Return a row's text: the template with the columns' values; nothing else is expanded."""
        return _FIELD.sub(lambda field: row[field[1]], self.template)

    def as_dict(self) -> dict[str, Any]:
        """Return the task as a task file would hold it."""
        return {
            "name": self.name,
            "instruction": self.instruction,
            "classes": [{"name": n, "description": d} for n, d in self.classes.items()],
            "examples": [
                {k: v for k, v in vars(example).items() if v is not None}
                for example in self.examples
            ],
            "gold_examples": self.gold_examples,
            "template": self.template,
            "explain": self.explain,
        }


class _ClassFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    description: str = ""


class _ExampleFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    label: str
    explanation: str | None = None


class _TaskFile(BaseModel):
    """The keys of a task file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    instruction: str = Field(min_length=1)
    classes: list[_ClassFile | str] = Field(min_length=2)
    examples: list[_ExampleFile] = []
    gold_examples: int = Field(default=0, ge=0)
    template: str = "{text}"
    explain: bool = False


def known_tasks() -> list[str]:
    """Return the names of the tasks that come with whet.

    Examples
    --------
    >>> "media_bias" in known_tasks()
    True
    """
    folder = resources.files("whet.annotate") / "tasks"
    return sorted(p.name[: -len(".yaml")] for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_task(source: str | Path) -> Task:
    """Read a task file, or a task that comes with whet by its name.

    Parameters
    ----------
    source : str or Path
        Path of a YAML file, or one of :func:`known_tasks`.

    Raises
    ------
    WhetError
        If there is no such file or task, or what it holds is no task.

    Examples
    --------
    >>> list(load_task("media_bias").classes)
    ['biased', 'not_biased']
    """
    path = Path(source)
    if str(source) in known_tasks() and not path.is_file():
        packaged = resources.files("whet.annotate") / "tasks" / f"{source}.yaml"
        return parse_task(packaged.read_text(encoding="utf-8"), str(source))
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WhetError(
            f"the task {source} is neither a file nor a task that comes with whet"
            f"{did_you_mean(str(source), known_tasks())}: write a YAML file with name, instruction "
            "and classes"
        ) from error
    except (OSError, ValueError) as error:
        raise WhetError(f"the task {source} cannot be read ({error}): mend it") from error
    return parse_task(content, str(source))


def parse_task(content: str, source: str) -> Task:
    """Turn the text of a task file into a task; ``source`` names it in errors."""
    try:
        keys = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise WhetError(f"the task {source} is not readable YAML ({reason}): mend it") from error
    if not isinstance(keys, dict):
        raise WhetError(f"the task {source} holds no keys: write name, instruction and classes")
    known = list(_TaskFile.model_fields)
    for key in keys:
        if key not in known:
            raise WhetError(
                f"the task {source} has the unknown key {key!r}{did_you_mean(str(key), known)}: "
                "correct or remove it"
            )
    try:
        file = _TaskFile.model_validate(keys)
    except ValidationError as error:
        raise WhetError(_sentence(error, source)) from error
    given = [(c, "") if isinstance(c, str) else (c.name, c.description) for c in file.classes]
    _check_classes([name for name, _ in given], source)
    for key in ("name", "instruction"):
        if not getattr(file, key).strip():
            raise WhetError(f"the {key} of the task {source} is blank: write it")
    task = Task(
        file.name,
        " ".join(file.instruction.split()),
        {name: " ".join(about.split()) for name, about in given},
        tuple(Example(e.text, e.label, e.explanation) for e in file.examples),
        file.gold_examples,
        file.template,
        file.explain,
    )
    _check_examples(task, source)
    if not task.columns:
        raise WhetError(
            f"the template {task.template!r} of the task {source} names no column: write {{text}} "
            "where the row's text goes"
        )
    return task


def _check_examples(task: Task, source: str) -> None:
    for example in task.examples:
        if example.label not in task.classes:
            raise WhetError(
                f"an example of the task {source} has the label {example.label!r}"
                f"{did_you_mean(example.label, task.classes)}: use one of the classes"
            )
        if task.explain and not example.explanation:
            raise WhetError(
                f"the task {source} asks for explanations, but the example "
                f"{example.text[:40]!r} has none: add an explanation to each example"
            )
    if task.explain and task.gold_examples:
        raise WhetError(
            f"the task {source} asks for explanations, which examples from the gold column do not "
            "have: write the examples into the task, or drop explain"
        )


def _check_classes(names: list[str], source: str) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if not bare(name):
            raise WhetError(
                f"the class {name!r} of the task {source} has no letter or digit: rename it"
            )
        if name != name.strip() or not name.isprintable():
            raise WhetError(
                f"the class {name!r} of the task {source} begins or ends with a space or holds "
                "a control character: rename it"
            )
        if bare(name) in folded:
            raise WhetError(
                f"the task {source} has the classes {folded[bare(name)]!r} and {name!r}, "
                "which differ in no letter: rename one"
            )
        folded[bare(name)] = name


def bare(name: str) -> str:
    """Return what counts of a class's name in an answer: not case, nor marks around it.

    Examples
    --------
    >>> bare(" 'Spam'.")
    'spam'
    """
    return name.strip().strip("\"'`*.,:;!()[]{}<> ").casefold()


def _sentence(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("_ClassFile", "str"))
    if first["type"] == "missing":
        return f"the task {source} has no {where}: add it"
    if where == "classes" and not isinstance(first["input"], list):
        return f"classes in the task {source} is no list: write a line '- name: ...' for each class"
    if where.startswith("classes.") and first["type"] == "model_type":
        return (
            f"the class {first['input']!r} in the task {source} is not text: put it in quotes, as "
            "YAML reads yes, no, on, off and numbers as values"
        )
    if first["type"] == "extra_forbidden":
        place, _, key = where.rpartition(".")
        model = _ClassFile if place.startswith("classes") else _ExampleFile
        return (
            f"{place} in the task {source} has the unknown key {key!r}"
            f"{did_you_mean(key, model.model_fields)}: correct or remove it"
        )
    if first["type"] == "too_short" and where == "classes":
        return f"the task {source} has fewer than 2 classes: name at least two"
    value = repr(first["input"])[:60]
    return f"{where} = {value} in the task {source} is not valid ({first['msg'].lower()}): mend it"
