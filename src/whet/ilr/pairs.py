"""Preferences for DPO from samples of a model: the baseline that ILR is compared with.

Each round of DPO in the authors' code of ILR (arXiv 2501.07886) draws 6 samples a prompt, pairs
them two by two, has the pairs judged, and keeps the 15 % whose score is furthest from 0.5. The
paper's reviewers asked for two more: the original demonstration as a candidate
(``originals=True``; with one sample a prompt these are the very comparisons of ILR), and
fine-tuning on the chosen completions alone (:func:`chosen_examples`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.ilr.feedback import BothOrders, Judge, Scores
from whet.ilr.halves import digest
from whet.ilr.samples import by_row

#: Share of the pairs that is kept in the authors' experiments.
SHARE = 0.15


@dataclass(frozen=True)
class Preferences:
    """Pairs for training, and what became of the others.

    Attributes
    ----------
    table : pyarrow.Table
        ``row``, ``prompt``, ``chosen``, ``rejected``, and ``margin``, abs(s - 0.5). Pairs are in
        the order of rows.
    made : int
        Pairs of candidates.
    same : int
        Of these, pairs of two equal completions, which teach nothing and are not judged.
    failed : int
        Pairs that the judge could not judge.
    tied : int
        Judged pairs with s = 0.5.

    Examples
    --------
    >>> Preferences(pa.table({"row": [0]}), made=3, same=1, failed=0, tied=1).as_dict()
    {'made': 3, 'same': 1, 'failed': 0, 'tied': 1, 'kept': 1}
    """

    table: pa.Table
    made: int
    same: int
    failed: int
    tied: int

    def as_dict(self) -> dict[str, int]:
        """Return the counts, for JSON."""
        counts = {name: value for name, value in vars(self).items() if name != "table"}
        return {**counts, "kept": self.table.num_rows}


def preferences(
    table: pa.Table,
    samples: pa.Table,
    judge: Judge,
    *,
    share: float = SHARE,
    originals: bool = False,
    seed: int = 0,
) -> Preferences:
    """Pair the samples of each prompt, have the pairs judged, and keep the surest.

    Parameters
    ----------
    table : pyarrow.Table
        The demonstrations: ``row``, ``prompt``, ``completion`` and what the judge needs besides.
    samples : pyarrow.Table
        ``row`` (as in ``table``), ``sample`` (number within the row) and ``completion``.
    judge : Judge
        With ``BothOrders(comparer, scoring="released")``, all scores are 0.5 but for rounding. As
        in the authors' code such pairs stay: they are drawn, and the first completion is chosen.
        With any other judge, pairs with s = 0.5 are dropped. An
        :class:`whet.ilr.feedback.Oracle` with ``share=1`` gives the paper's oracle pairs where the
        task's scores are 0 or 1: chosen right, rejected wrong.
    share : float
        Share of all pairs to keep, 0 to 1: ``int(share * made)``, at least 1. Equal scores are
        drawn from by the seed.
    originals : bool
        Make the demonstration the first candidate of its prompt.
    seed : int

    Returns
    -------
    Preferences

    Notes
    -----
    The candidates of a row, in the order of their numbers, are paired as first and second, third
    and fourth and so on; an odd last one is left out.

    Raises
    ------
    WhetError
        If a sample names no row, rows are repeated, or no pair is left.

    Examples
    --------
    >>> from whet.ilr.feedback import Reward
    >>> table = pa.table({"row": [7], "prompt": ["a"], "completion": ["x"]})
    >>> samples = pa.table({"row": [7, 7], "sample": [0, 1], "completion": ["xx", "x"]})
    >>> judge = Reward(lambda prompts, completions, **kwargs: [len(c) for c in completions])
    >>> preferences(table, samples, judge, share=1.0).table["chosen"].to_pylist()
    ['xx']
    """
    if not 0 <= share <= 1:
        raise WhetError(f"share = {share}: give it from 0 to 1")
    place, first, second = _pairs(table, samples, originals)
    made = len(place)
    differ = [i for i in range(made) if first[i] != second[i]]
    asked = table.take(pa.array([place[i] for i in differ], pa.int64()))
    first, second = [first[i] for i in differ], [second[i] for i in differ]
    found = judge.score(asked, first, second) if differ else Scores(np.empty(0))
    s, tied = found.values, found.values == 0.5
    released = isinstance(judge, BothOrders) and judge.scoring == "released"
    usable = ~np.isnan(s) if released else ~np.isnan(s) & ~tied
    margin, keys = np.abs(s - 0.5), _draws(asked, first, second, seed)
    order = np.lexsort((keys, np.where(usable, -margin, np.inf)))
    kept = np.sort(order[: min(max(int(share * made), 1), int(usable.sum()))])
    result = Preferences(
        _table(asked, first, second, s, kept),
        *(made, made - len(differ), found.failed, int(tied.sum())),
    )
    if not len(kept):
        raise WhetError(
            f"no pair is left of {made:,}: {result.same:,} hold equal completions, "
            f"{result.failed:,} could not be judged, {result.tied:,} are ties; draw more samples, "
            "at a higher temperature"
        )
    return result


def chosen_examples(pairs: pa.Table) -> pa.Table:
    """Return the chosen completions as demonstrations: what DPO adds beyond them can be told.

    Parameters
    ----------
    pairs : pyarrow.Table
        From :func:`preferences`.

    Returns
    -------
    pyarrow.Table
        ``row``, ``prompt`` and ``completion``. A row with several pairs comes several times.

    Examples
    --------
    >>> pairs = pa.table({"row": [0], "prompt": ["a"], "chosen": ["x"], "rejected": ["y"]})
    >>> chosen_examples(pairs).to_pylist()
    [{'row': 0, 'prompt': 'a', 'completion': 'x'}]
    """
    return pairs.select(["row", "prompt", "chosen"]).rename_columns(["row", "prompt", "completion"])


def _pairs(
    table: pa.Table, samples: pa.Table, originals: bool
) -> tuple[list[int], list[Any], list[Any]]:
    """Return for each pair its place in the table and its completions, in the order of places."""
    drawn = samples.select(["row", "sample", "completion"]).sort_by("sample")
    candidates = [[s["completion"] for s in of_row] for of_row in by_row(table, drawn)]
    if originals:
        labels = table["completion"].to_pylist()
        candidates = [[label, *mine] for label, mine in zip(labels, candidates, strict=True)]
    pairs = [
        (place, mine[k], mine[k + 1])
        for place, mine in enumerate(candidates)
        for k in range(0, len(mine) - 1, 2)
    ]
    return [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]


def _draws(
    asked: pa.Table, first: Sequence[Any], second: Sequence[Any], seed: int
) -> NDArray[np.uint64]:
    """Return what equal scores are ordered by."""
    rows = asked["row"].to_pylist()
    keys = (digest(seed, *pair) for pair in zip(rows, first, second, strict=True))
    return np.fromiter(keys, np.uint64, len(rows))


def _table(
    asked: pa.Table,
    first: Sequence[Any],
    second: Sequence[Any],
    s: NDArray[np.float64],
    kept: NDArray[np.int64],
) -> pa.Table:
    part, kind = asked.take(pa.array(kept)), asked.schema.field("completion").type
    better = [(second[i], first[i]) if s[i] > 0.5 else (first[i], second[i]) for i in kept.tolist()]
    return pa.table(
        {
            "row": part["row"],
            "prompt": part["prompt"],
            "chosen": pa.array([chosen for chosen, _ in better], kind),
            "rejected": pa.array([rejected for _, rejected in better], kind),
            "margin": pa.array(np.abs(s[kept] - 0.5)),
        }
    )
