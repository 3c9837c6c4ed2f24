"""The losses on tensors against the losses on arrays."""

import numpy as np
import pytest

from whet.classify.risks import SILR_SLOPE, Risk, SetCrossEntropy, SoftCrossEntropy, binary_uu_risk
from whet.errors import WhetError

torch = pytest.importorskip("torch", reason="needs the extra train")

from whet.finetune.losses import TensorLoss, two_columns  # noqa: E402

N = 40


def theta_of(k):
    return np.full((k, k), 0.2 / (k - 1)) + np.eye(k) * (0.8 - 0.2 / (k - 1))


def losses(k):
    rng = np.random.default_rng(k)
    prior = rng.dirichlet(np.full(k, 5.0))
    target = rng.dirichlet(np.ones(k), N)
    sets = rng.integers(0, k, N)
    rows = rng.permutation(N)
    return {
        "pn": (Risk.pn(np.bincount(sets, minlength=k) / N), sets),
        "uu": (Risk.uu(theta_of(k), prior, 1.0), sets),
        "silr": (Risk.uu(theta_of(k), prior, SILR_SLOPE), sets),
        "steep": (Risk.uu(theta_of(k), prior, -0.7), sets),
        "set": (SetCrossEntropy(theta_of(k)), sets),
        "soft": (SoftCrossEntropy(target, rng.uniform(0.1, 2.0, N)), rows[:30]),
    }


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("name", ["pn", "uu", "silr", "steep", "set", "soft"])
def test_value_and_gradient_equal_the_array_code(name, k):
    loss, labels = losses(k)[name]
    for seed, scale in ((0, 0.1), (1, 1.0), (2, 6.0)):
        scores = scale * np.random.default_rng(seed).normal(size=(len(labels), k))
        value, gradient = loss.value_and_gradient(scores, labels)
        tensor = torch.tensor(scores, requires_grad=True)
        found = TensorLoss(loss).value(tensor, labels)
        found.backward()
        assert found.item() == pytest.approx(value, abs=1e-6)
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-6)


def test_negative_partial_risks_are_seen_by_the_comparison_above():
    loss, labels = losses(2)["silr"]
    scores = 6.0 * np.where(np.eye(2)[labels] > 0, 1.0, -1.0)
    assert (loss.partial_risks(scores, labels) < 0).any()
    value, gradient = loss.value_and_gradient(scores, labels)
    tensor = torch.tensor(scores, requires_grad=True)
    found = TensorLoss(loss).value(tensor, labels)
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-9)


@pytest.mark.parametrize("name", ["pn", "uu", "silr", "set", "soft"])
def test_one_logit_is_two_scores_however_they_are_split(name):
    loss, labels = losses(2)[name]
    g = torch.randn(len(labels), 1, dtype=torch.float64, requires_grad=True)
    value = TensorLoss(loss).value(g, labels)
    (gradient,) = torch.autograd.grad(value, g)
    for split in (torch.cat([torch.zeros_like(g), g], 1), torch.cat([-g / 2, g / 2], 1)):
        other = TensorLoss(loss).value(split, labels)
        assert other.item() == pytest.approx(value.item(), abs=1e-12)
        np.testing.assert_allclose(torch.autograd.grad(other, g)[0], gradient, atol=1e-12)


def test_one_logit_gives_the_risk_as_the_papers_write_it():
    rng = np.random.default_rng(0)
    g, positive = rng.normal(size=N), rng.random(N) < 0.4
    for slope in (1.0, SILR_SLOPE):
        risk = Risk.uu([[0.7, 0.3], [0.2, 0.8]], [0.7, 0.3], slope)
        value = TensorLoss(risk).value(torch.tensor(g[:, None]), positive.astype(int))
        assert value.item() == pytest.approx(binary_uu_risk(g, positive, 0.8, 0.3, 0.3, slope))


@pytest.mark.parametrize("name", ["pn", "uu", "silr", "set", "soft"])
def test_sums_of_parts_add_up_to_the_whole(name):
    loss, labels = losses(3)[name]
    tensor = TensorLoss(loss)
    scores = torch.randn(len(labels), 3, dtype=torch.float64)
    coefficients = torch.from_numpy(tensor.coefficients(labels))
    whole = tensor.sums(scores, coefficients)
    parts = sum(tensor.sums(scores[k::4], coefficients[k::4]) for k in range(4))
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    twice = tensor.sums(scores, torch.from_numpy(tensor.scaled(coefficients.numpy(), 2.0)))
    np.testing.assert_allclose(twice, 2 * whole, atol=1e-12)


@pytest.mark.parametrize("name", ["pn", "uu", "silr", "set"])
def test_a_batch_of_one_class_gives_no_nan(name):
    loss, _ = losses(2)[name]
    g = torch.randn(5, 1, requires_grad=True)
    value = TensorLoss(loss).value(g, np.ones(5, dtype=int))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(g.grad).all()


def test_a_set_that_a_class_never_falls_into_gives_no_nan():
    loss = SetCrossEntropy([[1.0, 0.0], [0.0, 1.0]])
    g = torch.tensor([[90.0], [-90.0]], requires_grad=True)
    value = TensorLoss(loss).value(g, np.array([0, 1]))
    value.backward()
    assert value.item() == pytest.approx(90.0, rel=0.05)
    assert torch.isfinite(g.grad).all()


def test_k_classes_strata_and_labels_that_are_not_there():
    for name, (loss, labels) in losses(3).items():
        tensor = TensorLoss(loss)
        assert tensor.n_classes == 3
        strata = tensor.strata(labels)
        assert strata.max() < 3
        if name == "soft":
            np.testing.assert_array_equal(strata, loss.target.argmax(1)[labels])
        with pytest.raises(WhetError, match="the loss knows 0 to"):
            tensor.check(np.array([0, -1]))
        with pytest.raises(WhetError, match="of row 0"):
            tensor.check(np.array([99]))
    assert two_columns(torch.zeros(2, 3)).shape == (2, 3)
