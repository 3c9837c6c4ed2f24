"""How right completions are: a score each by the task, means with intervals, and win rates."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whet import __version__
from whet.align.compare import Measure, by_prompt, difference, estimate
from whet.errors import WhetError
from whet.estimates import Estimate
from whet.hub import fingerprint
from whet.ilr.feedback import Judge
from whet.ilr.judges import LlmSettings, check_judge, make_judge
from whet.ilr.samples import by_row
from whet.ilr.stages import Stages, check_prompts
from whet.ilr.tasks.protocol import SUFFIXES, Task, criterion_of
from whet.ilr.wins import check_single, judge_wins, summarise_wins
from whet.posttrain.examples import digest, is_messages
from whet.posttrain.run import VERSIONS
from whet.posttrain.settings import GenerateSettings
from whet.rounds import Progress
from whet.store import RunFolder, full_disk_said, read_json, sha256_of, write_parquet
from whet.tables import read_table

#: The cache of a language model's answers as judge, beside the folder.
ANSWERS = "whet-answers.sqlite"


def score_completions(task: Task, table: pa.Table, completions: pa.Table) -> pa.Table:
    """Score each completion of a model by the task.

    Parameters
    ----------
    task : Task
    table : pyarrow.Table
        Rows of the task: ``row``, ``prompt``, ``reference`` and what the task needs besides.
    completions : pyarrow.Table
        ``row`` (as in ``table``), ``completion``, and perhaps ``sample`` and ``finished``; of a
        row none, one or several.

    Returns
    -------
    pyarrow.Table
        ``completions`` in the order of ``table``, with ``score`` (float64, null where the task
        cannot judge).

    Raises
    ------
    WhetError
        If a completion is of no row, or there is none.
    """
    if not completions.num_rows:
        raise WhetError("there are no completions: give at least one")
    place = pa.array(np.arange(completions.num_rows))
    found = by_row(table, completions.append_column("_place", place))
    rows = [i for i, of_row in enumerate(found) for _ in of_row]
    order = [said["_place"] for of_row in found for said in of_row]
    ordered = completions.take(pa.array(order))
    texts = ["" if said is None else said for said in ordered["completion"].to_pylist()]
    scores = task.score(table.take(pa.array(rows)), texts)
    if "score" in ordered.column_names:
        ordered = ordered.drop_columns("score")
    return ordered.append_column("score", pa.array(scores, from_pandas=True))


def mean_score(scored: pa.Table, seed: int = 0) -> Estimate:
    """Return the mean score with a 95 % bootstrap interval over rows (all 0 or all 1: Jeffreys').

    Parameters
    ----------
    scored : pyarrow.Table
        ``row`` and ``score``; completions of one row are drawn together.
    seed : int

    Examples
    --------
    >>> scored = pa.table({"row": [0, 1, 2, 3], "score": [1.0, 0.0, 1.0, None]})
    >>> mean_score(scored).value, mean_score(scored).n
    (0.6666666666666666, 3)
    """
    rows = _distinct([scored])
    return estimate(_measure(scored, rows), seed)


def score_difference(first: pa.Table, second: pa.Table, seed: int = 0) -> Estimate:
    """Return the mean score of ``first`` minus that of ``second``, on the rows of both.

    Examples
    --------
    >>> first, second = ({"row": [0, 1], "score": [1.0, right]} for right in (1.0, 0.0))
    >>> score_difference(pa.table(first), pa.table(second)).value
    0.5
    """
    rows = _distinct([first, second])
    return difference(_measure(first, rows), _measure(second, rows), seed)


def evaluate(
    what: Sequence[str],
    task: Task,
    table: pa.Table,
    out: Path,
    settings: GenerateSettings,
    *,
    judge: str | None = None,
    llm: LlmSettings | None = None,
    given: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score models and tables of completions on the same rows.

    With a judge, each but the first is also judged against the first, see
    :func:`whet.ilr.wins.judge_wins`.

    Parameters
    ----------
    what : sequence of str
        Folders or hub ids of causal models, or tables (.jsonl, .parquet, ...) with ``completion``
        and ``row``; without ``row`` they have the rows of ``table`` in order.
    task : Task
    table : pyarrow.Table
        ``row``, ``prompt``, ``reference`` and what the task needs besides.
    out : Path
        Folder; ``scores.parquet`` and then ``run.json`` are written in it. What a language model
        says as judge is kept beside it, in ``whet-answers.sqlite``.
    settings : GenerateSettings
    judge : str, optional
        See :func:`whet.ilr.judges.make_judge`.
    llm : LlmSettings, optional
        Of the judge ``llm``.
    given : mapping, optional
        How test and task were named, see :func:`whet.report.commands.as_given`: run.json keeps it
        for the command that does it again. It decides nothing.
    progress : callable, optional

    Returns
    -------
    dict
        The content of ``run.json``.

    Raises
    ------
    WhetError
        If a model, a table or the judge cannot be used, or the task can score none of the
        completions.
    Stop
        If the budget of a language model was reached; the next run goes on.
    """
    stages = Stages(out / "stages", progress)
    bases = {one: stages.base(one) for one in what if Path(one).suffix not in SUFFIXES}
    files = {one: _of_rows(read_table(Path(one)), table, one) for one in what if one not in bases}
    _check_alike(
        dict.fromkeys(bases, table["prompt"].type)
        | {one: given["completion"].type for one, given in files.items()}
    )
    if judge is not None:
        _check_judging(judge, what, files)
    decided = {
        "what": {one: base.key for one, base in bases.items()}
        | {one: digest(given) for one, given in files.items()},
        "task": task.name,
        "data_sha256": digest(table),
        "generate": asdict(settings),
        "judge": None if judge is None else _about_judge(judge, llm, criterion_of(task)),
        "whet_version": __version__,
    }
    run = RunFolder(out, decided, resume=True)
    try:
        if not run.complete:
            for model in bases:
                check_prompts(model, [table])
            asked = None
            if judge is not None:  # what is wrong with it is said before anything is written
                cache = out.resolve().with_name(ANSWERS)
                cache.parent.mkdir(parents=True, exist_ok=True)
                told = stages.told("judge")
                asked = make_judge(
                    judge, task, llm=llm, cache=cache, seed=settings.seed, progress=told
                )
            run.open()
            scored = {}
            for one in what:
                if one in bases:
                    with full_disk_said(out):
                        said = stages.complete(bases[one], table, settings, one)
                else:
                    said = files[one]
                scored[one] = score_completions(task, table, said)
                _check_scored(scored[one], one, task)
            wins = {} if asked is None else _wins(asked, table, scored)
            parts = [_rows_of(one, found, wins.get(one)) for one, found in scored.items()]
            write_parquet(
                out / "scores.parquet", pa.concat_tables(parts, promote_options="default")
            )
            found = [_found(one, scored, wins, what[0], settings.seed) for one in scored]
            kept = {"given": None if given is None else dict(given), "versions": versions()}
            run.finish({**decided, **kept, "rows": table.num_rows, "found": found})
        return read_json(out / "run.json")
    finally:
        run.close()


def versions() -> dict[str, str]:
    """Return the versions of the packages that models run with, as far as they are installed."""
    found = {}
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _check_judging(judge: str, what: Sequence[str], files: Mapping[str, pa.Table]) -> None:
    kind, _ = check_judge(judge)
    others = len(set(what)) - 1
    if not others:
        raise WhetError(
            f"the judge {judge!r} compares with the first, and {what[0]} is alone: name two or more"
        )
    if kind == "file" and others > 1:
        raise WhetError(
            f"the judge {judge!r} has one score a row, and {others} are compared with the first: "
            "name two, or another judge"
        )
    for one, given in files.items():
        check_single(given, one)


def _about_judge(judge: str, llm: LlmSettings | None, criterion: str | None) -> dict[str, Any]:
    """Return what decides a judge's verdicts."""
    kind, argument = check_judge(judge)
    about: dict[str, Any] = {"name": judge}
    if kind == "llm":
        about |= (llm or LlmSettings()).deciding()
        if criterion is not None:
            about["criterion"] = criterion
    elif argument and Path(argument).is_dir():
        about["weights"] = fingerprint(Path(argument))
    elif argument and Path(argument).is_file():
        about["sha256"] = sha256_of(Path(argument))
    return about


def _wins(judge: Judge, table: pa.Table, scored: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Return how each but the first does against the first."""
    (_, first), *others = scored.items()
    return {one: judge_wins(judge, table, first, found) for one, found in others}


def _rows_of(one: str, scored: pa.Table, wins: pa.Table | None) -> pa.Table:
    """Return the rows of one of those evaluated, as they are stored."""
    table = scored.select(["row", "completion", "score"])
    table = table.add_column(0, "what", pa.array([one] * table.num_rows))
    if wins is not None:
        for name in ("win", "consistent", "failure"):
            table = table.append_column(name, wins[name])
    return table


def _found(
    one: str, scored: dict[str, pa.Table], wins: dict[str, pa.Table], first: str, seed: int
) -> dict[str, Any]:
    table = scored[one]
    gain = None
    if one != first:
        gain = score_difference(table, scored[first], seed).as_dict()
    ended = [True] * table.num_rows
    if "finished" in table.column_names:
        ended = table["finished"].to_pylist()
    return {
        "what": one,
        "score": mean_score(table, seed).as_dict(),
        "gain": gain,
        "win": summarise_wins(wins[one], seed) if one in wins else None,
        "unfinished": ended.count(False),
        "unscored": table["score"].null_count,
    }


def _check_alike(types: Mapping[str, pa.DataType]) -> None:
    """Raise ``WhetError`` unless all completions are text, or all messages."""
    (first, kind), *others = types.items()
    for one, other in others:
        if is_messages(other) != is_messages(kind):
            forms = ("text", "messages") if is_messages(other) else ("messages", "text")
            raise WhetError(
                f"the completions of {first} are {forms[0]} and those of {one} {forms[1]}: write "
                "all in the same way"
            )


def _of_rows(given: pa.Table, table: pa.Table, name: str) -> pa.Table:
    """Return completions that someone else made, with the numbers of their rows."""
    if "completion" not in given.column_names:
        raise WhetError(
            f"{name} has the columns {', '.join(given.column_names)}: it needs completion, and row"
        )
    if "row" not in given.column_names:
        if given.num_rows != table.num_rows:
            raise WhetError(
                f"{name} has {given.num_rows:,} rows and the test {table.num_rows:,}: add the "
                "column row, the number that a row has in the test, from 0"
            )
        given = given.append_column("row", table["row"])
    kept = [c for c in ("row", "completion", "finished") if c in given.column_names]
    said = (
        given["completion"].cast(pa.string())
        if not pa.types.is_nested(given.schema.field("completion").type)
        else given["completion"]
    )
    return given.select(kept).set_column(kept.index("completion"), "completion", said)


def _check_scored(scored: pa.Table, name: str, task: Task) -> None:
    if scored["score"].null_count == scored.num_rows:
        raise WhetError(
            f"the task {task.name} can score none of {scored.num_rows:,} completions of {name}: "
            "give references"
        )


def label_accuracy(task: Task, table: pa.Table) -> float | None:
    """Return the mean score of demonstrations; None where the task can judge none.

    All rows are looked at, so that it has no interval. It reads references, and serves experiments.
    """
    if "reference" not in table.column_names:
        return None
    scores = task.score(table, table["completion"].to_pylist())
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if len(known) else None


def score_judged(task: Task, judged: pa.Table) -> pa.Table | None:
    """Score demonstrations and proposals of the rows that were judged or replaced.

    It reads references, and serves experiments; None without them.

    Parameters
    ----------
    task : Task
    judged : pyarrow.Table
        Of :func:`whet.ilr.refine.judge_proposals`, perhaps with ``accepted`` (bool).

    Returns
    -------
    pyarrow.Table or None
        ``row`` and ``score`` of ``judged``, then ``before`` and ``after``: how right demonstration
        and proposal are, 0 to 1, NaN where the task cannot judge.
    """
    if "reference" not in judged.column_names:
        return None
    looked = judged["score"].is_valid()
    if "accepted" in judged.column_names:
        looked = pc.or_(looked, judged["accepted"])
    rows = judged.filter(looked)
    names = {"before": "completion", "after": "proposal"}
    scores = {
        new: task.score(rows, rows[old].to_pylist()) if rows.num_rows else np.empty(0)
        for new, old in names.items()
    }
    return pa.table({"row": rows["row"], "score": rows["score"], **scores})


def judge_accuracy(scored: pa.Table) -> tuple[int, int]:
    """Return in how many of how many judged rows the judge preferred the better completion.

    Rows count in which the scores of demonstration and proposal differ; s = 0.5 counts as wrong.

    Parameters
    ----------
    scored : pyarrow.Table
        Of :func:`score_judged`.
    """
    asked = scored.filter(scored["score"].is_valid())
    before, after, s = (asked[name].to_numpy() for name in ("before", "after", "score"))
    gain = after - before
    told = np.isfinite(gain) & (gain != 0)
    right = ((s > 0.5) & (gain > 0)) | ((s < 0.5) & (gain < 0))
    return int((right & told).sum()), int(told.sum())


def _distinct(tables: Sequence[pa.Table]) -> dict[Any, int]:
    rows = dict.fromkeys(row for table in tables for row in table["row"].to_pylist())
    return {row: place for place, row in enumerate(rows)}


def _measure(scored: pa.Table, rows: dict[Any, int]) -> Measure:
    places = np.array([rows[row] for row in scored["row"].to_pylist()], dtype=np.int64)
    values = scored["score"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return by_prompt(places, len(rows), np.asarray(values, dtype=np.float64), share=True)
