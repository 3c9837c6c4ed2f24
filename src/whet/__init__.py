"""whet sharpens labels that nobody has time to check.

The public names load on first use, so that ``import whet`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.annotate.annotator import Annotation, Annotator
    from whet.annotate.budget import Budget
    from whet.annotate.cache import AnswerCache
    from whet.annotate.openai import OpenAIBackend
    from whet.annotate.task import Task, load_task
    from whet.classify.classifier import UUClassifier
    from whet.classify.refiner import LabelRefiner
    from whet.corpus import Corpus, read_corpus
    from whet.errors import WhetError, WhetWarning

__version__ = "0.1.0"

_HOMES = {
    "Annotation": "whet.annotate.annotator",
    "Annotator": "whet.annotate.annotator",
    "AnswerCache": "whet.annotate.cache",
    "Budget": "whet.annotate.budget",
    "Corpus": "whet.corpus",
    "LabelRefiner": "whet.classify.refiner",
    "OpenAIBackend": "whet.annotate.openai",
    "Task": "whet.annotate.task",
    "UUClassifier": "whet.classify.classifier",
    "WhetError": "whet.errors",
    "WhetWarning": "whet.errors",
    "load_task": "whet.annotate.task",
    "read_corpus": "whet.corpus",
}

__all__ = [
    "Annotation",
    "Annotator",
    "AnswerCache",
    "Budget",
    "Corpus",
    "LabelRefiner",
    "OpenAIBackend",
    "Task",
    "UUClassifier",
    "WhetError",
    "WhetWarning",
    "__version__",
    "load_task",
    "read_corpus",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes have any type
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'whet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
