"""Refining with a fine-tuned model, as users do it: in Python and on the command line."""

import copy
import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

torch = pytest.importorskip("torch", reason="needs the extra train")
transformers = pytest.importorskip("transformers", reason="needs the extra train")
pytest.importorskip("peft", reason="needs the extra train")
pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from conftest import flip, sample_gold  # noqa: E402
from helpers import WHET, snapshot, whet  # noqa: E402
from tiny_models import corpus, save_model  # noqa: E402
from whet import LabelRefiner, WhetError, WhetWarning  # noqa: E402
from whet.classify.gold import GoldLedger  # noqa: E402
from whet.classify.tuned_tsp import STUDENT, TunedTspLearner  # noqa: E402
from whet.cli._recipe import load_recipe  # noqa: E402
from whet.cli.refine import _finetune  # noqa: E402
from whet.finetune.presets import PRESETS  # noqa: E402
from whet.finetune.settings import Settings  # noqa: E402
from whet.finetune.trainer import FineTuner  # noqa: E402
from whet.store import RunFolder  # noqa: E402

FAST = Settings(epochs=1, batch_size=16, learning_rate=0.01, max_length=32)
UNSEEN = ["w1 w2 w3", "", "w11 w12", "unknown words", "w5 " * 500]
METHODS = ("tsp", "uu", "silr", "pn")


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
def data():
    texts, truth = corpus(80)
    return texts, truth, flip(truth, 0.8), sample_gold(truth, 40)


