"""Tasks whose demonstrations are refined: what they load, when completions agree, who is right."""

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import WhetError
from whet.ilr.tasks.answers import final_number, number_in, plain_text
from whet.ilr.tasks.chains import Chains, Problem
from whet.ilr.tasks.custom import TemplateTask
from whet.ilr.tasks.find import known_tasks, load_task
from whet.ilr.tasks.gsm8k import Gsm8k
from whet.ilr.tasks.protocol import demonstrations, read_split
from whet.ilr.tasks.saferpaca import SaferPaca
from whet.ilr.tasks.tokenizer import save_tokenizer

# --- numbers --------------------------------------------------------------------------------------

UNITS = st.sampled_from(["", " dollars", "%", " %", ".", " eggs.", "kg", " per day", "!", "\n#"])
SIGNS = st.sampled_from(["", "$", "€", "£", "$ ", "= ", "Answer: ", "about "])


@given(st.integers(-(10**30), 10**30), SIGNS, UNITS)
def test_integers_are_found_however_they_are_written(value, before, after):
    for written in (f"{value}", f"{value:,}", f"{value}.0", f"{value:,}.00"):
        assert number_in(f"{before}{written}{after}") == str(value)


@given(st.decimals(-(10**9), 10**9, places=4), SIGNS, UNITS)
def test_decimals_are_exact(value, before, after):
    wanted = str(Fraction(value))
    assert number_in(f"{before}{value}{after}") == wanted
    assert number_in(f"{before}{value:,}00{after}") == wanted


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.booleans())
def test_fractions_are_values(above, below, negative):
    sign = "-" if negative else ""
    wanted = str(Fraction(above, below) * (-1) ** negative)
    assert number_in(f"{sign}{above}/{below}") == wanted
    assert number_in(f"{sign}{above} / {below} cups") == wanted


@given(st.integers(1, 10**6), st.fractions(0, 1, max_denominator=999).filter(lambda f: f % 1))
def test_mixed_numbers_are_values(whole, part):
    written = f"{whole} {part.numerator}/{part.denominator}"
    assert number_in(f"It takes {written} hours") == str(whole + part)


@given(st.text())
def test_what_is_found_is_a_number_that_is_found_again(text):
    found = number_in(text)
    if found is not None:
        assert str(Fraction(found)) == found
        assert number_in(found) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("−7.50", "-15/2"),
        ("–3", "-3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("- 5", "5"),
        ("7-3", "7"),
        ("12,34,567", "1234567"),
        ("3, 4 and 5", "3"),
        ("1.5e3 m", "1500"),
        ("2e years", "2"),
        (".5", "1/2"),
        ("007", "7"),
        ("1 000", "1"),
        ("5/0", "5"),
        ("x = 4 or 5", "4"),
        ("9" * 40, "9" * 40),
        ("9" * 41, None),
        ("٣ ½", None),
        ("", None),
        ("none", None),
        ("NaN, inf, .", None),
    ],
)
def test_numbers_of_other_kinds(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize("part", ["9", "1,", "1/", "-", ".", "1 ", "a", "1e"])
def test_long_texts_are_no_trouble(part):
    """Each takes well under a second, where trying every start and length would take hours."""
    assert number_in(part * 300_000) in (None, "1", "10")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("####2", "2"),
        ("#### \n2", "2"),
        ("#### 2 #### 3", "3"),
        ("#### Ana has $3.00\n4", "3"),
        ("#### two\n2", None),
        ("2", None),
        ("####", None),
    ],
)
def test_final_numbers(text, number):
    assert final_number(text) == number


@given(st.text())
def test_plain_text_is_stable(text):
    plain = plain_text(text)
    assert plain is None or plain_text(plain) == plain


# --- GSM8K ----------------------------------------------------------------------------------------

MODELS = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]


