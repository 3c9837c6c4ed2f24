"""Runs of iterative label refinement: recipes, shared stages, rounds, arms, and runs that break."""

import gc
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("trl")

from conftest import ROOT
from whet import WhetError
from whet.ilr import stages as stages_module
from whet.ilr.arms import RefineArm
from whet.ilr.evaluate import (
    judge_accuracy,
    label_accuracy,
    mean_score,
    score_completions,
    score_difference,
    score_judged,
)
from whet.ilr.feedback import Oracle, Scores
from whet.ilr.judges import check_judge, make_judge
from whet.ilr.pipeline import Ilr
from whet.ilr.presets import PRESETS
from whet.ilr.recipe import load_recipe, parse_recipe
from whet.ilr.refine import (
    Proposer,
    Rounds,
    Rule,
    answered,
    as_objects,
    judge_proposals,
    refine,
    replace_judged,
)
from whet.ilr.rows import read_rows
from whet.ilr.scratch import save_scratch
from whet.ilr.stages import Stages, check_prompts
from whet.ilr.tasks.find import load_task
from whet.posttrain.settings import DpoSettings, GenerateSettings, TrainSettings
from whet.rounds import Halt
from whet.store import read_json

TINY = TrainSettings(learning_rate=5e-3, max_steps=3, batch_size=8, tune="full", max_length=96)
SAID = GenerateSettings(max_new_tokens=10, tokens_per_batch=4096)


@pytest.fixture(scope="module")
def chains():
    return load_task("chains", operations=1, modulus=5, train=40, test=10)


@pytest.fixture(scope="module")
def base(chains, tmp_path_factory):
    """A model of a few thousand weights that knows the words of the task and nothing else."""
    tables = [chains.load(None, split) for split in ("train", "test")]
    texts = [
        text for t in tables for name in ("prompt", "completion") for text in t[name].to_pylist()
    ]
    folder = tmp_path_factory.mktemp("models") / "base"
    gc.freeze()  # each training collects garbage, among all that the libraries' imports made
    return save_scratch(texts, folder, width=16, layers=1, heads=2, length=96)


@pytest.fixture
def table(chains):
    return chains.load(None, "train")


def recipe(base, out, **changes):
    """A recipe whose models are trained in less than a second each."""
    steps = {"tune": "full", "learning_rate": 5e-3, "max_steps": 3, "batch_size": 8}
    steps["max_length"] = 96
    short = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    keys = {
        "task": "chains",
        "options": {"operations": 1, "modulus": 5, "train": 40, "test": 10},
        "model": base,
        "weak": {"model": base, "train": {"max_steps": 40}, "generate": short},
        "judge": "oracle",
        "sft": steps,
        "propose": short,
        "evaluate": short,
        "dpo": {"train": steps | {"learning_rate": 1e-3}, "generate": short | {"samples": 2}},
        "rounds": 2,
        "arms": {"sft": None, "ilr": None},
        "out": str(out),
    }
    return parse_recipe(keys | changes)


# --- the recipe -----------------------------------------------------------------------------------

