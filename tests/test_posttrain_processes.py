"""Post-training in several processes: the result of one, one folder, one sentence."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("trl")

from safetensors.torch import load_file

from helpers import whet
from test_align import fill_in, make_inputs, recipe_for, unsteady
from tiny_causal import save_causal, sums
from whet import WhetError
from whet.posttrain.examples import write_examples
from whet.posttrain.run import Plan, Run
from whet.posttrain.settings import DpoSettings, TrainSettings
from whet.posttrain.trainers import _check_last, train_dpo, train_sft

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
LAUNCH += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0"]
TESTS = os.path.dirname(__file__)

FULL = {"tune": "full", "batch_size": 8, "learning_rate": 1e-3}
LORA = {"lora_rank": 4, "lora_alpha": 8, "batch_size": 8, "learning_rate": 1e-2}
#: What is trained, on how many rows; with 21 the last step has five rows in passes of four, so that
#: a process has none.
RUNS = {
    "full": (train_sft, 21, TrainSettings(**FULL, accumulate=2, epochs=1)),
    "trl": (train_sft, 21, TrainSettings(**FULL, accumulate=2, epochs=1)),
    "lora": (train_sft, 20, TrainSettings(**LORA, gradient_checkpointing=True)),
    "dpo": (train_dpo, 20, DpoSettings(**FULL, optimizer="adamw", epochs=1)),
}
DROPOUT = TrainSettings(**LORA, lora_dropout=0.1, epochs=3)

#: Trains all that, then online; each process leaves what it knows of that.
TOGETHER = """
    import sys
    from pathlib import Path

    import trl
    from test_posttrain_processes import DROPOUT, FULL, RUNS
    from tiny_causal import sums
    from whet.posttrain import run, trainers
    from whet.posttrain.settings import OnlineSettings

    model, out = sys.argv[1], Path(sys.argv[2])
    own = trainers._own_loss
    for name, (train, rows, settings) in RUNS.items():
        trainers._own_loss = (lambda: trl.SFTTrainer) if name == "trl" else own
        train(model, sums(rows), out / name, settings)
    trainers._own_loss = own
    trainers.train_sft(model, sums(), out / "dropout", DROPOUT)

    fit, calls = run.Run._fit, []

    def spied(self, trainer):
        fit(self, trainer)
        total = sum(float(p.double().abs().sum()) for p in trainer.model.parameters())
        (out / f"online-{self.ranks.rank}").write_text(f"{total:.9f} {calls}")

    def reward(completions, **_):
        calls.append(len(completions))
        return [float(text.count("1")) for text in completions]

    run.Run._fit = spied
    settings = OnlineSettings(
        **FULL | {"batch_size": 16}, accumulate=2, max_steps=3, max_new_tokens=5
    )
    trainers.train_online(model, sums(8), reward, out / "online", settings)
"""

#: Trains until the second process fails.
FAILING = """
    import sys
    from pathlib import Path

    from test_posttrain_processes import DROPOUT
    from tiny_causal import sums
    from whet import WhetError
    from whet.finetune.processes import launched_rank
    from whet.posttrain import ranks
    from whet.posttrain.trainers import train_sft

    ranks.GRACE = 1.0 if launched_rank() else 60.0  # till the launcher sees that it has ended

    def progress(stage, done, total):
        if (launched_rank(), done) == (1, 13):
            raise WhetError("the second process is tired")

    try:
        with ranks.one_voice():
            train_sft(sys.argv[1], sums(), Path(sys.argv[2]), DROPOUT, progress=progress)
    except WhetError as error:  # as the command line does
        sys.stderr.write(f"whet: {error}\\n")
        raise SystemExit(2)
