"""Label Studio and Argilla: the sample goes out, answers come back or are refused."""

import json
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from helpers import whet
from whet.errors import WhetError
from whet.review.comparing import open_comparison
from whet.review.exchange import export_items, import_answers
from whet.review.labelling import open_labels
from whet.tables import read_table, write_table

TABLE = {
    "text": [f'text {i} <b>&"' for i in range(20)],
    "llm": ['spam & "eggs"' if i % 2 else "<ham>" for i in range(20)],
}


def opened(folder, **settings):
    given = {"text": "text", "pseudo": "llm", "n": 6, "out": folder / "gold.parquet"} | settings
    return open_labels(TABLE, **given)


def annotated(task, choice, who=7, **more):
    """Return a task as Label Studio's JSON export has it."""
    result = {
        "id": "x",
        "from_name": "label",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": [choice]},
        "origin": "manual",
    }
    annotation = {
        "id": 1,
        "completed_by": who,
        "result": [] if choice is None else [result],
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": 4.288,
    }
    return {"id": 1, "annotations": [annotation | more], "drafts": [], **task}


def answered(record, *responses):
    """Return a record as Argilla's ``records.to_json`` has it."""
    said = [{"value": value, "user_id": who} for who, value in responses]
    return record | {"responses": {"label": said}, "_server_id": "0", "status": "completed"}


def test_label_studio_there_and_back(tmp_path):
    with opened(tmp_path) as session:
        written = export_items(session, "label-studio")
        tasks = json.loads(written["tasks"].read_text())
        assert [task["data"]["row"] for task in tasks] == [item.row for item in session.items]
        assert all(task["data"]["text"] == TABLE["text"][task["data"]["row"]] for task in tasks)
        assert not any("predictions" in task for task in tasks)
        view = ElementTree.fromstring(written["labelling interface"].read_text())
        assert [c.get("value") for c in view.iter("Choice")] == session.classes
        (choices,) = view.iter("Choices")
        (text,) = view.iter("Text")
        assert (choices.get("name"), choices.get("toName")) == ("label", text.get("name"))
        assert text.get("value") == "$text"
        export = [annotated(task, "<ham>", {"email": "ann@x.org", "id": 3}) for task in tasks[:3]]
        export += [annotated(tasks[3], None), annotated(tasks[4], "<ham>", was_cancelled=True)]
        export += [tasks[5]]
        file = tmp_path / "export.json"
        file.write_text(json.dumps(export))
        assert import_answers(session, file) == 4
        assert import_answers(session, file) == 4
        progress = session.progress("label-studio ann@x.org")
        assert progress["answered"] == 3
        assert progress["median_seconds"] == 4.288
        assert session.progress("label-studio 7")["unsure"] == 1
        gold = read_table(session.write())["gold"].to_pylist()
        assert [gold[task["data"]["row"]] for task in tasks] == ["<ham>"] * 3 + [None] * 3


def test_argilla_there_and_back(tmp_path):
    with opened(tmp_path) as session:
        records = json.loads(export_items(session, "argilla")["records"].read_text())
        assert [int(record["id"]) for record in records] == [item.row for item in session.items]
        assert records[0]["fields"] == {"text": TABLE["text"][int(records[0]["id"])]}
        assert all(record["suggestions"] == {} for record in records)
        export = [
            answered(records[0], ("ann", "<ham>"), ("bob", 'spam & "eggs"')),
            answered(records[1], ("ann", "<ham>"), ("bob", None)),
            records[2],
        ]
        file = tmp_path / "export.jsonl"
        file.write_text("\n".join(json.dumps(entry) for entry in export))
        assert import_answers(session, file) == 3
        assert session.agreement()["disagreements"] == 1
        assert session.progress("me")["annotators"] == {"argilla ann": 2, "argilla bob": 1}


def test_drafts_and_discarded_responses_are_no_answers(tmp_path):
    with opened(tmp_path) as session:
        records = json.loads(export_items(session, "argilla")["records"].read_text())
        states = ["submitted", "draft", "discarded", None]
        export = [answered(record, ("ann", "<ham>")) for record in records[:5]]
        for entry, status in zip(export, states, strict=False):  # the fifth has none
            entry["responses"]["label"][0]["status"] = status
        (tmp_path / "e.json").write_text(json.dumps(export))
        assert import_answers(session, tmp_path / "e.json") == 3
        assert [row.row for row in session.answered()] == [
            int(records[place]["id"]) for place in (0, 3, 4)
        ]