LEAST = {"task": "chains", "model": "m", "judge": "oracle", "arms": {"ilr": None}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"modell": "m"}, "unknown key 'modell' (did you mean 'model'?)"),
        ({"arms": {}}, "the recipe has no arms"),
        ({"arms": {"irl": None}}, "arms.irl is no arm (did you mean 'ilr'?)"),
        ({"arms": {"mine": {"like": "irl"}}}, "arms.mine.like = 'irl' is no arm"),
        ({"arms": {"ilr": {"alpha": 2}}}, "arms.ilr: alpha = 2.0: it is a share"),
        ({"arms": {"ilr": {"beta": 2}}}, "unknown key 'arms.ilr.beta'"),
        ({"arms": {"ilr": {"folds": 1}}}, "arms.ilr: folds = 1: give 0, or at least 2"),
        ({"arms": {"dpo": {"train": {"loss": "simpo"}}}}, "arms.dpo: train: loss = 'simpo'"),
        ({"arms": {"dpo": 3}}, "arms.dpo holds 3, not settings"),
        ({"arms": {"dpo": {"reference": "base"}}}, "reference = 'base'"),
        (
            {"arms": {"dpo": {"scoring": "released"}}},
            "scoring = 'released' with the judge 'oracle'",
        ),
        ({"arms": {"gold": None}}, "arms.gold: the labels 'gold' need weak"),
        ({"judge": "oracel"}, "the judge 'oracel' is not known (did you mean 'oracle'?)"),
        ({"judge": "noisy:2"}, "'2' is no share"),
        ({"judge": "reward"}, "the judge 'reward' needs more: write reward:FOLDER"),
        ({"judge": "evaluator"}, "the judge 'evaluator' needs the section evaluator"),
        ({"evaluator": {}}, "an evaluator and no weak model"),
        ({"weak": {}}, "weak.model is missing"),
        ({"alpha": -0.1}, "alpha = -0.1: it is a share"),
        ({"rounds": 0}, "rounds = 0: it must be at least 1"),
        ({"propose": {"samples": 2, "temperature": 1}}, "propose.samples = 2"),
        ({"dpo": {"generate": {"samples": 1}}, "arms": {"dpo": None}}, "so take at least 2"),
        ({"dpo": {"train": {"reference": "m"}}}, "an arm says it"),
        ({"preset": "ilr-paper"}, "preset = 'ilr-paper' (did you mean"),
        ({"sft": 3}, "sft holds 3, not settings"),
        ({"sft": {"epoch": 3}}, "unknown key 'sft.epoch' (did you mean 'epochs'?)"),
        ({"arms": {"../ilr": {"like": "ilr"}}}, "'../ilr' cannot be the name of a folder"),
        ({"arms": {"": {"like": "ilr"}}}, "'' cannot be the name of a folder"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(keys, said):
    with pytest.raises(WhetError, match=r"^the recipe: ") as caught:
        parse_recipe(LEAST | keys)
    assert said in str(caught.value)


def test_seed_and_defaults_reach_the_stages():
    found = parse_recipe(
        LEAST | {"seed": 7, "weak": {"model": "w"}, "evaluator": None, "sft": {"epochs": 5}}
    )
    weak, evaluator = found.weak, found.evaluator
    assert (found.sft.seed, found.propose.seed, found.evaluate.seed, found.dpo.train.seed) == (
        7,
    ) * 4
    assert (weak.train.seed, weak.train.epochs, weak.generate.temperature) == (7, 5, 0.0)
    assert (evaluator.train.seed, evaluator.generate.temperature) == (7, 0.6)
    assert (evaluator.train.validation, evaluator.train.tune) == (None, "full")
    assert (found.dpo.generate.samples, found.dpo.generate.temperature) == (6, 0.7)


def test_arms_are_changed_by_name_and_by_likeness():
    arms = {"sft-again": None, "ilr": {"alpha": 1}, "cold": {"like": "dpo-robust", "rounds": 1}}
    found = parse_recipe(LEAST | {"arms": arms | {"x": {"like": "dpo", "train": {"beta": 1}}}})
    assert found.arms["ilr"] == RefineArm(alpha=1.0)
    assert found.arms["cold"].train == {"loss": "robust", "label_smoothing": 0.1}
    assert found.training(found.arms["cold"]).loss == "robust"
    assert found.training(found.arms["x"]).beta == 1.0
    assert found.training(found.arms["sft-again"]).seed == 1
    assert [found.rounds_of(arm) for arm in found.arms.values()] == [0, 3, 1, 3]
    assert found.judges == {"oracle"}


def test_where_a_run_is_does_not_decide_it():
    llm = {"judge": "llm", "llm": {"model": "j", "max_cost": 1.0}}
    first = parse_recipe(LEAST | llm | {"out": "a"}).deciding()
    second = parse_recipe(LEAST | {**llm, "llm": {"model": "j", "concurrency": 1}}).deciding()
    assert first == second
    assert first != parse_recipe(LEAST | {**llm, "llm": {"model": "k"}}).deciding()


def test_presets_are_the_published_settings():
    """The numbers are those of the paper's released code; see the module's docstring."""
    found = {name: parse_recipe({"preset": name, "data": "d"}) for name in PRESETS}
    for preset in found.values():
        assert (preset.rounds, preset.alpha, preset.dpo.share) == (6, 0.15, 0.15)
        sft, dpo, judge = preset.sft, preset.dpo.train, preset.evaluator.train
        assert (sft.lora_rank, sft.lora_alpha, sft.batch_size, sft.warmup) == (64, 128, 32, 0.05)
        assert (sft.learning_rate, dpo.learning_rate, dpo.beta) == (1e-4, 1e-6, 0.1)
        assert (dpo.optimizer, dpo.loss, dpo.epochs) == ("rmsprop", "sigmoid", sft.epochs)
        assert preset.dpo.generate.samples == 6
        assert (judge.learning_rate, judge.epochs, judge.batch_size) == (1e-6, 5, 16)
        assert (judge.validation, judge.patience, judge.select_best) == (0.1, 1, True)
        assert (preset.evaluator.generate.temperature, preset.evaluator.stages) == (0.6, 10)
    maths, talk = found["ilr-paper-gsm8k"], found["ilr-paper-saferpaca"]
    assert (maths.model, maths.sft.epochs, maths.sft.optimizer) == (
        *("mistralai/Mistral-7B-v0.1", 2, "adamw"),
    )
    assert (maths.weak.model, maths.weak.train.learning_rate) == ("google/gemma-2b", 5e-4)
    assert (maths.propose.temperature, maths.propose.max_new_tokens) == (0.0, 256)
    assert maths.dpo.generate.temperature == 0.7
    assert (talk.sft.epochs, talk.propose.temperature, talk.dpo.generate.temperature) == (
        4,
        1.0,
        1.0,
    )
    assert (talk.weak.generate.temperature, talk.propose.max_new_tokens) == (1.0, 512)
    large = found["ilr-paper-gsm8k-70b"]
    assert (large.sft.optimizer, large.weak.model, large.evaluator.model) == (
        *("adafactor", "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1"),
    )
    assert found["ilr-paper-bird"].options == {"comparison": "set", "seconds": 30.0}
    assert found["ilr-paper-gsm8k-corora"].weak.only_right
    assert not found["ilr-paper-gsm8k-ora"].weak.only_right


def test_recipe_changes_what_it_names_of_a_preset():
    found = parse_recipe(
        {
            "preset": "ilr-paper-gsm8k",
            "sft": {"quantize": "nf4"},
            "arms": {"ilr": None},
            "dpo": {"train": {"beta": 1}},
        }
    )
    assert (found.sft.quantize, found.sft.lora_rank) == ("nf4", 64)
    assert list(found.arms) == ["ilr"]
    assert (found.dpo.train.beta, found.dpo.train.learning_rate) == (1.0, 1e-6)
    assert PRESETS["ilr-paper-gsm8k"]["sft"].get("quantize") is None
    own = {"preset": "ilr-paper-gsm8k", "weak": None, "evaluator": None, "judge": "oracle"}
    found = parse_recipe(own | {"arms": {"sft": None, "ilr": None}})
    assert (found.weak, found.evaluator, found.sft.lora_rank) == (None, None, 64)


def test_recipes_that_come_with_whet_are_recipes():
    found = sorted((ROOT / "examples" / "recipes").glob("ilr-*.yaml"))
    assert found
    for path in found:
        assert load_recipe(path).arms


def test_recipes_in_the_document_are_recipes():
    text = (ROOT / "docs" / "ilr.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        parse_recipe(yaml.safe_load(block))


def test_judges_are_checked_before_they_are_loaded(chains):
    assert check_judge("evaluator:a:b") == ("evaluator", "a:b")
    with pytest.raises(WhetError, match="does not exist"):
        make_judge("evaluator:no/folder", chains)
    with pytest.raises(WhetError, match="does not exist"):
        make_judge("file:no/file.csv", chains)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge": "llm"}, "needs the section llm with its model"),
        ({"judge": "reward:no/folder"}, "no/folder is no folder"),
        ({"judge": "file:no/file.csv"}, "no/file.csv does not exist"),
        ({"judge": "oracle", "train": "bare.jsonl"}, "no column 'reference'"),
    ],
)
def test_judges_are_missed_before_any_training(base, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.jsonl").write_text('{"prompt": "start with 1", "completion": "#### 1"}\n' * 2)
    keys = {"arms": {"ilr": None}} | changes
    with pytest.raises(WhetError, match=re.escape(said)):
        Ilr(recipe(base, "run", **keys))
    assert not (tmp_path / "run").exists()


# --- shared stages --------------------------------------------------------------------------------


def test_same_training_is_done_once(base, table, tmp_path, monkeypatch):
    trained = []
    train = stages_module.train_sft
    monkeypatch.setattr(
        stages_module, "train_sft", lambda *a, **k: trained.append(a[2]) or train(*a, **k)
    )
    stages = Stages(tmp_path)
    first = stages.sft(stages.base(base), table, TINY, "a")
    said = stages.complete(first, table, SAID, "a")
    again = Stages(tmp_path).sft(stages.base(base), table, TINY, "b")
    assert again.key == first.key
    assert again.ready() == str(first.folder)
    assert len(trained) == 1
    assert stages.complete(again, table, SAID, "b").equals(said)
    others = [
        stages.sft(stages.base(base), table.slice(1), TINY, ""),
        stages.sft(first, table, TINY, ""),
        stages.sft(stages.base(base), table, TrainSettings(), ""),
    ]
    assert len({first.key, *(other.key for other in others)}) == 4
    assert len(trained) == 1  # none of the others was asked for


def test_dropped_weights_are_not_missed_until_they_are_needed(base, table, tmp_path):
    stages = Stages(tmp_path)
    model = stages.sft(stages.base(base), table, TINY, "")
    said = stages.complete(model, table, SAID, "")
    weights = (model.folder / "model.safetensors").read_bytes()
    model.drop()
    assert not list(model.folder.glob("*.safetensors"))
    assert stages.complete(model, table, SAID, "").equals(said)
    assert not list(model.folder.glob("*.safetensors"))
    assert model.account()["steps"] == 3
    model.ready()
    assert (model.folder / "model.safetensors").read_bytes() == weights


def test_reference_that_is_the_start_is_the_same_training(base, table, tmp_path):
    stages = Stages(tmp_path)
    pairs = pa.table({"prompt": table["prompt"], "chosen": table["completion"]})
    pairs = pairs.append_column("rejected", pa.array(["#### 0"] * table.num_rows))
    start = stages.base(base)
    moving = stages.dpo(start, pairs, DpoSettings(), "")
    assert stages.dpo(start, pairs, DpoSettings(), "", reference=start).key == moving.key
    other = stages.sft(start, table, TINY, "")
    assert stages.dpo(start, pairs, DpoSettings(), "", reference=other).key != moving.key


def test_training_that_breaks_is_a_halt(base, table, tmp_path):
    stages = Stages(tmp_path)
    wild = TrainSettings(**(vars(TINY) | {"learning_rate": 1e30, "max_steps": 20}))
    with pytest.raises(Halt, match="is not a number"):
        stages.sft(stages.base(base), table, wild, "").ready()


def test_long_prompt_is_found_before_any_training(base, table):
    long = pa.table({"row": [3, 9], "prompt": ["a", "0 " * 200]})
    check_prompts(base, [table])
    with pytest.raises(WhetError, match=r"1 of 2 prompts .* row 9, has \d+ tokens, .* reads 96"):
        check_prompts(base, [table, long])


# --- rounds ---------------------------------------------------------------------------------------


class Says(Proposer):
    """Proposes what a function of row and round says; nothing is trained."""

    def fit(self, rows, labels, number):
        self.fitted = [*getattr(self, "fitted", []), (number, sorted(rows.tolist()))]
        self.seen = [*getattr(self, "seen", []), labels[rows].tolist()]
        return None, number

    def propose(self, model, rows):
        numbers = self.table["row"].to_pylist()
        return as_objects([self.generate(numbers[k], model[1]) for k in rows])


def says(table, function):
    return Says(None, None, table, TINY, function)


def demos(n=8):
    wrong = [f"2 + {i} = 0\n#### 0" for i in range(n)]
    return pa.table(
        {
            "row": [10 + i for i in range(n)],
            "prompt": [f"2 + {i}?" for i in range(n)],
            "completion": wrong,
            "reference": [str(2 + i) for i in range(n)],
        }
    )


def right(row, number):
    return f"#### {2 + row - 10}"


def test_rounds_replace_what_the_judge_prefers(chains, tmp_path):
    table = demos()
    proposer = says(table, right)
    rounds = Rounds(tmp_path, table, chains, Oracle(chains), Rule(mode="ilr", alpha=0.5))
    found = refine(proposer, rounds, n_rounds=3)
    assert [r.record["accepted"] for r in found.rounds] == [4, 2, 1]
    assert [r.record["judged"] for r in found.rounds] == [8, 4, 2]
    last = pq.read_table(tmp_path / "03" / "demonstrations.parquet")
    assert chains.score(last, last["completion"].to_pylist()).sum() == 7
    for number, rows in proposer.fitted:
        assert len(rows) == 4, number
    # the two models of a round know nothing of each other's rows
    assert sorted(proposer.fitted[0][1] + proposer.fitted[1][1]) == list(range(8))
    # and those of the second round learned from what the first replaced
    assert sum("#### 0" not in said for said in proposer.seen[2] + proposer.seen[3]) == 4


def test_stored_rounds_are_not_done_again(chains, tmp_path):
    table = demos()
    rule = Rule(mode="oracle")

    def new():
        return Rounds(tmp_path, table, chains, Oracle(chains), rule)

    whole = refine(says(table, right), new(), n_rounds=2)
    proposer = says(table, right)
    again = refine(proposer, new(), n_rounds=3)
    assert {number for number, _ in proposer.fitted} == {3}
    assert again.rounds[1].labels.tolist() == whole.rounds[1].labels.tolist()
    assert again.rounds[0].record == whole.rounds[0].record


def test_filter_drops_rows_for_good(chains, tmp_path):
    table = demos()
    proposer = says(table, right)
    rounds = Rounds(tmp_path, table, chains, Oracle(chains), Rule(mode="filter", alpha=0.5))
    found = refine(proposer, rounds, n_rounds=2)
    assert [r.record["rows"] for r in found.rounds] == [4, 2]
    assert sum(label is None for label in rounds.load_round(2).labels) == 6
    assert pq.read_table(tmp_path / "02" / "judged.parquet").num_rows == 4


def test_filter_that_would_drop_all_ends_the_refinement(chains, tmp_path):
    class Sure:
        def score(self, table, old, new):
            return Scores(np.linspace(0.6, 0.9, table.num_rows))

    table = demos()
    rounds = Rounds(tmp_path, table, chains, Sure(), Rule(mode="filter", alpha=1.0))
    found = refine(says(table, right), rounds, n_rounds=9)
    # With alpha = 1 all but the lowest score go: 8, 1, and then there is nothing to compare.
    assert [r.record["rows"] for r in found.rounds][:1] == [1]


def test_collapse_ends_the_refinement_and_keeps_its_rounds(chains, tmp_path):
    table = demos()
    asked = []

    class Counts(Oracle):
        def score(self, table, old, new):
            asked.append(table.num_rows)
            return super().score(table, old, new)

    proposer = says(table, lambda row, k: right(row, k) if k == 1 else "")
    rounds = Rounds(tmp_path, table, chains, Counts(chains), Rule(mode="oracle"))
    found = refine(proposer, rounds, n_rounds=3)
    assert len(found.rounds) == 1
    assert found.halted.startswith("stopped in round 2: all 8 proposals are the same ('')")
    assert asked == [8]  # the judge was not paid for the collapse


def test_naive_asks_no_judge_and_draws_anew_each_round(chains, tmp_path):
    table = demos(40)
    rounds = Rounds(tmp_path, table, chains, None, Rule(mode="naive", alpha=0.25))
    found = refine(says(table, lambda row, k: f"#### {row}{k}"), rounds, n_rounds=2)
    drawn = [
        pq.read_table(tmp_path / f"{k:02d}" / "judged.parquet")["accepted"].to_pylist()
        for k in (1, 2)
    ]
    assert [sum(flags) for flags in drawn] == [10, 10]
    assert drawn[0] != drawn[1]
    assert [r.record["judged"] for r in found.rounds] == [0, 0]


def test_failed_rows_keep_their_demonstration_and_are_counted(chains, tmp_path):
    class Half:
        def score(self, table, old, new):
            values = np.array([0.9 if k % 2 else np.nan for k in range(table.num_rows)])
            return Scores(values, dict.fromkeys(range(0, table.num_rows, 2), "no answer"))

    table = demos()
    rounds = Rounds(tmp_path, table, chains, Half(), Rule(mode="chosen"))
    (only,) = refine(says(table, right), rounds, n_rounds=1).rounds
    assert (only.record["judged"], only.record["failed"], only.record["accepted"]) == (4, 4, 4)
    judged = pq.read_table(tmp_path / "01" / "judged.parquet")
    assert judged["failure"].to_pylist().count("no answer") == 4


def test_judge_that_always_fails_stops_before_anything_is_decided(chains, tmp_path):
    class Down:
        def score(self, table, old, new):
            n = table.num_rows
            return Scores(np.full(n, np.nan), dict.fromkeys(range(n), "no answer"))

    table = demos()
    rounds = Rounds(tmp_path, table, chains, Down(), Rule())
    with pytest.raises(WhetError, match="the judge failed at all 8 rows"):
        refine(says(table, right), rounds, n_rounds=1)
    assert rounds.load_round(1) is None


def test_messages_go_through_the_loop(tmp_path):
    class Same:
        marker = None

        def agree(self, table, first, second):
            return np.array([a == b for a, b in zip(first, second, strict=True)])

    class Sure:
        def score(self, table, old, new):
            return Scores(np.full(table.num_rows, 0.9))

    def talk(text):
        return [{"role": "assistant", "content": text}]

    table = demos(4).drop_columns(["completion"])
    table = table.append_column("completion", pa.array([talk("no")] * 4))
    rounds = Rounds(tmp_path, table, Same(), Sure(), Rule(mode="chosen"))
    found = refine(says(table, lambda row, k: talk(f"yes {row}")), rounds, n_rounds=1)
    assert found.rounds[0].labels[2] == talk("yes 12")
    assert rounds.load_round(1).labels[3] == talk("yes 13")


def test_rows_without_a_marker_are_not_learned(base, table, tmp_path):
    stages = Stages(tmp_path)
    proposer = Proposer(stages, stages.base(base), table, TINY, SAID, "####")
    labels = as_objects(["nothing"] * 20 + table["completion"].to_pylist()[20:])
    proposer.start_round(labels, 1)
    model, _ = proposer.fit(np.arange(40), labels, 1)
    whole = stages.sft(stages.base(base), table.slice(20), TINY, "", marker="####")
    assert model.key == whole.key
    with pytest.raises(Halt, match="none of 40 completions holds '####'"):
        proposer.fit(np.arange(40), as_objects(["nothing"] * 40), 1)
    assert answered(table, None) is table


# --- tables that others made ----------------------------------------------------------------------


def test_missing_proposals_are_failures(chains):
    table = demos(3)
    judged = judge_proposals(table, [None, "#### 3", "#### 0"], chains, Oracle(chains))
    assert judged["agree"].to_pylist() == [False, False, True]
    assert judged["score"].to_pylist() == [None, 1.0, None]
    assert judged["failure"].to_pylist() == ["no proposal", None, None]
    refined, decision = replace_judged(judged, Rule(mode="chosen"))
    assert refined["completion"].to_pylist() == [
        *(demos(3)["completion"][0].as_py(), "#### 3", demos(3)["completion"][2].as_py()),
    ]
    assert (decision.judged, decision.failed, decision.n_accepted) == (1, 1, 1)


def test_judged_table_needs_three_columns_and_scores():
    judged = pa.table({"row": [0, 1, 2], "prompt": list("abc"), "completion": ["1", "2", "3"]})
    judged = judged.append_column("proposal", pa.array([4, 5, 3]))  # a CSV's numbers
    judged = judged.append_column("score", pa.array([0.9, 0.2, None]))
    refined, decision = replace_judged(judged, Rule(mode="chosen"))
    assert refined["completion"].to_pylist() == ["4", "2", "3"]
    assert refined.column_names == ["row", "prompt", "completion", "replaced"]
    assert (decision.agreed, decision.failed) == (1, 0)
    wrong = judged.set_column(4, "score", pa.array(["high", "low", ""]))
    with pytest.raises(WhetError, match="the column 'score' holds string"):
        replace_judged(wrong, Rule())


def test_equal_row_numbers_are_refused(chains, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"row": 1, "prompt": "a"}\n{"row": 1, "prompt": "b"}\n')
    with pytest.raises(WhetError, match="has a number twice"):
        read_rows(chains, str(path), ["prompt"])


# --- scores ---------------------------------------------------------------------------------------


def test_scores_of_rows_and_their_means(chains):
    table = demos(4)
    said = pa.table({"row": [13, 10, 10], "completion": ["#### 5", "#### 2", "#### 3"]})
    scored = score_completions(chains, table, said)
    assert scored["row"].to_pylist() == [10, 10, 13]
    assert scored["score"].to_pylist() == [1.0, 0.0, 1.0]
    assert mean_score(scored).value == pytest.approx(2 / 3)
    assert mean_score(scored).n == 2  # rows: the two completions of one are drawn together
    with pytest.raises(WhetError, match="no completions"):
        score_completions(chains, table, said.slice(3))
    with pytest.raises(WhetError, match="is of row 99"):
        score_completions(chains, table, pa.table({"row": [99], "completion": ["#### 5"]}))


def test_difference_is_over_the_same_rows():
    rows = list(range(200))
    scores = np.tile([1.0, 0.0], 100)
    first = pa.table({"row": rows, "score": scores})
    second = pa.table({"row": rows[::-1], "score": scores[::-1].copy()})
    found = score_difference(first, second)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)  # paired, whatever their order


