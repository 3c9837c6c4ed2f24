"""How good must the judge be? Label refinement and DPO under judges of known accuracy.

The experiment of ``ilr.py`` has one judge, trained as the paper trains it. Here the judge knows
which answer is right and errs at a known rate, so that the two uses of comparisons can be told
apart where comparisons are good and where they are bad. Fixed before the run:

Shared      Task, sizes, base models, weak model, demonstrations, training, rounds, test and
            intervals are those of ``ilr.py``, whose ``--work`` holds the base models.
Judges      Right in 60, 75, 90 and 100 % of the comparisons with one right answer; each errs on
            its own, where the mistakes of a trained judge go together. Between two answers that are
            both right or both wrong it draws one. Its verdicts are 0 or 1, never in between.
Arms        For each judge: ilr (alpha 0.15), ilr-tuned, and dpo (on-policy, as in ``ilr.py``, the
            surest 15 % of 3 pairs, here a draw among them). 3 rounds each. And sft.
Tuning      As in ``ilr.py``, on validation rows of seed 1000, with the judge of 75 %: DPO's rate
            and beta, and ILR's alpha, six tries each; used with all judges.
Seeds       0 to 4. Results are written whatever they are.

    python benchmarks/ilr_judges.py --work runs/ilr --out benchmarks/results

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
    interval,
    label_of,
    publish,
    run_seed,
    shown,
    tune,
)

from whet.cli._progress import ProgressReporter

ACCURACIES, TUNED_AT, NAME = (0.6, 0.75, 0.9, 1.0), 0.75, "judges"
METHODS = ("ilr", "ilr-tuned", "dpo")


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
    with ProgressReporter() as progress:
        chosen = tune(arguments.work, size, progress, f"noisy:{TUNED_AT:g}", NAME)
        for seed in arguments.seeds:
            run_seed(arguments.work, size, seed, arms_of(chosen), "test", progress, NAME)
    finished = [
        seed
        for seed in sorted({*SEEDS, *arguments.seeds})
        if (arguments.work / f"seed-{seed}" / NAME / "run.json").is_file()
    ]
    if finished:
        seeds = {k: Seed.read(arguments.work / f"seed-{k}" / NAME) for k in finished}
        title = "Label refinement and DPO under judges of known accuracy"
        publish(arguments, "ilr_judges", title, seeds, [*table(seeds), *tuning(chosen)])


def arms_of(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return sft, and each method under each judge."""
    arms: dict[str, Any] = {"sft": None}
    for accuracy in ACCURACIES:
        judge = f"noisy:{accuracy:g}"
        train = {"learning_rate": chosen["learning_rate"], "beta": chosen["beta"]}
        arms[f"ilr {accuracy:g}"] = {"like": "ilr", "judge": judge}
        arms[f"ilr-tuned {accuracy:g}"] = {"like": "ilr", "judge": judge, "alpha": chosen["alpha"]}
        arms[f"dpo {accuracy:g}"] = {"like": "dpo", "judge": judge, "train": train}
    return arms


def table(seeds: Mapping[int, Seed]) -> list[str]:
    """Return what each method gains under each judge, and refinement's lead over DPO."""
    start = shown(interval([seed.last("sft") for seed in seeds.values()]))
    rows = [
        "| judge right in | " + " | ".join(METHODS) + " | ilr-tuned - dpo |",
        "|---" * (len(METHODS) + 2) + "|",
    ]
    for accuracy in ACCURACIES:
        cells = []
        for first, second in [*((m, "sft") for m in METHODS), ("ilr-tuned", "dpo")]:
            other = "sft" if second == "sft" else f"{second} {accuracy:g}"
            gaps = [s.last(f"{first} {accuracy:g}") - s.last(other) for s in seeds.values()]
            above = sum(gap.mean() > 0 for gap in gaps)
            cells.append(f"{shown(interval(gaps), '+')}, {above} of {len(gaps)}")
        rows.append(f"| {accuracy:.0%} | {' | '.join(cells)} |")
    note = (
        f"Test accuracy after the last round minus that of sft ({start} percent), in points, with "
        "95 % intervals, and the number of seeds above 0."
    )
    return ["## Gains", "", note, "", *rows, "", *labels(seeds)]


def labels(seeds: Mapping[int, Seed]) -> list[str]:
    """Return the accuracy of the demonstrations after the last round."""
    rows = ["| judge right in | ilr | ilr-tuned |", "|---|---|---|"]
    for accuracy in ACCURACIES:
        cells = []
        for arm in (f"ilr {accuracy:g}", f"ilr-tuned {accuracy:g}"):
            last = [len(seed.manifest["arms"][arm]["rounds"]) - 1 for seed in seeds.values()]
            right = [label_of(s, arm, n) for s, n in zip(seeds.values(), last, strict=True)]
            cells.append(shown(interval(right)))
        rows.append(f"| {accuracy:.0%} | {' | '.join(cells)} |")
    first = shown(interval([label_of(seed, "sft", 0) for seed in seeds.values()]))
    note = f"Of the demonstrations {first} percent are right before."
    return ["## Demonstrations that are right after the last round", "", note, "", *rows, ""]


def tuning(chosen: Mapping[str, Any]) -> list[str]:
    """Return what was tried on the tuning seed."""
    rows = ["| try | accuracy, validation |", "|---|---|"]
    rows += [f"| {name} | {100 * value:.1f} |" for name, value in chosen["accuracy"].items()]
    taken = (
        f"Taken: DPO at {chosen['learning_rate']:g} with beta {chosen['beta']:g}; alpha "
        f"{chosen['alpha']:g} for ilr-tuned."
    )
    return [
        f"## Tuning, seed {TUNING}, judge of {TUNED_AT:.0%} (percent)",
        "",
        *rows,
        "",
        taken,
        "",
    ]


if __name__ == "__main__":
    main()
