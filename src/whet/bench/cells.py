"""Cells: a data set with one annotator, or with several that label it together.

A data set is a folder with ``train.parquet`` that has the columns ``text`` and ``label`` (codes
0..K-1), and ``test.parquet`` where there is a test split. Columns ``llm_*`` and ``noisy_human`` are
labels of annotators, -1 or null where there is none; ``weak_labels`` holds the votes of labelling
functions as a JSON list a row, of which ``weak_majority`` is the most frequent one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whet.bench.annotators import Codes, flips, weak_teacher
from whet.errors import WhetError, did_you_mean

#: Name of the labels that are the most frequent vote of the labelling functions.
WEAK_MAJORITY = "weak_majority"


class Simulation(BaseModel):
    """A simulated annotator; see :mod:`whet.bench.annotators`.

    Examples
    --------
    >>> Simulation(kind="weak_teacher", accuracy=0.7).asymmetry
    0.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["weak_teacher", "flips"]
    accuracy: float = Field(gt=0, le=1)
    asymmetry: float = Field(default=0.5, ge=0, le=1)


class CellSpec(BaseModel):
    """What makes a cell: a data set, and either columns of labels or a simulation.

    Examples
    --------
    >>> CellSpec(dataset="news", labels="llm_a").name
    'news a'
    >>> CellSpec(dataset="news", simulate={"kind": "flips", "accuracy": 0.8}).name
    'news flips .80'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: str = Field(min_length=1)
    labels: str | list[str] | None = None
    simulate: Simulation | None = None
    part: Literal["tuning", "held-out", ""] = ""

    @property
    def columns(self) -> list[str]:
        """Columns of labels, none for a simulation."""
        return [self.labels] if isinstance(self.labels, str) else (self.labels or [])

    @property
    def name(self) -> str:
        """Data set and annotator in words; no two cells of a panel share one."""
        if self.simulate is None:
            return f"{self.dataset} {'+'.join(c.removeprefix('llm_') for c in self.columns)}"
        of_flips = self.simulate.kind == "flips" and self.simulate.asymmetry != 0.5
        asymmetry = f" asymmetry {self.simulate.asymmetry}" if of_flips else ""
        accuracy = f"{self.simulate.accuracy:.2f}".removeprefix("0")
        return f"{self.dataset} {self.simulate.kind} {accuracy}{asymmetry}"


@dataclass(frozen=True)
class Cell:
    """Texts with the truth and the votes of m annotators.

    Attributes
    ----------
    name, dataset : str
    texts : list of str, length n
    truth : int64 array of shape (n,)
        Codes 0..K-1.
    votes : int64 array of shape (n, m)
        -1 where an annotator abstained.
    confidence : float64 array of shape (n, m) or None
        The annotators' own probabilities of their labels, where they are known.
    kind : {"real", "simulated"}
    part : {"tuning", "held-out", ""}
    n_classes : int
    test_texts : list of str
        Texts of the test split that do not occur in the train split; may be empty.
    test_truth : int64 array

    Examples
    --------
    >>> truth = np.array([0, 1])
    >>> Cell("a b", "a", ["x", "y"], truth, truth[:, None], None, "real", "", 2, [], truth[:0]).kind
    'real'
    """

    name: str
    dataset: str
    texts: list[str]
    truth: Codes
    votes: Codes
    confidence: NDArray[np.float64] | None
    kind: str
    part: str
    n_classes: int
    test_texts: list[str]
    test_truth: Codes


# --- which cells ----------------------------------------------------------------------------------


def read_specs(file: Path) -> list[CellSpec]:
    """Read a YAML list of cells.

    Parameters
    ----------
    file : Path
        Holds ``cells:`` with a list; each has ``dataset``, then ``labels`` (a column, a list of
        columns or ``weak_majority``) or ``simulate`` (kind, accuracy, asymmetry), and ``part``.

    Raises
    ------
    WhetError
        If the file cannot be read or a cell is not valid.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise WhetError(f"the cells file {file} is not readable YAML ({reason})") from error
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not cells:
        raise WhetError(f"the cells file {file} holds no list 'cells': write one cell a line")
    specs = [_read_spec(cell, number, file) for number, cell in enumerate(cells, start=1)]
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise WhetError(f"the cells file {file} has the cell {twice!r} twice: remove one")
    return specs