def test_label_and_judge_accuracy(chains):
    table = demos(4)
    assert label_accuracy(chains, table) == 0.0
    assert label_accuracy(chains, table.drop_columns(["reference"])) is None
    proposals = ["#### 2", "#### 3", "#### 9", "#### 0"]
    judged = judge_proposals(table, proposals, chains, Oracle(chains))
    judged = judged.set_column(
        judged.column_names.index("score"), "score", pa.array([0.9, 0.4, 0.9, None])
    )
    # row 0: right; row 1: wrong; row 2: neither is right, so that no verdict is; row 3: not judged
    scored = score_judged(chains, judged)
    assert scored["row"].to_pylist() == [10, 11, 12]
    assert scored["before"].to_pylist() == [0.0, 0.0, 0.0]
    assert scored["after"].to_pylist() == [1.0, 1.0, 0.0]
    assert judge_accuracy(scored) == (1, 2)
    assert score_judged(chains, judged.drop_columns(["reference"])) is None


# --- whole runs -----------------------------------------------------------------------------------


def lasting(manifest):
    """Return what a run found, without what time it took."""
    kept = json.loads(json.dumps(manifest))
    kept.pop("seconds")
    for arm in kept["arms"].values():
        for record in arm["rounds"]:
            record.pop("seconds", None)
    return kept


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """Return a finished run with every kind of arm, and its folder."""
    arms = dict.fromkeys(["sft", "sft-again", "gold", "ilr", "naive"]) | {
        "ilr-one-model": {"rounds": 1},
        "dpo": {"judge": "noisy:0.8"},
        "dpo-fixed": {"judge": "noisy:0.8"},
        "dpo-released": {"judge": "evaluator", "rounds": 1},
        "oracle-dpo": {"rounds": 1},
        "chosen": {"rounds": 1},
    }
    short = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    evaluator = {"stages": 2, "generate": short | {"temperature": 1.5}}
    evaluator["train"] = {"epochs": 1, "learning_rate": 1e-3, "max_length": 96}
    out = tmp_path_factory.mktemp("whole") / "run"
    found = Ilr(recipe(base, out, arms=arms, evaluator=evaluator)).run()
    return found, out


