"""Pairs for DPO: which candidates meet, which pairs stay, and the authors' slip."""

import math

import numpy as np
import pyarrow as pa
import pytest

from whet.errors import WhetError
from whet.ilr.feedback import BothOrders, Oracle, Reward, Scores
from whet.ilr.pairs import chosen_examples, preferences


class Value:
    """A comparer and a task: the better completion is the greater number; '?' is none."""

    calls = 0

    def accept(self, prompts, first, second):
        self.calls += 1
        gap = self.score(None, second) - self.score(None, first)
        values = 1 / (1 + np.exp(-gap))
        return Scores(values, dict.fromkeys(np.flatnonzero(np.isnan(gap)).tolist(), "no number"))

    def score(self, table, completions):
        return np.array([math.nan if c == "?" else float(c) for c in completions])


def table(n):
    return pa.table(
        {
            "row": np.arange(n) * 2,
            "prompt": ["same prompt"] * n,
            "completion": [str(i) for i in range(n)],
            "note": ["x"] * n,
        }
    )


def sampled(*rows):
    """Samples as (row, sample, completion)."""
    return pa.table(
        {
            "row": [r for r, _, _ in rows],
            "sample": [s for _, s, _ in rows],
            "completion": [c for _, _, c in rows],
        }
    )


def test_candidates_are_paired_in_order_within_their_row():
    samples = sampled((2, 1, "1"), (0, 0, "5"), (2, 0, "9"), (0, 1, "6"), (0, 2, "0"), (0, 3, "3"))
    found = preferences(table(2), samples, BothOrders(Value()), share=1.0)
    assert found.table.column_names == ["row", "prompt", "chosen", "rejected", "margin"]
    got = found.table.select(["row", "chosen", "rejected"]).to_pylist()
    assert got == [
        {"row": 0, "chosen": "6", "rejected": "5"},
        {"row": 0, "chosen": "3", "rejected": "0"},
        {"row": 2, "chosen": "9", "rejected": "1"},
    ]
    gaps = np.array([1.0, 3.0, 8.0])
    np.testing.assert_allclose(found.table["margin"], 1 / (1 + np.exp(-gaps)) - 0.5)
    assert found.as_dict() == {"made": 3, "same": 0, "failed": 0, "tied": 0, "kept": 3}


def test_the_original_is_the_first_candidate():
    samples = sampled((0, 0, "7"), (2, 0, "1"))
    found = preferences(table(2), samples, BothOrders(Value()), share=1.0, originals=True)
    assert found.made == 2  # with one sample, the comparisons of ILR
    assert found.same == 1
    assert found.table["chosen"].to_pylist() == ["7"]
    assert found.table["rejected"].to_pylist() == ["0"]
    three = sampled((0, 0, "7"), (0, 1, "8"), (0, 2, "5"))
    found = preferences(table(1), three, BothOrders(Value()), share=1.0, originals=True)
    pairs = zip(found.table["chosen"].to_pylist(), found.table["rejected"].to_pylist(), strict=True)
    assert list(pairs) == [("7", "0"), ("8", "5")]


def test_the_surest_share_is_kept():
    rng = np.random.default_rng(0)
    gaps = rng.permutation(np.arange(1, 101)) / 100
    samples = sampled(
        *((2 * i, s, str(value)) for i in range(100) for s, value in ((0, 0), (1, gaps[i])))
    )
    found = preferences(table(100), samples, BothOrders(Value()), share=0.15)
    kept = np.array(found.table["row"].to_pylist()) // 2
    assert set(kept) == set(np.argsort(-gaps)[:15])
    assert kept.tolist() == sorted(kept)
    assert preferences(table(100), samples, BothOrders(Value()), share=0.0).table.num_rows == 1


