"""A run that is killed at any moment and resumed gives the bytes of an uninterrupted one."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import sample_gold
from whet.cli import main
from whet.store import difference

ROUNDS = 2

# Processes forked from one that has imported everything: half of a short run is its imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["whet.classify.refiner", "whet.report.page", "whet.cli.refine"])


def run_until(nth, args):
    """Run the command; SIGKILL when its n-th artefact has its bytes, but not yet its name."""
    rename, count = os.replace, [0]

    def replace(source, target):
        count[0] += 1
        if count[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    main(args)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory, two_classes):
    texts, truth, pseudo = two_classes
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    gold = sample_gold(truth, 60)
    pq.write_table(pa.table({"text": texts, "llm": pseudo, "gold": gold}), path)
    return path


def arguments(corpus_file, out, *more, rounds=ROUNDS):
    return [
        *("refine", str(corpus_file), "--text", "text", "--pseudo", "llm", "--gold", "gold"),
        *("--rounds", str(rounds), "--out", str(out), *more),
    ]


@pytest.mark.parametrize(
    "settings",
    [[], ["--method", "silr", "--folds", "2"]],
    ids=["default", "silr on held-out rows"],
)
def test_a_kill_at_every_artefact_boundary_changes_nothing(corpus_file, tmp_path, settings):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main_quietly(arguments(corpus_file, whole, *settings))
    before = corpus_file.read_bytes()
    left_behind = 0
    kills, artefacts, nth = 0, [[]], 2
    while not (broken / "run.json").exists():
        args = (nth, arguments(corpus_file, broken, *settings, "--resume"))
        process = PROCESSES.Process(target=run_until, args=args)
        process.start()
        process.join()
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        artefacts.append([n for n in files(broken) if not n.endswith(".tmp")])
        left_behind += any(n.endswith(".tmp") for n in files(broken))
        # A resumed run writes the model anew: get past what the last process already reached.
        nth += artefacts[-1] == artefacts[-2]
        assert kills < 40
    # settings, encoder, features, two files a round, three of the model, refined.parquet and the
    # manifest: each was half-written in a process that was killed.
    assert kills >= len(files(whole))
    assert left_behind == kills
    assert (broken / "refined.parquet").read_bytes() == (whole / "refined.parquet").read_bytes()
    assert not list(broken.rglob("*.tmp"))
    assert files(broken) == files(whole)
    assert gold_of(broken) == gold_of(whole)
    assert corpus_file.read_bytes() == before


def test_a_kill_at_any_time_changes_nothing(corpus_file, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main_quietly(arguments(corpus_file, whole))
    whet = [sys.executable, "-c", "import sys; from whet.cli import main; main(sys.argv[1:])"]
    for seconds in (1.0, 1.5, 2.0):
        process = subprocess.Popen(
            whet + arguments(corpus_file, broken, "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.kill()
        process.wait()
    main_quietly(arguments(corpus_file, broken, "--resume"))
    assert (broken / "refined.parquet").read_bytes() == (whole / "refined.parquet").read_bytes()


def test_resuming_a_finished_run_shows_it_again_and_writes_nothing(corpus_file, tmp_path, capsys):
    out = tmp_path / "run"
    main_quietly(arguments(corpus_file, out))
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    main_quietly(arguments(corpus_file, out, "--resume"))
    assert "refined labels' accuracy" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamps


def test_resuming_with_other_settings_is_refused(corpus_file, tmp_path, capsys):
    out = tmp_path / "run"
    main_quietly(arguments(corpus_file, out))
    with pytest.raises(SystemExit) as stop:
        main(arguments(corpus_file, out, "--resume", "--seed", "1"))
    assert stop.value.code == 2
    assert "was started with seed = 0, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"a": {"seed": 0}, "seed": 0}, {"a": {"seed": 3}, "seed": 3}, ("seed", 0, 3)),
        (
            {"dpo": {"a": {"seed": 0}, "seed": 0}, "z": 1},
            {"dpo": {"a": {"seed": 3}, "seed": 3}, "z": 1},
            ("dpo.seed", 0, 3),
        ),
        ({"a": None, "b": {"c": 1}}, {"a": {"x": 1}, "b": {"c": 2}, "z": 3}, ("z", None, 3)),
        ({"b": 1, "a": {"c": 1}}, {"b": 1, "a": {"c": 1}}, None),
    ],
)
def test_difference_names_what_was_written_not_what_follows_from_it(before, after, found):
    assert difference(before, after) == found


def test_an_error_before_the_first_artefact_leaves_no_folder(corpus_file, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(arguments(corpus_file, out, "--encoder", "embed:./nowhere"))
    assert not out.exists()


def main_quietly(args):
    with contextlib.suppress(SystemExit):
        main(args)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def gold_of(folder):
    return json.loads((folder / "run.json").read_text())["gold"]


def test_two_processes_do_not_write_to_one_folder(corpus_file, tmp_path, capsys):
    out = tmp_path / "run"
    slow = [sys.executable, "-c", "import sys; from whet.cli import main; main(sys.argv[1:])"]
    first = subprocess.Popen(
        slow + arguments(corpus_file, out, rounds=100_000), stderr=subprocess.DEVNULL
    )
    try:
        while first.poll() is None and not (out / "rounds" / "01").exists():
            time.sleep(0.05)
        with pytest.raises(SystemExit) as stop:
            main(arguments(corpus_file, out, "--resume", rounds=100_000))
    finally:
        first.kill()
        first.wait()
    assert stop.value.code == 2
    assert "another process is writing to the output folder" in capsys.readouterr().err
    assert (out / "settings.json").exists()
