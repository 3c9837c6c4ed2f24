"""``whet label``: gold labels by people, and which of two answers they prefer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.cli._tasks import TaskFlags
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.review.session import Session


#: Classes listed one by one at the end.
_MOST_CLASSES = 12


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


def label(
    input: Annotated[
        Path | None,
        _help("Table of texts: CSV, TSV, JSONL, Parquet; with --strategy disagree a run folder."),
    ] = None,
    /,
    *,
    text: Annotated[str | None, _help("Column of texts. [default: that of a run folder]")] = None,
    pseudo: Annotated[
        str | None,
        _help(
            "Column of an annotator's labels: the sample is proportional to them, and the labels "
            "are judged."
        ),
    ] = None,
    classes: Annotated[
        str | None, _help("Classes with commas, in the order of keys. [default: those of --pseudo]")
    ] = None,
    n: Annotated[
        int | None,
        _help("Rows to label; a larger number later adds rows. [default: 50; with --compare all]"),
    ] = None,
    out: Annotated[
        Path | None,
        _help(
            "Table to write: .csv, .tsv, .jsonl or .parquet; the answers lie beside it. "
            "[default: gold.parquet; with --compare judged.parquet]"
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        _help(
            "random, or disagree: the rows of a refined table whose labels are most doubtful, as "
            "no random sample. [default: random]"
        ),
    ] = None,
    show_pseudo: Annotated[
        bool,
        Parameter(
            help="Let people see the annotator's label, which they then tend to repeat.",
            negative="",
            show_default=False,
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        _help("Instead of INPUT: table of proposals, of which people say which answer is better."),
    ] = None,
    seconds: Annotated[float | None, _help("Time limit of a comparison.")] = None,
    tasked: TaskFlags = TaskFlags(),  # noqa: B008
    seed: Annotated[int, _help("Of the sample and of sides. [default: 0]")] = 0,
    tui: Annotated[
        bool,
        Parameter(help="Ask in the terminal, without a page.", negative="", show_default=False),
    ] = False,
    who: Annotated[str, _help("Annotator in the terminal. [default: me]")] = "me",
    port: Annotated[int | None, _help("Of the page. [default: a free one]")] = None,
    browser: Annotated[
        bool,
        Parameter(
            name="--browser",
            negative="--no-browser",
            help="Open the page in a browser. [default: yes]",
            show_default=False,
        ),
    ] = True,
    export: Annotated[
        str | None,
        _help("Write the sample for label-studio or argilla beside --out, instead of asking."),
    ] = None,
    imported: Annotated[
        Path | None,
        Parameter(
            name="--import",
            help="Take over the answers of a file that Label Studio or Argilla wrote.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Label a random sample of rows by hand, on a page in the browser or in the terminal.

    Writes all input columns, gold, gold_weight, checked and gold_note. Every answer is kept at
    once; the same command again goes on.

        whet label corpus.csv --text text --pseudo llm --out gold.parquet
    """
    if (input is None) == (compare is None):
        raise WhetError("name a table to label, or proposals with --compare: one of the two")
    _check_ways(tui=tui, export=export, imported=imported)
    if compare is not None:
        from whet.review.comparing import open_comparison

        _refuse(
            text=text, pseudo=pseudo, classes=classes, strategy=strategy, show_pseudo=show_pseudo
        )
        session = open_comparison(
            compare,
            out=out or Path("judged.parquet"),
            task=tasked.load(),
            n=n,
            seed=seed,
            seconds=seconds,
        )
    else:
        from whet.review.labelling import N, open_labels

        if seconds is not None or tasked != TaskFlags():
            raise WhetError(
                "--seconds, --task, --option and --data are for --compare: leave them out"
            )
        session = open_labels(
            input,
            text=text,
            pseudo=pseudo,
            classes=() if classes is None else classes.split(","),
            n=N if n is None else n,
            out=out or Path("gold.parquet"),
            seed=seed,
            show_pseudo=show_pseudo,
            strategy=strategy or "random",
        )
    with session:
        if n is not None and len(session.items) < n:
            _say(
                f"There are not {n:,} rows to ask about: {len(session.items):,} are in the sample."
            )
        if export is not None:
            _export(session, export)
        elif imported is not None:
            _import(session, imported)
        elif tui:
            _ask_in_terminal(session, who)
        else:
            from whet.review.server import serve

            serve(session, port=port, browser=browser, say=_say)
            _finish(session)