@pytest.fixture
def here(tmp_path, monkeypatch, data):
    """A working directory with a corpus in it."""
    monkeypatch.chdir(tmp_path)
    texts, _, pseudo, gold = data
    with Path("corpus.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "llm", "gold"])
        names = ("calm", "angry")
        for text, label, true in zip(texts, pseudo, gold, strict=True):
            writer.writerow([text, names[label], "" if true is None else names[true]])
    return tmp_path


def refiner(model, method="uu", finetune=FAST, **parameters):
    return LabelRefiner(method, encoder=f"hf:{model}", finetune=finetune, **parameters)


def command(model, *more, out="run", method="uu"):
    """Return a command; what is given in ``more`` replaces what is here."""
    flags = ["--encoder", f"hf:{model}", "--epochs", "1", "--out", out]
    flags += ["--method", method] if method else []
    kept = [x for k in range(0, len(flags), 2) if flags[k] not in more for x in flags[k : k + 2]]
    columns = ["--text", "text", "--pseudo", "llm", "--gold", "gold"]
    return ["refine", "corpus.csv", *columns, *kept, *more]


# --- it refines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_labels_get_better(llama, method):
    texts, truth = corpus(900)
    pseudo = flip(truth, 0.75)
    settings = Settings(
        epochs=4, batch_size=16, learning_rate=3e-3, max_length=32, tune="full", validation=None
    )
    fitted = refiner(llama, method, settings, folds=2)
    refined = fitted.fit_refine(texts, pseudo, sample_gold(truth, 100))
    assert (refined == truth).mean() > (pseudo == truth).mean() + 0.05
    new, known = corpus(200, seed=1)
    assert (fitted.predict(new) == known).mean() > 0.8


@pytest.mark.parametrize(
    ("method", "kind"), [("uu", "bert"), ("silr", "llama"), ("pn", "llama"), ("tsp", "bert")]
)
def test_a_saved_refiner_is_the_same_and_needs_nothing_else(method, kind, data, tmp_path):
    base = save_model(tmp_path / "base", kind)
    texts, _, pseudo, gold = data
    before = refiner(base, method, folds=2).fit(texts, pseudo, gold)
    for file in Path(base).iterdir():
        file.unlink()  # the model that it began with
    probability = before.predict_proba(UNSEEN)
    assert probability.shape == (5, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    before.save_pretrained(tmp_path / "model")
    after = LabelRefiner.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(after.predict_proba(UNSEEN), probability, atol=1e-5)
    np.testing.assert_array_equal(after.predict(UNSEEN), before.predict(UNSEEN))
    assert after.get_params() == before.get_params()
    after.save_pretrained(tmp_path / "again")
    again = LabelRefiner.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again.predict_proba(UNSEEN), after.predict_proba(UNSEEN))
    assert after.predict_proba([]).shape == (0, 2)


def test_transformers_loads_the_folder_alone(llama, data, tmp_path):
    texts, _, pseudo, gold = data
    names = np.array(["calm", "angry"])
    mine = refiner(llama).fit(texts, names[pseudo], [None if g is None else names[g] for g in gold])
    mine.save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    words = [text for text in UNSEEN if text]
    batch = tokenizer(words, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        logit = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert mine.classes_.tolist() == ["angry", "calm"]
    assert model.config.id2label == {0: "calm"}
    np.testing.assert_allclose(
        torch.sigmoid(logit[:, 0]), mine.predict_proba(words)[:, 1], atol=1e-5
    )
    card = (tmp_path / "README.md").read_text()
    assert "refined by the method `uu`" in card
    assert "Gold rows: 40" in card
    assert mine.verdict_ in card


@pytest.mark.parametrize("method", ["uu", "tsp"])
def test_three_classes_and_abstentions(method, llama, data):
    texts, truth, _, _ = data
    third = np.where(np.arange(80) % 4 == 0, 2, truth)
    pseudo = [None if i % 10 == 0 else int(y) for i, y in enumerate(flip(third, 0.8, 3))]
    gold = [int(y) if i < 60 else None for i, y in enumerate(third)]
    fitted = refiner(llama, method).fit(texts, pseudo, gold)
    assert fitted.predict_proba(texts).shape == (80, 3)
    assert set(fitted.labels_.tolist()) <= {0, 1, 2}


def test_the_same_seed_gives_the_same(llama, data):
    texts, _, pseudo, gold = data
    one, other = (refiner(llama).fit(texts, pseudo, gold) for _ in range(2))
    np.testing.assert_array_equal(one.proba_, other.proba_)
    different = refiner(llama, random_state=1).fit(texts, pseudo, gold)
    assert not np.array_equal(one.proba_, different.proba_)


def test_gold_labels_reach_the_training_only_as_counts(llama, data):
    texts, _, pseudo, gold = data
    rows = [i for i, g in enumerate(gold) if g is not None]
    permuted = list(gold)
    for label in (0, 1):
        mine = [i for i in rows if pseudo[i] == label]
        for i, j in zip(mine, np.roll(mine, 3), strict=True):
            permuted[i] = gold[j]
    assert permuted != gold
    fits = [refiner(llama, "silr", guard="off").fit(texts, pseudo, g) for g in (gold, permuted)]
    assert fits[0].tuned_.weights.keys() == fits[1].tuned_.weights.keys()
    for name, weight in fits[0].tuned_.weights.items():
        assert torch.equal(weight, fits[1].tuned_.weights[name])
    np.testing.assert_array_equal(fits[0].proba_, fits[1].proba_)


def stored_features(model, data, folder, **parameters):
    """Features of the default method, and what the students learned beside them."""
    texts, _, pseudo, gold = data
    run = RunFolder(folder, {}, resume=False)
    refiner(model, "tsp", **parameters).fit_refine(texts, pseudo, gold, run=run)
    run.close()
    return (folder / "features.safetensors").read_bytes()


def test_no_gold_label_reaches_the_students(llama, data, tmp_path):
    """So the runs without a gold label, which judge its row, stay honest; test_tsp.py has them."""
    texts, truth, pseudo, gold = data
    other = [None if g is None else 1 - g for g in reversed(gold)]
    assert other != gold
    one = stored_features(llama, (texts, truth, pseudo, gold), tmp_path / "one")
    assert one == stored_features(llama, (texts, truth, pseudo, other), tmp_path / "other")
    changed = np.where(np.arange(80) % 8 == 0, 1 - pseudo, pseudo)
    assert one != stored_features(llama, (texts, truth, changed, gold), tmp_path / "changed")


def test_each_half_is_scored_by_the_student_of_the_other(llama):
    texts, truth = corpus(300)
    tuner = FineTuner(llama, replace(FAST, epochs=4, tune="full", validation=None), device="cpu")
    ledger = GoldLedger(np.full(300, -1), None, 0)
    memorised = flip(truth, 0.5, seed=7)  # labels that say nothing: only a seen one can be known
    data = (memorised[:, None], memorised, ledger, np.arange(2), np.arange(300), 5, 0)
    learner = TunedTspLearner(*data, tuner=tuner)
    learner.encode(texts)
    scores = learner.features[:, -2:]
    np.testing.assert_allclose(scores.sum(axis=1), 0, atol=1e-5)
    assert (scores.argmax(axis=1) == memorised).mean() < 0.6
    learnt = TunedTspLearner(truth[:, None], truth, *data[2:], tuner=tuner)
    learnt.encode(texts)
    assert (learnt.features[:, -2:].argmax(axis=1) == truth).mean() > 0.9
    frozen = learner.features[:, :-2]
    np.testing.assert_allclose(np.linalg.norm(frozen, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(frozen, learnt.features[:, :-2])


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_states_are_the_means_of_the_untuned_model(tune, llama, bert):
    texts = [text for text in UNSEEN if text][:3]
    for model in (llama, bert):
        tuner = FineTuner(model, replace(FAST, tune=tune), device="cpu")
        tokens = tuner.encode(texts)
        states = tuner.embed(tokens)
        plain = transformers.AutoModel.from_pretrained(model).eval()
        for row in range(len(texts)):
            ids, _ = tokens.batch(np.array([row]), multiple=1)
            with torch.no_grad():
                mean = plain(torch.from_numpy(ids)).last_hidden_state[0].mean(dim=0)
            np.testing.assert_allclose(states[row], mean / mean.norm(), atol=1e-5)


def test_several_annotators_teach_one_pair_of_students(llama, data):
    texts, truth, pseudo, gold = data
    votes = {"a": pseudo.tolist(), "b": flip(truth, 0.9, seed=5).tolist()}
    votes["b"][3] = None
    fitted = refiner(llama, "tsp").fit(texts, votes, gold)
    assert fitted.predict_proba(texts).shape == (80, 2)
    assert "new texts" not in fitted.estimate_


def test_a_clone_has_the_settings_and_is_not_fitted(llama, data):
    texts, _, pseudo, gold = data
    fitted = refiner(llama, folds=2, rounds=1).fit(texts, pseudo, gold)
    unfitted = clone(fitted)
    assert unfitted.get_params() == fitted.get_params()
    assert unfitted.finetune == FAST
    with pytest.raises(NotFittedError):
        unfitted.predict(texts)
    assert copy.deepcopy(unfitted).get_params() == fitted.get_params()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_is_a_classifier_of_its_own(copied, llama, data):
    texts, _, pseudo, gold = data
    fitted = refiner(llama).fit(texts, pseudo, gold)
    probability = fitted.predict_proba(UNSEEN)
    other = copied(fitted)
    with torch.no_grad():
        for weight in fitted.tuned_.network.trained.values():
            weight.zero_()
    np.testing.assert_array_equal(other.predict_proba(UNSEEN), probability)


def test_a_second_fit_forgets_the_first(llama, data, tmp_path):
    texts, _, pseudo, gold = data
    twice = refiner(llama, rounds=1).fit(texts, pseudo, gold)
    twice.save_pretrained(tmp_path)
    twice.set_params(encoder="tfidf", finetune=None).fit(texts, pseudo, gold)
    plain = LabelRefiner("uu", rounds=1).fit(texts, pseudo, gold)
    np.testing.assert_array_equal(twice.predict_proba(UNSEEN), plain.predict_proba(UNSEEN))
    twice.save_pretrained(tmp_path)  # over the fine-tuned one
    loaded = LabelRefiner.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(UNSEEN), plain.predict_proba(UNSEEN))


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_command_refines_and_predicts(method, here, bert, data):
    ended = whet(command(bert, "--folds", "2", method=method))
    assert ended.code == 0, ended.err
    assert all(line.startswith("whet: ") for line in ended.err.splitlines())
    held = {path.name for path in Path("run").iterdir()}
    told = {"run.json", "settings.json", "summary.json", "report.html"}
    assert held == {"refined.parquet", "model", "rounds"} | told
    manifest = json.loads(Path("run/run.json").read_text())
    rounds = 2 if method == "tsp" else 1
    assert (len(manifest["rounds"]), manifest["settings"]["epochs"]) == (rounds, 1)
    ended = whet(["predict", "run", "corpus.csv", "--text", "text", "--out", "new.parquet"])
    assert ended.code == 0, ended.err
    assert ended.err == ""
    predicted = pq.read_table("new.parquet")
    loaded = LabelRefiner.from_pretrained("run")
    probability = loaded.predict_proba(data[0])
    assert predicted["predicted_label"].to_pylist() == loaded.predict(data[0]).tolist()
    np.testing.assert_array_equal(predicted["predicted_prob"].to_numpy(), probability.max(axis=1))


def test_the_command_line_reaches_the_settings(here, llama):
    flags = ["--tune", "full", "--tokens-per-batch", "64"]
    assert whet(command(llama, *flags)).code == 0
    settings = json.loads(Path("run/model/finetune.json").read_text())["settings"]
    wanted = {"epochs": 1, "tune": "full", "tokens_per_batch": 64, "quantize": None}
    assert {name: settings[name] for name in wanted} == wanted


def test_the_default_method_has_settings_of_its_own(here, llama):
    columns = ["--text", "text", "--pseudo", "llm", "--gold", "gold"]
    flags = ["--encoder", f"hf:{llama}", "--tokens-per-batch", "200", "--out", "run"]
    assert whet(["refine", "corpus.csv", *columns, *flags]).code == 0
    settings = json.loads(Path("run/model/finetune.json").read_text())["settings"]
    assert settings == asdict(replace(STUDENT, tokens_per_batch=200))


@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_presets_run(quantize, here, llama):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    flags = ["--preset", "silr-paper", "--quantize", quantize, "--rounds", "2"]
    ended = whet(command(llama, *flags, method=None))
    assert ended.code == 0, ended.err
    assert all(line.startswith("whet: ") for line in ended.err.splitlines())
    manifest = json.loads(Path("run/run.json").read_text())
    chosen = ("method", "theta", "rounds", "folds", "guard")
    assert [manifest["settings"][name] for name in chosen] == ["silr", "gold", 2, 0, "off"]
    assert whet(["predict", "run", "corpus.csv", "--text", "text", "--out", "new.csv"]).code == 0


def test_the_released_preset_runs_and_pads_to_what_the_model_reads(bert, data):
    texts, truth, pseudo, _ = data
    released = PRESETS["silr-released"]
    settings = replace(released.settings, quantize=None, epochs=1, precision="fp32")
    assert settings.max_length > 64
    fitted = refiner(bert, "silr", settings, theta="released", rounds=1, guard="off")
    fitted.fit([*texts[:-1], "w1 " * 100], pseudo, truth)
    assert fitted.predict_proba(["w2 " * 100]).shape == (1, 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_what_is_published_and_flags_win(preset, tmp_path):
    flags = {
        **{"input": "c.csv", "text": "t", "pseudo": "p", "encoder": "hf:m", "preset": preset},
        **dict.fromkeys(("method", "theta", "rounds", "folds", "guard", "epochs", "quantize")),
    }
    recipe = load_recipe(None, flags)
    theta = {"silr-paper": "gold", "silr-released": "released"}[preset]
    chosen = (recipe.method, recipe.theta, recipe.rounds, recipe.folds, recipe.guard)
    assert chosen == ("silr", theta, 5, 0, "off")
    assert _finetune(recipe) == PRESETS[preset].settings
    mine = {
        **{"method": "uu", "theta": "gold", "rounds": 2, "folds": 3, "guard": "mild"},
        **{"epochs": 7, "quantize": "none"},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in mine.items()))
    for recipe in (load_recipe(None, flags | mine), load_recipe(file, flags)):
        assert {name: getattr(recipe, name) for name in mine} == mine
        settings = _finetune(recipe)
        assert (settings.epochs, settings.quantize) == (7, None)
        assert settings.batch_size == PRESETS[preset].settings.batch_size


PIP = "which is not installed: pip install 'whet[{}]'"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "silr-released"], "needs the gold label of every row, and 40 of 80"),
        (["--preset", "silr-papr"], "is not known (did you mean 'silr-paper'?)"),
        (["--tune", "lroa"], "is not known (did you mean 'lora'?)"),
        (["--quantize", "nf4", "--tune", "full", "--method", "uu"], "4-bit weights cannot be"),
        (["--epochs", "0", "--method", "uu"], "--epochs = 0 is not valid"),
        (["--encoder", "tfidf"], "--epochs is for a model that is fine-tuned"),
        (["--encoder", "tfidf", "--preset", "silr-paper"], "--preset is for a model that is"),
        (["--encoder", "hf:./nowhere", "--method", "uu"], "the model folder ./nowhere does not"),
        (["--encoder", "hf:", "--method", "uu"], "no model is named"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, said, here, llama):
    ended = whet(command(llama, *flags, method=None))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("module", "extra", "flags"),
    [
        ("torch", "train", []),
        ("transformers", "train", []),
        ("peft", "train", []),
        ("accelerate", "train", []),
        ("bitsandbytes", "quantization", ["--quantize", "nf4"]),
    ],
)
def test_a_missing_extra_is_one_sentence(module, extra, flags, here, llama, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    ended = whet(command(llama, *flags))
    assert ended.code == 2
    said = [line for line in ended.err.splitlines() if "whet: reading" not in line]
    assert len(said) == 1
    assert f"needs {module}, {PIP.format(extra)}" in said[0]
    assert not Path("run").exists()


def test_settings_without_a_model_are_refused(data):
    with pytest.raises(WhetError, match=r"finetune is given, and encoder = 'tfidf'"):
        LabelRefiner("uu", finetune=FAST).fit(*data[:1], data[2], data[3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "this whet reads"),
        ({"classes": ["a"]}, "names no distinct classes"),
        ({"classes": ["a", "b", "c"]}, "names 3 classes and the model has 2"),
        ({"refiner": 3}, "lacks its settings"),
        ({"finetune": {"epoch": 1}}, "unknown setting 'epoch'"),
    ],
)
def test_damaged_folders_are_named(change, said, saved):
    file = saved / "refiner.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(WhetError, match=said):
            LabelRefiner.from_pretrained(saved)
    finally:
        file.write_text(before)


