"""Class ratios: theta[i, j] = P(y = j | pseudo-label i), and the class prior that follows.

The prior is never estimated on its own: the shares q_i of the pseudo-labelled sets are known, so
``prior_j = sum_i q_i theta[i, j]`` (for two classes, ``pi = q theta_p + (1 - q) theta_n``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from whet.classify.labels import Codes
from whet.classify.risks import FloatArray
from whet.errors import WhetError
from whet.estimates import LEVEL


@dataclass(frozen=True)
class ClassRatios:
    """Theta with its interval, the set shares and the class prior.

    Attributes
    ----------
    theta, low, high : float64 array of shape (K, K)
        P(y = j | pseudo-label i) with the ends of its 95 % interval; rows of theta sum to 1.
        ``low == theta == high`` where theta is known exactly.
    share : float64 array of shape (K,)
        q_i, the share of the labelled rows that have pseudo-label i.
    n : int64 array of shape (K,)
        Rows of known class from which row i of theta comes.
    prior, prior_low, prior_high : float64 array of shape (K,)
        P(y = j), from theta and the shares, with the ends of its 95 % interval.

    Examples
    --------
    >>> import numpy as np
    >>> counts = np.array([[18, 4], [6, 22]])  # rows: pseudo-label, columns: gold
    >>> ratios = ratios_from_counts(counts, share=np.array([0.45, 0.55]))
    >>> ratios.theta.round(2).tolist(), ratios.prior.round(2).tolist()
    ([[0.8, 0.2], [0.22, 0.78]], [0.49, 0.51])
    """

    theta: FloatArray
    low: FloatArray
    high: FloatArray
    share: FloatArray
    n: NDArray[np.int64]
    prior: FloatArray
    prior_low: FloatArray
    prior_high: FloatArray

    @property
    def kappa(self) -> float:
        """Cohen's kappa between pseudo-label and class, in (-1, 1]; 0 is chance.

        For two classes it has the sign of theta_p - theta_n, so ``kappa > 0`` is the condition
        under which the UU risk exists, stated for any number of classes.
        """
        agreement = float(self.share @ np.diag(self.theta))
        chance = float(self.share @ self.prior)
        return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


def count_pairs(pseudo: Codes, gold: Codes, n_classes: int) -> NDArray[np.int64]:
    """Return counts[i, j] of rows with pseudo-label i and class j; rows that lack one are left out.

    Examples
    --------
    >>> import numpy as np
    >>> count_pairs(np.array([0, 1, 1, -1]), np.array([0, 1, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    both = (pseudo >= 0) & (gold >= 0)
    cells = np.bincount(pseudo[both] * n_classes + gold[both], minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def set_shares(pseudo: Codes, n_classes: int) -> FloatArray:
    """Return q_i, the share of each pseudo-label among the labelled rows."""
    sizes = np.bincount(pseudo[pseudo >= 0], minlength=n_classes)
    shares: FloatArray = sizes / max(int(sizes.sum()), 1)
    return shares


def ratios_from_counts(counts: NDArray[np.int64], share: FloatArray) -> ClassRatios:
    """Estimate the class ratios from a random sample of gold rows (the mode ``gold``).

    Each set's class ratios get a Dirichlet(1/K) prior, which for two classes is Jeffreys'
    Beta(1/2, 1/2); theta is the posterior mean. The interval of each entry is Jeffreys', for that
    class against the others.

    Parameters
    ----------
    counts : int array of shape (K, K)
        Gold rows with pseudo-label i and class j, from a sample that is random within each
        pseudo-label (a plain random sample of rows is).
    share : float64 array of shape (K,)
        Share of each pseudo-label in the whole corpus.

    Notes
    -----
    On such a sample, TPR and FPR with the prior put together by Bayes' rule (the corrected
    few-label estimator, :func:`theta_from_rates`) is the same as the share of each class within
    a set; the released code of SILR draws equally many rows of each *true* class instead, and is
    biased unless the prior is one half (:func:`released_ratios`).

    Examples
    --------
    >>> import numpy as np
    >>> ratios = ratios_from_counts(np.array([[9, 0], [2, 9]]), np.array([0.4, 0.6]))
    >>> ratios.theta[1].round(2).tolist(), ratios.low[1, 1].round(2), ratios.high[1, 1].round(2)
    ([0.21, 0.79], np.float64(0.53), np.float64(0.96))
    """
    n_classes = len(share)
    hits = (counts + 1 / n_classes).astype(np.float64)
    totals = hits.sum(axis=1, keepdims=True)
    theta = hits / totals
    # For more than two classes the marginal of the Dirichlet is too narrow where no row was hit.
    rows = counts.sum(axis=1, keepdims=True)
    jeffreys = counts.astype(np.float64) + 0.5
    low, high = _beta_interval(jeffreys, rows + 1 - jeffreys)
    variance = share**2 @ (theta * (1 - theta) / (totals + 1))
    return _with_prior(theta, low, high, share, counts.sum(axis=1), variance)


def exact_ratios(counts: NDArray[np.int64], share: FloatArray) -> ClassRatios:
    """Return the class ratios when every row's class is known (the mode ``oracle``).

    A set without rows gets the overall class distribution; it has no weight in any risk.
    """
    n = counts.sum(axis=1)
    overall = counts.sum(axis=0) / max(counts.sum(), 1)
    theta = np.where(n[:, None] > 0, counts / np.maximum(n, 1)[:, None], overall)
    return _with_prior(theta, theta, theta, share, n, np.zeros(len(share)))


def theta_from_rates(tpr: float, fpr: float, prior: float) -> tuple[float, float]:
    """Return (theta_p, theta_n) from the annotator's rates and the class prior, by Bayes' rule.

    This is the corrected few-label estimator: it holds for any sample from which TPR and FPR can
    be estimated, also one drawn by true class, as long as the prior belongs to the corpus.

    Parameters
    ----------
    tpr, fpr : float
        P(pseudo = + | y = +) and P(pseudo = + | y = -), in [0, 1].
    prior : float
        P(y = +) in the corpus, in (0, 1).

    Examples
    --------
    >>> [round(t, 3) for t in theta_from_rates(0.8, 0.35, 0.3)]
    [0.495, 0.117]
    """
    positive = prior * tpr + (1 - prior) * fpr
    return prior * tpr / positive, prior * (1 - tpr) / (1 - positive)


def released_ratios(
    pseudo: Codes, gold: Codes, n_labelled: int, round_number: int, rng: np.random.Generator
) -> ClassRatios:
    """Return what the released code of SILR works with, defects included (mode ``released``).

    The prior is always the share of true positives in the whole corpus (an oracle). Before the
    first round theta is the precision on ``n_labelled // 2`` positives and as many negatives
    drawn *by true class*, that is, under a prior of one half; from the second round on, it comes
    from the truth of every row.

    Parameters
    ----------
    pseudo, gold : int arrays of shape (n,)
        Two classes, 0 and 1; gold of every row, because the released code has it.
    n_labelled : int
        Its ``num_labeled_size`` (50 or 100).
    round_number : int
        From 1.
    rng : numpy.random.Generator
        Draws the labelled rows.

    Returns
    -------
    ClassRatios
        Without intervals (``low == theta == high``), as in the source.

    Raises
    ------
    WhetError
        If there are more than two classes, as the released code knows two.

    Notes
    -----
    Source: the authors' repository, ``compute_theta_from_preprocessed`` and
    ``compute_positive_prior_from_original`` in ``data.py``, ``evaluate_datasets`` in ``train.py``.
    """
    if gold.max() > 1 or pseudo.max() > 1:
        raise WhetError(
            f"theta='released' with {int(max(gold.max(), pseudo.max())) + 1} classes: the "
            "released code of SILR knows two; use theta='gold' or 'oracle'"
        )
    share = set_shares(pseudo, 2)
    truth = exact_ratios(count_pairs(pseudo, gold, 2), share)
    ratios = truth
    if round_number == 1:
        half = n_labelled // 2
        answered = pseudo >= 0  # the released code drops rows without an answer first
        drawn = np.concatenate(
            [
                rng.choice(rows, size=min(half, len(rows)), replace=False)
                for rows in (np.flatnonzero(answered & (gold == c)) for c in (0, 1))
            ]
        )
        ratios = exact_ratios(count_pairs(pseudo[drawn], gold[drawn], 2), share)
    prior = np.bincount(gold, minlength=2) / len(gold)
    return ClassRatios(
        ratios.theta, ratios.theta, ratios.theta, share, ratios.n, prior, prior, prior
    )


def require_better_than_chance(ratios: ClassRatios, classes: ArrayLike) -> None:
    """Refuse class ratios under which pseudo-labels carry no usable information.

    Raises
    ------
    WhetError
        If Cohen's kappa is <= 0, which for two classes means theta_p <= theta_n.
    """
    if ratios.kappa > 0:
        return
    theta, n = ratios.theta, int(ratios.n.sum())
    names = np.asarray(classes).tolist()
    if len(names) == 2:
        found = (
            f"theta_p = P({names[1]!r} | labelled {names[1]!r}) = {theta[1, 1]:.2f} is not above "
            f"theta_n = P({names[1]!r} | labelled {names[0]!r}) = {theta[0, 1]:.2f}"
        )
    else:
        found = f"Cohen's kappa between pseudo-label and gold is {ratios.kappa:.2f}"
    raise WhetError(
        f"the annotator is no better than chance on the {n} gold rows ({found}), so its labels "
        "cannot be refined: check that pseudo-label and gold columns use the same classes, label "
        "more gold rows, or use a better annotator"
    )


def _beta_interval(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    tail = (1 - LEVEL) / 2
    return beta.ppf(tail, a, b), beta.ppf(1 - tail, a, b)


def _with_prior(
    theta: FloatArray,
    low: FloatArray,
    high: FloatArray,
    share: FloatArray,
    n: NDArray[np.int64],
    variance: FloatArray,
) -> ClassRatios:
    """Add the prior; its interval is that of a Beta with the same mean and variance."""
    prior = share @ theta
    prior_low, prior_high = prior.copy(), prior.copy()
    spread = (variance > 0) & (prior > 0) & (prior < 1)
    if spread.any():
        mean = prior[spread]
        strength = mean * (1 - mean) / variance[spread] - 1
        prior_low[spread], prior_high[spread] = _beta_interval(
            mean * strength, (1 - mean) * strength
        )
    return ClassRatios(theta, low, high, share, n, prior, prior_low, prior_high)
