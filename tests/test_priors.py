"""Class ratios: coverage, the bias of the released estimator, kappa, the gold ledger."""

import numpy as np
import pytest

from whet.classify.gold import GoldLedger
from whet.classify.priors import (
    count_pairs,
    exact_ratios,
    ratios_from_counts,
    released_ratios,
    require_better_than_chance,
    set_shares,
    theta_from_rates,
)
from whet.errors import WhetError

PRIOR, TPR, FPR = 0.3, 0.8, 0.35
TRUE_P, TRUE_N = 0.495, 0.117


def corpus(rng, n=4000, prior=PRIOR, tpr=TPR, fpr=FPR):
    truth = (rng.random(n) < prior).astype(np.int64)
    pseudo = (rng.random(n) < np.where(truth == 1, tpr, fpr)).astype(np.int64)
    return truth, pseudo


def sampled(rng, truth, n):
    gold = np.full(len(truth), -1)
    rows = rng.choice(len(truth), n, replace=False)
    gold[rows] = truth[rows]
    return gold


def test_bayes_rule_gives_the_published_numbers():
    assert theta_from_rates(TPR, FPR, PRIOR) == pytest.approx((TRUE_P, TRUE_N), abs=5e-4)


def test_gold_estimator_is_bayes_rule_on_a_random_sample():
    """The share within a set and the corrected estimator are the same number."""
    rng = np.random.default_rng(0)
    truth, pseudo = corpus(rng, 500)
    exact = exact_ratios(count_pairs(pseudo, truth, 2), set_shares(pseudo, 2)).theta
    rates = [pseudo[truth == c].mean() for c in (1, 0)]
    assert theta_from_rates(*rates, truth.mean()) == pytest.approx((exact[1, 1], exact[0, 1]))


def test_released_estimator_is_biased_and_gold_is_not():
    rng = np.random.default_rng(0)
    released, gold = [], []
    for _ in range(1000):
        truth, pseudo = corpus(rng)
        released.append(released_ratios(pseudo, truth, 50, 1, rng).theta[:, 1])
        counts = count_pairs(pseudo, sampled(rng, truth, 50), 2)
        gold.append(ratios_from_counts(counts, set_shares(pseudo, 2)).theta[:, 1])
    mean_n, mean_p = np.mean(released, axis=0)
    assert mean_p == pytest.approx(0.697, abs=0.01)
    assert mean_n == pytest.approx(0.235, abs=0.01)
    assert np.std(released, axis=0) == pytest.approx([0.077, 0.064], abs=0.006)
    # Jeffreys' prior shrinks theta_n, from about 25 rows, by less than 0.02 towards one half.
    assert np.mean(gold, axis=0) == pytest.approx([TRUE_N, TRUE_P], abs=0.02)


def test_released_mode_is_an_oracle_after_the_first_round():
    rng = np.random.default_rng(1)
    truth, pseudo = corpus(rng)
    later = released_ratios(pseudo, truth, 50, 2, rng)
    np.testing.assert_allclose(
        later.theta, exact_ratios(count_pairs(pseudo, truth, 2), set_shares(pseudo, 2)).theta
    )
    first = released_ratios(pseudo, truth, 50, 1, rng)
    assert first.prior[1] == pytest.approx(truth.mean())