def test_run_says_what_became_of_each_arm(whole):
    found, out = whole
    assert list(found["arms"])[:2] == ["sft", "sft-again"]
    for name, arm in found["arms"].items():
        if arm["halted"] is None:
            several = {"ilr": 3, "naive": 3, "dpo": 3, "dpo-fixed": 3}
            expected = 1 if name in ("sft", "sft-again", "gold") else several.get(name, 2)
            assert [r["round"] for r in arm["rounds"]] == list(range(expected)), name
        for record in arm["rounds"]:
            assert (out / record["model"] / "training.json").is_file()
            assert record["score"]["n"] == 10
    halted = [arm for arm in found["arms"].values() if arm["halted"]]
    assert len(halted) < len(found["arms"]) / 2, halted
    rounds = found["arms"]["naive"]["rounds"]
    assert rounds[-1]["steps"] == 3 * (2 + 2 + 1)  # two half models a round, and the last model
    assert found["arms"]["dpo"]["rounds"][-1]["steps"] == 3 * 3
    assert found["arms"]["gold"]["rounds"][0]["label_accuracy"] == 1.0
    assert found["arms"]["gold"]["rounds"][0]["rows"] == found["rows"]["demonstrations"] == 20
    assert found["evaluator"]["trained"] > 0
    assert found["arms"]["sft"]["gain"] is None
    assert found["arms"]["gold"]["gain"]["n"] == 10
    test = pq.read_table(out / "test.parquet")
    assert test.num_rows == 10 * sum(len(arm["rounds"]) for arm in found["arms"].values())


