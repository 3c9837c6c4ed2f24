"""Who proposes for whom: each row gets its proposal from a model that never saw its prompt.

A model that was trained on all demonstrations repeats their errors; one that was trained on the
other half cannot have learned them by heart (cross-labelling in ILR, arXiv 2501.07886).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.rounds import Rows, split


def halves(prompts: Sequence[Any], *, folds: int = 2, seed: int = 0) -> list[tuple[Rows, Rows]]:
    """Split rows into folds, equal prompts together.

    Parameters
    ----------
    prompts : sequence of str or of lists of messages
        One a row, n in all. Rows with equal prompts keep an own demonstration each, and fall into
        the same fold: else a model would propose for a prompt that it was trained on. So folds
        hold the same number of distinct prompts, but for one, and not always of rows.
    folds : int
        At least 2; 0 trains one model on all rows, which then proposes for all of them: the
        control that tells what the split is worth.
    seed : int
        The same seed and prompts give the same folds, in whatever order the rows are.

    Returns
    -------
    list of (int array, int array)
        For each fold the rows to train on and the rows to propose for; the second ones cover every
        row once.

    Raises
    ------
    WhetError
        If there are fewer distinct prompts than folds.

    Examples
    --------
    >>> (train, propose), _ = halves(["a", "b", "a", "c"], seed=0)
    >>> sorted([*train.tolist(), *propose.tolist()])
    [0, 1, 2, 3]
    """
    groups = np.array([digest(prompt) for prompt in prompts], dtype=np.uint64)
    return split(len(groups), folds, groups, seed)


def digest(*values: object) -> int:
    """Return 64 bits that depend on the values alone: equal ones, equal bits, on any machine.

    Examples
    --------
    >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a", 2)
    (True, False)
    """
    text = json.dumps(values, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
