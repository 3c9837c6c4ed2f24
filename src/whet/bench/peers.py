"""Peers of whet, each called as its own documentation says, on the same features.

A peer is a function of

    features   float32 array of shape (n, D), rows of unit length
    votes      int64 array of shape (n, m), -1 where an annotator abstained
    gold       int64 array of shape (n,), -1 where the true class is not known
    k          number of classes
    seed       of folds and samples

that returns refined codes of shape (n,), or raises ``WhetError`` where it cannot say anything.
Methods made for one annotator get the majority vote. Those that classify share one linear student.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
from sklearn.semi_supervised import SelfTrainingClassifier

from whet.bench.annotators import Codes
from whet.bench.linear import (
    L2_GOLD,
    Dense,
    as_codes,
    fit_predict,
    need_gold,
    out_of_fold,
    student,
    with_gold,
)
from whet.bench.published import ccp, knn, pie
from whet.bench.voting import dawid_skene, majority, snorkel
from whet.classify.inputs import majority_vote
from whet.extras import require

Peer = Callable[[Dense, Codes, Codes, int, int], Codes]


def cleanlab(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Replace the label issues that cleanlab finds by the out-of-fold label.

    ``cleanlab.filter.find_label_issues(labels, pred_probs)`` with out-of-fold probabilities, as in
    its documentation (confident learning: Northcutt, Jiang and Chuang, 2021). The package flags and
    does not relabel; taking the out-of-fold label for what it flags is the usual step after it. A
    row without a label gets it too. No gold is used.
    """
    del gold
    require("cleanlab", "the method 'cleanlab'")
    labels = majority_vote(votes, k)
    found = out_of_fold(features, labels, k, seed)
    best = found.argmax(axis=1)
    # cleanlab wants codes 0..K-1 of classes that occur.
    answered = np.flatnonzero(labels >= 0)
    classes, codes = np.unique(labels[answered], return_inverse=True)
    shares = found[np.ix_(answered, classes)]
    shares /= shares.sum(axis=1, keepdims=True)
    issues = import_module("cleanlab.filter").find_label_issues(codes, shares, n_jobs=1)
    labels[answered[issues]] = -1
    return as_codes(np.where(labels < 0, best, labels))


def cleanlearning(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Predict with ``cleanlab.classification.CleanLearning(clf).fit(features, labels)``.

    As in its documentation: label issues are found out of fold and dropped, and the classifier is
    fitted on the others. Rows without a label are left out of the fit. No gold is used.
    """
    del gold
    require("cleanlab", "the method 'cleanlearning'")
    labels = majority_vote(votes, k)
    answered = labels >= 0
    classes, codes = np.unique(labels[answered], return_inverse=True)
    cleaner = import_module("cleanlab.classification").CleanLearning(
        student(), seed=seed, find_label_issues_kwargs={"n_jobs": 1}
    )
    return as_codes(classes[cleaner.fit(features[answered], codes).predict(features)])


def pn_out_of_fold(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Distil: what a classifier trained on the other folds' pseudo-labels predicts. No gold."""
    del gold
    return as_codes(out_of_fold(features, majority_vote(votes, k), k, seed).argmax(axis=1))


def gold_only(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Classify all rows with a classifier trained on the gold rows alone."""
    del votes, seed
    need_gold(gold, "gold-only")
    return with_gold(as_codes(fit_predict(features, gold, k, L2_GOLD).argmax(axis=1)), gold)


def self_training(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Train from the gold rows, then on its own confident predictions (Yarowsky, 1995).

    ``sklearn.semi_supervised.SelfTrainingClassifier(student)`` with its defaults: threshold .75, at
    most 10 rounds, -1 for rows that are not labelled.
    """
    del votes, seed
    need_gold(gold, "self-training")
    fit_predict(features, gold, k, L2_GOLD)  # refuses gold of one class
    model = SelfTrainingClassifier(student(L2_GOLD)).fit(features, gold)
    return with_gold(as_codes(model.predict(features)), gold)


PEERS: dict[str, Peer] = {
    "majority": majority,
    "cleanlab": cleanlab,
    "cleanlearning": cleanlearning,
    "pn-oof": pn_out_of_fold,
    "gold-only": gold_only,
    "self-training": self_training,
    "dawid-skene": dawid_skene,
    "snorkel": snorkel,
    "pie": pie,
    "ccp": ccp,
    "knn": knn,
}

#: Method -> module of the extra ``[bench]`` that it needs.
PACKAGES = {
    "cleanlab": "cleanlab",
    "cleanlearning": "cleanlab",
    "dawid-skene": "crowdkit",
    "snorkel": "snorkel",
}
