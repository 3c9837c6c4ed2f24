"""Optional dependencies: present, or one sentence that names the pip line."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from whet.errors import WhetError

#: Extra -> modules that it brings. ``whet env`` lists them; :func:`require` names the extra.
EXTRAS = {
    "llm": ("aiohttp",),
    "train": ("torch", "transformers", "accelerate", "peft", "trl", "datasets"),
    "quantization": ("bitsandbytes",),
    "embed": ("sentence_transformers", "transformers", "huggingface_hub"),
    "review": ("starlette", "uvicorn"),
    "bench": ("cleanlab", "crowdkit", "snorkel"),
}


def require(module: str, purpose: str) -> ModuleType:
    """Import a module that an extra brings.

    Parameters
    ----------
    module : str
        Name to import.
    purpose : str
        What needs it, for the error sentence.

    Raises
    ------
    WhetError
        If it is not installed; the message holds the pip line.

    Examples
    --------
    >>> require("json", "reading").__name__
    'json'
    """
    if importlib.util.find_spec(module) is None:
        extra = next((name for name, modules in EXTRAS.items() if module in modules), module)
        raise WhetError(
            f"{purpose} needs {module}, which is not installed: pip install 'whet[{extra}]'"
        )
    return importlib.import_module(module)
