"""A run of ``whet ilr`` or ``whet align``: what each of its arms does on every row of its test."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet import estimates
from whet.align.compare import Measure, by_prompt
from whet.align.evaluation import measures
from whet.report.align_summary import HARM, MEASURES
from whet.report.ilr_summary import BASELINE, refinement_of
from whet.report.known import LEAST_ROWS, known_estimate, too_few
from whet.report.rows import check_format, damage_said

Json = dict[str, Any]
Column = NDArray[np.float64]
#: An arm minus another.
Contrast = tuple[str, str]

#: Measures of each kind of run in words, the most telling first. All are 0 to 1.
WORDS = {
    "ilr": {"score": "score on the test, of the model after the last round"},
    "align": MEASURES | {HARM: "share of harmless prompts that are refused, by phrase rules"},
}

#: Columns of an evaluation that take nearly all of its room, and are not compared.
_TEXTS = ("prompt", "completion")


@dataclass(frozen=True)
class ArmRun:
    """What the arms of a run do on its test.

    Attributes
    ----------
    folder : Path
    manifest : dict
        The content of run.json.
    title : str
        The name of the task, or of the model.
    rows : int
        Rows of the test.
    test_sha256 : str or None
        Of these rows; None without a test.
    test : hashable
        What the arms are tested on, and how: of two runs with the same, rows can be paired.
    columns : dict of str to dict of str to float64 arrays of shape (n,)
        For each measure and arm a value, 0 to 1, for each of the n rows; NaN where it is not known.
        A row with several completions counts by their mean.
    found : dict of str to dict of str to dict
        For each measure and arm the run's own estimate.
    differences : dict of (measure, first, second) to dict
        The run's own estimates of one arm minus another.
    asked : list of (str, str)
        The arms whose difference such a run is made for, the first minus the second.
    contrasts : list of (str, str)
        All arms that are compared, those of ``asked`` first.

    Examples
    --------
    >>> read_run("ilr", Path("no/run"), {"format_version": 1})
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the run in no/run is damaged (KeyError: 'settings'): restore it
    """

    folder: Path
    manifest: Json
    title: str
    rows: int
    test_sha256: str | None
    test: Hashable
    columns: dict[str, dict[str, Column]]
    found: dict[str, dict[str, Json]]
    differences: dict[tuple[str, str, str], Json]
    asked: list[Contrast]
    contrasts: list[Contrast]

    @property
    def settings(self) -> Json:
        """What was asked for."""
        settings: Json = self.manifest["settings"]
        return settings

    @property
    def names(self) -> list[str]:
        """The arms of which something is known."""
        return list(dict.fromkeys(arm for arms in self.columns.values() for arm in arms))

    def ended_early(self, arm: str) -> bool:
        """Whether an arm of ``whet ilr`` stopped before its last round."""
        return bool(self.manifest.get("arms", {}).get(arm, {}).get("halted"))

    def subtract(self, measure: str, contrast: Contrast) -> Column | None:
        """Return by how much the first arm is above the second on each row; None without both."""
        first, second = (self.columns.get(measure, {}).get(arm) for arm in contrast)
        return None if first is None or second is None else first - second

    def compare(self, measure: str, contrast: Contrast) -> Json | None:
        """Return the estimate of that, the run's own where it has one; None without both arms."""
        gain = self.subtract(measure, contrast)
        stored = self.differences.get((measure, *contrast))
        return stored or (None if gain is None else estimate(gain, self.settings["seed"]))


def estimate(gain: Column, seed: int) -> Json:
    """Estimate the mean of a column from its rows, without numbers where these are too few."""
    n = int(np.isfinite(gain).sum())
    if n < LEAST_ROWS:
        return too_few(n)
    return estimates.mean_over_runs([gain], seed=seed).as_dict()


def read_run(kind: str, folder: Path, manifest: Json) -> ArmRun:
    """Read what the arms of a run do on its test.

    Parameters
    ----------
    kind : {"ilr", "align"}
    folder : Path
    manifest : dict
        The content of run.json.

    Raises
    ------
    WhetError
        If the run has a format that is not known, or is damaged.
    """
    check_format(folder / "run.json", manifest)
    with damage_said(folder):
        return (_read_ilr if kind == "ilr" else _read_align)(folder, manifest)


