"""Training through TRL: what is learned, what is left on disk, what a kill costs."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("trl")

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import load_file

import tiny_models
from helpers import snapshot, whet
from tiny_causal import TEMPLATE, as_messages, save_causal, sums
from whet import WhetError, store
from whet.posttrain import run, trainers
from whet.posttrain.examples import write_examples
from whet.posttrain.generate import completion_logprobs
from whet.posttrain.models import load_causal, load_tokenizer, save_merged
from whet.posttrain.run import Plan
from whet.posttrain.settings import DpoSettings, OnlineSettings, TrainSettings
from whet.posttrain.trainers import train_dpo, train_online, train_sft

FULL = {"tune": "full", "learning_rate": 1e-2, "batch_size": 8}
LORA = {"lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("causal"), attention_dropout=0.1)


def account(out):
    return json.loads((out / "training.json").read_text())


def losses(out):
    return [record["loss"] for record in account(out)["history"]]


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def difference(a, b):
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# --- demonstrations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(**FULL, epochs=6),
        TrainSettings(**LORA, epochs=6),
        TrainSettings(**LORA, epochs=6, quantize="nf4"),
        TrainSettings(**FULL, epochs=6, precision="bf16", gradient_checkpointing=True),
    ],
    ids=["full", "lora", "qlora", "bf16"],
)
def test_a_model_learns_demonstrations(tmp_path, folder, settings):
    if settings.quantize:
        pytest.importorskip("bitsandbytes")
    before = completion_logprobs(folder, sums())[0].mean()
    steps = []
    out = train_sft(
        folder, sums(), tmp_path / "out", settings, progress=lambda *step: steps.append(step)
    )
    assert losses(out)[-1] < 0.9 * losses(out)[0]
    assert completion_logprobs(str(out), sums())[0].mean() > before + 1
    assert steps == [("step", k + 1, 30) for k in range(30)]
    assert account(out)["steps"] == 30
    # A plain folder: no adapters, no quantisation, nothing of the run but its account.
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "settings.json", "training.json"),
    }
    assert weights(out).keys() == weights(folder).keys()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("talk", [False, True], ids=["text", "messages"])
def test_the_loss_is_that_of_trl(tmp_path, talk):
    """Of one step over all rows, and as scored afterwards, with TRL's own data preparation."""
    folder = save_causal(tmp_path / "model", template=TEMPLATE if talk else None, begin=not talk)
    table = (as_messages if talk else lambda t: t)(sums(12))
    rows = table.select(["prompt", "completion"])
    theirs = trl.SFTTrainer(
        model=folder,
        args=trl.SFTConfig(
            str(tmp_path / "theirs"), use_cpu=True, bf16=False, per_device_eval_batch_size=12
        ),
        train_dataset=Dataset(rows),
        eval_dataset=Dataset(rows),
        processing_class=load_tokenizer(folder),
    )
    expected = theirs.evaluate()["eval_loss"]
    settings = TrainSettings(**FULL | {"batch_size": 12}, max_steps=1)
    assert losses(train_sft(folder, table, tmp_path / "out", settings)) == pytest.approx([expected])
    logprobs, tokens = completion_logprobs(folder, table)
    assert -logprobs.sum() / tokens.sum() == pytest.approx(expected, abs=1e-4)


def test_our_loss_on_a_cpu_is_trls(tmp_path, folder, monkeypatch):
    settings = TrainSettings(**FULL, max_steps=5)
    ours = train_sft(folder, sums(), tmp_path / "ours", settings)
    monkeypatch.setattr(trainers, "_own_loss", lambda: trl.SFTTrainer)
    theirs = train_sft(folder, sums(), tmp_path / "theirs", settings)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert difference(ours, theirs) < 1e-4


