"""Run named methods over data sets, annotators, gold budgets and seeds; write JSON and a table.

    python benchmarks/classify.py --data DIR --out benchmarks/results/classify
        [--cells babe_llm:llm_gpt_4_zs,...] [--methods pn,uu,silr] [--theta gold,oracle]
        [--gold 50,100] [--seeds 10] [--rounds 5] [--folds 0] [--encoder tfidf]

A *cell* is one data set with one annotator; all methods of a cell see the same features, gold
rows and seeds. *Gain* is the accuracy of the refined labels minus that of the annotator's, in
points, over the rows that are not gold; a row on which the annotator abstained counts for the
annotator as its most frequent label. Intervals are 95 % t-intervals over the draws of the gold
rows. DIR holds data sets in the layout of the project's tests; nothing of them is written out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from whet import LabelRefiner, WhetError, WhetWarning, __version__
from whet.classify.features import NgramEncoder, make_encoder
from whet.rounds import Round

CELLS = (
    "babe_llm:llm_openchat_zs",
    "babe_llm:llm_mistral_7b_zs",
    "babe_llm:llm_gpt_3_5_zs",
    "babe_llm:llm_gpt_4_zs",
    "xstest_refusal_gpt4judge:llm_gpt4_judge",
    "trec_weak:weak_majority",
)


class Recorder:
    """Stands in for a run folder: hands out features that exist, keeps the labels of each round."""

    def __init__(self, features: Any, learned: dict[str, Any]) -> None:  # noqa: ANN401
        self.features, self.learned, self.rounds = features, learned, []

    def open(self) -> None:
        """Create nothing."""

    def load_features(self) -> Any:  # noqa: ANN401
        """Return the features of the cell's data set."""
        return self.features

    def load_encoder(self) -> dict[str, Any]:
        """Return what the encoder learned."""
        return self.learned

    def load_round(self, number: int) -> Round | None:
        """Return nothing: every run starts afresh."""

    def save_round(self, finished: Round) -> None:
        """Keep the labels."""
        self.rounds.append(finished.labels)


def load_cell(data: Path, cell: str) -> tuple[list[str], np.ndarray, list[int | None]]:
    """Return texts, gold and the annotator's labels (None where it abstained)."""
    name, column = cell.split(":")
    table = pq.read_table(data / name / "train.parquet")
    if column == "weak_majority":
        votes = [json.loads(v) for v in table["weak_labels"].to_pylist()]
        labels = [majority(v) for v in votes]
    else:
        labels = [None if v is None or v < 0 else v for v in table[column].to_pylist()]
    return table["text"].to_pylist(), np.array(table["label"].to_pylist()), labels


def majority(votes: list[int]) -> int | None:
    """Return the most frequent vote, the smallest of several; None if all functions abstain."""
    cast = [v for v in votes if v >= 0]
    return int(np.bincount(cast).argmax()) if cast else None


def run(
    texts: list[str],
    truth: np.ndarray,
    labels: list[int | None],
    features: tuple[Any, dict[str, Any]],
    setting: dict[str, Any],
    encoder: str,
) -> dict[str, Any]:
    """Run one method once and score every round against the truth."""
    gold: list[int | None] = truth.tolist()
    known = np.zeros(len(truth), dtype=bool)
    if setting["theta"] == "gold":
        drawn = np.random.default_rng(setting["seed"]).choice(
            len(truth), setting["gold"], replace=False
        )
        known[drawn] = True
        gold = [g if k else None for g, k in zip(gold, known, strict=True)]
    recorder = Recorder(*features)
    refiner = LabelRefiner(
        setting["method"],
        encoder=encoder,
        theta=setting["theta"],
        rounds=setting["rounds"],
        folds=setting["folds"],
        gold_budget=setting["gold"] or 100,
        guard="safe",
        random_state=setting["seed"],
    )
    scored = ~known
    filled = np.array([-1 if label is None else label for label in labels])
    answered = filled >= 0
    filled[~answered] = np.bincount(filled[answered]).argmax()
    annotator = float((filled == truth)[scored].mean())
    began = time.perf_counter()
    try:
        refiner.fit_refine(texts, labels, gold, run=recorder)  # type: ignore[arg-type]
    except WhetError as refusal:
        return setting | {"annotator": annotator, "refused": str(refusal)}
    classes = refiner.classes_
    found = setting | {
        "annotator": annotator,
        "rounds_accuracy": [
            float((classes[codes] == truth)[scored].mean()) for codes in recorder.rounds
        ],
        "guarded": float((refiner.labels_ == truth)[scored].mean()),
        "kept": refiner.kept_annotator_,
        "halted": refiner.halted_,
        "seconds": round(time.perf_counter() - began, 2),
    }
    if setting["theta"] == "gold":
        found["covered"] = coverage(refiner, labels, truth, classes[recorder.rounds[-1]], scored)
    return found


