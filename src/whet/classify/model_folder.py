"""A classifier on disk: config.json, model.safetensors and a card; nothing executable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from whet import __version__
from whet.errors import WhetError
from whet.store import read_arrays, read_json, write_arrays, write_atomic, write_json

#: Version of the folder's format.
MODEL_FORMAT = 1


def save(
    folder: Any,  # noqa: ANN401
    config: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    card: dict[str, Any],
) -> None:
    """Write the arrays, the card and, last, the config.

    Parameters
    ----------
    folder : path
        Created if absent.
    config : dict
        ``classes``, ``encoder`` and ``refiner``; goes to config.json.
    arrays : dict of str to array
        ``coef``, ``intercept`` and what the encoder learned; goes to model.safetensors.
    card : dict
        Values of the card's template.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_arrays(path / "model.safetensors", arrays)
    templates = Environment(
        loader=PackageLoader("whet.classify"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML; class names pass the filter code
        keep_trailing_newline=True,
    )
    templates.filters["code"] = _code
    text = templates.get_template("model_card.md.j2").render(version=__version__, **card)
    write_atomic(path / "README.md", lambda file: file.write(text.encode()))
    header = {"format": "whet-classifier", "format_version": MODEL_FORMAT}
    write_json(path / "config.json", header | {"whet_version": __version__} | config)


def load(folder: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:  # noqa: ANN401
    """Read config and arrays, and check that they fit each other.

    Raises
    ------
    WhetError
        If the folder holds no classifier of this format, or its shapes are wrong.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"  # a run folder was named
    config = read_json(path / "config.json")
    if config.get("format") != "whet-classifier":
        raise WhetError(
            f"{path / 'config.json'} is not a whet classifier: name a folder that whet refine wrote"
        )
    if config.get("format_version") != MODEL_FORMAT:
        raise WhetError(
            f"{path} has format {config.get('format_version')!r}, this whet reads {MODEL_FORMAT}: "
            "use the whet version that wrote it, named in its config.json"
        )
    encoder, classes = config.get("encoder"), check_classes(config, path / "config.json")
    if not isinstance(encoder, dict) or not isinstance(config.get("refiner", {}), dict):
        raise WhetError(f"{path / 'config.json'} lacks its settings: restore the folder")
    arrays = read_arrays(path / "model.safetensors")
    rows = 1 if len(classes) == 2 else len(classes)
    for name, ndim in (("coef", 2), ("intercept", 1)):
        shape = arrays[name].shape if name in arrays else None
        if shape is None or len(shape) != ndim or shape[0] != rows:
            raise WhetError(
                f"{path / 'model.safetensors'} holds {name} of shape {shape} for {len(classes)} "
                f"classes, not {rows} rows: the folder is damaged; restore it"
            )
        if not np.isfinite(arrays[name]).all() or np.abs(arrays[name]).max(initial=0) > 1e9:
            raise WhetError(f"{path / 'model.safetensors'} holds NaN or no sane {name}: restore it")
    config.setdefault("refiner", {})
    return config, arrays


def check_classes(config: dict[str, Any], file: Path) -> list[Any]:
    """Return the classes that a file names.

    Raises
    ------
    WhetError
        If they are not at least two distinct labels.
    """
    classes = config.get("classes")
    if (
        not isinstance(classes, list)
        or len(classes) < 2
        or not all(isinstance(label, str | int) for label in classes)
        or len({str(label) for label in classes}) < len(classes)
        or not all(isinstance(label, str) or abs(label) < 1 << 63 for label in classes)
    ):
        raise WhetError(f"{file} names no distinct classes: restore the folder")
    return classes


def _code(value: object) -> str:
    """Return a class name as Markdown code, in which nothing has a meaning, without controls."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(str(value).split()))
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{ticks} {text} {ticks}"