def test_arms_share_what_is_the_same(whole):
    found, out = whole
    models = {name: [r["model"] for r in arm["rounds"]] for name, arm in found["arms"].items()}
    starts = [paths[0] for name, paths in models.items() if name not in ("sft-again", "gold")]
    assert set(starts) == {models["sft"][0]}
    assert models["sft-again"] != models["sft"] != models["gold"]
    assert models["dpo"][1] == models["dpo-fixed"][1]
    assert models["dpo"][2] != models["dpo-fixed"][2]
    first = [read_json(out / "arms" / name / "01" / "round.json") for name in ("ilr", "naive")]
    assert first[0]["models"] == first[1]["models"]
    for name in first[0]["models"]:  # their proposals are kept, they are not
        assert not list((out / "stages" / "models" / name).glob("*.safetensors"))


def test_oracle_pairs_are_right_over_wrong(whole, chains):
    _, out = whole
    given = pq.read_table(out / "demonstrations.parquet")
    path = out / "arms" / "oracle-dpo" / "01" / "pairs.parquet"
    if not path.is_file():
        pytest.skip("the tiny model gave no pair of a right and a wrong sample")
    pairs = pq.read_table(path)
    place = {row: k for k, row in enumerate(given["row"].to_pylist())}
    rows = given.take(pa.array([place[row] for row in pairs["row"].to_pylist()]))
    assert chains.score(rows, pairs["chosen"].to_pylist()).all()
    assert not chains.score(rows, pairs["rejected"].to_pylist()).any()


