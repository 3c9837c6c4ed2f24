"""The page of a run: inert whatever the rows hold, readable by anybody, and small."""

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import flip, make_texts
from helpers import whet
from hostile import HOSTILE
from whet.report import pictures
from whet.report.page import render, write_report
from whet.report.summary import summarise
from whet.report.text import one_line, visible

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

#: What a page, a template, a style sheet, a picture or a reader could take for its own.
MARKUP = (
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "<svg onload='window.pwned = 1'><a href='javascript:window.pwned=1'>x</a></svg>",
    "{{7*7}} {% for x in y %} {# gone #}",
    "</style></details></table></main><h1>another page</h1>",
    "</code></pre><iframe src='https://example.org'></iframe>",
    "<!-- <![CDATA[ ]]> --> &lt;script&gt; &#x3C;b&#x3E;",
    "<link rel=stylesheet href=//example.org/x.css><meta http-equiv=refresh content=0>",
    "abc \u202egnitset\u202c \u2066isolate \u061c \u200f mark",
    "שלום עולם مرحبا بالعالم",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f c1 \x9b line\u2028par\u2029",
    "non-character \ufffe \uffff private \ue000 \U000e0041",
    "a" + "\u0300" * 300,
    "x" * 1_000_000,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 $x^2_{y}$ \\frac{1}{2} %s {0}",
    "\n\n\nlines\r\n" * 50,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A finished run in which everything that a user can name or write is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    n, gold = 100, 40  # the other 60 rows are nearly all listed
    truth = np.random.default_rng(0).integers(0, 2, n)
    odd = [*MARKUP, *HOSTILE.values()]
    labels = ("<script>window.pwned = 2</script>{{7*7}}", '$"><img onerror=x>\u202e\x00</style>$')
    table = {
        "<b>text</b>": [f"{text} {odd[i % len(odd)]}" for i, text in enumerate(make_texts(truth))],
        "{{llm}}": [labels[y] for y in flip(truth, 0.7)],
        "gold": [labels[y] if i < gold else None for i, y in enumerate(truth)],
    }
    path = folder / "<i>{{7*7}}\u202e$.parquet"
    pq.write_table(pa.table(table), path)
    words = ["refine", str(path), "--text", "<b>text</b>", "--pseudo", "{{llm}}"]
    ended = whet([*words, "--gold", "gold", "--guard", "off", "--out", str(folder / "run")])
    assert ended.code == 0, ended
    assert "warning" not in ended.err
    return folder / "run"


class Elements(HTMLParser):
    """The tags of a page and their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.said = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def page(hostile):
    return (hostile / "report.html").read_text(encoding="utf-8")


def test_hostile_rows_add_no_element(page):
    elements = Elements(page)
    plain = "head meta title style body main footer section nav ul li h1 h2 h3 p strong em figure"
    plain += " img a div table caption thead tbody tr th td bdi details summary pre code br html"
    known = set(plain.split())
    assert {tag for tag, _ in elements.found} <= known
    attributes = {name for _, given in elements.found for name in given}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}
    for tag, given in elements.found:
        for name in ("src", "href"):
            if name in given:
                start = "data:image/svg+xml;base64," if tag == "img" else "#"
                assert given[name].startswith(start)
    text = "".join(elements.said)
    assert sum(visible(markup)[:40] in text for markup in MARKUP) > len(MARKUP) / 2
    assert "whet refine '" in text
    assert "<i>{{7*7}}[U+202E]$.parquet" in text  # no 49: data is no template


def test_policy_forbids_scripts_and_the_network(page):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_nothing_hides_in_the_page(page):
    allowed = set("\n\t\u200c\u200d\u00ad")
    assert {c for c in page if not c.isprintable()} <= allowed
    assert "[U+202E]" in page
    assert "[U+0000]" in page


def test_long_texts_are_cut_and_say_so(page):
    assert re.search(r"1,000,0\d\d characters, the first 2,000", page)
    assert "x" * 2_001 not in page
    assert len(page.encode()) < 3_000_000


def test_worst_characters_stay_within_three_megabytes(hostile):
    summary = json.loads((hostile / "summary.json").read_text())
    for key in ("corrections", "least_certain"):
        row = summary[key]["rows"][0] | {
            "text": "\u202e" * 2_000,
            "characters": 10**6,
            "reason": '"' * 600,
            "annotator": "&" * 120,
            "refined": "'" * 120,
        }
        summary[key]["rows"] = [row] * 50
    assert len(render(summary).encode()) < 3_000_000


def test_pictures_hold_no_date_and_are_the_same_again(hostile):
    summary = json.loads((hostile / "summary.json").read_text())
    first, second = (
        [
            pictures.draw_rounds(summary["rounds"]),
            pictures.draw_flows(summary["changes"]),
            pictures.draw_lengths(summary["by_length"]),
            pictures.draw_calibration(summary["calibration"]),
        ]
        for _ in range(2)
    )
    assert first == second
    for svg in first:
        assert svg is not None
        assert b"<dc:date>" not in svg
        elements = list(ElementTree.fromstring(svg).iter())
        assert not {e.tag for e in elements} & {"{http://www.w3.org/2000/svg}script"}
        assert not [name for e in elements for name in e.attrib if name.startswith("on")]


def test_report_again_gives_the_same_bytes(hostile, tmp_path):
    before = {name: (hostile / name).read_bytes() for name in ("summary.json", "report.html")}
    write_report(tmp_path, summarise(hostile))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_marks_are_written_out_and_scripts_are_left():
    assert visible("a\u202eb\x1b[0m\ufeff") == "a[U+202E]b[U+001B][0m[U+FEFF]"
    family = "\U0001f468\u200d\U0001f469 می\u200cخواهم"
    assert visible(family) == family
    assert one_line("a \n b", 10) == "a b"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert one_line(" " * 1000 + "x", 10).endswith("…")


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser, path, **options):
    """Open a page without a network, and return it with what it asked for and said."""
    tab = browser.new_context(offline=True, **options).new_page()
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.goto(path.as_uri())
    return tab, asked, said


def test_hostile_page_does_nothing_in_a_browser(browser, hostile):
    path = hostile / "report.html"
    tab, asked, said = opened(browser, path)
    assert tab.evaluate("window.pwned") is None
    assert {url for url in asked if not url.startswith("data:image/svg+xml;base64,")} == {
        path.as_uri()
    }
    assert said == []
    assert tab.locator("h1").count() == 1
    assert tab.locator("script, iframe, link, object, form").count() == 0
    for details in tab.locator("details").all()[:5]:
        details.locator("summary").click()
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert tab.evaluate("document.images.length") == 4
    for width in (1100, 400):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_narrow_page_cuts_nothing_off(browser, hostile, tmp_path):
    """What is wider than a phone wraps or scrolls in a box of its own, and no head lies on another.

    Class names are as long as a summary lets them be, and without a place to break.
    """
    summary = json.loads((hostile / "summary.json").read_text())
    text = json.dumps(summary)
    for label, letter in zip(summary["confusion"]["classes"], "WM", strict=True):
        text = text.replace(json.dumps(label), json.dumps(letter * 120))
    summary = json.loads(text)
    summary["answer"]["warnings"] = ["W" * 600]
    assert summary["confusion"]["classes"] == ["W" * 120, "M" * 120]
    write_report(tmp_path, summary)
    tab, _, _ = opened(browser, tmp_path / "report.html", viewport={"width": 320, "height": 700})
    outside = """[...document.querySelectorAll('main *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.right > innerWidth && !e.closest('.wide, figure') && box.width > 0;
    }).map(e => e.outerHTML.slice(0, 80))"""
    for width in (320, 1100):
        tab.set_viewport_size({"width": width, "height": 700})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(outside) == []
        scrolls = "[...document.querySelectorAll('.wide, figure')].map(e => [e.tabIndex, \
            getComputedStyle(e).overflowX]).every(([tab, x]) => tab === 0 && x === 'auto')"
        assert tab.evaluate(scrolls)
        heads = """[...document.querySelectorAll('th bdi')].filter(e => {
            const inner = e.getBoundingClientRect();
            const outer = e.closest('th').getBoundingClientRect();
            return inner.left < outer.left - 1 || inner.right > outer.right + 1
                || e.scrollWidth > e.clientWidth + 1;
        }).length"""
        assert tab.locator("th bdi").count() > 4
        assert tab.evaluate(heads) == 0
    tab.set_viewport_size({"width": 320, "height": 700})
    widths = "[...document.images].map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    assert all(shown > 0.95 for shown in tab.evaluate(widths))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_barrier(scheme, browser, hostile):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    tab, _, _ = opened(browser, hostile / "report.html", color_scheme=scheme)
    found = axe.Axe().run(tab).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []


def test_comparison_has_no_serious_barrier(browser, hostile, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    copy = tmp_path / "<b>copy</b>\u202e"
    shutil.copytree(hostile, copy)
    out = tmp_path / "compare.html"
    ended = whet(["report", str(hostile), str(copy), "--out", str(out)])
    assert ended.code == 0, ended
    tab, _, said = opened(browser, out)
    assert said == []
    assert tab.locator("h1").count() == 1
    found = axe.Axe().run(tab).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
