"""Label refinement in two processes: one leads, both train, and the result is that of one."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

from helpers import whet
from test_posttrain_processes import launched
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.store import read_json

WHET = Path(sys.executable).with_name("whet")

RECIPE = """
task: chains
options: {operations: 1, modulus: 5, train: 40, test: 10}
model: base
weak:
  model: base
  train: {max_steps: 40}
  generate: &short {max_new_tokens: 10, tokens_per_batch: 4096}
evaluator:
  stages: 2
  generate: {temperature: 1.5, max_new_tokens: 10}
  train: {epochs: 1, learning_rate: 1e-3, max_length: 96}
sft: &steps {tune: full, learning_rate: 5e-3, max_steps: 3, batch_size: 8, max_length: 96}
propose: *short
evaluate: *short
dpo:
  train: {tune: full, learning_rate: 1e-3, max_steps: 2, batch_size: 8, max_length: 96}
  generate: {samples: 2, max_new_tokens: 10}
  share: 1
rounds: 1
arms: {sft: , ilr: , dpo: {judge: "noisy:0.8"}}
"""


def test_two_processes_end_as_one(tmp_path, monkeypatch):
    task = load_task("chains", operations=1, modulus=5, train=40, test=10)
    tables = [task.load(None, split) for split in ("train", "test")]
    texts = [t for x in tables for c in ("prompt", "completion") for t in x[c].to_pylist()]
    monkeypatch.chdir(tmp_path)
    save_scratch(texts, Path("base"), width=16, layers=1, heads=2, length=96)
    Path("recipe.yaml").write_text(RECIPE)
    alone = whet(["ilr", "recipe.yaml", "--out", "one"])
    assert alone.code == 0, alone.err
    code, out, _, said = launched("--no_python", WHET, "ilr", "recipe.yaml", "--out", "two")
    assert code == 0, "\n".join(said[-3:])
    assert out.count("3 arms on 20 demonstrations") == 1
    one, two = (pq.read_table(Path(name) / "test.parquet") for name in ("one", "two"))
    assert one["completion"].to_pylist() == two["completion"].to_pylist()
    found = read_json(Path("two") / "run.json")["arms"]
    assert all(arm["halted"] is None for arm in found.values())
