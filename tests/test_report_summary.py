"""The summary of a run says what run.json and refined.parquet say, whatever kind of run it is."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import flip, make_texts, sample_gold
from helpers import columns, whet
from whet import WhetError
from whet.report.page import render
from whet.report.rows import read_refined
from whet.report.summary import (
    LISTED,
    MOST_CLASSES,
    MOST_REASON,
    MOST_WARNINGS,
    summarise,
)
from whet.store import read_json

N = 240


def corpus(truth, labels, gold, **more):
    """Return columns of a corpus whose classes are named by ``labels``."""
    names = [labels[y] for y in truth]
    pseudo = [labels[y] for y in flip(truth, 0.7, len(labels))]
    return {
        "text": make_texts(truth),
        "llm": [None if i % 9 == 0 else label for i, label in enumerate(pseudo)],
        "gold": [None if g is None else labels[g] for g in sample_gold(truth, gold)],
        "truth": names,
    } | more


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that refines a table with flags and returns its run folder."""
    made = {}

    def run(name, table, *flags, gold="gold"):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            pq.write_table(pa.table(table), folder / "corpus.parquet")
            words = ["refine", str(folder / "corpus.parquet"), "--text", "text", "--out"]
            words += [str(folder / "run"), *([] if gold is None else ["--gold", gold])]
            pseudo = [] if "--pseudo" in flags else ["--pseudo", "llm"]
            ended = whet([*words, *pseudo, *flags])
            assert ended.code == 0, ended
            made[name] = folder / "run"
        return made[name]

    return run


TWO = np.random.default_rng(0).integers(0, 2, N)
PLAIN = corpus(TWO, ("money", "sport"), 80)


@pytest.fixture
def plain(make):
    return make("plain", PLAIN)


@pytest.fixture
def kept(make):
    """A run whose gold rows miss every error of the annotator, so that they show no gain."""
    table = columns(200, gold=60)
    table["gold"] = [None if i % 5 == 0 else label for i, label in enumerate(table["gold"])]
    return make("kept", table)


# --- against what the run itself counted -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags"),
    [("plain", ""), ("tsp-off", "--guard off"), ("silr", "--method silr --rounds 2")],
)
def test_confusion_is_what_the_estimates_counted(name, flags, make):
    folder = make(name, PLAIN, *flags.split())
    manifest, summary = read_json(folder / "run.json"), summarise(folder)
    found, n = manifest["estimate"], summary["confusion"]["n"]
    before, after = (np.array(summary["confusion"][when]) for when in ("before", "after"))
    assert n == before.sum() == after.sum() == 80
    answered = before[:, :2].sum()
    assert np.trace(before) == round(found["annotator"]["value"] * found["annotator"]["n"])
    assert answered == found["annotator"]["n"]
    used = "annotator" if manifest["kept_annotator"] else "classifier"
    right = found[used]["value"] * answered + found["filled"]["value"] * (n - answered)
    assert np.trace(after) == round(right)
    assert after[:, 2].sum() == 0


def test_labels_of_other_rows_are_those_of_the_result(plain):
    rows = read_refined(plain)
    table = pq.read_table(plain / "refined.parquet")
    names = np.array([*rows.classes, None], object)
    assert names[rows.pseudo].tolist() == table["pseudo_label"].to_pylist()
    assert names[rows.refined].tolist() == table["refined_label"].to_pylist()
    given = [reason == "gold label" for reason in table["reason"].to_pylist()]
    assert rows.given.tolist() == given
    free = ~rows.given
    np.testing.assert_array_equal(rows.after[free], table["refined_prob"].to_numpy()[free])
    judged = np.flatnonzero(rows.given)
    assert rows.judged.tolist() == judged.tolist()
    assert names[rows.gold].tolist() == [PLAIN["gold"][row] for row in judged]


