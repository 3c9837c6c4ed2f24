"""What the documents say runs: their Python, their commands, their links."""

import functools
import re
import shlex
import warnings
from pathlib import Path

import pytest

from conftest import ROOT
from helpers import whet
from whet import WhetWarning

DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "benchmarks").glob("*.md")),
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
    )
    if path.exists()
]
SHELLS = ("bash", "console", "sh", "shell")
FENCE = re.compile(r"^(```+|~~~+)[ ]*(\w*)[^\n]*\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)


def name_of(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def blocks(document, *languages):
    """Return (line number, content) of the fenced blocks in these languages."""
    text = document.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 2, match[3])
        for match in FENCE.finditer(text)
        if match[2] in languages
    ]


def prose(document):
    """Return the text without blocks and code spans."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d, "python", "py")], ids=name_of
)
def test_python_in_documents_runs(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        for line, code in blocks(document, "python", "py"):
            assert ">>>" not in code, f"line {line}: write what runs, not a session"
            place = "\n" * (line - 1) + code  # so that a traceback names the document's line
            exec(compile(place, str(document), "exec"), names)


# --- commands -------------------------------------------------------------------------------------


def commands(text):
    """Return the whet commands of a shell block, each a list of words."""
    found = []
    for raw in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"^\s*[$>%]\s+", "", raw)
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # output of a command in a console block
            continue
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words and Path(words[0]).name == "whet":
            ends = [k for k, word in enumerate(words) if word in ("|", "&&", ";", ">", "2>", "&")]
            found.append(words[1 : ends[0] if ends else None])
    return found


@functools.cache
def help_of(*verb):
    ended = whet([*verb, "--help"])
    assert ended.code == 0
    return ended.out


@functools.cache
def verbs():
    return re.findall(r"^│ (\w[\w-]*) ", help_of(), re.MULTILINE)


def flags_of(*verb):
    return set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", help_of(*verb))) | {"--help", "-h"}


def problems(words):
    """Return what is wrong with a command, by the help of the real command line."""
    if not words or words[0].startswith("-"):
        return [flag for flag in words if flag not in flags_of()]
    if words[0] not in verbs():
        return [words[0]]
    given = [word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
    verb = words[:2] if words[0] == "bench" else words[:1]
    return [flag for flag in given if flag not in flags_of(*verb)]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("whet refine a.csv --text t --gold-budget=3 --out run", []),
        ("whet refine a.csv --txt t", ["--txt"]),
        ("$ .venv/bin/whet refnie a.csv", ["refnie"]),
        ("A=1 whet predict run new.csv --model m | head --lines 3", ["--model"]),
        ("whet --version", []),
        ("whet --verbose", ["--verbose"]),
        ("whet refine a.csv \\\n  --texts t", ["--texts"]),
    ],
)
def test_wrong_commands_would_be_found(words, wrong):
    (found,) = commands(words)
    assert problems(found) == wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_in_documents_are_commands(document):
    for line, block in blocks(document, *SHELLS):
        for words in commands(block):
            assert problems(words) == [], f"line {line}: whet {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_flags_and_verbs_in_sentences_exist(document):
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for span in re.findall(r"`(whet [^`]+)`", text):
        for words in commands(span):
            assert problems(words) == [], span


def test_recipes_in_documents_are_recipes():
    from whet.cli._recipe import RefineRecipe

    yaml = pytest.importorskip("yaml")
    for document in DOCUMENTS:
        for line, block in blocks(document, "yaml", "yml"):
            if "recipe" not in block and "pseudo" not in block:
                continue
            keys = {str(key).replace("-", "_") for key in yaml.safe_load(block)}
            assert keys <= set(RefineRecipe.model_fields), f"{document.name}, line {line}"


# --- links ----------------------------------------------------------------------------------------


def anchors(document):
    """Return the anchors that GitHub makes of headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document):
    text = prose(document)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    referred = re.findall(r"^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", text, re.MULTILINE)
    return [link for link in inline + referred if not re.match(r"[a-z]+:", link)]


def resolves(link, document):
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(target)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_resolve(document):
    assert [link for link in links(document) if not resolves(link, document)] == []


# --- the two commands -----------------------------------------------------------------------------

README = ROOT / "README.md"


@pytest.mark.parametrize("target", ["demo", "test"])
def test_makefile_has_the_targets_that_the_readme_names(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert re.search(rf"^\.PHONY:.*\b{target}\b", makefile, re.MULTILINE)
    if not README.exists():
        pytest.skip("README.md is not written yet")
    assert f"make {target}" in README.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_in_documents_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for _, block in blocks(document, *SHELLS):
        named |= set(re.findall(r"^\s*(?:\$ )?make ([a-z]+)", block, re.MULTILINE))
    assert named <= targets


@pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")
def test_readme_has_no_placeholder_left():
    assert re.findall(r"^[A-Z]+(?:_[A-Z]+)+$|\bTODO\b|\bFIXME\b", README.read_text(), re.M) == []
