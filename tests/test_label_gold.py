"""What labels become: the table with its columns and weights, estimates, the next command."""

import io
import shlex

import numpy as np
import pyarrow as pa
import pytest

from conftest import flip, make_texts
from helpers import whet
from whet.classify.priors import count_pairs, ratios_from_counts, set_shares
from whet.errors import WhetError, WhetWarning
from whet.estimates import share
from whet.review.answers import Event
from whet.review.labelling import open_labels
from whet.tables import read_table

TRUTH = np.random.default_rng(0).integers(0, 2, 200)
NAMES = np.array(["ham", "spam"])
CORPUS = {
    "text": make_texts(TRUTH),
    "llm": [None if i % 20 == 0 else str(x) for i, x in enumerate(NAMES[flip(TRUTH, 0.75)])],
}


def answer_all(session, who="me", truth=None):
    labels = NAMES[TRUTH].tolist() if truth is None else truth
    rows = [item.row for item in session.items]
    session.add([Event(who, row, "answer", labels[row], 1.0, "") for row in rows])


def opened(folder, table=CORPUS, **settings):
    given = {"text": "text", "pseudo": "llm", "out": folder / "gold.parquet"} | settings
    return open_labels(table, **given)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "tsv"])
def test_the_table_is_the_input_and_the_labels(tmp_path, suffix):
    with opened(tmp_path, out=tmp_path / f"gold.{suffix}") as session:
        rows = []
        while (item := session.next("me")) is not None:
            rows.append(item.row)
            unsure = len(rows) in (7, 8)
            note = "hard" if unsure else ""
            session.answer("me", item.row, None if unsure else "ham", 1.0, note)
        written = read_table(session.write()).to_pylist()
    assert [row["text"] for row in written] == CORPUS["text"]
    assert [row["llm"] or None for row in written] == CORPUS["llm"]
    labelled = set(rows) - {rows[6], rows[7]}
    assert {i for i, row in enumerate(written) if row["gold"]} == labelled
    assert {i for i, row in enumerate(written) if row["gold_note"]} == {rows[6], rows[7]}
    assert {i for i, row in enumerate(written) if row["gold_weight"] is not None} == labelled
    assert not any(row["checked"] for row in written)
    # Each stratum's weights sum to its rows, abstentions are one.
    for label in ("ham", "spam", None):
        stratum = [i for i, given in enumerate(CORPUS["llm"]) if given == label]
        weights = [written[i]["gold_weight"] for i in stratum if i in labelled]
        assert sum(weights) == pytest.approx(len(stratum))
        assert len(set(weights)) == 1


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0, 1], (), [0, 1]),
        ([False, True], (), [False, True]),
        ([3, 7], ("7", "3", "9"), [7, 3, 9]),
        (["a", "b"], ("b", "a"), ["b", "a"]),
    ],
)
def test_labels_have_the_type_of_the_pseudo_labels(tmp_path, labels, classes, said):
    table = {"text": [f"t{i}" for i in range(20)], "llm": [labels[i % 2] for i in range(20)]}
    with opened(tmp_path, table, classes=classes, n=6) as session:
        assert session.classes == [str(label) for label in said]
        answer_all(session, truth=[session.classes[-1]] * 20)
        gold = read_table(session.write())["gold"].to_pylist()
    assert {type(label) for label in gold if label is not None} == {type(labels[0])}
    assert {label for label in gold if label is not None} == {said[-1]}


def test_unsettled_disagreements_stay_empty(tmp_path):
    with opened(tmp_path, n=3) as session:
        a, b, c = (item.row for item in session.items)
        for row in (a, b, c):
            session.answer("ann", row, "ham", 1.0, note="first")
        session.answer("bob", a, "spam", 1.0)
        session.answer("bob", b, "spam", 1.0)
        session.settle(b, "spam", "bob")
        written = read_table(session.write())
        gold = written["gold"].to_pylist()
        assert (gold[a], gold[b], gold[c]) == (None, "spam", "ham")
        assert written["gold_note"][a].as_py() == "ann: first"
        assert written["gold_note"][c].as_py() == "first"


def test_the_panel_is_what_the_sample_says(tmp_path):
    with opened(tmp_path, n=60) as session:
        answer_all(session)
        found = session.panel()
        rows = np.array([item.row for item in session.items])
    codes = np.array([-1 if x is None else int(x == "spam") for x in CORPUS["llm"]])
    said = codes[rows] >= 0
    right = (codes == TRUTH)[rows][said]
    expected = ratios_from_counts(count_pairs(codes[rows], TRUTH[rows], 2), set_shares(codes, 2))
    assert found["rows"] == 60
    assert found["accuracy"]["n"] == int(said.sum())
    assert found["accuracy"]["value"] == pytest.approx(share(right).value, abs=0.01)
    assert found["accuracy"]["low"] == pytest.approx(share(right).low, abs=0.01)
    for k, label in enumerate(found["labels"]):
        assert label["right"]["value"] == pytest.approx(expected.theta[k, k])
        assert label["right"]["n"] == expected.n[k]
    assert sum(c["share"]["value"] for c in found["classes"]) == pytest.approx(1)
    widths = [more["width"] for more in found["more"]]
    assert [more["n"] for more in found["more"]] == [50, 100, 200]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(0.5), abs=0.1)


