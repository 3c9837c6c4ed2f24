"""Rows of demonstrations and preferences: read, cut into tokens, and judged before training."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

import trl
from datasets import Dataset

import tiny_models
from tiny_causal import SIGNS, TEMPLATE, as_messages, save_causal, sums
from whet import WhetError
from whet.posttrain.examples import (
    check_examples,
    digest,
    is_conversational,
    read_examples,
    write_examples,
)
from whet.posttrain.lint import lint
from whet.posttrain.models import load_tokenizer
from whet.posttrain.settings import (
    DpoSettings,
    GenerateSettings,
    OnlineSettings,
    TrainSettings,
)
from whet.posttrain.tokens import encode, encode_prompts

TALK = [{"role": "user", "content": "1+1="}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_come_back_as_they_were_written(tmp_path, suffix):
    table = pa.table(
        {"prompt": ["2+2=", "2+2=", "é\n"], "completion": ["4", "5", ""], "n": [1, 2, 3]}
    )
    if suffix == "csv":
        table = table.set_column(1, "completion", pa.array(["4", "5", "6"]))
    table = check_examples(table, ["prompt", "completion"])
    write_examples(tmp_path / f"rows.{suffix}", table)
    again = read_examples(tmp_path / f"rows.{suffix}", ["prompt", "completion"])
    assert again.column_names == ["row", "prompt", "completion", "n"]
    expected = table.to_pylist()
    assert again.to_pylist() == expected
    assert digest(again) == digest(table)


def test_answers_in_csv_stay_as_they_are_written(tmp_path):
    path = tmp_path / "demos.csv"
    path.write_text("prompt,completion,weight\nIs 2 even?,True,1\nIs 3 even?,False,2\n")
    table = read_examples(path, ["prompt", "completion"])
    assert table["completion"].to_pylist() == ["True", "False"]
    assert table["weight"].to_pylist() == [1, 2]


def test_a_row_number_in_the_input_is_kept_and_may_come_twice():
    table = pa.table({"prompt": ["a", "a", "b"], "row": pa.array([7, 7, 3], pa.int32())})
    checked = check_examples(table, ["prompt"])
    assert checked["row"].to_pylist() == [7, 7, 3]
    assert checked["row"].type == pa.int64()


def test_messages_are_told_from_text():
    assert is_conversational(as_messages(sums(2)))
    assert not is_conversational(sums(2))
    assert check_examples(as_messages(sums(2)), ["prompt", "chosen", "rejected"]).num_rows == 2


@pytest.mark.parametrize(
    ("columns", "needs", "said"),
    [
        ({"prompts": ["a"]}, ["prompt"], r"has no column 'prompt' \(did you mean 'prompts'\?\)"),
        ({"prompt": pa.array([], pa.string())}, ["prompt"], "has no rows"),
        ({"prompt": ["a", ""]}, ["prompt"], "row 1 of the table has no prompt"),
        ({"prompt": ["a", None]}, ["prompt"], "row 1 of the table has no prompt"),
        ({"prompt": [TALK, []]}, ["prompt"], "row 1 of the table has no prompt"),
        (
            {"prompt": ["a"], "completion": [None]},
            ["prompt", "completion"],
            "'completion' of the table holds null",
        ),
        (
            {"prompt": ["a", "b"], "completion": ["x", None]},
            ["prompt", "completion"],
            "row 1 of the table has no completion",
        ),
        ({"prompt": [["a"]]}, ["prompt"], "lists of messages"),
        ({"prompt": [[{"role": "user", "content": None}]]}, ["prompt"], "without role and content"),
        (
            {"prompt": [TALK], "completion": ["2"]},
            ["prompt", "completion"],
            "text in some of the columns prompt, completion and messages in others",
        ),
        ({"prompt": ["a"], "row": ["x"]}, ["prompt"], "column 'row' of the table holds string"),
        ({"prompt": ["a"], "row": [None]}, ["prompt"], "column 'row'"),
    ],
)
def test_rows_that_cannot_be_used_say_why(columns, needs, said):
    with pytest.raises(WhetError, match=said):
        check_examples(pa.table(columns), needs)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (TrainSettings, {"epochs": 0}, "epochs = 0: it must be at least 1"),
        (TrainSettings, {"learning_rate": float("nan")}, "learning_rate = nan"),
        (TrainSettings, {"warmup": 1.0}, "warmup = 1.0"),
        (TrainSettings, {"optimizer": "adamv"}, "did you mean 'adamw'"),
        (TrainSettings, {"tune": "full", "quantize": "nf4"}, "4-bit weights cannot be trained"),
        (TrainSettings, {"batch_size": 9, "accumulate": 2}, "a multiple of accumulate"),
        (DpoSettings, {"beta": 0}, "beta = 0: it must be above 0"),
        (DpoSettings, {"loss": "cdpo", "label_smoothing": 0.5}, "below 0.5"),
        (DpoSettings, {"loss": "ipo", "label_smoothing": 0.1}, "choose 'robust' or 'cdpo'"),
        (OnlineSettings, {"generations": 1}, "generations = 1: it must be at least 2"),
        (OnlineSettings, {"batch_size": 8, "generations": 3}, "a multiple of generations"),
        (OnlineSettings, {"temperature": 0}, "temperature = 0: it must be above 0"),
        (GenerateSettings, {"top_p": 0}, "top_p = 0"),
        (GenerateSettings, {"samples": 3}, "raise the temperature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, values, said):
    with pytest.raises(WhetError, match=said):
        kind(**values)


def test_the_defaults_are_those_of_the_paper():
    sft = dataclasses.asdict(TrainSettings())
    assert (sft["learning_rate"], sft["batch_size"], sft["warmup"]) == (1e-4, 32, 0.05)
    assert (sft["epochs"], sft["lora_rank"], sft["lora_alpha"], sft["optimizer"]) == (
        2,
        64,
        128,
        "adamw",
    )
    dpo = DpoSettings()
    assert (dpo.learning_rate, dpo.optimizer, dpo.beta, dpo.loss) == (
        1e-6,
        "rmsprop",
        0.1,
        "sigmoid",
    )


# --- tokens ---------------------------------------------------------------------------------------


def theirs(trainer, config, folder, rows, tmp_path):
    """Return the rows as TRL's trainer prepares them."""
    made = trainer(
        model=folder,
        args=config(str(tmp_path), use_cpu=True, bf16=False, max_length=64),
        train_dataset=Dataset(rows),
        processing_class=load_tokenizer(folder),
    )
    return list(made.train_dataset)


