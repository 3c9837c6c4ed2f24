"""The pictures of trainings, proposals and evaluations, in the style of the other reports."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from whet.report.align_pictures import draw_arms
from whet.report.pictures import COLOURS, GREY, HATCHES, PALE, as_svg, stack_bars
from whet.report.text import one_line

Json = dict[str, Any]
#: Panels beside each other, folds and models that are drawn; the tables have all.
MOST_PANELS, MOST_BARS, MOST_MODELS = 3, 18, 18
#: Characters of a name.
MOST_NAME = 30


def draw_curve(curve: Json) -> bytes:
    """Draw what was logged over the steps, and its means over tenths of them.

    Parameters
    ----------
    curve : dict
        ``curve`` of the summary.

    Returns
    -------
    bytes
        SVG.
    """
    shown = list(curve["measures"].items())[:MOST_PANELS]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axis, (key, heading) in zip(panels, shown, strict=True):
            records, tenths = curve["records"], curve["tenths"]
            axis.plot(
                [r["step"] for r in records],
                [r[key] for r in records],
                color=COLOURS[0],
                linewidth=1,
                label="as logged",
            )
            axis.plot(
                [(t["first"] + t["last"]) / 2 for t in tenths],
                [t[key] for t in tenths],
                color=COLOURS[1],
                marker="s",
                linestyle="",
                label="mean of a tenth of the steps",
            )
            axis.set_title(heading, fontsize=10)
            axis.set_xlabel("step")
            axis.margins(y=0.08)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9
        )

    return as_svg((4.8 if len(shown) == 1 else 8.4, 3.3), draw)


def draw_kinds(folds: list[Json], rows: Json) -> bytes:
    """Draw how many proposals differ, are the same, are empty, or are not there.

    Parameters
    ----------
    folds : list of dict
        ``folds`` of the summary; without any, all rows are one bar.
    rows : dict
        ``rows`` of the summary.

    Returns
    -------
    bytes
        SVG.
    """
    shown = folds[:MOST_BARS] or [rows]
    names = [f"fold {bar['fold']}" if "fold" in bar else "all rows" for bar in shown]
    parts = (
        ("different", "different", {"color": COLOURS[0]}),
        ("same", "same as the demonstration", {"color": PALE}),
        ("empty", "empty", {"facecolor": "white", "edgecolor": COLOURS[1], "hatch": HATCHES[0]}),
        ("none", "no proposal", {"facecolor": "white", "edgecolor": GREY, "hatch": "."}),
    )

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        stack_bars(axis, shown, names, parts)
        axis.set_xlabel("rows")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)

    return as_svg((8.4, 1.3 + 0.34 * len(shown)), draw)


def draw_lengths(lengths: list[Json]) -> bytes | None:
    """Draw the lengths of demonstrations and of proposals.

    A line runs from the shortest to the longest, a bar from quarter to quarter, a mark is the
    median.

    Parameters
    ----------
    lengths : list of dict
        ``lengths`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None where there is no proposal.
    """
    if not lengths:
        return None

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, found in enumerate(lengths):
            axis.hlines(place, found["least"], found["most"], color=GREY, linewidth=1)
            axis.hlines(
                place, found["quarter"], found["three_quarters"], color=COLOURS[5], linewidth=12
            )
            axis.plot([found["median"]], [place], "D", color="#222222", markersize=6)
        axis.set_yticks(range(len(lengths)), [found["of"] for found in lengths])
        axis.set_ylim(len(lengths) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.set_xlabel("characters")

    return as_svg((8.4, 1.7), draw)


def draw_models(found: list[Json]) -> bytes | None:
    """Draw the score of each of those evaluated, and how often it beats the first.

    Parameters
    ----------
    found : list of dict
        ``found`` of the summary.

    Returns
    -------
    bytes or None
        SVG; None where there are too few rows.
    """
    arms = []
    for place, one in enumerate(found[:MOST_MODELS]):
        arm = {"arm": one_line(one["what"], MOST_NAME), "score": one["score"]}
        arm["reward"] = "refined" if place else "sft"  # how it looks: the first is what others meet
        arms.append(arm if one["win"] is None else arm | {"win": one["win"]["rate"]})
    return draw_arms(arms, {"score": "score", "win": "beats the first, by the judge"})
