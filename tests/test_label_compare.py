"""Which answer is better: sides, scores, and demonstrations replaced by the real command."""

import io
import shlex

import numpy as np
import pyarrow as pa
import pytest

from helpers import whet
from whet.errors import WhetError
from whet.ilr.llm_judge import RIGHT
from whet.ilr.tasks.find import load_task
from whet.posttrain.examples import read_examples, write_examples
from whet.review.comparing import DEFAULT, open_comparison
from whet.tables import read_table

N = 30
ROWS = {
    "row": list(range(100, 100 + N)),
    "prompt": [f"What is {i} + 1?" for i in range(N)],
    "completion": [f"It is {i + 1}." if i % 3 else f"It is {i}!" for i in range(N)],  # % 3: wrong
    "proposal": [None if i == 7 else f"It is {i + 1}." for i in range(N)],
    "source": ["book"] * N,
}
DIFFER = [i for i in range(N) if i % 3 == 0]


@pytest.fixture
def proposals(tmp_path):
    path = tmp_path / "proposals.parquet"
    write_examples(path, pa.table(ROWS))
    return path


def opened(proposals, **settings):
    given = {"out": proposals.with_name("judged.parquet")} | settings
    return open_comparison(proposals, **given)


def prefer_new(item):
    """Say which side the proposal is on."""
    return "left" if item.shown["left"] == ROWS["proposal"][item.row] else "right"


def answer_all(session, who="me", choose=prefer_new):
    while (item := session.next(who)) is not None:
        session.answer(who, item.row, choose(item), 2.0)


def test_pairs_that_differ_are_shown_once_with_sides_drawn(proposals):
    with opened(proposals) as session:
        assert (session.kind, session.classes) == ("compare", ["left", "right", "same"])
        items = [session.item(item.row) for item in session.items]
    assert sorted(item.row for item in items) == DIFFER
    for item in items:
        assert item.shown["prompt"] == ROWS["prompt"][item.row]
        said = {item.shown["left"], item.shown["right"]}
        assert said == {ROWS["completion"][item.row], ROWS["proposal"][item.row]}
    sides = [prefer_new(item) for item in items]
    assert 1 < sides.count("left") < 9
    with opened(proposals) as session:  # the same after a restart
        assert [session.item(item.row) for item in session.items] == items
    with opened(proposals, seed=1, out=proposals.with_name("b.csv")) as session:
        again = {item.row: prefer_new(session.item(item.row)) for item in session.items}
    assert again != {item.row: side for item, side in zip(items, sides, strict=True)}


def test_scores_are_written_as_whet_judge_does_and_whet_replace_reads_them(proposals, tmp_path):
    with opened(proposals) as session:
        rows = [item.row for item in session.items]
        for place, row in enumerate(rows):
            new = prefer_new(session.item(row))
            old = {"left": "right", "right": "left"}[new]
            said = [new, new, new, old, "same", None, new, new][place] if place < 8 else None
            if place < 8:
                session.answer("ann", row, said, 1.0)
        session.answer("bob", rows[0], "same", 1.0)
        session.answer(
            "bob",
            rows[6],
            {"left": "right", "right": "left"}[prefer_new(session.item(rows[6]))],
            1.0,
        )
        panel = session.panel()
        written = read_table(session.write())
        command = shlex.split(session.next_step())
    expected = dict(zip(rows, [0.75, 1, 1, 0, 0.5, None, 0.5, 1, None, None], strict=True))
    assert written["score"].to_pylist() == [expected.get(row) for row in range(N)]
    assert panel["rows"] == 7
    assert (panel["unsure"], panel["same"]) == (1, 2)
    assert panel["better"]["value"] == pytest.approx(4 / 7)
    judged = tmp_path / "by-command.parquet"
    judge = ["--judge", f"file:{tmp_path / 'judged.parquet'}"]
    assert whet(["judge", str(proposals), *judge, "--out", str(judged)]).code == 0
    assert read_table(judged).column_names == written.column_names
    assert read_table(judged)["score"].to_pylist() == written["score"].to_pylist()
    assert read_table(judged)["agree"].to_pylist() == written["agree"].to_pylist()
    failures = [why for why in written["failure"].to_pylist() if why]
    assert sorted(failures) == ["no proposal", *["nobody answered"] * 2, "nobody could decide"]
    assert command[:2] == ["whet", "replace"]
    ended = whet([*command[1:-1], str(tmp_path / "refined.jsonl")])  # as it is printed
    assert ended.code == 0, ended.err
    refined = read_table(tmp_path / "refined.jsonl").to_pylist()
    taken = {row for row, score in expected.items() if score is not None and score > 0.5}
    for i, row in enumerate(refined):
        assert row["completion"] == ROWS["proposal" if i in taken else "completion"][i]
        assert row["replaced"] == (i in taken)


def test_sides_stay_hidden_until_all_is_answered(proposals):
    with opened(proposals) as session:
        for item in session.items[1:]:
            session.answer("me", item.row, prefer_new(session.item(item.row)), 1.0)
        assert session.panel("me")["better"] is None
        answer_all(session)
        assert session.panel("me")["better"]["value"] == 1