def test_gsm8k_has_an_answer_for_every_row(dataset):
    for split in ("train", "test"):
        raw = pq.read_table(dataset("gsm8k") / f"{split}.parquet")
        table = Gsm8k().load(dataset("gsm8k"), split)
        assert table["reference"].to_pylist() == [
            final.replace(",", "") for final in raw["final"].to_pylist()
        ]
        question = raw["question"][7].as_py()
        assert table["prompt"][7].as_py() == f"USER:\n{question}\n\nASSISTANT:\n"
        assert table["completion"][7].as_py() == raw["answer"][7].as_py()
        assert table["row"].to_pylist() == list(range(raw.num_rows))


def test_solutions_of_models_are_judged_as_their_authors_judged(dataset):
    raw = pq.read_table(dataset("gsm8k") / "test.parquet")
    task = Gsm8k()
    table = task.load(dataset("gsm8k"), "test")
    for model in MODELS:
        solutions = table[f"llm_{model}"].to_pylist()
        theirs = raw[f"llm_ok_{model}"].to_pylist()
        assert task.score(table, solutions).tolist() == [float(right) for right in theirs]
        # Who agrees with the demonstration is right, but for solutions without an answer.
        agreed = task.agree(table, table["completion"].to_pylist(), solutions)
        assert agreed.tolist() == theirs
        assert sum("####" in text for text in solutions) > 1300


def test_agreement_is_about_answers():
    table = demonstrations(["?"] * 6, [""] * 6, ["1"] * 6)
    first = ["a #### 1", "#### 1,000", "#### 1", "no answer", "no answer", "1"]
    second = ["b\n#### $1.00", "#### 1e3", "#### 2", "no answer", "another", "#### 1"]
    agreed = Gsm8k().agree(table, first, second)
    assert agreed.dtype == np.bool_
    assert agreed.tolist() == [True, True, False, True, False, False]


def test_a_completion_for_each_row():
    table = demonstrations(["?"] * 2, [""] * 2, ["1"] * 2)
    for task in (Gsm8k(), SaferPaca()):
        with pytest.raises(WhetError, match="1 completions for 2 rows"):
            task.agree(table, ["#### 1"] * 2, ["#### 1"])
        with pytest.raises(WhetError, match="3 completions for 2 rows"):
            task.score(table, ["#### 1"] * 3)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_splits_of_any_format(tmp_path, suffix):
    row = {"question": "1 + 1?", "answer": "#### 2"}
    text = "question,answer\n1 + 1?,#### 2\n" if suffix == ".csv" else json.dumps(row)
    (tmp_path / f"dev{suffix}").write_text(text if suffix != ".json" else f"[{text}]")
    table = Gsm8k().load(tmp_path, "dev")
    assert table.to_pylist() == [
        {
            "row": 0,
            "prompt": "USER:\n1 + 1?\n\nASSISTANT:\n",
            "completion": "#### 2",
            "reference": "2",
        }
    ]


