"""What a task is: rows with demonstrations, whether two completions agree, whether one is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.tables import read_table


class Task(Protocol):
    """A task whose demonstrations are refined.

    Attributes
    ----------
    name : str
        Short name.
    marker : str or None
        What every completion must contain, such as ``####``.

    Notes
    -----
    A task may also have ``criterion``, what makes one completion better than another, see
    :func:`criterion_of`.
    """

    name: str
    marker: str | None

    def load(self, folder: Path, split: str) -> pa.Table:
        """Return a split.

        Returns
        -------
        pyarrow.Table
            ``row`` (int64, the number of the row in its file), ``prompt`` (string), ``completion``
            (string, the demonstration), ``reference`` (string, what :meth:`score` compares with,
            so that completions may be exchanged), and whatever else the task needs.

        Raises
        ------
        WhetError
            If there is no such split, or it lacks a column.
        """
        ...

    def agree(
        self, table: pa.Table, first: Sequence[str], second: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Return whether two completions of each row say the same, shape (n,)."""
        ...

    def score(self, table: pa.Table, completions: Sequence[str]) -> NDArray[np.float64]:
        """Return how right each row's completion is, 0 to 1, shape (n,); NaN: cannot be judged."""
        ...


def criterion_of(task: Task) -> str | None:
    """Return what a task says makes one completion better than another, for a judge to read.

    Returns
    -------
    str or None
        A sentence; None where the task says nothing, and what is right is better.

    Raises
    ------
    WhetError
        If it is no line of text.

    Examples
    --------
    >>> from whet.ilr.tasks.find import load_task
    >>> criterion_of(load_task("gsm8k")) is None
    True
    """
    said = getattr(task, "criterion", None)
    if said is None:
        return None
    line = said.strip() if isinstance(said, str) else ""
    if not line or not line.isprintable():
        raise WhetError(
            f"the criterion {said!r:.60} of the task {task.name!r} is no line of text: write a "
            "sentence that says what makes one answer better than another"
        )
    return line


def as_prompt(question: str) -> str:
    r"""Return a question as the paper's prompt (ILR, arXiv 2501.07886, released code).

    Examples
    --------
    >>> as_prompt("How many?")
    'USER:\nHow many?\n\nASSISTANT:\n'
    """
    return f"USER:\n{question}\n\nASSISTANT:\n"


def demonstrations(
    prompts: Sequence[str],
    completions: Sequence[str],
    references: Sequence[str | None],
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    **others: pa.Array | pa.ChunkedArray,
) -> pa.Table:
    """Return the table of a task; ``rows`` counts from 0 by default.

    Examples
    --------
    >>> demonstrations(["2 + 2?"], ["#### 4"], ["4"]).column_names
    ['row', 'prompt', 'completion', 'reference']
    """
    numbers = np.arange(len(prompts)) if rows is None else rows
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "prompt": pa.array(prompts, pa.string()),
            "completion": pa.array(completions, pa.string()),
            "reference": pa.array(references, pa.string()),
            **others,
        }
    )


#: Suffixes of a split's file, in the order in which they are looked for.
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


def read_split(folder: Path, split: str, columns: Sequence[str] = ()) -> pa.Table:
    """Read ``folder/split.parquet``, or the ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file.

    Parameters
    ----------
    folder : Path
    split : str
        Name of the file without its suffix, such as ``train``.
    columns : sequence of str
        Columns that must be there.

    Raises
    ------
    WhetError
        If there is no such file, or a column is missing.
    """
    if Path(split).name != split or not split:
        raise WhetError(f"the split {split!r} is a path: name a split, such as train")
    files = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
    if not files:
        there = (
            sorted({p.stem for p in folder.iterdir() if p.suffix in SUFFIXES})
            if (folder.is_dir())
            else []
        )
        raise WhetError(
            f"{folder} has no split {split!r} ({', '.join(there) or 'no table at all'}): name a "
            f"folder that holds {split}.parquet, or .jsonl, .json, .csv or .tsv"
        )
    table = read_table(files[0])
    check_columns(table, columns, str(files[0]))
    return table


def check_columns(table: pa.Table, columns: Sequence[str], source: str) -> None:
    """Raise ``WhetError`` unless a table has these columns, with text or a number in each row."""
    if not table.num_rows:
        raise WhetError(f"{source} has no rows: give at least one")
    for column in columns:
        if column not in table.column_names:
            raise WhetError(
                f"{source} has no column {column!r} (it has {', '.join(table.column_names)}): "
                "name another folder, or rename the column"
            )
        empty = table[column].is_null().index(True).as_py()
        if empty >= 0:
            raise WhetError(
                f"row {empty} of {source} has nothing in the column {column!r}: fill it or remove "
                "the row"
            )


def values_of(table: pa.Table, column: str) -> list[Any]:
    """Return what a column holds, or say that the task needs it.

    Raises
    ------
    WhetError
        If there is no such column.

    Examples
    --------
    >>> values_of(pa.table({"reference": ["4"]}), "reference")
    ['4']
    """
    if column not in table.column_names:
        raise WhetError(f"the rows have no column {column!r}, which the task compares with: add it")
    return table[column].to_pylist()  # type: ignore[no-any-return]


def check_lengths(table: pa.Table, *columns: Sequence[str]) -> None:
    """Raise ``WhetError`` unless there is one completion a row."""
    for column in columns:
        if len(column) != table.num_rows:
            raise WhetError(
                f"{len(column)} completions for {table.num_rows} rows: give one a row, in order"
            )
