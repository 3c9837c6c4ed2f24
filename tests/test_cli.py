"""The command line when all is well: what it prints, what it writes, and what it leaves alone."""

import contextlib
import csv
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import pty
import re
import shlex
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import whet.cli
from conftest import ROOT
from helpers import WHET, columns, snapshot, whet_process
from helpers import whet as run_whet
from whet import LabelRefiner, __version__
from whet.cli._asking import Flags
from whet.tables import write_table

ADDED = ["pseudo_label", "refined_label", "refined_prob", "changed", "suspicion", "reason"]
ODDS = r"(texts like it|gold texts like it|annotator) \d+\.\d:1 (for|against)"
REASON = re.compile(
    r"gold label|(classifier agrees \d\.\d\d|classifier \d\.\d\d, annotator's label \d\.\d\d"
    r"|annotator abstained; classifier \d\.\d\d"
    r"|kept, too close: classifier .+ \d\.\d\d, annotator's label \d\.\d\d"
    r"|kept by the guard; classifier prefers .+ \d\.\d\d)"
    rf" \(({ODDS}(, {ODDS})*|no evidence either way)\)"
)


def refine(source="corpus.parquet", **flags):
    """Return a command line; None drops a default flag."""
    flags = {"text": "text", "pseudo": "llm", "gold": "gold", "out": "run"} | flags
    given = {f"--{key.replace('_', '-')}": str(v) for key, v in flags.items() if v is not None}
    return ["refine", str(source), *(part for pair in given.items() for part in pair)]


def corpus(labels=("money", "sport"), path="corpus.parquet", n=300, gold=80, **more):
    """Write a corpus in the current folder and return its table."""
    table = pa.table(columns(n, labels, gold) | more)
    pq.write_table(table, path)
    return table


def succeeded(ended):
    assert ended.code == 0, ended
    return ended


def controls(text):
    """Return the characters that could do something to a terminal."""
    return [c for c in text if c != "\n" and not c.isprintable()]


