"""The replacement rule of ILR on outputs of real models, without training any: one round.

    python benchmarks/ilr_real.py --data DIR --out benchmarks/results/ilr-real.md
        [--seeds 10] [--draws 2000] [--workers 1]

**What is run.** In each cell, demonstrations of a weaker model are refined with the proposals of a
stronger one, on the test split (the only one that has both), and judged against the references:

=====================  ====================================  =======================  ============
cell                   demonstrations                        proposals                agreement
=====================  ====================================  =======================  ============
spider_rebuilt         Graphix (T5) SQL                      GPT-4 (DAIL) SQL         equal results
gsm8k, fine-tuned      GPT-3 6B, fine-tuned                  GPT-3 175B, fine-tuned   equal numbers
gsm8k, with verifier   GPT-3 6B, with a verifier             GPT-3 175B, the same     equal numbers
=====================  ====================================  =======================  ============

On Spider, rows whose reference fails or returns nothing are left out, since an empty result matches
too easily. Feedback is, for each cell and at each alpha in 0.05, 0.15, 0.3, 0.5, 1:

- ``oracle``: s is 1, 0.5 or 0 by the references; ``oracle, no limit`` takes every right proposal;
- ``noisy p``: right with probability p = 0.6, 0.75, 0.9, independently, a coin on ties;
- ``noisy 0.75, ties kept``: the rule to the letter, without drawing among equal scores;
- ``noisy 0.75, filter``: the same rows dropped, not replaced; accuracy is that of what is left;
- ``learned``: a logistic regression on the difference of the word 1-2-gram counts of proposal and
  demonstration (hashed, scaled to length 1, no intercept), fitted in 5-fold cross-fitting on the
  disagreeing rows of the other folds where exactly one of the two is right: it sees gold labels of
  four fifths of the rows, and it can tell the two models apart by their style, since one wrote all
  demonstrations and the other all proposals;
- ``naive``: no feedback, random rows.

All is decided by :func:`whet.ilr.replace.decide`, with ties drawn unless said otherwise, once for
each of ``--seeds`` seeds, which decide noise, draws and folds. Intervals are 95 % percentile
intervals of a bootstrap over rows and, independently, over seeds. Gain is in points of accuracy
over the demonstrations as they were. A trial of two seeds, whose n-grams had punctuation, came
before; nothing was chosen by its results.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from whet import __version__
from whet.ilr.feedback import NoisyOracle, Oracle
from whet.ilr.halves import halves
from whet.ilr.replace import decide
from whet.ilr.tasks.gsm8k import Gsm8k
from whet.ilr.tasks.protocol import Task
from whet.ilr.tasks.sql import Sql
from whet.store import write_atomic

ALPHAS = (0.05, 0.15, 0.3, 0.5, 1.0)
#: Cell -> data set, columns of demonstrations and proposals.
CELLS = {
    "spider_rebuilt": ("spider_rebuilt", "llm_graphix_t5", "llm_dail_gpt4"),
    "gsm8k, fine-tuned": ("gsm8k", "llm_6b_finetuning", "llm_175b_finetuning"),
    "gsm8k, with verifier": ("gsm8k", "llm_6b_verification", "llm_175b_verification"),
}
#: Feedback -> mode and ties of the rule.
FEEDBACK = {
    "oracle": ("ilr", "draw"),
    "oracle, no limit": ("oracle", "draw"),
    "noisy 0.9": ("ilr", "draw"),
    "noisy 0.75": ("ilr", "draw"),
    "noisy 0.75, ties kept": ("ilr", "keep"),
    "noisy 0.75, filter": ("filter", "draw"),
    "noisy 0.6": ("ilr", "draw"),
    "learned": ("ilr", "draw"),
    "naive": ("naive", "draw"),
}


@dataclass(frozen=True)
class Cell:
    """Demonstrations and proposals of one cell, and what is right of them."""

    table: pa.Table
    old: list[str]
    new: list[str]
    agree: np.ndarray
    old_right: np.ndarray
    new_right: np.ndarray


class Known:
    """A task whose scores are known already, so that nothing is executed twice."""

    def __init__(self, cell: Cell) -> None:
        self.right = {id(cell.old): cell.old_right, id(cell.new): cell.new_right}

    def score(self, table: pa.Table, completions: list[str]) -> np.ndarray:
        """Return the scores of the cell's own completions."""
        return self.right[id(completions)].astype(np.float64)


def load(data: Path, name: str, workers: int) -> Cell:
    """Load a cell; rows that the task cannot score are left out."""
    folder, first, second = CELLS[name]
    task: Task = Sql(workers=workers) if folder == "spider_rebuilt" else Gsm8k()
    table = task.load(data / folder, "test")
    scores = [task.score(table, table[c].to_pylist()) for c in (first, second)]
    kept = np.flatnonzero(~np.isnan(scores[0]) & ~np.isnan(scores[1]))
    table = table.take(pa.array(kept))
    old, new = table[first].to_pylist(), table[second].to_pylist()
    agree = task.agree(table, old, new)
    return Cell(table, old, new, agree, *(score[kept] > 0.5 for score in scores))


def differences(cell: Cell) -> sparse.csr_matrix:
    """Return what the learned judge reads: counts of the proposal minus those of the other."""
    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**16, norm=None)
    difference = words.transform(cell.new) - words.transform(cell.old)
    return normalize(difference)


