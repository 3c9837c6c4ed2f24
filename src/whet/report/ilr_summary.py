"""The summary of a run of ``whet ilr``: every number of its report, from the run folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet import estimates
from whet.ilr.evaluate import score_difference
from whet.ilr.people import limit_said
from whet.report.known import LEAST_ROWS, compared, in_points, too_few
from whet.report.proposals import (
    Judged,
    bin_scores,
    count_proposals,
    list_rejected,
    list_replaced,
    read_judged,
)
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.store import read_json

#: The arm that refinement is held against.
BASELINE = "sft"
#: Judges that read references, which only experiments have.
KNOWING = ("oracle", "noisy")
#: Fewer rows of the test than this see only large differences.
FEW_ROWS = 100

Json = dict[str, Any]


def is_ilr(manifest: Json) -> bool:
    """Return whether run.json is of ``whet ilr``.

    Examples
    --------
    >>> is_ilr({"settings": {}, "classes": []})
    False
    """
    return {"arms", "weak", "evaluator", "settings"} <= set(manifest)


def summarise_ilr(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of a run of iterative label refinement.

    Parameters
    ----------
    folder : Path
        A run folder of ``whet ilr``.
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
        If the folder is not a finished run of a format that is known, or is damaged.

    Examples
    --------
    >>> summarise_ilr(Path("no/run"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/run/run.json does not exist: name a folder that whet wrote
    """
    if manifest is None:
        manifest = read_json(folder / "run.json")
        check_format(folder / "run.json", manifest)
    with damage_said(folder):
        return _summary(folder, manifest)


def _summary(folder: Path, manifest: Json) -> Json:
    settings = manifest["settings"]
    judged = {
        name: [
            read_judged(folder / "arms" / name, record["round"])
            for record in arm["rounds"]
            if "accepted" in record
        ]
        for name, arm in manifest["arms"].items()
    }
    main = refinement_of(manifest)
    shown = judged.get(main or "", [])
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "ilr",
        "title": Path(settings["task"]).name,
        "answer": _answer(folder, manifest, main),
        "arms": [_arm(name, manifest) for name in manifest["arms"]],
        "weak": None if manifest["weak"] is None else _known(manifest["weak"]["score"]),
        "evaluator": manifest["evaluator"],
        "rows": manifest["rows"],
        "judges": _judges(manifest),
        "proposals": _proposals(manifest, judged),
        "histograms": _histograms(manifest, judged),
        "replaced": list_replaced(shown),
        "rejected": list_rejected(shown),
        "pairs": _pairs(manifest),
        "cost": {"seconds": manifest["seconds"]},
        "reproduce": {
            "recipe": _recipe(settings),
            "sha256": settings["sha256"],
            "seed": settings["seed"],
            "versions": manifest["versions"],
            "platform": manifest["platform"],
            "people": any(_asks_people(_judge(arm, settings)) for arm in settings["arms"].values()),
        },
    }


# --- arms -----------------------------------------------------------------------------------------


def _kind(arm: Json) -> str:
    """Return the kind of an arm by its settings."""
    return "refine" if "mode" in arm else "dpo" if "learn" in arm else "sft"


def _judge(arm: Json, settings: Json) -> str | None:
    """Return the name of the judge that an arm asks."""
    if _kind(arm) == "sft" or arm.get("mode") == "naive":
        return None
    return str(arm["judge"] or settings["judge"])


def _asks_people(judge: str | None) -> bool:
    return judge is not None and judge.partition(":")[0] == "people"


def _is_told(arm: Json, settings: Json) -> bool:
    """Whether an arm is told more of the truth than the run's own judge: a ceiling, no contender.

    Where the run's judge knows the truth itself, as in experiments, what asks it contends.
    """
    judge = _judge(arm, settings)
    if judge is None:
        return arm.get("labels") == "gold"
    return judge.partition(":")[0] in KNOWING and judge != settings["judge"]


def refinement_of(manifest: Json) -> str | None:
    """Return the arm that the answer is about: refinement as it is meant, or what comes near."""
    settings = manifest["settings"]
    arms = {name: arm for name, arm in settings["arms"].items() if _kind(arm) == "refine"}
    meant = [
        name
        for name, arm in arms.items()
        if arm["mode"] == "ilr" and not _is_told(arm, settings) and arm["folds"] > 1
    ]
    return next(iter([*(["ilr"] if "ilr" in meant else []), *meant, *arms]), None)


def _arm(name: str, manifest: Json) -> Json:
    found, settings = manifest["arms"][name], manifest["settings"]
    arm = settings["arms"][name]
    last = found["rounds"][-1] if found["rounds"] else {}
    return {
        "arm": name,
        "kind": _kind(arm),
        "mode": arm.get("mode"),
        "judge": _judge(arm, settings),
        "told": _is_told(arm, settings),
        "gain": _known(found["gain"]),
        "halted": found["halted"],
        "rounds": [
            {
                "round": record["round"],
                "score": _known(record["score"]),
                "labels": record.get("label_accuracy"),
                "rows": record.get("rows"),
                "unanswered": record.get("unanswered"),
            }
            for record in found["rounds"]
        ],
        "cost": {key: last.get(key) for key in ("steps", "new_tokens", "unfinished")},
    }


