"""The benchmark panel: annotators that err as asked, peers that answer, gains that add up."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import flip, make_texts
from helpers import whet
from whet import WhetError
from whet.bench import cells, panel, report
from whet.bench.annotators import TOLERANCE, flips, weak_teacher
from whet.bench.cells import CellSpec, Simulation
from whet.bench.features import DenseEncoder
from whet.bench.peers import PACKAGES, PEERS
from whet.classify.refiner import LabelRefiner

N = 150


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of data sets: two classes with annotators, three with votes, and other things."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    two, three = rng.integers(0, 2, N), rng.integers(0, 3, N)
    votes = [[int(flip(three, 0.7, 3, seed)[i]) for seed in (1, 2, 3)] for i in range(N)]
    votes[0] = [-1, -1, -1]
    annotators = {f"llm_{name}": flip(two, a, seed=s) for s, (name, a) in enumerate(LLMS.items())}
    annotators["llm_b"][:5] = -1
    save(folder, "two", two, annotators, test=True)
    save(folder, "three", three, {"weak_labels": [json.dumps(row) for row in votes]})
    save(folder, "plain", two, {})
    save(folder, "copied", two, {"llm_a": two})
    (folder / "empty").mkdir()
    (folder / "pairs").mkdir()
    pq.write_table(pa.table({"prompt": ["a"]}), folder / "pairs" / "train.parquet")
    return folder


LLMS = {"a": 0.7, "b": 0.75, "c": 0.65}


def save(folder, name, truth, columns, test=False):
    (folder / name).mkdir()
    table = {"text": make_texts(truth), "label": truth, **columns}
    pq.write_table(pa.table(table), folder / name / "train.parquet")
    if test:
        texts = [f"{text} new" for text in make_texts(truth[:40], seed=5)] + [table["text"][0]]
        labels = np.append(truth[:40], truth[0])
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / name / "test.parquet")


def load(data, dataset, labels):
    cell = cells.load_cell(data, CellSpec(dataset=dataset, labels=labels))
    return cell, DenseEncoder("tfidf", cell.texts, cell.test_texts)


# --- simulated annotators -------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.6, 0.8])
@pytest.mark.parametrize("k", [2, 3])
def test_weak_teacher_hits_its_accuracy_and_is_seeded(accuracy, k):
    truth = np.random.default_rng(0).integers(0, k, 600)
    texts = make_texts(truth)
    codes, confidence = weak_teacher(texts, truth, accuracy, seed=3)
    right = codes == truth
    assert abs(right.mean() - accuracy) <= TOLERANCE
    assert ((confidence >= 1 / k) & (confidence <= 1)).all()
    again = weak_teacher(texts, truth, accuracy, seed=3)
    assert (codes == again[0]).all()
    assert (confidence == again[1]).all()
    assert (codes != weak_teacher(texts, truth, accuracy, seed=4)[0]).any()
    sure = confidence > np.median(confidence)
    assert right[sure].mean() > right[~sure].mean() + 0.05  # the errors depend on the text


def test_flips_hit_their_accuracy_are_seeded_and_uneven():
    truth = np.random.default_rng(0).integers(0, 4, 4000)
    codes = flips(truth, 0.7, seed=1, asymmetry=0.6)
    assert abs((codes == truth).mean() - 0.7) < 1 / 1000
    assert (codes == flips(truth, 0.7, seed=1, asymmetry=0.6)).all()
    assert (codes != flips(truth, 0.7, seed=2, asymmetry=0.6)).any()
    lost = [(codes[truth == c] != c).mean() for c in range(4)]
    assert max(lost) == pytest.approx(4 * min(lost), rel=0.05)  # (1 + .6) / (1 - .6)
    even = flips(truth, 0.7, asymmetry=0.0)
    assert [(even[truth == c] != c).mean() for c in range(4)] == pytest.approx([0.3] * 4, abs=0.001)
    worst = int(np.argmax(lost))
    went = np.bincount(codes[(truth == worst) & (codes != worst)], minlength=4)
    assert sorted(went / went.sum()) == pytest.approx([0, 1 / 7, 2 / 7, 4 / 7], abs=0.07)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda y: weak_teacher(make_texts(y), y, 0.5), "more than 1/2"),
        (lambda y: weak_teacher(make_texts(y), y, 1.0), "fewer than all"),
        (lambda y: weak_teacher(make_texts(y), y[::-1].copy(), 0.99), "at most on these texts"),
        (lambda y: weak_teacher([str(i) for i in range(len(y))], y, 0.7), "no word occurs"),
        (lambda y: flips(y, 0.2, asymmetry=1.0), "raise the accuracy or lower the asymmetry"),
        (lambda y: flips(y, 1.2), "choose a share"),
        (lambda y: flips(y, 0.8, asymmetry=2.0), "from 0 to 1"),
        (lambda y: flips(y * 0, 0.8), "1 classes"),
    ],
)
def test_impossible_annotators_are_refused(call, sentence):
    truth = np.random.default_rng(0).integers(0, 2, 200)
    with pytest.raises(WhetError, match=sentence):
        call(truth)


# --- cells ----------------------------------------------------------------------------------------


def test_every_set_is_found_and_the_others_are_named(data):
    specs, skipped = cells.find_specs(data)
    assert [spec.name for spec in specs] == [
        "plain weak_teacher .70",
        "three weak_majority",
        "two a",
        "two b",
        "two c",
    ]
    assert [sentence.split(" is skipped: ")[0] for sentence in skipped] == [
        "copied",
        "empty",
        "pairs",
    ]


def test_a_cell_holds_votes_and_new_texts(data):
    several = cells.load_cell(data, CellSpec(dataset="two", labels=["llm_a", "llm_b"]), rows=100)
    assert (several.votes.shape, several.n_classes, several.kind) == ((100, 2), 2, "real")
    assert set(np.unique(several.votes)) == {-1, 0, 1}
    assert len(several.test_texts) == 40  # the one that occurs in train.parquet is left out
    same_rows = cells.load_cell(data, CellSpec(dataset="two", labels="llm_c"), rows=100)
    assert same_rows.texts == several.texts
    weak = cells.load_cell(data, CellSpec(dataset="three", labels="weak_majority"))
    assert weak.votes[0, 0] == -1
    assert (weak.n_classes, weak.test_texts) == (3, [])
    simulated = {"kind": "weak_teacher", "accuracy": 0.7}
    teacher = cells.load_cell(data, CellSpec(dataset="plain", simulate=Simulation(**simulated)))
    assert teacher.confidence.shape == teacher.votes.shape == (N, 1)
    assert teacher.kind == "simulated"


def test_panel_file_is_read():
    file = cells.Path(__file__).parents[1] / "benchmarks" / "panel.yaml"
    specs = cells.read_specs(file)
    counts = {}
    for spec in specs:
        kind = "simulated" if spec.simulate else "several" if len(spec.columns) > 1 else "real"
        counts[spec.part, kind] = counts.get((spec.part, kind), 0) + 1
    assert counts == {
        ("tuning", "real"): 9,
        ("tuning", "simulated"): 4,
        ("tuning", "several"): 1,
        ("held-out", "real"): 13,
        ("held-out", "simulated"): 9,
        ("held-out", "several"): 2,
    }


def test_panel_cells_load_from_real_data(dataset):
    folder = dataset("fpb_llm")
    labels = ["llm_chatgpt", "llm_h2o", "llm_falcon_7b"]
    cell = cells.load_cell(folder.parent, CellSpec(dataset="fpb_llm", labels=labels), rows=300)
    assert (cell.votes.shape, cell.n_classes) == ((300, 3), 3)
    assert 0.8 < (cell.votes[:, 0] == cell.truth).mean() < 1


# --- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PEERS)
def test_every_peer_answers_for_every_row(data, method):
    if method in PACKAGES:
        pytest.importorskip(PACKAGES[method])
    cell, encoder = load(data, "two", list(map("llm_{}".format, LLMS)))
    gold = panel.draw_gold(cell, 30, seed=0)
    votes, features = cell.votes.copy(), encoder.features.copy()
    refined = PEERS[method](encoder.features, votes, gold, cell.n_classes, 0)
    assert (refined.shape, refined.dtype) == ((N,), np.int64)
    assert set(np.unique(refined)) <= {0, 1}
    assert (refined == cell.truth).mean() > 0.5
    assert (votes == cell.votes).all()
    assert (features == encoder.features).all()
    again = PEERS[method](encoder.features, cell.votes.copy(), gold, cell.n_classes, 0)
    assert (refined == again).all()


@pytest.mark.parametrize("method", PEERS)
def test_every_peer_takes_one_annotator_of_three_classes_or_says_why_not(data, method):
    if method in PACKAGES:
        pytest.importorskip(PACKAGES[method])
    cell, encoder = load(data, "three", "weak_majority")
    row = panel.run_method(cell, encoder, method, 30, 0)
    if method in ("dawid-skene", "snorkel"):
        assert "compares annotators and needs at least" in row["refused"]
    else:
        assert row["refused"] is None
        assert 0 <= row["refined_accuracy"] <= 1


@pytest.mark.parametrize("method", ["gold-only", "self-training", "silr"])
def test_methods_that_need_gold_refuse_to_go_without(data, method):
    cell, encoder = load(data, "two", "llm_a")
    row = panel.run_method(cell, encoder, method, 0, 0)
    assert row["refined_accuracy"] is None
    assert "no gold labels" in row["refused"] or "there are none" in row["refused"]


@pytest.mark.parametrize("method", panel.OWN)
def test_every_own_method_runs(data, method):
    simulated = Simulation(kind="weak_teacher", accuracy=0.7)
    cell = cells.load_cell(data, CellSpec(dataset="plain", simulate=simulated))
    encoder = DenseEncoder("tfidf", cell.texts)
    row = panel.run_method(cell, encoder, method, 30, 0)
    assert row["refused"] is None
    assert row["gain"] == row["refined_accuracy"] - row["annotator_accuracy"]
    if "theta" not in panel.OWN[method]:
        assert row["annotator_low"] <= row["annotator_value"] <= row["annotator_high"]
        assert row["refined_true"] == row["refined_accuracy"]


def test_the_default_method_sees_every_annotator(data):
    cell, encoder = load(data, "two", list(map("llm_{}".format, LLMS)))
    row = panel.run_method(cell, encoder, "tsp-off", 40, 0)
    assert (row["refused"], row["n_annotators"]) == (None, 3)
    assert row["gain"] > -0.05


def test_help_names_every_method():
    words = set(
        whet(["bench", "classify", "--help"]).out.replace(",", " ").replace(".", " ").split()
    )
    assert set(panel.METHODS) <= words


# --- the panel ------------------------------------------------------------------------------------


def test_gain_is_what_a_hand_calculation_gives(data):
    cell, encoder = load(data, "two", "llm_b")
    row = panel.run_method(cell, encoder, "silr", 40, 7)
    known = panel.draw_gold(cell, 40, 7)
    judged = known < 0
    labels = [None if v < 0 else int(v) for v in cell.votes[:, 0]]
    gold = [None if v < 0 else int(v) for v in known]
    refiner = LabelRefiner(
        "silr", encoder=encoder, rounds=5, guard="off", gold_budget=40, random_state=7
    )
    with warnings.catch_warnings(action="ignore"):
        refined = refiner.fit_refine(cell.texts, labels, gold)
    mode = int(np.bincount(cell.votes[cell.votes[:, 0] >= 0, 0]).argmax())
    before = [mode if label is None else label for label in labels]
    right = [np.mean(np.array(a)[judged] == cell.truth[judged]) for a in (before, refined)]
    assert judged.sum() == N - 40
    assert row["annotator_accuracy"] == pytest.approx(right[0])
    assert row["refined_accuracy"] == pytest.approx(right[1])
    assert row["gain"] == pytest.approx(right[1] - right[0])
    answered = judged & (cell.votes[:, 0] >= 0)
    assert row["annotator_true"] == pytest.approx((cell.votes[:, 0] == cell.truth)[answered].mean())
    assert row["annotator_value"] == refiner.estimate_["annotator"].value
    assert row["changed"] == pytest.approx((refined != cell.votes[:, 0])[judged].mean())
    new = (refiner.predict(cell.test_texts) == cell.test_truth).mean()
    assert row["test_accuracy"] == pytest.approx(new)


def test_all_methods_see_the_same_gold_rows_and_features(data, monkeypatch):
    seen = []

    def spy(features, votes, gold, k, seed):
        seen.append((features.copy(), gold.copy(), seed))
        return votes[:, 0] * 0

    monkeypatch.setitem(panel.PEERS, "majority", spy)
    monkeypatch.setitem(panel.PEERS, "knn", spy)
    cell, encoder = load(data, "two", "llm_a")
    for method in ("majority", "knn"):
        panel.run_method(cell, encoder, method, 20, 3)
    for first, second in zip(*seen, strict=True):
        assert np.array_equal(first, second)
    assert (seen[0][1] >= 0).sum() == 20
    larger = panel.draw_gold(cell, 40, 3)
    assert (larger[seen[0][1] >= 0] >= 0).all()
    assert not np.array_equal(panel.draw_gold(cell, 20, 4), seen[0][1])


def test_a_method_that_fails_does_not_end_the_panel(data, monkeypatch):
    monkeypatch.setitem(panel.PEERS, "knn", lambda *_: 1 / 0)
    cell, encoder = load(data, "two", "llm_a")
    refused = panel.run_method(cell, encoder, "knn", 20, 0)["refused"]
    assert refused == "failed: ZeroDivisionError: division by zero"


CELLS = """
cells:
  - {part: tuning, dataset: two, labels: llm_b}
  - {part: held-out, dataset: plain, simulate: {kind: flips, accuracy: 0.75}}
  - {part: held-out, dataset: two, labels: [llm_a, llm_b, llm_c]}