def test_the_panel_holds_the_truth_in_most_samples(tmp_path):
    truth = float(np.mean([x == y for x, y in zip(CORPUS["llm"], NAMES[TRUTH], strict=True) if x]))
    covered, errors = 0, []
    for seed in range(40):
        with opened(tmp_path, out=tmp_path / f"{seed}.csv", seed=seed, n=40) as session:
            answer_all(session)
            found = session.panel()["accuracy"]
        errors.append(found["value"] - truth)
        covered += found["low"] <= truth <= found["high"]
    assert covered >= 36
    assert abs(np.mean(errors)) < 0.04


def test_no_single_answer_moves_the_panel_while_labels_are_hidden(tmp_path):
    def counts(session, who="me"):
        seen = []
        while (item := session.next(who)) is not None:
            session.answer(who, item.row, "ham", 1.0)
            seen.append(session.panel(who)["rows"])
        return seen

    with opened(tmp_path, n=12) as session:
        assert counts(session) == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 12]
        assert counts(session, "bob") == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 12]
    with opened(tmp_path, n=3, show_pseudo=True, out=tmp_path / "b.csv") as session:
        assert counts(session) == [1, 2, 3]


def test_a_skipped_row_that_comes_later_moves_no_number_alone(tmp_path):
    with opened(tmp_path, n=12) as session:
        session.skip("me", session.items[0].row)
        for item in session.items[1:]:
            session.answer("me", item.row, "ham", 1.0)
        before = session.panel("me")
        session.undo("me")
        session.answer("me", session.items[0].row, "spam", 1.0)  # 11 again, the first one new
        assert before["rows"] == 10
        assert session.panel("me") == before
        assert session.panel()["rows"] == 11  # at an early end all that is known counts


def test_what_others_answered_enters_when_ones_own_rows_are_done(tmp_path):
    with opened(tmp_path, n=10) as session:
        rows = [item.row for item in session.items]
        for row in rows:
            session.answer("ann", row, "ham", 1.0)
        assert session.done("ann")
        assert not session.done("bob")
        for place, row in enumerate(rows):
            alone = session.panel("bob")
            assert (alone["rows"], alone["unsettled"]) == (min(place, 5 if place > 4 else 0), 0)
            if place > 4:  # bob said spam to each
                assert [c["share"]["value"] for c in alone["classes"]] == [0, 1]
            session.answer("bob", row, "spam" if place < 8 else None, 1.0)
        assert session.done("bob")  # unsure counts
        found = session.panel("bob")
        assert found == session.panel() == session.panel("ann")
        assert (found["rows"], found["unsettled"], found["unsure"]) == (2, 8, 0)
        session.undo("bob")
        assert (session.done("bob"), session.panel("bob")["unsettled"]) == (False, 0)


def test_classes_that_differ_in_case_or_spaces_are_warned_about(tmp_path):
    table = {"text": ["a", "b", "c", "d"], "llm": ["Spam", "spam", "ham", "ham"]}
    with (
        pytest.warns(WhetWarning, match="'Spam' and 'spam' differ only in case"),
        opened(tmp_path, table),
    ):
        pass


def test_without_an_annotator_there_are_class_shares(tmp_path):
    with opened(tmp_path, pseudo=None, classes=("ham", "spam"), n=30) as session:
        assert session.panel()["rows"] == 0
        assert session.panel()["more"] == []
        answer_all(session)
        found = session.panel()
        rows = np.array([item.row for item in session.items])
        expected = share(TRUTH[rows] == 1)
        assert found["classes"][1]["share"]["value"] == pytest.approx(expected.value)
        assert found["classes"][1]["share"]["high"] == pytest.approx(expected.high)
        assert (found["accuracy"], found["labels"]) == (None, [])
        assert session.next("me") is None
        weights = read_table(session.write())["gold_weight"].drop_null().to_pylist()
        assert weights == [pytest.approx(200 / 30)] * 30