def test_flows_count_every_row_once(plain):
    manifest, summary = read_json(plain / "run.json"), summarise(plain)
    changes, flows = summary["changes"], summary["changes"]["flows"]
    assert all(flow["from"] != flow["to"] for flow in flows)
    moved = sum(flow["rows"] for flow in flows)
    assert moved == changes["changed"] == manifest["rows"]["changed"]
    assert moved + sum(kept["rows"] for kept in changes["kept"]) == N
    by_class = {c["class"]: c for c in summary["by_class"]}
    for label, counts in zip(manifest["classes"], manifest["rows"]["by_class"], strict=True):
        assert by_class[label]["annotator"] == counts["annotator"]
        assert by_class[label]["refined"] == counts["refined"]
        assert by_class[label]["left"] == sum(f["rows"] for f in flows if f["from"] == label)
        assert by_class[label]["joined"] == sum(f["rows"] for f in flows if f["to"] == label)


def test_shares_of_a_class_follow_from_the_confusion(plain):
    summary = summarise(plain)
    before, after = (np.array(summary["confusion"][when]) for when in ("before", "after"))
    for k, found in enumerate(summary["by_class"]):
        for counts, when in ((before, "before"), (after, "after")):
            right, rows = found[f"right_{when}"], counts[k].sum()
            assert (right["n"], found[f"found_{when}"]["n"]) == (counts[:, k].sum(), rows)
            assert right["value"] == pytest.approx(counts[k, k] / counts[:, k].sum())
            assert found[f"found_{when}"]["value"] == pytest.approx(counts[k, k] / rows)
            assert right["low"] <= right["value"] <= right["high"]


def test_lengths_and_bins_cover_all_rows(plain):
    summary = summarise(plain)
    lengths = summary["by_length"]
    assert sum(part["rows"] for part in lengths) == N
    assert sum(part["changed"] for part in lengths) == summary["changes"]["changed"]
    assert sum(part["after"]["n"] for part in lengths) == 80
    texts = sorted(map(len, PLAIN["text"]))
    assert (lengths[0]["shortest"], lengths[-1]["longest"]) == (texts[0], texts[-1])
    bins = summary["calibration"]["bins"]
    assert sum(part["n"] for part in bins) == 80
    assert sorted(b["probability"] for b in bins) == [b["probability"] for b in bins]


def test_listed_rows_are_the_surest_and_the_least_sure(plain):
    summary, table = summarise(plain), pq.read_table(plain / "refined.parquet").to_pylist()
    corrected = [
        (row["suspicion"], i)
        for i, row in enumerate(table)
        if row["changed"] and row["pseudo_label"] and row["reason"] != "gold label"
    ]
    listed = summary["corrections"]
    assert listed["corrected"] == len(corrected)
    expected = sorted(corrected, key=lambda pair: (-pair[0], pair[1]))[:LISTED]
    assert [row["row"] for row in listed["rows"]] == [i for _, i in expected]
    for row in listed["rows"] + summary["least_certain"]["rows"]:
        source = table[row["row"]]
        assert row["text"] == source["text"]
        assert row["reason"] == source["reason"]
        assert (row["annotator"], row["refined"]) == (
            source["pseudo_label"],
            source["refined_label"],
        )
        assert row["after"] == source["refined_prob"]
        if row["before"] is not None:
            assert f"{row['before']:.2f}" in row["reason"] or row["annotator"] == row["refined"]
    two_classes = sorted(
        (abs(2 * row["refined_prob"] - 1), i)
        for i, row in enumerate(table)
        if row["reason"] != "gold label"
    )
    least = [row["row"] for row in summary["least_certain"]["rows"]]
    assert least[:10] == [i for _, i in two_classes[:10]]


# --- what is not known is not said ----------------------------------------------------------------


def test_kept_labels_are_said_first_with_what_they_would_have_been(kept):
    summary = summarise(kept)
    assert summary["answer"]["status"] == "kept"
    assert "classifier_gain" in {e["name"] for e in summary["answer"]["estimates"]}
    assert summary["corrections"]["corrected"] == 0
    assert summary["corrections"]["rows"]
    assert all(row["classifier"] != row["annotator"] for row in summary["corrections"]["rows"])
    page = render(summary)
    assert page.index("No gain was shown") < page.index("Round by round")
    assert "The labels that are doubted most" in page


