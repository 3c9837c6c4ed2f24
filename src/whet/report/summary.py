"""The summary of a refinement: every number of its report, computed from the run folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet import estimates
from whet.classify.labels import MISSING, Codes
from whet.report.commands import flag_words, into_another
from whet.report.known import LEAST_ROWS, too_few
from whet.report.rows import RefinedRows, read_refined

#: Version of summary.json; a change that readers notice raises it.
SUMMARY_FORMAT = 1
#: Rows listed as the most certain corrections, and as the least certain labels.
LISTED = 50
#: Characters kept of a text, of a reason and of a label.
MOST_TEXT, MOST_REASON, MOST_LABEL = 2_000, 600, 120
#: Classes up to which a confusion is a table; of more the most frequent errors are listed.
MOST_CLASSES = 12
#: Changes from an annotator's label to a refined one, and errors, that are listed.
MOST_FLOWS, MOST_ERRORS = 200, 20
#: Gold rows of a bin of the calibration, at least, and bins at most.
BIN_ROWS, MOST_BINS = 10, 5
#: Fewer gold rows than this see only large differences.
FEW_GOLD = 50
#: Warnings that are listed; gold rows of a class that are found no more and are worth a warning.
MOST_WARNINGS, LOST_ROWS = 12, 2

Json = dict[str, Any]


def summarise(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of a refinement.

    Parameters
    ----------
    folder : Path
        A run folder of ``whet refine``.
    manifest : dict, optional
        The content of run.json where it is not written yet.

    Returns
    -------
    dict
        What summary.json holds; docs/report.md describes it. The same run gives the same summary,
        but for ``cost``.

    Raises
    ------
    WhetError
        If the folder is not a finished refinement, or is damaged.
    """
    return summarise_rows(read_refined(folder, manifest))


def summarise_rows(rows: RefinedRows) -> Json:
    """Compute the summary of rows that are read; see :func:`summarise`."""
    manifest = rows.manifest
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "refine",
        "title": Path(manifest["settings"]["input"]).name,
        "answer": answer(rows),
        "rounds": _rounds(manifest),
        "changes": _changes(rows),
        "confusion": _confusion(rows),
        "corrections": _corrections(rows),
        "least_certain": _least_certain(rows),
        "by_class": _by_class(rows),
        "by_length": _by_length(rows),
        "calibration": _calibration(rows),
        "gold": {"checked": 0} | {k: v for k, v in manifest["gold"].items() if k != "rows"},
        "cost": {
            # The page cannot hold the time that it takes itself.
            "seconds": {k: v for k, v in manifest["seconds"].items() if k != "report"},
            "peak_memory_mib": manifest["peak_memory_mib"],
            "rows": manifest["rows"]["total"],
        },
        "reproduce": {
            "command": command(manifest["settings"], rows.folder),
            "input_sha256": manifest["input"]["sha256"],
            "seed": manifest["settings"]["seed"],
            "versions": manifest["versions"],
            "platform": manifest["platform"],
        },
    }


# --- the answer -----------------------------------------------------------------------------------

#: Status -> what the page says first.
HEADLINES = {
    "better": "Yes: the refined labels are better than the annotator's.",
    "unsure": "Not clear: the refined labels are in use, but the gold rows cannot tell if they are "
    "better.",
    "worse": "No: the refined labels are not better than the annotator's, but the guard let them "
    "pass.",
    "kept": "No gain was shown: the annotator's labels are kept.",
    "unknown": "Not known: no gold row tells if the refined labels are better.",
}
#: Estimates in the order of the page: key of run.json, what it is of.
ESTIMATES = (
    ("gain", "gain of the refined labels over the annotator's"),
    ("classifier_gain", "gain that the classifier would have made"),
    ("annotator, all rows", "accuracy of the annotator's labels, where it gave one"),
    ("annotator", "accuracy of the annotator's labels, where it gave one"),
    ("classifier", "accuracy of the classifier's labels on the same rows, not used"),
    ("refined", "accuracy of the refined labels, all rows"),
    ("filled", "accuracy of the refined labels where the annotator gave none"),
    ("new texts", "accuracy to expect of the model on new texts"),
)
#: Estimates of ``tsp`` that are predicted for all rows and corrected on the gold rows.
_PREDICTED = ("gain", "annotator, all rows", "refined")


