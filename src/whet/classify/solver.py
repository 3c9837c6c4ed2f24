"""Many logistic regressions on the same rows, solved as columns of one matrix product.

Every fold, every rerun without some of the gold rows and every class is a further column. All
columns share the features, so that one step of all of them costs two matrix products, and they
share the curvature bound of Böhning (1992), so that a step needs no Hessian: the second
derivative of a cross-entropy never exceeds 1/4 for two classes and 1/2 for more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float32]

#: Rows of a block: small enough for scores and residuals to stay in the processor's cache.
BLOCK = 4096


class FoldSolver:
    """Cross-fitted logistic regression on soft labels, for R runs at once.

    Minimises, for every fold f and run r,
    ``sum_i weight[i, r] CE(target[i, r], softmax(x_i W)) + l2 |W|^2 / 2`` over the rows i that
    are not in fold f. Two classes have one column of weights (the score of class 1).

    Parameters
    ----------
    features : float32 array of shape (n, d)
        With a constant column, if an intercept is wanted; it is penalised like the others.
    fold : int array of shape (n,), or None
        Fold of each row, from 0. None fits on all rows and scores the same rows.
    n_classes : int
        K >= 2.
    l2 : float
        Weight of the penalty, > 0.
    largest_weight : float
        No row weight may exceed it.

    Examples
    --------
    >>> x = np.array([[-1.0, 1.0], [-0.5, 1.0], [0.5, 1.0], [1.0, 1.0]], dtype=np.float32)
    >>> target = np.array([0.0, 0.0, 1.0, 1.0], dtype=np.float32).reshape(4, 1, 1)
    >>> solver = FoldSolver(x, None, n_classes=2, l2=0.1)
    >>> weights = solver.solve(target, np.ones((4, 1), dtype=np.float32))
    >>> (solver.scores(weights)[:, 0, 0] > 0).tolist()
    [False, False, True, True]
    """

    def __init__(
        self,
        features: Floats,
        fold: NDArray[np.int64] | None,
        n_classes: int,
        l2: float,
        largest_weight: float = 1.0,
    ) -> None:
        d = features.shape[1]
        self.features, self.l2 = features, l2
        self.columns = 1 if n_classes == 2 else n_classes
        self.fold = fold
        self.n_folds = 1 if fold is None else int(fold.max()) + 1
        bound = largest_weight * (0.25 if n_classes == 2 else 0.5)
        gram = [np.zeros((d, d)) for _ in range(self.n_folds)]
        for k in range(self.n_folds):
            rows = slice(None) if fold is None else np.flatnonzero(fold == k)
            block = features[rows]
            gram[k] += block.T @ block
        total = np.sum(gram, axis=0)
        self._curvature = []
        for k in range(self.n_folds):
            train = total if fold is None else total - gram[k]
            factor = cho_factor(bound * train + l2 * np.eye(d))
            self._curvature.append(cho_solve(factor, np.eye(d)).astype(np.float32))

    def solve(
        self,
        target: Floats,
        weight: Floats,
        start: Floats | None = None,
        *,
        steps: int = 100,
    ) -> Floats:
        """Return the weights.

        Parameters
        ----------
        target : float32 array of shape (n, R, C)
            Soft labels: P(class 1) for two classes (C = 1), else one column a class.
        weight : float32 array of shape (n, R)
            Row weights, >= 0.
        start : float32 array of shape (d, folds, R, C), optional
            Weights to start from; zero if absent.
        steps : int
            All runs take the same number of steps: a common test of convergence would let one
            run learn from another when to stop.

        Returns
        -------
        float32 array of shape (d, folds, R, C)
        """
        d = self.features.shape[1]
        runs, columns = target.shape[1:]
        now = np.zeros((d, self.n_folds, runs, columns), dtype=np.float32)
        if start is not None:
            now[:] = start
        ahead, pace = now.copy(), 1.0
        for _ in range(steps):
            gradient = self._gradient(ahead, target, weight)
            step = np.empty_like(gradient)
            for k, inverse in enumerate(self._curvature):
                flat = gradient[:, k].reshape(d, -1)
                step[:, k] = (inverse @ flat).reshape(d, runs, columns)
            new = ahead - step
            # Nesterov's momentum, forgotten wherever it points uphill (O'Donoghue, Candès 2015).
            faster = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * pace**2))
            moved = new - now
            uphill = (gradient * moved).sum(axis=0) > 0
            push = np.where(uphill, 0.0, (pace - 1.0) / faster).astype(np.float32)
            ahead = new + push * moved
            now, pace = new, faster
        return now

    def scores(self, weights: Floats) -> Floats:
        """Return each row's scores from the fold that did not see it, shape (n, R, C)."""
        n, d = len(self.features), self.features.shape[1]
        _, folds, runs, columns = weights.shape
        out = np.empty((n, runs, columns), dtype=np.float32)
        flat = weights.reshape(d, folds, -1)
        for rows in self._blocks():
            block = self.features[rows]
            if self.fold is None:
                out[rows] = (block @ flat[:, 0]).reshape(-1, runs, columns)
                continue
            for k in range(folds):
                mine = self.fold[rows] == k
                out[rows][mine] = (block[mine] @ flat[:, k]).reshape(-1, runs, columns)
        return out

    def _blocks(self) -> list[slice]:
        n = len(self.features)
        return [slice(first, min(first + BLOCK, n)) for first in range(0, n, BLOCK)]

    def _gradient(self, weights: Floats, target: Floats, weight: Floats) -> Floats:
        d, folds, runs, columns = weights.shape
        flat = weights.reshape(d, -1)
        gradient = self.l2 * flat
        for rows in self._blocks():
            block = self.features[rows]
            scores = (block @ flat).reshape(-1, folds, runs, columns)
            residual = probabilities(scores)
            residual -= target[rows, None]
            residual *= weight[rows, None, :, None]
            if self.fold is not None:  # a row is no evidence for the fold that it is scored by
                residual[np.arange(len(block)), self.fold[rows]] = 0.0
            gradient += block.T @ residual.reshape(len(block), -1)
        return gradient.reshape(weights.shape)


def probabilities(scores: Any) -> Any:  # noqa: ANN401
    """Return the logistic of one column, or the softmax over the last axis of several."""
    if scores.shape[-1] == 1:
        half = np.tanh(scores * 0.5)
        half *= 0.5
        half += 0.5
        return half
    shifted = scores - scores.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted
