"""The loop that carries everything: fit, propose, decide, relabel, store the round.

A learner is fitted on the current labels and proposes new labels; a rule decides which proposals
replace which labels; the round is stored; repeat. The loop does not know what a label is: labels
and proposals are arrays with one entry a row, and only the learner and the rule look inside.

With ``folds=0`` the learner is fitted on all rows and proposes for all rows, as SILR publishes
it. With ``folds=K`` it proposes only for rows that it was not fitted on, as ILR does with two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError

Rows = NDArray[np.int64]
Array = NDArray[Any]
Progress = Callable[[str, int, int], None]


class Halt(WhetError):
    """The current labels cannot carry another round; the labels of the last round stand.

    Examples
    --------
    >>> raise Halt("every label is 'ham' after round 1")
    Traceback (most recent call last):
    ...
    whet.rounds.Halt: every label is 'ham' after round 1
    """


class Learner(Protocol):
    """What learns from labels. ``start_round`` sees all labels, ``fit`` some of the rows."""

    def start_round(self, labels: Array, number: int) -> dict[str, Any]:
        """Prepare round ``number`` (from 1) and return what to record; may raise :class:`Halt`."""
        ...

    def fit(self, rows: Rows, labels: Array, number: int) -> Any:  # noqa: ANN401
        """Return a model fitted on ``labels[rows]``."""
        ...

    def propose(self, model: Any, rows: Rows) -> Array:  # noqa: ANN401
        """Return one proposal for each of ``rows``."""
        ...


#: Given labels and proposals of all rows and the round's number: the new labels.
Rule = Callable[[Array, Array, int], Array]


@dataclass(frozen=True)
class Round:
    """One stored round: the labels it ended with, the proposals behind them, and its record.

    Examples
    --------
    >>> Round(1, np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), {"changed": 1}).number
    1
    """

    number: int
    labels: Array
    proposals: Array
    record: dict[str, Any]


class Archive(Protocol):
    """Where finished rounds go and where a resumed run finds them."""

    def load_round(self, number: int) -> Round | None:
        """Return a round that is stored whole, or None."""
        ...

    def save_round(self, finished: Round) -> None:
        """Store a round so that a kill leaves either all of it or none."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the loop ended with.

    Attributes
    ----------
    rounds : list of Round
    before_last : array
        The labels that the last round's models were fitted on.
    model : object or None
        The last round's model where one was fitted on all rows in this process.
    halted : str or None
        Why the loop ended before ``n_rounds``.

    Examples
    --------
    >>> Outcome([], np.array([0, 1]), None, None).before_last.tolist()
    [0, 1]
    """

    rounds: list[Round]
    before_last: Array
    model: Any
    halted: str | None


def split(n_rows: int, folds: int, groups: Array | None, seed: int) -> list[tuple[Rows, Rows]]:
    """Return (rows to fit on, rows to propose for), one pair a fold.

    Parameters
    ----------
    n_rows : int
    folds : int
        0 for one pair that holds all rows twice, else at least 2.
    groups : int array of shape (n_rows,), optional
        Rows of one group stay in one fold; duplicated texts form a group.
    seed : int

    Raises
    ------
    WhetError
        If ``folds`` is negative, 1, or more than the groups.

    Examples
    --------
    >>> [len(held_out) for _, held_out in split(10, 3, None, seed=0)]
    [4, 3, 3]
    """
    rows = np.arange(n_rows)
    if folds == 0:
        return [(rows, rows)]
    members = rows if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(members.max()) + 1
    if folds < 2 or folds > n_groups:
        more = (
            f", or from 2 to {n_groups} (the number of distinct texts) to propose for held-out rows"
        )
        raise WhetError(
            f"folds = {folds}: use 0 to fit and propose on all rows{more * (n_groups > 1)}"
        )
    order = np.random.default_rng(seed).permutation(n_groups)
    fold_of_group = np.empty(n_groups, dtype=np.int64)
    fold_of_group[order] = np.arange(n_groups) % folds
    fold = fold_of_group[members]
    return [(rows[fold != k], rows[fold == k]) for k in range(folds)]


def run_rounds(
    labels: Array,
    learner: Learner,
    rule: Rule,
    *,
    n_rounds: int,
    parts: Sequence[tuple[Rows, Rows]],
    archive: Archive | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run the rounds that the archive does not hold yet.

    Parameters
    ----------
    labels : array of shape (n,)
        The labels to start from.
    learner, rule
        See :class:`Learner` and :data:`Rule`.
    n_rounds : int
        At least 1.
    parts : sequence of (rows to fit on, rows to propose for)
        From :func:`split`; the second entries cover every row once.
    archive : Archive, optional
        None keeps the rounds in memory only.
    progress : callable, optional
        Called with ("round", fits done, fits in all).

    Raises
    ------
    Halt
        If the labels cannot even carry the first round.
    """
    rounds: list[Round] = []
    before, model, halted = labels, None, None
    for number in range(1, n_rounds + 1):
        stored = archive.load_round(number) if archive is not None else None
        if stored is None:
            began = time.perf_counter()
            try:
                record = learner.start_round(labels, number)
            except Halt as halt:
                if number == 1:
                    raise
                halted = f"stopped before round {number}: {halt}"
                break
            proposals: Array | None = None
            for part, (fit_rows, propose_rows) in enumerate(parts):
                model = learner.fit(fit_rows, labels, number)
                proposed = learner.propose(model, propose_rows)
                if proposals is None:
                    proposals = np.empty((len(labels), *proposed.shape[1:]), dtype=proposed.dtype)
                proposals[propose_rows] = proposed
                if progress is not None:
                    progress("round", (number - 1) * len(parts) + part + 1, n_rounds * len(parts))
            assert proposals is not None  # noqa: S101 - there is at least one part
            relabelled = rule(labels, proposals, number)
            record = {
                "round": number,
                **record,
                "changed": int((relabelled != labels).sum()),
                "seconds": round(time.perf_counter() - began, 3),
            }
            stored = Round(number, relabelled, proposals, record)
            if archive is not None:
                archive.save_round(stored)
        else:
            model = None
        rounds.append(stored)
        before, labels = labels, stored.labels
    whole = len(parts) == 1 and len(parts[0][0]) == len(labels)
    return Outcome(rounds, before, model if whole else None, halted)