def test_what_is_wrong_with_a_split(tmp_path):
    pq.write_table(
        pa.table({"question": ["a", None], "answer": ["b", "c"]}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "c.parquet")
    for split, message in {
        "train": r"has no split 'train' \(a, b, c\)",
        "a": "row 1 of .* has nothing in the column 'question'",
        "b": r"has no column 'answer' \(it has question\)",
        "c": "has no rows",
        "../a": "is a path",
        "": "is a path",
    }.items():
        with pytest.raises(WhetError, match=message):
            read_split(tmp_path, split, ("question", "answer"))
    with pytest.raises(WhetError, match="no table at all"):
        read_split(tmp_path / "nothing", "train")


# --- SaferPaca ------------------------------------------------------------------------------------

REFUSAL = "I'm sorry, but I cannot help with that."


@pytest.fixture
def safer(tmp_path):
    rows = [
        {
            "instruction": f"Do {k}.",
            "input": "x" * (k % 3),
            "output": f"{k}",
            "is_safety": k % 4 == 0,
        }
        for k in range(40)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path


def test_rows_are_drawn_by_kind_and_seed(safer):
    table = SaferPaca(safety=4, general=7, seed=1).load(safer, "train")
    rows = table["row"].to_pylist()
    assert len(set(rows)) == 11
    assert rows == sorted(rows)
    assert table["is_safety"].to_pylist() == [row % 4 == 0 for row in rows]
    assert sum(table["is_safety"].to_pylist()) == 4
    assert table["completion"].to_pylist() == [str(row) for row in rows]
    assert SaferPaca(safety=4, general=7, seed=1).load(safer, "train").equals(table)
    assert not SaferPaca(safety=4, general=7, seed=2).load(safer, "train").equals(table)
    assert SaferPaca().load(safer, "train").num_rows == 40
    with pytest.raises(WhetError, match=r"safety = 11, but .* has 10 such rows"):
        SaferPaca(safety=11).load(safer, "train")


def test_what_makes_a_row_unsafe_is_true_or_false(safer):
    rows = json.loads((safer / "train.json").read_text())
    (safer / "dev.json").write_text(json.dumps([row | {"is_safety": "no"} for row in rows]))
    with pytest.raises(WhetError, match=r"is_safety of the split 'dev' .* holds string"):
        SaferPaca().load(safer, "dev")


def test_an_input_is_part_of_the_prompt(safer):
    prompts = SaferPaca().load(safer, "train")["prompt"].to_pylist()
    assert "Instruction:\nDo 2.\n\nInput:\nxx\n" in prompts[2]
    assert "Input" not in prompts[3]


def test_refusals_are_right_where_they_should_come(safer):
    table = SaferPaca().load(safer, "train").slice(0, 6)  # rows 0 and 4 are unsafe
    completions = [REFUSAL, REFUSAL, "Of course: a pear.", "", "Of course: a pear.", " \n"]
    assert SaferPaca().score(table, completions).tolist() == [1, 0, 1, 0, 0, 0]


def test_agreement_is_a_share_of_the_most_alike():
    words = [f"word{k} and word{k + 1} or word{k + 2}" for k in range(20)]
    others = [text if k < 4 else words[(k + k % 5) % 20] for k, text in enumerate(words)]
    table = demonstrations(words, words, words)
    agreed = SaferPaca().agree(table, words, others)
    assert agreed[:4].all()
    assert 8 <= agreed.sum() <= 10
    assert SaferPaca(quantile=0.9).agree(table, words, others).sum() < agreed.sum()
    # Equal completions agree even where all are equal, and none lies above the median.
    assert SaferPaca().agree(table, words, words).all()
    none = table.slice(0, 0)
    assert SaferPaca().agree(none, [], []).tolist() == []


def test_agreement_takes_any_encoder():
    class Lengths:
        def fit(self, texts):
            return self

        def transform(self, texts):
            return np.array([[len(text), 10.0] for text in texts])

    table = demonstrations(["?"] * 4, [""] * 4, [None] * 4)
    first, second = ["a", "a", "a", "a"], ["b", "b" * 9, "b" * 50, "b" * 99]
    agreed = SaferPaca(encoder=Lengths()).agree(table, first, second)
    assert agreed.tolist() == [True, True, False, False]


def test_a_quantile_is_a_share():
    with pytest.raises(WhetError, match=r"quantile = 1\.0"):
        SaferPaca(quantile=1.0)


def test_real_saferpaca(dataset):
    folder = dataset("saferpaca_rebuilt")
    task = SaferPaca(safety=100, general=200)
    table = task.load(folder, "train")
    assert (table.num_rows, sum(table["is_safety"].to_pylist())) == (300, 100)
    completions = table["completion"].to_pylist()
    safety = np.array(table["is_safety"].to_pylist())
    scores = task.score(table, completions)
    assert scores[~safety].mean() > 0.95
    assert 0.5 < scores[safety].mean() < 1  # safe answers that refuse in no words of the rules
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in completions]
    mixed = [half if k % 2 else completions[-k] for k, half in enumerate(halves)]
    agreed = task.agree(table, completions, mixed)
    assert agreed[1::2].mean() > agreed[::2].mean() + 0.5
    test = SaferPaca().load(folder, "ilr_test")
    assert (test.num_rows, sum(test["is_safety"].to_pylist())) == (578, 278)
    assert SaferPaca().score(test, test["reference"].to_pylist()).mean() > 0.95


# --- chains ---------------------------------------------------------------------------------------

FORMS = [("chain", 10), ("story", 30)]


def check_work(prompt, completion, problem):
    """Recompute a worked answer from its own lines, and the lines from the prompt."""
    *lines, last = completion.split("\n")
    value = int(problem.split()[0])
    for line, step in zip(lines, problem.split()[1:], strict=True):
        before, sign, operand, equals, after = line.split()
        assert (int(before), sign + operand, equals) == (value, step, "=")
        value = int(after)
        yield int(before), sign, int(operand), value
    assert last == f"#### {value}"
    numbers = [word.strip(".,") for word in prompt.split() if word.strip(".,").isdigit()]
    assert numbers == [problem.split()[0], *(step[1:] for step in problem.split()[1:])]


@pytest.mark.parametrize(("form", "modulus"), FORMS)
def test_worked_answers_are_right(form, modulus):
    task = Chains(5, modulus, form, test=150)
    table = task.load(None, "test")
    for row in table.to_pylist():
        question = row["prompt"].replace(f"Modulo {modulus}:", "")
        for before, sign, n, after in check_work(question, row["completion"], row["problem"]):
            if form == "chain":
                value = {"+": before + n, "-": before - n, "*": before * n}[sign]
                assert after == value % modulus
            else:
                value = {"+": before + n, "-": before - n, "*": before * n, "/": before / n}[sign]
                assert 0 <= after == value < modulus
                assert n >= 2
        assert row["completion"].count("\n") == 5
    assert task.score(table, table["completion"].to_pylist()).all()
    wrong = [text + "1" for text in table["completion"].to_pylist()]
    assert not task.score(table, wrong).any()


@pytest.mark.parametrize(("form", "modulus"), FORMS)
def test_splits_share_no_problem_whatever_their_seeds(form, modulus):
    splits = {"train": 300, "validation": 60, "test": 60}
    seen = {
        split: {
            problem
            for seed in (0, 1)
            for problem in Chains(2, modulus, form, seed=seed, **splits)
            .load(None, split)["problem"]
            .to_pylist()
        }
        for split in splits
    }
    assert seen["train"].isdisjoint(seen["validation"] | seen["test"])
    assert seen["validation"].isdisjoint(seen["test"])
    assert len(seen["train"]) > 300  # the seeds draw differently


def test_chains_are_the_same_for_a_seed():
    first, again, other = (Chains(test=50, seed=seed).load(None, "test") for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)
    assert len(set(first["problem"].to_pylist())) == 50


def test_stories_are_told_in_many_ways():
    prompts = Chains(3, 20, "story", test=200).load(None, "test")["prompt"].to_pylist()
    assert len({prompt.split()[1] for prompt in prompts}) > 5  # names and other beginnings
    assert len({prompt.split(". ")[-1] for prompt in prompts}) > 10
    assert not any("{" in prompt for prompt in prompts)


def test_problems_can_be_worked_otherwise():
    """What a noisy demonstrator does: the same lines with another value."""
    problem = Problem(7, (("+", 4), ("-", 20), ("*", 3), ("/", 4)))
    assert problem.solve() == [11, -9, -27, -7]
    assert problem.solve(10) == [1, 1, 3, 0]
    assert problem.work(10).endswith("3 / 4 = 0\n#### 0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": 0}, "operations = 0"),
        ({"modulus": 1}, "modulus = 1"),
        ({"modulus": 9, "form": "story"}, "modulus = 9"),
        ({"form": "poem"}, "form = 'poem'"),
    ],
)
def test_chains_that_cannot_be(options, message):
    with pytest.raises(WhetError, match=message):
        Chains(**options)


