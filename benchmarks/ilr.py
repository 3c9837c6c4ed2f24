"""Label refinement against preference optimisation, at a size that a CPU trains: `whet ilr`.

A small-scale look at the claim of Ye et al. (ICLR 2025): under weak supervision, refining the
demonstrations gains more than DPO. Nothing here is a large language model. The noise is not drawn:
it is the actual mistakes of a smaller, less trained model, and the judge of all arms but the oracle
ones is trained on its answers. Fixed before the run:

Task        `chains`: three operations modulo 10, worked answers, exact match of the result. 2,400
            rows for training, 500 for validation, 1,000 for the test; drawn by seed.
Base        Both models are trained from scratch for 1,000 steps of 32 rows (AdamW, 5e-3) on chains
            modulo 6, 7, 8 and 9: they know the form, and none of the facts modulo 10. Strong: a
            Llama of 2 layers, 64 wide (87,000 weights). Weak: 1 layer, 32 wide (13,000).
Weak        150 steps on half of the rows with gold answers; greedy answers to the other half are
            the demonstrations. Steps and sizes were chosen on seeds 1000 to 1002 by two numbers
            alone, the weak model's accuracy, about one half, and that of the strong model on gold
            demonstrations, nearly 1; no other arm had been run.
Judge       As the paper trains it (rule ``paper``): the weak base model as a classifier of pairs,
            on gold against what the weak model says after 1/5 to 5/5 of its training, temperature
            0.6; 10 epochs of 16 at 2e-3. Three other settings (the weak model after its training,
            the strong base model at two rates), tried on held-out comparisons of seed 1000, were
            not better beyond chance.
Training    180 steps of 32 (AdamW, 2e-3, all weights) from the base model, for half models too.
Arms        3 rounds each. The paper's: sft; ilr (alpha 0.15, two half models); naive (random 15 %);
            dpo (on-policy, 6 samples a prompt at temperature 0.7, the surest 15 % of 3 pairs, 2
            epochs, RMSprop, reference of the round before); dpo-released (scores as the released
            code has them); oracle-ilr and oracle-dpo (the judge knows what is right); gold.
            Controls: sft-again (another seed); sft-long (as many steps as ilr in all);
            ilr-one-model (no half models); filter (drops what ilr replaces); chosen (fine-tuning
            on DPO's chosen answers); dpo-fixed (reference always sft); dpo-originals
            (demonstrations are candidates); dpo-long (135 steps a round: with a step of DPO as 8/3
            steps of SFT, for its reference and its two answers, ilr's compute).
Tuning      On validation rows of seed 1000, which is not reported: six tries each. DPO: learning
            rate 1e-5, 3e-5, 1e-4 by beta 0.1, 0.5. ILR: alpha 0.05, 0.15, 0.3, 0.5, 0.75, 1. The
            best after the last round, of equal ones the first, is used by all DPO arms, and by the
            arm ilr-tuned; ilr keeps the paper's 0.15. In a trial of examples/ilr_demo.yaml, 1e-4
            had been too high for DPO.
Seeds       0 to 4 decide data, models, training and draws. Results are written whatever they are.
            Intervals: percentiles of 2,000 bootstrap draws of seeds and, within them, of test rows;
            five seeds are few, so they are too narrow rather than too wide.

    python benchmarks/ilr.py --work runs/ilr --out benchmarks/results

Killed and run again it goes on, seed by seed, arm by arm. ``--seeds 3`` does one seed, and the
table has those that are finished. ``--toy`` runs the same code in minutes and proves nothing.
"""

from __future__ import annotations

import argparse
import gc
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whet import __version__
from whet.cli._progress import ProgressReporter
from whet.estimates import mean_over_runs
from whet.ilr.llm_judge import pair_text
from whet.ilr.pipeline import Ilr
from whet.ilr.recipe import parse_recipe
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.posttrain.settings import TrainSettings
from whet.posttrain.trainers import train_sft
from whet.store import read_json, write_atomic, write_json, write_parquet

