"""The picture of arms over several runs, in the style of :mod:`whet.report.pictures`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from whet.report.ilr_summary import BASELINE
from whet.report.pictures import COLOURS, GREY, as_svg
from whet.report.text import one_line

Json = dict[str, Any]
#: Arms that are drawn; the tables have all.
MOST_ARMS = 20
_MEAN: Json = {"color": COLOURS[0], "marker": "D", "markersize": 6, "capsize": 3, "linestyle": ""}


def draw_arms_over_runs(measure: Json) -> bytes | None:
    """Draw each arm in each run, and its mean over runs with the interval; beside it minus sft.

    Parameters
    ----------
    measure : dict
        One of ``measures`` of a recipe of a comparison.

    Returns
    -------
    bytes or None
        SVG; None where no run knows any arm.
    """
    arms = [arm for arm in measure["arms"] if arm["of"]][:MOST_ARMS]
    if not arms:
        return None
    place = {arm["arm"]: k for k, arm in enumerate(arms)}
    gains = [
        (place[found["first"]], found)
        for found in measure["differences"]
        if found["second"] == BASELINE and found["of"] and found["first"] in place
    ]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if gains else 1, squeeze=False, sharey=True)[0]
        for k, arm in enumerate(arms):
            _draw_runs(panels[0], k, arm, 1)
        panels[0].set_xlabel("each run, and the mean of runs")
        for k, found in gains:
            _draw_runs(panels[1], k, found, 100)
        if gains:
            panels[1].axvline(0, color=GREY, linestyle=":", linewidth=1)
            panels[1].set_xlabel(f"minus {BASELINE}, points")
        for axis in panels:
            axis.grid(axis="y", color="#dddddd", linewidth=0.6)
            axis.set_axisbelow(True)
        panels[0].set_yticks(range(len(arms)), [one_line(arm["arm"], 30) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        panels[0].plot([], [], "o", color=GREY, markerfacecolor="white", label="a run")
        panels[0].errorbar([], [], xerr=[[], []], label="mean of runs", **_MEAN)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=2,
            frameon=False,
        )

    return as_svg((8.4, 1.3 + 0.34 * len(arms)), draw)


def _draw_runs(axis: Any, place: int, found: Json, unit: float) -> None:  # noqa: ANN401
    values = [run["value"] for run in found["runs"] if run is not None]
    values = [unit * value for value in values if value is not None]
    # Below the mean, so that neither hides the other.
    axis.plot(
        values, [place + 0.22] * len(values), "o", color=GREY, markerfacecolor="white", markersize=5
    )
    if (mean := found["mean"]) is not None:
        value, low, high = (unit * mean[key] for key in ("value", "low", "high"))
        reach = [[max(value - low, 0)], [max(high - value, 0)]]
        axis.errorbar([value], [place], xerr=reach, **_MEAN)
