"""What the user gives, checked: texts, pseudo-labels and gold labels of every kind become codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from whet.classify.labels import Codes, Label, class_array, clean_labels, encode, find_classes
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
    pseudo, gold : int64 arrays of shape (n,)
        Codes of the labels, -1 where there is none.

    Examples
    --------
    >>> inputs = check_inputs(["a", "b", "c", "d"], [1, 0, None, 1], None)
    >>> inputs.classes.tolist(), inputs.pseudo.tolist(), inputs.gold.tolist()
    ([0, 1], [1, 0, -1, 1], [-1, -1, -1, -1])
    """

    texts: list[str]
    classes: NDArray[Any]
    pseudo: Codes
    gold: Codes


def check_inputs(
    texts: Iterable[str], pseudo_labels: Iterable[Any], gold_labels: Iterable[Any] | None
) -> Inputs:
    """Check a corpus and encode its labels.

    Parameters
    ----------
    texts : iterable of str, length n
    pseudo_labels : iterable of str, int, bool or None, length n
    gold_labels : iterable, length n, optional

    Raises
    ------
    WhetError
        If lengths or indexes differ, a value is unusable, there are fewer than two classes or
        fewer than two rows a class, or a gold label is not among the classes.
    """
    _check_aligned(texts, pseudo_labels, gold_labels)
    checked = check_texts(texts)
    pseudo = clean_labels(pseudo_labels, "pseudo-label")
    given = [None] * len(checked) if gold_labels is None else gold_labels
    gold = clean_labels(given, "gold label")
    if not len(checked) == len(pseudo) == len(gold):
        raise WhetError(
            f"{len(checked)} texts, {len(pseudo)} pseudo-labels and {len(gold)} gold labels: "
            "give one of each a row (None where there is no label)"
        )
    if not checked:
        raise WhetError("there are no rows: give at least 4 texts with labels")
    classes = find_classes(pseudo)
    _warn_about_variants(classes)
    if len(checked) < 2 * len(classes):
        raise WhetError(
            f"{len(checked)} rows for {len(classes)} classes: at least {2 * len(classes)} rows "
            "(2 a class) are needed to fit anything; add rows"
        )
    return Inputs(
        checked,
        class_array(classes),
        encode(pseudo, classes, "pseudo-label"),
        encode(gold, classes, "gold label"),
    )


def _check_aligned(texts: Any, *labels: Any) -> None:  # noqa: ANN401
    """Refuse pandas objects whose rows are in another order than those of the texts."""
    index = getattr(texts, "index", None) if hasattr(texts, "iloc") else None
    for other in labels:
        if index is not None and hasattr(other, "iloc") and not index.equals(other.index):
            raise WhetError(
                "texts and labels are pandas objects with different indexes: reindex the labels "
                "like the texts, or pass lists in the same order"
            )


def _warn_about_variants(classes: list[Label]) -> None:
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
