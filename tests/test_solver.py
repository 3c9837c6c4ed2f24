"""FoldSolver against one slow logistic regression for each fold and run."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from whet.classify.solver import FoldSolver, probabilities

N, D, RUNS, FOLDS = 60, 5, 3, 4


def problem(k, seed=0, n=N):
    """Features with a constant column, soft labels and row weights of 0 to 2 for several runs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D)).astype(np.float32)
    x[:, -1] = 1.0
    target = softmax(2 * rng.normal(size=(n, RUNS, k)), axis=-1).astype(np.float32)
    weight = rng.choice([0.0, 0.5, 1.0, 2.0], size=(n, RUNS)).astype(np.float32)
    fold = rng.permutation(n) % FOLDS
    return x, target, weight, fold


def slow(x, target, weight, l2):
    """Minimise the objective with K columns, in float64 and without tricks."""
    x, target, weight = (a.astype(np.float64) for a in (x, target, weight))
    k = target.shape[1]

    def objective(flat):
        w = flat.reshape(-1, k)
        scores = x @ w
        loss = -(weight[:, None] * target * log_softmax(scores, axis=1)).sum()
        residual = weight[:, None] * (softmax(scores, axis=1) - target)
        return loss + 0.5 * l2 * (w**2).sum(), (x.T @ residual + l2 * w).ravel()

    start = np.zeros(x.shape[1] * k)
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x.reshape(-1, k)


def solve(x, target, weight, fold, l2=0.3, start=None):
    """Solve to the last digit of float32, in a fixed number of steps."""
    k = target.shape[-1]
    solver = FoldSolver(x, fold, k, l2, largest_weight=2.0)
    columns = target[..., 1:] if k == 2 else target
    weights = solver.solve(columns, weight, start, steps=1_000)
    return solver, weights


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("folded", [True, False])
def test_every_fold_and_run_is_a_logistic_regression(k, folded):
    x, target, weight, fold = problem(k)
    if not folded:
        fold = None
    solver, found = solve(x, target, weight, fold)
    assert found.shape == (D, FOLDS if folded else 1, RUNS, 1 if k == 2 else k)
    scores = solver.scores(found)
    assert scores.shape == (N, RUNS, 1 if k == 2 else k)
    for f in range(found.shape[1]):
        train = np.ones(N, dtype=bool) if fold is None else fold != f
        judged = train if fold is None else ~train
        for r in range(RUNS):
            # Two columns w/2 and -w/2 at twice the penalty are one column w: the same scores and
            # the same |W|^2, so that the reference needs no case of its own for two classes.
            l2 = 0.6 if k == 2 else 0.3
            wanted = slow(x[train], target[train, r], weight[train, r], l2)
            wanted = wanted[:, 1:] - wanted[:, :1] if k == 2 else wanted
            np.testing.assert_allclose(found[:, f, r], wanted, atol=2e-4)
            np.testing.assert_allclose(scores[judged, r], x[judged] @ wanted, atol=5e-4)


