"""What a panel says: Markdown tables and a figure, from its runs alone.

A refused run leaves its user with the annotator's labels, so it counts with a gain of zero; a
method that refuses all runs of a group has no numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Row = dict[str, Any]
FloatArray = NDArray[np.float64]

#: Resamples of the bootstrap, and the level of its intervals.
DRAWS, LEVEL = 2_000, 0.95
#: A run that loses more than this share of rows has done harm.
HARM = 0.01

_NOTES = """\
*Gain* is the accuracy of the refined labels minus that of the annotator's, in points, over the rows
that are not gold; a row on which the annotator abstained counts for the annotator as its most
frequent label, and several annotators as their majority vote. In brackets: 95 % intervals of a
paired bootstrap ({draws:,} draws of cells, then of seeds within each cell; the same draws for all
methods). *Difference* is to the first method at the same budget. *Error* is the relative change of
the share of wrong labels. *Harm* is the share of runs that lose more than 1 point. A refused run
counts as a gain of zero, since its user keeps the annotator's labels. Seconds are of the method
alone, on one thread, without the features. silr, silr-1, uu and pn run as published, without the
guard that `whet refine` puts behind them. silr-oracle and silr-released see the truth of every row
for theta, whatever the budget.
"""


@dataclass(frozen=True)
class Line:
    """What a table says of one method with one gold budget.

    Attributes
    ----------
    method : str
    gold, runs, refused : int
    gain, difference : tuple of float, or None
        Mean and ends of the 95 % interval, as shares; None where every run was refused.
    error_reduction, harm, worst, seconds : float

    Examples
    --------
    >>> Line("pn", 50, 1, 0, (0.1, 0.1, 0.1), None, 0.2, 0.0, 0.1, 3.0).method
    'pn'
    """

    method: str
    gold: int
    runs: int
    refused: int
    gain: tuple[float, float, float] | None
    difference: tuple[float, float, float] | None
    error_reduction: float
    harm: float
    worst: float
    seconds: float


# --- numbers --------------------------------------------------------------------------------------


def shape_of(row: Row) -> str:
    """Return the group of cells that a run belongs to: several, binary or multiclass."""
    if row["n_annotators"] > 1:
        return "several annotators"
    return "binary" if row["n_classes"] == 2 else "multiclass"


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Split runs into parts and shapes, and their real annotators where not all are real.

    Examples
    --------
    >>> run = {"part": "tuning", "kind": "real", "n_classes": 2, "n_annotators": 1}
    >>> list(groups([run, run | {"kind": "simulated"}]))
    ['tuning, binary', 'tuning, binary, real annotators only']
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(", ".join(filter(None, [row["part"], shape_of(row)])), []).append(row)
    result = {}
    for title, members in found.items():
        real = [row for row in members if row["kind"] == "real"]
        result[title] = members
        if real and len(real) < len(members):
            result[f"{title}, real annotators only"] = real
    return result


def count_cells(rows: Sequence[Row]) -> str:
    """Return the number of cells in words.

    Examples
    --------
    >>> count_cells([{"cell": "a"}, {"cell": "a"}])
    '1 cell'
    """
    n = len({row["cell"] for row in rows})
    return f"{n} cell{'s' if n != 1 else ''}"


def lines(rows: Sequence[Row], seed: int = 0) -> list[Line]:
    """Summarise the runs of a group, one line a gold budget and method.

    Parameters
    ----------
    rows : sequence of dict
        Runs of a complete panel: every method has the same cells, budgets and seeds.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of Line
        Gold budgets and methods in the order of the runs.
    """
    result = []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for gold in dict.fromkeys(row["gold"] for row in rows):
        of_gold = {m: [r for r in rows if (r["gold"], r["method"]) == (gold, m)] for m in methods}
        gains = {method: _gains(runs) for method, runs in of_gold.items()}
        resampled = _bootstrap(gains, seed)
        first = methods[0]
        for method, runs in of_gold.items():
            line = _line(runs, gains[method], resampled[method])
            if method != first and line.gain and not _all_refused(of_gold[first]):
                mean = float(gains[method].mean() - gains[first].mean())
                ends = _ends(resampled[method] - resampled[first])
                line = replace(line, difference=(mean, *ends))
            result.append(line)
    return result


def _line(runs: list[Row], gains: FloatArray, resampled: FloatArray) -> Line:
    errors = sum(1 - row["annotator_accuracy"] for row in runs)
    answered = [row for row in runs if row["refused"] is None]
    return Line(
        runs[0]["method"],
        runs[0]["gold"],
        len(runs),
        len(runs) - len(answered),
        (float(gains.mean()), *_ends(resampled)) if answered else None,
        None,
        float(gains.sum() / errors) if errors else 0.0,
        float((gains < -HARM - 1e-9).mean()),
        float(gains.min()),
        float(np.mean([row["seconds"] for row in answered])) if answered else 0.0,
    )


def _all_refused(runs: list[Row]) -> bool:
    return all(row["refused"] is not None for row in runs)


def _gains(runs: list[Row]) -> FloatArray:
    """Gains of one method, shape (cells, seeds); 0 where it refused."""
    cells: dict[str, list[float]] = {}
    for row in sorted(runs, key=lambda row: row["seed"]):
        cells.setdefault(row["cell"], []).append(row["gain"] or 0.0)
    return np.array([cells[name] for name in sorted(cells)])


def _bootstrap(gains: dict[str, FloatArray], seed: int) -> dict[str, FloatArray]:
    """Mean gains of resampled panels, shape (draws,); the same resamples for all methods."""
    n_cells, n_seeds = next(iter(gains.values())).shape
    rng = np.random.default_rng(seed)
    cells = rng.integers(n_cells, size=(DRAWS, n_cells, 1))
    seeds = rng.integers(n_seeds, size=(DRAWS, n_cells, n_seeds))
    return {method: found[cells, seeds].mean(axis=(1, 2)) for method, found in gains.items()}


def _ends(resampled: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def coverage(rows: Sequence[Row]) -> list[Row]:
    """Say how often the methods' own intervals hold the truth.

    Returns
    -------
    list of dict
        part, kind, gold, method, what (annotator or refined), runs, error (mean absolute, as a
        share), and the share of intervals that hold the truth: at95 as reported, at90 with the
        distance from the value to each end shrunk by 1.645/1.960.
    """
    found: dict[tuple[Any, ...], list[tuple[float, ...]]] = {}
    for row in rows:
        for what in ("annotator", "refined"):
            value, low, high, true = (
                row[f"{what}_{end}"] for end in ("value", "low", "high", "true")
            )
            if value is not None:
                key = (row["part"], row["kind"], row["gold"], row["method"], what)
                found.setdefault(key, []).append((value, low, high, true))
    shrink = norm.ppf(0.95) / norm.ppf(0.975)
    result = []
    for key, numbers in found.items():
        value, low, high, true = np.array(numbers).T
        low90, high90 = value - shrink * (value - low), value + shrink * (high - value)
        result.append(
            dict(zip(("part", "kind", "gold", "method", "what"), key, strict=True))
            | {
                "runs": len(numbers),
                "error": float(np.abs(value - true).mean()),
                "at95": float(((low <= true) & (true <= high)).mean()),
                "at90": float(((low90 <= true) & (true <= high90)).mean()),
            }
        )
    return result


# --- Markdown -------------------------------------------------------------------------------------

HEAD = ("method", "gold", "gain", "difference", "error", "harm", "worst", "refused", "s/run")


def cells_of(line: Line) -> tuple[str, ...]:
    """Return a line's values as text, under :data:`HEAD`."""
    said = line.gain is not None
    return (
        line.method,
        str(line.gold),
        _points(line.gain),
        _points(line.difference),
        f"{0.0 - line.error_reduction:+.0%}" if said else "-",
        f"{line.harm:.0%}" if said else "-",
        f"{100 * line.worst:+.1f}" if said else "-",
        f"{line.refused}/{line.runs}",
        f"{line.seconds:.2f}" if said else "-",
    )


