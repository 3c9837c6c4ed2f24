"""What an alignment run is asked to do: frozen settings, and the YAML file that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from whet.errors import WhetError, did_you_mean
from whet.posttrain.settings import (
    DpoSettings,
    GenerateSettings,
    OnlineSettings,
    TrainSettings,
)

T = TypeVar("T")

#: What a reward may come from. Besides them there is always the arm ``sft``, which has none.
REWARDS = ("vanilla", "initial", "refined")
TRAINERS = ("dpo", "grpo", "rloo")
#: Settings of a judge that decide what a run costs, how fast it is and where the model is served,
#: not what it finds.
_COST = ("base_url", "concurrency", "timeout", "max_cost", "max_calls", "price", "key_env")

_AT_ONE = {"temperature": 1.0}
_SFT = TrainSettings()
_SAMPLED = GenerateSettings(temperature=1.0, samples=4)
_EVALUATED = GenerateSettings(temperature=1.0)


@dataclass(frozen=True)
class JudgeSettings:
    """How a language model is asked for labels; as the flags of ``whet annotate``.

    Parameters
    ----------
    task : str
        Task file, or the name of a task that comes with whet. Its template may name the columns
        ``prompt``, ``completion`` (or ``response``, the same) and ``text``, both in one.
    backend : str
        ``openai`` (any compatible server), ``anthropic``, ``local``, or ``replay:FILE#COLUMN``.
    model, base_url, key_env : str, optional
    samples : int
        Answers to each question; their agreement is the probability of the label.
    temperature : float, optional
        0, or 1 with several samples.
    concurrency, timeout, max_tokens : optional
    max_cost, max_calls : optional
        Most US dollars and calls of one run of the command.
    price : str, optional
        US dollars for a million tokens in and out, as in ``"0.15,0.6"``.

    Examples
    --------
    >>> JudgeSettings(task="safety", model="judge-1").backend
    'openai'
    """

    task: str
    backend: str = "openai"
    model: str | None = None
    base_url: str | None = None
    key_env: str | None = None
    samples: int = 1
    temperature: float | None = None
    concurrency: int = 16
    timeout: float = 120.0
    max_tokens: int | None = None
    max_cost: float | None = None
    max_calls: int | None = None
    price: str | None = None


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifiers learn from the judge's labels; see :class:`whet.LabelRefiner`.

    Parameters
    ----------
    method : {"tsp", "silr", "uu"}
        Of the refined classifier; the initial one takes the labels for the truth (``pn``).
    encoder : str
        Of both.
    rounds, folds : int, optional
        Of the refined classifier.
    gold_rows : int
        Random completions that a person is asked to label.
    gold_budget : int
        Most gold labels that are used.
    finetune : dict
        Of an encoder ``hf:...``, for both; see :class:`whet.finetune.settings.Settings`.
    seed : int

    Examples
    --------
    >>> ClassifierSettings(method="tps")
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: method = 'tps' (did you mean 'tsp'?)
    """

    method: str = "tsp"
    encoder: str = "tfidf"
    rounds: int | None = None
    folds: int | None = None
    gold_rows: int = 50
    gold_budget: int = 100
    finetune: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        methods = ("tsp", "silr", "uu")
        if self.method not in methods:
            raise WhetError(f"method = {self.method!r}{did_you_mean(self.method, methods)}")
        for name in ("gold_rows", "gold_budget"):
            if getattr(self, name) < 1:
                raise WhetError(f"{name} = {getattr(self, name)}: it must be at least 1")


_CLASSIFIED = ClassifierSettings()


@dataclass(frozen=True)
class TrainerSettings:
    """The trainers that each reward is tried with; those left out are not run.

    Parameters
    ----------
    dpo : DpoSettings, optional
        On the best and the worst sample of each prompt.
    grpo, rloo : OnlineSettings, optional
        On completions that the model makes while it is trained.

    Examples
    --------
    >>> list(TrainerSettings(dpo=DpoSettings()).chosen)
    ['dpo']
    """

    dpo: DpoSettings | None = None
    grpo: OnlineSettings | None = None
    rloo: OnlineSettings | None = None

    def __post_init__(self) -> None:
        if not self.chosen:
            raise WhetError(f"no trainer is named: name one or more of {', '.join(TRAINERS)}")
        for name in ("grpo", "rloo"):
            online = getattr(self, name)
            if online is not None and online.method != name:
                raise WhetError(f"method = {online.method!r} below {name}: leave it out")

    @property
    def chosen(self) -> dict[str, DpoSettings | OnlineSettings]:
        """The trainers that are run, by name."""
        return {name: getattr(self, name) for name in TRAINERS if getattr(self, name) is not None}


