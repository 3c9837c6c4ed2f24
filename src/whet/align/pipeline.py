"""The stages of an alignment run, each in its folder, each with its manifest last.

    sft/                     the model, tuned on the demonstrations
    samples/                 its completions of the training prompts
    judged/                  these with the judge's labels
    gold.csv                 a random sample of them, for a person to label
    classifiers/initial      learned from the judge's labels as they are
    classifiers/refined      learned from them and the gold labels
    arms/REWARD-TRAINER/     pairs.parquet for DPO, and the arm's model
    evaluation/ARM/          completions of the held-out prompts, and what was found about each
    evaluation.parquet       all of these
    answers.sqlite           what the judges said
    summary.json             what the report shows, then report.html
    run.json                 last

A stage that is finished is not done again, and one that was killed goes on. Of several processes
that a launcher started all train; the first one does everything else, while the others wait.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whet import __version__
from whet.align.classifiers import (
    INITIAL,
    REFINED,
    gold_labels,
    read_corpus,
    train_classifier,
)
from whet.align.evaluation import Reward, compared, look_at, measures, read_prompts
from whet.align.judge import (
    Judge,
    connected,
    judging_task,
    preference_task,
    probability_of,
    vanilla_reward,
)
from whet.align.pairs import rank
from whet.align.recipe import AlignRecipe, JudgeSettings
from whet.annotate.cache import AnswerCache
from whet.annotate.labelling import Label, Outcome
from whet.annotate.protocol import Backend
from whet.annotate.task import Task
from whet.classify.reward import RewardFunction
from whet.errors import WhetError, WhetWarning, did_you_mean
from whet.estimates import share
from whet.posttrain.examples import is_conversational, read_examples
from whet.posttrain.generate import completion_logprobs, generate
from whet.posttrain.models import find_model
from whet.posttrain.ranks import Ranks
from whet.posttrain.settings import DpoSettings
from whet.posttrain.trainers import train_dpo, train_online, train_sft
from whet.report.align_summary import summarise_align
from whet.report.page import try_report
from whet.rounds import Progress
from whet.store import RunFolder, read_json, sha256_of, write_parquet

#: The judges of a recipe: of the training samples, of the evaluation, and of pairs in it.
JUDGE, HELD_OUT, PREFERENCE = "judge", "evaluation.judge", "evaluation.preference"
SFT = "sft"


class Alignment:
    """An alignment run, checked before anything is written.

    Parameters
    ----------
    recipe : AlignRecipe
    backends : dict of str to Backend, optional
        In place of those that the recipe names, by ``judge``, ``evaluation.judge`` and
        ``evaluation.preference``.
    progress : callable, optional
        Told (stage, done, total).
    tell : callable, optional
        Given a sentence for each fault of the rows that are trained on.

    Raises
    ------
    WhetError
        If an input, a task or a judge cannot be used.

    Examples
    --------
    >>> from whet.align.recipe import EvaluationSettings, JudgeSettings, TrainerSettings
    >>> recipe = AlignRecipe("./models/none", "demos.csv", "prompts.csv", "safe",
    ...     TrainerSettings(dpo=DpoSettings()), EvaluationSettings("held_out.csv"),
    ...     JudgeSettings("safety", model="judge-1"))
    >>> Alignment(recipe)
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the model folder ./models/none does not exist: name the folder of a \
language model, or a hub id
    """

    def __init__(
        self,
        recipe: AlignRecipe,
        *,
        backends: Mapping[str, Backend] | None = None,
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.ranks = Ranks()
        self.recipe, self.path = recipe, Path(recipe.out)
        find_model(recipe.model)
        self.progress, self.tell = progress, tell
        self._backends = dict(backends or {})
        self.demonstrations = read_examples(Path(recipe.demonstrations), ["prompt", "completion"])
        self.prompts = read_examples(Path(recipe.prompts), ["prompt"])
        self.held_out = read_prompts(
            Path(recipe.evaluation.prompts),
            references=recipe.evaluation.preference is not None,
        )
        self._check_kinds()
        self.asked = self._check_judges()
        if recipe.corpus is not None:  # a target that it lacks shows before anything is trained
            self._classes(read_corpus(Path(recipe.corpus)))
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Do what is left to do and return the manifest.

        Raises
        ------
        GoldNeeded
            If a person must label some completions first.
        Stop
            If the budget of a judge was reached; the next run goes on.
        WhetError
            If a stage cannot be done.
        """
        folder = self.ranks.folder(self.path, self._settings())
        try:
            if not folder.complete:
                self.ranks.lead(folder.open)
                with AnswerCache(self._answers) as cache:
                    manifest = self._work(cache)
                self.ranks.lead(lambda: self._finish(folder, manifest))
            return read_json(self.path / "run.json")
        finally:
            folder.close()

    def _finish(self, folder: RunFolder, manifest: dict[str, Any]) -> None:
        try_report(self.path, manifest, summarise_align, "the run is")
        folder.finish(manifest)

    # --- checks -------------------------------------------------------------------------------

    def _check_kinds(self) -> None:
        """Text and messages do not mix; a prompt that was trained on shows nothing new."""
        tables = {
            self.recipe.demonstrations: self.demonstrations,
            self.recipe.prompts: self.prompts,
            self.recipe.evaluation.prompts: self.held_out,
        }
        kinds = {name: is_conversational(table) for name, table in tables.items()}
        if len(set(kinds.values())) > 1:
            said = ", ".join(f"{name} {'messages' if k else 'text'}" for name, k in kinds.items())
            raise WhetError(f"prompts are of two kinds ({said}): write all in the same way")
        trained = {
            str(prompt)
            for table in (self.demonstrations, self.prompts)
            for prompt in table["prompt"].to_pylist()
        }
        self.seen = sum(str(prompt) in trained for prompt in self.held_out["prompt"].to_pylist())
        if self.seen:
            warnings.warn(
                f"{self.seen} of {self.held_out.num_rows} prompts of "
                f"{self.recipe.evaluation.prompts} are prompts of training, too: what is found on "
                "them says little about new ones; leave them out",
                WhetWarning,
                stacklevel=3,
            )

    def _check_judges(self) -> dict[str, tuple[JudgeSettings, Task]]:
        recipe = self.recipe
        asked: dict[str, tuple[JudgeSettings, Task]] = {}
        for name, settings in ((JUDGE, recipe.judge), (HELD_OUT, recipe.evaluation.judge)):
            if settings is not None:
                asked[name] = (settings, judging_task(settings, recipe.target))
        if recipe.evaluation.preference is not None:
            pairs = recipe.evaluation.preference
            asked[PREFERENCE] = (pairs, preference_task(pairs))
        for name, (settings, task) in asked.items():
            if name not in self._backends and settings.backend != "local":  # it would be loaded
                with AnswerCache(None) as cache:
                    connected(settings, task, cache)
        return asked

    def _settings(self) -> dict[str, Any]:
        return {
            **self.recipe.deciding(),
            "tasks": {name: task.as_dict() for name, (_, task) in self.asked.items()},
            "routes": {name: dict(backend.route) for name, backend in self._backends.items()},
            "sha256": {key: sha256_of(Path(path)) for key, path in self.recipe.files.items()},
            "whet_version": __version__,
        }

    # --- the work -----------------------------------------------------------------------------

    def _work(self, cache: AnswerCache) -> dict[str, Any]:
        self._cache, recipe = cache, self.recipe
        self._judges: dict[str, Judge] = {}
        with self._timed(SFT):
            self._sft()
        learned = self.ranks.lead(self._learn)
        samples, judged, classifiers = learned or (None, None, {})
        rewards = self._rewards()
        pairs = {}
        for reward, trainer in recipe.arms:
            with self._timed(f"{reward}-{trainer}"):
                pairs[f"{reward}-{trainer}"] = self._arm(reward, trainer, rewards, samples, judged)
        with self._timed("evaluation"):
            found = self.ranks.lead(lambda: self._evaluate(rewards))
        return {
            "settings": self._settings(),
            "versions": _versions(),
            "platform": platform.platform(),
            "rows": {
                "demonstrations": self.demonstrations.num_rows,
                "prompts": self.prompts.num_rows,
                "samples": 0 if samples is None else samples.num_rows,
                "evaluation": self.held_out.num_rows,
                "evaluation_harmful": sum(h is True for h in self._harmful),
                "evaluation_harmless": sum(h is False for h in self._harmful),
                "evaluation_seen_in_training": self.seen,
            },
            "judged": None if judged is None else _labels(judged),
            "classifiers": classifiers,
            "pairs": {arm: counts for arm, counts in pairs.items() if counts is not None},
            "evaluation": found,
            "seconds": self.seconds,
        }

    @property
    def _answers(self) -> Path | None:
        """The file of what judges said; only the first process asks them."""
        return self.path / "answers.sqlite" if self.ranks.leads else None

    @property
    def _harmful(self) -> list[bool | None]:
        flags: list[bool | None] = self.held_out["harmful"].to_pylist()
        return flags

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - began, 3)

    def _told(self, stage: str) -> Progress:
        """Return the progress of a stage, so that a log says which one is at work."""

        def tell(what: str, done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(f"{stage}: {what}", done, total)

        return tell

    def _judge_named(self, name: str) -> Judge | None:
        """Return a judge of the recipe, connected when it is first needed."""
        if name not in self.asked:
            return None
        if name not in self._judges:
            settings, task = self.asked[name]
            self._judges[name] = Judge(settings, task, self._cache, self._backends.get(name))
        return self._judges[name]

    def _sft(self) -> None:
        train_sft(
            self.recipe.model,
            self.demonstrations,
            self.path / SFT,
            self.recipe.sft,
            progress=self._told(SFT),
            tell=self.tell,
        )

    def _learn(self) -> tuple[pa.Table | None, pa.Table | None, dict[str, Any]]:
        """Return samples, the same judged, and the records of the classifiers."""
        samples = judged = None
        if self.recipe.samples_needed:
            with self._timed("samples"):
                samples = self._sample()
        if samples is not None and self.recipe.judged_needed:
            with self._timed("judged"):
                judged = self._judge(samples)
        with self._timed("classifiers"):
            return samples, judged, self._classify(judged)

    def _sample(self) -> pa.Table:
        return generate(
            str(self.path / SFT),
            self.prompts,
            self.path / "samples",
            self.recipe.samples,
            progress=self._told("samples"),
        )

    def _judge(self, samples: pa.Table) -> pa.Table:
        judge = self._judge_named(JUDGE)
        assert judge is not None  # noqa: S101 - the recipe has been checked

        def make(folder: Path) -> dict[str, Any]:
            found = judge.label(
                samples["prompt"].to_pylist(),
                samples["completion"].to_pylist(),
                self._told("judged"),
            )
            table = _with_labels(samples, found, self.recipe.target, len(judge.classes))
            write_parquet(folder / "judged.parquet", table)
            return _labels(table)

        folder = self.path / "judged"
        _stage(folder, {"task": judge.task.as_dict(), "target": self.recipe.target}, make)
        return pq.read_table(folder / "judged.parquet")

    def _classify(self, judged: pa.Table | None) -> dict[str, Any]:
        recipe = self.recipe
        corpus = judged if recipe.corpus is None else read_corpus(Path(recipe.corpus))
        assert corpus is not None  # noqa: S101 - there is a corpus, or samples have been judged
        classes = self._classes(corpus)
        settings = recipe.classifier
        wanted = self._wanted
        unknown: list[str | None] = [None] * corpus.num_rows
        gold = unknown
        if REFINED in wanted:
            gold = gold_labels(
                corpus,
                None if recipe.gold is None else Path(recipe.gold),
                self.path / "gold.csv",
                settings,
                classes,
            )
        records: dict[str, Any] = {}
        for name in wanted:
            known = gold if name == REFINED else unknown
            records[name] = train_classifier(
                name,
                corpus,
                known,
                self.path / "classifiers" / name,
                settings,
                {"gold_sha256": hashlib.sha256(json.dumps(known).encode()).hexdigest()},
                self._told(name),
            )
        if set(records) == {INITIAL, REFINED}:
            records[INITIAL]["on_gold"] = self._on_gold(records, gold)
        return records

    def _on_gold(self, records: dict[str, Any], gold: Sequence[str | None]) -> dict[str, Any]:
        """Return how often the initial classifier says the gold label, which it never learned.

        It did learn the judge's labels of these rows, as of all that it rewards.
        """
        table = pq.read_table(
            self.path / "classifiers" / INITIAL / "rounds" / "01" / "labels.parquet"
        )
        classes, kept = records[INITIAL]["classes"], records[REFINED]["gold"]["rows"]
        chances = np.column_stack([table[f"p_{k}"] for k in range(len(classes))])
        said = chances.argmax(axis=1)
        return share(np.array([classes[said[row]] == gold[row] for row in kept])).as_dict()

    @property
    def _wanted(self) -> list[str]:
        """The classifiers that the recipe rewards with."""
        return [name for name in (INITIAL, REFINED) if name in self.recipe.rewards]

    def _rewards(self) -> dict[str, Reward]:
        """Return the rewards; the judge's is for the first process alone."""
        rewards: dict[str, Reward] = {}
        for name in self._wanted:
            model = self.path / "classifiers" / name / "model"
            rewards[name] = RewardFunction.from_pretrained(model, self.recipe.target)
        judge = self._judge_named(JUDGE) if self.ranks.leads else None
        if "vanilla" in self.recipe.rewards and judge is not None:
            rewards["vanilla"] = vanilla_reward(judge, self.recipe.target)
        return rewards

    def _classes(self, corpus: pa.Table) -> list[str]:
        """Return the classes of the judge's task, or without a judge those of the corpus."""
        if JUDGE in self.asked:
            return list(self.asked[JUDGE][1].classes)
        classes: list[str] = sorted(set(corpus["pseudo_label"].drop_null().to_pylist()))
        if self.recipe.target not in classes:
            raise WhetError(
                f"target = {self.recipe.target!r} is no pseudo_label of {self.recipe.corpus}"
                f"{did_you_mean(self.recipe.target, classes)}: name the class to reward"
            )
        return classes

    def _arm(
        self,
        reward: str,
        trainer: str,
        rewards: Mapping[str, Reward],
        samples: pa.Table | None,
        judged: pa.Table | None,
    ) -> dict[str, Any] | None:
        """Train an arm; return the counts of its pairs if it learns from pairs."""
        folder = self.path / "arms" / f"{reward}-{trainer}"
        settings = self.recipe.trainers.chosen[trainer]
        model, progress = str(self.path / SFT), self._told(f"{reward}-{trainer}")
        if not isinstance(settings, DpoSettings):
            if reward == "vanilla":
                rewards = {reward: _asked_by_first(self.ranks, rewards)}
            train_online(
                model, self.prompts, rewards[reward], folder / "model", settings, progress=progress
            )
            return None

        def make(made: Path) -> dict[str, Any]:
            assert samples is not None  # noqa: S101 - DPO is why they were made
            if reward == "vanilla" and judged is not None:
                scores = judged["target_prob"].to_pylist()
            else:
                scores = rewards[reward](
                    prompts=samples["prompt"].to_pylist(),
                    completions=samples["completion"].to_pylist(),
                )
            pairs = rank(samples, scores)
            if not pairs.table.num_rows:
                raise WhetError(
                    f"the reward {reward!r} prefers no sample of any prompt to another: take more "
                    "samples, or leave the reward out"
                )
            write_parquet(made / "pairs.parquet", pairs.table)
            return {
                "prompts": pairs.prompts,
                "pairs": pairs.table.num_rows,
                "ties": pairs.ties,
                "unknown": pairs.unknown,
            }

        counts = self.ranks.lead(
            lambda: _stage(folder, {"reward": reward, "trainer": trainer}, make)
        )
        pairs = pq.read_table(folder / "pairs.parquet")
        train_dpo(model, pairs, folder / "model", settings, progress=progress, tell=self.tell)
        return counts

    def _model_of(self, arm: str) -> Path:
        return self.path / SFT if arm == SFT else self.path / "arms" / arm / "model"

    def _evaluate(self, rewards: Mapping[str, Reward]) -> dict[str, Any]:
        recipe = self.recipe
        arms = [SFT, *(f"{reward}-{trainer}" for reward, trainer in recipe.arms)]
        found = {arm: self._judge_arm(arm, rewards) for arm in arms}
        whole = pa.concat_tables(
            [t.add_column(0, "arm", pa.array([arm] * t.num_rows)) for arm, t in found.items()]
        )
        write_parquet(self.path / "evaluation.parquet", whole)
        pairs = [(arm, SFT) for arm in arms[1:]]
        for trainer in recipe.trainers.chosen:
            for other in ("initial", "vanilla"):
                if {other, REFINED} <= set(recipe.rewards):
                    pairs.append((f"{REFINED}-{trainer}", f"{other}-{trainer}"))
        return compared(
            {arm: measures(t, self.held_out, recipe.target) for arm, t in found.items()},
            pairs,
            recipe.seed,
        )

    def _judge_arm(self, arm: str, rewards: Mapping[str, Reward]) -> pa.Table:
        folder, model = self.path / "evaluation" / arm, str(self._model_of(arm))

        def make(made: Path) -> dict[str, Any]:
            completions = generate(
                model,
                self.held_out,
                made / "completions",
                self.recipe.evaluation.generate,
                progress=self._told(f"{arm}, held-out prompts"),
            )
            table = look_at(
                completions,
                self.held_out,
                {name: reward for name, reward in rewards.items() if name != "vanilla"},
                self._judge_named(HELD_OUT),
                self._judge_named(PREFERENCE),
                self._told(f"{arm}, judges"),
            )
            logp, tokens = completion_logprobs(model, table)
            base = logp if arm == SFT else completion_logprobs(str(self.path / SFT), table)[0]
            table = table.append_column("logp", pa.array(logp)).append_column(
                "logp_sft", pa.array(base)
            )
            table = table.drop_columns("tokens").append_column("tokens", pa.array(tokens))
            write_parquet(made / "found.parquet", table)
            return {"rows": table.num_rows}

        _stage(folder, {"arm": arm}, make)
        return pq.read_table(folder / "found.parquet")


def _stage(
    folder: Path, decided: dict[str, Any], make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Do a stage in its folder unless it is finished, and return its manifest."""
    run = RunFolder(folder, decided, resume=True)
    try:
        if not run.complete:
            run.open()
            run.finish(make(folder))
        return read_json(folder / "run.json")
    finally:
        run.close()


def _asked_by_first(ranks: Ranks, rewards: Mapping[str, Reward]) -> Reward:
    """Return the judge's reward with one process asking for all: it has one budget."""

    def whet_vanilla(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        **kwargs: Any,  # noqa: ANN401 - what else TRL hands over
    ) -> list[float | None]:
        del kwargs
        asked = ranks.gather((prompts, completions))
        found = ranks.lead(
            lambda: rewards["vanilla"](
                prompts=[each for group, _ in asked for each in group],
                completions=[each for _, group in asked for each in group],
            )
        )
        start = sum(len(group) for group, _ in asked[: ranks.rank])
        said = ranks.gather(found)[0]
        assert said is not None  # noqa: S101 - the first process has asked
        return said[start : start + len(prompts)]

    return whet_vanilla


def _with_labels(
    samples: pa.Table, found: Sequence[Outcome], target: str, n_classes: int
) -> pa.Table:
    """Return samples with what the judge said of each."""
    labels = [outcome if isinstance(outcome, Label) else None for outcome in found]
    wanted = [probability_of(outcome, target, n_classes) for outcome in found]
    reasons = [None if isinstance(outcome, Label) else str(outcome) for outcome in found]
    for column, values, kind in (
        ("pseudo_label", [label and label.name for label in labels], pa.string()),
        ("pseudo_prob", [label and label.probability for label in labels], pa.float64()),
        ("target_prob", wanted, pa.float64()),
        ("abstained", reasons, pa.string()),
    ):
        samples = samples.append_column(column, pa.array(values, kind))
    return samples


def _labels(judged: pa.Table) -> dict[str, Any]:
    """Return counts of the judge's labels."""
    labels = judged["pseudo_label"].to_pylist()
    return {
        "rows": len(labels),
        "by_class": dict(sorted(Counter(name for name in labels if name is not None).items())),
        "abstained": sum(name is None for name in labels),
    }


def _versions() -> dict[str, str]:
    names = ("whet", "torch", "transformers", "trl", "peft", "scikit-learn")
    return {name: importlib.metadata.version(name) for name in names}
