"""The rows of a finished refinement, as arrays: what the run folder says of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.classify.labels import MISSING, Codes, class_array, clean_label
from whet.classify.tsp import margin_rule
from whet.errors import WhetError
from whet.store import FORMAT_VERSION, read_json

#: Rows held at a time; of a corpus with 100 classes that is 13 MB of probabilities.
BATCH = 16_384
#: Reasons of rows whose label people gave.
GIVEN = ("gold label", "checked label")


@dataclass(frozen=True)
class RefinedRows:
    """What a refinement did to each of its n rows.

    Attributes
    ----------
    folder : Path
    manifest : dict
        The content of run.json.
    classes : list
        K labels, sorted.
    pseudo, refined : int64 arrays of shape (n,)
        Codes of the annotator's label, -1 where it abstained, and of the refined label.
    best : int64 array of shape (n,)
        Codes of the most probable class.
    before, after : float64 arrays of shape (n,)
        Probability of the annotator's label (NaN where it abstained) and of the refined label, as
        the method saw it before gold labels were put back.
    lead : float64 array of shape (n,)
        Probability of the best class minus that of the second best.
    given, checked : bool arrays of shape (n,)
        Rows whose refined label is a gold or a checked label, and those of checked labels alone.
    length : int64 array of shape (n,)
        Characters of each text.
    judged : int64 array of shape (m,)
        Numbers of the gold rows that the account rests on.
    gold, honest : int64 arrays of shape (m,)
        Their gold label, and the label that they would have without it.
    confidence : float64 array of shape (m,)
        Probability of ``honest``.

    Examples
    --------
    >>> read_refined(Path("no/run"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/run/run.json does not exist: name a folder that whet wrote
    """

    folder: Path
    manifest: dict[str, Any]
    classes: list[Any]
    pseudo: Codes
    refined: Codes
    best: Codes
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    lead: NDArray[np.float64]
    given: NDArray[np.bool_]
    checked: NDArray[np.bool_]
    length: NDArray[np.int64]
    judged: NDArray[np.int64]
    gold: Codes
    honest: Codes
    confidence: NDArray[np.float64]

    def names(self, codes: Codes) -> NDArray[np.object_]:
        """Return labels as strings, None for no label, which runs of any input can compare."""
        return np.array([*map(str, self.classes), None], object)[codes]

    def hash_texts(self) -> str:
        """Return the SHA-256 of all texts in their order, whatever file they came from."""
        digest, column = hashlib.sha256(), self.manifest["settings"]["text"]
        with damage_said(self.folder):
            for _, batch in _batches(self.folder / "refined.parquet", [column]):
                for text in _strings(batch.column(column)).to_pylist():
                    written = (text or "").encode()
                    digest.update(b"%d:%b" % (len(written), written))
        return digest.hexdigest()

    def show(self, rows: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
        """Return text and reason of some rows, by row number."""
        wanted, found = np.unique(rows), {}
        column = self.manifest["settings"]["text"]
        for start, batch in _batches(self.folder / "refined.parquet", [column, "reason"]):
            inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
            if not len(inside):
                continue
            part = batch.take(pa.array(inside - start))
            texts = _strings(part.column(column)).to_pylist()
            for row, text, reason in zip(
                inside.tolist(), texts, part.column("reason").to_pylist(), strict=True
            ):
                found[row] = (text or "", reason)
        return found


def is_refined(manifest: dict[str, Any]) -> bool:
    """Return whether run.json is of ``whet refine``.

    Examples
    --------
    >>> is_refined({"settings": {}, "classes": []})
    False
    """
    return {"classes", "verdict", "kept_annotator", "settings"} <= set(manifest)


def check_format(path: Path, manifest: dict[str, Any]) -> None:
    """Raise ``WhetError`` if a run.json is of a format that this whet does not know."""
    if (found := manifest.get("format_version")) != FORMAT_VERSION:
        raise WhetError(
            f"{path} has format {found!r} and this whet knows {FORMAT_VERSION}: use the whet that "
            "wrote it"
        )


@contextmanager
def damage_said(folder: Path) -> Iterator[None]:
    """Say in one sentence that a run lacks what its run.json promises.

    Examples
    --------
    >>> with damage_said(Path("run")):
    ...     {}["arms"]
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the run in run is damaged (KeyError: 'arms'): restore it
    """
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, WhetError):
            raise
        raise WhetError(
            f"the run in {folder} is damaged ({type(error).__name__}: {error}): restore it"
        ) from error


def read_refined(folder: Path, manifest: dict[str, Any] | None = None) -> RefinedRows:
    """Read what a refinement did to each row, in memory that grows by some numbers a row.

    Parameters
    ----------
    folder : Path
    manifest : dict, optional
        The content of run.json where it is not written yet.

    Raises
    ------
    WhetError
        If the folder is not a finished refinement, or a file of it is missing or damaged.
    """
    if manifest is None:
        manifest = read_json(folder / "run.json")
        check_format(folder / "run.json", manifest)
    with damage_said(folder):
        return _read(folder, manifest)


def _read(folder: Path, manifest: dict[str, Any]) -> RefinedRows:
    classes = class_array(manifest["classes"])
    pseudo, refined, given, checked, length = _read_labels(folder, manifest, classes.tolist())
    last = manifest["rounds"][-1]["round"]
    file = folder / "rounds" / f"{last:02d}" / "labels.parquet"
    best, decided = np.empty_like(pseudo), np.empty_like(pseudo)
    before, after, lead = (np.empty(len(pseudo)) for _ in range(3))
    margin = manifest["margin"] if manifest["settings"]["method"] == "tsp" else None
    judged = manifest["gold"]["rows"]
    judged = np.arange(len(pseudo)) if judged == "all" else np.array(judged, dtype=np.int64)
    names = [f"p_{k}" for k in range(len(classes))]
    honest_confidence = np.empty(len(pseudo))
    for start, batch in _batches(file, ["code", *names]):
        part = slice(start, start + batch.num_rows)
        probability = np.column_stack([batch.column(name).to_numpy() for name in names])
        rows, said = np.arange(len(probability)), pseudo[part]
        code = batch.column("code").to_numpy()
        if manifest["kept_annotator"]:
            code = np.where(said == MISSING, code, said)
        elif margin is not None:
            code = margin_rule(said, margin)(said, probability, last)
        decided[part] = code
        honest_confidence[part] = probability[rows, code]
        best[part] = probability.argmax(axis=1)
        before[part] = np.where(said == MISSING, np.nan, probability[rows, said])
        after[part] = probability[rows, refined[part]]
        two = np.partition(probability, -2, axis=1)[:, -2:]
        lead[part] = two[:, 1] - two[:, 0]
    return RefinedRows(
        folder=folder,
        manifest=manifest,
        classes=classes.tolist(),
        pseudo=pseudo,
        refined=refined,
        best=best,
        before=before,
        after=after,
        lead=lead,
        given=given,
        checked=checked,
        length=length,
        judged=judged,
        gold=_gold(folder, manifest, classes.tolist(), refined)[judged],
        honest=decided[judged],
        confidence=honest_confidence[judged],
    )


def _read_labels(
    folder: Path, manifest: dict[str, Any], classes: list[Any]
) -> tuple[Codes, Codes, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Return codes of pseudo- and refined labels, rows given and checked by people, and lengths."""
    file, text = folder / "refined.parquet", manifest["settings"]["text"]
    names = pq.read_schema(file).names
    # The annotator's label stands before what was added, unless the input had it under that name.
    own = manifest["settings"]["pseudo"] == "pseudo_label"
    annotator = "pseudo_label" if own else names[names.index("refined_label") - 1]
    total = manifest["rows"]["total"]
    pseudo, refined, length = (np.empty(total, dtype=np.int64) for _ in range(3))
    given, checked = (np.empty(total, dtype=bool) for _ in range(2))
    columns = list(dict.fromkeys([text, annotator, "refined_label", "reason"]))
    for start, batch in _batches(file, columns):
        part = slice(start, start + batch.num_rows)
        pseudo[part] = _codes(batch.column(annotator), classes)
        refined[part] = _codes(batch.column("refined_label"), classes)
        given[part] = pc.is_in(batch.column("reason"), pa.array(GIVEN))
        checked[part] = pc.equal(batch.column("reason"), GIVEN[1])
        length[part] = pc.fill_null(pc.utf8_length(_strings(batch.column(text))), 0)
    return pseudo, refined, given, checked, length


def _gold(folder: Path, manifest: dict[str, Any], classes: list[Any], refined: Codes) -> Codes:
    """Return gold codes: the refined labels of gold rows, but for modes that leave them be."""
    settings = manifest["settings"]
    if settings["theta"] == "gold" or not manifest["gold"]["kept"]:
        return refined
    gold = np.empty_like(refined)
    for start, batch in _batches(folder / "refined.parquet", [settings["gold"]]):
        column = batch.column(settings["gold"])
        gold[start : start + batch.num_rows] = _codes(column, classes)
    return gold


def _codes(column: pa.Array, classes: list[Any]) -> Codes:
    """Return positions in ``classes``, -1 for gaps; each distinct value is looked at once."""
    encoded = pc.dictionary_encode(column, null_encoding="encode")
    position = {label: code for code, label in enumerate(classes)}
    written = {str(label): code for code, label in enumerate(classes)}
    codes = []
    for row, value in enumerate(encoded.dictionary.to_pylist()):
        label = clean_label(value, row, "label")
        if isinstance(label, str) and label not in written:
            label = re.sub(r"^(-?\d+)\.0$", r"\1", label)  # CSV with gaps, as pandas writes it
        known = position.get(label, written.get(str(label), MISSING))
        codes.append(MISSING if label is None else known)
    found: Codes = np.array(codes, dtype=np.int64)[encoded.indices.to_numpy()]
    return found


def _strings(column: pa.Array) -> pa.Array:
    kind = column.type
    return (
        column
        if pa.types.is_string(kind) or pa.types.is_large_string(kind)
        else column.cast(pa.string())
    )


def _batches(file: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row, rows) of a Parquet file."""
    start = 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(BATCH, columns=columns):
            yield start, batch
            start += batch.num_rows
