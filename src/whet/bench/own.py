"""Whet's own methods as the panel runs them, through the public class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from whet.bench.annotators import Codes
from whet.bench.cells import Cell
from whet.bench.features import DenseEncoder
from whet.bench.linear import as_codes
from whet.classify.inputs import majority_vote
from whet.classify.refiner import LabelRefiner
from whet.errors import WhetError
from whet.estimates import Estimate

#: Method -> arguments of LabelRefiner. The published methods have no guard.
OWN: dict[str, dict[str, Any]] = {
    "tsp": {"method": "tsp"},
    "tsp-mild": {"method": "tsp", "guard": "mild"},
    "tsp-off": {"method": "tsp", "guard": "off"},
    "tsp-confidence": {"method": "tsp"},
    "silr": {"method": "silr", "rounds": 5, "guard": "off"},
    "silr-1": {"method": "silr", "rounds": 1, "guard": "off"},
    "silr-guarded": {"method": "silr", "rounds": 5, "guard": "safe"},
    "silr-oracle": {"method": "silr", "rounds": 5, "guard": "off", "theta": "oracle"},
    "silr-released": {"method": "silr", "rounds": 5, "guard": "off", "theta": "released"},
    "uu": {"method": "uu", "rounds": 5, "guard": "off"},
    "pn": {"method": "pn", "rounds": 5, "guard": "off"},
}


@dataclass(frozen=True)
class Answer:
    """What a method says about a cell.

    Attributes
    ----------
    labels : int64 array of shape (n,)
        Refined codes.
    kept_annotator : bool or None
        Whether the guard kept the annotator's labels; None without a guard.
    estimate : dict of str to Estimate
        What the method says of itself, by :mod:`whet.estimates`.
    test_labels : int64 array or None
        Codes of the new texts.

    Examples
    --------
    >>> import numpy as np
    >>> Answer(np.array([0, 1])).kept_annotator is None
    True
    """

    labels: Codes
    kept_annotator: bool | None = None
    estimate: dict[str, Estimate] | None = None
    test_labels: Codes | None = None


def refine(method: str, cell: Cell, encoder: DenseEncoder, gold: Codes, seed: int) -> Answer:
    """Run one of whet's methods on a cell.

    Parameters
    ----------
    method : str
        A key of :data:`OWN`.
    cell : Cell
    encoder : DenseEncoder
    gold : int64 array of shape (n,)
        -1 where the method must not know the true class. The modes of theta that are experiments
        get the truth of every row instead.
    seed : int

    Raises
    ------
    WhetError
        If the method refuses the cell.
    """
    arguments = OWN[method]
    experiment = "theta" in arguments
    known = cell.truth if experiment else gold
    several = arguments["method"] == "tsp" and cell.votes.shape[1] > 1
    votes = cell.votes if several else majority_vote(cell.votes, cell.n_classes)
    refiner = LabelRefiner(
        encoder=encoder,
        gold_budget=max(1, int((known >= 0).sum())),
        random_state=seed,
        **arguments,
    )
    extra = {"confidence": _confidence(cell)} if method == "tsp-confidence" else {}
    labels = refiner.fit_refine(
        cell.texts,
        _optional(votes) if several else _optional(votes).tolist(),
        _optional(known).tolist() if (known >= 0).any() else None,
        **extra,
    )
    new = as_codes(refiner.predict(cell.test_texts)) if cell.test_texts else None
    estimate = {} if experiment else dict(refiner.estimate_)
    return Answer(as_codes(labels), bool(refiner.kept_annotator_), estimate, new)


def _confidence(cell: Cell) -> Any:  # noqa: ANN401
    if cell.confidence is None:
        raise WhetError("the annotator gives no confidences: simulate a weak_teacher, which does")
    return cell.confidence[:, 0] if cell.confidence.shape[1] == 1 else cell.confidence


def _optional(codes: Codes) -> NDArray[Any]:
    """Codes as labels with None for gaps."""
    labels = codes.astype(object)
    labels[codes < 0] = None
    return labels
