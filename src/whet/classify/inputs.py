"""What the user gives, checked: texts, pseudo-labels and gold labels of every kind become codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.classify.labels import (
    MISSING,
    Codes,
    Label,
    class_array,
    clean_labels,
    encode,
    find_classes,
)
from whet.classify.risks import FloatArray
from whet.corpus import check_texts
from whet.errors import WhetError, WhetWarning


@dataclass(frozen=True)
class Inputs:
    """A corpus that can be refined.

    Attributes
    ----------
    texts : list of str, length n
    classes : array of shape (K,)
        Distinct pseudo-labels, sorted.
    votes : int64 array of shape (n, m)
        Codes of the labels, one column an annotator, -1 where it abstained.
    pseudo : int64 array of shape (n,)
        The annotators' most frequent label, the earlier annotator's where several are; -1 where
        all abstained.
    gold : int64 array of shape (n,)
        Codes of the gold labels, -1 where there is none.
    checked : int64 array of shape (n,)
        The same for labels of rows that are no random sample and have no gold label.

    Examples
    --------
    >>> inputs = check_inputs(["a", "b", "c", "d"], [1, 0, None, 1], None)
    >>> inputs.classes.tolist(), inputs.pseudo.tolist(), inputs.gold.tolist()
    ([0, 1], [1, 0, -1, 1], [-1, -1, -1, -1])
    """

    texts: list[str]
    classes: NDArray[Any]
    votes: Codes
    pseudo: Codes
    gold: Codes
    checked: Codes


def check_inputs(
    texts: Iterable[str],
    pseudo_labels: Any,  # noqa: ANN401 - a column or a table
    gold_labels: Iterable[Any] | None,
    *,
    gold_classes: bool = False,
    checked_labels: Iterable[Any] | None = None,
) -> Inputs:
    """Check a corpus and encode its labels.

    Parameters
    ----------
    texts : iterable of str, length n
    pseudo_labels : iterable of str, int, bool or None, length n; or a table
        A table (dataframe, dict of columns, or 2-d array) has one column an annotator.
    gold_labels : iterable, length n, optional
    gold_classes : bool
        Whether a class may be known from gold rows alone.
    checked_labels : iterable, length n, optional
        Labels of rows that are no random sample; a gold label of the same row stands.

    Raises
    ------
    WhetError
        If lengths or indexes differ, a value is unusable, there are fewer than two classes or
        fewer than two rows a class, or a gold label is not among the classes.
    """
    _check_aligned(texts, pseudo_labels, gold_labels, checked_labels)
    rows = check_texts(texts)
    columns = [clean_labels(column, "pseudo-label") for column in annotators(pseudo_labels)]
    gold, checked = (
        clean_labels([None] * len(rows) if given is None else given, f"{kind} label")
        for kind, given in (("gold", gold_labels), ("checked", checked_labels))
    )
    wrong = next((len(c) for c in columns if len(c) != len(rows)), len(rows))
    if not len(rows) == wrong == len(gold) == len(checked):
        more = "" if checked_labels is None else f", {len(checked)} checked labels"
        raise WhetError(
            f"{len(rows)} texts, {wrong} pseudo-labels{more} and {len(gold)} gold labels: give "
            "one of each a row (None where there is no label)"
        )
    if not rows:
        raise WhetError("there are no rows: give at least 4 texts with labels")
    named = [label for column in columns for label in column]
    classes = find_classes(named, gold if gold_classes else ())
    _warn_about_absence(classes)
    warn_about_variants(classes)
    if len(rows) < 2 * len(classes):
        raise WhetError(
            f"{len(rows)} rows for {len(classes)} classes: at least {2 * len(classes)} rows "
            "(2 a class) are needed to fit anything; add rows"
        )
    votes = np.stack([encode(column, classes, "pseudo-label") for column in columns], axis=1)
    gold_codes = encode(gold, classes, "gold label")
    if gold_classes:
        _warn_about_gold_classes(named, gold)
    joint = majority_vote(votes, len(classes))
    settled = encode(checked, classes, "checked label")
    settled[gold_codes != MISSING] = MISSING
    return Inputs(rows, class_array(classes), votes, joint, gold_codes, settled)


def annotators(pseudo_labels: Any) -> list[Any]:  # noqa: ANN401
    """Return the columns of a table of pseudo-labels, one an annotator, or the one column given.

    Raises
    ------
    WhetError
        If a table has no columns, or its rows differ in length.

    Examples
    --------
    >>> annotators({"gpt": [1, 0], "llama": [1, 1]})
    [[1, 0], [1, 1]]
    >>> annotators(["spam", "ham"])
    [['spam', 'ham']]
    """
    if isinstance(pseudo_labels, Mapping):
        columns = list(pseudo_labels.values())
    elif hasattr(pseudo_labels, "columns"):
        names = list(pseudo_labels.columns)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise WhetError(f"the table of pseudo-labels has two columns {twice!r}: rename one")
        columns = [pseudo_labels[name] for name in names]
    else:
        rows = list(pseudo_labels)
        if not any(isinstance(row, list | tuple | np.ndarray) for row in rows[:1]):
            return [rows]
        lengths = {len(r) if isinstance(r, list | tuple | np.ndarray) else 0 for r in rows}
        if len(lengths) > 1:
            raise WhetError(
                "the rows of the table of pseudo-labels differ in length: give one label of each "
                "annotator a row (None where it abstained)"
            )
        columns = [list(column) for column in zip(*rows, strict=True)]
    if not columns:
        raise WhetError("the table of pseudo-labels has no columns: give one an annotator")
    return columns


def annotator_names(pseudo_labels: Any) -> list[Any] | None:  # noqa: ANN401
    """Return the names of a table's columns, or None for a column and a table without names."""
    if isinstance(pseudo_labels, Mapping):
        return list(pseudo_labels)
    return list(pseudo_labels.columns) if hasattr(pseudo_labels, "columns") else None