def test_released_scoring_ties_all_pairs(whole):
    found, _ = whole
    record = found["arms"]["dpo-released"]["rounds"][1]
    assert record["tied"] == record["made"] - record["same"] - record["failed"] > 0
    assert record["kept"] == max(int(0.15 * record["made"]), 1)


def test_finished_run_is_read_and_other_settings_are_refused(whole, base):
    found, out = whole
    settings = read_json(out / "settings.json")
    assert settings["sha256"]["train"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    arms = {"sft": None}
    with pytest.raises(WhetError, match="was started with arms"):
        Ilr(recipe(base, out, arms=arms)).run()
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    assert read_json(out / "run.json") == found


class Killed(BaseException):
    """Ends a run where it stands, as a signal would: no handler of errors catches it."""


class Catch:
    """Swallows a kill, and says whether there was one."""

    kind = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.kind = kind
        return kind is Killed


SMALL = {"sft": None, "ilr": None, "oracle-dpo": {"rounds": 1}}


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return lasting(Ilr(recipe(base, out, arms=SMALL)).run()), out


def test_killed_at_every_file_it_ends_as_if_it_had_not_been(
    base, uninterrupted, tmp_path, monkeypatch
):
    """Each start ends before the first file that no start before it got to."""
    import whet.store

    expected, reference = uninterrupted
    write, met = whet.store.write_atomic, set()

    def dying(path, content):
        if path not in met:
            met.add(path)
            raise Killed
        write(path, content)

    monkeypatch.setattr(whet.store, "write_atomic", dying)
    starts, manifest = 0, None
    while manifest is None:
        starts += 1
        assert starts < 200
        with Catch() as caught:
            manifest = Ilr(recipe(base, tmp_path / "run", arms=SMALL)).run()
        assert caught.kind in (None, Killed)
    assert starts > 30
    assert lasting(manifest) == expected | {"settings": manifest["settings"]}
    for path in sorted(reference.rglob("*.parquet")):
        name = path.relative_to(reference)
        assert (tmp_path / "run" / name).read_bytes() == path.read_bytes(), name
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_killed_inside_stages(base, uninterrupted, tmp_path, monkeypatch):
    """Every second training and generation dies half-way through."""
    expected, _ = uninterrupted
    calls, kills = [], []

    def dying(real):
        def work(*args, progress=None, **kwargs):
            calls.append(real)

            def tell(what, done, total):
                if len(calls) % 2 and done * 2 >= total:
                    kills.append(real)
                    raise Killed

            return real(*args, progress=tell, **kwargs)

        return work

    stages = ("train_sft", "train_dpo", "generate")
    for name in stages:
        monkeypatch.setattr(stages_module, name, dying(getattr(stages_module, name)))
    manifest = None
    while manifest is None:
        with Catch():
            manifest = Ilr(recipe(base, tmp_path / "run", arms=SMALL)).run()
        assert len(kills) < 50
    assert len(set(kills)) >= 2
    assert lasting(manifest) == expected | {"settings": manifest["settings"]}


def test_arm_that_breaks_leaves_the_others(base, tmp_path):
    wild = {"like": "oracle-dpo", "train": {"learning_rate": 1e30, "max_steps": 20}}
    found = Ilr(recipe(base, tmp_path / "run", arms={"sft": None, "wild": wild})).run()
    assert found["arms"]["sft"]["halted"] is None
    wild = found["arms"]["wild"]
    assert len(wild["rounds"]) == 1
    assert "is not a number" in wild["halted"] or "no pair is left" in wild["halted"]


def test_run_without_any_arm_is_an_error_and_can_be_mended(base, tmp_path):
    steps = {"tune": "full", "learning_rate": 1e30, "max_steps": 20, "batch_size": 8}
    broken = recipe(base, tmp_path / "run", arms={"sft": {"train": steps}})
    with pytest.raises(WhetError, match=r"no arm could be run: .* is not a number"):
        Ilr(broken).run()
    assert not (tmp_path / "run" / "run.json").exists()


def test_own_demonstrations_need_no_task_but_an_answer(base, table, tmp_path):
    """A table of one's own, with a judge of one's own, and nothing to evaluate."""
    path = tmp_path / "demos.parquet"
    pq.write_table(table.select(["prompt", "completion"]), path)
    keys = {
        "task": "chains",
        "train": str(path),
        "test": None,
        "judge": "file:mine",
        "arms": {"ilr": {"rounds": 1}},
    }

    class Longer:
        def score(self, table, old, new):
            return Scores(np.array([float(len(b) > len(a)) for a, b in zip(old, new, strict=True)]))

    settings = replace(recipe(base, tmp_path / "run", **keys), weak=None)
    found = Ilr(settings, judges={"file:mine": Longer()}).run()
    assert found["rows"] == {"demonstrations": 40, "gold": 0, "test": 0}
    (start, after) = found["arms"]["ilr"]["rounds"]
    assert start["score"] is None
    assert start["label_accuracy"] is None
    assert after["judged"] + after["agreed"] == 40


def test_only_right_demonstrations(base, tmp_path, chains):
    short = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    weak = {"model": base, "train": {"max_steps": 150}, "generate": short, "only_right": True}
    found = Ilr(recipe(base, tmp_path / "run", weak=weak, arms={"sft": None})).run()
    given = pq.read_table(tmp_path / "run" / "demonstrations.parquet")
    assert 0 < given.num_rows < 20
    assert found["arms"]["sft"]["rounds"][0]["label_accuracy"] == 1.0
