"""Folds for proposals: every row is proposed for once, never by a model that saw its prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import WhetError
from whet.ilr.halves import digest, halves

PROMPTS = st.lists(st.sampled_from("abcdefgh"), min_size=8).filter(lambda p: len(set(p)) >= 3)


@given(PROMPTS, st.integers(2, 3), st.integers(0, 9))
def test_each_row_is_proposed_for_once_by_a_model_that_never_saw_its_prompt(prompts, folds, seed):
    parts = halves(prompts, folds=folds, seed=seed)
    assert len(parts) == folds
    proposed = np.concatenate([propose for _, propose in parts])
    assert sorted(proposed.tolist()) == list(range(len(prompts)))
    for train, propose in parts:
        assert len(train) + len(propose) == len(prompts)
        assert not {prompts[i] for i in train} & {prompts[i] for i in propose}
    sizes = [len({prompts[i] for i in propose}) for _, propose in parts]
    assert max(sizes) - min(sizes) <= 1


@given(PROMPTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(prompts, random):
    order = list(range(len(prompts)))
    random.shuffle(order)
    before = [{prompts[i] for i in propose} for _, propose in halves(prompts, seed=1)]
    shuffled = [prompts[i] for i in order]
    assert before == [{shuffled[i] for i in part} for _, part in halves(shuffled, seed=1)]


def test_seeds_split_differently_and_messages_are_prompts_too():
    prompts = [[{"role": "user", "content": str(i % 20)}] for i in range(40)]
    splits = [halves(prompts, seed=seed)[0][1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert all((i + 20) % 40 in splits[0] for i in splits[0])  # equal prompts together


def test_no_folds_is_one_model_for_all_rows():
    ((train, propose),) = halves(["a", "b"], folds=0)
    assert train.tolist() == propose.tolist() == [0, 1]


def test_too_few_distinct_prompts():
    with pytest.raises(WhetError, match="folds = 2"):
        halves(["a", "a", "a"])


def test_digests_tell_values_apart_and_stay_the_same():
    assert digest("a", 1) == 4402816434243395361  # as on any machine, in any process
    assert len({digest("a"), digest("a", ""), digest("", "a"), digest(["a"])}) == 4
