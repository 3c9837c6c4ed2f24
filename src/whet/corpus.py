"""A corpus: a table whose columns of texts, pseudo-labels and gold labels are known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.errors import WhetError, did_you_mean
from whet.tables import has_surrogate, read_table

#: Columns that ``whet refine`` adds; see docs/run-folder.md.
REFINED_COLUMNS = (
    "pseudo_label",
    "refined_label",
    "refined_prob",
    "changed",
    "suspicion",
    "reason",
)


@dataclass(frozen=True)
class Corpus:
    """A table with the columns that refinement works on.

    Attributes
    ----------
    table : pyarrow.Table
        All input columns, rows in input order.
    texts : list of str
        An absent text is the empty string.
    pseudo_labels : list, or dict of str to list
        The annotator's labels as the table holds them; gaps are None, NaN or "". Several
        annotators are a dict with a column each.
    gold_labels : list or None
        Same length, or None where no gold column was named.
    checked_labels : list or None
        The same for labels of rows that are no random sample.
    confidence : float64 array of shape (n, m) or None
        The annotators' confidence, NaN in gaps.
    source : str
        What the rows come from, for messages.

    Examples
    --------
    >>> corpus = read_corpus({"t": ["a", "b"], "llm": [1, 0]}, text="t", pseudo="llm")
    >>> corpus.texts, corpus.pseudo_labels
    (['a', 'b'], [1, 0])
    """

    table: pa.Table
    texts: list[str]
    pseudo_labels: list[Any] | dict[str, list[Any]]
    gold_labels: list[Any] | None
    checked_labels: list[Any] | None
    confidence: NDArray[np.float64] | None
    source: str


def read_corpus(
    source: object,
    *,
    text: str,
    pseudo: str,
    gold: str | None = None,
    pseudo_prob: str | None = None,
    checked: str | None = None,
) -> Corpus:
    """Read a table and check that it has the named columns.

    Parameters
    ----------
    source : path or table
        See :func:`read_table`.
    text, pseudo : str
        Names of the column of texts and of the annotator's labels. Several annotators are named
        with commas between them, as in ``"gpt,llama"``.
    gold : str, optional
        Name of the column of gold labels, empty where unknown.
    pseudo_prob : str, optional
        Names of the columns of the annotators' confidence, as many as annotators; empty where it
        is unknown.
    checked : str, optional
        Name of the column of labels that people gave to rows of their choice, empty elsewhere.

    Raises
    ------
    WhetError
        If the source cannot be read, is empty, or lacks a column.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else "the table"
    table = read_table(source)
    annotators, sure = _names(table, pseudo), _names(table, pseudo_prob)
    if sure and len(sure) != len(annotators):
        raise WhetError(
            f"--pseudo-prob names {len(sure)} columns for {len(annotators)} annotators: name one "
            "for each, in the same order"
        )
    roles = [("text", text), *(("pseudo", c) for c in annotators)]
    roles += [(role, c) for role, c in (("gold", gold), ("checked", checked)) if c is not None]
    roles += [("pseudo-prob", c) for c in sure]
    for role, column in roles:
        require_column(table, column, f"--{role}", name)
    names = [column for _, column in roles]
    if len(set(names)) < len(names):
        twice = next(column for column in names if names.count(column) > 1)
        kinds = list(dict.fromkeys(role for role, _ in roles))
        raise WhetError(
            f"the column {twice!r} is named twice ({', '.join(kinds[:-1])} and {kinds[-1]} are "
            f"{', '.join(map(repr, names))}): name a different column of {name} for each"
        )
    added = [c for c in REFINED_COLUMNS if c != "pseudo_label"]
    if annotators != ["pseudo_label"]:
        added.append(annotator_column(table))
    taken = [c for c in added if c in table.column_names]
    if taken:
        raise WhetError(
            f"{name} already has the column {taken[0]!r}, which the result adds: rename it"
        )
    labels = {c: _label_column(table, c, name) for c in annotators}
    words = {v for c in labels.values() for v in c if isinstance(v, str)}
    gold_labels, checked_labels = (
        None if c is None else _like_labels(_label_column(table, c, name), words)
        for c in (gold, checked)
    )
    return Corpus(
        table,
        text_column(table, text, name),
        labels if len(labels) > 1 else labels[annotators[0]],
        gold_labels,
        checked_labels,
        np.stack([_numbers(table, c, name) for c in sure], axis=1) if sure else None,
        name,
    )