def test_without_gold_nothing_is_known(make):
    folder = make("no-gold", PLAIN, gold=None)
    summary = summarise(folder)
    assert summary["answer"]["status"] == "unknown"
    assert summary["answer"]["estimates"] == []
    assert summary["rounds"]["annotator"] is None
    assert summary["rounds"]["theta"] == []
    assert summary["confusion"]["n"] == 0
    assert summary["calibration"]["status"] == "unknown"
    assert all(c["right_after"]["value"] is None for c in summary["by_class"])
    page = render(summary)
    assert page.index("Not known") < page.index("Round by round")
    assert page.count("<img") == 1  # the flows; no accuracy is drawn


def test_few_gold_rows_give_no_shares_of_parts(make):
    folder = make("few", corpus(TWO, ("money", "sport"), 12))
    summary = summarise(folder)
    assert any("Only 12 gold rows" in note for note in summary["answer"]["notes"])
    shares = [part[when] for part in summary["by_length"] for when in ("before", "after")]
    assert {(s["value"] is None) for s in shares if s["n"] < 5} == {True}
    assert "too few (n = " in render(summary)


def test_probabilities_that_are_wrong_are_called_so(make):
    summary = summarise(make("silr", PLAIN, "--method", "silr", "--rounds", "2"))
    bins = summary["calibration"]["bins"]
    off = sum(not b["low"] <= b["probability"] <= b["high"] for b in bins)
    assert summary["calibration"]["off"] == off
    expected = "not calibrated" if off else "not contradicted"
    assert summary["calibration"]["status"] == expected


# --- kinds of runs --------------------------------------------------------------------------------


def test_every_row_is_gold_where_an_oracle_is_asked(make):
    table = corpus(TWO, (0, 1), 80)
    table["gold"] = table["truth"]
    folder = make("oracle", table, "--method", "silr", "--theta", "oracle", "--rounds", "1")
    summary, manifest = summarise(folder), read_json(folder / "run.json")
    assert summary["confusion"]["n"] == N
    refined = pq.read_table(folder / "refined.parquet")["refined_label"].to_pylist()
    right = sum(a == b for a, b in zip(refined, table["truth"], strict=True))
    assert np.trace(np.array(summary["confusion"]["after"])) == right
    assert manifest["gold"]["rows"] == "all"
    render(summary)


def test_several_annotators_and_checked_rows(make):
    table = corpus(TWO, ("money", "sport"), 60)
    table["other"] = table["llm"][::-1]
    table["checked"] = [t if i % 40 == 0 else None for i, t in enumerate(table["truth"])]
    folder = make("several", table, "--pseudo", "llm,other", "--checked", "checked")
    rows, result = read_refined(folder), pq.read_table(folder / "refined.parquet")
    assert rows.given.sum() == sum(r in ("gold label", "checked label")
                                   for r in result["reason"].to_pylist())  # fmt: skip
    names = np.array([*rows.classes, None], object)
    assert names[rows.pseudo].tolist() == result["pseudo_label"].to_pylist()
    summary = summarise(folder)
    assert summary["gold"]["checked"] > 0
    assert "checked rows keep their label" in render(summary)


def test_numbers_with_gaps_in_a_csv(tmp_path):
    table = corpus(TWO, (0, 1), 60)
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "pseudo_label", "gold"])
        for text, label, gold in zip(table["text"], table["llm"], table["gold"], strict=True):
            writer.writerow([text, *("" if v is None else f"{v}.0" for v in (label, gold))])
    out = str(tmp_path / "run")
    words = ["refine", str(tmp_path / "c.csv"), "--text", "text", "--pseudo", "pseudo_label"]
    assert whet([*words, "--gold", "gold", "--out", out]).code == 0
    rows = read_refined(Path(out))
    assert rows.pseudo.tolist() == [-1 if v is None else v for v in table["llm"]]


