"""``whet annotate``: labels from any LLM, cached, resumable and within a budget."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.cli._asking import Asking, Flags, ask_account, check_target, end, print_table, show_plan
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.annotate.annotator import Annotator, Columns
    from whet.annotate.labelling import Outcome
    from whet.annotate.protocol import Stop

#: Classes and reasons listed one by one; the account has all.
MOST_LINES = 12


def annotate(
    input: Annotated[
        Path, Parameter(help="Table of texts: CSV, TSV, JSONL, Parquet, or a dataset folder.")
    ],
    /,
    *,
    flags: Flags,
    samples: Annotated[
        int,
        Parameter(
            help="Answers a row; their agreement is the confidence. [default: 1]",
            show_default=False,
        ),
    ] = 1,
    temperature: Annotated[
        float | None, Parameter(help="Of sampling. [default: 0, or 1 with several samples]")
    ] = None,
    rows_per_request: Annotated[
        int,
        Parameter(
            help="Rows in one request: cheaper, but they can influence one another. [default: 1]",
            show_default=False,
        ),
    ] = 1,
) -> None:
    """Label a table with a language model; every answer is checked, kept, and paid once.

    Writes all input columns, pseudo_label, pseudo_prob and pseudo_abstain. The same command again
    goes on where it was interrupted, and asks nothing twice.

        whet annotate corpus.csv --task media_bias --model gpt-6-luna --out labelled.csv
    """
    with Asking(input, flags) as asking:
        from whet.annotate.annotator import Annotator

        annotator = Annotator(
            asking.rows.task,
            asking.backend,
            cache=asking.cache,
            samples=samples,
            temperature=temperature,
            rows_per_request=rows_per_request,
            concurrency=flags.concurrency,
        )
        if flags.dry_run:
            show_plan(asking, annotator)
        else:
            _annotate(asking, annotator)


def _annotate(asking: Asking, annotator: Annotator) -> None:
    from whet.annotate.annotator import Columns, extended, write_rows
    from whet.store import write_json

    columns = Columns(asking.flags.column)
    added = columns.fields(asking.rows.task)
    extended(asking.rows.stream, added)
    check_target(asking.out, asking.source, asking.rows.stream.num_rows)
    stop = asking.buy(annotator)
    tally = Tally(several=annotator.samples > 1)

    def values() -> Iterator[dict[str, Any]]:
        gold = asking.rows.gold_labels()
        for outcome, truth in zip(annotator.outcomes(asking.rows, stop), gold, strict=True):
            tally.add(outcome, truth)
            yield columns.values(outcome)

    def finish(digest: str) -> None:
        judged = [{"purpose": "accuracy of the labels", "rows": len(tally.right)}]
        account = ask_account(asking, digest, judged, stop) | {
            "samples": annotator.samples,
            "temperature": annotator.temperature,
            "rows_per_request": annotator.rows_per_request,
            "columns": [field.name for field in added],
            **tally.account(),
        }
        write_json(asking.account_path, account)

    write_rows(asking.out, asking.rows.stream, added, values(), finish)
    _show(asking, tally, columns, stop)
    end(stop)


class Tally:
    """Counts what was found, row by row.

    Parameters
    ----------
    several : bool
        Whether probabilities are the agreement of samples.

    Examples
    --------
    >>> from whet.annotate.labelling import Abstain, Label
    >>> tally = Tally()
    >>> tally.add(Label("spam", 0.9), "spam")
    >>> tally.add(Abstain("empty text"), None)
    >>> tally.account()["rows"]
    {'total': 2, 'labelled': 1, 'abstained': 1}
    """

    def __init__(self, *, several: bool = False) -> None:
        self.several = several
        self.classes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self.sure = self.unanimous = 0
        self.right: list[bool] = []

    def add(self, outcome: Outcome, truth: str | None) -> None:
        """Count one row."""
        from whet.annotate.labelling import Label

        if isinstance(outcome, Label):
            self.classes[outcome.name] += 1
            self.sure += outcome.probability is not None
            self.unanimous += outcome.probability == 1.0
            if truth is not None:
                self.right.append(outcome.name == truth)
        else:
            self.reasons[outcome.reason] += 1
            self.details.setdefault(outcome.reason, outcome.detail)

    def account(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        labelled, abstained = sum(self.classes.values()), sum(self.reasons.values())
        return {
            "rows": {
                "total": labelled + abstained,
                "labelled": labelled,
                "abstained": abstained,
            },
            "by_class": dict(sorted(self.classes.items())),
            "by_reason": dict(sorted(self.reasons.items())),
            "with_probability": self.sure,
            "accuracy": self.accuracy(),
        }

    def accuracy(self) -> dict[str, Any] | None:
        """Return the annotator's accuracy where it answered, if there is gold to judge it."""
        import numpy as np

        from whet.estimates import share

        return share(np.array(self.right)).as_dict() if self.right else None


