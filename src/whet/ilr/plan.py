"""What a recipe will take, by arithmetic before anything is run: trainings, tokens, hours.

Nothing of it is measured. Trainings, rows and completions are at most so many; the hours assume:

- a training costs 6 operations for each weight and token, DPO 8 for each of a pair's two answers,
  since the reference reads them too; adapters save some of that;
- reading (a prompt, or what a judge reads) costs 2 operations for each weight and token;
- generation is bound by memory: each new token of a batch reads all weights once, two bytes each;
  a batch is ``tokens_per_batch`` full, and all completions are as long as they may be;
- texts have a token for every 4 characters, and all proposals differ from the demonstrations.

The hours are those of one GPU of ``GPU``. What is left out: a language model that judges, loading
and saving, the time between tokens in which the GPU waits, and that it is not always full. Of
several processes all share the training of causal models; the rest is done by the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from whet.ilr.arms import DpoArm, RefineArm, SftArm
from whet.ilr.presets import WEIGHTS
from whet.ilr.recipe import IlrRecipe
from whet.ilr.rows import text_of
from whet.posttrain.settings import GenerateSettings, TrainSettings

#: Operations and bytes a second of a GPU with 80 GB (NVIDIA H100 SXM, bf16 without sparsity, by its
#: data sheet), and the share of both that is assumed to be used.
GPU = {"operations": 989e12, "bytes": 3.35e12, "used": 0.4}
CHARACTERS = 4
TRAIN, DPO, READ = 6, 8, 2
#: The kind of what people read: pairs, each with its prompt.
PEOPLE = "people"


@dataclass(frozen=True)
class Part:
    """Work of one kind with one model.

    Attributes
    ----------
    kind : {"train", "dpo", "generate", "judge", "people"}
    model : str
        ``-`` for people, who take no hours of a GPU.
    rows : int
        Texts trained on or read, or completions.
    tokens : float
        Of these; of a completion with its prompt.
    new : int
        Most new tokens of each.
    batch : int
        Completions at a time.

    Examples
    --------
    >>> Part("train", "m", rows=1000, tokens=2e5).seconds(7e9) > 0
    True
    """

    kind: str
    model: str
    rows: int
    tokens: float
    new: int = 0
    batch: int = 1

    def seconds(self, weights: float) -> float:
        """Return the seconds that it takes a GPU; see the module."""
        factor = {"train": TRAIN, "dpo": DPO}.get(self.kind, READ)
        computing = factor * weights * self.tokens / (GPU["operations"] * GPU["used"])
        steps = math.ceil(self.rows / self.batch) * self.new
        return computing + steps * 2 * weights / (GPU["bytes"] * GPU["used"])


class Line(NamedTuple):
    """Parts of one kind and model together; hours are None where the weights are not known.

    Examples
    --------
    >>> Line("train", "m", times=2, rows=10, tokens=1000.0, hours=None).times
    2
    """

    kind: str
    model: str
    times: int
    rows: int
    tokens: float
    hours: float | None


def plan(recipe: IlrRecipe, train: pa.Table, test: pa.Table | None) -> list[Line]:
    """Return what a recipe takes at most.

    Parameters
    ----------
    recipe : IlrRecipe
    train, test : pyarrow.Table
        As :class:`whet.ilr.pipeline.Ilr` has them.

    Returns
    -------
    list of Line
        What arms share is counted once. ``tokens`` are those that are read or trained on and, of
        completions, those that are written.

    Examples
    --------
    >>> from whet.ilr.recipe import parse_recipe
    >>> from whet.ilr.tasks.find import load_task
    >>> keys = {"task": "chains", "model": "m", "judge": "oracle", "rounds": 2,
    ...         "arms": {"sft": None, "ilr": None}}
    >>> chains = load_task("chains")
    >>> lines = plan(parse_recipe(keys), chains.load(None, "train"), chains.load(None, "test"))
    >>> [(line.kind, line.times) for line in lines]  # sft; two halves and a whole a round
    [('train', 7), ('generate', 7)]
    """
    found: dict[tuple[str, str], list[Part]] = {}
    for part in _Parts(recipe, train, test).found.values():
        found.setdefault((part.kind, part.model), []).append(part)
    lines = []
    for (kind, model), parts in found.items():
        weights = weights_of(model)
        seconds = None if weights is None else sum(part.seconds(weights) for part in parts)
        lines.append(
            Line(
                *(kind, model, len(parts), sum(part.rows for part in parts)),
                sum(part.tokens + part.rows * part.new for part in parts),
                None if seconds is None else seconds / 3600,
            )
        )
    return lines


class _Parts:
    """The parts of a recipe, by what tells them apart: arms that share one name it alike."""

    def __init__(self, recipe: IlrRecipe, train: pa.Table, test: pa.Table | None) -> None:
        self.recipe, self.found = recipe, dict[tuple[Any, ...], Part]()
        self.prompt, self.answer = _tokens(train, "prompt"), _tokens(train, "completion")
        self.test, self.given = test, train.num_rows
        if recipe.weak is not None:
            gold = train.num_rows // 2
            self.given -= gold
            self._supervise(gold)
        for name, arm in recipe.arms.items():
            if isinstance(arm, SftArm):
                self._sft((arm.labels, arm.again), recipe.training(arm))
            elif isinstance(arm, RefineArm):
                self._refine(name, arm)
            else:
                self._prefer(name, arm)

    def _supervise(self, gold: int) -> None:
        weak, evaluator = self.recipe.weak, self.recipe.evaluator
        assert weak is not None  # noqa: S101 - the caller looked
        self._train("weak", weak.model, gold, weak.train)
        self._complete("weak", weak.model, self.given, self.prompt, weak.generate)
        self._evaluate("weak", weak.model)
        if evaluator is None or "evaluator" not in self.recipe.judges:
            return
        for stage in range(1, evaluator.stages + 1):
            if stage < evaluator.stages:
                rows = _passes(gold, weak.train) * stage // evaluator.stages
                length = self.prompt + self.answer
                self._add(("weak", stage), "train", weak.model, rows, length)
            self._complete(("weak", stage), weak.model, gold, self.prompt, evaluator.generate)
        pairs = gold * (2 if evaluator.rule == "paper" else 1)
        texts = 2 * pairs * evaluator.train.epochs
        self._add("judge", "train", self._evaluator, texts, self.prompt + 2 * self.answer)

    @property
    def _evaluator(self) -> str:
        recipe = self.recipe
        chosen = None if recipe.evaluator is None else recipe.evaluator.model
        if chosen not in (None, "trained"):
            return chosen
        return recipe.model if recipe.weak is None else recipe.weak.model

    def _sft(self, key: object, settings: TrainSettings) -> None:
        """Train on all demonstrations, and evaluate that."""
        model = self.recipe.model
        self._train(("sft", key, settings), model, self.given, settings)
        self._evaluate(("sft", key, settings), model)

    def _refine(self, name: str, arm: RefineArm) -> None:
        recipe, settings = self.recipe, self.recipe.training(arm)
        self._sft(("given", 0), settings)
        for number in range(1, recipe.rounds_of(arm) + 1):
            # All arms have the same proposals in the first round.
            key: tuple[Any, ...] = (arm.folds, settings) if number == 1 else (name,)
            for fold in range(arm.folds):
                rows = self.given - self.given // arm.folds
                self._train((*key, number, fold), recipe.model, rows, settings)
                rows = self.given // arm.folds
                self._complete(
                    (*key, number, fold), recipe.model, rows, self.prompt, recipe.propose
                )
            if not arm.folds:
                self._complete(
                    (*key, number), recipe.model, self.given, self.prompt, recipe.propose
                )
            if arm.mode != "naive":
                self._judge((*key, number), arm.judge, self.given)
            self._sft((name, number), settings)

    def _prefer(self, name: str, arm: DpoArm) -> None:
        recipe, settings = self.recipe, self.recipe.training(arm)
        self._sft(("given", 0), settings if arm.learn == "chosen" else recipe.sft)
        drawn = recipe.dpo.generate
        pairs = self.given * ((drawn.samples + arm.originals) // 2)
        share = recipe.dpo.share if arm.share is None else arm.share
        for number in range(1, recipe.rounds_of(arm) + 1):
            key: tuple[Any, ...] = ("dpo",) if number == 1 else (name,)
            self._complete(
                (*key, number), recipe.model, self.given * drawn.samples, self.prompt, drawn
            )
            self._judge((*key, arm.originals, number), arm.judge, pairs)
            kept = max(1, int(share * pairs))
            if arm.learn == "chosen":
                self._train((name, number), recipe.model, kept, settings)
            else:
                rows = 2 * _passes(kept, settings)
                self._add((name, number), "dpo", recipe.model, rows, self.prompt + self.answer)
            self._evaluate((name, number), recipe.model)

    def _train(self, key: object, model: str, rows: int, settings: TrainSettings) -> None:
        self._add(key, "train", model, _passes(rows, settings), self.prompt + self.answer)

    def _complete(
        self, key: object, model: str, rows: int, prompt: float, settings: GenerateSettings
    ) -> None:
        room = prompt + settings.max_new_tokens
        batch = max(1, int(settings.tokens_per_batch / room))
        self._add(
            *((key, prompt), "generate", model, rows, prompt),
            new=settings.max_new_tokens,
            batch=batch,
        )

    def _evaluate(self, key: object, model: str) -> None:
        if self.test is not None:
            prompt = _tokens(self.test, "prompt")
            key = ("test", key)
            self._complete(key, model, self.test.num_rows, prompt, self.recipe.evaluate)

    def _judge(self, key: tuple[Any, ...], judge: str | None, pairs: int) -> None:
        """Read pairs in both orders, if a model of this run does, or once, if people do."""
        name = judge or self.recipe.judge
        length = self.prompt + 2 * self.answer
        if name == "evaluator":
            self._add((key, name), "judge", self._evaluator, 2 * pairs, length)
        kind, _, most = name.partition(":")
        if kind == PEOPLE:
            asked = min(pairs, int(most)) if most else pairs
            self._add((key, name), PEOPLE, "-", asked, length)

    def _add(
        self, key: object, kind: str, model: str, rows: int, tokens: float, **more: int
    ) -> None:
        self.found.setdefault((kind, key), Part(kind, model, rows, rows * tokens, **more))


def weights_of(model: str) -> float | None:
    """Return how many weights a model has: of a folder, or of the presets; else None.

    Examples
    --------
    >>> weights_of("mistralai/Mistral-7B-v0.1")
    7240000000.0
    >>> weights_of("no/model") is None
    True
    """
    if model in WEIGHTS:
        return WEIGHTS[model]
    counts = [sum(_counts(path)) for path in Path(model).glob("*.safetensors")]
    return float(sum(counts)) if counts else None


def _counts(path: Path) -> Iterator[int]:
    """Yield the sizes of a file's tensors, which its head lists (format of safetensors)."""
    with path.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in head.items():
        if name != "__metadata__":
            yield math.prod(tensor["shape"])


def _passes(rows: int, settings: TrainSettings) -> int:
    if settings.max_steps is not None:
        return settings.max_steps * settings.batch_size
    return rows * settings.epochs


def _tokens(table: pa.Table, column: str) -> float:
    """Return about how many tokens a text of a column has in the mean."""
    values: Sequence[Any] = table[column].to_pylist()
    return sum(len(text_of(value)) for value in values) / len(values) / CHARACTERS
