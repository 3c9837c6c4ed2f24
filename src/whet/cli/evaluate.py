"""``whet evaluate``: how right models or completions are, on the same rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whet.cli._summary import interval, report_row
from whet.cli._tasks import TaskFlags
from whet.errors import WhetError
from whet.ilr.judges import LlmSettings


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


def evaluate(
    what: Annotated[
        list[str],
        Parameter(
            help="Models (folders or hub ids), or tables with row and completion; the others are "
            "compared with the first."
        ),
    ],
    /,
    *,
    task: Annotated[str, _help("As for whet judge: chains, gsm8k, ..., or a file.")],
    out: Annotated[Path, Parameter(help="Folder of completions, scores and run.json.")],
    option: Annotated[
        tuple[str, ...],
        Parameter(
            help="KEY=VALUE of the task, as often as needed.", show_default=False, negative=""
        ),
    ] = (),
    data: Annotated[Path | None, _help("Folder of the task's files.")] = None,
    test: Annotated[
        str, _help("Split of the task, or a table with prompt and reference. [default: test]")
    ] = "test",
    temperature: Annotated[
        float, _help("Of completions; 0 takes the likeliest. [default: 0]")
    ] = 0.0,
    max_new_tokens: Annotated[int, _help("Longest completion. [default: 256]")] = 256,
    tokens_per_batch: Annotated[int, _help("Padding included. [default: 8192]")] = 8192,
    seed: Annotated[int, _help("Of sampling and intervals. [default: 0]")] = 0,
    judge: Annotated[
        str | None,
        _help(
            "Who compares the completions of the others with those of the first, as for whet "
            "judge: llm with --model, reward:FOLDER, ..."
        ),
    ] = None,
    llm: Annotated[LlmSettings, Parameter(name="*", group="Of --judge llm")] = LlmSettings(),  # noqa: B008
) -> None:
    """Let models answer a task's test, and count what is right, with 95 % intervals.

    With --judge also counts how often the others beat the first, judged in both orders.

        whet evaluate models/base tuned --task gsm8k --data gsm8k --out evaluated
    """
    from whet.annotate.protocol import Stop
    from whet.cli._asking import print_table
    from whet.cli._progress import ProgressReporter
    from whet.ilr.evaluate import evaluate as work
    from whet.ilr.rows import read_rows
    from whet.posttrain.settings import GenerateSettings
    from whet.report.commands import as_given
    from whet.report.evaluate_summary import summarise_evaluate
    from whet.report.page import add_report

    if judge != "llm" and llm != LlmSettings():
        given = next(k for k, v in asdict(llm).items() if v != getattr(LlmSettings(), k))
        flag = given.replace("_", "-")
        raise WhetError(f"--{flag} belongs to --judge llm: add that, or remove --{flag}")
    chosen = TaskFlags(task=task, option=option, data=data).load()
    table = read_rows(chosen, test, ["prompt", "reference"], data)
    settings = GenerateSettings(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        seed=seed,
    )
    try:
        with ProgressReporter() as progress:
            account = work(
                what,
                chosen,
                table,
                out,
                settings,
                judge=judge,
                llm=llm,
                given=as_given(test, task, option, data),
                progress=progress,
            )
    except Stop as stop:
        if stop.fatal:
            raise WhetError(stop.reason) from None
        print_table(f"Stopped early: {stop.reason}.", [], "run the same command again to go on")
        raise SystemExit(3) from None
    add_report(out, account, summarise_evaluate, "the scores are")
    show(account, out)


def show(account: dict[str, Any], out: Path) -> None:
    """Print the closing tables.

    Parameters
    ----------
    account : dict
        The content of run.json.
    out : Path
        Its folder.
    """
    from rich.table import Table

    from whet.cli import console, plain
    from whet.report.evaluate_summary import next_step

    screen = console()
    screen.print()
    found = account["found"]
    rows = account["rows"]
    screen.print(
        plain(f"{len(found)} evaluated on {rows:,} rows of {account['task']}."), style="bold"
    )
    screen.print("In brackets: 95 % bootstrap intervals over rows.")
    screen.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("", "score", "n", "minus the first", "broken off", "no score"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        gain = "-" if one["gain"] is None else interval(one["gain"], "+")
        cells = (interval(one["score"], ""), f"{one['score']['n']:,}", gain)
        counts = (f"{one['unfinished']:,}", f"{one['unscored']:,}")
        table.add_row(*(plain(cell) for cell in (one["what"], *cells, *counts)))
    screen.print(table)
    screen.print()
    if any(one.get("win") for one in found):
        _show_wins(account)
    screen.print(plain(f"Scores: {out / 'scores.parquet'}"))
    for name, page in report_row(out):
        screen.print(plain(f"{name.capitalize()}: {page}"))
    screen.print()
    screen.print(plain(f"Next: {next_step(out)}"))


def _show_wins(account: dict[str, Any]) -> None:
    from rich.table import Table

    from whet.cli import console, plain

    screen = console()
    first, *others = account["found"]
    judge = account["judge"]
    by = " ".join(judge[key] for key in ("name", "model") if key in judge)
    screen.print(plain(f"Judged against {first['what']} by {by}."))
    screen.print(
        "The mean probability of beating it, 0.5 for a tie; of orders that agree the share,"
    )
    screen.print("with Jeffreys' interval.")
    screen.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("", "beats the first", "won", "tied", "lost", "no verdict", "orders agree"):
        table.add_column(heading, no_wrap=True)
    for one in others:
        win = one["win"]
        agree = "-" if win["consistent"] is None else interval(win["consistent"], "")
        counts = (f"{win[name]:,}" for name in ("won", "tied", "lost", "unjudged"))
        table.add_row(
            *(plain(cell) for cell in (one["what"], interval(win["rate"], ""), *counts, agree))
        )
    screen.print(table)
    screen.print()
