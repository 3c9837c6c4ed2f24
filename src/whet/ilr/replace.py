"""The rule of ILR: which proposals replace which demonstrations, by what judges say of them.

The rule (ILR, arXiv 2501.07886, as the authors' code has it): a proposal that agrees with the
demonstration changes nothing and is not judged. Of the others a judge gives s, its probability that
the proposal is the better one, and a proposal is accepted iff

    s > max(0.5, percentile(s, 100 (1 - alpha)))

with numpy's linear percentile over the judged rows. alpha limits the share of the *judged* rows
that change in a round, not of all rows: with n of them and no two scores equal, at most
``ceil(alpha (n - 1))`` change.

**Ties.** A judge that says yes or no gives s = 1 to many rows. As soon as more than a share alpha
of them has it, the percentile is 1, nothing lies above it, and the rule as written accepts nothing.
So by default equal scores are put in a drawn order first, which changes nothing where scores
differ; ``ties="keep"`` is the rule as written: rows at the threshold keep their demonstration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from whet.errors import WhetError, did_you_mean
from whet.ilr.halves import digest

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]

MODES = ("ilr", "filter", "chosen", "oracle", "naive")
TIES = ("draw", "keep")
#: Share of the judged rows that a round may change in the authors' experiments.
ALPHA = 0.15


@dataclass(frozen=True)
class Decision:
    """What was decided about each row, and the counts behind it.

    Attributes
    ----------
    mode : str
    alpha : float
    accepted : bool array of shape (n,)
        Rows whose proposal was accepted; under ``filter`` those that are dropped.
    threshold : float or None
        What a score had to exceed; None where no scores were used or none was there.
    agreed, disagreed : int
        Rows whose proposal agrees with the demonstration, and the others.
    judged, failed : int
        Disagreeing rows with a score, and those without; the latter keep their demonstration.
    tied : int
        Judged rows whose score equals the threshold.

    Examples
    --------
    >>> decision = decide([True, False, False], [np.nan, 0.9, 0.2], alpha=0.5)
    >>> decision.accepted.tolist(), decision.agreed, decision.judged
    ([False, True, False], 1, 2)
    """

    mode: str
    alpha: float
    accepted: Flags
    threshold: float | None
    agreed: int
    disagreed: int
    judged: int
    failed: int
    tied: int

    @property
    def n_accepted(self) -> int:
        """Accepted proposals."""
        return int(self.accepted.sum())

    def as_dict(self) -> dict[str, Any]:
        """Return mode, alpha, threshold and counts, for JSON."""
        counts = {name: value for name, value in vars(self).items() if name != "accepted"}
        return {**counts, "accepted": self.n_accepted}


def decide(
    agree: ArrayLike,
    scores: ArrayLike | None = None,
    *,
    mode: str = "ilr",
    alpha: float = ALPHA,
    ties: str = "draw",
    rows: Sequence[int] | None = None,
    seed: int = 0,
) -> Decision:
    """Decide which proposals are accepted.

    Parameters
    ----------
    agree : bool array of shape (n,)
        Whether a row's proposal agrees with its demonstration.
    scores : float array of shape (n,), optional
        s in 0 to 1; NaN where the judge failed. Of agreeing rows it is not read. ``naive`` needs
        none.
    mode : {"ilr", "filter", "chosen", "oracle", "naive"}
        ``ilr``: the module's rule. ``filter``: the same rows are chosen, but dropped and not
        replaced, which tells what replacing adds to removing. ``chosen``: s > 0.5 without a limit,
        so that every row keeps what the judge prefers. ``oracle``: the same, where scores say
        whether the *proposal* is right, as the paper has it for oracle feedback. ``naive``: a
        random ``int(alpha n)`` of *all* rows, agreeing ones too, without any feedback.
    alpha : float
        In 0 to 1.
    ties : {"draw", "keep"}
        See the module.
    rows : sequence of int, optional
        Identity of each row, such as the column ``row``; default: 0 to n - 1. What is drawn
        depends on it and the seed, not on the order of the rows.
    seed : int

    Raises
    ------
    WhetError
        If shapes, modes or ranges do not fit.

    Examples
    --------
    >>> decide([False] * 4, [0.9, 0.8, 0.7, 0.1], alpha=0.5).accepted.tolist()
    [True, True, False, False]
    >>> decide([False] * 4, [1.0, 1.0, 1.0, 0.0], alpha=0.5, ties="keep").n_accepted
    0
    >>> decide([True] * 10, mode="naive", alpha=0.25).n_accepted
    2
    """
    agree = np.asarray(agree, dtype=bool)
    n = len(agree)
    for name, value, valid in (("mode", mode, MODES), ("ties", ties, TIES)):
        if value not in valid:
            raise WhetError(f"{name} = {value!r}{did_you_mean(value, valid)}")
    if not 0 <= alpha <= 1:
        raise WhetError(f"alpha = {alpha}: it is a share, give it from 0 to 1")
    order = _draws(n, rows, seed)
    accepted = np.zeros(n, dtype=bool)
    disagreed = n - int(agree.sum())
    if mode == "naive":
        accepted[np.argsort(order, kind="stable")[: int(alpha * n)]] = True
        return Decision(mode, alpha, accepted, None, n - disagreed, disagreed, 0, 0, 0)
    score = _checked(scores, agree)
    judged = np.flatnonzero(~np.isnan(score))
    s, threshold = score[judged], None
    if len(s):
        limit = 0.0 if mode in ("chosen", "oracle") else float(_percentile(s, alpha))
        threshold = max(0.5, limit)
        accepted[judged] = s > threshold
        if ties == "draw" and threshold > 0.5:
            ranks = np.empty(len(s))
            ranks[np.lexsort((order[judged], s))] = np.arange(len(s))
            accepted[judged] = (s > 0.5) & (ranks > _percentile(ranks, alpha))
    tied = int((s == threshold).sum())
    return Decision(
        *(mode, alpha, accepted, threshold, n - disagreed, disagreed),
        *(len(judged), disagreed - len(judged), tied),
    )


def apply(table: pa.Table, proposals: Sequence[Any], decision: Decision) -> pa.Table:
    """Return the demonstrations after a decision.

    Parameters
    ----------
    table : pyarrow.Table of n rows
        With ``prompt`` and ``completion``, text or messages; other columns are carried.
    proposals : sequence of n str or lists of messages
    decision : Decision

    Returns
    -------
    pyarrow.Table
        Rows in their order: accepted proposals in place of the completions, or under ``filter``
        without the accepted rows.

    Raises
    ------
    WhetError
        If the proposals have collapsed (see :func:`check_collapse`), the lengths differ, or a
        filter would drop all rows.

    Examples
    --------
    >>> table = pa.table({"row": [0, 1], "prompt": ["2+2", "3+3"], "completion": ["5", "6"]})
    >>> decision = decide([False, True], [0.9, np.nan], mode="chosen")
    >>> apply(table, ["4", "6"], decision)["completion"].to_pylist()
    ['4', '6']
    """
    before = table["completion"].combine_chunks()
    if not table.num_rows == len(proposals) == len(decision.accepted):
        raise WhetError(
            f"{table.num_rows} rows, {len(proposals)} proposals, {len(decision.accepted)} "
            "decisions: give one proposal and one decision a row"
        )
    check_collapse(table["prompt"].to_pylist(), before.to_pylist(), proposals)
    if decision.mode == "filter":
        if decision.accepted.all():
            raise WhetError("the filter would drop every row: lower alpha")
        return table.filter(pa.array(~decision.accepted))
    both = pa.concat_arrays([before, pa.array(list(proposals), before.type)])
    place = np.arange(table.num_rows) + np.where(decision.accepted, table.num_rows, 0)
    at = table.column_names.index("completion")
    return table.set_column(at, "completion", both.take(pa.array(place)))


def check_collapse(
    prompts: Sequence[Any], completions: Sequence[Any], proposals: Sequence[Any]
) -> None:
    """Raise ``WhetError`` if the model says the same to all prompts, and its data did not.

    Worth calling before a judge is paid; :func:`apply` calls it too.

    Examples
    --------
    >>> check_collapse(["2+2", "3+3"], ["4", "6"], ["", ""])
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: all 2 proposals are the same (''), but neither prompts nor completions \
are: the model that proposes has collapsed; train it longer, or at another learning rate
    """
    kinds = [{digest(value) for value in values} for values in (prompts, completions, proposals)]
    if min(len(kinds[0]), len(kinds[1])) > 1 and len(kinds[2]) == 1:
        raise WhetError(
            f"all {len(proposals):,} proposals are the same ({_shown(proposals[0])}), but neither "
            "prompts nor completions are: the model that proposes has collapsed; train it longer, "
            "or at another learning rate"
        )


def _percentile(values: Scores, alpha: float) -> np.float64:
    found: np.float64 = np.percentile(values, 100 * (1 - alpha))
    return found


def _draws(n: int, rows: Sequence[int] | None, seed: int) -> NDArray[np.uint64]:
    if rows is not None and len(rows) != n:
        raise WhetError(f"{len(rows)} row numbers for {n} rows: give one a row")
    keys = range(n) if rows is None else map(int, rows)
    return np.fromiter((digest(seed, key) for key in keys), np.uint64, n)


def _checked(scores: ArrayLike | None, agree: Flags) -> Scores:
    """Return the scores of the disagreeing rows, NaN elsewhere."""
    if scores is None:
        raise WhetError("there are no scores: judge the disagreeing rows, or take mode = 'naive'")
    score = np.array(scores, dtype=np.float64)
    if score.shape != agree.shape:
        raise WhetError(f"{len(score)} scores for {len(agree)} rows: give one a row")
    score[agree] = math.nan
    wrong = np.flatnonzero((score < 0) | (score > 1))
    if len(wrong):
        raise WhetError(
            f"the score of row {wrong[0]} is {score[wrong[0]]:g}: scores are probabilities from 0 "
            "to 1, or NaN where the judge failed"
        )
    return score


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
