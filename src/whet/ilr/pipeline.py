"""A run of iterative label refinement: all arms of a recipe, each stage in its folder.

    stages/models/             models, named by what decides them: arms share them
    stages/completions/        what they completed, and the scores of that
    evaluator/                 comparisons.parquet, and the judge trained on them
    demonstrations.parquet     those that all arms begin with
    arms/NAME/NN/              what a round decided: judged.parquet and demonstrations.parquet, or
                               pairs.parquet; round.json; right.parquet where references are known
    arms/NAME/arm.json         what became of the arm
    test.parquet               a score for each row of the test, of each arm and round
    answers.sqlite             what a language model said as judge
    people/                    what people are to compare, and what they said
    summary.json, report.html  what the run found, for readers
    run.json                   last

The same recipe and folder again go on where the run stopped.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet import __version__
from whet.annotate.protocol import Stop
from whet.errors import WhetError
from whet.ilr.arms import Arm
from whet.ilr.evaluate import (
    judge_accuracy,
    label_accuracy,
    mean_score,
    score_completions,
    score_difference,
    score_judged,
)
from whet.ilr.evaluator import Evaluator
from whet.ilr.feedback import BothOrders, Judge, ScoreFile
from whet.ilr.judges import check_judge, make_judge
from whet.ilr.people import People, PeopleWanted, Waiting
from whet.ilr.points import Course, Point
from whet.ilr.recipe import IlrRecipe
from whet.ilr.rows import Asked, read_rows
from whet.ilr.stages import Model, Stages, check_prompts
from whet.ilr.tasks.find import load_task
from whet.ilr.tasks.protocol import Task, criterion_of
from whet.ilr.weak import WeakSupervisor
from whet.posttrain.examples import digest, is_conversational
from whet.report.ilr_summary import summarise_ilr
from whet.report.page import try_report
from whet.rounds import Halt, Progress
from whet.store import RunFolder, full_disk_said, read_json, write_json, write_parquet

#: The arm that the others are compared with.
BASELINE = "sft"
#: Scores, beside the completions that they are of.
SCORED = "scored.parquet"


class Ilr:
    """A run, checked before anything is written.

    Parameters
    ----------
    recipe : IlrRecipe
    progress : callable, optional
        Called with (stage, done, total).
    judges : dict of str to Judge, optional
        In place of those that the recipe names, by their names.
    enough : bool
        Where people judge: take over what they have answered, and leave the rest as it is.

    Attributes
    ----------
    task : Task
    train : pyarrow.Table
    test : pyarrow.Table or None

    Raises
    ------
    WhetError
        If a task, a table or a model cannot be used.

    Examples
    --------
    >>> from whet.ilr.recipe import parse_recipe
    >>> Ilr(parse_recipe({"task": "gsm8k", "data": "no/data", "model": "no/model",
    ...                   "judge": "oracle", "arms": {"ilr": None}}))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/data has no split 'train' (no table at all): name a folder that \
