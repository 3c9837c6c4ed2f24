"""The arms of a run: what is done with the same demonstrations, to be compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from whet.errors import WhetError, did_you_mean
from whet.ilr.replace import MODES, TIES


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ``WhetError`` unless a value is one of those that are valid."""
    if value not in valid:
        raise WhetError(f"{name} = {value!r}{did_you_mean(value, valid)}")


def check_share(name: str, value: float) -> None:
    """Raise ``WhetError`` unless a value is from 0 to 1."""
    if not 0 <= value <= 1:
        raise WhetError(f"{name} = {value}: it is a share, give it from 0 to 1")


def check_rounds(value: int | None) -> None:
    """Raise ``WhetError`` unless there is at least one round."""
    if value is not None and value < 1:
        raise WhetError(f"rounds = {value}: it must be at least 1")


@dataclass(frozen=True)
class SftArm:
    """Fine-tuning alone.

    Parameters
    ----------
    labels : {"given", "gold"}
        The demonstrations as they are, or the gold ones of the same prompts: the ceiling.
    again : int
        Added to the seed of training: a control for what training anew does.
    train : dict
        Settings in place of the recipe's ``sft``.

    Examples
    --------
    >>> SftArm(labels="gold").again
    0
    """

    labels: str = "given"
    again: int = 0
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("labels", self.labels, ("given", "gold"))


@dataclass(frozen=True)
class RefineArm:
    """Rounds of label refinement, or a variant of it.

    Parameters
    ----------
    mode, ties : str
        See :func:`whet.ilr.replace.decide`.
    judge : str, optional
        In place of the recipe's.
    alpha : float, optional
        In place of the recipe's.
    folds : int
        2 as published; 0 lets one model of all rows propose for all of them.
    rounds : int, optional
        In place of the recipe's.
    train : dict
        Settings in place of the recipe's ``sft``.

    Examples
    --------
    >>> RefineArm(mode="filter").folds
    2
    """

    mode: str = "ilr"
    ties: str = "draw"
    judge: str | None = None
    alpha: float | None = None
    folds: int = 2
    rounds: int | None = None
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("ties", self.ties, TIES)
        check_rounds(self.rounds)
        if self.alpha is not None:
            check_share("alpha", self.alpha)
        if self.folds < 0 or self.folds == 1:
            raise WhetError(f"folds = {self.folds}: give 0, or at least 2")


@dataclass(frozen=True)
class DpoArm:
    """Rounds of preference optimisation on samples of the model itself, or a variant of it.

    Parameters
    ----------
    learn : {"preferences", "chosen"}
        ``chosen``: fine-tuning on the chosen completions alone, with the recipe's ``sft``; what
        DPO adds to them can be told.
    judge : str, optional
        In place of the recipe's.
    scoring : {"both", "released"}
        See :class:`whet.ilr.feedback.BothOrders`.
    reference : {"previous", "sft"}
        The model of the round before, as published, or the fine-tuned one that all rounds start
        from.
    originals : bool
        Compare with the demonstration; see :func:`whet.ilr.pairs.preferences`.
    share : float, optional
        In place of the recipe's.
    rounds : int, optional
        In place of the recipe's.
    train : dict
        Settings in place of the recipe's ``dpo.train``, or with ``chosen`` of its ``sft``.

    Examples
    --------
    >>> DpoArm(reference="sft").learn
    'preferences'
    """

    learn: str = "preferences"
    judge: str | None = None
    scoring: str = "both"
    reference: str = "previous"
    originals: bool = False
    share: float | None = None
    rounds: int | None = None
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("learn", self.learn, ("preferences", "chosen"))
        check_choice("scoring", self.scoring, ("both", "released"))
        check_choice("reference", self.reference, ("previous", "sft"))
        check_rounds(self.rounds)
        if self.share is not None:
            check_share("share", self.share)


Arm = SftArm | RefineArm | DpoArm

#: The arms that a recipe can name, or have another arm like.
ARMS: dict[str, Arm] = {
    "sft": SftArm(),
    "sft-again": SftArm(again=1),
    "gold": SftArm(labels="gold"),
    "ilr": RefineArm(),
    "ilr-one-model": RefineArm(folds=0),
    "naive": RefineArm(mode="naive"),
    "filter": RefineArm(mode="filter"),
    "oracle-ilr": RefineArm(mode="oracle", judge="oracle"),
    "dpo": DpoArm(),
    "dpo-released": DpoArm(scoring="released"),
    "dpo-fixed": DpoArm(reference="sft"),
    "dpo-originals": DpoArm(originals=True),
    "dpo-ipo": DpoArm(train={"loss": "ipo"}),
    "dpo-robust": DpoArm(train={"loss": "robust", "label_smoothing": 0.1}),
    "dpo-conservative": DpoArm(train={"loss": "cdpo", "label_smoothing": 0.1}),
    "oracle-dpo": DpoArm(judge="oracle", share=1.0),
    "chosen": DpoArm(learn="chosen"),
}
