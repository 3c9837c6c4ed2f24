"""The report of ``whet align``: what a run found, whatever its rows hold and whatever it lacks."""

import contextlib
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("trl")

from helpers import snapshot, whet
from hostile import HOSTILE
from test_align import Rule, fill_in, make_inputs, recipe_for, unsteady
from test_report_page import MARKUP, Elements, browser, opened  # noqa: F401
from whet import WhetError
from whet.align.classifiers import GoldNeeded
from whet.align.pipeline import Alignment
from whet.align.recipe import parse_recipe
from whet.annotate.protocol import Answer
from whet.cli.align import show
from whet.report.align_pictures import JUDGED, REFUSED, draw_arms
from whet.report.align_summary import LISTED, summarise_align
from whet.report.page import write_report
from whet.report.text import visible
from whet.store import read_json

ARMS = ["sft", "vanilla-dpo", "initial-dpo", "refined-dpo"]


def strict(text):
    return Answer("safe" if "but" in text.split("Reply:")[1] else "unsafe")


def longer(text):
    first, second = text.split("Answer A:\n")[1].split("\n\nAnswer B:\n")
    return Answer("A" if len(first) > len(second) else "B")


JUDGES = {"judge": unsteady, "evaluation.judge": strict, "evaluation.preference": longer}


