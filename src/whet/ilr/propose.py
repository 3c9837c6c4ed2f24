"""Proposals as a stage of its own: demonstrations in, the same with a proposal each out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from whet import __version__
from whet.annotate.protocol import Backend
from whet.errors import WhetError
from whet.ilr.evaluate import versions
from whet.ilr.halves import halves
from whet.ilr.refine import Proposer, answered, as_objects, stop_if_collapsed
from whet.ilr.rows import text_of
from whet.ilr.stages import Stages, Used, check_prompts
from whet.posttrain.ask import generate_with
from whet.posttrain.examples import digest
from whet.posttrain.settings import GenerateSettings, TrainSettings
from whet.rounds import Progress
from whet.store import RunFolder, full_disk_said, read_json, write_parquet

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
    given: Mapping[str, Any] | None = None,
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
    given : mapping, optional
        How demonstrations and task were named, see :func:`whet.report.commands.as_given`: run.json
        keeps it for the commands to come. It decides nothing.
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
                with full_disk_said(out):
                    said[others] = proposer.propose(proposer.fit(rows, labels, 1), others)
                fold[others] = k
            whole = _with(table, said.tolist(), fold=pa.array(fold))
            write_parquet(out / RESULT, whole)
            kept = _kept(given) | _counts(whole, marker)
            run.finish({**settings, **kept, **stages.cost(used)})
        stages.release()
        return read_json(out / "run.json")
    finally:
        run.close()


def propose_served(
    table: pa.Table,
    backend: Backend,
    out: Path,
    generate: GenerateSettings,
    *,
    concurrency: int = 16,
    marker: str | None = None,
    given: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``proposals.parquet`` with what a model behind a server says; nothing is trained.

    Each answer is kept when it comes, so that a broken run goes on and asks for none twice.

    Parameters
    ----------
    table, out, generate, marker, given, progress
        As for :func:`propose`. Text is asked as one user's message; an answer that is cut off,
        filtered or refused is no proposal.
    backend : Backend
        See :func:`whet.annotate.connect.connect`.
    concurrency : int
        Calls in flight.

    Returns
    -------
    dict
        Counts, also in ``run.json``, which is written last.

    Raises
    ------
    WhetError
        If the server cannot be used, or says the same to all prompts, or ``concurrency`` is below
        1.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow.parquet as pq
    >>> from whet.annotate.protocol import Answer
    >>> class Echo:
    ...     route, at_once = {"backend": "echo"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer(request.messages[-1][1]) for request in requests]
    ...     async def close(self): ...
    >>> table = pa.table({"row": [0, 1], "prompt": ["a", "b"], "completion": ["x", "b"]})
    >>> out = Path(tempfile.mkdtemp()) / "proposed"
    >>> account = propose_served(table, Echo(), out, GenerateSettings())
    >>> account["same"], pq.read_table(out / RESULT)["proposal"].to_pylist()
    (1, ['a', 'b'])
    """
    if concurrency < 1:
        raise WhetError(f"concurrency = {concurrency}: it must be at least 1")
    settings = {
        "data_sha256": digest(table),
        "route": dict(backend.route),
        "generate": asdict(generate),
        "marker": marker,
        "whet_version": __version__,
    }
    run = RunFolder(out, settings, resume=True)
    try:
        if not run.complete:
            run.open()
            told = generate_with(
                backend,
                table,
                out / "answers",
                generate,
                concurrency=concurrency,
                progress=progress,
            )
            said = told["completion"].to_pylist()
            there = [answer for answer in said if answer is not None]
            stop_if_collapsed(table, there)
            whole = _with(table, said)
            write_parquet(out / RESULT, whole)
            kept = _kept(given) | _counts(whole, marker)
            run.finish({**settings, **kept, "unfinished": len(said) - len(there)})
        return read_json(out / "run.json")
    finally:
        run.close()


def _with(table: pa.Table, said: list[Any], **columns: pa.Array) -> pa.Table:
    columns = {"proposal": pa.array(said, table.schema.field("completion").type), **columns}
    table = table.drop_columns([name for name in columns if name in table.column_names])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _kept(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what run.json keeps and decides nothing."""
    return {"given": None if given is None else dict(given), "versions": versions()}


def _counts(table: pa.Table, marker: str | None) -> dict[str, int]:
    old, new = table["completion"].to_pylist(), table["proposal"].to_pylist()
    return {
        "rows": table.num_rows,
        "unanswered": table.num_rows - answered(table, marker).num_rows,
        "same": sum(a == b for a, b in zip(old, new, strict=True)),
        "empty": sum(said is not None and not text_of(said) for said in new),
    }
