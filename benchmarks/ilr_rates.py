"""Is DPO held back by the grid of ``ilr.py``? Smaller learning rates, tuned and tested anew.

In ``ilr.py`` the best learning rate of DPO was the smallest of a grid fixed before the run, so the
grid may have kept DPO from its best. This run was decided on after that result was known; its own
conditions were fixed before it ran:

Shared      Task, sizes, base models, weak model, judge, training, rounds, test, seeds and intervals
            are those of ``ilr.py``, whose ``--work`` holds the base models.
Tuning      On validation rows of seed 1000, as there: learning rate 1e-6, 3e-6 and, again, 1e-5, by
            beta 0.1 and 0.5. The larger rates of ``ilr.py`` ended at 50 percent and below. The best
            after the last round, of equal ones the first, is used. As a rate goes to zero DPO goes
            to sft, so the smallest rate being best would mean that DPO has nothing to give here.
Arms        3 rounds each: sft; ilr (alpha 0.15); dpo, as ``ilr.py`` tuned it; dpo-wide, as tuned
            here; dpo-wide-long (135 steps a round: ilr's compute).
Seeds       0 to 4. Results are written whatever they are.

    python benchmarks/ilr_rates.py --work runs/ilr --out benchmarks/results

Killed and run again it goes on.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilr import (
    SEEDS,
    TOY,
    TUNING,
    Seed,
    Size,
    arms_table,
    cost_table,
    judge_table,
    publish,
    rounds_table,
    run_seed,
)

from whet.cli._progress import ProgressReporter
from whet.store import read_json, write_json

RATES, BETAS, NAME = (1e-6, 3e-6, 1e-5), (0.1, 0.5), "rates"
PAIRS = (("ilr", "dpo"), ("ilr", "dpo-wide"), ("ilr", "dpo-wide-long"), ("dpo-wide", "dpo"))


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    size = TOY if arguments.toy else Size()
    arguments.out.mkdir(parents=True, exist_ok=True)
    before = read_json(arguments.work / "tuned.json")
    with ProgressReporter() as progress:
        chosen = tune(arguments.work, size, progress)
        for seed in arguments.seeds:
            arms = arms_of(size, before, chosen)
            run_seed(arguments.work, size, seed, arms, "test", progress, NAME)
    finished = [
        seed
        for seed in sorted({*SEEDS, *arguments.seeds})
        if (arguments.work / f"seed-{seed}" / NAME / "run.json").is_file()
    ]
    if finished:
        seeds = {k: Seed.read(arguments.work / f"seed-{k}" / NAME) for k in finished}
        tables = [
            *arms_table(seeds, PAIRS),
            *rounds_table(seeds),
            *judge_table(seeds),
            *cost_table(seeds),
            *tuning_table(chosen),
        ]
        publish(arguments, "ilr_rates", "DPO below the learning rates of ilr.py", seeds, tables)


def tune(work: Path, size: Size, progress: Any) -> dict[str, Any]:  # noqa: ANN401
    """Choose DPO's rate and beta on validation rows of the tuning seed."""
    path = work / f"tuned-{NAME}.json"
    if path.is_file():
        return read_json(path)
    tries = {f"dpo {r:g} {b:g}": {"learning_rate": r, "beta": b} for r in RATES for b in BETAS}
    arms = {"sft": None, **{k: {"like": "dpo", "train": v} for k, v in tries.items()}}
    found = run_seed(work, size, TUNING, arms, "validation", progress, NAME)["arms"]
    last = {name: arm["rounds"][-1]["score"]["value"] for name, arm in found.items()}
    best = max(tries, key=last.__getitem__)
    chosen = {**tries[best], "accuracy": last}
    write_json(path, chosen)
    return chosen


def arms_of(size: Size, before: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arms of the reported seeds."""
    old, new = ({k: c[k] for k in ("learning_rate", "beta")} for c in (before, chosen))
    return {
        "sft": None,
        "ilr": None,
        "dpo": {"train": old},
        "dpo-wide": {"like": "dpo", "train": new},
        "dpo-wide-long": {"like": "dpo", "train": new | {"max_steps": size.long}},
    }


def tuning_table(chosen: Mapping[str, Any]) -> list[str]:
    """Return what was tried on the tuning seed."""
    rows = ["| try | accuracy, validation |", "|---|---|"]
    rows += [f"| {name} | {100 * value:.1f} |" for name, value in chosen["accuracy"].items()]
    taken = f"Taken: {chosen['learning_rate']:g} with beta {chosen['beta']:g}."
    return [f"## Tuning, seed {TUNING} (percent)", "", *rows, "", taken, ""]


if __name__ == "__main__":
    main()