@dataclass(frozen=True)
class EvaluationSettings:
    """How the arms are compared.

    Parameters
    ----------
    prompts : str
        Table with ``prompt`` and ``harmful`` (true, false, or empty for neither), and
        ``reference`` answers for ``preference``. No prompt of training.
    generate : GenerateSettings
        Of all arms. The default samples at temperature 1, without which there is no estimate of
        the divergence from the SFT model.
    judge : JudgeSettings, optional
        A second model for the safety rate, which no arm was trained on.
    preference : JudgeSettings, optional
        A judge of answers against ``reference``; its task has the classes ``A`` and ``B`` and the
        columns ``prompt``, ``a`` and ``b``. ``preference`` comes with whet.

    Examples
    --------
    >>> EvaluationSettings("eval.parquet").generate.temperature
    1.0
    """

    prompts: str
    generate: GenerateSettings = _EVALUATED
    judge: JudgeSettings | None = None
    preference: JudgeSettings | None = None


@dataclass(frozen=True)
class AlignRecipe:
    """An alignment run.

    Parameters
    ----------
    model : str
        Folder or hub id of a causal language model.
    demonstrations : str
        Table with ``prompt`` and ``completion``.
    prompts : str
        Table with ``prompt``: of the samples, and of the trainers.
    target : str
        The class of the judge's task that is rewarded.
    trainers : TrainerSettings
    evaluation : EvaluationSettings
    judge : JudgeSettings, optional
        The model whose labels are refined. Needed unless ``corpus`` is given and no reward is
        ``vanilla``.
    corpus : str, optional
        What the classifiers learn from, in place of judged samples: a table with ``prompt``,
        ``completion``, ``pseudo_label`` and, where known, ``pseudo_prob`` and ``gold_label``.
    gold : str, optional
        Table with ``row`` and ``gold_label``.
    rewards : tuple of {"vanilla", "initial", "refined"}
    sft : TrainSettings
    samples : GenerateSettings
        At least two of each prompt for DPO.
    classifier : ClassifierSettings
    seed : int
        Of all stages that are given none of their own.
    out : str
        The run folder.

    Examples
    --------
    >>> AlignRecipe("m", "d.csv", "p.csv", "safe", TrainerSettings(dpo=DpoSettings()),
    ...             EvaluationSettings("e.csv"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the recipe has no judge: add it, or give a corpus and leave out \
'vanilla'
    """

    model: str
    demonstrations: str
    prompts: str
    target: str
    trainers: TrainerSettings
    evaluation: EvaluationSettings
    judge: JudgeSettings | None = None
    corpus: str | None = None
    gold: str | None = None
    rewards: tuple[str, ...] = REWARDS
    sft: TrainSettings = _SFT
    samples: GenerateSettings = _SAMPLED
    classifier: ClassifierSettings = _CLASSIFIED
    seed: int = 0
    out: str = "whet-align"

    def __post_init__(self) -> None:
        for name in self.rewards:
            if name not in REWARDS:
                raise WhetError(f"rewards name {name!r}{did_you_mean(name, REWARDS)}")
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise WhetError(f"rewards = {list(self.rewards)}: name each once, and at least one")
        if self.judge is None and (self.corpus is None or "vanilla" in self.rewards):
            raise WhetError(
                "the recipe has no judge: add it, or give a corpus and leave out 'vanilla'"
            )
        if self.trainers.dpo is not None and self.samples.samples < 2:
            raise WhetError(
                f"samples.samples = {self.samples.samples}: dpo compares samples of a prompt, so "
                "take at least 2"
            )

    @property
    def arms(self) -> list[tuple[str, str]]:
        """(reward, trainer) of each arm but ``sft``, trainer by trainer."""
        return [(reward, trainer) for trainer in self.trainers.chosen for reward in self.rewards]

    @property
    def samples_needed(self) -> bool:
        """Whether the SFT model is sampled: for the classifiers' corpus, or for pairs."""
        return self.corpus is None or self.trainers.dpo is not None

    @property
    def judged_needed(self) -> bool:
        """Whether the judge labels the samples."""
        pairs = self.trainers.dpo is not None and "vanilla" in self.rewards
        return self.corpus is None or pairs

    @property
    def files(self) -> dict[str, str]:
        """The input files by their key in the recipe."""
        named = {
            "demonstrations": self.demonstrations,
            "prompts": self.prompts,
            "evaluation.prompts": self.evaluation.prompts,
            "corpus": self.corpus,
            "gold": self.gold,
        }
        return {key: path for key, path in named.items() if path is not None}

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide what a run finds: not its folder, cost or speed."""
        whole: dict[str, Any] = asdict(self)
        whole.pop("out")
        for judge in (
            whole["judge"],
            whole["evaluation"]["judge"],
            whole["evaluation"]["preference"],
        ):
            for name in _COST if judge is not None else ():
                judge.pop(name)
        return whole


def load_recipe(path: Path) -> AlignRecipe:
    """Read a recipe.

    Parameters
    ----------
    path : Path
        YAML file whose keys are those of :class:`AlignRecipe`; sections hold the keys of their
        classes.

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


