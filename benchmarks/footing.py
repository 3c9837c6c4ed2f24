"""The annotator's accuracy, counted on the gold rows and predicted for all rows.

run.json tells both of `tsp` where labels are replaced. The counted one is unbiased; the predicted
one (`annotator, all rows`) stands on the same footing as the accuracy of the refined labels and the
gain.
On the cells of the panel, at most 1,000 rows each, 50 gold rows, three draws: how far off each is,
how wide its interval, and how often the interval holds the truth, over the rows with a label of the
annotator's. Nothing was chosen by these numbers.

    python benchmarks/footing.py --data ../shared/data --out benchmarks/results/footing.md
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np

from whet import LabelRefiner, __version__
from whet.bench.cells import load_cell, read_specs
from whet.bench.panel import draw_gold
from whet.classify.inputs import majority_vote
from whet.errors import WhetError, WhetWarning
from whet.store import write_atomic

ROWS, GOLD, DRAWS = 1000, 50, (0, 1, 2)
KINDS = ("annotator", "annotator, all rows")


def main() -> None:
    """Refine each cell, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", WhetWarning)
    found: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for spec in read_specs(Path(__file__).parent / "panel.yaml"):
        cell = load_cell(arguments.data, spec, ROWS)
        sys.stderr.write(f"{cell.name}\n")
        for seed in DRAWS:
            for kind, measured in refine(cell, seed).items():
                found.setdefault((cell.part, kind), []).append(measured)
    command = shlex.join(["python", "benchmarks/footing.py", *sys.argv[1:]])
    lines = [
        "# The annotator's accuracy, counted and predicted",
        "",
        f"    {command}",
        "",
        f"whet {__version__}, {platform.platform()}. Conditions: the beginning of "
        "[footing.py](../footing.py). Runs that replaced labels; in points.",
        "",
        "| cells | estimate | runs | mean error | mean size of the error | mean width | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (part, kind), runs in sorted(found.items()):
        error, width, holds = (np.array(column, dtype=float) for column in zip(*runs, strict=True))
        lines.append(
            f"| {part} | {kind} | {len(runs)} | {100 * error.mean():+.1f} | "
            f"{100 * np.abs(error).mean():.1f} | {100 * width.mean():.1f} | {holds.mean():.0%} |"
        )
    text = "\n".join(lines) + "\n"
    write_atomic(arguments.out, lambda file: file.write(text.encode()))
    sys.stderr.write(text)


def refine(cell: object, seed: int) -> dict[str, tuple[float, float, bool]]:
    """Return error, width and coverage of each estimate; nothing where the labels are kept."""
    gold = draw_gold(cell, GOLD, seed)
    votes = majority_vote(cell.votes, cell.n_classes)
    refiner = LabelRefiner(random_state=seed)
    try:
        refiner.fit_refine(
            cell.texts,
            [None if v < 0 else int(v) for v in votes],
            [None if g < 0 else int(g) for g in gold],
        )
    except WhetError as error:
        sys.stderr.write(f"{cell.name}, draw {seed}: {error}\n")
        return {}
    if KINDS[1] not in refiner.estimate_:
        return {}
    judged = (votes >= 0) & (gold < 0)
    truth = float((votes == cell.truth)[judged].mean())
    return {
        kind: (e.value - truth, e.high - e.low, e.low <= truth <= e.high)
        for kind, e in ((kind, refiner.estimate_[kind]) for kind in KINDS)
    }


if __name__ == "__main__":
    main()
