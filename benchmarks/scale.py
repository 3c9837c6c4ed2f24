"""Time and peak memory of `whet refine` at several corpus sizes, stage by stage.

    python benchmarks/scale.py --data DIR --out benchmarks/results/scale
        [--rows 10000,100000,1000000] [--set clickbait] [--method tsp] [--gold 50]

A real set is repeated and perturbed: each copy of a text loses one word and gains a number. The
annotator is simulated (right with probability 0.85 and 0.65 for the two classes) and 50 random
rows have gold labels. Every size runs once, through the command line, in a process of its own;
the numbers are those of its run.json. The floor is what no implementation can avoid: reading each
text once and, for each step of a solver, two passes over the stored features.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whet import __version__


def write_corpus(source: Path, rows: int, n_gold: int, target: Path) -> float:
    """Write a corpus of ``rows`` texts and return their mean length in characters."""
    table = pq.read_table(source / "train.parquet", columns=["text", "label"])
    texts, labels = table["text"].to_pylist(), np.array(table["label"].to_pylist())
    rng = np.random.default_rng(0)
    picked = np.concatenate([rng.permutation(len(texts)) for _ in range(-(-rows // len(texts)))])[
        :rows
    ]
    dropped = rng.random(rows)
    perturbed = []
    for copy, (row, where) in enumerate(zip(picked.tolist(), dropped.tolist(), strict=True)):
        words = texts[row].split()
        if len(words) > 1:
            del words[int(where * len(words))]
        perturbed.append(" ".join([*words, str(copy)]))
    truth = labels[picked]
    right = rng.random(rows) < np.where(truth == 1, 0.65, 0.85)
    gold = np.full(rows, -1)
    known = rng.choice(rows, n_gold, replace=False)
    gold[known] = truth[known]
    pq.write_table(
        pa.table(
            {
                "text": perturbed,
                "llm": np.where(right, truth, 1 - truth),
                "gold": pa.array(gold, mask=gold < 0),
            }
        ),
        target,
    )
    return sum(map(len, perturbed)) / rows


def measure(source: Path, rows: int, method: str, gold: int) -> dict[str, Any]:
    """Run one size and return what its run.json says."""
    folder = Path(tempfile.mkdtemp(prefix="whet-scale-"))
    try:
        mean_chars = write_corpus(source, rows, gold, folder / "corpus.parquet")
        command = ["refine", str(folder / "corpus.parquet"), "--text", "text", "--pseudo", "llm"]
        command += ["--gold", "gold", "--method", method, "--out", str(folder / "run")]
        script = "import sys; from whet.cli import main; main(sys.argv[1:])"
        subprocess.run([sys.executable, "-c", script, *command], check=True)  # noqa: S603
        manifest = json.loads((folder / "run" / "run.json").read_text())
    finally:
        shutil.rmtree(folder)
    return {
        "rows": rows,
        "mean_chars": round(mean_chars, 1),
        "seconds": manifest["seconds"],
        "peak_memory_mib": manifest["peak_memory_mib"],
        "verdict": manifest["verdict"],
    }


def table(found: list[dict[str, Any]]) -> str:
    """Return the measurements as a Markdown table."""
    stages = list(found[0]["seconds"])
    head = ["texts", "characters a text", *(f"{s}, s" for s in stages)]
    head += ["in all, s", "microseconds a text", "peak memory, MiB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for run in found:
        whole = sum(run["seconds"].values())
        cells = [f"{run['rows']:,}", f"{run['mean_chars']:.0f}"]
        cells += [f"{run['seconds'][s]:.1f}" for s in stages]
        cells += [f"{whole:.1f}", f"{1e6 * whole / run['rows']:.0f}", f"{run['peak_memory_mib']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time and memory of whet refine by size.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--set", default="clickbait", help="a data set with two classes")
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--method", default="tsp")
    parser.add_argument("--gold", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    found = [
        measure(args.data / args.set, int(rows), args.method, args.gold)
        for rows in args.rows.split(",")
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/scale.py " + " ".join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    (args.out / "results.json").write_text(
        json.dumps({"command": command, "machine": machine, "runs": found}, indent=1) + "\n"
    )
    text = f"# Time and memory of `whet refine`\n\n`{command}`\n\n{machine}.\n\n{table(found)}\n"
    (args.out / "table.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
