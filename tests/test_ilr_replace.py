"""The rule of ILR: what it accepts, what it may never accept, and what it does with failures."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import WhetError
from whet.ilr.replace import MODES, TIES, apply, check_collapse, decide

SCORE = st.one_of(st.just(float("nan")), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
CASES = st.lists(st.tuples(st.booleans(), SCORE), min_size=1, max_size=60)
ALPHA = st.floats(0, 1)


def demonstrations(n):
    return pa.table(
        {
            "row": np.arange(n) * 3,
            "prompt": [f"p{i}" for i in range(n)],
            "completion": [f"old {i}" for i in range(n)],
            "note": np.arange(n),
        }
    )


def released(agree, scores, alpha):
    """Return what the authors' code accepts, as papers.md states it, in plain numpy."""
    s = scores[~agree]
    accepted = np.zeros(len(agree), dtype=bool)
    accepted[~agree] = s > max(0.5, np.percentile(s, 100 * (1 - alpha)))
    return accepted


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.15, 0.3, 0.5, 0.85, 1.0])
def test_distinct_scores_as_in_the_released_code(alpha, ties):
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 21, 100, 333):
        agree, scores = rng.random(n) < 0.4, rng.permutation(n) / n
        agree[0] = False
        found = decide(agree, scores, alpha=alpha, ties=ties, seed=3)
        np.testing.assert_array_equal(found.accepted, released(agree, scores, alpha))
        assert found.n_accepted <= np.ceil(alpha * (found.judged - 1))


@given(CASES, ALPHA, st.sampled_from(TIES), st.integers(0, 3))
def test_what_may_never_be_accepted(cases, alpha, ties, seed):
    agree, scores = np.array([a for a, _ in cases]), np.array([s for _, s in cases])
    found = decide(agree, scores, alpha=alpha, ties=ties, seed=seed)
    assert not found.accepted[agree].any()
    assert not found.accepted[np.isnan(scores)].any()
    assert not found.accepted[scores <= 0.5].any()
    assert found.n_accepted <= alpha * max(found.judged - 1, 0) + 1
    assert found.agreed + found.disagreed == len(agree)
    assert found.judged + found.failed == found.disagreed
    assert found.failed == int(np.isnan(scores[~agree]).sum())
    better = scores[found.accepted]
    worse = scores[~found.accepted & ~agree]
    assert not len(better) or not (worse > better.min()).any()  # the best ones are accepted


