"""A linear classifier trained under a pseudo-label risk: exact risk, analytic gradient, L-BFGS."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import OptimizeResult, minimize
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from whet.classify.priors import set_shares
from whet.classify.risks import (
    SILR_SLOPE,
    FloatArray,
    IntArray,
    Risk,
    SetCrossEntropy,
    SoftCrossEntropy,
    transition_from_ratios,
)
from whet.errors import WhetError

#: Risks by name; see :mod:`whet.classify.risks`.
METHODS = ("pn", "uu", "silr")


class UUClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear classifier for features that you already have, under the PN, UU or robust UU risk.

    Parameters
    ----------
    method : {"silr", "uu", "pn"}
        ``silr`` is the robust UU risk (Asano et al., 2025), ``uu`` the unbiased one (Lu et al.,
        2019; Tang et al., 2022 for K classes), ``pn`` takes the labels for the truth.
    theta : array of shape (K, K), optional
        P(y = j | pseudo-label i), classes in sorted order. None means that labels are right.
    prior : array of shape (K,), optional
        P(y = j). None derives it from theta and the label shares.
    l2 : float
        Weight of ``|W|^2 / 2`` beside the risk, > 0.
    max_iter : int
        Most L-BFGS iterations.

    Attributes
    ----------
    classes_ : array of shape (K,)
    coef_ : float64 array of shape (K, d); (1, d) for two classes
    intercept_ : float64 array of shape (K,); (1,) for two classes
    risk_ : float
        Risk of the training rows, without the l2 term.
    n_iter_ : int

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [0.2], [0.8], [1.0], [0.1], [0.9]])
    >>> pseudo = np.array(["no", "no", "yes", "yes", "yes", "no"])  # the last two are wrong
    >>> clf = UUClassifier(theta=[[0.67, 0.33], [0.33, 0.67]]).fit(X, pseudo)
    >>> clf.predict([[0.05], [0.95]]).tolist()
    ['no', 'yes']
    """

    def __init__(
        self,
        method: str = "silr",
        *,
        theta: ArrayLike | None = None,
        prior: ArrayLike | None = None,
        l2: float = 1e-4,
        max_iter: int = 200,
    ) -> None:
        self.method = method
        self.theta = theta
        self.prior = prior
        self.l2 = l2
        self.max_iter = max_iter

    def fit(self, X: Any, y: ArrayLike) -> Self:  # noqa: ANN401
        """Fit on features and pseudo-labels.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
        y : array of shape (n,)
            Pseudo-labels.

        Raises
        ------
        WhetError
            If theta or prior do not fit the number of classes, or the method is unknown.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        return self.fit_codes(X, codes.astype(np.int64), len(self.classes_))

    def fit_codes(self, features: Any, codes: IntArray, n_classes: int) -> Self:  # noqa: ANN401
        """Fit on checked features and codes 0 to K - 1; sets ``classes_`` if it is not set."""
        if n_classes < 2:
            raise WhetError(
                f"y holds 1 class ({self.classes_[0]!r}): at least two classes are needed"
            )
        if not hasattr(self, "classes_"):
            self.classes_ = np.arange(n_classes)
        risk = self._risk(codes, n_classes)
        columns = _used_columns(features)
        used = features if columns is None else features[:, columns]
        # The sigmoid risk is not convex, and from zero it often runs into a constant classifier:
        # it starts where a smooth relative has its minimum.
        trusted = self.method == "pn" or self.theta is None
        theta = np.eye(n_classes) if trusted else np.asarray(self.theta, dtype=np.float64)
        transition = transition_from_ratios(theta, set_shares(codes, n_classes))
        relative = SetCrossEntropy(transition)
        start = _minimise(_Objective(used, codes, relative, n_classes, 10 * self.l2), None, 50)
        objective = _Objective(used, codes, risk, n_classes, self.l2)
        found = _minimise(objective, start.x, self.max_iter)
        coef, self.intercept_ = objective.unpack(found.x)
        self.coef_ = coef
        if columns is not None:
            self.coef_ = np.zeros((len(coef), features.shape[1]))
            self.coef_[:, columns] = coef
        self.risk_, _ = risk.value_and_gradient(self._logits(features), codes)
        self.n_iter_ = max(int(found.nit), 1)
        return self

    def decision_function(self, X: Any) -> FloatArray:  # noqa: ANN401
        """Return scores: shape (n,) for two classes (positive = ``classes_[1]``), else (n, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        logits = self._logits(X)
        return logits[:, 1] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> FloatArray:  # noqa: ANN401
        """Return softmax scores of shape (n, K), columns as in ``classes_``; not calibrated."""
        probability: FloatArray = softmax(_two_columns(self.decision_function(X)), axis=1)
        return probability

    def probabilities(self, features: Any) -> FloatArray:  # noqa: ANN401
        """Return :meth:`predict_proba` of features that need no checks."""
        return linear_probabilities(features, self.coef_, self.intercept_)

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: ANN401
        """Return ``classes_[argmax predict_proba(X)]``, shape (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _logits(self, features: Any) -> FloatArray:  # noqa: ANN401
        scores = _product(features, self.coef_.T) + self.intercept_
        return _two_columns(scores[:, 0] if scores.shape[1] == 1 else scores)

    def _risk(self, codes: IntArray, n_classes: int) -> Risk:
        return pseudo_label_risk(self.method, set_shares(codes, n_classes), self.theta, self.prior)

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def pseudo_label_risk(
    method: str, share: FloatArray, theta: ArrayLike | None, prior: ArrayLike | None
) -> Risk:
    """Return the risk of a method for pseudo-labelled sets.

    Parameters
    ----------
    method : {"silr", "uu", "pn"}
    share : float64 array of shape (K,)
        Share of the rows in each set.
    theta : array of shape (K, K) or None
        P(y = j | set i); None takes the labels for the truth, as ``pn`` does.
    prior : array of shape (K,) or None
        P(y = j); None takes what theta and the shares imply.

    Raises
    ------
    WhetError
        If the method is unknown, or theta or prior do not fit the number of classes.

    Examples
    --------
    >>> pseudo_label_risk("uu", np.array([0.5, 0.5]), [[0.8, 0.2], [0.2, 0.8]], None).slope
    1.0
    """
    if method not in METHODS:
        raise WhetError(f"unknown method {method!r} (valid: {', '.join(METHODS)})")
    if method == "pn" or theta is None:
        return Risk.pn(share)
    n_classes = len(share)
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape != (n_classes, n_classes):
        raise WhetError(
            f"theta has shape {theta.shape} but y holds {n_classes} classes: pass "
            f"P(y = j | pseudo-label i) with shape ({n_classes}, {n_classes})"
        )
    prior = share @ theta if prior is None else np.asarray(prior, dtype=np.float64)
    if prior.shape != (n_classes,):
        raise WhetError(f"prior has shape {prior.shape}: pass one number a class")
    # A set without rows says nothing: leaving its row out keeps the weights of the others
    # right, since the pseudo-inverse exists for any number of sets.
    present = share > 0
    weights = np.zeros_like(theta)
    slope = 1.0 if method == "uu" else SILR_SLOPE
    weights[present] = Risk.uu(theta[present], prior, slope).weights
    return Risk(weights, slope)


def fit_soft_labels(
    features: Any,  # noqa: ANN401
    target: FloatArray,
    weight: FloatArray,
    l2: float,
) -> tuple[FloatArray, FloatArray]:
    """Fit a logistic regression to soft labels.

    Parameters
    ----------
    features : float32 array or csr array of shape (n, d)
    target : float64 array of shape (n, K)
        Class probabilities.
    weight : float64 array of shape (n,)
        Weight of each row, > 0.
    l2 : float
        Weight of ``|W|^2 / 2`` beside the weighted sum of cross-entropies.

    Returns
    -------
    coef : float64 array of shape (K, d); (1, d) for two classes
    intercept : float64 array of shape (K,); (1,) for two classes
    """
    columns = _used_columns(features)
    used = features if columns is None else features[:, columns]
    rows = np.arange(len(target))
    risk = SoftCrossEntropy(target, weight)
    objective = _Objective(used, rows, risk, target.shape[1], l2 / weight.sum())
    found = _minimise(objective, None, 100)
    coef, intercept = objective.unpack(found.x)
    if columns is None:
        return coef, intercept
    whole = np.zeros((len(coef), features.shape[1]))
    whole[:, columns] = coef
    return whole, intercept


class _Objective:
    """Risk + l2 |W|^2 / 2 of a linear scorer, as a function of one flat parameter vector.

    Two classes have one column of weights (the score of class 1; class 0 scores zero).
    """

    def __init__(
        self,
        features: Any,  # noqa: ANN401
        codes: IntArray,
        risk: Risk | SetCrossEntropy | SoftCrossEntropy,
        n_classes: int,
        l2: float,
    ) -> None:
        self.features, self.codes, self.risk, self.l2 = features, codes, risk, l2
        self.columns = 1 if n_classes == 2 else n_classes
        self.n_parameters = (features.shape[1] + 1) * self.columns

    def unpack(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        table = parameters.reshape(-1, self.columns)
        return np.ascontiguousarray(table[:-1].T), table[-1].copy()

    def __call__(self, parameters: FloatArray) -> tuple[float, FloatArray]:
        table = parameters.reshape(-1, self.columns)
        weights, intercept = table[:-1], table[-1]
        scores = _product(self.features, weights) + intercept
        value, slope = self.risk.value_and_gradient(
            _two_columns(scores[:, 0] if self.columns == 1 else scores), self.codes
        )
        slope = slope[:, -self.columns :]
        gradient = np.empty_like(table)
        gradient[:-1] = _product(self.features.T, slope) + self.l2 * weights
        gradient[-1] = slope.sum(axis=0)
        return value + 0.5 * self.l2 * float((weights**2).sum()), gradient.ravel()


def _minimise(objective: _Objective, start: FloatArray | None, max_iter: int) -> OptimizeResult:
    # The vectors are short: threads of BLAS cost L-BFGS ten times what they save, and change bits.
    with threadpool_limits(1, user_api="blas"):
        return minimize(
            objective,
            np.zeros(objective.n_parameters) if start is None else start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iter, "ftol": 1e-6, "gtol": 1e-7},
        )


def _used_columns(features: Any) -> IntArray | None:  # noqa: ANN401
    """Columns with a nonzero entry; hashed n-grams leave most of them empty on small corpora."""
    if not sparse.issparse(features):
        return None
    seen = np.bincount(features.indices, minlength=features.shape[1]) > 0
    return None if seen.mean() > 0.5 else np.flatnonzero(seen)


def _two_columns(scores: FloatArray) -> FloatArray:
    """Scores of shape (n,) become (n, 2) with a zero column for class 0."""
    return scores if scores.ndim == 2 else np.column_stack([np.zeros_like(scores), scores])


def _product(left: Any, right: FloatArray) -> FloatArray:  # noqa: ANN401
    """Multiply in the precision of the features: a mixed product would copy them every time."""
    result = left @ right.astype(left.dtype, copy=False)
    return np.asarray(result, dtype=np.float64)


def linear_probabilities(features: Any, coef: Any, intercept: Any) -> FloatArray:  # noqa: ANN401
    """Return softmax scores of shape (n, K) of a linear classifier that is known by its arrays."""
    scores = _product(features, coef.T) + intercept
    probability: FloatArray = softmax(
        _two_columns(scores[:, 0] if scores.shape[1] == 1 else scores), axis=1
    )
    return probability
