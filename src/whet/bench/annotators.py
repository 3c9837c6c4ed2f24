"""Simulated annotators, to ask what whet would do for an annotator of 70 % on given texts.

Two kinds, both seeded. :func:`weak_teacher` errs as a weak model does, on texts that it reads
wrongly; its errors depend on the text and on the class. :func:`flips` errs without looking at the
text, more often on some classes than on others; this is the noise that theory assumes and that
real annotators do not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from whet.errors import WhetError

Codes = NDArray[np.int64]

#: A simulated annotator is right on this share of rows more or less than asked for, at most.
TOLERANCE = 0.01


def weak_teacher(
    texts: Sequence[str], truth: Codes, accuracy: float, seed: int = 0
) -> tuple[Codes, NDArray[np.float64]]:
    """Label a corpus with a model that learned from few labels.

    The teacher is a logistic regression on the presence of words, of which it knows a random half,
    so that it sees other features than the n-grams or embeddings of the students. It learns from a
    random sample with as many rows of each class as far as there are; the sample grows (2, 3, 4, 6,
    8, 12, ... rows a class, at most half of the corpus) until the teacher is right often enough.
    What it is then too good by is taken away with Gumbel noise on its class scores, which turns the
    close calls first. The rows of the sample are labelled by the teacher like all others.

    Parameters
    ----------
    texts : sequence of str, length n
    truth : int64 array of shape (n,)
        True classes, 0..K-1.
    accuracy : float
        Share of rows that the teacher is to label right, over 1/K and under 1.
    seed : int
        Same seed, same labels.

    Returns
    -------
    codes : int64 array of shape (n,)
        Within 1 point of ``accuracy``.
    confidence : float64 array of shape (n,)
        The teacher's own probability of its label. It is not calibrated.

    Raises
    ------
    WhetError
        If the accuracy cannot be reached on these texts.

    Examples
    --------
    >>> truth = np.arange(400) % 2
    >>> texts = [("good fine" if y else "bad sad") + f" film {i % 7}" for i, y in enumerate(truth)]
    >>> codes, confidence = weak_teacher(texts, truth, 0.7)
    >>> bool(abs((codes == truth).mean() - 0.7) < 0.01), confidence.shape
    (True, (400,))
    """
    k = _check(truth, accuracy)
    if accuracy <= 1 / k or accuracy >= 1:
        raise WhetError(
            f"accuracy = {accuracy}: a weak teacher of {k} classes is right on more than 1/{k} and "
            "fewer than all rows; choose a value between"
        )
    rng = np.random.default_rng(seed)
    scores, reached = _learn(_words(texts, rng), truth, accuracy, rng)
    if reached < accuracy - TOLERANCE / 2:
        raise WhetError(
            f"accuracy = {accuracy}: a weak teacher reaches {reached:.3f} at most on these texts; "
            "ask for less, or simulate with flips"
        )
    noise = rng.gumbel(size=scores.shape) * scores.std()
    scores = scores + _noise_scale(scores, noise, truth, accuracy) * noise
    codes = scores.argmax(axis=1).astype(np.int64)
    _check_hit(codes, truth, accuracy)
    return codes, softmax(scores, axis=1).max(axis=1)


def flips(truth: Codes, accuracy: float, seed: int = 0, asymmetry: float = 0.5) -> Codes:
    """Flip true labels at random, whatever the text says.

    Class c loses a share of its labels that is proportional to 1 + asymmetry * u_c, where the u_c
    lie evenly between -1 and 1 in a random order of the classes. Flipped labels go to the other
    classes in a random order that each class has for itself: half to the first, a quarter to the
    second, and so on.

    Parameters
    ----------
    truth : int64 array of shape (n,)
        True classes, 0..K-1.
    accuracy : float
        Share of rows that keep their label.
    seed : int
        Same seed, same labels.
    asymmetry : float
        From 0, where all classes lose the same share, to 1, where one class loses nothing.

    Returns
    -------
    int64 array of shape (n,)
        Labels that are right on a share of ``accuracy``, up to rounding.

    Raises
    ------
    WhetError
        If a class would have to lose more labels than it has.

    Examples
    --------
    >>> truth = np.arange(1000) % 2
    >>> codes = flips(truth, 0.75, asymmetry=1.0)
    >>> float((codes == truth).mean()), sorted((codes != truth)[truth == c].mean() for c in (0, 1))
    (0.75, [np.float64(0.0), np.float64(0.5)])
    """
    k = _check(truth, accuracy)
    if not 0 <= asymmetry <= 1:
        raise WhetError(f"asymmetry = {asymmetry}: choose a value from 0 to 1")
    rng = np.random.default_rng(seed)
    sizes = np.bincount(truth, minlength=k)
    weight = sizes * (1 + asymmetry * rng.permutation(np.linspace(-1, 1, k)))
    lost = (1 - accuracy) * len(truth) * weight / weight.sum()
    if (lost > sizes).any():
        c = int((lost - sizes).argmax())
        raise WhetError(
            f"accuracy = {accuracy} with asymmetry = {asymmetry}: class {c} has {sizes[c]} rows "
            f"and would have to lose {lost[c]:.0f}; raise the accuracy or lower the asymmetry"
        )
    # Rounding the running total keeps the overall count right to one row.
    counts = np.diff(np.concatenate([[0], np.round(np.cumsum(lost))])).astype(int)
    codes = truth.copy()
    share = 0.5 ** np.arange(1, k)
    for c in range(k):
        rows = rng.permutation(np.flatnonzero(truth == c))[: counts[c]]
        others = rng.permutation(np.delete(np.arange(k), c))
        codes[rows] = rng.choice(others, size=len(rows), p=share / share.sum())
    return codes


def _check(truth: Codes, accuracy: float) -> int:
    """Return the number of classes."""
    k = int(truth.max(initial=-1)) + 1
    if k < 2 or truth.min() < 0:
        raise WhetError(f"the true labels have {k} classes: give codes from 0 to K-1, K >= 2")
    if not 0 < accuracy <= 1:
        raise WhetError(f"accuracy = {accuracy}: choose a share of rows over 0 and at most 1")
    return k


def _words(texts: Sequence[str], rng: np.random.Generator) -> object:
    """Presence of a random half of the words, sparse, shape (n, v)."""
    try:
        # One character is a word too: SMILES and some scripts have hardly any other.
        word = r"(?u)\b\w+\b"
        presence = CountVectorizer(binary=True, min_df=2, token_pattern=word)
        words = presence.fit_transform(texts)
    except ValueError as error:  # scikit-learn: empty vocabulary, or no terms remain
        raise WhetError(
            "no word occurs in two of the texts: a weak teacher cannot learn from them; simulate "
            "with flips"
        ) from error
    known = np.sort(rng.permutation(words.shape[1])[: max(2, words.shape[1] // 2)])
    return words[:, known].astype(np.float64)


def _learn(
    words: object, truth: Codes, accuracy: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Grow the sample until the teacher is right often enough, or the sample is half the corpus.

    Returns
    -------
    scores : float64 array of shape (n, K)
        Log probabilities of the best teacher so far.
    reached : float
        Its accuracy.
    """
    k = int(truth.max()) + 1
    order = [rng.permutation(np.flatnonzero(truth == c)) for c in range(k)]
    best = np.empty((len(truth), k)), 0.0
    for size in _sizes(max(len(rows) for rows in order)):
        sample = np.concatenate([rows[:size] for rows in order])
        if len(sample) > max(len(truth) / 2, 4 * k):
            break
        model = LogisticRegression(max_iter=1000).fit(words[sample], truth[sample])  # type: ignore[index]
        scores = np.full((len(truth), k), -20.0)  # a class without rows is never said
        scores[:, model.classes_] = log_softmax(
            _two_columns(model.decision_function(words)), axis=1
        )
        reached = float((scores.argmax(axis=1) == truth).mean())
        if reached > best[1]:
            best = scores, reached
        if reached >= accuracy:
            break
    return best


