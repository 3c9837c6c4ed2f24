"""Tasks: those that come with whet, and what is said of a task file that is none."""

import re
from importlib import resources

import pytest
import yaml

from conftest import ROOT
from whet.annotate.prompts import delimited, label_request, opening, packed_request, parse_label
from whet.annotate.task import Example, Task, known_tasks, load_task, parse_task
from whet.errors import WhetError

FOLDER = resources.files("whet.annotate") / "tasks"
NAMES = {
    "corona_sentiment": ["positive", "negative"],
    "fake_news": ["fake", "real"],
    "financial_sentiment": ["positive", "negative", "neutral"],
    "green_patents": ["green", "not_green"],
    "media_bias": ["biased", "not_biased"],
    "movie_sentiment": ["positive", "negative"],
    "protein_binding": ["binds", "does_not_bind"],
    "refusal": ["refusal", "compliance"],
    "safety": ["safe", "unsafe"],
    "satire": ["satire", "not_satire"],
}
GOLD = [
    ("media_bias", "babe_llm"),
    ("media_bias", "anno_lexical_llm_only"),
    ("refusal", "xstest_refusal_gpt4judge"),
    ("fake_news", "covid_fake_news"),
    ("movie_sentiment", "mr_chatgpt"),
    ("financial_sentiment", "fpb_llm"),
]
PLAIN = "name: spam\ninstruction: Is it spam?\nclasses: [spam, ham]\n"


def problem(content, source="my.yaml"):
    """Return what is said of a task file: one sentence that names the file."""
    with pytest.raises(WhetError) as raised:
        parse_task(content, source)
    message = str(raised.value)
    assert source in message
    assert "\n" not in message
    return message


# --- the tasks that come with whet ----------------------------------------------------------------


