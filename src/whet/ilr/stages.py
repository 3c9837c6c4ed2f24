"""What arms share: models, completions and scores in folders that are named by what decides them.

Two arms that train the same model on the same rows get the same folder, so that it is trained once.
A model is made when it is first needed: where its completions are on disk already, its weights may
be gone.

Of several processes that a launcher started, the first does everything; the others wait for it in
:meth:`Stages.follow`, and train with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from whet.errors import WhetError
from whet.finetune.model import longest_of
from whet.hub import fingerprint
from whet.posttrain.examples import digest
from whet.posttrain.generate import MANIFEST as GENERATED
from whet.posttrain.generate import RESULT, generate
from whet.posttrain.models import MANIFEST as TRAINED
from whet.posttrain.models import TrainingFailed, find_model, load_tokenizer
from whet.posttrain.ranks import Ranks
from whet.posttrain.settings import DpoSettings, GenerateSettings, TrainSettings
from whet.posttrain.tokens import encode_prompts
from whet.posttrain.trainers import train_dpo, train_sft
from whet.rounds import Halt, Progress
from whet.store import read_json

#: Hexadecimal digits of a folder's name.
DIGITS = 16
#: Marks a folder whose weights were removed.
DROPPED = "dropped"
#: Tells those that follow to wait while the first process does something alone.
WAIT = "wait"

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A model that is there, or will be when its folder is asked for.

    Attributes
    ----------
    key : str
        SHA-256 of what decides its weights.
    folder : Path
    make : callable
        Trains it unless that is done.

    Examples
    --------
    >>> Model("0" * 64, Path("models/base"), lambda: None).ready()
    'models/base'
    """

    key: str
    folder: Path
    make: Callable[[], object]

    def ready(self) -> str:
        """Return the folder, with a model in it."""
        self.make()
        return str(self.folder)

    def account(self) -> dict[str, Any]:
        """Return what its training wrote, also where the weights are gone."""
        return read_json(self.folder / TRAINED)

    def drop(self) -> None:
        """Remove the weights; the account stays."""
        if (self.folder / TRAINED).is_file():
            (self.folder / DROPPED).touch()
            for file in self.folder.glob("*.safetensors"):
                file.unlink()


@dataclass(frozen=True)
class Job:
    """A training, as all processes are told of it.

    Attributes
    ----------
    model : str
    rows : pyarrow.Table
    out : Path
    settings : TrainSettings
    marker : str or None

    Examples
    --------
    >>> Job("models/base", pa.table({}), Path("out"), TrainSettings(), None).model
    'models/base'
    """

    model: str
    rows: pa.Table
    out: Path
    settings: TrainSettings
    marker: str | None

    def run(self, progress: Progress | None) -> None:
        """Train."""
        if isinstance(self.settings, DpoSettings):
            train_dpo(self.model, self.rows, self.out, self.settings, progress=progress)
        else:
            train_sft(
                self.model,
                self.rows,
                self.out,
                self.settings,
                marker=self.marker,
                progress=progress,
            )


class Used(NamedTuple):
    """Names of the folders of models and completions that something took.

    Examples
    --------
    >>> Used(["sft-1"], []).models
    ['sft-1']
    """

    models: list[str]
    completions: list[str]


