"""Pooling evidence: how much to trust each of its sources, learned from a few gold rows.

``P(y = c | row)`` is proportional to ``exp(sum_m scale_m evidence_m[c] + offset_c)``. Fifty gold
rows cannot fix the scales and offsets, so none are chosen: many are drawn from a prior, each is
weighted by how likely it makes the gold labels, and the probabilities are averaged (importance
sampling; nothing is optimised, so nothing can be overfitted).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whet.classify.annotator import log_softmax
from whet.classify.risks import FloatArray

#: Draws from the prior of scales and offsets.
DRAWS = 400
#: Standard deviation of an offset, in nats.
OFFSET_SPREAD = 0.5
#: Draws beyond this share of the weight are left out when many rows are pooled.
MASS = 0.999
#: Rows that are pooled at a time.
CHUNK = 16_384


class Pool:
    """Draws of scales and offsets, and what they say of pieces of evidence.

    Parameters
    ----------
    scales : sequence of (median, spread)
        Log-normal prior of the scale of each source; the spread is in nats.
    n_classes : int
        K.
    seed : int

    Examples
    --------
    >>> pool = Pool([(1.0, 0.5)], n_classes=2, seed=0)
    >>> evidence = np.array([[[0.0, 2.0]], [[1.0, 0.0]]])  # one source, two rows
    >>> weight = pool.weigh(evidence, np.array([1, 0]))
    >>> pool.mix(evidence, weight).argmax(axis=1).tolist()
    [1, 0]
    """

    def __init__(self, scales: Sequence[tuple[float, float]], n_classes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        half = DRAWS // 2
        medians, spreads = np.array(scales).T
        self.scales = medians * np.exp(spreads * rng.normal(size=(DRAWS, len(scales))))
        offsets = OFFSET_SPREAD * rng.normal(size=(half, n_classes))
        # With each offset goes its opposite, so that no class is favoured by chance.
        self.offsets = np.concatenate([offsets, -offsets])
        self.offsets -= self.offsets.mean(axis=1, keepdims=True)

    def weigh(self, evidence: NDArray[np.floating], gold: NDArray[np.int64]) -> FloatArray:
        """Return the weight of each draw given gold rows, shape (draws,), summing to 1.

        Parameters
        ----------
        evidence : array of shape (g, M, K)
            Log-probabilities of the M sources for the gold rows, each from models that did not
            see the row's gold label. g may be 0: all draws then weigh the same.
        gold : int array of shape (g,)
        """
        scores = np.einsum("dm,gmk->dgk", self.scales, evidence) + self.offsets[:, None]
        likelihood = log_softmax(scores)[:, np.arange(len(gold)), gold].sum(axis=1)
        weight = np.exp(likelihood - likelihood.max())
        normalised: FloatArray = weight / weight.sum()
        return normalised

    def mix(self, evidence: NDArray[np.floating], weight: FloatArray) -> FloatArray:
        """Return averaged probabilities.

        Parameters
        ----------
        evidence : array of shape (n, M, K)
        weight : array of shape (draws,)

        Returns
        -------
        float64 array of shape (n, K)
        """
        order = np.argsort(-weight, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(weight[order]), MASS)) + 1]
        scales, offsets = (x[kept].astype(np.float32) for x in (self.scales, self.offsets))
        share = (weight[kept] / weight[kept].sum()).astype(np.float32)
        mixed = np.empty((len(evidence), evidence.shape[2]))
        for first in range(0, len(evidence), CHUNK):
            block = evidence[first : first + CHUNK].astype(np.float32)
            if block.shape[2] == 2:
                odds = (block[:, :, 1] - block[:, :, 0]) @ scales.T
                odds += offsets[:, 1] - offsets[:, 0]
                one = 0.5 + 0.5 * (np.tanh(0.5 * odds) @ share)
                mixed[first : first + CHUNK] = np.stack([1 - one, one], axis=1)
                continue
            total = np.zeros(block.shape[::2], dtype=np.float32)
            for scale, offset, part in zip(scales, offsets, share, strict=True):
                scores = np.einsum("m,nmk->nk", scale, block) + offset
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                scores *= part / scores.sum(axis=1, keepdims=True)
                total += scores
            mixed[first : first + CHUNK] = total / total.sum(axis=1, keepdims=True)
        return mixed

    def mean_scales(self, weight: FloatArray) -> FloatArray:
        """Return the weighted mean of the scales, shape (M,): how far each source is trusted."""
        mean: FloatArray = weight @ self.scales
        return mean
