"""Self-refinement: feedback, then a second decision; every round kept, and judged on gold."""

import json

import pytest

from helpers import whet
from whet import WhetError
from whet.annotate.labelling import Abstain, Label
from whet.annotate.protocol import Answer, Failure
from whet.annotate.self_refine import SelfRefiner, revise
from whet.annotate.task import Task

TASK = Task("spam", "Is the message spam?", {"spam": "Unwanted.", "ham": "All else."})


class Model:
    """Says "spam" at first; what it says after feedback is given by ``mind``."""

    route, at_once = {"backend": "model"}, 1

    def __init__(self, mind):
        self.mind, self.requests = mind, []

    async def complete(self, requests):
        self.requests += requests
        return [self._reply(r) for r in requests]

    def _reply(self, request):
        if request.schema is None:
            return Answer("<think>hm</think>It greets a friend.")
        turns = sum(role == "user" for role, _ in request.messages)
        return self.mind((turns - 1) // 2, request)

    async def close(self):
        pass


def succeeded(ended):
    assert ended.code == 0, ended.err
    return ended


def label(name):
    return Answer(json.dumps({"label": name}))


def test_rounds_are_feedback_and_decision():
    model = Model(lambda r, _: label("spam" if r == 0 else "ham"))
    (revision,) = SelfRefiner(TASK, model, rounds=2).refine(["see you at 8"])
    assert revision.labels == ["spam", "ham", "ham"]
    assert revision.feedback == ("It greets a friend.",) * 2
    kinds = [request.schema is None for request in model.requests]
    assert kinds == [False, True, False, True, False]
    last = model.requests[-1].messages
    assert [role for role, _ in last] == ["system", *["user", "assistant"] * 4, "user"]
    assert "hm" not in str([content for _, content in last])  # thinking is not sent back
    assert last[-1][1].startswith("Now decide again")
    assert '"spam", "ham"' in last[-1][1]
    assert sum(content.count("<text>\n") for _, content in last) == 1


def test_first_question_is_that_of_annotate():
    from whet.annotate.prompts import label_request

    talk = revise(TASK, "see you", 1)
    assert next(talk) == [label_request(TASK, "see you")]


@pytest.mark.parametrize("reply", [Failure("truncated"), label("maybe")])
def test_a_round_without_an_answer_keeps_the_label(reply):
    model = Model(lambda r, _: label("spam") if r == 0 else reply)
    (revision,) = SelfRefiner(TASK, model, rounds=1).refine(["see you at 8"])
    assert revision.labels == ["spam", "spam"]


def test_a_row_without_a_first_label_is_not_revised():
    model = Model(lambda r, _: Failure("filtered"))
    rows = SelfRefiner(TASK, model, rounds=2).refine(["see you at 8", " "])
    assert [r.labels for r in rows] == [[None] * 3] * 2
    assert [o.reason for o in rows[0].outcomes] == ["filtered"] * 3
    assert rows[1].outcomes[0] == Abstain("empty text")
    assert len(model.requests) == 1


def test_explanations_go_into_the_history():
    task = Task("spam", "Is it spam?", {"spam": "", "ham": ""}, explain=True)
    said = json.dumps({"explanation": "It shouts.", "label": "spam"})
    model = Model(lambda r, _: Answer(said))
    (revision,) = SelfRefiner(task, model, rounds=1).refine(["WIN"])
    assert revision.outcomes[0] == Label("spam", None, "It shouts.")
    assert model.requests[1].messages[-2] == ("assistant", said)


def test_no_rounds_is_an_error():
    with pytest.raises(WhetError, match="rounds = 0"):
        SelfRefiner(TASK, Model(None), rounds=0)


def table(folder, n=40, gold=True):
    rows = [
        f"text {i},{'biased' if i % 2 else 'not_biased'},{'biased' if i % 3 else 'not_biased'}"
        for i in range(n)
    ]
    header = "text,gold,old"
    (folder / "a.csv").write_text("\n".join([header, *rows]) + "\n")
    return [
        "self-refine",
        "a.csv",
        "--task",
        "media_bias",
        "--backend",
        "replay:a.csv#old",
        "--rounds",
        "1",
        "--out",
        "out.csv",
        *(["--gold", "gold"] if gold else []),
    ]


def test_command_writes_rounds_and_judges_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = succeeded(whet(table(tmp_path)))
    assert "Gold does not show that it helped (+0.0 [" in ended.out
    assert "--pseudo pseudo_label_0 --gold gold" in ended.out
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [c.strip('"') for c in lines[0].split(",")] == [
        "text", "gold", "old", "pseudo_label_0", "pseudo_label_1", "pseudo_feedback_1",
        "pseudo_abstain",
    ]  # fmt: skip
    account = json.loads((tmp_path / "out.csv.json").read_text())
    assert [r["round"] for r in account["rounds"]] == [0, 1]
    assert account["rounds"][0]["accuracy"]["n"] == account["rounds"][1]["gain"]["n"] == 40
    assert account["gold"]["given"] == 40
    assert [use["rows"] for use in account["gold"]["uses"]] == [40, 40]
    first = (tmp_path / "out.csv").read_bytes(), (tmp_path / "out.csv.json").read_bytes()
    again = succeeded(whet(table(tmp_path)))
    assert again.out.split("asked in")[0] == ended.out.split("asked in")[0]
    assert "0 requests" in again.out
    assert first == ((tmp_path / "out.csv").read_bytes(), (tmp_path / "out.csv.json").read_bytes())


def test_command_without_gold_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = succeeded(whet(table(tmp_path, gold=False)))
    assert "There are no gold labels to say whether it helped: keep round 0." in ended.out


def judged(first, last, truth):
    from whet.annotate.self_refine import Revision
    from whet.cli.self_refine import Rounds

    tally = Rounds(1)
    for a, b, t in zip(first, last, truth, strict=True):
        tally.add(Revision((Label(a), Label(b)), ("",)), t)
    return tally.account()[1]["gain"]


def test_gain_is_paired_and_signed():
    truth = ["spam"] * 40
    assert judged(["ham"] * 40, truth, truth)["low"] > 0
    assert judged(truth, ["ham"] * 40, truth)["high"] < 0
    assert judged(truth, truth, truth)["value"] == 0
