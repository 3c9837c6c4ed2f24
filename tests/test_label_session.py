"""Sessions: nothing answered is lost, nothing is asked twice, whoever answers, however it ends."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from whet.errors import WhetError
from whet.review.agreement import kappas
from whet.review.labelling import open_labels

TABLE = {
    "text": [f"text {i}" for i in range(40)],
    "llm": ["spam" if i % 4 == 0 else "ham" for i in range(40)],
}


def opened(folder, table=TABLE, **settings):
    given = {"text": "text", "pseudo": "llm", "n": 12, "out": folder / "gold.parquet"} | settings
    return open_labels(table, **given)


def rows_of(session, who="me", n=None):
    """Answer n rows, all by default, as the first annotator's label says; return their numbers."""
    rows = []
    while (n is None or len(rows) < n) and (item := session.next(who)) is not None:
        session.answer(who, item.row, item.pseudo, seconds=1.5)
        rows.append(item.row)
    return rows


def test_every_row_is_asked_once_in_the_same_order(tmp_path):
    with opened(tmp_path) as session:
        rows = rows_of(session, n=5)
        assert session.progress("me") == {
            "answered": 5,
            "unsure": 0,
            "skipped": 0,
            "total": 12,
            "annotators": {"me": 5},
            "median_seconds": 1.5,
        }
    with opened(tmp_path) as session:  # started again
        rows += rows_of(session)
        assert rows == [item.row for item in session.items]
        assert len(set(rows)) == 12
        assert session.next("me") is None
        assert session.next("other").row == rows[0]  # the same sample for a second annotator


def test_a_larger_sample_goes_on_from_the_smaller(tmp_path):
    with opened(tmp_path) as session:
        before = rows_of(session)
    with opened(tmp_path, n=30) as session:
        after = rows_of(session)
        assert [item.row for item in session.items] == before + after
        spam = sum(TABLE["llm"][row] == "spam" for row in before + after)
        assert len(after) == 18
        assert abs(spam - 7.5) < 1
    with opened(tmp_path, n=5) as session:
        assert len(session.items) == 30  # rows are never dropped


def test_more_rows_than_there_are(tmp_path):
    with opened(tmp_path, n=500) as session:
        assert sorted(rows_of(session)) == list(range(40))


def test_the_order_does_not_tell_the_label(tmp_path):
    found = set()
    for seed in range(6):
        with opened(tmp_path, out=tmp_path / f"{seed}.csv", seed=seed) as session:
            found.add(tuple(TABLE["llm"][item.row] for item in session.items))
    assert len(found) > 3


def test_skipped_rows_come_once_more_at_the_end(tmp_path):
    with opened(tmp_path, n=4) as session:
        first = session.next("me").row
        session.skip("me", first)
        assert session.progress("me")["skipped"] == 1
        assert first not in rows_of(session, n=3)
        assert session.next("me").row == first
        session.skip("me", first)
        assert session.next("me") is None


def test_undo_takes_back_answers_and_skips_one_by_one(tmp_path):
    with opened(tmp_path, n=4) as session:
        assert session.undo("me") is None
        first = session.next("me").row
        session.answer("me", first, "spam", 3.0, note="shouting")
        second = session.next("me").row
        session.skip("me", second)
        session.answer("other", first, "ham", 1.0)
        assert session.undo("me").row == second
        item = session.undo("me")
        assert (item.row, item.answered, item.note) == (first, "spam", "shouting")
        assert session.next("me").row == first
        assert session.undo("me") is None
        assert session.progress("other")["answered"] == 1
        session.answer("me", first, None, 1.0)
        assert session.progress("me")["unsure"] == 1


def test_the_same_answer_twice_is_one_answer(tmp_path):
    with opened(tmp_path, n=4) as session:
        row = session.next("me").row
        for _ in range(3):
            session.answer("me", row, "spam", 1.0)
        assert session.undo("me").row == row
        assert session.undo("me") is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, row: s.answer("me", 39999, "spam", 1.0), "row 39999 is not among the 12 rows"),
        (lambda s, row: s.item(10**30), "0 is not among the 12 rows"),
        (lambda s, row: s.item(-1), "row -1 is not among the 12 rows"),
        (lambda s, row: s.answer("me", row, "spma", 1.0), "did you mean 'spam'"),
        (lambda s, row: s.answer("me", row, "spam", float("nan")), "seconds = nan"),
        (lambda s, row: s.answer("me", row, "spam", -1.0), "seconds = -1"),
        (lambda s, row: s.answer(" ", row, "spam", 1.0), "annotator's name ' ' is empty"),
        (lambda s, row: s.answer("a\x1b[2J", row, "spam", 1.0), "not printable"),
        (lambda s, row: s.answer("me", row, "spam", 1.0, note="\ud800"), "surrogate"),
        (lambda s, row: s.settle(row, "spam", "me"), "nothing to settle"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, call, said):
    with opened(tmp_path) as session:
        with pytest.raises(WhetError, match=said.replace("(", r"\(")):
            call(session, session.next("me").row)
        assert session.answered() == []


