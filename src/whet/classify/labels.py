"""Labels as users hold them (strings, ints, bools, gaps) and as the mathematics needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError, did_you_mean

Label = str | int | bool
Codes = NDArray[np.int64]

#: The code of "no label": the annotator abstained, or the row has no gold label.
MISSING = -1


def clean_label(value: Any, row: int, role: str) -> Label | None:  # noqa: ANN401
    """Return one label as a plain str, int or bool, or None where it is missing.

    None, NaN and the empty string mean "no label". Integral floats become ints, because a column
    of ints with gaps reaches Python as floats.

    Parameters
    ----------
    value : object
        What the table or array holds.
    row : int
        Row number, from 0, for the error.
    role : str
        ``"pseudo-label"`` or ``"gold label"``, for the error.

    Raises
    ------
    WhetError
        If the value is neither a string, an int, a bool nor missing.

    Examples
    --------
    >>> clean_label(1.0, 0, "gold label"), clean_label("", 0, "gold label")
    (1, None)
    """
    if type(value) is str:
        return value or None
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool | int):
        if abs(value) >= 1 << 63:
            raise WhetError(f"row {row} has the {role} {value}, beyond 64 bits: use strings")
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return str(value) or None
    if type(value).__name__ in {"NAType", "NaTType"}:  # pandas' own gaps, without pandas
        return None
    raise WhetError(
        f"row {row} has the {role} {value!r} ({type(value).__name__}): labels must be strings, "
        "ints or bools; convert the column"
    )


def clean_labels(values: Iterable[Any], role: str) -> list[Label | None]:
    """Return :func:`clean_label` of every value."""
    return [clean_label(value, row, role) for row, value in enumerate(values)]


def find_classes(labels: list[Label | None], gold: Sequence[Label | None] = ()) -> list[Label]:
    """Return the sorted distinct labels, at least two of one kind.

    Parameters
    ----------
    labels : list
        The annotators' labels.
    gold : sequence
        Gold labels. A class that no annotator names counts too, but for one on a single row whose
        name is nearly that of another class: that is taken for an error of typing.

    Raises
    ------
    WhetError
        If all labels are missing, only one class occurs, or strings and numbers are mixed.

    Examples
    --------
    >>> find_classes(["spam", None, "ham"])
    ['ham', 'spam']
    """
    found = {label for label in labels if label is not None}
    if not found:
        raise WhetError(
            f"all {len(labels)} pseudo-labels are missing: refinement starts from an annotator's "
            "labels; check that the right column is named"
        )
    is_text = isinstance(next(iter(found)), str)
    names = [str(label) for label in found] if is_text else []
    found |= {
        label
        for label, rows in Counter(gold).items()
        if label is not None
        and isinstance(label, str) == is_text
        and (rows > 1 or not get_close_matches(str(label), names, cutoff=0.75))
    }
    kinds = {"text" if isinstance(label, str) else "number" for label in found}
    if len(kinds) > 1:
        text = next(label for label in found if isinstance(label, str))
        number = next(label for label in found if not isinstance(label, str))
        raise WhetError(
            f"the pseudo-labels mix text ({text!r}) and numbers ({number!r}): use one kind"
        )
    if len(found) == 1:
        raise WhetError(
            f"every pseudo-label is {next(iter(found))!r}: at least two classes are needed; an "
            "annotator that gives one label to everything carries no information to refine"
        )
    return sorted(found)


def encode(labels: list[Label | None], classes: list[Label], role: str) -> Codes:
    """Return the position of each label in ``classes``; -1 where it is missing.

    Raises
    ------
    WhetError
        If a label is not among the classes.

    Examples
    --------
    >>> encode(["spam", None, "ham"], ["ham", "spam"], "pseudo-label")
    array([ 1, -1,  0])
    """
    position: dict[Label | None, int] = {label: code for code, label in enumerate(classes)}
    position[None] = MISSING
    try:
        return np.fromiter((position[label] for label in labels), dtype=np.int64, count=len(labels))
    except KeyError:
        row, label = next((r, lab) for r, lab in enumerate(labels) if lab not in position)
    if any(str(label) == str(known) for known in classes):
        kind, other = type(label).__name__, type(classes[0]).__name__
        raise WhetError(
            f"row {row} has the {role} {label!r} ({kind}) and pseudo-labels are {other}: convert "
            "one of the columns"
        )
    raise WhetError(
        f"row {row} has the {role} {label!r}, which no pseudo-label uses"
        f"{did_you_mean(str(label), [str(c) for c in classes])}: correct it or leave it empty"
    )


def class_array(classes: list[Label]) -> NDArray[Any]:
    """Return the classes as an array: ints as int64, bools as bool, strings as str objects.

    Strings stay objects so that ``classes_[codes]`` gives plain Python strings of any length.

    Examples
    --------
    >>> class_array(["ham", "spam"]).tolist()
    ['ham', 'spam']
    """
    kind: type = object
    if all(isinstance(label, bool) for label in classes):
        kind = bool
    elif all(not isinstance(label, str) for label in classes):
        kind = np.int64
    return np.array(classes, dtype=kind)
