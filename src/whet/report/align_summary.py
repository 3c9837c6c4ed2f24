"""The summary of a run of ``whet align``: every number of its report, from the run folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet.align.judge import spoken
from whet.report.known import compared, in_points, known_estimate
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.report.words import MOST_CHARACTERS, cut
from whet.store import read_json

#: Measures that the answer may rest on, the most telling first. An arm that is trained on a
#: classifier can learn the phrases that the rules look for, so that a second judge comes first.
MEASURES = {
    "safety_judge": "share of harmful prompts whose answer the second judge calls {target}",
    "safety_rules": "share of harmful prompts that are refused, by phrase rules",
    "win": "probability that the answer beats the reference",
}
HARM = "over_refusal"
#: What the refined reward is held against.
OTHERS = ("vanilla", "initial", "sft")
#: Fewer held-out prompts than this see only large differences.
FEW_PROMPTS = 100
#: Prompts whose completions are listed.
LISTED = 10

Json = dict[str, Any]


def is_align(manifest: Json) -> bool:
    """Return whether run.json is of ``whet align``.

    Examples
    --------
    >>> is_align({"settings": {}, "arms": {}})
    False
    """
    return {"classifiers", "evaluation", "judged", "pairs", "settings"} <= set(manifest)


def summarise_align(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of an alignment run.

    Parameters
    ----------
    folder : Path
        A run folder of ``whet align``.
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
    >>> summarise_align(Path("no/run"))
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
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "align",
        "title": Path(settings["model"]).name,
        "target": settings["target"],
        "answer": _answer(manifest),
        "arms": _arms(manifest),
        "differences": [d | known_estimate(d) for d in manifest["evaluation"]["differences"]],
        "rows": manifest["rows"],
        "judged": manifest["judged"],
        "classifiers": _classifiers(manifest["classifiers"]),
        "gold": _gold(manifest["classifiers"]),
        "pairs": [
            {"arm": arm, **{key: n for key, n in counts.items() if key != "format_version"}}
            for arm, counts in manifest["pairs"].items()
        ],
        "completions": _completions(folder, manifest),
        "cost": {"seconds": manifest["seconds"]},
        "reproduce": {
            "recipe": _recipe(settings),
            "sha256": settings["sha256"],
            "seed": settings["seed"],
            "versions": manifest["versions"],
            "platform": manifest["platform"],
        },
    }


def _arms(manifest: Json) -> list[Json]:
    found = []
    for name, measures in manifest["evaluation"]["arms"].items():
        reward, _, trainer = name.partition("-")
        known = {what: known_estimate(estimate) for what, estimate in measures.items()}
        found.append({"arm": name, "reward": reward, "trainer": trainer or None, **known})
    return found


# --- the answer -----------------------------------------------------------------------------------

#: Status -> what the page says first.
HEADLINES = {
    "better": "Yes, in this run: the refined reward is better than the judge's own word.",
    "traded": "Not plainly: with the refined reward the answers are better than with the judge's "
    "own word, but more harmless prompts are refused, too.",
    "mixed": "Not with every trainer: the refined reward is better than the judge's own word.",
    "unsure": "Not clear: the held-out prompts cannot tell the refined reward from the judge's own "
    "word.",
    "same": "No: with the refined reward the held-out prompts score as with the judge's own word, "
    "one by one.",
    "worse": "No: in this run the refined reward is worse than the judge's own word.",
    "unknown": "Not known if the refined reward is better than the judge's own word.",
}


def _answer(manifest: Json) -> Json:
    arms = manifest["evaluation"]["arms"]
    measure = next((name for name in MEASURES if any(name in arm for arm in arms.values())), None)
    gains = _gains(manifest, measure)
    mine = [gain for gain in gains if gain["against"] == "vanilla"]
    status = _status(mine)
    what = None
    if measure is not None:
        what = MEASURES[measure].format(target=manifest["settings"]["target"])
    return {
        "status": status,
        "headline": HEADLINES[status],
        "verdict": " ".join([HEADLINES[status], *map(_said, mine)]),
        "measure": measure,
        "what": what,
        "gains": gains,
        "notes": _notes(manifest, measure, gains),
    }


def _gains(manifest: Json, measure: str | None) -> list[Json]:
    """Return refined minus each other arm of the same trainer, in the measure and in harm."""
    found = {
        (d["first"], d["second"], d["measure"]): d for d in manifest["evaluation"]["differences"]
    }
    gains = []
    for trainer, against in product(manifest["settings"]["trainers"], OTHERS):
        arms = (f"refined-{trainer}", against if against == "sft" else f"{against}-{trainer}")
        gain, harm = found.get((*arms, measure)), found.get((*arms, HARM))
        if gain is not None:
            harm = None if harm is None else known_estimate(harm)
            gains.append(
                {"trainer": trainer, "against": against, "gain": known_estimate(gain), HARM: harm}
            )
    return gains


def _status(gains: list[Json]) -> str:
    """Return the status of all trainers together: better is only what is better with each."""
    kinds = {compared(gain["gain"]) for gain in gains}
    if "better" not in kinds:
        return next((kind for kind in ("worse", "unsure", "same") if kind in kinds), "unknown")
    if len(kinds) > 1:
        return "mixed"
    rises = any(gain[HARM] is not None and (gain[HARM]["low"] or 0) > 0 for gain in gains)
    return "traded" if rises else "better"


def _said(gain: Json) -> str:
    found, arms = gain["gain"], f"refined-{gain['trainer']} minus vanilla-{gain['trainer']}"
    if found["value"] is None:
        return f"{arms}: only {found['n']} held-out prompts."
    return f"{arms}: {in_points(found)}, on {found['n']:,} held-out prompts."


def _notes(manifest: Json, measure: str | None, gains: list[Json]) -> list[str]:
    rows, sampling = manifest["rows"], manifest["settings"]["evaluation"]["generate"]
    notes = _missing(manifest, measure)
    for gain in gains:
        if gain["against"] == "sft" and (found := compared(gain["gain"])) != "better":
            than = "worse" if found == "worse" else "not shown to be better"
            notes.append(f"refined-{gain['trainer']} is {than} than sft, which had no reward.")
    if measure == "safety_rules":
        notes.append(
            "A model can learn to say the phrases that the rules look for, and go on. A second "
            "judge (evaluation.judge in the recipe) tells more; without one, read the answers."
        )
    if not rows["evaluation_harmless"]:
        notes.append("No held-out prompt is harmless: nobody knows which of those are refused.")
    if rows["evaluation_seen_in_training"]:
        notes.append(
            f"{rows['evaluation_seen_in_training']:,} of the held-out prompts were trained on: "
            "what is found on them says little about new ones."
        )
    known = [gain[key] for gain in gains for key in ("gain", HARM) if gain[key] is not None]
    if known and (few := min(found["n"] for found in known)) < FEW_PROMPTS:
        notes.append(f"Only {few} held-out prompts: they can show large differences alone.")
    if any(found["low"] is not None and found["low"] == found["high"] for found in known):
        notes.append("An interval without width says nothing of prompts that are not there.")
    if (sampling["temperature"], sampling["top_p"]) != (1.0, 1.0):
        notes.append(
            "Answers were not sampled at temperature 1 with top_p 1: what is called KL here is a "
            "mean log-ratio, and no divergence."
        )
    notes.append(
        "Intervals are over held-out prompts, for one training each: with another seed scores "
        "differ by more."
    )
    if len(manifest["evaluation"]["arms"]) > 4:
        notes.append("Of many arms some look better by chance.")
    return notes


def _missing(manifest: Json, measure: str | None) -> list[str]:
    """Return why the answer is not known."""
    rewards = manifest["settings"]["rewards"]
    if measure is None:
        return [
            "No held-out prompt is harmful and none has a reference: nothing tells which answers "
            "are better."
        ]
    words = {"refined": "the refined classifier", "vanilla": "the judge's own word"}
    return [f"No arm was trained on {said}." for name, said in words.items() if name not in rewards]


# --- classifiers and gold -------------------------------------------------------------------------


def _classifiers(records: Json) -> list[Json]:
    """Return accuracies on the gold rows, of the initial classifier on what it learned from."""
    refined = records.get("refined", {"estimate": {}})["estimate"]
    found = {
        "judge": refined.get("annotator"),
        "initial": records.get("initial", {}).get("on_gold"),
        "refined": refined.get("new texts"),
    }
    return [{"name": name, **known_estimate(e)} for name, e in found.items() if e is not None]


def _gold(records: Json) -> Json | None:
    if "refined" not in records:
        return None
    record = records["refined"]
    kept = {key: value for key, value in record["gold"].items() if key != "rows"}
    return kept | {"verdict": record["verdict"]}


# --- completions ----------------------------------------------------------------------------------


def _completions(folder: Path, manifest: Json) -> Json:
    """Return answers of all arms to prompts that are drawn by the run's seed, not chosen."""
    file = folder / "evaluation.parquet"
    first = pc.field("sample") == 0
    flags = pq.read_table(
        file, columns=["row", "harmful"], filters=first & (pc.field("arm") == "sft")
    )
    order = np.random.default_rng(manifest["settings"]["seed"]).permutation(flags.num_rows)
    kinds: dict[bool | None, list[int]] = {True: [], False: [], None: []}
    for flag in flags.take(order).to_pylist():
        kinds[flag["harmful"]].append(flag["row"])
    turns = [row for turn in zip_longest(*kinds.values()) for row in turn if row is not None]
    drawn = set(turns[:LISTED])
    shown = [row for rows in kinds.values() for row in sorted(drawn & set(rows))]
    found: dict[int, list[Json]] = {row: [] for row in shown}
    for answer in pq.read_table(file, filters=first & pc.field("row").isin(shown)).to_pylist():
        found[answer["row"]].append(answer)
    return {"of": flags.num_rows, "rows": [_listed(answers) for answers in found.values()]}


def _listed(answers: list[Json]) -> Json:
    prompt = spoken(answers[0]["prompt"])
    return {
        "row": answers[0]["row"],
        "harmful": answers[0]["harmful"],
        "prompt": prompt[:MOST_CHARACTERS],
        "characters": len(prompt),
        "answers": [
            {
                "arm": answer["arm"],
                **cut(spoken(answer["completion"])),
                "finished": answer["finished"],
                "refuses": answer["refuses"],
                "judge_label": answer.get("judge_label"),
                "win": answer.get("win"),
            }
            for answer in answers
        ],
    }


# --- how to do it again ---------------------------------------------------------------------------


def _recipe(settings: Json) -> Json:
    """Return the settings as a recipe that gives them again, but for budgets and addresses."""
    aside = ("sha256", "whet_version", "tasks", "routes")
    kept = {key: value for key, value in settings.items() if key not in aside}
    for section in ("trainers", "evaluation"):  # a trainer that is null would be run
        kept[section] = {key: value for key, value in kept[section].items() if value is not None}
    return {key: value for key, value in kept.items() if value is not None}
