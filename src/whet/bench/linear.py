"""The linear model under every peer: one student for all, so that no method wins by its student."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from whet.bench.annotators import Codes
from whet.errors import WhetError

Dense = NDArray[np.float32]
Probabilities = NDArray[np.float64]

#: Strength of the l2 penalty: loss summed over rows plus l2/2 times the squared weights. The first
#: is scikit-learn's default and was better for cleanlab on the tuning cells of the panel than 0.3
#: or 0.03; the second was the best of 0.03, 0.1, 0.3, 1 and 3 there with 50 gold rows.
L2_CORPUS, L2_GOLD = 1.0, 0.03


def student(l2: float = L2_CORPUS) -> LogisticRegression:
    """Return an unfitted multinomial logistic regression."""
    return LogisticRegression(C=1 / l2, max_iter=1000)


def probabilities(model: LogisticRegression, features: Dense, k: int) -> Probabilities:
    """Return a model's probabilities of all k classes, 0 for those that it never saw."""
    found = np.zeros((len(features), k))
    found[:, model.classes_] = model.predict_proba(features)
    return found


def fit_predict(features: Dense, labels: Codes, k: int, l2: float = L2_CORPUS) -> Probabilities:
    """Fit on the rows with a label and return the probabilities of all rows.

    Parameters
    ----------
    features : float32 array of shape (n, D)
    labels : int64 array of shape (n,)
        -1 where there is none.
    k : int
    l2 : float

    Returns
    -------
    float64 array of shape (n, k)

    Raises
    ------
    WhetError
        If the labels are of fewer than two classes.

    Examples
    --------
    >>> features = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    >>> fit_predict(features, np.array([0, 1, -1]), 2).argmax(axis=1).tolist()
    [0, 1, 0]
    """
    known = labels >= 0
    classes = np.unique(labels[known])
    if len(classes) < 2:
        raise WhetError(
            f"{int(known.sum())} labels of {len(classes)} classes: a classifier needs labels of at "
            "least two; give more"
        )
    return probabilities(student(l2).fit(features[known], labels[known]), features, k)


def out_of_fold(features: Dense, labels: Codes, k: int, seed: int, folds: int = 5) -> Probabilities:
    """Return each row's probabilities from a model that did not see its label.

    Parameters
    ----------
    features : float32 array of shape (n, D)
    labels : int64 array of shape (n,)
        -1 where there is none.
    k : int
    seed : int
        Draws the folds.
    folds : int

    Returns
    -------
    float64 array of shape (n, k)

    Examples
    --------
    >>> features = np.tile(np.eye(2, dtype=np.float32), (20, 1))
    >>> out_of_fold(features, np.tile([0, 1], 20), 2, seed=0).argmax(axis=1)[:4].tolist()
    [0, 1, 0, 1]
    """
    found = np.empty((len(features), k))
    for rest, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        seen = np.full_like(labels, -1)
        seen[rest] = labels[rest]
        found[held_out] = fit_predict(features, seen, k)[held_out]
    return found


def most_frequent(labels: Codes) -> int:
    """Return the most frequent label, the smallest of several; -1 stands for none."""
    return int(np.bincount(labels[labels >= 0]).argmax())


def filled(labels: Codes) -> Codes:
    """Return labels with gaps closed by the most frequent one.

    Examples
    --------
    >>> filled(np.array([1, -1, 1, 0])).tolist()
    [1, 1, 1, 0]
    """
    return np.where(labels < 0, most_frequent(labels), labels)


def with_gold(labels: Codes, gold: Codes) -> Codes:
    """Return labels with the gold label where it is known.

    Examples
    --------
    >>> with_gold(np.array([1, 1, 0]), np.array([-1, 0, -1])).tolist()
    [1, 0, 0]
    """
    return np.where(gold < 0, labels, gold)


def need_gold(gold: Codes, method: str) -> None:
    """Raise ``WhetError`` where a method has no gold labels to learn from."""
    if not (gold >= 0).any():
        raise WhetError(f"{method} learns from gold labels, and there are none: give some")


def as_codes(values: Sequence[int] | NDArray[np.generic]) -> Codes:
    """Return labels that a package gave as int64 codes."""
    return np.asarray(values).astype(np.int64)