def learned(cell: Cell, features: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Return the cross-fitted P(the proposal is the better one) of each row."""
    telling = ~cell.agree & (cell.old_right != cell.new_right)
    scores = np.full(len(cell.old), 0.5)
    for train, judged in halves(cell.table["prompt"].to_pylist(), folds=5, seed=seed):
        rows = train[telling[train]]
        # Each comparison in both directions, so that no constant is learned.
        pairs = sparse.vstack([features[rows], -features[rows]])
        better = np.concatenate([cell.new_right[rows], cell.old_right[rows]])
        model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(pairs, better)
        scores[judged] = model.predict_proba(features[judged])[:, 1]
    return scores


def feedback(cell: Cell, kind: str, features: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Return s of each row."""
    task = Known(cell)
    if kind == "naive":
        return np.full(len(cell.old), np.nan)
    if kind == "learned":
        return learned(cell, features, seed)
    if kind.startswith("noisy"):
        judge = NoisyOracle(task, float(kind.split(",")[0].split()[1]), seed)
        return judge.score(cell.table, cell.old, cell.new).values
    if kind == "oracle, no limit":
        return cell.new_right.astype(np.float64)
    return Oracle(task).score(cell.table, cell.old, cell.new).values


def bootstrap(after: np.ndarray, kept: np.ndarray, before: np.ndarray, draws: int) -> list[float]:
    """Return accuracy after, gain, and the ends of the intervals of both.

    Parameters
    ----------
    after, kept : bool arrays of shape (seeds, n)
        Whether a row's demonstration is right afterwards, and whether the row is left.
    before : bool array of shape (n,)
    draws : int
    """
    rng = np.random.default_rng(0)
    seeds, n = after.shape

    def both(rows: np.ndarray, runs: np.ndarray) -> tuple[float, float]:
        part = kept[np.ix_(runs, rows)]
        right = (after[np.ix_(runs, rows)] & part).sum(axis=1) / np.maximum(part.sum(axis=1), 1)
        return float(right.mean()), float(right.mean() - before[rows].mean())

    drawn = np.array(
        [both(rng.integers(n, size=n), rng.integers(seeds, size=seeds)) for _ in range(draws)]
    )
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    value = both(np.arange(n), np.arange(seeds))
    return [x for k in range(2) for x in (value[k], low[k], high[k])]


def share(flags: np.ndarray, draws: int) -> str:
    """Return a share in percent with its bootstrap interval."""
    one = flags[None]
    value, low, high, *_ = bootstrap(one, np.ones_like(one), flags, draws)
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def about(cell: Cell, draws: int) -> list[str]:
    """Return what the cell is like."""
    differ, old, new = ~cell.agree, cell.old_right, cell.new_right
    lines = [
        f"{len(old):,} rows. Right: demonstrations {share(old, draws)} %, proposals "
        f"{share(new, draws)} %. The two disagree on {int(differ.sum()):,} rows, and there",
        f"{int((differ & new & ~old).sum()):,} proposals and "
        f"{int((differ & old & ~new).sum()):,} demonstrations alone are right, "
        f"{int((differ & old & new).sum()):,} times both, "
        f"{int((differ & ~old & ~new).sum()):,} times neither.",
    ]
    return [" ".join(lines), ""]


def results(cell: Cell, seeds: int, draws: int) -> list[str]:
    """Return the table of a cell."""
    head = ["feedback", "judge right, %", *(f"alpha = {alpha:g}" for alpha in ALPHAS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    telling = ~cell.agree & (cell.old_right != cell.new_right)
    features = differences(cell)
    for kind, (mode, ties) in FEEDBACK.items():
        judged = [feedback(cell, kind, features, seed) for seed in range(seeds)]
        row = [kind, ""]
        if kind.startswith(("noisy", "learned")) and "," not in kind:
            verdicts = [(s > 0.5)[telling] == cell.new_right[telling] for s in judged]
            row[1] = f"{100 * np.mean(verdicts):.1f}"
        for alpha in ALPHAS:
            after, kept = [], []
            for seed, s in enumerate(judged):
                found = decide(cell.agree, s, mode=mode, alpha=alpha, ties=ties, seed=seed)
                after.append(np.where(found.accepted, cell.new_right, cell.old_right))
                kept.append(~found.accepted if mode == "filter" else np.ones(len(s), dtype=bool))
            value = bootstrap(np.array(after), np.array(kept), cell.old_right, draws)
            accuracy, low, high, gain, least, most = (round(100 * x, 6) + 0.0 for x in value)
            row.append(
                f"{accuracy:.1f} [{low:.1f}, {high:.1f}]; {gain:+.1f} [{least:+.1f}, {most:+.1f}]"
            )
        lines.append("| " + " | ".join(row) + " |")
    return lines


def main() -> int:
    """Run all cells."""
    parser = argparse.ArgumentParser(description="The replacement rule of ILR on real outputs.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--workers", type=int, default=1, help="processes that run SQL")
    args = parser.parse_args()
    began = time.perf_counter()
    parts: list[str] = []
    with threadpool_limits(1):
        for name in CELLS:
            cell = load(args.data, name, args.workers)
            parts += [f"## {name}", "", *about(cell, args.draws)]
            parts += [*results(cell, args.seeds, args.draws), ""]
            sys.stderr.write(f"{name} done, {time.perf_counter() - began:.0f} s\n")
    command = "python benchmarks/ilr_real.py " + shlex.join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    text = (
        f"# The replacement rule of ILR on outputs of real models\n\n`{command}`\n\n{machine}; "
        f"{time.perf_counter() - began:.0f} s.\n\nEach cell: accuracy after one round in percent; "
        "gain over the demonstrations in points; 95 % intervals over rows and seeds. *Judge "
        "right*: of the disagreeing rows where one of the two is right, the share on which s is on "
        "its side. What the rows are stands at the head of benchmarks/ilr_real.py. Spider is "
        "Spider (rebuilt databases).\n\n" + "\n".join(parts).rstrip() + "\n"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, lambda file: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
