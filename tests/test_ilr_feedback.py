"""Judges: both orders, known error rates, files, rewards; failures are typed and never numbers."""

import asyncio
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import WhetError
from whet.ilr.feedback import (
    REWARD_BATCH,
    BothOrders,
    NoisyOracle,
    Oracle,
    Reward,
    ScoreFile,
    Scores,
    judge_disagreements,
)
from whet.store import write_parquet


class Digits:
    """A task: a completion is right if it is the reference, and '?' cannot be judged."""

    def score(self, table, completions):
        known = zip(table["reference"].to_pylist(), completions, strict=True)
        return np.array([math.nan if said == "?" else float(said == ref) for ref, said in known])


class Scripted:
    """A comparer that says what a function of the pair says."""

    def __init__(self, say):
        self.say, self.calls = say, []

    def accept(self, prompts, first, second):
        asked = list(zip(prompts, first, second, strict=True))
        self.calls.append(asked)
        values = np.array([self.say(*pair) for pair in asked], dtype=float)
        failures = {i: "no answer" for i in np.flatnonzero(np.isnan(values)).tolist()}
        return Scores(values, failures)


def rows(n, reference="4"):
    return pa.table(
        {
            "row": np.arange(n) + 10,
            "prompt": [f"p{i}" for i in range(n)],
            "completion": ["5"] * n,
            "reference": [reference] * n,
        }
    )


# --- both orders ----------------------------------------------------------------------------------


def test_the_mean_of_both_orders():
    said = {("p0", "a", "b"): 0.9, ("p0", "b", "a"): 0.4, ("p1", "c", "d"): 0.2}
    said[("p1", "d", "c")] = 0.7
    comparer = Scripted(lambda *pair: said[pair])
    found = BothOrders(comparer).score(rows(2), ["a", "c"], ["b", "d"])
    np.testing.assert_allclose(found.values, [(0.9 + 0.6) / 2, (0.2 + 0.3) / 2])
    assert len(comparer.calls) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_judge_that_likes_the_second_place_is_undone(likes):
    comparer = Scripted(lambda prompt, first, second: likes[int(prompt[1:])])
    found = BothOrders(comparer).score(rows(len(likes)), ["a"] * len(likes), ["b"] * len(likes))
    np.testing.assert_allclose(found.values, 0.5)


def test_a_row_that_fails_in_either_order_has_no_score():
    comparer = Scripted(lambda p, a, b: math.nan if (p, a) in {("p0", "a"), ("p1", "b")} else 0.9)
    found = BothOrders(comparer).score(rows(3), ["a"] * 3, ["b"] * 3)
    np.testing.assert_array_equal(np.isnan(found.values), [True, True, False])
    assert found.failures == {0: "no answer", 1: "no answer"}


def test_released_scoring_is_one_half_whatever_the_judge_says():
    comparer = Scripted(lambda prompt, a, b: 0.99 if b == "b" else 0.01)
    assert BothOrders(comparer).score(rows(1), ["a"], ["b"]).values == pytest.approx(0.99)
    for p in np.random.default_rng(0).random(200):
        judge = BothOrders(Scripted(lambda *_, p=p: p), scoring="released")
        assert judge.score(rows(1), ["a"], ["b"]).values == pytest.approx(0.5, abs=1e-15)
    with pytest.raises(WhetError, match="did you mean 'released'"):
        BothOrders(comparer, scoring="release")


# --- oracles --------------------------------------------------------------------------------------


def test_oracle():
    old, new = ["5", "4", "4", "5", "?"], ["4", "5", "4", "6", "4"]
    found = Oracle(Digits()).score(rows(5), old, new)
    np.testing.assert_array_equal(found.values, [1.0, 0.0, 0.5, 0.5, math.nan])
    assert found.failures == {4: "the task could not score it"}


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 0.75, 0.9, 1.0])
def test_noisy_oracle_is_right_as_often_as_said(accuracy):
    n = 4000
    better = np.arange(n) % 2 == 0
    old, new = np.where(better, "5", "4").tolist(), np.where(better, "4", "5").tolist()
    values = NoisyOracle(Digits(), accuracy, seed=1).score(rows(n), old, new).values
    assert set(values) <= {0.0, 1.0}
    for kind in (better, ~better):  # errors go both ways
        right = (values[kind] == better[kind]).mean()
        assert right == pytest.approx(accuracy, abs=0.04)


def test_noisy_oracle_does_not_depend_on_order_or_company():
    table, judge = rows(300), NoisyOracle(Digits(), 0.7)
    old, new = ["5"] * 100 + ["4"] * 100 + ["5"] * 100, ["4"] * 100 + ["5"] * 100 + ["6"] * 100
    forth, back = judge.score(table, old, new).values, judge.score(table, new, old).values
    np.testing.assert_array_equal(forth, 1 - back)
    some = np.random.default_rng(0).permutation(300)[:50]
    part = judge.score(table.take(pa.array(some)), [old[i] for i in some], [new[i] for i in some])
    np.testing.assert_array_equal(part.values, forth[some])
    assert 20 < forth[200:].sum() < 80  # a tie is drawn
    other = NoisyOracle(Digits(), 0.7, seed=1).score(table, old, new).values
    assert (other != forth).any()


def test_noisy_oracle_leaves_failures_and_refuses_no_share():
    found = NoisyOracle(Digits(), 0.7).score(rows(1), ["?"], ["4"])
    assert np.isnan(found.values[0])
    assert found.failures == {0: "the task could not score it"}
    with pytest.raises(WhetError, match="accuracy = 75"):
        NoisyOracle(Digits(), 75)


