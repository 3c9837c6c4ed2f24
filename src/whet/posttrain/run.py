"""One training and its folder: from the last checkpoint on, watched, and written when it is done.

The folder is the model's: ``settings.json`` first; ``checkpoints/`` while it trains; then weights
and tokenizer as transformers knows them; ``training.json`` last.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet import __version__
from whet.errors import WhetError
from whet.extras import require
from whet.finetune.model import longest_of, quiet
from whet.hub import fingerprint
from whet.posttrain.examples import digest
from whet.posttrain.lint import Lint
from whet.posttrain.models import (
    CHECKPOINTS,
    MANIFEST,
    PURPOSE,
    TrainingFailed,
    computes_in_bf16,
    find_model,
    load_tokenizer,
    read_config,
    save_merged,
)
from whet.posttrain.ranks import Ranks
from whet.posttrain.settings import DpoSettings, TrainSettings
from whet.rounds import Progress
from whet.store import full_disk_said, write_json

FORMAT, FORMAT_VERSION = "whet-posttrained", 1
#: Most steps between checkpoints, and most checkpoints of a run with fewer steps than that; else
#: there is one at the end of each epoch.
SAVE_EVERY, SAVES = 500, 10
#: Records of the loss that a run leaves, about.
RECORDS = 100
#: The mark of a checkpoint that was written whole.
WHOLE = "whole"
#: What differs between two runs of the same, and counters that begin anew on resuming.
NOT_KEPT = ("epoch", "num_tokens", "step_time")
VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adafactor": "adafactor", "rmsprop": "rmsprop"}
#: Largest mean log-ratio of model to reference before the first step that rounding explains.
AGREES = 0.01

Tell = Callable[[str], None]
#: A row as TRL's collators take it.
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which rows come when.

    Attributes
    ----------
    order : int64 array
        Numbers of rows, of all steps; each epoch holds every row in a new order.
    per_pass : int
        Rows of a pass; a step has ``settings.accumulate`` passes.
    steps, steps_an_epoch : int
    rows : list of dict
        Tokens of each row, as TRL's collator takes them; empty where TRL reads the table.
    lint : Lint or None
        What is wrong with the rows.

    Examples
    --------
    >>> plan = Plan.draw(5, 2, TrainSettings(epochs=2))
    >>> plan.steps, sorted(plan.order.tolist())
    (5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """

    order: NDArray[np.int64]
    per_pass: int
    steps: int
    steps_an_epoch: int
    rows: list[Row]
    lint: Lint | None

    @classmethod
    def draw(cls, n: int, per_step: int, settings: TrainSettings) -> Plan:
        """Draw the order of n rows, for steps of so many."""
        needed = n * settings.epochs
        if settings.max_steps is not None:
            needed = settings.max_steps * per_step
        rng = np.random.default_rng(settings.seed)
        epochs = [rng.permutation(n) for _ in range(math.ceil(needed / n))]
        return cls(
            order=np.concatenate(epochs)[:needed],
            per_pass=per_step // settings.accumulate,
            steps=math.ceil(needed / per_step),
            steps_an_epoch=math.ceil(n / per_step),
            rows=[],
            lint=None,
        )

    @classmethod
    def of_rows(cls, rows: list[Row], settings: TrainSettings, lint: Lint) -> Plan:
        """Draw an order in which the rows of a step go from long to short.

        The longest rows of a step share a pass then, and no other pass is padded to their length.
        """
        per_pass = math.ceil(min(settings.batch_size, len(rows)) / settings.accumulate)
        per_step = per_pass * settings.accumulate
        drawn = cls.draw(len(rows), per_step, settings)
        lengths = np.array([sum(map(len, row.values())) for row in rows])[drawn.order]
        steps = np.arange(len(lengths)) // per_step
        order = drawn.order[np.lexsort((-lengths, steps))]
        return replace(drawn, order=order, rows=rows, lint=lint)

    def shares(self, size: int) -> list[list[Row]]:
        """Return the rows of each pass that each of so many processes has.

        Those of the first pass come first, by process, as accelerate deals them out. Long and short
        rows are shared evenly. In the last pass, processes may have no row, or one less.
        """
        passes = range(0, len(self.order), self.per_pass)
        return [
            [self.rows[k] for k in self.order[start : start + self.per_pass][rank::size]]
            for start in passes
            for rank in range(size)
        ]


