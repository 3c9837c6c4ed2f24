"""Whatever is wrong with the input ends in one sentence that says what, where and what to do."""

import csv
import functools
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from helpers import WHET, columns, snapshot, whet, whet_process

ALLOWED_BEFORE = re.compile(r"whet: (warning: |encoding \d+/\d+ texts$|training \d+/\d+ fits$)")


class Case(NamedTuple):
    """A broken input: ``build`` makes it in the current folder and returns the command line."""

    build: Callable[..., list[str]]
    words: tuple[str, ...]
    real: bool


CASES: list[Case] = []


def bad(*words: str, real: bool = False) -> Callable[[Callable[..., list[str]]], None]:
    """Register a broken input, the words its error must hold, and whether to start a process."""
    return lambda build: CASES.append(Case(build, words, real))


def refine(source: str = "corpus.csv", **flags: Any) -> list[str]:
    """Return a command line; None drops a default flag."""
    flags = {"text": "text", "pseudo": "llm", "gold": "gold", "out": "run"} | flags
    given = {f"--{key.replace('_', '-')}": str(v) for key, v in flags.items() if v is not None}
    return ["refine", source, *(part for pair in given.items() for part in pair)]


def predict(source: str = "new.csv", model: str = "run", out: str = "out.csv") -> list[str]:
    return ["predict", model, source, "--text", "text", "--out", out]


def write_csv(
    table: dict[str, list[Any]], name: str = "corpus.csv", encoding: str = "utf-8", sep: str = ","
) -> None:
    """Write with Python's csv, as a user would, not with the code under test."""
    with open(name, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=sep)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def write_jsonl(table: dict[str, list[Any]], name: str = "corpus.jsonl") -> list[str]:
    rows = [
        json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)
    ]
    Path(name).write_text("\n".join(rows) + "\n")
    return rows


def changed(column: str, row: int, value: Any) -> dict[str, list[Any]]:
    table = columns()
    table[column][row] = value
    return table


def error_of(err: str) -> str:
    """Return the only error line; warnings and progress may come before it."""
    assert "Traceback" not in err
    *before, last = err.splitlines()
    assert err.endswith("\n")
    assert [line for line in before if not ALLOWED_BEFORE.match(line)] == []
    assert last.startswith("whet: ")
    assert not ALLOWED_BEFORE.match(last)
    assert last.isprintable()
    return last


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    pq.write_table(pa.table(columns()), folder / "corpus.parquet")
    ended = whet(
        refine(str(folder / "corpus.parquet"), out=str(folder / "run"), rounds=2, encoder="tfidf")
    )
    assert ended.code == 0, ended.err
    return folder / "run"


# --- files that cannot be read ----------------------------------------------------------------


@bad("corpus.cvs", "does not exist", "did you mean 'corpus.csv'?", real=True)
def missing_file():
    write_csv(columns())
    return refine("corpus.cvs")


@bad("nowhere/corpus.csv", "does not exist", "name a file")
def missing_folder():
    return refine("nowhere/corpus.csv")


