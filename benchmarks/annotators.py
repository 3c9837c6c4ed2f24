"""Several annotators in one model, and their confidence: what each is worth, paired.

    python benchmarks/annotators.py --data DIR --out benchmarks/results/annotators
        [--gold 50] [--seeds 10]

Two questions. *Several*: is `tsp` on all columns of labels better than `tsp` on their majority
vote, and than `tsp` on the column that is right most often on the same gold rows? *Confidence*: is
it better to use an annotator's confidence, and how?

Fixed before the run:

- n-grams, at most 2,000 rows a cell, random gold rows, 10 draws of them; all variants of a cell see
  the same texts, gold rows and seeds. Gain is the accuracy of the refined labels minus that of the
  annotator's (of the majority vote, where several), in points, on rows that are not gold; `guarded`
  with the guard "safe", `free` at the margin 0.2 without a guard. Harm is a loss of over 1 point.
- *Several*, babe_llm: five weak columns and five strong ones, below; each run of 2, 3 and 5
  neighbours on the circle of five is a cell (5 + 5 + 1 cells a strength), so that each column comes
  first once: the majority of two is the first one's label wherever it has one. On xstest GPT-4 as
  a judge and the string match, against each of them alone. One model is worth its place if its
  guarded gain is above the majority's with an interval that leaves out 0.
- *Confidence*, from four sources. Agreement: the labels of one model of babe_llm under three
  prompts are taken as three samples; the label is their majority, the confidence the share of the
  three that are that label. Graded: on xstest the judge's full answers have 1 and its partial
  refusals 0. Probability: a weak teacher's own, on binary and on multiclass sets.
- Variants: `none` ignores it; `rank` multiplies each log-likelihood by twice the confidence's rank
  among the annotator's labels, 0 to 1; `buckets2` and `buckets3` cut the annotator's labels at the
  halves or thirds of that rank (equal confidences share a bucket) and take P(label | class) for
  each bucket from its gold rows and 10 rows a class of the table of all, with the same floor.
- Buckets replace `rank` if the guarded gain of one of them is above that of `rank` and of `none`,
  over all cells of this part, with 95 % intervals that leave out 0. `rank` helps if it is above
  `none` in the same sense.

Intervals: paired bootstrap of cells, then of seeds, as in `whet bench`.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from whet import LabelRefiner, WhetWarning, __version__
from whet.bench.cells import Cell, CellSpec, Simulation, load_cell
from whet.bench.features import DenseEncoder
from whet.bench.linear import filled
from whet.bench.panel import draw_gold
from whet.bench.report import lines
from whet.classify import annotator, tsp
from whet.classify.inputs import majority_vote

BABE, XSTEST = "babe_llm", "xstest_refusal_gpt4judge"
COLUMNS = {
    "weak": ["llama_13b_zs", "mistral_7b_zs", "falcon_7b_zs", "flan_t5_large_zs", "llama_7b_zs"],
    "strong": ["gpt_4_zs", "gpt_3_5_zssys", "zephyr_zs", "flan_ul2_zs", "openchat_fs2"],
}
JUDGES = ["llm_gpt4_judge", "llm_stringmatch"]
MODELS = ["gpt_4", "gpt_3_5", "mixtral_8x7b", "zephyr", "openchat", "mistral_7b", "llama_13b"]
MODELS += ["llama_7b", "flan_ul2", "flan_t5_xl", "flan_t5_large", "falcon_7b"]
PROMPTS = ("zs", "zssys", "fs2")
TEACHERS = {
    "probability, binary": [
        ("clickbait", 0.65),
        ("clickbait", 0.8),
        ("covid_fake_news", 0.7),
        ("covid_fake_news", 0.85),
        ("mr_chatgpt", 0.7),
    ],
    "probability, multiclass": [("agnews_noisy_human", 0.7), ("trec_weak", 0.7)],
}
#: Rows of each class that the table of all labels is worth in a bucket.
SHRINK_ROWS = 10.0
CONFIDENCE = ("none", "rank", "buckets2", "buckets3")
KINDS = {"guarded": "guard `safe`", "free": "without the guard"}

Row = dict[str, Any]
Evidence = Callable[..., np.ndarray]


# --- confidence -----------------------------------------------------------------------------------


def confidence_buckets(confidence: np.ndarray, n: int) -> np.ndarray:
    """Return the bucket of each confidence, 0 to n - 1, by mean rank: equal ones share one."""
    return np.floor(n * (rankdata(confidence) - 0.5) / max(1, len(confidence))).astype(int)


def bucket_model(labels: np.ndarray, gold: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return P(label | class) in a bucket: its gold counts, shrunk to the table of all labels."""
    counts = SHRINK_ROWS * table
    known = gold >= 0
    np.add.at(counts, (gold[known], labels[known]), 1.0)
    counts /= counts.sum(axis=1, keepdims=True)
    own = np.diag(counts).copy()
    counts = np.minimum(counts, own / annotator.FLOOR)
    np.fill_diagonal(counts, own)
    return counts


