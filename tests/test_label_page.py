"""The page of ``whet label``, as people use it: a real browser, a real server, real sessions."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pyarrow.parquet as pq
import pytest

from helpers import WHET, whet
from hostile import HOSTILE
from whet import WhetError
from whet.review.comparing import open_comparison
from whet.review.labelling import open_labels
from whet.review.server import listen, serve

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        paths = [shutil.which(name) for name in BROWSERS] + [running.chromium.executable_path]
        path = next((path for path in paths if path and Path(path).exists()), None)
        if path is None:
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
        found = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """Open pages; at the end nothing may have been asked elsewhere, popped up or failed."""
    bad, contexts = [], []

    def open_page(address, who=None, width=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        home = urlsplit(address).netloc
        context.on("request", lambda r: urlsplit(r.url).netloc == home or bad.append(r.url))
        page.on("pageerror", lambda error: bad.append(f"error: {error}"))
        page.on("dialog", lambda dialog: bad.append(f"dialog: {dialog.message}"))
        page.on("popup", lambda popup: bad.append(f"popup: {popup.url}"))
        page.on("console", lambda m: "Content Security" in m.text and bad.append(m.text))
        page.goto(address + (f"#who={who}" if who else ""))
        if who:
            page.wait_for_selector("#work:not([hidden]), #end:not([hidden]), #start:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not bad


@contextlib.contextmanager
def served(session):
    """Serve a session in a thread, and give its address."""
    said, ready = [], threading.Event()

    def say(line):
        said.append(line)
        ready.set()

    options = {"port": None, "browser": False, "say": say}
    thread = threading.Thread(target=serve, args=(session,), kwargs=options, daemon=True)
    thread.start()
    assert ready.wait(20)
    address = said[0].split()[-1]
    try:
        yield address
    finally:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(address + "api/finish", json={})
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def running(args):
    """Run the command as users do, and give the process and the address that it prints."""
    process = subprocess.Popen(
        [WHET, "label", *map(str, args), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def texts(n):
    return [f"{'WIN A PRIZE' if i % 3 == 0 else 'see you soon'} number {i}" for i in range(n)]


def label_session(tmp_path, count=20, rows=None, **options):
    rows = texts(count) if rows is None else rows
    table = {"text": rows, "llm": ["spam" if i % 4 == 0 else "ham" for i in range(len(rows))]}
    options = {"pseudo": "llm", "n": len(rows)} | options
    return open_labels(table, text="text", out=tmp_path / "gold.parquet", **options)


def proposals(tmp_path, n=3):
    path = tmp_path / "proposals.jsonl"
    rows = [
        {"prompt": f"Question {i}?", "completion": f"old {i}", "proposal": f"new {i}"}
        | {"criterion": "The <b>new</b> one is better."}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def heading(page):
    return page.text_content("#row-title")


def shown(page):
    return page.text_content(".text")


def press(page, key):
    """Press a key and wait until another row or the end is on the page."""
    before = page.evaluate("document.title + document.getElementById('row-title').textContent")
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.title + document.getElementById('row-title').textContent !== before"
        " && !document.body.classList.contains('busy')",
        arg=before,
    )


def until_says(page, selector, text):
    """Wait until an element holds a text."""
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).textContent.includes(text)",
        arg=[selector, text],
    )


def until_shows(page, text):
    """Wait until the panel shows a text, with a tab between the cells of a row."""
    page.wait_for_function(
        "text => document.querySelector('#panel').innerText.includes(text)", arg=text
    )


def right_key(page):
    return "2" if "PRIZE" in shown(page) else "1"


def label_all(page, key=right_key):
    """Answer until the end; return the texts that were asked."""
    asked = []
    while page.is_hidden("#end"):
        asked.append(shown(page))
        press(page, key(page))
    page.wait_for_selector("#end-next:not([hidden])")
    return asked


def gold(path):
    table = pq.read_table(path)
    return dict(zip(table["text"].to_pylist(), table["gold"].to_pylist(), strict=True))


def truth(rows):
    return {text: "spam" if "PRIZE" in text else "ham" for text in rows}


# --- labelling ------------------------------------------------------------------------------------


def test_twenty_rows_by_keyboard_with_a_reload(tmp_path, visit):
    session = label_session(tmp_path)
    with served(session) as address:
        page = visit(address)
        page.fill("#name", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#work:not([hidden])")
        first = []
        for k in range(8):
            assert heading(page) == f"Row {k + 1} of 20"
            first.append(shown(page))
            press(page, right_key(page))
        page.reload()
        page.wait_for_selector("#work:not([hidden])")
        assert page.text_content("#who") == "ann"
        assert page.text_content("#count") == "8 of 20"
        rest = label_all(page)
        assert "whet refine" in page.text_content("#end-command")
        assert "gold.parquet" in page.text_content("#end-path")
        page.click("#finish")
        page.wait_for_selector("#over:not([hidden])")
    assert sorted(first + rest) == sorted(texts(20))  # each row was asked once
    assert gold(tmp_path / "gold.parquet") == truth(texts(20))


def test_a_killed_server_loses_nothing_and_gets_the_answer_that_the_page_kept(tmp_path, visit):
    table = tmp_path / "in.jsonl"
    table.write_text("".join(json.dumps({"t": text}) + "\n" for text in texts(7)))
    args = [table, "--text", "t", "--classes", "ham,spam", "--out", tmp_path / "gold.parquet"]
    asked = []
    with running(args) as (process, address):
        page = visit(address, "ann")
        for _ in range(3):
            asked.append(shown(page))
            press(page, right_key(page))
        asked.append(shown(page))
        process.kill()
        process.wait()
        page.keyboard.press(right_key(page))  # nobody is there to take it
        page.wait_for_selector("#trouble:not([hidden])")
        assert "start it again with the same command" in page.text_content("#trouble")
        assert shown(page) == asked[-1]
    with running(args) as (process, again):
        assert again == address
        until_says(page, "#count", "4 of 7")
        assert page.is_hidden("#trouble")
        asked += label_all(page)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "7 of 7 rows" in out
    assert sorted(asked) == sorted(texts(7))
    found = pq.read_table(tmp_path / "gold.parquet").to_pylist()
    assert {row["t"]: row["gold"] for row in found} == truth(texts(7))


def test_undo_skip_unsure_and_note(tmp_path, visit):
    session = label_session(tmp_path, 4)
    with served(session) as address:
        page = visit(address, "ann")
        first = shown(page)
        press(page, "s")
        second = shown(page)
        press(page, "2")
        press(page, "u")
        assert shown(page) == second
        assert "your answer before" in page.text_content("#answers .chosen")
        page.keyboard.press("n")
        page.keyboard.type("1 2 s u h?")  # keys in a field are text
        page.keyboard.press("Enter")
        press(page, "1")
        until_says(page, "#panel", "1 skipped")
        third = shown(page)
        assert page.is_hidden("#note-box")
        press(page, "0")
        press(page, "1")
        assert shown(page) == first  # what was skipped comes once more
        press(page, "1")
        page.wait_for_selector("#end-next:not([hidden])")
        assert "3 answered, 1 unsure" in page.text_content("#end-count")
        press(page, "u")
        assert shown(page) == first
        for _ in range(9):  # more than there is to take back
            page.keyboard.press("u")
            page.wait_for_selector("body:not(.busy)")
        assert "no answer to take back" in page.text_content("#trouble")
        assert page.text_content("#count") == "0 of 4"
        label_all(page, lambda page: {second: "1", third: "0"}.get(shown(page), "2"))
    rows = {row["text"]: row for row in pq.read_table(tmp_path / "gold.parquet").to_pylist()}
    assert (rows[third]["gold"], rows[first]["gold"], rows[second]["gold"]) == (None, "spam", "ham")


def test_a_note_is_kept_with_its_answer(tmp_path, visit):
    session = label_session(tmp_path, 2)
    with served(session) as address:
        page = visit(address, "ann")
        text = shown(page)
        page.click("#actions button:has-text('Note')")
        page.keyboard.type("odd <b>one</b>")
        page.keyboard.press("Escape")
        press(page, "1")
        assert page.input_value("#note") == ""
        label_all(page)
    rows = {row["text"]: row for row in pq.read_table(tmp_path / "gold.parquet").to_pylist()}
    assert rows[text]["gold_note"] == "odd <b>one</b>"


def test_a_key_held_down_is_one_answer_and_keys_can_be_turned_off(tmp_path, visit):
    session = label_session(tmp_path, 6)
    with served(session) as address:
        page = visit(address, "ann")
        page.keyboard.down("1")
        for _ in range(5):
            page.keyboard.down("1")  # the browser marks these as repeated
        page.keyboard.up("1")
        until_says(page, "#count", "1 of 6")
        page.keyboard.press("Control+1")
        page.keyboard.press("h")
        assert page.is_visible("#help")
        assert "Unsure" in page.text_content("#help-keys")
        page.keyboard.press("2")  # not an answer while help is open
        page.uncheck("#keys-on")
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        page.focus("#answers button >> nth=1")
        press(page, "Enter")  # a button is a button
        assert page.text_content("#count") == "2 of 6"
    assert session.progress("ann")["answered"] == 2


def test_the_annotators_label_is_hidden_unless_asked_for(tmp_path, visit):
    for show in (False, True):
        folder = tmp_path / str(show)
        folder.mkdir()
        session = label_session(folder, 3, show_pseudo=show)
        with served(session) as address:
            page = visit(address, "ann")
            row = httpx.post(address + "api/next", json={"who": "ann"}).json()["item"]
            assert (row["pseudo"] is not None) is show
            assert page.is_visible("#before") is show
            if show:
                assert page.text_content("#before") == f"The annotator says {row['pseudo']}"
                page.keyboard.press("p")
                assert page.is_hidden("#before")
                press(page, "1")
                assert page.is_hidden("#before")  # until it is asked for again
            else:
                assert page.get_by_role("button", name="Annotator's label").count() == 0


def test_many_classes_have_keys_and_a_box_that_narrows_them(tmp_path, visit):
    classes = [f"kind {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)]
    session = label_session(tmp_path, 3, pseudo=None, classes=classes)
    with served(session) as address:
        page = visit(address, "ann")
        buttons = page.locator("#answers button").all_text_contents()
        assert buttons[:11] == [
            *(f"kind a{c}{k}" for c, k in zip("abcdefghi", "123456789", strict=True)),
            "kind aja",
            "kind akb",
        ]
        keys = [text[7:] for text in buttons if len(text) == 8]
        assert len(keys) == len(set(keys))
        assert not set(keys) & set("0suhnp?/")
        asked = [shown(page)]
        press(page, "b")
        page.keyboard.press("/")
        page.keyboard.type("KIND BM")
        assert page.locator("#answers button:visible").all_text_contents() == ["kind bm"]
        asked.append(shown(page))
        press(page, "Enter")
        assert page.locator("#answers button:visible").count() == 40
        label_all(page, lambda page: "1")
    found = gold(tmp_path / "gold.parquet")
    assert [found[text] for text in asked] == ["kind ak", "kind bm"]


def test_a_box_that_finds_no_class_says_so(tmp_path, visit):
    session = label_session(tmp_path, 3, pseudo=None, classes=[f"kind {i}" for i in range(20)])
    with served(session) as address:
        page = visit(address, "ann")
        page.keyboard.press("/")
        page.keyboard.type("kind x")
        assert page.text_content("#unmatched") == "No label has this in its name."
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "filter"
        page.keyboard.press("Backspace")
        assert page.text_content("#unmatched") == ""
        page.keyboard.type("19")
        press(page, "Enter")
    assert session.progress("ann")["answered"] == 1


def test_a_key_while_an_answer_is_stored_is_no_answer_to_the_next_row(tmp_path, visit):
    session = label_session(tmp_path, 3)
    with served(session) as address:
        page = visit(address, "ann")
        held = []
        page.route("**/api/answer", lambda route: held.append(route))
        page.keyboard.press("1")
        page.wait_for_selector("body.busy")
        page.keyboard.press("2")
        until_says(page, "#dropped", "was not taken")
        assert page.get_attribute("#dropped", "role") == "status"
        held[0].continue_()
        page.unroute("**/api/answer")
        until_says(page, "#row-title", "Row 2")
        assert page.is_visible("#dropped")  # until the next key
        assert page.text_content("#count") == "1 of 3"
        press(page, "2")
        assert page.text_content("#dropped") == ""
        assert page.text_content("#count") == "2 of 3"


def test_without_single_keys_the_focus_stays_at_the_answers(tmp_path, visit):
    session = label_session(tmp_path, 5)
    focus = "document.activeElement === document.querySelector('#answers button')"
    with served(session) as address:
        page = visit(address, "ann")
        page.keyboard.press("h")
        page.uncheck("#keys-on")
        page.keyboard.press("Escape")
        page.focus("#answers button >> nth=1")
        for k in range(2, 4):
            page.keyboard.down("Enter")
            until_says(page, "#row-title", f"Row {k}")
            page.keyboard.down("Enter")  # the browser marks this as repeated
            page.keyboard.up("Enter")
            assert page.evaluate(focus)
        for name in ("Skip", "Undo"):
            page.get_by_role("button", name=name).focus()
            press(page, "Enter")
            assert page.evaluate(focus)
    assert session.progress("ann")["answered"] == 2


def test_words_are_marked_and_stay_text(tmp_path, visit):
    rows = ["A cat (the cat's) saw $5.00 <mark>", "no animal here", "CAT"]
    session = label_session(tmp_path, rows=rows, pseudo=None, classes=["a", "b"])
    with served(session) as address:
        page = visit(address, "ann")
        page.fill("#find", "cat $5.0 <mark>")
        page.keyboard.press("Escape")
        for _ in rows:
            marks = page.locator("mark").all_text_contents()
            wanted = {rows[0]: ["cat", "cat", "$5.0", "<mark>"], rows[1]: [], rows[2]: ["CAT"]}
            assert marks == wanted[shown(page)]
            assert page.text_content("#found") == f"{len(marks)} found"
            page.keyboard.press("1")
            page.wait_for_timeout(100)


def test_two_annotators_kappa_and_disagreements_settled(tmp_path, visit):
    session = label_session(tmp_path, 12)
    with served(session) as address:
        label_all(visit(address, "ann"))
        page = visit(address, "bob")
        wrong = {"WIN A PRIZE number 3", "see you soon number 4", "see you soon number 5"}
        flip = {"1": "2", "2": "1"}
        for _ in range(10):
            press(page, flip[right_key(page)] if shown(page) in wrong else right_key(page))
            # bob is not told what ann says
            assert not re.search("kappa|disagree|settled", page.text_content("#panel"))
            assert page.is_hidden("#settle-open")
        label_all(page, lambda p: flip[right_key(p)] if shown(p) in wrong else right_key(p))
        page.wait_for_selector("#settle-open:not([hidden])")
        until_says(page, "#settle-open", "Settle (3)")
        panel = page.text_content("#panel")
        kappa = session.agreement()["kappa"]["value"]
        assert f"{kappa:.2f}" in panel
        assert "3 disagreements, 0 settled" in panel
        page.click("#settle-open")
        seen = []
        for left in (3, 2, 1):
            until_says(page, "#row-title", f"{left} left")
            said = page.text_content(".said")
            assert "ann says " in said
            assert "bob says " in said
            seen.append(shown(page))
            page.keyboard.press("1")
        until_says(page, "#row-title", "All settled")
        until_says(page, "#panel", "3 settled")
    assert set(seen) == wrong
    session.write()
    assert gold(tmp_path / "gold.parquet") == truth(texts(12)) | dict.fromkeys(wrong, "ham")


def test_nobody_waits_for_the_table(tmp_path, visit):
    session = label_session(tmp_path, 1, pseudo=None, classes=["ham", "spam"])
    row = session.items[0].row
    for who, value in (("ann", "ham"), ("bob", "spam")):
        session.answer(who, row, value, 1.0)
    write, go_on = session.write, threading.Event()

    def slow_write():
        assert go_on.wait(20)
        return write()

    session.write = slow_write
    with served(session) as address:
        page = visit(address, "bob")
        until_says(page, "#end-path", "Writing the table")
        page.click("#settle-open")
        until_says(page, "#row-title", "1 left")
        page.keyboard.press("2")
        until_says(page, "#row-title", "All settled")
        page.keyboard.press("Escape")
        page.wait_for_selector("#end:not([hidden])")
        page.keyboard.press("u")
        until_says(page, "#row-title", "Row 1 of 1")
        page.keyboard.press("1")  # now both say ham
        page.wait_for_selector("#end:not([hidden])")
        assert not (tmp_path / "gold.parquet").exists()
        go_on.set()
        until_says(page, "#end-path", "Written to")
    assert [row["gold"] for row in pq.read_table(tmp_path / "gold.parquet").to_pylist()] == ["ham"]


def test_a_settlement_can_be_changed_and_taken_back(tmp_path, visit):
    session = label_session(tmp_path, 3)
    for item in session.items:
        session.answer("ann", item.row, "ham", 1.0)
        session.answer("bob", item.row, "spam", 1.0)
    rows = [item.row for item in session.items]

    def settled():
        return [row["settled"] for row in sorted(session.disagreements(), key=lambda r: r["row"])]

    with served(session) as address:
        page = visit(address, "bob")
        page.click("#settle-open")
        for left, key in ((3, "1"), (2, "2"), (1, "1")):
            until_says(page, "#row-title", f"{left} left")
            page.keyboard.press(key)
        until_says(page, "#row-title", "All settled")
        chosen = page.locator(".open button").all_text_contents()
        assert chosen == ["1 settled: ham", "2 settled: spam", "3 settled: ham"]
        before = settled()
        page.keyboard.press("2")  # no row is open: this is none's answer
        page.keyboard.press("u")
        until_says(page, "#row-title", "1 left")
        assert settled().count(None) == 1
        page.keyboard.press("1")
        until_says(page, "#row-title", "All settled")
        page.click(".open button >> nth=1")
        until_says(page, "#answers .chosen", "spam")
        page.keyboard.press("1")
        until_says(page, ".open li:nth-child(2)", "settled: ham")
        assert settled() == ["ham"] * 3
        page.keyboard.press("u")  # what it was settled to before
        until_says(page, ".open li:nth-child(2)", "settled: spam")
        assert settled() == before
        for left in (1, 2, 3):
            page.keyboard.press("u")
            until_says(page, "#row-title", f"{left} left")
        page.keyboard.press("u")
        until_says(page, "#trouble", "open a row in the list to change it")
        assert settled() == [None] * 3
        page.keyboard.press("Escape")
        page.wait_for_selector("#end:not([hidden])")
    assert {event["answers"]["bob"] for event in session.disagreements()} == {"spam"}
    assert session.progress("bob")["answered"] == len(rows)


def test_the_panel_says_what_the_session_says(tmp_path, visit):
    session = label_session(tmp_path, 40, n=30)
    with served(session) as address:
        page = visit(address, "ann")
        label_all(page)
        panel = session.panel()
        for found in (panel["accuracy"], *(label["right"] for label in panel["labels"])):
            low, high = (f"{100 * found[end]:.0f} %" for end in ("low", "high"))
            until_shows(page, f"{100 * found['value']:.0f} %\t{low} to {high}\t{found['n']}")
        text = page.inner_text("#panel")
        for more in panel["more"]:
            assert f"{more['n']} rows\t{100 * more['width']:.0f} points" in text


def test_shares_and_estimates_do_not_stand_in_one_table(tmp_path, visit):
    session = label_session(tmp_path, 20)
    for item in session.items[:5]:
        said = None if item.row == session.items[0].row else session.item(item.row).pseudo
        session.answer("ann", item.row, said, 1.0)
    with served(session) as address:
        page = visit(address, "ann")
        press(page, {"ham": "1", "spam": "2"}[session.next("ann").pseudo])
        until_says(page, "#panel", "5 answered")
        tables = page.locator("#panel table").all_inner_texts()
        panel = session.panel("ann")
        assert panel["accuracy"]["value"] == 1 > panel["labels"][0]["right"]["value"]
        assert tables[0].startswith("Over all rows, as counted")
        assert "overall\t100 %" in tables[0]
        assert "start from chance" in tables[1]
        assert "estimate\t" in tables[1]
        assert "says ham" in tables[1]
        assert "(1 unsure, 0 unsettled)" in page.text_content("#panel")


# --- comparing ------------------------------------------------------------------------------------


def test_comparing_by_keyboard(tmp_path, visit):
    session = open_comparison(proposals(tmp_path), out=tmp_path / "judged.jsonl")
    wanted = {}
    with served(session) as address:
        page = visit(address, "ann")
        assert page.inner_text("#criterion") == "The <b>new</b> one is better."
        for key, score in (("ArrowLeft", 1.0), ("ArrowRight", 1.0), ("=", 0.5)):
            prompt, left, right = page.locator(".text").all_text_contents()
            assert {left[:3], right[:3]} == {"old", "new"}
            chosen = left if key == "ArrowLeft" else right
            wanted[prompt] = score if key == "=" or chosen.startswith("new") else 0.0
            press(page, key)
        page.wait_for_selector("#end-next:not([hidden])")
        assert "whet replace" in page.text_content("#end-command")
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert {row["prompt"]: row["score"] for row in rows} == wanted
    assert (
        whet(["replace", str(tmp_path / "judged.jsonl"), "--out", str(tmp_path / "new.jsonl")])[0]
        == 0
    )


def test_the_time_limit_leaves_a_pair_unanswered_and_waits(tmp_path, visit):
    session = open_comparison(proposals(tmp_path, 2), out=tmp_path / "judged.jsonl", seconds=1.0)
    with served(session) as address:
        page = visit(address, "ann")
        assert page.is_visible("#start-time")  # the clock waits for a person
        assert session.progress("ann")["unsure"] == 0
        page.keyboard.press("Enter")
        page.wait_for_selector("#pause:not([hidden])")
        assert page.text_content("#pause-title") == "Time is up"
        page.wait_for_timeout(1300)
        assert session.progress("ann")["unsure"] == 1  # no more than the one
        page.keyboard.press("Enter")
        page.wait_for_selector("#work:not([hidden])")
        assert page.is_visible("#clock")
        press(page, "1")
        page.wait_for_selector("#end-next:not([hidden])")
    assert session.progress("ann") | {"median_seconds": 0} == {
        "answered": 1,
        "unsure": 1,
        "skipped": 0,
        "total": 2,
        "annotators": {"ann": 1},
        "median_seconds": 0,
    }


# --- what a page must stand -----------------------------------------------------------------------

ATTACKS = [
    "<script>window.pwned = 1; alert(1)</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</div></section></style></textarea><svg/onload=window.pwned=1>",
    "{{7*7}} ${7*7} {{constructor.constructor('window.pwned=1')()}}",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    "<link rel=stylesheet href=//a.test/x.css><meta http-equiv=refresh content=0;url=//a.test>",
    "javascript:window.pwned=1",
    "a\u202egnp.exe\u202c \u2066isolated\u2069 \u200f",
    "<template><b>x</b></template>&lt;b&gt; &#60;",
]  # fmt: skip


def test_hostile_text_is_inert(tmp_path, visit):
    rows = [*ATTACKS, *HOSTILE.values(), "", "  white \n\n\t space  "]
    names = ['"><img src=x onerror=window.pwned=1>', "<b>bold</b>", "\u202eabc"]
    session = label_session(tmp_path, rows=rows, pseudo=None, classes=names, n=len(rows))
    session.title = "<img src=x onerror=window.pwned=1>.csv"
    raw = {text.replace("\r\n", "\n").replace("\r", "\n"): text for text in rows}
    with served(session) as address:
        page = visit(address, "%3Cimg%20src=x%20onerror=window.pwned=1%3E")
        seen = set()
        tags = page.evaluate("document.querySelectorAll('main *').length")
        while page.is_hidden("#end"):
            text = shown(page)
            text = "" if text == "(empty)" else text
            seen.add(raw.get(text, text))
            assert (
                page.evaluate("document.querySelectorAll('img, iframe, b, template').length") == 0
            )
            assert abs(page.evaluate("document.querySelectorAll('main *').length") - tags) < 60
            press(page, "1")
        assert seen == set(rows)
        assert page.locator("#panel").inner_text().count(names[0]) >= 1
        assert page.evaluate("window.pwned") is None
        assert page.title().endswith(session.title)
    assert set(gold(tmp_path / "gold.parquet").values()) == {names[0]}


ODD_NAMES = ["x" * 300, "word " * 60 + "end", "a\u202egnp\x1b\n\u2066b"]

#: Elements that can be scrolled sideways, or that stick out of the window.
WIDE = """[...document.querySelectorAll("body, body *")].filter((one) =>
  (getComputedStyle(one).overflowX === "auto" && one.scrollWidth > one.clientWidth) ||
  (one.getBoundingClientRect().right > innerWidth + 1 && one.checkVisibility())
).map((one) => one.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [400, 1200])
def test_names_of_classes_are_cut_and_cannot_hide(tmp_path, visit, width):
    names = ODD_NAMES
    table = {"text": texts(3), "llm": names}
    options = {"text": "text", "pseudo": "llm", "n": 3, "show_pseudo": True}
    session = open_labels(table, out=tmp_path / "gold.parquet", **options)
    keys = dict(zip(session.classes, "123", strict=True))
    for item in session.items:
        session.answer("bob", item.row, names[0], 1.0)
    with served(session) as address:
        page = visit(address, "ann", width=width)
        for _ in range(3):
            row = session.next("ann")
            before = page.text_content("#before")
            if row.pseudo == names[2]:
                assert before == r"The annotator says a\u202egnp\x1b\n\u2066b"
            else:
                assert before == f"The annotator says {row.pseudo}"
                assert page.get_attribute("#before bdi", "title") == row.pseudo
                assert page.locator("#before bdi").bounding_box()["height"] < 100
            assert page.locator("#answers bdi").last.bounding_box()["height"] < 100
            page.keyboard.press("h")
            assert page.evaluate(WIDE) == []
            page.keyboard.press("Escape")
            press(page, keys[row.pseudo])
            until_says(page, "#panel", "says ")
            assert page.evaluate(WIDE) == []
        page.click("#settle-open")
        until_says(page, "#row-title", "2 left")
        assert page.evaluate(WIDE) == []
        page.keyboard.press(keys[names[2]])
        until_says(page, "#row-title", "1 left")
        assert r"settled: a\u202egnp\x1b\n\u2066b" in page.text_content(".open")
        assert not re.search("[\u202e\u2066\x1b]", page.inner_text("body"))
        assert page.evaluate(WIDE) == []