def _points(interval: tuple[float, float, float] | None) -> str:
    if interval is None:
        return "-"
    mean, low, high = (100 * end for end in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def markdown(rows: Sequence[Row], command: str, machine: str) -> str:
    """Return the whole report: groups, cells, coverage, and reasons of refusals.

    Parameters
    ----------
    rows : sequence of dict
        Runs in the order of the panel.
    command, machine : str
        What was run, and on what.
    """
    parts = [
        "# Benchmark of label refinement\n",
        f"    {command}\n",
        f"{machine}\n",
        _NOTES.format(draws=DRAWS),
    ]
    for title, members in groups(rows).items():
        parts.append(f"## {title[0].upper()}{title[1:]}: {count_cells(members)}\n")
        parts.append(_table(HEAD, [cells_of(line) for line in lines(members)]))
    parts += [*_cell_tables(rows), *_coverage_table(rows), *_test_table(rows), *_refusals(rows)]
    return "\n".join(parts)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    shown = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(row) + " |\n" for row in shown)


def _cell_tables(rows: Sequence[Row]) -> list[str]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    parts = []
    for gold in dict.fromkeys(row["gold"] for row in rows):
        parts.append(f"## Mean gain of each cell in points, {gold} gold rows\n")
        by_cell: dict[str, list[Row]] = {}
        for row in rows:
            if row["gold"] == gold:
                by_cell.setdefault(row["cell"], []).append(row)
        body = []
        for cell, runs in by_cell.items():
            annotator = np.mean([row["annotator_accuracy"] for row in runs])
            gains = [_mean_gain([r for r in runs if r["method"] == m]) for m in methods]
            body.append([cell, runs[0]["part"], f"{annotator:.3f}", *gains])
        parts.append(_table(["cell", "part", "annotator", *methods], body))
    return parts


