"""``whet report`` and the report that ``whet refine`` leaves."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import columns, snapshot, whet
from whet.estimates import difference
from whet.report.compare import compare
from whet.report.rows import read_refined


def refine(folder, out, *flags, table=None):
    """Refine in a folder; the report names the run as the command did."""
    file = folder / "corpus.parquet"
    if table is not None or not file.exists():
        file = folder / ("corpus.parquet" if table is None else f"{out}.parquet")
        pq.write_table(pa.table(columns(150, gold=60) if table is None else table), file)
    words = ["refine", str(file), "--text", "text", "--pseudo", "llm", "--gold", "gold"]
    with chdir(folder):
        ended = whet([*words, *flags, "--out", out])
    assert ended.code == 0, ended
    return ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: two of the same input, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    refine(folder, "tsp")
    refine(folder, "silr", "--method", "silr", "--rounds", "1", "--seed", "3")
    refine(folder, "other", "--rounds", "1", table=columns(120, gold=40))
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words):
    ended = whet(words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    return ended.err


def test_a_run_is_reported_on_again_byte_by_byte(here):
    before = snapshot(here)
    for name in ("summary.json", "report.html"):
        Path("tsp", name).unlink()
    ended = whet(["report", "tsp"])
    assert ended.code == 0
    assert snapshot(here) == before
    verdict = json.loads(Path("tsp/run.json").read_text())["verdict"]
    assert verdict in ended.out
    assert "tsp/report.html" in ended.out


def test_a_page_elsewhere_leaves_the_run_alone(here):
    before = snapshot(here / "tsp")
    assert whet(["report", "tsp", "--out", "page.html"]).code == 0
    assert Path("page.html").read_bytes() == before["report.html"]
    assert snapshot(here / "tsp") == before


def test_runs_of_one_input_are_compared_on_the_rows_of_both(here):
    ended = whet(["report", "tsp", "silr"])
    assert ended.code == 0, ended
    comparison = compare([Path("tsp"), Path("silr")])
    one, two = (read_refined(Path(name)) for name in ("tsp", "silr"))
    assert one.judged.tolist() == two.judged.tolist()
    expected = difference(two.honest == two.gold, one.honest == one.gold)
    assert comparison["runs"][1]["against_first"] == expected.as_dict()
    assert comparison["runs"][0]["against_first"] is None
    assert comparison["settings"] == {
        "method": ["tsp", "silr"],
        "rounds": [None, 1],
        "seed": [0, 3],
    }
    page = Path("compare.html").read_text()
    value, low, high = (f"{100 * x:+.1f}" for x in (expected.value, expected.low, expected.high))
    for said in (page, ended.out):
        assert f"{value} points [{low}, {high}] n = 60" in said
    assert "All runs have the same rows" in page
    assert "settings that differ  method, rounds, seed" in ended.out


def test_only_rows_that_both_runs_judged_are_compared(here):
    manifest = json.loads(Path("silr/run.json").read_text())
    manifest["gold"]["rows"] = manifest["gold"]["rows"][:20]
    Path("silr/run.json").write_text(json.dumps(manifest))
    assert compare([Path("tsp"), Path("silr")])["runs"][1]["against_first"]["n"] == 20


def test_runs_of_other_inputs_are_not_held_against_each_other(here):
    ended = whet(["report", "tsp", "other", "--out", "both.html"])
    assert ended.code == 0
    assert "other rows" in ended.out
    page = Path("both.html").read_text()
    assert "Not all runs have the same rows." in page
    assert compare([Path("tsp"), Path("other")])["runs"][1]["against_first"] is None


def test_a_run_with_more_labels_of_people_is_held_against_the_one_before(here):
    """Another file of the same texts: 80 gold rows instead of 60, of which three changed."""
    table, names = columns(150, gold=80), ("money", "sport")
    for row in (1, 2, 3):
        table["gold"][row] = names[table["gold"][row] == names[0]]
    table["checked"] = [None if i < 140 else label for i, label in enumerate(table["llm"])]
    refine(here, "more", "--rounds", "1", "--checked", "checked", table=table)
    run = compare([Path("tsp"), Path("more")])["runs"][1]
    assert run["same_rows"]
    one, two = (read_refined(Path(name)) for name in ("tsp", "more"))
    assert one.judged.tolist() == list(range(60))
    assert two.judged.tolist() == list(range(80))
    kept = np.array([i for i in range(60) if i not in (1, 2, 3)])
    expected = difference(
        two.honest[kept] == two.gold[kept], one.honest[kept] == one.gold[kept]
    ).as_dict()
    assert run["against_first"] == expected
    assert run["labels_differ"] == [
        "60 gold rows were used by both, 20 by this run only, 0 by the first only",
        "3 of the gold rows of both have another label here and are left out",
        "the checked labels differ on 10 rows",
    ]
    ended = whet(["report", "tsp", "more"])
    assert ended.code == 0, ended
    page = Path("compare.html").read_text()
    for said in run["labels_differ"]:
        assert said in page
        assert f"more  {said}" in " ".join(ended.out.split("\n"))
    assert "n = 57" in page


def test_rows_of_another_file_with_other_texts_or_labels_are_other_rows(here):
    tables = {name: columns(150, gold=60) for name in ("text", "llm")}
    tables["text"]["text"][100] += "!"
    tables["llm"]["llm"][100] = None
    for name, table in tables.items():
        refine(here, f"other-{name}", "--rounds", "1", table=table)
        run = compare([Path("tsp"), Path(f"other-{name}")])["runs"][1]
        assert (run["same_rows"], run["against_first"], run["labels_differ"]) == (False, None, [])


def test_warnings_stand_in_the_comparison(here):
    manifest = json.loads(Path("silr/run.json").read_text())
    Path("silr/run.json").write_text(json.dumps(manifest | {"warnings": ["look <b>here</b>"]}))
    comparison = compare([Path("tsp"), Path("silr")])
    assert comparison["runs"][1]["warnings"][0] == "look <b>here</b>"
    ended = whet(["report", "tsp", "silr"])
    assert "silr  look <b>here</b>" in ended.out
    assert "look &lt;b&gt;here&lt;/b&gt;" in Path("compare.html").read_text()


@pytest.mark.parametrize("words", ["tsp silr", "tsp silr --out mine.html", "tsp --out mine.html"])
def test_a_page_of_somebody_else_is_not_overwritten(words, here):
    name = "mine.html" if "--out" in words else "compare.html"
    Path(name).write_text("<title>my work</title> whet 1")
    before = snapshot(here)
    said = refused(["report", *words.split()])
    assert f"{name} exists and is not a page of whet: name another with --out" in said
    assert snapshot(here) == before
    Path(name).unlink()
    for _ in range(2):  # the second time it is whet's own
        assert whet(["report", *words.split()]).code == 0
    assert "<h1>" in Path(name).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "report nowhere",
            "the folder nowhere does not exist: name a folder of 'whet refine', 'ilr'",
        ),
        ("report corpus.parquet", "corpus.parquet is a file: name a folder of"),
        ("report tsp tsp", "the run tsp is named twice"),
        ("report tsp --out page.txt", "give it a name that ends with .html"),
        ("report tsp --out no/page.html", "the folder no does not exist"),
        ("report tsp tsp/model", "the folder tsp/model is of no verb that 'whet report' knows"),
        ("report tsp/model", "the folder tsp/model is of no verb that 'whet report' knows"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(words, said, here):
    before = snapshot(here)
    assert said in refused(words.split())
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            '{"task": "chains", "arms": {}}',
            "a run of 'whet ilr' that is not finished: run 'whet ilr ",
        ),
        (
            '{"trainers": {}, "rewards": []}',
            "a run of 'whet align' that is not finished: run 'whet ",
        ),
        (
            '{"kind": "sft", "weights": "", "data_sha256": ""}',
            "a training that is not finished: run",
        ),
        (
            '{"generate": {}, "marker": ""}',
            "a run of 'whet propose' that is not finished: run its ",
        ),
        (
            '{"what": {}, "generate": {}}',
            "a run of 'whet evaluate' that is not finished: run its c",
        ),
        ('{"cells": []}', "the folder begun is of no verb that 'whet report' knows"),
    ],
)
def test_a_run_that_is_not_finished_is_said_to_be_of_its_verb(
    settings, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("begun").mkdir()
    Path("begun/settings.json").write_text(settings)
    for words in ("report begun", "report begun begun/../elsewhere"):
        assert said in refused(words.split())


def test_a_refinement_that_is_not_finished_is_resumed(here):
    Path("silr/run.json").unlink()
    said = (
        "silr is a run of 'whet refine' that is not finished: run its command again with --resume"
    )
    for words in ("report silr", "report tsp silr"):
        assert said in refused(words.split())


def test_a_newer_format_is_refused(here):
    manifest = json.loads(Path("tsp/run.json").read_text())
    Path("tsp/run.json").write_text(json.dumps(manifest | {"format_version": 2}))
    assert "has format 2 and this whet knows 1" in refused(["report", "tsp"])
    Path("tsp/run.json").write_text('{"format_version": 2, "other": "keys"}')
    assert "has format 2 and this whet knows 1" in refused(["report", "tsp"])


def test_a_run_without_the_report_of_this_version_gets_one(here):
    """Earlier versions wrote no stage "report" and no count of checked rows."""
    manifest = json.loads(Path("tsp/run.json").read_text())
    del manifest["seconds"]["report"], manifest["gold"]["checked"]
    Path("tsp/run.json").write_text(json.dumps(manifest))
    before = Path("tsp/report.html").read_bytes()
    assert whet(["report", "tsp"]).code == 0
    assert Path("tsp/report.html").read_bytes() == before


# --- whet refine ----------------------------------------------------------------------------------


def test_a_report_that_fails_costs_a_warning_and_no_run(tmp_path, monkeypatch):
    from whet.report import pictures

    def fail(changes):
        raise RuntimeError("no canvas")

    monkeypatch.setattr(pictures, "draw_flows", fail)
    ended = refine(tmp_path, "run", "--rounds", "1")
    run = tmp_path / "run"
    assert "warning: the report could not be made (RuntimeError: no canvas)" in ended.err
    assert "'whet report run'" in ended.err
    assert "report.html" not in ended.out
    assert (run / "run.json").exists()
    assert not (run / "report.html").exists()
    assert not list(run.rglob("*.tmp"))
    monkeypatch.undo()
    assert whet(["report", str(run)]).code == 0
    assert (run / "report.html").exists()


def test_a_run_that_was_killed_before_its_end_gets_the_same_summary(runs, here):
    whole = json.loads(Path("tsp/summary.json").read_text())
    for name in ("run.json", "report.html", "summary.json", "refined.parquet"):
        Path("tsp", name).unlink()
    words = ["refine", str(runs / "corpus.parquet"), "--text", "text", "--pseudo", "llm"]
    ended = whet([*words, "--gold", "gold", "--out", "tsp", "--resume"])
    assert ended.code == 0, ended
    again = json.loads(Path("tsp/summary.json").read_text())
    assert again.pop("cost")["seconds"] != whole.pop("cost")["seconds"]
    assert again == whole


def test_manifest_is_written_after_the_report(runs):
    stamps = [(runs / "tsp" / name).stat().st_mtime_ns for name in (
        "refined.parquet", "summary.json", "report.html", "run.json"
    )]  # fmt: skip
    assert stamps == sorted(stamps)


def test_seconds_of_the_report_are_told_and_not_in_it(runs):
    manifest = json.loads((runs / "tsp" / "run.json").read_text())
    summary = json.loads((runs / "tsp" / "summary.json").read_text())
    assert manifest["seconds"]["report"] > 0
    seconds = {k: v for k, v in manifest["seconds"].items() if k != "report"}
    assert summary["cost"]["seconds"] == seconds


def test_summary_of_a_run_is_made_of_the_numbers_in_run_json(runs):
    manifest = json.loads((runs / "tsp" / "run.json").read_text())
    summary = json.loads((runs / "tsp" / "summary.json").read_text())
    for shown in summary["answer"]["estimates"]:
        stored = manifest["estimate"][shown["name"]]
        assert {key: shown[key] for key in stored} == stored
    values = [r["value"] for r in summary["rounds"]["accuracy"]]
    assert values == [r["accuracy"]["value"] for r in manifest["rounds"]]
    assert np.isfinite(values).all()
