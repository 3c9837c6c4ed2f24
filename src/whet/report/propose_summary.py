"""The summary of ``whet propose``: every number of its report, from the folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.ilr.rows import text_of
from whet.posttrain.settings import TrainSettings
from whet.report.commands import (
    changed_flags,
    flag_words,
    generation_flags,
    into_another,
    operand,
    task_flags,
)
from whet.report.proposals import beside
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.store import read_json

RESULT = "proposals.parquet"
#: Proposals that are shown beside their demonstration.
LISTED = 50
#: Share of completions that were broken off, above which it is worth a warning.
MANY_BROKEN = 0.05
#: What a proposal is, each in one of these.
KINDS = ("different", "same", "empty", "none")
#: Parts of the rows, sorted by length, at whose ends lengths are told.
QUANTILES = {"least": 0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1}

Json = dict[str, Any]
Kinds = NDArray[np.str_]


def is_propose(manifest: Json) -> bool:
    """Return whether run.json is of ``whet propose``.

    Examples
    --------
    >>> is_propose({"arms": {}, "settings": {}})
    False
    """
    return {"generate", "unanswered", "same", "empty", "unfinished"} <= set(manifest)


def summarise_propose(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of proposals for demonstrations.

    Parameters
    ----------
    folder : Path
        A folder of ``whet propose``, as the caller names it: so do the commands.
    manifest : dict, optional
        The content of run.json.

    Returns
    -------
    dict
        What summary.json holds; docs/report.md describes it. The same folder, named in the same
        way, gives the same summary.

    Raises
    ------
    WhetError
        If the folder is not a finished run of a format that is known, or is damaged.

    Examples
    --------
    >>> summarise_propose(Path("no/proposals"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/proposals/run.json does not exist: name a folder that whet wrote
    """
    if manifest is None:
        manifest = read_json(folder / "run.json")
    check_format(folder / "run.json", manifest)
    with damage_said(folder):
        return _summary(folder, manifest)


def _summary(folder: Path, manifest: Json) -> Json:
    table = pq.read_table(folder / RESULT)
    kinds = np.array(
        [
            _kind(old, new)
            for old, new in zip(
                table["completion"].to_pylist(), table["proposal"].to_pylist(), strict=True
            )
        ]
    )
    total = _counted(kinds)
    proposer = _proposer(folder, manifest)
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "propose",
        "title": folder.resolve().name,
        "answer": _answer(manifest, total),
        "proposer": proposer,
        "given": manifest.get("given"),
        "rows": total | {"unfinished": manifest["unfinished"]},
        "folds": _folds(table, kinds),
        "failures": _failures(folder),
        "lengths": _lengths(table, kinds),
        "examples": _examples(table, kinds, manifest["generate"]["seed"]),
        "cost": stage_cost(folder)
        | {key: manifest[key] for key in ("steps", "new_tokens") if key in manifest},
        "next": next_step(folder, manifest.get("given")),
        "reproduce": _reproduce(folder, manifest, proposer),
    }


# --- what was proposed ----------------------------------------------------------------------------


def _kind(old: Any, new: Any) -> str:  # noqa: ANN401 - text or messages
    if new is None:
        return "none"
    if old == new:
        return "same"
    return "different" if text_of(new) else "empty"


def _counted(kinds: Kinds) -> Json:
    return {"rows": len(kinds)} | {kind: int((kinds == kind).sum()) for kind in KINDS}


def _folds(table: pa.Table, kinds: Kinds) -> list[Json]:
    """Count proposals by the fold of their row; a server has none."""
    if "fold" not in table.column_names:
        return []
    folds = table["fold"].to_numpy()
    return [{"fold": k, **_counted(kinds[folds == k])} for k in np.unique(folds).tolist()]


def _failures(folder: Path) -> list[Json]:
    """Return why a server gave no proposal, the most frequent cause first."""
    path = folder / "answers" / "generation.json"
    found = read_json(path).get("failures", {}) if path.is_file() else {}
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [{"cause": cause, "rows": rows} for cause, rows in ordered]


def _lengths(table: pa.Table, kinds: Kinds) -> list[Json]:
    """Return lengths in characters of demonstrations and of proposals, where there is one."""
    there = pa.array(kinds != "none")
    found = []
    for of, column in (("demonstrations", "completion"), ("proposals", "proposal")):
        said = table[column].filter(there).to_pylist()
        if said:
            lengths = [len(text_of(text)) for text in said]
            ends = np.quantile(lengths, list(QUANTILES.values()), method="lower").tolist()
            found.append({"of": of, "n": len(said), **dict(zip(QUANTILES, ends, strict=True))})
    return found


def _examples(table: pa.Table, kinds: Kinds, seed: int) -> Json:
    """Return proposals that differ beside their demonstrations, drawn by the seed."""
    differ = np.flatnonzero(kinds == "different")
    drawn = np.sort(np.random.default_rng(seed).permutation(differ)[:LISTED])
    shown = table.select(["row", "prompt", "completion", "proposal"]).take(pa.array(drawn))
    return {"of": len(differ), "rows": [beside(texts["row"], texts) for texts in shown.to_pylist()]}


