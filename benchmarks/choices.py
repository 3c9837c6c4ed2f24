"""What the choices inside `tsp` are worth: variants against the method as it is, paired.

    python benchmarks/choices.py --data DIR --out benchmarks/results/choices
        [--part tuning] [--encoder tfidf] [--gold 50] [--seeds 5] [--variants all]

Each variant changes one constant of the method. All variants of a cell see the same texts, gold
rows and seeds. Gain is the accuracy of the refined labels minus that of the annotator's, in points,
on rows that are not gold; `guarded` with the guard "safe", `free` with the guard off. Differences
are to the method as it is, with a 95 % t-interval over cells; labels are compared with guard off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from whet import LabelRefiner, WhetWarning, __version__
from whet.bench.cells import Cell, load_cell, read_specs
from whet.bench.features import DenseEncoder
from whet.bench.linear import filled
from whet.bench.panel import draw_gold
from whet.classify import annotator, features, pool, tsp
from whet.classify.inputs import majority_vote

#: Name -> (module, constant, value). The features of the first group are made anew.
FEATURES: dict[str, Any] = {
    "directions unweighted": (features, "DIRECTION_WEIGHT", 0.0),
    "directions weighted by their value": (features, "DIRECTION_WEIGHT", 1.0),
    "256 directions": (features, "REDUCED", 256),
    "directions from all rows": (features, "REDUCE_ROWS", 10**9),
}
CONSTANTS: dict[str, Any] = {
    "guard with one margin of 0.2": (tsp, "LADDER", ((0.2, 0.0),)),
    "student A's penalty 0.1": (tsp, "L2_ANNOTATOR", 0.1),
    "student A's penalty 1": (tsp, "L2_ANNOTATOR", 1.0),
    "student B's penalty 0.03": (tsp, "L2_GOLD", 0.03),
    "student B's penalty 0.3": (tsp, "L2_GOLD", 0.3),
    "3 passes": (tsp, "PASSES", 3),
    "30 steps a pass": (tsp, "STEPS", 30),
    "1,600 draws": (pool, "DRAWS", 1600),
    "every row in the runs that judge gold": (tsp, "HONEST_ROWS", 10**9),
    "no floor": (annotator, "FLOOR", 1e-9),
}
#: Variants of the call: one or three rounds; the most frequent label of several annotators; half of
#: the gold rows chosen where a first fit is most at odds with the annotator.
CALLS = ("one round", "three rounds", "majority of the annotators", "half of the gold chosen")


@contextlib.contextmanager
def changed(variant: str) -> Iterator[None]:
    """Set a variant's constant for a while."""
    if variant not in FEATURES | CONSTANTS:
        yield
        return
    module, name, value = (FEATURES | CONSTANTS)[variant]
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def refine(
    cell: Cell, encoder: DenseEncoder, gold: np.ndarray, seed: int, variant: str
) -> LabelRefiner:
    """Run tsp on a cell with given gold codes."""
    votes = cell.votes
    if variant == "majority of the annotators":
        votes = majority_vote(votes, cell.n_classes)[:, None]
    labels = np.where(votes < 0, None, votes).tolist()
    known = np.where(gold < 0, None, gold).tolist()
    rounds = {"one round": 1, "three rounds": 3}.get(variant, 2)
    refiner = LabelRefiner(encoder=encoder, rounds=rounds, gold_budget=1000, random_state=seed)
    return refiner.fit(cell.texts, labels, known)


