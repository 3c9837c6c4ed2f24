"""Label Studio and Argilla: the sample goes out, answers come back or are refused."""

import json
import os
import urllib.request
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


def result(choice, **more):
    value = {"choices": [choice]}
    return {"value": value, "from_name": "label", "to_name": "text", "type": "choices"} | more


def annotated(task, choice, who=7, **more):
    """Return a task as the JSON export of Label Studio 1.23 has it."""
    annotation = {
        "id": 1,
        "completed_by": who,
        "result": [] if choice is None else [result(choice, id="GQsPGN", origin="manual")],
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": 4.288,
        "prediction": {},
        "updated_by": 1,
        "parent_prediction": None,
    }
    return {"id": 1, "annotations": [annotation | more], "drafts": [], "predictions": [], **task}


def minimal(task, choice, who=7, **more):
    """Return an entry of the JSON-MIN export of Label Studio 1.23."""
    said = {} if choice is None else {"label": choice}  # nothing chosen: no key
    about = {"annotator": who, "annotation_id": 1, "lead_time": 4.288}
    return {**task["data"], "id": 1, **said, **about, **more}


def answered(record, *responses):
    """Return a record as ``records.to_list(flatten=True)`` of Argilla 2.8 gives it."""
    columns = [list(column) or None for column in zip(*responses, strict=True)] or [None] * 3
    names = ("label.responses", "label.responses.users", "label.responses.status")
    flat = {"id": record["id"], "status": "completed", "_server_id": "0", **record["fields"]}
    return flat | dict(zip(names, columns, strict=True))


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
        progress = session.progress("label-studio 3")
        assert progress["answered"] == 3
        assert progress["median_seconds"] == 4.288
        assert session.progress("label-studio 7")["unsure"] == 1
        gold = read_table(session.write())["gold"].to_pylist()
        assert [gold[task["data"]["row"]] for task in tasks] == ["<ham>"] * 3 + [None] * 3
        export[:1] = [annotated(tasks[0], 'spam & "eggs"', 3)]  # changed there since
        file.write_text(json.dumps(export))
        assert import_answers(session, file) == 4
        assert session.answered()[0].answers == {"label-studio 3": 'spam & "eggs"'}


def test_the_short_export_of_label_studio_says_the_same(tmp_path):
    with opened(tmp_path) as session, opened(tmp_path, out=tmp_path / "min.csv") as short:
        tasks = json.loads(export_items(session, "label-studio")["tasks"].read_text())
        said = [("<ham>", 3), ("<ham>", 7), (None, 3)]
        person = {"id": 3, "email": "ann@x.org", "first_name": "", "last_name": ""}
        full = [
            annotated(task, choice, person if who == 3 else who)
            for task, (choice, who) in zip(tasks, said, strict=False)
        ]
        brief = [minimal(task, *each) for task, each in zip(tasks, said, strict=False)]
        brief.append(minimal(tasks[3], None, None, annotation_id=None))  # nobody was there
        (tmp_path / "full.json").write_text(json.dumps(full))
        (tmp_path / "brief.json").write_text(json.dumps(brief))
        assert import_answers(session, tmp_path / "full.json") == 3
        assert import_answers(short, tmp_path / "brief.json") == 3
        assert short.answered() == session.answered()
        assert short.progress("label-studio 3") == session.progress("label-studio 3")


def test_argilla_there_and_back(tmp_path):
    with opened(tmp_path) as session:
        records = json.loads(export_items(session, "argilla")["records"].read_text())
        assert [int(record["id"]) for record in records] == [item.row for item in session.items]
        assert records[0]["fields"] == {"text": TABLE["text"][int(records[0]["id"])]}
        assert all(record["suggestions"] == {} for record in records)
        export = [
            answered(
                records[0], ("<ham>", "ann", "submitted"), ('spam & "eggs"', "bob", "submitted")
            ),
            answered(records[1], ("<ham>", "ann", "submitted"), (None, "bob", "submitted")),
            answered(records[2], ("<ham>", "ann", "draft"), ("<ham>", "bob", "discarded")),
            answered(records[3]),
            {"id": records[4]["id"], "status": "pending", "_server_id": "0", "text": "x"},
        ]
        file = tmp_path / "export.jsonl"
        file.write_text("\n".join(json.dumps(entry) for entry in export))
        assert import_answers(session, file) == 3
        assert session.agreement()["disagreements"] == 1
        assert session.progress("me")["annotators"] == {"argilla ann": 2, "argilla bob": 1}


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