def parse_recipe(content: object, source: str = "the recipe") -> AlignRecipe:
    """Turn the keys of a recipe into settings; ``source`` names it in errors.

    Examples
    --------
    >>> parse_recipe({"modell": "m"})
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the recipe: unknown key 'modell' (did you mean 'model'?): correct or \
remove it
    """
    try:
        return _build(AlignRecipe, _with_defaults(content), "")
    except WhetError as error:
        raise WhetError(f"{source}: {error}") from None


def _with_defaults(content: object) -> object:
    """Spread the seed over the stages, and name the method of each online trainer."""
    if not isinstance(content, Mapping):
        return content
    spread = {str(key): value for key, value in content.items()}
    seed = {"seed": spread.get("seed", 0)}
    _default(spread, "sft", seed)
    _default(spread, "samples", seed | _AT_ONE | {"samples": _SAMPLED.samples})
    _default(spread, "classifier", seed)
    _default(_copied(spread, "evaluation"), "generate", seed | _AT_ONE)
    trainers = _copied(spread, "trainers")
    for name in TRAINERS:
        if name in trainers:
            _default(trainers, name, seed if name == "dpo" else seed | {"method": name})
    return spread


def _copied(keys: dict[str, Any], section: str) -> dict[str, Any]:
    """Return a section that may be changed; an empty one where there is none to change."""
    if not isinstance(keys.get(section), Mapping):
        return {}
    keys[section] = dict(keys[section])
    inner: dict[str, Any] = keys[section]
    return inner


def _default(keys: dict[str, Any], section: str, defaults: dict[str, Any]) -> None:
    given = keys.get(section)
    if given is None or isinstance(given, Mapping):
        keys[section] = defaults | dict(given or {})


def _build(cls: type[T], content: object, where: str) -> T:
    """Return settings of a class from the keys of a section."""
    if not isinstance(content, Mapping):
        raise WhetError(
            f"{where or 'the file'} holds {_short(content)}, not settings: write lines of key: "
            "value below it"
        )
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise WhetError(
                f"unknown key {_join(where, key)!r}{did_you_mean(str(key), known)}: correct or "
                "remove it"
            )
    for item in known.values():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in content:
            raise WhetError(f"{_join(where, item.name)} is missing: add it")
    values = {key: _value(hints[key], value, _join(where, key)) for key, value in content.items()}
    try:
        return cls(**values)
    except WhetError as error:
        raise WhetError(f"{where}: {error}" if where else str(error)) from None


def _value(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401
    options = get_args(kind) or (kind,)
    section = next((option for option in options if is_dataclass(option)), None)
    if section is not None:
        return _build(section, {} if value is None else value, where)  # type: ignore[arg-type]
    given = tuple(value) if isinstance(value, list) else value
    numbers = float in options  # YAML takes 1e-4, without a dot, for text
    try:
        return TypeAdapter(kind).validate_python(given, strict=not numbers)
    except ValidationError as error:
        said = error.errors()[0]["msg"].lower()
        raise WhetError(f"{where} = {_short(value)} is not valid ({said}): correct it") from None


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _short(value: object) -> str:
    return repr(value)[:60]