def answer(rows: RefinedRows) -> Json:
    """Say whether the refined labels are better, by how much, how sure, from how many gold rows.

    Parameters
    ----------
    rows : RefinedRows
        Of a refinement.
    """
    manifest = rows.manifest
    found, kept = manifest["estimate"], manifest["kept_annotator"]
    # The gain of labels that are kept is exactly zero: what counts is the one they did not get.
    hidden = {"gain"} if kept else {"classifier", "classifier_gain"}
    return {
        "status": _status(manifest),
        "headline": HEADLINES[_status(manifest)],
        "verdict": manifest["verdict"],
        "warnings": _warnings(rows),
        "estimates": [
            {"name": name, "what": what, "basis": _basis(manifest, name), **found[name]}
            for name, what in ESTIMATES
            if name in found and name not in hidden
        ],
        "notes": _notes(manifest),
    }


def _basis(manifest: Json, name: str) -> str:
    """Return what a number rests on, since numbers of different kinds do not add up."""
    found = manifest["estimate"]
    # Of labels that are kept on all rows, the accuracy is the annotator's, which is counted.
    same = manifest["kept_annotator"] and found.get("annotator") == found.get("refined")
    predicted = manifest["settings"]["method"] == "tsp" and name in _PREDICTED and not same
    return "predicted" if predicted else "counted"


def _warnings(rows: RefinedRows) -> list[str]:
    """Return what to look at before the labels are used: the run's warnings, and classes lost."""
    stored = rows.manifest.get("warnings")  # earlier versions kept none
    found = [*(_classes_gone(rows.manifest) if stored is None else stored), *_classes_missed(rows)]
    if len(found) > MOST_WARNINGS:
        more = len(found) - MOST_WARNINGS + 1
        found = [*found[: MOST_WARNINGS - 1], f"{more} more warnings: see the numbers by class"]
    return [warning[:MOST_REASON] for warning in found]


def _classes_gone(manifest: Json) -> list[str]:
    """Name the classes that lost more than three in four of their rows, ten or more before."""
    return [
        f"{_name(label)}: {rows['annotator']:,} labels before, {rows['refined']:,} after"
        for label, rows in zip(manifest["classes"], manifest["rows"]["by_class"], strict=True)
        if rows["annotator"] >= 10 and 4 * rows["refined"] < rows["annotator"]
    ]


def _classes_missed(rows: RefinedRows) -> list[str]:
    """Name the classes of whose gold rows fewer are found than before, the largest loss first."""
    said = rows.pseudo[rows.judged]
    found = []
    for k, label in enumerate(rows.classes):
        gold = rows.gold == k
        before, after = (int((labels[gold] == k).sum()) for labels in (said, rows.honest))
        if before - after >= LOST_ROWS:
            n = f"{int(gold.sum()):,}"
            lost = (
                f"{_name(label)}: found {before:,} of {n} gold rows before, {after:,} of {n} after"
            )
            found.append((before - after, lost))
    return [lost for _, lost in sorted(found, key=lambda pair: -pair[0])]


def _status(manifest: Json) -> str:
    gain = manifest["estimate"].get("gain")
    if gain is None:
        return "unknown"
    if manifest["kept_annotator"]:
        return "kept"
    if gain["low"] > 0:
        return "better"
    return "unsure" if gain["high"] > 0 else "worse"


def _notes(manifest: Json) -> list[str]:
    gold, rows = manifest["gold"]["kept"], manifest["rows"]
    notes = []
    if not gold:
        notes.append(
            "Without gold rows no accuracy is known, neither before nor after. Label about 50 "
            "random rows and run again."
        )
    elif gold < FEW_GOLD:
        notes.append(
            f"Only {gold} gold rows: they can show large differences alone. More random rows make "
            "the intervals narrower."
        )
    if manifest["settings"]["method"] == "tsp" and gold and not manifest["kept_annotator"]:
        notes.append(_sum_note(manifest))
    if gold:
        notes.append(
            "Gold rows are judged by the labels that they had before their gold label was put "
            "back. The numbers hold if they are a random sample of all rows."
        )
    if rows["filled"]:
        notes.append(
            f"The annotator gave no label on {rows['filled']:,} rows without a gold label; they "
            "are filled in any case."
        )
    return notes


def _sum_note(manifest: Json) -> str:
    """Say which numbers add up."""
    if "annotator, all rows" not in manifest["estimate"]:  # of an earlier version
        return "What is predicted and what is counted need not add up."
    if manifest["rows"]["filled"]:
        return (
            "What is counted does not add up with what is predicted; and the refined labels' "
            "accuracy includes the rows on which the annotator gave no label."
        )
    return (
        "What is predicted adds up, but for small differences, since each number is corrected on "
        "the gold rows by itself; what is counted does not add up with it."
    )


# --- rounds ---------------------------------------------------------------------------------------


