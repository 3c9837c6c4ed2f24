"""The panel: cells x methods x gold budgets x seeds, one row a run, resumable.

All methods of a cell see the same features, gold rows and seeds. A finished run is a line of
``runs.jsonl`` at once, so that a killed panel loses one run a process; ``runs.parquet`` and the
report are made from these lines at the end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from whet.bench.annotators import Codes
from whet.bench.cells import Cell, CellSpec, check_spec, load_cell
from whet.bench.features import DenseEncoder
from whet.bench.linear import filled
from whet.bench.own import OWN, Answer, refine
from whet.bench.peers import PACKAGES, PEERS
from whet.classify.inputs import majority_vote
from whet.errors import WhetError, did_you_mean
from whet.extras import require
from whet.store import sha256_of

Row = dict[str, Any]
#: Method, gold budget and seed.
Run = tuple[str, int, int]
Progress = Callable[[str, int, int], None]

METHODS = (*OWN, *PEERS)

#: Columns of runs.parquet in their order; docs of the meaning stand in the report.
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("cell", "dataset", "part", "kind")),
        *((name, pa.int64()) for name in ("n_classes", "n_annotators", "n_rows")),
        *((name, pa.string()) for name in ("encoder", "method")),
        *((name, pa.int64()) for name in ("gold", "seed")),
        *((name, pa.float64()) for name in ("annotator_accuracy", "refined_accuracy", "gain")),
        ("changed", pa.float64()),
        ("kept_annotator", pa.bool_()),
        ("refused", pa.string()),
        ("seconds", pa.float64()),
        ("test_accuracy", pa.float64()),
        *(
            (f"{what}_{end}", pa.float64())
            for what in ("annotator", "refined")
            for end in ("value", "low", "high", "true")
        ),
    ]
)


@dataclass(frozen=True)
class Plan:
    """What a panel runs.

    Attributes
    ----------
    data : Path
        Folder of data sets.
    specs : list of CellSpec
    methods : list of str
    gold : list of int
        Budgets; 0 stands for no gold labels at all.
    seeds : int
        Draws of the gold rows, and seeds of the methods.
    encoder : str
    rows : int
        Most rows of a cell.

    Examples
    --------
    >>> Plan(Path("data"), [CellSpec(dataset="a", labels="llm_x")], ["pn", "silr"], [50], 10).n_runs
    20
    """

    data: Path
    specs: list[CellSpec]
    methods: list[str]
    gold: list[int]
    seeds: int = 10
    encoder: str = "tfidf"
    rows: int = 2000

    @property
    def n_runs(self) -> int:
        """Number of rows that the finished panel has."""
        return len(self.specs) * len(self.methods) * len(self.gold) * self.seeds

    def runs_of(self, spec: CellSpec) -> list[Run]:
        """Return method, gold budget and seed of every run of a cell."""
        return [(m, g, s) for g in self.gold for s in range(self.seeds) for m in self.methods]


def check_plan(plan: Plan) -> None:
    """Refuse a plan that cannot be run to its end, before any work is done.

    Raises
    ------
    WhetError
        If a method, column, data set or package is missing, or a number is out of range.
    """
    for method in plan.methods:
        if method not in METHODS:
            raise WhetError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
        if method in PACKAGES:
            require(PACKAGES[method], f"the method {method!r}")
    _check_numbers(plan)
    for spec in plan.specs:
        rows = check_spec(plan.data, spec, plan.rows)
        if max(plan.gold) >= rows:
            raise WhetError(
                f"--gold = {max(plan.gold)}: the cell {spec.name!r} has {rows} rows, and some must "
                "be left to be judged; ask for fewer"
            )
        if spec.simulate is not None:
            load_cell(plan.data, spec, plan.rows)  # takes no time, and may be impossible


def _check_numbers(plan: Plan) -> None:
    for name, values in (("methods", plan.methods), ("gold", plan.gold)):
        if not values or len(set(values)) < len(values):
            raise WhetError(f"--{name} = {values}: give each value once, and at least one")
    for name, value, least in (("seeds", plan.seeds, 1), ("rows", plan.rows, 20)):
        if value < least:
            raise WhetError(f"--{name} = {value}: give at least {least}")
    if min(plan.gold) < 0:
        raise WhetError(f"--gold = {min(plan.gold)}: give numbers of rows, 0 for none")


# --- running --------------------------------------------------------------------------------------


def run_panel(
    plan: Plan, file: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[Row]:
    """Run what ``file`` does not hold yet, append it there, and return all runs in order.

    Parameters
    ----------
    plan : Plan
    file : Path
        JSON lines, one a finished run; a last line that a kill tore is dropped.
    jobs : int
        Processes; a cell is run by one of them.
    progress : callable, optional
        Called with ("bench", runs done, all runs).

    Returns
    -------
    list of dict
        Ordered by cell, gold budget, seed and method, with the keys of :data:`SCHEMA`.
    """
    finished = {_key(row) for row in read_runs(file)}
    done = len(finished)

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress("bench", done, plan.n_runs)

    count(0)
    todo = [
        (spec, [run for run in plan.runs_of(spec) if (spec.name, *run) not in finished])
        for spec in plan.specs
    ]
    if jobs == 1:
        for spec, runs in todo:
            run_cell(plan, spec, runs, file, count)
    else:
        _in_processes(plan, todo, file, jobs, count)
    found = {_key(row): row for row in read_runs(file)}
    return [found[(spec.name, *run)] for spec in plan.specs for run in plan.runs_of(spec)]


def _in_processes(
    plan: Plan,
    todo: list[tuple[CellSpec, list[Run]]],
    file: Path,
    jobs: int,
    count: Callable[[int], None],
) -> None:
    """One task a cell. Fresh interpreters: a fork would inherit the thread pools of this one."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh, initializer=_end_with_parent) as pool:
        tasks = {pool.submit(run_cell, plan, spec, runs, file): len(runs) for spec, runs in todo}
        try:
            for task in as_completed(tasks):
                task.result()
                count(tasks[task])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Watch the parent, so that a killed panel leaves no process that works or waits on."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_cell(
    plan: Plan,
    spec: CellSpec,
    runs: list[Run],
    file: Path,
    count: Callable[[int], None] | None = None,
) -> None:
    """Run methods on one cell and append a line for each to ``file``."""
    if not runs:
        return
    cell = load_cell(plan.data, spec, plan.rows)
    encoder = _encoder(plan.encoder, tuple(cell.texts), tuple(cell.test_texts))
    for method, gold, seed in runs:
        row = run_method(cell, encoder, method, gold, seed) | {"encoder": short(plan.encoder)}
        _append(file, {name: row[name] for name in SCHEMA.names})
        if count is not None:
            count(1)


