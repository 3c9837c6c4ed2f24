"""Pooling: draws that are weighted by how likely they make the gold labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from whet.classify.pool import DRAWS, MASS, Pool

SCALES = [(1.0, 0.5), (0.8, 0.5), (0.8, 0.4)]


def told(truth, strength, k, seed=0):
    """Log-probabilities of a source that leans to the truth by ``strength`` nats on average."""
    noise = np.random.default_rng(seed).normal(size=(len(truth), k))
    return log_softmax(strength * np.eye(k)[truth] + noise, axis=1)


def sources(n, k, strengths=(2.0, 1.0, 1.0), seed=0):
    truth = np.random.default_rng(seed).integers(0, k, n)
    parts = [told(truth, s, k, seed + m + 1) for m, s in enumerate(strengths)]
    return truth, np.stack(parts, axis=1)


def by_the_formula(pool, evidence, weight):
    """Average the probabilities of all draws, one draw at a time."""
    return sum(
        w * softmax(np.einsum("m,nmk->nk", scale, evidence) + offset, axis=1)
        for w, scale, offset in zip(weight, pool.scales, pool.offsets, strict=True)
    )


@pytest.mark.parametrize("k", [2, 3, 5])
def test_weights_are_the_likelihoods_of_the_gold_labels(k):
    gold, evidence = sources(30, k)
    pool = Pool(SCALES, k, seed=0)
    weight = pool.weigh(evidence, gold)
    assert weight.shape == (DRAWS,)
    assert weight.sum() == pytest.approx(1)
    wanted = np.empty(DRAWS)
    for d in range(DRAWS):
        scores = np.einsum("m,gmk->gk", pool.scales[d], evidence) + pool.offsets[d]
        wanted[d] = softmax(scores, axis=1)[np.arange(30), gold].prod()
    np.testing.assert_allclose(weight, wanted / wanted.sum(), rtol=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_without_gold_all_draws_weigh_the_same(k):
    weight = Pool(SCALES, k, 0).weigh(np.zeros((0, 3, k)), np.zeros(0, dtype=np.int64))
    np.testing.assert_array_equal(weight, np.full(DRAWS, weight[0]))
    assert weight.sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("n_gold", [0, 3, 50])
def test_mixed_probabilities_are_the_average_over_draws(k, n_gold):
    truth, evidence = sources(300, k)
    pool = Pool(SCALES, k, seed=1)
    weight = pool.weigh(evidence[:n_gold], truth[:n_gold])
    mixed = pool.mix(evidence, weight)
    assert mixed.shape == (300, k)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    assert (mixed >= 0).all()
    # Draws of little weight are left out: no probability can move by more than their share.
    np.testing.assert_allclose(mixed, by_the_formula(pool, evidence, weight), atol=1.5 * (1 - MASS))


def test_two_classes_are_the_general_case():
    """A third class that is out of the question leaves the probabilities of the two."""
    truth, evidence = sources(300, 2)
    two, three = Pool(SCALES, 2, seed=0), Pool(SCALES, 3, seed=0)
    three.scales = two.scales
    three.offsets = np.concatenate([two.offsets, np.zeros((DRAWS, 1))], axis=1)
    wide = np.concatenate([evidence, np.full((300, 3, 1), -1e4)], axis=2)
    weight = two.weigh(evidence[:50], truth[:50])
    np.testing.assert_allclose(three.weigh(wide[:50], truth[:50]), weight, rtol=1e-9)
    mixed = three.mix(wide, weight)
    np.testing.assert_allclose(mixed[:, :2], two.mix(evidence, weight), atol=1e-5)
    assert (mixed[:, 2] == 0).all()


@pytest.mark.parametrize("k", [2, 3])
def test_rows_do_not_depend_on_where_chunks_end(k, monkeypatch):
    truth, evidence = sources(100, k)
    pool = Pool(SCALES, k, seed=0)
    weight = pool.weigh(evidence[:20], truth[:20])
    whole = pool.mix(evidence, weight)
    monkeypatch.setattr("whet.classify.pool.CHUNK", 7)
    np.testing.assert_allclose(pool.mix(evidence, weight), whole, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_each_offset_comes_with_its_opposite(k):
    pool = Pool(SCALES, k, seed=3)
    half = DRAWS // 2
    np.testing.assert_allclose(pool.offsets[:half], -pool.offsets[half:], atol=1e-12)
    np.testing.assert_allclose(pool.offsets.sum(axis=1), 0, atol=1e-12)
    assert pool.offsets.std() > 0.2


def test_scales_are_drawn_from_their_prior():
    drawn = np.concatenate([Pool(SCALES, 2, seed).scales for seed in range(30)])
    assert (drawn > 0).all()
    medians, spreads = np.array(SCALES).T
    np.testing.assert_allclose(np.median(drawn, axis=0), medians, rtol=0.05)
    np.testing.assert_allclose(np.log(drawn).std(axis=0), spreads, rtol=0.05)


def test_no_class_is_favoured_without_evidence():
    pool = Pool(SCALES, 4, seed=0)
    weight = pool.weigh(np.zeros((0, 3, 4)), np.zeros(0, dtype=np.int64))
    mixed = pool.mix(np.zeros((1, 3, 4)), weight)
    np.testing.assert_allclose(mixed, 0.25, atol=0.02)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_useless_source_is_trusted_less_than_a_good_one(k, seed):
    truth, evidence = sources(60, k, (2.5, 0.0), seed)
    evidence[:, 1] *= 3  # and sure of itself
    pool = Pool([(1.0, 0.5), (1.0, 0.5)], k, seed)
    before = pool.mean_scales(np.full(DRAWS, 1 / DRAWS))
    good, useless = pool.mean_scales(pool.weigh(evidence, truth))
    assert useless < 0.6 * before[1]
    assert good > 1.5 * useless


def test_a_source_that_is_right_makes_the_mix_right():
    truth, evidence = sources(400, 3, (4.0, 0.0, 0.0))
    pool = Pool(SCALES, 3, seed=0)
    blind = pool.mix(evidence, np.full(DRAWS, 1 / DRAWS))
    seeing = pool.mix(evidence, pool.weigh(evidence[:50], truth[:50]))
    rows = np.arange(50, 400)
    likely = [np.log(p[rows, truth[rows]]).mean() for p in (blind, seeing)]
    assert likely[1] > likely[0]


def test_evidence_that_leaves_no_doubt_stays_finite():
    evidence = np.zeros((4, 3, 2))
    evidence[:2, :, 0] = evidence[2:, :, 1] = -1e4
    pool = Pool(SCALES, 2, seed=0)
    weight = pool.weigh(evidence, np.array([1, 0, 0, 1]))  # half of the gold is impossible
    assert np.isfinite(weight).all()
    np.testing.assert_array_equal(pool.mix(evidence, weight).argmax(axis=1), [1, 1, 0, 0])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_evidence_and_gold_give_probabilities(k, m, seed):
    rng = np.random.default_rng(seed)
    n, g = int(rng.integers(1, 40)), int(rng.integers(0, 20))
    loud = 10 ** rng.uniform(-2, 3)
    pool = Pool([(rng.uniform(0.3, 2), 0.5)] * m, k, int(rng.integers(1000)))
    weight = pool.weigh(loud * rng.normal(size=(g, m, k)), rng.integers(0, k, g))
    assert weight.sum() == pytest.approx(1)
    mixed = pool.mix((loud * rng.normal(size=(n, m, k))).astype(np.float32), weight)
    assert np.isfinite(mixed).all()
    assert (mixed >= 0).all()
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-5)
