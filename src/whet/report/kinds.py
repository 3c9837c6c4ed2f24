"""Kinds of folders that have a report: how each is known, summarised, and compared or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.posttrain.models import MANIFEST
from whet.report.align_summary import is_align, summarise_align
from whet.report.evaluate_summary import is_evaluate, summarise_evaluate
from whet.report.ilr_summary import is_ilr, summarise_ilr
from whet.report.propose_summary import is_propose, summarise_propose
from whet.report.rows import check_format, is_refined
from whet.report.summary import summarise
from whet.report.training_summary import summarise_training
from whet.store import read_json

Json = dict[str, Any]
_GO_ON = "run its command again, which goes on"
_KNOWN = "name a folder of 'whet refine', 'ilr', 'align', 'sft', 'dpo', 'propose' or 'evaluate'"


@dataclass(frozen=True)
class Kind:
    """A kind of folder that has a report.

    Attributes
    ----------
    verb : str
        Short, such as "ilr".
    name : str
        What such a folder holds, such as "a run of 'whet ilr'".
    is_kind : callable
        Given the content of the manifest of a finished folder, whether it is of this kind.
    summarise : callable
        Given a finished folder, returns its summary.
    begun : frozenset of str
        Settings by which settings.json tells an unfinished folder.
    go_on : str
        What finishes it.
    instead : str
        What to do instead of comparing such folders; empty where they are compared.
    manifest : str
        The file with which a folder is finished.

    Examples
    --------
    >>> [kind.verb for kind in KINDS if not kind.instead]
    ['refine', 'ilr', 'align']
    """

    verb: str
    name: str
    is_kind: Callable[[Json], bool]
    summarise: Callable[[Path], Json]
    begun: frozenset[str]
    go_on: str = _GO_ON
    instead: str = ""
    manifest: str = "run.json"


#: A training comes first: its manifest has a name of its own.
KINDS = (
    Kind(
        verb="training",
        name="a training",
        is_kind=lambda manifest: "kind" in manifest,
        summarise=summarise_training,
        begun=frozenset({"kind", "weights", "data_sha256"}),
        instead="'whet evaluate' compares the models of trainings",
        manifest=MANIFEST,
    ),
    Kind(
        verb="refine",
        name="a run of 'whet refine'",
        is_kind=is_refined,
        summarise=summarise,
        begun=frozenset({"input", "pseudo", "encoder"}),
        go_on="run its command again with --resume",
    ),
    Kind(
        verb="ilr",
        name="a run of 'whet ilr'",
        is_kind=is_ilr,
        summarise=summarise_ilr,
        begun=frozenset({"task", "arms"}),
        go_on="run 'whet ilr RECIPE' again, which goes on",
    ),
    Kind(
        verb="align",
        name="a run of 'whet align'",
        is_kind=is_align,
        summarise=summarise_align,
        begun=frozenset({"trainers", "rewards"}),
        go_on="run 'whet align RECIPE' again, which goes on",
    ),
    Kind(
        verb="propose",
        name="a run of 'whet propose'",
        is_kind=is_propose,
        summarise=summarise_propose,
        begun=frozenset({"generate", "marker"}),
        instead="report on each by itself",
    ),
    Kind(
        verb="evaluate",
        name="a run of 'whet evaluate'",
        is_kind=is_evaluate,
        summarise=summarise_evaluate,
        begun=frozenset({"what", "generate"}),
        instead="name all models in one 'whet evaluate'",
    ),
)


def find_kind(folder: Path) -> tuple[Kind, Json]:
    """Return the kind of a finished folder, and the content of its manifest.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    WhetError
        If there is no such folder, it is not finished, or it is of no kind that has a report.

    Examples
    --------
    >>> find_kind(Path("no/run"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the folder no/run does not exist: name a folder of \
'whet refine', 'ilr', 'align', 'sft', 'dpo', 'propose' or 'evaluate'
    """
    if not folder.is_dir():
        state = f"{folder} is a file" if folder.exists() else f"the folder {folder} does not exist"
        raise WhetError(f"{state}: {_KNOWN}")
    finished = [name for name in (MANIFEST, "run.json") if (folder / name).is_file()]
    for name in finished:
        manifest = read_json(folder / name)
        for kind in KINDS:
            if kind.manifest == name and kind.is_kind(manifest):
                return kind, manifest
        if "format_version" in manifest:  # a newer one may be told by other keys
            check_format(folder / name, manifest)
    if not finished and (folder / "settings.json").is_file():
        settings = read_json(folder / "settings.json")
        for kind in KINDS:
            if kind.begun <= settings.keys():
                raise WhetError(f"{folder} is {kind.name} that is not finished: {kind.go_on}")
    raise WhetError(f"the folder {folder} is of no verb that 'whet report' knows: {_KNOWN}")