# --- files ----------------------------------------------------------------------------------------


def test_scores_from_a_file(tmp_path):
    path = tmp_path / "scores.parquet"
    write_parquet(path, pa.table({"row": [12, 10, 99], "score": [0.25, None, 1.0]}))
    found = ScoreFile(path).score(rows(3), ["5"] * 3, ["4"] * 3)
    np.testing.assert_array_equal(found.values, [math.nan, math.nan, 0.25])
    assert found.failures == {0: "no score in scores.parquet", 1: "no score in scores.parquet"}


def test_choices_of_a_person(tmp_path):
    path = tmp_path / "choices.csv"
    path.write_text("row,proposal,choice\n10,4,proposal\n11,4,completion\n12,4,tie\n13,9,tie\n")
    found = ScoreFile(path).score(rows(4), ["5"] * 4, ["4"] * 4)
    np.testing.assert_array_equal(found.values, [1.0, 0.0, 0.5, math.nan])
    assert found.failures == {3: "choices.csv judged another pair"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("row,verdict\n1,x\n", "it needs row, and score or choice"),
        ("score\n0.5\n", "it needs row"),
        ("row,score\n1,0.5\n1,0.6\n", "a row twice"),
        ("row,score\nx,0.5\n", "without its number"),
        ("row,score\n1,1.5\n", "row 1 of .* has the score '1.5'"),
        ("row,score\n1,high\n", "row 1 of .* has the score 'high'"),
        ("row,choice\n1,propsal\n", "did you mean 'proposal'"),
    ],
)
def test_files_that_are_no_scores(tmp_path, content, says):
    path = tmp_path / "f.csv"
    path.write_text(content)
    with pytest.raises(WhetError, match=says):
        ScoreFile(path)


@pytest.mark.parametrize("pair", [("5", "4"), ("True", "False"), ("05", "5.0")])
def test_completions_that_look_like_other_values_are_found_in_a_csv(tmp_path, pair):
    path = tmp_path / "f.csv"
    path.write_text(f"row,completion,proposal,score\n10,{pair[0]},{pair[1]},1\n")
    assert ScoreFile(path).score(rows(1), pair[:1], pair[1:]).values.tolist() == [1.0]


# --- rewards --------------------------------------------------------------------------------------


def test_reward_gets_what_trl_gives_and_sigmoid_of_the_difference():
    seen = []

    def reward(prompts, completions, reference, **kwargs):
        seen.append((prompts, completions, reference, sorted(kwargs)))
        return [2.0 if c == r else -1.0 for c, r in zip(completions, reference, strict=True)]

    found = Reward(reward).score(rows(2), ["5", "4"], ["4", "4"])
    np.testing.assert_allclose(found.values, [1 / (1 + math.exp(-3)), 0.5])
    assert seen[0] == (["p0", "p1"], ["4", "4"], ["4", "4"], ["row"])


def test_rewards_in_batches_async_and_missing():
    sizes = []

    async def reward(prompts, completions, **kwargs):
        await asyncio.sleep(0)
        sizes.append(len(prompts))
        said = [len(c) for c in completions]
        return [
            None if c == "?" else float("inf") if c == "!" else n
            for c, n in zip(completions, said, strict=True)
        ]

    n = REWARD_BATCH + 3
    new = ["4"] * n
    new[1], new[2], new[n - 1] = "?", "!", "long"
    found = Reward(reward).score(rows(n), ["5"] * n, new)
    assert sizes == [REWARD_BATCH, 3] * 2
    assert set(found.failures) == {1, 2}
    assert np.isnan(found.values[[1, 2]]).all()
    assert found.values[0] == 0.5
    assert found.values[n - 1] == pytest.approx(1 / (1 + math.exp(-3)))
    with pytest.raises(WhetError, match="gave 1 rewards for 2"):
        Reward(lambda **_: [1.0]).score(rows(2), ["a"] * 2, ["b"] * 2)


# --- what is asked --------------------------------------------------------------------------------


def test_only_disagreeing_rows_are_judged():
    comparer = Scripted(lambda p, a, b: math.nan if p == "p3" else 0.9 if b == "4" else 0.1)
    agree = [True, False, True, False]
    found = judge_disagreements(BothOrders(comparer), rows(4), ["4", "4", "5", "4"], agree)
    np.testing.assert_allclose(found.values, [math.nan, 0.9, math.nan, math.nan])
    assert found.failures == {3: "no answer"}
    assert {pair[0] for pair in comparer.calls[0]} == {"p1", "p3"}


def test_a_judge_that_always_fails_decides_nothing():
    judge = BothOrders(Scripted(lambda *_: math.nan))
    with pytest.raises(WhetError, match=r"failed at all 2 rows \(the first: no answer\)"):
        judge_disagreements(judge, rows(3), ["4"] * 3, [True, False, False])


def test_nothing_is_asked_where_all_agree():
    comparer = Scripted(lambda *_: 0.9)
    found = judge_disagreements(BothOrders(comparer), rows(2), ["5", "5"], [True, True])
    assert np.isnan(found.values).all()
    assert found.failed == 0
    assert comparer.calls == []
    with pytest.raises(WhetError, match="2 rows, 1 proposals and 2 agreements"):
        judge_disagreements(BothOrders(comparer), rows(2), ["5"], [True, True])


def test_scores_are_probabilities_or_failures():
    for values, failures in (([1.5], {}), ([-0.1], {}), ([0.0], {0: "failed"})):
        with pytest.raises(WhetError, match="scores are from 0 to 1"):
            Scores(np.array(values), failures)
