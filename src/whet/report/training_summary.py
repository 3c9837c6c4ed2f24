"""The summary of one training of a language model: every number of its report, from its folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from whet.posttrain.lint import Lint
from whet.posttrain.models import MANIFEST
from whet.posttrain.settings import DpoSettings, OnlineSettings, TrainSettings
from whet.report.commands import beside, changed_flags, flag_words, into_another, operand
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.store import read_json

#: Parts of the steps whose means are listed.
TENTHS = 10
#: Parts of the steps, of which the first and the last are compared: the smallest that have at
#: least so many steps each.
SHARES = {10: "tenth", 5: "fifth", 2: "half"}
LEAST_STEPS = 5
#: Standard errors by which their means must differ.
ERRORS = 2
#: Kind of training -> what is logged and told, the one that the answer is about first: key of a
#: record, heading.
MEASURES = {
    "sft": {"loss": "loss"},
    "dpo": {
        "rewards/margins": "margin",
        "loss": "loss",
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


def summarise_training(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of a training: SFT, DPO, or on rewards.

    Parameters
    ----------
    folder : Path
        Of the trained model, as the caller names it: so do the commands.
    manifest : dict, optional
        The content of training.json.

    Returns
    -------
    dict
        What summary.json holds; docs/report.md describes it. The same folder, named in the same
        way, gives the same summary.

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
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "training",
        "title": folder.resolve().name,
        "method": manifest.get("method", manifest["kind"]),
        "model": manifest["model"],
        "answer": _answer(manifest, rows, curve),
        "rows": rows,
        "faults": _faults(manifest["lint"]),
        "curve": curve,
        "cost": {key: manifest[key] for key in ("seconds", "steps", "device", "processes")},
        "next": next_step(folder, manifest),
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
    return {
        "measures": measures,
        "tenths": _parts(records, TENTHS, list(measures)),
        "records": records,
    }


def _parts(records: list[Json], share: int, measures: Sequence[str]) -> list[Json]:
    """Return the means over equal parts of the steps; a record counts where it ends."""
    last = records[-1]["step"]
    parts: dict[int, list[Json]] = {}
    for record in records:
        parts.setdefault(math.ceil(share * record["step"] / last), []).append(record)
    return [_mean(part, measures) for part in parts.values()]


def _mean(records: list[Json], measures: Sequence[str]) -> Json:
    """Return the means of some records over their steps."""
    n = sum(record["n"] for record in records)
    return {
        "first": records[0]["step"] - records[0]["n"] + 1,
        "last": records[-1]["step"],
        "n": n,
        **{key: sum(r["n"] * r[key] for r in records) / n for key in measures},
    }


# --- the answer -----------------------------------------------------------------------------------

#: Kind of training -> what its answer is about, and where that should go.
MOVED = {
    "sft": ("the training loss", "down"),
    "dpo": ("the margin of chosen over rejected", "up"),
    "online": ("the reward of its completions", "up"),
}
#: How it moved -> what the page says of it.
MOVES = {
    "up": "{} rose",
    "down": "{} fell",
    "level": "{} did not change",
    "unsure": "a change of {} cannot be told from its jumps between steps",
}


def _answer(manifest: Json, rows: Json, curve: Json) -> Json:
    kind = manifest["kind"]
    key = next(iter(MEASURES[kind]))
    measure = MEASURES[kind][key]
    moved = _moved(curve["records"], key)
    status, headline = _headline(kind, moved["how"], rows)
    trained = _trained(manifest, rows)
    verdict = f"{headline} {trained}"
    start, end = moved["start"], moved["end"]
    if end is not None:
        verdict += (
            f" Mean {measure} {start['value']:.4g} at first ({_steps(start['n'])}), "
            f"{end['value']:.4g} at last ({_steps(end['n'])}), difference "
            f"{end['value'] - start['value']:+.3g} with a standard error of "
            f"{moved['standard_error']:.2g}."
        )
    return {
        "status": status,
        "headline": headline,
        "verdict": verdict,
        "trained": trained,
        "measure": measure,
        **{name: moved[name] for name in ("share", "start", "end", "standard_error")},
        "warnings": _warnings(manifest, rows, curve),
        "notes": _notes(manifest),
    }


def _moved(records: list[Json], key: str) -> Json:
    """Say whether a measure rose or fell by more than its jumps between steps explain.

    The standard error takes steps as independent. Their variance comes from the differences of
    neighbours (von Neumann et al., Annals of Mathematical Statistics 1941), to which a trend hardly
    adds.
    """
    ends = _ends(records, key)
    if ends is None:
        whole = _mean(records, [key])
        start = {"value": whole[key], "n": whole["n"]}
        nothing = dict.fromkeys(("share", "end", "standard_error"))
        return {"how": "unknown", "start": start, **nothing}
    share, first, last = ends
    # A record is a mean over n steps: two differ by chance with a variance of 1 / n + 1 / n steps'.
    jumps = [(b[key] - a[key]) ** 2 / (1 / a["n"] + 1 / b["n"]) for a, b in pairwise(records)]
    error = math.sqrt(sum(jumps) / len(jumps) * (1 / first["n"] + 1 / last["n"]))
    gain = last[key] - first[key]
    how = "unsure"
    if gain == 0:
        how = "level"
    elif abs(gain) > ERRORS * error:
        how = "up" if gain > 0 else "down"
    start, end = ({"value": part[key], "n": part["n"]} for part in (first, last))
    return {"how": how, "share": share, "start": start, "end": end, "standard_error": error}


def _ends(records: list[Json], key: str) -> tuple[str, Json, Json] | None:
    """Return which parts are compared, and their means; None where there are too few steps."""
    for share, name in SHARES.items():
        parts = _parts(records, share, [key])
        if len(parts) > 1 and min(parts[0]["n"], parts[-1]["n"]) >= LEAST_STEPS:
            return name, parts[0], parts[-1]
    return None


def _headline(kind: str, how: str, rows: Json) -> tuple[str, str]:
    """Return the status of the answer, and what the page says first."""
    if _mostly_left_out(rows):
        return "doubtful", f"Trained on {rows['learned']:,} of {rows['given']:,} rows."
    what, good = MOVED[kind]
    if how == "unknown":
        return "unknown", f"Trained, in too few steps to tell where {what} goes."
    said = MOVES[how].format(what)
    if how == good:
        return "trained", f"Trained: {said}."
    return "doubtful", f"Trained, but {said}."


def _mostly_left_out(rows: Json) -> bool:
    return bool(2 * rows["learned"] < rows["given"])


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
    if _mostly_left_out(rows):
        found.insert(
            0,
            f"{rows['given'] - rows['learned']:,} of {rows['given']:,} rows were left out: their "
            "prompt alone fills the room; raise --max-length",
        )
    if rows["reached"] < rows["learned"]:
        found.append(
            f"the steps came to {rows['reached']:,} of {rows['learned']:,} rows: the others were "
            "never learned from"
        )
    if curve["tenths"][-1].get("rewards/margins") == 0:
        found.append("chosen is not preferred over rejected: the model has not moved; more steps")
    return found


def _notes(manifest: Json) -> list[str]:
    kind = manifest["kind"]
    if kind == "online":
        return [
            "That the reward rises is training, not proof: a model can learn what the reward "
            "likes and nothing else. Read completions, and ask a judge that it was not trained on."
        ]
    learned = "loss is" if kind == "sft" else "margin and the loss are"
    better = "a lower loss" if kind == "sft" else "a higher margin"
    notes = [
        f"The {learned} that of the rows that it learned from: {better} is no proof of a better "
        "model. No rows were held out; the command below compares models on a test."
    ]
    if kind == "dpo" and manifest["reference"] == "start":
        notes.append(_tied(manifest))
    return notes


def _tied(manifest: Json) -> str:
    """Say what is logged of preferences before the model has moved."""
    loss = "" if manifest["loss"] == "ipo" else ", the loss is ln 2 (0.693)"
    return (
        f"Before the first step the model is its reference: each margin is 0{loss}, and chosen is "
        "preferred in no pair only because all tie. What training moves is the margin."
    )


# --- what to do next, and how to do it again ------------------------------------------------------


def next_step(folder: Path, manifest: Json) -> str:
    """Return the command that compares a trained model with the one that it began with.

    Parameters
    ----------
    folder : Path
        Of the trained model, as the caller names it.
    manifest : dict
        The content of training.json.

    Examples
    --------
    >>> next_step(Path("runs/tuned"), {"model": "models/base"})
    'whet evaluate models/base runs/tuned --task TASK --data DATA --out runs/tuned-evaluated'
    """
    words = ["whet", "evaluate", operand(manifest["model"]), operand(folder)]
    words += ["--task", "TASK", "--data", "DATA"]
    return shlex.join([*words, *flag_words("--out", beside(folder, "-evaluated"))])


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