holds train.parquet, or .jsonl, .json, .csv or .tsv
    """

    def __init__(
        self,
        recipe: IlrRecipe,
        *,
        progress: Progress | None = None,
        judges: Mapping[str, Judge] | None = None,
        enough: bool = False,
    ) -> None:
        self.recipe, self.path, self.enough = recipe, Path(recipe.out), enough
        self.task: Task = Asked(load_task(recipe.task, **recipe.options))
        data = None if recipe.data is None else Path(recipe.data)
        self.train = read_rows(self.task, recipe.train, ["prompt", "completion"], data)
        self.test = None
        if recipe.test is not None:
            self.test = read_rows(self.task, recipe.test, ["prompt", "reference"], data)
            if is_conversational(self.test) != is_conversational(self.train):
                raise WhetError(
                    "the prompts of one of train and test are text, of the other messages: write "
                    "both in the same way"
                )
        self.progress = progress
        self.stages = Stages(self.path / "stages", progress)
        self._given_judges = dict(judges or {})
        for name in recipe.judges - {"evaluator", *self._given_judges}:
            self._check_judge(name)

    def _check_judge(self, name: str) -> None:
        """Raise ``WhetError`` for what would only be missed after hours of training."""
        kind, argument = check_judge(name)
        if kind in ("oracle", "noisy"):
            first = self.train.slice(0, 1)
            self.task.score(first, first["completion"].to_pylist())
        elif kind == "file":
            ScoreFile(argument)
        elif kind in ("reward", "evaluator") and not Path(argument).is_dir():
            raise WhetError(f"the judge {name!r}: {argument} is no folder: name one")
        elif kind == "llm" and (self.recipe.llm is None or not self.recipe.llm.model):
            raise WhetError("the judge 'llm' needs the section llm with its model: add it")

    def run(self) -> dict[str, Any]:
        """Do what is left to do and return the content of run.json.

        Of several processes, those that follow the first only train with it, and return nothing.

        Raises
        ------
        Stop
            If the budget of a language model was reached, or people are to judge
            (:class:`whet.ilr.people.PeopleWanted`); the next run goes on.
        WhetError
            If a stage cannot be done, or no arm could be finished.
        """
        if not self.stages.ranks.leads:
            self.stages.follow()
            return {}
        folder = RunFolder(self.path, self._settings(), resume=True)
        try:
            if not folder.complete:
                folder.open()
                with full_disk_said(self.path):
                    manifest = self._work()
                    try_report(self.path, manifest, summarise_ilr, "the run is")
                    folder.finish(manifest)
            self.stages.release()
            return read_json(self.path / "run.json")
        except Stop:
            self.stages.release()  # nothing is wrong: those that follow end, too
            raise
        finally:
            folder.close()

    def _settings(self) -> dict[str, Any]:
        asked = {name.partition(":")[0] for name in self.recipe.judges} & {"llm", "people"}
        criterion = criterion_of(self.task) if asked else None
        return {
            **self.recipe.deciding(),
            **({} if criterion is None else {"criterion": criterion}),
            "sha256": {
                "train": digest(self.train),
                "test": None if self.test is None else digest(self.test),
            },
            "whet_version": __version__,
        }

    # --- the work -----------------------------------------------------------------------------

    def _work(self) -> dict[str, Any]:
        began = time.perf_counter()
        recipe = self.recipe
        base = self.stages.base(recipe.model)
        models = [recipe.model] if recipe.weak is None else [recipe.model, recipe.weak.model]
        for model in models:
            check_prompts(model, [t for t in (self.train, self.test) if t is not None])
        supervisor, given, gold, weak = None, self.train, None, None
        if recipe.weak is not None:
            supervisor = WeakSupervisor(
                self.stages, self.task, self.train, recipe.weak, recipe.seed
            )
            given = supervisor.demonstrations()
            gold = _of_rows(supervisor.rest, given)
            weak = self._evaluated(supervisor.model, "weak model")
        write_parquet(self.path / "demonstrations.parquet", given)
        evaluator = None
        if supervisor is not None and recipe.evaluator is not None and "evaluator" in recipe.judges:
            evaluator = supervisor.evaluator(recipe.evaluator, self.path / "evaluator")
        self._judges: dict[tuple[str, str], Judge] = {}

        def judge(name: str, scoring: str) -> Judge:
            if (name, scoring) not in self._judges:
                self._judges[name, scoring] = self._judge(name, scoring, evaluator)
            return self._judges[name, scoring]

        course = Course(recipe, self.task, self.stages, base, given, gold, judge)
        arms, wanted = dict[str, Any](), list[Waiting]()
        for name, arm in recipe.arms.items():
            try:
                arms[name] = self._arm(course, name, arm)
            except PeopleWanted as waits:  # the other arms do what they can
                wanted += waits.of(name)
        if wanted:
            raise PeopleWanted(wanted)
        if not any(found["rounds"] for found in arms.values()):
            raise WhetError(f"no arm could be run: {next(iter(arms.values()))['halted']}")
        self._write_test(arms)
        return {
            "settings": self._settings(),
            "versions": _versions(),
            "platform": platform.platform(),
            "rows": {
                "demonstrations": given.num_rows,
                "gold": 0 if supervisor is None else supervisor.gold.num_rows,
                "test": 0 if self.test is None else self.test.num_rows,
            },
            "weak": weak,
            "evaluator": None if evaluator is None else _report(evaluator),
            "arms": self._compared(arms),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _judge(self, name: str, scoring: str, evaluator: Evaluator | None) -> Judge:
        if name in self._given_judges:
            return self._given_judges[name]
        if name == "evaluator":
            assert evaluator is not None  # noqa: S101 - the recipe is checked
            return BothOrders(evaluator, scoring)
        kind, argument = check_judge(name)
        if kind == "people":
            most = int(argument) if argument else None
            criterion, folder = criterion_of(self.task), self.path / "people"
            return People(folder, most, self.recipe.seed, criterion, self.enough)
        return self.stages.alone(
            lambda: make_judge(
                name,
                self.task,
                llm=self.recipe.llm,
                cache=self.path / "answers.sqlite",
                scoring=scoring,
                seed=self.recipe.seed,
                progress=self.stages.told("judge"),
            )
        )

    def _arm(self, course: Course, name: str, arm: Arm) -> dict[str, Any]:
        """Run an arm unless that is done, and return what became of it."""
        folder = self.path / "arms" / name
        if (folder / "arm.json").is_file():
            return read_json(folder / "arm.json")
        rounds, halted = [], None
        try:
            for point in course.points(arm, folder, name):
                rounds.append(self._account(point, name))
        except Halt as halt:
            halted = str(halt)
        folder.mkdir(parents=True, exist_ok=True)
        account = {"rounds": rounds, "halted": halted}
        write_json(folder / "arm.json", account)
        return account

    def _account(self, point: Point, name: str) -> dict[str, Any]:
        """Evaluate an arm after a round."""
        record = {k: v for k, v in point.record.items() if k not in ("models", "completions")}
        record |= {"round": point.number, "model": f"stages/models/{point.model.folder.name}"}
        record |= self._evaluated(point.model, name)
        if point.labels is not None:
            record["label_accuracy"] = label_accuracy(self.task, point.labels)
        if point.judged is not None:
            scored = score_judged(self.task, point.judged)
            found = (None, None) if scored is None else judge_accuracy(scored)
            record["judge_right"], record["judge_told"] = found
            if scored is not None and "accepted" in point.judged.column_names:
                folder = self.path / "arms" / name / f"{point.number:02d}"
                write_parquet(folder / "right.parquet", scored.select(["row", "before", "after"]))
        return record | self.stages.cost(point.used)

    def _evaluated(self, model: Model, title: str) -> dict[str, Any]:
        """Return a model's mean score on the test, and where the scores are."""
        if self.test is None:
            model.ready()
            return {"score": None, "completions": None}
        settings = self.recipe.evaluate
        said = self.stages.complete(model, self.test, settings, f"{title}, test")
        folder = self.stages.completions_of(model, self.test, settings)
        if not (folder / SCORED).is_file():
            scored = score_completions(self.task, self.test, said)
            if scored["score"].null_count == scored.num_rows:
                raise WhetError(
                    f"the task {self.task.name} can score none of {scored.num_rows:,} completions "
                    "of the test: give references, or leave test out"
                )
            write_parquet(folder / SCORED, scored)
        scored = pq.read_table(folder / SCORED)
        return {
            "score": mean_score(scored, self.recipe.seed).as_dict(),
            "completions": f"stages/completions/{folder.name}",
        }

    # --- what is said at the end --------------------------------------------------------------

    def _write_test(self, arms: Mapping[str, Any]) -> None:
        """Write the score of each row of the test, of each arm and round."""
        if self.test is None:
            return
        tables = []
        for name, found in arms.items():
            for record in found["rounds"]:
                scored = self._scored(record).select(["row", "completion", "score"])
                table = scored.add_column(0, "round", pa.array([record["round"]] * len(scored)))
                tables.append(table.add_column(0, "arm", pa.array([name] * len(scored))))
        write_parquet(self.path / "test.parquet", pa.concat_tables(tables))

    def _scored(self, record: Mapping[str, Any]) -> pa.Table:
        return pq.read_table(self.path / record["completions"] / SCORED)

    def _compared(self, arms: dict[str, Any]) -> dict[str, Any]:
        """Add to each arm what its last model gains over fine-tuning alone."""
        baseline = arms.get(BASELINE, {"rounds": []})["rounds"]
        for name, found in arms.items():
            found["gain"] = None
            if self.test is not None and name != BASELINE and baseline and found["rounds"]:
                last, first = self._scored(found["rounds"][-1]), self._scored(baseline[-1])
                found["gain"] = score_difference(last, first, self.recipe.seed).as_dict()
        return arms


def _of_rows(table: pa.Table, rows: pa.Table) -> pa.Table:
    """Return the rows of ``table`` whose numbers ``rows`` has, too."""
    return table.filter(pc.is_in(table["row"], value_set=rows["row"].combine_chunks()))


def _report(evaluator: Evaluator) -> dict[str, Any] | None:
    return None if evaluator.report is None else evaluator.report.as_dict()


def _versions() -> dict[str, str]:
    names = ("whet", "torch", "transformers", "trl", "peft")
    return {name: importlib.metadata.version(name) for name in names}
