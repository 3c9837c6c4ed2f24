"""Flags of ``whet refine`` for a fine-tuned model, and what is said when memory is too small."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
for module in ("transformers", "peft", "accelerate", "tokenizers"):
    pytest.importorskip(module, reason="needs the extra train")

from helpers import columns, whet  # noqa: E402
from tiny_models import save_model  # noqa: E402
from whet import WhetError  # noqa: E402
from whet.finetune.memory import enough_memory  # noqa: E402
from whet.finetune.model import Network  # noqa: E402

COMMAND = ["refine", "corpus.parquet", "--text", "text", "--pseudo", "llm", "--gold", "gold"]
COMMAND += ["--encoder", "hf:base", "--method", "uu", "--epochs", "1", "--out", "run"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a corpus and a model in it."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns()), "corpus.parquet")
    save_model("base")
    return tmp_path


@pytest.mark.parametrize("way", ["flags", "recipe"])
def test_learning_rate_and_length_reach_the_settings(way, here):
    flags = ["--learning-rate", "2e-3", "--max-length", "24"]
    if way == "recipe":
        Path("recipe.yaml").write_text("learning-rate: 2e-3\nmax_length: 24\n")
        flags = ["--config", "recipe.yaml"]
    ended = whet([*COMMAND, *flags])
    assert ended.code == 0, ended.err
    settings = json.loads(Path("run/model/finetune.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["max_length"]) == (2e-3, 24)
    assert "at most 24 tokens" in Path("run/model/README.md").read_text()
    asked = json.loads(Path("run/run.json").read_text())["settings"]
    assert (asked["learning_rate"], asked["max_length"]) == (2e-3, 24)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning-rate", "0"], "--learning-rate = 0.0 is not valid"),
        (["--learning-rate", "nan"], "--learning-rate = nan is not valid"),
        (["--max-length", "0"], "--max-length = 0 is not valid"),
    ],
)
def test_values_that_cannot_be_are_one_sentence(flags, said, here):
    ended = whet([*COMMAND, *flags])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err
    assert not Path("run").exists()


@pytest.mark.parametrize("flag", ["--learning-rate=1e-3", "--max-length=9"])
def test_flags_without_a_model_are_refused(flag, here):
    ended = whet([*COMMAND[:8], "--out", "run", flag])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{flag.split('=')[0]} is for a model that is fine-tuned" in ended.err


ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("when", ["training", "scoring"])
def test_too_little_memory_is_one_sentence(when, kind, here, monkeypatch):
    logits = Network.logits

    def full(self, ids, mask, forward=None):
        if self.module.training == (when == "training"):
            raise ERRORS[kind]
        return logits(self, ids, mask, forward)

    monkeypatch.setattr(Network, "logits", full)
    ended = whet(COMMAND)
    assert (ended.code, ended.out) == (2, "")
    said = [line for line in ended.err.splitlines() if "memory" in line]
    assert len(said) == 1, ended.err
    assert "Traceback" not in ended.err
    assert "memory does not hold a batch of " in said[0]
    assert " rows x " in said[0]
    assert "fewer with --tokens-per-batch or --max-length" in said[0]
    assert "--quantize nf4" in said[0]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes do not fit"), enough_memory(1, 2):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(WhetError, match=r"3 rows x 8 tokens \(24\)"), enough_memory(3, 8):
        torch.empty(1 << 50)  # what the CPU's allocator really says