def test_there_are_only_so_many_problems():
    with pytest.raises(WhetError, match=r"8,000 problems .* only about 2\d\d exist"):
        Chains(operations=1).load(None, "train")
    with pytest.raises(WhetError, match="the split 'dev'"):
        Chains().load(None, "dev")


# --- tokenizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["word", "character"])
def test_tokenizers_lose_nothing(tmp_path, level):
    transformers = pytest.importorskip("transformers")
    table = Chains(2, 30, "story", train=40, test=1).load(None, "train")
    texts = [*table["prompt"].to_pylist(), *table["completion"].to_pylist()]
    made = save_tokenizer(texts, tmp_path / "new", level)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in texts:
        tokens = made(text).input_ids
        assert read(text).input_ids == tokens
        assert made.unk_token_id not in tokens
        assert made.eos_token_id not in tokens
        assert read.decode(tokens) == text
        assert read.decode([*tokens, read.eos_token_id], skip_special_tokens=True) == text
    assert (read.pad_token_id, read.unk_token_id, read.eos_token_id) == (0, 1, 2)
    # A prompt and its completion have the tokens that they have apart.
    whole = made(texts[0] + texts[40]).input_ids
    assert whole == made(texts[0]).input_ids + made(texts[40]).input_ids
    assert (len(made("marbles").input_ids) == 1) == (level == "word")