def test_theta_intervals_cover_the_truth():
    """Over 2,000 draws of corpus, rates and gold rows: 95 % plus or minus 3."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        prior, tpr, fpr = rng.uniform(0.2, 0.8), rng.uniform(0.6, 0.95), rng.uniform(0.05, 0.4)
        truth, pseudo = corpus(rng, 2000, prior, tpr, fpr)
        share = set_shares(pseudo, 2)
        exact = exact_ratios(count_pairs(pseudo, truth, 2), share).theta
        counts = count_pairs(pseudo, sampled(rng, truth, rng.choice([50, 100])), 2)
        ratios = ratios_from_counts(counts, share)
        covered.append((ratios.low <= exact) & (exact <= ratios.high))
    for set_number in (0, 1):
        assert 0.92 <= np.mean(covered, axis=0)[set_number, 1] <= 0.98


def test_theta_intervals_cover_the_truth_of_six_classes():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(500):
        truth = rng.choice(6, 2000, p=[0.22, 0.23, 0.22, 0.02, 0.15, 0.16])
        wrong = (truth + rng.integers(1, 6, 2000)) % 6
        pseudo = np.where(rng.random(2000) < rng.uniform(0.4, 0.9), truth, wrong)
        share = set_shares(pseudo, 6)
        exact = exact_ratios(count_pairs(pseudo, truth, 6), share).theta
        counts = count_pairs(pseudo, sampled(rng, truth, 50), 6)
        ratios = ratios_from_counts(counts, share)
        assert (ratios.low <= ratios.theta).all()
        assert (ratios.theta <= ratios.high).all()
        covered.append(np.diag((ratios.low <= exact) & (exact <= ratios.high)))
    assert 0.92 <= np.mean(covered) <= 0.99


def test_prior_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(1000):
        truth, pseudo = corpus(rng, 2000)
        counts = count_pairs(pseudo, sampled(rng, truth, 50), 2)
        ratios = ratios_from_counts(counts, set_shares(pseudo, 2))
        covered.append(ratios.prior_low[1] <= truth.mean() <= ratios.prior_high[1])
    assert 0.92 <= np.mean(covered) <= 0.98


def test_prior_follows_from_theta_by_the_identity():
    share = np.array([0.35, 0.65])
    ratios = ratios_from_counts(np.array([[20, 3], [7, 20]]), share)
    theta_n, theta_p = ratios.theta[:, 1]
    assert ratios.prior[1] == pytest.approx(0.65 * theta_p + 0.35 * theta_n)
    assert ratios.prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_has_the_sign_of_theta_p_minus_theta_n(seed):
    rng = np.random.default_rng(seed)
    ratios = ratios_from_counts(rng.integers(0, 20, (2, 2)), rng.dirichlet([1, 1]))
    assert np.sign(ratios.kappa) == np.sign(ratios.theta[1, 1] - ratios.theta[0, 1])


def test_an_annotator_at_chance_is_refused_by_name():
    ratios = ratios_from_counts(np.array([[5, 20], [20, 5]]), np.array([0.5, 0.5]))
    with pytest.raises(WhetError, match=r"no better than chance on the 50 gold rows .*'spam'"):
        require_better_than_chance(ratios, ["ham", "spam"])


def test_a_set_without_gold_rows_says_nothing():
    ratios = ratios_from_counts(np.array([[9, 1, 0], [2, 8, 0], [0, 0, 0]]), np.full(3, 1 / 3))
    assert ratios.theta[2] == pytest.approx([1 / 3] * 3)
    assert ratios.low[2].max() < 0.01
    assert ratios.high[2].min() > 0.9


def test_rows_without_a_label_or_without_gold_are_not_counted():
    counts = count_pairs(np.array([0, 1, -1, 1]), np.array([0, -1, 1, 1]), 2)
    assert counts.tolist() == [[1, 0], [0, 1]]


def test_ledger_enforces_the_budget_and_lists_every_use():
    codes = np.arange(200) % 2
    ledger = GoldLedger(codes, 50, seed=0)
    assert (ledger.use("theta", 1) >= 0).sum() == 50
    ledger.use("guard")
    report = ledger.report()
    assert (report["given"], report["budget"], report["kept"]) == (200, 50, 50)
    assert len(set(report["rows"])) == 50
    assert [use["purpose"] for use in report["uses"]] == ["theta", "guard"]


def test_ledger_sample_is_random_but_seeded():
    codes = np.arange(200) % 2
    rows = [GoldLedger(codes, 50, seed).rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