def test_what_is_dropped_is_counted():
    samples = sampled(
        *((0, 0, "1"), (0, 1, "1")),  # the same
        *((2, 0, "?"), (2, 1, "1")),  # fails
        *((4, 0, "1"), (4, 1, "1.0")),  # a tie
        *((6, 0, "1"), (6, 1, "2"), (6, 2, "3")),  # a pair and an odd one
    )
    found = preferences(table(5), samples, BothOrders(Value()), share=1.0)
    assert found.as_dict() == {"made": 4, "same": 1, "failed": 1, "tied": 1, "kept": 1}
    with pytest.raises(
        WhetError, match=r"no pair is left of 3: 1 hold equal .* 1 could not .* 1 ar"
    ):
        preferences(table(5), samples.slice(0, 6), BothOrders(Value()))


def test_nothing_is_judged_where_all_completions_are_equal():
    comparer = Value()
    with pytest.raises(WhetError, match="no pair is left of 1"):
        preferences(table(1), sampled((0, 0, "1"), (0, 1, "1")), BothOrders(comparer))
    assert comparer.calls == 0


def test_oracle_pairs_are_chosen_right_and_rejected_wrong():
    rng = np.random.default_rng(1)
    right = rng.integers(0, 2, (200, 2))
    samples = sampled(*((2 * i, s, str(right[i, s])) for i in range(200) for s in (0, 1)))
    found = preferences(table(200), samples, Oracle(Value()), share=1.0)
    assert set(found.table["chosen"].to_pylist()) == {"1"}
    assert set(found.table["rejected"].to_pylist()) == {"0"}
    assert found.table.num_rows == (right[:, 0] != right[:, 1]).sum()
    assert set(found.table["margin"].to_pylist()) == {0.5}


def test_equal_scores_are_drawn_by_the_seed():
    samples = sampled(*((2 * i, s, str(s)) for i in range(100) for s in (0, 1)))
    kept = [
        preferences(table(100), samples, Oracle(Value()), share=0.2, seed=seed).table["row"]
        for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]
    assert len(kept[0]) == 20
    assert np.ptp(kept[0].to_numpy()) > 60  # from everywhere, not the first ones


def test_released_scoring_keeps_random_pairs_and_the_first_completion():
    rng = np.random.default_rng(2)
    value = rng.random((400, 2))
    samples = sampled(*((2 * i, s, str(value[i, s])) for i in range(400) for s in (0, 1)))
    judge = BothOrders(Value(), scoring="released")
    found = preferences(table(400), samples, judge)
    kept = np.array(found.table["row"].to_pylist()) // 2
    first = [str(value[i, 0]) for i in kept]
    same = np.mean(np.array(found.table["chosen"].to_pylist()) == first)
    assert len(kept) == 60
    assert same > 0.9
    right = value.argmax(axis=1)[kept] == (np.array(found.table["chosen"].to_pylist()) != first)
    assert 0.3 < right.mean() < 0.7  # no better than chance
    assert max(found.table["margin"].to_pylist()) < 1e-15
    fixed = preferences(table(400), samples, BothOrders(Value()))
    chosen = np.array(fixed.table["chosen"].to_pylist(), dtype=float)
    assert (chosen > np.array(fixed.table["rejected"].to_pylist(), dtype=float)).all()


def test_messages_stay_messages():
    def said(text):
        return [{"role": "assistant", "content": text}]

    demos = pa.table({"row": [0], "prompt": [said("p")], "completion": [said("a")]})
    samples = pa.table({"row": [0, 0], "sample": [0, 1], "completion": [said("a"), said("bbb")]})
    judge = Reward(lambda prompts, completions, **_: [len(c[0]["content"]) for c in completions])
    found = preferences(demos, samples, judge, share=1.0)
    assert found.table["chosen"].to_pylist() == [said("bbb")]
    assert chosen_examples(found.table).to_pylist() == [
        {"row": 0, "prompt": said("p"), "completion": said("bbb")}
    ]


def test_wrong_rows():
    with pytest.raises(WhetError, match="a sample is of row 1"):
        preferences(table(2), sampled((1, 0, "1")), BothOrders(Value()))
    twice = pa.concat_tables([table(1), table(1)])
    with pytest.raises(WhetError, match="a number twice"):
        preferences(twice, sampled((0, 0, "1")), BothOrders(Value()))
    with pytest.raises(WhetError, match="share = 15"):
        preferences(table(1), sampled((0, 0, "1")), BothOrders(Value()), share=15)
