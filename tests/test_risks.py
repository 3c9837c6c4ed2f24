"""The risks: identities on a distribution that can be enumerated, gradients, K = 2."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from whet.classify.risks import (
    SILR_SLOPE,
    Risk,
    SetCrossEntropy,
    binary_uu_risk,
    class_weights,
    uu_coefficients,
)
from whet.errors import WhetError

THETAS = [(0.8, 0.3), (0.65, 0.35), (0.55, 0.5)]
PRIOR = 0.3


def distribution(prior=PRIOR):
    """Five points with class densities, and a score for each."""
    p_positive = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    p_negative = np.array([0.05, 0.1, 0.2, 0.3, 0.35])
    score = np.array([1.5, -0.5, 0.7, -1.2, -2.0])
    return p_positive, p_negative, score


def expected_loss(density, score):
    return (density * expit(-score)).sum()


@pytest.mark.parametrize(("theta_p", "theta_n"), THETAS)
def test_uu_risk_equals_the_supervised_risk_in_expectation(theta_p, theta_n):
    positive, negative, score = distribution()
    supervised = PRIOR * expected_loss(positive, score) + (1 - PRIOR) * expected_loss(
        negative, -score
    )
    in_p = theta_p * positive + (1 - theta_p) * negative
    in_n = theta_n * positive + (1 - theta_n) * negative
    a, b, c, d = uu_coefficients(theta_p, theta_n, PRIOR)
    four_terms = (
        a * expected_loss(in_p, score)
        - b * expected_loss(in_p, -score)
        - c * expected_loss(in_n, score)
        + d * expected_loss(in_n, -score)
    )
    gap = theta_p - theta_n
    w_p = (theta_n + PRIOR - 2 * theta_n * PRIOR) / gap
    w_n = (theta_p + PRIOR - 2 * theta_p * PRIOR) / gap
    constant = (theta_n * (1 - PRIOR) + (1 - theta_p) * PRIOR) / gap
    symmetric = w_p * expected_loss(in_p, score) + w_n * expected_loss(in_n, -score) - constant
    assert four_terms == pytest.approx(supervised, abs=1e-12)
    assert symmetric == pytest.approx(supervised, abs=1e-12)


@pytest.mark.parametrize(("theta", "largest"), list(zip(THETAS, (1.12, 1.52, 7.7), strict=True)))
def test_the_largest_weight_grows_as_the_sets_come_closer(theta, largest):
    assert max(uu_coefficients(*theta, PRIOR)) == pytest.approx(largest, abs=0.005)


def test_class_conditional_noise_leaves_the_sample_risk_unbiased():
    rng = np.random.default_rng(0)
    truth = rng.random(400_000) < PRIOR
    score = np.where(truth, 0.8, -0.8) + rng.normal(size=len(truth))
    flagged = rng.random(len(truth)) < np.where(truth, 0.8, 0.35)
    theta_p, theta_n = truth[flagged].mean(), truth[~flagged].mean()
    true_risk = expit(np.where(truth, -score, score)).mean()
    estimate = binary_uu_risk(score, flagged, theta_p, theta_n, truth.mean(), slope=1.0)
    assert estimate == pytest.approx(true_risk, abs=0.004)


def test_labels_made_from_the_scores_break_the_risk():
    """Why rounds after the first are not UU learning: the noise depends on x."""
    rng = np.random.default_rng(0)
    truth = rng.random(400_000) < PRIOR
    score = np.where(truth, 0.8, -0.8) + rng.normal(size=len(truth))
    flagged = score + 0.1 * rng.normal(size=len(truth)) > 0
    theta_p, theta_n = truth[flagged].mean(), truth[~flagged].mean()
    true_risk = expit(np.where(truth, -score, score)).mean()
    estimate = binary_uu_risk(score, flagged, theta_p, theta_n, truth.mean(), slope=1.0)
    assert estimate < true_risk - 0.1


@pytest.mark.parametrize("slope", [1.0, 0.0, -1.0, SILR_SLOPE])
@pytest.mark.parametrize(("theta_p", "theta_n"), THETAS)
def test_class_wise_form_at_two_classes_is_the_binary_form(theta_p, theta_n, slope):
    rng = np.random.default_rng(1)
    scores, flagged = 3 * rng.normal(size=300), rng.random(300) < 0.4
    theta = np.array([[1 - theta_n, theta_n], [1 - theta_p, theta_p]])
    risk = Risk.uu(theta, [1 - PRIOR, PRIOR], slope)
    two = np.column_stack([np.zeros_like(scores), scores])
    value, _ = risk.value_and_gradient(two, flagged.astype(np.int64))
    assert value == pytest.approx(
        binary_uu_risk(scores, flagged, theta_p, theta_n, PRIOR, slope), abs=1e-12
    )


def test_class_weights_hold_a_b_c_d():
    a, b, c, d = uu_coefficients(0.8, 0.3, PRIOR)
    weights = class_weights([[0.7, 0.3], [0.2, 0.8]], [1 - PRIOR, PRIOR])
    np.testing.assert_allclose(weights, [[d, -c], [-b, a]], atol=1e-12)


def test_swapping_classes_and_sets_changes_nothing():
    rng = np.random.default_rng(2)
    scores, flagged = rng.normal(size=200), rng.random(200) < 0.5
    one = binary_uu_risk(scores, flagged, 0.8, 0.3, PRIOR)
    other = binary_uu_risk(-scores, ~flagged, 1 - 0.3, 1 - 0.8, 1 - PRIOR)
    assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("method", ["pn", "uu", "silr"])
def test_gradient_agrees_with_finite_differences(k, method):
    rng = np.random.default_rng(k)
    n = 40
    sets, scores = rng.integers(0, k, n), rng.normal(size=(n, k))
    theta = 0.7 * np.eye(k) + 0.3 * rng.dirichlet(np.ones(k), k)
    share = np.bincount(sets, minlength=k) / n
    risk = {
        "pn": Risk.pn(share),
        "uu": Risk.uu(theta, share @ theta, 1.0),
        "silr": Risk.uu(theta, share @ theta, SILR_SLOPE),
    }[method]
    assert_gradient(risk, scores, sets)


def test_gradient_of_the_smooth_relative():
    rng = np.random.default_rng(0)
    sets, scores = rng.integers(0, 3, 30), rng.normal(size=(30, 3))
    assert_gradient(SetCrossEntropy(rng.dirichlet(np.ones(3), 3)), scores, sets)


def assert_gradient(loss, scores, sets, step=1e-6):
    _, gradient = loss.value_and_gradient(scores, sets)
    for i in range(0, len(scores), 7):
        for j in range(scores.shape[1]):
            up, down = scores.copy(), scores.copy()
            up[i, j] += step
            down[i, j] -= step
            slope = (
                loss.value_and_gradient(up, sets)[0] - loss.value_and_gradient(down, sets)[0]
            ) / (2 * step)
            assert gradient[i, j] == pytest.approx(slope, abs=1e-8)


def test_negative_partial_risks_are_all_but_removed():
    """With scores that fit the pseudo-labels, a partial risk is negative and the slope bites."""
    sets = np.array([0] * 50 + [1] * 50)
    scores = np.column_stack([np.zeros(100), np.where(sets == 1, 30.0, -30.0)])
    theta = np.array([[0.7, 0.3], [0.2, 0.8]])
    unbiased = Risk.uu(theta, [0.7, 0.3], 1.0)
    robust = Risk.uu(theta, [0.7, 0.3], SILR_SLOPE)
    partial = robust.partial_risks(scores, sets)
    assert partial.max() < 0
    assert unbiased.value_and_gradient(scores, sets)[0] == pytest.approx(partial.sum())
    assert robust.value_and_gradient(scores, sets)[0] == pytest.approx(-0.001 * partial.sum())


def test_pn_is_the_plain_mean_loss():
    rng = np.random.default_rng(3)
    sets, scores = rng.integers(0, 4, 50), rng.normal(size=(50, 4))
    risk = Risk.pn(np.bincount(sets, minlength=4) / 50)
    loss = 1 - softmax(scores, axis=1)[np.arange(50), sets]
    assert risk.value_and_gradient(scores, sets)[0] == pytest.approx(loss.mean())


def test_a_batch_of_one_class_has_no_nan():
    risk = Risk.uu([[0.7, 0.3], [0.2, 0.8]], [0.7, 0.3], SILR_SLOPE)
    value, gradient = risk.value_and_gradient(np.zeros((5, 2)), np.ones(5, dtype=np.int64))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_equal_class_ratios_are_refused_with_the_remedy():
    with pytest.raises(WhetError, match=r"theta_p = 0\.4 .* needs theta_p > theta_n"):
        uu_coefficients(0.4, 0.4, 0.5)
