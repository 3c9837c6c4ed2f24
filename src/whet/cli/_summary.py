"""The table at the end of ``whet refine``: what a person acts on, from run.json alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

#: Classes listed one by one; the rest stands in run.json.
MOST_CLASSES = 12
#: Characters of a class that a table shows.
LONGEST_NAME = 40
#: Doubtful rows listed; more stand in run.json, and all in refined.parquet.
MOST_SUSPECTS = 5


def print_summary(manifest: dict[str, Any], folder: Path) -> None:
    """Print verdict, table and next step of a run.

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
    screen.print()
    screen.print(plain(manifest["verdict"]), style="bold")
    screen.print("In brackets: 95 % intervals; n: gold rows behind a number; theta: share of the")
    screen.print("annotator's labels of a class that are right, drawn to the middle by few rows.")
    if manifest["settings"]["method"] == "tsp":
        screen.print(
            "Gain, refined labels and 'predicted': for all rows, corrected on the gold rows;"
        )
        screen.print("the other accuracies are counted on the gold rows.")
    screen.print()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(manifest, folder):
        table.add_row(plain(name), plain(value))
    screen.print(table)
    screen.print()
    screen.print(plain(f"Next: {_next_step(manifest, folder)}"))


def _rows(manifest: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    settings, seconds = manifest["settings"], manifest["seconds"]
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    return [
        *_label_rows(manifest),
        *_class_rows(manifest),
        *_round_rows(manifest),
        *_gold_rows(manifest["gold"]),
        *_suspect_rows(manifest),
        ("method", f"{settings['method']}, encoder {settings['encoder']}"),
        ("time", f"{sum(seconds.values()):.1f} s ({stages}), {manifest['peak_memory_mib']} MiB"),
        ("refined labels", str(folder / "refined.parquet")),
        ("classifier", str(folder / "model")),
        ("full account", str(folder / "run.json")),
        *report_row(folder),
    ]


def _label_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    rows, estimate = manifest["rows"], manifest["estimate"]
    answered = ", where it answered" if rows["filled"] else ""
    shown = [("rows", f"{rows['total']:,}")]
    for name, title, note in (
        ("annotator", "annotator's accuracy", answered),
        ("annotator, all rows", "  predicted, all rows", answered),
        ("classifier", "classifier's accuracy", f"{answered}; not used"),
        ("refined", "refined labels' accuracy", ""),
        ("filled", "  of those filled", ""),
        ("new texts", "model for new texts", ""),
    ):
        if name in estimate and (name != "classifier" or manifest["kept_annotator"]):
            shown.append((title, f"{interval(estimate[name])}  n = {estimate[name]['n']}{note}"))
    if not estimate:
        shown.append(("accuracy", "unknown: there are no gold labels"))
    shown.append(("labels changed", f"{rows['changed']:,} ({rows['changed'] / rows['total']:.1%})"))
    if rows["filled"]:
        shown.append(("  of those filled", f"{rows['filled']:,} where the annotator abstained"))
    return shown


def report_row(folder: Path) -> list[tuple[str, str]]:
    """Return the line of a closing table that names a run's page, where it could be made."""
    page = folder / "report.html"
    return [("report", str(page))] if page.is_file() else []


def interval(estimate: dict[str, Any] | None, sign: str = "") -> str:
    """Return an estimate as text; ``sign`` is "+" for a difference."""
    if estimate is None:
        return "-"
    if sign and estimate["low"] == estimate["high"] == 0:
        return "0, no row differs"  # of other rows that says nothing
    value, low, high = (f"{estimate[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _class_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Theta's diagonal (how often each of the annotator's labels is right), and class counts."""
    classes, counts = manifest["classes"], manifest["rows"]["by_class"]
    rows = []
    for k, name in enumerate(classes[:MOST_CLASSES]):
        trust = ""
        if manifest["theta"] is not None:
            low, high = (end[k][k] for end in manifest["theta_interval"])
            n = manifest["rounds"][0]["theta_n"][k]
            trust = (
                f"theta {manifest['theta'][k][k]:.3f} [{low:.3f}, {high:.3f}]  n = {n}; "
                if n
                else "theta unknown, n = 0; "
            )
        was, now = counts[k]["annotator"], counts[k]["refined"]
        rows.append((f"labelled {_cut(name)}", f"{trust}{was:,} labels, {now:,} refined"))
    if len(classes) > MOST_CLASSES:
        rows.append(("", f"{len(classes) - MOST_CLASSES} more classes: see run.json"))
    return rows


def _cut(label: Any) -> str:  # noqa: ANN401 - a class may be a string or a number
    name = str(label)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\u2026"


def _round_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for record in manifest["rounds"]:
        judged = f"{interval(record['accuracy'])}  " if "accuracy" in record else ""
        rows.append((f"round {record['round']}", f"{judged}{record['changed']:,} changed"))
    if manifest["halted"]:
        rows.append(("", manifest["halted"]))
    return rows


def _suspect_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows to look at first, above all when nothing was changed."""
    suspects = manifest["suspects"][:MOST_SUSPECTS]
    title = "look at rows" if manifest["kept_annotator"] else "most doubtful rows"
    return [
        (
            "" if i else title,
            f"row {s['row']:,}: annotator {_cut(s['pseudo_label'])}, rather {_cut(s['instead'])} "
            f"(suspicion {s['suspicion']:.2f})",
        )
        for i, s in enumerate(suspects)
    ]


def _gold_rows(gold: dict[str, Any]) -> list[tuple[str, str]]:
    checked = [("checked rows", f"{gold['checked']:,}, kept as they are and in no estimate")]
    if not gold["given"]:
        return [("gold rows", "0"), *checked[: gold["checked"]]]
    rounds: dict[str, list[int]] = {}
    for use in gold["uses"]:
        rounds.setdefault(use["purpose"], []).append(use["round"])
    said = []
    for purpose, numbers in rounds.items():
        if numbers[0] is None:
            said.append(purpose)
        else:
            several = len(numbers) > 1
            which = f"rounds {numbers[0]} to {numbers[-1]}" if several else f"round {numbers[0]}"
            said.append(f"{purpose} in {which}")
    kept = f"{gold['kept']} of {gold['given']} given; used for"
    return [
        ("gold rows", kept),
        *(("", purpose) for purpose in said),
        *checked[: gold["checked"]],
    ]


def _next_step(manifest: dict[str, Any], folder: Path) -> str:
    settings = manifest["settings"]
    if manifest["gold"]["kept"] < 50 and settings["gold"] is None:
        flags = ["--text", settings["text"], "--pseudo", settings["pseudo"]]
        words = ["whet", "label", settings["input"], *flags, "--out", "gold.parquet"]
        return f"label 50 random rows: {shlex.join(words)}"
    if manifest["gold"]["kept"] < 50:
        return "label about 50 random rows in all and run again"
    if manifest["kept_annotator"] and manifest["suspects"]:
        command = ["whet", "label", str(folder), "--strategy", "disagree", "--out", "gold.parquet"]
        return f"look at the most doubtful labels: {shlex.join(command)}"
    model = shlex.quote(str(folder / "model"))
    return f"whet predict {model} NEW.csv --text COLUMN --out predicted.csv"
