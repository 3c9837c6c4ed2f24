"""``whet env``: what a bug report needs to say about the machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

from rich.table import Table

from whet.extras import EXTRAS

_CORE = (
    "whet",
    "numpy",
    "scipy",
    "scikit-learn",
    "threadpoolctl",
    "pyarrow",
    "safetensors",
    "pydantic",
    "cyclopts",
    "rich",
    "jinja2",
    "matplotlib",
    "pyyaml",
)


def versions() -> dict[str, str]:
    """Return the versions of Python, whet and its core dependencies."""
    found = {"python": platform.python_version()}
    for name in _CORE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def env() -> None:
    """Print versions and installed extras, for bug reports."""
    from whet.cli import console

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, version in versions().items():
        table.add_row(name, version)
    table.add_row("platform", platform.platform())
    table.add_row("cores", str(os.cpu_count()))
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        state = f"no: pip install 'whet[{extra}]'" if missing else "installed"
        table.add_row(f"extra [{extra}]", state)
    console().print(table)
