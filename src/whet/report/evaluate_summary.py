"""The summary of ``whet evaluate``: every number of its report, from the folder.

The page shows what stands here and computes nothing, so the two cannot disagree.
"""

from __future__ import annotations

import shlex
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet.ilr.judges import LlmSettings
from whet.ilr.rows import text_of
from whet.report.commands import (
    changed_flags,
    flag_words,
    generation_flags,
    into_another,
    operand,
    task_flags,
)
from whet.report.known import LEAST_ROWS, compared, in_points, known_estimate
from whet.report.propose_summary import MANY_BROKEN, stage_cost
from whet.report.rows import check_format, damage_said
from whet.report.summary import SUMMARY_FORMAT
from whet.report.text import one_line
from whet.report.words import MOST_CHARACTERS, cut
from whet.store import read_json

RESULT = "scores.parquet"
#: Rows whose completions are listed.
LISTED = 30
#: Fewer rows than this see only large differences.
FEW_ROWS = 100
#: Share of pairs of which the judge names another winner in the other order, above which it is
#: worth a warning.
MANY_TURNED = 0.25
#: Kinds of listed rows, in the order of the page.
KINDS = ("differ", "right", "wrong", "unscored")
#: What a language model as judge is told by flags, and is unless told otherwise.
JUDGE = LlmSettings().deciding()
#: Characters of a name in a sentence.
MOST_NAME = 60

Json = dict[str, Any]


def is_evaluate(manifest: Json) -> bool:
    """Return whether run.json is of ``whet evaluate``.

    Examples
    --------
    >>> is_evaluate({"arms": {}, "settings": {}})
    False
    """
    return {"what", "found", "judge", "generate"} <= set(manifest)


def summarise_evaluate(folder: Path, manifest: Json | None = None) -> Json:
    """Compute the summary of models or completions that were scored on the same rows.

    Parameters
    ----------
    folder : Path
        A folder of ``whet evaluate``, as the caller names it: so do the commands.
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
    >>> summarise_evaluate(Path("no/run"))
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
    table = pq.read_table(folder / RESULT)
    completions = Counter(table["what"].to_pylist())
    found = [
        _one(one)
        | {"completions": completions[one["what"]], "sha256": manifest["what"][one["what"]]}
        for one in manifest["found"]
    ]
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "evaluate",
        "title": manifest["task"],
        "answer": _answer(found),
        "rows": manifest["rows"],
        "judge": manifest["judge"],
        "given": manifest.get("given"),
        "found": found,
        "examples": _examples(folder, table, manifest),
        "cost": stage_cost(folder),
        "next": next_step(folder),
        "reproduce": _reproduce(folder, manifest),
    }


def _one(one: Json) -> Json:
    """Return one of those evaluated, without numbers that too few rows are behind."""
    win = one.get("win")
    if win is not None:
        agree = win["consistent"]
        win = win | {
            "rate": known_estimate(win["rate"]),
            "consistent": None if agree is None else known_estimate(agree),
        }
    gain = None if one["gain"] is None else known_estimate(one["gain"])
    return one | {"score": known_estimate(one["score"]), "gain": gain, "win": win}


# --- the answer -----------------------------------------------------------------------------------

#: Status -> what the page says first, of those that are compared with the first.
HEADLINES = {
    "better": "{others} higher than the first on this test.",
    "worse": "{others} lower than the first on this test.",
    "same": "{others} the same as the first, row by row.",
    "unsure": "Not clear: the test cannot tell {whom} from the first.",
    "mixed": "Those compared with the first are not all on one side of it.",
    "unknown": "Too few rows to compare.",
    "alone": "One was evaluated: there is nothing to compare it with.",
}


def _answer(found: list[Json]) -> Json:
    first, *others = found
    status = _status([compared(one["gain"]) for one in others])
    single = len(others) == 1
    headline = HEADLINES[status].format(
        others="The second scores" if single else "All others score",
        whom="the second" if single else "the others",
    )
    said = [_said(one, first) for one in others] or [_scored(first)]
    return {
        "status": status,
        "headline": headline,
        "verdict": " ".join([headline, *said]),
        "warnings": [sentence for one in found for sentence in _warnings(one)],
        "notes": _notes(found),
    }


def _status(kinds: list[str]) -> str:
    if not kinds:
        return "alone"
    return kinds[0] if len(set(kinds)) == 1 else "mixed"


def _name(one: Json) -> str:
    return one_line(one["what"], MOST_NAME)


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n:,} rows"


def _scored(one: Json) -> str:
    score = one["score"]
    if score["value"] is None:
        return f"{_name(one)}: only {_rows(score['n'])}."
    value, low, high = (f"{score[key]:.3f}" for key in ("value", "low", "high"))
    return f"{_name(one)}: {value}, 95 % interval {low} to {high}, on {score['n']:,} rows."


def _said(one: Json, first: Json) -> str:
    gain, names = one["gain"], f"{_name(one)} minus {_name(first)}"
    if gain["value"] is None:
        return f"{names}: only {_rows(gain['n'])}."
    said = f"{names}: {in_points(gain)}, on {gain['n']:,} rows."
    rate = None if one["win"] is None else one["win"]["rate"]
    if rate is not None and rate["value"] is not None:
        value, low, high = (f"{rate[key]:.3f}" for key in ("value", "low", "high"))
        said += f" By the judge it beats the first with probability {value}, {low} to {high}."
    return said


def _warnings(one: Json) -> list[str]:
    name, n, win, found = _name(one), one["completions"], one["win"], []
    if one["unfinished"] > MANY_BROKEN * n:
        found.append(
            f"{one['unfinished']:,} of {n:,} completions of {name} were broken off, which "
            "may cost them their score: raise --max-new-tokens"
        )
    if one["unscored"]:
        found.append(f"{one['unscored']:,} of {n:,} completions of {name} have no score")
    if win is not None and win["unjudged"]:
        found.append(f"{win['unjudged']:,} of {n:,} completions of {name} have no verdict")
    agree = None if win is None else win["consistent"]
    if agree is not None and agree["value"] is not None and 1 - agree["value"] > MANY_TURNED:
        found.append(
            f"the judge names the same winner in both orders in {agree['value']:.1%} of "
            f"{agree['n']:,} pairs of {name}: else its word hangs on which answer it is shown first"
        )
    return found


def _notes(found: list[Json]) -> list[str]:
    notes = [
        "The score is the task's, 0 to 1. Intervals are over rows of the test, for one training "
        "each: with another seed scores differ by more."
    ]
    # Of fewer than LEAST_ROWS there are no numbers, and it was said before.
    if LEAST_ROWS <= (few := min(one["score"]["n"] for one in found)) < FEW_ROWS:
        notes.append(f"Only {few} rows: they can show large differences alone.")
    known = [e for one in found for e in (one["score"], one["gain"]) if e is not None]
    if any(e["value"] is not None and e["low"] == e["high"] for e in known):
        notes.append("An interval without width says nothing of rows that are not there.")
    if any(one["win"] for one in found):
        notes.append(
            "Win rates are what the judge says: their intervals know nothing of its errors."
        )
    if len(found) > 3:
        notes.append("Of many some look better by chance.")
    return notes


# --- examples -------------------------------------------------------------------------------------


def _examples(folder: Path, table: pa.Table, manifest: Json) -> Json:
    """Return completions of all to rows that the run's seed draws, as many of each kind."""
    scores: dict[int, list[float | None]] = {}
    for row, score in zip(table["row"].to_pylist(), table["score"].to_pylist(), strict=True):
        scores.setdefault(row, []).append(score)
    rows = np.random.default_rng(manifest["generate"]["seed"]).permutation([*scores]).tolist()
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for row in rows:
        kinds[_kind(scores[row])].append(row)
    turns = [row for turn in zip_longest(*kinds.values()) for row in turn if row is not None]
    drawn = set(turns[:LISTED])
    prompts = _prompts(folder, drawn)
    shown: dict[int, dict[str, Json]] = {row: {} for row in drawn}
    for said in table.filter(pc.is_in(table["row"], pa.array(list(drawn)))).to_pylist():
        shown[said["row"]].setdefault(said["what"], said)  # of several samples the first
    return {
        "of": {kind: len(found) for kind, found in kinds.items()},
        "rows": [
            {
                "row": row,
                "kind": kind,
                **_asked(prompts.get(row)),
                "answers": [_said_of(said) for said in shown[row].values()],
            }
            for kind in KINDS
            for row in sorted(drawn & set(kinds[kind]))
        ],
    }


