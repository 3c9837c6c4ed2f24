"""``whet label``: gold labels by people, and which of two answers they prefer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.cli._summary import interval
from whet.cli._tasks import TaskFlags
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.review.session import Session


#: Classes listed one by one at the end, and most characters of their names there.
_MOST_CLASSES, _LONGEST_NAME = 12, 40


def _help(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


def label(
    input: Annotated[
        Path | None,
        _help("Table of texts: CSV, TSV, JSONL, Parquet; with --strategy a run folder."),
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
        _help(
            "Rows to label, or with --strategy all rows it picks; a larger number later adds rows. "
            "[default: 50; with --compare all]"
        ),
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
            "random, or the most doubtful rows of a refined table, as no random sample: disagree "
            "(labels of the annotator), unsure (refined labels). [default: random]"
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
            help="Take over the answers of a JSON export of Label Studio or Argilla.",
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
    if port is not None and not (tui or export or imported):
        from whet.review.server import listen

        listen(port).close()  # before a session is made
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
            strategy=strategy,
        )
    with session, _trouble_said():
        _say_how_many(session, n, strategy)
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


@contextmanager
def _trouble_said() -> Iterator[None]:
    """Say in one sentence that a file cannot be written, and that no answer is lost."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise WhetError(
            f"cannot write{where} ({error.strerror or error}): free space or mend the permissions, "
            "then run the same command again; every answer is kept"
        ) from error


def _say_how_many(session: Session, n: int | None, strategy: str | None) -> None:
    """Say where there are fewer rows than were asked for, or none that has no answer."""
    from whet.review.labelling import PICKS, N

    picks = strategy in PICKS
    rows = {item.row for item in session.items if item.random != picks}
    wanted = (N if picks else len(rows)) if n is None else n
    if len(rows) < wanted:
        place = "doubtful" if picks else "in the sample"
        _say(f"There are not {wanted:,} rows to ask about: {len(rows):,} are {place}.")
    elif picks and rows <= {row.row for row in session.answered()}:
        _say(
            f"All {len(rows):,} rows that were picked have an answer, and --n counts them: "
            f"--n {len(rows) + 20} asks about 20 more."
        )


def _say(line: str) -> None:
    from whet.cli import console

    console().print(line, soft_wrap=True)


def _ask_in_terminal(session: Session, who: str) -> None:
    from whet.review.terminal import label_in_terminal

    def finish() -> None:
        others = session.progress(who)["annotators"].keys() - {who.strip()}
        if others and not session.done(who):
            _finish_alone(session, who)
        else:
            _finish(session)

    try:
        label_in_terminal(session, who, sys.stdin, _say)
    except KeyboardInterrupt:
        finish()
        raise KeyboardInterrupt(
            "interrupted; every answer is kept: run the same command again to go on"
        ) from None
    finish()


def _export(session: Session, program: str) -> None:
    from whet.cli._asking import print_table
    from whet.review.exchange import export_items

    rows = [(what, str(path)) for what, path in export_items(session, program).items()]
    said = f"{len(session.items):,} rows are written for {program}."
    print_table(said, rows, "label them there, and give the file that it exports to --import")


def _import(session: Session, file: Path) -> None:
    from whet.review.exchange import import_answers

    _say(f"{import_answers(session, file):,} answers read.")
    _finish(session, "the same command without --import")