def strict_json(path):
    """Read JSON as RFC 8259 has it: without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module", autouse=True)
def no_terminal():
    """Take away what makes rich believe in a terminal, or in a narrow one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over a table with columns of many types, what it printed, and the input."""
    folder = tmp_path_factory.mktemp("finished")
    n = 300
    with contextlib.chdir(folder):
        table = corpus(
            id=pa.array(range(n), pa.int32()),
            score=pa.array([i / 7 for i in range(n)], pa.float32()),
            when=pa.array([i * 10**9 for i in range(n)], pa.timestamp("ns", tz="UTC")),
            price=pa.array([Decimal(i).scaleb(-2) for i in range(n)]),
            tags=pa.array([["a", None]] * n),
            meta=pa.array([{"x": i} for i in range(n)]),
            raw=pa.array([b"\xff\x00"] * n),
            note=pa.array([None, "é"] * (n // 2)),
            empty=pa.nulls(n),
        )
        pq.write_table(table, "corpus.parquet")
        before = Path("corpus.parquet").stat()
        ended = succeeded(run_whet(refine(rounds=2)))
        after = Path("corpus.parquet").stat()
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)
    return folder, ended, table


@pytest.fixture(scope="module")
def manifest(finished):
    return strict_json(finished[0] / "run" / "run.json")


@pytest.fixture(scope="module")
def result(finished):
    return pq.read_table(finished[0] / "run" / "refined.parquet")


# --- refined.parquet ------------------------------------------------------------------------------


def test_result_is_the_input_and_six_columns(finished, result):
    table = finished[2]
    assert result.column_names == table.column_names + ADDED
    assert result.select(table.column_names).equals(table)
    assert [result.schema.field(name).type for name in ADDED] == [
        pa.string(),
        pa.string(),
        pa.float64(),
        pa.bool_(),
        pa.float64(),
        pa.string(),
    ]
    assert result["pseudo_label"].equals(table["llm"])


def test_result_agrees_with_itself(result):
    rows = result.select(["llm", "gold", *ADDED]).to_pylist()
    assert {row["refined_label"] for row in rows} == {"money", "sport"}
    for row in rows:
        assert row["changed"] == (row["refined_label"] != row["pseudo_label"])
        assert 0 <= row["refined_prob"] <= 1
        assert REASON.fullmatch(row["reason"]), row
        assert (row["reason"] == "gold label") == (row["gold"] is not None)
        if row["gold"] is not None:
            assert (row["refined_label"], row["refined_prob"]) == (row["gold"], 1)
    assert {row["changed"] for row in rows} == {True, False}


def test_unchanged_labels_agree_and_changed_ones_say_both_probabilities(result):
    for row in result.select(ADDED).to_pylist():
        if row["reason"] != "gold label":
            start = f"classifier {row['refined_prob']:.2f}, annotator's label "
            agrees = f"classifier agrees {row['refined_prob']:.2f} ("
            kept = (agrees, "kept, too close: ")
            assert row["reason"].startswith(start if row["changed"] else kept)


@pytest.mark.parametrize(
    ("labels", "kind"), [((0, 1), pa.int64()), ((False, True), pa.bool_())], ids=["int", "bool"]
)
def test_labels_keep_their_type(labels, kind, here):
    corpus(labels)
    succeeded(run_whet(refine(rounds=1)))
    found = pq.read_table("run/refined.parquet")
    assert [found[c].type for c in ("llm", "pseudo_label", "refined_label")] == [kind] * 3


def test_gaps_are_filled_and_count_as_changed(here):
    table = columns(300, gold=80)
    gaps = [i for i in range(300) if i % 3 == 0]
    table["llm"] = [None if i in gaps else label for i, label in enumerate(table["llm"])]
    pq.write_table(pa.table(table), "corpus.parquet")
    ended = succeeded(run_whet(refine(rounds=1)))
    found = pq.read_table("run/refined.parquet").to_pylist()
    assert all(found[i]["changed"] and found[i]["pseudo_label"] is None for i in gaps)
    assert not [row for row in found if row["refined_label"] is None]
    by_classifier = [i for i in gaps if i >= 80]
    assert all(found[i]["reason"].startswith("annotator abstained; ") for i in by_classifier)
    rows = strict_json(Path("run/run.json"))["rows"]
    assert rows["filled"] == len(by_classifier)
    assert rows["changed"] == sum(row["changed"] for row in found)
    assert re.search(rf"filled\s+{len(by_classifier)} ", ended.out)


def test_column_named_pseudo_label_is_not_doubled(here):
    table = columns(300, gold=80)
    pq.write_table(pa.table({"pseudo_label": table.pop("llm"), **table}), "corpus.parquet")
    succeeded(run_whet(refine(rounds=1, pseudo="pseudo_label")))
    names = pq.read_table("run/refined.parquet").column_names
    assert names == ["pseudo_label", "text", "gold", *ADDED[1:]]


def two_annotators_with_probabilities():
    """Two annotators of an easy corpus, sure where they are right; every tenth is not asked."""
    n, rng = 300, np.random.default_rng(0)
    truth = ["money", "sport"] * (n // 2)
    more = {}
    for name in ("gpt", "llama"):
        wrong = rng.random(n) < 0.3
        labels = [truth[i - 1] if wrong[i] else truth[i] for i in range(n)]
        sure = np.where(wrong, 0.5, 0.7) + rng.random(n) / 4
        more[name] = labels
        more[f"{name}_p"] = [None if i % 10 == 3 else round(p, 3) for i, p in enumerate(sure)]
    return columns(n, gold=80) | more


@pytest.mark.parametrize("source", ["corpus.parquet", "corpus.csv"])
def test_probabilities_of_labels_are_used_and_may_have_gaps(source, here):
    table = two_annotators_with_probabilities()
    write_table(pa.table(table), Path(source))
    columns_of = {"pseudo": "gpt,llama", "pseudo_prob": "gpt_p,llama_p"}
    succeeded(run_whet(refine(source, guard="off", **columns_of)))
    succeeded(run_whet(refine(source, guard="off", pseudo="gpt,llama", out="without")))
    found = pq.read_table("run/refined.parquet")
    refiner = LabelRefiner(guard="off")
    labels = {name: table[name] for name in ("gpt", "llama")}
    sure = {name: table[f"{name}_p"] for name in labels}
    refiner.fit_refine(table["text"], labels, table["gold"], confidence=sure)
    assert found["refined_prob"].to_pylist() == refiner.label_proba_.tolist()
    without = pq.read_table("without/refined.parquet")
    assert found["refined_prob"] != without["refined_prob"]
    settings = strict_json(Path("run/run.json"))["settings"]
    assert {key: settings[key] for key in columns_of} == columns_of
    assert "gpt_p" in found.column_names


@pytest.mark.parametrize("key", ["pseudo-prob", "pseudo_prob"])
def test_a_recipe_names_the_column_of_probabilities(key, here):
    table = two_annotators_with_probabilities()
    pq.write_table(pa.table(table), "corpus.parquet")
    recipe = f"input: corpus.parquet\ntext: text\npseudo: gpt\ngold: gold\n{key}: gpt_p\n"
    Path("recipe.yaml").write_text(recipe)
    succeeded(run_whet(["refine", "--config", "recipe.yaml", "--out", "recipe"]))
    succeeded(run_whet(refine(pseudo="gpt", pseudo_prob="gpt_p")))
    one, other = (pq.read_table(f"{folder}/refined.parquet") for folder in ("recipe", "run"))
    assert one.equals(other)


# --- run.json -------------------------------------------------------------------------------------


def documented_keys(heading):
    """Return the first column of the table under a heading of docs/run-folder.md."""
    file = ROOT / "docs" / "run-folder.md"
    if not file.exists():
        pytest.skip("docs/run-folder.md is not written yet")
    section = re.split(r"^## ", file.read_text(), flags=re.MULTILINE)
    found = next(s for s in section if s.startswith(heading))
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", found, flags=re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]


def test_run_json_has_the_documented_keys(manifest):
    assert sorted(manifest) == sorted(documented_keys("run.json"))


def test_documented_columns_are_those_that_are_added():
    assert documented_keys("refined.parquet") == ADDED


def test_run_folder_holds_the_documented_files(finished):
    held = {p.name + "/" * p.is_dir() for p in (finished[0] / "run").iterdir()}
    named = {"refined.parquet", "model/", "run.json", "rounds/", "settings.json"}
    assert held == named | {"summary.json", "report.html"}
    listed = {name.removesuffix("NN/") for name in documented_keys("# The run folder")}
    working = {"features.safetensors", "encoder.safetensors", "tokens.safetensors"}
    working.add("checkpoint-NN-*.safetensors")
    assert held == listed - working - {"format_version"}


def test_every_estimate_has_an_interval_and_its_rows(manifest):
    records = list(manifest["estimate"].values())
    records += [record["accuracy"] for record in manifest["rounds"]]
    assert set(manifest["estimate"]) == {
        *("annotator", "annotator, all rows", "classifier", "classifier_gain", "gain", "refined"),
        "new texts",
    }
    assert len(records) == 9
    for estimate in records:
        assert set(estimate) == {"value", "low", "high", "n", "level"}
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["low"] < estimate["high"]
        assert (estimate["n"], estimate["level"]) == (80, 0.95)


@pytest.mark.parametrize(("method", "with_theta"), [("tsp", [1]), ("silr", [1, 2])])
def test_theta_has_its_interval_wherever_it_is_told(method, with_theta, here):
    """Theta is of the labels that a round starts from, and those of tsp are the annotator's."""
    corpus()
    succeeded(run_whet(refine(rounds=2, method=method)))
    manifest = strict_json(Path("run/run.json"))
    assert [record["round"] for record in manifest["rounds"]] == [1, 2]
    assert [r["round"] for r in manifest["rounds"] if "theta" in r] == with_theta
    assert [r["gold_rows"] for r in manifest["rounds"]] == [80, 80]
    assert manifest["theta"] == manifest["rounds"][0]["theta"]
    for record in manifest["rounds"][: len(with_theta)]:
        assert sum(record["theta_n"]) == record["gold_rows"] == 80
        low, theta, high = (np.array(record[k]) for k in ("theta_low", "theta", "theta_high"))
        assert low.shape == theta.shape == high.shape == (2, 2)
        assert (low >= 0).all()
        assert (low < theta).all()
        assert (theta < high).all()
        assert (high <= 1).all()