"""


@pytest.fixture
def bench(data, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "cells.yaml").write_text(CELLS)

    def run(*more, **changed):
        flags = {
            "data": data,
            "cells": tmp_path / "cells.yaml",
            "methods": "pn,silr-1,majority,pn-oof",
            "gold": "0,20",
            "seeds": 2,
            "out": tmp_path / "out",
        } | changed
        said = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        return whet(["bench", "classify", *said, *more])

    return run


def without_time(folder):
    table = pq.read_table(folder / "runs.parquet").drop_columns(["seconds"])
    return table.to_pylist()


def test_a_killed_panel_is_resumed_to_the_same_table(bench, tmp_path):
    ended = bench()
    assert (ended.code, ended.err.split("\n")[-2]) == (0, "whet: finishing 48/48 runs")
    out = tmp_path / "out"
    names = {"settings.json", "runs.jsonl", "runs.parquet", "table.md", "gain.svg", "run.json"}
    assert {path.name for path in out.iterdir()} == names
    runs = without_time(out)
    assert len(runs) == 3 * 4 * 2 * 2
    assert {row["gain"] for row in runs if row["method"] == "majority"} == {0.0}
    assert all((row["refused"] is None) == (row["gain"] is not None) for row in runs)
    silr_without_gold = [r for r in runs if (r["method"], r["gold"]) == ("silr-1", 0)]
    assert all("no gold labels" in row["refused"] for row in silr_without_gold)
    text = (out / "table.md").read_text()
    assert str(tmp_path) not in text + (out / "settings.json").read_text()
    for title in ("Tuning, binary: 1 cell", "Held-out, several annotators", "hold the truth"):
        assert title in text

    content = (out / "runs.jsonl").read_bytes()
    torn = content[: len(content) // 2 + 3]
    assert not torn.endswith(b"\n")
    (out / "runs.jsonl").write_bytes(torn)
    for name in ("run.json", "runs.parquet", "table.md", "gain.svg"):
        (out / name).unlink()
    assert "add --resume" in bench().err
    ended = bench("--resume")
    assert ended.code == 0
    first_progress = ended.err.splitlines()[0]
    assert first_progress == f"whet: finishing {len(torn.splitlines()) - 1}/48 runs"
    assert without_time(out) == runs
    assert len((out / "runs.jsonl").read_text().splitlines()) == 48
    assert bench("--resume").code == 0  # a finished panel shows its tables again

    (out / "runs.jsonl").write_bytes(b"{broken\n" + content)
    assert "line 1 of" in bench("--resume").err
    assert "was started with seeds = 2, not 3" in bench("--resume", seeds=3).err


def test_processes_give_the_same_runs(bench, tmp_path):
    flags = {"methods": "pn,pn-oof", "gold": "20", "seeds": 1}
    assert bench(**flags, out=tmp_path / "one").code == 0
    assert bench(**flags, out=tmp_path / "two", jobs=2).code == 0
    assert without_time(tmp_path / "one") == without_time(tmp_path / "two")


def test_without_a_cells_file_every_set_is_run(bench, tmp_path):
    ended = bench(cells=None, methods="majority,knn", gold="20", seeds=1)
    assert ended.code == 0
    assert "pairs is skipped: train.parquet lacks the column text or label" in ended.out
    assert "multiclass: 1 cell" in ended.out
    figure = (tmp_path / "out" / "gain.svg").read_text()
    assert "<svg" in figure
    assert "knn" in figure


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"methods": "silrr"}, "unknown method 'silrr' (did you mean 'silr'?)"),
        ({"methods": "pn,pn"}, "--methods = ['pn', 'pn']: give each value once"),
        ({"data": "nowhere"}, "the data folder nowhere does not exist"),
        ({"cells": "nowhere.yaml"}, "the cells file nowhere.yaml is not readable YAML"),
        ({"gold": "500"}, "--gold = 500: the cell 'two b' has 150 rows"),
        ({"gold": "many"}, "--gold = 'many': give whole numbers"),
        ({"gold": "-1"}, "--gold = -1: give numbers of rows"),
        ({"seeds": 0}, "--seeds = 0: give at least 1"),
        ({"rows": 5}, "--rows = 5: give at least 20"),
        ({"jobs": 0}, "--jobs = 0: give a number of processes"),
        ({"encoder": "tfdf"}, "unknown encoder 'tfdf' (did you mean 'tfidf'?)"),
    ],
)
def test_bad_input_is_one_sentence(bench, tmp_path, changed, sentence):
    ended = bench(**changed)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err
    assert ended.err.splitlines()[-1].startswith("whet: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("cells: [", "is not readable YAML"),
        ("a: 1", "holds no list 'cells'"),
        ("cells: []", "holds no list 'cells'"),
        ("cells: [two]", "cell 1 of the cells file"),
        ("cells: [{dataset: two}]", "needs either labels or simulate"),
        ("cells: [{dataset: two, label: llm_a}]", "(did you mean 'labels'?)"),
        ("cells: [{dataset: tow, labels: llm_a}]", "(did you mean 'two'?)"),
        ("cells: [{dataset: two, labels: llm_z}]", "has no column 'llm_z' (did you mean"),
        ("cells: [{dataset: two, labels: llm_a, part: test}]", "has part = 'test'"),
        (
            "cells: [{dataset: two, simulate: {kind: flips, accuracy: 2}}]",
            "has simulate.accuracy = 2",
        ),
        (
            "cells: [{dataset: two, labels: llm_a}, {dataset: two, labels: [llm_a]}]",
            "has the cell 'two a' twice",
        ),
        (
            "cells: [{dataset: two, simulate: {kind: weak_teacher, accuracy: 0.999}}]",
            "the cell 'two weak_teacher 1.00' cannot be simulated",
        ),
    ],
)
def test_a_malformed_cells_file_is_one_sentence(bench, tmp_path, content, sentence):
    (tmp_path / "cells.yaml").write_text(content)
    ended = bench()
    assert ended.code == 2
    assert sentence in ended.err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_before_the_work(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(panel.PACKAGES, "pn", "not_there")
    ended = bench()
    assert ended.code == 2
    assert "the method 'pn' needs not_there, which is not installed: pip install" in ended.err
    assert not (tmp_path / "out").exists()


# --- the report -----------------------------------------------------------------------------------


def run_of(cell, method, seed, gain, **more):
    row = dict.fromkeys(panel.SCHEMA.names)
    return row | {
        "cell": cell,
        "part": "tuning",
        "kind": "real",
        "n_classes": 2,
        "n_annotators": 1,
        "method": method,
        "gold": 50,
        "seed": seed,
        "annotator_accuracy": 0.8,
        "gain": gain,
        "seconds": 1.0,
        **more,
    }


def test_the_report_on_known_numbers():
    gains = {("x", 0): 0.1, ("x", 1): -0.02, ("y", 0): 0.04, ("y", 1): 0.0}
    rows = [run_of(c, "first", s, g) for (c, s), g in gains.items()]
    rows += [run_of(c, "second", s, g - 0.01) for (c, s), g in gains.items()]
    rows += [run_of(c, "never", s, None, refused="no") for c, s in gains]
    first, second, never = report.lines(rows)
    mean, low, high = first.gain
    assert mean == pytest.approx(0.03)
    assert -0.02 <= low < mean < high <= 0.1
    # A resampled cell x has gain .1, .04 or -.02, a cell y .04, .02 or 0, in the ratio 1 : 2 : 1;
    # a panel of two cells has less than -.01 or more than .07 with probability under 2.5 %.
    assert (low, high) == pytest.approx((-0.01, 0.07), abs=0.001)
    assert (first.harm, first.worst, first.refused) == (0.25, -0.02, 0)
    assert first.error_reduction == pytest.approx(0.03 / 0.2)
    assert first.difference is None
    assert second.difference == pytest.approx((-0.01, -0.01, -0.01))  # paired: no width at all
    assert (never.gain, never.refused) == (None, 4)
    assert report.cells_of(second)[3:7] == ("-1.0 [-1.0, -1.0]", "-10%", "25%", "-3.0")
    same = report.lines([run_of(c, "a", s, 0.05) for c, s in gains])[0]
    assert same.gain == pytest.approx((0.05, 0.05, 0.05))


def test_the_bootstrap_has_the_width_of_theory():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.05, 0.02, 40)
    rows = [run_of(f"cell {i:02d}", "a", 0, float(g)) for i, g in enumerate(gains)]
    mean, low, high = report.lines(rows)[0].gain
    half = 1.96 * gains.std() / np.sqrt(40)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.15)


def test_coverage_counts_intervals_that_hold_the_truth():
    ends = [(0.6, 0.8, 0.7), (0.6, 0.8, 0.61), (0.6, 0.8, 0.9), (0.6, 0.8, 0.79)]
    rows = [
        run_of("x", "a", seed, 0.0)
        | {"refined_value": 0.7, "refined_low": lo, "refined_high": hi, "refined_true": true}
        for seed, (lo, hi, true) in enumerate(ends)
    ]
    (line,) = report.coverage(rows)
    assert (line["what"], line["runs"]) == ("refined", 4)
    assert (line["at95"], line["at90"]) == (0.75, 0.25)
    assert line["error"] == pytest.approx((0 + 0.09 + 0.2 + 0.09) / 4)
