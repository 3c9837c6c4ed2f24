"""Tokens are cut once; batches hold every class, little padding, and every row once an epoch."""

import subprocess
import sys

import numpy as np
import pytest

from whet.classify.risks import SILR_SLOPE, Risk
from whet.finetune.batches import Batches
from whet.finetune.losses import TensorLoss
from whet.finetune.tokens import FILE, MULTIPLE, Tokens

N = 500
LAYOUTS = {
    "fixed": {"batch_size": 16},
    "budget": {"tokens_per_batch": 640},
    "no buckets": {"batch_size": 16, "bucketed": False},
    "plain": {"batch_size": 16, "stratified": False, "bucketed": False},
    "plain budget": {"tokens_per_batch": 640, "stratified": False},
}


@pytest.fixture(scope="module")
def rows():
    """Lengths that depend on the class, a rare class, and a loss that depends on both."""
    rng = np.random.default_rng(0)
    strata = rng.choice(3, N, p=[0.6, 0.3, 0.1])
    lengths = rng.lognormal(3.0 + 0.1 * strata, 0.7).astype(int) + 1
    scores = rng.normal(size=(N, 3)) + 0.05 * lengths[:, None] * (strata[:, None] - 1)
    return lengths, strata, scores


def make(rows, layout, seed=0):
    lengths, strata, _ = rows
    return Batches(lengths, strata, seed=seed, **LAYOUTS[layout])


def test_modules_import_without_torch():
    names = "batches checkpoint export losses model presets processes settings tokens trainer"
    code = f"import sys, {', '.join(f'whet.finetune.{n}' for n in names.split())}\n"
    code += "assert not {'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- tokens ---------------------------------------------------------------------------------------


def fake(texts, max_length, truncation, **_):
    assert truncation
    return {"input_ids": [[ord(c) % 90 + 3 for c in text][:max_length] for text in texts]}


class Fake:
    """A tokenizer of characters that counts its calls."""

    bos_token_id, eos_token_id, pad_token_id = None, 2, 0
    calls = 0

    def __call__(self, texts, **options):
        Fake.calls += 1
        return fake(texts, **options)

    def get_vocab(self):
        return {"a": 1}


TEXTS = ["abc", "", "x" * 100, "Größe 🙂", "\ud800 lone"]


def test_texts_of_any_length_become_tokens():
    tokens = Tokens.encode(TEXTS, Fake(), 10)
    assert tokens.lengths.tolist() == [3, 1, 10, 7, 6]
    ids, mask = tokens.batch(np.array([2, 1]))
    assert ids.shape == (2, 16)
    assert ids[1, 0] == Fake.eos_token_id  # an empty text has one token
    assert mask.sum(axis=1).tolist() == [10, 1]
    assert (ids[~mask] == 0).all()
    ids, _ = tokens.batch(np.array([0]), length=512)
    assert ids.shape == (1, 512)
    assert len(Tokens.encode([], Fake(), 10)) == 0


def test_tokens_in_a_folder_are_cut_once(tmp_path):
    Fake.calls = 0
    made = Tokens.encode(TEXTS, Fake(), 10, tmp_path)
    found = Tokens.encode(TEXTS, Fake(), 10, tmp_path)
    assert Fake.calls == 1
    assert isinstance(found.ids, np.memmap)
    plain = Tokens.encode(TEXTS, Fake(), 10)
    for tokens in (made, found):
        np.testing.assert_array_equal(tokens.ids, plain.ids)
        np.testing.assert_array_equal(tokens.offsets, plain.offsets)
        assert tokens.digest() == plain.digest()
    for texts, length in ((TEXTS, 9), ([*TEXTS, "more"], 10), (["x", *TEXTS[1:]], 10)):
        before = Fake.calls
        other = Tokens.encode(texts, Fake(), length, tmp_path)
        assert (Fake.calls, len(other)) == (before + 1, len(texts))