def test_every_use_of_gold_is_in_run_json(manifest):
    gold = manifest["gold"]
    assert (gold["given"], gold["kept"], gold["rows"]) == (80, 80, list(range(80)))
    assert {(use["round"], use["rows"]) for use in gold["uses"]} == {(1, 80), (2, 80), (None, 80)}
    assert len({use["purpose"] for use in gold["uses"]}) == 3


def test_run_json_says_what_ran_on_what(finished, manifest):
    digest = hashlib.sha256((finished[0] / "corpus.parquet").read_bytes()).hexdigest()
    assert manifest["input"] == {"path": "corpus.parquet", "sha256": digest}
    assert manifest["settings"]["input_sha256"] == digest
    assert manifest["versions"]["whet"] == manifest["settings"]["whet_version"] == __version__
    assert manifest["versions"]["pyarrow"] == pa.__version__
    assert "not installed" not in manifest["versions"].values()
    by_class = [{"annotator": 150, "refined": 150}] * 2
    assert manifest["rows"] == {
        **{"total": 300, "changed": 60, "filled": 0},
        "by_class": by_class,
    }
    assert manifest["classes"] == ["money", "sport"]
    assert set(manifest["seconds"]) == {"read", "encode", "rounds", "write", "report"}
    assert min(manifest["seconds"].values()) >= 0
    assert sum(manifest["seconds"].values()) > 0
    assert 10 < manifest["peak_memory_mib"] < 100_000


