"""Fine-tuning tiny models: what is trained; runs repeat, resume and spread; they learn."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
transformers = pytest.importorskip("transformers", reason="needs the extra train")
pytest.importorskip("peft", reason="needs the extra train")
pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from tiny_models import LLAMA, corpus, save_model  # noqa: E402
from whet.classify.risks import SILR_SLOPE, Risk, SetCrossEntropy, SoftCrossEntropy  # noqa: E402
from whet.errors import WhetError  # noqa: E402
from whet.finetune.losses import TensorLoss  # noqa: E402
from whet.finetune.model import PLAIN_ATTENTION, Network  # noqa: E402
from whet.finetune.presets import PRESETS  # noqa: E402
from whet.finetune.settings import Settings  # noqa: E402
from whet.finetune.tokens import Tokens  # noqa: E402
from whet.finetune.trainer import FineTuner, Tuned, schedule, split_validation  # noqa: E402

CPU = torch.device("cpu")
RISK = Risk.uu([[0.7, 0.3], [0.25, 0.75]], [0.5, 0.5], SILR_SLOPE)
FAST = Settings(
    epochs=2, batch_size=8, learning_rate=0.01, max_length=32, lora_dropout=0.1, validation=0.2
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def data(llama):
    texts, truth = corpus()
    return FineTuner(llama, FAST, device="cpu").encode(texts), truth


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_lora_trains_adapters_and_head_only(kind, tmp_path):
    folder = save_model(tmp_path, kind)
    texts, truth = corpus(24)
    tuner = FineTuner(folder, replace(FAST, epochs=1), device="cpu")
    tokens = tuner.encode(texts)
    network = tuner.network(2)
    before = {n: p.detach().clone() for n, p in network.module.named_parameters()}
    tuned = tuner.fit(tokens, np.arange(24), truth, RISK)
    changed = {
        n for n, p in network.module.named_parameters() if not torch.equal(p.detach(), before[n])
    }
    assert changed
    assert all("lora_" in n or "modules_to_save" in n for n in changed)
    adapted = {n.split(".lora_")[0].split(".")[-1] for n in tuned.weights if "lora_A" in n}
    assert (
        adapted
        == {
            "llama": {
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            },
            "bert": {"query", "key", "value", "dense"},
            "gpt2": {"c_attn", "c_proj", "c_fc"},
        }[kind]
    )
    assert tuned.logits(tokens).shape == (24, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_adapters_compute_what_those_of_peft_compute(llama, data, precision):
    tokens, truth = data
    settings = replace(FAST, lora_dropout=0.0, precision=precision)
    network = Network(llama, 2, settings, CPU)
    network.reset(0)
    with torch.no_grad():
        for name, weight in network.trained.items():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(tokens.batch(np.arange(20))[0])
    found = []
    for fused in (True, False):
        if not fused:
            for layer in network.module.modules():
                if hasattr(layer, "lora_A"):
                    del layer.forward
        network.module.zero_grad()
        logits = network.logits(ids, None)
        TensorLoss(RISK).value(logits, truth[:20]).backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in network.trained.items()}))
    (mine, my_gradient), (theirs, their_gradient) = found
    size = max(float(g.abs().max()) for g in their_gradient.values())
    close = 1e-5 if precision == "fp32" else 0.1
    assert float((mine - theirs).abs().max()) < close * float(theirs.abs().max())
    assert furthest(my_gradient, their_gradient) < close * size


def test_full_trains_everything_and_a_second_fit_starts_afresh(llama, data):
    tokens, truth = data
    tuner = FineTuner(llama, replace(FAST, tune="full", epochs=1), device="cpu")
    network = tuner.network(2)
    before = network.snapshot()
    first = tuner.fit(tokens, np.arange(60), truth, RISK)
    assert all(not torch.equal(first.weights[n], before[n]) for n in before)
    second = tuner.fit(tokens, np.arange(60), truth, RISK)
    assert same(first.weights, second.weights)
    assert not same(first.weights, tuner.fit(tokens, np.arange(60), truth, RISK, seed=1).weights)


def test_fits_share_a_model_and_keep_their_own_weights(llama, data):
    tokens, truth = data
    tuner = FineTuner(llama, FAST, device="cpu")
    one = tuner.fit(tokens, np.arange(60), truth, RISK)
    logits = one.logits(tokens)
    other = tuner.fit(tokens, np.arange(60), 1 - truth, RISK)
    assert one.network is other.network
    assert np.abs(other.logits(tokens) - logits).max() > 0.1
    np.testing.assert_array_equal(one.logits(tokens), logits)
    warm = tuner.fit(tokens, np.arange(60), truth, RISK, start=one)
    assert furthest(warm.weights, one.weights) < furthest(other.weights, one.weights)


def test_four_bits_train_on_the_cpu(llama, data, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    tokens, truth = data
    settings = replace(FAST, quantize="nf4", precision="bf16", epochs=1)
    tuner = FineTuner(llama, settings, device="cpu")
    tuned = tuner.fit(tokens, np.arange(60), truth, RISK)
    kinds = {type(m).__name__ for m in tuner.network(2).module.modules()}
    assert "Linear4bit" in kinds
    assert all(w.dtype == torch.float32 for w in tuned.weights.values())
    logits = tuned.logits(tokens)
    assert np.isfinite(logits).all()
    tuned.save_pretrained(tmp_path / "adapter", merge=False)
    again = Tuned.from_pretrained(tmp_path / "adapter", device="cpu")
    np.testing.assert_array_equal(again.logits(tokens), logits)
    tuned.save_pretrained(tmp_path / "merged")  # the 4-bit weights, written out
    merged = Tuned.from_pretrained(tmp_path / "merged", device="cpu").logits(tokens)
    assert np.abs(merged - logits)[:, 1].max() < 0.1 * logits[:, 1].std()


# --- padding, masks, odd texts --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_logits_do_not_depend_on_padding_or_company(kind, tmp_path):
    folder = save_model(tmp_path, kind)
    texts, _ = corpus(20)
    tuner = FineTuner(folder, FAST, device="cpu")
    tokens = tuner.encode(["", *texts, "w1 " * 500, "<pad> <pad>", "unknown words here"])
    network = tuner.network(2)
    network.reset(3)
    tuned = Tuned(network, tuner.processes, network.snapshot(), [])
    assert network.masked == (kind == "bert")
    assert (network.module.config._attn_implementation == PLAIN_ATTENTION) == (kind != "bert")
    together = tuned.logits(tokens)
    assert np.isfinite(together).all()
    alone = np.concatenate([tuned.logits(tokens, np.array([k])) for k in range(len(tokens))])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=0
    ).eval()
    network.module.get_base_model()
    state = network.plain_state()
    reference.load_state_dict(state)
    ids, mask = tokens.batch(np.arange(len(tokens)))
    with torch.no_grad():  # transformers alone, with its mask
        out = reference(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long())
    np.testing.assert_allclose(out.logits[:, 0], together[:, 1], atol=2e-5)


def test_a_model_without_a_padding_token_pads_with_its_end_mark(tmp_path):
    folder = save_model(tmp_path, pad_token_id=None)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    tuner = FineTuner(folder, FAST, device="cpu")
    tokens = tuner.encode(corpus(20)[0])
    network = tuner.network(2)
    network.reset(0)
    assert network.pad == network.module.config.pad_token_id == LLAMA["eos_token_id"]
    tuned = Tuned(network, tuner.processes, network.snapshot(), [])
    alone = np.concatenate([tuned.logits(tokens, np.array([k])) for k in range(len(tokens))])
    np.testing.assert_allclose(tuned.logits(tokens), alone, atol=2e-5)
    tuned.save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == LLAMA["eos_token_id"]
    again = Tuned.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_allclose(again.logits(tokens), alone, atol=2e-5)


def test_empty_and_too_long_texts_and_a_corpus_of_one_class(llama):
    tuner = FineTuner(llama, replace(FAST, epochs=1), device="cpu")
    tokens = tuner.encode(["", "w1 " * 9999, "w2", "w3 w4", "", "w5"])
    assert tokens.lengths.tolist() == [1, 32, 1, 2, 1, 1]
    for sets in (np.ones(6, dtype=int), np.array([1, 0, 0, 0, 0, 0])):
        tuned = tuner.fit(tokens, np.arange(6), sets, RISK)
        assert np.isfinite(tuned.logits(tokens)).all()
        assert all(torch.isfinite(w).all() for w in tuned.weights.values())
    assert tuned.logits(tokens, np.zeros(0, dtype=int)).shape == (0, 2)
    with pytest.raises(WhetError, match="reads 64: lower max_length"):
        tuned.logits(Tokens.from_lists([[3] * 65], 0))


def test_k_classes_and_soft_labels(llama, data):
    tokens, truth = data
    tuner = FineTuner(llama, replace(FAST, tune="full", epochs=8), device="cpu")
    rng = np.random.default_rng(0)
    third = np.where(rng.random(60) < 0.3, 2, truth)
    tuned = tuner.fit(tokens, np.arange(60), third, SetCrossEntropy(np.eye(3) * 0.7 + 0.1))
    assert tuned.logits(tokens).shape == (60, 3)
    target = np.eye(2)[truth] * 0.8 + 0.1
    rows = np.arange(60)[::-1]
    soft = tuner.fit(tokens, rows, rows, SoftCrossEntropy(target, np.ones(60)))
    assert (soft.logits(tokens).argmax(1) == truth).mean() > 0.9


def test_what_does_not_fit_is_refused(llama, data, tmp_path):
    tokens, truth = data
    tuner = FineTuner(llama, FAST, device="cpu")
    for rows, sets, said in (
        (np.arange(60), truth[:-1], "60 rows and 59 labels"),
        (np.arange(1), truth[:1], "1 rows"),
        (np.arange(60) + 1, truth, "row 60: there are 60 texts"),
        (np.arange(60), truth + 1, "the loss knows 0 to 1"),
    ):
        with pytest.raises(WhetError, match=said):
            tuner.fit(tokens, rows, sets, RISK)
    wild = FineTuner(llama, replace(FAST, learning_rate=1e30, tune="full"), device="cpu")
    with pytest.raises(WhetError, match="risk is nan"):
        wild.fit(tokens, np.arange(60), truth, RISK)
    folder = tmp_path / "code"
    save_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(WhetError, match="brings code of its own"):
        FineTuner(str(folder), FAST, device="cpu").network(2)
    for bad in ({"tune": "half"}, {"epochs": 0}, {"quantize": "nf4", "tune": "full"}):
        with pytest.raises(WhetError):
            Settings(**bad)


# --- the step -------------------------------------------------------------------------------------


def weights_after(model, data, **changes):
    tokens, truth = data
    settings = replace(FAST, lora_dropout=0.0, **changes)
    return FineTuner(model, settings, device="cpu").fit(tokens, np.arange(60), truth, RISK).weights


@pytest.mark.parametrize("means", ["epoch", "batch"])
def test_accumulation_and_recomputing_change_memory_not_the_result(llama, data, means):
    whole = weights_after(llama, data, set_means=means)
    parts = weights_after(llama, data, set_means=means, accumulate=3)
    assert furthest(whole, parts) < 1e-4
    again = weights_after(llama, data, set_means=means, gradient_checkpointing=True)
    assert furthest(whole, again) < 1e-4
    assert furthest(whole, weights_after(llama, data, set_means=means, seed=1)) > 1e-2


def test_a_step_follows_the_gradient_of_the_batch(llama, data):
    """One step of plain gradient descent by hand, on the batch that the plan says."""
    tokens, truth = data
    settings = replace(FAST, epochs=1, validation=None, batch_size=60, warmup=0.0, tune="full")
    tuner = FineTuner(llama, settings, device="cpu")
    tuned = tuner.fit(tokens, np.arange(60), truth, RISK)
    network = Network(llama, 2, settings, CPU)
    network.reset(0)
    ids, _ = tokens.batch(np.arange(60))
    TensorLoss(RISK).value(network.logits(torch.from_numpy(ids), None), truth).backward()
    torch.optim.AdamW(network.trained.values(), lr=0.01, weight_decay=0.0).step()
    assert furthest(network.snapshot(), tuned.weights) < 2e-2  # Adam divides by tiny gradients
    close = [torch.isclose(tuned.weights[n], p, atol=1e-5) for n, p in network.trained.items()]
    assert np.mean([float(c.float().mean()) for c in close]) > 0.98


def test_learning_rate_is_that_of_transformers():
    for steps, warmup in ((100, 0.03), (7, 0.3), (10, 0.0)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        theirs = transformers.get_cosine_schedule_with_warmup(
            optimizer, int(np.ceil(steps * warmup)), steps
        )
        for step in range(steps):
            assert schedule(step, steps, warmup) == pytest.approx(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()


def test_validation_rows_are_a_share_of_each_class():
    strata = np.repeat([0, 1, 2], [200, 80, 20])
    train, held = split_validation(strata, Settings(validation=0.125))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(300))
    assert np.bincount(strata[held]).tolist() in ([25, 10, 2], [25, 10, 3])
    train, held = split_validation(strata, Settings(validation=None))
    assert (len(train), len(held)) == (300, 0)
    first = split_validation(strata, Settings(split_seed=42, stratified=False))
    second = split_validation(strata, Settings(split_seed=42, stratified=False, seed=9))
    np.testing.assert_array_equal(first[1], second[1])


def test_best_epoch_early_stop_and_clipping(llama, data):
    tokens, truth = data
    noise = np.random.default_rng(0).permutation(truth)  # nothing to learn that would validate
    settings = replace(FAST, epochs=12, patience=2, max_grad_norm=0.5, tune="full")
    tuner = FineTuner(llama, settings, device="cpu")
    tuned = tuner.fit(tokens, np.arange(60), noise, RISK)
    risks = [epoch["validation_risk"] for epoch in tuned.history]
    best = int(np.argmin(risks))
    assert len(risks) == min(best + 3, 12)
    held = split_validation(noise, settings)[1]
    scores = tuned.logits(tokens, held).astype(float)
    assert RISK.value_and_gradient(scores, noise[held])[0] == pytest.approx(risks[best], abs=1e-6)
    last = replace(settings, select_best=False, patience=None, epochs=3)
    history = FineTuner(llama, last, device="cpu").fit(tokens, np.arange(60), noise, RISK).history
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]


# --- repeat, resume, spread -----------------------------------------------------------------------


def test_runs_repeat_and_leave_the_random_state_alone(llama, data):
    tokens, truth = data
    state = torch.get_rng_state()
    fits = [
        FineTuner(llama, FAST, device="cpu").fit(tokens, np.arange(60), truth, RISK)
        for _ in range(2)
    ]
    assert same(fits[0].weights, fits[1].weights)
    assert fits[0].history == fits[1].history
    assert torch.equal(torch.get_rng_state(), state)


class Stop(Exception):
    pass


@pytest.mark.parametrize(("at", "best"), [(1, 2), (5, 2), (6, 2), (11, 2), (8, 1)])
def test_a_run_that_broke_off_goes_on_as_if_nothing_had_happened(llama, data, tmp_path, at, best):
    tokens, truth = data
    if best == 1:  # labels at random: the longer it trains, the worse it validates
        truth = np.random.default_rng(0).permutation(truth)
    file = tmp_path / "state.safetensors"
    tuner = FineTuner(llama, FAST, device="cpu")
    whole = tuner.fit(tokens, np.arange(60), truth, RISK)
    assert np.argmin([epoch["validation_risk"] for epoch in whole.history]) == best - 1

    def stop(stage, done, total):
        assert (stage, total) == ("step", 12)
        if done == at:
            raise Stop

    with pytest.raises(Stop):
        tuner.fit(tokens, np.arange(60), truth, RISK, checkpoint=file, save_every=1, progress=stop)
    seen = []
    resumed = FineTuner(llama, FAST, device="cpu").fit(
        *(tokens, np.arange(60), truth, RISK),
        checkpoint=file,
        progress=lambda stage, done, total: seen.append(done),
    )
    assert seen == list(range(at + 1, 13))
    assert same(resumed.weights, whole.weights)
    assert resumed.history == whole.history
    again = tuner.fit(
        tokens, np.arange(60), truth, RISK, checkpoint=file, progress=lambda *_: 1 / 0
    )
    assert same(again.weights, whole.weights)


def test_a_killed_process_goes_on_from_its_last_checkpoint(llama, data, tmp_path):
    tokens, truth = data
    file = tmp_path / "state.safetensors"
    settings = replace(FAST, tune="full", accumulate=2)
    tuner = FineTuner(llama, settings, device="cpu")
    whole = tuner.fit(tokens, np.arange(60), truth, RISK)

    def kill(stage, done, total):
        if done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:  # a process of its own that dies without a word
        try:
            tuner.fit(
                tokens, np.arange(60), truth, RISK, checkpoint=file, save_every=3, progress=kill
            )
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    seen = []
    resumed = tuner.fit(
        *(tokens, np.arange(60), truth, RISK),
        checkpoint=file,
        progress=lambda stage, done, total: seen.append(done),
    )
    assert seen[0] == 7
    assert same(resumed.weights, whole.weights)


def test_a_checkpoint_of_another_run_is_refused(llama, data, tmp_path):
    tokens, truth = data
    file = tmp_path / "state.safetensors"
    tuner = FineTuner(llama, replace(FAST, epochs=1), device="cpu")
    tuner.fit(tokens, np.arange(60), truth, RISK, checkpoint=file)
    for other in (
        lambda: tuner.fit(tokens, np.arange(60), 1 - truth, RISK, checkpoint=file),
        lambda: tuner.fit(tokens, np.arange(60), truth, Risk.pn([0.5, 0.5]), checkpoint=file),
        lambda: tuner.fit(tokens, np.arange(59), truth[:59], RISK, checkpoint=file),
        lambda: tuner.fit(tokens, np.arange(60), truth, RISK, checkpoint=file, seed=1),
    ):
        with pytest.raises(WhetError, match="of other data, another model or other settings"):
            other()
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(WhetError, match="cannot be read"):
        tuner.fit(tokens, np.arange(60), truth, RISK, checkpoint=file)


SPREAD = """
    import sys
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from whet.classify.risks import Risk
    from whet.finetune.settings import Settings
    from whet.finetune.trainer import FineTuner

    torch.set_num_threads(1)
    model, texts, out = sys.argv[1:]
    arrays = np.load(texts)
    for name, settings in (
        # Between clipped and unclipped steps AdamW notices the scale of gradients.
        ("lora", Settings(epochs=2, batch_size=7, learning_rate=0.01, lora_dropout=0.0,
                          max_grad_norm=0.5)),
        ("full", Settings(epochs=1, tokens_per_batch=128, learning_rate=0.003, tune="full",
                          accumulate=2, set_means="batch")),
    ):
        tuner = FineTuner(model, settings, device="cpu")
        tokens = tuner.encode([str(t) for t in arrays["texts"]])
        risk = Risk(arrays["weights"], float(arrays["slope"]))
        truth = arrays["truth"]
        tuned = tuner.fit(tokens, np.arange(len(truth)), truth, risk)
        logits = torch.from_numpy(tuned.logits(tokens))
        if tuner.processes.main:
            tensors = {**tuned.weights, "logits": logits}
            header = {"size": str(tuner.processes.size), "history": str(tuned.history)}
            save_file(tensors, f"{out}-{name}.safetensors", header)