@pytest.fixture(scope="module")
def saved(llama, data, tmp_path_factory):
    texts, _, pseudo, gold = data
    folder = tmp_path_factory.mktemp("saved")
    refiner(llama).fit(texts, pseudo, gold).save_pretrained(folder)
    return folder


# --- resuming -------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_a_run_that_broke_off_in_mid_fit_goes_on_there(llama, data, tmp_path):
    texts, _, pseudo, gold = data
    parameters = {"finetune": replace(FAST, epochs=2), "folds": 2}
    whole = refiner(llama, "pn", rounds=2, **parameters)
    whole.fit_refine(texts, pseudo, gold)
    steps = []

    def stop(stage, done, total):
        steps.append((stage, done))
        if steps.count(("step", 5)) == 3:  # the first fold's fit of the second round
            raise Stop

    folder = tmp_path / "run"
    run = RunFolder(folder, {}, resume=False)
    with pytest.raises(Stop):
        refiner(llama, "pn", rounds=2, **parameters).fit_refine(
            texts, pseudo, gold, run=run, progress=stop
        )
    run.close()
    left = {path.name for path in folder.glob("*.safetensors")}
    assert "tokens.safetensors" in left
    assert len(left) == 2  # those of the first round are gone: its labels are stored
    assert all("-02-" in name for name in left - {"tokens.safetensors"})
    seen = []
    run = RunFolder(folder, {}, resume=True)
    resumed = refiner(llama, "pn", rounds=2, **parameters)
    resumed.fit_refine(
        texts, pseudo, gold, run=run, progress=lambda stage, done, _: seen.append((stage, done))
    )
    run.close()
    assert ("tokens", 80) not in seen  # they were stored
    assert next(done for stage, done in seen if stage == "step") > 1
    np.testing.assert_array_equal(resumed.proba_, whole.proba_)
    np.testing.assert_array_equal(resumed.predict_proba(UNSEEN), whole.predict_proba(UNSEEN))


