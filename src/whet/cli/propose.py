"""``whet propose``: completions for each row from a model that never saw its prompt."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whet.cli._tasks import TaskFlags
from whet.posttrain.settings import TrainSettings


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


def propose(
    file: Annotated[
        str,
        Parameter(help="Demonstrations: a table with prompt and completion, or a task's split."),
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="Folder or hub id of a causal model to begin with.")],
    out: Annotated[Path, Parameter(help="Folder for proposals.parquet and what leads to it.")],
    tasked: TaskFlags = TaskFlags(),  # noqa: B008
    folds: Annotated[
        int,
        _help("Parts of the rows; a model of the others proposes for each. 0: one model. [2]"),
    ] = 2,
    temperature: Annotated[float, _help("Of the proposals; 0 takes the likeliest. [0]")] = 0.0,
    max_new_tokens: Annotated[int, _help("Longest proposal. [256]")] = 256,
    tokens_per_batch: Annotated[int, _help("When proposing, padding included. [8192]")] = 8192,
    keep_models: Annotated[
        bool, Parameter(help="Keep the weights of the models that proposed.", negative="")
    ] = False,
    base_url: Annotated[
        str | None,
        _help("OpenAI-compatible server whose --model proposes for all rows; nothing is trained."),
    ] = None,
    key_env: Annotated[str | None, _help("Environment variable with the server's key.")] = None,
    concurrency: Annotated[int, _help("Calls in flight to the server. [16]")] = 16,
    settings: Annotated[TrainSettings, Parameter(name="*")] = TrainSettings(),  # noqa: B008
) -> None:
    """Train models on parts of the demonstrations, and let each propose for the rest.

    The same command goes on with a broken run. --task says what every answer must hold.

        whet propose demos.jsonl --model models/base --out proposed
        whet propose demos.jsonl --model qwen --base-url http://localhost:8000/v1 --out proposed
    """
    from whet.annotate.connect import connect
    from whet.cli._progress import ProgressReporter
    from whet.finetune.processes import launched_rank
    from whet.ilr.propose import propose as work
    from whet.ilr.propose import propose_served
    from whet.ilr.rows import read_rows
    from whet.posttrain.ranks import one_voice
    from whet.posttrain.settings import GenerateSettings
    from whet.report.commands import as_given

    given = as_given(file, tasked.task, tasked.option, tasked.data)
    task = tasked.load()
    table = read_rows(task, file, ["prompt", "completion"], tasked.data)
    said = GenerateSettings(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        tokens_per_batch=tokens_per_batch,
        seed=settings.seed,
    )
    if base_url is not None:
        backend = connect("openai", model, base_url=base_url, key_env=key_env)
        with ProgressReporter() as progress:
            account = propose_served(
                table,
                backend,
                out,
                said,
                concurrency=concurrency,
                marker=task.marker,
                given=given,
                progress=progress,
            )
        _show(account, out)
        return
    leads = launched_rank() == 0
    with one_voice(), ProgressReporter() if leads else nullcontext() as progress:
        account = work(
            table,
            model,
            out,
            settings,
            said,
            folds=folds,
            marker=task.marker,
            keep=keep_models,
            given=given,
            progress=progress,
        )
    if leads:
        _show(account, out)


def _show(account: dict[str, Any], out: Path) -> None:
    from whet.cli._asking import print_table
    from whet.cli._summary import report_row
    from whet.report.page import add_report
    from whet.report.propose_summary import next_step, summarise_propose

    add_report(out, account, summarise_propose, "the proposals are")
    path = out / "proposals.parquet"
    rows = [("rows", f"{account['rows']:,}"), ("models", _models(account))]
    if account["marker"]:
        rows.append(("not learned", f"{account['unanswered']:,} rows without {account['marker']}"))
    rows += [
        ("the same text", f"{account['same']:,} proposals"),
        ("empty", f"{account['empty']:,} proposals"),
        (
            "broken off",
            f"{account['unfinished']:,} at {account['generate']['max_new_tokens']} tokens",
        ),
        ("proposals", str(path)),
        *report_row(out),
    ]
    command = next_step(out, account.get("given"))
    there = account["rows"] - (account["unfinished"] if "route" in account else 0)
    print_table(f"{there:,} of {account['rows']:,} rows have a proposal.", rows, "", command)


def _models(account: dict[str, Any]) -> str:
    if "route" in account:
        return f"{account['route']['model']} at {account['route']['base_url']}"
    steps = f"{account['steps']:,} steps in all"
    if account["folds"] == 0:
        return f"1 of all rows, {steps}"
    return f"{account['folds']}, each of the rows that it does not propose for, {steps}"
