"""Demonstrations, preferences and prompts: tables with TRL's columns, each row with an id.

The columns are ``prompt``, ``completion``, ``chosen`` and ``rejected``, each either text or a list
of messages ``{"role": ..., "content": ...}``. ``row`` is the number that a row had in the first
file that it came from, so that equal prompts stay different rows wherever they go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whet.errors import WhetError, did_you_mean
from whet.streams import RowStream
from whet.tables import read_table, write_table

#: Columns that hold text or messages.
TEXTS = ("prompt", "completion", "chosen", "rejected")
ROW = "row"


def read_examples(path: Path, needs: Sequence[str]) -> pa.Table:
    r"""Read rows and check them.

    Parameters
    ----------
    path : Path
        CSV, TSV, JSONL or Parquet; anything that :func:`whet.tables.read_table` takes.
    needs : sequence of str
        Columns that must be there, e.g. ``("prompt", "completion")``.

    Returns
    -------
    pyarrow.Table
        With int64 ``row``; other columns as they were.

    Raises
    ------
    WhetError
        If a column is missing, or neither text nor messages; a value is missing; a prompt is empty;
        or ``row`` is no whole number.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "demos.jsonl"
    >>> _ = path.write_text('{"prompt": "2+2=", "completion": "4"}\n')
    >>> read_examples(path, ["prompt", "completion"]).column_names
    ['row', 'prompt', 'completion']
    """
    table, path = read_table(path), Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        typed = [c for c in TEXTS if c in table.column_names and not _is_text(table[c].type)]
        written = pa.Table.from_batches(RowStream(path).batches()) if typed else table
        for column in typed:  # an answer such as True is text, as it is written
            table = table.set_column(table.column_names.index(column), column, written[column])
    return check_examples(table, needs, str(path))


def check_examples(table: pa.Table, needs: Sequence[str], name: str = "the table") -> pa.Table:
    """Check a table as :func:`read_examples` does, and return it with ``row``.

    Parameters
    ----------
    table : pyarrow.Table
    needs : sequence of str
    name : str
        What the errors call it.

    Examples
    --------
    >>> check_examples(pa.table({"prompt": ["a", "a"]}), ["prompt"])["row"].to_pylist()
    [0, 1]
    """
    for column in needs:
        if column not in table.column_names:
            others = [c for c in table.column_names if c not in needs]
            near = did_you_mean(column, others) if others else ""
            raise WhetError(f"{name} has no column {column!r}{near}: it needs {', '.join(needs)}")
    if not table.num_rows:
        raise WhetError(f"{name} has no rows: give at least one")
    for column in needs:
        if column in TEXTS:
            table = _checked(table, column, name)
    kinds = {is_messages(table[column].type) for column in needs if column in TEXTS}
    if len(kinds) > 1:
        raise WhetError(
            f"{name} has text in some of the columns {', '.join(needs)} and messages in others: "
            "write all as text, or all as messages"
        )
    return _numbered(table, name)


def write_examples(path: Path, table: pa.Table) -> None:
    """Write rows atomically, in the format of the suffix: CSV, TSV, JSONL or Parquet.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "demos.parquet"
    >>> write_examples(path, pa.table({"prompt": ["a"], "completion": ["b"]}))
    >>> read_examples(path, ["prompt"])["completion"].to_pylist()
    ['b']
    """
    write_table(table, path)


def is_conversational(table: pa.Table) -> bool:
    """Whether prompts are lists of messages.

    Examples
    --------
    >>> is_conversational(pa.table({"prompt": [[{"role": "user", "content": "Hi"}]]}))
    True
    """
    return is_messages(table.schema.field("prompt").type)


def digest(table: pa.Table) -> str:
    """Return the SHA-256 of the rows as JSON, whatever file or chunks they came in.

    Examples
    --------
    >>> digest(pa.table({"prompt": ["a"]})) == digest(pa.table({"prompt": ["b"]}))
    False
    """
    whole = hashlib.sha256()
    for batch in table.to_batches():
        for row in batch.to_pylist():
            whole.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return whole.hexdigest()


def is_messages(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of messages."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(
        listed
        and pa.types.is_struct(kind.value_type)
        and {"role", "content"} <= {field.name for field in kind.value_type}
    )


def _checked(table: pa.Table, column: str, name: str) -> pa.Table:
    """Return the table with a column of whole text or messages."""
    values = table[column]
    if not is_messages(values.type):
        if not _is_text(values.type):
            if pa.types.is_nested(values.type) or values.null_count == len(values):
                raise WhetError(
                    f"the column {column!r} of {name} holds {values.type}: it needs text, or lists "
                    'of messages {"role": ..., "content": ...}'
                )
            values = values.cast(pa.string())  # a CSV of numbers, such as answers
            table = table.set_column(table.column_names.index(column), column, values)
        empty = pc.equal(pc.utf8_length(values), 0)
    else:
        empty = pc.equal(pc.list_value_length(values), 0)
        _check_messages(values, column, name)
    bad = pc.fill_null(empty, True) if column == "prompt" else pc.is_null(values)
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise WhetError(f"row {row} of {name} has no {column}: give it one, or remove the row")
    return table


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_messages(values: pa.ChunkedArray, column: str, name: str) -> None:
    for row, messages in enumerate(values.to_pylist()):
        for message in messages or []:
            if not _is_message(message):
                raise WhetError(
                    f"row {row} of {name} has a message in {column!r} without role and content in "
                    "text: give it both"
                )


def _is_message(message: Any) -> bool:  # noqa: ANN401
    return message is not None and all(isinstance(message[k], str) for k in ("role", "content"))


def _numbered(table: pa.Table, name: str) -> pa.Table:
    if ROW not in table.column_names:
        return table.add_column(0, ROW, pa.array(np.arange(table.num_rows)))
    rows = table[ROW]
    if not pa.types.is_integer(rows.type) or rows.null_count:
        raise WhetError(
            f"the column {ROW!r} of {name} holds {rows.type}: it is the number of the row where "
            "it first came from, a whole number each; rename or remove it"
        )
    return table.set_column(table.column_names.index(ROW), ROW, rows.cast(pa.int64()))