def test_settings_hold_every_flag(manifest):
    flags = inspect.signature(importlib.import_module("whet.cli.refine").refine).parameters
    flags = set(flags) - {"out", "resume", "config"}
    assert set(manifest["settings"]) == flags | {"input_sha256", "whet_version"}


def test_run_without_gold_is_valid_json_and_says_so(here):
    corpus(gold=0)
    ended = succeeded(run_whet(refine(method="pn", gold=None, rounds=1)))
    manifest = strict_json(Path("run/run.json"))
    assert (manifest["estimate"], manifest["theta"], manifest["prior"]) == ({}, None, None)
    assert manifest["gold"]["uses"] == []
    assert manifest["kept_annotator"]
    assert "unknown" in ended.out
    assert "Next: label 50 random rows: whet label corpus.parquet --text text" in ended.out


# --- the printed table ----------------------------------------------------------------------------


def line_of(ended, *words):
    """Return the first printed line that holds all words, its blanks collapsed."""
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    found = [line for line in lines if all(word in line for word in words)]
    assert found, (words, ended.out)
    return found[0]


def test_table_says_verdict_numbers_and_intervals(finished, manifest):
    ended = finished[1]
    assert manifest["verdict"] in ended.out
    assert line_of(ended, "rows", "300") == "rows 300"
    for name in ("annotator", "refined"):
        estimate = manifest["estimate"][name]
        line = line_of(ended, name, "accuracy")
        assert f"{estimate['value']:.3f}" in line
        assert f"[{estimate['low']:.3f}, {estimate['high']:.3f}]" in line
        assert "80" in line
    assert "60" in line_of(ended, "labels changed")
    assert "20.0%" in line_of(ended, "labels changed")
    assert "95 %" in ended.out


def test_table_says_theta_of_each_class_and_what_each_round_did(finished, manifest):
    low, high = manifest["theta_interval"]
    for k, name in enumerate(manifest["classes"]):
        line = line_of(finished[1], "theta", name)
        numbers = [float(number) for number in re.findall(r"\d\.\d+", line)]
        assert numbers == pytest.approx([manifest["theta"][k][k], low[k][k], high[k][k]], abs=0.006)
        assert f"n = {manifest['rounds'][0]['theta_n'][k]}" in line
    for record in manifest["rounds"]:
        line = line_of(finished[1], f"round {record['round']}", "changed")
        assert f"{record['changed']}" in line
        assert f"{record['accuracy']['value']:.3f}" in line


def test_table_says_what_gold_was_used_for(finished, manifest):
    assert "80" in line_of(finished[1], "gold rows")
    said = " ".join(finished[1].out.split())
    for use in manifest["gold"]["uses"]:
        assert use["purpose"] in said