def test_answers_of_several_threads_are_all_kept(tmp_path):
    with opened(tmp_path, n=40) as session:
        people = [threading.Thread(target=rows_of, args=(session, f"p{k}")) for k in range(4)]
        for thread in people:
            thread.start()
        for thread in people:
            thread.join()
        assert session.progress("p0")["annotators"] == {f"p{k}": 40 for k in range(4)}


PROCESS = """
    import sys
    from pathlib import Path
    from whet.review.labelling import open_labels
    out = Path({folder!r}) / "gold.parquet"
    with open_labels({table!r}, text="text", pseudo="llm", n=40, out=out) as session:
        print("open", flush=True)
        while (item := session.next({who!r})) is not None:
            session.answer({who!r}, item.row, item.pseudo, 1.0)
            print(item.row, flush=True)
            if {wait}:
                sys.stdin.readline()
"""


def process(folder, who, wait):
    code = textwrap.dedent(PROCESS).format(table=TABLE, folder=str(folder), who=who, wait=wait)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_loses_no_answer_and_a_second_one_shares_the_session(tmp_path):
    first = process(tmp_path, "ann", wait=True)
    told = [first.stdout.readline().strip()]
    for _ in range(6):
        told.append(first.stdout.readline().strip())
        if len(told) < 7:
            first.stdin.write("\n")
            first.stdin.flush()
    second = process(tmp_path, "bob", wait=False)  # while the first one is alive
    assert len(second.communicate(timeout=60)[0].split()) == 41
    first.kill()
    first.communicate()
    with opened(tmp_path, n=40) as session:
        assert session.progress("ann")["annotators"] == {"ann": 6, "bob": 40}
        answered = {row.row for row in session.answered() if "ann" in row.answers}
        assert answered == {int(row) for row in told[1:]}
        assert session.next("ann").row not in answered


def test_disagreements_are_found_and_settled(tmp_path):
    with opened(tmp_path, n=10) as session:
        rows = [item.row for item in session.items]
        for place, row in enumerate(rows):
            session.answer("ann", row, "spam" if place < 5 else "ham", 1.0)
            said = None if place == 9 else "spam" if place < 3 else "ham"
            session.answer("bob", row, said, 1.0)
        found = session.agreement()
        ours = ["spam"] * 5 + ["ham"] * 4
        theirs = ["spam"] * 3 + ["ham"] * 6
        assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(ours, theirs))
        assert found["kappa"]["low"] < found["kappa"]["value"] < found["kappa"]["high"]
        assert (found["who"], found["n"], found["disagreements"]) == (["ann", "bob"], 9, 2)
        disputed = session.disagreements()
        assert [d["row"] for d in disputed] == rows[3:5]
        assert disputed[0]["answers"] == {"ann": "spam", "bob": "ham"}
        assert disputed[0]["shown"] == {"text": TABLE["text"][rows[3]]}
        session.settle(rows[3], "ham", "ann")
        labels = {row.row: row.label for row in session.answered()}
        assert labels[rows[3]] == "ham"
        assert labels[rows[4]] is None  # not settled
        assert labels[rows[9]] == "ham"  # bob is unsure, ann is not
        assert session.agreement()["settled"] == 1
        session.settle(rows[3], "spam", "bob")  # corrected
        assert {row.row: row.label for row in session.answered()}[rows[3]] == "spam"
        for _ in range(2):
            session.unsettle(rows[3])
            assert {row.row: row.label for row in session.answered()}[rows[3]] is None
        assert session.agreement()["settled"] == 0
        assert session.answered()[3].answers == {"ann": "spam", "bob": "ham"}
        with pytest.raises(WhetError, match="not among the 10 rows"):
            session.unsettle(39999)


def test_kappa_is_that_of_scikit_learn_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    for classes in (["a", "b"], ["a", "b", "c", "d"]):
        first = rng.choice(classes, 80)
        second = np.where(rng.random(80) < 0.7, first, rng.choice(classes, 80))
        rows = [{"x": a, "y": b} for a, b in zip(first, second, strict=True)]
        (pair,) = kappas(rows, classes)
        assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(first, second))
        width = pair["kappa"]["high"] - pair["kappa"]["low"]
        assert 0.1 < width < 0.5
    both = [{"x": "a", "y": "a"}] * 5
    assert kappas(both, ["a", "b"])[0]["kappa"] is None
    assert "same class" in kappas(both, ["a", "b"])[0]["reason"]
    assert kappas(both[:1], ["a", "b"])[0]["kappa"] is None
    three = [{"x": "a", "y": "a", "z": "b"}, {"x": "b", "y": "b", "z": "a"}]
    values = [pair["kappa"]["value"] for pair in kappas(three, ["a", "b"])]
    assert values == [1, -1, -1]