class Stages:
    """Does each stage once, in a folder below ``root``.

    Parameters
    ----------
    root : Path
        ``models/`` and ``completions/`` are made in it.
    progress : callable, optional
        Called with (stage, done, total).

    Attributes
    ----------
    ranks : Ranks

    Examples
    --------
    >>> Stages(Path("run")).root
    PosixPath('run')
    """

    def __init__(self, root: Path, progress: Progress | None = None) -> None:
        self.root, self.progress, self.ranks = root, progress, Ranks()

    def base(self, model: str) -> Model:
        """Return a model that needs no training: a folder or a hub id."""
        folder = find_model(model)
        return Model(fingerprint(folder), folder, lambda: None)

    def sft(
        self,
        start: Model,
        table: pa.Table,
        settings: TrainSettings,
        title: str,
        *,
        marker: str | None = None,
    ) -> Model:
        """Return a model that is fine-tuned on demonstrations; ``title`` is for the progress."""
        rows = table.select(["prompt", "completion"])
        key = _key("sft", start.key, digest(rows), asdict(settings))
        folder = self.root / "models" / f"sft-{key[:DIGITS]}"

        def job() -> Job:
            return Job(start.ready(), rows, folder, settings, marker)

        return Model(key, folder, lambda: self._make(folder, job, title))

    def dpo(
        self,
        start: Model,
        pairs: pa.Table,
        settings: DpoSettings,
        title: str,
        *,
        reference: Model | None = None,
    ) -> Model:
        """Return a model that is trained on preferences; without a reference, from ``start``."""
        rows = pairs.select(["prompt", "chosen", "rejected"])
        against = None if reference is None or reference.key == start.key else reference
        key = _key(
            *("dpo", start.key, digest(rows), asdict(settings)),
            None if against is None else against.key,
        )
        folder = self.root / "models" / f"dpo-{key[:DIGITS]}"

        def job() -> Job:
            from_where = "start" if against is None else against.ready()
            asked = replace(settings, reference=from_where)
            return Job(start.ready(), rows, folder, asked, None)

        return Model(key, folder, lambda: self._make(folder, job, title))

    def complete(
        self,
        model: Model,
        prompts: pa.Table,
        settings: GenerateSettings,
        title: str,
        *,
        used: Used | None = None,
    ) -> pa.Table:
        """Return a model's completions; see :func:`whet.posttrain.generate.generate`.

        ``used`` is told the folders of model and completions.
        """
        folder = self.completions_of(model, prompts, settings)
        if used is not None:
            used.models.append(model.folder.name)
            used.completions.append(folder.name)
        if (folder / GENERATED).is_file():
            return pq.read_table(folder / RESULT)
        rows = prompts.select(["row", "prompt"])
        return generate(model.ready(), rows, folder, settings, progress=self.told(title))

    def completions_of(self, model: Model, prompts: pa.Table, settings: GenerateSettings) -> Path:
        """Return where the completions of these prompts lie, or will."""
        rows = prompts.select(["row", "prompt"])
        key = _key("complete", model.key, digest(rows), asdict(settings))
        return self.root / "completions" / key[:DIGITS]

    def cost(self, used: Used) -> dict[str, int]:
        """Return the optimizer steps of models, and the new tokens of completions, each once.

        And how many completions were broken off at their most tokens.
        """
        models = [self.root / "models" / name / TRAINED for name in set(used.models)]
        said = [self.root / "completions" / name for name in set(used.completions)]
        ended = [
            pq.read_table(folder / RESULT, columns=["finished"])["finished"] for folder in said
        ]
        return {
            "steps": sum(read_json(path)["steps"] for path in models),
            "new_tokens": sum(read_json(folder / GENERATED)["new_tokens"] for folder in said),
            "unfinished": sum(len(flags) - flags.to_pylist().count(True) for flags in ended),
        }

    def alone(self, work: Callable[[], T]) -> T:
        """Do something in the first process, as if there were no other."""
        self.ranks.gather(WAIT)
        found = self.ranks.lead(work)
        assert found is not None  # noqa: S101 - others are in follow
        return found

    def follow(self) -> None:
        """Train with the first process until it says that it is done."""
        while (job := self.ranks.gather(None)[0]) is not None:
            if job == WAIT:
                self.ranks.lead(lambda: None)
                continue
            with suppress(TrainingFailed):  # the first process says so
                job.run(None)

    def release(self) -> None:
        """Tell those that follow that there is nothing left to train."""
        self.ranks.gather(None)

    def _make(self, folder: Path, job: Callable[[], Job], title: str) -> None:
        """Train a model unless its weights are there."""
        if (folder / DROPPED).is_file():
            (folder / TRAINED).unlink(missing_ok=True)  # it is trained anew
            (folder / DROPPED).unlink()
        if (folder / TRAINED).is_file():
            return
        made = job()
        self.ranks.gather(made)
        try:
            made.run(self.told(title))
        except TrainingFailed as error:  # other arms may go on
            raise Halt(str(error)) from error

    def told(self, title: str) -> Progress | None:
        """Return the progress of a stage, so that a log says which one is at work."""
        told = self.progress
        if told is None:
            return None
        return lambda what, done, total: told(f"{title}: {what}", done, total)


def check_prompts(model: str, tables: Sequence[pa.Table]) -> None:
    """Raise ``WhetError`` if a prompt leaves a model no room for a completion: before any training.

    Parameters
    ----------
    model : str
        Folder or hub id.
    tables : sequence of pyarrow.Table
        With ``row`` and ``prompt``.
    """
    tokenizer = load_tokenizer(model)
    longest = longest_of(find_model(model), model, tokenizer)
    for table in tables:
        lengths = [len(ids) for ids in encode_prompts(tokenizer, table["prompt"].to_pylist())]
        long = [k for k, length in enumerate(lengths) if length >= longest]
        if long:
            row = table["row"][long[0]].as_py()
            raise WhetError(
                f"{len(long):,} of {len(lengths):,} prompts leave no room for a completion: the "
                f"first, row {row}, has {lengths[long[0]]:,} tokens, and the model {model!r} reads "
                f"{longest:,}; remove them, or take a model that reads more"
            )


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