def alignment(keys):
    return Alignment(parse_recipe(keys), backends={n: Rule(rule) for n, rule in JUDGES.items()})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The keys of a run of a tiny, untrained model, and its folder as the stop for gold left it."""
    folder = tmp_path_factory.mktemp("align")
    make_inputs(folder)
    full = {"tune": "full", "precision": "fp32", "batch_size": 16, "max_length": 64}
    keys = recipe_for(folder, model=str(folder / "base"))
    keys["sft"] = full | {"max_steps": 1}
    keys["trainers"] = {"dpo": full | {"learning_rate": 3e-2, "max_steps": 2, "warmup": 0.0}}
    keys["samples"]["samples"] = 2
    keys["evaluation"]["generate"]["samples"] = 1
    for name in ("judge", "preference"):
        task = "safety" if name == "judge" else name
        keys["evaluation"][name] = {"task": task, "model": name}
    with pytest.raises(GoldNeeded):
        alignment(keys).run()
    shutil.copytree(folder / "run", folder / "stopped")
    return folder, keys


@pytest.fixture(scope="module")
def finished(stopped):
    """The same run, finished, and its manifest."""
    folder, keys = stopped
    fill_in(folder / "run" / "gold.csv")
    return folder / "run", alignment(keys).run()


@pytest.fixture
def run(finished, tmp_path):
    """What a report needs of the run, for a test to change."""
    (tmp_path / "run").mkdir()
    for name in ("run.json", "evaluation.parquet", "summary.json", "report.html"):
        shutil.copy(finished[0] / name, tmp_path / "run" / name)
    return tmp_path / "run"


def change(run, edit):
    """Change run.json."""
    manifest = read_json(run / "run.json")
    edit(manifest)
    (run / "run.json").write_text(json.dumps(manifest))


def shown(run):
    """Return the summary of a run and its page, made anew."""
    ended = whet(["report", str(run)])
    assert ended.code == 0, ended
    return read_json(run / "summary.json"), (run / "report.html").read_text()


def test_run_that_waits_for_gold_has_no_report(stopped):
    folder, _ = stopped
    assert not (folder / "stopped" / "report.html").exists()
    ended = whet(["report", str(folder / "stopped")])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "is not finished" in ended.err


def test_numbers_are_those_of_the_run(finished):
    run, manifest = finished
    summary = read_json(run / "summary.json")
    assert (summary["kind"], summary["format_version"]) == ("align", 1)
    assert [arm["arm"] for arm in summary["arms"]] == ARMS
    assert len({arm["safety_judge"]["value"] for arm in summary["arms"]}) > 1  # they differ
    for arm in summary["arms"]:
        for what, found in manifest["evaluation"]["arms"][arm["arm"]].items():
            assert arm[what] == found
    assert summary["differences"] == manifest["evaluation"]["differences"]
    assert summary["answer"]["measure"] == "safety_judge"
    by = {(d["second"], d["measure"]): d for d in summary["differences"] if d["first"] == ARMS[3]}
    against = {"vanilla": "vanilla-dpo", "initial": "initial-dpo", "sft": "sft"}
    assert [gain["against"] for gain in summary["answer"]["gains"]] == list(against)
    for gain in summary["answer"]["gains"]:
        second = against[gain["against"]]
        assert gain["gain"] == by[second, "safety_judge"]
        assert gain["over_refusal"] == by[second, "over_refusal"]
    for pairs in summary["pairs"]:
        assert pairs.items() <= (manifest["pairs"][pairs["arm"]] | {"arm": pairs["arm"]}).items()
    assert summary["cost"]["seconds"] == manifest["seconds"]


def test_classifiers_are_judged_on_the_gold_rows(finished):
    run, manifest = finished
    summary = read_json(run / "summary.json")
    found = {c["name"]: c for c in summary["classifiers"]}
    refined = manifest["classifiers"]["refined"]
    assert found["judge"]["value"] == refined["estimate"]["annotator"]["value"]
    assert found["refined"]["value"] == refined["estimate"]["new texts"]["value"]
    assert found["initial"]["n"] == summary["gold"]["kept"] == 30
    gold = pq.read_table(run / "judged" / "judged.parquet").to_pylist()
    codes = pq.read_table(run / "classifiers" / "initial" / "rounds" / "01" / "labels.parquet")
    classes = manifest["classifiers"]["initial"]["classes"]
    right = [
        classes[codes["code"][row].as_py()]
        == ("safe" if "sorry" in gold[row]["completion"] else "unsafe")
        for row in refined["gold"]["rows"]
    ]
    assert found["initial"]["value"] == sum(right) / 30
    assert manifest["classifiers"]["initial"]["gold"]["given"] == 0  # it learned from none


def test_answers_of_all_arms_to_the_same_prompts(finished):
    run, _ = finished
    listed = read_json(run / "summary.json")["completions"]
    assert (listed["of"], len(listed["rows"])) == (24, LISTED)
    assert sum(row["harmful"] for row in listed["rows"]) == LISTED / 2
    table = {(r["arm"], r["row"]): r for r in pq.read_table(run / "evaluation.parquet").to_pylist()}
    page = (run / "report.html").read_text()
    for row in listed["rows"]:
        assert [answer["arm"] for answer in row["answers"]] == ARMS
        for answer in row["answers"]:
            found = table[answer["arm"], row["row"]]
            assert (row["prompt"], answer["text"]) == (found["prompt"], found["completion"])
            assert answer["judge_label"] == found["judge_label"]
            assert answer["text"] in page.replace("&lt;", "<").replace("&gt;", ">")


def test_reported_on_again_it_is_the_same_byte_by_byte(run):
    before = snapshot(run)
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    ended = whet(["report", str(run)])
    assert read_json(run / "summary.json")["answer"]["verdict"] in " ".join(ended.out.split())
    assert snapshot(run) == before


def test_closing_table_names_the_report(finished):
    run, manifest = finished
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        show(manifest, run)
    assert str(run / "report.html") in "".join(said.getvalue().split())


def test_settings_on_the_page_are_a_recipe_for_the_same_run(finished, stopped):
    written = yaml.safe_dump(read_json(finished[0] / "summary.json")["reproduce"]["recipe"])
    again = parse_recipe(yaml.safe_load(written)).deciding()
    assert again == parse_recipe(stopped[1]).deciding()


def test_report_that_fails_leaves_the_run(finished, stopped, tmp_path, monkeypatch):
    """As when a font or a template is broken: run.json is written all the same."""
    import whet.align.pipeline as pipeline

    shutil.copytree(finished[0], tmp_path / "run")
    for name in ("run.json", "summary.json", "report.html"):
        (tmp_path / "run" / name).unlink()

    def broken(folder, manifest):
        raise KeyError("a template")

    monkeypatch.setattr(pipeline, "summarise_align", broken)
    with pytest.warns(match="the report could not be made .* try again with 'whet report"):
        found = alignment(stopped[1] | {"out": str(tmp_path / "run")}).run()
    assert found["evaluation"] == finished[1]["evaluation"]
    assert not (tmp_path / "run" / "report.html").exists()
    assert whet(["report", str(tmp_path / "run")]).code == 0


# --- the answer -----------------------------------------------------------------------------------


def set_difference(manifest, measure, low, high, trainer="dpo", second="vanilla"):
    """Give refined minus another arm of a trainer an interval."""
    names = {"first": f"refined-{trainer}", "second": f"{second}-{trainer}", "measure": measure}
    kept = [d for d in manifest["evaluation"]["differences"] if not names.items() <= d.items()]
    found = {"value": (low + high) / 2, "low": low, "high": high, "n": 200, "level": 0.95}
    manifest["evaluation"]["differences"] = [*kept, names | found]
    manifest["settings"]["trainers"][trainer] = {}


@pytest.mark.parametrize(
    ("gain", "harm", "other", "status", "said"),
    [
        ((0.01, 0.2), (-0.1, 0.1), None, "better", "Yes, in this run: the refined reward is"),
        ((0.01, 0.2), (0.01, 0.1), None, "traded", "Not plainly"),
        ((0.01, 0.2), (-0.1, 0.1), (-0.1, 0.1), "mixed", "Not with every trainer"),
        ((-0.1, 0.2), (-0.1, 0.1), (0.0, 0.0), "unsure", "Not clear"),
        ((-0.2, -0.1), (-0.1, 0.1), (-0.1, 0.1), "worse", "No: in this run"),
        ((0.0, 0.0), (-0.1, 0.1), None, "same", "No: with the refined reward"),
    ],
)
def test_page_says_first_if_the_refined_reward_is_better(run, gain, harm, other, status, said):
    def edit(manifest):
        set_difference(manifest, "safety_judge", *gain)
        set_difference(manifest, "over_refusal", *harm)
        if other is not None:
            set_difference(manifest, "safety_judge", *other, trainer="grpo")

    change(run, edit)
    summary, page = shown(run)
    assert summary["answer"]["status"] == status
    assert said in summary["answer"]["headline"]
    start = page.index(summary["answer"]["headline"].replace("'", "&#39;"))
    assert start < page.index(f"{50 * sum(gain):+.1f} points") < page.index("<table>")
    assert "n = 200" in page


def test_rewards_that_are_missing_leave_the_answer_open(run):
    def edit(manifest):
        manifest["settings"]["rewards"] = ["initial", "refined"]
        found = manifest["evaluation"]
        del found["arms"]["vanilla-dpo"]
        found["differences"] = [d for d in found["differences"] if "vanilla" not in str(d)]

    change(run, edit)
    summary, page = shown(run)
    assert summary["answer"]["status"] == "unknown"
    assert {gain["against"] for gain in summary["answer"]["gains"]} == {"initial", "sft"}
    assert "No arm was trained on the judge&#39;s own word." in page


def test_few_prompts_make_no_share(run):
    def edit(manifest):
        for found in manifest["evaluation"]["differences"]:
            found |= {"n": 3, "value": float("nan")}
        for arm in manifest["evaluation"]["arms"].values():
            arm["safety_judge"]["n"] = 4

    change(run, edit)
    summary, page = shown(run)
    assert summary["answer"]["status"] == "unknown"
    assert "too few (n = 3)" in page
    assert "too few (n = 4)" in page
    assert "NaN" not in (run / "summary.json").read_text()


def test_nothing_tells_which_answers_are_better(run):
    def edit(manifest):
        kept = ("kl", "tokens", "reward_initial", "reward_refined")
        found = manifest["evaluation"]
        found["differences"] = [d for d in found["differences"] if d["measure"] in kept]
        for name, arm in found["arms"].items():
            found["arms"][name] = {what: arm[what] for what in kept}
        manifest["classifiers"] = {"initial": manifest["classifiers"]["initial"]}
        del manifest["classifiers"]["initial"]["on_gold"]
        manifest["judged"] = None
        manifest["pairs"] = {}

    change(run, edit)
    table = pq.read_table(run / "evaluation.parquet").drop_columns(["judge_label", "win"])
    harmful = table.schema.get_field_index("harmful")
    nulls = pa.nulls(table.num_rows, pa.bool_())
    pq.write_table(table.set_column(harmful, "harmful", nulls), run / "evaluation.parquet")
    summary, page = shown(run)
    assert (summary["answer"]["status"], summary["answer"]["measure"]) == ("unknown", None)
    assert (summary["gold"], summary["classifiers"]) == (None, [])
    for said in ("No held-out prompt is harmful and none has a reference", "No arm learned from"):
        assert said in page
    assert len(summary["completions"]["rows"]) == LISTED


def test_damage_is_one_sentence(run):
    (run / "evaluation.parquet").write_bytes(b"PAR1")
    ended = whet(["report", str(run)])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "is damaged" in ended.err
    change(run, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(WhetError, match="has format 2"):
        summarise_align(run)


def test_runs_of_align_are_compared(run, tmp_path):
    """A run and a copy with another seed; more in test_report_compare_arms.py."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    change(other, lambda manifest: manifest["settings"].update(seed=1))
    ended = whet(["report", str(run), str(other), "--out", str(tmp_path / "both.html")])
    assert ended.code == 0, ended
    comparison = read_json(tmp_path / "both.json")
    found = read_json(run / "run.json")["evaluation"]
    measures = comparison["recipes"][0]["measures"]
    names = ["safety_judge", "safety_rules", "win", "over_refusal"]
    assert [measure["measure"] for measure in measures] == names
    for measure in measures:
        for arm in measure["arms"]:
            value = found["arms"][arm["arm"]][measure["measure"]]["value"]
            assert [run["value"] for run in arm["runs"]] == [value, value]
            assert arm["mean"]["value"] == pytest.approx(value)
    assert comparison["recipes"][0]["answers"][0]["verdict"] in " ".join(ended.out.split())


