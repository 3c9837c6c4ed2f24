"""The package itself: what importing it costs, what it promises, what a wheel of it holds."""

import ast
import doctest
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import tomllib
import warnings
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import whet
from conftest import ROOT
from helpers import WHET, whet_process
from whet import WhetError, WhetWarning
from whet.extras import EXTRAS

SOURCES = sorted((ROOT / "src" / "whet").rglob("*.py"))
MODULES = ["whet", *sorted(m.name for m in pkgutil.walk_packages(whet.__path__, "whet."))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(code, *args):
    """Run code in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- importing ------------------------------------------------------------------------------------

LIGHT = "cyclopts numpy pandas pyarrow pydantic rich scipy sklearn torch transformers"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import whet", LIGHT),
        ("from whet import WhetError, WhetWarning, __version__", LIGHT),
        ("import whet; dir(whet); hasattr(whet, 'nothing')", LIGHT),
        ("from whet.cli import main", "numpy pandas pyarrow scipy sklearn torch transformers"),
        ("from whet import LabelRefiner", "cyclopts pydantic torch transformers yaml"),
    ],
)
def test_imports_load_only_what_they_need(statement, unwanted):
    loaded = python(f"import sys; {statement}; print(*sys.modules)").split()
    assert "whet" in loaded
    assert set(unwanted.split()) & set(loaded) == set()


def test_public_names_resolve():
    assert len(whet.__all__) == len(set(whet.__all__)) >= 7
    assert dir(whet) == sorted(whet.__all__)
    for name in whet.__all__:
        assert getattr(whet, name) is not None
    star: dict = {}
    exec("from whet import *", star)
    assert set(whet.__all__) <= set(star)
    assert whet.LabelRefiner is importlib.import_module("whet.classify.refiner").LabelRefiner


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'whet' has no attribute 'LabelRefner'"):
        _ = whet.LabelRefner
    with pytest.raises(ImportError):
        exec("from whet import LabelRefner")


# --- extras ---------------------------------------------------------------------------------------

WITHOUT_EXTRA = """
    import sys
    sys.modules["sentence_transformers"] = None  # as if it were not installed
    from whet.cli import main
    main(sys.argv[1:])
"""
HINT = (
    "the encoder 'embed:x/y' needs sentence_transformers, which is not installed: "
    "pip install 'whet[embed]'"
)


def test_missing_extra_is_one_sentence_with_the_pip_line(tmp_path):
    (tmp_path / "corpus.csv").write_text("t,p,g\n" + "a b,0,0\nc d,1,1\n" * 30)
    flags = ["--text", "t", "--pseudo", "p", "--gold", "g", "--encoder", "embed:x/y"]
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(WITHOUT_EXTRA)),
            *("refine", "corpus.csv", *flags, "--out", "run"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"whet: {HINT}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.csv"]


def test_missing_extra_is_a_whet_error_in_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(WhetError) as caught:
        whet.LabelRefiner(encoder="embed:x/y").fit(["a b", "c d"] * 30, [0, 1] * 30, [0, 1] * 30)
    assert str(caught.value) == HINT


def test_env_names_the_pip_line_of_a_missing_extra():
    assert "pip install 'whet[embed]'" in python(WITHOUT_EXTRA.replace("sys.argv[1:]", "['env']"))


def test_every_extra_that_is_named_can_be_installed():
    extras = importlib.import_module("whet.extras").EXTRAS
    known = {"crowdkit": "crowd-kit"}
    for extra, modules in extras.items():
        wanted = [line.split(">")[0] for line in PROJECT["optional-dependencies"][extra]]
        assert sorted(wanted) == sorted(known.get(m, m.replace("_", "-")) for m in modules)


def test_no_version_of_the_embedding_library_that_runs_code_of_a_folder_is_allowed():
    """Before 6.0 it imports the modules that a local model folder names, asked to or not."""
    (line,) = (x for x in PROJECT["optional-dependencies"]["embed"] if x.startswith("sentence"))
    assert "5.7.0" not in Requirement(line).specifier


# --- the distribution -----------------------------------------------------------------------------


def test_console_script_runs():
    assert WHET.is_file()
    ended = whet_process(["--version"])
    assert (ended.code, ended.out, ended.err) == (0, f"{whet.__version__}\n", "")


def test_version_is_said_once():
    assert whet.__version__ == PROJECT["version"] == importlib.metadata.version("whet")


def test_dependencies_are_what_the_sources_import():
    known = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    imported = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0] for name in names if name}
    # What an extra brings is imported in functions, after require() has found it.
    extras = {module for modules in EXTRAS.values() for module in modules}
    imported -= set(sys.stdlib_module_names) | extras | {"whet"}
    declared = {line.split(">")[0] for line in PROJECT["dependencies"]}
    assert {known.get(name, name) for name in imported} == declared


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names in a wheel that is built from a copy of the checkout."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if Version(version) < Version("77"):
        pytest.skip(f"setuptools {version} is older than 77")
    if not (ROOT / PROJECT["readme"]).exists():
        pytest.skip(f"{PROJECT['readme']} is not written yet")
    place = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(".*", "demo", "build", "*.egg-info", "__pycache__", "results")
    shutil.copytree(ROOT, place / "checkout", ignore=left)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", place, place / "checkout"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_wheel_holds_the_package_and_nothing_else(wheel):
    info = f"whet-{whet.__version__}.dist-info/"
    assert {name.split("/")[0] + "/" for name in wheel} == {"whet/", info}
    package = ROOT / "src" / "whet"
    wanted = {
        p.relative_to(package.parent).as_posix()
        for p in package.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {name for name in wheel if name.startswith("whet/")} == wanted
    assert "whet/py.typed" in wanted
    assert any(name.endswith(".j2") for name in wanted)
    assert {p.rsplit(".", 1)[-1] for p in wanted} == {
        *("py", "typed", "yaml"),
        *("j2", "html", "css", "js", "svg"),
    }
    assert f"{info}licenses/LICENSE" in wheel
    assert f"{info}entry_points.txt" in wheel


# --- documentation in the code --------------------------------------------------------------------


def public(nodes):
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [n for n in nodes if isinstance(n, kinds) and not n.name.startswith("_")]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_everything_public_has_a_docstring(file):
    module = ast.parse(file.read_text())
    named = [(file.stem, module)]
    for node in public(module.body):
        named.append((node.name, node))
        if isinstance(node, ast.ClassDef):
            named += [(f"{node.name}.{member.name}", member) for member in public(node.body)]
    assert [name for name, node in named if not ast.get_docstring(node)] == []


def is_protocol(node):
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


@pytest.mark.parametrize(
    "node",
    [
        node
        for file in SOURCES
        for node in public(ast.parse(file.read_text()).body)
        if isinstance(node, ast.ClassDef) and not is_protocol(node)
    ],
    ids=lambda node: node.name,
)
def test_every_public_class_shows_an_example(node):
    _, heading, examples = (ast.get_docstring(node) or "").partition("Examples\n--------\n")
    assert heading
    assert ">>> " in examples


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    with warnings.catch_warnings():
        warnings.simplefilter("default", WhetWarning)
        assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_in_docstrings_are_found():
    finder = doctest.DocTestFinder()
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) > 50
