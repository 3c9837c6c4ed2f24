"""What an annotator's label says about the class: P(label | class), from few gold rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from whet.classify.labels import MISSING, Codes
from whet.classify.risks import FloatArray

#: A label is at least this many times as likely under its own class as under any other.
FLOOR = 1.5
#: Gold rows that the prior row of each class is worth, and what it says before any gold row.
PRIOR_ROWS, PRIOR_ACCURACY, PRIOR_HITS = 3.0, 0.75, 4.0


def label_model(labels: Codes, gold: Codes, n_classes: int) -> FloatArray:
    """Estimate P(annotator says j | class c) from the gold rows that the annotator answered.

    Parameters
    ----------
    labels : int array of shape (n,)
        The annotator's codes, -1 where it abstained.
    gold : int array of shape (n,)
        Gold codes, -1 where unknown.
    n_classes : int
        K.

    Returns
    -------
    float64 array of shape (K, K)
        Row c holds P(says j | class c). A class without gold rows has the prior row: the pooled
        accuracy on the diagonal, the annotator's marginals beside it. Off the diagonal no entry
        exceeds ``T[j, j] / 1.5``, so that a vote always counts for its own class: without that
        floor, 50 gold rows can make an annotator that is right in 60 % look inverted. (The rows
        of T then need not sum to one; only ratios within a column are evidence.)
    """
    answered = labels != MISSING
    known = answered & (gold != MISSING)
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (gold[known], labels[known]), 1.0)
    accuracy = (np.trace(counts) + PRIOR_HITS * PRIOR_ACCURACY) / (counts.sum() + PRIOR_HITS)
    marginal = np.bincount(labels[answered], minlength=n_classes) + 0.5
    prior = np.tile(marginal / marginal.sum(), (n_classes, 1))
    np.fill_diagonal(prior, 0.0)
    prior *= (1 - accuracy) / prior.sum(axis=1, keepdims=True)
    np.fill_diagonal(prior, accuracy)
    table = counts + PRIOR_ROWS * prior
    table /= table.sum(axis=1, keepdims=True)
    own = np.diag(table).copy()
    table = np.minimum(table, own / FLOOR)
    np.fill_diagonal(table, own)
    return table


def evidence(
    votes: Codes, gold: Codes, n_classes: int, confidence: FloatArray | None = None
) -> FloatArray:
    """Return the log-likelihood of all annotators' labels under each class.

    Parameters
    ----------
    votes : int array of shape (n, m)
        One column an annotator, -1 where it abstained.
    gold : int array of shape (n,)
        Gold codes, -1 where unknown.
    n_classes : int
        K.
    confidence : float array of shape (n, m), optional
        The annotators' own confidence, of any scale, NaN where it is not known; only its ranks
        count.

    Returns
    -------
    float64 array of shape (n, K)
        ``sum_m log P(annotator m says votes[i, m] | class c)``; 0 where all abstained. With
        confidence, each term is multiplied by twice its rank among the annotator's known ones (0
        to 1), so that the average label counts as before, and so does one without confidence.
    """
    total = np.zeros((len(votes), n_classes))
    for m, labels in enumerate(votes.T):
        log_table = np.log(label_model(labels, gold, n_classes))
        answered = labels != MISSING
        said = log_table.T[labels[answered]]
        if confidence is not None:
            sure = confidence[answered, m]
            known = ~np.isnan(sure)
            weight = np.ones(len(sure))
            weight[known] = 2 * (rankdata(sure[known]) - 0.5) / known.sum()
            said = said * weight[:, None]
        total[answered] += said
    return total


def class_prior(evidence: NDArray[np.floating], gold: Codes) -> FloatArray:
    """Estimate the share of each class, shape (K,), from the annotators' labels and the gold.

    EM on the mixture that the evidence implies (Saerens, Latinne and Decaestecker, 2002), counted
    as as many rows as there are gold rows, plus the gold counts and 2/K.
    """
    k = evidence.shape[1]
    patterns, counts = np.unique(evidence.round(9), axis=0, return_counts=True)
    prior = np.full(k, 1.0 / k)
    for _ in range(200):
        posterior = softmax(patterns + np.log(prior), axis=1)
        new = counts @ posterior / counts.sum()
        converged = np.abs(new - prior).max() < 1e-6
        prior = np.maximum(new, 1e-9)
        if converged:
            break
    known = gold != MISSING
    pooled = known.sum() * prior + np.bincount(gold[known], minlength=k) + 2.0 / k
    shares: FloatArray = pooled / pooled.sum()
    return shares


def log_softmax(scores: Any) -> Any:  # noqa: ANN401 - any precision
    """Return log-probabilities over the last axis."""
    return scores - logsumexp(scores, axis=-1, keepdims=True)
