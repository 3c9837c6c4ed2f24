"""Labels that some model gave before, from a table: annotating again without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.annotate.protocol import Answer, Failure, Reply, Request
from whet.annotate.task import Task
from whet.corpus import require_column
from whet.errors import WhetError
from whet.store import sha256_of
from whet.tables import read_table


class ReplayBackend:
    r"""Answers each row with the label that a column of a table holds for its text.

    Parameters
    ----------
    source : str
        ``FILE#COLUMN``. Strings are taken as answers, also those that name no class; integers
        count the task's classes from 0, or name them through the columns ``label`` and
        ``label_name`` if the file has both; empty cells and -1 are rows without an answer.
    task : Task
        Its template makes the text by which a row is found.
    text : str
        Column of FILE that ``{text}`` stands for.

    Raises
    ------
    WhetError
        If the file or a column is missing.

    Examples
    --------
    >>> import asyncio, pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "old.csv"
    >>> _ = file.write_text("text,gpt\nWIN NOW,spam\n")
    >>> task = Task("t", "Is it spam?", {"spam": "", "ham": ""})
    >>> backend = ReplayBackend(f"{file}#gpt", task, "text")
    >>> request = Request((("user", "WIN NOW"),), max_tokens=1, text="WIN NOW")
    >>> asyncio.run(backend.complete([request]))[0].text
    'spam'
    """

    at_once = 1000

    def __init__(self, source: str, task: Task, text: str) -> None:
        path, mark, column = source.rpartition("#")
        if not mark or not path or not column:
            raise WhetError(f"--backend replay:{source} names no column: write replay:FILE#COLUMN")
        table = read_table(path)
        named = {name: text if name == "text" else name for name in task.columns}
        for name in (*named.values(), column):
            require_column(table, name, "replay:FILE#COLUMN", path)
        self.route: Mapping[str, Any] = {
            "backend": "replay",
            "column": column,
            "sha256": sha256_of(Path(path)),
        }
        names: dict[int, str] = dict(enumerate(task.classes))
        if {"label", "label_name"} <= set(table.column_names):
            pairs = zip(table["label"].to_pylist(), table["label_name"].to_pylist(), strict=True)
            names |= {code: str(name) for code, name in pairs if isinstance(code, int)}
        self._labels: dict[str, str | None] = {}
        cells = table.select(list(dict.fromkeys(named.values()))).to_pylist()
        for row, value in zip(cells, table[column].to_pylist(), strict=True):
            shown = {n: "" if row[c] is None else str(row[c]) for n, c in named.items()}
            self._labels.setdefault(task.render(shown), _said(value, names))

    async def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """Look up each request's text."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        if request.text not in self._labels:
            return Failure("rejected", "the replayed file has no such text")
        label = self._labels[request.text]
        if label is None:
            return Failure("rejected", "the replayed column has no answer")
        said = json.dumps({"label": label}, ensure_ascii=False) if request.choices else label
        return Answer(said)

    async def close(self) -> None:
        """Nothing to give back."""


def _said(value: object, names: Mapping[int, str]) -> str | None:
    """Return what a cell says: a class, some other answer, or None for no answer."""
    if isinstance(value, float) and value.is_integer():  # how pandas writes integers beside gaps
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return names.get(value)
    missing = value is None or value == "" or value != value
    return None if missing else str(value)
