"""Small adaptations of published methods to frozen features.

The originals train language models; these share the linear student of all peers instead. They show
what the idea is worth on the same features, and are no reproduction of the papers' numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from whet.bench.annotators import Codes
from whet.bench.linear import (
    Dense,
    Probabilities,
    as_codes,
    fit_predict,
    out_of_fold,
    probabilities,
    student,
    with_gold,
)
from whet.classify.inputs import majority_vote

_ROUNDS = 5


def pie(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Select confident labels progressively (PIEClass: Zhang et al., EMNLP 2023).

    Kept: five rounds, a first set of the 10 % most confident with confidence over .5, then for each
    class the top .2 * round of the rows on which all classifiers agree; the output is what the last
    classifier predicts. Adapted: the annotator's labels take the place of prompts, their first
    confidence is out of fold, and three models on bootstrap samples take the place of the three
    fine-tuned prompt models, so that the .95 threshold on prompt models has no counterpart. No gold
    is used.
    """
    del gold
    labels = majority_vote(votes, k)
    rng = np.random.default_rng(seed)
    confidence = _of_label(out_of_fold(features, labels, k, seed), labels)
    chosen = _most_confident(np.where(confidence > 0.5, labels, -1), confidence, 0.1, k)
    if len(np.unique(chosen[chosen >= 0])) < 2:
        chosen = labels  # nothing is confident in two classes: begin with all
    found = fit_predict(features, chosen, k)
    for number in range(1, _ROUNDS):
        predicted = found.argmax(axis=1)
        agreed = np.ones(len(labels), dtype=bool)
        for _ in range(3):
            agreed &= _bootstrap(features, chosen, k, rng).argmax(axis=1) == predicted
        best = _most_confident(np.where(agreed, predicted, -1), found.max(axis=1), 0.2 * number, k)
        if len(np.unique(best[best >= 0])) < 2:
            break
        chosen = best
        found = fit_predict(features, chosen, k)
    return as_codes(found.argmax(axis=1))


def _of_label(found: Probabilities, labels: Codes) -> NDArray[np.float64]:
    """Probability of each row's label, 0 where it has none."""
    return np.where(labels < 0, 0.0, found[np.arange(len(labels)), labels])


def _most_confident(labels: Codes, confidence: NDArray[np.float64], share: float, k: int) -> Codes:
    """Keep the labels of the most confident rows of each class, ``share`` of all rows over k."""
    kept = np.full_like(labels, -1)
    for c in range(k):
        rows = np.flatnonzero(labels == c)
        best = rows[np.argsort(-confidence[rows], kind="stable")][: round(share * len(labels) / k)]
        kept[best] = c
    return kept


def _bootstrap(features: Dense, labels: Codes, k: int, rng: np.random.Generator) -> Probabilities:
    rows = np.flatnonzero(labels >= 0)
    drawn = rng.choice(rows, len(rows))
    if len(np.unique(labels[drawn])) < 2:
        drawn = rows
    return probabilities(student().fit(features[drawn], labels[drawn]), features, k)


def ccp(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Propagate credibility between neighbours (CCP: Kutt et al., AAAI 2024, arXiv 2211.09929).

    Kept: a credibility vector a row, begun with the annotator's labels as guesses and with gold
    clamped; new vectors by propagation over similarities, scaled so that the strongest is 1;
    credibility is what a class has more than the best other class, clipped to [0, 1]; at the end a
    classifier is trained with credibility as weight. Adapted: similarity is exp(cosine / .1) of the
    frozen features instead of those of a contrastive encoder trained in each iteration; classes are
    scaled to equal mass; five iterations without subsampling.
    """
    del seed
    guesses = with_gold(majority_vote(votes, k), gold)
    first = np.zeros((len(guesses), k))
    first[np.flatnonzero(guesses >= 0), guesses[guesses >= 0]] = 1.0
    clamped, credibility = gold >= 0, first
    for _ in range(_ROUNDS):
        mass = _propagate(features, credibility / np.maximum(credibility.sum(axis=0), 1e-9))
        mass /= np.maximum(mass.sum(axis=1, keepdims=True), 1e-12)
        mass /= max(mass.max(), 1e-12)
        second, top = np.partition(mass, -2, axis=1)[:, -2:].T
        other = np.where(mass == top[:, None], second[:, None], top[:, None])
        credibility = np.where(clamped[:, None], first, np.clip(mass - other, 0.0, 1.0))
    weight = credibility.max(axis=1)
    seen = weight > 0
    labels = credibility.argmax(axis=1)
    if len(np.unique(labels[seen])) < 2:
        return as_codes(fit_predict(features, guesses, k).argmax(axis=1))
    model = student().fit(features[seen], labels[seen], sample_weight=weight[seen])
    return with_gold(as_codes(probabilities(model, features, k).argmax(axis=1)), gold)


def _propagate(features: Dense, credibility: Probabilities) -> Probabilities:
    """Sum of the others' vectors, weighted by similarity; in blocks, to bound the memory."""
    found = np.empty_like(credibility)
    for start in range(0, len(features), 1000):
        rows = np.arange(start, min(start + 1000, len(features)))
        similar = np.exp((features[rows] @ features.T - 1.0) / 0.1)
        similar[np.arange(len(rows)), rows] = 0.0
        found[rows] = similar @ credibility
    return found


def knn(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Replace doubtful labels by the best candidate of the neighbourhood (after SiDyP).

    Ye et al. (KDD 2025) take candidates for a true label from the labels of the 10 nearest clean
    texts, weighted by distance, and refine them with a simplex diffusion model. Kept: the
    neighbourhood of clean rows and its weights. Adapted: a row is clean if a model that did not see
    its label agrees with it, instead of by training dynamics; the others get the best candidate;
    the diffusion model is left out. No gold is used.
    """
    del gold
    labels = majority_vote(votes, k)
    predicted = out_of_fold(features, labels, k, seed).argmax(axis=1)
    clean = predicted == labels
    if clean.sum() < 10:
        return as_codes(predicted)
    neighbours = KNeighborsClassifier(10, weights="distance").fit(features[clean], labels[clean])
    return as_codes(np.where(clean, labels, neighbours.predict(features)))
