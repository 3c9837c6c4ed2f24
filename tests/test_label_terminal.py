"""``whet label --tui``: what is typed, what is shown, and how it ends."""

import errno
import io
import os
import pty
import re
import signal
import subprocess
import time

import pyarrow as pa
import pytest

from helpers import WHET, whet
from whet.review.labelling import open_labels
from whet.review.server import listen
from whet.review.terminal import inert, label_in_terminal
from whet.tables import read_table, write_table

TABLE = {
    "text": [f"text {i}" for i in range(12)],
    "llm": ["spam" if i % 3 == 0 else "ham" for i in range(12)],
}
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\u2066 \x9b31m \r over \x00"


def opened(folder, table=TABLE, **settings):
    given = {"text": "text", "pseudo": "llm", "n": 4, "out": folder / "gold.parquet"} | settings
    return open_labels(table, **given)


def typed(session, *lines, who="me"):
    """Type lines, and return what is said."""
    said = []
    label_in_terminal(session, who, io.StringIO("".join(f"{x}\n" for x in lines)), said.append)
    return said


def answers(session):
    return [next(iter(row.answers.values())) for row in session.answered()]


def test_numbers_names_and_commands(tmp_path):
    with opened(tmp_path) as session:
        said = typed(session, "1", "spam", "?", "n not sure at all", "2")
        assert "1 for ham, 2 for spam" in said[0]
        assert answers(session) == ["ham", "spam", None, "spam"]
        assert session.answered()[3].notes == {"me": "not sure at all"}
        assert [line for line in said if line.startswith("[")] == [
            f"[{i} of 4]" for i in (1, 2, 3, 4)
        ]
        assert said[-1].startswith("All rows are done")


def test_what_is_not_known_changes_nothing(tmp_path):
    with opened(tmp_path) as session:
        said = typed(session, "3", "0", "ahm", "", "u", "q", "1")
        assert answers(session) == []
        assert sum("is neither" in line for line in said) == 4
        assert "There is nothing to undo." in said


def test_undo_skip_and_the_last_answer(tmp_path):
    with opened(tmp_path) as session:
        said = typed(session, "1", "u", "2", "s", "1", "1", "2", "u", "1", "")
        assert "(you had answered ham)" in said
        assert answers(session) == ["spam", "ham", "ham", "ham"]
        assert sum(line.startswith("All rows are done") for line in said) == 2


def test_a_second_annotator_settles(tmp_path):
    with opened(tmp_path) as session:
        typed(session, "1", "1", "1", "1")
        said = typed(session, "1", "2", "2", "1", "", "5", "2", "s", who="bob")
        settle = "Settle: bob: spam, me: ham (s leaves it open, u opens the last settled one again)"
        assert settle in said
        assert [row.label for row in session.answered()] == ["ham", "spam", None, "ham"]


def test_settlements_are_corrected_and_answers_stay(tmp_path):
    def labels():
        return [row.label for row in session.answered()]

    with opened(tmp_path) as session:
        typed(session, "1", "1", "1", "1")
        said = typed(session, "2", "2", "2", "1", "", "u", "1", "2", "u", "1", "2", who="bob")
        assert "There is nothing to undo." in said
        assert labels() == ["ham", "ham", "spam", "ham"]
        # Started again, settled ones are offered too, the last one first.
        said = typed(session, "", "u", "u", "2", "s", who="bob")
        assert "3 settled: u opens the last of them again, Enter ends." in said
        assert labels() == ["ham", "spam", None, "ham"]
        assert session.progress("bob")["answered"] == 4
        assert session.done("bob")


def test_nobody_settles_before_the_own_rows_are_done(tmp_path):
    with opened(tmp_path) as session:
        typed(session, "1", "1", "1", "1")
        said = typed(session, "2", "2", who="bob")
        assert not any("Settle" in line or "me: ham" in line for line in said)


def test_who_stops_early_sees_nothing_of_the_others(corpus, monkeypatch):
    command(corpus, monkeypatch, "1\n1\n1\n1\n")
    ended = command([*corpus, "--who", "bob"], monkeypatch, "2\n2\n")
    assert "bob has rows left" in ended.out
    for word in ("kappa", "unsettled", "disagreements", "by me", "accuracy  "):
        assert word not in ended.out
    ended = command([*corpus, "--who", "bob"], monkeypatch, "2\n2\n")
    assert "kappa bob, me" in ended.out


