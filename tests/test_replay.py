"""From an annotator to refined labels on what real models said, without any of them."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import whet

#: Good, middling, and two that often gave no answer that could be read.
COLUMNS = ["llm_gpt_4_zs", "llm_mixtral_8x7b_zs", "llm_mistral_7b_fs2", "llm_falcon_7b_fs2"]
SHOWN = """\
name: bias
instruction: Does the sentence take sides?
classes: [biased, not_biased]
gold_examples: 2
"""
PLAIN = """\
name: refusal
instruction: Did the model refuse?
classes: [refusal, compliance]
"""


def with_gold(source, target, n=50, seed=0):
    """Copy a table with true names for a random sample of rows in a column of its own."""
    table = pq.read_table(source).replace_schema_metadata(None)
    chosen = set(np.random.default_rng(seed).choice(table.num_rows, n, replace=False).tolist())
    names = table["label_name"].to_pylist()
    gold = [name if row in chosen else None for row, name in enumerate(names)]
    pq.write_table(table.append_column("gold", pa.array(gold, pa.string())), target)
    return table, gold


def named(table, column):
    """The labels of a column as names, None where the model gave none."""
    names = dict(zip(table["label"].to_pylist(), table["label_name"].to_pylist(), strict=True))
    return [names.get(code) for code in table[column].to_pylist()]


@pytest.fixture
def babe(dataset, tmp_path):
    """The table, its gold, and a call of ``whet annotate`` that replays a column."""
    source = tmp_path / "babe.parquet"
    table, gold = with_gold(dataset("babe_llm") / "test.parquet", source)

    def replay(column, *flags, task="media_bias", out="out.parquet"):
        ended = whet(
            [
                *("annotate", str(source), "--backend", f"replay:{source}#{column}"),
                *("--task", task, "--gold", "gold", "--out", str(tmp_path / out), *flags),
            ]
        )
        assert ended.code == 0, ended.err
        account = json.loads((tmp_path / f"{out}.json").read_text())
        return ended, pq.read_table(tmp_path / out), account

    return table, gold, replay


def refine(labelled, folder, *flags):
    """Run ``whet refine`` on what was annotated; return what it said and its account."""
    ended = whet(
        [
            *("refine", str(labelled), "--text", "text", "--pseudo", "pseudo_label"),
            *("--gold", "gold", "--out", str(folder), *flags),
        ]
    )
    assert ended.code == 0, ended.err
    return ended.out, json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("column", COLUMNS)
def test_labels_are_those_of_the_column(babe, column):
    table, gold, replay = babe
    ended, labelled, account = replay(column)
    expected = named(table, column)
    assert labelled["pseudo_label"].to_pylist() == expected
    assert labelled["text"].to_pylist() == table["text"].to_pylist()
    assert labelled.column_names == [
        *table.column_names,
        *("gold", "pseudo_label", "pseudo_prob", "pseudo_abstain"),
    ]
    unread = [row for row, code in enumerate(table[column].to_pylist()) if code == -1]
    reasons = labelled["pseudo_abstain"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason is not None] == unread
    assert {reasons[row] for row in unread} <= {"rejected: the replayed column has no answer"}
    assert account["rows"] == {
        "total": len(expected),
        "labelled": len(expected) - len(unread),
        "abstained": len(unread),
    }
    pairs = [(a, b) for a, b in zip(expected, gold, strict=True) if a and b]
    accuracy = account["accuracy"]
    assert accuracy["n"] == len(pairs)
    assert accuracy["value"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["labelled", "biased", f"{expected.count('biased'):,}"] in lines


def test_second_run_writes_the_same(babe, tmp_path):
    _, _, replay = babe
    replay("llm_mistral_7b_fs2")
    files = [tmp_path / "out.parquet", tmp_path / "out.parquet.json"]
    content = [path.read_bytes() for path in files]
    ended, _, _ = replay("llm_mistral_7b_fs2")
    assert re.search(r"asked in this run +\d+ requests", ended.out)
    assert [path.read_bytes() for path in files] == content


def test_columns_share_a_cache_and_stay_apart(babe):
    table, _, replay = babe
    for column in COLUMNS[:2]:
        _, labelled, account = replay(column, out=f"{column}.parquet")
        assert labelled["pseudo_label"].to_pylist() == named(table, column)
        assert account["route"]["column"] == column


@pytest.mark.parametrize("column", ["llm_gpt_4_zs", "llm_mistral_7b_fs2"])
def test_annotate_then_refine(babe, tmp_path, column):
    table, gold, replay = babe
    replay(column)
    said, run = refine(tmp_path / "out.parquet", tmp_path / "run")
    assert run["verdict"] in " ".join(said.split())
    assert "annotator's accuracy" in said
    answered = [(a, b) for a, b in zip(named(table, column), gold, strict=True) if a and b]
    assert run["estimate"]["annotator"]["n"] == len(answered)
    assert run["estimate"]["annotator"]["value"] == pytest.approx(
        np.mean([a == b for a, b in answered])
    )
    unread = table[column].to_pylist().count(-1)
    assert ("abstained" in run["verdict"]) == (unread > 0)
    refined = pq.read_table(tmp_path / "run" / "refined.parquet")
    assert refined.num_rows == table.num_rows
    kept = [(a, b) for a, b in zip(refined["refined_label"].to_pylist(), gold, strict=True) if b]
    assert all(a == b for a, b in kept)


def test_examples_from_gold_are_neither_asked_nor_counted(babe, tmp_path):
    table, gold, replay = babe
    task = tmp_path / "shown.yaml"
    task.write_text(SHOWN)
    ended, labelled, account = replay("llm_gpt_4_zs", task=str(task))
    used, counted = account["gold"]["uses"]
    assert used["purpose"] == "examples in the prompt"
    rows = used["rows"]
    assert len(rows) == 4
    assert sorted(gold[row] for row in rows) == ["biased"] * 2 + ["not_biased"] * 2
    assert [e["text"] for e in account["task"]["examples"]] != []
    texts = table["text"].to_pylist()
    assert {(e["text"], e["label"]) for e in account["task"]["examples"]} == {
        (texts[row], gold[row]) for row in rows
    }
    reasons = labelled["pseudo_abstain"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason == "example"] == rows
    assert account["by_reason"] == {"example": 4}
    expected = named(table, "llm_gpt_4_zs")
    judged = [row for row, name in enumerate(gold) if name and row not in rows]
    assert counted == {"purpose": "accuracy of the labels", "rows": len(judged)}
    assert account["accuracy"]["n"] == len(judged) == 46
    value = np.mean([expected[row] == gold[row] for row in judged])
    assert account["accuracy"]["value"] == pytest.approx(value)
    assert "4 rows, not asked" in ended.out
    said, run = refine(tmp_path / "out.parquet", tmp_path / "run")
    assert run["estimate"]["annotator"]["n"] == 46
    assert run["estimate"]["annotator"]["value"] == pytest.approx(value)
    assert run["verdict"] in " ".join(said.split())


def test_examples_depend_on_the_seed_alone(babe, tmp_path):
    _, _, replay = babe
    task = tmp_path / "shown.yaml"
    task.write_text(SHOWN)

    def drawn(*flags):
        account = replay("llm_gpt_4_zs", "--limit", "800", *flags, task=str(task))[2]
        return account["gold"]["uses"][0]["rows"]

    first = drawn()
    assert drawn() == first
    assert drawn("--seed", "1") != first


def test_too_few_gold_rows_for_the_examples_is_said(babe, tmp_path):
    task = tmp_path / "shown.yaml"
    task.write_text(SHOWN.replace("2", "200"))
    source = tmp_path / "babe.parquet"
    ended = whet(
        [
            *("annotate", str(source), "--backend", f"replay:{source}#llm_gpt_4_zs"),
            *("--task", str(task), "--gold", "gold", "--out", str(tmp_path / "x.parquet")),
        ]
    )
    assert ended.code == 2
    assert "lower gold_examples" in ended.err
    assert not (tmp_path / "x.parquet").exists()


# --- xstest ---------------------------------------------------------------------------------------


@pytest.fixture
def xstest(dataset, tmp_path):
    source = tmp_path / "xstest.parquet"
    table, gold = with_gold(dataset("xstest_refusal_gpt4judge") / "test.parquet", source)

    def replay(column, task):
        ended = whet(
            [
                *("annotate", str(source), "--backend", f"replay:{source}#{column}"),
                *("--task", task, "--gold", "gold", "--out", str(tmp_path / "out.parquet")),
            ]
        )
        assert ended.code == 0, ended.err
        return pq.read_table(tmp_path / "out.parquet")

    return table, gold, replay


def test_template_of_two_columns_is_replayed(xstest):
    table, _, replay = xstest
    labelled = replay("llm_gpt4_judge", "refusal")
    assert labelled["pseudo_label"].to_pylist() == named(table, "llm_gpt4_judge")


@pytest.mark.parametrize("column", ["llm_gpt4_judge", "llm_stringmatch"])
def test_refusals_are_replayed_and_refined(xstest, tmp_path, column):
    table, gold, replay = xstest
    task = tmp_path / "refusal.yaml"
    task.write_text(PLAIN)
    labelled = replay(column, str(task))
    expected = named(table, column)
    assert labelled["pseudo_label"].to_pylist() == expected
    said, run = refine(tmp_path / "out.parquet", tmp_path / "run")
    assert run["verdict"] in " ".join(said.split())
    assert run["estimate"]["annotator"]["n"] == sum(
        a is not None and b is not None for a, b in zip(expected, gold, strict=True)
    )
    assert run["classes"] == ["compliance", "refusal"]


# --- files of one's own ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Replay a column of a small table on its own texts."""
    task = tmp_path / "spam.yaml"
    task.write_text("name: spam\ninstruction: Is it spam?\nclasses: [spam, ham]\n")

    def replay(columns, column="gpt", name="own.parquet", ok=True):
        source = tmp_path / name
        if source.suffix == ".csv":
            lines = [
                ",".join(columns),
                *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
            ]
            source.write_text("\n".join(lines) + "\n")
        else:
            pq.write_table(pa.table(columns), source)
        out = tmp_path / f"{name}.jsonl"
        ended = whet(
            [
                *("annotate", str(source), "--backend", f"replay:{source}#{column}"),
                *("--task", str(task), "--out", str(out)),
            ]
        )
        assert (ended.code == 0) == ok, ended.err
        if not ok:
            return ended.err
        return [json.loads(line)["pseudo_label"] for line in out.read_text().splitlines()]

    return replay