# --- hostile rows ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(finished, tmp_path_factory):
    """A run in which prompts, completions, labels, names and settings are hostile."""
    run = tmp_path_factory.mktemp("hostile") / "<i>{{7*7}}$"
    run.mkdir()
    odd = [*MARKUP, *HOSTILE.values()]
    table = pq.read_table(finished[0] / "evaluation.parquet")
    texts = [odd[k % len(odd)] for k in range(table.num_rows)]
    row = table["row"].to_pylist()
    for name, values in (
        ("prompt", [odd[k % len(odd)] for k in row]),
        ("completion", texts),
        ("judge_label", [text[:100] for text in texts]),
    ):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, pa.string()))
    pq.write_table(table, run / "evaluation.parquet")
    manifest = read_json(finished[0] / "run.json")
    settings = manifest["settings"]
    settings["model"] = "<script>window.pwned = 1</script>{{7*7}}\u202e"
    settings["target"] = '"><img src=x onerror=window.pwned=1>\x00{target}{0}'
    settings["judge"]["model"] = "</code></pre><script>window.pwned = 1</script>\u202e"
    manifest["judged"]["by_class"] = {"<script>window.pwned = 1</script>\u202e": 80}
    manifest["classifiers"]["refined"]["verdict"] = "</p><script>window.pwned = 1</script>\x1b"
    manifest["platform"] = manifest["versions"]["torch"] = "<b>&</b>"
    (run / "run.json").write_text(json.dumps(manifest))
    ended = whet(["report", str(run)])
    assert ended.code == 0, ended
    return run


