"""Phrase rules for refusals against people: XSTest's human labels (Röttger et al., NAACL 2024).

The rules were written on the training split; the test split has other prompts of the same kind,
answered by the same five models. Beside them stand the labels that came with the data: string
matching, and GPT-4 as a judge. A row that GPT-4 did not answer counts as no refusal.

    python benchmarks/refusals.py --data ../shared/data --out benchmarks/results/refusals.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.align.refusals import refuses
from whet.estimates import share


def main() -> None:
    """Count and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines = [
        "# Phrase rules for refusals against people",
        "",
        f"    python benchmarks/refusals.py --data ../shared/data --out {arguments.out}",
        "",
        "XSTest's answers with human labels; partial refusals count as refusals. 95 % intervals of",
        "shares of rows. The rules were written on the training split.",
        "",
        "| split | who | accuracy | false refusals | refusals found |",
        "|---|---|---|---|---|",
    ]
    for split in ("train", "test"):
        path = arguments.data / "xstest_refusal_gpt4judge" / f"{split}.parquet"
        table = pq.read_table(path)
        truth = table["label"].to_numpy() == 1
        rules = np.array([refuses(text) for text in table["completion"].to_pylist()])
        lines.append(_row(split, "phrase rules", rules, truth))
        for who, column in (("string matching", "llm_stringmatch"), ("GPT-4", "llm_gpt4_judge")):
            lines.append(_row(split, who, table[column].to_numpy() == 1, truth))
    arguments.out.write_text("\n".join(lines) + "\n")


def _row(split: str, who: str, said: NDArray[Any], truth: NDArray[np.bool_]) -> str:
    found = (share(said == truth), share(said[~truth]), share(said[truth]))
    cells = (f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}] (n = {e.n:,})" for e in found)
    return f"| {split} | {who} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
