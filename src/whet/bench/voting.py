"""Methods that look at the votes of several annotators and not at the texts."""

from __future__ import annotations

from importlib import import_module

import numpy as np

from whet.bench.annotators import Codes
from whet.bench.linear import Dense, as_codes, filled
from whet.classify.inputs import majority_vote
from whet.errors import WhetError
from whet.extras import require


def majority(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Take the majority vote; rows without a vote get its most frequent class."""
    del features, gold, seed
    return filled(majority_vote(votes, k))


def dawid_skene(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Estimate annotators' confusion matrices and true labels by EM (Dawid and Skene, 1979).

    ``crowdkit.aggregation.DawidSkene(n_iter=100).fit_predict`` as in crowd-kit's documentation.
    No gold is used. Rows without a vote, which the package leaves out, get the most frequent class.
    """
    del features, gold, seed
    _need_annotators(votes, 2, "dawid-skene")
    require("crowdkit", "the method 'dawid-skene'")
    pandas, aggregation = import_module("pandas"), import_module("crowdkit.aggregation")
    tasks, workers = np.nonzero(votes >= 0)
    table = pandas.DataFrame({"task": tasks, "worker": workers, "label": votes[tasks, workers]})
    found = aggregation.DawidSkene(n_iter=100).fit_predict(table)
    labels = np.full(len(votes), -1, dtype=np.int64)
    labels[found.index.to_numpy()] = found.to_numpy()
    return filled(labels)


def snorkel(features: Dense, votes: Codes, gold: Codes, k: int, seed: int) -> Codes:
    """Fit snorkel's label model (Ratner et al., 2019) to the votes.

    ``LabelModel(cardinality=k).fit(L_train, Y_dev, n_epochs=500, seed=seed)`` as in snorkel's
    tutorial, with the gold labels as ``Y_dev``, from which it takes the class balance, where they
    hold every class; otherwise it assumes that all classes are equally frequent. Ties and rows
    without a vote, where it abstains, get the most frequent class.
    """
    del features
    _need_annotators(votes, 3, "snorkel")
    require("snorkel", "the method 'snorkel'")
    model = import_module("snorkel.labeling.model").LabelModel(cardinality=k, verbose=False)
    known = gold[gold >= 0]
    every_class = len(np.unique(known)) == k
    model.fit(votes, known if every_class else None, n_epochs=500, seed=seed, progress_bar=False)
    return filled(as_codes(model.predict(votes, tie_break_policy="abstain")))


def _need_annotators(votes: Codes, least: int, method: str) -> None:
    if votes.shape[1] < least:
        raise WhetError(
            f"{method} compares annotators and needs at least {least}, not {votes.shape[1]}: name "
            "several columns of labels in the cells file"
        )