BAD = [
    ({"text": "txt"}, "no column 'txt' .did you mean 'text'"),
    ({"pseudo": None}, "name them with --classes"),
    ({"pseudo": "text"}, "--text and --pseudo are both"),
    ({"classes": ("ham",)}, "at least two classes"),
    ({"classes": ("ham", "ham")}, "names 'ham' twice"),
    ({"classes": ("ham", " ")}, "empty name"),
    ({"classes": ("ham", "eggs")}, "a pseudo-label that --classes does not name, such as 'spam'"),
    ({"n": 0}, "n = 0"),
    ({"strategy": "disagre"}, "did you mean 'disagree'"),
    ({"strategy": "disagree"}, "no column 'suspicion'"),
    ({"strategy": "unsure"}, "no column 'refined_prob'"),
    (
        {"table": CORPUS | {"suspicion": [0] * 200, "refined_label": ["ham"] * 200}},
        "choose --strategy disagree .* or --strategy unsure",
    ),
    ({"table": CORPUS | {"suspicion": ["x"] * 200}, "strategy": "disagree"}, "holds no numbers"),
    ({"table": {"text": [], "llm": []}}, "has no rows"),
    ({"table": CORPUS | {"gold": [None] * 200}}, "already has the column 'gold'"),
    ({"table": CORPUS | {"llm": [1.5] * 200}}, "pseudo-label 1.5"),
    ({"table": CORPUS | {"llm": ["ham"] * 200}}, "every pseudo-label is 'ham'"),
    ({"table": CORPUS | {"text": [b"\xff"] * 200}}, "not UTF-8 text"),
]


