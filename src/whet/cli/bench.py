"""``whet bench``: what whet and its peers do on data sets with known labels."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from whet import __version__
from whet.cli._progress import ProgressReporter
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.bench.panel import Plan

app = App(name="bench", help="Compare methods on data sets with known labels (extra [bench]).")


def _help(text: str) -> Parameter:
    return Parameter(help=text)


@app.command
def classify(
    *,
    data: Annotated[
        Path, _help("Folder of data sets, each with train.parquet: text, label, llm_*.")
    ],
    out: Annotated[Path, _help("Output folder.")],
    cells: Annotated[
        Path | None, _help("YAML list of cells; without it, every data set and annotator.")
    ] = None,
    methods: Annotated[
        str, _help("Methods, separated by commas; differences are to the first.")
    ] = "tsp,silr,pn,uu,cleanlab",
    gold: Annotated[str, _help("Budgets of gold rows, separated by commas.")] = "50",
    seeds: Annotated[int, _help("Draws of the gold rows.")] = 10,
    encoder: Annotated[str, _help("tfidf; embed:FOLDER or embed:HUB_ID; auto for both.")] = "tfidf",
    rows: Annotated[int, _help("Most rows of a cell; a random sample of more.")] = 2000,
    jobs: Annotated[int, _help("Processes.")] = 1,
    resume: Annotated[
        bool, Parameter(help="Go on with an unfinished panel in the output folder.", negative="")
    ] = False,
) -> None:
    """Run methods x cells x gold budgets x seeds, and say who gains, who harms, and how surely.

    Writes runs.parquet, table.md and gain.svg, and prints the main table.

    Of whet: tsp, tsp-mild, tsp-off, tsp-confidence, silr, silr-1, silr-guarded, silr-oracle,
    silr-released, uu, pn. Peers: majority, cleanlab, cleanlearning, pn-oof, gold-only,
    self-training, dawid-skene, snorkel, pie, ccp, knn.

        whet bench classify --data DIR --methods tsp,silr,cleanlab --gold 50,100 --out results
    """
    from whet.bench.cells import find_specs, read_specs
    from whet.bench.panel import Plan, check_plan, run_panel, settings_of
    from whet.store import RunFolder

    skipped: list[str] = []
    if cells is None:
        specs, skipped = find_specs(data, rows)
    else:
        specs = read_specs(cells)
    plan = Plan(data, specs, _names(methods), _numbers(gold), seeds, encoder, rows)
    check_plan(plan)
    if jobs < 1:
        raise WhetError(f"--jobs = {jobs}: give a number of processes of at least 1")
    if out.resolve().is_relative_to(data.resolve()):
        raise WhetError(f"--out {out} lies inside the data folder {data}: choose another")
    folder = RunFolder(out, settings_of(plan, __version__), resume=resume)
    runs = out / "runs.jsonl"
    try:
        folder.open()
        with ProgressReporter() as progress:
            found = run_panel(plan, runs, jobs=jobs, progress=progress)
        _write(plan, found, folder.path, _command(plan, cells, out))
        folder.finish({"runs": len(found), "machine": _machine(), "skipped": skipped})
    except Exception:
        if not runs.exists():
            folder.discard_if_empty()
        raise
    finally:
        folder.close()
    _print(found, skipped, out)


def _names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]


def _numbers(gold: str) -> list[int]:
    try:
        return [int(number) for number in gold.split(",")]
    except ValueError:
        raise WhetError(f"--gold = {gold!r}: give whole numbers, separated by commas") from None


def _command(plan: Plan, cells: Path | None, out: Path) -> str:
    """Return the command that makes these runs; of folders only the names, which tell no place."""
    from whet.bench.panel import short

    flags = {
        "data": plan.data.resolve().name,
        "cells": None if cells is None else cells.name,
        "methods": ",".join(plan.methods),
        "gold": ",".join(str(number) for number in plan.gold),
        "seeds": str(plan.seeds),
        "encoder": short(plan.encoder),
        "rows": str(plan.rows),
        "out": out.resolve().name,
    }
    said = [f"--{name} {shlex.quote(value)}" for name, value in flags.items() if value is not None]
    return " ".join(["whet bench classify", *said])


def _machine() -> str:
    from whet.cli.env import versions

    known = versions()
    packages = ", ".join(f"{name} {known[name]}" for name in ("whet", "numpy", "scikit-learn"))
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {packages}{_peer_versions()}"
    )


def _peer_versions() -> str:
    import importlib.metadata

    said = ""
    for name in ("cleanlab", "crowd-kit", "snorkel"):
        try:
            said += f", {name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return said


def _write(plan: Plan, found: list[dict[str, Any]], folder: Path, command: str) -> None:
    from whet.bench.panel import table_of
    from whet.bench.report import draw_gain, markdown
    from whet.store import write_atomic, write_parquet

    text = markdown(found, command, _machine())
    write_parquet(folder / "runs.parquet", table_of(found))
    write_atomic(folder / "table.md", lambda file: file.write(text.encode()))
    write_atomic(folder / "gain.svg", draw_gain(found))


def _print(found: list[dict[str, Any]], skipped: list[str], out: Path) -> None:
    """Print a table for each group of cells, what was written, and what to do next."""
    from rich.table import Table

    from whet.bench.report import HEAD, cells_of, count_cells, groups, lines
    from whet.cli import console, plain

    screen = console()
    for sentence in skipped:
        screen.print(plain(sentence))
    for title, members in groups(found).items():
        screen.print()
        screen.print(plain(f"{title}: {count_cells(members)}, gain in points with 95 % intervals"))
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in HEAD:
            table.add_column(name, no_wrap=True)
        for line in lines(members):
            table.add_row(*(plain(value) for value in cells_of(line)))
        screen.print(table)
    failed = sum((row["refused"] or "").startswith("failed: ") for row in found)
    if failed:
        screen.print(f"\n{failed} runs failed in a method's code; table.md has the messages.")
    screen.print()
    for name, what in (
        ("table.md", "all tables, with cells, coverage and refusals"),
        ("gain.svg", "gain against the annotator's accuracy"),
        ("runs.parquet", "every run"),
    ):
        screen.print(plain(f"{out / name}  {what}"))
    screen.print()
    screen.print("Next: read table.md, then refine your own texts with the method that suits them:")
    screen.print(
        "whet refine CORPUS.csv --text COLUMN --pseudo COLUMN --gold COLUMN --out whet-run"
    )