@given(CASES, ALPHA, st.sampled_from(MODES), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(cases, alpha, mode, random):
    agree, scores = np.array([a for a, _ in cases]), np.array([s for _, s in cases])
    order = list(range(len(cases)))
    random.shuffle(order)
    found = decide(agree, scores, alpha=alpha, mode=mode, seed=5)
    other = decide(agree[order], scores[order], alpha=alpha, mode=mode, rows=order, seed=5)
    np.testing.assert_array_equal(found.accepted[order], other.accepted)
    assert found.as_dict() == other.as_dict()


def test_ties_at_the_threshold():
    scores = np.array([1.0] * 40 + [0.0] * 60)
    strict = decide(np.zeros(100), scores, alpha=0.15, ties="keep")
    assert (strict.n_accepted, strict.threshold, strict.tied) == (0, 1.0, 40)
    drawn = [decide(np.zeros(100), scores, alpha=0.15, seed=seed) for seed in (0, 0, 1)]
    assert [d.n_accepted for d in drawn] == [15, 15, 15]  # as of 100 distinct scores
    assert all(scores[d.accepted].all() for d in drawn)
    np.testing.assert_array_equal(drawn[0].accepted, drawn[1].accepted)
    assert (drawn[0].accepted != drawn[2].accepted).any()
    # Above the threshold nothing is drawn.
    few = decide(np.zeros(100), np.where(np.arange(100) < 10, 1.0, 0.0), alpha=0.15)
    assert few.accepted[:10].all()
    assert few.n_accepted == 10


def test_failed_rows_count_for_nothing():
    scores = np.array([np.nan, 0.9, 0.8, 0.7, 0.2])
    found = decide([False, False, False, False, True], scores, alpha=0.6)
    assert found.accepted.tolist() == [False, True, True, False, False]
    counts = {"agreed": 1, "disagreed": 4, "judged": 3, "failed": 1, "accepted": 2, "tied": 0}
    assert found.as_dict() == {"mode": "ilr", "alpha": 0.6, "threshold": 0.78, **counts}
    none = decide([False, True], [np.nan, 0.3])
    assert (none.threshold, none.n_accepted, none.failed) == (None, 0, 1)


def test_chosen_and_oracle_have_no_limit():
    scores = [0.9, 0.51, 0.5, 0.1, np.nan, 1.0]
    agree = [False] * 5 + [True]
    for mode in ("chosen", "oracle"):
        found = decide(agree, scores, mode=mode, alpha=0.0)
        assert found.accepted.tolist() == [True, True, False, False, False, False]
        assert found.threshold == 0.5


def test_naive_takes_a_share_of_all_rows_and_no_scores():
    agree = np.arange(100) < 50
    found = decide(agree, mode="naive", alpha=0.157, seed=1)
    assert found.n_accepted == 15
    assert 0 < found.accepted[agree].sum() < 15
    assert (found.accepted != decide(agree, mode="naive", alpha=0.157, seed=2).accepted).any()
    with pytest.raises(WhetError, match="no scores"):
        decide(agree)


def test_apply_replaces_or_drops_and_carries_the_rest():
    table = demonstrations(4)
    proposals = [f"new {i}" for i in range(4)]
    agree, scores = [False] * 4, [0.9, 0.2, 0.8, np.nan]
    after = apply(table, proposals, decide(agree, scores, mode="chosen"))
    assert after["completion"].to_pylist() == ["new 0", "old 1", "new 2", "old 3"]
    assert after.drop_columns(["completion"]) == table.drop_columns(["completion"])
    left = apply(table, proposals, decide(agree, scores, mode="filter", alpha=0.6))
    assert left["row"].to_pylist() == [3, 9]
    assert left["completion"].to_pylist() == ["old 1", "old 3"]
    assert table == demonstrations(4)


def test_duplicated_prompts_keep_their_own_rows():
    table = pa.table({"row": [0, 1, 2], "prompt": ["a"] * 3, "completion": ["x", "y", "x"]})
    found = decide([False] * 3, [0.9, 0.1, 0.2], mode="chosen")
    assert apply(table, ["z", "z", "z"], found)["completion"].to_pylist() == ["z", "y", "x"]


def test_messages_are_replaced_as_messages():
    said = [[{"role": "assistant", "content": text}] for text in ("a", "b", "c", "d")]
    table = pa.table({"prompt": said[:2], "completion": said[:2]})
    after = apply(table, said[2:], decide([False, False], [0.1, 0.9], mode="chosen"))
    assert after["completion"].to_pylist() == [said[0], said[3]]
    assert after.schema == table.schema


def test_large_and_chunked_columns():
    whole = pa.chunked_array([["a"], ["b", "c"]], pa.large_string())
    table = pa.table({"prompt": whole, "completion": whole})
    after = apply(table, ["1", "2", "3"], decide([False] * 3, [1, 0, 1], mode="chosen"))
    assert after["completion"].to_pylist() == ["1", "b", "3"]
    assert after.schema == table.schema


def test_collapse_is_an_error_and_shared_data_is_none():
    table = demonstrations(3)
    found = decide([False] * 3, [0.9] * 3)
    with pytest.raises(WhetError, match=r"all 3 proposals are the same \('no'\).*collapsed"):
        apply(table, ["no"] * 3, found)
    check_collapse(["a", "a"], ["x", "y"], ["z", "z"])  # one prompt
    check_collapse(["a", "b"], ["x", "x"], ["z", "z"])  # one right answer to all
    check_collapse(["a", "b"], ["x", "y"], ["z", "x"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": "irl"}, "did you mean 'ilr'"),
        ({"ties": "drop"}, "ties = 'drop'"),
        ({"alpha": 1.5}, r"alpha = 1.5"),
        ({"scores": [0.1]}, "1 scores for 2 rows"),
        ({"scores": [0.1, 1.2]}, "row 1 is 1.2"),
        ({"scores": [-0.1, 0.2]}, "row 0 is -0.1"),
        ({"rows": [1]}, "1 row numbers for 2 rows"),
    ],
)
def test_wrong_arguments(change, says):
    with pytest.raises(WhetError, match=says):
        decide(**{"agree": [False, False], "scores": [0.1, 0.2], **change})


def test_scores_of_agreeing_rows_are_not_read():
    assert decide([True, False], [7.0, 0.9], mode="chosen").accepted.tolist() == [False, True]


def test_apply_refuses_what_does_not_fit():
    table = demonstrations(2)
    with pytest.raises(WhetError, match="2 rows, 1 proposals, 2 decisions"):
        apply(table, ["a"], decide([False] * 2, [0.9, 0.8]))
    everything = decide([False] * 2, [0.9, 0.8], mode="naive", alpha=1.0)
    dropped = type(everything)(**{**vars(everything), "mode": "filter"})
    with pytest.raises(WhetError, match="would drop every row"):
        apply(table, ["a", "b"], dropped)