def _read_ilr(folder: Path, manifest: Json) -> ArmRun:
    settings, arms = manifest["settings"], manifest["arms"]
    last = {name: arm["rounds"][-1] for name, arm in arms.items() if arm["rounds"]}
    tested = {name: record for name, record in last.items() if record["score"] is not None}
    columns, rows = {}, ()
    if tested:
        table = pq.read_table(folder / "test.parquet", columns=["arm", "round", "row", "score"])
        rows = tuple(sorted(set(table["row"].to_pylist())))
        for name, record in tested.items():
            mine = pc.and_(pc.equal(table["arm"], name), pc.equal(table["round"], record["round"]))
            columns[name] = _scores(table.filter(mine), rows)
    main = refinement_of(manifest)
    asked = [] if main is None else [(main, BASELINE)]
    others = [name for name in arms if name not in (main, BASELINE)]
    beside = [] if main is None else [(main, name) for name in others]
    return ArmRun(
        folder=folder,
        manifest=manifest,
        title=Path(settings["task"]).name,
        rows=manifest["rows"]["test"],
        test_sha256=settings["sha256"]["test"],
        test=(Path(settings["task"]).name, settings["sha256"]["test"], rows),
        columns={"score": columns},
        found={"score": {name: known_estimate(record["score"]) for name, record in tested.items()}},
        differences={
            ("score", name, BASELINE): known_estimate(arms[name]["gain"])
            for name in tested
            if arms[name]["gain"] is not None
        },
        asked=asked,
        contrasts=[*asked, *((name, BASELINE) for name in others), *beside],
    )


def _scores(table: pa.Table, rows: tuple[Any, ...]) -> Column:
    """Return the mean score of each row."""
    place = {row: i for i, row in enumerate(rows)}
    places = np.array([place[row] for row in table["row"].to_pylist()], dtype=np.int64)
    scores = table["score"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return _means(by_prompt(places, len(rows), np.asarray(scores, dtype=np.float64)))


def _read_align(folder: Path, manifest: Json) -> ArmRun:
    settings, evaluation = manifest["settings"], manifest["evaluation"]
    rows, by_arm = _read_measures(folder / "evaluation.parquet", manifest)
    names = [name for name in WORDS["align"] if any(name in found for found in by_arm.values())]
    sha256 = settings["sha256"]["evaluation.prompts"]
    judges = [
        settings[part].get(f"evaluation.{name}")
        for part in ("tasks", "routes")
        for name in ("judge", "preference")
    ]
    contrasts = list(dict.fromkeys((d["first"], d["second"]) for d in evaluation["differences"]))
    asked = [(first, second) for first, second in contrasts if second.startswith("vanilla-")]
    return ArmRun(
        folder=folder,
        manifest=manifest,
        title=Path(settings["model"]).name,
        rows=manifest["rows"]["evaluation"],
        test_sha256=sha256,
        test=(sha256, settings["target"], repr(judges), tuple(rows)),
        columns={
            name: {arm: _means(found[name]) for arm, found in by_arm.items() if name in found}
            for name in names
        },
        found={
            name: {
                arm: known_estimate(e[name]) for arm, e in evaluation["arms"].items() if name in e
            }
            for name in names
        },
        differences={
            (d["measure"], d["first"], d["second"]): known_estimate(
                {key: d[key] for key in ("value", "low", "high", "n", "level")}
            )
            for d in evaluation["differences"]
        },
        asked=asked,
        contrasts=[*asked, *(pair for pair in contrasts if pair not in asked)],
    )


def _read_measures(file: Path, manifest: Json) -> tuple[list[int], dict[str, dict[str, Measure]]]:
    """Return the prompts, by row, and the measures of each arm on them."""
    named = pq.read_schema(file).names
    table = pq.read_table(file, columns=[name for name in named if name not in _TEXTS])
    rows = sorted(set(table["row"].to_pylist()))
    prompts, target = pa.table({"row": pa.array(rows)}), manifest["settings"]["target"]
    return rows, {
        arm: measures(table.filter(pc.equal(table["arm"], arm)), prompts, target)
        for arm in manifest["evaluation"]["arms"]
    }


def _means(measure: Measure) -> Column:
    """Return the mean of each row's completions, NaN where none says anything."""
    known = np.where(measure.known, measure.weight, 1.0)
    return np.where(measure.known, measure.total / known, np.nan)