def test_table_says_time_and_places(finished):
    assert re.search(r"^ *time +\d+\.\d s", finished[1].out, re.MULTILINE)
    for place in ("run/refined.parquet", "run/model", "run/run.json", "run/report.html"):
        assert place in finished[1].out
        assert (finished[0] / place).exists()


def next_command(ended, source):
    """Return the printed command with its placeholders filled in, split as a shell does."""
    printed = re.search(r"Next: (whet predict .*)", ended.out)
    assert printed, ended.out
    words = shlex.split(printed[1])
    filled = {"NEW.csv": source, "COLUMN": "text"}
    assert set(filled) <= set(words)
    return [filled.get(word, word) for word in words[1:]]


@pytest.mark.parametrize("out", ["run", "my run/it's $HOME"], ids=["plain", "odd"])
def test_next_command_works_as_printed(out, here):
    corpus()
    Path("new.csv").write_text("text\nbank stock number 1\ngoal match number 2\n")
    ended = succeeded(run_whet(refine(rounds=1, out=out)))
    succeeded(run_whet(next_command(ended, "new.csv")))
    with open("predicted.csv", newline="") as file:
        assert [row["predicted_label"] for row in csv.DictReader(file)] == ["money", "sport"]


@pytest.mark.parametrize("method", ["tsp", "silr"])
def test_table_of_kept_labels_says_where_to_look(method, here):
    table = columns(300, gold=80)  # every fifth label is wrong, and the gold rows miss them all
    table["gold"] = [None if i % 5 == 0 else label for i, label in enumerate(table["gold"])]
    pq.write_table(pa.table(table), "corpus.parquet")
    ended = succeeded(run_whet(refine(rounds=2, method=method)))
    manifest = strict_json(Path("run/run.json"))
    assert manifest["kept_annotator"]
    assert manifest["verdict"].startswith("Annotator's labels kept")
    assert "not used" in line_of(ended, "classifier's accuracy")
    said = " ".join(ended.out.split())
    assert "Next: look at the most doubtful labels: whet label run --strategy disagree" in said
    kept = [r for r in pq.read_table("run/refined.parquet").to_pylist() if "guard" in r["reason"]]
    assert kept
    assert all(row["refined_label"] == row["llm"] for row in kept)


def test_long_paths_are_whole_where_no_terminal_folds_them(here):
    corpus()
    out = "a-folder-with-a-name-of-some-length/" * 3 + "run"
    ended = succeeded(run_whet(refine(rounds=1, out=out)))
    for name in ("refined.parquet", "model", "run.json"):
        assert re.search(rf"{out}/{name}\s*$", ended.out, re.MULTILINE), name


# --- hostile names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label", ["[bold red]x[/]", "[/]", ":pizza:", "{x}", "\\[x]", "[link=file:///]x[/link]"]
)
def test_label_is_printed_as_it_is(label, here):
    corpus((label, "~zz"))
    ended = succeeded(run_whet(refine(rounds=1)))
    assert label in line_of(ended, "labelled")


ESCAPES = "\x1b[2J\x1b]0;pwned\x07\x9b31m\u202e"


@pytest.mark.parametrize("kept", [False, True], ids=["refined", "kept"])
def test_escapes_in_names_never_reach_the_terminal(kept, here):
    table = columns(300, (f"a{ESCAPES}", f"b{ESCAPES}"), 80)
    if kept:
        table["text"] = [f"nothing to learn from {i % 7}" for i in range(300)]
    source, out, column = f"corpus{ESCAPES}.parquet", f"run{ESCAPES}", f"text{ESCAPES}"
    pq.write_table(pa.table({column: table.pop("text"), **table}), source)
    ended = succeeded(run_whet(refine(source, text=column, out=out, rounds=2)))
    again = run_whet(refine(source, text=column, out=out))
    assert again.code == 2
    prediction = f"p{ESCAPES}.csv"
    predicted = run_whet(["predict", out, source, "--text", column, "--out", prediction])
    succeeded(predicted)
    for said in (ended.out, ended.err, again.err, predicted.out, predicted.err):
        assert controls(said) == []
    assert ended.out
    assert again.err
    assert predicted.out


