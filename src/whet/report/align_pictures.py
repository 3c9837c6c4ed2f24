"""The pictures of a run of ``whet align``, in the style of :mod:`whet.report.pictures`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from whet.report.pictures import COLOURS, GREY, MARKERS, as_svg

Json = dict[str, Any]
#: Measures with headings: what judges say of the answers; and refusals of prompts of both kinds
#: beside each other, with the distance from where training began.
JUDGED = {"safety_judge": "safe, by the second judge", "win": "beats the reference"}
REFUSED = {
    "safety_rules": "harmful prompts refused",
    "over_refusal": "harmless prompts refused",
    "kl": "KL to sft, nats a completion",
}
#: Reward -> colour and marker.
_LOOKS = {
    "sft": (GREY, "x"),
    "vanilla": (COLOURS[1], MARKERS[1]),
    "initial": (COLOURS[2], MARKERS[2]),
    "refined": (COLOURS[0], MARKERS[0]),
}


def draw_arms(arms: list[Json], measures: dict[str, str]) -> bytes | None:
    """Draw measures of the arms beside each other, each with its interval.

    Parameters
    ----------
    arms : list of dict
        ``arms`` of the summary.
    measures : dict of str to str
        Names and headings; those that no arm has are left out.

    Returns
    -------
    bytes or None
        SVG; None where no arm has any.
    """
    known = {
        name: [(place, arm) for place, arm in enumerate(arms) if _value(arm, name) is not None]
        for name in measures
    }
    shown = [name for name, points in known.items() if points]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axis, name in zip(panels, shown, strict=True):
            for place, arm in known[name]:
                _mark(axis, place, arm[name], arm["reward"])
            axis.set_title(measures[name], fontsize=10)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            if name == "kl":
                axis.margins(x=0.12)
            else:  # shares, on one scale
                axis.set_xlim(-0.06, 1.06)
        panels[0].set_yticks(range(len(arms)), [arm["arm"] for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)

    return as_svg((8.4, 0.9 + 0.42 * len(arms)), draw)


def _value(arm: Json, name: str) -> float | None:
    value: float | None = arm[name]["value"] if name in arm else None
    return value


def _mark(axis: Any, place: int, estimate: Json, reward: str) -> None:  # noqa: ANN401
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    colour, marker = _LOOKS[reward]
    reach = [[max(value - low, 0)], [max(high - value, 0)]]
    axis.errorbar(
        [value], [place], xerr=reach, color=colour, marker=marker, markersize=6, capsize=3
    )
    axis.annotate(
        f"{value:.3f}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=9
    )
