"""How a causal model is post-trained and asked: frozen objects that decide the result."""

from __future__ import annotations

from dataclasses import dataclass

from whet.errors import WhetError, did_you_mean
from whet.finetune.settings import PRECISIONS, QUANTIZATIONS, TUNES

OPTIMIZERS = ("adamw", "adafactor", "rmsprop")
LOSSES = ("sigmoid", "ipo", "robust", "cdpo")
METHODS = ("grpo", "rloo")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of supervised fine-tuning on demonstrations.

    The defaults are those of the released code of iterative label refinement (Ye et al.,
    "Iterative Label Refinement Matters More than Preference Optimization under Weak Supervision",
    ICLR 2025) for a model of 7 billion weights. Gradients longer than 1 are shortened to 1.

    Parameters
    ----------
    learning_rate : float
        At its highest; it rises in a line, then falls as a cosine to 0.
    epochs : int
        Passes over the rows.
    max_steps : int, optional
        Steps in all, whatever ``epochs`` says; rows come again as often as it takes.
    batch_size : int
        Rows of a step, over all its passes; a multiple of ``accumulate``. Pairs for DPO,
        completions for GRPO and RLOO.
    accumulate : int
        Passes that a step's rows are split into. More need less memory, and the result is that of
        one pass, up to rounding. The rows of a step are sorted by length, so that more passes hold
        less padding too.
    max_length : int
        Most tokens of a row, prompt and completion; longer ones lose their end.
    warmup : float
        Share of the steps in which the learning rate rises, from 0 to below 1.
    weight_decay : float
        Not below 0.
    optimizer : {"adamw", "adafactor", "rmsprop"}
        adamw, adafactor or rmsprop.
    tune : {"lora", "full"}
        lora trains adapters beside all linear layers but the last, full all weights.
    quantize : {None, "nf4"}
        nf4 keeps frozen weights in 4 bits (double quantisation, computing in bf16); LoRA only.
    lora_rank : int
        Rank of the adapters.
    lora_alpha : int
        An adapter's output is multiplied by ``lora_alpha / lora_rank``.
    lora_dropout : float
        From 0 to below 1. DPO, GRPO and RLOO do without any dropout: the log-ratio of a model to
        itself must be 0.
    precision : {"auto", "fp32", "bf16"}
        fp32, bf16, or auto: bf16 on a CUDA device that has it, else fp32.
    gradient_checkpointing : bool
        Compute activations twice rather than keep them.
    seed : int
        Of the order of rows, adapters and dropout.

    Raises
    ------
    WhetError
        With the value and the rule.

    Examples
    --------
    >>> TrainSettings(batch_size=8).learning_rate
    0.0001
    >>> TrainSettings(batch_size=8, accumulate=3)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: batch_size = 8 with accumulate = 3: the rows of a step are split into \
equal passes; make batch_size a multiple of accumulate
    """

    learning_rate: float = 1e-4
    epochs: int = 2
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    max_length: int = 1024
    warmup: float = 0.05
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    tune: str = "lora"
    quantize: str | None = None
    lora_rank: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice(self, "optimizer", OPTIMIZERS)
        _check_choice(self, "tune", TUNES)
        _check_choice(self, "quantize", QUANTIZATIONS)
        _check_choice(self, "precision", PRECISIONS)
        _check_least(
            self, 1, "epochs", "max_steps", "batch_size", "accumulate", "max_length", "lora_rank"
        )
        _check_least(self, 0, "weight_decay", "seed")
        _check_above_zero(self, "learning_rate", "lora_alpha")
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise WhetError(f"{name} = {getattr(self, name)}: it must be from 0 to below 1")
        if self.quantize is not None and self.tune == "full":
            raise WhetError("quantize = 'nf4' with tune = 'full': 4-bit weights cannot be trained")
        if self.batch_size % self.accumulate:
            raise WhetError(
                f"batch_size = {self.batch_size} with accumulate = {self.accumulate}: the rows of "
                "a step are split into equal passes; make batch_size a multiple of accumulate"
            )


@dataclass(frozen=True)
class DpoSettings(TrainSettings):
    """Settings of direct preference optimisation (Rafailov et al., NeurIPS 2023) and its kin.

    With the margin ``m = beta * ((log p(chosen) - log r(chosen)) - (log p(rejected) - log
    r(rejected)))`` of the model p over the reference r, and ``e = label_smoothing``:

    ``sigmoid``
        ``-log sigmoid(m)``.
    ``cdpo``
        ``-(1 - e) log sigmoid(m) - e log sigmoid(-m)``: the label is wrong with probability e
        (Mitchell, "A note on DPO with noisy preferences", 2023).
    ``robust``
        ``(-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e)``: unbiased under such labels
        (Chowdhury et al., "Provably Robust DPO", ICML 2024).
    ``ipo``
        ``(d - 1 / (2 beta))^2`` with d the difference of mean log-ratios a token (Azar et al.,
        AISTATS 2024).

    Parameters
    ----------
    beta : float
        Above 0; the higher, the closer the model stays to the reference.
    loss : {"sigmoid", "ipo", "robust", "cdpo"}
        sigmoid, ipo, robust or cdpo.
    label_smoothing : float
        From 0 to below 0.5; for ``robust`` and ``cdpo`` only.
    reference : str
        start, the model that training begins with, or a model folder.

    Other parameters are those of :class:`TrainSettings`; the learning rate is 1e-6 and the
    optimizer RMSprop, as in the released code of iterative label refinement.

    Examples
    --------
    >>> DpoSettings().optimizer
    'rmsprop'
    >>> DpoSettings(label_smoothing=0.1)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: label_smoothing = 0.1 with loss = 'sigmoid', which has none: choose \