def _sizes(most: int) -> list[int]:
    """2, 3, 4, 6, 8, 12, 16, ... up to ``most``."""
    ladder = sorted({2**i for i in range(1, 31)} | {3 * 2**i for i in range(30)})
    return [size for size in ladder if size <= max(most, 2)]


def _two_columns(decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of shape (n, K); scikit-learn gives one column for two classes."""
    return np.column_stack([np.zeros_like(decision), decision]) if decision.ndim == 1 else decision


def _noise_scale(
    scores: NDArray[np.float64], noise: NDArray[np.float64], truth: Codes, accuracy: float
) -> float:
    """Find by bisection how much of the noise brings the accuracy down to the target."""

    def reached(scale: float) -> float:
        return float(((scores + scale * noise).argmax(axis=1) == truth).mean())

    if reached(0.0) <= accuracy:
        return 0.0
    low, high = 0.0, 1.0
    while reached(high) > accuracy and high < 1e6:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > accuracy else (low, middle)
    return min((low, high), key=lambda scale: abs(reached(scale) - accuracy))


def _check_hit(codes: Codes, truth: Codes, accuracy: float) -> None:
    reached = float((codes == truth).mean())
    if abs(reached - accuracy) > TOLERANCE:
        raise WhetError(
            f"accuracy = {accuracy}: the nearest that a weak teacher comes on these {len(truth)} "
            f"texts is {reached:.3f}; give more texts or choose another accuracy"
        )
