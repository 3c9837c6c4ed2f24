"""Shared fixtures: where real data lies, and a small corpus that every machine can make."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WHET_DATA", ROOT.parent / "shared" / "data"))

WORDS = {
    0: ["bank", "stock", "price", "fund", "market", "shares", "profit", "bond", "loan", "rate"],
    1: ["goal", "match", "team", "coach", "league", "player", "score", "cup", "win", "season"],
    2: ["cell", "gene", "virus", "protein", "drug", "trial", "patient", "dose", "tissue", "lab"],
}


def make_texts(truth, seed=0, words=6):
    """Texts of a few words, three in four from the class's own list."""
    rng = np.random.default_rng(seed)
    common = ["the", "a", "of", "and", "today", "report", "says", "more", "over", "with"]
    return [
        " ".join(rng.choice(WORDS[int(y)] if rng.random() < 0.5 else common) for _ in range(words))
        + f" {i}"
        for i, y in enumerate(truth)
    ]


def flip(truth, accuracy, n_classes=2, seed=1):
    """Labels that are right with the given probability, independently of the text."""
    rng = np.random.default_rng(seed)
    wrong = (truth + rng.integers(1, n_classes, len(truth))) % n_classes
    return np.where(rng.random(len(truth)) < accuracy, truth, wrong)


def sample_gold(truth, n, seed=2):
    """Return gold labels for a random sample, None elsewhere."""
    gold = [None] * len(truth)
    for row in np.random.default_rng(seed).choice(len(truth), n, replace=False):
        gold[row] = truth[row].item()
    return gold


@pytest.fixture(scope="session")
def two_classes():
    truth = np.random.default_rng(0).integers(0, 2, 600)
    return make_texts(truth), truth, flip(truth, 0.75)


@pytest.fixture(scope="session")
def three_classes():
    truth = np.random.default_rng(0).integers(0, 3, 600)
    return make_texts(truth), truth, flip(truth, 0.7, 3)


@pytest.fixture
def dataset():
    """Folder of a real data set, or a skip that says what is missing."""

    def find(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"data set {name} not found under {DATA}; set WHET_DATA")
        return DATA / name

    return find