def coverage(
    refiner: LabelRefiner,
    labels: list[int | None],
    truth: np.ndarray,
    last: np.ndarray,
    scored: np.ndarray,
) -> dict[str, bool]:
    """Say which 95 % intervals hold the true value, found on the rows that are not gold."""
    answered = scored & np.array([label is not None for label in labels])
    given = np.array([-1 if label is None else label for label in labels])
    true_value = {
        "annotator": (given == truth)[answered].mean(),
        "classifier": (last == truth)[answered].mean(),
        "refined": (refiner.labels_ == truth)[scored].mean(),
    }
    return {
        name: bool(refiner.estimate_[name].low <= value <= refiner.estimate_[name].high)
        for name, value in true_value.items()
        if name in refiner.estimate_
    }


def interval(values: list[float]) -> str:
    """Return mean and 95 % t-interval of gains as text, in points."""
    points = 100 * np.array(values)
    if len(points) < 2:
        return f"{points.mean():+.1f}"
    reach = stats.t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / np.sqrt(len(points))
    return f"{points.mean():+.1f} ± {reach:.1f}"


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, one row a cell, method, theta and budget."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in results:
        key = (r["cell"], r["method"], r["theta"], str(r["gold"] or "all"))
        groups.setdefault(key, []).append(r)
    n_rounds = max((len(r.get("rounds_accuracy", [])) for r in results), default=1)
    shown = sorted({1, 2, n_rounds})
    head = ["cell", "annotator", "method", "theta", "gold", "runs"]
    head += [f"gain, round {k}" for k in shown]
    head += ["harm, last round", "gain, guarded", "harm, guarded", "worst, guarded", "refused"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (cell, method, theta, gold), runs in groups.items():
        done = [r for r in runs if "refused" not in r]
        base = float(np.mean([r["annotator"] for r in runs]))
        row = [cell, f"{base:.3f}", method, theta, gold, str(len(runs))]
        for k in shown:
            # A run that halted early keeps the labels of its last round.
            gains = [r["rounds_accuracy"][:k][-1] - r["annotator"] for r in done]
            row.append(interval(gains) if gains else "-")
        last = [r["rounds_accuracy"][-1] - r["annotator"] for r in done]
        # A refused run leaves the annotator's labels as they are: its guarded gain is zero.
        guarded = [r["guarded"] - r["annotator"] for r in done] + [0.0] * (len(runs) - len(done))
        row.append(f"{np.mean([g < -0.01 for g in last]):.0%}" if last else "-")
        row += [interval(guarded), f"{np.mean([g < -0.01 for g in guarded]):.0%}"]
        row += [f"{100 * min(guarded):+.1f}", str(len(runs) - len(done))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def coverage_lines(results: list[dict[str, Any]]) -> str:
    """Return how often the 95 % intervals held the truth, over all runs with gold samples."""
    lines = ["| estimate | 95 % intervals that hold the truth | runs |", "|---|---|---|"]
    for name in ("annotator", "classifier", "refined"):
        hits = [r["covered"][name] for r in results if name in r.get("covered", {})]
        if hits:
            lines.append(f"| {name} | {np.mean(hits):.1%} | {len(hits)} |")
    return "\n".join(lines)


def settings_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return every run of a cell; the oracle sees all gold, so one seed is enough."""
    runs = []
    for method in args.methods.split(","):
        for theta in args.theta.split(","):
            budgets = [int(g) for g in args.gold.split(",")] if theta != "oracle" else [0]
            for gold in budgets:
                for seed in range(args.seeds if theta != "oracle" else 1):
                    runs.append(
                        {
                            "method": method,
                            "theta": theta,
                            "gold": gold,
                            "seed": seed,
                            "rounds": args.rounds,
                            "folds": args.folds,
                        }
                    )
    return runs


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Benchmark refinement of class labels.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--methods", default="pn,uu,silr")
    parser.add_argument("--theta", default="oracle,gold")
    parser.add_argument("--gold", default="50,100")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--encoder", default="tfidf")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore", WhetWarning)
    results: list[dict[str, Any]] = []
    encoded: dict[str, tuple[Any, dict[str, Any]]] = {}
    began = time.perf_counter()
    for cell in args.cells.split(","):
        texts, truth, labels = load_cell(args.data, cell)
        name = cell.split(":")[0]
        if name not in encoded:
            encoder = make_encoder(args.encoder)
            features = encoder.fit(texts).transform(texts)
            learned = encoder.arrays() if isinstance(encoder, NgramEncoder) else {}
            encoded = {name: (features, learned)}
        for setting in settings_of(args):
            found = run(texts, truth, labels, encoded[name], setting, args.encoder)
            results.append({"cell": cell, "rows": len(texts)} | found)
        sys.stderr.write(f"{cell} done, {time.perf_counter() - began:.0f} s\n")
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/classify.py " + " ".join(sys.argv[1:])
    machine = f"{platform.machine()}, Python {platform.python_version()}, whet {__version__}"
    (args.out / "results.json").write_text(
        json.dumps({"command": command, "machine": machine, "runs": results}, indent=1) + "\n"
    )
    text = (
        f"# Refinement of class labels\n\n`{command}`\n\n{machine}; "
        f"{time.perf_counter() - began:.0f} s.\n\n{table(results)}\n\n{coverage_lines(results)}\n"
    )
    (args.out / "table.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