def _finish(session: Session, again: str = "the same command") -> None:
    """Write the table; print what was answered, what that says, and what goes on from it."""
    from whet.cli._asking import print_table
    from whet.review.session import outcome_counts

    table, answered = session.write(), session.answered()
    counts, total = outcome_counts(answered), len(session.items)
    rows = [("rows of the sample", f"{total:,}")]
    rows += [(f"  {name}", f"{n:,}") for name, n in counts.items() if n]
    rows += [_by(session, who) for who in session.progress("me")["annotators"]]
    rows += _agreement_rows(session.agreement())
    rows += _panel_rows(session.panel())
    rows += [("answers", str(session.path)), ("table", str(table))]
    said = f"{len(answered):,} of {total:,} rows are answered"
    left = total - len(answered)
    said += f"; {left:,} wait: run {again} again." if left else "."
    if counts["unsettled"] and session.kind == "label":  # comparisons take the mean
        print_table(said, rows, f"settle the {counts['unsettled']:,} unsettled rows with {again}")
    elif counts["agreed"] or counts["unsettled"]:
        print_table(said, rows, "", session.next_step())
    else:
        print_table(said, rows, f"answer rows with {again}")


def _finish_alone(session: Session, who: str) -> None:
    """Write the table; show a person who has rows left nothing of what others answered."""
    from whet.cli._asking import print_table

    table, total = session.write(), len(session.items)
    rows = [("rows of the sample", f"{total:,}"), _by(session, who)]
    rows += _panel_rows(session.panel(who))
    rows += [("answers", str(session.path)), ("table", str(table))]
    said = f"{who} has rows left, and sees what others answered when these are done."
    print_table(said, rows, "answer the other rows with the same command")


def _by(session: Session, who: str) -> tuple[str, str]:
    """Return how many rows a person has labelled, and how fast."""
    found = session.progress(who)
    seconds = found["median_seconds"]
    time = "" if seconds is None else f", median {seconds:.1f} s"
    return f"  by {_cut(who)}", f"{found['answered']:,}{time}"


def _cut(name: str) -> str:
    """Return a name for a column of a table: short, and harmless to a terminal."""
    from whet.review.terminal import inert_line

    name = inert_line(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"


def _agreement_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for pair in found["pairs"]:
        kappa = _interval(pair["kappa"]) if pair["kappa"] else f"unknown: {pair['reason']}"
        rows.append((f"kappa {', '.join(map(_cut, pair['who']))}", kappa))
    if found["disagreements"]:
        rows.append(
            ("disagreements", f"{found['disagreements']:,}, {found['settled']:,} of them settled")
        )
    return rows


def _panel_rows(panel: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if panel.get("accuracy"):
        rows.append(("annotator's accuracy", _interval(panel["accuracy"])))
        rows += _left_out(panel)
    labels = sorted(panel.get("labels", ()), key=lambda found: -found["share"])
    for found in labels[:_MOST_CLASSES]:
        right = _interval(found["right"]) if found["right"] else "unknown"
        rows.append((f"  labelled {_cut(found['label'])}", f"right {right}"))
    rows += _more_rows(labels, "labels that are rarer")
    shares = [found for found in panel.get("classes", ()) if found["share"]]
    shares.sort(key=lambda found: -found["share"]["value"])
    for found in shares[:_MOST_CLASSES]:
        rows.append((f"share of {_cut(found['class'])}", _interval(found["share"])))
    rows += _more_rows(shares, "classes that are rarer")
    if panel.get("better"):
        rows.append(("proposal better", _interval(panel["better"])))
    if panel["more"]:
        widths = ", ".join(f"{more['width']:.3f} with {more['n']}" for more in panel["more"])
        rows.append((f"interval of {_cut(panel['of'])}", f"expected width {widths} labels"))
    return rows


def _left_out(panel: dict[str, Any]) -> list[tuple[str, str]]:
    """Say which rows the accuracy does not count, since hard rows are not left out at random."""
    counts = [f"{panel[what]:,} {what}" for what in ("unsure", "unsettled") if panel[what]]
    said = "left out of it, which is likely too high if these are the hard ones"
    return [("  " + ", ".join(counts), said)] if counts else []


def _more_rows(found: list[Any], what: str) -> list[tuple[str, str]]:
    left = len(found) - _MOST_CLASSES
    return [("  and", f"{left:,} {what}")] if left > 0 else []


def _interval(found: dict[str, Any]) -> str:
    return f"{interval(found)}  n = {found['n']}"
