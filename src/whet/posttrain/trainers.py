"""Training through TRL: demonstrations, preferences, rewards. No other module imports TRL.

Rows become tokens before TRL sees them (:mod:`whet.posttrain.tokens`), in an order that is drawn
once for the whole run: a step is so many rows of it, sorted by length, however many passes they are
split into. So accumulating changes nothing but memory and padding, and a run that is broken off
goes on with the row after the last one. For GRPO and RLOO, prompts are drawn so too, and TRL makes
tokens of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from whet.errors import WhetError
from whet.extras import require
from whet.hub import fingerprint
from whet.posttrain.examples import check_examples, is_conversational
from whet.posttrain.lint import Lint, completion_columns, judge
from whet.posttrain.models import PURPOSE, end_tokens, find_model, load_causal
from whet.posttrain.run import Plan, Row, Run, Tell
from whet.posttrain.settings import DpoSettings, OnlineSettings, TrainSettings
from whet.posttrain.tokens import Encoded, encode, encode_prompts
from whet.rounds import Progress

#: Arguments of trainers whose rows :func:`_deal` has divided.
DEALT = {"per_device_train_batch_size": 1}


def train_sft(
    model: str,
    table: pa.Table,
    out: Path,
    settings: TrainSettings,
    *,
    marker: str | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Path:
    """Train a model on demonstrations: the loss is on completion and end mark alone.

    Parameters
    ----------
    model : str
        Folder or hub id of a causal language model.
    table : pyarrow.Table
        With ``prompt`` and ``completion``; see :mod:`whet.posttrain.examples`.
    out : Path
        Folder of the trained model. Where it holds this very run complete, nothing is done; an
        unfinished one is finished, and ends with the weights of an uninterrupted one.
    settings : TrainSettings
    marker : str, optional
        What every answer holds; rows without it are counted.
    progress : callable, optional
        Called with ("step", steps done, steps in all).
    tell : callable, optional
        Given a sentence for each fault of the rows, before training.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    WhetError
        If rows, model or folder cannot be used, nothing would be learned, or the loss stops being
        a number.
    """
    table = check_examples(table, ["prompt", "completion"])
    run = Run("sft", model, table, ["prompt", "completion"], Path(out), settings, progress, tell)

    def prepare() -> Plan:
        lint, (encoded,) = _encoded(run, marker)
        rows = [
            {"input_ids": row.ids, "labels": [-100] * row.start + row.ids[row.start :]}
            for row in encoded
            if row.start < len(row.ids)
        ]
        return Plan.of_rows(rows, settings, lint)

    return run.train(prepare, _sft_trainer)


def train_dpo(
    model: str,
    table: pa.Table,
    out: Path,
    settings: DpoSettings,
    *,
    marker: str | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Path:
    """Train a model on preferences; see :class:`~whet.posttrain.settings.DpoSettings`.

    Before the first step the model is the reference, so the log-ratios must be 0: that is checked,
    unless the reference is another model, and recorded as ``start``.

    Parameters
    ----------
    model, out, progress, marker, tell
        As for :func:`train_sft`.
    table : pyarrow.Table
        With ``prompt``, ``chosen`` and ``rejected``.
    settings : DpoSettings

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    WhetError
        As :func:`train_sft`, and if the model does not begin as its reference.
    """
    columns = ["prompt", "chosen", "rejected"]
    table = check_examples(table, columns)
    run = Run("dpo", model, table, columns, Path(out), settings, progress, tell)
    if settings.reference != "start":
        run.about["reference"] = fingerprint(find_model(settings.reference))

    def prepare() -> Plan:
        lint, sides = _encoded(run, marker)
        rows = []
        for chosen, rejected in zip(*sides, strict=True):
            start = min(chosen.start, rejected.start)  # as TRL has it
            if start < min(len(chosen.ids), len(rejected.ids)):
                ids = {"prompt_ids": chosen.ids[:start], "chosen_ids": chosen.ids[start:]}
                rows.append(ids | {"rejected_ids": rejected.ids[start:]})
        plan = Plan.of_rows(rows, settings, lint)
        _check_last(plan, run.ranks.size)
        return plan

    return run.train(prepare, _dpo_trainer)


def train_online(
    model: str,
    table: pa.Table,
    reward: Callable[..., Sequence[float | None]] | list[Callable[..., Sequence[float | None]]],
    out: Path,
    settings: OnlineSettings,
    *,
    progress: Progress | None = None,
) -> Path:
    """Train a model on rewards of its own completions, with GRPO or RLOO.

    Parameters
    ----------
    model, out, progress
        As for :func:`train_sft`.
    table : pyarrow.Table
        With ``prompt``; the reward is given all other columns too.
    reward : callable or list of callables
        Called as TRL does: ``reward(prompts=..., completions=..., **columns)`` with a list each,
        an entry for each completion; returns a number for each, or None where it has none. Several
        are added up. A completion is text, or a list of messages where the prompt is one. A run
        cannot tell rewards apart by more than their names: give each reward one of its own.
    settings : OnlineSettings

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    WhetError
        If rows, model or folder cannot be used, or the loss stops being a number.
    """
    table = check_examples(table, ["prompt"])
    run = Run("online", model, table, table.column_names, Path(out), settings, progress)
    rewards = reward if isinstance(reward, list) else [reward]
    run.about["rewards"] = [getattr(each, "__name__", type(each).__name__) for each in rewards]
    per_step = settings.batch_size // settings.generations

    def prepare() -> Plan:
        if table.num_rows < per_step:
            raise WhetError(
                f"{table.num_rows} prompts with batch_size = {settings.batch_size} and generations "
                f"= {settings.generations}: a step takes {per_step} prompts; lower batch_size, or "
                "give more prompts"
            )
        _check_room(run, settings.max_new_tokens)
        drawn = Plan.draw(table.num_rows, per_step, settings)
        steps = len(drawn.order) // per_step  # TRL takes whole steps alone
        order, per_pass = (
            drawn.order[: steps * per_step],
            settings.batch_size // settings.accumulate,
        )
        return replace(drawn, order=order, steps=steps, per_pass=per_pass)

    def build(run: Run, plan: Plan, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        return _online_trainer(run, rewards, plan, arguments)

    return run.train(prepare, build)


def _encoded(run: Run, marker: str | None) -> tuple[Lint, list[list[Encoded]]]:
    """Return what is wrong with the rows, and for each side their tokens, cut to length.

    Raises
    ------
    WhetError
        If nothing would be learned of any row.
    """
    prompts = run.table["prompt"].to_pylist()
    sides = [run.table[name].to_pylist() for name in completion_columns(run.settings)]
    longest = min(run.settings.max_length, run.longest)
    encoded = [encode(run.tokenizer, prompts, completions) for completions in sides]
    lint = judge(
        encoded,
        sides,
        longest,
        end_tokens(run.config, run.tokenizer),
        marker,
        None if is_conversational(run.table) else run.tokenizer,
    )
    if run.tell is not None:
        for line in lint.lines():
            run.tell(line)
    lint.check()
    return lint, [[row._replace(ids=row.ids[:longest]) for row in side] for side in encoded]


def _check_last(plan: Plan, size: int) -> None:
    """Raise ``WhetError`` if the mean over the last pairs is not that of the processes' means."""
    left = len(plan.order) % plan.per_pass
    if left % size:
        raise WhetError(
            f"the last pass has {left} pairs, which {size} processes cannot share: give max_steps, "
            f"so that all passes are whole, such as {max(1, plan.steps - 1)}"
        )