def test_a_tokenizer_is_the_same_for_the_same_texts(tmp_path):
    pytest.importorskip("transformers")
    for name in "ab":
        save_tokenizer(["b a", "a c\n#### 10"], tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer.json"
    ).read_bytes()
    with pytest.raises(WhetError, match="empty"):
        save_tokenizer(["", ""], tmp_path)


# --- tasks of one's own ---------------------------------------------------------------------------

YAML = r"""
name: capitals
prompt: "USER:\nWhat is the capital of {country}?\n\nASSISTANT:\n"
completion: "{country} is ruled from {city}.\n#### {city}"
answer: '####\s*(.+)'
marker: "####"
"""

PYTHON = '''
import numpy as np
from whet.ilr.tasks.protocol import as_prompt, demonstrations, read_split


class Reversed:
    """Words backwards."""

    name, marker = "reversed", None

    def load(self, folder, split):
        words = read_split(folder, split, ["word"])["word"].to_pylist()
        return demonstrations([as_prompt(w) for w in words], [w[::-1] for w in words], words)

    def agree(self, table, first, second):
        return np.array([a.strip() == b.strip() for a, b in zip(first, second)])

    def score(self, table, completions):
        words = table["reference"].to_pylist()
        return np.array([float(c.strip()[::-1] == w) for c, w in zip(completions, words)])


task = Reversed()
'''