class Run:
    """One training: what it starts from, what decides its result, where it goes.

    Parameters
    ----------
    kind : str
        ``sft``, ``dpo`` or ``online``.
    model : str
        Folder or hub id.
    table : pyarrow.Table
        Checked rows.
    columns : list of str
        Those that decide the result.
    out : Path
    settings : TrainSettings
    progress, tell : callable, optional

    Attributes
    ----------
    ranks : Ranks
        The processes that train together; the first one writes.
    about : dict
        All that decides the result: a run that goes on must have the same.

    Examples
    --------
    >>> Run("sft", "./no/model", pa.table({}), [], Path("out"), TrainSettings(), None)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the model folder ./no/model does not exist: name the folder of a \
language model, or a hub id
    """

    def __init__(
        self,
        kind: str,
        model: str,
        table: pa.Table,
        columns: list[str],
        out: Path,
        settings: TrainSettings,
        progress: Progress | None,
        tell: Tell | None = None,
    ) -> None:
        require("trl", PURPOSE)
        self.kind, self.model, self.table, self.out = kind, model, table, out
        self.settings, self.progress, self.tell = settings, progress, tell
        self.folder = find_model(model)
        if out.resolve() == self.folder.resolve():
            raise WhetError(f"{out} is the model to begin with: choose another output folder")
        self.config = read_config(self.folder, model)
        self.tokenizer = load_tokenizer(str(self.folder))
        self.longest = longest_of(self.folder, model, self.tokenizer)
        self.ranks = Ranks()
        self.device = self.ranks.device
        self.about: dict[str, Any] = {
            "kind": kind,
            "weights": fingerprint(self.folder),
            "data_sha256": digest(table.select(columns)),
            **asdict(settings),
        }

    def train(
        self,
        prepare: Callable[[], Plan],
        build: Callable[[Run, Plan, dict[str, Any]], Any],
    ) -> Path:
        """Train unless that is done, go on where it was broken off, and write the folder.

        Parameters
        ----------
        prepare : callable
            Checks the rows and returns their plan; called before anything is written.
        build : callable
            Given the run, the plan and arguments, returns a trainer of TRL.
        """
        began = time.perf_counter()
        held = self.ranks.folder(self.out, self.about)
        try:
            if (self.out / MANIFEST).is_file():
                return self.out
            plan = prepare()
            self._check_shares(plan)
            self.ranks.lead(held.open)
            try:
                with _alone(self.device), full_disk_said(self.out):
                    trainer = build(self, plan, self._arguments(plan))
                    self._fit(trainer)
                    self.ranks.lead(
                        lambda: save_merged(trainer.model, self.config, self.tokenizer, self.out)
                    )
            except TrainingFailed:
                if self.ranks.leads:
                    self._discard()
                raise
            self.ranks.lead(lambda: self._finish(self._account(plan, trainer.state, began)))
        finally:
            held.close()
        return self.out

    def _check_shares(self, plan: Plan) -> None:
        """Raise ``WhetError`` unless all processes have as many rows of a pass."""
        if plan.per_pass % self.ranks.size:
            raise WhetError(
                f"a pass of {plan.per_pass} rows, batch_size / accumulate, cannot be shared by "
                f"{self.ranks.size} processes: make it a multiple of them"
            )

    def _finish(self, account: dict[str, Any]) -> None:
        write_json(self.out / MANIFEST, account)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)

    def _discard(self) -> None:
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        (self.out / "settings.json").unlink(missing_ok=True)
        with suppress(OSError):
            self.out.rmdir()

    def _arguments(self, plan: Plan) -> dict[str, Any]:
        """Return what all trainers of TRL are given; its own defaults are for large GPUs."""
        settings = self.settings
        return {
            "output_dir": str(self.out / CHECKPOINTS),
            "max_steps": plan.steps,
            "per_device_train_batch_size": plan.per_pass // self.ranks.size,
            "gradient_accumulation_steps": settings.accumulate,
            "train_sampling_strategy": "sequential",
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": math.ceil(settings.warmup * plan.steps),
            "weight_decay": settings.weight_decay,
            "optim": OPTIMIZERS[settings.optimizer],
            "seed": settings.seed,
            "bf16": computes_in_bf16(settings.precision, self.device),
            "use_cpu": self.device.type == "cpu",
            "dataloader_pin_memory": self.device.type == "cuda",
            "gradient_checkpointing": settings.gradient_checkpointing,
            "logging_steps": max(1, plan.steps // RECORDS),
            "logging_first_step": True,
            "logging_nan_inf_filter": False,  # else a loss that is not a number is logged as 0
            "save_steps": min(SAVE_EVERY, max(plan.steps_an_epoch, plan.steps // SAVES)),
            "save_total_limit": 2,  # while one is written, the one before is there
            "ddp_find_unused_parameters": False,
            "ddp_broadcast_buffers": False,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _fit(self, trainer: Any) -> None:  # noqa: ANN401
        """Run a trainer from the last whole checkpoint on."""
        trainer.remove_callback(require("transformers", PURPOSE).PrinterCallback)
        trainer.add_callback(_watcher(self.progress, self.settings, self.ranks))
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # TRL makes adapters bf16, too coarse for small updates
                parameter.data = parameter.data.float()
        self.ranks.lead(lambda: _last_checkpoint(self.out / CHECKPOINTS))  # removes broken ones
        last = _last_checkpoint(self.out / CHECKPOINTS)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))

    def _account(self, plan: Plan, state: Any, began: float) -> dict[str, Any]:  # noqa: ANN401
        """Return what training.json says."""
        history = [
            {k: v for k, v in entry.items() if k not in NOT_KEPT}
            for entry in state.log_history
            if "loss" in entry
        ]
        account: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "whet_version": __version__,
            "model": self.model,
            **self.about,
            "rows": self.table.num_rows,
            "steps": plan.steps,
            "device": self.device.type,
            "processes": self.ranks.size,
            "lint": None if plan.lint is None else asdict(plan.lint),
            "history": history,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
            "seconds": round(time.perf_counter() - began, 3),
        }
        if isinstance(self.settings, DpoSettings):
            account["start"] = _log_ratios(history[0], self.settings)
        return account


def _watcher(progress: Progress | None, settings: TrainSettings, ranks: Ranks) -> Any:  # noqa: ANN401
    """Return a callback that reports steps, refuses what is no number, and marks checkpoints."""
    transformers = require("transformers", PURPOSE)
    called = {"loss": "loss", "grad_norm": "gradient"}

    class Watcher(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            if progress is not None:
                progress("step", state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
            logs = kwargs["logs"]
            for name in called:
                if name in logs and not math.isfinite(logs[name]):
                    raise TrainingFailed(
                        f"the {called[name]} of step {state.global_step} is not a number: lower "
                        f"the learning rate ({args.learning_rate:g}), or mend the model"
                    )
            if isinstance(settings, DpoSettings) and state.global_step == 1 and "loss" in logs:
                _check_start(logs, settings)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            ranks.gather(None)  # each process has written its random state
            ranks.lead((folder / WHOLE).touch)

    return Watcher()


def _log_ratios(record: dict[str, Any], settings: DpoSettings) -> dict[str, float]:
    """Return the mean log-ratios of model to reference before the first step, and the loss."""
    return {
        "chosen_log_ratio": record["rewards/chosen"] / settings.beta,
        "rejected_log_ratio": record["rewards/rejected"] / settings.beta,
        "loss": record["loss"],
    }


def _check_start(record: dict[str, Any], settings: DpoSettings) -> None:
    """Refuse a model that is not its own reference before the first step."""
    if settings.reference != "start":
        return
    for side in ("chosen", "rejected"):
        ratio = record[f"rewards/{side}"] / settings.beta
        if not abs(ratio) <= AGREES:
            raise TrainingFailed(
                f"before the first step the log-ratio of model to reference is {ratio:.3g} on the "
                f"{side} completions, not 0: the model does not compute the same twice; mend its "
                "weights, or train in fp32"
            )


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole, and remove the others."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole = [path for path in found if (path / WHOLE).is_file()]
    for path in found:
        if path not in whole[-1:]:
            shutil.rmtree(path)
    return whole[-1] if whole else None


@contextmanager
def _alone(device: Any) -> Iterator[None]:  # noqa: ANN401
    """Keep libraries from printing, phoning home and changing torch's random state."""
    torch, datasets = require("torch", PURPOSE), require("datasets", PURPOSE)
    constants: Any = require("huggingface_hub.constants", PURPOSE)
    telemetry, bars = constants.HF_HUB_DISABLE_TELEMETRY, datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("trl", "accelerate", "datasets", "peft")]
    levels = [logger.level for logger in loggers]
    devices = [device] if device.type == "cuda" else []
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")
        constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer otherwise
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_TELEMETRY = telemetry
            if not bars:
                datasets.enable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
