"""whet sharpens labels that nobody has time to check.

The public names load on first use, so that ``import whet`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.classify.classifier import UUClassifier
    from whet.classify.refiner import LabelRefiner
    from whet.corpus import Corpus, read_corpus
    from whet.errors import WhetError, WhetWarning

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "whet.corpus",
    "LabelRefiner": "whet.classify.refiner",
    "UUClassifier": "whet.classify.classifier",
    "WhetError": "whet.errors",
    "WhetWarning": "whet.errors",
    "read_corpus": "whet.corpus",
}

__all__ = [
    "Corpus",
    "LabelRefiner",
    "UUClassifier",
    "WhetError",
    "WhetWarning",
    "__version__",
    "read_corpus",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes have any type
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'whet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
