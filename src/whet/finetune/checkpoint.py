"""The state of a training run in one safetensors file, written atomically.

Tensors are weights, AdamW's moments, the best epoch's weights and the epoch's risk so far. The rest
is JSON in the file's header: where in which epoch the run is, and what it belongs to. There is no
state of a random generator to keep: every step seeds its own from seed, step and process, so the
number of the step *is* that state. The learning rate, too, is a function of the step alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.store import write_atomic

#: AdamW's state of a weight.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Where a run is.

    Attributes
    ----------
    step : int
        Steps done, in all epochs.
    epoch : int
        The epoch that the next step belongs to, from 0.
    position : int
        Steps done in it.
    best_epoch : int or None
    history : list of dict
        A record an epoch.
    finished : bool

    Examples
    --------
    >>> Progress(step=3).epoch
    0
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


def save(path: Path, belongs: str, progress: Progress, tensors: dict[str, Any]) -> None:
    """Write a checkpoint; a kill leaves the one before.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    belongs : str
        Hash of all that decides the run.
    progress : Progress
    tensors : dict of str to tensor
    """
    from safetensors.torch import save_file

    header = {"belongs": belongs, "progress": json.dumps(asdict(progress))}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda file: save_file(held, file.name, header))


def load(path: Path, belongs: str) -> tuple[Progress, dict[str, Any]] | None:
    """Read a checkpoint, or return None where there is none.

    Raises
    ------
    WhetError
        If it is damaged, or belongs to another run.
    """
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            found = header.get("belongs")
            progress = Progress(**json.loads(header["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WhetError(
            f"the checkpoint {path} cannot be read ({error}): remove it to begin anew"
        ) from error
    if found != belongs:
        raise WhetError(
            f"the checkpoint {path} is of other data, another model or other settings: resume with "
            "the same, or remove it"
        )
    return progress, tensors


def optimizer_tensors(optimizer: Any, names: list[str]) -> dict[str, Any]:  # noqa: ANN401
    """Return AdamW's state as tensors that are named after their weights."""
    state = optimizer.state_dict()["state"]
    return {
        f"{moment}/{names[index]}": entry[moment]
        for index, entry in state.items()
        for moment in MOMENTS
    }


def load_optimizer(optimizer: Any, names: list[str], tensors: dict[str, Any]) -> None:  # noqa: ANN401
    """Give AdamW the state that :func:`optimizer_tensors` returned."""
    state = {
        index: {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
        for index, name in enumerate(names)
        if f"step/{name}" in tensors
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors whose names begin so, without the prefix.

    Examples
    --------
    >>> part({"best/a": 1, "b": 2}, "best/")
    {'a': 1}
    """
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
