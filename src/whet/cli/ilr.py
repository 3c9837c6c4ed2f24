"""``whet ilr``: all arms of a recipe of iterative label refinement, and how they compare."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.cli._summary import interval, report_row
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.ilr.people import PeopleWanted, Waiting
    from whet.ilr.recipe import IlrRecipe


def ilr(
    recipe: Annotated[Path, Parameter(help="YAML file; docs/ilr.md lists its keys.")],
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(help="Run folder. [default: the recipe's, else whet-ilr]", show_default=False),
    ] = None,
    plan: Annotated[
        bool,
        Parameter(
            help="Run nothing: count trainings and tokens, and hours by arithmetic.", negative=""
        ),
    ] = False,
    enough: Annotated[
        bool,
        Parameter(
            help="Where people judge: take what they have answered, and leave the rest as it is.",
            negative="",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Refine demonstrations in rounds, and compare with fine-tuning alone and with DPO.

    The same command again goes on where it stopped.

        whet ilr recipe.yaml --plan
        whet ilr recipe.yaml --out run
    """
    from whet.posttrain.ranks import one_voice

    if plan:
        _plan(recipe)
        return
    with one_voice():
        _ilr(recipe, out, enough=enough)


def _plan(recipe: Path) -> None:
    """Print what a recipe takes."""
    from rich.table import Table

    from whet.cli import console, plain
    from whet.ilr.pipeline import Ilr
    from whet.ilr.plan import GPU, PEOPLE
    from whet.ilr.plan import plan as planned
    from whet.ilr.recipe import load_recipe

    run = Ilr(load_recipe(recipe))
    lines = planned(run.recipe, run.train, run.test)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("", "model", "times", "rows", "tokens", "GPU hours"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        hours = "-" if line.hours is None else f"{line.hours:,.1f}"
        counts = f"{line.times:,}", f"{line.rows:,}", f"{line.tokens:,.0f}"
        table.add_row(line.kind, plain(line.model), *counts, hours)
    known = [line.hours for line in lines if line.hours is not None]
    asked = [line for line in lines if line.kind == PEOPLE]
    screen = console()
    screen.print(table)
    screen.print()
    peak, bandwidth, used = GPU["operations"] / 1e12, GPU["bytes"] / 1e12, GPU["used"]
    screen.print(f"About {sum(known):,.1f} hours of one GPU of {peak:,.0f} TFLOP/s and", end=" ")
    screen.print(f"{bandwidth:g} TB/s, if {used:.0%} of both are used:")
    screen.print("arithmetic, nothing of it measured. Loading, saving and waiting come on top.")
    for line in asked:
        screen.print(f"People compare at most {line.rows:,} pairs.")
    if len(known) < len(lines) - len(asked):
        screen.print("Models whose folders are not here have no hours (-).")


def _ilr(recipe: Path, out: str | None, *, enough: bool) -> None:
    from dataclasses import replace

    from whet.annotate.protocol import Stop
    from whet.cli._asking import print_table
    from whet.cli._progress import ProgressReporter
    from whet.finetune.processes import launched_rank
    from whet.ilr.people import PeopleWanted
    from whet.ilr.pipeline import Ilr
    from whet.ilr.recipe import load_recipe

    leads = launched_rank() == 0
    settings = load_recipe(recipe)
    if out is not None:
        settings = replace(settings, out=out)
    if enough and not any(name.partition(":")[0] == "people" for name in settings.judges):
        raise WhetError(f"--enough is about people, and no arm of {recipe} asks any: leave it out")
    command = ["whet", "ilr", str(recipe), *(["--out", out] if out is not None else [])]
    try:
        with ProgressReporter() if leads else nullcontext() as progress:
            manifest = Ilr(settings, progress=progress, enough=enough).run()
    except PeopleWanted as wanted:
        _show_wanted(wanted, settings, shlex.join(command), enough=enough)
        raise SystemExit(3) from None
    except Stop as stop:
        if stop.fatal:
            raise WhetError(stop.reason) from None
        print_table(f"Stopped early: {stop.reason}.", [], "", shlex.join(command))
        raise SystemExit(3) from None
    if leads:
        show(manifest, Path(settings.out))


def _show_wanted(wanted: PeopleWanted, recipe: IlrRecipe, again: str, *, enough: bool) -> None:
    """Say how many comparisons wait, and which commands go on; each stands alone on its line."""
    from whet.cli import console, plain
    from whet.ilr.people import limit_said

    screen = console()
    screen.print()
    screen.print(plain(f"Nothing is wrong: {wanted.reason}."), style="bold")
    screen.print()
    if enough:  # else they would have been taken over
        screen.print("--enough takes what is answered, and of these comparisons nothing is: answer")
        screen.print("one of each command at least.")
        screen.print()
    screen.print("Next: answer them; --seconds 60 sets a time limit")
    for session in wanted.sessions:
        screen.print(plain(_who_waits(session, Path(recipe.out))), soft_wrap=True)
        screen.print(plain(session.command), soft_wrap=True)
    screen.print("and then run the same command again")
    screen.print(plain(again), soft_wrap=True)
    if any(session.left < session.total for session in wanted.sessions):
        screen.print("or, to leave the demonstrations of the others as they are,")
        screen.print(plain(f"{again} --enough"), soft_wrap=True)
    limits = _limits(recipe)
    if limits:
        screen.print()
    for name, alpha in limits:
        screen.print(plain(f"{name}: {limit_said(alpha)}."), soft_wrap=True)


def _who_waits(session: Waiting, folder: Path) -> str:
    """Return which arms and rounds wait for a session, and how many comparisons are left."""
    rounds: dict[int, list[str]] = {}
    for name in session.arms:
        done = len(list((folder / "arms" / name).glob("*/round.json")))
        rounds.setdefault(done + 1, []).append(name)
    said = "; ".join(f"{', '.join(names)}, round {k}" for k, names in rounds.items())
    left = f"{session.left:,} of {session.total:,} wait"
    return f"{said}: {left}" if said else left


def _limits(recipe: IlrRecipe) -> list[tuple[str, float]]:
    """Return the arms in which people judge and ILR's limit holds, and their alpha."""
    from whet.ilr.arms import RefineArm

    return [
        (name, recipe.alpha if arm.alpha is None else arm.alpha)
        for name, arm in recipe.arms.items()
        if isinstance(arm, RefineArm)
        and arm.mode == "ilr"
        and (arm.judge or recipe.judge).partition(":")[0] == "people"
    ]


def show(manifest: dict[str, Any], folder: Path) -> None:
    """Print the closing tables of a run.

    Parameters
    ----------
    manifest : dict
        The content of run.json.
    folder : Path
        The run folder.
    """
    from whet.cli import console, plain
    from whet.cli._asking import print_table

    arms, rows = manifest["arms"], manifest["rows"]
    screen = console()
    screen.print()
    said = f"{len(arms)} arms on {rows['demonstrations']:,} demonstrations"
    said += f", {rows['test']:,} rows of test." if rows["test"] else "; nothing was evaluated."
    screen.print(plain(said), style="bold")
    screen.print("Score: the task's, on the test, of the model after the last round; in brackets")
    screen.print("95 % bootstrap intervals over rows, of one run: another seed differs by more.")
    screen.print("Labels: share of the demonstrations that are right, before and after. Judge:")
    screen.print("share of its verdicts that are right. Steps: of all models that led to the last.")
    screen.print()
    screen.print(_arms(arms))
    rounds = _rounds(arms)
    if rounds is not None:
        screen.print()
        screen.print("Score after each round:")
        screen.print(rounds)
    print_table("What they had in common:", _shared(manifest, folder), _following(arms, folder))


def _arms(arms: dict[str, Any]) -> Any:  # noqa: ANN401 - Table
    from rich.table import Table

    from whet.cli import plain

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("arm", "score", "minus sft", "labels", "judge", "changed", "steps"):
        table.add_column(heading, no_wrap=True)
    for name, arm in arms.items():
        if not arm["rounds"]:
            table.add_row(plain(name), *["-"] * 6)
            continue
        first, last = arm["rounds"][0], arm["rounds"][-1]
        cells = (
            interval(last["score"], ""),
            interval(arm["gain"], "+"),
            _labels(first, last),
            _judged(arm["rounds"]),
            _changed(arm["rounds"]),
            f"{last['steps']:,}",
        )
        table.add_row(plain(name), *cells)
    return table


def _labels(first: dict[str, Any], last: dict[str, Any]) -> str:
    before, after = (record.get("label_accuracy") for record in (first, last))
    if before is None:
        return "-"
    if after is None or first is last:
        return f"{before:.3f}"
    return f"{before:.3f} > {after:.3f}"


def _judged(rounds: list[dict[str, Any]]) -> str:
    told = sum(record.get("judge_told") or 0 for record in rounds)
    if not told:
        return "-"
    right = sum(record.get("judge_right") or 0 for record in rounds)
    return f"{right / told:.3f} of {told:,}"


def _changed(rounds: list[dict[str, Any]]) -> str:
    counts = [record.get("accepted", record.get("kept")) for record in rounds[1:]]
    shown = " + ".join(f"{count:,}" for count in counts if count is not None)
    return f"{shown} pairs" if shown and "kept" in rounds[-1] else shown or "-"


def _rounds(arms: dict[str, Any]) -> Any | None:  # noqa: ANN401 - Table
    from rich.table import Table

    from whet.cli import plain

    longest = max(len(arm["rounds"]) for arm in arms.values())
    if longest < 3 or not any(arm["rounds"] and arm["rounds"][0]["score"] for arm in arms.values()):
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("arm", *(f"{k}" for k in range(longest))):
        table.add_column(heading, no_wrap=True)
    for name, arm in arms.items():
        scores = [f"{record['score']['value']:.3f}" for record in arm["rounds"]]
        if len(scores) > 1:
            table.add_row(plain(name), *scores, *[""] * (longest - len(scores)))
    return table


def _shared(manifest: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    rows = []
    if manifest["weak"] is not None:
        gold = manifest["rows"]["gold"]
        score = interval(manifest["weak"]["score"], "")
        rows.append(("weak model", f"{score} on the test, from {gold:,} gold rows"))
    if manifest["evaluator"] is not None:
        report = manifest["evaluator"]
        held = f"n = {report['held_out']:,} held-out comparisons"
        rows.append(("evaluator", f"{interval(report['accuracy'], '')}  {held}"))
    for name, arm in manifest["arms"].items():
        failed = sum(record.get("failed") or 0 for record in arm["rounds"])
        if failed:
            rows.append((f"{name}: not judged", f"{failed:,}, which changed nothing"))
        if arm["halted"]:
            rows.append((f"{name} ended", arm["halted"]))
    rows.append(("time", f"{manifest['seconds']:,.0f} s"))
    rows.append(("demonstrations", str(folder / "demonstrations.parquet")))
    if manifest["rows"]["test"]:
        rows.append(("every score", str(folder / "test.parquet")))
    return [*rows, *report_row(folder), ("full account", str(folder / "run.json"))]


def _following(arms: dict[str, Any], folder: Path) -> str:
    for name, arm in arms.items():
        accepted = [record for record in arm["rounds"] if record.get("accepted")]
        if accepted:
            path = folder / "arms" / name / f"{accepted[-1]['round']:02d}" / "judged.parquet"
            return f"read what was replaced in {path}"
    return f"read {folder / 'run.json'}"