def test_labels_of_the_annotator_leave_only_if_they_may_be_seen(tmp_path):
    with opened(tmp_path, show_pseudo=True) as session:
        tasks = json.loads(export_items(session, "label-studio")["tasks"].read_text())
        records = json.loads(export_items(session, "argilla")["records"].read_text())
    for task, record in zip(tasks, records, strict=True):
        label = TABLE["llm"][task["data"]["row"]]
        assert task["predictions"][0]["result"][0]["value"]["choices"] == [label]
        assert record["suggestions"]["label"]["value"] == label


def test_comparisons_can_be_exchanged_too(tmp_path):
    table = {"prompt": ["1?", "2?"], "completion": ["x", "y"], "proposal": ["v", "w"]}
    write_table(pa.table(table), tmp_path / "p.jsonl")
    with open_comparison(tmp_path / "p.jsonl", out=tmp_path / "judged.jsonl") as session:
        written = export_items(session, "label-studio")
        tasks = json.loads(written["tasks"].read_text())
        assert set(tasks[0]["data"]) == {"row", "prompt", "left", "right"}
        view = ElementTree.fromstring(written["labelling interface"].read_text())
        assert [text.get("value") for text in view.iter("Text")] == ["$prompt", "$left", "$right"]
        (tmp_path / "e.json").write_text(json.dumps([annotated(t, "same") for t in tasks]))
        import_answers(session, tmp_path / "e.json")
        assert read_table(session.write())["score"].to_pylist() == [0.5, 0.5]


FIRST = {"data": {"row": "ROW", "text": "x"}}
BAD = [
    ([annotated(FIRST, "eggs")], "entry 1 of .*'eggs' is no class"),
    ([annotated({"data": {"row": 99}}, "<ham>")], "entry 1 of .*row 99 is not among the 6 rows"),
    ([annotated(FIRST, "<ham>")] * 2, "entry 2 of .*label-studio 7 answered row .* twice"),
    ([annotated({"data": {"text": "x"}}, "<ham>")], "entry 1 of .*laid out otherwise .KeyError"),
    ([{"data": {}, "annotations": 3}], "laid out otherwise"),
    ([{"text": "x", "label": "<ham>"}], "neither annotations nor responses"),
    (["text"], "laid out otherwise|neither"),
    ([FIRST], "holds no answers"),
    ([], "no entries"),
    ("[{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_a_file_that_does_not_fit_is_refused_whole(tmp_path, content, said):
    with opened(tmp_path) as session:
        text = content if isinstance(content, str) else json.dumps(content)
        first, second = (str(item.row) for item in session.items[:2])
        good = json.dumps(annotated({"data": {"row": int(second)}}, "<ham>"))
        text = text.replace('"ROW"', first)
        if text.endswith("}]"):  # a good answer before the end is not taken either
            text = f"{text[:-1]}, {good}]" if "entry" in said else text
        file = tmp_path / "export.json"
        file.write_text(text)
        with pytest.raises(WhetError, match=said):
            import_answers(session, file)
        assert session.answered() == []
        with pytest.raises(WhetError, match="cannot be read"):
            import_answers(session, tmp_path / "none.json")
        with pytest.raises(WhetError, match="did you mean 'argilla'"):
            export_items(session, "argila")


def test_two_choices_for_one_row_are_refused(tmp_path):
    with opened(tmp_path) as session:
        entry = annotated({"data": {"row": session.items[0].row}}, "<ham>")
        entry["annotations"][0]["result"] *= 2
        (tmp_path / "e.json").write_text(json.dumps([entry]))
        with pytest.raises(WhetError, match="has 2 choices"):
            import_answers(session, tmp_path / "e.json")


def test_the_command_exports_and_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(
        "text,llm\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(9))
    )
    common = ["label", "c.csv", "--text", "text", "--pseudo", "llm", "--n", "4"]
    ended = whet([*common, "--export", "label-studio"])
    assert ended.code == 0, ended.err
    assert "gold.label-studio.json" in ended.out
    tasks = json.loads((tmp_path / "gold.label-studio.json").read_text())
    (tmp_path / "back.json").write_text(json.dumps([annotated(t, "a") for t in tasks]))
    ended = whet([*common, "--import", "back.json"])
    assert ended.code == 0, ended.err
    assert "4 of 4 rows are answered." in ended.out
    assert read_table(tmp_path / "gold.parquet")["gold"].to_pylist().count("a") == 4
    assert whet([*common, "--import", "back.json", "--tui"]).code == 2