def _mean_gain(runs: list[Row]) -> str:
    if _all_refused(runs):
        return "-"
    return f"{100 * np.mean([row['gain'] or 0.0 for row in runs]):+.1f}"


def _coverage_table(rows: Sequence[Row]) -> list[str]:
    found = coverage(rows)
    if not found:
        return []
    head = ("part", "kind", "gold", "method", "estimate of", "runs", "mean error", "95 %", "90 %")
    body = [
        (
            *(row["part"] or "-", row["kind"], str(row["gold"]), row["method"], row["what"]),
            str(row["runs"]),
            f"{100 * row['error']:.1f}",
            f"{row['at95']:.1%}",
            f"{row['at90']:.1%}",
        )
        for row in found
    ]
    return [
        "## How often the methods' own intervals hold the truth\n",
        "Truth: accuracy on the rows that are not gold, for the annotator on those it answered. "
        "*95 %*: the\nintervals as reported. *90 %*: the distance from the value to each end times "
        "1.645/1.960, which is\nno interval that whet reports. *Mean error* of the value in points."
        "\n",
        _table(head, body),
    ]


def _test_table(rows: Sequence[Row]) -> list[str]:
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["test_accuracy"] is not None:
            key = (row["part"] or "-", shape_of(row), str(row["gold"]), row["method"])
            found.setdefault(key, []).append(row["test_accuracy"])
    if not found:
        return []
    body = [(*key, str(len(v)), f"{100 * np.mean(v):.1f}") for key, v in found.items()]
    return [
        "## Accuracy of the models for new texts, on the test splits\n",
        _table(("part", "cells", "gold", "method", "runs", "accuracy"), body),
    ]


def _refusals(rows: Sequence[Row]) -> list[str]:
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["refused"] is not None:
            key = (row["method"], row["refused"])
            reasons[key] = reasons.get(key, 0) + 1
    if not reasons:
        return []
    body = [(m, str(n), reason.replace("|", "\\|")) for (m, reason), n in reasons.items()]
    return ["## Refused runs\n", _table(("method", "runs", "reason"), body)]


# --- figure ---------------------------------------------------------------------------------------


def draw_gain(rows: Sequence[Row]) -> Callable[[BinaryIO], object]:
    """Draw gain against the annotator's accuracy: a panel a method, a point a run.

    Returns
    -------
    callable
        Writes the figure as SVG into an open file; the same runs give the same bytes.
    """
    rc_context = import_module("matplotlib").rc_context
    figure_class = import_module("matplotlib.figure").Figure
    methods = list(dict.fromkeys(row["method"] for row in rows))
    budgets = list(dict.fromkeys(row["gold"] for row in rows))
    across = min(4, len(methods))
    down = -(-len(methods) // across)
    figure = figure_class(figsize=(3.2 * across, 2.6 * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for place, axis in enumerate(axes):
        if place >= len(methods):
            axis.set_visible(False)
            continue
        _draw_method(axis, methods[place], rows, budgets)
    figure.supxlabel("annotator's accuracy")
    figure.supylabel("gain in points")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)

    def write(file: BinaryIO) -> None:
        with rc_context({"svg.hashsalt": "whet", "svg.fonttype": "none"}):
            figure.savefig(file, format="svg", metadata={"Date": None})

    return write


def _draw_method(axis: Any, method: str, rows: Sequence[Row], budgets: list[int]) -> None:  # noqa: ANN401
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set_title(method, fontsize="medium")
    for colour, gold in enumerate(budgets):
        for kind, marker in (("real", "o"), ("simulated", "x")):
            runs = [
                row
                for row in rows
                if (row["method"], row["gold"], row["kind"]) == (method, gold, kind)
                and row["gain"] is not None
            ]
            axis.scatter(
                [row["annotator_accuracy"] for row in runs],
                [100 * row["gain"] for row in runs],
                s=9,
                marker=marker,
                color=f"C{colour}",
                linewidths=0.7,
                label=f"{gold} gold, {kind}",
            )