"""


def launched(*args):
    """Run a command in two processes; return its code, stdout, stderr, and whet's lines there."""
    done = subprocess.run(
        [*LAUNCH, *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": TESTS},
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("whet: ")]
    return done.returncode, done.stdout, done.stderr, said


def written(path, program):
    path.write_text(textwrap.dedent(program))
    return path


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def difference(a, b):
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def lines(out):
    return [line.rstrip() for line in out.splitlines()]


def account(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """A folder with what two processes trained."""
    path = tmp_path_factory.mktemp("together")
    code, out, err, _ = launched(written(path / "all.py", TOGETHER), folder, path)
    assert code == 0, err
    assert out == ""
    return path


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_with_the_weights_of_one(name, together, folder, tmp_path):
    train, rows, settings = RUNS[name]
    one, two = train(folder, sums(rows), tmp_path / "one", settings), together / name
    assert difference(folder, one) > 1e-3
    assert difference(one, two) < 1e-4
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert (one / "settings.json").read_bytes() == (two / "settings.json").read_bytes()
    assert (account(one)["processes"], account(two)["processes"]) == (1, 2)
    for ours, theirs in zip(account(one)["history"], account(two)["history"], strict=True):
        shared = ours.keys() & theirs.keys()  # TRL's loss adds measures of its own
        assert {"loss", "grad_norm"} <= shared
        assert {k: ours[k] for k in shared} == pytest.approx(
            {k: theirs[k] for k in shared}, abs=1e-3
        )


def test_rewards_of_two_processes_train_one_model(together, folder):
    first, second = ((together / f"online-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert first.endswith("[8, 8, 8]")  # each process rewards its own half of 16 completions
    assert account(together / "online")["steps"] == 3
    assert difference(folder, together / "online") > 1e-3


def test_a_process_that_fails_ends_all_and_the_same_command_goes_on(together, folder, tmp_path):
    code, _, err, said = launched(
        written(tmp_path / "failing.py", FAILING), folder, tmp_path / "out"
    )
    assert code != 0
    assert said == ["whet: the second process is tired"], err
    assert not (tmp_path / "out" / "training.json").exists()
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-10" / "whole").is_file()
    shutil.copytree(tmp_path / "out", tmp_path / "alone")
    write_examples(tmp_path / "rows.jsonl", sums())
    command = ["sft", str(tmp_path / "rows.jsonl"), "--model", folder, "--lora-dropout", "0.1"]
    command += ["--epochs", "3", "--out", str(tmp_path / "out")]
    for name, value in LORA.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    code, out, err, said = launched("--module", "whet", *command)
    assert code == 0, err
    assert difference(together / "dropout", tmp_path / "out") == 0
    assert said[0] == "whet: training 11/15 steps"
    assert len(said) == len(set(said))  # no step is told twice
    assert out.count("full account") == 1
    assert lines(whet(command).out) == lines(out)
    steps = []
    alone = train_sft(
        folder, sums(), tmp_path / "alone", DROPOUT, progress=lambda *step: steps.append(step[1])
    )
    assert steps == [11, 12, 13, 14, 15]
    assert account(alone)["history"][:10] == account(tmp_path / "out")["history"][:10]


def test_a_fault_that_all_processes_find_is_told_once(folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1="}\n')
    code, out, _, said = launched(
        *("--module", "whet", "sft", tmp_path / "rows.jsonl", "--model", folder),
        *("--out", tmp_path / "out"),
    )
    assert code != 0
    assert out == ""
    assert len(said) == 1
    assert "no column 'completion'" in said[0]
    assert not (tmp_path / "out").exists()


def test_passes_are_shared_and_every_row_comes_once():
    rows = [{"input_ids": [0] * k} for k in range(1, 22)]
    plan = Plan.of_rows(rows, TrainSettings(batch_size=8, accumulate=2, epochs=1), None)
    shares = plan.shares(2)
    assert [len(share) for share in shares] == [2] * 10 + [1, 0]
    assert sorted(len(row["input_ids"]) for share in shares for row in share) == list(range(1, 22))
    for k in range(0, 12, 2):  # no process has the long rows
        lengths = [[len(row["input_ids"]) for row in share] for share in shares[k : k + 2]]
        assert all(first > second for first, second in zip(*lengths, strict=False))


def test_what_cannot_be_shared_is_refused(folder, tmp_path):
    settings = DpoSettings(batch_size=6, epochs=1)
    run = Run("dpo", folder, sums(), ["prompt"], tmp_path / "out", settings, None)
    run.ranks.size = 4
    with pytest.raises(WhetError, match=r"a pass of 6 rows, .* cannot be shared by 4 processes"):
        run._check_shares(Plan.draw(21, 6, settings))
    with pytest.raises(WhetError, match=r"has 3 pairs, which 2 .* give max_steps, .* such as 3"):
        _check_last(Plan.draw(21, 6, settings), 2)
    _check_last(Plan.draw(20, 6, settings), 2)


def test_align_trains_on_both_and_asks_once(tmp_path):
    pytest.importorskip("aiohttp")
    from llm_server import LLMServer, Say

    make_inputs(tmp_path)
    with LLMServer(lambda call: Say(label=unsteady(call.text).text)) as server:
        online = {"tune": "full", "batch_size": 8, "max_steps": 2, "max_new_tokens": 8}
        keys = recipe_for(tmp_path, model=str(tmp_path / "base"), rewards=["refined"])
        keys["sft"] |= {"learning_rate": 1e-2, "max_steps": 40}
        keys["trainers"]["grpo"] = online
        keys["judge"] |= {"base_url": server.url}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
        command = ["align", str(tmp_path / "recipe.yaml")]
        code, out, err, _ = launched("--module", "whet", *command)
        assert code == 0, err
        assert out.count("holds 30 random completions") == 1
        fill_in(tmp_path / "run" / "gold.csv")
        code, out, err, _ = launched("--module", "whet", *command)
        assert code == 0, err
        asked = [call.text for call in server.calls]
        assert len(asked) == len(set(asked))  # one process asks for both, and once
        assert lines(whet(command).out) == lines(out)
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(manifest["evaluation"]["arms"]) == ["sft", "refined-dpo", "refined-grpo"]
    for arm in ("refined-dpo", "refined-grpo"):
        assert account(tmp_path / "run" / "arms" / arm / "model")["processes"] == 2
    table = pq.read_table(tmp_path / "run" / "evaluation.parquet")
    assert np.unique(table["arm"].to_numpy(zero_copy_only=False)).size == 3