def test_a_text_of_a_million_characters_is_usable(tmp_path, visit):
    rows = ["long " + "word😀 " * 166_000, "x" * 1_000_000, "short"]
    session = label_session(tmp_path, rows=rows, pseudo=None, classes=["a", "b"])
    with served(session) as address:
        page = visit(address, "ann", width=400)
        for _ in rows:
            text = shown(page)
            full = next(row for row in rows if row.startswith(text[:5]))
            assert full.startswith(text)
            if len(full) > 100_000:
                assert len(text) <= 100_000
                assert page.is_visible(".more")
                page.fill("#find", "o")
                page.fill("#find", "")
                while page.is_visible(".more"):
                    page.click(".more")
                assert shown(page) == full
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.keyboard.press("Escape")
            page.focus(".scroll")
            press(page, "1")
        assert page.is_visible("#end")


def views(page, address):
    """Go through the views of the page, giving their names."""
    page.wait_for_selector("#start:not([hidden])")
    yield "start"
    page.keyboard.press("Enter")
    page.wait_for_selector("#work:not([hidden])")
    page.keyboard.press("n")
    page.fill("#find", "number")
    yield "label"
    page.keyboard.press("Escape")
    page.keyboard.press("h")
    yield "help"
    page.keyboard.press("Escape")
    label_all(page)
    page.wait_for_selector("#settle-open:not([hidden])")
    yield "end"
    page.click("#settle-open")
    page.wait_for_selector("#work:not([hidden])")
    yield "settle"


