"""What is known of real data sets and real annotators holds; skipped where the data is not."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import sample_gold
from helpers import whet_process
from whet import LabelRefiner, WhetWarning
from whet.classify.features import NgramEncoder


class Encoded:
    """N-grams of one corpus, encoded once for all the tests on it."""

    def __init__(self, texts):
        self.texts, self.features = texts, NgramEncoder().fit_transform(texts)

    def fit(self, texts):
        assert texts == self.texts
        return self

    def transform(self, texts):
        assert texts == self.texts
        return self.features


_BABE = {}


@pytest.fixture
def babe(dataset):
    """Texts, truth, the table and features of sentences that experts judged biased or not."""
    folder = dataset("babe_llm")
    if not _BABE:
        table = pq.read_table(folder / "train.parquet")
        texts = table["text"].to_pylist()
        _BABE.update(
            texts=texts, truth=table["label"].to_numpy(), table=table, encoder=Encoded(texts)
        )
    return _BABE


def refine(texts, pseudo, gold, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        return LabelRefiner(**parameters).fit(texts, pseudo, gold)


def of_rounds(refiner):
    """Accuracy after each round; with the truth of all rows it is exact."""
    return [record["accuracy"]["value"] for record in refiner.history_]


@pytest.fixture
def oracle(babe):
    """Run a method on a weak annotator as published, with the true class ratios."""
    pseudo = babe["table"]["llm_openchat_zs"].to_numpy()

    def run(method):
        settings = {"theta": "oracle", "guard": "off", "encoder": babe["encoder"], "rounds": 5}
        return refine(babe["texts"], pseudo, babe["truth"], method=method, **settings)

    return run, float((pseudo == babe["truth"]).mean())


def test_silr_beats_a_weak_annotator_and_then_decays(oracle):
    run, annotator = oracle
    assert annotator == pytest.approx(0.626, abs=0.001)  # the data is what it was
    rounds = of_rounds(run("silr"))
    assert len(rounds) == 5
    assert rounds[0] > annotator + 0.05
    assert rounds[-1] < rounds[0]
    assert rounds[-1] > annotator


def test_learning_the_labels_as_they_are_does_not_beat_a_weak_annotator(oracle):
    run, annotator = oracle
    assert max(of_rounds(run("pn"))) <= annotator


def test_silr_beats_the_unbiased_risk_on_a_weak_annotator(oracle):
    run, _ = oracle
    assert of_rounds(run("silr"))[0] > max(of_rounds(run("uu")))


def test_guard_protects_a_strong_annotator(babe):
    pseudo, truth = babe["table"]["llm_gpt_4_zs"].to_numpy(), babe["truth"]
    losses = []
    for seed in range(3):
        gold = sample_gold(truth, 100, seed)
        refiner = refine(
            babe["texts"],
            pseudo,
            gold,
            guard="safe",
            encoder=babe["encoder"],
            random_state=seed,
        )
        unseen = np.array([label is None for label in gold])
        assert unseen.sum() == len(truth) - 100
        losses.append(
            ((pseudo == truth)[unseen].mean()) - (refiner.labels_ == truth)[unseen].mean()
        )
        if refiner.kept_annotator_:
            assert losses[-1] == 0
    assert all(loss <= 0.01 for loss in losses), losses


def majority(votes):
    """Return the most frequent vote, the smallest of several; None if all functions abstain."""
    cast = [vote for vote in json.loads(votes) if vote >= 0]
    return int(np.bincount(cast).argmax()) if cast else None


def test_six_classes_of_weak_votes_through_the_command_line(dataset, tmp_path):
    table = pq.read_table(dataset("trec_weak") / "train.parquet")
    truth = table["label"].to_numpy()
    weak = [majority(votes) for votes in table["weak_labels"].to_pylist()]
    gold = sample_gold(truth, 100)
    corpus = pa.table({"text": table["text"], "weak": weak, "gold": gold})
    pq.write_table(corpus, tmp_path / "trec.parquet")
    flags = ["--text", "text", "--pseudo", "weak", "--gold", "gold", "--rounds", "2"]
    ended = whet_process(["refine", "trec.parquet", *flags, "--out", "run"], cwd=tmp_path)
    assert ended.code == 0, ended
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["classes"] == list(range(6))
    np.testing.assert_allclose(np.sum(manifest["theta"], axis=1), 1)
    found = pq.read_table(tmp_path / "run" / "refined.parquet")
    refined, pseudo = (found[c].to_pylist() for c in ("refined_label", "pseudo_label"))
    assert pseudo == weak
    assert set(refined) <= set(range(6))
    blind = [i for i, label in enumerate(gold) if label is None]
    gaps = [i for i in blind if weak[i] is None]
    assert manifest["rows"]["filled"] == len(gaps) > 100
    estimate = manifest["estimate"]
    assert estimate["annotator"]["n"] + estimate["filled"]["n"] == estimate["refined"]["n"] == 100
    # The verdict, the flag, the estimates and the labels tell the same story.
    kept = manifest["kept_annotator"]
    assert manifest["verdict"].startswith("Annotator's labels kept") == kept
    assert (estimate["classifier"]["value"] <= estimate["annotator"]["value"]) == kept
    assert all(refined[i] == weak[i] for i in blind if weak[i] is not None) == kept
    assert (estimate["gain"]["value"] == 0) == kept
    assert manifest["verdict"] in ended.out
    right = [(refined[i] == truth[i], weak[i] == truth[i]) for i in blind if weak[i] is not None]
    after, before = np.mean(right, axis=0)
    assert after > before - 0.01


def test_three_classes_and_missing_answers_of_a_poor_model(dataset):
    table = pq.read_table(dataset("fpb_llm") / "train.parquet")
    truth, answers = table["label"].to_numpy(), table["llm_h2o"].to_numpy()
    pseudo = [None if answer < 0 else answer for answer in answers.tolist()]
    gold = sample_gold(truth, 100)
    refiner = refine(table["text"].to_pylist(), pseudo, gold)
    assert refiner.classes_.tolist() == [0, 1, 2]
    assert refiner.proba_.shape == (len(truth), 3)
    blind = np.array([label is None for label in gold])
    answered = blind & (answers >= 0)
    before = (answers == truth)[answered].mean()
    assert not refiner.kept_annotator_
    assert (refiner.labels_ == truth)[answered].mean() > before + 0.05
    filled = blind & (answers < 0)
    assert filled.sum() > 100
    assert refiner.changed_[filled].all()
    assert (refiner.labels_ == truth)[filled].mean() > 0.5  # three classes
    # The interval that was reported holds the truth about rows without a gold label.
    reported = refiner.estimate_["refined"]
    assert reported.low < (refiner.labels_ == truth)[blind].mean() < reported.high
