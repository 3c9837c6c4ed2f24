"""Proposals as a stage of its own: demonstrations in, the same with a proposal each out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from whet import __version__
from whet.ilr.halves import halves
from whet.ilr.refine import Proposer, answered, as_objects, stop_if_collapsed, text_of
from whet.ilr.stages import Stages, Used, check_prompts
from whet.posttrain.examples import digest
from whet.posttrain.settings import GenerateSettings, TrainSettings
from whet.rounds import Progress
from whet.store import RunFolder, read_json, write_parquet

RESULT = "proposals.parquet"


def propose(
    table: pa.Table,
    model: str,
    out: Path,
    train: TrainSettings,
    generate: GenerateSettings,
    *,
    folds: int = 2,
    marker: str | None = None,
    keep: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``proposals.parquet``: the demonstrations with ``proposal`` and ``fold``.

    Parameters
    ----------
    table : pyarrow.Table
        ``row``, ``prompt``, ``completion``; other columns are carried.
    model : str
        Folder or hub id; every training begins with it.
    out : Path
        Folder. A finished one is left as it is, an unfinished one is finished.
    train : TrainSettings
    generate : GenerateSettings
    folds : int
        See :func:`whet.ilr.halves.halves`.
    marker : str, optional
        Rows without it are not trained on.
    keep : bool
        Keep the weights of the models that proposed.
    progress : callable, optional

    Returns
    -------
    dict
        Counts; they are also ``run.json``, which is written last. Of several processes, those that
        follow the first only train with it, and return nothing.

    Raises
    ------
    WhetError
        If rows or model cannot be used, or a model says the same to all prompts.
    """
    settings = {
        "data_sha256": digest(table),
        "train": asdict(train),
        "generate": asdict(generate),
        "folds": folds,
        "marker": marker,
        "whet_version": __version__,
    }
    stages = Stages(out / "stages", progress)
    if not stages.ranks.leads:
        stages.follow()
        return {}
    base = stages.base(model)
    run = RunFolder(out, settings | {"weights": base.key}, resume=True)
    try:
        if not run.complete:
            check_prompts(model, [table])
            parts = halves(table["prompt"].to_pylist(), folds=folds, seed=train.seed)
            run.open()
            proposer = Proposer(stages, base, table, train, generate, marker, keep)
            labels = as_objects(table["completion"].to_pylist())
            used = Used(**proposer.start_round(labels, 1))
            said, fold = labels.copy(), np.zeros(len(labels), dtype=np.int64)
            for k, (rows, others) in enumerate(parts):
                said[others] = proposer.propose(proposer.fit(rows, labels, 1), others)
                fold[others] = k
            stop_if_collapsed(table, said.tolist())
            whole = _with(table, said.tolist(), fold)
            write_parquet(out / RESULT, whole)
            run.finish(_account(whole, stages, used, settings))
        stages.release()
        return read_json(out / "run.json")
    finally:
        run.close()


def _with(table: pa.Table, said: list[Any], fold: Any) -> pa.Table:  # noqa: ANN401
    columns = {
        "proposal": pa.array(said, table.schema.field("completion").type),
        "fold": pa.array(fold),
    }
    table = table.drop_columns([name for name in columns if name in table.column_names])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _account(
    table: pa.Table, stages: Stages, used: Used, settings: dict[str, Any]
) -> dict[str, Any]:
    old, new = table["completion"].to_pylist(), table["proposal"].to_pylist()
    return {
        **settings,
        "rows": table.num_rows,
        "unanswered": table.num_rows - answered(table, settings["marker"]).num_rows,
        "same": sum(a == b for a, b in zip(old, new, strict=True)),
        "empty": sum(not text_of(said) for said in new),
        **stages.cost(used),
    }