def test_full_agreement_leaves_doubt():
    rows = [{"x": label, "y": label} for label in ["a"] * 25 + ["b"] * 25]
    (pair,) = kappas(rows, ["a", "b"])
    assert (pair["kappa"]["value"], pair["kappa"]["high"]) == (1, 1)
    assert 0.8 < pair["kappa"]["low"] < 0.97
    (few,) = kappas(rows[20:30], ["a", "b"])
    assert few["kappa"]["low"] < pair["kappa"]["low"] - 0.1
    unused = kappas(rows, ["a", "b", *map(str, range(75))])  # classes that nobody gave
    assert unused == [pair]


def test_the_interval_of_kappa_holds_it_where_people_mostly_agree():
    # One row in seven is of the rare class, and each person errs in about 1 % of the rows.
    rng, share, error, held = np.random.default_rng(0), 0.14, 0.0097, 0
    given = share * (1 - error) + (1 - share) * error
    chance = given**2 + (1 - given) ** 2
    true = ((1 - error) ** 2 + error**2 - chance) / (1 - chance)
    for _ in range(100):
        truth = rng.random(50) < share
        first, second = (truth ^ (rng.random(50) < error) for _ in range(2))
        rows = [{"x": str(a), "y": str(b)} for a, b in zip(first, second, strict=True)]
        kappa = kappas(rows, ["False", "True"])[0]["kappa"]
        held += kappa is not None and kappa["low"] <= true <= kappa["high"]
    assert 0.9 < true < 0.94
    assert held >= 90


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": 1}, "started with seed 0, not 1"),
        ({"classes": ["spam", "ham"]}, "started with classes"),
        ({"pseudo": None, "classes": ["ham", "spam"]}, "started with other pseudo-labels"),
        ({"table": TABLE | {"text": ["x"] * 40}}, "started with other texts"),
    ],
)
def test_a_session_goes_on_only_with_what_it_began_with(tmp_path, settings, said):
    with opened(tmp_path) as session:
        rows_of(session, n=3)
    with pytest.raises(WhetError, match=said):
        opened(tmp_path, **settings)
    with opened(tmp_path) as session:
        assert session.progress("me")["answered"] == 3


def test_a_session_without_an_answer_is_begun_anew(tmp_path):
    with opened(tmp_path) as first:
        row = first.items[0].row
        first.skip("me", row)
        first.answer("me", row, "ham", 1.0)
        first.undo("me")
        with opened(tmp_path, seed=1, classes=["spam", "ham"]) as session:
            assert session.classes == ["spam", "ham"]
            assert [item.row for item in session.items] != [row]
            assert session.progress("me")["skipped"] == 0
            with pytest.raises(WhetError, match="started with classes"):  # the page of before
                first.answer("me", row, "ham", 1.0)
            rows_of(session, n=1)
    with pytest.raises(WhetError, match="started with classes"):
        opened(tmp_path)


def test_the_file_is_private_and_holds_no_text(tmp_path):
    with opened(tmp_path) as session:
        rows_of(session, n=3)
        assert session.path.stat().st_mode & 0o777 == 0o600
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert b"text 1" not in stored


def damaged(path):
    path.write_bytes(b"SQLite format 3\0" + b"\1" * 4000)


def other_database(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")


def other_version(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("no database at all"), "cannot be used"),
        (damaged, "cannot be used"),
        (other_version, "not a session of this version"),
    ],
)
def test_a_spoilt_session_is_refused_in_one_sentence(tmp_path, spoil, said):
    with opened(tmp_path) as session:
        path = session.path
    spoil(path)
    with pytest.raises(WhetError, match=said):
        opened(tmp_path)


def test_another_database_is_left_alone(tmp_path):
    other_database(tmp_path / "gold.label.sqlite")
    before = (tmp_path / "gold.label.sqlite").read_bytes()
    with pytest.raises(WhetError, match="not a session"):
        opened(tmp_path)
    assert (tmp_path / "gold.label.sqlite").read_bytes() == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WhetError, match="cannot be used"):
        opened(tmp_path)


def test_a_file_that_somebody_changed_is_not_overwritten(tmp_path):
    with opened(tmp_path, out=tmp_path / "gold.csv") as session:
        rows_of(session, n=3)
        path = session.write()
    with opened(tmp_path, out=path) as session:  # its own is
        rows_of(session, n=1)
        session.write()
    path.write_text(path.read_text() + "by hand,,,,,\n")
    with pytest.raises(WhetError, match="was changed after whet label wrote it"):
        opened(tmp_path, out=path)
    assert "by hand" in path.read_text()
    stranger = tmp_path / "mine.csv"
    stranger.write_text("text\nmine\n")
    with pytest.raises(WhetError, match="no session of whet label lies beside it"):
        opened(tmp_path, out=stranger)
