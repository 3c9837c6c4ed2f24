"""Several runs of one kind beside each other; of refinements what each gained on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whet import estimates
from whet.classify.labels import MISSING
from whet.errors import WhetError
from whet.report.compare_arms import compare_arms, differing
from whet.report.kinds import find_kind
from whet.report.known import LEAST_ROWS, too_few
from whet.report.rows import RefinedRows, check_format, read_refined
from whet.report.summary import SUMMARY_FORMAT, answer
from whet.store import read_json

Json = dict[str, Any]
#: Settings that say where rows come from, told apart from how they are refined.
_INPUT = ("input", "input_sha256")


def compare(folders: list[Path]) -> Json:
    """Compute what is known of several runs of one kind.

    Parameters
    ----------
    folders : list of Path
        Run folders of ``whet refine``, of ``whet ilr`` or of ``whet align``, at least two. The
        first refinement is what the others are held against.

    Returns
    -------
    dict
        Of refinements ``kind`` "compare"; ``runs``, one record each; ``settings`` that differ, by
        name a value a run. Of the others see :func:`whet.report.compare_arms.compare_arms`.
        docs/report.md describes both.

    Raises
    ------
    WhetError
        If a folder is named twice, the folders are not of one kind that is compared, or one is not
        finished or damaged.
    """
    _check_names(folders)
    kinds, manifests = zip(*map(find_kind, folders), strict=True)
    kind = kinds[0]
    if any(other is not kind for other in kinds):
        said = ", ".join(f"{f} is {k.name}" for f, k in zip(folders, kinds, strict=True))
        raise WhetError(f"only runs of one kind are compared: {said}; name runs of one of these")
    if kind.instead:
        raise WhetError(
            f"{folders[0]} is {kind.name}, and only runs of 'whet refine', of 'whet ilr' or of "
            f"'whet align' are compared: {kind.instead}"
        )
    if kind.verb != "refine":
        return compare_arms(kind.verb, folders, list(manifests))
    for folder, manifest in zip(folders, manifests, strict=True):
        check_format(folder / "run.json", manifest)
    first, *others = map(read_refined, folders, manifests)
    found = differing([manifest["settings"] for manifest in manifests])
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "compare",
        "runs": [_run(rows, first) for rows in (first, *others)],
        "settings": {name: values for name, values in found.items() if name not in _INPUT},
    }


def _check_names(folders: list[Path]) -> None:
    """Raise ``WhetError`` if a folder is named twice, by whichever path."""
    named: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in named:
            other = "" if named[place] == folder else f", as {named[place]} too"
            raise WhetError(f"the run {folder} is named twice{other}: name each run once")
        named[place] = folder


def is_comparison(path: Path) -> bool:
    """Whether a file is a comparison that whet wrote as JSON, which may be made anew.

    Examples
    --------
    >>> is_comparison(Path("no/compare.json"))
    False
    """
    try:
        return str(read_json(path).get("kind")).startswith("compare")
    except WhetError:
        return False


def _run(rows: RefinedRows, first: RefinedRows) -> Json:
    manifest = rows.manifest
    found, said = manifest["estimate"], answer(rows)
    same = _same_rows(rows, first)
    against = same and rows is not first
    return {
        "name": str(rows.folder),
        "status": said["status"],
        "headline": said["headline"],
        "warnings": said["warnings"],
        "input_sha256": manifest["input"]["sha256"],
        "same_rows": same,
        "rows": manifest["rows"]["total"],
        "changed": manifest["rows"]["changed"],
        "gold_rows": manifest["gold"]["kept"],
        **{name: found.get(name) for name in ("annotator", "refined", "gain", "new texts")},
        "seconds": round(sum(v for k, v in manifest["seconds"].items() if k != "report"), 3),
        "peak_memory_mib": manifest["peak_memory_mib"],
        "against_first": _paired(rows, first) if against else None,
        "labels_differ": _labels_differ(rows, first) if against else [],
    }


def _same_rows(rows: RefinedRows, first: RefinedRows) -> bool:
    """Whether both refine the same rows: of one file, or of the same texts and pseudo-labels."""
    if rows.manifest["input"]["sha256"] == first.manifest["input"]["sha256"]:
        return True
    alike = np.array_equal(rows.names(rows.pseudo), first.names(first.pseudo))
    return alike and rows.hash_texts() == first.hash_texts()


def _labels_differ(rows: RefinedRows, first: RefinedRows) -> list[str]:
    """Say how what a run was given for the same texts differs from what the first was given."""
    said = int((rows.names(rows.pseudo) != first.names(first.pseudo)).sum())
    both, mine, its = np.intersect1d(rows.judged, first.judged, return_indices=True)
    here, there = len(rows.judged) - len(both), len(first.judged) - len(both)
    other = int((rows.names(rows.gold[mine]) != first.names(first.gold[its])).sum())
    known, known_first = (r.names(np.where(r.checked, r.refined, MISSING)) for r in (rows, first))
    checked = int((known != known_first).sum())
    found = []
    if said:
        found.append(f"the annotator's labels differ on {said:,} rows")
    if here or there:
        found.append(
            f"{len(both):,} gold rows were used by both, {here:,} by this run only, {there:,} by "
            "the first only"
        )
    if other:
        found.append(f"{other:,} of the gold rows of both have another label here and are left out")
    if checked:
        found.append(f"the checked labels differ on {checked:,} rows")
    return found


def _paired(rows: RefinedRows, first: RefinedRows) -> Json:
    """Return by how much more of the gold rows of both runs are right than in the first run."""
    _, mine, its = np.intersect1d(rows.judged, first.judged, return_indices=True)
    gold = rows.names(rows.gold[mine])
    alike = gold == first.names(first.gold[its])  # people may have changed their mind
    right = (rows.names(rows.honest[mine]) == gold)[alike]
    first_right = (first.names(first.honest[its]) == gold)[alike]
    if len(right) < LEAST_ROWS:
        return too_few(len(right))
    whole = len(right) == len(rows.pseudo)
    return estimates.difference(right, first_right, whole=whole).as_dict()