def test_many_classes_list_errors_instead_of_a_table(make):
    truth = np.random.default_rng(1).integers(0, 20, 400)
    names = [f"class {k}" for k in range(20)]
    table = corpus(truth % 3, names[:3], 0) | {
        "llm": [names[y] for y in flip(truth, 0.8, 20)],
        "gold": [names[y] if i < 90 else None for i, y in enumerate(truth)],
        "text": [f"{names[y]} {names[y]} word{i % 7}" for i, y in enumerate(truth)],
        "truth": [names[y] for y in truth],
    }
    summary = summarise(make("many", table))
    assert MOST_CLASSES < 20
    assert summary["confusion"]["classes"] is None
    errors = summary["confusion"]["errors"]
    assert errors
    assert all(e["gold"] != e["said"] for e in errors)
    assert "The most frequent errors on 90 gold rows" in render(summary)


def test_command_makes_the_same_labels(plain, tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    *words, out = shlex.split(summarise(plain)["reproduce"]["command"])
    assert words[-1] == "--out"
    assert Path(out).name == "run-again"
    assert whet([*words[1:], "run-again"]).code == 0
    one, two = (Path(run, "refined.parquet").read_bytes() for run in (plain, "run-again"))
    assert one == two


def test_command_of_names_that_look_like_flags_runs_where_the_run_lies(tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    table = columns(60)
    table["-a 'text'"] = table.pop("text")
    pq.write_table(pa.table(table), "-corpus.parquet")
    words = ["--pseudo", "llm", "--gold", "gold", "--method", "pn", "--out=-a"]
    assert whet(["refine", "./-corpus.parquet", "--text=-a 'text'", *words]).code == 0
    words = shlex.split(read_json(tmp_path / "-a" / "summary.json")["reproduce"]["command"])
    ended = whet(words[1:])
    assert ended.code == 0, ended
    one, two = (Path(run, "refined.parquet").read_bytes() for run in ("-a", "-a-again"))
    assert one == two


# --- what to look at before the labels are used ---------------------------------------------------


@pytest.fixture
def lost(make):
    """A run that loses a rare class, which no text tells."""
    rng = np.random.default_rng(5)
    truth = rng.choice(3, 600, p=[0.5, 0.44, 0.06])
    table = corpus(truth, ("money", "sport", "spam"), 100)
    table["text"] = make_texts(np.where(truth == 2, rng.integers(0, 2, 600), truth))
    table["llm"] = [t if t == "spam" else said for t, said in zip(
        table["truth"], table["llm"], strict=True
    )]  # fmt: skip
    return make("lost", table, "--method", "pn", "--guard", "off")


def test_class_of_which_fewer_rows_are_found_is_warned_of_under_the_answer(lost):
    summary = summarise(lost)
    names = summary["confusion"]["classes"]
    before, after = (np.array(summary["confusion"][when]) for when in ("before", "after"))
    k, n = names.index("spam"), before[names.index("spam")].sum()
    was, now = before[k, k], after[k, k]
    assert was == n > now + 1
    said = f"spam: found {was} of {n} gold rows before, {now} of {n} after"
    warnings = summary["answer"]["warnings"]
    assert warnings[-1] == said
    assert any("labels were 'spam' and" in warning for warning in warnings)
    page = render(summary)
    assert page.index('<h2 id="answer">') < page.index(said) < page.index("points")
    others = [name for name in names if name != "spam"]
    assert not any(w.startswith(f"{name}: found") for w in warnings for name in others)


def test_run_of_an_earlier_whet_is_warned_of_from_its_rows(lost):
    manifest = read_json(lost / "run.json")
    counts = manifest["rows"]["by_class"][manifest["classes"].index("spam")]
    del manifest["warnings"]
    said = f"spam: {counts['annotator']} labels before, {counts['refined']} after"
    assert summarise(lost, manifest)["answer"]["warnings"][0] == said


def test_warnings_are_few_and_short(lost):
    manifest = read_json(lost / "run.json") | {"warnings": ["x" * 10_000] * 50}
    warnings = summarise(lost, manifest)["answer"]["warnings"]
    assert len(warnings) == MOST_WARNINGS
    assert len(warnings[0]) == MOST_REASON
    assert warnings[-1].startswith("40 more warnings")


# --- numbers that add up, and those that do not ---------------------------------------------------


def test_what_is_predicted_stands_apart_and_adds_up(make):
    truth = np.random.default_rng(3).integers(0, 2, 400)
    table = corpus(truth, ("money", "sport"), 80)
    table["llm"] = [("money", "sport")[y] for y in flip(truth, 0.7)]
    summary = summarise(make("answered", table))
    found = {e["name"]: e for e in summary["answer"]["estimates"]}
    predicted = [name for name, e in found.items() if e["basis"] == "predicted"]
    assert predicted == ["gain", "annotator, all rows", "refined"]
    total = found["annotator, all rows"]["value"] + found["gain"]["value"]
    assert total == pytest.approx(found["refined"]["value"], abs=0.01)
    page = render(summary)
    places = [page.index(said) for said in (
        "predicted for all rows, corrected", f"{found['annotator, all rows']['value']:.3f} [",
        "counted on the gold rows<", "What is predicted adds up",
    )]  # fmt: skip
    assert places == sorted(places)


def test_runs_without_the_predicted_accuracy_claim_no_sum(make, plain):
    manifest = read_json(plain / "run.json")
    del manifest["estimate"]["annotator, all rows"]
    page = render(summarise(plain, manifest))
    assert "What is predicted and what is counted need not add up." in page
    counted = summarise(make("silr", PLAIN, "--method", "silr", "--rounds", "2"))
    assert {e["basis"] for e in counted["answer"]["estimates"]} == {"counted"}
    assert "predicted for all rows" not in render(counted)


def test_theta_is_said_to_be_drawn_to_the_middle_where_it_is(make, plain):
    assert "the mean of a Dirichlet posterior" in render(summarise(plain))
    table = corpus(TWO, (0, 1), 80)
    table["gold"] = table["truth"]
    known = make("oracle", table, "--method", "silr", "--theta", "oracle", "--rounds", "1")
    page = render(summarise(known))
    assert "Theta: the share of the labels of a class" in page
    assert "Dirichlet" not in page


def test_the_same_run_gives_the_same_summary_but_for_its_cost(plain, tmp_path):
    words = ["refine", str(plain.parent / "corpus.parquet"), "--text", "text", "--pseudo", "llm"]
    assert whet([*words, "--gold", "gold", "--out", str(tmp_path / "run")]).code == 0
    one, two = (json.loads((f / "summary.json").read_text()) for f in (plain, tmp_path / "run"))
    assert one.pop("cost").keys() == two.pop("cost").keys()
    commands = [found["reproduce"].pop("command").partition(" --out ")[0] for found in (one, two)]
    assert commands[0] == commands[1]
    assert one == two


# --- folders that cannot be read ------------------------------------------------------------------


def test_damage_is_named(plain, tmp_path):
    import shutil

    for name in ("refined.parquet", "rounds/02/labels.parquet"):
        broken = tmp_path / name.replace("/", "-")
        shutil.copytree(plain, broken)
        (broken / name).write_bytes(b"PAR1 and no more")
        with pytest.raises(WhetError, match=r"is damaged \(.*restore it"):
            summarise(broken)
        (broken / name).unlink()
        with pytest.raises(WhetError, match="is damaged"):
            summarise(broken)


def test_what_is_no_finished_refinement_is_refused(tmp_path):
    with pytest.raises(WhetError, match="does not exist: name a folder that whet wrote"):
        summarise(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 2, "arms": []}')
    with pytest.raises(WhetError, match="has format 2"):
        summarise(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 1, "arms": []}')
    with pytest.raises(WhetError, match="is damaged"):
        summarise(tmp_path)