def test_a_damaged_file_of_tokens_is_made_anew(tmp_path):
    Tokens.encode(TEXTS, Fake(), 10, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for damage in (whole[:-3], b"", b"\xff" * 40):
        (tmp_path / FILE).write_bytes(damage)
        assert Tokens.encode(TEXTS, Fake(), 10, tmp_path).lengths[0] == 3
    assert (tmp_path / FILE).read_bytes() == whole


def test_lists_are_tokens_too():
    tokens = Tokens.from_lists([[1, 2], [], [3]], pad=7)
    assert tokens.batch(np.arange(3), multiple=1)[0].tolist() == [[1, 2], [7, 7], [3, 7]]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_occurs_once_an_epoch_and_epochs_differ(rows, layout):
    batches = make(rows, layout)
    epochs = [batches.epoch(k) for k in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(N))
    assert not np.array_equal(np.concatenate(epochs[0])[:20], np.concatenate(epochs[1])[:20])
    for again, epoch in zip(make(rows, layout).epoch(2), epochs[2], strict=True):
        np.testing.assert_array_equal(again, epoch)
    other = make(rows, layout, seed=1).epoch(0)
    assert not np.array_equal(np.concatenate(other)[:20], np.concatenate(epochs[0])[:20])


@pytest.mark.parametrize("layout", ["fixed", "budget", "no buckets"])
def test_batches_hold_every_class_in_proportion(rows, layout):
    _, strata, _ = rows
    share = np.bincount(strata) / N
    for number in range(5):
        for batch in make(rows, layout).epoch(number):
            count = np.bincount(strata[batch], minlength=3)
            assert (np.abs(count - share * len(batch)) <= 2).all()
            assert (count[share * len(batch) >= 2] > 0).all()


def test_fixed_batches_are_of_one_size_and_budgets_are_kept(rows):
    lengths, _, _ = rows
    sizes = {len(batch) for batch in make(rows, "fixed").epoch(0)}
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1
    for layout in ("budget", "plain budget"):
        epoch = make(rows, layout).epoch(0)
        padded = [len(b) * -(-lengths[b].max() // MULTIPLE) * MULTIPLE for b in epoch]
        assert all(p <= 640 or len(b) == 1 for p, b in zip(padded, epoch, strict=True))
        assert np.median(padded) > 400
        assert len(epoch) < 2 * lengths.sum() / 640


def test_buckets_save_padding(rows):
    lengths, _, _ = rows

    def padding(layout):
        epoch = make(rows, layout).epoch(0)
        return sum(len(b) * lengths[b].max() for b in epoch) / lengths.sum()

    assert padding("fixed") < 1.4
    assert padding("no buckets") > 2.0


def test_a_row_longer_than_the_budget_has_its_own_batch():
    lengths = np.array([5, 900, 6, 7])
    epoch = Batches(lengths, np.zeros(4, dtype=int), tokens_per_batch=64).epoch(0)
    assert sorted(sorted(b.tolist()) for b in epoch) == [[0, 2, 3], [1]]


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17])
def test_few_rows_are_batches_too(size):
    for layout in LAYOUTS.values():
        epoch = Batches(np.ones(size, dtype=int), np.arange(size) % 2, **layout).epoch(0)
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(size))


# --- what the sampler does to the risk ------------------------------------------------------------

RISK = Risk.uu([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], [0.5, 0.3, 0.2], SILR_SLOPE)


def partial(scores, coefficients):
    probability = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return (coefficients * (1 - probability)).sum(axis=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_means_of_the_epoch_are_right_whatever_the_sampler_does(rows, layout):
    _, strata, scores = rows
    loss = TensorLoss(RISK)
    whole = loss.coefficients(strata)
    epoch = make(rows, layout).epoch(0)
    per_batch = [partial(scores[b], loss.scaled(whole[b], len(epoch))) for b in epoch]
    np.testing.assert_allclose(
        np.mean(per_batch, axis=0), RISK.partial_risks(scores, strata), atol=1e-12
    )
    # phi is convex: the mean of batches is not below the whole's
    risks = [np.where(p > 0, p, SILR_SLOPE * p).sum() for p in per_batch]
    assert np.mean(risks) >= RISK.value_and_gradient(scores, strata)[0] - 1e-12


def mean_of_batches(rows, epochs=300, **layout):
    """Mean over many epochs of the partial risks with each batch's own set means."""
    lengths, strata, scores = rows
    batches = Batches(lengths, strata, **layout)
    return np.mean(
        [RISK.partial_risks(scores[b], strata[b]) for k in range(epochs) for b in batches.epoch(k)],
        axis=0,
    )


def test_means_of_batches_are_right_when_batches_are_alike(rows):
    few = tuple(part[:160] for part in rows)
    whole = RISK.partial_risks(few[2], few[1])
    for bucketed in (False, True):
        found = mean_of_batches(few, 200, batch_size=32, bucketed=bucketed)
        np.testing.assert_allclose(found, whole, atol=0.03)


def test_plain_batches_that_miss_a_set_shrink_its_part():
    """The factor 1 - (1 - q)^b that the module names, on a set that one risk alone reads."""
    rng = np.random.default_rng(0)
    strata = (rng.random(400) < 0.1).astype(int)
    weights = np.array([[0.0, 0.0], [0.0, 1.0]])
    risk = Risk(weights, 1.0)
    scores = rng.normal(size=(400, 2))
    batches = Batches(np.ones(400, int), strata, 8, stratified=False, bucketed=False)
    found = np.mean(
        [risk.partial_risks(scores[b], strata[b])[1] for k in range(200) for b in batches.epoch(k)]
    )
    factor = 1 - (1 - strata.mean()) ** 8
    assert found == pytest.approx(factor * risk.partial_risks(scores, strata)[1], rel=0.03)
