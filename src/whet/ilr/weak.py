"""An unreliable supervisor: a small model that learns from gold, and the judge made of its answers.

Half of the gold demonstrations train the small model and the evaluator; of the other half only the
prompts are used, and the small model writes the demonstrations (ILR, arXiv 2501.07886).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from whet.errors import WhetError
from whet.ilr.comparisons import comparisons
from whet.ilr.evaluator import Evaluator, train_evaluator
from whet.ilr.halves import halves
from whet.ilr.recipe import EvaluatorSettings, WeakSettings
from whet.ilr.refine import answered, with_completions
from whet.ilr.stages import Model, Stages
from whet.ilr.tasks.protocol import Task
from whet.posttrain.settings import TrainSettings
from whet.store import write_parquet

#: Completions of a checkpoint are right from this score on.
RIGHT = 0.5


class WeakSupervisor:
    """The small model, the rows that it learns from, and those that it writes demonstrations for.

    Parameters
    ----------
    stages : Stages
    task : Task
    table : pyarrow.Table
        Gold demonstrations.
    settings : WeakSettings
    seed : int
        Of the halves.

    Attributes
    ----------
    gold, rest : pyarrow.Table
        The half that it learns from, and the other one, with gold completions too.
    model : Model

    Examples
    --------
    >>> WeakSupervisor.__name__
    'WeakSupervisor'
    """

    def __init__(
        self, stages: Stages, task: Task, table: pa.Table, settings: WeakSettings, seed: int
    ) -> None:
        self.stages, self.task, self.settings = stages, task, settings
        train, rest = halves(table["prompt"].to_pylist(), seed=seed)[0]
        self.gold, self.rest = table.take(pa.array(train)), table.take(pa.array(rest))
        self.base = stages.base(settings.model)
        self.model = self._trained(settings.train, "weak model")

    def demonstrations(self) -> pa.Table:
        """Return the other half's prompts with what the weak model says."""
        said = self.stages.complete(self.model, self.rest, self.settings.generate, "weak model")
        table = with_completions(self.rest, said["completion"].to_pylist())
        if not self.settings.only_right:
            return table
        right = self.task.score(table, table["completion"].to_pylist()) > RIGHT
        if not right.any():
            raise WhetError(
                "the weak model wrote no right demonstration, and weak.only_right keeps no other: "
                "train it longer"
            )
        return table.filter(pa.array(right))

    def evaluator(self, settings: EvaluatorSettings, folder: Path) -> Evaluator:
        """Train the judge on comparisons of gold with answers from the way to the weak model.

        Parameters
        ----------
        settings : EvaluatorSettings
        folder : Path
            ``comparisons.parquet`` and the evaluator are written in it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "comparisons.parquet"
        samples = pa.concat_tables(
            [self._samples(settings, stage) for stage in range(1, settings.stages + 1)]
        )
        own = {row: place for place, row in enumerate(self.gold["row"].to_pylist())}
        places = pa.array([own[row] for row in samples["row"].to_pylist()])
        right = self.task.score(self.gold.take(places), samples["completion"].to_pylist()) > RIGHT
        seed = settings.generate.seed
        pairs = comparisons(self.gold, samples, right, rule=settings.rule, seed=seed)
        write_parquet(path, pairs)
        start = self.model if settings.model == "trained" else self.base
        if settings.model not in (None, "trained"):
            start = self.stages.base(settings.model)
        model = start.ready()
        return self.stages.alone(
            lambda: train_evaluator(
                pairs,
                model,
                folder / "model",
                settings=settings.train,
                progress=self.stages.told("evaluator"),
            )
        )

    def _samples(self, settings: EvaluatorSettings, stage: int) -> pa.Table:
        """Return answers to the gold half after a share of the training."""
        title = f"weak model, {stage} of {settings.stages}"
        model = self.model
        if stage < settings.stages:
            whole = self.settings.train
            rows = answered(self.gold, self.task.marker).num_rows
            steps = whole.max_steps or math.ceil(rows * whole.epochs / whole.batch_size)
            part = max(1, round(steps * stage / settings.stages))
            model = self._trained(replace(whole, max_steps=part), title)
        sampling = replace(settings.generate, seed=settings.generate.seed + stage)
        said = self.stages.complete(model, self.gold, sampling, title)
        if stage < settings.stages:
            model.drop()
        checkpoint = pa.array(np.full(said.num_rows, stage - 1))
        return said.select(["row", "completion"]).append_column("checkpoint", checkpoint)

    def _trained(self, settings: TrainSettings, title: str) -> Model:
        part = answered(self.gold, self.task.marker)
        return self.stages.sft(self.base, part, settings, title, marker=self.task.marker)
