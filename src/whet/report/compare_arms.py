"""Several runs of ``whet ilr``, or of ``whet align``: which arms are better beyond chance.

Runs of one recipe differ in their seeds. What holds for all of them is their mean, whose interval
knows of other seeds, and in how many runs an arm is ahead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from whet import estimates
from whet.report.align_summary import HARM
from whet.report.arm_runs import WORDS, ArmRun, Column, estimate, read_run
from whet.report.known import compared, in_points
from whet.report.summary import SUMMARY_FORMAT
from whet.report.text import one_line

Json = dict[str, Any]
#: Of fewer runs than this an interval is too narrow to be taken at its word.
FEW_RUNS = 5
#: What names a file, a folder or a model: where that lies tells no recipe from another.
_PLACES = {
    *("task", "data", "train", "test", "model", "judge"),
    *("demonstrations", "prompts", "corpus", "gold"),
}
#: What is not a choice of the recipe, or is looked at arm by arm.
_ASIDE = {"arms", "rewards", "trainers", "routes", "sha256", "whet_version"}
#: Settings by which a heading tells a recipe from others.
NAMED = 2


@dataclass(frozen=True)
class Recipe:
    """Runs of one recipe.

    Attributes
    ----------
    choices : dict
        Their settings, without seeds, without folders and without arms.
    arms : dict
        The same of each arm that any of the runs has.
    places : list of int
        The runs, by their places.

    Examples
    --------
    >>> Recipe({"alpha": 0.15}, {}, [0, 2]).places
    [0, 2]
    """

    choices: Json
    arms: Json
    places: list[int]


def compare_arms(kind: str, folders: list[Path], manifests: list[Json]) -> Json:
    """Compute what runs of one kind say together.

    Parameters
    ----------
    kind : {"ilr", "align"}
    folders : list of Path
        At least two run folders.
    manifests : list of dict
        The content of run.json of each.

    Returns
    -------
    dict
        ``kind`` "compare-arms"; docs/report.md describes it. The same runs give the same content.

    Raises
    ------
    WhetError
        If a run has a format that is not known, or is damaged.

    Examples
    --------
    >>> compare_arms("ilr", [Path("no/run")], [{"format_version": 2}])
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: no/run/run.json has format 2 and this whet knows 1: use the whet that \
wrote it
    """
    runs = [read_run(kind, folder, m) for folder, m in zip(folders, manifests, strict=True)]
    twins = [_twin(run, runs[:place]) for place, run in enumerate(runs)]
    recipes = _by_recipe(runs, [place for place, twin in enumerate(twins) if twin is None])
    numbers = {place: number for number, mine in enumerate(recipes, 1) for place in mine.places}
    first, *others = (mine.places for mine in recipes)
    between = [
        found | {"recipe": number}
        for number, mine in enumerate(others, 2)
        for found in _between(kind, runs, first, mine)
    ]
    return {
        "format_version": SUMMARY_FORMAT,
        "kind": "compare-arms",
        "of": kind,
        "warnings": _repeated(runs, twins),
        "runs": [
            _run(run, numbers[place if twin is None else twin])
            | {"same_as": None if twin is None else str(runs[twin].folder)}
            for place, (run, twin) in enumerate(zip(runs, twins, strict=True))
        ],
        "recipes": [
            {"title": title, **_recipe(kind, runs, mine.places)}
            for title, mine in zip(_titles(recipes), recipes, strict=True)
        ],
        "between": between,
        "settings": differing([run.settings for run in runs]),
        "notes": _notes(runs, [mine.places for mine in recipes], between),
    }


def _run(run: ArmRun, recipe: int) -> Json:
    return {
        "name": str(run.folder),
        "recipe": recipe,
        "title": run.title,
        "seed": run.settings["seed"],
        "rows": run.rows,
        "test_sha256": run.test_sha256,
        "ended_early": [arm for arm in run.settings.get("arms", {}) if run.ended_early(arm)],
    }


# --- runs that are the same run again -------------------------------------------------------------


def _twin(run: ArmRun, earlier: list[ArmRun]) -> int | None:
    """Return the place of the first run with the same settings and scores: it is the same run."""
    same = (
        place
        for place, other in enumerate(earlier)
        if other.settings == run.settings and _same_scores(run, other)
    )
    return next(same, None)


def _same_scores(run: ArmRun, other: ArmRun) -> bool:
    mine, its = (
        {
            (measure, arm): column
            for measure, arms in one.columns.items()
            for arm, column in arms.items()
        }
        for one in (run, other)
    )
    return mine.keys() == its.keys() and all(
        np.array_equal(column, its[name], equal_nan=True) for name, column in mine.items()
    )


def _repeated(runs: list[ArmRun], twins: list[int | None]) -> list[str]:
    """Say which runs are the same run again, which is no evidence."""
    warnings = []
    for place in dict.fromkeys(twin for twin in twins if twin is not None):
        again = ", ".join(
            str(run.folder) for run, twin in zip(runs, twins, strict=True) if twin == place
        )
        warnings.append(
            f"{again}: the same run as {runs[place].folder} again, with all its settings, its seed "
            "and its test scores; it counts once."
        )
    return warnings


# --- which runs are of one recipe -----------------------------------------------------------------


def _by_recipe(runs: list[ArmRun], places: list[int]) -> list[Recipe]:
    """Return the recipes of the runs at some places.

    Of one recipe are runs with the same settings but for seeds and for where files lie, in which
    arms of one name are the same; an arm may be missing in some.
    """
    recipes: list[Recipe] = []
    for place in places:
        choices, arms = _choices(runs[place].settings), _arms(runs[place].settings)
        for recipe in recipes:
            shared = recipe.arms.keys() & arms.keys()
            if recipe.choices == choices and all(recipe.arms[n] == arms[n] for n in shared):
                recipe.arms.update(arms)
                recipe.places.append(place)
                break
        else:
            recipes.append(Recipe(choices, arms, [place]))
    return recipes


def _choices(value: Any, key: str = "") -> Any:  # noqa: ANN401
    """Return settings without seeds, and without the folders of what is named."""
    if isinstance(value, dict):
        return {
            name: _choices(part, name)
            for name, part in value.items()
            if name not in _ASIDE and not name.endswith("seed")
        }
    if isinstance(value, str) and key in _PLACES:
        return re.sub(r"[^:]*/", "", value)
    return value


def _arms(settings: Json) -> Json:
    """Return what tells an arm, or in ``whet align`` a trainer, from others of its name."""
    section = "arms" if "arms" in settings else "trainers"
    arms: Json = settings[section]
    return {f"{section}.{name}": _choices(arm) for name, arm in arms.items() if arm is not None}


def _titles(recipes: list[Recipe]) -> list[str]:
    """Return in words how each recipe differs from the first, and the first from any."""
    first, titles, of_first = recipes[0], list[str](), Json()
    for other in recipes[1:]:
        shared = first.arms.keys() & other.arms.keys()
        found = differing(
            [mine.choices | {name: mine.arms[name] for name in shared} for mine in (first, other)]
        )
        titles.append(_in_words({name: values[1] for name, values in found.items()}))
        of_first |= {name: values[0] for name, values in found.items()}
    outer = sorted(of_first, key=lambda name: (name.count("."), name))  # found in several passes
    return [_in_words({name: of_first[name] for name in outer}), *titles]


def _in_words(settings: Json) -> str:
    """Return the first settings with their values, and how many more there are."""
    said = []
    for name, value in list(settings.items())[:NAMED]:
        given = "not given" if value is None else "given" if isinstance(value, dict) else value
        said.append(f"{one_line(name, 60)} {one_line(str(given), 40)}")
    more = len(settings) - NAMED
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")


def differing(settings: list[Json]) -> Json:
    """Return the settings that are not the same in all runs, a value a run, None for absent.

    Where ``seed`` differs the seeds of sections do, too, which follow from it and are left out.
    Plain values of a level come before nested ones, by name each.

    Parameters
    ----------
    settings : list of dict

    Examples
    --------
    >>> differing([{"sft": {"epochs": 2, "seed": 0}, "seed": 0}, {"sft": {"epochs": 3}, "seed": 1}])
    {'seed': [0, 1], 'sft.epochs': [2, 3]}
    """
    found = _differing(settings, "")
    if "seed" in found:
        return {name: values for name, values in found.items() if not name.endswith(".seed")}
    return found


def _differing(settings: list[Json], within: str) -> Json:
    """Return the settings of a section that differ; ``within`` stands before their names."""
    values: dict[str, list[Any]] = {
        key: [chosen.get(key) for chosen in settings]
        for key in sorted({key for chosen in settings for key in chosen})
    }
    nested = [key for key, each in values.items() if any(isinstance(v, dict) for v in each)]
    found: Json = {}
    for key in (*(key for key in values if key not in nested), *nested):
        each = values[key]
        if all(isinstance(value, dict) for value in each):
            found |= _differing(each, f"{within}{key}.")
        elif any(value != each[0] for value in each):
            found[within + key] = each
    return found


# --- over the runs of a recipe --------------------------------------------------------------------


def _recipe(kind: str, runs: list[ArmRun], places: list[int]) -> Json:
    mine = [runs[place] for place in places]
    measures: list[Json] = [
        {
            "measure": name,
            "what": words.format(target=mine[0].settings.get("target")),
            "arms": _arm_means(name, mine),
            "differences": _differences(name, mine),
        }
        for name, words in WORDS[kind].items()
        if any(run.columns.get(name) for run in mine)
    ]
    return {
        "runs": places,
        "differ": list(differing([run.settings for run in mine])),
        "answers": _answers(mine, measures),
        "measures": measures,
    }


def _arm_means(measure: str, runs: list[ArmRun]) -> list[Json]:
    """Return each arm in each run and over them, arms in the order in which runs name them."""
    rows = []
    for arm in dict.fromkeys(arm for run in runs for arm in run.found.get(measure, {})):
        each = [run.found.get(measure, {}).get(arm) for run in runs]
        columns = [run.columns.get(measure, {}).get(arm) for run in runs]
        ended = sum(run.ended_early(arm) for run in runs)
        rows.append({"arm": arm, **_over_runs(each, columns, runs), "ended_early": ended})
    return rows


def _differences(measure: str, runs: list[ArmRun]) -> list[Json]:
    """Return one arm minus another in each run and over them, for arms that a run has both of."""
    rows = []
    for first, second in dict.fromkeys(contrast for run in runs for contrast in run.contrasts):
        each = [run.compare(measure, (first, second)) for run in runs]
        columns = [run.subtract(measure, (first, second)) for run in runs]
        if any(each):
            over = _over_runs(each, columns, runs)
            rows.append({"first": first, "second": second, **over, "above": _above(each)})
    return rows


def _above(each: list[Json | None]) -> int:
    """Count the runs in which a difference is above 0."""
    return sum(found is not None and (found["value"] or 0) > 0 for found in each)


def _over_runs(each: list[Json | None], columns: list[Column | None], runs: list[ArmRun]) -> Json:
    """Return the estimates of the runs, and the mean over those that know the quantity.

    One run has no mean: its interval says nothing of other seeds.
    """
    known = [
        (column, run.test)
        for found, column, run in zip(each, columns, runs, strict=True)
        if found is not None and found["value"] is not None and column is not None
    ]
    mean = None
    if len(known) > 1:
        mean = estimates.mean_over_runs([c for c, _ in known], [test for _, test in known])
    return {"runs": each, "of": len(known), "mean": None if mean is None else mean.as_dict()}


# --- the answer -----------------------------------------------------------------------------------

#: Status -> what is said first of two arms.
HEADLINES = {
    "better": "Yes, over these runs {first} is better than {second}.",
    "traded": "Not plainly: {first} is ahead of {second}, but more harmless prompts are refused, "
    "too.",
    "ahead": "Perhaps: {first} is ahead of {second}, over few runs.",
    "unsure": "Not clear: these runs cannot tell {first} from {second}.",
    "same": "No: {first} and {second} score the same in every run, row by row.",
    "behind": "Perhaps not: {first} is behind {second}, over few runs.",
    "worse": "No: over these runs {first} is worse than {second}.",
    "single": "Not known: one run says nothing of other seeds, by which {first} and {second} may "
    "change places.",
    "unknown": "Not known if {first} is better than {second}: no run has both.",
}


def _answers(runs: list[ArmRun], measures: list[Json]) -> list[Json]:
    """Return what the runs say, by the most telling measure, of arms they are made to compare."""
    known = {
        (measure["measure"], found["first"], found["second"]): found
        for measure in measures
        for found in measure["differences"]
    }
    telling = measures[0]["measure"] if measures else None
    answers = []
    for first, second in dict.fromkeys(contrast for run in runs for contrast in run.asked):
        found = known.get((telling, first, second), {"of": 0, "mean": None})
        harm = known.get((HARM, first, second), {"mean": None})["mean"]
        status = _status(found)
        if status in ("better", "ahead") and harm is not None and harm["low"] > 0:
            status = "traded"
        headline = HEADLINES[status].format(first=first, second=second)
        verdict = headline if found["mean"] is None else f"{headline} {_said(found)}"
        answers.append(
            {
                "first": first,
                "second": second,
                "status": status,
                "headline": headline,
                "verdict": verdict,
            }
        )
    return answers


def _status(difference: Json) -> str:
    if difference["mean"] is None:
        return "single" if difference["of"] else "unknown"
    status = compared(difference["mean"])
    few = {"better": "ahead", "worse": "behind"} if difference["of"] < FEW_RUNS else {}
    return few.get(status, status)


def _said(difference: Json) -> str:
    minus = f"{difference['first']} minus {difference['second']}"
    over = f"over {difference['of']} runs, above 0 in {difference['above']} of them"
    return f"{minus}: {in_points(difference['mean'])}, {over}."


# --- between recipes ------------------------------------------------------------------------------


def _between(kind: str, runs: list[ArmRun], first: list[int], other: list[int]) -> list[Json]:
    """Return each arm of a recipe minus that of the first recipe, where rows can be paired.

    A run is paired with one of the same seed and test, each with another one.
    """
    pairs, free = [], [runs[place] for place in first]
    for run in (runs[place] for place in other):
        partner = next((k for k, twin in enumerate(free) if _alike(twin, run)), None)
        if partner is not None:
            pairs.append((run, free.pop(partner)))
    found = []
    for measure, arm in product(WORDS[kind], dict.fromkeys(a for r, _ in pairs for a in r.names)):
        each, columns = [], []
        for run, twin in pairs:
            mine, its = (one.columns.get(measure, {}).get(arm) for one in (run, twin))
            gain = None if mine is None or its is None else mine - its
            columns.append(gain)
            each.append(None if gain is None else estimate(gain, run.settings["seed"]))
        if any(each):
            over = _over_runs(each, columns, [run for run, _ in pairs])
            found.append({"measure": measure, "arm": arm, **over, "above": _above(each)})
    return found


def _alike(run: ArmRun, other: ArmRun) -> bool:
    return (run.test, run.settings["seed"]) == (other.test, other.settings["seed"])


# --- what to know ---------------------------------------------------------------------------------


def _notes(runs: list[ArmRun], recipes: list[list[int]], between: list[Json]) -> list[str]:
    notes = []
    if len(recipes) > 1:
        notes.append(
            f"The runs are of {len(recipes)} recipes: beyond seeds, and folders in which files "
            "lie, their settings differ. There is no mean over recipes."
        )
        notes += _unpaired(recipes, between)
    tested = [[runs[place] for place in mine if runs[place].names] for mine in recipes]
    several = [mine for mine in tested if len(mine) > 1]
    sizes = sorted({len(mine) for mine in several if len(mine) < FEW_RUNS})
    if sizes:
        notes.append(
            f"An interval over {' or '.join(map(str, sizes))} runs is too narrow: look at how many "
            "of the runs are above 0, too."
        )
    tests = [len({run.test for run in mine}) for mine in several]
    if any(count > 1 for count in tests):
        notes.append(
            "The runs have different test rows: each difference is within a run, on its own rows."
        )
    if 1 in tests:
        notes.append(
            "The runs of a recipe share their test rows, which are drawn once for all runs: more "
            "runs make the interval no surer of other rows."
        )
    notes += _alike_in_settings([runs[place] for mine in recipes for place in mine])
    if any(tested):
        notes.append(
            "Intervals over runs come from drawing runs and test rows again; those of one run from "
            "its rows alone, which know nothing of other seeds."
        )
    if max(len(run.names) for run in runs) > 3:
        notes.append("Of many arms some look better by chance.")
    return notes


def _unpaired(recipes: list[list[int]], between: list[Json]) -> list[str]:
    paired = {found["recipe"] for found in between}
    missing = [str(place) for place in range(2, len(recipes) + 1) if place not in paired]
    if not missing:
        return []
    return [
        f"Recipe {', '.join(missing)}: no run has the seed and the test rows of a run of recipe 1, "
        "so that their arms are not compared with those of recipe 1."
    ]


def _alike_in_settings(runs: list[ArmRun]) -> list[str]:
    """Say which runs have all settings of another and other scores."""
    notes = []
    for place, run in enumerate(runs):
        other = next((other for other in runs[:place] if other.settings == run.settings), None)
        if other is not None:
            notes.append(
                f"{run.folder} has all settings of {other.folder}, the seed too, but other scores: "
                "the two say nothing of other seeds."
            )
    return notes