def _kind(scores: list[float | None]) -> str:
    known = {score for score in scores if score is not None}
    if len(known) > 1:
        return "differ"
    return "unscored" if not known else "right" if known.pop() > 0.5 else "wrong"


def _prompts(folder: Path, rows: set[int]) -> dict[int, str]:
    """Return the prompts of rows, which are stored where a model was asked."""
    files = sorted((folder / "stages" / "completions").glob("*/completions.parquet"))
    if not files:
        return {}
    drawn = pc.field("row").isin(list(rows))
    asked = pq.read_table(files[0], columns=["row", "prompt"], filters=drawn)  # all are asked alike
    return {each["row"]: text_of(each["prompt"]) for each in asked.to_pylist()}


def _asked(prompt: str | None) -> Json:
    if prompt is None:
        return {"prompt": None, "characters": 0}
    return {"prompt": prompt[:MOST_CHARACTERS], "characters": len(prompt)}


def _said_of(said: Json) -> Json:
    text = "" if said["completion"] is None else text_of(said["completion"])
    return {
        "what": said["what"],
        **cut(text),
        "score": said["score"],
        "win": said.get("win"),
        "failure": said.get("failure"),
    }


# --- what to do next, and how to do it again ------------------------------------------------------


def next_step(folder: Path) -> str:
    """Say what to do after an evaluation.

    Parameters
    ----------
    folder : Path
        As the caller names it.

    Examples
    --------
    >>> next_step(Path("evaluated"))
    'read the completions with score 0 in evaluated/scores.parquet'
    """
    return f"read the completions with score 0 in {shlex.quote(str(folder / RESULT))}"


def _reproduce(folder: Path, manifest: Json) -> Json:
    judge, said, given = manifest["judge"], manifest["generate"], manifest.get("given")
    words = ["whet", "evaluate", *(operand(one["what"]) for one in manifest["found"])]
    if given is None:
        words += [*flag_words("--task", manifest["task"]), "--test", "TEST"]
    else:
        words += [*task_flags(given), *flag_words("--test", given["rows"])]
    words += generation_flags(said)
    words += changed_flags({"seed": said["seed"]}, {"seed": 0})
    if judge is not None:
        words += flag_words("--judge", judge["name"])
        words += changed_flags({k: judge[k] for k in JUDGE if k in judge}, JUDGE)
    return {
        "command": into_another(words, folder),
        "settings": {"generate": said, "judge": judge},
        "sha256": {"rows": manifest["data_sha256"]},
        "versions": {"whet": manifest["whet_version"], **manifest.get("versions", {})},
    }