@bad("corpus.parquet", "truncated", "write it again", real=True)
def truncated_parquet():
    pq.write_table(pa.table(columns()), "corpus.parquet")
    content = Path("corpus.parquet").read_bytes()
    Path("corpus.parquet").write_bytes(content[: len(content) // 2])
    return refine("corpus.parquet")


@bad("corpus.parquet", "not what its name says")
def text_named_parquet():
    write_csv(columns(), "corpus.parquet")
    return refine("corpus.parquet")


@bad("corpus.parquet", "cannot be read")
def parquet_of_zero_bytes():
    Path("corpus.parquet").touch()
    return refine("corpus.parquet")


@bad("corpus.csv", "not UTF-8", "line 9", "iconv", real=True)
def latin_1_csv():
    write_csv(changed("text", 7, "café"), encoding="latin-1")
    return refine()


@bad("corpus.csv", "not UTF-8", "line 1", "UTF-16")
def utf_16_csv():
    write_csv(columns(), encoding="utf-16")
    return refine()


@bad("corpus.jsonl", "not UTF-8", "line 8", "iconv")
def latin_1_jsonl():
    rows = [json.dumps({"text": "a", "llm": 1}) for _ in range(9)]
    rows[7] = '{"text": "café", "llm": 1}'
    Path("corpus.jsonl").write_text("\n".join(rows), encoding="latin-1")
    return refine("corpus.jsonl")


@bad("corpus.csv", "empty", "header")
def csv_of_zero_bytes():
    Path("corpus.csv").touch()
    return refine()


@bad("corpus.csv", "no rows", "at least one", real=True)
def header_only():
    write_csv(columns(0))
    return refine()


@bad("corpus.jsonl", "rows")
def jsonl_of_zero_bytes():
    Path("corpus.jsonl").touch()
    return refine("corpus.jsonl")


@bad("corpus.csv", "Expected 3 columns, got 4", "12")
def csv_row_with_too_many_values():
    write_csv(columns())
    lines = Path("corpus.csv").read_text().splitlines()
    lines[11] += ",extra"
    Path("corpus.csv").write_text("\n".join(lines))
    return refine()


@bad("corpus.xlsx", "'.xlsx'", ".csv", ".parquet", "convert")
def unsupported_suffix():
    write_csv(columns(), "corpus.xlsx")
    return refine("corpus.xlsx")


@bad("corpus.jsonl", "line 4", "not valid JSON", "mend or remove", real=True)
def jsonl_with_a_broken_line():
    rows = write_jsonl(columns())
    rows[3] = rows[3][:-5]
    Path("corpus.jsonl").write_text("\n".join(rows))
    return refine("corpus.jsonl")


@bad("corpus.jsonl", "line 4", "list", '{"text": ')
def jsonl_row_that_is_a_list():
    rows = write_jsonl(columns())
    rows[3] = '["a", "b"]'
    Path("corpus.jsonl").write_text("\n".join(rows))
    return refine("corpus.jsonl")


@bad("corpus.jsonl", "line 4")
def jsonl_row_nested_deeper_than_the_stack():
    rows = write_jsonl(columns())
    rows[3] = "[" * 200_000
    Path("corpus.jsonl").write_text("\n".join(rows))
    return refine("corpus.jsonl")


@bad("corpus.json", "not valid JSON")
def json_array_that_is_cut_off():
    Path("corpus.json").write_text('[{"text": "a"},')
    return refine("corpus.json")


@bad("corpus.jsonl", "'text'", "row 7", "surrogate", "remove", real=True)
def lone_surrogate():
    write_jsonl(changed("text", 7, "half \ud800 pair"))
    return refine("corpus.jsonl")


@bad("corpus.jsonl", "'other'", "row 7", "surrogate", "remove")
def lone_surrogate_inside_a_list():
    write_jsonl({**columns(), "other": [["ok"]] * 7 + [["half \ud800 pair"]] + [["ok"]] * 52})
    return refine("corpus.jsonl")


@bad("corpus.jsonl", "surrogate", "remove")
def lone_surrogate_in_a_column_name():
    write_jsonl({**columns(), "half \ud800 pair": [1] * 60})
    return refine("corpus.jsonl")


@bad("corpus.jsonl", "'llm'", "mixes types", "use one type")
def jsonl_column_of_two_types():
    write_jsonl(changed("llm", 7, 1))
    return refine("corpus.jsonl")


@bad("'text'", "corpus.parquet", "list", "name another")
def text_column_of_lists():
    pq.write_table(pa.table({**columns(), "text": [["a"]] * 60}), "corpus.parquet")
    return refine("corpus.parquet")


@bad("'text'", "corpus.parquet", "UTF-8")
def text_column_of_bytes_that_are_no_text():
    pq.write_table(pa.table({**columns(), "text": [b"\xff\xfe"] * 60}), "corpus.parquet")
    return refine("corpus.parquet")


# --- saved Hugging Face data sets -------------------------------------------------------------


def save_dataset(folder: str, state: str) -> None:
    Path(folder).mkdir(parents=True)
    table = pa.table(columns())
    for place in (Path(folder), Path(folder).parent):
        with pa.ipc.new_stream(place / "x.arrow", table.schema) as stream:
            stream.write_table(table)
    (Path(folder) / "state.json").write_text(state)


@bad("saved/state.json", "'../x.arrow'", "outside", "save the data set again", real=True)
def dataset_that_names_a_file_outside():
    save_dataset("saved", '{"_data_files": [{"filename": "../x.arrow"}]}')
    return refine("saved")


@bad("saved", "train", "test", "saved/t")
def dataset_dict_without_a_split():
    save_dataset("saved/train", '{"_data_files": [{"filename": "x.arrow"}]}')
    save_dataset("saved/test", '{"_data_files": [{"filename": "x.arrow"}]}')
    Path("saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    Path("saved/x.arrow").unlink()
    return refine("saved")


@bad("saved/state.json", "save the data set again")
def dataset_with_a_broken_state():
    save_dataset("saved", '{"_data_files": [')
    return refine("saved")


@bad("saved/state.json", "save the data set again")
def dataset_whose_state_names_no_files():
    save_dataset("saved", "{}")
    return refine("saved")


@bad("saved/state.json", "save the data set again")
def dataset_of_no_files():
    save_dataset("saved", '{"_data_files": []}')
    return refine("saved")


@bad("saved", "y.arrow")
def dataset_whose_file_is_missing():
    save_dataset("saved", '{"_data_files": [{"filename": "y.arrow"}]}')
    return refine("saved")


@bad("empty", "neither", "name a file")
def empty_folder():
    Path("empty").mkdir()
    return refine("empty")


# --- columns ----------------------------------------------------------------------------------


@bad("corpus.csv", "'txt'", "did you mean 'text'?", "--text", real=True)
def missing_column():
    write_csv(columns())
    return refine(text="txt")


@bad("corpus.csv", "'golden'", "did you mean 'gold'?", "--gold")
def missing_gold_column():
    write_csv(columns())
    return refine(gold="golden")


@bad("corpus.csv", "'text'", "'text;llm;gold'", "semicolons")
def semicolons():
    write_csv(columns(), sep=";")
    return refine()


@bad("corpus.csv", "'llm'", "only column is 'text'", "--pseudo")
def one_column():
    write_csv({"text": columns()["text"]})
    return refine()


@bad("'text' is named twice", "different column")
def text_column_is_the_pseudo_column():
    write_csv(columns())
    return refine(pseudo="text")


@bad("corpus.csv", "'p'", "no numbers", "'sure'", "probabilities")
def probabilities_in_words():
    write_csv(columns() | {"p": ["sure"] * 60})
    return refine(pseudo_prob="p")


@bad("row 0", "no confidence", "'llm'", "leave the confidence out")
def probabilities_that_are_all_empty():
    write_csv(columns() | {"p": [None] * 60})
    return refine(pseudo_prob="p")


@bad("--pseudo-prob", "2 columns for 1 annotators", "one for each")
def probabilities_of_more_annotators():
    write_csv(columns() | {"p": [0.5] * 60, "q": [0.5] * 60})
    return refine(pseudo_prob="p,q")


@bad("corpus.csv", "'lm_p'", "'llm_p'", "--pseudo-prob")
def probabilities_misspelt():
    write_csv(columns() | {"llm_p": [0.5] * 60})
    return refine(pseudo_prob="lm_p")


@bad("'llm' is named twice", "different column")
def gold_column_is_the_pseudo_column():
    write_csv(columns())
    return refine(gold="llm")


@bad("corpus.csv", "2 columns named 'text'", "rename")
def duplicate_column_names():
    write_csv(columns())
    lines = Path("corpus.csv").read_text().splitlines(keepends=True)
    Path("corpus.csv").write_text(lines[0].replace("gold", "text") + "".join(lines[1:]))
    return refine(gold="llm")


@bad("corpus.csv", "'changed'", "rename")
def column_that_whet_adds():
    write_csv({**columns(), "changed": [1] * 60})
    return refine()


@bad("corpus.csv", "'refined_label'", "rename")
def pseudo_column_that_whet_adds():
    table = columns()
    write_csv({"text": table["text"], "refined_label": table["llm"], "gold": table["gold"]})
    return refine(pseudo="refined_label")


# --- labels -----------------------------------------------------------------------------------


@bad("all 60 pseudo-labels are missing", "right column", real=True)
def all_pseudo_labels_missing():
    write_csv({**columns(), "llm": [None] * 60})
    return refine()


@bad("'sport'", "at least two classes")
def single_class():
    write_csv({**columns(), "llm": ["sport"] * 60})
    return refine(gold=None)


@bad("row 7", "'sprot'", "did you mean 'sport'?", "correct it or leave it empty")
def gold_value_outside_the_classes():
    write_csv(changed("gold", 7, "sprot"))
    return refine()


@bad("row 7", "sport", "correct it or leave it empty")
def gold_value_with_terminal_escapes():
    write_csv(changed("gold", 7, "\x1b[2J\x07\nwhet: all is well\u202esport"))
    return refine(method="silr")


@bad("no gold labels", "'silr'", "50 random rows", real=True)
def zero_gold_rows():
    write_csv(columns(gold=0))
    return refine(method="silr")


@bad("no gold labels", "'silr'", "50 random rows")
def no_gold_column():
    write_csv(columns())
    return refine(gold=None, method="silr")


@bad("no better than chance", "20 gold rows", "theta_p", "theta_n", "better annotator", real=True)
def inverted_annotator():
    swap = {"sport": "money", "money": "sport"}
    table = columns()
    write_csv({**table, "llm": [swap[label] for label in table["llm"]]})
    return refine(method="silr")


@bad("2 rows", "at least 4", "add rows")
def two_rows():
    write_csv({"text": ["goal", "bank"], "llm": ["sport", "money"], "gold": ["sport", None]})
    return refine()


@bad("row 0", "pseudo-label", "0.25", "strings, ints or bools", "convert")
def labels_that_are_fractions():
    write_csv(columns(labels=(0.5, 0.25)))
    return refine()


@bad("row 0", "gold label 0", "'sport'", "correct it")
def gold_labels_of_another_kind():
    write_jsonl({**columns(), "gold": [i % 2 if i < 20 else None for i in range(60)]})
    return refine("corpus.jsonl")


@bad("row 0", "pseudo-label", "list", "strings, ints or bools")
def labels_that_are_lists():
    pq.write_table(pa.table({**columns(), "llm": [["a"], ["b"]] * 30}), "corpus.parquet")
    return refine("corpus.parquet")


@bad("pseudo-label", str(2**63), "row")
def labels_beyond_64_bits():
    table = pa.table(columns(labels=(0, 1)))
    labels = pa.array([2**63 + i % 2 for i in range(60)], pa.uint64())
    pq.write_table(table.set_column(1, "llm", labels), "corpus.parquet")
    return refine("corpus.parquet", method="pn", gold=None)


# --- settings ---------------------------------------------------------------------------------


@bad("--method", "'slir'", "did you mean 'silr'?", real=True)
def unknown_method():
    write_csv(columns())
    return refine(method="slir")


@bad("'tfdif'", "did you mean 'tfidf'?")
def unknown_encoder():
    write_csv(columns())
    return refine(encoder="tfdif")


@bad("--rounds", "0", "greater than or equal to 1")
def zero_rounds():
    write_csv(columns())
    return refine(rounds=0)


@bad("--rounds", "many", "int")
def rounds_that_are_no_number():
    write_csv(columns())
    return refine(rounds="many")


@bad("folds = 1", "'tsp'", "2 or more")
def one_fold():
    write_csv(columns())
    return refine(folds=1)


@bad("folds = 0", "'tsp'", "use 2 or more")
def default_method_without_folds():
    write_csv(columns())
    return refine(folds=0)


@bad("'oracle'", "'tsp'", "leave theta at 'gold'")
def default_method_with_theta_from_the_truth():
    write_csv(columns())
    return refine(theta="oracle")


@bad("--text is missing", "command line")
def text_not_named():
    write_csv(columns())
    return refine(text=None)


@bad("INPUT is missing", "command line")
def input_not_named():
    return ["refine", "--text", "text"]


@bad("--txet", "Did you mean", "--text", "whet refine --help", real=True)
def unknown_flag():
    write_csv(columns())
    return refine(txet="text")


@bad('"refnie"', '"refine"')
def unknown_verb():
    return ["refnie", "corpus.csv"]


def recipe(content: str) -> list[str]:
    write_csv(columns())
    Path("recipe.yaml").write_text(content)
    return refine(config="recipe.yaml")


@bad("recipe.yaml", "'ruonds'", "did you mean 'rounds'?", "correct or remove")
def recipe_with_an_unknown_key():
    return recipe("ruonds: 3\n")


@bad("recipe.yaml", "key: value")
def recipe_that_is_no_mapping():
    return recipe("- rounds\n- 3\n")


@bad("recipe.yaml", "not readable YAML", "line 1")
def recipe_that_is_no_yaml():
    return recipe("rounds: [3\n")


@bad("--rounds", "'3'", "integer")
def recipe_with_a_value_of_the_wrong_type():
    return recipe("rounds: '3'\n")


@bad("recipe.yml", "does not exist", "YAML")
def missing_recipe():
    write_csv(columns())
    return refine(config="recipe.yml")


# --- output -----------------------------------------------------------------------------------


@bad("run", "finished run", "another --out", real=True)
def output_holds_a_finished_run(finished):
    write_csv(columns())
    shutil.copytree(finished, "run")
    return refine()


def unfinished_run(finished: Path) -> None:
    write_csv(columns())
    shutil.copytree(finished, "run")
    for name in ("run.json", "refined.parquet"):
        Path("run", name).unlink()


@bad("run", "unfinished run", "--resume", "another --out")
def output_holds_an_unfinished_run(finished):
    unfinished_run(finished)
    return refine()


@bad("run", "was started with rounds = 2, not 3", "another --out")
def resume_with_other_settings(finished):
    unfinished_run(finished)
    return [*refine(str(finished.parent / "corpus.parquet"), rounds=3), "--resume"]


@bad("run", "not whet's", "another --out")
def output_holds_foreign_files():
    write_csv(columns())
    Path("run").mkdir()
    Path("run", "thesis.tex").write_text("years of work")
    return refine()


@bad("run", "not whet's", "another --out")
def output_holds_a_foreign_temporary_file():
    write_csv(columns())
    Path("run").mkdir()
    Path("run", "precious.tmp").write_text("years of work")
    return refine()


@bad("run", "another --out")
def output_holds_a_foreign_temporary_file_and_labels_are_hopeless():
    write_csv({**columns(), "llm": ["sport"] * 60})
    Path("run").mkdir()
    Path("run", ".precious.tmp").write_text("years of work")
    return refine()


@bad("run", "is a file", "another --out")
def output_is_a_file():
    write_csv(columns())
    Path("run").write_text("years of work")
    return refine()


@bad("corpus.csv/run", "--out")
def output_is_below_a_file():
    write_csv(columns())
    return refine(out="corpus.csv/run")


# --- predict ----------------------------------------------------------------------------------


def model_folder(finished: Path) -> Path:
    write_csv({"text": ["goal match", "stock price"]}, "new.csv")
    shutil.copytree(finished / "model", "model")
    return Path("model")


def with_arrays(finished: Path, **arrays: Any) -> None:
    file = model_folder(finished) / "model.safetensors"
    kept = {name: a for name, a in (load_file(file) | arrays).items() if a is not None}
    save_file(kept, file)


def with_config(finished: Path, **changes: Any) -> None:
    file = model_folder(finished) / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


@bad("nowhere", "does not exist", "folder", real=True)
def missing_model():
    write_csv({"text": ["goal match"]}, "new.csv")
    return predict(model="nowhere")


@bad("model.safetensors", "cannot be read", "restore", real=True)
def truncated_model(finished):
    file = model_folder(finished) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return predict(model="model")


@bad("model.safetensors", "cannot be read", "restore")
def model_without_arrays(finished):
    (model_folder(finished) / "model.safetensors").unlink()
    return predict(model="model")


@bad("config.json", "not a whet classifier")
def config_of_another_program(finished):
    with_config(finished, format=None, model_type="bert")
    return predict(model="model")


@bad("model", "format 99", "whet version that wrote it")
def config_of_a_later_format(finished):
    with_config(finished, format_version=99)
    return predict(model="model")


@bad("config.json", "restore")
def broken_config(finished):
    (model_folder(finished) / "config.json").write_text("{")
    return predict(model="model")


@bad("config.json", "classes", "restore")
def config_whose_classes_are_no_labels(finished):
    with_config(finished, classes=[{"a": 1}, ["b"]])
    return predict(model="model")


@bad("restore")
def config_whose_encoder_lacks_its_size(finished):
    with_config(finished, encoder={"name": "tfidf"})
    return predict(model="model")


@bad("encoder", "'word2vec'")
def config_with_an_unknown_encoder(finished):
    with_config(finished, encoder={"name": "word2vec"})
    return predict(model="model")


@bad("config.json", "restore")
def config_whose_settings_are_a_list(finished):
    with_config(finished, refiner=["method", "silr"])
    return predict(model="model")


@bad("model.safetensors", "coef", "(3, 262144)", "restore")
def coef_of_too_many_rows(finished):
    with_arrays(finished, coef=np.zeros((3, 262144), dtype=np.float32))
    return predict(model="model")


@bad("coef", "(1, 7)", "restore")
def coef_of_too_few_columns(finished):
    with_arrays(finished, coef=np.zeros((1, 7), dtype=np.float32))
    return predict(model="model")


@bad("model.safetensors", "intercept", "restore")
def model_without_intercept(finished):
    with_arrays(finished, intercept=None)
    return predict(model="model")


@bad("NaN", "coef", "restore")
def coef_of_nan(finished):
    with_arrays(finished, coef=np.full((1, 262144), np.nan, dtype=np.float32))
    return predict(model="model")


@bad("idf", "(7,)")
def idf_of_the_wrong_shape(finished):
    with_arrays(finished, idf=np.zeros(7))
    return predict(model="model")


@bad("new.csv", "is the input", "another file", real=True)
def prediction_onto_the_input(finished):
    model_folder(finished)
    return predict(model="model", out="new.csv")


@bad("out.xlsx", "'.xlsx'", ".csv", ".parquet")
def prediction_with_an_unknown_suffix(finished):
    model_folder(finished)
    return predict(model="model", out="out.xlsx")


@bad("nowhere", "does not exist", "create")
def prediction_into_a_missing_folder(finished):
    model_folder(finished)
    return predict(model="model", out="nowhere/out.csv")


@bad("new.cvs", "did you mean 'new.csv'?")
def prediction_of_a_missing_file(finished):
    model_folder(finished)
    return predict("new.cvs", model="model")


@bad("new.csv", "'text'", "only column is 'body'")
def prediction_without_the_text_column(finished):
    model_folder(finished)
    write_csv({"body": ["goal match"]}, "new.csv")
    return predict(model="model")


@bad("new.csv", "'predicted_label'", "rename")
def prediction_of_predictions(finished):
    model_folder(finished)
    write_csv({"text": ["goal match"], "predicted_label": ["sport"]}, "new.csv")
    return predict(model="model")


@bad("out.csv", "'tags'", ".jsonl")
def prediction_of_a_list_column_as_csv(finished):
    model_folder(finished)
    pq.write_table(pa.table({"text": ["goal"], "tags": [["a", "b"]]}), "new.parquet")
    return predict("new.parquet", model="model")


@bad("out.csv", "folder")
def prediction_onto_a_folder(finished):
    model_folder(finished)
    Path("out.csv").mkdir()
    return predict(model="model")


#: Bugs that are known, by the case that shows them.
KNOWN: dict[str, str] = {}


def cases(named: dict[str, Any]) -> list[Any]:
    """Return parameters of a test, the known bugs marked."""
    return [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.xfail(strict=True, reason=KNOWN[name])] if name in KNOWN else [],
        )
        for name, case in named.items()
    ]


@pytest.mark.parametrize("case", cases({case.build.__name__: case for case in CASES}))
def test_error_is_one_sentence_and_nothing_is_written(case, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    wants = case.build.__code__.co_varnames[: case.build.__code__.co_argcount]
    args = case.build(*(request.getfixturevalue(name) for name in wants))
    before = snapshot(tmp_path)
    ended = (whet_process if case.real else whet)(args)
    assert ended.code == 2, ended
    message = error_of(ended.err)
    assert [word for word in case.words if word not in message] == [], message
    assert ended.out == ""
    assert snapshot(tmp_path) == before


# --- full disks -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mount an in-memory disk of a given size; a second call resizes it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"size={size}" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    try:
        yield mount
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_named_and_leaves_nothing(small_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(columns())
    disk = small_disk("1m")
    ended = whet_process(refine(out="disk/run"))
    assert ended.code == 2, ended
    message = error_of(ended.err)
    assert "No space left" in message
    assert "disk/run" in message
    assert "free space" in message
    assert list(disk.iterdir()) == []


def test_run_stopped_by_a_full_disk_resumes(small_disk, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(columns())
    model = (finished / "model" / "model.safetensors").stat().st_size
    small_disk(str(int(1.2 * model)))  # enough for the rounds, not for features and model
    ended = whet_process(refine(out="disk/run", rounds=2))
    assert ended.code == 2, ended
    message = error_of(ended.err)
    assert "No space left" in message
    assert "--resume" in message
    assert list(Path("disk/run/rounds").iterdir())
    assert not list(Path("disk").rglob("*.tmp"))
    small_disk("64m")
    ended = whet_process([*refine(out="disk/run", rounds=2), "--resume"])
    assert ended.code == 0, ended
    whole = whet(refine(rounds=2))
    assert whole.code == 0, whole
    for name in ("refined.parquet", "model/model.safetensors"):
        assert Path("disk/run", name).read_bytes() == Path("run", name).read_bytes()


@pytest.mark.parametrize("limit", [100, 100_000])
def test_file_size_limit_is_named_and_leaves_nothing(limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(columns())
    before = snapshot(tmp_path)
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    ended = whet_process(refine(), preexec_fn=limited)
    assert ended.code == 2, ended
    message = error_of(ended.err)
    assert "File too large" in message
    assert "run" in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_prediction_on_a_full_disk_keeps_the_old_file(suffix, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv({"text": [f"goal {i}" for i in range(5_000)]}, "new.csv")
    Path(f"out.{suffix}").write_text("yesterday's")
    before = snapshot(tmp_path)
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    command = predict(model=str(finished), out=f"out.{suffix}")
    ended = whet_process(command, preexec_fn=limited)
    assert ended.code == 2, ended
    message = error_of(ended.err)
    assert "File too large" in message
    assert f"out.{suffix}" in message
    assert snapshot(tmp_path) == before


def test_reader_that_goes_away_is_no_error_of_the_users():
    end, start = os.pipe()
    os.close(end)  # as in: whet env | head -0
    done = subprocess.run([WHET, "env"], check=False, stdout=start, stderr=subprocess.PIPE)
    os.close(start)
    assert done.stderr == b""
    assert done.returncode not in (0, 2)


# --- odd input that must work -----------------------------------------------------------------


class Odd(NamedTuple):
    """An odd but valid corpus and what stderr must hold."""

    table: dict[str, list[Any]]
    warning: str = ""
    flags: dict[str, Any] = {}  # noqa: RUF012 - never changed


ODD: dict[str, Callable[[], Odd]] = {
    "fewer than 10 gold rows": lambda: Odd(columns(gold=8), "only 8 gold rows"),
    "no gold rows": lambda: Odd(columns(gold=0), "there are no gold labels"),
    "more gold rows than the budget": lambda: Odd(
        columns(gold=40), "a random 15 are used", {"gold_budget": 15}
    ),
    "NUL in texts": lambda: Odd(changed("text", 7, "goal\0match\0")),
    "a text of 10 MB": lambda: Odd(changed("text", 7, "goal match " * 1_000_000)),
    "a word of 10 MB": lambda: Odd(changed("text", 7, "g" * 10_000_000)),
    "empty texts": lambda: Odd({**columns(), "text": ["", *columns()["text"][1:-1], ""]}),
    "texts of a few kinds": lambda: Odd({**columns(), "text": ["bank", "goal"] * 30}),
    "non-ASCII texts": lambda: Odd(
        {**columns(), "text": ["株価 銀行 💰", "مباراة هدف ⚽️"] * 30}  # noqa: RUF100
    ),
    "newlines and quotes in texts": lambda: Odd(changed("text", 7, 'goal "match"\r\nwin, team\n')),
    "control characters in labels": lambda: Odd(columns(labels=("\x1b[31mred", "a\nb"))),
    "missing pseudo-labels": lambda: Odd(
        {**columns(), "llm": [None if i % 7 == 0 else x for i, x in enumerate(columns()["llm"])]}
    ),
    "labels 0 and 1": lambda: Odd(columns(labels=(0, 1))),
    "labels True and False": lambda: Odd(columns(labels=(False, True))),
    "labels that look like numbers": lambda: Odd(columns(labels=("007", "1.50"))),
    "other columns": lambda: Odd({**columns(), "id": list(range(60)), "note": [None] * 60}),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("case", cases(ODD))
def test_odd_input_is_refined_and_kept(case, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = case()
    {"csv": write_csv, "jsonl": write_jsonl}[suffix](odd.table, f"corpus.{suffix}")
    before = snapshot(tmp_path)
    ended = whet(refine(f"corpus.{suffix}", rounds=2, **odd.flags))
    assert ended.code == 0, ended
    warned = [line for line in ended.err.splitlines() if line.startswith("whet: warning: ")]
    assert [odd.warning in line for line in warned] == ([True] if odd.warning else [])
    result = pq.read_table("run/refined.parquet")
    if suffix == "csv":  # csv has no gaps apart from empty fields, and labels are text or numbers
        as_text = {
            c: ["" if v is None else str(v) for v in result[c].to_pylist()] for c in odd.table
        }
        assert as_text == {
            c: ["" if v is None else str(v) for v in values] for c, values in odd.table.items()
        }
    else:
        assert {c: result[c].to_pylist() for c in odd.table} == odd.table
    labels = {label for label in odd.table["llm"] if label is not None}
    assert set(result["refined_label"].to_pylist()) <= labels
    assert {k: v for k, v in snapshot(tmp_path).items() if k in before} == before


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(columns(), encoding="utf-8-sig")
    ended = whet_process(refine(rounds=1))
    assert ended.code == 0, ended
    assert pq.read_table("run/refined.parquet").column_names[0] == "text"


def test_gold_written_by_pandas_with_gaps_matches_int_labels(tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(columns(labels=(0, 1)))
    frame.astype({"gold": "float64"}).to_csv("corpus.csv", index=False)  # gold: 1.0, 0.0, empty
    ended = whet(refine(rounds=1))
    assert ended.code == 0, ended
    assert pq.read_table("run/refined.parquet")["refined_label"].type == pa.int64()


def test_terminal_that_lacks_the_characters_of_the_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(columns(labels=("📉", "⚽")))
    ended = whet_process(refine(rounds=1), env={"PYTHONIOENCODING": "ascii"})
    assert ended.code == 0, ended
    assert "theta" in ended.out
