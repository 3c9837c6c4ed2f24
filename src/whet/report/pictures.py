"""The pictures of a report: drawn from the summary alone, on white plates, as SVG.

What colour says, a marker, a hatch or a label says too: the pictures are to be read in black and
white. The colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from whet.report.text import one_line

#: Okabe and Ito: blue, vermilion, bluish green, reddish purple, orange, sky blue.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("//", "\\\\", "--", "xx", "||", "++")
GREY, PALE = "#555555", "#dddddd"
#: Classes with a band or a line of their own; characters of their names.
MOST_DRAWN, MOST_NAME = 6, 20
#: Bars of the most frequent changes.
MOST_BARS = 12
#: Rounds that have a name of their own on the axis.
MOST_NAMED = 3
#: Space between the bars of one side of the flows, of 1; share of the rows that is given in a band.
GAP, NUMBERED = 0.04, 0.02

Json = dict[str, Any]
#: Behind a number that lies on lines.
PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "whet",  # the same picture has the same bytes
    "svg.fonttype": "none",  # the reader's fonts know more scripts than a font here would
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.7,
}


# --- rounds ---------------------------------------------------------------------------------------


def draw_rounds(rounds: Json) -> bytes | None:
    """Draw accuracy a round, and theta of the classes with the most labels, with intervals.

    Parameters
    ----------
    rounds : dict
        ``rounds`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None where no gold row speaks of it.
    """
    judged = [r for r in rounds["accuracy"] if "value" in r]
    theta = [r for r in rounds["theta"] if r["value"] is not None]
    if not judged:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if theta else 1, squeeze=False)[0]
        _draw_accuracy(panels[0], judged, rounds["annotator"])
        if theta:
            _draw_theta(panels[1], theta)

    return as_svg((8.4 if theta else 4.4, 3.2), draw)


def _draw_accuracy(axis: Any, judged: list[Json], annotator: Json | None) -> None:  # noqa: ANN401
    first = 1 if annotator is None else 0
    if annotator is not None:
        axis.axhline(annotator["value"], color=GREY, linestyle=":", linewidth=1)
        _mark(axis, 0, annotator, 1, hollow=True)
    axis.plot(range(1, len(judged) + 1), [r["value"] for r in judged], color=COLOURS[0])
    for place, record in enumerate(judged, 1):
        _mark(axis, place, record, 0)
    word = "round " if len(judged) <= MOST_NAMED else ""
    names = ["annotator", *(f"{word}{r['round']}" for r in judged)]
    axis.set_xticks(range(first, len(names)), names[first:])
    axis.set_xlim(first - 0.5, len(judged) + 0.8)
    axis.set_ylabel("accuracy on gold rows")
    if not word:
        axis.set_xlabel("round")


def _draw_theta(axis: Any, theta: list[Json]) -> None:  # noqa: ANN401
    names = list(dict.fromkeys(record["class"] for record in theta))[:MOST_DRAWN]
    numbers = sorted({record["round"] for record in theta})
    for k, name in enumerate(names):
        mine = [r for r in theta if r["class"] == name]
        # In one round the classes stand side by side, in several each is a line.
        shift = 0.4 * (k - (len(names) - 1) / 2) / len(names)
        at = [k] if len(numbers) == 1 else [r["round"] + shift for r in mine]
        for place, record in zip(at, mine, strict=False):
            _mark(axis, place, record, k, numbered=len(numbers) == 1)
        if len(numbers) > 1 and mine:
            values = [r["value"] for r in mine]
            axis.plot(
                at,
                values,
                color=COLOURS[k],
                linestyle=LINES[k],
                label=_name(name),
                marker=MARKERS[k],
            )
    if len(numbers) == 1:
        axis.set_xticks(range(len(names)), [_name(name, len(names)) for name in names])
        axis.set_xlim(-0.5, len(names) - 0.2)
    else:
        axis.set_xticks(numbers)
        axis.set_xlabel("round")
        axis.legend(frameon=False, fontsize=8)
    axis.set_ylabel("theta: estimated share of the\nlabels of a class that are right")


def _mark(
    axis: Any,  # noqa: ANN401
    place: float,
    estimate: Json,
    style: int,
    *,
    hollow: bool = False,
    numbered: bool = True,
) -> None:
    """Draw an estimate as a marker with its interval, and its value beside it."""
    value, colour = estimate["value"], COLOURS[style]
    axis.errorbar(
        place,
        value,
        # Theta is shrunk, so it can lie outside its interval by a little.
        [[max(value - estimate["low"], 0)], [max(estimate["high"] - value, 0)]],
        color=colour,
        marker=MARKERS[style],
        markerfacecolor="white" if hollow else colour,
        markersize=7,
        capsize=4,
        linewidth=1.4,
    )
    if numbered:
        axis.annotate(
            f"{value:.2f}",
            (place, value),
            (8, 0),
            textcoords="offset points",
            va="center",
            bbox=PLATE,
        )


# --- flows ----------------------------------------------------------------------------------------


def draw_flows(changes: Json) -> bytes | None:
    """Draw bands from the annotator's labels, left, to the refined labels, right.

    Labels that are kept are pale and plain; changed ones have the colour and hatch of what they
    were. Of many classes the most frequent changes are drawn as bars.

    Parameters
    ----------
    changes : dict
        ``changes`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None for many classes and no change.
    """
    if len(changes["kept"]) > MOST_DRAWN:
        return _draw_changes(changes["flows"][:MOST_BARS]) if changes["flows"] else None
    flows = {(kept["class"], kept["class"]): kept["rows"] for kept in changes["kept"]}
    flows |= {(flow["from"], flow["to"]): flow["rows"] for flow in changes["flows"]}
    left, right = _totals(flows, 0), _totals(flows, 1)
    bars = max(len(left), len(right))
    scale = (1 - GAP * (bars - 1)) / changes["rows"]

    def draw(figure: Figure) -> None:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set_xlim(0, 1)
        axis.set_ylim(1.02, -0.12)
        axis.text(0.29, -0.06, "annotator's labels", ha="right", weight="bold")
        axis.text(0.71, -0.06, "refined labels", ha="left", weight="bold")
        starts = _stack(axis, left, scale, 0.30, "right")
        ends = _stack(axis, right, scale, 0.70, "left")
        bands = []
        for style, source in enumerate(left):
            for target in right:
                height = flows.get((source, target), 0) * scale
                if not height:
                    continue
                bands.append((source == target, starts[source], ends[target], height, style))
                starts[source] += height
                ends[target] += height
        for kept, start, end, height, style in sorted(bands, reverse=True):  # changes lie on top
            _band(axis, start, end, height, None if kept else style)
        for kept, start, end, height, _ in bands:
            if not kept and height >= NUMBERED:
                # On the band, a quarter of its way: in the middle bands cross.
                rows, y = f"{round(height / scale):,}", start + 0.156 * (end - start) + height / 2
                axis.text(0.421, y, rows, ha="center", va="center", bbox=PLATE)

    return as_svg((8.4, 1.2 + 0.75 * bars), draw)


def _draw_changes(flows: list[Json]) -> bytes:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        bars = axis.barh(range(len(flows)), [flow["rows"] for flow in flows], color=COLOURS[5])
        axis.bar_label(bars, [f"{flow['rows']:,}" for flow in flows], padding=3)
        names = [f"{_name(flow['from'])} → {_name(flow['to'])}" for flow in flows]
        axis.set_yticks(range(len(flows)), names)
        axis.invert_yaxis()
        axis.set_xlabel("rows changed")

    return as_svg((8.4, 0.8 + 0.28 * len(flows)), draw)


def _totals(flows: dict[tuple[str | None, str | None], int], side: int) -> dict[str | None, int]:
    """Return the rows of each label on one side, in the order of the classes, no label last."""
    total: Counter[str | None] = Counter()
    for labels, rows in flows.items():
        total[labels[side]] += rows
    return {label: rows for label, rows in total.items() if rows}


def _stack(
    axis: Any,  # noqa: ANN401
    totals: dict[str | None, int],
    scale: float,
    x: float,
    side: str,
) -> dict[str | None, float]:
    """Draw the bars of one side and return where each begins."""
    y, begins = 0.0, {}
    for label, rows in totals.items():
        begins[label] = y
        axis.add_patch(Rectangle((x - 0.005, y), 0.01, rows * scale, color="#222222"))
        beside = x - 0.015 if side == "right" else x + 0.015
        axis.text(beside, y + rows * scale / 2, f"{_name(label)}  {rows:,}", ha=side, va="center")
        y += rows * scale + GAP
    return begins


def _band(axis: Any, start: float, end: float, height: float, style: int | None) -> None:  # noqa: ANN401
    left, right, bend = 0.305, 0.695, 0.5
    points = [
        (left, start), (bend, start), (bend, end), (right, end),
        (right, end + height), (bend, end + height), (bend, start + height), (left, start + height),
        (left, start),
    ]  # fmt: skip
    curve = [Outline.CURVE4] * 3
    codes = [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY]
    look: Json = {"facecolor": PALE, "edgecolor": "none"}
    if style is not None:
        colour, hatch = COLOURS[style % len(COLOURS)], HATCHES[style % len(HATCHES)]
        pale = [1 - 0.35 * (1 - part) for part in to_rgb(colour)]
        look = {"facecolor": pale, "edgecolor": colour, "hatch": hatch, "linewidth": 0.8}
    axis.add_patch(PathPatch(Outline(points, codes), **look))


# --- breakdowns -----------------------------------------------------------------------------------


def draw_lengths(lengths: list[Json]) -> bytes | None:
    """Draw accuracy before and after in each quarter of the text lengths.

    Parameters
    ----------
    lengths : list of dict
        ``by_length`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None where no quarter has enough gold rows.
    """
    if all(part[when]["value"] is None for part in lengths for when in ("before", "after")):
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, part in enumerate(lengths):
            for when, style, shift in (("before", 1, -0.16), ("after", 0, 0.16)):
                if part[when]["value"] is not None:
                    _mark(axis, place + shift, part[when], style, hollow=when == "before")
        for when, style in (("annotator's label", 1), ("refined label", 0)):
            face = "white" if style else COLOURS[style]
            axis.plot(
                [], [], MARKERS[style], color=COLOURS[style], markerfacecolor=face, label=when
            )
        names = [f"{part['shortest']:,} to {part['longest']:,}" for part in lengths]
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.3)
        axis.set_xlabel("characters of the text")
        axis.set_ylabel("accuracy on gold rows")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)

    return as_svg((7.4, 3.4), draw)


def draw_calibration(calibration: Json) -> bytes | None:
    """Draw how often labels are right against their probability.

    Parameters
    ----------
    calibration : dict
        ``calibration`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None without bins.
    """
    bins = calibration["bins"]
    if not bins:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        low = min(0.5, *(min(b["low"], b["probability"]) for b in bins))
        axis.plot([low, 1], [low, 1], color=GREY, linestyle="--", linewidth=1)
        for part in bins:
            _mark(axis, part["probability"], part, 0, numbered=False)
        axis.annotate("calibrated", (low, low), (8, 14), textcoords="offset points", color=GREY)
        axis.set_xlim(low - 0.02, 1.02)
        axis.set_ylim(low - 0.02, 1.03)
        axis.set_xlabel("mean probability of the label")
        axis.set_ylabel("share that is right")

    return as_svg((4.4, 3.6), draw)


def draw_comparison(runs: list[Json]) -> bytes | None:
    """Draw the gain of each run with its interval.

    Parameters
    ----------
    runs : list of dict
        ``runs`` of a comparison.

    Returns
    -------
    bytes or None
        SVG; None where no run has gold rows.
    """
    shown = [(run["name"], run["gain"]) for run in runs if run["gain"] is not None]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0, color=GREY, linestyle=":", linewidth=1)
        for place, (_, gain) in enumerate(shown):
            points = {key: 100 * gain[key] for key in ("value", "low", "high")}
            reach = [[points["value"] - points["low"]], [points["high"] - points["value"]]]
            axis.errorbar(
                points["value"],
                place,
                xerr=reach,
                color=COLOURS[0],
                marker="o",
                markersize=7,
                capsize=4,
            )
            axis.annotate(
                f"{points['value']:+.1f}",
                (points["value"], place),
                (0, 7),
                textcoords="offset points",
                ha="center",
            )
        axis.set_yticks(range(len(shown)), [one_line(name, 40) for name, _ in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_xlabel("gain over the annotator's labels, points")

    return as_svg((7.4, 1.1 + 0.45 * len(shown)), draw)


# --- common ---------------------------------------------------------------------------------------


def as_svg(size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Return a drawn figure as SVG without a date: the same summary gives the same bytes."""
    file = io.BytesIO()
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # whatever style the reader's own pictures have
        rcParams.update(_STYLE)
        # Glyphs that the font for measuring lacks: the reader's browser has its own fonts.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def stack_bars(
    axis: Any,  # noqa: ANN401
    rows: list[Json],
    names: list[str],
    parts: Sequence[tuple[str, str, Json]],
) -> dict[str, Any]:
    """Draw a level bar for each row, the first on top, of parts that lie end to end.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    rows : list of dict
        Lengths by the keys of the parts.
    names : list of str
        Of the rows.
    parts : sequence of (str, str, dict)
        Key, label and look of each part; those that no row has are left out.

    Returns
    -------
    dict of str to matplotlib.container.BarContainer
        The bars of each part that is drawn.
    """
    drawn, start = {}, [0] * len(rows)
    for key, label, look in parts:
        widths = [row[key] for row in rows]
        if any(widths):
            drawn[key] = axis.barh(range(len(rows)), widths, left=start, label=label, **look)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    return drawn


def _name(label: str | None, beside: int = 1) -> str:
    """Return a class's name, shorter the more of them stand beside each other."""
    return "no label" if label is None else one_line(label, max(6, min(MOST_NAME, 32 // beside)))