def test_steps_are_those_of_a_plain_loop(tmp_path):
    folder = save_causal(tmp_path / "model")
    settings = TrainSettings(
        **FULL | {"learning_rate": 3e-3}, max_steps=50, warmup=0.06, weight_decay=0.1
    )
    out = train_sft(folder, sums(), tmp_path / "out", settings)
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    norms = [p for p in model.parameters() if p.ndim == 1]  # the scales of norms do not decay
    others = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    rows, rng, found = sums().to_pylist(), np.random.default_rng(settings.seed), []
    order = np.concatenate([rng.permutation(40) for _ in range(10)])
    for step in range(50):
        share = step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 47)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * share
        total, count = 0.0, 0
        for row in (rows[k] for k in order[step * 8 : step * 8 + 8]):
            start = len(tokenizer(row["prompt"])["input_ids"])
            ids = torch.tensor(tokenizer(row["prompt"] + row["completion"] + "</s>")["input_ids"])
            logs = model(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
            total = total - logs.gather(1, ids[start:, None]).sum()
            count += len(ids) - start
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(float(total) / count)
    assert losses(out) == pytest.approx(found, rel=1e-3)
    assert found[-1] < found[0] / 2


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_eight_passes_of_one_row_are_one_pass_of_eight(tmp_path, kind):
    folder = save_causal(tmp_path / "model")
    table = sums(20)  # the last step has four rows
    make, settings = {"sft": (train_sft, TrainSettings), "dpo": (train_dpo, DpoSettings)}[kind]
    values = {"tune": "full", "batch_size": 8, "learning_rate": 1e-3, "optimizer": "adamw"}
    once = make(folder, table, tmp_path / "once", settings(**values, accumulate=1))
    eight = make(folder, table, tmp_path / "eight", settings(**values, accumulate=8))
    assert difference(folder, once) > 1e-3
    assert difference(once, eight) < 2e-5
    assert losses(once) == pytest.approx(losses(eight), abs=1e-5)


def test_equal_prompts_are_rows_of_their_own(tmp_path, folder):
    """Two answers to one prompt: both are learned, neither replaces the other."""
    table = pa.table({"prompt": ["1+1="] * 8, "completion": ["2#", "3#"] * 4})
    out = train_sft(folder, table, tmp_path / "out", TrainSettings(**FULL, max_steps=40))
    logprobs, _ = completion_logprobs(str(out), table)
    assert np.exp(logprobs) == pytest.approx([0.5] * 8, abs=0.1)
    assert account(out)["lint"]["n"] == 8


def test_every_epoch_holds_every_row(tmp_path, folder, monkeypatch):
    seen = []
    real = Plan.of_rows.__func__

    def spy(cls, rows, settings, lint):
        plan = real(cls, rows, settings, lint)
        seen.append(plan)
        return plan

    monkeypatch.setattr(Plan, "of_rows", classmethod(spy))
    settings = TrainSettings(**FULL, epochs=3, accumulate=2)
    train_sft(folder, sums(21), tmp_path / "out", settings)
    (plan,) = seen
    assert plan.steps == 8  # 63 rows
    assert sorted(plan.order) == sorted(list(range(21)) * 3)
    lengths = np.array([len(plan.rows[k]["input_ids"]) for k in plan.order])
    for step in range(8):
        assert (np.diff(lengths[step * 8 : step * 8 + 8]) <= 0).all()


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_the_folder_holds_the_model_that_was_trained(tmp_path, monkeypatch, kind):
    """Adapters merged: tied weights stay tied, and GPT-2 keeps its layers transposed."""
    table = sums()
    if kind == "gpt2":
        folder = tiny_models.save_model(tmp_path / "model", "gpt2")
        table = pa.table({"prompt": ["w1 w2", "w3"] * 8, "completion": ["w4", "w5 w6"] * 8})
    else:
        folder = save_causal(tmp_path / "model", tie_word_embeddings=True)
    ids, trained = torch.tensor([[4, 5, 6, 7]]), []

    def logits(model):
        with torch.inference_mode():
            return model.eval()(input_ids=ids).logits

    def save(module, *rest):
        trained.append(logits(module))
        save_merged(module, *rest)

    monkeypatch.setattr(run, "save_merged", save)
    out = train_sft(folder, table, tmp_path / "out", TrainSettings(**LORA, max_steps=5))
    assert weights(out).keys() == weights(folder).keys()
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.allclose(logits(model), trained[0], atol=1e-4)
    assert not torch.allclose(logits(load_causal(folder)), trained[0], atol=0.1)


def test_four_bits_of_a_model_that_cannot_have_them_are_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tiny_models.save_model(tmp_path / "model", "gpt2")
    with pytest.raises(WhetError, match="kept transposed"):
        load_causal(folder, TrainSettings(quantize="nf4"))


def test_rows_with_nothing_to_learn_are_left_out_and_told(tmp_path, folder):
    table = pa.table({"prompt": ["1+1=", "1" * 40], "completion": ["2#", "3#"]})
    said = []
    settings = TrainSettings(**FULL, max_steps=2, max_length=16)
    out = train_sft(folder, table, tmp_path / "out", settings, marker="?", tell=said.append)
    assert (
        account(out)["lint"] | {"untrained": 1, "unanswered": 2, "truncated": 1}
        == account(out)["lint"]
    )
    assert (
        said[0]
        == "1 of 2 rows are longer than 16 tokens and lose their end; of 1 nothing is left to learn"
    )
    assert said[-1] == "2 of 2 rows have no answer marker '?'"


# --- preferences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FULL, LORA | {"quantize": "nf4"}], ids=["full", "qlora"])
def test_a_model_learns_preferences_from_where_it_stands(tmp_path, folder, how):
    if "quantize" in how:
        pytest.importorskip("bitsandbytes")
    settings = DpoSettings(**how | {"learning_rate": 1e-3}, epochs=4)
    out = train_dpo(folder, sums(), tmp_path / "out", settings)
    start = account(out)["start"]
    assert start["chosen_log_ratio"] == start["rejected_log_ratio"] == 0
    assert start["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert account(out)["history"][-1]["rewards/accuracies"] > 0.9
    chosen, rejected = (sums().select(["prompt", side]) for side in ("chosen", "rejected"))
    chosen, rejected = (t.rename_columns(["prompt", "completion"]) for t in (chosen, rejected))

    def margin(model):
        return completion_logprobs(model, chosen)[0] - completion_logprobs(model, rejected)[0]

    assert (margin(str(out)) - margin(folder)).mean() > 1


@pytest.mark.parametrize(
    ("loss", "smoothing"), [("sigmoid", 0), ("cdpo", 0.2), ("robust", 0.2), ("ipo", 0)]
)
def test_losses_of_preferences_are_the_formulas(tmp_path, folder, loss, smoothing):
    """Of the first step, by the log-probabilities of model and reference."""
    reference = save_causal(tmp_path / "reference", seed=1)
    table = pa.table({"prompt": ["1+1=", "2+3="], "chosen": ["2#", "5"], "rejected": ["3##", "#"]})
    settings = DpoSettings(
        **FULL, loss=loss, label_smoothing=smoothing, reference=reference, beta=0.3, max_steps=1
    )
    out = train_dpo(folder, table, tmp_path / "out", settings)
    ratio, mean_ratio = {}, {}
    for side in ("chosen", "rejected"):
        rows = table.select(["prompt", side]).rename_columns(["prompt", "completion"])
        ours, tokens = completion_logprobs(folder, rows)
        ratio[side] = ours - completion_logprobs(reference, rows)[0]
        mean_ratio[side] = ratio[side] / tokens
    margin = 0.3 * (ratio["chosen"] - ratio["rejected"])

    def cost(m):
        return np.log1p(np.exp(-m))

    e = smoothing
    expected = {
        "sigmoid": cost(margin),
        "cdpo": (1 - e) * cost(margin) + e * cost(-margin),
        "robust": ((1 - e) * cost(margin) - e * cost(-margin)) / (1 - 2 * e),
        "ipo": (mean_ratio["chosen"] - mean_ratio["rejected"] - 1 / 0.6) ** 2,
    }[loss]
    start = account(out)["start"]
    assert start["loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert start["chosen_log_ratio"] == pytest.approx(ratio["chosen"].mean(), rel=1e-3)
    assert abs(start["chosen_log_ratio"]) > 0.1  # the reference is another model


def test_a_model_that_is_not_its_reference_at_the_start_is_refused(tmp_path, folder, monkeypatch):
    other = save_causal(tmp_path / "other", seed=1)
    loaded = []

    def load(model, settings, device):
        loaded.append(model)
        return load_causal(other if len(loaded) == 1 else model, settings, device)

    monkeypatch.setattr(trainers, "load_causal", load)
    with pytest.raises(WhetError, match="before the first step the log-ratio"):
        train_dpo(folder, sums(), tmp_path / "out", DpoSettings(**FULL))
    assert not (tmp_path / "out").exists()


# --- rewards --------------------------------------------------------------------------------------


def ends_in_hash(prompts, completions, row, chosen, **_):
    assert len(prompts) == len(completions) == len(row) == len(chosen)
    return [float(said.count("#")) for said in completions]


@pytest.mark.parametrize(
    ("method", "how"),
    [("grpo", LORA | {"learning_rate": 0.05}), ("rloo", FULL)],
    ids=["grpo", "rloo"],
)
def test_a_reward_is_learned(tmp_path, folder, method, how):
    settings = OnlineSettings(
        **how, method=method, max_steps=12, max_new_tokens=6, beta=0.01, precision="fp32"
    )
    out = train_online(folder, sums(), ends_in_hash, tmp_path / "out", settings)
    rewards = [record["reward"] for record in account(out)["history"]]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.3
    assert account(out)["rewards"] == ["ends_in_hash"]
    assert weights(out).keys() == weights(folder).keys()


def test_a_reward_sees_messages_and_several_are_added_up(tmp_path):
    folder = save_causal(tmp_path / "model", template=TEMPLATE)
    seen = []

    def one(prompts, completions, **_):
        seen.extend(zip(prompts, completions, strict=True))
        return [1.0] * len(prompts)

    def none(prompts, **_):
        return [None] * len(prompts)

    settings = OnlineSettings(**LORA, max_steps=1, max_new_tokens=3)
    rows = as_messages(sums(4))
    out = train_online(folder, rows, [one, one, none], tmp_path / "out", settings)
    assert account(out)["history"][0]["reward"] == 2
    assert {prompt[0]["role"] for prompt, _ in seen} == {"user"}
    assert {said[0]["role"] for _, said in seen} == {"assistant"}


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (1, {"batch_size": 8}, "1 prompts with batch_size = 8 .* a step takes 2 prompts"),
        (8, {"batch_size": 8, "max_new_tokens": 126}, "the prompt of row 0 has 4 tokens"),
    ],
)
def test_prompts_that_cannot_be_trained_on_are_refused(tmp_path, folder, rows, settings, said):
    with pytest.raises(WhetError, match=said):
        train_online(folder, sums(rows), ends_in_hash, tmp_path / "out", OnlineSettings(**settings))
    assert not (tmp_path / "out").exists()


# --- resuming -------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def killer(at):
    def progress(stage, done, total):
        if done == at:
            raise Killed

    return progress


RUNS = {
    "sft": (train_sft, TrainSettings(**LORA, lora_dropout=0.1, epochs=3, accumulate=2)),
    "dpo": (train_dpo, DpoSettings(**FULL, optimizer="adafactor", epochs=3)),
    "grpo": (
        lambda model, table, out, settings, **more: train_online(
            model, table, ends_in_hash, out, settings, **more
        ),
        OnlineSettings(**FULL | {"batch_size": 16}, epochs=2, max_new_tokens=5, accumulate=2),
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_broken_run_ends_with_the_weights_of_a_whole_one(tmp_path, folder, kind):
    train, settings = RUNS[kind]
    table = sums(21)  # epochs do not end with steps
    whole = train(folder, table, tmp_path / "whole", settings)
    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        train(folder, table, broken, settings, progress=killer(account(whole)["steps"] - 2))
    assert list((broken / "checkpoints").glob("*/whole"))
    assert not (broken / "training.json").exists()
    with pytest.raises(WhetError, match="unfinished"):
        completion_logprobs(str(broken), table)
    steps = []
    train(folder, table, broken, settings, progress=lambda *step: steps.append(step[1]))
    assert steps[0] > 1
    assert difference(whole, broken) == 0
    assert account(broken)["history"] == account(whole)["history"]
    assert not (broken / "checkpoints").exists()


def test_a_run_that_broke_off_after_its_last_step_is_finished(tmp_path, folder, monkeypatch):
    settings = TrainSettings(**FULL)
    whole = train_sft(folder, sums(), tmp_path / "whole", settings)

    def killed(*_):
        raise Killed

    monkeypatch.setattr(run, "save_merged", killed)
    with pytest.raises(Killed):
        train_sft(folder, sums(), tmp_path / "broken", settings)
    monkeypatch.undo()
    steps = []
    train_sft(folder, sums(), tmp_path / "broken", settings, progress=lambda *s: steps.append(s))
    assert steps == []
    assert difference(whole, tmp_path / "broken") == 0


def test_a_checkpoint_that_was_being_written_is_not_used(tmp_path, folder):
    settings = TrainSettings(**FULL, epochs=3)
    whole = train_sft(folder, sums(), tmp_path / "whole", settings)
    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        train_sft(folder, sums(), broken, settings, progress=killer(13))
    older, newer = sorted((broken / "checkpoints").glob("checkpoint-*"))[::-1]
    assert (older.name, newer.name) == ("checkpoint-5", "checkpoint-10")
    (newer / "whole").unlink()
    (newer / "model.safetensors").write_bytes(b"half")
    train_sft(folder, sums(), broken, settings)
    assert difference(whole, broken) == 0


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(tmp_path, folder):
    program = """
        import os, signal, sys
        from tiny_causal import sums
        from whet.posttrain.settings import TrainSettings
        from whet.posttrain.trainers import train_sft

        def progress(stage, done, total):
            if done == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        settings = TrainSettings(tune="full", learning_rate=1e-2, batch_size=8)
        train_sft(sys.argv[1], sums(), sys.argv[2], settings, progress=progress)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), folder, tmp_path / "broken"],
        check=False,
        cwd=os.path.dirname(__file__),
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    settings, steps = TrainSettings(**FULL), []
    train_sft(folder, sums(), tmp_path / "broken", settings, progress=lambda *s: steps.append(s[1]))
    assert steps == [6, 7, 8, 9, 10]
    whole = train_sft(folder, sums(), tmp_path / "whole", settings)
    assert difference(whole, tmp_path / "broken") == 0


def test_a_finished_run_is_left_alone_and_another_is_not_taken_for_it(tmp_path, folder):
    settings, out = TrainSettings(**FULL, max_steps=2), tmp_path / "out"
    train_sft(folder, sums(), out, settings)
    before = snapshot(out)
    assert train_sft(folder, sums(), out, settings, progress=killer(1)) == out
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (p for p in os.listdir(folder)):
        os.symlink(os.path.join(folder, path), moved / path)
    assert train_sft(str(moved), sums(), out, settings, progress=killer(1)) == out
    with pytest.raises(WhetError, match=r"started with learning_rate = 0.01, not 0.1"):
        train_sft(folder, sums(), out, TrainSettings(**FULL | {"learning_rate": 0.1}, max_steps=2))
    with pytest.raises(WhetError, match="started with data_sha256"):
        train_sft(folder, sums(seed=1), out, settings)
    with pytest.raises(WhetError, match="started with weights"):
        train_sft(save_causal(tmp_path / "other", seed=1), sums(), out, settings)
    assert snapshot(out) == before


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(tune="full", learning_rate=1e30, batch_size=8),
        # The last step has a loss, and leaves weights that are none.
        TrainSettings(**LORA | {"learning_rate": 1e38}, max_steps=1, warmup=0.0),
    ],
)
def test_a_loss_that_is_no_number_is_refused_and_leaves_nothing(tmp_path, folder, settings):
    with pytest.raises(WhetError, match="not a number"):
        train_sft(folder, sums(), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_reward_costs_no_steps(tmp_path, folder):
    calls = []

    def reward(completions, **_):
        calls.append(1)
        if len(calls) == 5:
            raise WhetError("the judge is away")
        return [1.0] * len(completions)

    settings = OnlineSettings(**FULL, max_steps=6, max_new_tokens=3)
    with pytest.raises(WhetError, match="the judge is away"):
        train_online(folder, sums(8), reward, tmp_path / "out", settings)
    train_online(folder, sums(8), reward, tmp_path / "out", settings)
    assert len(calls) == 5 + 2  # from the checkpoint after step 4


def test_bad_input_leaves_nothing(tmp_path, folder):
    out, settings = tmp_path / "out", TrainSettings()
    with pytest.raises(WhetError, match="no column 'completion'"):
        train_sft(folder, sums().select(["prompt"]), out, settings)
    with pytest.raises(WhetError, match="nothing would be learned"):
        train_sft(folder, sums(), out, TrainSettings(max_length=3))
    with pytest.raises(WhetError, match="does not exist"):
        train_sft("./no/model", sums(), out, settings)
    with pytest.raises(WhetError, match="choose another output folder"):
        train_sft(folder, sums(), folder, settings)
    with pytest.raises(WhetError, match="no chat template"):
        train_sft(folder, as_messages(sums()), out, settings)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(WhetError, match="holds files that are not whet's"):
        train_sft(folder, sums(), out, settings)
    assert snapshot(out) == {"mine.txt": b"mine"}


def test_training_says_nothing_calls_nobody_and_writes_nowhere_else(
    tmp_path, folder, monkeypatch, capfd
):
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    calls = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: calls.append(a))
    monkeypatch.setattr(socket.socket, "connect", lambda *a: calls.append(a))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    state = torch.get_rng_state()
    train_sft(folder, sums(), tmp_path / "sft", TrainSettings(**LORA, max_steps=1))
    train_dpo(folder, sums(), tmp_path / "dpo", DpoSettings(**FULL, max_steps=1))
    settings = OnlineSettings(**FULL, max_steps=1, max_new_tokens=3)
    train_online(folder, sums(), ends_in_hash, tmp_path / "online", settings)
    assert capfd.readouterr() == ("", "")
    assert calls == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dpo", "online", "sft"]
    assert torch.equal(torch.get_rng_state(), state)


# --- the command line -----------------------------------------------------------------------------


def test_whet_sft_and_dpo_train_and_say_what_comes_next(tmp_path, folder):
    write_examples(tmp_path / "demos.jsonl", sums())
    flags = ["--tune", "full", "--learning-rate", "0.01", "--batch-size", "8", "--max-steps", "4"]
    tuned, preferred = str(tmp_path / "tuned"), str(tmp_path / "preferred")
    demos = str(tmp_path / "demos.jsonl")
    sft = ["sft", demos, "--model", folder, "--out", tuned, *flags, "--marker", "?"]
    done = whet(sft)
    assert done.code == 0, done.err
    assert "whet: 40 of 40 rows have no answer marker '?'" in done.err
    assert "4/4 steps" in done.err
    assert "40 of 40 trained on" in done.out
    data = "--task TASK --data DATA"
    assert f"Next: whet evaluate {folder} {tuned} {data} --out {tuned}-evaluated" in done.out
    assert whet(sft).out == done.out  # done already
    done = whet(["dpo", demos, "--model", tuned, "--out", preferred, *flags, "--loss", "ipo"])
    assert done.code == 0, done.err
    assert "chosen preferred" in done.out
    last = f"Next: whet evaluate {tuned} {preferred} {data} --out {preferred}-evaluated"
    assert done.out.rstrip().endswith(last)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft", "none.jsonl", "--model", "m", "--out", "o"], "none.jsonl does not exist"),
        (["sft", "x", "--model", "m", "--out", "o", "--tune", "lroa"], "did you mean 'lora'"),
        (
            ["dpo", "x", "--model", "m", "--out", "o", "--batch-size", "9", "--accumulate", "2"],
            "multiple",
        ),
        (["dpo", "x", "--model", "m", "--out", "o", "--epoch", "2"], "--epoch"),
    ],
)
def test_wrong_commands_end_with_one_sentence(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = whet(words)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_said_and_the_same_training_goes_on(folder, tmp_path, monkeypatch):
    def fails(*rest, **named):
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch says it

    settings = TrainSettings(**FULL, max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(run, "save_merged", fails)
        with pytest.raises(RuntimeError, match="unexpected pos"):  # of another cause
            train_sft(folder, sums(), tmp_path / "out", settings)
        patched.setattr(store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
        with pytest.raises(WhetError, match=r"the disk of .*out is full: free space and run"):
            train_sft(folder, sums(), tmp_path / "out", settings)
    assert account(train_sft(folder, sums(), tmp_path / "out", settings))