def run(cell: Cell, encoder: DenseEncoder, n_gold: int, seed: int, variant: str) -> dict[str, Any]:
    """Return the gains of one run, in points, and its labels with the guard off."""
    gold = draw_gold(cell, n_gold, seed)
    if variant == "half of the gold chosen":
        first = draw_gold(cell, n_gold // 2, seed)
        doubt = refine(cell, encoder, first, seed, "").suspicion_
        chosen = np.argsort(-doubt, kind="stable")[: n_gold - n_gold // 2]
        gold = first.copy()
        gold[chosen] = cell.truth[chosen]
    judged = gold < 0
    pseudo = majority_vote(cell.votes, cell.n_classes)
    refiner = refine(cell, encoder, gold, seed, variant)
    classes = refiner.classes_  # a class that nobody names is not among them
    known = np.where(pseudo < 0, -1, np.searchsorted(classes, pseudo))
    labels = {
        "guarded": np.asarray(refiner.labels_, dtype=np.int64),
        "free": classes[tsp.margin_rule(known)(known, refiner.proba_, 2)],
    }
    base = float((filled(pseudo)[judged] == cell.truth[judged]).mean())
    found: dict[str, Any] = {
        name: 100 * (float((codes[judged] == cell.truth[judged]).mean()) - base)
        for name, codes in labels.items()
    }
    return found | {"labels": labels["free"]}


def table(results: list[dict[str, Any]]) -> str:
    """Return one row a variant."""
    head = ["variant", "cells", "guarded gain", "difference", "harm", "worst", "free gain"]
    head += ["difference", "labels that differ"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by = {}
    for r in results:
        by.setdefault(r["variant"], {}).setdefault(r["cell"], []).append(r)
    base = by["as it is"]
    for variant, cells in by.items():
        row = [variant, str(len(cells))]
        for kind in ("guarded", "free"):
            gains = {c: np.array([r[kind] for r in runs]) for c, runs in cells.items()}
            steps = [(g - np.array([r[kind] for r in base[c]])).mean() for c, g in gains.items()]
            reach = (
                stats.t.ppf(0.975, len(steps) - 1) * np.std(steps, ddof=1) / np.sqrt(len(steps))
                if len(steps) > 1
                else float("nan")
            )
            every = np.concatenate(list(gains.values()))
            row.append(f"{np.mean([g.mean() for g in gains.values()]):+.2f}")
            row.append("" if variant == "as it is" else f"{np.mean(steps):+.2f} ± {reach:.2f}")
            if kind == "guarded":
                row += [f"{np.mean(every < -1):.1%}", f"{every.min():+.1f}"]
        differ = np.mean([r["differ"] for runs in cells.values() for r in runs])
        row.append("" if variant == "as it is" else f"{differ:.1%}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the variants."""
    parser = argparse.ArgumentParser(description="What the choices inside tsp are worth.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/panel.yaml"))
    parser.add_argument("--part", default="tuning")
    parser.add_argument("--encoder", default="tfidf")
    parser.add_argument("--gold", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore", WhetWarning)
    names = ["as it is", *FEATURES, *CONSTANTS, *CALLS]
    if args.variants != "all":
        names = ["as it is", *args.variants.split(",")]
    began, results = time.perf_counter(), []
    plain_labels: dict[tuple[str, int], np.ndarray] = {}
    for spec in read_specs(args.cells):
        if spec.part != args.part:
            continue
        cell = load_cell(args.data, spec, args.rows)
        encoder = DenseEncoder(args.encoder, cell.texts)
        for variant in names:
            if variant == "majority of the annotators" and cell.votes.shape[1] == 1:
                continue
            with changed(variant), threadpool_limits(1):
                used = DenseEncoder(args.encoder, cell.texts) if variant in FEATURES else encoder
                for seed in range(args.seeds):
                    found = run(cell, used, args.gold, seed, variant)
                    labels = found.pop("labels")
                    plain = plain_labels.setdefault((cell.name, seed), labels)
                    found["differ"] = float((labels != plain).mean())
                    results.append({"cell": cell.name, "variant": variant, "seed": seed, **found})
        sys.stderr.write(f"{cell.name} done, {time.perf_counter() - began:.0f} s\n")
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/choices.py " + shlex.join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    part, encoder = args.part or args.cells.stem, args.encoder.partition(":")[0]
    name = f"{part}-{encoder}-{args.gold}gold-{args.rows}rows"
    (args.out / f"{name}.json").write_text(
        json.dumps({"command": command, "machine": machine, "runs": results}, indent=1) + "\n"
    )
    text = (
        f"# Choices inside tsp, {args.part} cells, {args.gold} gold rows\n\n`{command}`\n\n"
        f"{machine}; {time.perf_counter() - began:.0f} s.\n\n{table(results)}\n"
    )
    (args.out / f"{name}.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
