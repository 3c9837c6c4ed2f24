"""Rows for the verbs and the pipeline: of a split, or of a table that anyone made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.ilr.tasks.protocol import SUFFIXES, Task, criterion_of
from whet.posttrain.examples import check_examples, is_messages, read_examples


class SameText:
    """The task of rows of which nothing is known: completions agree if they are the same.

    Examples
    --------
    >>> SameText().agree(pa.table({"row": [0, 1]}), ["a", "b"], ["a", "c"]).tolist()
    [True, False]
    """

    name = "text"
    marker: str | None = None

    def load(self, folder: Path, split: str) -> pa.Table:
        """Raise ``WhetError``: there are no splits."""
        raise WhetError(f"{split!r} is no table, and a split needs a task: name both")

    def agree(
        self, table: pa.Table, first: Sequence[Any], second: Sequence[Any]
    ) -> NDArray[np.bool_]:
        """Return whether completions are equal, shape (n,)."""
        del table
        return np.array([a == b for a, b in zip(first, second, strict=True)], dtype=np.bool_)

    def score(self, table: pa.Table, completions: Sequence[Any]) -> NDArray[np.float64]:
        """Raise ``WhetError``: what is right is not known."""
        raise WhetError("what is right is a task's to say: name one with --task")


class Asked:
    """A task as it is asked here: messages become text, and what it says is checked.

    Parameters
    ----------
    task : Task
        One of whet's, or a user's own.

    Examples
    --------
    >>> from whet.ilr.tasks.find import load_task
    >>> table = pa.table({"row": [0], "reference": ["4"]})
    >>> said = [[{"role": "assistant", "content": "#### 4"}]]
    >>> Asked(load_task("gsm8k")).score(table, said).tolist()
    [1.0]
    """

    def __init__(self, task: Task) -> None:
        self.task, self.name, self.marker = task, task.name, task.marker
        self.criterion = criterion_of(task)

    def load(self, folder: Path, split: str) -> pa.Table:
        """Return a split."""
        return self.task.load(folder, split)

    def agree(
        self, table: pa.Table, first: Sequence[Any], second: Sequence[Any]
    ) -> NDArray[np.bool_]:
        """Return whether two completions of each row say the same, shape (n,)."""
        found = self.task.agree(table, [text_of(x) for x in first], [text_of(x) for x in second])
        return self._array(found, table.num_rows, "agree", np.bool_)

    def score(self, table: pa.Table, completions: Sequence[Any]) -> NDArray[np.float64]:
        """Return how right each row's completion is, 0 to 1, shape (n,); NaN: cannot be judged."""
        found = self.task.score(table, [text_of(said) for said in completions])
        scores = self._array(found, table.num_rows, "score", np.float64)
        if ((scores < 0) | (scores > 1)).any():
            worst = scores[np.nanargmax(np.abs(scores - 0.5))]
            raise WhetError(
                f"the task {self.name} gave the score {worst:g}: a score is from 0 to 1, or NaN "
                "where nothing can be said; mend its score()"
            )
        return scores

    def _array(self, found: Any, n: int, member: str, kind: Any) -> NDArray[Any]:  # noqa: ANN401
        try:
            array = np.asarray(found, dtype=kind)
        except (TypeError, ValueError) as error:
            raise WhetError(
                f"the {member}() of the task {self.name} gave no numbers ({error}): return one a "
                "row"
            ) from error
        if array.shape != (n,):
            raise WhetError(
                f"the {member}() of the task {self.name} gave the shape {array.shape} for {n} "
                "rows: return one value a row"
            )
        return array


def text_of(completion: Any) -> str:  # noqa: ANN401
    """Return a completion, text or messages, as text."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message["content"]) for message in completion)


def read_rows(
    task: Task, source: str, needs: Sequence[str], folder: Path | None = None
) -> pa.Table:
    """Return rows with different numbers in ``row``.

    Parameters
    ----------
    task : Task
    source : str
        A table (.csv, .tsv, .jsonl, .json, .parquet), or else a split of the task.
    needs : sequence of str
        Columns that must be there.
    folder : Path, optional
        Of the task's files.

    Raises
    ------
    WhetError
        If the rows cannot be read, lack a column, or have a number twice.
    """
    if Path(source).suffix in SUFFIXES:
        table = read_examples(Path(source), needs)
    elif folder is None and task.name not in ("chains", SameText.name):
        raise WhetError(
            f"{source!r} is no table, and as a split of the task {task.name!r} it lies in a "
            "folder: name the folder with data, or a .csv, .jsonl or .parquet file"
        )
    else:
        table = check_examples(task.load(folder, source), needs)  # type: ignore[arg-type]
    if pc.count_distinct(table["row"]).as_py() < table.num_rows:
        raise WhetError(f"{source} has a number twice in its column row: number the rows anew")
    return table


def as_completions(table: pa.Table, column: str) -> pa.Table:
    """Return the table with a column as text, where ``completion`` is text.

    A CSV of answers may hold numbers.

    Examples
    --------
    >>> table = pa.table({"completion": ["4"], "proposal": [5]})
    >>> as_completions(table, "proposal")["proposal"].to_pylist()
    ['5']
    """
    kind, found = table.schema.field("completion").type, table.schema.field(column).type
    if found == kind:
        return table
    if is_messages(found) != is_messages(kind) or (pa.types.is_nested(found) and found != kind):
        raise WhetError(
            f"the column {column!r} holds {found}, and completion {kind}: write both as text, or "
            "both as messages"
        )
    values = table[column].cast(kind)
    return table.set_column(table.column_names.index(column), column, values)