_THETA = (("value", "theta"), ("low", "theta_low"), ("high", "theta_high"))


def _rounds(manifest: Json) -> Json:
    names = [_name(label) for label in manifest["classes"]]
    labels = [count["annotator"] for count in manifest["rows"]["by_class"]]
    return {
        "annotator": manifest["estimate"].get("annotator"),
        "accuracy": [
            {"round": r["round"], "changed": r["changed"], **r.get("accuracy", {})}
            for r in manifest["rounds"]
        ],
        "theta": [
            {
                "round": record["round"],
                "class": names[k],
                "labels": labels[k] if record["round"] == 1 else None,
                **{
                    # Of few gold rows theta is what its prior says.
                    end: record[key][k][k] if record["theta_n"][k] >= LEAST_ROWS else None
                    for end, key in _THETA
                },
                "n": record["theta_n"][k],
            }
            for record in manifest["rounds"]
            if "theta" in record
            for k in np.argsort([-n for n in labels], kind="stable").tolist()
        ],
        "theta_mode": manifest["settings"]["theta"],
        "halted": manifest["halted"],
    }


# --- what changed ---------------------------------------------------------------------------------


def _changes(rows: RefinedRows) -> Json:
    counts = _table(rows.pseudo, rows.refined, len(rows.classes))
    moved = [(int(counts[i, j]), i, j) for i, j in np.argwhere(counts).tolist() if i != j]
    moved.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return {
        "rows": len(rows.pseudo),
        "changed": rows.manifest["rows"]["changed"],
        "filled": rows.manifest["rows"]["filled"],
        "kept": [
            {"class": _name(label), "rows": int(counts[k, k])}
            for k, label in enumerate(rows.classes)
        ],
        "flows": [
            {"from": _code_name(rows, i), "to": _code_name(rows, j), "rows": n}
            for n, i, j in moved[:MOST_FLOWS]
        ],
        "rows_in_other_flows": sum(n for n, _, _ in moved[MOST_FLOWS:]),
    }


def _confusion(rows: RefinedRows) -> Json:
    """Count gold classes against the labels of the gold rows, before and after."""
    k = len(rows.classes)
    before, after = (
        _table(rows.gold, labels, k) for labels in (rows.pseudo[rows.judged], rows.honest)
    )
    errors: list[Json] = [
        {
            "gold": _code_name(rows, i),
            "said": _code_name(rows, j),
            "before": int(before[i, j]),
            "after": int(after[i, j]),
        }
        for i, j in np.argwhere(before + after).tolist()
        if i != j
    ]
    errors.sort(key=lambda e: -(e["before"] + e["after"]))
    confusion: Json = {
        "n": len(rows.judged),
        "errors": errors[:MOST_ERRORS],
        "other_errors": {
            when: sum(e[when] for e in errors[MOST_ERRORS:]) for when in ("before", "after")
        },
        "classes": None,
    }
    if k <= MOST_CLASSES:
        confusion |= {
            "classes": [_name(label) for label in rows.classes],
            # Rows: gold class; columns: classes, then no label.
            "before": before[:k].tolist(),
            "after": after[:k].tolist(),
        }
    return confusion


def _table(first: Codes, second: Codes, k: int) -> NDArray[np.int64]:
    """Count pairs of codes, shape (k + 1, k + 1); the last row and column are of no label."""
    pairs = np.where(first == MISSING, k, first) * (k + 1) + np.where(second == MISSING, k, second)
    return np.bincount(pairs, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)


def _corrections(rows: RefinedRows) -> Json:
    """List the most certain corrections; where there are none, the labels doubted most."""
    free = ~rows.given & (rows.pseudo != MISSING)
    corrected = np.flatnonzero(free & (rows.refined != rows.pseudo))
    if len(corrected):
        gain = rows.after[corrected] - rows.before[corrected]
        return {"corrected": len(corrected), **_listed(rows, corrected, -gain)}
    doubted = np.flatnonzero(free & (rows.best != rows.pseudo))
    return {"corrected": 0, **_listed(rows, doubted, rows.before[doubted])}


def _least_certain(rows: RefinedRows) -> Json:
    free = np.flatnonzero(~rows.given)
    return _listed(rows, free, rows.lead[free])


