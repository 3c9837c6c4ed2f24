"""The report of ``whet ilr``: what a run found, whatever its rows hold and whatever it lacks."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("trl")

from helpers import snapshot, whet
from hostile import HOSTILE
from test_report_page import CHROMIUM, MARKUP, Elements, browser, opened  # noqa: F401
from whet import WhetError
from whet.ilr.recipe import parse_recipe
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.report.ilr_pictures import draw_histograms, draw_proposals, draw_scores
from whet.report.ilr_summary import summarise_ilr
from whet.report.page import write_report
from whet.report.text import visible
from whet.report.words import MOST_CHARACTERS, MOST_LINES, compare_words
from whet.store import read_json

OPTIONS = {"operations": 1, "modulus": 5, "train": 40, "test": 10}
#: A share of the run's judge, so that it is an experiment; and arms of each kind.
JUDGE = "noisy:0.8"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of tiny models, and what the command printed."""
    folder = tmp_path_factory.mktemp("ilr")
    task = load_task("chains", **OPTIONS)
    tables = [task.load(None, split) for split in ("train", "test")]
    texts = [
        t for table in tables for name in ("prompt", "completion") for t in table[name].to_pylist()
    ]
    base = save_scratch(texts, folder / "base", width=16, layers=1, heads=2, length=96)
    steps = {"tune": "full", "learning_rate": 5e-3, "max_steps": 3, "batch_size": 8}
    steps["max_length"] = 96
    short = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    keys = {
        "task": "chains",
        "options": OPTIONS,
        "model": base,
        "weak": {"model": base, "train": {"max_steps": 40}, "generate": short},
        "judge": JUDGE,
        "sft": steps,
        "propose": short,
        "evaluate": short,
        "dpo": {"train": steps | {"learning_rate": 1e-3}, "generate": short | {"samples": 2}},
        "rounds": 1,
        "arms": dict.fromkeys(["sft", "sft-again", "gold", "ilr", "naive", "oracle-ilr", "dpo"]),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    ended = whet(["ilr", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    assert ended.code == 0, ended
    return folder / "run", ended


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("stages"))
    return tmp_path / "run"


def change(run, edit):
    """Change run.json."""
    manifest = read_json(run / "run.json")
    edit(manifest)
    (run / "run.json").write_text(json.dumps(manifest))


def keep(run, *names):
    """Leave a run with some of its arms alone."""

    def edit(manifest):
        for arms in (manifest["arms"], manifest["settings"]["arms"]):
            for name in set(arms) - set(names):
                del arms[name]

    change(run, edit)


def test_run_ends_with_a_report_that_the_command_names(finished):
    run, ended = finished
    assert str(run / "report.html") in " ".join(ended.out.split())
    assert "warning" not in ended.err
    summary, manifest = read_json(run / "summary.json"), read_json(run / "run.json")
    assert (summary["kind"], summary["format_version"]) == ("ilr", 1)
    assert [arm["arm"] for arm in summary["arms"]] == list(manifest["arms"])
    for arm in summary["arms"]:
        found = manifest["arms"][arm["arm"]]
        assert arm["gain"] == found["gain"]
        assert [r["score"] for r in arm["rounds"]] == [r["score"] for r in found["rounds"]]
    assert summary["answer"]["arm"] == "ilr"
    assert summary["answer"]["gain"] == manifest["arms"]["ilr"]["gain"]
    told = {arm["arm"] for arm in summary["arms"] if arm["told"]}
    assert told == {"gold", "oracle-ilr"}
    contenders = {summary["answer"]["best"]["arm"]}
    contenders |= {other["arm"] for other in summary["answer"]["best"]["others"]}
    assert contenders == {"sft", "sft-again", "ilr", "naive", "dpo"}
    assert any(JUDGE in note and "experiment" in note for note in summary["answer"]["notes"])
    assert any("sft-again" in note for note in summary["answer"]["notes"])


def test_numbers_of_rounds_are_those_of_the_folder(finished):
    run, _ = finished
    summary, manifest = read_json(run / "summary.json"), read_json(run / "run.json")
    rows = manifest["rows"]["demonstrations"]
    assert {p["arm"] for p in summary["proposals"]} == {"ilr", "naive", "oracle-ilr"}
    for found in summary["proposals"]:
        record = manifest["arms"][found["arm"]]["rounds"][found["round"]]
        assert found["accepted"] == record["accepted"]
        assert sum(found[key] for key in ("accepted", "agreed", "rejected", "unscored")) == rows
        judged = pq.read_table(run / "arms" / found["arm"] / "01" / "judged.parquet")
        right = pq.read_table(run / "arms" / found["arm"] / "01" / "right.parquet")
        assert set(judged.filter(judged["accepted"])["row"].to_pylist()) <= set(
            right["row"].to_pylist()
        )
        if found["accepted"]:
            assert found["better"] + found["worse"] + found["equal"] == found["accepted"]
    for histogram in summary["histograms"]:
        record = manifest["arms"][histogram["arm"]]["rounds"][1]
        bins = histogram["rounds"][0]["bins"]
        assert sum(b["accepted"] + b["rejected"] for b in bins) == record["judged"]
        assert sum(b["accepted"] for b in bins) == record["accepted"]
    assert {h["arm"] for h in summary["histograms"]} == {"ilr", "oracle-ilr"}
    for judge in summary["judges"]:
        records = manifest["arms"][judge["arm"]]["rounds"]
        assert judge["n"] == sum(r.get("judge_told") or 0 for r in records)


def test_reported_on_again_it_is_the_same_byte_by_byte(run):
    before = snapshot(run)
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    ended = whet(["report", str(run)])
    assert ended.code == 0, ended
    assert read_json(run / "summary.json")["answer"]["verdict"] in " ".join(ended.out.split())
    assert snapshot(run) == before


def test_settings_on_the_page_are_a_recipe_for_the_same_run(finished):
    run, _ = finished
    settings, summary = read_json(run / "settings.json"), read_json(run / "summary.json")
    written = yaml.safe_load(yaml.safe_dump(summary["reproduce"]["recipe"]))
    again = json.loads(json.dumps(parse_recipe(written).deciding()))
    assert again == {k: v for k, v in settings.items() if k not in ("sha256", "whet_version")}


# --- the answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "status", "said"),
    [
        (0.01, 0.2, "better", "Yes, in this run"),
        (-0.1, 0.2, "unsure", "Not clear"),
        (-0.2, -0.1, "worse", "No: in this run refinement is worse"),
        (0.0, 0.0, "same", "No: after refinement the test scores are those"),
    ],
)
def test_page_says_first_if_refinement_helped(run, low, high, status, said):
    gain = {"value": (low + high) / 2, "low": low, "high": high, "n": 10, "level": 0.95}
    change(run, lambda manifest: manifest["arms"]["ilr"].update(gain=gain))
    assert whet(["report", str(run)]).code == 0
    answer = read_json(run / "summary.json")["answer"]
    assert answer["status"] == status
    page = (run / "report.html").read_text()
    assert said in answer["headline"]
    assert page.index(answer["headline"]) < page.index("<table>")


def test_arms_that_score_the_same_are_ties(run):
    test = pq.read_table(run / "test.parquet")
    score = np.where(np.array(test["arm"]) == "dpo", 1.0, 0.0)
    rows = np.array(test["row"]) < 4
    score = np.where((np.array(test["arm"]) == "naive") & rows, 1.0, score)
    pq.write_table(test.set_column(4, "score", pa.array(score)), run / "test.parquet")

    def edit(manifest):
        for name, value in (("dpo", 0.9), ("naive", 0.8), ("ilr", 0.1)):
            manifest["arms"][name]["rounds"][-1]["score"]["value"] = value

    change(run, edit)
    best = summarise_ilr(run)["answer"]["best"]
    assert best["arm"] == "dpo"
    assert best["ties"] == []
    assert {o["arm"]: o["value"] for o in best["others"]}["ilr"] == 1.0
    pq.write_table(test.set_column(4, "score", pa.array(score * 0)), run / "test.parquet")
    assert set(summarise_ilr(run)["answer"]["best"]["ties"]) == {"sft", "sft-again", "ilr", "naive"}


def shown(run):
    """Return the summary of a run and its page, made anew."""
    ended = whet(["report", str(run)])
    assert ended.code == 0, ended
    return read_json(run / "summary.json"), (run / "report.html").read_text()


def test_one_arm(run):
    keep(run, "sft")
    summary, page = shown(run)
    assert summary["answer"]["status"] == "unknown"
    assert "No arm refines demonstrations." in page
    assert "No round proposed anything." in page
    assert "No demonstration was replaced." in page


def test_refinement_without_a_baseline(run):
    keep(run, "ilr")
    change(run, lambda manifest: manifest["arms"]["ilr"].update(gain=None))
    summary, page = shown(run)
    assert summary["answer"]["status"] == "unknown"
    assert "There is no finished arm sft" in page


def test_no_judge(run):
    keep(run, "sft", "naive")
    summary, page = shown(run)
    assert summary["answer"]["arm"] == "naive"
    assert summary["judges"] == summary["histograms"] == []
    assert "none was asked" in page
    assert "No proposal has a score." in page


def test_arms_that_ended_early(run):
    def edit(manifest):
        del manifest["arms"]["ilr"]["rounds"][1:]
        manifest["arms"]["ilr"].update(halted="stopped in round 1: <b>all the same</b>")
        manifest["arms"]["dpo"].update(rounds=[], halted="the loss is not a number", gain=None)

    change(run, edit)
    summary, page = shown(run)
    assert summary["answer"]["status"] == "halted"
    assert summary["answer"]["gain"] is None
    assert page.count("stopped in round 1: &lt;b&gt;all the same&lt;/b&gt;") == 2
    assert "the loss is not a number" in page
    assert "dpo" not in {other["arm"] for other in summary["answer"]["best"]["others"]}


def test_nothing_was_evaluated(run):
    (run / "test.parquet").unlink()

    def edit(manifest):
        manifest["rows"]["test"] = 0
        manifest["weak"]["score"] = None
        for arm in manifest["arms"].values():
            arm["gain"] = None
            for record in arm["rounds"]:
                record.update(score=None, label_accuracy=None, judge_right=None, judge_told=None)

    change(run, edit)
    for file in run.glob("arms/*/01/right.parquet"):
        file.unlink()
    summary, page = shown(run)
    assert summary["answer"]["status"] == "unknown"
    assert summary["answer"]["best"] is None
    assert "nothing was evaluated" in page
    assert "there are no references" in page
    assert summary["proposals"][0]["better"] is None


def test_damage_is_one_sentence(run):
    (run / "arms" / "ilr" / "01" / "judged.parquet").write_bytes(b"PAR1")
    ended = whet(["report", str(run)])
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "is damaged" in ended.err
    change(run, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(WhetError, match="has format 2"):
        summarise_ilr(run)


def test_runs_of_ilr_are_compared(run, tmp_path):
    """A run and a copy with another seed; more in test_report_compare_arms.py."""
    other, page = tmp_path / "other", tmp_path / "both.html"
    shutil.copytree(run, other)
    change(other, lambda manifest: manifest["settings"].update(seed=1))
    ended = whet(["report", str(run), str(other), "--out", str(page)])
    assert ended.code == 0, ended
    comparison, manifest = read_json(tmp_path / "both.json"), read_json(run / "run.json")
    assert comparison["settings"] == {"seed": [0, 1]}
    (measure,) = comparison["recipes"][0]["measures"]
    assert [arm["arm"] for arm in measure["arms"]] == list(manifest["arms"])
    for arm in measure["arms"]:
        score = manifest["arms"][arm["arm"]]["rounds"][-1]["score"]
        assert arm["runs"] == [score, score]
        assert arm["mean"]["value"] == pytest.approx(score["value"])
    gains = {d["first"]: d for d in measure["differences"] if d["second"] == "sft"}
    for name, difference in gains.items():
        gain = manifest["arms"][name]["gain"]
        assert difference["runs"] == [gain, gain]
        assert difference["mean"]["value"] == pytest.approx(gain["value"])
    assert comparison["recipes"][0]["answers"][0]["verdict"] in " ".join(ended.out.split())
    assert page.is_file()


def test_report_that_fails_leaves_the_run(finished, tmp_path, monkeypatch):
    """As when a font or a template is broken: run.json is written all the same."""
    import whet.ilr.pipeline as pipeline
    from whet.ilr.pipeline import Ilr
    from whet.ilr.recipe import load_recipe

    run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    for name in ("run.json", "summary.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    from dataclasses import replace

    def broken(folder, manifest):
        raise KeyError("a template")

    monkeypatch.setattr(pipeline, "summarise_ilr", broken)
    recipe = replace(load_recipe(run.parent / "recipe.yaml"), out=str(tmp_path / "run"))
    with pytest.warns(match="the report could not be made .* try again with 'whet report"):
        found = Ilr(recipe).run()
    assert found["arms"]["sft"]["rounds"]
    assert not (tmp_path / "run" / "report.html").exists()
    assert whet(["report", str(tmp_path / "run")]).code == 0


# --- what was replaced ----------------------------------------------------------------------------


def test_words_that_changed():
    old, new = compare_words("a  b\nc", "a x\nc d")
    assert "".join(part["text"] for part in old["parts"]) == "a  b\nc"
    assert "".join(part["text"] for part in new["parts"]) == "a x\nc d"
    assert [part["text"] for part in old["parts"] if part["changed"]] == ["b"]
    assert [part["text"] for part in new["parts"] if part["changed"]] == ["x", "d"]
    assert compare_words("", " ")[1] == {
        "characters": 1,
        "shown": 1,
        "parts": [{"text": " ", "changed": False}],
    }
    long, lines = compare_words("x" * 5000, "y\n" * 5000)
    assert (long["characters"], long["shown"]) == (5000, MOST_CHARACTERS)
    assert (lines["characters"], lines["shown"]) == (10_000, 2 * MOST_LINES)


def fill(run, completions, proposals):
    """Give the round of ``ilr`` other rows: 5 agree, 3 have no score, the others are judged."""
    n = len(completions)
    accepted = np.arange(n) % 2 == 0
    accepted[:8] = False
    score = np.where(accepted, 0.6 + 0.3 * np.arange(n) / n, 0.4 - 0.3 * np.arange(n) / n)
    odd = list(MARKUP)
    table = pa.table(
        {
            "row": np.arange(n) * 1000,
            "prompt": [odd[i % len(odd)] for i in range(n)],
            "completion": completions,
            "proposal": proposals,
            "agree": np.arange(n) < 5,
            "score": pa.array(np.where(np.arange(n) < 8, np.nan, score), from_pandas=True),
            "failure": [odd[i] if 5 <= i < 8 else None for i in range(n)],
            "accepted": accepted,
        }
    )
    folder = run / "arms" / "ilr" / "01"
    pq.write_table(table, folder / "judged.parquet")
    right = {"row": table["row"], "before": np.zeros(n), "after": np.tile([1.0, 0.0], n)[:n]}
    pq.write_table(pa.table(right), folder / "right.parquet")
    return table


def test_surest_replacements_and_rejections_are_listed(run):
    n = 60
    table = fill(run, [f"so {i}" for i in range(n)], [f"so {i + 1}" for i in range(n)])
    summary, page = shown(run)
    accepted = table.filter(table["accepted"])
    assert summary["replaced"]["of"] == accepted.num_rows == 26
    assert [row["row"] for row in summary["replaced"]["rows"]] == accepted["row"].to_pylist()[:5:-1]
    first = summary["replaced"]["rows"][0]
    assert (first["row"], first["before"]["right"], first["after"]["right"]) == (58_000, 0.0, 1.0)
    assert [row["row"] for row in summary["rejected"]["rows"]][:2] == [59_000, 57_000]
    assert (summary["rejected"]["of"], len(summary["rejected"]["rows"])) == (26, 10)
    assert "so <del>58</del>" in page
    assert "so <ins>59</ins>" in page
    (found,) = [p for p in summary["proposals"] if p["arm"] == "ilr"]
    keys = ("accepted", "agreed", "rejected", "unscored", "better", "worse", "equal")
    assert [found[key] for key in keys] == [26, 5, 26, 3, 26, 0, 0]
    assert sum(reason["rows"] for reason in found["reasons"]) == 3


def test_what_was_left_is_told_apart(run):
    """Preferred proposals that alpha left out are not rejected ones; all parts make the whole."""
    n = 60
    table = fill(run, [f"so {i}" for i in range(n)], [f"so {i + 1}" for i in range(n)])
    few = np.array(table["accepted"]) & (np.arange(n) >= 50)
    table = table.set_column(table.column_names.index("accepted"), "accepted", pa.array(few))
    pq.write_table(table, run / "arms" / "ilr" / "01" / "judged.parquet")
    summary, page = shown(run)
    (found,) = [p for p in summary["proposals"] if p["arm"] == "ilr"]
    keys = ("accepted", "agreed", "refused", "capped", "unscored")
    assert [found[key] for key in keys] == [5, 5, 26, 21, 3]
    assert found["rejected"] == found["refused"] + found["capped"]
    assert "preferred, but above alpha" in page
    assert '<td class="n">26</td><td class="n">21</td><td class="n">3</td>' in page
    assert "score at the threshold" not in page


def test_people_who_judged_few(run):
    def edit(manifest):
        manifest["settings"]["judge"] = "people:9"
        manifest["settings"]["arms"]["ilr"]["alpha"] = 0.3
        manifest["arms"]["ilr"]["rounds"][1].update(failed=21, disagreed=40)

    before, page = shown(run)
    assert before["answer"]["unjudged"] == []
    assert before["reproduce"]["people"] is False
    assert "people/" not in page
    change(run, edit)
    summary, page = shown(run)
    (said,) = summary["answer"]["unjudged"]
    assert said.startswith("ilr: 21 of 40 proposals that differ were not judged")
    assert page.index(said) < page.index("<table>")
    limits = [note for note in summary["answer"]["notes"] if "at most" in note]
    assert [note[:18] for note in limits] == ["ilr: at most 30 % "]
    assert "copy <code>people/</code> and <code>settings.json</code>" in page


@pytest.fixture(scope="module")
def hostile(finished, tmp_path_factory):
    """A run in which prompts, demonstrations, proposals, reasons and names are hostile."""
    run = tmp_path_factory.mktemp("hostile") / "<i>{{7*7}}$"
    shutil.copytree(finished[0], run, ignore=shutil.ignore_patterns("stages"))
    odd = [*MARKUP, *HOSTILE.values()]
    fill(
        run, odd, [f"{text} or {other}" for text, other in zip(odd, odd[1:] + odd[:1], strict=True)]
    )

    def edit(manifest):
        settings = manifest["settings"]
        settings["task"] = "<script>window.pwned = 1</script>{{7*7}}\u202e.yaml"
        settings["judge"] = 'reward:"><img src=x onerror=window.pwned=1>\x00'
        settings["model"] = "</code></pre><script>window.pwned = 1</script>\u202e"
        manifest["platform"] = manifest["versions"]["torch"] = "<b>&</b>"
        manifest["arms"]["dpo"]["halted"] = "</p><script>window.pwned = 1</script>\u202e\x1b"

    change(run, edit)
    ended = whet(["report", str(run)])
    assert ended.code == 0, ended
    return run


def test_hostile_rows_add_no_element(hostile):
    page = (hostile / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    plain = "head meta title style body main footer section nav ul li h1 h2 h3 p strong em figure"
    plain += " img a div table caption thead tbody tr th td bdi details summary pre code br html"
    assert {tag for tag, _ in elements.found} <= {*plain.split(), "del", "ins", "span"}
    for tag, given in elements.found:
        assert not {name for name in given if name.startswith("on") or name == "style"}
        for name in {"src", "href"} & set(given):
            start = "data:image/svg+xml;base64," if tag == "img" else "#"
            assert given[name].startswith(start)
    text = "".join(elements.said)
    assert sum(visible(markup)[:20] in text for markup in MARKUP) > len(MARKUP) / 2
    assert "{{7*7}}" in text
    assert {c for c in page if not c.isprintable()} <= set("\n\t\u200c\u200d\u00ad")
    assert "[U+202E]" in page
    assert len(page.encode()) < 1_500_000


def test_hostile_page_does_nothing_in_a_browser(browser, hostile):  # noqa: F811
    path = hostile / "report.html"
    tab, asked, said = opened(browser, path)
    for details in tab.locator("details").all():
        details.evaluate("d => d.open = true")
    assert tab.evaluate("window.pwned") is None
    assert {url for url in asked if not url.startswith("data:image/svg+xml;base64,")} == {
        path.as_uri()
    }
    assert said == []
    assert tab.locator("h1").count() == 1
    assert tab.locator("script, iframe, link, object, form").count() == 0
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert tab.evaluate("document.images.length") == 4
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_barrier(scheme, browser, hostile):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    tab, _, _ = opened(browser, hostile / "report.html", color_scheme=scheme)
    for details in tab.locator("details").all():
        details.evaluate("d => d.open = true")
    found = axe.Axe().run(tab).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []


def test_pictures_hold_what_they_are_drawn_from(finished):
    summary = read_json(finished[0] / "summary.json")
    scores = draw_scores(summary["arms"], summary["weak"]).decode()
    for arm in summary["arms"]:
        assert f"{arm['arm']} {arm['rounds'][-1]['score']['value']:.3f}" in scores
    assert draw_scores([], None) is None
    assert draw_proposals([]) is None
    assert b"ilr, round 1" in draw_proposals(summary["proposals"])
    bins = [{"low": k / 20, "high": (k + 1) / 20, "accepted": k, "rejected": 0} for k in range(20)]
    rounds = [{"round": k, "threshold": 0.5, "bins": bins} for k in range(1, 9)]
    drawn = draw_histograms(rounds)
    assert drawn == draw_histograms(rounds)
    assert b"round 6, threshold 0.500" in drawn
    assert b"round 7" not in drawn


def test_writing_the_page_elsewhere_needs_the_summary_alone(finished, tmp_path):
    run, _ = finished
    write_report(tmp_path, read_json(run / "summary.json"))
    assert (tmp_path / "report.html").read_bytes() == (run / "report.html").read_bytes()
