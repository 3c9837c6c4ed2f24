"""``whet judge``: which proposals differ from the demonstrations, and which are better."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from whet.cli._tasks import TaskFlags
from whet.errors import WhetError
from whet.ilr.judges import LlmSettings

if TYPE_CHECKING:
    import pyarrow as pa

#: The cache of a language model's answers, beside the output.
ANSWERS = "whet-answers.sqlite"


def judge(
    file: Annotated[
        str, Parameter(help="Table with prompt, completion and proposal, whoever made it.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="File to write: .jsonl or .parquet, or .csv for text.")],
    judge: Annotated[
        str | None,
        Parameter(
            help="oracle, noisy:ACCURACY, reward:FOLDER, evaluator:FOLDER, file:FILE, or llm with "
            "--model. Without it rows are compared, for people to judge.",
            show_default=False,
        ),
    ] = None,
    tasked: TaskFlags = TaskFlags(),  # noqa: B008
    seed: Annotated[int, Parameter(help="Of noisy. [default: 0]", show_default=False)] = 0,
    llm: Annotated[LlmSettings, Parameter(name="*")] = LlmSettings(),  # noqa: B008
) -> None:
    """Compare proposals with demonstrations, and have those that differ judged in both orders.

    Adds agree, score (probability that the proposal is better) and failure. Without --judge adds
    an empty choice: write proposal, completion or tie into it, and give the file as file:FILE.

        whet judge proposed/proposals.parquet --judge llm --model judge-1 --out judged.jsonl
    """
    import pyarrow as pa

    from whet.annotate.protocol import Stop
    from whet.cli._asking import print_table
    from whet.cli._progress import ProgressReporter
    from whet.ilr.judges import make_judge
    from whet.ilr.refine import judge_proposals
    from whet.ilr.rows import as_completions, read_rows
    from whet.posttrain.examples import write_examples
    from whet.tables import check_output

    if out.resolve() == Path(file).resolve():
        raise WhetError(f"--out {out} is the input: choose another")
    task = tasked.load()
    table = read_rows(task, file, ["prompt", "completion", "proposal"], tasked.data)
    table = as_completions(table, "proposal")
    check_output(out, table)
    proposals = table["proposal"].to_pylist()
    try:
        with ProgressReporter() as progress:
            chosen = None
            if judge is not None:
                cache = out.with_name(ANSWERS) if judge == "llm" else None
                chosen = make_judge(judge, task, llm=llm, cache=cache, seed=seed, progress=progress)
            found = judge_proposals(table, proposals, task, chosen)
    except Stop as stop:
        if stop.fatal:
            raise WhetError(stop.reason) from None
        print_table(f"Stopped early: {stop.reason}.", [], "run the same command again to go on")
        raise SystemExit(3) from None
    if judge is None:
        found = found.drop_columns(["score", "failure"])
        found = found.append_column("choice", pa.nulls(found.num_rows, pa.string()))
    write_examples(out, found)
    said, rows = summary(found)
    rows.append(("judged", str(out)))
    quoted, flags = shlex.quote(str(out)), _flags(tasked)
    if judge is not None:
        print_table(said, rows, "", f"whet replace {quoted} --out refined.parquet")
    else:
        rerun = f"whet judge {shlex.quote(file)}{flags} --judge file:{quoted} --out judged.parquet"
        print_table(said, rows, "fill the column choice where agree is false, and then", rerun)


def _flags(tasked: TaskFlags) -> str:
    parts = [] if tasked.task is None else ["--task", tasked.task]
    for given in tasked.option:
        parts += ["--option", given]
    return "".join(f" {shlex.quote(part)}" for part in parts)


def summary(table: pa.Table) -> tuple[str, list[tuple[str, str]]]:
    """Return a sentence and rows of a closing table about what was judged.

    Parameters
    ----------
    table : pyarrow.Table
        Of :func:`whet.ilr.refine.judge_proposals`.
    """
    import numpy as np

    from whet.estimates import share

    agree = table["agree"].to_numpy()
    differ = int((~agree).sum())
    rows = [
        ("rows", f"{table.num_rows:,}"),
        ("agree", f"{int(agree.sum()):,}: the demonstration stays"),
        ("differ", f"{differ:,}"),
    ]
    if "score" not in table.column_names:
        return f"{differ:,} of {table.num_rows:,} proposals differ.", rows
    scores = np.asarray(table["score"].to_numpy(zero_copy_only=False), dtype=float)
    judged = scores[~np.isnan(scores)]
    failures = Counter(why for why in table["failure"].to_pylist() if why is not None)
    rows.append(("  judged", f"{len(judged):,}"))
    for why, n in failures.most_common(5):
        rows.append(("  failed", f"{n:,}, which keep their demonstration: {why[:80]}"))
    if len(judged):
        better = share(judged > 0.5)
        interval = f"[{better.low:.3f}, {better.high:.3f}]"
        rows.append(
            ("proposal better", f"{better.value:.3f} {interval} of n = {better.n:,} judged")
        )
        rows.append(("undecided", f"{int((judged == 0.5).sum()):,} with a score of 0.5"))
    return f"{len(judged):,} of {table.num_rows:,} proposals differ and are judged.", rows