def by_buckets(n: int) -> Evidence:
    """Return a stand-in for ``annotator.evidence`` that has a table for each bucket."""

    def evidence(
        votes: np.ndarray, gold: np.ndarray, n_classes: int, confidence: np.ndarray
    ) -> np.ndarray:
        total = np.zeros((len(votes), n_classes))
        for m, labels in enumerate(votes.T):
            table = annotator.label_model(labels, gold, n_classes)
            answered = np.flatnonzero(labels >= 0)
            bucket = confidence_buckets(confidence[answered, m], n)
            for b in range(n):
                rows = answered[bucket == b]
                found = bucket_model(labels[rows], gold[rows], table)
                total[rows] += np.log(found).T[labels[rows]]
        return total

    return evidence


@contextlib.contextmanager
def evidence_of(variant: str) -> Iterator[None]:
    """Let tsp use the confidence in a variant's way for a while."""
    before = annotator.evidence
    if variant.startswith("buckets"):
        annotator.evidence = by_buckets(int(variant.removeprefix("buckets")))
    try:
        yield
    finally:
        annotator.evidence = before


# --- cells ----------------------------------------------------------------------------------------


def several_cells(data: Path, rows: int) -> Iterator[tuple[str, Cell]]:
    """Yield a group and a cell of several annotators."""
    for strength, columns in COLUMNS.items():
        for m in (2, 3, 5):
            for first in range(5 if m < 5 else 1):
                names = [f"llm_{columns[(first + i) % 5]}" for i in range(m)]
                spec = CellSpec(dataset=BABE, labels=names)
                yield f"{m} {strength}", load_cell(data, spec, rows)
    yield "xstest", load_cell(data, CellSpec(dataset=XSTEST, labels=JUDGES), rows)


def agreement(cell: Cell, name: str) -> Cell:
    """Take the annotators for samples of one: their majority, and the share that agree with it."""
    label = majority_vote(cell.votes, cell.n_classes)
    share = (cell.votes == label[:, None]).mean(axis=1)
    return replace(cell, name=name, votes=label[:, None], confidence=share[:, None])


def confidence_cells(data: Path, rows: int) -> Iterator[tuple[str, Cell]]:
    """Yield a group and a cell with confidence."""
    for model in MODELS:
        names = [f"llm_{model}_{prompt}" for prompt in PROMPTS]
        cell = load_cell(data, CellSpec(dataset=BABE, labels=names), rows)
        yield "agreement", agreement(cell, f"{BABE} {model}")
    cell = load_cell(data, CellSpec(dataset=XSTEST, labels=JUDGES[0]), 10**9)
    raw = pq.read_table(data / XSTEST / "train.parquet", columns=["gpt4_raw_label"])
    sure = np.array([value != "3_partial_refusal" for value in raw["gpt4_raw_label"].to_pylist()])
    yield "graded", replace(cell, confidence=sure[:, None].astype(float))
    for group, teachers in TEACHERS.items():
        for dataset, accuracy in teachers:
            teacher = Simulation(kind="weak_teacher", accuracy=accuracy)
            yield group, load_cell(data, CellSpec(dataset=dataset, simulate=teacher), rows)


# --- running --------------------------------------------------------------------------------------


