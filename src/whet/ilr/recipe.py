"""What a run of label refinement is asked to do: settings, and the YAML file that holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from whet.align.recipe import _build
from whet.errors import WhetError, did_you_mean
from whet.finetune.settings import Settings
from whet.ilr.arms import (
    ARMS,
    Arm,
    DpoArm,
    RefineArm,
    SftArm,
    check_choice,
    check_rounds,
    check_share,
)
from whet.ilr.comparisons import RULES
from whet.ilr.evaluator import EVALUATOR
from whet.ilr.judges import LlmSettings, check_judge
from whet.ilr.pairs import SHARE
from whet.ilr.presets import PRESETS
from whet.ilr.replace import ALPHA
from whet.posttrain.settings import DpoSettings, GenerateSettings, TrainSettings

S = TypeVar("S", bound=TrainSettings)

#: What an arm may be called, since its folder is.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=+-]{0,99}")

#: Settings that decide where a run is, what it keeps and how fast it is; not what it finds.
_ASIDE = ("out", "keep_models", "llm")
_SFT, _GREEDY = TrainSettings(), GenerateSettings()


@dataclass(frozen=True)
class WeakSettings:
    """The supervisor whose mistakes are the noise: a model that learns from half of the gold data.

    Parameters
    ----------
    model : str
        Folder or hub id, as a rule smaller than the recipe's.
    train : TrainSettings
        What is not given is as in the recipe's ``sft``.
    generate : GenerateSettings
        Of the demonstrations that it writes for the other half.
    only_right : bool
        Keep the demonstrations that the task calls right, for experiments: it reads references.

    Examples
    --------
    >>> WeakSettings("models/small").generate.temperature
    0.0
    """

    model: str
    train: TrainSettings = _SFT
    generate: GenerateSettings = _GREEDY
    only_right: bool = False

    def __post_init__(self) -> None:
        _check_one_sample("weak.generate", self.generate)


@dataclass(frozen=True)
class EvaluatorSettings:
    """The judge that is trained on comparisons of gold with what the weak model says.

    Parameters
    ----------
    model : str, optional
        Folder or hub id; ``trained`` is the weak model as it is after training. Default: the weak
        model before it.
    train : Settings
        What is not given is as in :data:`whet.ilr.evaluator.EVALUATOR`.
    generate : GenerateSettings
        Of the answers to the gold half's prompts.
    stages : int
        The weak model answers after this many equal shares of its training steps. Each share but
        the whole is trained on its own, with a learning rate that falls to 0 at its end: the paper
        takes checkpoints of one training.
    rule : {"paper", "correctness"}
        See :mod:`whet.ilr.comparisons`.

    Examples
    --------
    >>> EvaluatorSettings(rule="papre")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: rule = 'papre' (did you mean 'paper'?)
    """

    model: str | None = None
    train: Settings = EVALUATOR
    generate: GenerateSettings = field(default_factory=lambda: GenerateSettings(temperature=0.6))
    stages: int = 10
    rule: str = "paper"

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES)
        if self.stages < 1:
            raise WhetError(f"stages = {self.stages}: it must be at least 1")


@dataclass(frozen=True)
class PreferenceSettings:
    """How DPO arms learn from preferences, in each round.

    Parameters
    ----------
    train : DpoSettings
        ``reference`` is an arm's to say.
    generate : GenerateSettings
        Of the completions that are compared; at least two a prompt.
    share : float
        Of the pairs, the surest are kept; see :func:`whet.ilr.pairs.preferences`.

    Examples
    --------
    >>> PreferenceSettings().generate.samples
    6
    """

    train: DpoSettings = field(default_factory=DpoSettings)
    generate: GenerateSettings = field(
        default_factory=lambda: GenerateSettings(temperature=0.7, samples=6)
    )
    share: float = SHARE

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.train.reference != "start":
            raise WhetError(
                f"train: reference = {self.train.reference!r}: an arm says it, as reference: sft"
            )


@dataclass(frozen=True)
class IlrRecipe:
    """A run of iterative label refinement.

    Parameters
    ----------
    task : str
        Name of a task, or a .yaml or .py file; see :func:`whet.ilr.tasks.find.load_task`.
    model : str
        Folder or hub id of the causal model that every training begins with.
    arms : dict of str to arm
        What is compared; see ``ARMS``.
    options : dict
        Of the task.
    data : str, optional
        Folder of the task's files.
    train, test : str
        Splits of the task, or tables (.csv, .jsonl, .parquet) with ``prompt``, ``completion`` or
        for the test ``reference``, and what the task needs besides. Without ``test`` nothing is
        evaluated.
    weak : WeakSettings, optional
        Then the completions of ``train`` are gold: half of them train the weak model, which writes
        the demonstrations for the other half. Without it they are the demonstrations to refine.
    evaluator : EvaluatorSettings, optional
        The judge called ``evaluator``; it needs ``weak``.
    judge : str
        ``evaluator``, or as in :func:`whet.ilr.judges.make_judge`.
    llm : LlmSettings, optional
        Of the judge ``llm``.
    sft : TrainSettings
        Of all models on demonstrations.
    propose : GenerateSettings
        Of the proposals, one a prompt.
    dpo : PreferenceSettings
    evaluate : GenerateSettings
        Of the test.
    rounds : int
    alpha : float
        Most of the judged rows that a round changes, as a share.
    seed : int
        Of all that is given none of its own.
    keep_models : bool
        Keep the weights of the models that only propose.
    out : str
        The run folder.

    Examples
    --------
    >>> recipe = IlrRecipe("chains", "models/base", {"ilr": RefineArm()}, judge="oracle")
    >>> recipe.rounds, recipe.alpha
    (3, 0.15)
    """

    task: str
    model: str
    arms: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    train: str = "train"
    test: str | None = "test"
    weak: WeakSettings | None = None
    evaluator: EvaluatorSettings | None = None
    judge: str = "evaluator"
    llm: LlmSettings | None = None
    sft: TrainSettings = _SFT
    propose: GenerateSettings = _GREEDY
    dpo: PreferenceSettings = field(default_factory=PreferenceSettings)
    evaluate: GenerateSettings = _GREEDY
    rounds: int = 3
    alpha: float = ALPHA
    seed: int = 0
    keep_models: bool = False
    out: str = "whet-ilr"

    def __post_init__(self) -> None:
        check_rounds(self.rounds)
        check_share("alpha", self.alpha)
        _check_one_sample("propose", self.propose)
        if not self.arms:
            raise WhetError(f"the recipe has no arms: name one or more of {', '.join(ARMS)}")
        if self.evaluator is not None and self.weak is None:
            raise WhetError(
                "the recipe has an evaluator and no weak model, whose answers it learns from: add "
                "weak, or name another judge"
            )
        for name, arm in self.arms.items():
            if not _NAME.fullmatch(name):
                raise WhetError(
                    f"arms: {name!r} cannot be the name of a folder: take letters, digits, "
                    "spaces and . _ = + -, a letter or digit first"
                )
            try:
                self._check_arm(arm)
            except WhetError as error:
                raise WhetError(f"arms.{name}: {error}") from None

    def _check_arm(self, arm: Arm) -> None:
        if isinstance(arm, SftArm):
            if arm.labels == "gold" and self.weak is None:
                raise WhetError(
                    "the labels 'gold' need weak: without it the recipe knows one demonstration "
                    "of each prompt"
                )
            self.training(arm)
            return
        self.training(arm)
        if isinstance(arm, RefineArm) and arm.mode == "naive":
            return
        name = arm.judge or self.judge
        if name != "evaluator":
            check_judge(name)
        elif self.evaluator is None:
            raise WhetError(
                "the judge 'evaluator' needs the section evaluator: add it, or name another judge"
            )
        if isinstance(arm, DpoArm) and arm.scoring == "released" and not _reads_pairs(name):
            raise WhetError(
                f"scoring = 'released' with the judge {name!r}: the slip is of judges that read "
                "two answers side by side, evaluator and llm"
            )
        if isinstance(arm, DpoArm) and self.dpo.generate.samples + arm.originals < 2:
            raise WhetError(
                f"dpo.generate.samples = {self.dpo.generate.samples}: completions of a prompt are "
                "compared, so take at least 2"
            )

    @property
    def judges(self) -> set[str]:
        """The names of the judges that arms ask."""
        asking = [arm for arm in self.arms.values() if not isinstance(arm, SftArm)]
        return {arm.judge or self.judge for arm in asking if getattr(arm, "mode", "") != "naive"}

    def training(self, arm: Arm) -> TrainSettings:
        """Return the settings by which an arm's models are trained."""
        if isinstance(arm, DpoArm) and arm.learn == "preferences":
            return _changed(self.dpo.train, arm.train)
        settings = _changed(self.sft, arm.train)
        return (
            replace(settings, seed=settings.seed + arm.again)
            if isinstance(arm, SftArm)
            else settings
        )

    def rounds_of(self, arm: Arm) -> int:
        """Return how many rounds an arm has."""
        if isinstance(arm, SftArm):
            return 0
        return self.rounds if arm.rounds is None else arm.rounds

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide what a run finds."""
        whole = {name: value for name, value in asdict(self).items() if name not in _ASIDE}
        return whole | {"llm": None if self.llm is None else self.llm.deciding()}


def load_recipe(path: Path) -> IlrRecipe:
    """Read a recipe.

    Parameters
    ----------
    path : Path
        YAML file whose keys are those of :class:`IlrRecipe`; sections hold the keys of their
        classes, ``arms`` the names of arms. ``preset`` names a preset that the file changes.

    Raises
    ------
    WhetError
        If the file cannot be read, a key is unknown or missing, or a value is not valid.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WhetError(f"the recipe {path} does not exist: name a YAML file") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise WhetError(f"the recipe {path} is not readable YAML ({reason}): mend it") from error
    return parse_recipe(content, str(path))