def _check_ways(**ways: Any) -> None:  # noqa: ANN401
    """Refuse two ways of answering in one command."""
    names = {"tui": "--tui", "export": "--export", "imported": "--import"}
    given = [names[way] for way, value in ways.items() if value]
    if len(given) > 1:
        raise WhetError(f"{given[0]} and {given[1]} exclude each other: run one after the other")


def _refuse(**given: Any) -> None:  # noqa: ANN401
    """Refuse flags that say nothing about comparisons."""
    name = next((name for name, value in given.items() if value), None)
    if name is not None:
        flag = "--" + name.replace("_", "-")
        raise WhetError(f"{flag} is for a table of texts, not for --compare: leave it out")


def _say(line: str) -> None:
    from whet.cli import console

    console().print(line, soft_wrap=True)


def _ask_in_terminal(session: Session, who: str) -> None:
    from whet.review.terminal import label_in_terminal

    try:
        label_in_terminal(session, who, sys.stdin, _say)
    except KeyboardInterrupt:
        _finish(session)
        raise KeyboardInterrupt(
            "interrupted; every answer is kept: run the same command again to go on"
        ) from None
    _finish(session)


def _export(session: Session, program: str) -> None:
    from whet.cli._asking import print_table
    from whet.review.exchange import export_items

    rows = [(what, str(path)) for what, path in export_items(session, program).items()]
    said = f"{len(session.items):,} rows are written for {program}."
    print_table(said, rows, "label them there, and give the file that it exports to --import")


def _import(session: Session, file: Path) -> None:
    from whet.review.exchange import import_answers

    _say(f"{import_answers(session, file):,} answers read.")
    _finish(session)


def _finish(session: Session) -> None:
    """Write the table; print what was answered, what that says, and the next command."""
    from whet.cli._asking import print_table
    from whet.review.session import outcome_counts

    table, answered = session.write(), session.answered()
    counts, total = outcome_counts(answered), len(session.items)
    rows = [("rows of the sample", f"{total:,}")]
    rows += [(f"  {name}", f"{n:,}") for name, n in counts.items() if n]
    for who in session.progress("me")["annotators"]:
        found = session.progress(who)
        time = (
            "" if found["median_seconds"] is None else f", median {found['median_seconds']:.1f} s"
        )
        rows.append((f"  by {who}", f"{found['answered']:,}{time}"))
    rows += _agreement_rows(session.agreement())
    rows += _panel_rows(session.panel())
    rows += [("answers", str(session.path)), ("table", str(table))]
    said = f"{len(answered):,} of {total:,} rows are answered"
    left = total - len(answered)
    said += f"; {left:,} wait: run the same command again." if left else "."
    if counts["agreed"] or counts["unsettled"]:
        print_table(said, rows, "", session.next_step())
    else:
        print_table(said, rows, "answer rows with the same command")


def _agreement_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for pair in found["pairs"]:
        kappa = _interval(pair["kappa"]) if pair["kappa"] else f"unknown: {pair['reason']}"
        rows.append((f"kappa {pair['who'][0]}, {pair['who'][1]}", kappa))
    if found["disagreements"]:
        rows.append(
            ("disagreements", f"{found['disagreements']:,}, {found['settled']:,} of them settled")
        )
    return rows


def _panel_rows(panel: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if panel.get("accuracy"):
        rows.append(("annotator's accuracy", _interval(panel["accuracy"])))
    for found in panel.get("labels", ())[:_MOST_CLASSES]:
        right = _interval(found["right"]) if found["right"] else "unknown"
        rows.append((f"  labelled {found['label']}", f"right {right}"))
    for found in panel.get("classes", ())[:_MOST_CLASSES]:
        if found["share"]:
            rows.append((f"share of {found['class']}", _interval(found["share"])))
    if panel.get("better"):
        rows.append(("proposal better", _interval(panel["better"])))
    if panel["more"]:
        widths = ", ".join(f"{more['width']:.3f} with {more['n']}" for more in panel["more"])
        rows.append((f"interval of {panel['of']}", f"expected width {widths} labels"))
    return rows


def _interval(found: dict[str, Any]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]  n = {found['n']}"