def compare_views(page):
    page.wait_for_selector("#start:not([hidden])")
    page.keyboard.press("Enter")
    page.wait_for_selector("#work:not([hidden])")
    yield "compare"
    page.wait_for_selector("#pause:not([hidden])")
    yield "time is up"


def check_view(page, name):
    """No serious finding of axe; no wider than the window."""
    page.evaluate("document.getAnimations().forEach(one => one.finish())")
    found = axe_playwright.Axe().run(page).response["violations"]
    bad = [
        (v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert not bad, name
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], name


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
def test_every_view_is_accessible_and_fits(tmp_path, visit, scheme, width):
    session = label_session(tmp_path, 6)
    for item in session.items:
        session.answer("bob", item.row, "ham", 1.0)
    options = {
        "color_scheme": scheme,
        "width": width,
        "bypass_csp": True,
    }  # axe is put in by script
    with served(session) as address:
        page = visit(address, **options)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", paper))) > 3 * 128
        assert light is (scheme == "light")
        assert [check_view(page, name) or name for name in views(page, address)] == [
            "start", "label", "help", "end", "settle",
        ]  # fmt: skip
    session = open_comparison(proposals(tmp_path), out=tmp_path / "judged.jsonl", seconds=3.0)
    with served(session) as address:
        page = visit(address, **options)
        assert [check_view(page, name) or name for name in compare_views(page)] == [
            "compare", "time is up",
        ]  # fmt: skip


def test_the_keyboard_is_led_to_the_row_and_news_are_announced(tmp_path, visit):
    session = label_session(tmp_path, 3)
    with served(session) as address:
        page = visit(address, "ann", reduced_motion="reduce")
        for k in (1, 2):
            assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
            name = page.evaluate("document.activeElement.getAttribute('aria-labelledby')")
            assert page.text_content(f"#{name}") == "Text"
            assert page.text_content("#news") == f"Row {k} of 3. {shown(page)}"
            assert page.get_attribute("#news", "aria-live") == "polite"
            press(page, "1")
        assert (
            page.evaluate("getComputedStyle(document.getElementById('bar')).transitionDuration")
            == "0s"
        )
        assert page.evaluate("document.documentElement.lang") == "en"
        press(page, "1")
        assert page.evaluate("document.activeElement.id") == "end-title"


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with served(label_session(tmp_path_factory.mktemp("server"), 5)) as address:
        yield address


def host(address):
    return urlsplit(address).netloc


def test_the_page_has_its_headers_and_asks_nobody_else(home):
    for path in ("", "page.css", "page.js", "server.js", "text.js", "panel.js", "icon.svg", "none"):
        answer = httpx.get(home + path)
        assert answer.status_code == (404 if path == "none" else 200)
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy == [
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
            "img-src 'self' data:", "base-uri 'none'", "form-action 'none'",
            "frame-ancestors 'none'",
        ]  # fmt: skip
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
        for address in re.findall(r"\bhttps?://[^\s\"']+|//[a-z]+\.[a-z]+", answer.text):
            assert address == "http://www.w3.org/2000/svg"  # a name, never fetched
    html = httpx.get(home).text
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", html)


def test_who_lacks_the_token_gets_nothing(home):
    root = f"http://{host(home)}"
    token = urlsplit(home).path.strip("/")
    assert len(token) == 32
    guesses = [
        "/",
        "/api/about",
        f"/{token}",
        f"/{token[:-1]}/",
        f"/{token}x/",
        f"/{token.swapcase()}/",
        "//",
        f"/x/{token}/",
        "/%ff/",
    ]
    for path in guesses:
        answer = httpx.get(root + path)
        assert answer.status_code == 404
        assert token not in answer.text
        assert "content-security-policy" in answer.headers
    assert httpx.post(root + "/api/next", json={"who": "ann"}).status_code == 404
    for target in ("*", "http://evil.example/", "x"):  # what httpx does not send
        name, port = host(home).split(":")
        with socket.create_connection((name, int(port)), timeout=10) as raw:
            raw.sendall(f"OPTIONS {target} HTTP/1.1\r\nHost: {host(home)}\r\n\r\n".encode())
            assert re.match(rb"HTTP/1.1 40[04] ", raw.recv(100))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
def test_other_hosts_and_origins_are_refused(home, headers):
    for answer in (
        httpx.get(home, headers=headers),
        httpx.post(home + "api/next", json={"who": "ann"}, headers=headers),
    ):
        assert answer.status_code == 403
        assert list(answer.json()) == ["error"]


def test_localhost_and_the_own_origin_are_fine(home):
    for name in (host(home), host(home).replace("127.0.0.1", "localhost")):
        headers = {"host": name, "origin": f"http://{name}"}
        assert httpx.post(home + "api/next", json={"who": "a"}, headers=headers).status_code == 200


def said(row, value="ham", seconds=1, note=""):
    return {"who": "a", "row": row, "value": value, "seconds": seconds, "note": note}


@pytest.mark.parametrize(
    ("act", "body", "status", "reason"),
    [
        ("nothing", {}, 404, "not found"),
        ("next", {}, 400, "'who' must be"),
        ("next", {"who": 7}, 400, "'who' must be"),
        ("next", {"who": " "}, 400, "name"),
        ("next", {"who": "a" * 81}, 400, "at most 80"),
        ("next", {"who": "a\x00b"}, 400, "name"),
        ("next", {"who": "\ud800"}, 400, "name"),
        ("next", [], 400, "object"),
        ("answer", said(99), 400, "row 99"),
        ("answer", said(True), 400, "row"),
        ("answer", said([]), 400, "row"),
        ("answer", said(0, "eggs", 1, ""), 400, "eggs"),
        ("answer", said(0, 1, 1, ""), 400, "'value'"),
        ("answer", said(0, "ham", -1, ""), 400, "seconds"),
        ("answer", said(0, "ham", "1", ""), 400, "seconds"),
        ("answer", said(0, "ham", 1, "n" * 2001), 400, "2,000"),
        ("answer", said(0, "ham", 1, "n" * 70_000), 413, "65,536"),
        ("skip", {"who": "a"}, 400, "row"),
        ("panel", {}, 400, "'who' must be"),
        ("disagreements", {"who": "a"}, 403, "'a' has rows left"),
        ("settle", {"who": "a", "row": 0, "value": "ham"}, 403, "'a' has rows left"),
        ("unsettle", {"who": "a", "row": 0}, 403, "'a' has rows left"),
    ],
)  # fmt: skip
def test_what_a_request_may_not_say(home, act, body, status, reason):
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{home}api/{act}", content=content, headers=headers)
    assert answer.status_code == status
    assert reason in answer.json()["error"]


def test_who_has_rows_left_learns_how_many_others_answered_and_no_more(tmp_path):
    session = label_session(tmp_path, 6)
    with served(session) as address:

        def post(act, **body):
            return httpx.post(f"{address}api/{act}", json={"who": "ann", **body})

        alone = post("panel").json()
        for k, item in enumerate(session.items, 1):
            session.answer("bob", item.row, "ham", 1.0)
            alone["progress"]["annotators"] = {"bob": k}
            assert post("panel").json() == alone
        assert alone["agreement"] is None
        assert post("next").json()["progress"]["annotators"] == {"bob": 6}
        for item in session.items:
            session.answer("ann", item.row, "spam", 1.0)
        assert post("panel").json()["agreement"]["disagreements"] == 6
        row = post("disagreements").json()["rows"][0]["row"]
        for act, value in (("settle", "ham"), ("settle", "spam"), ("unsettle", None)):
            rows = post(act, row=row, value=value).json()["rows"]
            assert rows[0]["settled"] == value
        post("undo")
        assert post("panel").json()["agreement"] is None


def test_only_json_by_post_changes_anything(home):
    body = json.dumps({"who": "ann"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = httpx.post(home + "api/next", content=body, headers={"content-type": kind})
        assert answer.status_code == 400  # what a form of another site can send
    json_type = {"content-type": "application/json"}
    for content in ("{", "[" * 60_000, "\xff", '{"who": NaN}'):
        answer = httpx.post(home + "api/next", content=content, headers=json_type)
        assert answer.status_code == 400
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert httpx.request(method, home + "api/next").status_code == 405
    assert httpx.post(home, json={}).status_code == 405
    for path in ("..%2fserver.py", "%2e%2e/server.py", "page%2ecss%00", "api/../../x"):
        assert httpx.get(home + path).status_code == 404


def test_a_port_that_cannot_be_used_is_one_sentence(tmp_path):
    table = tmp_path / "in.csv"
    table.write_text("t\na\nb\n")
    args = ["label", str(table), "--text", "t", "--classes", "x,y", "--no-browser"]
    with listen(None) as taken:
        port = taken.getsockname()[1]
        done = whet([*args, "--out", str(tmp_path / "g.csv"), "--port", str(port)])
    assert done.code == 2
    assert " ".join(done.err.split()).endswith(
        f"--port {port} is in use: give another, or none for any free one"
    )
    for port in (0, -1, 65536):
        with pytest.raises(WhetError, match="from 1 to 65535"):
            listen(port)


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, module):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(WhetError, match=rf"needs {module}.*pip install 'whet\[review\]'"):
        serve(label_session(tmp_path, 3), port=None, browser=False, say=print)


def test_the_server_listens_on_this_address_only():
    with listen(None) as sock:
        name, port = sock.getsockname()
        assert name == "127.0.0.1"
        refused = pytest.raises((ConnectionRefusedError, TimeoutError))
        with refused, socket.create_connection(("127.0.0.2", port), timeout=2):
            pass


@pytest.mark.parametrize(
    "content",
    [None, b"\xff\x00{", b"[]", b'{"port": 0, "token": "x"}', b'{"port": 1e999, "token": 1}'],
)
def test_a_damaged_address_is_made_anew(tmp_path, content):
    session = label_session(tmp_path, 3)
    path = session.path.with_suffix(".address")
    if content is not None:
        path.write_bytes(content)
    with served(session) as address:
        assert httpx.get(address).status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with served(session) as again:
        assert again == address


def test_a_second_server_leaves_the_address_to_the_first(tmp_path):
    session = label_session(tmp_path, 3)
    path = session.path.with_suffix(".address")
    with served(session) as first:
        kept = path.read_bytes()
        with served(label_session(tmp_path, 3)) as second:
            assert urlsplit(second).path != urlsplit(first).path
            assert httpx.get(second).status_code == httpx.get(first).status_code == 200
            assert path.read_bytes() == kept
    with served(session) as again:
        assert again == first


def test_a_write_that_fails_is_said_and_the_answers_stay(tmp_path, visit):
    session = label_session(tmp_path, 2)
    with served(session) as address:
        page = visit(address, "ann")
        press(page, "1")
        (tmp_path / "gold.parquet").mkdir()  # now nothing can be written there
        press(page, "1")
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.is_visible("#end")
    assert session.progress("ann")["answered"] == 2