FIRST = {"data": {"row": "ROW", "text": "TEXT"}}
NESTED = {"id": "ROW", "fields": {"text": "TEXT"}, "_server_id": "0", "responses": {"label": []}}
FLAT = {"id": "ROW", "text": "TEXT", "label.responses": ["<ham>"], "label.responses.users": ["a"]}
BAD = [
    ([annotated(FIRST, "eggs")], "entry 1 of .*'eggs' is no class"),
    ([minimal(FIRST, "eggs")], "entry 1 of .*'eggs' is no class"),
    ([annotated({"data": {"row": 99}}, "<ham>")], "entry 1 of .*row 99 is not among the 6 rows"),
    ([annotated(FIRST, "<ham>")] * 2, "entry 2 of .*label-studio 7 answered row .* twice"),
    ([annotated({"data": {"text": "x"}}, "<ham>")], "entry 1 of .*laid out otherwise .KeyError"),
    ([annotated({"data": {"row": "ROW", "text": "x"}}, "<ham>")], "entry 1 of .*another text"),
    ([minimal({"data": {"row": "ROW"}}, "<ham>")], "entry 1 of .*another text"),
    ([FLAT | {"text": "x", "label.responses.status": ["submitted"]}], "entry 1 of .*another text"),
    ([FLAT], "laid out otherwise .KeyError: 'label.responses.status'"),
    ([NESTED], r"entry 1 of .*drafts or discarded: write records.to_list\(flatten=True\)"),
    ([{"data": {}, "annotations": 3}], "laid out otherwise"),
    ([annotated({"data": {"row": float("inf")}}, "<ham>")], "laid out otherwise .OverflowError"),
    ([{"text": "x", "label": "<ham>"}], "neither a task nor a record"),
    (["text"], "laid out otherwise|neither"),
    ([FIRST], "holds no answers"),
    ([], "no entries"),
    ("[{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ('"annotation_id","annotator","label","row"\n1,"7","<ham>",0\n', "export it as JSON"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_a_file_that_does_not_fit_is_refused_whole(tmp_path, content, said):
    with opened(tmp_path) as session:
        text = content if isinstance(content, str) else json.dumps(content)
        first, second = (item.row for item in session.items[:2])
        data = {"row": second, "text": TABLE["text"][second]}
        good = json.dumps(annotated({"data": data}, "<ham>"))
        text = text.replace('"ROW"', str(first)).replace('"TEXT"', json.dumps(TABLE["text"][first]))
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
        row = session.items[0].row
        task = {"data": {"row": row, "text": TABLE["text"][row]}}
        both = ["<ham>", 'spam & "eggs"']
        entries = [  # two results, one result with two choices; each in both exports
            annotated(task, None, result=[result(choice) for choice in both]),
            annotated(task, None, result=[result(None, value={"choices": both})]),
            minimal(task, both),
            minimal(task, {"choices": both}),
        ]
        for entry in entries:
            (tmp_path / "e.json").write_text(json.dumps([entry]))
            with pytest.raises(WhetError, match=f"row {row} has 2 choices"):
                import_answers(session, tmp_path / "e.json")
        why = result(None, from_name="why", type="textarea", value={"text": ["because"]})
        entry = annotated(task, None, result=[why, result("<ham>")])  # a question added there
        (tmp_path / "e.json").write_text(json.dumps([entry]))
        assert import_answers(session, tmp_path / "e.json") == 1


@pytest.mark.parametrize("name", ["over $5", "$text", "${x}", "a\x01b"])
def test_a_class_that_label_studio_would_change_is_not_exported(tmp_path, name):
    with opened(tmp_path, pseudo=None, classes=["a $", "b\n<&>", name]) as session:
        with pytest.raises(WhetError, match="Label Studio cannot show the class"):
            export_items(session, "label-studio")
        assert not list(tmp_path.glob("*.xml"))
        assert export_items(session, "argilla")["records"].exists()


def test_a_real_label_studio(tmp_path):
    url, token = os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_TOKEN")
    if not (url and token):
        pytest.skip("LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN (a legacy token) are not set")

    def call(path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    with opened(tmp_path, show_pseudo=True) as session:
        written = export_items(session, "label-studio")
        interface = written["labelling interface"].read_text()
        project = json.loads(call("/api/projects", {"title": "whet", "label_config": interface}))
        place = f"/api/projects/{project['id']}"
        try:
            tasks = json.loads(written["tasks"].read_text())
            assert json.loads(call(f"{place}/import", tasks))["prediction_count"] == 6
            there = json.loads(call(f"{place}/tasks?page_size=9"))
            number = {task["data"]["row"]: task["id"] for task in there}
            rows = [task["data"]["row"] for task in tasks]
            for row in rows[:4]:
                said = {"result": [result("<ham>")], "lead_time": 2.5}
                said["was_cancelled"] = row == rows[3]
                call(f"/api/tasks/{number[row]}/annotations/", said)
            for kind in ("JSON", "JSON_MIN"):
                (tmp_path / kind).write_bytes(call(f"{place}/export?exportType={kind}"))
                assert import_answers(session, tmp_path / kind) == 3
        finally:
            call(place, method="DELETE")
        (who,) = session.progress("me")["annotators"]
        assert session.progress(who)["median_seconds"] == 2.5
        expected = {row: {who: "<ham>"} for row in rows[:3]}
        assert {found.row: found.answers for found in session.answered()} == expected


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
    back = [annotated(task, "a", lead_time=None) for task in tasks]
    (tmp_path / "back.json").write_text(json.dumps(back))
    ended = whet([*common, "--import", "back.json"])
    assert ended.code == 0, ended.err
    assert "4 of 4 rows are answered." in ended.out
    assert "by label-studio 7" in ended.out
    assert "median" not in ended.out  # of times that nobody took
    assert read_table(tmp_path / "gold.parquet")["gold"].to_pylist().count("a") == 4
    assert whet([*common, "--import", "back.json", "--tui"]).code == 2