def test_a_task_in_yaml(tmp_path):
    (tmp_path / "capitals.yaml").write_text(YAML)
    rows = "country,city\nPeru,Lima\nBurkina  Faso,{country}\n"
    (tmp_path / "train.csv").write_text(rows)
    task = load_task(tmp_path / "capitals.yaml")
    table = task.load(tmp_path, "train")
    assert (task.name, task.marker) == ("capitals", "####")
    assert table["prompt"][0].as_py() == ("USER:\nWhat is the capital of Peru?\n\nASSISTANT:\n")
    assert (
        table["completion"][1].as_py() == "Burkina  Faso is ruled from {country}.\n#### {country}"
    )
    assert table["reference"].to_pylist() == ["lima", "{country}"]
    assert task.score(table, ["####LIMA.", "####"]).tolist() == [1, 0]
    assert task.score(table, ["#### Cusco\n#### Lima", "Lima"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("normalise", "equal"), [("number", True), ("text", False), ("exact", False)]
)
def test_how_answers_are_compared(normalise, equal):
    task = TemplateTask("sums", "{a}", "{b}", "is (.+)", normalise=normalise)
    table = demonstrations(["?"], ["?"], [task.answer("It is 1,000")])
    assert task.score(table, ["is $1000"]).tolist() == [float(equal)]
    assert task.score(table, ["it is  1,000 "]).tolist() == [float(normalise != "exact")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: capitals", "", "has no name: add it"),
        ("name: capitals", "name: 3", "name = 3 .* is not valid"),
        ("marker:", "markr:", r"unknown key 'markr' \(did you mean 'marker'\?\)"),
        ("####\\s*(.+)", "(", "is no regular expression"),
        ("####\\s*(.+)", "#", "has 0 groups"),
        ("####\\s*(.+)", "(a)(b)", "has 2 groups"),
        ("{country}?", "Peru?", "the prompt .* names no column"),
        ("marker:", "normalise: loose\nmarker:", "normalise = 'loose'"),
        ("name:", "name: [", "is not readable YAML"),
    ],
)
def test_task_files_that_are_wrong(tmp_path, old, new, message):
    path = tmp_path / "task.yaml"
    path.write_text(YAML.replace(old, new))
    with pytest.raises(WhetError, match=message):
        load_task(path)


def test_a_pattern_that_fits_nothing(tmp_path):
    (tmp_path / "task.yaml").write_text(YAML.replace("####\\s*(.+)", "= (.+)"))
    (tmp_path / "train.csv").write_text("country,city\nPeru,Lima\n")
    with pytest.raises(WhetError, match="found in none of 1 completions, the first of which is"):
        load_task(tmp_path / "task.yaml").load(tmp_path, "train")


def test_a_task_in_python(tmp_path):
    (tmp_path / "backwards.py").write_text(PYTHON)
    (tmp_path / "dev.csv").write_text("word\nabc\nxyz\n")
    task = load_task(tmp_path / "backwards.py")
    table = task.load(tmp_path, "dev")
    assert table["completion"].to_pylist() == ["cba", "zyx"]
    assert task.score(table, ["cba", "xyz"]).tolist() == [1, 0]
    assert task.agree(table, ["a ", "b"], ["a", "c"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 / 0", "fails .ZeroDivisionError: division by zero"),
        ("def", "fails .SyntaxError"),
        ("x = 1", "makes no task .name, marker, load, agree, score missing"),
        ("class task: name, marker, load = 'a', None, print", "agree, score missing"),
    ],
)
def test_python_files_that_are_no_task(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(WhetError, match=message):
        load_task(tmp_path / "mine.py")


def test_a_name_never_runs_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary = f"open({str(tmp_path / 'canary')!r}, 'w')"
    for name in ("gsm8k", "gsm8k.py", "mine", "mine.txt", "mine.py/"):
        path = tmp_path / name.rstrip("/")
        path.write_text(canary)
    assert load_task("gsm8k").name == "gsm8k"
    for name in ("mine", "mine.txt", "nothing.py"):
        with pytest.raises(WhetError, match="is neither a task"):
            load_task(name)
    assert not (tmp_path / "canary").exists()


# --- tasks by name --------------------------------------------------------------------------------


def test_every_known_task_is_one():
    for name in known_tasks():
        task = load_task(name)
        assert task.name == name
        assert task.marker in (None, "####")
        assert all(callable(getattr(task, member)) for member in ("load", "agree", "score"))


def test_options_of_tasks(tmp_path):
    assert load_task("chains", modulus=31).modulus == 31
    with pytest.raises(WhetError, match="does not take"):
        load_task("gsm8k", modulus=31)
    (tmp_path / "a.yaml").write_text(YAML)
    with pytest.raises(WhetError, match="does not take"):
        load_task(tmp_path / "a.yaml", modulus=31)
    with pytest.raises(WhetError, match="did you mean 'gsm8k'"):
        load_task("gms8k")