def _proposer(folder: Path, manifest: Json) -> Json:
    """Return who proposed: models that were trained, or one behind a server."""
    if "route" in manifest:
        route = manifest["route"]
        return {"model": route.get("model"), "served": route.get("base_url"), "folds": None}
    trained = _stages(folder, "models/*/training.json")  # all from one model
    model = read_json(trained[0])["model"] if trained else None
    return {"model": model, "served": None, "folds": manifest["folds"]}


# --- the answer -----------------------------------------------------------------------------------


def _answer(manifest: Json, total: Json) -> Json:
    rows, different = total["rows"], total["different"]
    there = rows - total["none"]
    headline = f"{different:,} of {there:,} proposals differ from their demonstration."
    if not different:
        headline = "No proposal differs from its demonstration: there is nothing to judge."
    return {
        "status": "proposed" if different else "nothing",
        "headline": headline,
        "verdict": f"{headline} {there:,} of {rows:,} rows have a proposal.",
        "warnings": _warnings(manifest, total),
        "notes": [
            "Whether a proposal that differs is better is for a judge to say.",
            "Different here means different in text. With a task, two texts with the same answer "
            "agree, and are not judged.",
        ],
    }


def _warnings(manifest: Json, total: Json) -> list[str]:
    rows, found = total["rows"], []
    if total["none"]:
        found.append(
            f"{total['none']:,} of {rows:,} rows have no proposal and will stay as they are"
        )
    elif manifest["unfinished"] > MANY_BROKEN * rows:
        found.append(
            f"{manifest['unfinished']:,} of {rows:,} proposals were broken off at "
            f"{manifest['generate']['max_new_tokens']:,} tokens: raise --max-new-tokens, or train "
            "longer"
        )
    if total["empty"]:
        found.append(f"{total['empty']:,} of {rows - total['none']:,} proposals are empty")
    if manifest["unanswered"]:
        learned = "" if "route" in manifest else " and were not learned from"
        found.append(
            f"{manifest['unanswered']:,} of {rows:,} demonstrations lack the marker "
            f"{manifest['marker']!r}{learned}"
        )
    return found


# --- what to do next, what it cost, and how to do it again ----------------------------------------


def next_step(folder: Path, given: Json | None) -> str:
    """Return the command that has proposals judged.

    Parameters
    ----------
    folder : Path
        Of the proposals, as the caller names it.
    given : dict or None
        Of :func:`whet.report.commands.as_given`; None where that was not recorded.

    Examples
    --------
    >>> next_step(Path("p"), None)
    'whet judge p/proposals.parquet --task TASK --judge JUDGE --out p/judged.parquet'
    """
    task = ["--task", "TASK"] if given is None else task_flags(given)
    words = ["whet", "judge", operand(folder / RESULT), *task, "--judge", "JUDGE"]
    return shlex.join([*words, *flag_words("--out", str(folder / "judged.parquet"))])


def _stages(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "stages").glob(pattern))


def stage_cost(folder: Path) -> Json:
    """Return the seconds of trainings and of completions that a folder's stages recorded.

    Parameters
    ----------
    folder : Path
        Of ``whet propose`` or ``whet evaluate``.

    Returns
    -------
    dict
        ``seconds``: ``training`` and ``completions``, those that are recorded.
    """
    files = {
        "training": _stages(folder, "models/*/training.json"),
        "completions": [
            *_stages(folder, "completions/*/generation.json"),
            *folder.glob("answers/generation.json"),
        ],
    }
    return {
        "seconds": {
            what: round(sum(read_json(path)["seconds"] for path in paths), 3)
            for what, paths in files.items()
            if paths
        }
    }


def _reproduce(folder: Path, manifest: Json, proposer: Json) -> Json:
    said, given = manifest["generate"], manifest.get("given")
    words = ["whet", "propose", "DEMONSTRATIONS.jsonl" if given is None else operand(given["rows"])]
    words += [] if given is None else task_flags(given)
    words += flag_words("--model", proposer["model"] or "MODEL")
    if proposer["served"] is not None:
        words += flag_words("--base-url", proposer["served"])
        words += changed_flags({"seed": said["seed"]}, {"seed": 0})
    else:
        words += [] if manifest["folds"] == 2 else flag_words("--folds", str(manifest["folds"]))
        words += changed_flags(manifest["train"], asdict(TrainSettings()))
    words += generation_flags(said)
    settings = {key: manifest[key] for key in ("train", "generate", "folds") if key in manifest}
    sums = {"rows": manifest["data_sha256"]}
    if proposer["served"] is None:
        sums["model to begin with"] = read_json(folder / "settings.json")["weights"]
    return {
        "command": into_another(words, folder),
        "settings": settings,
        "sha256": sums,
        "versions": {"whet": manifest["whet_version"], **manifest.get("versions", {})},
    }