@lru_cache(maxsize=16)  # cells of a data set share its texts
def _encoder(spec: str, texts: tuple[str, ...], test_texts: tuple[str, ...]) -> DenseEncoder:
    """Features of a data set, which its cells share as far as they follow each other."""
    return DenseEncoder(spec, texts, test_texts)


def short(encoder: str) -> str:
    """Return an encoder's name without the folder that it lies in on this machine.

    Examples
    --------
    >>> short("tfidf"), short("embed:/models/minilm")
    ('tfidf', 'embed:minilm')
    """
    kind, colon, name = encoder.partition(":")
    return f"{kind}{colon}{Path(name).name}" if colon else kind


def draw_gold(cell: Cell, gold: int, seed: int) -> Codes:
    """Return the truth of a random sample of a cell's rows and -1 elsewhere.

    A smaller budget's sample is part of a larger one's with the same seed. Cells of one data set
    have different samples, so that their errors are not the same ones.
    """
    known = np.full_like(cell.truth, -1)
    rng = np.random.default_rng([seed, zlib.crc32(cell.name.encode())])
    rows = rng.permutation(len(known))[:gold]
    known[rows] = cell.truth[rows]
    return known


def run_method(cell: Cell, encoder: DenseEncoder, method: str, gold: int, seed: int) -> Row:
    """Run one method once and judge it on the rows that are not gold.

    Parameters
    ----------
    cell : Cell
    encoder : DenseEncoder
        Of the cell's texts.
    method : str
        One of :data:`METHODS`.
    gold, seed : int
        Size of the gold sample, and its seed.

    Returns
    -------
    dict
        The columns of :data:`SCHEMA` but the encoder's name. Accuracies are shares of the rows that
        are not gold. ``annotator_accuracy`` counts a missing label as the annotator's most frequent
        one, ``annotator_true`` leaves such rows out.
    """
    known = draw_gold(cell, gold, seed)
    judged = known < 0
    pseudo = majority_vote(cell.votes, cell.n_classes)
    annotator = _accuracy(filled(pseudo), cell.truth, judged)
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {
        **{name: getattr(cell, name) for name in ("dataset", "part", "kind", "n_classes")},
        "cell": cell.name,
        "n_annotators": cell.votes.shape[1],
        "n_rows": len(cell.texts),
        "method": method,
        "gold": gold,
        "seed": seed,
        "annotator_accuracy": annotator,
    }
    began = time.perf_counter()
    answer = _answer(cell, encoder, method, known, seed)
    row["seconds"] = round(time.perf_counter() - began, 3)
    if isinstance(answer, str):
        return row | {"refused": answer}
    refined = _accuracy(answer.labels, cell.truth, judged)
    row |= {
        "refined_accuracy": refined,
        "gain": refined - annotator,
        "changed": float((answer.labels != pseudo)[judged].mean()),
        "kept_annotator": answer.kept_annotator,
    }
    if answer.test_labels is not None:
        row["test_accuracy"] = float((answer.test_labels == cell.test_truth).mean())
    true = {"annotator": _accuracy(pseudo, cell.truth, judged & (pseudo >= 0)), "refined": refined}
    for what, value in true.items():
        estimate = (answer.estimate or {}).get(what)
        if estimate is not None:
            row |= {f"{what}_{end}": getattr(estimate, end) for end in ("value", "low", "high")}
            row[f"{what}_true"] = value
    return row


