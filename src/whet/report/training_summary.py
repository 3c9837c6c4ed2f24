"""The summary of one training of a language model: every number of its report, from its folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.posttrain.lint import Lint
from whet.posttrain.models import MANIFEST
from whet.posttrain.settings import DpoSettings, OnlineSettings, TrainSettings
from whet.report.commands import changed_flags, flag_words, into_another
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.store import read_json

#: Parts of the steps whose means are listed.
TENTHS = 10
#: Kind of training -> what is logged and told, the one that the answer is about first: key of a
#: record, heading.
MEASURES = {
    "sft": {"loss": "loss"},
    "dpo": {
        "loss": "loss",
        "rewards/margins": "margin",
        "rewards/accuracies": "chosen preferred, share of pairs",
    },
    "online": {
        "reward": "reward",
        "kl": "divergence from the start",
        "completions/mean_length": "tokens of a completion",
    },
}
#: Kind of training -> its settings as they are unless told otherwise.
SETTINGS: dict[str, TrainSettings] = {
    "sft": TrainSettings(),
    "dpo": DpoSettings(),
    "online": OnlineSettings(),
}
#: Verb -> what its file holds; rewards have no verb of their own.
FILES = {"sft": "DEMONSTRATIONS.jsonl", "dpo": "PREFERENCES.jsonl"}
#: Fields of :class:`whet.posttrain.lint.Lint`, and what they count.
FAULTS = {
    "truncated": "longer than {max_length:,} tokens: cut, the end is not learned",
    "untrained": "of these, the prompt alone fills the room: left out",
    "endless": "no end mark among the learned tokens",
    "empty": "empty completion",
    "merged": "last tokens of the prompt merge with the completion's first",
    "marks": "holds what the tokenizer takes for one of its special tokens",
    "unanswered": "no answer marker {marker!r}",
}

Json = dict[str, Any]


def is_training(folder: Path) -> bool:
    """Return whether a folder holds a finished training of a language model.

    Examples
    --------
    >>> is_training(Path("no/model"))
    False
    """
    return (folder / MANIFEST).is_file()


def summarise_training(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of a training: SFT, DPO, or on rewards.

    Parameters
    ----------
    folder : Path
        Of the trained model.
    manifest : dict, optional
        The content of training.json.

    Returns
    -------
    dict
        What summary.json holds; docs/report.md describes it. The same folder gives the same
        summary.

    Raises
    ------
    WhetError
        If the folder holds no finished training of a format that is known, or is damaged.

    Examples
    --------
    >>> summarise_training(Path("no/model"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/model/training.json does not exist: name a folder that whet wrote
    """
    if manifest is None:
        manifest = read_json(folder / MANIFEST)
    check_format(folder / MANIFEST, manifest)
    with damage_said(folder):
        return _summary(folder, manifest)


def _summary(folder: Path, manifest: Json) -> Json:
    rows, curve = _rows(manifest), _curve(manifest)
    name = folder.resolve().name
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "training",
        "title": name,
        "method": manifest.get("method", manifest["kind"]),
        "model": manifest["model"],
        "answer": _answer(manifest, rows, curve),
        "rows": rows,
        "faults": _faults(manifest["lint"]),
        "curve": curve,
        "cost": {key: manifest[key] for key in ("seconds", "steps", "device", "processes")},
        "next": f"whet evaluate {shlex.join([manifest['model'], name])} --task TASK --data DATA "
        f"--out {shlex.quote(name + '-evaluated')}",
        "reproduce": {
            "command": _command(folder, manifest),
            "settings": _settings(manifest),
            "sha256": {"rows": manifest["data_sha256"], "model to begin with": manifest["weights"]},
            "versions": {"whet": manifest["whet_version"], **manifest["versions"]},
        },
    }


def _rows(manifest: Json) -> Json:
    """Count the rows that were given, that can be learned from, and that a step came to."""
    lint = manifest["lint"]
    learned = manifest["rows"] - (0 if lint is None else lint["untrained"])
    per_step = manifest["batch_size"] // manifest.get("generations", 1)
    return {
        "given": manifest["rows"],
        "learned": learned,
        "reached": min(learned, manifest["steps"] * per_step),
        "a_step": per_step,
    }


def _faults(lint: Json | None) -> list[Json] | None:
    """Return how many rows have each fault; None where no row is looked at."""
    if lint is None:
        return None
    return [
        {"fault": fault.format(**lint), "rows": lint[name], "of": lint["n"]}
        for name, fault in FAULTS.items()
        if lint[name] is not None
    ]


# --- the curve ------------------------------------------------------------------------------------


def _curve(manifest: Json) -> Json:
    """Return what was logged, and its means over tenths of the steps."""
    history = manifest["history"]
    measures = {
        key: heading
        for key, heading in MEASURES[manifest["kind"]].items()
        if all(key in record for record in history)
    }
    # A record holds means over the steps since the one before it.
    before = [0, *(record["step"] for record in history)]
    records = [
        {
            "step": record["step"],
            "n": record["step"] - earlier,
            **{key: record[key] for key in measures},
        }
        for record, earlier in zip(history, before, strict=False)
    ]
    last = records[-1]["step"]
    tenths: dict[int, list[Json]] = {}
    for record in records:
        tenths.setdefault(math.ceil(TENTHS * record["step"] / last), []).append(record)
    return {
        "measures": measures,
        "tenths": [_mean(part, list(measures)) for part in tenths.values()],
        "records": records,
    }