def _read_spec(cell: Any, number: int, file: Path) -> CellSpec:  # noqa: ANN401
    where = f"cell {number} of the cells file {file}"
    if not isinstance(cell, dict):
        raise WhetError(f"{where} is {cell!r}: write dataset, labels or simulate, and part")
    try:
        spec = CellSpec.model_validate(cell)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(place) for place in first["loc"])
        near = ""
        if first["type"] == "extra_forbidden":
            known = Simulation if len(first["loc"]) > 1 else CellSpec
            near = did_you_mean(str(first["loc"][-1]), known.model_fields)
        raise WhetError(
            f"{where} has {key} = {first['input']!r} ({first['msg'].lower()}){near}: correct it"
        ) from error
    if (spec.simulate is None) != bool(spec.columns):
        raise WhetError(f"{where} needs either labels or simulate: give one of them")
    return spec


def find_specs(data: Path, rows: int = 2000) -> tuple[list[CellSpec], list[str]]:
    """Find every data set in a folder.

    Parameters
    ----------
    data : Path
    rows : int
        Most rows of a cell; on fewer rows, a teacher may not become good enough.

    Returns
    -------
    specs : list of CellSpec
        One for each column of labels; a weak teacher of 70 % where a data set has none.
    skipped : list of str
        A sentence for each folder that cannot be used.

    Raises
    ------
    WhetError
        If the folder does not exist or holds no usable data set.
    """
    if not data.is_dir():
        raise WhetError(f"the data folder {data} does not exist: name a folder of data sets")
    specs, skipped = [], []
    for folder in sorted(p for p in data.iterdir() if p.is_dir()):
        reason = _unusable(folder)
        if reason:
            skipped.append(f"{folder.name} is skipped: {reason}")
            continue
        columns = _label_columns(folder)
        specs += [CellSpec(dataset=folder.name, labels=column) for column in columns]
        if not columns:
            teacher = Simulation(kind="weak_teacher", accuracy=0.7)
            spec = CellSpec(dataset=folder.name, simulate=teacher)
            try:
                load_cell(data, spec, rows)
            except WhetError as error:
                skipped.append(f"{folder.name} is skipped: {error}")
            else:
                specs.append(spec)
    if not specs:
        raise WhetError(
            f"the data folder {data} holds no data set: it needs folders with a train.parquet that "
            "has the columns text and label"
        )
    return specs, skipped


def _unusable(folder: Path) -> str:
    """Say why a folder is no data set of ours, or nothing."""
    file = folder / "train.parquet"
    if not file.is_file():
        return "it has no train.parquet"
    if not {"text", "label"} <= set(_schema(file).names):
        return "train.parquet lacks the column text or label, so it is of another task"
    columns = [c for c in _label_columns(folder) if c != WEAK_MAJORITY]
    table = _read(file, ["label", *columns])
    if any(table[column].equals(table["label"]) for column in columns):
        return "its label column is a copy of the annotator's, so there is no gold"
    return ""


def _label_columns(folder: Path) -> list[str]:
    names = _schema(folder / "train.parquet").names
    found = [name for name in names if name.startswith("llm_") or name == "noisy_human"]
    return found + [WEAK_MAJORITY] * ("weak_labels" in names)


def check_spec(data: Path, spec: CellSpec, rows: int) -> int:
    """Check that a cell can be loaded, without loading it.

    Returns
    -------
    int
        Its number of rows.

    Raises
    ------
    WhetError
        If the data set or a column is not there.
    """
    if not data.is_dir():
        raise WhetError(f"the data folder {data} does not exist: name a folder of data sets")
    file = data / spec.dataset / "train.parquet"
    if not file.is_file():
        near = did_you_mean(spec.dataset, [p.name for p in sorted(data.iterdir()) if p.is_dir()])
        raise WhetError(f"the data folder {data} has no data set {spec.dataset!r}{near}")
    names = [*_schema(file).names]
    for column in ("text", "label", *spec.columns):
        if ("weak_labels" if column == WEAK_MAJORITY else column) not in names:
            raise WhetError(f"{file} has no column {column!r}{did_you_mean(column, names)}")
    return min(rows, int(pq.read_metadata(file).num_rows))


# --- loading --------------------------------------------------------------------------------------