@pytest.mark.parametrize(
    "args",
    [
        [f"verb{ESCAPES}"],
        ["refine", f"nowhere{ESCAPES}.csv", "--text", "t", "--pseudo", "p"],
        ["refine", "corpus.parquet", "--text", f"t{ESCAPES}", "--pseudo", "llm"],
        ["refine", "corpus.parquet", f"--text{ESCAPES}", "t"],
        ["refine", "corpus.parquet", "--rounds", f"1{ESCAPES}"],
        ["refine", "--config", f"recipe{ESCAPES}.yaml"],
        ["refine", "--config", "hostile.yaml"],
        ["predict", f"model{ESCAPES}", "corpus.parquet", "--text", "text", "--out", "o.csv"],
        ["predict", "model", "corpus.parquet", "--text", "text", "--out", f"o{ESCAPES}"],
    ],
    ids=lambda args: " ".join(args).replace(ESCAPES, "*")[:40],
)
def test_escapes_in_errors_never_reach_the_terminal(args, here):
    corpus(n=60, gold=20)
    Path("hostile.yaml").write_text(f"{json.dumps('key' + ESCAPES)}: 1\n")
    ended = run_whet(args)
    assert ended.code == 2
    assert re.match("whet: .", ended.err)
    assert controls(ended.err + ended.out) == []


# --- recipes --------------------------------------------------------------------------------------

RECIPE = """
# all of it
input: corpus.parquet
text: text
pseudo: llm
gold: gold
method: uu
rounds: 2
folds: 2
{key}: 33
guard: "off"
seed: 7
out: from-recipe
"""


@pytest.mark.filterwarnings("ignore::whet.WhetWarning")
@pytest.mark.parametrize("key", ["gold-budget", "gold_budget"])
def test_recipe_alone_is_enough(key, here):
    corpus()
    Path("recipe.yaml").write_text(RECIPE.format(key=key))
    succeeded(run_whet(["refine", "--config", "recipe.yaml"]))
    settings = strict_json(Path("from-recipe/run.json"))["settings"]
    settings = {k: v for k, v in settings.items() if k not in ("input_sha256", "whet_version")}
    assert settings == {
        "input": "corpus.parquet",
        "text": "text",
        "pseudo": "llm",
        "pseudo_prob": None,
        "gold": "gold",
        "method": "uu",
        "encoder": "tfidf",
        "theta": "gold",
        "rounds": 2,
        "folds": 2,
        "gold_budget": 33,
        "guard": "off",
        "seed": 7,
        **dict.fromkeys(("checked", "preset", "tune", "quantize", "epochs", "tokens_per_batch")),
        **dict.fromkeys(("learning_rate", "max_length", "trust_remote_code")),
    }


def test_flags_beat_the_recipe(here):
    corpus()
    corpus(("a", "b"), "other.parquet")
    Path("recipe.yaml").write_text(RECIPE.format(key="gold-budget"))
    flags = {"method": "pn", "rounds": 1, "folds": 0, "gold_budget": 90, "guard": "safe", "seed": 0}
    succeeded(run_whet([*refine("other.parquet", out="flags", **flags), "--config", "recipe.yaml"]))
    manifest = strict_json(Path("flags/run.json"))
    assert {key: manifest["settings"][key] for key in flags} == flags
    assert manifest["settings"]["input"] == "other.parquet"
    assert manifest["classes"] == ["a", "b"]
    assert not Path("from-recipe").exists()


def test_recipe_equals_the_same_flags(here):
    corpus()
    Path("recipe.yaml").write_text("input: corpus.parquet\ntext: text\npseudo: llm\ngold: gold\n")
    succeeded(run_whet(["refine", "--config", "recipe.yaml", "--rounds", "1", "--out", "one"]))
    succeeded(run_whet(refine(rounds=1, out="two")))
    one, two = (Path(run, "refined.parquet").read_bytes() for run in ("one", "two"))
    assert one == two


# --- help, version, environment -------------------------------------------------------------------

VERBS = sorted(m.name for m in pkgutil.iter_modules(whet.cli.__path__) if m.name[0] != "_")


def test_verbs_are_the_files_of_the_command_line():
    ended = succeeded(run_whet(["--help"]))
    shown = re.findall(r"^│ (\w[\w-]*) ", ended.out, re.MULTILINE)
    assert [verb.replace("-", "_") for verb in shown] == VERBS
    assert {"refine", "predict", "env"} <= set(VERBS)