def _known(estimate: Json | None) -> Json | None:
    """Return an estimate that rests on at least one row."""
    return estimate if estimate is not None and estimate["n"] else None


# --- the answer -----------------------------------------------------------------------------------

#: Status -> what the page says first.
HEADLINES = {
    "better": "Yes, in this run: refinement is better than fine-tuning alone.",
    "unsure": "Not clear: the test cannot tell refinement from fine-tuning alone.",
    "same": "No: after refinement the test scores are those of fine-tuning alone, row by row.",
    "worse": "No: in this run refinement is worse than fine-tuning alone.",
    "halted": "No: refinement ended before its first round was done.",
    "unknown": "Not known if refinement is better than fine-tuning alone.",
}


def _answer(folder: Path, manifest: Json, main: str | None) -> Json:
    status = _status(manifest, main)
    best = _best(folder, manifest)
    gain = None if main is None else _known(manifest["arms"][main]["gain"])
    return {
        "status": status,
        "headline": HEADLINES[status],
        "verdict": _verdict(status, main, gain, best),
        "arm": main,
        "gain": gain if status != "halted" else None,
        "best": best,
        "unjudged": _unjudged(manifest),
        "notes": _notes(manifest, main),
    }


def _unjudged(manifest: Json) -> list[str]:
    """Return of which arms more than half of the differing proposals were not judged."""
    settings, found = manifest["settings"], []
    for name, arm in manifest["arms"].items():
        if _judge(settings["arms"][name], settings) is None:
            continue
        rounds = [record for record in arm["rounds"] if "accepted" in record]
        failed, differ = (sum(record[key] for record in rounds) for key in ("failed", "disagreed"))
        if 2 * failed > differ:
            found.append(
                f"{name}: {failed:,} of {differ:,} proposals that differ were not judged, and "
                "changed nothing."
            )
    return found


def _status(manifest: Json, main: str | None) -> str:
    if main is None:
        return "unknown"
    arm = manifest["arms"][main]
    if len(arm["rounds"]) < 2:
        return "halted"
    gain = _known(arm["gain"])
    return "unknown" if gain is None else compared(gain)


def _verdict(status: str, main: str | None, gain: Json | None, best: Json | None) -> str:
    """Return the answer in one or two sentences, for the terminal too."""
    said = HEADLINES[status]
    if gain is not None and status in ("better", "unsure", "worse"):
        said += f" {main} minus {BASELINE}: {in_points(gain)}, on {gain['n']:,} rows of the test."
    if best is not None and best["others"]:
        said += f" The highest score has {best['arm']}"
        ties = ", ".join(best["ties"])
        said += (
            f"; the test cannot tell it from {ties}."
            if ties
            else "; the test tells it from the others."
        )
    return said


def _best(folder: Path, manifest: Json) -> Json | None:
    """Return the arm with the highest score, and how far the others are below it on the same rows.

    Arms that are told more of the truth than the run's judge do not contend.
    """
    settings = manifest["settings"]
    scores = {
        name: _known(arm["rounds"][-1]["score"])
        for name, arm in manifest["arms"].items()
        if arm["rounds"] and not _is_told(settings["arms"][name], settings)
    }
    found = {name: score["value"] for name, score in scores.items() if score is not None}
    if not found:
        return None
    best = max(found, key=lambda name: found[name])
    last = {name: manifest["arms"][name]["rounds"][-1]["round"] for name in found}
    tested = {name: _tested(folder, name, last[name]) for name in found}
    others = {
        name: score_difference(tested[best], tested[name], settings["seed"]).as_dict()
        for name in found
        if name != best
    }
    return {
        "arm": best,
        "score": scores[best],
        "others": [{"arm": name, **ahead} for name, ahead in others.items()],
        "ties": [name for name, ahead in others.items() if not ahead["low"] > 0],
    }


def _tested(folder: Path, arm: str, number: int) -> pa.Table:
    """Return ``row`` and ``score`` of the test of an arm after a round."""
    mine = (pc.field("arm") == arm) & (pc.field("round") == number)
    return pq.read_table(folder / "test.parquet", columns=["row", "score"], filters=mine)