def test_the_tasks_are_these():
    assert known_tasks() == sorted(NAMES)
    held = {p.name for p in FOLDER.iterdir() if not p.name.startswith("__")}
    assert held == {f"{name}.yaml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_task_is_complete(name):
    task = load_task(name)
    assert task.name == name
    assert list(task.classes) == NAMES[name]
    assert all(about.endswith(".") and about.count(".") == 1 for about in task.classes.values())
    assert len(set(task.classes.values())) == len(task.classes)
    assert 2 <= len(re.findall(r"[.?](?: |$)", task.instruction)) <= 4
    assert task.examples == ()
    assert task.gold_examples == 0
    assert not task.explain


@pytest.mark.parametrize("name", NAMES)
def test_task_renders_and_becomes_a_prompt(name):
    task = load_task(name)
    row = {column: f"value of {column} {{text}}" for column in task.columns}
    text = task.render(row)
    assert all(value in text for value in row.values())
    system = dict(opening(task))["system"]
    assert task.instruction in system
    assert all(f"- {label}: {about}" in system for label, about in task.classes.items())
    request = label_request(task, text)
    assert request.messages[-1] == ("user", delimited(text))
    assert request.choices == tuple(task.classes)
    assert "check" in packed_request(task, [text, text]).messages[-1][1]
    for label in task.classes:
        assert parse_label(f'{{"label": "{label}"}}', list(task.classes)).label == label


@pytest.mark.parametrize("name", NAMES)
def test_task_file_says_what_it_expects(name):
    content = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head = content.split("name:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    assert " Fits " in head.replace("# Fits", " Fits")
    for column in load_task(name).columns:
        assert f"{column}:" in head
    assert max(map(len, content.splitlines())) <= 100
    assert content.isascii()


@pytest.mark.parametrize("name", NAMES)
def test_task_survives_being_written(name):
    task = load_task(name)
    assert parse_task(yaml.safe_dump(task.as_dict()), "again") == task


def test_two_columns_make_one_text():
    task = load_task("refusal")
    assert task.columns == ["prompt", "completion"]
    assert task.render({"prompt": "a {completion}", "completion": "b"}) == (
        "Request:\na {completion}\n\nReply:\nb"
    )
    assert load_task("safety").columns == ["prompt", "response"]


@pytest.mark.parametrize(("name", "data"), GOLD)
def test_class_names_are_those_of_the_data(dataset, name, data):
    pandas = pytest.importorskip("pandas")
    task = load_task(name)
    files = sorted(dataset(data).glob("*.parquet"))
    assert files
    for file in files:
        frame = pandas.read_parquet(file)
        assert set(frame["label_name"]) == set(task.classes)
        assert set(task.columns) <= set(frame.columns)


@pytest.mark.parametrize(("name", "data"), GOLD)
def test_no_row_of_the_data_stands_in_a_task(dataset, name, data):
    pandas = pytest.importorskip("pandas")
    content = " ".join((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").casefold().split())
    for file in sorted(dataset(data).glob("*.parquet")):
        for text in pandas.read_parquet(file)["text"]:
            row = " ".join(text.casefold().split())
            assert len(row) < 25 or row not in content


def test_wheel_holds_the_yaml_files():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "**/*.yaml" in project["tool"]["setuptools"]["package-data"]["whet"]


# --- reading a task -------------------------------------------------------------------------------


def test_smallest_task_has_the_defaults():
    assert parse_task(PLAIN, "t") == Task("spam", "Is it spam?", {"spam": "", "ham": ""})


def test_full_task_is_read_as_written():
    task = parse_task(
        """
        name: spam
        instruction: |
          Is it
          spam?
        classes:
          - name: spam
            description: >
              Wants
              money.
          - ham
        examples:
          - {text: "WIN\\nNOW", label: spam, explanation: It promises.}
        template: "{subject}: {body} {subject}"
        explain: true
        """,
        "t",
    )
    assert task == Task(
        "spam",
        "Is it spam?",
        {"spam": "Wants money.", "ham": ""},
        (Example("WIN\nNOW", "spam", "It promises."),),
        template="{subject}: {body} {subject}",
        explain=True,
    )
    assert list(task.classes) == ["spam", "ham"]
    assert task.columns == ["subject", "body"]
    assert parse_task(yaml.safe_dump(task.as_dict()), "again") == task


def test_task_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# Größe\n" + PLAIN.replace("ham", "größe"), encoding="utf-8")
    assert load_task(path) == load_task(str(path))
    assert list(load_task(path).classes) == ["spam", "größe"]


def test_file_goes_before_a_task_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media_bias").write_text(PLAIN)
    assert load_task("media_bias").name == "spam"
    assert load_task("satire").name == "satire"


# --- files that are none --------------------------------------------------------------------------


def test_missing_file_is_refused_with_the_nearest_task():
    with pytest.raises(WhetError) as raised:
        load_task("media_bais")
    assert str(raised.value) == (
        "the task media_bais is neither a file nor a task that comes with whet (did you mean "
        "'media_bias'?): write a YAML file with name, instruction and classes"
    )


def test_missing_file_is_refused_with_all_tasks_where_none_is_near():
    with pytest.raises(WhetError) as raised:
        load_task("0.yml")
    message = str(raised.value)
    assert message.startswith("the task 0.yml is neither a file nor a task that comes with whet")
    assert all(repr(name) in message for name in NAMES)
    assert message.endswith("write a YAML file with name, instruction and classes")


def test_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_bytes(b"name: \xff\xfe")
    for source in (path, tmp_path):
        with pytest.raises(WhetError, match=r"cannot be read \(.+\): mend it$") as raised:
            load_task(source)
        assert str(source) in str(raised.value)


def test_error_names_the_file(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("name: a")
    with pytest.raises(WhetError, match=re.escape(f"the task {path} has no instruction: add it")):
        load_task(path)


@pytest.mark.parametrize(
    "content",
    [
        "name: [",
        "name: 'a",
        "\tname: a",
        "a: b: c",
        "name: a\n---\nname: b",
        "name: \x00",
        "!!python/object/apply:os.system [ls]",
    ],
)
def test_what_is_not_yaml_is_refused_with_the_reason(content):
    message = problem(content)
    assert message.startswith("the task my.yaml is not readable YAML (")
    assert message.endswith("): mend it")
    assert len(message) > 70


@pytest.mark.parametrize("content", ["", "# nothing", "spam", "- a\n- b", "5", "null"])
def test_yaml_without_keys_is_refused(content):
    assert problem(content) == (
        "the task my.yaml holds no keys: write name, instruction and classes"
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("clases", "(did you mean 'classes'?)"),
        ("exampels", "(did you mean 'examples'?)"),
        ("Instruction", "(did you mean 'instruction'?)"),
        ("temlpate", "(did you mean 'template'?)"),
        ("zzz", "(valid: 'name', 'instruction', 'classes'"),
        (7, "(valid: 'name', 'instruction', 'classes'"),
    ],
)
def test_unknown_key_is_refused_with_a_hint(key, hint):
    message = problem(f"{PLAIN}{key}: x")
    assert f"the task my.yaml has the unknown key {key!r}" in message
    assert hint in message
    assert message.endswith(": correct or remove it")


@pytest.mark.parametrize("key", ["name", "instruction", "classes"])
def test_missing_key_is_named(key):
    content = "\n".join(line for line in PLAIN.splitlines() if not line.startswith(key))
    assert problem(content) == f"the task my.yaml has no {key}: add it"


@pytest.mark.parametrize("classes", ["[]", "[spam]", "[{name: spam, description: Bad.}]"])
def test_fewer_than_two_classes_are_refused(classes):
    assert problem(f"name: a\ninstruction: b\nclasses: {classes}") == (
        "the task my.yaml has fewer than 2 classes: name at least two"
    )


@pytest.mark.parametrize(
    ("first", "second"), [("Spam", "spam"), ("spam", "spam"), ("Straße", "STRASSE"), ("é", "É")]
)
def test_classes_that_differ_but_for_case_are_refused(first, second):
    for written in (f"[{first}, ham, {second}]", f"[{{name: {first}}}, ham, {{name: {second}}}]"):
        message = problem(f"name: a\ninstruction: b\nclasses: {written}")
        assert f"has the classes {first!r} and {second!r}" in message
        assert message.endswith(": rename one")


@pytest.mark.parametrize("name", [" spam", "spam ", "a\nb", "a\tb", "a\x7fb", "a\u202eb"])
def test_class_with_space_around_or_control_characters_is_refused(name):
    keys = {"name": "a", "instruction": "b", "classes": [name, "ham"]}
    message = problem(yaml.safe_dump(keys))
    assert f"the class {name!r} of the task my.yaml" in message
    assert message.endswith(": rename it")


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("spma", "(did you mean 'spam'?)"),
        ("Spam", "(did you mean 'spam'?)"),
        ("zzzz", "(valid: 'spam', 'ham')"),
    ],
)
def test_example_with_a_label_that_is_no_class_is_refused(label, hint):
    assert problem(f"{PLAIN}examples: [{{text: a, label: {label}}}]") == (
        f"an example of the task my.yaml has the label {label!r} {hint}: use one of the classes"
    )


@pytest.mark.parametrize("explanation", ["", ", explanation: ''", ", explanation: null"])
def test_explained_task_needs_explained_examples(explanation):
    good = "{text: sure, label: ham, explanation: Says nothing.}"
    bad = f"{{text: {'WIN ' * 20}, label: spam{explanation}}}"
    message = problem(f"{PLAIN}explain: true\nexamples: [{good}, {bad}]")
    assert message == (
        f"the task my.yaml asks for explanations, but the example {('WIN ' * 20)[:40]!r} has none: "
        "add an explanation to each example"
    )
    assert parse_task(f"{PLAIN}examples: [{good}, {bad}]", "t").examples[1].label == "spam"


def test_explained_task_takes_no_gold_examples():
    message = problem(f"{PLAIN}explain: true\ngold_examples: 2")
    assert "asks for explanations, which examples from the gold column do not have" in message
    assert message.endswith("write the examples into the task, or drop explain")
    assert parse_task(f"{PLAIN}gold_examples: 2", "t").gold_examples == 2


@pytest.mark.parametrize("template", ["", "text", "{}", "{text", "text}", "{{}}"])
def test_template_without_a_column_is_refused(template):
    message = problem(f"{PLAIN}template: '{template}'")
    assert message == (
        f"the template {template!r} of the task my.yaml names no column: write {{text}} where the "
        "row's text goes"
    )


@pytest.mark.parametrize(
    ("key", "written", "shown"),
    [
        ("name", "5", "name = 5"),
        ("name", "''", "name = ''"),
        ("name", "[a]", "name = ['a']"),
        ("instruction", "{a: b}", "instruction = {'a': 'b'}"),
        ("instruction", "", "instruction = None"),
        ("classes", "[{name: spam, description: 3}, ham]", "classes.0.description = 3"),
        ("examples", "a", "examples = 'a'"),
        ("examples", "[a]", "examples.0 = 'a'"),
        ("examples", "[{text: a, label: no}]", "examples.0.label = False"),
        ("examples", "[{text: 1, label: ham}]", "examples.0.text = 1"),
        ("gold_examples", "-1", "gold_examples = -1"),
        ("gold_examples", "1.5", "gold_examples = 1.5"),
        ("gold_examples", "'3'", "gold_examples = '3'"),
        ("gold_examples", "true", "gold_examples = True"),
        ("template", "[text]", "template = ['text']"),
        ("explain", "'yes'", "explain = 'yes'"),
        ("explain", "1", "explain = 1"),
    ],
)
def test_wrong_type_is_refused_with_place_and_value(key, written, shown):
    lines = [line for line in PLAIN.splitlines() if not line.startswith(key)]
    message = problem("\n".join([*lines, f"{key}: {written}"]))
    assert message.startswith(f"{shown} in the task my.yaml is not valid (")
    assert message.endswith("): mend it")


@pytest.mark.parametrize(
    ("key", "written", "missing"),
    [
        ("classes", "[{description: Bad.}, ham]", "classes.0.name"),
        ("examples", "[{text: a}]", "examples.0.label"),
        ("examples", "[{label: ham}]", "examples.0.text"),
    ],
)
def test_missing_part_is_named_with_its_place(key, written, missing):
    lines = [line for line in PLAIN.splitlines() if not line.startswith(key)]
    message = problem("\n".join([*lines, f"{key}: {written}"]))
    assert message == f"the task my.yaml has no {missing}: add it"


def test_long_value_is_cut():
    assert len(problem(f"{PLAIN}gold_examples: {'x' * 10_000}")) < 250


@pytest.mark.parametrize(
    ("key", "written", "said"),
    [
        ("classes", "spam", "is no list: write a line"),
        ("classes", "", "is no list: write a line"),
        ("classes", "{spam: Bad., ham: Good.}", "is no list: write a line"),
        (
            "classes",
            "[yes, no]",
            "the class True in the task my.yaml is not text: put it",
        ),
        ("classes", "[spam, 2]", "the class 2 in the task my.yaml is not text: put it in quotes"),
        ("classes", "[{name: spam, desc: Bad.}, ham]", "'desc' (did you mean 'description'?)"),
        ("classes", "['', ham]", "the class '' of the task my.yaml has no letter or digit"),
        ("classes", "['(', ham]", "the class '(' of the task my.yaml has no letter or digit"),
        ("classes", "[ham, 'ham.']", "'ham' and 'ham.', which differ in no letter: rename one"),
        ("classes", "[ham, 2024-13-45]", "is not readable YAML"),
        ("examples", "[{text: a, label: ham, why: b}]", "has the unknown key 'why'"),
        ("instruction", "'  '", "the instruction of the task my.yaml is blank: write it"),
        ("name", "' '", "the name of the task my.yaml is blank: write it"),
    ],
)
def test_what_yaml_makes_of_names_is_explained(key, written, said):
    lines = [line for line in PLAIN.splitlines() if not line.startswith(key)]
    assert said in problem("\n".join([*lines, f"{key}: {written}"]))


def test_deep_nesting_and_odd_names_are_no_tracebacks():
    assert "is not readable YAML" in problem("[" * 5000)
    with pytest.raises(WhetError, match="cannot be read"):
        load_task("a\x00b")


def test_spaces_in_braces_do_not_count():
    task = parse_task(f"{PLAIN}template: 'T: {{ text }}'", "t")
    assert (task.columns, task.render({"text": "{x}"})) == (["text"], "T: {x}")


def test_a_folder_does_not_hide_a_task(tmp_path, monkeypatch):
    (tmp_path / "media_bias").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task("media_bias").name == "media_bias"