@pytest.mark.parametrize(("settings", "said"), BAD)
def test_what_cannot_be_labelled_is_refused_before_anything_is_written(tmp_path, settings, said):
    with pytest.raises(WhetError, match=said):
        opened(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_texts_of_every_kind_are_shown_as_they_are(tmp_path):
    texts = ["<b>x</b>", "", None, "\x00\x1b[2J", "شكرا\u202e", "字" * 1_000_000, "a,b\nc\"d'"]
    table = {"text": texts, "llm": ["a", "b"] * 3 + ["a"]}
    with opened(tmp_path, table, out=tmp_path / "gold.csv") as session:
        shown = {item.row: session.item(item.row).shown["text"] for item in session.items}
        assert [shown[row] for row in range(7)] == [text or "" for text in texts]
        answer_all(session, truth=["a"] * 7)
        assert read_table(session.write())["gold"].to_pylist() == ["a"] * 7
    numbers = {"text": [1, 2, 3, 4], "llm": ["a", "b", "a", "b"]}
    with opened(tmp_path, numbers, out=tmp_path / "numbers.csv") as session:
        assert session.item(2).shown == {"text": "3"}


def test_from_labels_to_refined_labels_to_doubtful_rows(tmp_path):
    source, out = tmp_path / "corpus.parquet", tmp_path / "gold.parquet"
    pa.parquet.write_table(pa.table(CORPUS), source)
    with opened(tmp_path, str(source)) as session:
        answer_all(session)
        session.write()
        command = shlex.split(session.next_step())
    run = tmp_path / "run"
    assert command[:2] == ["whet", "refine"]
    fast = ["--method", "pn", "--rounds", "1"]
    ended = whet([*command[1:-1], str(run), *fast])
    assert ended.code == 0, ended.err
    suspicion = read_table(run / "refined.parquet")["suspicion"].to_pylist()
    before = read_table(out)
    # The session of before goes on with the most doubtful rows, none of which has a label.
    with open_labels(run, out=out, strategy="disagree", n=4) as session:
        picked = [item.row for item in session.items if not item.random]
        assert len(session.items) == 54
        assert [suspicion[row] for row in picked] == sorted(suspicion, reverse=True)[:4]
        panel = session.panel()
        answer_all(session)
        assert session.panel() == panel | {"checked": 4}  # they enter no estimate
        written = read_table(session.write())
        command = shlex.split(session.next_step())
    assert written.column_names == [*CORPUS, "gold", "gold_weight", "checked", "gold_note"]
    assert written.drop_columns(["checked"]).equals(before.drop_columns(["checked"]))
    checked = written["checked"].to_pylist()
    assert [row for row in range(200) if checked[row]] == sorted(picked)
    assert command[-4:-2] == ["--checked", "checked"]
    assert whet([*command[1:-1], str(tmp_path / "again"), *fast]).code == 0
    # Asked again for as many, there is nothing new; for more, there is.
    with open_labels(run / "refined.parquet", out=out, strategy="disagree", n=4) as session:
        assert session.next("me") is None
    with open_labels(run, out=out, strategy="disagree", n=5) as session:
        assert len(session.items) == 55
    # A row that was picked first and drawn later is a row of the random sample.
    with opened(tmp_path, str(source), n=200) as session:
        assert len(session.items) == 200
        assert all(item.random for item in session.items)


def test_doubtful_rows_beside_gold_labels_of_ones_own(tmp_path):
    refined = pa.table(
        CORPUS
        | {
            "gold": [x if i < 3 else None for i, x in enumerate(NAMES[TRUTH].tolist())],
            "checked": [None] * 4 + ["ham"] + [None] * 195,
            "pseudo_label": CORPUS["llm"],
            "refined_label": NAMES[TRUTH].tolist(),
            "suspicion": [1.0] * 8 + [0.0] * 192,
        }
    )
    with opened(tmp_path, refined, strategy="disagree") as session:
        assert [item.row for item in session.items] == [3, 5, 6, 7]
        answer_all(session, truth=["spam"] * 200)
        written = read_table(session.write())
    assert written["gold"].to_pylist() == refined["gold"].to_pylist()
    assert written["checked"].to_pylist()[:9] == [*[None] * 3, "spam", "ham", *["spam"] * 3, None]
    assert not {"pseudo_label", "refined_label", "suspicion"} & set(written.column_names)
    # A random sample can be drawn beside them later, and keeps to its pseudo-labels from then on.
    with opened(tmp_path, n=20) as session:
        assert {3, 5, 6, 7} <= {item.row for item in session.items}
        assert sum(item.random for item in session.items) == 20
    with pytest.raises(WhetError, match="other pseudo-labels"):
        opened(tmp_path, CORPUS | {"llm": NAMES[TRUTH].tolist()}, n=20)
    done = refined.set_column(2, "gold", pa.array(NAMES[TRUTH].tolist()))
    with pytest.raises(WhetError, match="every doubtful one has a label"):
        opened(tmp_path, done, strategy="disagree", out=tmp_path / "other.csv")


def test_the_least_sure_refined_labels_without_a_label(tmp_path):
    sure = [0.4 + (i * 7 % 60) / 100 for i in range(200)]
    refined = pa.table(
        CORPUS
        | {
            "gold": ["ham" if i % 3 == 0 else None for i in range(200)],
            "checked": ["ham" if i % 3 == 1 and i < 90 else None for i in range(200)],
            "pseudo_label": CORPUS["llm"],
            "refined_label": NAMES[TRUTH].tolist(),
            "refined_prob": [None if i == 2 else x for i, x in enumerate(sure)],
            "suspicion": [0.0] * 200,
        }
    )
    free = [i for i in range(200) if i % 3 and not (i % 3 == 1 and i < 90) and i != 2]
    with opened(tmp_path, refined, strategy="unsure", n=7) as session:
        assert not any(item.random for item in session.items)
        picked = [item.row for item in session.items]
        assert set(picked) <= set(free)
        assert [sure[row] for row in picked] == sorted(sure[row] for row in free)[:7]


@pytest.mark.parametrize("strategy", ["disagree", "unsure"])
def test_a_run_folder_names_its_columns_one_by_one(tmp_path, monkeypatch, strategy):
    monkeypatch.chdir(tmp_path)
    with opened(tmp_path) as session:
        answer_all(session)
        session.write()
    fast = ["--method", "pn", "--rounds", "1", "--out", "run"]
    common = ["gold.parquet", "--text", "text", "--pseudo", "llm", "--gold", "gold"]
    assert whet(["refine", *common, *fast]).code == 0
    with open_labels("run", text="text", out=tmp_path / "x.csv", strategy=strategy, n=3) as session:
        assert session.classes == ["ham", "spam"]
        assert shlex.split(session.next_step())[5:7] == ["--pseudo", "llm"]
    ended = whet(["label", "run", "--tui"])
    assert ended.code == 2
    assert "run/refined.parquet is refined: choose --strategy disagree" in ended.err
    with pytest.raises(WhetError, match="no column 'lmm'"):
        open_labels("run", pseudo="lmm", out=tmp_path / "y.csv", strategy=strategy)
    # Asked again for as many, the command names the number that asks for more.
    command = ["label", "run", "--strategy", strategy, "--n", "3", "--out", "gold.parquet", "--tui"]
    for lines, said in (("1\n1\n1\n", False), ("q\n", True)):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        ended = whet(command)
        assert ended.code == 0, ended.err
        assert ("--n 23 asks about 20 more" in ended.out) == said


def test_fifty_rows_of_real_messages(tmp_path, dataset):
    table = read_table(dataset("sms_spam") / "train.parquet")
    truth = np.array(table["label"].to_pylist())
    table = table.select(["text"]).append_column("llm", pa.array(NAMES[flip(truth, 0.85)]))
    with opened(tmp_path, table) as session:
        answer_all(session, truth=NAMES[truth].tolist())
        found = session.panel()
        written = read_table(session.write())
    assert sum(weight or 0 for weight in written["gold_weight"].to_pylist()) == pytest.approx(4458)
    assert found["accuracy"]["low"] < 0.85 < found["accuracy"]["high"]
    assert found["classes"][1]["share"]["low"] < truth.mean() < found["classes"][1]["share"]["high"]