def _answer(
    cell: Cell, encoder: DenseEncoder, method: str, known: Codes, seed: int
) -> Answer | str:
    """Return what the method says, or why it says nothing."""
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a panel would repeat each of them a thousand times
        try:
            if method in OWN:
                return refine(method, cell, encoder, known, seed)
            peer = PEERS[method]
            # A copy: no method can change what the next one sees.
            votes = cell.votes.copy()
            return Answer(peer(encoder.features, votes, known, cell.n_classes, seed))
        except WhetError as refusal:
            return str(refusal)
        except Exception as error:  # one failing package must not end a panel of hours
            return f"failed: {type(error).__name__}: {' '.join(str(error).split())}"


def _accuracy(labels: Codes, truth: Codes, rows: NDArray[np.bool_]) -> float:
    return float((labels == truth)[rows].mean())


# --- runs on disk ---------------------------------------------------------------------------------


def read_runs(file: Path) -> list[Row]:
    """Read finished runs and cut off a last line that a kill tore.

    Raises
    ------
    WhetError
        If another line is damaged.
    """
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))  # the next line must not be glued to it
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            _key(row)
        except (ValueError, TypeError, KeyError) as error:
            raise WhetError(f"line {number} of {file} is damaged: remove it and resume") from error
        rows.append(row)
    return rows


def _append(file: Path, row: Row) -> None:
    """Append one line by one write, so that lines of several processes do not mix."""
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    target = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(target, line)
    finally:
        os.close(target)


def _key(row: Row) -> tuple[str, str, int, int]:
    return row["cell"], row["method"], row["gold"], row["seed"]


def table_of(rows: list[Row]) -> pa.Table:
    """Return runs as an Arrow table with the columns of :data:`SCHEMA`."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def settings_of(plan: Plan, version: str) -> Row:
    """Return what decides the result of a panel, without the place of its data."""
    names = sorted({spec.dataset for spec in plan.specs})
    return {
        "cells": [spec.model_dump() for spec in plan.specs],
        "methods": plan.methods,
        "gold": plan.gold,
        "seeds": plan.seeds,
        "encoder": short(plan.encoder),
        "rows": plan.rows,
        "data": {name: sha256_of(plan.data / name / "train.parquet") for name in names},
        "whet_version": version,
    }
