"""Folders of models: found or downloaded, checked before they are opened, told apart, uploaded."""

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
#: What is uploaded: weights, configurations, cards, and the files of tokenizers.
_UPLOADED = ("*.safetensors", "*.json", "*.md", "*.jinja", "*.model", "vocab.txt", "merges.txt")
#: By these files a folder of whet's is known as a fine-tuned classifier: one that an earlier upload
#: left would make a linear one be taken for it.
_MARKS = ("finetune.json", "refiner.json")


def find_folder(model: str, purpose: str, trusted: bool = False) -> Path:
    """Return the folder of a model, downloaded if need be, checked for code and pickled weights.

    Parameters
    ----------
    model : str
        Folder or hub id.
    purpose : str
        What needs the model, for the error sentence.
    trusted : bool
        Whether it may bring code.

    Raises
    ------
    WhetError
        If it is no model, brings code unasked, or has no safetensors weights.
    """
    check_exists(model)
    given = Path(model).expanduser()
    folder = given if given.is_dir() else _download(model, purpose, trusted)
    check_model(folder, model, trusted)
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


def check_model(folder: Path, name: str, trusted: bool = False) -> None:
    """Raise ``WhetError`` if a folder is no model, brings code unasked, or needs another folder."""
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
        if isinstance(keys, dict) and "auto_map" in keys and not trusted:
            raise WhetError(
                f"the model {name!r} brings code of its own (auto_map in {file}), which whet does "
                "not run: choose a model whose architecture transformers has, or, where whet has "
                "the flag --trust-remote-code, let that code do all that you can"
            )
    if not any(folder.glob("*.safetensors")):
        raise WhetError(
            f"the model {name!r} has no safetensors weights, the only ones that whet opens: "
            "convert them to safetensors"
        )


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that changes when the model in a folder is trained further or exchanged.

    It covers configuration, tokenizer and code files, and of each safetensors file its size, its
    header and 4 KiB from the beginning and the middle of every tensor. Training changes whole
    tensors, so it shows; an edit of a few numbers elsewhere in a tensor does not. What a report
    adds to a folder is no part of the model.

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
        if path.name == "summary.json":
            continue
        if path.suffix in (".json", ".jinja", ".txt", ".model", ".py"):
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


def _download(hub_id: str, purpose: str, trusted: bool) -> Path:
    """Fetch a model from the hub, code only if it is trusted, and return its folder."""
    hub = require("huggingface_hub", purpose)
    try:
        return Path(
            hub.snapshot_download(
                hub_id,
                allow_patterns=[*_WANTED, "*.py"] if trusted else _WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    except Exception as error:  # not there, not reachable, not allowed
        raise WhetError(
            f"the model {hub_id!r} is neither a folder nor a hub id that can be reached "
            f"({reason(error)}): name the folder of a language model, or a hub id"
        ) from error


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a model folder to a hub in one commit; data files only.

    Parameters
    ----------
    folder : Path
    repo_id : str
        ``NAME`` or ``OWNER/NAME``; created if it does not exist.
    private : bool
        Whether only the owner may see it. A repository that is public already is refused.
    token : str, optional
        None takes that of the environment (``HF_TOKEN``), or of ``hf auth login``. It is sent in
        the header of requests and kept nowhere.
    revision : str, optional
        Branch; created if it does not exist.

    Returns
    -------
    str
        Address of the repository.

    Raises
    ------
    WhetError
        If the folder holds anything else, or the hub does not take it; nothing is published then.
    """
    names = _uploaded(folder)
    hub = require("huggingface_hub", "uploading to a hub")
    api = hub.HfApi(token=token)
    try:
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        if private and not there.private:
            raise WhetError(
                f"the repository {repo_id!r} is public: name another one, or say that it may be "
                "(private=False, on the command line --public)"
            )
        left = {file.rfilename for file in there.siblings or []} & set(_MARKS) - set(names)
        added = [hub.CommitOperationAdd(name, folder / name) for name in names]
        removed = [hub.CommitOperationDelete(name) for name in sorted(left)]
        api.create_commit(
            repo_id,
            [*added, *removed],
            commit_message="Upload a classifier of whet",
            revision=revision,
        )
    except WhetError:
        raise
    except Exception as error:  # the network, the hub, or what it checks before it asks
        # Without the cause, which may hold the request's header and so the token.
        raise WhetError(_refused(error, repo_id, token or hub.get_token())) from None
    return address


def _uploaded(folder: Path) -> list[str]:
    """Return the names of a folder's files, all of kinds that are uploaded."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        path = folder / name
        known = any(path.match(pattern) for pattern in _UPLOADED)
        if not known or path.is_symlink() or not path.is_file():
            raise WhetError(
                f"{path} is not uploaded: only safetensors, JSON, cards and tokenizer files are; "
                "move it out of the folder"
            )
    return names


def _refused(error: Exception, repo_id: str, token: str | None) -> str:
    """Return a sentence about a failed upload, without the token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = reason(error)
    if token:
        token = token.strip()
        said = said.replace(token, "...").replace(repr(token)[1:-1], "...")
    if status in (401, 403):
        return (
            f"the hub does not let you write to {repo_id!r} ({status}): log in with 'hf auth "
            "login', or set HF_TOKEN to a token that may write there"
        )
    if status is not None or isinstance(error, ValueError):
        return f"the hub does not take {repo_id!r} ({said}): correct what it names"
    return (
        f"the hub cannot be reached ({type(error).__name__}: {said}): check the network, "
        "HF_ENDPOINT and HF_HUB_OFFLINE, and upload again"
    )


def reason(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