def _notes(manifest: Json, main: str | None) -> list[str]:
    settings, rows = manifest["settings"], manifest["rows"]
    notes = _missing(manifest, main)
    if main is not None and (halted := manifest["arms"][main]["halted"]):
        notes.append(f"{main} ended early: {halted}")
    judge = None if main is None else _judge(settings["arms"][main], settings)
    if judge is not None and judge.partition(":")[0] in KNOWING:
        notes.append(
            f"The judge {judge} reads the references: this is an experiment, and says nothing of "
            "a judge that does not know them."
        )
    notes += [
        f"{name}: {limit_said(settings['alpha'] if arm['alpha'] is None else arm['alpha'])}."
        for name, arm in settings["arms"].items()
        if arm.get("mode") == "ilr" and _asks_people(_judge(arm, settings))
    ]
    if rows["test"]:
        notes.append(
            "The score is the task's, 0 to 1, on the test, of the model after the last round. "
            "Intervals are over rows of the test, for one training each: with another seed scores "
            "differ by more."
        )
    if 0 < rows["test"] < FEW_ROWS:
        notes.append(f"Only {rows['test']} rows of test: they can show large differences alone.")
    for name, arm in manifest["arms"].items():
        if settings["arms"][name].get("again") and (gain := _known(arm["gain"])) is not None:
            notes.append(
                f"{name}, which is {BASELINE} with another seed, differs from it by "
                f"{100 * gain['value']:+.1f} points: another seed alone does as much."
            )
    if len(manifest["arms"]) > 3:
        notes.append("Of many arms some look better by chance.")
    return notes


def _missing(manifest: Json, main: str | None) -> list[str]:
    """Return why the answer is not known."""
    if main is None:
        return ["No arm refines demonstrations."]
    if not manifest["rows"]["test"]:
        return ["There is no test, so that nothing was evaluated."]
    if not manifest["arms"].get(BASELINE, {"rounds": []})["rounds"]:
        return [f"There is no finished arm {BASELINE} to hold refinement against."]
    return []


# --- judges, proposals, pairs ---------------------------------------------------------------------


def _judges(manifest: Json) -> list[Json]:
    """Return the share of the verdicts that are right, of all rounds of an arm."""
    settings, found = manifest["settings"], []
    for name, arm in manifest["arms"].items():
        told = sum(record.get("judge_told") or 0 for record in arm["rounds"])
        right = sum(record.get("judge_right") or 0 for record in arm["rounds"])
        judge = _judge(settings["arms"][name], settings)
        if judge is not None and told:
            share = too_few(told)
            if told >= LEAST_ROWS:
                share = estimates.share(np.arange(told) < right).as_dict()
            pairs = _kind(settings["arms"][name]) == "dpo"
            found.append({"arm": name, "judge": judge, "pairs": pairs, **share})
    return found


def _proposals(manifest: Json, judged: dict[str, list[Judged]]) -> list[Json]:
    return [
        {
            "arm": name,
            "round": record["round"],
            "mode": record["mode"],
            "judge": _judge(manifest["settings"]["arms"][name], manifest["settings"]),
            "alpha": record["alpha"],
            "threshold": record["threshold"],
            "judged": record["judged"],
            "tied": record["tied"],
            **_split(count_proposals(found), found),
        }
        for name, record, found in _refined(manifest, judged)
    ]


def _split(counts: Json, found: Judged) -> Json:
    """Tell rejected proposals that the judge did not prefer from those that the limit left out."""
    capped = int((found.judged & ~found.accepted & (found.score > 0.5)).sum())
    return {**counts, "refused": counts["rejected"] - capped, "capped": capped}


def _histograms(manifest: Json, judged: dict[str, list[Judged]]) -> list[Json]:
    """Return the scores of each round of the arms that ask a judge."""
    arms: dict[str, list[Json]] = {}
    for name, record, found in _refined(manifest, judged):
        if record["threshold"] is not None:
            bins = {"round": record["round"], "threshold": record["threshold"]}
            arms.setdefault(name, []).append({**bins, "bins": bin_scores(found)})
    return [{"arm": name, "rounds": rounds} for name, rounds in arms.items()]


def _refined(manifest: Json, judged: dict[str, list[Judged]]) -> list[tuple[str, Json, Judged]]:
    """Return the rounds of refinement: name of the arm, record and proposals."""
    return [
        (name, record, found)
        for name, arm in manifest["arms"].items()
        for record, found in zip(
            (record for record in arm["rounds"] if "accepted" in record), judged[name], strict=True
        )
    ]


def _pairs(manifest: Json) -> list[Json]:
    keys = ("round", "made", "same", "failed", "tied", "kept")
    return [
        {"arm": name, **{key: record[key] for key in keys}}
        for name, arm in manifest["arms"].items()
        for record in arm["rounds"]
        if "kept" in record
    ]


# --- how to do it again ---------------------------------------------------------------------------


def _recipe(settings: Json) -> Json:
    """Return the settings as a recipe that gives them again."""
    aside = ("sha256", "whet_version")
    kept = {
        key: value
        for key, value in settings.items()
        if key not in aside and (value is not None or key == "test")
    }
    like = {"sft": "sft", "refine": "ilr", "dpo": "dpo"}
    arms = {name: {"like": like[_kind(arm)], **arm} for name, arm in settings["arms"].items()}
    return {**kept, "arms": arms}
