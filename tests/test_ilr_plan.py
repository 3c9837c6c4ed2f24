"""What a recipe will take: counts by hand, and never less than what a run then does."""

import json
import math

import pyarrow as pa
import pytest

from helpers import whet
from whet.ilr.pipeline import SCORED
from whet.ilr.plan import GPU, Part, plan, weights_of
from whet.ilr.recipe import parse_recipe

TRAIN = pa.table({"prompt": ["p" * 40] * 100, "completion": ["c" * 80] * 100})
TEST = pa.table({"prompt": ["p" * 80] * 10})
KEYS = {
    "task": "chains",
    "model": "strong",
    "weak": {"model": "weak", "generate": {"max_new_tokens": 30}},
    "evaluator": {"stages": 2, "train": {"epochs": 3}},
    "sft": {"epochs": 2},
    "propose": {"max_new_tokens": 50},
    "dpo": {"train": {"epochs": 1}},
    "rounds": 2,
    "arms": {"sft": None},
}


def lines(**changes):
    found = plan(parse_recipe(KEYS | changes), TRAIN, TEST)
    return {(line.kind, line.model): line for line in found}


def test_counts_are_those_of_the_arms():
    found = lines()
    assert found["train", "strong"][2:5] == (1, 100, 100 * 30)  # 50 rows twice, of 10 + 20 tokens
    assert ("judge", "weak") not in found  # no arm asks
    found = lines(arms={"sft": None, "ilr": None})
    # sft, and in each of two rounds two halves of 25 rows and a whole.
    assert found["train", "strong"][2:4] == (7, 100 + 2 * (2 * 2 * 25 + 100))
    assert found["generate", "strong"][2:4] == (7, 3 * 10 + 2 * 50)
    assert found["judge", "weak"][2:5] == (2, 2 * 2 * 50, 200 * (10 + 2 * 20))
    # The weak model, half of its training, and 2 comparisons a row in both orders for 3 epochs.
    assert found["train", "weak"][2:4] == (3, 100 + 50 + 50 * 4 * 3)
    assert found["generate", "weak"][2:4] == (4, 50 + 10 + 2 * 50)
    found = lines(arms={"dpo": None})
    assert found["dpo", "strong"][2:4] == (2, 2 * 2 * int(0.15 * 150))
    assert found["judge", "weak"].rows == 2 * 2 * 150


def test_people_are_asked_about_so_many_pairs_at_most():
    found = lines(arms={"ilr": None, "filter": None}, judge="people")
    # The first round is the same, the second is each arm's own; of 10 + 2 * 20 tokens.
    assert found["people", "-"][2:] == (3, 3 * 50, 3 * 50 * 50, None)
    assert lines(arms={"ilr": None}, judge="people:20")["people", "-"].rows == 2 * 20
    assert lines(arms={"dpo": None}, judge="people:999")["people", "-"].rows == 2 * 150


def test_arms_share_what_a_run_does_once():
    alone = lines(arms={"ilr": None})["train", "strong"]
    both = lines(arms={"ilr": None, "oracle-ilr": None})["train", "strong"]
    assert both.times == 2 * alone.times - 3  # sft, and the halves of the first round
    assert lines(arms={"ilr-one-model": None})["train", "strong"].times == 3


def test_hours_by_the_formula():
    part = Part("train", "m", rows=10, tokens=1e6)
    expected = 6 * 1e9 * 1e6 / (GPU["operations"] * GPU["used"])
    assert part.seconds(1e9) == pytest.approx(expected)
    part = Part("generate", "m", rows=10, tokens=0.0, new=100, batch=4)
    expected = math.ceil(10 / 4) * 100 * 2e9 / (GPU["bytes"] * GPU["used"])
    assert part.seconds(1e9) == pytest.approx(expected)
    assert lines()["train", "strong"].hours is None


@pytest.fixture
def here(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    from whet.ilr.scratch import save_scratch
    from whet.ilr.tasks.find import load_task

    monkeypatch.chdir(tmp_path)
    options = {"operations": 1, "modulus": 5, "train": 40, "test": 10}
    table = load_task("chains", **options).load(None, "train")
    texts = [text for name in ("prompt", "completion") for text in table[name].to_pylist()]
    save_scratch(texts, tmp_path / "base", width=16, layers=1, heads=2, length=96)
    said = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    keys = {
        **{"task": "chains", "options": options, "model": "base", "judge": "noisy:0.5"},
        **{"propose": said, "evaluate": said, "rounds": 2, "out": "run"},
        "sft": {"tune": "full", "max_steps": 2, "batch_size": 8, "max_length": 96},
        "arms": {"sft": None, "ilr": None, "naive": None},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(keys))
    return tmp_path


def test_plan_is_printed_and_holds(here):
    import pyarrow.parquet as pq

    said = whet(["ilr", "recipe.yaml", "--plan"])
    assert said.code == 0, said.err
    assert "arithmetic, nothing of it measured" in said.out
    assert not (here / "run").exists()
    cells = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if "base" in line}
    assert cells["train"][:3] == ["base", "11", str(11 * 16)]
    assert whet(["ilr", "recipe.yaml"]).code == 0
    assert len(list((here / "run/stages/models").iterdir())) <= 11
    tables = (here / "run/stages/completions").glob("*/*.parquet")
    made = sum(pq.read_table(path).num_rows for path in tables if path.name != SCORED)
    assert 0 < made <= int(cells["generate"][2])
    from safetensors.torch import load_file

    tensors = load_file(here / "base" / "model.safetensors").values()
    assert weights_of("base") == sum(tensor.numel() for tensor in tensors)