def parse_recipe(content: object, source: str = "the recipe") -> IlrRecipe:
    """Turn the keys of a recipe into settings; ``source`` names it in errors.

    Examples
    --------
    >>> parse_recipe({"task": "chains", "model": "m", "arms": {"irl": None}})
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the recipe: arms.irl is no arm (did you mean 'ilr'?): correct it, or \
say what it is like with like: ARM
    """
    try:
        keys = _with_defaults(_on_preset(content))
        if isinstance(keys.get("arms"), Mapping):
            keys["arms"] = {str(name): _arm(str(name), a) for name, a in keys["arms"].items()}
        return _build(IlrRecipe, keys, "")
    except WhetError as error:
        raise WhetError(f"{source}: {error}") from None


def _on_preset(content: object) -> dict[str, Any]:
    """Return a recipe's keys on top of those of the preset that it names."""
    if not isinstance(content, Mapping):
        raise WhetError(f"the file holds {content!r:.60}, not settings: write lines of key: value")
    keys = {str(key): value for key, value in content.items()}
    name = keys.pop("preset", None)
    if name is None:
        return keys
    if name not in PRESETS:
        raise WhetError(f"preset = {name!r}{did_you_mean(str(name), PRESETS)}: correct it")
    preset = PRESETS[name]
    # As "weak: null", which takes away what the preset has.
    away = {
        key for key, given in keys.items() if given is None and isinstance(preset.get(key), dict)
    }
    return {key: given for key, given in _merged(preset, keys).items() if key not in away}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of both, sections merged; ``arms`` are the upper ones where it has some."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        section = isinstance(old, Mapping) and isinstance(value, Mapping) and key != "arms"
        found[key] = _merged(old, value) if section else value  # type: ignore[arg-type]
    return found


