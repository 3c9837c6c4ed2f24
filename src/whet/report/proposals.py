"""What became of the proposals of an arm that refines demonstrations, from its run folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from whet.ilr.rows import text_of
from whet.report.words import MOST_CHARACTERS, compare_words

#: Bins of the judge's scores, from 0 to 1.
BINS = 20
#: Proposals listed: replaced ones, and those that the judge rejects most surely.
MOST_REPLACED, MOST_REJECTED = 20, 10
#: Reasons of failures that are listed, and their characters.
MOST_REASONS, MOST_REASON = 5, 200

Json = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The proposals of a round, with n rows.

    Attributes
    ----------
    number : int
        Of the round.
    file : Path
        judged.parquet, which has the texts.
    table : pyarrow.Table
        ``row`` and ``failure`` of it.
    score : float64 array of shape (n,)
        The judge's, 0 to 1; NaN where it gave none.
    agree, accepted : bool arrays of shape (n,)
    before, after : float64 arrays of shape (n,)
        How right demonstration and proposal are by the task, 0 to 1; NaN where that is not known.

    Examples
    --------
    >>> read_judged(Path("no/folder"), 1)
    Traceback (most recent call last):
    ...
    FileNotFoundError: no/folder/01/judged.parquet
    """

    number: int
    file: Path
    table: pa.Table
    score: Floats
    agree: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    before: Floats
    after: Floats

    def texts(self, places: list[int]) -> list[Json]:
        """Return ``prompt``, ``completion`` and ``proposal`` of some rows, by place from 0."""
        table = pq.read_table(self.file, columns=["prompt", "completion", "proposal"])
        found: list[Json] = table.take(pa.array(places, pa.int64())).to_pylist()
        return found

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Rows whose proposal differs and has a score."""
        return ~self.agree & np.isfinite(self.score)


def read_judged(arm: Path, number: int) -> Judged:
    """Read what a round of an arm judged and decided.

    Parameters
    ----------
    arm : Path
        The folder of the arm.
    number : int
        From 1.
    """
    folder = arm / f"{number:02d}"
    file = folder / "judged.parquet"
    table = pq.read_table(file, columns=["row", "agree", "score", "failure", "accepted"])
    before, after = (np.full(table.num_rows, np.nan) for _ in range(2))
    if (folder / "right.parquet").is_file():
        known = pq.read_table(folder / "right.parquet")
        place = {row: k for k, row in enumerate(table["row"].to_pylist())}
        at = [place[row] for row in known["row"].to_pylist()]
        before[at], after[at] = _floats(known["before"]), _floats(known["after"])
    return Judged(
        number,
        file,
        table.select(["row", "failure"]),
        _floats(table["score"]),
        np.array(table["agree"]),
        np.array(table["accepted"]),
        before,
        after,
    )


def count_proposals(found: Judged) -> Json:
    """Count the proposals of a round: each is in one of the first four counts.

    Returns
    -------
    dict
        ``accepted``; of the others those that ``agreed`` with the demonstration, were ``rejected``,
        or had no score (``unscored``). Of the accepted ones ``better``, ``worse`` and ``equal`` by
        the task, or null where it can judge none. ``reasons`` why there is no score, with counts.
    """
    left = ~found.accepted
    known = found.accepted & np.isfinite(found.before) & np.isfinite(found.after)
    gain = (found.after - found.before)[known]
    says = {"better": gain > 0, "worse": gain < 0, "equal": gain == 0}
    reasons = Counter(reason for reason in found.table["failure"].to_pylist() if reason)
    return {
        "accepted": int(found.accepted.sum()),
        "agreed": int((left & found.agree).sum()),
        "rejected": int((left & found.judged).sum()),
        "unscored": int((left & ~found.agree & ~found.judged).sum()),
        **{name: int(flags.sum()) if len(gain) else None for name, flags in says.items()},
        "reasons": [
            {"reason": reason[:MOST_REASON], "rows": rows}
            for reason, rows in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ][:MOST_REASONS],
    }


def bin_scores(found: Judged) -> list[Json]:
    """Count judged proposals by their score, in bins of 1/20; the last one holds 1 as well."""
    edges = np.linspace(0, 1, BINS + 1)
    counts = [
        np.histogram(found.score[found.judged & flags], edges)[0]
        for flags in (found.accepted, ~found.accepted)
    ]
    return [
        {"low": float(low), "high": float(high), "accepted": int(yes), "rejected": int(no)}
        for low, high, yes, no in zip(edges, edges[1:], *counts, strict=False)
    ]


def list_replaced(rounds: list[Judged]) -> Json:
    """Describe accepted proposals, those with the highest score first."""
    candidates = [
        (-_sortable(found.score[k]), found.number, int(k))
        for found in rounds
        for k in np.flatnonzero(found.accepted)
    ]
    chosen = [(number, k) for _, number, k in sorted(candidates)[:MOST_REPLACED]]
    return {"of": len(candidates), "rows": _described(rounds, chosen)}


def list_rejected(rounds: list[Judged]) -> Json:
    """Describe rejected proposals, those with the lowest score first, a row once."""
    candidates = [
        (float(found.score[k]), found.number, int(k))
        for found in rounds
        for k in np.flatnonzero(found.judged & ~found.accepted)
    ]
    rows = {found.number: found.table["row"] for found in rounds}
    chosen: dict[int, tuple[int, int]] = {}
    for _, number, k in sorted(candidates):
        if len(chosen) == MOST_REJECTED:
            break
        chosen.setdefault(rows[number][k].as_py(), (number, k))
    return {"of": len(candidates), "rows": _described(rounds, list(chosen.values()))}


def _described(rounds: list[Judged], chosen: list[tuple[int, int]]) -> list[Json]:
    """Describe rows, given by round and place, in their order."""
    shown: dict[tuple[int, int], Json] = {}
    for found in rounds:
        places = [k for number, k in chosen if number == found.number]
        for k, texts in zip(places, found.texts(places) if places else [], strict=True):
            shown[found.number, k] = _beside(found, k, texts)
    return [shown[place] for place in chosen]


def _beside(found: Judged, k: int, texts: Json) -> Json:
    """Return a row with demonstration and proposal beside each other."""
    row = found.table["row"][k].as_py()
    right = (_known(found.before[k]), _known(found.after[k]))
    return beside(row, texts, found.number, _known(found.score[k]), right)


def beside(
    row: int,
    texts: Json,
    number: int | None = None,
    score: float | None = None,
    right: tuple[float | None, float | None] = (None, None),
) -> Json:
    """Return demonstration and proposal beside each other, word by word.

    Parameters
    ----------
    row : int
    texts : dict
        ``prompt``, ``completion`` and ``proposal``, text or messages.
    number : int, optional
        Of the round, where there are rounds.
    score : float, optional
        The judge's, 0 to 1.
    right : (float or None, float or None)
        How right demonstration and proposal are, 0 to 1; None where that is not known.

    Examples
    --------
    >>> found = beside(3, {"prompt": "2+2", "completion": "5", "proposal": "4"})
    >>> found["after"]["parts"]
    [{'text': '4', 'changed': True}]
    """
    prompt = text_of(texts["prompt"])
    old, new = compare_words(text_of(texts["completion"]), text_of(texts["proposal"] or ""))
    return {
        "row": row,
        "round": number,
        "score": score,
        "prompt": prompt[:MOST_CHARACTERS],
        "characters": len(prompt),
        "before": {"right": right[0], **old},
        "after": {"right": right[1], **new},
    }


def _floats(column: pa.ChunkedArray) -> Floats:
    """Return a column, NaN for gaps."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def _known(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sortable(score: np.float64) -> float:
    return float(score) if np.isfinite(score) else -1.0