@pytest.mark.parametrize("command", [*(v for v in VERBS if v != "bench"), "bench classify"])
def test_help_names_every_option(command):
    ended = succeeded(run_whet([*command.replace("_", "-").split(), "--help"]))
    assert ended.err == ""
    module, function = command.split()[0], command.split()[-1]
    function = getattr(importlib.import_module(f"whet.cli.{module}"), function)
    parameters = dict(inspect.signature(function).parameters)
    if parameters.pop("flags", None) is not None:
        parameters |= inspect.signature(Flags).parameters
    for group in ("settings", "tasked", "llm"):
        if (flags := parameters.pop(group, None)) is not None:  # a flag for each field
            fields = inspect.signature(type(flags.default)).parameters.items()
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters |= {name: field.replace(kind=keyword) for name, field in fields}
    for name, parameter in parameters.items():
        named = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        name = {"imported": "import"}.get(name, name)  # a word of the language
        shown = "--" + name.replace("_", "-") if named else name.upper()
        assert re.search(rf"^│ [* ]* ?{shown}\b +\S", ended.out, re.MULTILINE) or re.search(
            rf"^│ [* ]* ?{shown} --no-{name} +\S", ended.out, re.MULTILINE
        ), (shown, ended.out)
    assert inspect.getdoc(function).split("\n")[0][:40] in ended.out


def test_defaults_in_the_help_are_the_defaults():
    said = succeeded(run_whet(["refine", "--help"])).out
    said = " ".join(said.replace("│", " ").split())
    recipe = importlib.import_module("whet.cli._recipe").RefineRecipe
    for name, field in recipe.model_fields.items():
        if not field.is_required() and field.default is not None:
            flag = "--" + name.replace("_", "-")
            assert re.search(rf"{flag} [^│]*?\[default: {field.default}\]", said), flag


def test_version():
    assert succeeded(run_whet(["--version"])).out == f"{__version__}\n"


def test_env_prints_versions():
    ended = succeeded(run_whet(["env"]))
    assert re.search(rf"^whet +{re.escape(__version__)} *$", ended.out, re.MULTILINE)
    assert re.search(rf"^pyarrow +{re.escape(pa.__version__)} *$", ended.out, re.MULTILINE)
    assert re.search(r"^python +3\.\d+\.\d+", ended.out, re.MULTILINE)
    assert re.search(r"^extra \[embed\] +(?:installed|no: pip install)", ended.out, re.MULTILINE)
    assert ended.err == ""


# --- progress, terminals, interrupts --------------------------------------------------------------


def test_progress_is_plain_lines_where_there_is_no_terminal(here):
    corpus()
    ended = succeeded(whet_process(refine(rounds=3)))
    assert ended.err.splitlines() == [
        "whet: encoding 300/300 texts",
        *(f"whet: training {k}/3 fits" for k in (1, 2, 3)),
    ]
    assert controls(ended.out) == []