OPERATIONS, MODULUS, OTHERS = 3, 10, (6, 7, 8, 9)
SEEDS, TUNING = (0, 1, 2, 3, 4), 1000
RATES, BETAS, ALPHAS = (1e-5, 3e-5, 1e-4), (0.1, 0.5), (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
#: Arms that are compared with one another, besides with sft.
PAIRS = (("ilr", "dpo"), ("ilr-tuned", "dpo"), ("ilr", "dpo-long"), ("ilr-tuned", "dpo-long"))


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: int = 2400
    validation: int = 500
    test: int = 1000
    others: int = 3000
    pretraining: int = 1000
    weak: int = 150
    steps: int = 180
    judge: int = 10
    stages: int = 5
    rounds: int = 3
    long: int = 135


TOY = Size(200, 40, 60, 100, 60, 40, 15, 1, 2, 2, 10)


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
    gc.freeze()  # each training collects garbage, among all that the imports made
    size = TOY if arguments.toy else Size()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ProgressReporter() as progress:
        chosen = tune(arguments.work, size, progress)
        for seed in arguments.seeds:
            run_seed(arguments.work, size, seed, arms_of(size, chosen), "test", progress)
    finished = [
        seed
        for seed in sorted({*SEEDS, *arguments.seeds})
        if (arguments.work / f"seed-{seed}" / "run" / "run.json").is_file()
    ]
    write(arguments, size, chosen, finished)


# --- a seed ---------------------------------------------------------------------------------------


def options(size: Size, seed: int) -> dict[str, Any]:
    """Return the task's options."""
    return {
        "operations": OPERATIONS,
        "modulus": MODULUS,
        "train": size.rows,
        "validation": size.validation,
        "test": size.test,
        "seed": seed,
    }


def make_models(folder: Path, size: Size, seed: int, progress: Any) -> None:  # noqa: ANN401
    """Train both base models on chains of other moduli."""
    own = load_task("chains", **options(size, seed))
    others = pa.concat_tables(
        load_task("chains", operations=OPERATIONS, modulus=m, train=size.others, seed=seed)
        .load(None, "train")
        .select(["prompt", "completion"])
        for m in OTHERS
    )
    tables = [others, *(own.load(None, split) for split in ("train", "validation", "test"))]
    texts = [text for t in tables for c in ("prompt", "completion") for text in t[c].to_pylist()]
    texts.append(pair_text("", "", ""))
    settings = TrainSettings(**training(size.pretraining, 5e-3), seed=seed)
    for name, width, layers in (("strong", 64, 2), ("weak", 32, 1)):
        start = folder / f"{name}-scratch"
        if not (start / "model.safetensors").is_file():
            save_scratch(texts, start, width=width, layers=layers, length=192, seed=seed)

        def told(what: str, done: int, total: int, name: str = name) -> None:
            progress(f"{folder.name}, {name} base model: {what}", done, total)

        train_sft(str(start), others, folder / name, settings, progress=told)


def training(steps: int, rate: float) -> dict[str, Any]:
    """Return settings of a training of all weights."""
    whole = {"tune": "full", "batch_size": 32, "max_length": 96, "precision": "fp32"}
    return {**whole, "max_steps": steps, "learning_rate": rate}


def run_seed(
    work: Path,
    size: Size,
    seed: int,
    arms: Mapping[str, Any],
    test: str,
    progress: Any,  # noqa: ANN401
    name: str = "run",
) -> dict[str, Any]:
    """Run all arms of a seed into its folder of a name, or go on with them."""
    folder = work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    make_models(folder, size, seed, progress)
    said = {"max_new_tokens": 32, "tokens_per_batch": 32768}
    preferences = training(size.steps, RATES[0]) | {"max_steps": None, "epochs": 2}
    recipe = parse_recipe(
        {
            "task": "chains",
            "options": options(size, seed),
            "test": test,
            "model": str(folder / "strong"),
            "weak": {
                "model": str(folder / "weak"),
                "train": {"max_steps": size.weak},
                "generate": said,
            },
            "evaluator": {
                "train": {"learning_rate": 2e-3, "epochs": size.judge, "max_length": 192},
                "generate": said | {"temperature": 0.6},
                "stages": size.stages,
            },
            "judge": "evaluator",
            "sft": training(size.steps, 2e-3),
            "propose": said,
            "dpo": {
                "train": preferences,
                "generate": said | {"temperature": 0.7, "samples": 6},
                "share": 0.15,
            },
            "evaluate": said,
            "rounds": size.rounds,
            "alpha": 0.15,
            "arms": dict(arms),
            "seed": seed,
            "out": str(folder / name),
        }
    )
    return Ilr(
        recipe, progress=lambda what, done, total: progress(f"{folder.name}, {what}", done, total)
    ).run()


def arms_of(size: Size, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arms of the reported seeds."""
    dpo = {"learning_rate": chosen["learning_rate"], "beta": chosen["beta"]}
    long = (2 * size.rounds + 1) * size.steps
    arms: dict[str, Any] = {
        "sft": None,
        "sft-again": None,
        "sft-long": {"like": "sft", "train": {"max_steps": long}},
        "ilr": None,
        "ilr-tuned": {"like": "ilr", "alpha": chosen["alpha"]},
        "ilr-one-model": None,
        "naive": None,
        "filter": None,
        "chosen": None,
    }
    for name in ("dpo", "dpo-released", "dpo-fixed", "dpo-originals"):
        arms[name] = {"train": dpo}
    arms["dpo-long"] = {"like": "dpo", "train": dpo | {"max_steps": size.long}}
    return arms | {"oracle-ilr": None, "oracle-dpo": {"train": dpo}, "gold": None}


def tune(
    work: Path,
    size: Size,
    progress: Any,  # noqa: ANN401
    judge: str = "evaluator",
    name: str = "run",
) -> dict[str, Any]:
    """Choose DPO's rate and beta, and ILR's alpha, on validation rows of a seed of its own."""
    path = work / ("tuned.json" if name == "run" else f"tuned-{name}.json")
    if path.is_file():
        return read_json(path)
    of = {} if judge == "evaluator" else {"judge": judge}
    tries = {f"dpo {r:g} {b:g}": {"learning_rate": r, "beta": b} for r in RATES for b in BETAS}
    arms: dict[str, Any] = {k: {"like": "dpo", "train": v, **of} for k, v in tries.items()}
    alphas = {f"ilr {a:g}": a for a in ALPHAS}
    arms |= {k: {"like": "ilr", "alpha": a, **of} for k, a in alphas.items()}
    arms = {"sft": None, **arms}
    found = run_seed(work, size, TUNING, arms, "validation", progress, name)["arms"]
    last = {name: arm["rounds"][-1]["score"]["value"] for name, arm in found.items()}
    halted = [name for name, arm in found.items() if arm["halted"]]
    whole = {name: value for name, value in last.items() if name not in halted}
    best = max((name for name in tries if name in whole), key=whole.__getitem__, default="")
    alpha = max((name for name in alphas if name in whole), key=whole.__getitem__, default="")
    chosen = {
        **tries.get(best, {"learning_rate": RATES[0], "beta": BETAS[0]}),
        "alpha": alphas.get(alpha, 0.15),
        "accuracy": last,
        "halted": halted,
        "size": asdict(size),
    }
    write_json(path, chosen)
    return chosen


# --- what is written ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """The content of a seed's run.json, and the scores of its test by arm and round."""

    manifest: dict[str, Any]
    scores: dict[tuple[str, int], np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Seed:
        """Read a finished run."""
        table = pq.read_table(folder / "test.parquet")
        arms, rounds = table["arm"].to_numpy(), table["round"].to_numpy()
        values = table["score"].to_numpy()
        rows = table["row"].to_numpy()
        scores = {}
        for arm in dict.fromkeys(arms.tolist()):
            for number in np.unique(rounds[arms == arm]).tolist():
                here = (arms == arm) & (rounds == number)
                scores[arm, number] = values[here][np.argsort(rows[here])]
        return cls(read_json(folder / "run.json"), scores)

    def last(self, arm: str) -> np.ndarray:
        """Return the scores of an arm after its last round."""
        return self.scores[arm, max(number for name, number in self.scores if name == arm)]


def interval(columns: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return the mean over seeds of the mean of each, with its bootstrap interval."""
    found = mean_over_runs(columns)
    return found.value, found.low, found.high


def write(
    arguments: argparse.Namespace, size: Size, chosen: Mapping[str, Any], finished: list[int]
) -> None:
    """Write the tables of the seeds that are finished."""
    if not finished:
        return
    seeds = {k: Seed.read(arguments.work / f"seed-{k}" / "run") for k in finished}
    tables = [
        *unreliability(seeds),
        *arms_table(seeds, PAIRS),
        *rounds_table(seeds),
        *judge_table(seeds),
        *cost_table(seeds),
        *tuning_table(chosen),
    ]
    title = "Label refinement and preference optimisation on chains"
    publish(arguments, "ilr", title, seeds, tables)


def publish(
    arguments: argparse.Namespace,
    script: str,
    title: str,
    seeds: Mapping[int, Seed],
    tables: Sequence[str],
) -> None:
    """Write every round of every arm as Parquet, and the tables as Markdown."""
    name = script.replace("_", "-") + "-toy" * arguments.toy
    records = [
        {
            "seed": k,
            "arm": arm,
            "halted": found["halted"],
            **{key: record.get(key) for key in KEPT},
            "accuracy": record["score"]["value"],
        }
        for k, seed in seeds.items()
        for arm, found in seed.manifest["arms"].items()
        for record in found["rounds"]
    ]
    write_parquet(arguments.out / f"{name}.parquet", pa.Table.from_pylist(records))
    command = shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]])
    lines = [
        f"# {title}",
        "",
        f"    {command}",
        "",
        f"whet {__version__}, {platform.platform()}, Python {platform.python_version()}, one "
        f"thread. Seeds: {', '.join(map(str, seeds))}. Conditions, fixed before the run: the "
        f"beginning of [{script}.py](../{script}.py). Every round of every arm: [{name}.parquet]"
        f"({name}.parquet).",
        "",
        *(["**A toy run: it shows that the code works, and nothing else.**", ""] * arguments.toy),
        *tables,
    ]
    text = "\n".join(lines) + "\n"
    write_atomic(arguments.out / f"{name}.md", lambda file: file.write(text.encode()))
    sys.stderr.write(f"wrote {arguments.out / name}.md\n")


KEPT = (
    *("round", "label_accuracy", "rows", "judged", "accepted", "made", "kept", "failed"),
    *("judge_right", "judge_told", "steps", "new_tokens", "unfinished", "unanswered"),
)


def shown(found: tuple[float, float, float], sign: str = "") -> str:
    """Return a share and its interval, in percent or points."""
    value, low, high = (f"{100 * x:{sign}.1f}" for x in found)
    return f"{value} [{low}, {high}]"


def unreliability(seeds: Mapping[int, Seed]) -> list[str]:
    """Return how wrong weak model, demonstrations and judge are, seed by seed."""
    heads = ("seed", "weak model, test", "demonstrations right", "judge, held-out comparisons")
    rows = [f"| {' | '.join(heads)} | judge, same in both orders |"]
    rows += ["|---|---|---|---|---|"]
    for k, seed in seeds.items():
        found = seed.manifest
        report = found["evaluator"]
        first = found["arms"]["sft"]["rounds"][0]
        rows.append(
            f"| {k} | {100 * found['weak']['score']['value']:.1f} | "
            f"{100 * first['label_accuracy']:.1f} | {100 * report['accuracy']['value']:.1f} "
            f"(n = {report['held_out']}) | {100 * report['consistent']['value']:.1f} |"
        )
    return ["## How unreliable it is (percent)", "", *rows, ""]


def arms_table(seeds: Mapping[int, Seed], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the accuracy of each arm after its last round, and differences."""
    names = list(next(iter(seeds.values())).manifest["arms"])
    rows = [
        "| arm | accuracy | minus sft | seeds above sft | ended early |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        columns = [seed.last(name) for seed in seeds.values()]
        gains = [seed.last(name) - seed.last("sft") for seed in seeds.values()]
        above = sum(gain.mean() > 0 for gain in gains)
        early = sum(seed.manifest["arms"][name]["halted"] is not None for seed in seeds.values())
        gain = "-" if name == "sft" else shown(interval(gains), "+")
        rows.append(
            f"| {name} | {shown(interval(columns))} | {gain} | {above} of {len(seeds)} | {early} |"
        )
    rows += ["", "| difference | points | seeds above 0 |", "|---|---|---|"]
    for first, second in pairs:
        gaps = [seed.last(first) - seed.last(second) for seed in seeds.values()]
        above = sum(gap.mean() > 0 for gap in gaps)
        rows.append(
            f"| {first} - {second} | {shown(interval(gaps), '+')} | {above} of {len(seeds)} |"
        )
    note = "Of the model after the last round, on the test; 95 % intervals, see the conditions."
    return ["## Arms (percent, points)", "", note, "", *rows, ""]


def rounds_table(seeds: Mapping[int, Seed]) -> list[str]:
    """Return accuracy and label accuracy after each round."""
    names = list(next(iter(seeds.values())).manifest["arms"])
    last = max(number for seed in seeds.values() for _, number in seed.scores)
    heads = " | ".join(f"round {k}" for k in range(last + 1))
    rows = [f"| arm | {heads} |", "|---" * (last + 2) + "|"]
    labels = [f"| arm | {heads} |", "|---" * (last + 2) + "|"]
    for name in names:
        cells, right = [], []
        for number in range(last + 1):
            columns = [s.scores[name, number] for s in seeds.values() if (name, number) in s.scores]
            cells.append(shown(interval(columns)) if columns else "")
            found = [label_of(seed, name, number) for seed in seeds.values()]
            known = [value for value in found if value is not None]
            right.append(shown(interval(known)) if known else "")
        if any(cells[1:]):
            rows.append(f"| {name} | {' | '.join(cells)} |")
        if any(right[1:]):
            labels.append(f"| {name} | {' | '.join(right)} |")
    return [
        *("## Accuracy after each round (percent)", "", *rows, ""),
        *("## Demonstrations that are right (percent)", "", *labels, ""),
    ]


def label_of(seed: Seed, name: str, number: int) -> np.ndarray | None:
    """Return which demonstrations of an arm are right after a round, as ones and zeros."""
    for record in seed.manifest["arms"][name]["rounds"]:
        if record["round"] == number and record.get("label_accuracy") is not None:
            hits = round(record["label_accuracy"] * record["rows"])
            return np.repeat([1.0, 0.0], [hits, record["rows"] - hits])
    return None


def judge_table(seeds: Mapping[int, Seed]) -> list[str]:
    """Return how often verdicts are right, round by round."""
    rows = ["| arm | round | verdicts right | of |", "|---|---|---|---|"]
    names = list(next(iter(seeds.values())).manifest["arms"])
    for name in names:
        numbers = range(1, 1 + max(len(s.manifest["arms"][name]["rounds"]) for s in seeds.values()))
        for number in numbers:
            found = [
                record
                for seed in seeds.values()
                for record in seed.manifest["arms"][name]["rounds"]
                if record["round"] == number and record.get("judge_told")
            ]
            if found:
                parts = [
                    np.repeat([1.0, 0.0], [r["judge_right"], r["judge_told"] - r["judge_right"]])
                    for r in found
                ]
                told = sum(r["judge_told"] for r in found)
                rows.append(f"| {name} | {number} | {shown(interval(parts))} | {told:,} |")
    note = (
        "Where exactly one of two answers is right: does the judge prefer it? Refinement: all "
        "judged rows. DPO: the pairs that are kept, as they are trained on."
    )
    return ["## The judge in each round (percent)", "", note, "", *rows, ""]


def cost_table(seeds: Mapping[int, Seed]) -> list[str]:
    """Return what led to the last model of each arm."""
    rows = ["| arm | optimizer steps | tokens generated |", "|---|---|---|"]
    for name in next(iter(seeds.values())).manifest["arms"]:
        last = [seed.manifest["arms"][name]["rounds"][-1] for seed in seeds.values()]
        steps, tokens = (np.mean([r[key] for r in last]) for key in ("steps", "new_tokens"))
        rows.append(f"| {name} | {steps:,.0f} | {tokens:,.0f} |")
    note = (
        "Of all models that led to the last one, without base models, weak model, judge and test."
    )
    seconds = ", ".join(f"{s.manifest['seconds']:,.0f}" for s in seeds.values())
    return [
        "## Cost (mean of seeds)",
        "",
        note,
        "",
        *rows,
        "",
        f"Seconds of the last start: {seconds}.",
        "",
    ]


def tuning_table(chosen: Mapping[str, Any]) -> list[str]:
    """Return what was tried on the tuning seed."""
    rows = ["| try | accuracy, validation |", "|---|---|"]
    rows += [f"| {name} | {100 * value:.1f} |" for name, value in chosen["accuracy"].items()]
    taken = (
        f"Taken: DPO at {chosen['learning_rate']:g} with beta {chosen['beta']:g}; alpha "
        f"{chosen['alpha']:g} for ilr-tuned."
    )
    return [f"## Tuning, seed {TUNING} (percent)", "", *rows, "", taken, ""]


if __name__ == "__main__":
    main()