def killed_at(nth, args):
    """Run a command in a process that dies before its n-th file gets its name."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        rename, count = os.replace, [0]

        def replace(source, target):
            count[0] += 1
            if count[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace
        os._exit(whet(args).code)
    finally:
        os._exit(9)


@pytest.mark.parametrize("method", ["uu", "tsp"])
def test_a_kill_before_every_file_changes_nothing(method, here, llama):
    assert whet(command(llama, "--folds", "2", out="whole", method=method)).code == 0
    broken = command(llama, "--folds", "2", "--resume", out="broken", method=method)
    kills, nth, before = 0, 2, None
    while (status := killed_at(nth, broken)) != 0:
        assert os.WIFSIGNALED(status), status
        kills += 1
        after = [name for name in snapshot(Path("broken")) if not name.endswith(".tmp")]
        nth += after == before  # what is written anew each time must be got past
        before = after
        assert kills < 40
    assert kills > 8  # settings, tokens, three checkpoints, the round, the model, the result
    whole, broken = (snapshot(Path(name)) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert whole["refined.parquet"] == broken["refined.parquet"]
    assert whole["model/model.safetensors"] == broken["model/model.safetensors"]


def process(args, **environment):
    """Start a command as users do."""
    return subprocess.Popen(
        [str(arg) for arg in args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
    )


def test_a_process_killed_in_mid_fit_goes_on(here, llama):
    flags = ("--epochs", "20", "--tokens-per-batch", "100")
    first = process([WHET, *command(llama, *flags)])
    deadline = time.monotonic() + 60
    while not list(Path("run").glob("checkpoint-01-*")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    first.communicate()
    assert not Path("run/rounds").exists()
    ended = whet(command(llama, *flags))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "add --resume to finish it" in ended.err
    again = process([WHET, *command(llama, *flags, "--resume")])
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    # Nothing but its own lines, though libraries like to talk when they are imported.
    assert all(line.startswith("whet: ") for line in said.splitlines()), said
    assert re.search(r"training \d+/\d+ steps", said)[0].split("/")[0] != "training 1"
    assert whet(command(llama, *flags, out="whole")).code == 0
    whole, broken = (snapshot(Path(name)) for name in ("whole", "run"))
    assert whole.keys() == broken.keys()
    assert whole["refined.parquet"] == broken["refined.parquet"]


def test_an_error_keeps_the_steps_that_are_done(here, llama, monkeypatch):
    from whet.cli import _progress

    def fail(self, stage, done, total):
        if (stage, done) == ("step", 6):
            raise OSError(28, "No space left on device", "somewhere")

    with monkeypatch.context() as patched:
        patched.setattr(_progress.ProgressReporter, "__call__", fail)
        assert whet(command(llama, "--epochs", "2")).code == 2
    assert list(Path("run").glob("checkpoint-01-*"))
    assert whet(command(llama, "--epochs", "2", "--resume")).code == 0


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["uu", "tsp"])
def test_two_processes_write_one_run(method, here, bert):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "--module", "whet"]
    # All but the dropout is that of one process; its masks are those of a process's rows.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        assert whet(command(bert, "--rounds", "2", out="one", method=method)).code == 0
    args = [*launch, *command(bert, "--rounds", "2", out="two", method=method)]
    two = process(args, HF_HOME=str(here / "hf"))
    out, err = two.communicate(timeout=120)
    assert two.returncode == 0, err
    assert out.count("full account") == 1
    one, two = snapshot(here / "one"), snapshot(here / "two")
    assert one.keys() == two.keys()
    found = [
        pq.read_table(here / name / "rounds/01/labels.parquet")["p_1"].to_numpy()
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*found, atol=5e-3)
