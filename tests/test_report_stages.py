"""The reports of ``whet sft``, ``dpo``, ``propose`` and ``evaluate``, whatever their rows hold."""

import importlib.metadata
import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

from helpers import snapshot, whet
from hostile import HOSTILE
from test_report_page import MARKUP, Elements, browser, opened  # noqa: F401
from whet import WhetError
from whet.annotate.protocol import Answer, Failure
from whet.hub import fingerprint
from whet.ilr.propose import propose_served
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.posttrain.examples import write_examples
from whet.posttrain.settings import GenerateSettings, OnlineSettings
from whet.posttrain.trainers import train_online
from whet.report.commands import beside
from whet.report.evaluate_summary import LISTED, summarise_evaluate
from whet.report.page import write_report
from whet.report.propose_summary import summarise_propose
from whet.report.text import visible
from whet.report.training_summary import summarise_training
from whet.store import read_json

TRAIN = ["--tune", "full", "--learning-rate", "5e-3", "--batch-size", "8", "--max-length", "96"]
SAY = ["--max-new-tokens", "8"]
OPTIONS = ["operations=1", "modulus=5"]
TASK = ["--task", "chains", "--option", OPTIONS[0], "--option", OPTIONS[1]]
VERBS = ("sft", "dpo", "propose", "evaluate")


