"""How a model is fine-tuned: one frozen object that decides the result, given data and loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from whet.errors import WhetError, did_you_mean

#: What of the model is trained, how its frozen weights are kept, and in what numbers is computed.
TUNES, QUANTIZATIONS, PRECISIONS = ("lora", "full"), (None, "nf4"), ("auto", "fp32", "bf16")
SET_MEANS = ("epoch", "batch")


@dataclass(frozen=True)
class Settings:
    """Settings of fine-tuning.

    Parameters
    ----------
    epochs : int
    learning_rate : float
        Of AdamW, at its highest; it rises in a line, then falls as a cosine to 0.
    weight_decay : float
    warmup : float
        Share of the steps in which the learning rate rises.
    batch_size : int
        Rows of a step, over all processes and accumulated passes.
    tokens_per_batch : int, optional
        Most tokens of a step, padding included, instead of ``batch_size``.
    max_length : int
        Most tokens of a text.
    validation : float, optional
        Share of the rows that is held out for the risk by which epochs are compared; None trains on
        all rows and keeps the last epoch. The labels of these rows are pseudo-labels too, so the
        comparison says which epoch follows the labels best, not which is right.
    validation_batch : int, optional
        The validation risk is the mean over batches of so many rows; None takes all at once.
    select_best : bool
        Keep the epoch with the least validation risk, not the last one.
    patience : int, optional
        Stop after so many epochs without a new least validation risk.
    accumulate : int
        Passes that a step's rows are split into, to save memory. The result is that of one pass.
    max_grad_norm : float, optional
        Longer gradients are shortened to this.
    precision : {"auto", "fp32", "bf16"}
        ``auto``: bf16 on a CUDA device that has it, else fp32.
    compile : bool
        Compile the model with ``torch.compile``.
    seed : int
        Of the head, adapters, dropout, batches and split.
    split_seed : int, optional
        Of the split alone.
    tune : {"lora", "full"}
        Train adapters and head, or all weights.
    quantize : {None, "nf4"}
        Keep frozen weights in 4 bits (double quantisation, computing in bf16); LoRA only.
    lora_rank, lora_alpha : int
    lora_dropout : float
    stratified, bucketed : bool
        See :mod:`whet.finetune.batches`.
    set_means : {"epoch", "batch"}
        Whether a set's mean divides by its share of the epoch or of the batch; see there.
    pad_to_max : bool
        Pad every batch to ``max_length``; costs time and changes nothing else.
    gradient_checkpointing : bool
        Compute activations twice rather than keep them.
    trust_remote_code : bool
        Run the code that the model's folder or repository brings, if it brings any. It can do all
        that you can; a saved classifier brings it too, and loading that asks again.

    Examples
    --------
    >>> Settings(epochs=1).learning_rate
    0.0001
    >>> Settings(tune="lroa")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: tune = 'lroa' (did you mean 'lora'?)
    """

    epochs: int = 3
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.03
    batch_size: int = 16
    tokens_per_batch: int | None = None
    max_length: int = 512
    validation: float | None = 0.125
    validation_batch: int | None = None
    select_best: bool = True
    patience: int | None = None
    accumulate: int = 1
    max_grad_norm: float | None = None
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    split_seed: int | None = None
    tune: str = "lora"
    quantize: str | None = None
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    stratified: bool = True
    bucketed: bool = True
    set_means: str = "epoch"
    pad_to_max: bool = False
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, valid in (
            ("tune", TUNES),
            ("quantize", QUANTIZATIONS),
            ("precision", PRECISIONS),
            ("set_means", SET_MEANS),
        ):
            value = getattr(self, name)
            if value not in valid:
                raise WhetError(f"{name} = {value!r}{did_you_mean(str(value), map(str, valid))}")
        self._check_numbers()
        if self.quantize is not None and self.tune == "full":
            raise WhetError("quantize = 'nf4' with tune = 'full': 4-bit weights cannot be trained")

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "accumulate", "lora_rank"):
            if getattr(self, name) < 1:
                raise WhetError(f"{name} = {getattr(self, name)}: it must be at least 1")
        for name in (
            *("learning_rate", "lora_alpha"),
            *("tokens_per_batch", "validation_batch", "patience", "max_grad_norm"),
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise WhetError(f"{name} = {value}: it must be above 0")
        if self.validation is not None and not 0 < self.validation < 1:
            raise WhetError(f"validation = {self.validation}: it must be between 0 and 1, or None")
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise WhetError(f"{name} = {getattr(self, name)}: it must be from 0 to below 1")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return settings from what ``dataclasses.asdict`` gave, e.g. in a model folder."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise WhetError(f"unknown setting {name!r}{did_you_mean(name, known)}")
        return cls(**values)