'robust' or 'cdpo'
    """

    learning_rate: float = 1e-6
    optimizer: str = "rmsprop"
    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    reference: str = "start"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice(self, "loss", LOSSES)
        _check_above_zero(self, "beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise WhetError(
                f"label_smoothing = {self.label_smoothing}: it must be from 0 to below 0.5"
            )
        if self.label_smoothing and self.loss not in ("robust", "cdpo"):
            raise WhetError(
                f"label_smoothing = {self.label_smoothing} with loss = {self.loss!r}, which has "
                "none: choose 'robust' or 'cdpo'"
            )


@dataclass(frozen=True)
class OnlineSettings(TrainSettings):
    """Settings of training on rewards of the model's own completions.

    What is not named here is as TRL has it.

    Parameters
    ----------
    method : {"grpo", "rloo"}
        Group relative policy optimisation (Shao et al., "DeepSeekMath", 2024), or REINFORCE
        leave-one-out (Ahmadian et al., "Back to Basics", ACL 2024).
    generations : int
        Completions of each prompt, at least 2; their rewards are compared with one another.
    temperature : float
        Of sampling, above 0.
    max_new_tokens : int
        Longest completion.
    beta : float
        Weight of the divergence from the model that training begins with; 0 does without.

    Other parameters are those of :class:`TrainSettings`. ``batch_size`` counts completions, so it
    is a multiple of ``generations``; ``max_length`` is not used, since a prompt is never cut.

    Examples
    --------
    >>> OnlineSettings(batch_size=8, generations=4).method
    'grpo'
    >>> OnlineSettings(batch_size=6, generations=4)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: batch_size = 6 with generations = 4: a step holds whole groups of \
completions; make batch_size a multiple of generations
    """

    learning_rate: float = 1e-6
    method: str = "grpo"
    generations: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 256
    beta: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice(self, "method", METHODS)
        _check_least(self, 2, "generations")
        _check_least(self, 1, "max_new_tokens")
        _check_least(self, 0, "beta")
        _check_above_zero(self, "temperature")
        if self.batch_size % self.generations:
            raise WhetError(
                f"batch_size = {self.batch_size} with generations = {self.generations}: a step "
                "holds whole groups of completions; make batch_size a multiple of generations"
            )


@dataclass(frozen=True)
class GenerateSettings:
    """Settings of generation.

    Parameters
    ----------
    temperature : float
        0 takes the most probable token each time.
    samples : int
        Completions of each prompt.
    max_new_tokens : int
        Longest completion.
    top_p : float
        Sample from the fewest tokens that hold this share of the probability; above 0, at most 1.
    tokens_per_batch : int
        Most tokens of a batch, padding and the room for completions included.
    seed : int

    Examples
    --------
    >>> GenerateSettings(samples=2)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: samples = 2 with temperature = 0, where all are the same: raise the \
temperature, or take one sample
    """

    temperature: float = 0.0
    samples: int = 1
    max_new_tokens: int = 256
    top_p: float = 1.0
    tokens_per_batch: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        _check_least(self, 1, "samples", "max_new_tokens", "tokens_per_batch")
        _check_least(self, 0, "temperature", "seed")
        if not 0 < self.top_p <= 1:
            raise WhetError(f"top_p = {self.top_p}: it must be above 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise WhetError(
                f"samples = {self.samples} with temperature = 0, where all are the same: raise "
                "the temperature, or take one sample"
            )


def _check_choice(settings: object, name: str, valid: tuple[str | None, ...]) -> None:
    value = getattr(settings, name)
    if value not in valid:
        raise WhetError(f"{name} = {value!r}{did_you_mean(str(value), map(str, valid))}")


def _check_least(settings: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:  # also what is not a number
            raise WhetError(f"{name} = {value}: it must be at least {least}")


def _check_above_zero(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise WhetError(f"{name} = {getattr(settings, name)}: it must be above 0")