def _listed(rows: RefinedRows, candidates: NDArray[np.int64], key: NDArray[np.float64]) -> Json:
    """Describe the candidates with the smallest keys."""
    chosen = candidates[np.argsort(key, kind="stable")[:LISTED]]
    shown = rows.show(chosen)
    return {
        "of": len(candidates),
        "rows": [
            {
                "row": row,
                "text": shown[row][0][:MOST_TEXT],
                "characters": len(shown[row][0]),
                "annotator": _code_name(rows, rows.pseudo[row]),
                "refined": _code_name(rows, rows.refined[row]),
                "classifier": _code_name(rows, rows.best[row]),
                "before": None if np.isnan(rows.before[row]) else float(rows.before[row]),
                "after": float(rows.after[row]),
                "reason": shown[row][1][:MOST_REASON],
            }
            for row in chosen.tolist()
        ],
    }


# --- breakdowns -----------------------------------------------------------------------------------


def _by_class(rows: RefinedRows) -> list[Json]:
    said, changed = rows.pseudo[rows.judged], rows.pseudo != rows.refined
    found = []
    for k, label in enumerate(rows.classes):
        was, now, gold = said == k, rows.honest == k, rows.gold == k
        labelled = rows.pseudo == k
        found.append(
            {
                "class": _name(label),
                "annotator": int(labelled.sum()),
                "refined": int((rows.refined == k).sum()),
                "left": int((labelled & changed).sum()),
                "joined": int(((rows.refined == k) & changed).sum()),
                "gold": int(gold.sum()),
                "right_before": _share(rows, gold[was]),
                "right_after": _share(rows, gold[now]),
                "found_before": _share(rows, was[gold]),
                "found_after": _share(rows, now[gold]),
            }
        )
    return found


def _by_length(rows: RefinedRows) -> list[Json]:
    """Quarters of the rows by the length of their text; fewer where many lengths are equal."""
    edges = np.unique(np.quantile(rows.length, [0.25, 0.5, 0.75], method="lower"))
    quarter = np.searchsorted(edges, rows.length, side="left")
    said, judged = rows.pseudo[rows.judged], quarter[rows.judged]
    found = []
    for number in np.unique(quarter).tolist():
        inside, gold = quarter == number, judged == number
        answered = gold & (said != MISSING)
        found.append(
            {
                "shortest": int(rows.length[inside].min()),
                "longest": int(rows.length[inside].max()),
                "rows": int(inside.sum()),
                "changed": int((rows.pseudo != rows.refined)[inside].sum()),
                "before": _share(rows, (said == rows.gold)[answered]),
                "after": _share(rows, (rows.honest == rows.gold)[gold]),
            }
        )
    return found


def _calibration(rows: RefinedRows) -> Json:
    """Probability of the honest label against how often it is right, in bins of equal size."""
    n = len(rows.judged)
    order = np.argsort(rows.confidence, kind="stable")
    right = rows.honest == rows.gold
    bins = []
    for part in np.array_split(order, min(MOST_BINS, n // BIN_ROWS)) if n >= BIN_ROWS else []:
        mean = float(rows.confidence[part].mean())
        bins.append({"probability": mean, **_share(rows, right[part])})
    off = [b for b in bins if not b["low"] <= b["probability"] <= b["high"]]
    status = "not calibrated" if off else "not contradicted" if bins else "unknown"
    return {"n": n, "bins": bins, "off": len(off), "status": status}


def _share(rows: RefinedRows, right: NDArray[np.bool_]) -> Json:
    """Estimate a share of gold rows; of too few, only their number is known."""
    if len(right) < LEAST_ROWS:
        return too_few(len(right))
    return estimates.share(right, whole=len(rows.judged) == len(rows.pseudo)).as_dict()


# --- how to do it again ---------------------------------------------------------------------------


def command(settings: Json, folder: Path) -> str:
    """Return the command line that makes a run again, quoted for a shell, into a folder beside it.

    Examples
    --------
    >>> command({"input": "my corpus.csv", "text": "text", "gold": None, "seed": 0}, Path("run"))
    "whet refine 'my corpus.csv' --text text --seed 0 --out run-again"
    """
    source = str(settings["input"])
    words = ["whet", "refine", f"./{source}" if source.startswith("-") else source]
    for key, value in settings.items():
        if key in ("input", "input_sha256", "whet_version") or value is None or value is False:
            continue
        flag = "--" + key.replace("_", "-")
        words += [flag] if value is True else flag_words(flag, str(value))
    return into_another(words, folder)


def _code_name(rows: RefinedRows, code: Any) -> str | None:  # noqa: ANN401 - int of Python or numpy
    """Return a class's name, None for no label."""
    return _name(rows.classes[code]) if 0 <= code < len(rows.classes) else None


def _name(label: Any) -> str:  # noqa: ANN401 - a label is a string, a number or a bool
    text = str(label)
    return text if len(text) <= MOST_LABEL else text[: MOST_LABEL - 1] + "…"