def test_classes_cannot_reverse_or_break_a_line(tmp_path, monkeypatch):
    table = TABLE | {"llm": ["a\u202eb\nc", "x" * 200] * 6}
    with opened(tmp_path, table) as session:
        said = "\n".join(typed(session, "1", "2", "2"))
    assert "1 for a\\u202eb\\nc, 2 for xxx" in said
    table = {"text": TABLE["text"], "llm": ["a\u202eb\nc", "x" * 200] * 6}
    write_table(pa.table(table), tmp_path / "c.parquet")
    monkeypatch.chdir(tmp_path)
    common = ["label", "c.parquet", "--text", "text", "--pseudo", "llm", "--n", "4", "--tui"]
    ended = command(common, monkeypatch, "1\n")
    assert ended.code == 0, ended.err
    assert "\u202e" not in ended.out
    assert "labelled a\\u202eb\\nc  " in ended.out
    assert "labelled " + "x" * 39 + "\u2026  " in ended.out
    assert "x" * 200 in read_table(tmp_path / "gold.parquet")["gold"].to_pylist()


def test_of_many_classes_the_most_frequent_are_shown(tmp_path, monkeypatch):
    labels = [f"c{k:02}" for k in range(30) for _ in range(k + 1)]
    table = {"text": [str(i) for i in range(len(labels))], "llm": labels}
    write_table(pa.table(table), tmp_path / "c.parquet")
    monkeypatch.chdir(tmp_path)
    common = ["label", "c.parquet", "--text", "text", "--pseudo", "llm", "--tui"]
    ended = command(common, monkeypatch, "30\n" * 3)
    shown = [line.split()[1] for line in ended.out.splitlines() if line.startswith("  labelled")]
    assert shown == [f"c{k}" for k in range(29, 17, -1)]
    assert re.search(r"share of c29 +1\.000", ended.out)  # of three answers
    assert "18 labels that are rarer" in ended.out


def test_what_the_accuracy_leaves_out_is_said_and_settling_comes_first(corpus, monkeypatch):
    command(corpus, monkeypatch, "1\n1\n2\n?\n")
    ended = command([*corpus, "--who", "bob"], monkeypatch, "1\n2\n1\n?\n")
    said = " +left out of it, which is likely too high if these are the hard ones"
    assert re.search("  1 unsure, 2 unsettled" + said, ended.out)
    assert "Next: settle the 2 unsettled rows with the same command" in ended.out
    assert "whet refine" not in ended.out
    ended = command([*corpus, "--who", "bob"], monkeypatch, "\n1\n1\n")
    assert "whet refine" in ended.out
    assert re.search("  1 unsure" + said, ended.out)


def test_a_port_in_use_leaves_no_session_behind(corpus, tmp_path, monkeypatch):
    with listen(None) as taken:
        port = str(taken.getsockname()[1])
        ended = command([*corpus[:-1], "--port", port], monkeypatch)
    assert ended.code == 2
    assert f"--port {port} is in use" in ended.err
    assert [file.name for file in tmp_path.iterdir()] == ["c.csv"]


def test_a_full_disk_is_one_sentence_without_flags_of_other_commands(corpus, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("whet.store.os.fsync", full)
    ended = command(corpus, monkeypatch, "1\n")
    assert ended.code == 2
    assert "cannot write gold.parquet (No space left on device): free space" in ended.err
    assert "--resume" not in ended.err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "1 of 4 rows are answered" in command(corpus, monkeypatch, "q\n").out


def test_classes_that_are_numbers_are_typed_as_they_are(tmp_path):
    table = TABLE | {"llm": [i % 2 for i in range(12)]}
    with opened(tmp_path, table) as session:
        said = typed(session, "1", "0", "2", "1", "1")
        assert "type 0, 1, then Enter" in said[0]
        assert answers(session) == ["1", "0", "1", "1"]


def test_hostile_text_reaches_the_terminal_as_harmless_characters(tmp_path):
    table = {"text": [HOSTILE] * 4, "llm": ["a\x1b[5m", "b"] * 2}
    with opened(tmp_path, table, show_pseudo=True) as session:
        said = "\n".join(typed(session, "1", "u", "q"))
    assert all(c == "\n" or c.isprintable() for c in said)
    assert "\\x1b[2J" in said
    assert "\\u202egnp.exe" in said
    assert inert("a\tb\nc é 字 👩\u200d🔬 شكرا") == "a\tb\nc é 字 👩\u200d🔬 شكرا"


def test_long_texts_are_cut_until_asked_for(tmp_path):
    table = TABLE | {"text": ["x" * 1_000_000] * 12}
    with opened(tmp_path, table) as session:
        said = typed(session, "m", "q")
        lengths = [len(line) for line in said if line.startswith("xxx")]
        assert lengths == [4000, 1_000_000]
        assert "(996,000 more characters: m shows them)" in said


def test_the_annotators_label_is_hidden_unless_asked_for(tmp_path):
    with opened(tmp_path) as session:
        assert not any("annotator" in line for line in typed(session, "q"))
    with opened(tmp_path, show_pseudo=True) as session:
        assert any(line.startswith("(annotator: ") for line in typed(session, "q"))


def test_an_answer_that_comes_too_late_is_none(tmp_path, monkeypatch):
    with opened(tmp_path) as session:
        session.seconds = 5.0
        clock = iter([0.0, 4.0, 10.0, 16.0, 20.0])
        monkeypatch.setattr("whet.review.terminal.time.monotonic", lambda: next(clock))
        said = typed(session, "1", "1", "q")
        assert answers(session) == ["ham", None]
        assert "Too late (6 of 5 seconds): counted as no answer." in said


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f'"{text}",{label}\n' for text, label in zip(*TABLE.values(), strict=True)]
    (tmp_path / "c.csv").write_text("text,llm\n" + "".join(lines))
    return ["label", "c.csv", "--text", "text", "--pseudo", "llm", "--n", "4", "--tui"]


