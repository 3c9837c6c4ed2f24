"""What an arm goes through: after each round a model, and the labels that it learned from.

Arms are generators of points. What ends one early is a ``Halt``; the points before it stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whet.errors import WhetError
from whet.ilr.arms import Arm, DpoArm, RefineArm, SftArm
from whet.ilr.feedback import Judge
from whet.ilr.pairs import chosen_examples, preferences
from whet.ilr.recipe import IlrRecipe
from whet.ilr.refine import Proposer, Rounds, Rule, answered, refine, with_completions
from whet.ilr.stages import Model, Stages, Used
from whet.ilr.tasks.protocol import Task
from whet.posttrain.settings import DpoSettings
from whet.rounds import Halt
from whet.store import read_json, write_json, write_parquet


@dataclass(frozen=True)
class Point:
    """An arm after a round.

    Attributes
    ----------
    number : int
        Of the round; 0 is before the first.
    model : Model
    labels : pyarrow.Table or None
        What it learned from, where that is demonstrations.
    judged : pyarrow.Table or None
        ``row``, ``completion``, ``proposal`` and ``score`` of what was judged in the round.
    record : dict
        What was counted.
    used : Used
        All models and completions that led to the model.

    Examples
    --------
    >>> point = Point(0, Model("0" * 64, Path("base"), lambda: None))
    >>> point.record
    {}
    """

    number: int
    model: Model
    labels: pa.Table | None = None
    judged: pa.Table | None = None
    record: dict[str, Any] = field(default_factory=dict)
    used: Used = field(default_factory=lambda: Used([], []))


@dataclass(frozen=True)
class Course:
    """What all arms of a run share.

    Parameters
    ----------
    recipe : IlrRecipe
    task : Task
    stages : Stages
    base : Model
        What every training begins with.
    given : pyarrow.Table
        The demonstrations.
    gold : pyarrow.Table or None
        The gold ones of the same rows.
    judge : callable
        Returns the judge of a name, with a scoring.

    Examples
    --------
    >>> Course.__name__
    'Course'
    """

    recipe: IlrRecipe
    task: Task
    stages: Stages
    base: Model
    given: pa.Table
    gold: pa.Table | None
    judge: Callable[[str, str], Judge]

    def points(self, arm: Arm, folder: Path, name: str) -> Iterator[Point]:
        """Run an arm in its folder; ``name`` is for the progress."""
        if isinstance(arm, SftArm):
            table = self.gold if arm.labels == "gold" else self.given
            assert table is not None  # noqa: S101 - the recipe is checked
            yield self.tuned(arm, table, name)
        elif isinstance(arm, RefineArm):
            yield from self._refined(arm, folder, name)
        else:
            yield from self._preferred(arm, folder, name)

    def tuned(
        self, arm: Arm, table: pa.Table, name: str, number: int = 0, used: Used | None = None
    ) -> Point:
        """Return the model that is trained on demonstrations from the base model."""
        settings = self.recipe.training(arm)
        if isinstance(settings, DpoSettings):
            settings = self.recipe.sft
        marker = self.task.marker
        rows = answered(table, marker)
        title = f"{name}, round {number}"
        model = self.stages.sft(self.base, rows, settings, title, marker=marker)
        before = Used([], []) if used is None else used
        return Point(
            number,
            model,
            table,
            record={"rows": table.num_rows, "unanswered": table.num_rows - rows.num_rows},
            used=Used([*before.models, model.folder.name], before.completions),
        )

    def _refined(self, arm: RefineArm, folder: Path, name: str) -> Iterator[Point]:
        recipe = self.recipe
        yield self.tuned(arm, self.given, name)
        proposer = Proposer(
            self.stages,
            self.base,
            self.given,
            recipe.training(arm),
            recipe.propose,
            self.task.marker,
            # One model of all rows is the model of the round before, which is evaluated.
            keep=recipe.keep_models or arm.folds == 0,
            title=name,
        )
        alpha = recipe.alpha if arm.alpha is None else arm.alpha
        rule = Rule(arm.mode, alpha, arm.ties, recipe.seed)
        judge = self.judge(arm.judge or recipe.judge, "both") if rule.asks else None
        rounds = Rounds(folder, self.given, self.task, judge, rule)
        found = refine(
            proposer,
            rounds,
            n_rounds=recipe.rounds_of(arm),
            folds=arm.folds,
            seed=recipe.seed,
            progress=self.stages.told(name),
        )
        used = Used([], [])
        for finished in found.rounds:
            used.models.extend(finished.record["models"])
            used.completions.extend(finished.record["completions"])
            table = with_completions(self.given, finished.labels)
            point = self.tuned(arm, table, name, finished.number, used)
            judged = pq.read_table(folder / f"{finished.number:02d}" / "judged.parquet")
            yield replace(point, judged=judged, record={**finished.record, **point.record})
        if found.halted is not None:
            raise Halt(found.halted)

    def _preferred(self, arm: DpoArm, folder: Path, name: str) -> Iterator[Point]:
        recipe = self.recipe
        start = self.tuned(arm if arm.learn == "chosen" else SftArm(), self.given, name)
        yield start
        policy, used = start.model, start.used
        judge = self.judge(arm.judge or recipe.judge, arm.scoring)
        for number in range(1, recipe.rounds_of(arm) + 1):
            used = Used(list(used.models), list(used.completions))
            pairs, record = self._pairs(arm, folder / f"{number:02d}", policy, judge, number, used)
            title = f"{name}, round {number}"
            settings = recipe.training(arm)
            if isinstance(settings, DpoSettings):
                reference = start.model if arm.reference == "sft" else None
                policy = self.stages.dpo(policy, pairs, settings, title, reference=reference)
            else:
                chosen = answered(chosen_examples(pairs), self.task.marker)
                policy = self.stages.sft(policy, chosen, settings, title, marker=self.task.marker)
            used.models.append(policy.folder.name)
            judged = self._as_judged(pairs)
            yield Point(number, policy, judged=judged, record=record, used=used)

    def _pairs(
        self, arm: DpoArm, folder: Path, policy: Model, judge: Judge, number: int, used: Used
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return the preferences of a round, and their counts."""
        recipe = self.recipe
        seed = recipe.dpo.generate.seed + number
        title = f"{folder.parent.name}, round {number}"
        samples = self.stages.complete(
            policy, self.given, replace(recipe.dpo.generate, seed=seed), title, used=used
        )
        if not (folder / "round.json").is_file():
            share = recipe.dpo.share if arm.share is None else arm.share
            try:
                found = preferences(
                    self.given,
                    samples,
                    judge,
                    share=share,
                    originals=arm.originals,
                    seed=recipe.seed + number,
                )
            except WhetError as error:
                if "no pair is left" in str(error):  # the arm ends; a judge that fails is mended
                    raise Halt(str(error)) from error
                raise
            folder.mkdir(parents=True, exist_ok=True)
            write_parquet(folder / "pairs.parquet", found.table)
            write_json(folder / "round.json", {"round": number, **found.as_dict()})
        return pq.read_table(folder / "pairs.parquet"), read_json(folder / "round.json")

    def _as_judged(self, pairs: pa.Table) -> pa.Table:
        """Return pairs as a judgement that each chosen completion is the better one."""
        place = {row: k for k, row in enumerate(self.given["row"].to_pylist())}
        rows = self.given.take(pa.array([place[row] for row in pairs["row"].to_pylist()]))
        at = rows.column_names.index("completion")
        rows = rows.set_column(at, "completion", pairs["rejected"])
        rows = rows.append_column("proposal", pairs["chosen"])
        return rows.append_column("score", pa.array([1.0] * pairs.num_rows))