def variants(tmp_path):
    """Models whose tokenizers differ in what they do at the borders."""
    yield save_causal(tmp_path / "plain"), sums(6)
    yield save_causal(tmp_path / "begin", begin=True), sums(6)
    yield save_causal(tmp_path / "chat", template=TEMPLATE), as_messages(sums(6))
    merging = tiny_models.save_model(tmp_path / "merging", vocab_size=64)
    words = {"prompt": "w1 w", "completion": "2 w3", "chosen": "2 w3", "rejected": "4"}
    yield merging, pa.table({name: [text, text + " w5"] for name, text in words.items()})


def test_rows_become_the_tokens_that_trl_makes_of_them(tmp_path):
    for folder, table in variants(tmp_path):
        tokenizer, prompts = load_tokenizer(folder), table["prompt"].to_pylist()
        sides = {
            name: encode(tokenizer, prompts, table[name].to_pylist())
            for name in ("completion", "chosen", "rejected")
        }
        sft = table.select(["prompt", "completion"])
        made = theirs(trl.SFTTrainer, trl.SFTConfig, folder, sft, tmp_path / "out")
        for row, theirs_row in zip(sides["completion"], made, strict=True):
            assert row.ids == theirs_row["input_ids"]
            assert [-100] * row.start + row.ids[row.start :] == theirs_row["labels"]
        dpo = table.select(["prompt", "chosen", "rejected"])
        made = theirs(trl.DPOTrainer, trl.DPOConfig, folder, dpo, tmp_path / "out")
        for chosen, rejected, row in zip(sides["chosen"], sides["rejected"], made, strict=True):
            start = min(chosen.start, rejected.start)
            assert chosen.ids[:start] == row["prompt_ids"]
            assert chosen.ids[start:] == row["chosen_ids"]
            assert rejected.ids[start:] == row["rejected_ids"]


