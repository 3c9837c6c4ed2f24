"""Which rows people are asked for: proportional, nested, at random within a stratum."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.review.sample import draw, proportional


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_every_prefix_is_within_one_of_proportional(sizes):
    sizes = np.array(sizes)
    n = min(int(sizes.sum()), 250)
    turns = proportional(sizes, n)
    counts = np.cumsum(turns[:, None] == np.arange(len(sizes)), axis=0)
    due = np.arange(1, n + 1)[:, None] * sizes / sizes.sum()
    assert np.abs(counts - due).max() < 1
    assert (counts[-1] <= sizes).all()


def test_all_rows_are_drawn_once_and_a_larger_sample_begins_with_a_smaller():
    strata = np.random.default_rng(0).choice(4, 300, p=[0.7, 0.2, 0.07, 0.03]) - 1  # -1: abstained
    whole = draw(strata, 300, seed=3)
    assert sorted(whole.tolist()) == list(range(300))
    for n in (1, 50, 100, 299):
        assert draw(strata, n, seed=3).tolist() == whole[:n].tolist()
    assert draw(strata, 50, seed=4).tolist() != whole[:50].tolist()


def test_each_row_of_a_stratum_is_equally_likely():
    strata = np.array([0] * 15 + [1] * 5)
    hits = np.zeros(20)
    draws = 2000
    for seed in range(draws):
        hits[draw(strata, 4, seed)] += 1  # 3 of the first stratum, 1 of the second
    share, spread = 0.2, np.sqrt(0.2 * 0.8 / draws)
    assert hits[:15].sum() == 3 * draws
    assert np.abs(hits / draws - share).max() < 4.5 * spread