def command(args, monkeypatch, lines=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return whet(args)


def test_the_command_labels_says_what_it_found_and_goes_on(corpus, tmp_path, monkeypatch):
    ended = command(corpus, monkeypatch, "q\n")
    assert "Next: answer rows with the same command" in ended.out
    ended = command(corpus, monkeypatch, "1\n2\n")
    assert ended.code == 0, ended.err
    assert "2 of 4 rows are answered; 2 wait: run the same command again." in ended.out
    ended = command(corpus, monkeypatch, "1\n?\n")
    assert "[3 of 4]" in ended.out
    assert "[1 of 4]" not in ended.out
    assert "4 of 4 rows are answered." in ended.out
    assert "annotator's accuracy" in ended.out
    assert (
        "Next: whet refine gold.parquet --text text --pseudo llm --gold gold --out run" in ended.out
    )
    gold = read_table(tmp_path / "gold.parquet")["gold"].to_pylist()
    assert sum(label is not None for label in gold) == 3
    ended = command([*corpus, "--who", "bob"], monkeypatch, "1\n1\n1\n1\n")
    assert "kappa bob, me" in ended.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["label", "--tui"], "name a table to label, or proposals with --compare"),
        (["label", "c.csv", "--tui"], "name it with --text"),
        (["label", "c.csv", "--text", "text", "--tui"], "name them with --classes"),
        (["label", "none.csv", "--text", "text", "--tui"], "none.csv does not exist"),
        (["label", "--compare", "none.csv", "--tui"], "none.csv does not exist"),
        (["label", "--compare", "c.csv", "--tui"], "has no column 'prompt'"),
        (["label", "--compare", "c.csv", "--text", "t", "--tui"], "--text is for a table of texts"),
        (["label", "c.csv", "--text", "text", "--seconds", "3"], "are for --compare"),
        (
            ["label", "c.csv", "--text", "text", "--export", "argilla", "--tui"],
            "exclude each other",
        ),
        (["label", "c.csv", "--text", "text", "--pseudo", "llm", "--out", "x.xlsx"], "'.xlsx'"),
        (["label", "c.csv", "--text", "text", "--pseudo", "llm", "--out", "no/x.csv"], "create it"),
        (["label", "c.csv", "--text", "text", "--pseudo", "llm", "--out", "c.csv"], "is the input"),
    ],
)
def test_bad_commands_end_with_one_sentence(corpus, tmp_path, monkeypatch, args, said):
    ended = command(args, monkeypatch)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.csv"]


def test_a_sample_larger_than_the_table_says_so(corpus, monkeypatch):
    ended = command([*corpus[:6], "--n", "100", "--tui"], monkeypatch, "q\n")
    assert "There are not 100 rows to ask about: 12 are in the sample." in ended.out


def test_control_c_and_kill_lose_nothing(corpus, tmp_path):
    for number, (signal_, code) in enumerate([(signal.SIGINT, 130), (signal.SIGKILL, -9)]):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [WHET, *corpus], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        os.write(ours, b"1\n")
        seen = b""
        while f"[{number + 2} of 4]".encode() not in seen:
            seen += os.read(process.stdout.fileno(), 4096)
            assert process.poll() is None
        time.sleep(0.1)  # it waits for the next line
        process.send_signal(signal_)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code
        if signal_ == signal.SIGINT:
            assert b"1 of 4 rows are answered" in out
            assert b"every answer is kept" in err
            gold = read_table(tmp_path / "gold.parquet")["gold"].to_pylist()
            assert gold.count("ham") == 1
        os.close(ours)
        os.close(theirs)
    with opened(tmp_path, str(tmp_path / "c.csv")) as session:
        assert session.progress("me")["answered"] == 2
