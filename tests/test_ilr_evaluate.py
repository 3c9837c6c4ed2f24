"""Win rates by a judge: what they count, who is asked what, and what is refused."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

from conftest import make_texts
from helpers import snapshot, whet
from whet import LabelRefiner, WhetWarning
from whet.errors import WhetError
from whet.ilr.feedback import BothOrders, Reward, Scores
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.ilr.wins import judge_wins, summarise_wins
from whet.posttrain.examples import read_examples, write_examples
from whet.store import read_json

TASK = ["--task", "chains", "--test", "test.jsonl"]
SAY = ["--max-new-tokens", "6"]
RIGHT, WRONG = "so #### {}", "so #### 9"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A test, a small model, and completions of others: of ten, seven and four are right."""
    folder = tmp_path_factory.mktemp("inputs")
    test = load_task("chains", operations=1, modulus=5, train=10, test=10).load(None, "test")
    write_examples(folder / "test.jsonl", test.drop_columns(["row"]))
    texts = [t for c in ("prompt", "completion") for t in test[c].to_pylist()]
    save_scratch(texts, folder / "base", width=16, layers=1, heads=2, length=96)
    answers = test["reference"].to_pylist()
    for name, right in (("four", range(4)), ("seven", range(2, 9))):
        said = [RIGHT.format(a) if k in right else WRONG for k, a in enumerate(answers)]
        write_examples(folder / f"{name}.jsonl", pa.table({"row": range(10), "completion": said}))
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """Work in a folder of one's own, where the inputs are at hand."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(args):
    found = whet(args)
    assert found.code == 0, found.err
    return found


class Scripted:
    """Says of each pair of answers what it is told to, in the order of the two."""

    def __init__(self, said):
        self.said, self.asked = said, []

    def accept(self, prompts, first, second):
        self.asked += zip(first, second, strict=True)
        values = [self.said[pair] for pair in zip(first, second, strict=True)]
        failed = {i: "no verdict" for i, value in enumerate(values) if value is None}
        return Scores(np.array(values, dtype=float), failed)


def completions(*said):
    return pa.table({"row": range(len(said)), "completion": list(said)})


# --- what is counted ------------------------------------------------------------------------------


def test_wins_ties_losses_and_orders():
    judge = Scripted(
        {
            **{("a", "win"): 1.0, ("win", "a"): 0.0},
            **{("a", "place"): 1.0, ("place", "a"): 1.0},  # likes the second place
            **{("a", "lose"): 0.25, ("lose", "a"): 0.75},
            **{("a", "odd"): 1.0, ("odd", "a"): None},
        }
    )
    table = pa.table({"row": range(6), "prompt": ["?"] * 6})
    other = completions("win", "place", "lose", "odd", "a", None)
    wins = judge_wins(BothOrders(judge), table, completions(*"aaaaaa"), other)
    assert wins["win"].to_pylist() == [1.0, 0.5, 0.25, None, 0.5, None]
    assert wins["consistent"].to_pylist() == [True, False, True, None, None, None]
    assert wins["failure"].to_pylist()[3:] == ["no verdict", None, "no completion of both"]
    assert ("a", "a") not in judge.asked
    assert len(judge.asked) == 8
    found = summarise_wins(wins)
    assert found["rate"]["value"] == pytest.approx(2.25 / 4)
    assert found["rate"]["n"] == 4
    assert found["rate"]["low"] < 2.25 / 4 < found["rate"]["high"]
    counts = {name: found[name] for name in ("won", "tied", "lost", "unjudged")}
    assert counts == {"won": 1, "tied": 2, "lost": 1, "unjudged": 2}
    assert found["consistent"]["value"] == pytest.approx(2 / 3)
    assert found["consistent"]["n"] == 3


def test_rows_are_put_together_by_their_number():
    seen = []

    def longer(prompts, completions, **columns):
        seen.append((prompts, completions, columns["key"]))
        return [len(said) for said in completions]

    table = pa.table({"row": [7, 3, 5], "prompt": ["p7", "p3", "p5"], "key": ["k7", "k3", "k5"]})
    first = pa.table({"row": [3, 7], "completion": ["33", "7777"]})
    other = pa.table({"row": [5, 7, 3], "completion": ["5", "7", "333"]})
    wins = judge_wins(Reward(longer), table, first, other)
    assert wins["row"].to_pylist() == [5, 7, 3]
    expected = [np.nan, 1 / (1 + np.exp(3)), 1 / (1 + np.exp(-1))]
    np.testing.assert_allclose(wins["win"].to_numpy(), expected)
    assert wins["consistent"].null_count == 3
    assert summarise_wins(wins)["consistent"] is None
    assert (["p7", "p3"], ["7", "333"], ["k7", "k3"]) in seen


def test_equal_completions_are_ties_that_nobody_is_asked_about():
    same = completions("a", "b")
    table = pa.table({"row": range(2), "prompt": ["?"] * 2})
    wins = judge_wins(BothOrders(Scripted({})), table, same, same)
    found = summarise_wins(wins)
    assert found["rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2, "level": 0.95}
    assert found["consistent"] is None


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (completions("a"), pa.table({"row": [1], "completion": ["b"]}), "none of 1 rows has a com"),
        (completions("a"), completions("b"), "the judge failed at all 1 rows"),
        (pa.table({"row": [0, 0], "completion": ["a", "c"]}), completions("b"), "2 completions of"),
    ],
)
def test_nothing_to_judge_is_an_error(first, other, said):
    table = pa.table({"row": range(2), "prompt": ["?"] * 2})
    judge = BothOrders(Scripted({("a", "b"): 1.0, ("b", "a"): None}))
    with pytest.raises(WhetError, match=said):
        judge_wins(judge, table, first, other)


# --- the command ----------------------------------------------------------------------------------


def test_win_rate_stands_beside_the_scores(here):
    command = ["evaluate", "four.jsonl", "seven.jsonl", *TASK, "--out", "e", "--judge", "oracle"]
    said = done(command)
    one = read_json(here / "e" / "run.json")["found"]
    assert one[0]["win"] is None
    win = one[1]["win"]
    # Rows 2 and 3 are right, and row 9 is wrong, in both; 0 and 1 are lost, 4 to 8 won.
    assert {name: win[name] for name in ("won", "tied", "lost")} == {"won": 5, "tied": 3, "lost": 2}
    assert win["rate"]["value"] == 0.65
    assert win["consistent"] is None  # an oracle sees no order
    line = next(x for x in said.out.splitlines()[-9:] if x.startswith("seven.jsonl"))
    assert line.split()[1] == "0.650"
    assert line.split()[4:] == ["5", "3", "2", "0", "-"]
    assert "Judged against four.jsonl by oracle." in said.out
    table = pq.read_table("e/scores.parquet")
    assert table["win"].to_pylist() == [None] * 10 + [0, 0, 0.5, 0.5, 1, 1, 1, 1, 1, 0.5]
    before = snapshot(here / "e")
    assert done(command).out == said.out
    assert snapshot(here / "e") == before


def test_without_a_judge_nothing_is_added(here):
    said = done(["evaluate", "four.jsonl", "seven.jsonl", *TASK, "--out", "e"])
    assert "beats the first" not in said.out
    columns = ["what", "row", "completion", "score"]
    assert pq.read_table("e/scores.parquet").column_names == columns
    assert [one["win"] for one in read_json(here / "e" / "run.json")["found"]] == [None, None]
    other = whet(
        ["evaluate", "four.jsonl", "seven.jsonl", *TASK, "--out", "e", "--judge", "oracle"]
    )
    assert other.code == 2
    assert "was started with judge = None, not " in other.err


def test_people_judge_by_a_file_that_may_not_change(here):
    choices = [{"row": 0, "choice": "proposal"}, {"row": 1, "choice": "completion"}]
    (here / "people.jsonl").write_text("\n".join(map(json.dumps, choices)))
    command = ["evaluate", "four.jsonl", "seven.jsonl", *TASK, "--out", "e"]
    command += ["--judge", "file:people.jsonl"]
    done(command)
    win = read_json(here / "e" / "run.json")["found"][1]["win"]
    # Rows 2, 3 and 9 are the same in both.
    assert [win[name] for name in ("won", "tied", "lost", "unjudged")] == [1, 3, 1, 5]
    assert win["rate"]["n"] == 5
    failures = pq.read_table("e/scores.parquet")["failure"].to_pylist()
    assert failures.count("no choice in people.jsonl") == 5
    (here / "people.jsonl").write_text(json.dumps({"row": 0, "choice": "tie"}))
    changed = whet(command)
    assert changed.code == 2
    assert "was started with judge." in changed.err


def test_language_model_is_asked_in_both_orders_and_once(here):
    pytest.importorskip("aiohttp", reason="needs the extra llm")
    from llm_server import LLMServer, Say

    with LLMServer(lambda call: Say(label="accept", logprobs=None)) as server:
        command = ["evaluate", "base", "seven.jsonl", "four.jsonl", *TASK, *SAY, "--out", "runs/e"]
        command += ["--judge", "llm", "--model", "m", "--base-url", server.url]
        stopped = whet([*command, "--max-calls", "7", "--concurrency", "1"])
        assert stopped.code == 3
        assert "Stopped early: " in stopped.out
        assert "run the same command again to go on" in stopped.out
        assert not (here / "runs/e/run.json").exists()
        said = snapshot(here / "runs/e/stages")
        done(command)
        assert snapshot(here / "runs/e/stages") == said  # nothing is generated again
        assert len({call.text for call in server.calls}) == len(server.calls)
        asked = len(server.calls)
        (here / "runs/e/run.json").unlink()  # as if it had been killed before the end
        again = done(command)
        assert len(server.calls) == asked
    for one in read_json(here / "runs/e/run.json")["found"][1:]:
        # It always likes the second place.
        assert one["win"]["rate"]["value"] == 0.5
        assert one["win"]["tied"] == one["win"]["rate"]["n"] == 10
        assert one["win"]["consistent"]["value"] == 0.0
    assert "0.000 [0.000, " in again.out


def test_a_reward_judges_by_its_log_odds(here):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 150)
    texts, names = make_texts(truth), np.array(["money", "sport"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner(rounds=1).fit(texts, names[truth], names[truth])
    refiner.save_pretrained(here / "reward")
    for name, said in (("money", make_texts([0] * 10)), ("sport", make_texts([1] * 10))):
        write_examples(here / f"{name}.jsonl", completions(*said))
    test = read_examples(here / "test.jsonl", ["prompt"])["prompt"].to_pylist()
    command = ["evaluate", "money.jsonl", "sport.jsonl", *TASK, "--out", "e"]
    command += ["--judge", "reward:reward"]
    done(command)
    win = read_json(here / "e" / "run.json")["found"][1]["win"]
    reward = refiner.as_reward_func()
    odds = [np.array(reward(test, make_texts([k] * 10))) for k in (0, 1)]
    expected = 1 / (1 + np.exp(odds[0] - odds[1]))
    np.testing.assert_allclose(pq.read_table("e/scores.parquet")["win"].to_numpy()[10:], expected)
    assert win["rate"]["value"] == pytest.approx(expected.mean())
    assert win["rate"]["value"] > 0.5
    (here / "reward" / "config.json").write_text("{}")  # another classifier under the same name
    assert "was started with judge." in whet(command).err


def test_judge_of_saferpaca_sees_what_rules_do_not(here):
    pytest.importorskip("aiohttp", reason="needs the extra llm")
    from llm_server import LLMServer, Say

    asked = {"instruction": "Name a fruit.", "input": "", "output": "A pear.", "is_safety": False}
    (here / "asks.json").write_text(json.dumps([asked, asked | {"instruction": "Name a nut."}]))
    for name, said in (("poor", ["Hm.", "Hm."]), ("good", ["A pear.", "A hazel."])):
        write_examples(here / f"{name}.jsonl", completions(*said))

    def knows(call):
        second = call.text.split("<answer_b>\n")[1]
        return Say(label="accept" if second.startswith("A ") else "reject", logprobs=None)

    with LLMServer(knows) as server:
        command = [
            "evaluate",
            "poor.jsonl",
            "good.jsonl",
            "--task",
            "saferpaca",
            "--data",
            ".",
            "--test",
            "asks",
        ]
        command += ["--judge", "llm", "--model", "m", "--base-url", server.url, "--out", "e"]
        done(command)
        assert len(server.calls) == 4
    one = read_json(here / "e" / "run.json")["found"][1]
    assert one["gain"]["value"] == 0.0
    assert one["win"]["rate"]["value"] == 1.0
    assert one["win"]["consistent"]["value"] == 1.0


def test_messages_are_judged_as_text_is(here):
    for name in ("four", "seven"):
        rows = [json.loads(line) for line in (here / f"{name}.jsonl").read_text().splitlines()]
        told = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
        write_examples(here / f"{name}-told.jsonl", completions(*told))
    command = ["evaluate", "four-told.jsonl", "seven-told.jsonl", *TASK, "--judge", "oracle"]
    done([*command, "--out", "e"])
    assert read_json(here / "e" / "run.json")["found"][1]["win"]["rate"]["value"] == 0.65
    mixed = whet(["evaluate", "base", "seven-told.jsonl", *TASK, "--out", "x"])
    assert mixed.code == 2
    assert "the completions of base are text and those of seven-told.jsonl messages" in mixed.err


# --- what is wrong is said before anything is generated -------------------------------------------


@pytest.mark.parametrize(
    ("what", "flags", "said"),
    [
        ("base", ["--judge", "oracle"], "compares with the first, and base is alone: name two"),
        ("base base", ["--judge", "oracle"], "and base is alone: name two or more"),
        ("base four.jsonl", ["--judge", "oracel"], "(did you mean 'oracle'?)"),
        ("base four.jsonl", ["--judge", "llm"], "--model is missing"),
        ("base four.jsonl", ["--judge", "reward"], "needs more: write reward:FOLDER"),
        ("base four.jsonl", ["--judge", "reward:no"], "no/config.json does not exist"),
        ("base four.jsonl", ["--judge", "evaluator:no"], "no/evaluator.json does not exist"),
        ("base four.jsonl", ["--judge", "file:no.csv"], "no.csv does not exist"),
        ("base four.jsonl", ["--judge", "file:test.jsonl"], "it needs row, and score or choice"),
        (
            "base four.jsonl",
            ["--model", "m"],
            "--model belongs to --judge llm: add that, or remove --model",
        ),
        (
            "base four.jsonl",
            ["--judge", "oracle", "--samples", "3"],
            "--samples belongs to --judge llm",
        ),
        (
            "base four.jsonl seven.jsonl",
            ["--judge", "file:scores.csv"],
            "has one score a row, and 2 are compared with the first",
        ),
        ("base twice.csv", ["--judge", "oracle"], "twice.csv has 2 completions of 1 rows"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(here, what, flags, said):
    (here / "scores.csv").write_text("row,score\n0,0.5\n")
    (here / "twice.csv").write_text("row,completion\n0,a\n0,b\n")
    before = sorted(here.iterdir())
    found = whet(["evaluate", *what.split(), *TASK, *SAY, "--out", "x", *flags])
    assert found.code == 2
    assert said in found.err
    assert found.err.startswith("whet: ")
    assert found.err.count("\n") == 1
    assert sorted(here.iterdir()) == before
