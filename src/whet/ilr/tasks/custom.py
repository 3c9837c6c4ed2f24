"""Tasks of your own: templates and an answer pattern in YAML, or a Python file."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whet.errors import WhetError, did_you_mean
from whet.ilr.tasks.answers import AnswerTask, number_in, plain_text
from whet.ilr.tasks.protocol import Task, demonstrations, read_split

#: ``{column}`` in a template.
_FIELD = re.compile(r"\{\s*([^{}\s](?:[^{}]*[^{}\s])?)\s*\}")

#: What is done to an answer before it is compared.
_NORMALISE: dict[str, Callable[[str], str | None]] = {
    "number": number_in,
    "text": plain_text,
    "exact": str,
}


class _TaskFile(BaseModel):
    """The keys of a task file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    completion: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    normalise: Literal["number", "text", "exact"] = "text"
    marker: str | None = None
    criterion: str | None = None


class TemplateTask(AnswerTask):
    r"""A task from templates: what the prompt and the demonstration are, and where the answer is.

    Parameters
    ----------
    name : str
    prompt, completion : str
        Templates: ``{column}`` stands for the value of a column. The prompt is used as it is
        written; the paper's would be ``"USER:\n{question}\n\nASSISTANT:\n"``.
    answer : str
        Regular expression with one group, the answer; the last match in a completion counts.
    normalise : {"number", "text", "exact"}
        How answers are compared: as numbers (:func:`whet.ilr.tasks.answers.number_in`), as text in
        lower case with single spaces and no closing full stop, or as they are.
    marker : str, optional
        What every completion must contain.
    criterion : str, optional
        See :func:`whet.ilr.tasks.protocol.criterion_of`.

    Raises
    ------
    WhetError
        If the pattern is no regular expression with one group, or a template names no column.

    Examples
    --------
    >>> import json, tempfile
    >>> task = TemplateTask("capitals", "Capital of {country}?\n", "It is {city}.", r"It is (.+)")
    >>> row = {"country": "Peru", "city": "Lima"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "train.json").write_text(json.dumps([row]))
    ...     table = task.load(Path(folder), "train")
    >>> table["reference"].to_pylist(), task.score(table, ["I think it is... It is  LIMA"]).tolist()
    (['lima'], [1.0])
    """

    def __init__(
        self,
        name: str,
        prompt: str,
        completion: str,
        answer: str,
        *,
        normalise: str = "text",
        marker: str | None = None,
        criterion: str | None = None,
    ) -> None:
        if normalise not in _NORMALISE:
            raise WhetError(f"normalise = {normalise!r}{did_you_mean(normalise, _NORMALISE)}")
        self.name = name
        self.marker = marker
        self.criterion = criterion
        self.templates = {"prompt": prompt, "completion": completion}
        self._normalise = _NORMALISE[normalise]
        for place, template in self.templates.items():
            if not _FIELD.search(template):
                raise WhetError(
                    f"the {place} {template[:60]!r} of the task {name!r} names no column: write "
                    "{column} where its value goes"
                )
        try:
            self._pattern = re.compile(answer)
        except re.error as error:
            raise WhetError(
                f"the answer {answer!r} of the task {name!r} is no regular expression ({error}): "
                "mend it"
            ) from error
        if self._pattern.groups != 1:
            raise WhetError(
                f"the answer {answer!r} of the task {name!r} has {self._pattern.groups} groups: "
                "put the answer, and nothing else, in parentheses; (?:...) groups without counting"
            )

    def answer(self, text: str) -> str | None:
        """Return the group of the last match in the form in which answers are compared."""
        found = [match[1] for match in self._pattern.finditer(text)]
        return self._normalise(found[-1]) if found and found[-1] is not None else None

    def normal(self, answer: str) -> str | None:
        """Return a reference in the form in which answers are compared."""
        return self._normalise(answer)

    def load(self, folder: Path, split: str) -> pa.Table:
        """Return a split; each row's reference is the answer of its completion.

        Raises
        ------
        WhetError
            If no completion has an answer.
        """
        columns = {name for text in self.templates.values() for name in _FIELD.findall(text)}
        rows = read_split(folder, split, sorted(columns)).select(sorted(columns)).to_pylist()
        prompts, completions = (
            [_fill(self.templates[place], row) for row in rows]
            for place in ("prompt", "completion")
        )
        references = [self.answer(completion) for completion in completions]
        if not any(reference is not None for reference in references):
            raise WhetError(
                f"the answer {self._pattern.pattern!r} of the task {self.name!r} is found in none "
                f"of {len(rows)} completions, the first of which is {completions[0][:80]!r}: mend "
                "the pattern"
            )
        return demonstrations(prompts, completions, references)


def _fill(template: str, row: Mapping[str, object]) -> str:
    """Return a template with a row's values; what looks like a column in a value stays."""
    return _FIELD.sub(lambda field: str(row[field[1]]), template)


def task_from_yaml(path: Path) -> TemplateTask:
    """Read a task file.

    Raises
    ------
    WhetError
        If it cannot be read, or a key is missing, unknown or of the wrong kind.
    """
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise WhetError(f"the task {path} is not readable YAML ({reason}): mend it") from error
    if not isinstance(keys, Mapping):
        raise WhetError(f"the task {path} holds no keys: write name, prompt, completion and answer")
    for key in keys:
        if key not in _TaskFile.model_fields:
            raise WhetError(
                f"the task {path} has the unknown key {key!r}"
                f"{did_you_mean(str(key), _TaskFile.model_fields)}: correct or remove it"
            )
    try:
        file = _TaskFile.model_validate(dict(keys))
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0])
        if first["type"] == "missing":
            raise WhetError(f"the task {path} has no {where}: add it") from error
        raise WhetError(
            f"{where} = {first['input']!r} in the task {path} is not valid "
            f"({first['msg'].lower()}): mend it"
        ) from error
    return TemplateTask(**file.model_dump())


def task_from_python(path: Path) -> Task:
    """Run a Python file, and return what it calls ``task``.

    **This runs the file's code, with your rights.** Nothing else in whet runs code that it finds:
    only the path of a ``.py`` file that you name yourself comes here.

    Raises
    ------
    WhetError
        If the file fails, or has no ``task`` with the members of
        :class:`whet.ilr.tasks.protocol.Task`.
    """
    spec = importlib.util.spec_from_file_location("whet_user_task", path)
    if spec is None or spec.loader is None:
        raise WhetError(f"the task {path} is no Python file: name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise WhetError(
            f"the task {path} fails ({type(error).__name__}: {error}): mend it"
        ) from error
    task: Any = getattr(module, "task", None)
    missing = [
        name for name in ("name", "marker", "load", "agree", "score") if not hasattr(task, name)
    ]
    if missing:
        raise WhetError(
            f"the task {path} makes no task ({', '.join(missing)} missing): end the file with "
            "task = YourClass()"
        )
    return cast(Task, task)