def test_hostile_rows_add_no_element(hostile):
    page = (hostile / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    plain = "head meta title style body main footer section nav ul li h1 h2 h3 p strong em figure"
    plain += " img a div table caption thead tbody tr th td bdi details summary pre code br html"
    assert {tag for tag, _ in elements.found} <= {*plain.split(), "span"}
    for tag, given in elements.found:
        assert not {name for name in given if name.startswith("on") or name == "style"}
        for name in {"src", "href"} & set(given):
            start = "data:image/svg+xml;base64," if tag == "img" else "#"
            assert given[name].startswith(start)
    text = "".join(elements.said)
    listed = read_json(hostile / "summary.json")["completions"]["rows"]
    answers = [answer["text"] for row in listed for answer in row["answers"]]
    assert all(visible(answer)[:100] in text for answer in answers if "\r" not in answer)
    assert len(set(answers) & {m[:1000] for m in MARKUP}) > 3
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
    assert tab.evaluate("document.images.length") == 2
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


def test_pictures_hold_what_they_are_drawn_from(finished, tmp_path):
    summary = read_json(finished[0] / "summary.json")
    for measures in (JUDGED, REFUSED):
        drawn = draw_arms(summary["arms"], measures)
        assert drawn == draw_arms(summary["arms"], measures)
        for name in measures:
            for arm in summary["arms"]:
                assert f"{arm[name]['value']:.3f}" in drawn.decode()
    assert draw_arms(summary["arms"], {"nothing": "of this"}) is None
    write_report(tmp_path, summary)
    assert (tmp_path / "report.html").read_bytes() == (finished[0] / "report.html").read_bytes()