def annotator_column(table: pa.Table) -> str:
    """Return the column for what the annotator said: another one where an input holds that name.

    It does where ``whet annotate`` wrote the labels of one of several annotators.
    """
    return "annotator_label" if "pseudo_label" in table.column_names else "pseudo_label"


def _like_labels(gold: list[Any], labels: set[Any]) -> list[Any]:
    """Return gold 1 as "1" where annotators, as ``whet annotate``, have the text for the number."""
    known = [value for value in gold if value is not None and value == value]
    whole = all(type(v) is int or (type(v) is float and v.is_integer()) for v in known)
    if not whole or not {str(int(v)) for v in known} <= labels:
        return gold
    return [None if v is None or v != v else str(int(v)) for v in gold]


def _names(table: pa.Table, named: str | None) -> list[str]:
    """Split names at commas, unless the whole is a column's name."""
    if named is None:
        return []
    if named in table.column_names or "," not in named:
        return [named]
    return [part.strip() for part in named.split(",")]


def _numbers(table: pa.Table, column: str, source: str) -> NDArray[np.float64]:
    """Return a column as floats, NaN where it is empty."""
    try:
        values = [None if v == "" else v for v in table[column].to_pylist()]
        return np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WhetError(
            f"the column {column!r} of {source} holds no numbers ({error}): name a column of "
            "probabilities"
        ) from error


def _label_column(table: pa.Table, column: str, source: str) -> list[Any]:
    """Return a column of labels; in CSV, "1.0" is what pandas makes of 1 in a column with gaps."""
    values: list[Any] = table[column].to_pylist()
    if source.lower().endswith((".csv", ".tsv")):
        given = [value for value in values if value]
        if given and all(isinstance(v, str) and re.fullmatch(r"-?\d+\.0", v) for v in given):
            return [int(value[:-2]) if value else None for value in values]
    return values


def require_column(table: pa.Table, column: str, flag: str, source: str) -> None:
    """Raise ``WhetError`` naming the nearest column if ``table`` lacks ``column``."""
    names = table.column_names
    if names.count(column) == 1:
        return
    if names.count(column) > 1:
        raise WhetError(f"{source} has {names.count(column)} columns named {column!r}: rename one")
    hint = did_you_mean(column, names)
    separators = {";": "semicolons", "\t": "tabs", "|": "bars"}
    if len(names) == 1:
        found = next((word for mark, word in separators.items() if mark in names[0]), None)
        hint = f" (its only column is {names[0]!r})" + (
            f"; it seems to be separated by {found}, not commas" if found else ""
        )
    raise WhetError(f"{source} has no column {column!r}{hint}: name it with {flag}")


def text_column(table: pa.Table, column: str, source: str) -> list[str]:
    """Return a column as strings, absent values as ``""``.

    Raises
    ------
    WhetError
        If the column does not hold text, or the table is empty.
    """
    if table.num_rows == 0:
        raise WhetError(f"{source} has no rows: give at least one text")
    values = table[column]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        if not pa.types.is_primitive(values.type):
            raise WhetError(
                f"the column {column!r} of {source} holds {values.type}, not UTF-8 text: convert "
                "it or name another"
            )
        values = values.cast(pa.string())
    try:
        return [value or "" for value in values.to_pylist()]
    except UnicodeDecodeError as error:
        raise WhetError(
            f"the column {column!r} of {source} holds bytes that are not UTF-8: convert it"
        ) from error


def check_texts(texts: Iterable[Any]) -> list[str]:
    """Return texts as a list of str; None becomes "".

    Raises
    ------
    WhetError
        If ``texts`` is one string, or a value is no string or holds half of a surrogate pair.

    Examples
    --------
    >>> check_texts(["a", None])
    ['a', '']
    """
    if isinstance(texts, str):
        raise WhetError("texts is one string: pass a list of texts, also for a single one")
    checked: list[str] = []
    for row, text in enumerate(texts):
        if text is None or (isinstance(text, float) and text != text):
            text = ""
        if not isinstance(text, str):
            raise WhetError(
                f"text {row} is {type(text).__name__}, not a string: convert it, or pass "
                "features you already have to UUClassifier"
            )
        if not text.isascii() and has_surrogate(text):
            raise WhetError(
                f"text {row} holds half of a surrogate pair, which is no character: remove it "
                "(for example text.encode('utf-8', 'ignore').decode())"
            )
        checked.append(str(text))
    return checked