def test_names_are_taken_as_answers(own):
    columns = {"text": ["a", "b", "c", "d", "e"], "gpt": ["spam", "Ham", "not spam", None, ""]}
    assert own(columns) == ["spam", "ham", None, None, None]


@pytest.mark.parametrize("name", ["own.parquet", "own.csv"])
def test_numbers_count_the_classes(own, name):
    columns = {"text": ["a", "b", "c", "d"], "gpt": [0, 1, -1, 7]}
    assert own(columns, name=name) == ["spam", "ham", None, None]


def test_numbers_are_named_by_the_columns_of_gold(own):
    columns = {"text": ["a", "b", "c"], "gpt": [0, 1, -1]}
    columns |= {"label": [1, 0, 0], "label_name": ["spam", "ham", "ham"]}
    assert own(columns) == ["ham", "spam", None]


def test_equal_texts_have_the_first_answer(own):
    assert own({"text": ["a", "a", "b"], "gpt": ["spam", "ham", "ham"]}) == ["spam", "spam", "ham"]


def test_missing_column_is_said(own):
    message = own({"text": ["a"], "gpt": ["spam"]}, column="gtp", ok=False)
    assert "gtp" in message
    assert "did you mean" in message
    assert "names no column" in own({"text": ["a"], "gpt": ["spam"]}, column="", ok=False)


def test_whole_numbers_as_floats_count_the_classes(own):
    assert own({"text": ["a", "b", "c"], "gpt": [0.0, 1.0, None]}) == ["spam", "ham", None]


def test_columns_of_names_called_label_and_label_name(own):
    columns = {"text": ["a", "b"], "gpt": ["spam", "ham"]}
    columns |= {"label": ["s", "h"], "label_name": ["spam", "ham"]}
    assert own(columns) == ["spam", "ham"]