def test_an_end_mark_is_added_once_and_not_to_what_was_broken_off(tokenizer):
    said = ["2#", "2#</s>", "2#", ""]
    rows = encode(tokenizer, ["1+1="] * 4, said, [True, True, False, True])
    end = SIGNS.index("</s>")
    assert [row.ids.count(end) for row in rows] == [1, 1, 0, 1]
    assert [row.ids[row.start :] for row in rows] == [[6, 17, 3], [6, 17, 3], [6, 17], [3]]


def test_messages_without_a_template_are_refused(tokenizer):
    with pytest.raises(WhetError, match="no chat template"):
        encode_prompts(tokenizer, [TALK])


def test_a_template_that_refuses_says_so(tmp_path):
    folder = save_causal(tmp_path, template="{{ raise_exception('no roles today') }}")
    with pytest.raises(WhetError, match=r"refuses the messages .*no roles today"):
        encode_prompts(load_tokenizer(folder), [TALK])


def test_a_tokenizer_without_an_end_mark_takes_the_models(tmp_path):
    tiny_models.save_model(tmp_path, eos_token_id=4)
    assert load_tokenizer(str(tmp_path)).eos_token == "w1"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(WhetError, match="names an end mark"):
        load_tokenizer(str(tmp_path))


# --- lint -----------------------------------------------------------------------------------------


def test_lint_counts_each_fault(tokenizer):
    table = pa.table(
        {
            "prompt": ["1+1=", "1" * 20, "1+1=", "1+1=", "1+</s>1="],
            "completion": ["2#", "2#", "2" * 20, " ", "2"],
        }
    )
    found = lint(table, tokenizer, TrainSettings(max_length=16), marker="#")
    assert dataclasses.asdict(found) == {
        "n": 5,
        "max_length": 16,
        "truncated": 2,
        "untrained": 1,
        "endless": 2,
        "empty": 1,
        "merged": 0,
        "marks": 1,
        "unanswered": 3,
        "marker": "#",
    }
    found.check()
    assert len(found.lines()) == 5
    assert found.lines()[0].startswith("2 of 5 rows are longer than 16 tokens")


def test_a_pair_has_the_faults_of_both_sides(tokenizer):
    table = pa.table({"prompt": ["1=", "1="], "chosen": ["2" * 20, "2"], "rejected": ["3", ""]})
    found = lint(table, tokenizer, DpoSettings(max_length=16))
    assert (found.n, found.truncated, found.endless, found.empty) == (2, 1, 1, 1)


def test_tokens_that_merge_across_the_border_are_counted(tmp_path):
    tokenizer = load_tokenizer(tiny_models.save_model(tmp_path))
    table = pa.table({"prompt": ["w1 w", "w1 "], "completion": ["2", "w2"]})
    assert lint(table, tokenizer, TrainSettings()).merged == 1


def test_no_faults_no_lines(tokenizer):
    assert lint(sums(5), tokenizer, TrainSettings(), marker="#").lines() == []


@pytest.mark.parametrize(
    ("max_length", "said"),
    [(4, "the prompt alone fills the 4 tokens"), (5, "never learn to stop")],
)
def test_what_would_teach_nothing_is_refused(tokenizer, max_length, said):
    with pytest.raises(WhetError, match=said):
        lint(sums(5), tokenizer, TrainSettings(max_length=max_length)).check()


def test_a_template_without_an_end_mark_is_noticed(tmp_path):
    template = TEMPLATE.replace("</s>", "")
    tokenizer = load_tokenizer(save_causal(tmp_path, template=template))
    found = lint(as_messages(sums(3)), tokenizer, TrainSettings())
    assert found.endless == 3
    with pytest.raises(WhetError, match="mend the chat template"):
        found.check()


def test_real_demonstrations_have_answers(dataset, tokenizer):
    rows = pq.read_table(dataset("gsm8k") / "train.parquet").slice(0, 50)
    table = pa.table({"prompt": rows["question"], "completion": rows["answer"]})
    found = lint(table, tokenizer, TrainSettings(), marker="####")
    assert (found.n, found.unanswered, found.empty, found.merged) == (50, 0, 0, 0)