def test_one_column_is_two_opposite_ones_at_twice_the_penalty():
    x, target, weight, _ = problem(2)
    _, one = solve(x, target, weight, None, l2=0.3)
    for r in range(RUNS):
        two = slow(x, target[:, r], weight[:, r], 0.6)
        np.testing.assert_allclose(two[:, 0], -two[:, 1], atol=1e-6)
        np.testing.assert_allclose(two[:, 1], one[:, 0, r, 0] / 2, atol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_hard_labels_give_what_sklearn_gives(k):
    x, target, weight, _ = problem(k)
    hard = target.argmax(axis=-1)
    one_hot = np.eye(k, dtype=np.float32)[hard]
    _, found = solve(x, one_hot, weight, None, l2=0.5)
    for r in range(RUNS):
        peer = LogisticRegression(C=1 / 0.5, fit_intercept=False, tol=1e-10, max_iter=10_000)
        peer.fit(x.astype(np.float64), hard[:, r], sample_weight=weight[:, r])
        np.testing.assert_allclose(found[:, 0, r].T, peer.coef_, atol=2e-4)


@pytest.mark.parametrize("k", [2, 4])
def test_a_warm_start_ends_where_a_cold_one_does(k):
    x, target, weight, fold = problem(k)
    _, cold = solve(x, target, weight, fold)
    far = np.random.default_rng(1).normal(size=cold.shape).astype(np.float32)
    for start in (far, cold):
        _, warm = solve(x, target, weight, fold, start=start)
        np.testing.assert_allclose(warm, cold, atol=5e-4)


def test_a_start_is_not_written_over():
    x, target, weight, fold = problem(3)
    start = np.ones((D, FOLDS, RUNS, 3), dtype=np.float32)
    solve(x, target, weight, fold, start=start)
    assert (start == 1).all()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("changed", ["target", "weight"])
def test_a_row_does_not_touch_the_scores_of_its_own_fold(k, changed):
    x, target, weight, fold = problem(k)
    weight[7] = 1.0
    solver, weights = solve(x, target, weight, fold)
    before = solver.scores(weights)
    if changed == "target":
        target[7] = np.eye(k)[target[7].argmin(axis=-1)]
    else:
        weight[7] = 0.0
    solver, weights = solve(x, target, weight, fold)
    after = solver.scores(weights)
    own = fold == fold[7]
    np.testing.assert_array_equal(after[own], before[own])
    assert np.abs(after[~own] - before[~own]).max() > 1e-2


def test_runs_do_not_touch_each_other():
    x, target, weight, fold = problem(3)
    _, together = solve(x, target, weight, fold)
    for r in range(RUNS):
        _, alone = solve(x, target[:, [r]], weight[:, [r]], fold)
        np.testing.assert_allclose(alone[:, :, 0], together[:, :, r], atol=5e-4)


def test_rows_of_no_weight_are_as_good_as_absent():
    x, target, weight, _ = problem(3)
    weight[:20] = 0.0
    _, whole = solve(x, target, weight, None)
    _, without = solve(x[20:], target[20:], weight[20:], None)
    np.testing.assert_allclose(whole, without, atol=2e-4)


def test_a_row_of_weight_two_counts_as_two_rows():
    x, target, _, _ = problem(3)
    weight = np.ones((N, RUNS), dtype=np.float32)
    weight[:10] = 2.0
    _, weighted = solve(x, target, weight, None)
    twice = np.concatenate([np.arange(N), np.arange(10)])
    _, repeated = solve(x[twice], target[twice], np.ones((N + 10, RUNS), np.float32), None)
    np.testing.assert_allclose(weighted, repeated, atol=2e-4)


def test_more_rows_than_a_block_are_all_counted(monkeypatch):
    x, target, weight, fold = problem(3)
    solver, weights = solve(x, target, weight, fold)
    monkeypatch.setattr("whet.classify.solver.BLOCK", 7)
    parted, other = solve(x, target, weight, fold)
    assert len(parted._blocks()) == 9
    np.testing.assert_allclose(other, weights, atol=5e-4)
    np.testing.assert_allclose(parted.scores(weights), solver.scores(weights), atol=1e-5)


def test_ten_steps_are_nearly_all_the_way():
    """A pass of the method leaves the objective at most 0.03 nats from its minimum."""
    x, target, weight, _ = problem(3, n=200)
    solver = FoldSolver(x, None, 3, 0.3, 2.0)
    loose = solver.solve(target, weight, steps=10)

    def objective(w, r):
        loss = -(weight[:, r, None] * target[:, r] * log_softmax(x @ w, axis=1)).sum()
        return loss + 0.15 * (w**2).sum()

    for r in range(RUNS):
        best = slow(x, target[:, r], weight[:, r], 0.3)
        assert 0 <= objective(loose[:, 0, r], r) - objective(best, r) + 1e-3 < 0.03


@pytest.mark.parametrize("k", [2, 3, 5])
def test_probabilities_are_the_logistic_or_the_softmax(k):
    scores = np.random.default_rng(0).normal(scale=30, size=(50, 1 if k == 2 else k))
    both = np.concatenate([np.zeros((50, 1)), scores], axis=1) if k == 2 else scores
    wanted = softmax(both, axis=1)[:, 1:] if k == 2 else softmax(both, axis=1)
    given = scores.copy()
    np.testing.assert_allclose(probabilities(scores), wanted, atol=1e-12)
    np.testing.assert_array_equal(scores, given)
    assert np.isfinite(probabilities(np.array([[1e6], [-1e6]]))).all()