def check_confidence(
    confidence: Any,  # noqa: ANN401
    votes: Codes,
    names: list[Any] | None = None,
) -> FloatArray | None:
    """Return the annotators' confidence as an array of shape (n, m), or None if there is none.

    NaN is a confidence that is not known.

    Raises
    ------
    WhetError
        If the shape is another, a value is no number, or an annotator has labels and no number.
    """
    if confidence is None:
        return None
    if isinstance(confidence, Mapping) or hasattr(confidence, "columns"):
        given = list(confidence if isinstance(confidence, Mapping) else confidence.columns)
        if names is not None and set(given) != set(names):
            raise WhetError(
                f"the confidence is of {', '.join(map(repr, given))} and the labels are of "
                f"{', '.join(map(repr, names))}: name its columns like theirs"
            )
        confidence = [confidence[name] for name in names or given]
        columns = [list(column) for column in confidence]
    else:
        columns = [list(column) for column in annotators(confidence)]
    if [len(column) for column in columns] != [len(votes)] * votes.shape[1]:
        raise WhetError(
            f"the confidence has {len(columns)} columns of {len(columns[0])} rows for "
            f"{votes.shape[1]} annotators and {len(votes)} rows: give one number a label"
        )
    try:
        sure = np.array(columns, dtype=np.float64).T
    except (TypeError, ValueError) as error:
        raise WhetError(f"the confidence holds no numbers ({error}): give one a label") from error
    for m, labels in enumerate(votes.T):
        answered = np.flatnonzero(labels != MISSING)
        if len(answered) and np.isnan(sure[answered, m]).all():
            name = repr(names[m]) if names else f"annotator {m + 1}"
            raise WhetError(
                f"row {answered[0]} has a label and no confidence, like all labels of {name}: "
                "leave the confidence out, or give them all the same number"
            )
    return sure


def majority_vote(votes: Codes, n_classes: int) -> Codes:
    """Return each row's most frequent code, the earlier annotator's of several; -1 for none.

    Parameters
    ----------
    votes : int64 array of shape (n, m)
        -1 where an annotator abstained.
    n_classes : int
        K.

    Returns
    -------
    int64 array of shape (n,)

    Examples
    --------
    >>> majority_vote(np.array([[1, 1, 0], [-1, 2, 0], [-1, -1, -1]]), 3).tolist()
    [1, 2, -1]
    """
    if votes.shape[1] == 1:
        return votes[:, 0].copy()
    rows = np.arange(len(votes))
    counts = np.zeros((len(votes), n_classes))
    for m, labels in enumerate(votes.T):
        cast = labels != MISSING
        # An earlier vote counts a little more, but never as much as another vote.
        counts[rows[cast], labels[cast]] += 1 + 2.0 ** -(m + 2) / votes.shape[1]
    best: Codes = np.where(counts.any(axis=1), counts.argmax(axis=1), MISSING)
    return best


def _check_aligned(texts: Any, *labels: Any) -> None:  # noqa: ANN401
    """Refuse pandas objects whose rows are in another order than those of the texts."""
    index = getattr(texts, "index", None) if hasattr(texts, "iloc") else None
    for other in labels:
        if index is not None and hasattr(other, "iloc") and not index.equals(other.index):
            raise WhetError(
                "texts and labels are pandas objects with different indexes: reindex the labels "
                "like the texts, or pass lists in the same order"
            )


#: What tables hold, in lower case, where they mean that there is no label.
ABSENCE = ("-1", "nan", "none", "null", "n/a", "na", "<na>")


def _warn_about_absence(classes: list[Label]) -> None:
    for label in classes:
        if str(label).strip().casefold() in ABSENCE:
            warnings.warn(
                f"the label {label!r} counts as a class: if it means that there is no label, "
                "leave the cell empty (None in Python)",
                WhetWarning,
                stacklevel=5,
            )


def _warn_about_gold_classes(named: list[Label | None], gold: list[Label | None]) -> None:
    only = sorted({label for label in gold if label is not None} - set(named), key=str)
    if only:
        rows = sum(label == only[0] for label in gold)
        more = f" (and {len(only) - 1} more)" if len(only) > 1 else ""
        warnings.warn(
            f"the class {only[0]!r}{more} is named by no annotator and by {rows} gold "
            f"row{'s' if rows > 1 else ''}: only gold rows can teach it; correct it if it is a "
            "typing error",
            WhetWarning,
            stacklevel=5,
        )


def warn_about_variants(classes: list[Label]) -> None:
    """Warn where two classes differ only in case or spaces.

    Parameters
    ----------
    classes : list of str, int or bool

    Examples
    --------
    >>> with warnings.catch_warnings(record=True, action="always") as said:
    ...     warn_about_variants(["spam", "Spam", "ham"])
    >>> print(said[0].message)
    the labels 'spam' and 'Spam' differ only in case or spaces and count as two classes: make them \
one if they mean the same
    """
    seen: dict[str, Label] = {}
    for label in classes:
        if isinstance(label, str):
            same = seen.setdefault(" ".join(label.casefold().split()), label)
            if same != label:
                warnings.warn(
                    f"the labels {same!r} and {label!r} differ only in case or spaces and count as "
                    "two classes: make them one if they mean the same",
                    WhetWarning,
                    stacklevel=5,
                )
