"""The verbs of label refinement: files in, files out, whoever made them, and killed runs."""

import json
import os
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("trl")

from helpers import WHET, snapshot, whet
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.posttrain.examples import read_examples, write_examples
from whet.store import read_json

OPTIONS = {"operations": 1, "modulus": 5, "train": 40, "test": 10}
TASK = ["--task", "chains"]
TRAIN = ["--tune", "full", "--learning-rate", "5e-3", "--max-steps", "3", "--batch-size", "8"]
TRAIN += ["--max-length", "96"]
SAY = ["--max-new-tokens", "10"]
SERVED = ["propose", "demos.jsonl", "--model", "m", "--base-url", "http://h:9", "--out", "x"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Demonstrations, a test and a small model, as a user would have them."""
    folder = tmp_path_factory.mktemp("inputs")
    task = load_task("chains", **OPTIONS)
    train, test = task.load(None, "train"), task.load(None, "test")
    write_examples(folder / "demos.jsonl", train.drop_columns(["row"]))
    write_examples(folder / "test.jsonl", test.drop_columns(["row"]))
    texts = [t for x in (train, test) for c in ("prompt", "completion") for t in x[c].to_pylist()]
    save_scratch(texts, folder / "base", width=16, layers=1, heads=2, length=96)
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """Work in a folder of one's own, where the inputs are at hand."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(args):
    found = whet(args)
    assert found.code == 0, found.err
    return found


def proposals(here, changes=None):
    """A table of proposals that whet did not make: half of them right, in a CSV."""
    table = read_examples(here / "demos.jsonl", ["prompt", "completion"])
    wrong = ["#### 9"] * table.num_rows
    at = table.column_names.index("completion")
    right = table["completion"].to_pylist()
    table = table.set_column(at, "completion", pa.array(wrong))
    said = [text if k % 2 else f"#### {k}0" for k, text in enumerate(right)]
    table = table.append_column("proposal", pa.array(said))
    write_examples(here / "proposals.csv", table)
    return table


# --- one after the other --------------------------------------------------------------------------


def test_five_commands_from_demonstrations_to_a_score(here):
    said = done(["propose", "demos.jsonl", "--model", "base", "--out", "p", *TASK, *TRAIN, *SAY])
    assert "40 rows have a proposal." in said.out
    assert "6 steps in all" in said.out
    table = pq.read_table("p/proposals.parquet")
    assert sorted(set(table["fold"].to_pylist())) == [0, 1]
    assert {"row", "prompt", "completion", "reference", "proposal"} <= set(table.column_names)
    assert not list(here.glob("p/stages/models/*/model.safetensors"))
    following = next(line for line in said.out.splitlines() if line.startswith("Next: "))
    assert following.startswith("Next: whet judge p/proposals.parquet --task chains --judge JUDGE")

    said = done(["judge", "p/proposals.parquet", *TASK, "--judge", "oracle", "--out", "j.parquet"])
    assert "proposals differ and are judged" in said.out
    assert "Next: whet replace j.parquet --out refined.parquet" in said.out
    said = done(["replace", "j.parquet", "--out", "refined.jsonl", "--alpha", "0.5"])
    assert "of 40 demonstrations are replaced" in said.out
    refined = read_examples(here / "refined.jsonl", ["prompt", "completion", "reference"])
    assert refined.num_rows == 40
    assert "proposal" not in refined.column_names
    done(["sft", "refined.jsonl", "--model", "base", "--out", "tuned", *TRAIN])
    said = done(
        ["evaluate", "base", "tuned", *TASK, "--test", "test.jsonl", "--out", "e", *SAY],
    )
    assert "2 evaluated on 10 rows of chains." in said.out
    assert pq.read_table("e/scores.parquet").num_rows == 20
    found = read_json(here / "e" / "run.json")["found"]
    assert [one["what"] for one in found] == ["base", "tuned"]
    assert found[0]["gain"] is None
    assert found[1]["gain"]["n"] == 10


def test_same_command_again_changes_nothing(here):
    command = ["propose", "demos.jsonl", "--model", "base", "--out", "p", *TASK, *TRAIN, *SAY]
    first = done(command)
    before = snapshot(here / "p")
    again = done(command)
    assert again.out == first.out
    assert snapshot(here / "p") == before
    other = whet([*command, "--folds", "4"])
    assert other.code == 2
    assert "was started with folds = 2, not 4" in other.err


def test_one_model_of_all_rows(here):
    said = done(
        [
            *("propose", "demos.jsonl", "--model", "base", "--out", "p", "--folds", "0"),
            *("--keep-models", *TRAIN, *SAY),
        ]
    )
    assert "1 of all rows, 3 steps in all" in said.out
    assert len(list(here.glob("p/stages/models/*/model.safetensors"))) == 1


def test_split_of_a_task_is_an_input(here):
    options = [part for k, v in OPTIONS.items() for part in ("--option", f"{k}={v}")]
    said = done(
        ["propose", "train", *TASK, *options, "--model", "base", "--out", "p", *TRAIN, *SAY]
    )
    assert "--option operations=1" in said.out
    assert pq.read_table("p/proposals.parquet")["reference"].null_count == 0


# --- files that others made -----------------------------------------------------------------------


def test_people_judge_in_a_table(here):
    table = proposals(here)
    said = done(["judge", "proposals.csv", "--out", "people.csv"])
    assert "40 of 40 proposals differ." in said.out
    assert "fill the column choice where agree is false, and then" in said.out
    rows = read_examples(here / "people.csv", ["prompt", "completion"])
    assert rows["choice"].null_count == 40
    choices = ["proposal" if k % 2 else "completion" for k in range(39)] + [None]
    at = rows.column_names.index("choice")
    write_examples(here / "people.csv", rows.set_column(at, "choice", pa.array(choices)))
    command = said.out.splitlines()[-1]
    assert command.startswith("whet judge proposals.csv --judge file:people.csv")
    said = done(command.removeprefix("whet ").split())
    assert "1, which keep their demonstration: no choice in people.csv" in said.out
    done(["replace", "judged.parquet", "--out", "refined.csv", "--mode", "chosen"])
    refined = read_examples(here / "refined.csv", ["prompt", "completion"])
    expected = [table["proposal"][k].as_py() if k % 2 and k != 39 else "#### 9" for k in range(40)]
    assert refined["completion"].to_pylist() == expected


def test_scores_of_any_judge_are_replaced_by(here):
    table = proposals(here).append_column("score", pa.array([k / 40 for k in range(40)]))
    write_examples(here / "scored.parquet", table)
    said = done(["replace", "scored.parquet", "--out", "refined.parquet", "--alpha", "0.25"])
    refined = pq.read_table("refined.parquet")
    assert refined["replaced"].to_pylist() == [k >= 30 for k in range(40)]
    assert "10 of 40 demonstrations are replaced (25.0%)." in said.out
    done(["replace", "scored.parquet", "--out", "less.parquet", "--mode", "filter"])
    assert pq.read_table("less.parquet").num_rows == 34


def test_completions_of_any_model_are_evaluated(here):
    test = read_examples(here / "test.jsonl", ["prompt", "reference"])
    right = [f"I think #### {answer}" for answer in test["reference"].to_pylist()]
    write_examples(here / "theirs.jsonl", pa.table({"completion": right}))
    some = pa.table({"row": [9, 3], "completion": [right[9], "#### no"]})
    write_examples(here / "some.csv", some)
    what = ["theirs.jsonl", "some.csv"]
    said = done(["evaluate", *what, *TASK, "--test", "test.jsonl", "--out", "e"])
    lines = {
        line.split()[0]: line for line in said.out.splitlines() if line.startswith(("th", "so"))
    }
    assert "1.000 [0.783, 1.000]  10" in " ".join(lines["theirs.jsonl"].split("   "))
    assert "0.500 [0.000, 1.000]" in lines["some.csv"]
    assert "-0.500 [-1.000, +0.000]" in lines["some.csv"]


def test_language_model_judges_and_is_asked_once(here):
    pytest.importorskip("aiohttp", reason="needs the extra llm")
    from llm_server import LLMServer, Say

    proposals(here)

    def longer(call):
        first, second = call.text.split("</answer_a>")[0], call.text.split("<answer_b>\n")[1]
        return Say(label="accept" if len(second) < len(first) else "reject", logprobs=None)

    with LLMServer(longer) as server:
        command = ["judge", "proposals.csv", "--judge", "llm", "--model", "m", "--out", "j.jsonl"]
        command += ["--base-url", server.url]
        stopped = whet([*command, "--max-calls", "11", "--concurrency", "2"])
        assert stopped.code == 3
        assert "Stopped early: " in stopped.out
        assert "run the same command again to go on" in stopped.out
        assert not (here / "j.jsonl").exists()
        done(command)
        assert len(server.calls) == 80
        done(command)
        assert len(server.calls) == 80
    judged = read_examples(here / "j.jsonl", ["prompt", "proposal", "score"])
    assert set(judged["score"].to_pylist()) <= {0.0, 0.5, 1.0}


def test_model_behind_a_server_proposes_and_is_asked_once(here):
    pytest.importorskip("aiohttp", reason="needs the extra llm")
    from llm_server import LLMServer, Say

    def says(call):
        asked = call.body["messages"][-1]["content"]
        if "start with 0" in asked:
            return Say(text="It is", finish="length")
        return Say(text=f"#### {len(asked)}{call.number}")

    with LLMServer(says) as server:
        command = ["propose", "demos.jsonl", "--model", "m", "--base-url", server.url, "--out", "p"]
        said = done([*command, *TASK, *SAY])
        assert len(server.calls) == 40
        (here / "p" / "run.json").unlink()  # as if it had been killed before the end
        again = done([*command, *TASK, *SAY])
        assert len(server.calls) == 40
    assert again.out == said.out
    table = read_examples(here / "p" / "proposals.parquet", ["prompt", "completion"])
    cut = ["start with 0" in prompt for prompt in table["prompt"].to_pylist()]
    assert any(cut)
    assert [x is None for x in table["proposal"].to_pylist()] == cut
    assert f"{40 - sum(cut)} of 40 rows have a proposal." in said.out
    found = done(["judge", "p/proposals.parquet", *TASK, "--judge", "oracle", "--out", "j.jsonl"])
    assert f"{sum(cut)}, which keep their demonstration: no proposal" in found.out


def as_messages(table):
    """The same rows in the conversational form."""
    for name, role in (("prompt", "user"), ("completion", "assistant"), ("proposal", "assistant")):
        said = [
            None if x is None else [{"role": role, "content": x}] for x in table[name].to_pylist()
        ]
        table = table.set_column(table.column_names.index(name), name, pa.array(said))
    return table


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_messages_are_judged_and_replaced_as_text_is(here, name):
    table = proposals(here)
    write_examples(here / name, as_messages(table))
    done(["judge", name, *TASK, "--judge", "oracle", "--out", "judged.jsonl"])
    done(["replace", "judged.jsonl", "--out", "refined.jsonl", "--mode", "chosen"])
    refined = read_examples(here / "refined.jsonl", ["prompt", "completion"])
    expected = [table["proposal"][k].as_py() if k % 2 else "#### 9" for k in range(40)]
    assert [said[0]["content"] for said in refined["completion"].to_pylist()] == expected


def test_references_of_a_csv_are_numbers(here):
    table = proposals(here)
    done(["judge", "proposals.csv", *TASK, "--judge", "oracle", "--out", "judged.parquet"])
    found = read_examples(here / "proposals.csv", ["prompt"])
    assert pa.types.is_integer(found.schema.field("reference").type)
    scores = pq.read_table("judged.parquet")["score"].to_pylist()
    assert [score for score in scores[1::2] if score is not None] == [1.0] * 20
    assert table.num_rows == 40


# --- what is wrong is said in one sentence --------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["propose", "no.jsonl", "--model", "base", "--out", "x"], "no.jsonl does not exist"),
        (["propose", "train", "--model", "base", "--out", "x"], "a split needs a task"),
        (["propose", "demos.jsonl", "--model", "./no", "--out", "x"], "./no does not exist"),
        (["propose", "demos.jsonl", "--model", "base", "--out", "x", "--folds", "1"], "folds = 1"),
        (
            [*SERVED, "--concurrency", "0"],
            "concurrency = 0: it must be at least 1",
        ),
        (["judge", "demos.jsonl", "--out", "x.jsonl"], "has no column 'proposal'"),
        (["judge", "proposals.csv", "--out", "proposals.csv"], "is the input"),
        (
            ["judge", "proposals.csv", "--judge", "oracel", "--out", "x.csv"],
            "(did you mean 'oracle'?)",
        ),
        (["judge", "proposals.csv", "--judge", "oracle", "--out", "x.csv"], "name one with --task"),
        (["judge", "proposals.csv", "--judge", "llm", "--out", "x.csv"], "--model is missing"),
        (["judge", "proposals.csv", "--option", "a=1", "--out", "x.csv"], "belongs to a task"),
        (
            ["judge", "proposals.csv", "--judge", "evaluator:no", "--out", "x.csv"],
            "no/evaluator.json does not exist",
        ),
        (["judge", "proposals.csv", "--out", "x.txt"], "has the suffix '.txt'"),
        (["judge", "proposals.csv", *TASK, "--option", "a", "--out", "x.csv"], "is no KEY=VALUE"),
        (["replace", "proposals.csv", "--out", "x.csv"], "has no column 'score'"),
        (["replace", "proposals.csv", "--out", "x.csv", "--mode", "irl"], "(did you mean 'ilr'?)"),
        (["evaluate", "base", "--task", "gsm", "--out", "x"], "(did you mean 'gsm8k'?)"),
        (["evaluate", "base", "--task", "gsm8k", "--out", "x"], "lies in a folder"),
        (
            ["evaluate", "demos.jsonl", *TASK, "--test", "test.jsonl", "--out", "x"],
            "demos.jsonl has 40 rows and the test 10: add the column row",
        ),
        (["ilr", "no.yaml"], "the recipe no.yaml does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(here, args, said):
    proposals(here)
    before = sorted(here.iterdir())
    found = whet(args)
    assert found.code == 2
    assert said in found.err
    assert found.err.startswith("whet: ")
    assert found.err.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_prompt_that_no_model_can_read(here):
    rows = [{"prompt": "0 " * 100, "completion": "#### 1"}, {"prompt": "1", "completion": "#### 2"}]
    (here / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = whet(["propose", "long.jsonl", "--model", "base", "--out", "x", *TRAIN, *SAY])
    assert found.code == 2
    assert "1 of 2 prompts leave no room for a completion: the first, row 0" in found.err
    assert not (here / "x").exists()


def test_rows_that_lack_what_the_judge_reads(here):
    table = proposals(here).drop_columns(["reference"])
    write_examples(here / "bare.csv", table)
    found = whet(["judge", "bare.csv", *TASK, "--judge", "oracle", "--out", "x.csv"])
    assert found.code == 2
    assert "the rows have no column 'reference'" in found.err
    nothing = table.append_column("score", pa.nulls(40, pa.float64()))
    write_examples(here / "bare.jsonl", nothing)
    found = whet(["replace", "bare.jsonl", "--out", "x.jsonl"])
    assert found.code == 2
    assert "none of 40 proposals that differ has a score" in found.err
    assert not (here / "x.csv").exists()
    assert not (here / "x.jsonl").exists()


def test_half_that_collapses_alone(here, monkeypatch):
    from whet.ilr.refine import Stages

    complete = Stages.complete

    def one_collapses(self, model, prompts, *rest, **named):
        said = complete(self, model, prompts, *rest, **named)
        if 0 not in prompts["row"].to_pylist():
            return said
        same = pa.array(["#### 1"] * said.num_rows)
        return said.set_column(said.column_names.index("completion"), "completion", same)

    monkeypatch.setattr(Stages, "complete", one_collapses)
    found = whet(["propose", "demos.jsonl", "--model", "base", "--out", "x", *TRAIN, *SAY])
    assert found.code == 2
    assert "all 20 proposals are the same ('#### 1')" in found.err
    assert not (here / "x" / "proposals.parquet").exists()


def test_judge_is_not_asked_about_proposals_that_are_all_the_same(here):
    table = proposals(here)
    demos = read_examples(here / "demos.jsonl", ["completion"])["completion"]
    table = table.set_column(table.column_names.index("completion"), "completion", demos)
    at = table.column_names.index("proposal")
    write_examples(here / "same.jsonl", table.set_column(at, "proposal", pa.array(["no"] * 40)))
    found = whet(["judge", "same.jsonl", *TASK, "--judge", "oracle", "--out", "x.jsonl"])
    assert found.code == 2
    assert "all 40 proposals are the same ('no')" in found.err


def test_full_disk_is_said_and_the_same_command_goes_on(here, monkeypatch):
    from collections import namedtuple

    from whet import store
    from whet.ilr import stages

    def fails(*rest, **named):
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch says it

    command = ["propose", "demos.jsonl", "--model", "base", "--out", "x", *TASK, *TRAIN, *SAY]
    free = namedtuple("Usage", "free")
    with monkeypatch.context() as patched:
        patched.setattr(stages.Job, "run", fails)
        patched.setattr(store.shutil, "disk_usage", lambda folder: free(4096))
        found = whet(command)
    assert found.code == 2
    assert found.err.splitlines()[-1].startswith("whet: the disk of x is full: free space and run")
    done(command)


OWN = """
import numpy as np
class Own:
    name, marker = "own", None
    def load(self, folder, split): ...
    def agree(self, table, first, second): return np.array([a == b for a, b in zip(first, second)])
    def score(self, table, completions): return {scores}
task = Own()
"""


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ("[2.0] * len(completions)", "gave the score 2: a score is from 0 to 1"),
        ("[1.0]", "gave the shape (1,) for 40 rows"),
        ("['good'] * len(completions)", "gave no numbers"),
    ],
)
def test_task_of_ones_own_that_scores_wrongly(here, scores, said):
    proposals(here)
    (here / "own.py").write_text(OWN.format(scores=scores))
    found = whet(
        ["judge", "proposals.csv", "--task", "own.py", "--judge", "oracle", "--out", "x.csv"]
    )
    assert found.code == 2
    assert said in found.err


def test_proposals_that_are_all_the_same(here):
    table = read_examples(here / "demos.jsonl", ["prompt", "completion"])
    table = table.append_column("proposal", pa.array(["#### 1"] * 40))
    write_examples(here / "same.parquet", table.append_column("score", pa.array([0.9] * 40)))
    found = whet(["replace", "same.parquet", "--out", "x.parquet"])
    assert found.code == 2
    assert "all 40 proposals are the same ('#### 1')" in found.err
    assert not (here / "x.parquet").exists()


# --- whole runs -----------------------------------------------------------------------------------


def write_recipe(here, **changes):
    short = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    sft = {"tune": "full", "learning_rate": 5e-3, "max_steps": 3, "batch_size": 8}
    keys = {
        "task": "chains",
        "options": OPTIONS,
        "model": "base",
        "weak": {"model": "base", "train": {"max_steps": 40}, "generate": short},
        "judge": "noisy:0.8",
        "sft": sft | {"max_length": 96},
        "propose": short,
        "evaluate": short,
        "rounds": 2,
        "arms": {"sft": None, "ilr": None, "naive": None},
    }
    (here / "recipe.yaml").write_text(yaml.safe_dump(keys | changes, sort_keys=False))


def test_run_shows_arms_rounds_and_what_they_share(here):
    write_recipe(here)
    said = done(["ilr", "recipe.yaml", "--out", "run"])
    assert "3 arms on 20 demonstrations, 10 rows of test." in said.out
    heading, *rows = [
        line.split() for line in said.out.splitlines() if line[:3] in ("arm", "sft", "ilr", "nai")
    ]
    assert heading == ["arm", "score", "minus", "sft", "labels", "judge", "changed", "steps"]
    assert [row[0] for row in rows[:3]] == ["sft", "ilr", "naive"]
    assert "Score after each round:" in said.out
    assert "weak model" in said.out
    assert "Next: read what was replaced in run/arms/" in said.out
    again = done(["ilr", "recipe.yaml", "--out", "run"])
    assert again.out == said.out
    assert "step" not in again.err
    write_recipe(here, alpha=0.5)
    other = whet(["ilr", "recipe.yaml", "--out", "run"])
    assert other.code == 2
    assert "was started with alpha = 0.15, not 0.5" in other.err


def test_killed_process_goes_on_where_it_was(here):
    """SIGKILL, which no handler sees, some time after the first model."""
    write_recipe(here, arms={"sft": None, "ilr": None}, rounds=1)
    process = subprocess.Popen(
        [WHET, "ilr", "recipe.yaml", "--out", "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 100
        models = here / "run" / "stages" / "models"
        while time.monotonic() < deadline and process.poll() is None:
            if len(list(models.glob("*/settings.json"))) >= 2:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (here / "run" / "run.json").exists()
    done(["ilr", "recipe.yaml", "--out", "run"])
    done(["ilr", "recipe.yaml", "--out", "other"])
    first, second = (pq.read_table(f"{name}/test.parquet") for name in ("run", "other"))
    assert first.equals(second)
    assert not list((here / "run").rglob("*.tmp"))