"""


def test_two_processes_train_what_one_trains(llama, tmp_path):
    texts, truth = corpus(40)
    np.savez(
        *(tmp_path / "data.npz",),
        texts=np.array(texts),
        truth=truth,
        weights=RISK.weights,
        slope=RISK.slope,
    )
    script = tmp_path / "spread.py"
    script.write_text(textwrap.dedent(SPREAD))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    home = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*launch, str(script), llama, str(tmp_path / "data.npz"), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | home,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    code = textwrap.dedent(SPREAD)
    argv = sys.argv
    sys.argv = ["spread.py", llama, str(tmp_path / "data.npz"), str(tmp_path / "one")]
    try:
        exec(compile(code, "spread.py", "exec"), {"__name__": "__main__"})
    finally:
        sys.argv = argv
    from safetensors import safe_open

    for name in ("lora", "full"):
        found = []
        for count in ("one", "two"):
            with safe_open(tmp_path / f"{count}-{name}.safetensors", "pt") as file:
                assert file.metadata()["size"] == {"one": "1", "two": "2"}[count]
                found.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        assert furthest(*found) < 1e-4


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tune"), [("llama", "lora"), ("bert", "lora"), ("bert", "full")])
def test_saved_folders_are_those_of_transformers(kind, tune, tmp_path, request):
    folder = request.getfixturevalue(kind)
    texts, truth = corpus(24)
    tuner = FineTuner(folder, replace(FAST, tune=tune, epochs=1), device="cpu")
    tokens = tuner.encode(texts)
    tuned = tuner.fit(tokens, np.arange(24), truth, RISK)
    logits = tuned.logits(tokens)
    tuned.save_pretrained(tmp_path / "out", classes=["calm", "angry"], about="Two `words`.")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
    assert not {path.suffix for path in (tmp_path / "out").iterdir()} & {".bin", ".pt", ".pkl"}
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out"
    ).eval()
    assert loaded.config.id2label == {0: "angry"}
    assert "`angry`" in (tmp_path / "out" / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        theirs = loaded(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits[:, 0]
    np.testing.assert_allclose(theirs, logits[:, 1], atol=2e-5)
    again = Tuned.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_allclose(again.logits(tokens), logits, atol=2e-5)
    assert again.history == tuned.history
    tuned.save_pretrained(tmp_path / "out", merge=False)
    again = Tuned.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(again.logits(tokens), logits)
    again.save_pretrained(tmp_path / "again", merge=False)
    assert Tuned.from_pretrained(tmp_path / "again", device="cpu").history == tuned.history


def test_damaged_folders_are_refused(llama, data, tmp_path):
    tokens, truth = data
    tuner = FineTuner(llama, replace(FAST, epochs=1), device="cpu")
    tuned = tuner.fit(tokens, np.arange(60), truth, RISK)
    tuned.save_pretrained(tmp_path, merge=False)
    with pytest.raises(WhetError, match="3 names for 2 classes"):
        tuned.save_pretrained(tmp_path, classes=[1, 2, 3])
    about = json.loads((tmp_path / "finetune.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(WhetError, match="cannot be read"):
        Tuned.from_pretrained(tmp_path)
    for change, said in (({"format": "x"}, "has format 'x'"), ({"settings": {"a": 1}}, "'a'")):
        (tmp_path / "finetune.json").write_text(json.dumps(about | change))
        with pytest.raises(WhetError, match=said):
            Tuned.from_pretrained(tmp_path)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_easy_task_is_learned(llama, noise):
    n = 2400 if noise else 400
    texts, truth = corpus(n)
    rng = np.random.default_rng(1)
    pseudo = np.where(rng.random(n) < noise, 1 - truth, truth)
    if noise:
        theta = np.array([[(truth[pseudo == i] == j).mean() for j in (0, 1)] for i in (0, 1)])
        risk = Risk.uu(theta, [1 - truth.mean(), truth.mean()], 1.0)
    else:
        risk = Risk.pn([1 - pseudo.mean(), pseudo.mean()])
    settings = Settings(
        epochs=3, learning_rate=3e-3, batch_size=16, max_length=32, tune="full", validation=None
    )
    tuner = FineTuner(llama, settings, device="cpu")
    tokens = tuner.encode(texts)
    tuned = tuner.fit(tokens, np.arange(n), pseudo, risk)
    assert (tuned.logits(tokens).argmax(axis=1) == truth).mean() > 0.95


def test_presets_are_settings_that_can_be_run(bert, data):
    tokens, truth = data
    paper, released = PRESETS["silr-paper"], PRESETS["silr-released"]
    assert (paper.slope, paper.rounds, paper.settings.batch_size) == (-0.001, 5, 16)
    assert (released.settings.batch_size, released.settings.pad_to_max) == (32, True)
    for preset in (paper, released):
        small = replace(preset.settings, quantize=None, precision="fp32", max_length=32, epochs=1)
        tuned = FineTuner(bert, small, device="cpu").fit(tokens, np.arange(60), truth, RISK)
        assert len(tuned.history) == 1
