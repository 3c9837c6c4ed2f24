"""Texts cut into tokens once: numbers in one flat array, which may lie on disk.

``tokens.safetensors`` holds ``ids`` (int32, all texts end to end) and ``offsets`` (int64, where
each begins). It is mapped into memory, not read: a batch costs its own rows. Beside the arrays the
file holds a hash of texts, tokenizer and maximal length; a file of anything else is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.rounds import Progress
from whet.store import write_atomic

Rows = NDArray[np.int64]

FILE = "tokens.safetensors"
#: No more characters of a text than this times the maximal length are cut into tokens.
CHARS_PER_TOKEN = 40
#: Batches are padded to a multiple of this, which kernels like and which makes shapes recur.
MULTIPLE = 8
#: Texts that are handed to the tokenizer at a time.
CHUNK = 4096


@dataclass(frozen=True)
class Tokens:
    """The tokens of a corpus.

    Parameters
    ----------
    ids : int32 array
        Token numbers of all texts, end to end.
    offsets : int64 array of shape (n + 1,)
        Text i has ``ids[offsets[i]:offsets[i + 1]]``, at least one token.
    pad : int
        What fills a batch's short rows.

    Examples
    --------
    >>> tokens = Tokens.from_lists([[5, 6, 7], [8]], pad=0)
    >>> len(tokens), tokens.lengths.tolist()
    (2, [3, 1])
    >>> ids, mask = tokens.batch(np.array([1, 0]), multiple=4)
    >>> ids.tolist(), mask.sum(axis=1).tolist()
    ([[8, 0, 0, 0], [5, 6, 7, 0]], [1, 3])
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pad: int

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], pad: int) -> Tokens:
        """Return tokens that are known already; an empty list becomes one pad token."""
        lists = [row or [pad] for row in lists]
        ids = np.fromiter((t for row in lists for t in row), dtype=np.int32)
        return cls(ids, _offsets([len(row) for row in lists]), pad)

    @classmethod
    def encode(
        cls,
        texts: Sequence[str],
        tokenizer: Any,  # noqa: ANN401 - a tokenizer of transformers
        max_length: int,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Tokens:
        """Cut texts into tokens, or find them in a folder.

        Parameters
        ----------
        texts : sequence of str
        tokenizer : tokenizer of transformers
            Its special tokens are added, as the model was trained with them. A text that gives no
            token at all gets one: the tokenizer's first of bos, eos and pad.
        max_length : int
            Most tokens of a text, special ones included; what is beyond is dropped.
        folder : Path, optional
            Where ``tokens.safetensors`` is written, and found again; its folder must exist.
        progress : callable, optional
            Called with ("tokens", texts done, texts in all).
        """
        pad = tokenizer.pad_token_id
        pad = 0 if pad is None else int(pad)
        if folder is None:
            return cls(*_encode(texts, tokenizer, max_length, pad, progress), pad)
        file, key = folder / FILE, _key(texts, tokenizer, max_length)
        if not _is_of(file, key):
            from safetensors.numpy import save

            ids, offsets = _encode(texts, tokenizer, max_length, pad, progress)
            blob = save({"ids": ids, "offsets": offsets}, {"key": key})
            write_atomic(file, lambda stream: stream.write(blob))
        arrays = _map(file)
        return cls(arrays["ids"], np.asarray(arrays["offsets"]), pad)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def batch(
        self,
        rows: Rows,
        *,
        multiple: int = MULTIPLE,
        length: int | None = None,
        pad: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return token numbers and mask of some rows, padded on the right.

        Parameters
        ----------
        rows : int array of shape (b,)
        multiple : int
            The width is the longest row's length, rounded up to a multiple of this.
        length : int, optional
            A fixed width instead.
        pad : int, optional
            What fills short rows, where the model has it otherwise than the tokenizer.

        Returns
        -------
        ids : int64 array of shape (b, width)
        mask : bool array of shape (b, width)
            True where there is a token of the text.
        """
        begins, lengths = self.offsets[rows], self.lengths[rows]
        width = int(lengths.max()) if len(rows) else 1
        width = max(length, width) if length is not None else -(-width // multiple) * multiple
        place = np.arange(width)
        mask = place < lengths[:, None]
        ids = np.full(mask.shape, self.pad if pad is None else pad, dtype=np.int64)
        ids[mask] = self.ids[(begins[:, None] + place)[mask]]
        return ids, mask

    def digest(self) -> str:
        """Return a hash of all tokens, by which a checkpoint knows its corpus."""
        whole = hashlib.blake2b(digest_size=16)
        for part in (self.ids, self.offsets, np.array([self.pad])):
            whole.update(np.ascontiguousarray(part).data)
        return whole.hexdigest()


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _encode(
    texts: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
    max_length: int,
    pad: int,
    progress: Progress | None,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, pad)
    stand_in = next(int(token) for token in special if token is not None)
    parts, lengths = [np.zeros(0, dtype=np.int32)], []
    for start in range(0, len(texts), CHUNK):
        chunk = [text[: CHARS_PER_TOKEN * max_length] for text in texts[start : start + CHUNK]]
        encoded = tokenizer(
            chunk,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows = [row or [stand_in] for row in encoded["input_ids"]]
        lengths += [len(row) for row in rows]
        parts.append(np.fromiter((t for row in rows for t in row), dtype=np.int32))
        if progress is not None:
            progress("tokens", min(start + CHUNK, len(texts)), len(texts))
    return np.concatenate(parts), _offsets(lengths)


def _key(texts: Sequence[str], tokenizer: Any, max_length: int) -> str:  # noqa: ANN401
    """Return a hash of all that decides the tokens."""
    whole = hashlib.blake2b(digest_size=16)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab()))
    for part in (type(tokenizer).__name__, rules, str(max_length), *texts):
        raw = part.encode("utf-8", "surrogatepass")
        whole.update(len(raw).to_bytes(8, "little"))
        whole.update(raw)
    return whole.hexdigest()


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its data begins."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(min(size, 1 << 20)))
    return header, 8 + size


def _is_of(file: Path, key: str) -> bool:
    """Whether the file holds the tokens of this key, whole."""
    try:
        header, start = _header(file)
        end = max(header[name]["data_offsets"][1] for name in ("ids", "offsets"))
        return bool(header["__metadata__"]["key"] == key) and file.stat().st_size == start + end
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _map(file: Path) -> dict[str, Any]:
    """Map the arrays of a safetensors file that :func:`Tokens.encode` wrote."""
    header, start = _header(file)
    kinds = {"I32": np.int32, "I64": np.int64}
    arrays = {}
    for name in ("ids", "offsets"):
        entry = header[name]
        where = start + entry["data_offsets"][0]
        shape = tuple(entry["shape"])
        arrays[name] = (
            np.memmap(file, kinds[entry["dtype"]], "r", where, shape)
            if shape[0]
            else np.zeros(shape, kinds[entry["dtype"]])
        )
    return arrays