def commands(folder):
    """The commands that make a folder of each kind, by verb."""
    demos, base = str(folder / "demos.jsonl"), ["--model", str(folder / "base")]
    out = {verb: ["--out", str(folder / verb)] for verb in VERBS}
    tables = [str(folder / f"{name}.jsonl") for name in ("four", "seven")]
    steps = [*TRAIN, "--max-steps", "24"]
    odd, marked = str(folder / "odd.jsonl"), ["--marker", "####"]
    return {
        "sft": ["sft", odd, *base, *out["sft"], *steps, *marked],
        "dpo": ["dpo", str(folder / "pairs.jsonl"), *base, *out["dpo"], *steps],
        "propose": [
            *("propose", demos, *base, *out["propose"], *TRAIN, "--max-steps", "3", *SAY),
            *TASK,
        ],
        "evaluate": [
            *("evaluate", *tables, str(folder / "base"), "--task", "chains"),
            *("--test", str(folder / "test.jsonl"), "--judge", "oracle", *out["evaluate"], *SAY),
        ],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of tiny models, and what each command printed."""
    folder = tmp_path_factory.mktemp("stages")
    task = load_task("chains", operations=1, modulus=5, train=40, test=10)
    train, test = task.load(None, "train"), task.load(None, "test")
    prompts, right = (train[name].to_pylist() for name in ("prompt", "completion"))
    texts = [t for table in (train, test) for c in ("prompt", "completion") for t in table[c]]
    save_scratch(
        [t.as_py() for t in texts], folder / "base", width=16, layers=1, heads=2, length=96
    )
    write_examples(folder / "demos.jsonl", train.drop_columns(["row"]))
    # A row that fills the room by itself, one that loses its end, and one without the marker.
    odd = {
        "prompt": [*prompts, prompts[0] * 9, prompts[1], prompts[2]],
        "completion": [*right, right[0], f"{right[1]} " * 20, "no answer"],
    }
    write_examples(folder / "odd.jsonl", pa.table(odd))
    pairs = {"prompt": prompts, "chosen": right, "rejected": ["#### 9"] * 40}
    write_examples(folder / "pairs.jsonl", pa.table(pairs))
    write_examples(folder / "test.jsonl", test.drop_columns(["row"]))
    for name, known in (("four", range(4)), ("seven", range(2, 9))):
        answers = test["reference"].to_pylist()
        said = [f"so #### {a if k in known else 9}" for k, a in enumerate(answers)]
        write_examples(folder / f"{name}.jsonl", pa.table({"row": range(10), "completion": said}))
    ended = {verb: whet(words) for verb, words in commands(folder).items()}
    assert [each.code for each in ended.values()] == [0] * 4, ended
    return folder, ended


@pytest.fixture
def copied(finished, tmp_path):
    """Copies of the folders that a test may change, without their weights."""
    aside = shutil.ignore_patterns("models", "model.safetensors")
    for verb in VERBS:
        shutil.copytree(finished[0] / verb, tmp_path / verb, ignore=aside)
    return tmp_path


def change(path, edit):
    """Change a file of JSON."""
    content = read_json(path)
    edit(content)
    path.write_text(json.dumps(content))


def shown(folder):
    """Return the summary of a folder and its page, made anew."""
    ended = whet(["report", str(folder)])
    assert ended.code == 0, ended
    return read_json(folder / "summary.json"), (folder / "report.html").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_command_ends_with_a_report_that_it_names(finished, verb):
    folder, ended = finished
    summary, page = read_json(folder / verb / "summary.json"), folder / verb / "report.html"
    kinds = {"sft": "training", "dpo": "training"}
    assert (summary["kind"], summary["format_version"]) == (kinds.get(verb, verb), 1)
    assert str(page) in "".join(ended[verb].out.split())
    assert "could not be made" not in ended[verb].err
    text = page.read_text()
    assert text.index(summary["answer"]["headline"]) < text.index("<table>")
    first = "".join(Elements(text[: text.index("<nav")]).said)
    for warning in summary["answer"]["warnings"]:  # before all numbers
        assert first.index(warning) < first.index("Next" if verb == "propose" else "n = ")
    below = [path for path in (folder / verb).rglob("report.html") if path != page]
    assert below == []  # no stage has one of its own


@pytest.mark.parametrize("verb", VERBS)
def test_reported_on_again_it_is_the_same_byte_by_byte(finished, verb):
    folder = finished[0] / verb
    before = snapshot(folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    ended = whet(["report", str(folder)])
    assert ended.code == 0, ended
    said = " ".join(ended.out.split())
    summary = read_json(folder / "summary.json")
    for sentence in (summary["answer"]["verdict"], *summary["answer"]["warnings"]):
        assert sentence in said
    assert snapshot(folder) == before


def test_model_is_the_same_after_a_report(finished):
    (finished[0] / "sft" / "summary.json").unlink()
    before = fingerprint(finished[0] / "sft")
    shown(finished[0] / "sft")
    assert fingerprint(finished[0] / "sft") == before


def test_finished_folder_is_left_as_it_is_and_a_lost_page_is_made(finished):
    folder = finished[0]
    for verb in ("sft", "evaluate"):
        page = folder / verb / "report.html"
        before = page.read_bytes()
        page.write_bytes(b"mine")
        assert whet(commands(folder)[verb]).code == 0
        assert page.read_bytes() == b"mine"
        page.unlink()
        assert whet(commands(folder)[verb]).code == 0
        assert page.read_bytes() == before


@pytest.mark.parametrize("verb", ["dpo", "propose"])
def test_report_that_fails_leaves_the_run(finished, verb, monkeypatch):
    """As when a font or a template is broken."""
    page = finished[0] / verb / "report.html"
    before = page.read_bytes()
    page.unlink()
    with monkeypatch.context() as broken:
        broken.setattr("whet.report.page.render", lambda summary: {}["a template"])
        ended = whet(commands(finished[0])[verb])
    assert ended.code == 0
    assert "the report could not be made (KeyError: 'a template')" in " ".join(ended.err.split())
    assert "report.html" not in ended.out
    shown(finished[0] / verb)
    assert page.read_bytes() == before


def test_command_and_page_say_the_same_next_step(finished):
    folder, ended = finished
    for verb in VERBS:
        summary, page = read_json(folder / verb / "summary.json"), folder / verb / "report.html"
        assert f"Next: {summary['next']}" in " ".join(ended[verb].out.split())
        assert summary["next"] in "".join(Elements(page.read_text()).said)


def test_commands_run_where_the_first_was_given(copied, monkeypatch):
    """Folders are named as the caller does, with the way to them."""
    monkeypatch.chdir(copied.parent)
    runs = Path(copied.name)
    trained = summarise_training(runs / "sft")
    assert f" {runs}/sft --task TASK" in trained["next"]
    assert trained["next"].endswith(f" --out {runs}/sft-evaluated")
    assert trained["reproduce"]["command"].endswith(f" --out {runs}/sft-again")
    judge = shlex.split(summarise_propose(runs / "propose")["next"].replace("JUDGE", "oracle"))
    assert whet(judge[1:]).code == 0
    assert (runs / "propose" / "judged.parquet").is_file()
    again = shlex.split(summarise_evaluate(runs / "evaluate")["reproduce"]["command"])
    assert whet(again[1:]).code == 0
    old, new = (
        pq.read_table(runs / one / "scores.parquet") for one in ("evaluate", again[-1][-14:])
    )
    assert old == new


def test_folders_without_a_name_have_a_sibling_as_well(tmp_path, monkeypatch):
    (tmp_path / "run" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "below")
    for named in ("..", "../../run", "../below/..", str(tmp_path / "run")):
        assert Path(beside(Path(named), "-again")).resolve() == tmp_path / "run-again"
    assert Path(beside(Path(), "-again")).resolve() == tmp_path / "run" / "below-again"


@pytest.mark.parametrize("verb", ["propose", "evaluate"])
def test_pages_name_the_versions_and_those_of_older_runs_what_they_know(copied, verb):
    manifest = read_json(copied / verb / "run.json")
    for name in ("torch", "transformers"):
        assert manifest["versions"][name] == importlib.metadata.version(name)
    summarise = {"propose": summarise_propose, "evaluate": summarise_evaluate}[verb]
    made = summarise(copied / verb)["reproduce"]
    assert made["versions"] == {"whet": manifest["whet_version"], **manifest["versions"]}
    change(copied / verb / "run.json", lambda m: [m.pop(key) for key in ("given", "versions")])
    summary, page = shown(copied / verb)
    assert summary["given"] is None
    assert summary["reproduce"]["versions"] == {"whet": manifest["whet_version"]}
    asked = {"propose": "propose DEMONSTRATIONS.jsonl", "evaluate": "--task chains --test TEST"}
    assert asked[verb] in summary["reproduce"]["command"]
    said = {"propose": "without a task leave that out", "evaluate": "TEST is the table"}
    assert said[verb] in page


# --- trainings ------------------------------------------------------------------------------------


def test_training_numbers_are_those_of_the_folder(finished):
    folder = finished[0] / "sft"
    summary, account = read_json(folder / "summary.json"), read_json(folder / "training.json")
    losses = [record["loss"] for record in account["history"]]
    curve = summary["curve"]
    assert [record["loss"] for record in curve["records"]] == losses
    assert [t["n"] for t in curve["tenths"]] == [2, 2, 3, 2, 3, 2, 2, 3, 2, 3]
    assert (curve["tenths"][-1]["first"], curve["tenths"][-1]["last"]) == (22, 24)
    answer = summary["answer"]
    assert answer["start"] == {"value": pytest.approx(np.mean(losses[:12])), "n": 12}
    assert answer["end"] == {"value": pytest.approx(np.mean(losses[12:])), "n": 12}
    assert (answer["status"], answer["share"]) == ("trained", "half")
    error = np.sqrt(np.mean(np.diff(losses) ** 2) / 2 * (2 / 12))
    assert answer["standard_error"] == pytest.approx(error)
    assert "no proof of a better model" in answer["notes"][0]
    faults = {fault["fault"]: (fault["rows"], fault["of"]) for fault in summary["faults"]}
    assert faults["longer than 96 tokens: cut, the end is not learned"] == (2, 43)
    assert faults["of these, the prompt alone fills the room: left out"] == (1, 43)
    assert faults["no answer marker '####'"] == (1, 43)
    assert summary["rows"] == {"given": 43, "learned": 42, "reached": 42, "a_step": 8}
    assert "2 of 43 rows are longer than 96 tokens and lose their end" in answer["warnings"][0]
    command = summary["reproduce"]["command"]
    assert "--max-steps 24 --batch-size 8 --max-length 96 --tune full --marker '####'" in command
    assert command.endswith(f"--out {folder}-again")


def test_means_are_over_the_steps_that_a_record_stands_for(copied):
    """Records of long trainings come every few steps; the first one is of a single step."""
    steps = [1, *range(4, 121, 4)]

    def edit(account):
        account["history"] = [{"loss": 10.0 if k == 1 else 1.0, "step": k} for k in steps]
        account["steps"] = 120

    change(copied / "sft" / "training.json", edit)
    curve = summarise_training(copied / "sft")["curve"]
    assert [record["n"] for record in curve["records"]] == [1, 3, *[4] * 29]
    assert [t["n"] for t in curve["tenths"]] == [12] * 10
    assert curve["tenths"][0]["loss"] == pytest.approx(21 / 12)


def told(finished, verb, **changed):
    """The answer of a training whose account is changed."""
    account = read_json(finished[0] / verb / "training.json")
    return summarise_training(Path("runs/m"), account | changed)["answer"]


def logged(losses, every=1):
    """Records of a loss, each over some steps."""
    history = [{"loss": loss, "step": every * (k + 1)} for k, loss in enumerate(losses)]
    return {"history": history, "steps": every * len(losses)}


NOISE = [1.2, 0.8, 1.1, 0.7, 1.3, 0.9]


@pytest.mark.parametrize(
    ("losses", "every", "status", "share", "said"),
    [
        ([2.0 - k / 10 for k in range(10)], 1, "trained", "half", "Trained: the training loss"),
        ([2.0 - k / 10 for k in range(9)], 1, "unknown", None, "too few steps to tell where the"),
        ([9.0, 1.0], 1, "unknown", None, "too few steps to tell"),
        ([2.0], 40, "unknown", None, "too few steps to tell"),
        ([1.0 + k / 10 for k in range(25)], 1, "doubtful", "fifth", "but the training loss rose."),
        ([1.20, 0.77, *NOISE, *NOISE, 0.9, 0.77], 1, "doubtful", "half", "from its jumps between"),
        ([x - k / 1000 for k, x in enumerate(NOISE * 10)], 1, "doubtful", "tenth", "its jumps"),
        ([x - k / 20 for k, x in enumerate(NOISE * 10)], 1, "trained", "tenth", "loss fell"),
        ([2.0 - k / 10 for k in range(9)], 5, "trained", "tenth", "the training loss fell."),
        ([2.0] * 20, 5, "doubtful", "tenth", "but the training loss did not change."),
    ],
)
def test_loss_fell_only_by_more_than_it_jumps(finished, losses, every, status, share, said):
    answer = told(finished, "sft", **logged(losses, every))
    assert (answer["status"], answer["share"]) == (status, share)
    assert said in answer["headline"]
    assert (answer["end"] is None) == (status == "unknown")
    assert ("standard error of" in answer["verdict"]) == (status != "unknown")


def test_page_says_if_the_loss_did_not_fall(copied):
    change(copied / "sft" / "training.json", lambda account: account.update(logged([2.0, 3.0])))
    summary, page = shown(copied / "sft")
    assert summary["answer"]["start"] == {"value": 2.5, "n": 2}
    assert "in too few steps to tell" in page
    assert summary["rows"]["reached"] == 16
    assert "came to 16 of 42 rows: the others were never learned" in page


@pytest.mark.parametrize(("untrained", "few"), [(29, True), (16, True), (15, False)])
def test_rows_that_were_left_out_are_said_first(finished, untrained, few):
    lint = read_json(finished[0] / "sft" / "training.json")["lint"]
    lint |= {"n": 30, "truncated": untrained, "untrained": untrained}
    answer = told(finished, "sft", rows=30, lint=lint)
    left = f"{untrained} of 30 rows were left out"
    assert (answer["headline"] == f"Trained on {30 - untrained} of 30 rows.") == few
    assert answer["warnings"][0].startswith(left) == few
    assert (answer["status"] == "doubtful") == few


def test_preferences_have_margins(finished, copied):
    summary = read_json(finished[0] / "dpo" / "summary.json")
    last = read_json(finished[0] / "dpo" / "training.json")["history"][-3:]
    tenth = summary["curve"]["tenths"][-1]
    for key in ("loss", "rewards/margins", "rewards/accuracies"):
        assert tenth[key] == pytest.approx(np.mean([record[key] for record in last]))
    assert summary["method"] == "dpo"

    def still(account):
        for record in account["history"]:
            record["rewards/margins"] = 0.0

    change(copied / "dpo" / "training.json", still)
    answer = summarise_training(copied / "dpo")["answer"]
    assert answer["headline"] == "Trained, but the margin of chosen over rejected did not change."
    assert "the model has not moved" in shown(copied / "dpo")[1]


def test_preferences_are_told_by_the_margin(finished):
    """The loss cannot say it: it is ln 2 and all pairs tie before the first step."""
    account = read_json(finished[0] / "dpo" / "training.json")
    margins = [record["rewards/margins"] for record in account["history"]]
    assert margins[0] == 0
    answer = told(finished, "dpo")
    assert (answer["measure"], answer["status"]) == ("margin", "trained")
    assert answer["end"]["value"] == pytest.approx(np.mean(margins[12:]))
    assert "the margin of chosen over rejected rose" in answer["headline"]
    assert "each margin is 0, the loss is ln 2 (0.693)" in answer["notes"][1]
    assert "only because all tie" in answer["notes"][1]
    down = [r | {"rewards/margins": -r["rewards/margins"]} for r in account["history"]]
    fell = told(finished, "dpo", history=down)
    assert (fell["status"], fell["headline"][-5:]) == ("doubtful", "fell.")
    assert "ln 2" not in " ".join(told(finished, "dpo", loss="ipo")["notes"])
    assert len(told(finished, "dpo", reference="other")["notes"]) == 1  # it need not begin at 0


def test_training_on_a_reward_is_told_by_the_reward(finished, tmp_path):
    def short(completions, **columns):
        return [-float(len(text)) for text in completions]

    rows = pa.table({"prompt": [f"start with {k}" for k in range(4)]})
    settings = OnlineSettings(tune="full", batch_size=4, max_steps=2, max_new_tokens=3)
    out = train_online(str(finished[0] / "base"), rows, short, tmp_path / "out", settings)
    assert not (out / "report.html").exists()  # it has no verb of its own
    summary, page = shown(out)
    assert (summary["method"], summary["answer"]["measure"]) == ("grpo", "reward")
    assert (summary["faults"], summary["reproduce"]["command"]) == (None, None)
    assert summary["rows"] == {"given": 4, "learned": 4, "reached": 2, "a_step": 1}
    assert "a model can learn what the reward likes and nothing else" in page
    assert "part of whet align" in page


# --- proposals ------------------------------------------------------------------------------------


def test_proposals_are_those_of_the_folder(finished):
    folder = finished[0] / "propose"
    summary, account = read_json(folder / "summary.json"), read_json(folder / "run.json")
    table = pq.read_table(folder / "proposals.parquet").to_pylist()
    kinds = ("different", "same", "empty", "none")
    assert [f["fold"] for f in summary["folds"]] == [0, 1]
    for found in (*summary["folds"], summary["rows"]):
        assert sum(found[kind] for kind in kinds) == found["rows"]
    for kind in kinds:
        assert sum(fold[kind] for fold in summary["folds"]) == summary["rows"][kind]
    assert (summary["rows"]["rows"], summary["rows"]["same"]) == (40, account["same"])
    assert summary["rows"]["unfinished"] == account["unfinished"]
    assert summary["cost"]["new_tokens"] == account["new_tokens"]
    assert set(summary["cost"]["seconds"]) == {"training", "completions"}
    assert Path(summary["proposer"]["model"]).name == "base"
    listed = summary["examples"]
    assert listed["of"] == summary["rows"]["different"] > 0
    for row in listed["rows"]:
        found = table[row["row"]]
        for side, column in (("before", "completion"), ("after", "proposal")):
            assert "".join(part["text"] for part in row[side]["parts"]) == found[column]
    lengths = sorted(len(row["completion"]) for row in table)
    assert (summary["lengths"][0]["least"], summary["lengths"][0]["most"]) == (
        lengths[0],
        lengths[-1],
    )
    assert summary["given"] == account["given"]
    said = {"rows": str(finished[0] / "demos.jsonl"), "task": "chains", "options": OPTIONS}
    assert account["given"] == said | {"data": None}
    assert "given" not in read_json(folder / "settings.json")  # it does not decide resuming
    assert f"{shlex.join(TASK)} --judge JUDGE" in summary["next"]
    command = shlex.join(["whet", "propose", said["rows"], *TASK, "--model"])
    assert summary["reproduce"]["command"].startswith(command)


class Served:
    """Ends three answers of four; of these one in three is empty, one the demonstration."""

    def __init__(self):
        self.route, self.at_once = {"model": "<b>m</b>", "base_url": "http://h:9/v1"}, 1

    async def complete(self, requests):
        return [self.answer(int(request.messages[-1][1])) for request in requests]

    def answer(self, k):
        says = ("", f"demonstration {k}", f"other {k}")
        return Failure("truncated") if k % 4 == 3 else Answer(says[k % 3])

    async def close(self):
        pass


def test_served_proposals_count_what_is_missing(tmp_path):
    rows = {"prompt": [str(k) for k in range(24)]}
    rows |= {"row": range(24), "completion": [f"demonstration {k}" for k in range(24)]}
    out = tmp_path / "p"
    propose_served(pa.table(rows), Served(), out, GenerateSettings(max_new_tokens=5))
    summary, page = shown(out)
    said = {"rows": 24, "different": 6, "same": 6, "empty": 6, "none": 6, "unfinished": 6}
    assert summary["rows"] == said
    assert summary["folds"] == []
    assert summary["answer"]["headline"].startswith("6 of 18 proposals differ")
    assert summary["failures"] == [{"cause": "truncated", "rows": 6}]
    assert [row["row"] % 3 for row in summary["examples"]["rows"]] == [2] * 6
    assert "6 of 24 rows have no proposal and will stay as they are" in page
    assert "6 of 18 proposals are empty" in page
    assert "--base-url http://h:9/v1" in summary["reproduce"]["command"]
    assert "&lt;b&gt;m&lt;/b&gt;" in page
    assert "<b>m</b>" not in page


def test_nothing_that_differs(copied):
    file = copied / "propose" / "proposals.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("proposal")
    pq.write_table(table.set_column(at, "proposal", table["completion"]), file)
    summary, page = shown(copied / "propose")
    assert summary["answer"]["status"] == "nothing"
    assert summary["examples"] == {"of": 0, "rows": []}
    assert "there is nothing to judge" in page


@pytest.mark.parametrize(("broken", "warned"), [(2, False), (3, True)])
def test_both_pages_warn_of_the_same_share_that_was_broken_off(copied, broken, warned):
    """One in twenty is no reason to look."""
    manifest = read_json(copied / "propose" / "run.json") | {"unfinished": broken}
    said = " ".join(summarise_propose(copied / "propose", manifest)["answer"]["warnings"])
    assert (f"{broken} of 40 proposals were broken off" in said) == warned
    file = copied / "evaluate" / "scores.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(file)] * 4), file)
    manifest = read_json(copied / "evaluate" / "run.json")
    for one in manifest["found"]:
        one["unfinished"] = broken
    said = " ".join(summarise_evaluate(copied / "evaluate", manifest)["answer"]["warnings"])
    assert (f"{broken} of 40 completions of" in said) == warned


# --- evaluations ----------------------------------------------------------------------------------


def test_scores_are_those_of_the_folder(finished):
    folder = finished[0] / "evaluate"
    summary, manifest = read_json(folder / "summary.json"), read_json(folder / "run.json")
    for one, found in zip(summary["found"], manifest["found"], strict=True):
        assert one.items() >= found.items()
        assert one["completions"] == 10
    assert [Path(one["what"]).stem for one in summary["found"]] == ["four", "seven", "base"]
    broken = manifest["found"][2]["unfinished"]
    assert broken > 0  # an untrained model does not stop by itself
    assert f"{broken} of 10 completions of" in " ".join(summary["answer"]["warnings"])
    rate = manifest["found"][1]["win"]["rate"]["value"]
    assert f"beats the first with probability {rate:.3f}" in summary["answer"]["verdict"]
    command = summary["reproduce"]["command"].split()
    assert [Path(word).stem for word in command[2:5]] == ["four", "seven", "base"]
    assert command[-2:] == ["--out", f"{folder}-again"]


def test_completions_of_rows_that_are_right_wrong_and_differ(finished):
    folder = finished[0] / "evaluate"
    listed = read_json(folder / "summary.json")["examples"]
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    lines = (finished[0] / "test.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    assert len(listed["rows"]) == sum(listed["of"].values()) == 10
    for row in listed["rows"]:
        mine = [said for said in table if said["row"] == row["row"]]
        assert [(a["what"], a["text"], a["score"], a["win"]) for a in row["answers"]] == [
            (said["what"], said["completion"], said["score"], said["win"]) for said in mine
        ]
        scores = {said["score"] for said in mine}
        kind = "differ" if len(scores) > 1 else "right" if scores == {1.0} else "wrong"
        assert (row["kind"], row["prompt"]) == (kind, prompts[row["row"]])
    assert listed["of"]["differ"] >= 7  # rows 0, 1 and 4 to 8 are right in one of two tables


def test_many_rows_are_drawn_in_turn_from_each_kind(copied):
    manifest, file = copied / "evaluate" / "run.json", copied / "evaluate" / "scores.parquet"
    what = [one["what"] for one in read_json(manifest)["found"]][:2]
    scores = [
        (1.0, 0.0) if k < 100 else (1.0, 1.0) if k < 104 else (None, None) for k in range(200)
    ]
    rows = [
        (one, k, f"sample {sample}", scores[k][i], None)
        for i, one in enumerate(what)
        for k in range(200)
        for sample in range(2)
    ]
    names = ("what", "row", "completion", "score", "win")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), file
    )
    change(manifest, lambda m: m.update(found=m["found"][:2]))
    shutil.rmtree(copied / "evaluate" / "stages")
    summary, page = shown(copied / "evaluate")
    kinds = [row["kind"] for row in summary["examples"]["rows"]]
    assert [kinds.count(kind) for kind in ("differ", "right", "wrong", "unscored")] == [
        13,
        4,
        0,
        13,
    ]
    assert summary["examples"]["of"] == {"differ": 100, "right": 4, "wrong": 0, "unscored": 96}
    assert len(kinds) == LISTED
    assert {row["prompt"] for row in summary["examples"]["rows"]} == {None}
    for row in summary["examples"]["rows"]:
        said = [(answer["what"], answer["text"]) for answer in row["answers"]]
        assert said == [(one, "sample 0") for one in what]
    assert "Prompts are stored only where a model was asked." in page
    assert summary["cost"] == {"seconds": {}}


def difference(low, high, n=200):
    return {"value": (low + high) / 2, "low": low, "high": high, "n": n, "level": 0.95}


@pytest.mark.parametrize(
    ("gains", "status", "said"),
    [
        ([(0.01, 0.2)], "better", "The second scores higher than the first on this test."),
        ([(-0.2, -0.1)], "worse", "The second scores lower"),
        ([(0.0, 0.0)], "same", "the same as the first, row by row"),
        ([(-0.1, 0.1)], "unsure", "Not clear: the test cannot tell the second from the first."),
        ([(0.01, 0.2)] * 2, "better", "All others score higher"),
        ([(0.01, 0.2), (-0.1, 0.1)], "mixed", "not all on one side"),
        ([(0.01, 0.2), (0.01, 0.2, 4)], "mixed", "not all on one side"),
        ([(0.01, 0.2, 4)], "unknown", "Too few rows"),
        ([], "alone", "nothing to compare it with"),
    ],
)
def test_page_says_first_if_the_others_score_higher(copied, gains, status, said):
    def edit(manifest):
        del manifest["found"][1 + len(gains) :]
        for one, gain in zip(manifest["found"][1:], gains, strict=True):
            one["gain"] = difference(*gain)

    change(copied / "evaluate" / "run.json", edit)
    summary, page = shown(copied / "evaluate")
    assert summary["answer"]["status"] == status
    assert said in summary["answer"]["headline"]
    assert page.index(summary["answer"]["headline"]) < page.index("<table>")
    if status == "unknown":
        assert summary["found"][1]["gain"]["value"] is None
        assert "too few (n = 4)" in page


def test_one_row_is_said_once(copied):
    manifest = read_json(copied / "evaluate" / "run.json")
    for n, noted in ((1, False), (4, False), (5, True)):
        for one in manifest["found"]:
            one["score"] = difference(0.0, 1.0, n)
            one["gain"] = one["gain"] and difference(-1.0, 1.0, n)
        answer = summarise_evaluate(copied / "evaluate", manifest)["answer"]
        assert (f"Only {n} rows: they can show" in " ".join(answer["notes"])) == noted
        few = "only 1 row." if n == 1 else f"only {n} rows."
        assert (few in answer["verdict"]) == (not noted)
        alone = summarise_evaluate(copied / "evaluate", manifest | {"found": manifest["found"][:1]})
        assert (few in alone["answer"]["verdict"]) == (not noted)


def test_judge_that_looks_at_places_is_said(copied):
    def edit(manifest):
        manifest["judge"] = {"name": "llm", "model": "m & m", "samples": 3, "criterion": "kind"}
        manifest["found"][1]["win"] |= {"consistent": difference(0.0, 0.2), "unjudged": 3}
        manifest["found"][2] |= {"win": None, "unscored": 2}

    change(copied / "evaluate" / "run.json", edit)
    summary, page = shown(copied / "evaluate")
    said = " ".join(summary["answer"]["warnings"])
    assert "3 of 10 completions of" in said
    assert "in both orders in 10.0% of 200 pairs" in said
    assert "2 of 10 completions of" in said
    assert "m &amp; m" in page
    assert "--judge llm --model 'm & m' --samples 3" in summary["reproduce"]["command"]


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "file", "summarise"),
    [
        ("sft", "training.json", summarise_training),
        ("propose", "run.json", summarise_propose),
        ("evaluate", "run.json", summarise_evaluate),
    ],
)
def test_damaged_and_foreign_folders_end_with_one_sentence(copied, verb, file, summarise):
    path = copied / verb / file
    whole = read_json(path)
    path.write_text(json.dumps(whole | {"format_version": 9}))
    with pytest.raises(WhetError, match="has format 9 and this whet knows 1"):
        summarise(copied / verb)
    lost = {"sft": "history", "propose": "data_sha256", "evaluate": "data_sha256"}[verb]
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != lost}))
    ended = whet(["report", str(copied / verb)])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"is damaged (KeyError: '{lost}')" in ended.err


# --- hostile rows ---------------------------------------------------------------------------------

ODD = [*MARKUP, *HOSTILE.values()]


@pytest.fixture(scope="module")
def hostile(finished, tmp_path_factory):
    """Pages of folders in which everything that a user can name or write is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    aside = shutil.ignore_patterns("models", "completions", "model.safetensors")
    for verb in VERBS:
        shutil.copytree(finished[0] / verb, folder / verb, ignore=aside)
    name = MARKUP[1] + MARKUP[8] + MARKUP[3]

    def trained(account):
        account["model"] = name
        account["lint"] |= {"marker": name, "unanswered": 3}

    for verb in ("sft", "dpo"):
        change(folder / verb / "training.json", trained)
    given = {"rows": name, "task": name, "options": [name, "-x"], "data": name}
    proposed = {"marker": name, "unanswered": 3, "given": given, "versions": {name: name}}
    change(folder / "propose" / "run.json", lambda m: m.update(proposed))
    texts = ODD[: len(ODD) // 2 * 2]
    half = len(texts) // 2
    rows = {"row": range(half), "prompt": texts[:half], "completion": texts[half:]}
    table = pa.table(rows | {"proposal": texts[:half], "fold": [0] * half})
    pq.write_table(table, folder / "propose" / "proposals.parquet")
    found = read_json(folder / "evaluate" / "run.json")["found"]
    names = [MARKUP[0], name, MARKUP[10] + "W" * 300]
    said = {
        "what": [one for one in names for _ in ODD],
        "row": [*range(len(ODD))] * 3,
        "completion": ODD * 3,
        "score": [float(k % 2) for k in range(len(ODD))] * 3,
        "win": [None] * 3 * len(ODD),
        "failure": ODD * 3,
    }
    pq.write_table(pa.table(said), folder / "evaluate" / "scores.parquet")

    def evaluated(manifest):
        manifest["task"] = name
        manifest["what"] = dict.fromkeys(names, "0" * 64)
        manifest["found"] = [o | {"what": n} for o, n in zip(found, names, strict=True)]
        manifest["judge"] = {"name": name, "model": MARKUP[2]}
        manifest["given"] = given

    change(folder / "evaluate" / "run.json", evaluated)
    for verb in VERBS:
        assert whet(["report", str(folder / verb)]).code == 0
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_hostile_rows_add_no_element(hostile, verb):
    page = (hostile / verb / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    plain = "head meta title style body main footer section nav ul li h1 h2 h3 p strong em figure"
    plain += " img a div table caption thead tbody tr th td bdi details summary pre code br html"
    assert {tag for tag, _ in elements.found} <= {*plain.split(), "span", "del", "ins"}
    attributes = {name for _, given in elements.found for name in given}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}
    assert {c for c in page if not c.isprintable()} <= set("\n\t\u200c\u200d\u00ad")
    assert page.index("Content-Security-Policy") < page.index("<style>")
    said = "".join(elements.said)
    assert "{{7*7}}" in said  # data is no template
    assert "[U+202E]" in said
    assert len(page.encode()) < 3_000_000
    if verb in ("propose", "evaluate"):
        assert sum(visible(text)[:40] in said for text in MARKUP) > len(MARKUP) / 2


def darkness(tab, box):
    """How dark the right edge of a box is, 0 to 1, the median over its height."""
    from matplotlib.image import imread

    place = box.bounding_box()
    edge = {"x": place["x"] + place["width"] - 3, "y": place["y"], "width": 2}
    shot = imread(io.BytesIO(tab.screenshot(clip=edge | {"height": place["height"]})))
    return 1 - float(np.median(shot[..., :3]))


def test_what_is_cut_on_a_phone_shows_that_it_scrolls(browser, finished):  # noqa: F811
    """By a shadow at the side where there is more; at the end there is none."""
    phone = {"width": 400, "height": 5000}
    tab, _, _ = opened(browser, finished[0] / "propose" / "report.html", viewport=phone)
    tab.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    for name in ("figure >> nth=0", ".wide >> nth=0"):
        box = tab.locator(name)
        assert box.evaluate("b => b.scrollWidth - b.clientWidth") > 30
        assert darkness(tab, box) > 0.2
        box.evaluate("b => b.scrollTo(b.scrollWidth, 0)")
        assert darkness(tab, box) < 0.1
    whole = tab.locator(".wide >> nth=-1")
    assert whole.evaluate("b => b.scrollWidth - b.clientWidth") == 0
    assert darkness(tab, whole) < 0.1
    tab.close()


def test_hostile_pages_do_nothing_in_a_browser_and_fit_a_phone(browser, hostile):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    for verb in VERBS:
        path = hostile / verb / "report.html"
        phone = {"width": 400, "height": 800}
        tab, asked, said = opened(browser, path, color_scheme="dark", viewport=phone)
        assert [url for url in asked if not url.startswith("data:image/svg")] == [path.as_uri()]
        assert said == []
        assert tab.evaluate("window.pwned") is None
        assert tab.locator("h1").count() == 1
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
        assert tab.evaluate("document.images.length") == (2 if verb == "propose" else 1)
        for details in tab.locator("details").all():
            details.locator("summary").first.click()
        assert tab.evaluate("document.documentElement.scrollWidth") == 400, verb
        if verb in ("dpo", "evaluate"):  # what the others have, too
            found = axe.Axe().run(tab).response["violations"]
            serious = [v for v in found if v["impact"] in ("serious", "critical")]
            assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == [], verb
        tab.close()


def test_pages_do_not_grow_with_the_rows(copied):
    file = copied / "propose" / "proposals.parquet"
    table = pq.read_table(file)
    write_report(copied / "propose", summarise_propose(copied / "propose"))
    small = (copied / "propose" / "report.html").stat().st_size
    pq.write_table(pa.concat_tables([table] * 50), file)
    write_report(copied / "propose", summarise_propose(copied / "propose"))
    assert (copied / "propose" / "report.html").stat().st_size < 2 * small