def load_cell(data: Path, spec: CellSpec, rows: int = 2000) -> Cell:
    """Load a cell.

    Parameters
    ----------
    data : Path
        Folder of data sets.
    spec : CellSpec
    rows : int
        A larger train or test split is cut down to a random sample of this size, the same one for
        all cells of a data set.

    Raises
    ------
    WhetError
        If a file cannot be read, or the annotator cannot be simulated on these texts.
    """
    check_spec(data, spec, rows)
    folder = data / spec.dataset
    columns = ["weak_labels" if column == WEAK_MAJORITY else column for column in spec.columns]
    whole = _read(folder / "train.parquet", ["text", "label", *dict.fromkeys(columns)])
    known = {_folded(text) for text in whole["text"].to_pylist()}
    table = _sample(whole, rows)
    texts, truth = _texts(table), _codes(table["label"])
    if truth.min() < 0:
        raise WhetError(f"{folder / 'train.parquet'} has rows without a label: remove them")
    every = [whole["label"]] + [whole[c] for c in spec.columns if c != WEAK_MAJORITY]
    k = int(max(_codes(column).max() for column in every)) + 1
    confidence = None
    if spec.simulate is None:
        votes = np.column_stack([_votes(table, column) for column in spec.columns])
    else:
        votes, confidence = _simulate(spec, spec.simulate, texts, truth)
    test_texts, test_truth = _test_split(folder, rows, known)
    kind = "simulated" if spec.simulate else "real"
    return Cell(
        spec.name,
        spec.dataset,
        texts,
        truth,
        votes,
        confidence,
        kind,
        spec.part,
        k,
        test_texts,
        test_truth,
    )


def most_frequent_vote(votes: list[int]) -> int:
    """Return the most frequent vote of the functions that cast one, the smallest of several.

    Examples
    --------
    >>> most_frequent_vote([-1, 2, 0, 2]), most_frequent_vote([-1, -1])
    (2, -1)
    """
    cast = [vote for vote in votes if vote >= 0]
    return int(np.bincount(cast).argmax()) if cast else -1


def _simulate(
    spec: CellSpec, wanted: Simulation, texts: list[str], truth: Codes
) -> tuple[Codes, NDArray[np.float64] | None]:
    """Votes of a simulated annotator and, of a teacher, its confidence, each of shape (n, 1)."""
    try:
        if wanted.kind == "flips":
            return flips(truth, wanted.accuracy, asymmetry=wanted.asymmetry)[:, None], None
        codes, confidence = weak_teacher(texts, truth, wanted.accuracy)
    except WhetError as error:
        raise WhetError(f"the cell {spec.name!r} cannot be simulated: {error}") from error
    return codes[:, None], confidence[:, None]


def _votes(table: pa.Table, column: str) -> Codes:
    if column == WEAK_MAJORITY:
        votes = [most_frequent_vote(json.loads(row)) for row in table["weak_labels"].to_pylist()]
        return np.array(votes, dtype=np.int64)
    return _codes(table[column])


def _test_split(folder: Path, rows: int, known: set[str]) -> tuple[list[str], Codes]:
    """Test texts that do not occur among the known ones: a model has seen the others."""
    file = folder / "test.parquet"
    if not file.is_file() or not {"text", "label"} <= set(_schema(file).names):
        return [], np.empty(0, dtype=np.int64)
    table = _read(file, ["text", "label"])
    new = [_folded(text) not in known for text in table["text"].to_pylist()]
    table = _sample(table.filter(pa.array(new)), rows)
    return _texts(table), _codes(table["label"])


def _sample(table: pa.Table, rows: int) -> pa.Table:
    if table.num_rows <= rows:
        return table
    drawn = np.random.default_rng(0).choice(table.num_rows, rows, replace=False)
    return table.take(np.sort(drawn))


def _texts(table: pa.Table) -> list[str]:
    return [text or "" for text in table["text"].to_pylist()]


def _folded(text: str | None) -> str:
    return (text or "").strip().casefold()


def _codes(column: Any) -> Codes:  # noqa: ANN401
    """Codes of a column, -1 where there is none."""
    try:
        codes = column.cast(pa.int64()).fill_null(-1).to_numpy()
    except pa.ArrowException as error:
        raise WhetError(f"a column of labels is no column of codes ({error}): encode it") from error
    return np.asarray(np.maximum(codes, -1), dtype=np.int64)


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise WhetError(f"{file} cannot be read as Parquet ({error}): restore it") from error


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise WhetError(f"{file} cannot be read as Parquet ({error}): restore it") from error