def _mean(records: list[Json], measures: list[str]) -> Json:
    """Return the means of some records over their steps."""
    n = sum(record["n"] for record in records)
    return {
        "first": records[0]["step"] - records[0]["n"] + 1,
        "last": records[-1]["step"],
        "n": n,
        **{key: sum(r["n"] * r[key] for r in records) / n for key in measures},
    }


# --- the answer -----------------------------------------------------------------------------------

#: Whether it was trained to a higher reward, how that moved -> what the page says first.
HEADLINES = {
    (False, "down"): "Trained: the training loss fell.",
    (False, "up"): "Trained, but the training loss rose.",
    (False, "level"): "Trained, but the training loss did not change.",
    (False, "unknown"): "Trained, in too few steps to see where the training loss goes.",
    (True, "up"): "Trained: the reward of its completions rose.",
    (True, "down"): "Trained, but the reward of its completions fell.",
    (True, "level"): "Trained, but the reward of its completions did not change.",
    (True, "unknown"): "Trained, in too few steps to see where the reward goes.",
}


def _answer(manifest: Json, rows: Json, curve: Json) -> Json:
    tenths, rewarded = curve["tenths"], manifest["kind"] == "online"
    measure = next(iter(MEASURES[manifest["kind"]]))
    start, end = ({"value": part[measure], "n": part["n"]} for part in (tenths[0], tenths[-1]))
    moved = "unknown"
    if len(tenths) > 1:
        gain = end["value"] - start["value"]
        moved = "up" if gain > 0 else "down" if gain < 0 else "level"
    headline = HEADLINES[rewarded, moved]
    trained = _trained(manifest, rows)
    verdict = f"{headline} {trained}"
    if len(tenths) > 1:
        verdict += (
            f" Mean {measure} {start['value']:.4g} at first ({_steps(start['n'])}), "
            f"{end['value']:.4g} at last ({_steps(end['n'])})."
        )
    good = {"unknown": "unknown", "up" if rewarded else "down": "trained"}
    return {
        "status": good.get(moved, "doubtful"),
        "headline": headline,
        "verdict": verdict,
        "trained": trained,
        "measure": measure,
        "start": start,
        "end": end if len(tenths) > 1 else None,
        "warnings": _warnings(manifest, rows, curve),
        "notes": _notes(rewarded),
    }


def _steps(n: int) -> str:
    return "1 step" if n == 1 else f"{n:,} steps"


def _trained(manifest: Json, rows: Json) -> str:
    """Say what was trained on how much."""
    what = {"sft": "demonstrations", "dpo": "preferences", "online": "prompts"}[manifest["kind"]]
    return (
        f"{rows['learned']:,} of {rows['given']:,} rows of {what}, {_steps(manifest['steps'])} of "
        f"at most {rows['a_step']:,} rows each, {tuned(manifest)}."
    )


def tuned(manifest: Json) -> str:
    """Say which weights a training changed.

    Examples
    --------
    >>> tuned({"tune": "lora", "quantize": None, "lora_rank": 64})
    'adapters of rank 64, merged into the model'
    """
    if manifest["tune"] == "full":
        return "all weights"
    kept = ", frozen weights in 4 bits" if manifest["quantize"] else ""
    return f"adapters of rank {manifest['lora_rank']}{kept}, merged into the model"


def _warnings(manifest: Json, rows: Json, curve: Json) -> list[str]:
    found = [] if manifest["lint"] is None else Lint(**manifest["lint"]).lines()
    if rows["reached"] < rows["learned"]:
        found.append(
            f"the steps came to {rows['reached']:,} of {rows['learned']:,} rows: the others were "
            "never learned from"
        )
    if curve["tenths"][-1].get("rewards/margins") == 0:
        found.append("chosen is not preferred over rejected: the model has not moved; more steps")
    return found


def _notes(rewarded: bool) -> list[str]:
    if rewarded:
        return [
            "That the reward rises is training, not proof: a model can learn what the reward "
            "likes and nothing else. Read completions, and ask a judge that it was not trained on."
        ]
    return [
        "The loss is that of the rows that it learned from: a lower one is no proof of a better "
        "model. No rows were held out; the command below compares models on a test."
    ]


# --- how to do it again ---------------------------------------------------------------------------


def _settings(manifest: Json) -> Json:
    return {key: manifest[key] for key in asdict(SETTINGS[manifest["kind"]])}


def _command(folder: Path, manifest: Json) -> str | None:
    """Return the command line that trains it again; None where no verb does."""
    kind = manifest["kind"]
    if kind not in FILES:
        return None
    marker = manifest["lint"]["marker"]
    words = ["whet", kind, FILES[kind], *flag_words("--model", manifest["model"])]
    words += changed_flags(_settings(manifest), asdict(SETTINGS[kind]))
    words += [] if marker is None else flag_words("--marker", marker)
    return into_another(words, folder)
