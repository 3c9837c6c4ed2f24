"""The risks that a classifier can be trained under, when labels are only pseudo-labels.

One formula covers them all. Rows fall into sets by their pseudo-label; ``l(f, j)`` is the
loss of the scores ``f`` against class ``j``::

    R(f) = sum_j  phi( sum_i  W[i, j] * mean over set i of l(f(x), j) )
    phi(x) = x if x > 0, else slope * x

=======  =========================================  ==========  ==================================
method   weights W                                  slope       source
=======  =========================================  ==========  ==================================
pn       share of set i, on the diagonal            1           ordinary supervised learning
uu       prior_j * pinv(Theta)[j, i]                1           Lu et al., ICLR 2019 (two classes);
                                                                Tang et al., ACML 2022 (K classes)
silr     the same                                   -0.001      Lu et al., AISTATS 2020; Asano et
                                                                al., NeurIPS 2025, robust UU risk
=======  =========================================  ==========  ==================================

With two classes, W holds SILR's a, -b, -c and d. The loss is the sigmoid loss
``l(z) = sigmoid(-z)``, which for K classes is ``l(f, j) = 1 - softmax(f)_j``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_softmax, softmax

from whet.errors import WhetError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: The slope that the SILR paper fixes for negative partial risks (its lambda).
SILR_SLOPE = -0.001


def uu_coefficients(
    theta_p: float, theta_n: float, prior: float
) -> tuple[float, float, float, float]:
    """Return the coefficients a, b, c, d of the binary UU risk.

    Parameters
    ----------
    theta_p, theta_n : float
        P(y = +1) in the pseudo-positive and in the pseudo-negative set; ``theta_p > theta_n``.
    prior : float
        P(y = +1) in the corpus, between 0 and 1.

    Returns
    -------
    tuple of float
        ``a, b, c, d``, all >= 0. The largest grows as 1 / (theta_p - theta_n).

    Raises
    ------
    WhetError
        If ``theta_p <= theta_n``.

    Notes
    -----
    Lu et al., ICLR 2019, weights w1 to w4; Asano et al., 2025, equation of the UU risk.

    Examples
    --------
    >>> [round(w, 2) for w in uu_coefficients(0.8, 0.3, 0.3)]
    [0.42, 0.42, 0.12, 1.12]
    """
    if theta_p <= theta_n:
        raise WhetError(
            f"theta_p = {theta_p:.3g} and theta_n = {theta_n:.3g}: the UU risk needs "
            "theta_p > theta_n; swap the two sets or use labels that are better than chance"
        )
    gap = theta_p - theta_n
    return (
        (1 - theta_n) * prior / gap,
        theta_n * (1 - prior) / gap,
        (1 - theta_p) * prior / gap,
        theta_p * (1 - prior) / gap,
    )


def binary_uu_risk(
    scores: ArrayLike,
    positive: ArrayLike,
    theta_p: float,
    theta_n: float,
    prior: float,
    slope: float = SILR_SLOPE,
) -> float:
    """Return the (robust) UU risk of one-dimensional scores, as the papers write it.

    Training uses :class:`Risk`; this is the formula with a, b, c and d, to read and to compare.

    Parameters
    ----------
    scores : array of shape (n,)
        g(x); positive means class +1.
    positive : boolean array of shape (n,)
        True for rows of the pseudo-positive set.
    theta_p, theta_n, prior : float
        As in :func:`uu_coefficients`.
    slope : float
        Slope of the generalised leaky ReLU below zero: -0.001 is SILR, 1 is the unbiased risk,
        0 is max(0, x), -1 the absolute value.

    Returns
    -------
    float
        The risk; the unbiased one may be negative.

    Examples
    --------
    >>> risk = binary_uu_risk([2.0, -1.0], [True, False], 0.8, 0.3, 0.3, slope=1.0)
    >>> round(risk, 4)
    -0.1064
    """
    scores = np.asarray(scores, dtype=np.float64)
    positive = np.asarray(positive, dtype=bool)
    a, b, c, d = uu_coefficients(theta_p, theta_n, prior)
    as_positive, as_negative = expit(-scores), expit(scores)  # l(g) and l(-g)
    positive_part = a * as_positive[positive].mean() - c * as_positive[~positive].mean()
    negative_part = d * as_negative[~positive].mean() - b * as_negative[positive].mean()
    return float(leaky(positive_part, slope) + leaky(negative_part, slope))


def leaky(value: float, slope: float) -> float:
    """Return ``value`` if positive, else ``slope * value`` (generalised leaky ReLU)."""
    return float(value) if value > 0 else float(slope * value)


def class_weights(theta: ArrayLike, prior: ArrayLike) -> FloatArray:
    """Return the weights W[i, j] = prior_j * pinv(theta)[j, i] of the class-wise UU risk.

    Parameters
    ----------
    theta : array of shape (m, K)
        P(y = j | row in set i); rows sum to 1.
    prior : array of shape (K,)
        P(y = j); sums to 1.

    Returns
    -------
    float64 array of shape (m, K)
        For m = K = 2 with the sets and classes in the order (-, +): ``[[d, -c], [-b, a]]``.

    Notes
    -----
    Tang et al., ACML 2022 (U-PRR), with the class prior that their code leaves out because it
    assumes a uniform one.

    Examples
    --------
    >>> class_weights([[0.7, 0.3], [0.2, 0.8]], [0.7, 0.3]).round(2) + 0.0
    array([[ 1.12, -0.12],
           [-0.42,  0.42]])
    """
    theta = np.asarray(theta, dtype=np.float64)
    prior = np.asarray(prior, dtype=np.float64)
    weights: FloatArray = np.linalg.pinv(theta).T * prior
    return weights


@dataclass(frozen=True)
class Risk:
    """A class-wise corrected risk over m pseudo-labelled sets and K classes.

    Parameters
    ----------
    weights : float64 array of shape (m, K)
        W of the module's formula.
    slope : float
        Slope of phi below zero; 1 means no correction.

    Examples
    --------
    >>> import numpy as np
    >>> risk = Risk.uu([[0.7, 0.3], [0.2, 0.8]], [0.7, 0.3], slope=1.0)
    >>> scores = np.array([[0.0, 2.0], [0.0, -1.0]])
    >>> value, gradient = risk.value_and_gradient(scores, np.array([1, 0]))
    >>> round(value, 4), gradient.shape
    (-0.1064, (2, 2))
    """

    weights: FloatArray
    slope: float

    @classmethod
    def pn(cls, share: ArrayLike) -> Risk:
        """Return the supervised risk: every pseudo-label is taken for the truth.

        Parameters
        ----------
        share : array of shape (K,)
            Share of rows in each pseudo-labelled set; the risk is then the plain mean loss.
        """
        return cls(np.diag(np.asarray(share, dtype=np.float64)), 1.0)

    @classmethod
    def uu(cls, theta: ArrayLike, prior: ArrayLike, slope: float) -> Risk:
        """Return the UU risk for class ratios ``theta`` (m x K) and class prior ``prior`` (K)."""
        return cls(class_weights(theta, prior), slope)

    def partial_risks(self, scores: FloatArray, sets: IntArray) -> FloatArray:
        """Return the K sums inside phi, each of which is >= 0 in expectation.

        Parameters
        ----------
        scores : float64 array of shape (n, K)
        sets : int array of shape (n,)
            Set (pseudo-label) of each row, 0 to m - 1.
        """
        loss = 1.0 - softmax(scores, axis=1)
        partial: FloatArray = (self._row_weights(sets) * loss).sum(axis=0)
        return partial

    def value_and_gradient(self, scores: FloatArray, sets: IntArray) -> tuple[float, FloatArray]:
        """Return the risk and its gradient with respect to the scores.

        Parameters
        ----------
        scores : float64 array of shape (n, K)
        sets : int array of shape (n,)
            Set (pseudo-label) of each row, 0 to m - 1. A set without rows adds nothing.

        Returns
        -------
        tuple of float and float64 array of shape (n, K)
        """
        probability = softmax(scores, axis=1)
        row_weights = self._row_weights(sets)
        partial = (row_weights * (1.0 - probability)).sum(axis=0)
        slopes = np.where(partial > 0, 1.0, self.slope)
        # d(1 - p_j)/df_k = -p_j (1[j = k] - p_k), summed over j with weight row_weights * slopes.
        pull = row_weights * slopes * probability
        gradient = probability * pull.sum(axis=1, keepdims=True) - pull
        return float((slopes * partial).sum()), gradient

    def _row_weights(self, sets: IntArray) -> FloatArray:
        """W[i, j] / |set i| for the set i of each row: means over sets become one sum."""
        sizes = np.bincount(sets, minlength=len(self.weights))
        return (self.weights / np.maximum(sizes, 1)[:, None])[sets]


@dataclass(frozen=True)
class SetCrossEntropy:
    """Mean cross-entropy of the set that a row is in, as the class model predicts it.

    ``-log sum_c P(set i | y = c) softmax(f)_c``: the class probabilities are passed through the
    annotator's confusion matrix and compared with what the annotator said. With a perfect
    annotator it is the ordinary cross-entropy.

    Parameters
    ----------
    transition : array of shape (K, m)
        P(row falls into set i | y = c); rows sum to 1. See :func:`transition_from_ratios`.

    Notes
    -----
    Lu et al., ICML 2021 (U^m-SSC); Patrini et al., CVPR 2017 (forward correction).

    Examples
    --------
    >>> import numpy as np
    >>> loss = SetCrossEntropy([[0.8, 0.2], [0.3, 0.7]])
    >>> value, gradient = loss.value_and_gradient(np.zeros((1, 2)), np.array([1]))
    >>> round(value, 4), gradient.round(3).tolist()
    (0.7985, [[0.278, -0.278]])
    """

    transition: ArrayLike

    def value_and_gradient(self, scores: FloatArray, sets: IntArray) -> tuple[float, FloatArray]:
        """Return the mean loss and its gradient; shapes as in :class:`Risk`."""
        probability = softmax(scores, axis=1)
        joint = probability * np.asarray(self.transition, dtype=np.float64).T[sets]
        of_set = np.maximum(joint.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        gradient: FloatArray = (probability - joint / of_set) / len(scores)
        return -float(np.log(of_set).mean()), gradient


@dataclass(frozen=True)
class SoftCrossEntropy:
    """Weighted mean cross-entropy of soft labels, one row of class probabilities a text.

    Parameters
    ----------
    target : array of shape (n, K)
        Class probabilities; rows sum to 1.
    weight : array of shape (n,)
        Weight of each row, > 0.

    Examples
    --------
    >>> import numpy as np
    >>> loss = SoftCrossEntropy(np.array([[0.9, 0.1]]), np.array([1.0]))
    >>> value, gradient = loss.value_and_gradient(np.zeros((1, 2)), np.array([0]))
    >>> round(value, 4), gradient.round(3).tolist()
    (0.6931, [[-0.4, 0.4]])
    """

    target: FloatArray
    weight: FloatArray

    def value_and_gradient(self, scores: FloatArray, rows: IntArray) -> tuple[float, FloatArray]:
        """Return the mean loss of the numbered rows and its gradient."""
        target, share = self.target[rows], self.weight[rows] / self.weight[rows].sum()
        log_probability = log_softmax(scores, axis=1)
        gradient: FloatArray = (np.exp(log_probability) - target) * share[:, None]
        return -float(share @ (target * log_probability).sum(axis=1)), gradient


def transition_from_ratios(theta: ArrayLike, share: ArrayLike) -> FloatArray:
    """Return P(set i | y = c) from theta[i, c] = P(y = c | set i) and the set shares, by Bayes.

    Returns
    -------
    float64 array of shape (K, m)
        A class that theta gives no mass gets the set shares.

    Examples
    --------
    >>> transition_from_ratios([[0.7, 0.3], [0.2, 0.8]], [0.6, 0.4]).round(2).tolist()
    [[0.84, 0.16], [0.36, 0.64]]
    """
    share = np.asarray(share, dtype=np.float64)
    joint = share[:, None] * np.asarray(theta, dtype=np.float64)
    mass = joint.sum(axis=0)
    return np.where(mass > 0, joint / np.where(mass > 0, mass, 1), share[:, None]).T
