"""Code that a model brings runs if it was asked for, in each place anew, and not otherwise."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
transformers = pytest.importorskip("transformers", reason="needs the extra train")
for module in ("peft", "accelerate", "tokenizers"):
    pytest.importorskip(module, reason="needs the extra train")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from conftest import flip, sample_gold  # noqa: E402
from helpers import whet  # noqa: E402
from tiny_models import WORDS, corpus, save_model  # noqa: E402
from whet import LabelRefiner, WhetError, WhetWarning  # noqa: E402
from whet.classify.reward import reward_model_id  # noqa: E402
from whet.finetune.settings import Settings  # noqa: E402
from whet.hub import upload  # noqa: E402

CODE = """
import os
import pathlib

pathlib.Path(os.environ["CANARY"]).touch()

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PlantedConfig(PreTrainedConfig):
    model_type = "planted"

    def __init__(self, vocab_size=63, hidden_size=16, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class Body(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = torch.nn.Linear(config.hidden_size, config.hidden_size)


class PlantedForSequenceClassification(PreTrainedModel):
    config_class = PlantedConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        mask = attention_mask[:, :, None].float()
        states = torch.relu(self.model.mix(self.model.words(input_ids)))
        logits = self.score((states * mask).sum(dim=1) / mask.sum(dim=1))
        return SequenceClassifierOutput(logits=logits)
"""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that the planted code makes when it runs."""
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    # transformers keeps copies of such code; they stay out of the home folder.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for place in (transformers.utils.hub, transformers.dynamic_module_utils):
        monkeypatch.setattr(place, "HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path / "canary"


@pytest.fixture
def planted(tmp_path, canary):
    """The folder of a model whose code is its own; it has not run yet."""
    from safetensors.torch import save_file

    folder = Path(save_model(tmp_path / "planted"))  # for the tokenizer
    (folder / "planted.py").write_text(CODE)
    config = {
        "model_type": "planted",
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
        "auto_map": {
            "AutoConfig": "planted.PlantedConfig",
            "AutoModelForSequenceClassification": "planted.PlantedForSequenceClassification",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (len(WORDS), 16), "mix.weight": (16, 16), "mix.bias": (16,)}
    weights = {f"model.{name}": torch.randn(s, generator=rng) for name, s in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def fit(model, **settings):
    texts, truth = corpus(60)
    finetune = Settings(**({"epochs": 2, "learning_rate": 0.02, "max_length": 32} | settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner("uu", encoder=f"hf:{model}", finetune=finetune)
        return refiner.fit(texts, flip(truth, 0.8), sample_gold(truth, 40))


def test_it_does_not_run_unasked(planted, canary):
    with pytest.raises(WhetError, match=r"brings code of its own \(auto_map in config\.json\)"):
        fit(planted)
    assert not canary.exists()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_runs_when_asked_for_and_each_loading_asks_again(tune, planted, canary, tmp_path):
    refiner = fit(planted, trust_remote_code=True, tune=tune)
    assert canary.exists()
    texts = corpus(10, seed=1)[0]
    probability = refiner.predict_proba(texts)
    refiner.save_pretrained(tmp_path / "model")
    for name, keys in (("refiner.json", "finetune"), ("finetune.json", "settings")):
        assert json.loads((tmp_path / "model" / name).read_text())[keys]["trust_remote_code"]
    card = (tmp_path / "model/README.md").read_text()
    assert "Code: the model's own was allowed to run (`trust_remote_code`)" in card
    canary.unlink()
    with pytest.raises(WhetError, match="brings code of its own"):
        LabelRefiner.from_pretrained(tmp_path / "model")
    assert not canary.exists()
    loaded = LabelRefiner.from_pretrained(tmp_path / "model", trust_remote_code=True)
    np.testing.assert_allclose(loaded.predict_proba(texts), probability, atol=1e-5)
    assert loaded.as_reward_func()([""], texts[:1])[0] is not None
    with pytest.raises(WhetError, match="because it may bring code of its own"):
        reward_model_id(tmp_path / "model")
    with pytest.raises(WhetError, match=r"planted\.py is not uploaded"):
        upload(tmp_path / "model", "me/mine")


def test_a_folder_cannot_trust_itself(tmp_path, canary):
    fit(save_model(tmp_path / "base")).save_pretrained(tmp_path / "model")
    assert "Code: none but that of transformers" in (tmp_path / "model/README.md").read_text()
    for name, keys in (("refiner.json", "finetune"), ("finetune.json", "settings")):
        file = tmp_path / "model" / name
        content = json.loads(file.read_text())
        content[keys]["trust_remote_code"] = True
        file.write_text(json.dumps(content))
    loaded = LabelRefiner.from_pretrained(tmp_path / "model")
    assert loaded.finetune.trust_remote_code is False
    assert loaded.tuned_.network.settings.trust_remote_code is False
    config = tmp_path / "model/config.json"
    code = {"AutoConfig": "planted.PlantedConfig"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": code}))
    (tmp_path / "model/planted.py").write_text(CODE)
    with pytest.raises(WhetError, match="brings code of its own"):
        LabelRefiner.from_pretrained(tmp_path / "model")
    assert not canary.exists()


def test_the_command_line_asks_too(planted, canary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts, truth = corpus(60)
    gold = sample_gold(truth, 40)
    pq.write_table(pa.table({"text": texts, "llm": flip(truth, 0.8), "gold": gold}), "c.parquet")
    command = ["refine", "c.parquet", "--text", "text", "--pseudo", "llm", "--gold", "gold"]
    command += ["--method", "uu", "--epochs", "1", "--encoder", f"hf:{planted}"]
    ended = whet(command)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "the flag --trust-remote-code" in ended.err
    assert not canary.exists()
    ended = whet([*command, "--trust-remote-code"])
    assert ended.code == 0, ended.err
    assert canary.exists()
    assert json.loads(Path("whet-run/run.json").read_text())["settings"]["trust_remote_code"]
    canary.unlink()
    predict = ["predict", "whet-run", "c.parquet", "--text", "text", "--out", "new.csv"]
    assert "brings code of its own" in whet(predict).err
    assert not canary.exists()
    assert whet([*predict, "--trust-remote-code"]).code == 0
    assert canary.exists()
