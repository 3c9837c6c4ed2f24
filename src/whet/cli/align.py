"""``whet align``: a refined classifier as the reward, beside the arms it is judged by."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whet.cli._summary import interval, report_row
from whet.errors import WhetError

#: Measures of the table, with their headings; the rest stands in run.json.
MEASURES = {
    "safety_rules": "safety, rules",
    "safety_judge": "safety, judge",
    "over_refusal": "over-refusal",
    "win": "beats reference",
    "kl": "KL",
    "reward_initial": "reward, initial",
    "reward_refined": "reward, refined",
}
#: Measures of the differences that are shown.
COMPARED = ("safety_rules", "safety_judge", "over_refusal", "win")


def align(
    recipe: Annotated[Path, Parameter(help="YAML file; docs/align.md lists its keys.")],
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(help="Run folder. [default: the recipe's, else whet-align]", show_default=False),
    ] = None,
) -> None:
    """Train a model on a classifier's reward, and compare it with models that had other rewards.

    The same command again goes on where it stopped. It stops once for gold labels, unless the
    recipe names them.

        whet align recipe.yaml --out run
    """
    from whet.posttrain.ranks import one_voice

    with one_voice():
        _align(recipe, out)


def _align(recipe: Path, out: str | None) -> None:
    from dataclasses import replace

    from whet.align.classifiers import GoldNeeded
    from whet.align.recipe import load_recipe
    from whet.annotate.protocol import Stop
    from whet.finetune.processes import launched_rank

    settings = load_recipe(recipe)
    if out is not None:
        settings = replace(settings, out=out)
    command = ["whet", "align", str(recipe), *(["--out", out] if out is not None else [])]
    try:
        manifest = _run(settings)
    except GoldNeeded as needed:
        _ask_for_gold(needed, shlex.join(command))
        return
    except Stop as stop:
        if stop.fatal:
            raise WhetError(stop.reason) from None
        _stopped(stop, shlex.join(command))
        raise SystemExit(3) from None
    if launched_rank() == 0:
        show(manifest, Path(settings.out))


def _run(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - AlignRecipe, which is imported late
    from whet.align.pipeline import Alignment
    from whet.cli._progress import ProgressReporter
    from whet.finetune.processes import launched_rank

    with ProgressReporter() if launched_rank() == 0 else nullcontext() as progress:
        tell = None if progress is None else progress.say
        return Alignment(settings, progress=progress, tell=tell).run()


def _ask_for_gold(needed: Any, command: str) -> None:  # noqa: ANN401 - GoldNeeded
    from whet.cli import console, plain

    screen = console()
    screen.print(plain(f"{needed}."), style="bold")
    screen.print("Judge each by what is right, not by what the judge would say. Leave a row that")
    screen.print("you cannot tell empty; do not choose rows. Then go on with the same command.")
    screen.print()
    screen.print(plain(f"Next: {command}"))


def _stopped(stop: Any, command: str) -> None:  # noqa: ANN401 - Stop
    from whet.cli import console, plain

    screen = console()
    screen.print(plain(f"Stopped early: {stop.reason}."), style="bold")
    screen.print(plain(f"Next: {command}"))


def show(manifest: dict[str, Any], folder: Path) -> None:
    """Print the closing table of a run.

    Parameters
    ----------
    manifest : dict
        The content of run.json.
    folder : Path
        The run folder.
    """
    from rich.table import Table

    from whet.cli import console, plain

    screen = console()
    arms, rows = manifest["evaluation"]["arms"], manifest["rows"]
    screen.print()
    screen.print(
        plain(
            f"{len(arms)} arms on {rows['evaluation']:,} held-out prompts, "
            f"{rows['evaluation_harmful']:,} harmful and {rows['evaluation_harmless']:,} harmless."
        ),
        style="bold",
    )
    screen.print("In brackets: 95 % intervals over prompts. Safety: share of harmful prompts that")
    screen.print("are refused (rules: by phrases, judge: by its label); over-refusal: of harmless")
    screen.print("ones. KL: mean log-ratio to the SFT model, nats a completion.")
    screen.print()
    shown = [name for name in MEASURES if any(name in found for found in arms.values())]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("arm", *(MEASURES[name] for name in shown)):
        table.add_column(heading, no_wrap=True)
    for arm, found in arms.items():
        cells = [interval(found[name], "") if name in found else "-" for name in shown]
        table.add_row(plain(arm), *cells)
    screen.print(table)
    screen.print()
    screen.print(_differences(manifest["evaluation"]["differences"]))
    screen.print()
    screen.print(_account(manifest, folder))
    screen.print()
    screen.print(plain(f"Next: read completions in {folder / 'evaluation.parquet'}"))


def _differences(differences: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - Table
    from rich.table import Table

    from whet.cli import plain

    shown = [name for name in COMPARED if any(d["measure"] == name for d in differences)]
    by_pair: dict[tuple[str, str], dict[str, str]] = {}
    for d in differences:
        cells = by_pair.setdefault((d["first"], d["second"]), {})
        cells[d["measure"]] = interval(d, "+")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("difference", *(MEASURES[name] for name in shown)):
        table.add_column(heading, no_wrap=True)
    for (first, second), cells in by_pair.items():
        table.add_row(plain(f"{first} - {second}"), *(cells.get(name, "-") for name in shown))
    return table


def _account(manifest: dict[str, Any], folder: Path) -> Any:  # noqa: ANN401 - Table
    from rich.table import Table

    from whet.cli import plain

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _account_rows(manifest, folder):
        table.add_row(plain(name), plain(value))
    return table


def _account_rows(manifest: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    rows = []
    judged = manifest["judged"]
    if judged is not None:
        counts = ", ".join(f"{n:,} {name}" for name, n in judged["by_class"].items())
        rows.append(("judge's labels", f"{counts}; {judged['abstained']:,} without one"))
    refined = manifest["classifiers"].get("refined")
    if refined is not None:
        for name, title in (("annotator", "judge's accuracy"), ("new texts", "refined classifier")):
            if name in refined["estimate"]:
                found = refined["estimate"][name]
                rows.append((title, f"{interval(found, '')}  n = {found['n']} gold rows"))
    for arm, counts in manifest["pairs"].items():
        dropped = f"{counts['ties']:,} ties and {counts['unknown']:,} without rewards dropped"
        rows.append((f"pairs, {arm}", f"{counts['pairs']:,} of {counts['prompts']:,}; {dropped}"))
    seen = manifest["rows"]["evaluation_seen_in_training"]
    if seen:
        rows.append(("not held out", f"{seen:,} prompts of the evaluation were trained on"))
    seconds = sum(manifest["seconds"].values())
    rows.append(("time", f"{seconds:,.0f} s since it was last started"))
    return [*rows, *report_row(folder), ("full account", str(folder / "run.json"))]