def _show(asking: Asking, tally: Tally, columns: Columns, stop: Stop | None) -> None:
    account = tally.account()
    rows = account["rows"]
    said = f"{rows['labelled']:,} of {rows['total']:,} rows are labelled."
    if stop is not None:
        said = f"Stopped early: {stop.reason}. {said}"
    shown = [("rows", f"{rows['total']:,}")]
    classes = list(account["by_class"].items())
    shown += [(f"labelled {name}", f"{n:,}") for name, n in classes[:MOST_LINES]]
    if len(classes) > MOST_LINES:
        shown.append(("", f"{len(classes) - MOST_LINES} more classes: see the account"))
    for reason, n in account["by_reason"].items():
        detail = tally.details[reason]
        shown.append(
            (f"abstained: {reason}", f"{n:,}" + (f"; first: {detail[:80]}" if detail else ""))
        )
    sure = account["with_probability"]
    asks = asking.flags.backend in ("openai", "anthropic")
    hint = "" if sure or not asks else "; --samples 5 would measure agreement"
    if tally.several and sure >= 20 and tally.unanimous == sure:
        hint = "; all samples agree: does the server heed the temperature?"
    shown.append(("with confidence", f"{sure:,}{hint}"))
    accuracy = account["accuracy"]
    if accuracy is not None:
        shown.append(
            (
                "accuracy on gold",
                f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]  "
                f"n = {accuracy['n']}, where it answered",
            )
        )
    if asking.rows.shown:
        shown.append(("examples from gold", f"{len(asking.rows.shown):,} rows, not asked"))
    shown += asking.spent_rows()
    shown += [("labels", str(asking.out)), ("account", str(asking.account_path))]
    shown.append(("answers", str(asking.cache.path)))
    if rows["labelled"] == 0 and stop is None:
        raise WhetError(
            f"no row of {asking.source} got a label (column {columns.abstain} of {asking.out} says "
            "why): mend the cause and run again"
        )
    probability = columns.probability if sure == rows["labelled"] else None
    print_table(said, shown, *next_step(asking, columns.label, probability, stop))


def next_step(
    asking: Asking, label: str, probability: str | None, stop: Stop | None
) -> tuple[str, str]:
    """Return what to do next, in words and as a command; either may be empty."""
    flags = asking.flags
    if stop is not None:
        return "run the same command again to go on", ""
    if flags.limit is not None:
        return "run the same command without --limit", ""
    columns = ["--text", flags.text, "--pseudo", label]
    if flags.gold is None:
        command = ["whet", "label", str(asking.out), *columns, "--out", "gold.parquet"]
        return "label 50 random rows, and refine with them", shlex.join(command)
    sure = ["--pseudo-prob", probability] if probability else []
    parts = ["whet", "refine", str(asking.out), *columns, *sure, "--gold", flags.gold]
    return "", shlex.join([*parts, "--out", "run"])
