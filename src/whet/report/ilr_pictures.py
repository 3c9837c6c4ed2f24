"""The pictures of a run of ``whet ilr``, in the style of :mod:`whet.report.pictures`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from whet.report.pictures import (
    COLOURS,
    GREY,
    HATCHES,
    LINES,
    MARKERS,
    PALE,
    PLATE,
    as_svg,
    stack_bars,
)
from whet.report.text import one_line

Json = dict[str, Any]
#: Arms and rounds that are drawn; the tables have all.
MOST_ARMS, MOST_BARS, MOST_PANELS = 9, 18, 6
#: Score above and below what is drawn, at least: all may score the same.
LEAST_ROOM = 0.02
#: Points of an inch between two names at the right edge.
NAME_HEIGHT = 13


def draw_scores(arms: list[Json], weak: Json | None) -> bytes | None:
    """Draw the score of each arm after each round with its interval.

    Arms with rounds are lines; those that train once, and the weak model, are level lines.

    Parameters
    ----------
    arms : list of dict
        ``arms`` of the summary.
    weak : dict or None
        The score of the weak model.

    Returns
    -------
    bytes or None
        SVG; None where nothing was evaluated.
    """
    tested = [(arm["arm"], [r for r in arm["rounds"] if r["score"] is not None]) for arm in arms]
    drawn = [(name, rounds) for name, rounds in tested if rounds][:MOST_ARMS]
    if not drawn:
        return None
    last = max(rounds[-1]["round"] for _, rounds in drawn)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        names = []
        if weak is not None:
            axis.axhline(weak["value"], color=GREY, linestyle=LINES[3], linewidth=1)
            names.append((weak["value"], "weak model", GREY))
        moving = [name for name, rounds in drawn if len(rounds) > 1]
        level = [name for name, rounds in drawn if len(rounds) == 1]
        # Beside each other, so that their intervals can be told apart.
        step = min(0.07, 0.4 / max(len(moving), 1))
        for style, (name, rounds) in enumerate(drawn):
            look = _look(style)
            value = rounds[-1]["score"]["value"]
            names.append((value, name, look["color"]))
            if len(rounds) == 1:
                axis.axhline(value, **{**look, "marker": ""}, linewidth=1)
                place = -0.31 + 0.05 * level.index(name)
                _points(axis, [place], rounds, look | {"linestyle": ""})
                continue
            place = moving.index(name) - (len(moving) - 1) / 2
            _points(axis, [r["round"] + step * place for r in rounds], rounds, look)
        axis.set_xlim(-0.38, last + 0.35)
        axis.set_xticks(range(last + 1), [f"round {k}" if k else "start" for k in range(last + 1)])
        ends = [record["score"] for _, rounds in drawn for record in rounds]
        ends += [] if weak is None else [weak]
        low, high = min(e["low"] for e in ends), max(e["high"] for e in ends)
        room = max(0.05 * (high - low), LEAST_ROOM)
        axis.set_ylim(low - room, high + room)
        axis.set_ylabel("score on the test")
        _name_lines(axis, names, figure.get_size_inches()[1])

    return as_svg((8.4, 4.2), draw)


def _look(style: int) -> Json:
    """Return how an arm is drawn; no two of the arms that are drawn look the same."""
    turn = style // len(COLOURS)
    return {
        "color": COLOURS[style % len(COLOURS)],
        "marker": MARKERS[style % len(MARKERS)],
        "linestyle": LINES[(style + turn) % len(LINES)],
    }


def _points(axis: Any, places: list[float], rounds: list[Json], look: Json) -> None:  # noqa: ANN401
    scores = [record["score"] for record in rounds]
    reach = [
        [max(s["value"] - s["low"], 0) for s in scores],
        [max(s["high"] - s["value"], 0) for s in scores],
    ]
    values = [s["value"] for s in scores]
    axis.errorbar(places, values, reach, **look, markersize=6, capsize=3, linewidth=1.4)


def _name_lines(axis: Any, names: list[tuple[float, str, str]], height: float) -> None:  # noqa: ANN401
    """Write names at the right edge beside where lines end, moved apart where they are close."""
    low, high = axis.get_ylim()
    least = NAME_HEIGHT / 72 / (0.85 * height) * (high - low)
    free = low
    for value, name, colour in sorted(names):
        at = max(value, free)
        free = at + least
        axis.annotate(
            f"{one_line(name, 24)} {value:.3f}",
            (1, value),
            (1.02, (at - low) / (high - low)),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def draw_proposals(proposals: list[Json]) -> bytes | None:
    """Draw what became of the proposals of each round.

    Parameters
    ----------
    proposals : list of dict
        ``proposals`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None without a round.
    """
    shown = proposals[:MOST_BARS]
    if not shown:
        return None
    parts = (
        ("accepted", "accepted", {"color": COLOURS[0]}),
        (
            "rejected",
            "rejected",
            {"facecolor": "white", "edgecolor": COLOURS[1], "hatch": HATCHES[0]},
        ),
        ("unscored", "without a score", {"facecolor": "white", "edgecolor": GREY, "hatch": "."}),
        ("agreed", "same as the demonstration", {"color": PALE}),
    )

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        names = [f"{one_line(r['arm'], 24)}, round {r['round']}" for r in shown]
        bars = stack_bars(axis, shown, names, parts)
        if "accepted" in bars:
            counts = [f"{r['accepted']:,} " for r in shown]
            axis.bar_label(bars["accepted"], counts, label_type="edge", padding=3, bbox=PLATE)
        axis.set_xlabel("proposals")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)

    return as_svg((8.4, 1.3 + 0.34 * len(shown)), draw)


def draw_histograms(rounds: list[Json]) -> bytes:
    """Draw the judge's scores of the proposals of an arm's rounds, with the threshold.

    Parameters
    ----------
    rounds : list of dict
        ``rounds`` of one of the summary's ``histograms``; at least one.

    Returns
    -------
    bytes
        SVG.
    """
    shown = rounds[:MOST_PANELS]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    most = 1.08 * max(b["accepted"] + b["rejected"] for r in shown for b in r["bins"])

    def draw(figure: Figure) -> None:
        panels = figure.subplots(down, across, squeeze=False, sharey=True)
        for axis in panels.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, record in zip(panels.flat, shown, strict=False):
            _draw_histogram(axis, record, most)
        for axis in panels[:, 0]:
            axis.set_ylabel("judged proposals")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)

    return as_svg((4.4 if across == 1 else 8.4, 0.5 + 2.5 * down), draw)


def _draw_histogram(axis: Any, record: Json, most: float) -> None:  # noqa: ANN401
    bins = record["bins"]
    left, width = [b["low"] for b in bins], bins[0]["high"] - bins[0]["low"]
    rejected = [b["rejected"] for b in bins]
    accepted = [b["accepted"] for b in bins]
    place = {"width": width, "align": "edge", "linewidth": 0.6}
    white = {"facecolor": "white", "edgecolor": COLOURS[1], "hatch": HATCHES[0]}
    blue = {"facecolor": COLOURS[0], "edgecolor": "white"}
    axis.bar(left, rejected, label="rejected", **place, **white)
    axis.bar(left, accepted, bottom=rejected, label="accepted", **place, **blue)
    axis.axvline(
        record["threshold"], color="#222222", linestyle="--", linewidth=1.2, label="threshold"
    )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, most or 1)
    axis.set_xlabel("judge's score: the proposal is better")
    axis.set_title(f"round {record['round']}, threshold {record['threshold']:.3f}", fontsize=10)
