"""``whet replace``: judged proposals become demonstrations."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whet.errors import WhetError


def replace(
    file: Annotated[
        Path,
        Parameter(help="Table with prompt, completion, proposal and score, whoever judged it."),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="File to write: .jsonl or .parquet, or .csv for text.")],
    mode: Annotated[
        str,
        Parameter(
            help="ilr replaces; filter drops the same rows; chosen and oracle take every proposal "
            "with a score above 0.5; naive draws rows. [default: ilr]",
            show_default=False,
        ),
    ] = "ilr",
    alpha: Annotated[
        float,
        Parameter(
            help="Most of the judged rows that change, as a share. [default: 0.15]",
            show_default=False,
        ),
    ] = 0.15,
    ties: Annotated[
        str,
        Parameter(
            help="Among equal scores draw, or keep demonstrations. [default: draw]",
            show_default=False,
        ),
    ] = "draw",
    seed: Annotated[int, Parameter(help="Of what is drawn. [default: 0]", show_default=False)] = 0,
) -> None:
    """Replace the demonstrations whose proposals the judge is surest about.

    Agreement is read from the column agree, or else two texts agree that are the same. A row
    without a score keeps its demonstration.

        whet replace judged.jsonl --out refined.jsonl
    """
    from whet.cli._asking import print_table
    from whet.ilr.refine import Rule, replace_judged
    from whet.ilr.rows import SameText, read_rows
    from whet.posttrain.examples import write_examples
    from whet.tables import check_output

    if out.resolve() == file.resolve():
        raise WhetError(f"--out {out} is the input: choose another")
    rule = Rule(mode, alpha, ties, seed)
    needs = ["prompt", "completion", "proposal", *(["score"] if rule.asks else [])]
    table = read_rows(SameText(), str(file), needs)
    check_output(out, table)
    refined, decision = replace_judged(table, rule)
    write_examples(out, refined)
    verb = "dropped" if mode == "filter" else "replaced"
    rows = [
        ("rows", f"{table.num_rows:,}, {refined.num_rows:,} written"),
        ("agree", f"{decision.agreed:,}"),
        ("differ", f"{decision.disagreed:,}: {decision.judged:,} judged, {decision.failed:,} not"),
        (verb, f"{decision.n_accepted:,}"),
    ]
    if decision.threshold is not None:
        rows.append(("score above", f"{decision.threshold:.4g}; {decision.tied:,} rows have it"))
    rows.append(("demonstrations", str(out)))
    command = f"whet sft {shlex.quote(str(out))} --model MODEL --out tuned"
    share = decision.n_accepted / table.num_rows
    said = f"{decision.n_accepted:,} of {table.num_rows:,} demonstrations are {verb} ({share:.1%})."
    print_table(said, rows, "", command)