def _check_room(run: Run, new_tokens: int) -> None:
    """Raise ``WhetError`` if a prompt and its completion exceed what the model reads."""
    prompts = encode_prompts(run.tokenizer, run.table["prompt"].to_pylist())
    place = max(range(len(prompts)), key=lambda k: len(prompts[k]))
    if len(prompts[place]) + new_tokens > run.longest:
        raise WhetError(
            f"the prompt of row {place} has {len(prompts[place]):,} tokens, which with "
            f"max_new_tokens = {new_tokens:,} are more than the {run.longest:,} that the model "
            "reads: lower max_new_tokens, or remove long prompts"
        )


def _sft_trainer(run: Run, plan: Plan, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
    trl = require("trl", PURPOSE)
    trainer = (_own_loss() if run.device.type == "cpu" else trl.SFTTrainer)(
        model=load_causal(str(run.folder), run.settings, run.device),
        args=_config(trl.SFTConfig, arguments | DEALT, max_length=None),
        train_dataset=_dataset(plan.rows[:1]),
        processing_class=run.tokenizer,
        peft_config=_adapters(run.settings),
    )
    # A process without a row in the last pass has one of which it learns nothing: losses are summed
    # over the tokens of all processes.
    idle = [plan.rows[0] | {"labels": [-100] * len(plan.rows[0]["labels"])}]
    _deal(trainer, [share or idle for share in plan.shares(run.ranks.size)])
    return trainer


def _deal(trainer: Any, shares: list[list[Row]]) -> None:  # noqa: ANN401
    """Give a trainer the rows of each pass and process, as items that are batches already.

    From single rows accelerate would make batches of its own, and fill the last ones up with rows
    of the first.
    """
    collate = trainer.data_collator
    trainer.data_collator = lambda batch: collate(batch[0])
    trainer.train_dataset = shares


def _own_loss() -> Any:  # noqa: ANN401
    """Return TRL's SFTTrainer with the model's own loss, which is the same number.

    TRL's is made to save a GPU's memory: it computes the last layer twice, and entropy and accuracy
    beside the loss, at every position. On a CPU that costs a small model much of its time.
    """
    trl = require("trl", PURPOSE)

    class OwnLoss(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def compute_loss(
            self,
            model: Any,  # noqa: ANN401
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            out = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
            # The sum over a process's tokens is divided by the tokens of all; then gradients are
            # averaged over processes, where they should be summed.
            loss = out.loss * self.accelerator.num_processes
            return (loss, out) if return_outputs else loss

    return OwnLoss


def _dpo_trainer(run: Run, plan: Plan, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
    trl, settings = require("trl", PURPOSE), run.settings
    assert isinstance(settings, DpoSettings)  # noqa: S101
    reference = None
    if settings.reference != "start":
        reference = load_causal(settings.reference, settings, run.device)
    elif settings.tune == "full":  # else it is the model without its adapters
        reference = load_causal(str(run.folder), settings, run.device)
    losses: dict[str, Any] = {"loss_type": [settings.loss]}
    if settings.loss == "cdpo":
        # TRL has no loss of this name. With S = -log sigmoid(m), F = -log sigmoid(-m) and
        # R = ((1 - e) S - e F) / (1 - 2 e), its "robust", (2 - 2 e) S - (1 - 2 e) R is
        # (1 - e) S + e F.
        e = settings.label_smoothing
        losses = {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 - 2 * e, 2 * e - 1]}
    trainer = trl.DPOTrainer(
        model=load_causal(str(run.folder), settings, run.device),
        ref_model=reference,
        args=_config(
            trl.DPOConfig,
            arguments | DEALT,
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            max_length=None,
            **losses,
        ),
        # TRL would cut all rows into tokens again: it gets one that says nothing.
        train_dataset=_dataset([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=run.tokenizer,
        peft_config=_adapters(settings),
    )
    _deal(trainer, plan.shares(run.ranks.size))
    return trainer


def _online_trainer(
    run: Run,
    rewards: list[Callable[..., Any]],
    plan: Plan,
    arguments: dict[str, Any],
) -> Any:  # noqa: ANN401
    trl, settings = require("trl", PURPOSE), run.settings
    assert isinstance(settings, OnlineSettings)  # noqa: S101
    grpo = settings.method == "grpo"
    return (trl.GRPOTrainer if grpo else trl.RLOOTrainer)(
        model=load_causal(str(run.folder), settings, run.device),
        reward_funcs=rewards,
        args=_config(
            trl.GRPOConfig if grpo else trl.RLOOConfig,
            arguments,
            num_generations=settings.generations,
            temperature=settings.temperature,
            max_completion_length=settings.max_new_tokens,
            beta=settings.beta,
            disable_dropout=True,
            shuffle_dataset=False,
        ),
        train_dataset=_dataset(run.table.take(pa.array(plan.order))),
        processing_class=run.tokenizer,
        peft_config=_adapters(settings),
    )


def _config(kind: Any, arguments: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401
    config = kind(**arguments, **more)
    # One process trains on one device; with several in sight transformers would split batches.
    if config.device.type == "cuda":
        config._n_gpu = 1
    return config


def _dataset(rows: list[Row] | pa.Table) -> Any:  # noqa: ANN401
    datasets = require("datasets", PURPOSE)
    return (
        datasets.Dataset(rows) if isinstance(rows, pa.Table) else datasets.Dataset.from_list(rows)
    )


def _adapters(settings: TrainSettings) -> Any:  # noqa: ANN401
    if settings.tune == "full":
        return None
    return require("peft", "tune = 'lora'").LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        bias="none",
        target_modules="all-linear",
    )