def run(
    cell: Cell,
    encoder: DenseEncoder,
    votes: np.ndarray,
    gold: np.ndarray,
    seed: int,
    confidence: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the accuracies of tsp on some votes, guarded and free, on rows that are not gold."""
    refiner = LabelRefiner(encoder=encoder, gold_budget=1000, random_state=seed)
    labels, known = (np.where(c < 0, None, c).tolist() for c in (votes, gold))
    refiner.fit_refine(cell.texts, labels, known, confidence=confidence)
    classes = refiner.classes_  # a class that nobody names is not among them
    pseudo = majority_vote(votes, cell.n_classes)
    pseudo = np.where(pseudo < 0, -1, np.searchsorted(classes, pseudo))
    found = {
        "guarded": np.asarray(refiner.labels_, dtype=np.int64),
        "free": classes[tsp.margin_rule(pseudo)(pseudo, refiner.proba_, 2)],
    }
    judged = gold < 0
    return {kind: float((codes == cell.truth)[judged].mean()) for kind, codes in found.items()}


def votes_of(cell: Cell, gold: np.ndarray) -> dict[str, np.ndarray]:
    """Return the variants of a cell of several annotators and the votes that each learns from."""
    known = gold >= 0
    right = (cell.votes[known] == cell.truth[known, None]).mean(axis=0)
    variants = {
        "one model": cell.votes,
        "majority": majority_vote(cell.votes, cell.n_classes)[:, None],
        "best by gold": cell.votes[:, [int(right.argmax())]],
    }
    if cell.dataset == XSTEST:
        variants |= {name: cell.votes[:, [m]] for m, name in enumerate(JUDGES)}
    return variants


def runs_of(part: str, cell: Cell, gold: np.ndarray) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Yield the variants of a cell: name, votes, confidence."""
    if part == "several":
        for name, votes in votes_of(cell, gold).items():
            yield name, votes, None
    else:
        for name in CONFIDENCE:
            yield name, cell.votes, None if name == "none" else cell.confidence


def run_part(part: str, args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Run a part; return its runs, and what is known of its cells."""
    results, cells, encoders = [], [], {}
    made = several_cells if part == "several" else confidence_cells
    for group, cell in made(args.data, args.rows):
        key = cell.dataset, len(cell.texts)
        if key not in encoders:
            encoders[key] = DenseEncoder(args.encoder, cell.texts)
        joint = majority_vote(cell.votes, cell.n_classes)
        cells.append({"group": group, "cell": cell.name, **halves(cell, joint)})
        for seed in range(args.seeds):
            gold = draw_gold(cell, args.gold, seed)
            judged = gold < 0
            base = float((filled(joint) == cell.truth)[judged].mean())
            for variant, votes, confidence in runs_of(part, cell, gold):
                with evidence_of(variant), threadpool_limits(1):
                    found = run(cell, encoders[key], votes, gold, seed, confidence)
                row = {"part": part, "group": group, "cell": cell.name, "variant": variant}
                row |= {"seed": seed, "annotator": round(base, 6)}
                results.append(row | {k: round(v - base, 6) for k, v in found.items()})
        sys.stderr.write(f"{part}: {cell.name} done\n")
    return results, cells


def halves(cell: Cell, labels: np.ndarray) -> Row:
    """Return the accuracy of all labels, and of those below and above the median confidence."""
    right, answered = labels == cell.truth, labels >= 0
    found: Row = {"accuracy": float(right[answered].mean())}
    if cell.confidence is not None:
        sure = cell.confidence[answered, 0]
        bucket = confidence_buckets(sure, 2)
        found["levels"] = len(np.unique(sure))
        found["low_share"] = float((bucket == 0).mean())
        found |= {
            name: float(right[answered][bucket == b].mean()) if (bucket == b).any() else None
            for b, name in enumerate(("low", "high"))
        }
    return found


# --- tables ---------------------------------------------------------------------------------------


def summary(results: list[Row], kind: str, first: str) -> dict[str, Any]:
    """Return the lines of variants, with differences to the first one."""
    order = sorted(results, key=lambda r: r["variant"] != first)
    wanted = [
        {
            "cell": r["cell"],
            "method": r["variant"],
            "gold": 0,
            "seed": r["seed"],
            "gain": r[kind],
            "annotator_accuracy": r["annotator"],
            "refused": None,
            "seconds": 0.0,
        }
        for r in order
    ]
    return {line.method: line for line in lines(wanted)}


def points(interval: tuple[float, float, float] | None) -> str:
    """Return a mean and its interval in points."""
    if interval is None:
        return ""
    mean, low, high = (100 * end for end in interval)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def table(groups: dict[str, list[Row]], kind: str, first: tuple[str, str]) -> str:
    """Return a row for each group and variant."""
    head = ["cells", "runs", "variant", "gain", *(f"against {name}" for name in first)]
    head = ["group", *head, "harm", "worst"]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group, rows in groups.items():
        every = [summary(rows, kind, name) for name in first]
        n = len({r["cell"] for r in rows})
        for variant in dict.fromkeys(r["variant"] for r in rows):
            line = every[0][variant]
            against = [points(found[variant].difference) for found in every]
            row = [group, str(n), str(line.runs), variant, points(line.gain), *against]
            text.append(
                "| " + " | ".join([*row, f"{line.harm:.1%}", f"{100 * line.worst:+.1f}"]) + " |"
            )
    return "\n".join(text)


def grouped(results: list[Row], whole: dict[str, Callable[[str], bool]]) -> dict[str, list[Row]]:
    """Return the runs of each group, then those of unions of groups."""
    found = {
        g: [r for r in results if r["group"] == g]
        for g in dict.fromkeys(r["group"] for r in results)
    }
    common = set.intersection(*({r["variant"] for r in rows} for rows in found.values()))
    for name, holds in whole.items():
        found[name] = [r for r in results if holds(r["group"]) and r["variant"] in common]
    return found


def cell_table(results: list[Row], cells: list[Row]) -> str:
    """Return a row for each cell with confidence: what it says of errors, and the mean gains."""
    head = ["cell", "accuracy", "levels", "in the lower half", "right there", "right above"]
    head += [f"{variant}, {kind}" for kind in KINDS for variant in CONFIDENCE]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in cells:
        row = [cell["cell"], f"{cell['accuracy']:.1%}", str(cell["levels"])]
        row += [
            "-" if cell[name] is None else f"{cell[name]:.1%}"
            for name in ("low_share", "low", "high")
        ]
        for kind in KINDS:
            for variant in CONFIDENCE:
                of = [(r["cell"], r["variant"]) == (cell["cell"], variant) for r in results]
                gains = [r[kind] for r, mine in zip(results, of, strict=True) if mine]
                row.append(f"{100 * np.mean(gains):+.1f}")
        text.append("| " + " | ".join(row) + " |")
    return "\n".join(text)


def report(results: list[Row], cells: list[Row], opening: str) -> str:
    """Return the whole result as Markdown."""
    several = grouped(
        [r for r in results if r["part"] == "several"],
        {
            **{
                f"babe_llm, {m}": lambda g, m=m: g in (f"{m} weak", f"{m} strong")
                for m in (2, 3, 5)
            },
            **{f"babe_llm, {s}": lambda g, s=s: g.endswith(s) for s in COLUMNS},
            "all of babe_llm": lambda g: g != "xstest",
        },
    )
    sure = [r for r in results if r["part"] == "confidence"]
    confidence = grouped(
        sure,
        {
            "all but graded": lambda g: g != "graded",
            "all real": lambda g: not g.startswith("probability"),
            "all": lambda _: True,
        },
    )
    text = [opening]
    for kind, title in KINDS.items():
        text += [f"## Several annotators, {title}", table(several, kind, ("majority", "one model"))]
    for kind, title in KINDS.items():
        text += [f"## Confidence, {title}", table(confidence, kind, ("none", "rank"))]
    text += [
        "## Cells with confidence",
        "Accuracy is of the labels that were given; *levels* is the number of distinct "
        "confidences; the halves are those of `buckets2`; mean gains in points.",
        cell_table(sure, [c for c in cells if "levels" in c]),
    ]
    return "\n\n".join(text) + "\n"


def main() -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description="What several annotators and confidence give.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--encoder", default="tfidf")
    parser.add_argument("--gold", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore", WhetWarning)
    began, results, cells = time.perf_counter(), [], []
    for part in ("several", "confidence"):
        runs, known = run_part(part, args)
        results, cells = results + runs, cells + known
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/annotators.py " + shlex.join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    name = f"{args.encoder.partition(':')[0]}-{args.gold}gold-{args.rows}rows"
    stored = {"command": command, "machine": machine, "cells": cells, "runs": results}
    (args.out / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n")
    opening = (
        f"# Several annotators and confidence, {args.gold} gold rows\n\n`{command}`\n\n"
        f"{machine}; {time.perf_counter() - began:.0f} s. Gains and differences in points with a "
        "95 % interval (paired bootstrap of cells and seeds; of seeds alone in a group of one "
        "cell); harm is the share of runs that lose more than 1 point."
    )
    text = report(results, cells, opening)
    (args.out / f"{name}.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
