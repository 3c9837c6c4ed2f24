"""The loop knows nothing of labels: it is tested with numbers that a toy learner doubles."""

import numpy as np
import pytest

from whet.errors import WhetError
from whet.rounds import Halt, Round, run_rounds, split


class Doubler:
    """Proposes twice the label; remembers which rows it was fitted on and asked about."""

    def __init__(self, halt_at=None):
        self.calls, self.halt_at = [], halt_at

    def start_round(self, labels, number):
        if number == self.halt_at:
            raise Halt("enough")
        return {"sum": int(labels.sum())}

    def fit(self, rows, labels, number):
        return {"fitted_on": set(rows.tolist()), "labels": labels}

    def propose(self, model, rows):
        self.calls.append((model["fitted_on"], set(rows.tolist())))
        return 2 * model["labels"][rows]


class Shelf(dict):
    def load_round(self, number):
        return self.get(number)

    def save_round(self, finished):
        self[finished.number] = finished


def replace_even(labels, proposals, number):
    return np.where(np.arange(len(labels)) % 2 == 0, proposals, labels)


def test_rounds_fit_propose_decide_relabel():
    outcome = run_rounds(
        np.ones(6, dtype=int), Doubler(), replace_even, n_rounds=3, parts=split(6, 0, None, 0)
    )
    assert outcome.rounds[-1].labels.tolist() == [8, 1, 8, 1, 8, 1]
    assert [r.record["changed"] for r in outcome.rounds] == [3, 3, 3]
    assert outcome.before_last.tolist() == [4, 1, 4, 1, 4, 1]


def test_cross_fitting_proposes_only_for_held_out_rows():
    learner = Doubler()
    run_rounds(
        np.ones(10, dtype=int), learner, replace_even, n_rounds=2, parts=split(10, 3, None, 0)
    )
    assert len(learner.calls) == 6
    for fitted_on, asked in learner.calls:
        assert not fitted_on & asked
        assert fitted_on | asked == set(range(10))
    assert set().union(*(asked for _, asked in learner.calls[:3])) == set(range(10))


def test_duplicates_share_a_fold():
    groups = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 5])
    for fit_rows, held_out in split(10, 3, groups, 0):
        assert not set(groups[fit_rows]) & set(groups[held_out])


@pytest.mark.parametrize("folds", [1, -1, 7])
def test_impossible_folds_are_refused(folds):
    with pytest.raises(WhetError, match=f"folds = {folds}: use 0 .* from 2 to 6"):
        split(6, folds, None, 0)


def test_stored_rounds_are_not_run_again():
    shelf, parts = Shelf(), split(6, 0, None, 0)
    start = np.ones(6, dtype=int)
    run_rounds(start, Doubler(), replace_even, n_rounds=2, parts=parts, archive=shelf)
    learner = Doubler()
    outcome = run_rounds(start, learner, replace_even, n_rounds=3, parts=parts, archive=shelf)
    assert len(learner.calls) == 1
    assert outcome.rounds[-1].labels.tolist() == [8, 1, 8, 1, 8, 1]


def test_a_halt_keeps_the_last_round_and_says_why():
    outcome = run_rounds(
        np.ones(4, dtype=int), Doubler(3), replace_even, n_rounds=5, parts=split(4, 0, None, 0)
    )
    assert len(outcome.rounds) == 2
    assert outcome.halted == "stopped before round 3: enough"


def test_a_halt_before_the_first_round_is_an_error():
    with pytest.raises(Halt, match="enough"):
        run_rounds(
            np.ones(4, dtype=int), Doubler(1), replace_even, n_rounds=2, parts=split(4, 0, None, 0)
        )


def test_a_round_is_immutable():
    finished = Round(1, np.zeros(1), np.zeros(1), {})
    with pytest.raises(AttributeError):
        finished.number = 2
