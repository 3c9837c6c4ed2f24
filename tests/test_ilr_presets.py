"""The presets of the paper, from files in their data's layout to the last arm, with tiny models."""

import gc
import json
import sqlite3

import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

from whet.ilr.llm_judge import pair_text
from whet.ilr.pipeline import Ilr
from whet.ilr.recipe import parse_recipe
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.posttrain.settings import TrainSettings
from whet.posttrain.trainers import train_sft

ROWS, TESTED = 32, 8


def problems(folder):
    for split, rows in (("train", range(ROWS)), ("test", range(ROWS, ROWS + TESTED))):
        write(
            folder / f"{split}.jsonl",
            [
                {"question": f"Add {k % 7} and {k % 5}.", "answer": f"#### {k % 7 + k % 5}"}
                for k in rows
            ],
        )


def queries(folder):
    (folder / "train_databases" / "zoo").mkdir(parents=True)
    with sqlite3.connect(folder / "train_databases" / "zoo" / "zoo.sqlite") as database:
        database.execute("CREATE TABLE animals (name TEXT, legs INTEGER)")
        rows = [(f"animal {k}", k) for k in range(ROWS + TESTED)]
        database.executemany("INSERT INTO animals VALUES (?, ?)", rows)
    (folder / "test_databases").symlink_to(folder / "train_databases")
    for split, rows in (("train", range(ROWS)), ("test", range(ROWS, ROWS + TESTED))):
        content = [
            {
                "db_id": "zoo",
                "question": f"Which animals have {k} legs?",
                "evidence": "",
                "SQL": f"SELECT name FROM animals WHERE legs = {k}",
            }
            for k in rows
        ]
        (folder / f"{split}.json").write_text(json.dumps(content))


def instructions(folder):
    about = [f"Tell me about thing {k}." for k in range(ROWS + TESTED)]
    said = ["I cannot help with that." if k % 2 else f"It is thing {k}." for k in range(len(about))]
    train, test = [], []
    for k, (question, answer) in enumerate(zip(about, said, strict=True)):
        if k < ROWS:
            safety = {"input": "", "output": answer, "is_safety": bool(k % 2)}
            train.append({"instruction": question} | safety)
        else:
            category = "safety" if k % 2 else "other"
            test.append({"question": question, "answer": answer, "category": category})
    write(folder / "train.jsonl", train)
    write(folder / "ilr_test.jsonl", test)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "make", "test"),
    [
        ("ilr-paper-gsm8k", problems, "test"),
        ("ilr-paper-bird", queries, "test"),
        ("ilr-paper-saferpaca", instructions, "ilr_test"),
    ],
)
def test_preset_runs_to_its_last_arm(name, make, test, tmp_path):
    data, base = tmp_path / "data", tmp_path / "base"
    data.mkdir()
    make(data)
    preset = parse_recipe({"preset": name})
    task = load_task(preset.task, **preset.options)
    tables = [task.load(data, split) for split in ("train", test)]
    texts = [text for t in tables for c in ("prompt", "completion") for text in t[c].to_pylist()]
    gc.freeze()  # each training collects garbage, among all that the libraries' imports made
    length = max(len(text) for text in texts)
    start = save_scratch(
        [*texts, pair_text("", "", "")], tmp_path / "start", width=32, layers=1, length=3 * length
    )
    # Enough to know the form of an answer, without which there is nothing to compare.
    learn = TrainSettings(
        tune="full", learning_rate=5e-3, max_steps=40, batch_size=16, precision="fp32"
    )
    train_sft(str(start), tables[0].select(["prompt", "completion"]), base, learn)
    model = str(base)
    recipe = parse_recipe(
        {
            "preset": name,
            "data": str(data),
            "model": model,
            "weak": {"model": model},
            "evaluator": {"model": model, "stages": 2},
            "rounds": 1,
            "propose": {"max_new_tokens": 16},
            "evaluate": {"max_new_tokens": 16},
            "arms": {"sft": None, "ilr": None, "dpo": None},
            "out": str(tmp_path / "run"),
        }
    )
    assert (recipe.sft, recipe.weak.train) == (preset.sft, preset.weak.train)
    assert (recipe.dpo, recipe.evaluator.train) == (preset.dpo, preset.evaluator.train)
    run = Ilr(recipe).run()
    assert [arm["halted"] for arm in run["arms"].values()] == [None] * 3
    assert [len(arm["rounds"]) for arm in run["arms"].values()] == [1, 2, 2]
    assert all(arm["rounds"][-1]["score"]["n"] == TESTED for arm in run["arms"].values())
    assert run["evaluator"]["accuracy"]["n"] > 0
    assert run["arms"]["dpo"]["rounds"][1]["kept"] > 0
    judged = pq.read_table(tmp_path / "run" / "arms" / "ilr" / "01" / "judged.parquet")
    assert judged.num_rows == ROWS // 2  # the other half trained the weak model
    for row in judged.to_pylist():
        assert row["agree"] or (row["score"] is None) != (row["failure"] is None)
