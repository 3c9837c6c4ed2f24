"""Folders of language models: found or downloaded, checked before they are opened, told apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from whet.errors import WhetError
from whet.extras import require

#: Bytes of each tensor's beginning and middle that identify weights.
SAMPLED = 4096
#: Files of a model that are data, and copies of weights that other programs read.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]


def find_folder(model: str, purpose: str) -> Path:
    """Return the folder of a model, downloaded if need be, checked for code and pickled weights.

    Parameters
    ----------
    model : str
        Folder or hub id.
    purpose : str
        What needs the model, for the error sentence.

    Raises
    ------
    WhetError
        If it is no model, brings code, or has no safetensors weights.
    """
    check_exists(model)
    given = Path(model).expanduser()
    folder = given if given.is_dir() else _download(model, purpose)
    check_model(folder, model)
    return folder


def check_exists(model: str) -> None:
    """Raise ``WhetError`` if there is no name, or one that can only be a folder and is none."""
    if not model:
        raise WhetError("no model is named: name the folder of a language model, or a hub id")
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise WhetError(
            f"the model folder {model} does not exist: name the folder of a language model, "
            "or a hub id"
        )


def check_model(folder: Path, name: str) -> None:
    """Raise ``WhetError`` if a folder is no model, brings code, or needs another folder."""
    if not (folder / "config.json").is_file():
        raise WhetError(
            f"the model {name!r} has no config.json: name the folder of a language model"
            + (
                ", which an adapter is not; merge it into its model and save that"
                if (folder / "adapter_config.json").exists()
                else ""
            )
        )
    if (folder / "adapter_config.json").exists():
        raise WhetError(
            f"the model {name!r} holds an adapter, which needs another model: merge the adapter "
            "into its model and save that"
        )
    for file in ("config.json", "tokenizer_config.json"):
        path = folder / file
        try:
            keys = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise WhetError(
                f"{file} of the model {name!r} cannot be read ({reason(error)}): restore it"
            ) from error
        if isinstance(keys, dict) and "auto_map" in keys:
            raise WhetError(
                f"the model {name!r} brings code of its own (auto_map in {file}), which whet does "
                "not run: choose a model whose architecture transformers has"
            )
    if not any(folder.glob("*.safetensors")):
        raise WhetError(
            f"the model {name!r} has no safetensors weights, the only ones that whet opens: "
            "convert them to safetensors"
        )


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that changes when the model in a folder is trained further or exchanged.

    It covers the configuration and tokenizer files, and of each safetensors file its size, its
    header and 4 KiB from the beginning and the middle of every tensor. Training changes whole
    tensors, so it shows; an edit of a few numbers elsewhere in a tensor does not.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     _ = (folder / "config.json").write_text("{}")
    ...     before = fingerprint(folder)
    ...     _ = (folder / "config.json").write_text('{"vocab_size": 8}')
    ...     before == fingerprint(folder)
    False
    """
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            content = path.read_bytes()
        elif path.suffix == ".safetensors":
            content = _sample(path)
        else:
            continue
        for part in (path.name.encode(), content):
            whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def _sample(path: Path) -> bytes:
    """Return size, header and parts of every tensor of a safetensors file."""
    size = path.stat().st_size
    parts = [size.to_bytes(8, "little")]
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            return b"".join(parts)  # damaged: loading says so
        header = file.read(length)
        parts.append(header)
        try:
            tensors = json.loads(header)
            starts = sorted(
                8 + length + int(tensor["data_offsets"][0]) + shift
                for name, tensor in tensors.items()
                if name != "__metadata__"
                for shift in (0, (tensor["data_offsets"][1] - tensor["data_offsets"][0]) // 2)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return b"".join(parts)
        for start in starts:
            file.seek(start)
            parts.append(file.read(SAMPLED))
    return b"".join(parts)


def _download(hub_id: str, purpose: str) -> Path:
    """Fetch a model from the hub, data files only, and return its folder."""
    hub = require("huggingface_hub", purpose)
    try:
        return Path(
            hub.snapshot_download(hub_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
        )
    except Exception as error:  # not there, not reachable, not allowed
        raise WhetError(
            f"the model {hub_id!r} is neither a folder nor a hub id that can be reached "
            f"({reason(error)}): name the folder of a language model, or a hub id"
        ) from error


def reason(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
