"""Several runs of ``whet ilr`` or of ``whet align`` beside each other."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import snapshot, whet
from test_report_page import MARKUP, Elements, browser, opened  # noqa: F401
from whet import estimates
from whet.align import compare as align_estimates
from whet.estimates import mean_over_runs
from whet.ilr.evaluate import mean_score, score_difference
from whet.report.compare import compare
from whet.store import read_json

ARMS = {
    "sft": {"labels": "given", "again": 0, "train": {}},
    "ilr": {"mode": "ilr", "judge": None, "folds": 2, "alpha": None, "train": {}},
    "dpo": {"learn": "preferences", "judge": None, "train": {}},
}
ROWS = 40


def scores(seed, right):
    """Return which rows are right."""
    return (np.random.default_rng(seed).random(ROWS) < right).astype(float)


def make_ilr(folder, arms, seed=0, test="test", settings=None, halted=()):
    """Write what a comparison reads of a run of ``whet ilr``: arm -> scores of the last round."""
    folder.mkdir(parents=True)
    tables = {arm: pa.table({"row": range(ROWS), "score": s}) for arm, s in arms.items()}
    parts = []
    for arm, table in tables.items():
        for number, part in ((0, table.take(pa.array(range(ROWS)[::-1]))), (1, table)):
            columns = {"arm": [arm] * ROWS, "round": [number] * ROWS}
            score = part["score"] if number else pa.nulls(ROWS, pa.float64())
            parts.append(pa.table({**columns, "row": part["row"], "score": score}))
    if parts:
        pq.write_table(pa.concat_tables(parts), folder / "test.parquet")
    known = {arm: {**ARMS["ilr" if arm not in ARMS else arm]} for arm in arms or ARMS}
    about = {
        "task": "chains",
        "model": f"models/of-{seed}/base",
        "judge": "oracle",
        "alpha": 0.15,
        "sft": {"epochs": 2, "seed": seed},
        "seed": seed,
        "arms": known,
        "sha256": {"train": "t", "test": test if arms else None},
        "whet_version": "0",
    }
    manifest = {
        "format_version": 1,
        "settings": about | (settings or {}),
        "weak": None,
        "evaluator": None,
        "rows": {"demonstrations": 9, "gold": 0, "test": ROWS if arms else 0},
        "arms": {},
    }
    for arm in known:
        gain = score = None
        if arms:
            score = mean_score(tables[arm], seed).as_dict()
            if arm != "sft" and "sft" in tables:
                gain = score_difference(tables[arm], tables["sft"], seed).as_dict()
        rounds = [{"round": 0, "score": score}, {"round": 1, "score": score}]
        ended = "all pairs are ties" if arm in halted else None
        manifest["arms"][arm] = {"rounds": rounds, "halted": ended, "gain": gain}
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def make_align(folder, arms, seed=0, target="safe"):
    """Write what a comparison reads of a run of ``whet align``: arm -> safe and refuses."""
    from whet.align.evaluation import compared, measures

    folder.mkdir(parents=True)
    tables = {}
    for arm, (safe, refuses) in arms.items():
        labels = np.where(safe, target, "unsafe")
        tables[arm] = pa.table(
            {
                "row": range(ROWS),
                "harmful": [k % 2 == 0 for k in range(ROWS)],
                "refuses": refuses,
                "judge_label": labels.tolist(),
                **dict.fromkeys(("logp", "logp_sft", "tokens"), pa.array([1.0] * ROWS)),
            }
        )
    whole = [t.add_column(0, "arm", pa.array([arm] * ROWS)) for arm, t in tables.items()]
    pq.write_table(pa.concat_tables(whole), folder / "evaluation.parquet")
    prompts = pa.table({"row": range(ROWS)})
    pairs = [(arm, "sft") for arm in arms if arm != "sft"] + [("refined-dpo", "vanilla-dpo")]
    found = {arm: measures(table, prompts, target) for arm, table in tables.items()}
    settings = {
        "model": "models/base",
        "target": target,
        "trainers": {"dpo": {"beta": 0.1, "seed": seed}, "grpo": None},
        "evaluation": {"judge": {"task": f"seed-{seed}/task.yaml"}},
        "tasks": {"evaluation.judge": {"name": "safety"}},
        "routes": {"judge": {"backend": f"judge-{seed}"}, "evaluation.judge": {"backend": "b"}},
        "rewards": ["vanilla", "refined"],
        "seed": seed,
        "sha256": {"evaluation.prompts": "p"},
        "whet_version": "0",
    }
    manifest = {
        "format_version": 1,
        "settings": settings,
        "rows": {"evaluation": ROWS},
        "evaluation": compared(found, pairs, seed),
        **{key: {} for key in ("classifiers", "judged", "pairs")},
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (estimates, align_estimates):  # the same, sooner
        monkeypatch.setattr(module, "RESAMPLES", 300)
    return tmp_path


def three(folder, rights=(0.6, 0.8, 0.5), **more):
    """Write runs of one recipe with seeds 0, 1 and 2, on test rows of their own."""
    found = []
    for seed in range(3):
        arms = {
            arm: scores(10 * seed + k, right)
            for k, (arm, right) in enumerate(zip(ARMS, rights, strict=True))
        }
        found.append(make_ilr(folder / f"s{seed}", arms, seed, f"test of {seed}", **more))
    return found


def by_arm(measure):
    return {found["arm"]: found for found in measure["arms"]}


def by_pair(measure):
    return {(found["first"], found["second"]): found for found in measure["differences"]}


def columns_of(run, arm):
    table = pq.read_table(run / "test.parquet").to_pylist()
    return np.array([r["score"] for r in table if (r["arm"], r["round"]) == (arm, 1)])


def refused(words):
    ended = whet(words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    return ended.err


# --- over runs ------------------------------------------------------------------------------------


def test_mean_over_runs_of_own_rows_draws_runs_and_then_their_rows():
    """Against a loop that is written plainly."""
    columns = [scores(seed, 0.3 + 0.1 * seed)[: 20 + 5 * seed] for seed in range(4)]
    random = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        chosen = random.integers(4, size=4)
        draws.append(np.mean([random.choice(columns[k], len(columns[k])).mean() for k in chosen]))
    found = mean_over_runs(columns)
    assert found.value == pytest.approx(np.mean([c.mean() for c in columns]), abs=1e-12)
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=1e-12)
    assert found.n == sum(map(len, columns))


def test_rows_that_runs_share_are_drawn_once():
    """Four copies of a run know no more of other rows than one."""
    column = scores(0, 0.5)
    one, alike = mean_over_runs([column]), mean_over_runs([column] * 4, ["t"] * 4)
    apart = mean_over_runs([column] * 4)
    assert alike.n == one.n == ROWS
    assert apart.n == 4 * ROWS
    width = one.high - one.low
    assert alike.high - alike.low == pytest.approx(width, rel=0.1)
    assert apart.high - apart.low == pytest.approx(width / 2, rel=0.2)


def test_rows_that_are_not_known_are_left_out():
    column, other = scores(0, 0.5), scores(1, 0.5)
    gaps = np.where(np.arange(ROWS) < 10, np.nan, column)
    assert mean_over_runs([gaps, gaps], ["t", "t"]) == mean_over_runs([column[10:]] * 2, "tt")
    found = mean_over_runs([gaps, other], ["t", "t"])
    assert found.value == pytest.approx((column[10:].mean() + other.mean()) / 2)
    assert found.n == ROWS
    assert found.low < found.value < found.high


# --- runs of whet ilr -----------------------------------------------------------------------------


def test_arms_are_compared_within_each_run_and_over_runs(here):
    runs = three(Path())
    ended = whet(["report", *map(str, runs), "--out", "seeds.html"])
    assert ended.code == 0, ended
    comparison = read_json(Path("seeds.json"))
    assert comparison == json.loads(json.dumps(compare(runs)))
    (recipe,) = comparison["recipes"]
    assert recipe["runs"] == [0, 1, 2]
    assert list(comparison["settings"]) == ["model", "seed", "sha256.test"]
    (measure,) = recipe["measures"]
    manifests = [read_json(run / "run.json") for run in runs]
    for name, arm in by_arm(measure).items():
        assert arm["runs"] == [m["arms"][name]["rounds"][-1]["score"] for m in manifests]
        assert arm["mean"] == mean_over_runs([columns_of(run, name) for run in runs]).as_dict()
    pairs = by_pair(measure)
    assert list(pairs) == [("ilr", "sft"), ("dpo", "sft"), ("ilr", "dpo")]
    for (first, second), found in pairs.items():
        gains = [columns_of(run, first) - columns_of(run, second) for run in runs]
        assert found["mean"] == mean_over_runs(gains).as_dict()
        assert found["above"] == sum(gain.mean() > 0 for gain in gains)
        assert [run["value"] for run in found["runs"]] == pytest.approx([g.mean() for g in gains])
    assert pairs["ilr", "sft"]["runs"] == [m["arms"]["ilr"]["gain"] for m in manifests]
    page, said = Path("seeds.html").read_text(), " ".join(ended.out.split())
    mean = pairs["ilr", "sft"]["mean"]
    value, low, high = (f"{100 * mean[key]:+.1f}" for key in ("value", "low", "high"))
    assert recipe["answers"][0]["status"] == "ahead"  # three runs are few
    assert f"interval {low} to {high}, over 3 runs, above 0 in 3 of them" in said
    for text in (page, " ".join(said.split())):
        assert recipe["answers"][0]["headline"] in text
        assert "An interval over 3 runs is too narrow" in text
        assert "different test rows" in text
    assert f"{value} points [{low}, {high}] n = 120" in page
    assert f'<h2 id="answer">{recipe["answers"][0]["headline"]}</h2>' in page
    assert "Which arms are better" not in page
    rows = [line.split() for line in ended.out.splitlines()]
    above = {arm: str(pairs[arm, "sft"]["above"]) for arm in ("ilr", "dpo")}
    for arm, count in above.items():
        assert [count, "of", "3"] in [row[-3:] for row in rows if row[:1] == [arm]]


def test_the_same_runs_give_the_same_bytes_again(here):
    runs = [*map(str, three(Path()))]
    assert whet(["report", *runs]).code == 0
    before = snapshot(here)
    assert whet(["report", *runs]).code == 0
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("rights", "count", "status"),
    [
        ((0.2, 0.9, 0.5), 6, "better"),
        ((0.9, 0.2, 0.5), 6, "worse"),
        ((0.2, 0.9, 0.5), 2, "ahead"),
        ((0.9, 0.2, 0.5), 2, "behind"),
        ((0.5, 0.5, 0.5), 2, "unsure"),
    ],
)
def test_answer_needs_several_runs(rights, count, status, here):
    runs = []
    for seed in range(count):
        arms = {
            arm: scores(100 + 10 * seed + k, right)
            for k, (arm, right) in enumerate(zip(ARMS, rights, strict=True))
        }
        runs.append(make_ilr(Path(f"r{seed}"), arms, seed, f"test of {seed}"))
    comparison = compare(runs)
    assert comparison["recipes"][0]["answers"][0]["status"] == status
    few = [note for note in comparison["notes"] if "too narrow" in note]
    assert len(few) == (count < 5)


def test_runs_that_are_alike_row_by_row_are_said_to_be(here):
    alike = dict.fromkeys(ARMS, scores(0, 0.5))
    runs = [make_ilr(Path(f"r{seed}"), alike, seed, f"test of {seed}") for seed in (0, 1)]
    assert compare(runs)["recipes"][0]["answers"][0]["status"] == "same"


def test_an_arm_that_some_runs_lack_counts_the_others(here):
    runs = three(Path())
    arms = {arm: scores(k, 0.5) for k, arm in enumerate(("sft", "ilr"))}
    runs.append(make_ilr(Path("s3"), arms, 3, "test of 3"))
    runs[1].joinpath("run.json").write_text(
        runs[1].joinpath("run.json").read_text().replace('"halted": null', '"halted": "ties"')
    )
    comparison = compare(runs)
    (recipe,) = comparison["recipes"]
    found = by_arm(recipe["measures"][0])
    assert [found[arm]["of"] for arm in ("sft", "ilr", "dpo")] == [4, 4, 3]
    assert found["dpo"]["runs"][3] is None
    gains = [columns_of(run, "dpo") - columns_of(run, "sft") for run in runs[:3]]
    pairs = by_pair(recipe["measures"][0])
    assert pairs["dpo", "sft"]["mean"] == mean_over_runs(gains).as_dict()
    assert found["dpo"]["ended_early"] == 1
    assert comparison["runs"][1]["ended_early"] == list(ARMS)
    assert whet(["report", *map(str, runs)]).code == 0
    assert "3 of 4" in Path("compare.html").read_text()


def test_one_run_of_a_recipe_has_no_mean(here):
    first = make_ilr(Path("one"), {arm: scores(k, 0.5) for k, arm in enumerate(ARMS)})
    second = make_ilr(
        Path("two"),
        {arm: scores(k + 5, 0.5) for k, arm in enumerate(ARMS)},
        settings={"alpha": 0.5},
        test="other rows",
    )
    comparison = compare([first, second])
    assert [recipe["runs"] for recipe in comparison["recipes"]] == [[0], [1]]
    for recipe in comparison["recipes"]:
        assert recipe["answers"][0]["status"] == "single"
        for found in (*recipe["measures"][0]["arms"], *recipe["measures"][0]["differences"]):
            assert (found["of"], found["mean"]) == (1, None)
            assert found["runs"][0]["low"] < found["runs"][0]["high"]
    assert comparison["between"] == []
    assert any("not compared with those of recipe 1" in note for note in comparison["notes"])
    ended = whet(["report", "one", "two"])
    assert "one run says nothing of other seeds" in " ".join(ended.out.split())


def test_two_recipes_on_the_same_rows_are_paired_by_seed(here):
    runs = []
    for recipe, alpha in enumerate((0.15, 0.5)):
        for seed in (0, 1):
            arms = {arm: scores(20 * recipe + 7 * seed + k, 0.5) for k, arm in enumerate(ARMS)}
            folder = Path(f"a{alpha}-{seed}")
            runs.append(make_ilr(folder, arms, seed, settings={"alpha": alpha}))
    comparison = compare(runs)
    assert [recipe["runs"] for recipe in comparison["recipes"]] == [[0, 1], [2, 3]]
    assert comparison["settings"]["alpha"] == [0.15, 0.15, 0.5, 0.5]
    assert comparison["recipes"][1]["differ"] == ["model", "seed"]
    assert [found["arm"] for found in comparison["between"]] == list(ARMS)
    for found in comparison["between"]:
        gains = [columns_of(runs[2 + k], found["arm"]) - columns_of(runs[k], found["arm"])
                 for k in (0, 1)]  # fmt: skip
        assert found["mean"] == mean_over_runs(gains, ["t", "t"]).as_dict()
        assert found["mean"]["n"] == ROWS
    assert any("share their test rows" in note for note in comparison["notes"])
    ended = whet(["report", *map(str, runs)])
    assert "recipe 1 (alpha 0.15)  a0.15-0, a0.15-1" in ended.out
    assert "score of dpo, recipe 2 (alpha 0.5) minus recipe 1  " in " ".join(ended.out.split("\n"))
    said = " ".join("".join(Elements(Path("compare.html").read_text()).said).split())
    assert "Which arms are better, beyond chance?" in said
    for heading in ("Recipe 1 (alpha 0.15)", "Recipe 2 (alpha 0.5)", "Between recipes"):
        assert heading in said


@pytest.mark.parametrize(
    ("settings", "recipes"),
    [
        ({"model": "elsewhere/base"}, 1),
        ({"model": "models/of-1/larger"}, 2),
        ({"judge": "noisy:0.8"}, 2),
        ({"sft": {"epochs": 3, "seed": 1}}, 2),
        ({"arms": ARMS | {"ilr": ARMS["ilr"] | {"alpha": 0.5}}}, 2),
    ],
)
def test_runs_of_a_recipe_differ_in_seeds_and_folders_alone(settings, recipes, here):
    arms = {arm: scores(k, 0.5) for k, arm in enumerate(ARMS)}
    runs = [make_ilr(Path("one"), arms), make_ilr(Path("two"), arms, 1, settings=settings)]
    assert len(compare(runs)["recipes"]) == recipes


# --- the same run again ---------------------------------------------------------------------------


def clear(seed):
    """Return scores by which ilr is far ahead of sft."""
    return {"sft": scores(seed, 0.2), "ilr": scores(seed + 50, 0.9)}


def test_copies_of_a_run_count_once(here):
    runs = [make_ilr(Path(f"copy-{k}"), clear(0)) for k in range(5)]
    ended = whet(["report", *map(str, runs)])
    assert ended.code == 0, ended
    comparison = read_json(Path("compare.json"))
    (recipe,) = comparison["recipes"]
    assert recipe["runs"] == [0]
    assert recipe["answers"][0]["status"] == "single"
    (measure,) = recipe["measures"]
    assert {(f["of"], f["mean"]) for f in measure["arms"] + measure["differences"]} == {(1, None)}
    assert [run["same_as"] for run in comparison["runs"]] == [None, *["copy-0"] * 4]
    assert {run["recipe"] for run in comparison["runs"]} == {1}
    (warning,) = comparison["warnings"]
    assert warning.startswith("copy-1, copy-2, copy-3, copy-4: the same run as copy-0 again")
    assert ended.out.startswith("warning  copy-1, copy-2, copy-3, copy-4: the same run as copy-0")
    page = Path("compare.html").read_text()
    assert page.index('<h2 id="answer">') < page.index(warning) < page.index("Measured is")
    assert "the same run as <bdi>copy-0</bdi>" in page


def test_a_copy_adds_nothing_to_other_runs(here):
    runs = [make_ilr(Path(f"s{s}"), clear(s), s, f"test of {s}") for s in range(4)]
    alone = compare(runs)
    copies = [make_ilr(Path(f"copy{k}"), clear(0), 0, "test of 0") for k in range(2)]
    both = compare([*runs, *copies])
    assert alone["recipes"][0]["answers"][0]["status"] == "ahead"  # four runs, not six
    assert both["recipes"] == alone["recipes"]
    assert both["notes"] == alone["notes"]
    assert (alone["warnings"], len(both["warnings"])) == ([], 1)


@pytest.mark.parametrize("judge", ["people", "llm"])
def test_runs_of_the_same_settings_and_other_scores_are_different_runs(judge, here):
    runs = [make_ilr(Path(f"r{k}"), clear(k), settings={"judge": judge}) for k in range(2)]
    comparison = compare(runs)
    (recipe,) = comparison["recipes"]
    assert recipe["runs"] == [0, 1]
    assert by_arm(recipe["measures"][0])["ilr"]["mean"] is not None
    assert comparison["warnings"] == []
    assert any("r1 has all settings of r0" in note for note in comparison["notes"])


def test_a_copy_is_no_second_pair_between_recipes(here):
    runs = [make_ilr(Path("first"), clear(0))]
    runs += [make_ilr(Path(f"r{k}"), clear(k), settings={"alpha": 0.5}) for k in (1, 1 + ROWS)]
    comparison = compare([*runs, make_ilr(Path("copy"), clear(1), settings={"alpha": 0.5})])
    assert [recipe["runs"] for recipe in comparison["recipes"]] == [[0], [1, 2]]
    assert {found["of"] for found in comparison["between"]} == {1}


def test_copies_of_align_count_once(here):
    runs = [make_align(Path(f"copy-{k}"), aligned(0, 1.0)) for k in range(5)]
    comparison = compare(runs)
    assert comparison["recipes"][0]["answers"][0]["status"] == "single"
    assert len(comparison["warnings"]) == 1


# --- what recipes are called ----------------------------------------------------------------------


def test_a_recipe_is_named_by_what_the_first_has_not(here):
    changes = [
        {},
        {"judge": "noisy:0.8", "arms": ARMS | {"ilr": ARMS["ilr"] | {"alpha": 0.5}}},
        {"alpha": 0.5, "judge": None, "weak": {"model": "w"}, "sft": {"epochs": 3, "seed": 9}},
    ]
    runs = [make_ilr(Path(f"r{k}"), clear(k), k, settings=c) for k, c in enumerate(changes)]
    comparison = compare(runs)
    assert [recipe["title"] for recipe in comparison["recipes"]] == [
        "alpha 0.15, judge oracle and 3 more",
        "judge noisy:0.8, arms.ilr.alpha 0.5",
        "alpha 0.5, judge not given and 2 more",
    ]
    assert list(comparison["settings"]) == [
        *("alpha", "judge", "model", "seed"),
        *("arms.dpo", "arms.ilr.alpha", "sft.epochs", "weak"),
    ]


def test_seeds_of_sections_are_shown_where_the_seed_is_the_same(here):
    changes = ({}, {"sft": {"epochs": 2, "seed": 9}})
    runs = [make_ilr(Path(f"r{k}"), clear(k), settings=c) for k, c in enumerate(changes)]
    comparison = compare(runs)
    assert comparison["settings"] == {"sft.seed": [0, 9]}
    assert [recipe["title"] for recipe in comparison["recipes"]] == [""]


def test_terminal_shows_a_run_with_numbers_rather_than_one_of_too_few_rows(here):
    runs = [make_ilr(Path(f"r{k}"), clear(k), k) for k in range(2)]
    manifest = read_json(runs[0] / "run.json")
    few = {"value": 0.5, "low": 0.0, "high": 1.0, "n": 3, "level": 0.95}
    manifest["arms"]["ilr"]["rounds"][-1]["score"] = few
    (runs[0] / "run.json").write_text(json.dumps(manifest))
    ended = whet(["report", *map(str, runs)])
    assert ended.code == 0, ended
    own = read_json(runs[1] / "run.json")["arms"]["ilr"]["rounds"][-1]["score"]
    assert by_arm(read_json(Path("compare.json"))["recipes"][0]["measures"][0])["ilr"]["of"] == 1
    assert f"{own['value']:.3f} [{own['low']:.3f}" in " ".join(ended.out.split())
    assert "too few" not in ended.out


def test_runs_without_a_test_have_settings_to_compare(here):
    runs = [make_ilr(Path(f"r{seed}"), {}, seed) for seed in (0, 1)]
    ended = whet(["report", *map(str, runs)])
    assert ended.code == 0, ended
    comparison = read_json(Path("compare.json"))
    assert comparison["recipes"][0]["measures"] == []
    assert comparison["notes"] == []
    assert comparison["recipes"][0]["answers"][0]["status"] == "unknown"
    assert "Nothing was evaluated." in Path("compare.html").read_text()


# --- runs of whet align ---------------------------------------------------------------------------


def aligned(seed, refined=0.9, harm=0.1):
    """Return the answers of three arms."""
    shares = {"sft": (0.2, 0.1), "vanilla-dpo": (0.5, 0.1), "refined-dpo": (refined, harm)}
    return {
        arm: (scores(seed + 50 * k, safe) > 0, scores(seed + 50 * k + 25, share) > 0)
        for k, (arm, (safe, share)) in enumerate(shares.items())
    }


@pytest.mark.parametrize(
    ("refined", "harm", "status"),
    [(1.0, 0.0, "better"), (1.0, 1.0, "traded"), (0.5, 0.1, "unsure")],
)
def test_runs_of_align_are_compared_in_what_they_store(refined, harm, status, here):
    runs = [make_align(Path(f"r{s}"), aligned(s, refined, harm), s) for s in range(5)]
    ended = whet(["report", *map(str, runs)])
    assert ended.code == 0, ended
    (recipe,) = read_json(Path("compare.json"))["recipes"]
    assert [m["measure"] for m in recipe["measures"]] == [
        "safety_judge", "safety_rules", "over_refusal",
    ]  # fmt: skip
    assert recipe["answers"][0]["status"] == status
    manifests = [read_json(run / "run.json") for run in runs]
    for measure in recipe["measures"]:
        for name, arm in by_arm(measure).items():
            stored = [m["evaluation"]["arms"][name][measure["measure"]] for m in manifests]
            assert arm["runs"] == stored
            assert arm["mean"]["value"] == pytest.approx(np.mean([e["value"] for e in stored]))
            assert arm["mean"]["n"] == ROWS / 2  # prompts of one kind, the same in all runs
        assert list(by_pair(measure)) == [
            ("refined-dpo", "vanilla-dpo"), ("vanilla-dpo", "sft"), ("refined-dpo", "sft"),
        ]  # fmt: skip
    assert recipe["answers"][0]["headline"] in " ".join(ended.out.split())
    assert "harmless prompts that are refused" in Path("compare.html").read_text()


def test_prompts_judged_for_another_class_are_not_paired(here):
    runs = [make_align(Path(t), aligned(0), target=t) for t in ("safe", "polite")]
    comparison = compare(runs)
    assert len(comparison["recipes"]) == 2
    assert comparison["between"] == []


# --- what cannot be -------------------------------------------------------------------------------


@pytest.fixture
def kinds(here):
    arms = {arm: scores(k, 0.5) for k, arm in enumerate(ARMS)}
    make_ilr(Path("ilr"), arms)
    make_ilr(Path("ilr-1"), arms, 1)
    make_align(Path("align"), aligned(0))
    Path("refined").mkdir()
    keys = ("classes", "verdict", "kept_annotator", "settings", "gold")
    Path("refined/run.json").write_text(json.dumps({"format_version": 1, **dict.fromkeys(keys)}))
    Path("odd").mkdir()
    Path("odd/run.json").write_text('{"format_version": 1}')
    for name in ("sft", "sft-1"):
        Path(name).mkdir()
        Path(name, "training.json").write_text('{"format_version": 1, "kind": "sft"}')
        Path(name, "settings.json").write_text('{"kind": "sft", "weights": "", "data_sha256": ""}')
    Path("link").symlink_to("ilr")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("refined ilr", "refined is a run of 'whet refine', ilr is a run of 'whet ilr'"),
        ("ilr align", "ilr is a run of 'whet ilr', align is a run of 'whet align'"),
        ("ilr odd", "the folder odd is of no verb that 'whet report' knows"),
        ("ilr nowhere", "the folder nowhere does not exist: name a folder of 'whet refine', 'ilr'"),
        ("ilr align/../ilr", "the run align/../ilr is named twice, as ilr too"),
        ("ilr link", "the run link is named twice, as ilr too"),
        ("ilr ilr", "the run ilr is named twice: name each run once"),
        ("sft sft-1", "sft is a training, and only runs of 'whet refine', of 'whet ilr' or of"),
        ("sft sft-1", "'whet evaluate' compares the models of trainings"),
        ("sft ilr", "sft is a training, ilr is a run of 'whet ilr'"),
        ("ilr ilr-1 --out ilr/run.html", "ilr/run.json, beside the page, exists and is no compar"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_writes_nothing(words, said, kinds, here):
    before = snapshot(here)
    assert said in refused(["report", *words.split()])
    assert snapshot(here) == before


def test_damage_is_one_sentence(kinds):
    Path("ilr/test.parquet").write_bytes(b"PAR1")
    assert "the run in ilr is damaged" in refused(["report", "ilr", "ilr-1"])
    Path("ilr-1/run.json").write_text(
        Path("ilr-1/run.json").read_text().replace('"format_version": 1', '"format_version": 2')
    )
    assert "has format 2" in refused(["report", "ilr-1", "ilr"])


# --- hostile names --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A comparison in which folders, arms and settings are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    arms = {"sft": scores(0, 0.5), "ilr": scores(1, 0.5), MARKUP[0]: scores(2, 0.5)}
    odd = {"task": MARKUP[1], "judge": "$x$ {{7*7}}\u202e\x00", MARKUP[2]: 1}
    runs = [
        make_ilr(folder / "<i>{{7*7}}\u202e$", arms, settings=odd),
        make_ilr(folder / ("long" * 30), arms, 1),
        make_ilr(folder / "two", {**arms, MARKUP[8]: scores(4, 0.1)}, 2),
    ]
    ended = whet(["report", *map(str, runs), "--out", str(folder / "page.html")])
    assert ended.code == 0, ended
    assert "\u202e" not in ended.out
    return folder / "page.html"


def test_hostile_names_add_no_element(hostile):
    page = hostile.read_text(encoding="utf-8")
    elements = Elements(page)
    plain = "head meta title style body main footer section ul li h1 h2 h3 p strong em figure"
    plain += " img div table caption thead tbody tr th td bdi code br html"
    assert {tag for tag, _ in elements.found} <= set(plain.split())
    assert {c for c in page if not c.isprintable()} <= set("\n\t\u200c\u200d\u00ad")
    assert "[U+202E]" in page
    assert "<script>window.pwned = 1</script>" in "".join(elements.said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_narrow_inert_and_readable(scheme, browser, hostile):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    tab, asked, said = opened(browser, hostile, color_scheme=scheme)
    assert {url for url in asked if not url.startswith("data:")} == {hostile.as_uri()}
    assert (said, tab.evaluate("window.pwned")) == ([], None)
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert tab.evaluate("document.images.length") == 2  # one for each recipe
    found = axe.Axe().run(tab).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
