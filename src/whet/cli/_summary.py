"""The table at the end of ``whet refine``: what a person acts on, from run.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table


def print_summary(manifest: dict[str, Any], folder: Path) -> None:
    """Print verdict, table and next step of a run.

    Parameters
    ----------
    manifest : dict
        The content of run.json.
    folder : Path
        The run folder.
    """
    from whet.cli import console, plain

    screen = console()
    screen.print()
    screen.print(plain(manifest["verdict"]), style="bold")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(manifest, folder):
        table.add_row(plain(name), plain(value))
    screen.print(table)
    screen.print(plain(f"Next: {_next_step(manifest, folder)}"))


def _rows(manifest: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    rows, settings = manifest["rows"], manifest["settings"]
    n = rows["total"]
    estimate = manifest["estimate"]
    shown = [("rows", f"{n:,}")]
    titles = {"annotator": "annotator's accuracy", "refined": "refined labels' accuracy"}
    if rows["filled"]:
        titles["annotator"] += ", where it answered"
        titles["filled"] = "  of them, where it abstained"
    if manifest["kept_annotator"]:
        titles["classifier"] = "classifier's accuracy, not used"
    for name, title in titles.items():
        if name in estimate:
            shown.append((title, _interval(estimate[name])))
    if not estimate:
        shown.append(("accuracy", "unknown: no gold labels"))
    shown.append(("labels changed", f"{rows['changed']:,} ({rows['changed'] / n:.1%})"))
    if rows["filled"]:
        shown.append(("  of them filled", f"{rows['filled']:,} on which the annotator abstained"))
    shown += _theta_rows(manifest)
    shown += _round_rows(manifest)
    shown += _gold_rows(manifest["gold"])
    seconds = manifest["seconds"]
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    shown.append(("time", f"{sum(seconds.values()):.1f} s ({stages})"))
    shown.append(("method", f"{settings['method']}, {settings['encoder']}"))
    shown.append(("labels", str(folder / "refined.parquet")))
    shown.append(("classifier", str(folder / "model")))
    shown.append(("full account", str(folder / "run.json")))
    return shown


def _interval(estimate: dict[str, Any]) -> str:
    value, low, high = (f"{estimate[key]:.3f}" for key in ("value", "low", "high"))
    return f"{value}  [{low}, {high}]  95 % interval, n = {estimate['n']}"


def _theta_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Theta's diagonal: how often a label of the annotator is right, a class at a time."""
    if manifest["theta"] is None:
        return []
    low, high = manifest["theta_interval"]
    sizes = manifest["rounds"][0]["theta_n"]
    rows = []
    for k, name in enumerate(manifest["classes"]):
        value = f"{manifest['theta'][k][k]:.2f}  [{low[k][k]:.2f}, {high[k][k]:.2f}]"
        rows.append((f"theta, labelled {name!r}", f"{value}  are {name!r}, n = {sizes[k]}"))
    return rows[:12]


def _round_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for record in manifest["rounds"]:
        judged = ""
        if "accuracy" in record:
            a = record["accuracy"]
            judged = f", accuracy {a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]"
        rows.append((f"round {record['round']}", f"{record['changed']:,} changed{judged}"))
    if manifest["halted"]:
        rows.append(("", manifest["halted"]))
    return rows


def _gold_rows(gold: dict[str, Any]) -> list[tuple[str, str]]:
    if not gold["given"]:
        return [("gold rows", "0")]
    purposes: dict[str, list[str]] = {}
    for use in gold["uses"]:
        purposes.setdefault(use["purpose"], []).append(str(use["round"] or ""))
    said = [
        purpose + (f" (round {', '.join(rounds)})" if any(rounds) else "")
        for purpose, rounds in purposes.items()
    ]
    return [
        ("gold rows", f"{gold['kept']} of {gold['given']} given"),
        ("  used for", "; ".join(said)),
    ]


def _next_step(manifest: dict[str, Any], folder: Path) -> str:
    gold = manifest["gold"]
    if gold["kept"] < 50:
        return "label about 50 random rows by hand and run again with --gold"
    if manifest["kept_annotator"]:
        rounds = manifest["settings"]["rounds"]
        fewer = "; or try --rounds 1 and a new --out" if rounds > 1 else ""
        return (
            "look at the rows whose reason begins with 'kept by the guard' in "
            f"{folder / 'refined.parquet'}{fewer}"
        )
    return f"whet predict {folder / 'model'} NEW.csv --text COLUMN --out predicted.csv"