def test_a_settled_row_has_the_score_it_was_settled_to(proposals):
    with opened(proposals) as session:
        row = session.items[0].row
        new = prefer_new(session.item(row))
        session.answer("ann", row, new, 1.0)
        session.answer("bob", row, "same", 1.0)
        assert session.disagreements()[0]["shown"] == session.item(row).shown
        session.settle(row, new, "ann")
        assert read_table(session.write())["score"][row].as_py() == 1.0


def test_messages_are_shown_as_text_and_stay_messages(tmp_path):
    def said(role, content):
        return [{"role": role, "content": content}]

    table = pa.table(
        {
            "prompt": [said("user", f"{i}?") for i in range(4)],
            "completion": [said("assistant", "no") for _ in range(4)],
            "proposal": [said("assistant", f"yes {i}") for i in range(4)],
        }
    )
    path = tmp_path / "proposals.jsonl"
    write_examples(path, table)
    with open_comparison(path, out=tmp_path / "judged.jsonl") as session:
        shown = session.item(0).shown
        assert shown["prompt"] == "user: 0?"
        assert {shown["left"], shown["right"]} == {"assistant: no", "assistant: yes 0"}
        answer_all(session, choose=lambda item: "left")
        session.write()
    judged = read_examples(tmp_path / "judged.jsonl", ["prompt", "completion", "proposal"])
    assert judged["proposal"][2].as_py() == said("assistant", "yes 2")
    assert (
        whet(["replace", str(tmp_path / "judged.jsonl"), "--out", str(tmp_path / "r.jsonl")])[0]
        == 0
    )


def test_a_task_says_which_answers_agree(tmp_path, monkeypatch):
    table = pa.table(
        {
            "prompt": ["1+1?", "2+2?", "3+3?"],
            "completion": ["so\n#### 2", "so\n#### 5", "so\n#### 6"],
            "proposal": ["well, #### 2", "#### 4", "#### 6"],
            "reference": ["2", "4", "6"],
        }
    )
    path = tmp_path / "proposals.jsonl"
    write_examples(path, table)
    with open_comparison(path, out=tmp_path / "j.jsonl", task=load_task("gsm8k")) as session:
        assert [item.row for item in session.items] == [1]
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    command = ["label", "--compare", str(path), "--task", "gsm8k", "--tui"]
    ended = whet([*command, "--out", str(tmp_path / "k.jsonl")])
    assert "0 of 1 rows are answered; 1 wait" in ended.out


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([" Be brief. "] * N, "Be brief."),
        ([None] * N, DEFAULT),
        (["Be brief."] * (N - 1) + ["Be kind."], None),
        ([None] + ["Be brief."] * (N - 1), None),
        ([["Be", "brief"]] * N, None),
        ([7] * N, None),
        ([" "] * N, None),
        (["Be\x1b[2J brief."] * N, None),
    ],
)
def test_one_criterion_stands_above_all_pairs(tmp_path, values, shown):
    path = tmp_path / "p.parquet"
    write_examples(path, pa.table(ROWS | {"criterion": values}))
    if shown is None:
        with pytest.raises(WhetError, match=r"^the column 'criterion' of .* write [^.]*$"):
            opened(path)
        assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]
        return
    with opened(path) as session:
        assert session.criterion == shown


def test_people_are_told_what_a_language_model_is_told(proposals):
    with opened(proposals) as session:
        assert session.criterion == f"What is better: {RIGHT}"


def test_some_of_the_pairs_and_more_of_them_later(proposals):
    with opened(proposals, n=4) as session:
        few = [item.row for item in session.items]
        assert len(few) == 4
    with opened(proposals) as session:
        assert [item.row for item in session.items][:4] == few
        assert len(session.items) == 10


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"proposal": ROWS["completion"]}, {}, "no proposal of p.parquet differs"),
        ({"row": [1] * N}, {}, "a number twice in its column row"),
        ({}, {"n": 0}, "n = 0"),
        ({}, {"seconds": 0.0}, "seconds = 0"),
        ({}, {"seconds": float("nan")}, "seconds = nan"),
        ({}, {"out": "p.parquet"}, "is the input"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, change, settings, said):
    path = tmp_path / "p.parquet"
    write_examples(path, pa.table(ROWS | change))
    if "out" in settings:
        settings = {"out": tmp_path / settings["out"]}
    with pytest.raises(WhetError, match=said):
        open_comparison(path, **({"out": tmp_path / "judged.parquet"} | settings))
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]


def test_changed_proposals_are_another_session(proposals):
    with opened(proposals) as session:
        answer_all(session)
    changed = np.array(ROWS["proposal"], dtype=object)
    changed[0] = "another"
    write_examples(proposals, pa.table(ROWS | {"proposal": changed.tolist()}))
    with pytest.raises(WhetError, match="started with other proposals"):
        opened(proposals)
    with pytest.raises(WhetError, match="does not exist"):
        opened(proposals.with_name("none.parquet"))