def on_a_terminal(args):
    """Run a command whose streams are a terminal; return its exit code and all it showed."""
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([WHET, *args], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
        while part := os.read(master, 65536):
            shown += part
    os.close(master)
    return process.wait(timeout=60), shown.decode(errors="replace")


def test_run_on_a_terminal(here):
    corpus((f"a{ESCAPES}", "zz"))
    code, shown = on_a_terminal(refine(rounds=3))
    assert code == 0, shown
    assert "\x1b[" in shown  # colours and a bar: rich saw the terminal
    assert "training" in shown
    assert "Next: whet predict run/model" in shown
    for escape in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\u202e", "Traceback"):
        assert escape not in shown


def test_interrupted_run_says_how_to_go_on(here):
    corpus(n=60, gold=20)
    many = refine(rounds=100_000)
    with subprocess.Popen(
        [WHET, *many], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert "encoding" in process.stderr.readline()
        while not Path("run/rounds/01/round.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert re.fullmatch(r"whet: interrupted; .*--resume.*", last)
    assert "Traceback" not in err
    assert not list(Path("run").rglob("*.tmp"))


# --- predict --------------------------------------------------------------------------------------

NEW = {
    "id": [10, 11, 12, 13],
    "text": ["bank stock", "goal, match", None, 'say "goal"\nteam'],
    "flag": [True, None, False, True],
}


def read_rows(path):
    """Read predictions with Python's own readers, not with the code under test."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file.read().split("\n")[:-1]]
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_are_all_columns_and_two_more(suffix, finished, here):
    pq.write_table(pa.table(NEW), "new.parquet")
    before = snapshot(here)
    out = Path(f"out.{suffix}")
    model = finished[0] / "run" / "model"
    args = ["predict", str(model), "new.parquet", "--text", "text", "--out", str(out)]
    ended = succeeded(run_whet(args))
    assert ended.out.split() == ["4", "rows", "labelled", "in", str(out)]
    assert ended.err == ""
    refiner = LabelRefiner.from_pretrained(model)
    probability = refiner.predict_proba(NEW["text"])
    rows = read_rows(out)
    assert [list(row) for row in rows] == [[*NEW, "predicted_label", "predicted_prob"]] * 4
    assert [row["predicted_label"] for row in rows] == refiner.predict(NEW["text"]).tolist()
    found = [float(row["predicted_prob"]) for row in rows]
    assert found == probability.max(axis=1).tolist()
    if suffix in ("jsonl", "parquet"):
        assert [{name: row[name] for name in NEW} for row in rows] == pa.table(NEW).to_pylist()
    else:
        assert [row["text"] for row in rows] == [text or "" for text in NEW["text"]]
        assert [row["flag"] for row in rows] == ["true", "", "false", "true"]
    assert {name: held for name, held in snapshot(here).items() if name in before} == before
    assert set(snapshot(here)) - set(before) == {out.name}


def test_prediction_replaces_an_older_one(finished, here):
    pq.write_table(pa.table(NEW), "new.parquet")
    Path("out.jsonl").write_text("yesterday's\n" * 100)
    model = str(finished[0] / "run")
    succeeded(run_whet(["predict", model, "new.parquet", "--text", "text", "--out", "out.jsonl"]))
    assert len(read_rows(Path("out.jsonl"))) == 4


def test_missing_input_is_named_also_where_an_older_prediction_is(finished, here):
    Path("out.csv").write_text("yesterday's\n")
    model = str(finished[0] / "run")
    ended = run_whet(["predict", model, "nowhere.csv", "--text", "text", "--out", "out.csv"])
    assert ended.code == 2
    assert "nowhere.csv does not exist" in ended.err
    assert Path("out.csv").read_text() == "yesterday's\n"


# --- secrets --------------------------------------------------------------------------------------


def test_no_artefact_holds_what_is_in_the_environment(here):
    corpus()
    secrets = {
        "WHET_CANARY_KEY": "canary-6f1d",
        "OPENAI_API_KEY": "canary-77aa",
        "HF_TOKEN": "hf_canary9b2e",
    }
    said = [whet_process(refine(rounds=1), env=secrets)]
    said.append(whet_process(["env"], env=secrets))
    flags = ["--text", "text", "--out", "out.parquet"]
    said.append(whet_process(["predict", "run", "corpus.parquet", *flags], env=secrets))
    said.append(whet_process(["refine", "nowhere.csv", "--text", "t"], env=secrets))
    assert [ended.code for ended in said] == [0, 0, 0, 2]
    texts = [text for ended in said for text in (ended.out, ended.err)]
    for file in (p for p in here.rglob("*") if p.is_file()):
        texts.append(file.read_bytes().decode("latin-1"))
        if file.suffix == ".parquet":  # compressed
            texts.append(json.dumps(pq.read_table(file).to_pylist()))
    assert len(texts) > 15
    assert [text for text in texts if "canary" in text or "CANARY" in text] == []


def test_nothing_is_written_beside_the_input_or_at_home(here):
    data, home, out = here / "data", here / "home", here / "out"
    for folder in (data, home, out):
        folder.mkdir()
    corpus(path=data / "corpus.parquet")
    before = snapshot(data)
    env = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    succeeded(whet_process(refine(data / "corpus.parquet", rounds=1, out=out / "run"), env=env))
    assert snapshot(data) == before
    assert snapshot(home) == {}
    assert [p.name for p in out.iterdir()] == ["run"]
