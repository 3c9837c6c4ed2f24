"""Pairs for DPO: of each prompt the sample with the highest and the one with the lowest reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """What ranking has made of samples.

    Attributes
    ----------
    table : pyarrow.Table
        ``row`` (of the prompt), ``prompt``, ``chosen``, ``rejected`` and the float64 ``margin``
        between their rewards; prompts in the order of the samples.
    prompts, ties, unknown : int
        Prompts in all; those dropped since their best reward is their worst one, or since fewer
        than two of their samples have a reward.

    Examples
    --------
    >>> rank(pa.table({"row": [0, 0], "prompt": ["a", "a"], "completion": ["x", "y"]}),
    ...      [1.0, 1.0]).ties
    1
    """

    table: pa.Table
    prompts: int
    ties: int
    unknown: int


def rank(samples: pa.Table, rewards: Sequence[float | None]) -> Pairs:
    """Pair the best and the worst sample of each prompt.

    Parameters
    ----------
    samples : pyarrow.Table
        ``row``, ``prompt``, ``completion``; all samples of a prompt have its ``row``.
    rewards : sequence of float or None, one a sample
        None where there is none. Among equals the first sample is taken.

    Examples
    --------
    >>> samples = pa.table({
    ...     "row": [7, 7, 7], "prompt": ["a"] * 3, "completion": ["x", "y", "z"]})
    >>> rank(samples, [0.5, 2.0, None]).table.to_pylist()
    [{'row': 7, 'prompt': 'a', 'chosen': 'y', 'rejected': 'x', 'margin': 1.5}]
    """
    score = np.array([np.nan if r is None else r for r in rewards], dtype=np.float64)
    rows = samples["row"].to_numpy()
    members: dict[int, list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        members.setdefault(row, []).append(i)
    best, worst, ties, unknown = [], [], 0, 0
    for group in members.values():
        known = [i for i in group if not np.isnan(score[i])]
        if len(known) < 2:
            unknown += 1
            continue
        values = score[known]
        high, low = known[int(values.argmax())], known[int(values.argmin())]
        if score[high] == score[low]:
            ties += 1
            continue
        best.append(high)
        worst.append(low)
    table = pa.table(
        {
            "row": samples["row"].take(_indices(best)),
            "prompt": samples["prompt"].take(_indices(best)),
            "chosen": samples["completion"].take(_indices(best)),
            "rejected": samples["completion"].take(_indices(worst)),
            "margin": _margins(score, best, worst),
        }
    )
    return Pairs(table, len(members), ties, unknown)


def _indices(rows: list[int]) -> pa.Array:
    return pa.array(rows, pa.int64())


def _margins(score: NDArray[np.float64], best: list[int], worst: list[int]) -> NDArray[np.float64]:
    margins: NDArray[np.float64] = score[best] - score[worst]
    return margins
