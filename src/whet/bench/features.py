"""Features of a cell: made once, so that every method of the cell sees the same dense matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from whet.classify.features import (
    Encoder,
    fit_features,
    learn_directions,
    make_encoder,
    project,
)

Dense = NDArray[np.float32]


class DenseEncoder:
    """An encoder whose features are dense and of unit length, computed once for each corpus.

    Sparse features are reduced as ``tsp`` reduces them (:func:`whet.classify.features.
    learn_directions`). The refiner takes it for an encoder like any other.

    Parameters
    ----------
    spec : str or encoder
        As in :func:`whet.classify.features.make_encoder`.
    texts : sequence of str, length n
        The corpus.
    new_texts : sequence of str
        Texts that will be asked for often, such as a test split.

    Attributes
    ----------
    features : float32 array of shape (n, d)

    Examples
    --------
    >>> texts = [f"{word} number {i}" for i in range(20) for word in ("good", "bad")]
    >>> encoder = DenseEncoder("tfidf", texts, ["a good one"])
    >>> encoder.features.shape, encoder.fit(texts).transform(["a good one"]).shape
    ((40, 31), (1, 31))
    """

    def __init__(
        self, spec: str | Encoder, texts: Sequence[str], new_texts: Sequence[str] = ()
    ) -> None:
        self._encoder = make_encoder(spec)
        raw = fit_features(self._encoder, texts, None)
        order = np.random.default_rng(0).permutation(len(texts))
        self._directions = learn_directions(raw, order)
        self._texts, self._new_texts = list(texts), list(new_texts)
        self.features = project(raw, self._directions)
        self._new_features = self._encode(self._new_texts)

    def fit(self, texts: Sequence[str]) -> Self:
        """Do nothing: the encoder was fitted when it was made."""
        del texts
        return self

    def transform(self, texts: Sequence[str]) -> Dense:
        """Return the features, from memory where the texts are known ones."""
        texts = list(texts)
        if texts == self._texts:
            return self.features
        return self._new_features if texts == self._new_texts else self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Dense:
        if not texts:
            return np.empty((0, self.features.shape[1]), dtype=np.float32)
        return project(self._encoder.transform(texts), self._directions)
