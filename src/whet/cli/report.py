"""``whet report``: the page of a run, or of several of one kind beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whet.errors import WhetError


def report(
    runs: Annotated[
        list[Path],
        Parameter(
            help="A run folder of whet refine, ilr, align, sft, dpo, propose or evaluate; several "
            "of refine, of ilr or of align are compared."
        ),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(
            help="The page. [default: report.html in the folder of one run, else compare.html]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of a run anew, or compare runs on one page and in a table.

    The page is one HTML file that needs neither a network nor scripts. Of one run its
    summary.json is written as well, of several a JSON file beside the page.

        whet report run
        whet report run-tsp run-silr --out compare.html
        whet report ilr-seed-0 ilr-seed-1 ilr-seed-2 --out ilr.html
    """
    from whet.report.compare import compare
    from whet.report.kinds import find_kind
    from whet.report.page import write_page, write_report
    from whet.store import write_json

    _check_page(Path("compare.html") if out is None and len(runs) > 1 else out)
    if len(runs) > 1:
        page = out or Path("compare.html")
        _check_beside(page)
        comparison = compare(runs)
        write_json(page.with_suffix(".json"), comparison)
        write_page(page, comparison)
        show = _print_comparison if comparison["kind"] == "compare" else _print_arms
        show(comparison, page)
        return
    kind, _ = find_kind(runs[0])
    summary = kind.summarise(runs[0])
    if out is None:
        write_report(runs[0], summary)
    else:
        write_page(out, summary)
    _print_answer(summary, out or runs[0] / "report.html")


def _check_page(out: Path | None) -> None:
    from whet.report.page import is_page

    if out is None:
        return
    if out.suffix.lower() not in (".html", ".htm"):
        raise WhetError(f"--out {out} is to be a page: give it a name that ends with .html")
    if not out.parent.is_dir():
        raise WhetError(f"the folder {out.parent} does not exist: create it first")
    if out.is_dir():
        raise WhetError(f"--out {out} is a folder: name a file")
    if out.exists() and not is_page(out):
        raise WhetError(
            f"{out} exists and is not a page of whet: name another with --out, or move it away"
        )


def _check_beside(page: Path) -> None:
    from whet.report.compare import is_comparison

    beside = page.with_suffix(".json")
    if beside.exists() and not is_comparison(beside):
        raise WhetError(
            f"{beside}, beside the page, exists and is no comparison of whet: name another page "
            "with --out, or move it away"
        )


def _print_answer(summary: dict[str, Any], page: Path) -> None:
    from whet.cli import console, plain

    screen = console()
    screen.print(plain(summary["answer"]["verdict"]), style="bold")
    for warning in summary["answer"].get("warnings", []):
        screen.print(plain(f"warning  {warning}"))
    screen.print(plain(f"report  {page}"))


def _print_comparison(comparison: dict[str, Any], page: Path) -> None:
    from rich.table import Table

    from whet.cli import console, plain

    screen = console()
    screen.print("Gains in accuracy over the annotator's labels, and differences in accuracy from")
    screen.print("the first run on the gold rows of both; in brackets: 95 % intervals.")
    screen.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("run", "gain", "refined accuracy", "against the first"):
        table.add_column(title, overflow="fold")
    for run in comparison["runs"]:
        cells = (run["name"], *_cells(run, run is comparison["runs"][0]))
        table.add_row(*map(plain, cells))
    screen.print(table)
    for run in comparison["runs"]:
        for said in (*run["warnings"], *run["labels_differ"]):
            screen.print(plain(f"{run['name']}  {said}"))
    differing = ", ".join(comparison["settings"]) or "none"
    screen.print(plain(f"settings that differ  {differing}"))
    screen.print(plain(f"comparison  {page}"))


def _cells(run: dict[str, Any], is_first: bool) -> tuple[str, str, str]:
    from whet.report.page import as_accuracy, as_points

    against = "the first" if is_first else "other rows"
    if run["against_first"] is not None:
        against = as_points(run["against_first"])
    return as_points(run["gain"]), as_accuracy(run["refined"]), against


def _print_arms(comparison: dict[str, Any], page: Path) -> None:
    from rich.table import Table

    from whet.cli import console, plain

    screen = console()
    for warning in comparison["warnings"]:
        screen.print(plain(f"warning  {warning}"))
    for number, recipe in enumerate(comparison["recipes"], 1):
        names = ", ".join(comparison["runs"][k]["name"] for k in recipe["runs"])
        screen.print(plain(f"{_recipe(comparison, number)}  {names}"))
        for answer in recipe["answers"]:
            screen.print(plain(answer["verdict"]), style="bold")
        for measure in recipe["measures"]:
            screen.print()
            screen.print(plain(f"The {measure['what']}; means of runs, 95 % intervals"))
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
            for title in ("arm", "runs", "mean", "minus sft", "above 0 in"):
                table.add_column(title, overflow="fold")
            for row in _rows_of_arms(measure):
                table.add_row(*map(plain, row))
            screen.print(table)
        screen.print()
    for found in comparison["between"]:
        screen.print(plain(_between(comparison, found)))
    for note in comparison["notes"]:
        screen.print(plain(note))
    differing = ", ".join(comparison["settings"]) or "none"
    screen.print(plain(f"settings that differ  {differing}"))
    screen.print(plain(f"comparison  {page}"))


def _rows_of_arms(measure: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the arms of a measure with their means; of one run, its own estimates."""
    from whet.report.page import as_accuracy, as_points

    gains = {d["first"]: d for d in measure["differences"] if d["second"] == "sft"}
    rows: list[tuple[str, ...]] = []
    for arm in measure["arms"]:
        gain = gains.get(arm["arm"])
        minus = ("", "") if gain is None else (as_points(_over(gain)), _above(gain))
        rows.append((arm["arm"], str(arm["of"]), as_accuracy(_over(arm)), *minus))
    return rows


def _recipe(comparison: dict[str, Any], number: int) -> str:
    """Return a recipe's number, with what tells it from the others."""
    title = comparison["recipes"][number - 1]["title"]
    return f"recipe {number} ({title})" if title else f"recipe {number}"


def _between(comparison: dict[str, Any], found: dict[str, Any]) -> str:
    from whet.report.page import as_points

    recipe = _recipe(comparison, found["recipe"])
    arms = f"{found['measure']} of {found['arm']}, {recipe} minus recipe 1"
    return f"{arms}  {as_points(_over(found))}, above 0 in {_above(found)} pairs of runs"


def _above(found: dict[str, Any]) -> str:
    return f"{found['above']} of {found['of']}"


def _over(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mean over runs; of a single run its own estimate, rather one with numbers."""
    known = [run for run in found["runs"] if run is not None]
    numbers = [run for run in known if run["value"] is not None]
    return found["mean"] or next(iter(numbers or known), None)
