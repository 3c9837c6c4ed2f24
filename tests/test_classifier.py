"""UUClassifier: scikit-learn's contract, K = 2 as a case of K, sparse and dense, robustness."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import check_grad
from sklearn.utils.estimator_checks import parametrize_with_checks

from whet import UUClassifier, WhetError
from whet.classify.classifier import _Objective
from whet.classify.risks import Risk


@parametrize_with_checks([UUClassifier(), UUClassifier(method="pn")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def blobs(n=400, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    features = rng.normal(size=(n, 5)) + 1.5 * truth[:, None] * np.array([1, 0.5, 0, 0, 0])
    return features, truth


def noisy(truth, tpr, fpr, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.random(len(truth)) < np.where(truth == 1, tpr, fpr)).astype(int)


def oracle_theta(pseudo, truth):
    return [[(truth[pseudo == i] == j).mean() for j in (0, 1)] for i in (0, 1)]


@pytest.mark.parametrize("k", [2, 4])
def test_gradient_of_the_whole_objective(k):
    rng = np.random.default_rng(0)
    features, codes = rng.normal(size=(30, 4)), rng.integers(0, k, 30)
    theta = 0.8 * np.eye(k) + 0.2 / k
    objective = _Objective(features, codes, Risk.uu(theta, np.full(k, 1 / k), -0.001), k, 1e-3)
    start = rng.normal(size=objective.n_parameters)
    error = check_grad(lambda p: objective(p)[0], lambda p: objective(p)[1], start)
    assert error < 1e-6


def test_robust_risk_undoes_one_sided_noise_that_pn_copies():
    features, truth = blobs(2000)
    pseudo = noisy(truth, 0.45, 0.05)
    theta = oracle_theta(pseudo, truth)
    robust = UUClassifier(theta=theta).fit(features, pseudo)
    plain = UUClassifier(method="pn").fit(features, pseudo)
    assert (robust.predict(features) == truth).mean() > (
        plain.predict(features) == truth
    ).mean() + 0.1


def test_sparse_and_dense_features_give_the_same_classifier():
    rng = np.random.default_rng(0)
    dense = rng.random((200, 30)) * (rng.random((200, 30)) < 0.2)
    dense = np.hstack([dense, np.zeros((200, 60))])  # empty columns, as hashing leaves them
    pseudo = (dense[:, 0] + 0.2 * rng.random(200) > 0.2).astype(int)
    theta = [[0.8, 0.2], [0.2, 0.8]]
    fitted = [
        UUClassifier(theta=theta).fit(x, pseudo)
        for x in (dense, sparse.csr_array(dense), sparse.csr_matrix(dense))
    ]
    for other in fitted[1:]:
        assert other.coef_.shape == (1, 90)
        np.testing.assert_allclose(
            other.predict_proba(dense), fitted[0].predict_proba(dense), atol=1e-3
        )


def test_predict_is_the_argmax_of_predict_proba_for_any_label_names():
    features, truth = blobs()
    for names in (np.array(["zebra", "ant"]), np.array([7, -3]), np.array([True, False])):
        classifier = UUClassifier(method="pn").fit(features, names[truth])
        probability = classifier.predict_proba(features)
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        predicted = classifier.classes_[probability.argmax(axis=1)]
        assert (classifier.predict(features) == predicted).all()
        assert (predicted == names[truth]).mean() > 0.75


def test_input_is_not_changed():
    features, truth = blobs()
    before = features.copy()
    UUClassifier(theta=[[0.8, 0.2], [0.2, 0.8]]).fit(features, truth).predict(features)
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"method": "nope"}, "unknown method 'nope'"),
        ({"theta": [[1.0]]}, r"theta has shape \(1, 1\) but y holds 2 classes"),
        ({"theta": np.eye(2), "prior": [1.0]}, r"prior has shape \(1,\)"),
    ],
)
def test_wrong_parameters_are_named(parameters, words):
    features, truth = blobs(50)
    with pytest.raises(WhetError, match=words):
        UUClassifier(**parameters).fit(features, truth)