def _with_defaults(keys: dict[str, Any]) -> dict[str, Any]:
    """Spread the seed over the stages, and defaults that are not those of a section's class."""
    seed = {"seed": keys.get("seed", 0)}
    _default(keys, "sft", seed)
    _default(keys, "propose", seed)
    _default(keys, "evaluate", seed)
    dpo = _section(keys, "dpo", needed=True)
    _default(dpo, "train", seed)
    _default(dpo, "generate", seed | {"temperature": 0.7, "samples": 6})
    weak = _section(keys, "weak")
    if isinstance(keys["sft"], Mapping):
        _build(TrainSettings, dict(keys["sft"]), "sft")  # else its faults are said to be of weak
        _default(weak, "train", keys["sft"])
    _default(weak, "generate", seed)
    evaluator = _section(keys, "evaluator")
    _default(evaluator, "train", asdict(EVALUATOR) | seed)
    _default(evaluator, "generate", seed | {"temperature": 0.6})
    return keys


def _section(keys: dict[str, Any], name: str, *, needed: bool = False) -> dict[str, Any]:
    """Return a copy of a section, in place; where there is none, one that is thrown away."""
    given = keys.get(name)
    if (given is None and not needed and name not in keys) or not isinstance(given, Mapping | None):
        return {}
    keys[name] = dict(given or {})
    return keys[name]  # type: ignore[no-any-return]


def _default(keys: dict[str, Any], section: str, defaults: Mapping[str, Any]) -> None:
    given = keys.get(section)
    if given is None or isinstance(given, Mapping):
        keys[section] = {**defaults, **(given or {})}


def _arm(name: str, content: object) -> Arm:
    """Return an arm: one of ``ARMS`` by its name, or like one, with changes."""
    changes = {} if content is None else content
    if not isinstance(changes, Mapping):
        raise WhetError(f"arms.{name} holds {content!r:.60}, not settings: correct it")
    changes = dict(changes)
    like = str(changes.pop("like", name))
    if like not in ARMS:
        where = f"arms.{name}" if like == name else f"arms.{name}.like = {like!r}"
        raise WhetError(
            f"{where} is no arm{did_you_mean(like, ARMS)}: correct it, or say what it is like "
            "with like: ARM"
        )
    known = ARMS[like]
    given = {field_name: getattr(known, field_name) for field_name in known.__dataclass_fields__}
    if isinstance(changes.get("train"), Mapping):
        changes["train"] = {**given["train"], **changes["train"]}
    return _build(type(known), given | changes, f"arms.{name}")


def _changed(settings: S, changes: Mapping[str, Any]) -> S:
    if not changes:
        return settings
    return _build(type(settings), {**asdict(settings), **changes}, "train")


def _reads_pairs(judge: str) -> bool:
    return judge.partition(":")[0] in ("evaluator", "llm")


def _check_one_sample(name: str, settings: GenerateSettings) -> None:
    if settings.samples != 1:
        raise WhetError(
            f"{name}.samples = {settings.samples}: a row has one demonstration, so take 1"
        )
