"""The page of a report: one file without network and script that only renders a summary."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whet import __version__
from whet.errors import WhetWarning
from whet.report.text import one_line, visible
from whet.store import write_atomic, write_json

Json = dict[str, Any]
#: Characters of a text that the page shows at once; the rest opens on demand.
SHOWN = 400
#: What a page names as its maker, so that it is known again.
GENERATOR = f"whet {__version__}"
#: Bytes of a page in which its maker is named.
_HEAD = 2_000


def render(summary: Json) -> str:
    """Return the page of a summary.

    Parameters
    ----------
    summary : dict
        From :func:`whet.report.summary.summarise`, :func:`whet.report.ilr_summary.summarise_ilr`,
        :func:`whet.report.align_summary.summarise_align` or :func:`whet.report.compare.compare`,
        or from one of a stage, such as
        :func:`whet.report.training_summary.summarise_training`.

    Returns
    -------
    str
        HTML in one file. All data is escaped, control characters and marks of direction are
        written out, and a content security policy forbids scripts and the network.
    """
    templates = Environment(
        loader=PackageLoader("whet.report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "visible": visible,
        "line": one_line,
        "points": as_points,
        "percent": _percent,
        "estimate": as_accuracy,
        "label": _label,
        "yaml": _yaml,
    }
    pictures = {name: _picture(svg) for name, svg in _draw(summary).items()}
    page = templates.get_template(f"{summary['kind']}.html.j2")
    return page.render(
        s=summary, pictures=pictures, version=__version__, generator=GENERATOR, shown=SHOWN
    )


def write_report(folder: Path, summary: Json) -> None:
    """Write summary.json and report.html into a run folder, each whole or not at all."""
    write_json(folder / "summary.json", summary)
    write_page(folder / "report.html", summary)


def try_report(
    folder: Path, manifest: Json, summarise: Callable[[Path, Json], Json], kept: str
) -> None:
    """Write the report of a run that is about to end; one that fails is a warning.

    Parameters
    ----------
    folder : Path
        The run folder, whole but for run.json.
    manifest : dict
        What run.json will hold.
    summarise : callable
        Given both.
    kept : str
        What is whole all the same, such as "the run is".
    """
    try:
        write_report(folder, summarise(folder, manifest))
    except Exception as error:  # what was found is worth more than a report of it
        warnings.warn(
            f"the report could not be made ({type(error).__name__}: {error}): {kept} whole; try "
            f"again with 'whet report {folder}'",
            WhetWarning,
            stacklevel=2,
        )


def add_report(
    folder: Path, manifest: Json, summarise: Callable[[Path, Json], Json], kept: str
) -> None:
    """Write the report of a run that has ended, unless there is one; see :func:`try_report`.

    A finished folder that a command finds again is left as it is.
    """
    if not (folder / "report.html").is_file():
        try_report(folder, manifest, summarise, kept)


def write_page(path: Path, summary: Json) -> None:
    """Write the page of a summary to a file."""
    page = render(summary).encode()
    write_atomic(path, lambda file: file.write(page))


def is_page(path: Path) -> bool:
    """Whether a file is a page of whet's, which may be made anew.

    Parameters
    ----------
    path : Path
        An existing file.
    """
    with path.open("rb") as file:
        return b'<meta name="generator" content="whet ' in file.read(_HEAD)


def _draw(summary: Json) -> dict[str, bytes | None]:
    with _nothing_left_at_home():
        from whet.report import pictures  # matplotlib takes half a second to import

    if summary["kind"] == "compare":
        return {"gains": pictures.draw_comparison(summary["runs"])}
    if summary["kind"] == "compare-arms":
        return _draw_arms_over_runs(summary)
    if summary["kind"] == "ilr":
        return _draw_ilr(summary)
    if summary["kind"] == "align":
        return _draw_align(summary)
    if summary["kind"] in ("training", "propose", "evaluate"):
        return _draw_stage(summary)
    return {
        "rounds": pictures.draw_rounds(summary["rounds"]),
        "flows": pictures.draw_flows(summary["changes"]),
        "lengths": pictures.draw_lengths(summary["by_length"]),
        "calibration": pictures.draw_calibration(summary["calibration"]),
    }


def _draw_arms_over_runs(summary: Json) -> dict[str, bytes | None]:
    from whet.report import compare_pictures

    return {
        f"recipe {place} {measure['measure']}": compare_pictures.draw_arms_over_runs(measure)
        for place, recipe in enumerate(summary["recipes"], 1)
        for measure in recipe["measures"]
    }


def _draw_ilr(summary: Json) -> dict[str, bytes | None]:
    from whet.report import ilr_pictures

    return {
        "scores": ilr_pictures.draw_scores(summary["arms"], summary["weak"]),
        "proposals": ilr_pictures.draw_proposals(summary["proposals"]),
        **{
            f"histogram {found['arm']}": ilr_pictures.draw_histograms(found["rounds"])
            for found in summary["histograms"]
        },
    }


def _draw_align(summary: Json) -> dict[str, bytes | None]:
    from whet.report import align_pictures

    return {
        "judged": align_pictures.draw_arms(summary["arms"], align_pictures.JUDGED),
        "refused": align_pictures.draw_arms(summary["arms"], align_pictures.REFUSED),
    }


def _draw_stage(summary: Json) -> dict[str, bytes | None]:
    from whet.report import stage_pictures

    if summary["kind"] == "training":
        return {"curve": stage_pictures.draw_curve(summary["curve"])}
    if summary["kind"] == "evaluate":
        return {"models": stage_pictures.draw_models(summary["found"])}
    return {
        "kinds": stage_pictures.draw_kinds(summary["folds"], summary["rows"]),
        "lengths": stage_pictures.draw_lengths(summary["lengths"]),
    }


@contextmanager
def _nothing_left_at_home() -> Iterator[None]:
    """Let the first import of matplotlib list the fonts in a folder that goes away.

    It would write the list to the user's home. A list that is there already saves the work.
    """
    caches = (Path(os.environ.get("XDG_CACHE_HOME", "~/.cache/")) / "matplotlib", "~/.matplotlib")
    listed = any(list(Path(cache).expanduser().glob("fontlist-*.json")) for cache in caches)
    if listed or "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def _picture(svg: bytes | None) -> str | None:
    if svg is None:
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


# --- filters --------------------------------------------------------------------------------------


def as_accuracy(estimate: Json | None) -> str:
    """Return an accuracy with its interval and n."""
    return _interval(estimate, "", lambda x: f"{x:.3f}")


def as_points(estimate: Json | None) -> str:
    """Return a difference of accuracies in points with its interval and n."""
    return _interval(estimate, " points", lambda x: f"{100 * x:+.1f}")


def _interval(estimate: Json | None, unit: str, form: Callable[[float], str]) -> str:
    if estimate is None:
        return "not known"
    if estimate["value"] is None:
        return f"too few (n = {estimate['n']:,})"
    value, low, high = (form(estimate[key]) for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}] n = {estimate['n']:,}"


def _percent(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _label(label: str | None) -> Markup:
    """Return a class's name, apart from what is no name, with its direction kept to itself."""
    if label is None:
        return Markup("<em>no label</em>")
    return Markup("<bdi>{}</bdi>").format(visible(label))  # format escapes


def _yaml(content: Json) -> str:
    """Return YAML that is ASCII, so that nothing hides in it."""
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text
