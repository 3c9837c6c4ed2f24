"""The risks on tensors: coefficients from :mod:`whet.classify.risks`, gradients by autograd.

Every loss there is a sum over rows: of coefficients that only labels decide, times functions of the
row's scores. The coefficients of a whole epoch are computed once, on the host, from the same
objects that the array code uses. What is left for the device is

======================  =============================  ========================================
loss                    coefficients of a row          what is summed over rows
======================  =============================  ========================================
``Risk``                W[i] / size of its set i       coefficient_j * (1 - softmax(f)_j), each j
``SetCrossEntropy``     P(its set | y), log(rows)      -log sum_j coefficient_j softmax(f)_j / rows
``SoftCrossEntropy``    target * share of the weight   -sum_j coefficient_j log softmax(f)_j
======================  =============================  ========================================

and then phi of each sum. Because these are sums, a batch that is spread over several processes, or
over several passes, needs nothing but its sums added up; see :mod:`whet.finetune.trainer`.

**One logit for two classes.** A model with one logit g counts as scores (0, g). The scores
(-g/2, g/2) would do as well: both rows differ by the constant g/2, softmax does not change when a
constant is added to all scores of a row, and all losses read the scores through softmax alone. So
value and gradient in g are the same, and the sigmoid loss of class 1 is 1 - softmax(0, g)_1 =
sigmoid(-g), as the papers have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whet.classify.risks import FloatArray, IntArray, Risk, SetCrossEntropy, SoftCrossEntropy
from whet.errors import WhetError
from whet.extras import require

if TYPE_CHECKING:
    from torch import Tensor

#: What a model can be trained under.
Loss = Risk | SetCrossEntropy | SoftCrossEntropy


@dataclass(frozen=True)
class TensorLoss:
    """A loss of :mod:`whet.classify.risks` on tensors.

    Parameters
    ----------
    loss : Risk, SetCrossEntropy or SoftCrossEntropy
        Where the coefficients come from.

    Examples
    --------
    >>> import numpy as np, torch
    >>> risk = Risk.uu([[0.7, 0.3], [0.2, 0.8]], [0.7, 0.3], slope=1.0)
    >>> g = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    >>> value = TensorLoss(risk).value(g, np.array([1, 0]))
    >>> value.backward()
    >>> round(value.item(), 4), tuple(g.grad.shape)
    (-0.1064, (2, 1))
    """

    loss: Loss

    @property
    def n_classes(self) -> int:
        """K, the classes that scores are for."""
        if isinstance(self.loss, Risk):
            return int(self.loss.weights.shape[1])
        if isinstance(self.loss, SetCrossEntropy):
            return len(np.asarray(self.loss.transition))
        return int(self.loss.target.shape[1])

    @property
    def slope(self) -> float:
        """Slope of phi below zero; 1 where phi changes nothing."""
        return float(self.loss.slope) if isinstance(self.loss, Risk) else 1.0

    def strata(self, labels: IntArray) -> IntArray:
        """Return the pseudo-class of each row, which every batch should hold its share of.

        For soft labels, whose ``labels`` are row numbers, it is the most probable class.
        """
        if isinstance(self.loss, SoftCrossEntropy):
            best: IntArray = self.loss.target[labels].argmax(axis=1)
            return best
        return labels

    def coefficients(self, labels: IntArray) -> FloatArray:
        """Return what the labels of a batch, or of a whole corpus, decide.

        Parameters
        ----------
        labels : int array of shape (n,)
            The set of each row; for ``SoftCrossEntropy`` the number of its row in ``target``.

        Returns
        -------
        float64 array of shape (n, C)
            Of the n rows as one batch; :func:`scaled` turns those of an epoch into those of its
            batches.
        """
        if isinstance(self.loss, Risk):
            sizes = np.bincount(labels, minlength=len(self.loss.weights))
            per_set: FloatArray = self.loss.weights / np.maximum(sizes, 1)[:, None]
            of_rows: FloatArray = per_set[labels]
            return of_rows
        if isinstance(self.loss, SetCrossEntropy):
            seen = np.asarray(self.loss.transition, dtype=np.float64).T[labels]
            share = np.full((len(labels), 1), 1.0 / max(len(labels), 1))
            both: FloatArray = np.concatenate([seen, share], axis=1)
            return both
        weight = self.loss.weight[labels]
        soft: FloatArray = self.loss.target[labels] * (weight / weight.sum())[:, None]
        return soft

    def scaled(self, coefficients: FloatArray, factor: float) -> FloatArray:
        """Return coefficients under which each row counts ``factor`` times."""
        times = np.full(coefficients.shape[1], factor)
        if isinstance(self.loss, SetCrossEntropy):
            times[:-1] = 1.0  # only the last column is the row's weight
        more: FloatArray = coefficients * times
        return more

    def sums(self, logits: Tensor, coefficients: Tensor) -> Tensor:
        """Return the sums over rows inside phi: K of them for a risk, else one.

        Parameters
        ----------
        logits : tensor of shape (n, K); or (n, 1) for two classes
        coefficients : tensor of shape (n, C)
        """
        torch = require("torch", "fine-tuning")
        scores = two_columns(logits)
        if isinstance(self.loss, Risk):
            risks: Tensor = (coefficients * (1.0 - torch.softmax(scores, dim=1))).sum(dim=0)
            return risks
        log_probability = torch.log_softmax(scores, dim=1)
        if isinstance(self.loss, SetCrossEntropy):
            tiny = torch.finfo(scores.dtype).tiny
            seen = coefficients[:, :-1].clamp_min(tiny).log()
            logs = torch.logsumexp(log_probability + seen, dim=1) * coefficients[:, -1]
        else:
            logs = coefficients * log_probability
        total: Tensor = -logs.sum().reshape(1)
        return total

    def slopes(self, totals: Tensor) -> Tensor:
        """Return the slope of phi at each of the sums of a whole batch, without gradient."""
        torch = require("torch", "fine-tuning")
        totals = totals.detach()
        one = torch.ones_like(totals)
        slopes: Tensor = torch.where(totals > 0, one, self.slope * one)
        return slopes

    def value(self, logits: Tensor, labels: IntArray) -> Tensor:
        """Return the loss of one batch as a scalar with its graph; shapes as above."""
        torch = require("torch", "fine-tuning")
        coefficients = torch.from_numpy(self.coefficients(labels))
        totals = self.sums(logits, coefficients.to(logits.device, logits.dtype))
        return (totals * self.slopes(totals)).sum()

    def value_of(self, scores: FloatArray, labels: IntArray) -> float:
        """Return the loss of scores of shape (n, K) by the array code, e.g. for validation."""
        return self.loss.value_and_gradient(scores, labels)[0]

    def check(self, labels: IntArray) -> None:
        """Raise ``WhetError`` if a label names a set, or a row of soft labels, that is missing."""
        if isinstance(self.loss, Risk):
            size = len(self.loss.weights)
        elif isinstance(self.loss, SetCrossEntropy):
            size = np.asarray(self.loss.transition).shape[1]
        else:
            size = len(self.loss.target)
        wrong = np.flatnonzero((labels < 0) | (labels >= size))
        if len(wrong):
            raise WhetError(
                f"label {labels[wrong[0]]} of row {wrong[0]}: the loss knows 0 to {size - 1}; "
                "leave rows without a label out"
            )


def two_columns(logits: Tensor) -> Tensor:
    """Return scores of shape (n, K): one logit g becomes (0, g).

    Examples
    --------
    >>> import torch
    >>> two_columns(torch.tensor([[3.0]])).tolist()
    [[0.0, 3.0]]
    """
    torch = require("torch", "fine-tuning")
    if logits.shape[1] > 1:
        return logits
    scores: Tensor = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return scores
