"""The cache of answers: who may read it, what is a key, and what survives a kill."""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from whet.annotate.cache import AnswerCache
from whet.annotate.engine import Engine, recall
from whet.annotate.openai import OpenAIBackend
from whet.annotate.protocol import Answer, Failure, Request, Stop, together
from whet.errors import WhetError

REQUEST = Request(
    (("system", "Label it."), ("user", "a text")),
    max_tokens=64,
    schema={"type": "object", "properties": {"label": {"enum": ["a", "b"]}}},
)
ROUTE = {"backend": "openai", "base_url": "http://localhost:1/v1", "model": "m"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.sqlite"


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_any_of_its_files(path, umask):
    before = os.umask(umask)
    try:
        with AnswerCache(path) as cache:
            cache.keep("k", ROUTE, Answer("yes"))
            found = sorted(p.name for p in path.parent.iterdir())
            assert found == ["answers.sqlite", "answers.sqlite-shm", "answers.sqlite-wal"]
            assert {mode(p) for p in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(before)
    assert [p.name for p in path.parent.iterdir()] == ["answers.sqlite"]
    assert mode(path) == 0o600


def test_it_writes_ahead(path):
    with AnswerCache(path), sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_it_is_known_by_its_mark(path):
    AnswerCache(path).close()
    assert path.read_bytes()[68:72] == b"whet"


@pytest.mark.parametrize(
    "content",
    [b"text,label\na,b\n" * 100, b"SQLite format 3\x00" + b"\xff" * 4096, b"a,b\n", b"n" * 9000],
    ids=["csv", "damaged", "a few bytes", "no bytes of a database"],
)
def test_file_that_is_no_database_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(WhetError, match=r"cannot be used|not a cache") as raised:
        AnswerCache(path)
    assert str(path) in str(raised.value)
    assert "--cache" in str(raised.value)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["answers.sqlite"]


@pytest.mark.parametrize("mark", [0, 1234])
def test_database_of_somebody_else_is_left_alone(path, mark):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (a)")
        db.execute(f"PRAGMA application_id = {mark}")
    db.close()
    content = path.read_bytes()
    with pytest.raises(WhetError, match="not a cache of this version"):
        AnswerCache(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["answers.sqlite"]


def test_cache_of_a_later_version_is_left_alone(path):
    AnswerCache(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(WhetError, match="not a cache of this version"):
        AnswerCache(path)


def test_folder_is_no_cache(tmp_path):
    with pytest.raises(WhetError, match="cannot be used"):
        AnswerCache(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(WhetError, match="cannot be used"):
        AnswerCache(tmp_path / "none" / "answers.sqlite")


def test_empty_file_becomes_a_cache(path):
    """As mktemp leaves one."""
    path.touch(mode=0o600)
    with AnswerCache(path) as cache:
        cache.keep("k", ROUTE, Answer("yes"))
        assert cache.get("k") == Answer("yes")


@pytest.mark.parametrize(
    "last",
    ["PRAGMA journal_mode = WAL", "PRAGMA application_id = 2003330420", "PRAGMA user_version = 1"],
)
def test_kill_while_it_is_made_leaves_one_that_can_be_opened(path, last):
    """Each step of making it, with nothing after."""
    steps = ["PRAGMA journal_mode = WAL", "PRAGMA application_id = 2003330420"]
    steps = [s for s in steps if s != last] if last in steps[:1] else steps
    with sqlite3.connect(path, isolation_level=None) as db:
        for step in [*steps, last]:
            db.execute(step)
            if step == last:
                break
    db.close()
    with AnswerCache(path) as cache:
        cache.keep("k", ROUTE, Answer("yes"))
        assert cache.get("k") == Answer("yes")


# --- the key --------------------------------------------------------------------------------------

ROUTES = {
    "model": {"model": "n"},
    "base_url": {"base_url": "http://localhost:2/v1"},
    "max_tokens of the command": {"max_tokens": 5},
    "backend": {"backend": "anthropic"},
    "words left out": {"without": ["logprobs"]},
}
REQUESTS = {
    "messages": {"messages": (("system", "Label it."), ("user", "a text "))},
    "role": {"messages": (("system", "Label it."), ("assistant", "a text"))},
    "split": {"messages": (("system", "Label it.a"), ("user", " text"))},
    "order": {"messages": REQUEST.messages[::-1]},
    "one more": {"messages": (*REQUEST.messages, ("user", ""))},
    "max_tokens": {"max_tokens": 65},
    "no schema": {"schema": None},
    "schema": {"schema": {"type": "object", "properties": {"label": {"enum": ["a", "c"]}}}},
    "order of classes": {
        "schema": {"type": "object", "properties": {"label": {"enum": ["b", "a"]}}}
    },
    "temperature": {"temperature": 0.5},
    "sample": {"sample": 1},
}
KEYS = {name: REQUEST.key(ROUTE | change) for name, change in ROUTES.items()}
KEYS |= {name: replace(REQUEST, **change).key(ROUTE) for name, change in REQUESTS.items()}


@pytest.mark.parametrize("name", KEYS)
def test_key_changes_with_every_part(name):
    assert KEYS[name] != REQUEST.key(ROUTE)


def test_keys_are_all_different():
    assert len({REQUEST.key(ROUTE), *KEYS.values()}) == len(KEYS) + 1


def test_route_of_a_back_end_holds_what_the_command_names():
    def key(model="m", url="http://localhost:1/v1", **options):
        backend = OpenAIBackend(model, base_url=url, key_env=None, **options)
        return REQUEST.key(backend.route)

    keys = [key(), key("n"), key(url="http://localhost:2/v1"), key(max_tokens=9)]
    assert len(set(keys)) == 4
    assert key(timeout=3) == key(url="http://localhost:1/v1/") == key()


def test_key_does_not_hang_on_the_process():
    code = (
        "from whet.annotate.protocol import Request\n"
        f"print(Request({REQUEST.messages!r}, max_tokens=64, schema={REQUEST.schema!r})"
        f".key({ROUTE!r}))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout.decode()
        for seed in "12"
    }
    assert said == {REQUEST.key(ROUTE) + "\n"}


def test_row_of_the_table_is_no_part_of_the_key():
    assert replace(REQUEST, text="row").key(ROUTE) == REQUEST.key(ROUTE)


def test_key_of_text_with_half_a_character_does_not_fail():
    request = replace(REQUEST, messages=(("user", "a \ud83d b"),))
    assert request.key(ROUTE) != REQUEST.key(ROUTE)


# --- answers and failures -------------------------------------------------------------------------

ANSWERS = [
    Answer("yes"),
    Answer("", 0, 0),
    Answer("größe \U0001f389 \x00 \n\"'", 12, 3),
    Answer("a", 1, 1, ((1, -0.5), (3, float("-inf")))),
    Answer("a", tokens=()),
    Answer("a", probabilities={"a": 0.75, "b": 0.25}),
    Answer("half a character \ud83d"),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_answer_comes_back_as_it_was(path, answer):
    with AnswerCache(path) as cache:
        cache.keep("k", ROUTE, answer, prompt_bytes=7)
    with AnswerCache(path) as cache:
        said = cache.get("k")
        assert said.text.encode("utf-8", "replace") == answer.text.encode("utf-8", "replace")
        assert replace(said, text="") == replace(answer, text="")
        assert cache.reply("k") == said


def test_failure_is_no_answer_and_goes_with_one():
    cache = AnswerCache(None)
    assert cache.reply("k") is None
    for failure in (Failure("truncated", "64"), Failure("unreachable", "gone")):
        cache.keep("k", ROUTE, failure)
        assert cache.get("k") is None
        assert cache.reply("k") == failure
        assert cache.paid(ROUTE).answers == 0
    cache.keep("k", ROUTE, Answer("yes", 3, 1))
    assert cache.reply("k") == Answer("yes", 3, 1)
    assert cache._db.execute("SELECT count(*) FROM failures").fetchone() == (0,)


def test_failure_does_not_hide_an_answer():
    """Of another process that asked the same."""
    cache = AnswerCache(None)
    cache.keep("k", ROUTE, Answer("yes"))
    cache.keep("k", ROUTE, Failure("unreachable"))
    assert cache.reply("k") == Answer("yes")


def test_first_answer_stays():
    cache = AnswerCache(None)
    cache.keep("k", ROUTE, Answer("yes", 3, 1))
    cache.keep("k", ROUTE, Answer("no", 4, 2))
    assert cache.get("k") == Answer("yes", 3, 1)
    assert cache.paid(ROUTE).prompt_tokens == 3


def test_paid_is_summed_by_route():
    cache = AnswerCache(None)
    for i in range(3):
        cache.keep(f"k{i}", ROUTE, Answer("a", 10, 2), prompt_bytes=40)
    cache.keep("other", ROUTE | {"model": "n"}, Answer("a", 1000, 2000), prompt_bytes=1)
    paid = cache.paid(dict(reversed(ROUTE.items())))
    assert (paid.answers, paid.prompt_bytes) == (3, 120)
    assert (paid.prompt_tokens, paid.completion_tokens) == (30, 6)
    assert cache.paid({"model": "never asked"}).answers == 0


def test_facts_are_kept_and_forgotten(path):
    with AnswerCache(path) as cache:
        cache.remember("words: a", "[1]")
        cache.remember("words: a", "[2]")
        cache.remember("words: b", "[3]")
        cache.remember("word%_", "[4]")
    with AnswerCache(path) as cache:
        assert cache.fact("words: a") == "[2]"
        assert cache.facts("words: ") == {"words: a": "[2]", "words: b": "[3]"}
        assert cache.facts("word%") == {"word%_": "[4]"}
        cache.remember("words: a", None)
        assert cache.fact("words: a") is None


# --- several processes, and kills -----------------------------------------------------------------


def test_many_open_a_new_cache_at_once(tmp_path):
    """All find a cache, or make it; none takes a half-made one for somebody else's."""
    wrong = []
    for attempt in range(40):
        path = tmp_path / f"{attempt}.sqlite"
        start = threading.Barrier(6)

        def use(path=path, start=start):
            start.wait()
            try:
                with AnswerCache(path) as cache:
                    cache.keep(str(threading.get_ident()), ROUTE, Answer("yes"))
            except Exception as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=use) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with AnswerCache(path) as cache:
            assert cache.paid(ROUTE).answers == 6 or wrong
    assert wrong == []


def fill(path, first, count):
    with AnswerCache(path) as cache:
        for i in range(first, first + count):
            cache.keep(str(i), ROUTE, Answer(f"answer {i}", 1, 1))


def test_two_processes_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    halves = [context.Process(target=fill, args=(path, first, 1000)) for first in (0, 500)]
    for half in halves:
        half.start()
    for half in halves:
        half.join(60)
        assert half.exitcode == 0
    with AnswerCache(path) as cache:
        assert cache.paid(ROUTE).answers == 1500
        assert cache.get("1499") == Answer("answer 1499", 1, 1)


WRITER = """
import sys
from pathlib import Path
from whet.annotate.cache import AnswerCache
from whet.annotate.protocol import Answer
cache = AnswerCache(Path(sys.argv[1]))
i = cache.paid({"model": "m"}).answers
while True:
    cache.keep(str(i), {"model": "m"}, Answer("x" * (i * 37 % 3000), 1, 1))
    sys.stdout.write(f"{i}\\n")
    sys.stdout.flush()
    i += 1
"""


def test_kill_while_writing_loses_nothing_that_was_kept(path):
    rng = random.Random(0)
    known = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        )
        said = [process.stdout.readline()]
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        said += process.communicate()[0].splitlines()
        whole = [int(line) for line in said if line.strip()]
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
        with AnswerCache(path) as cache:
            answers = cache.paid({"model": "m"}).answers
            # The last line may have been cut, and the last answer kept before it was said.
            assert answers >= len(whole) + known - 1
            for i in range(answers):
                assert cache.get(str(i)).text == "x" * (i * 37 % 3000)
            assert answers > known
            known = answers
    assert [p.name for p in path.parent.iterdir()] == ["answers.sqlite"]


# --- the engine over it ---------------------------------------------------------------------------


class Scripted:
    """Says of each question what a function says; counts."""

    route, at_once = {"backend": "scripted"}, 1

    def __init__(self, say, at_once=1):
        self.say, self.at_once = say, at_once
        self.asked, self.closed = [], 0

    async def complete(self, requests):
        self.asked.append([request.messages[0][1] for request in requests])
        await asyncio.sleep(0)
        return [self.say(request.messages[0][1]) for request in requests]

    async def close(self):
        self.closed += 1


def ask(word, *more):
    replies = []
    for said in (word, *more):
        (reply,) = yield [Request((("user", said),), max_tokens=1)]
        replies.append(reply.text if isinstance(reply, Answer) else str(reply))
    return replies


def test_engine_asks_each_question_once_however_many_wait_for_it():
    backend = Scripted(lambda word: Answer(word.upper()))
    cache = AnswerCache(None)
    engine = Engine(backend, cache, concurrency=8)
    talks = [ask("a", "b"), ask("a"), ask("b", "a"), together([ask("a"), ask("c"), ask("a")])]
    asyncio.run(engine.buy(iter(talks)))
    assert sorted(backend.asked) == [["a"], ["b"], ["c"]]
    assert engine.asked == 3
    assert backend.closed == 1
    assert recall(ask("b", "a"), cache, backend.route) == ["B", "A"]
    assert recall(ask("d"), cache, backend.route, "limit") == ["not asked: limit"]


def test_engine_asks_failures_again_in_the_next_run_only():
    says = {"a": Failure("unreachable", "gone"), "b": Answer("B")}
    backend = Scripted(says.__getitem__)
    cache = AnswerCache(None)
    engine = Engine(backend, cache, concurrency=1)
    asyncio.run(engine.buy(iter([ask("a"), ask("b")])))
    assert recall(ask("a"), cache, backend.route) == ["unreachable: gone"]
    says["a"] = Answer("A")
    asyncio.run(engine.buy(iter([ask("a"), ask("b")])))
    assert backend.asked == [["a"], ["b"], ["a"]]
    assert recall(ask("a"), cache, backend.route) == ["A"]


@pytest.mark.parametrize("at_once", [1, 4])
def test_stop_ends_the_run_and_keeps_what_was_answered(at_once):
    def say(word):
        if word == "8":
            raise Stop("enough", fatal=False)
        return Answer(word)

    backend = Scripted(say, at_once)
    cache = AnswerCache(None)
    engine = Engine(backend, cache, concurrency=2)
    asyncio.run(engine.buy(ask(str(i)) for i in range(100)))
    assert engine.stopped.reason == "enough"
    assert len(backend.asked) < 12
    assert all(recall(ask(str(i)), cache, backend.route) == [str(i)] for i in range(8))
    assert recall(ask("99"), cache, backend.route) == ["not asked"]


def test_engine_takes_conversations_as_it_needs_them():
    """Memory must not grow with the rows."""
    taken = 0

    def talks():
        nonlocal taken
        for i in range(200):
            taken += 1
            yield ask(str(i))

    most = 0

    def say(word):
        nonlocal most
        most = max(most, taken - int(word))
        return Answer(word)

    asyncio.run(Engine(Scripted(say), AnswerCache(None), concurrency=4).buy(talks()))
    assert taken == 200
    assert most <= 8


def test_error_of_the_input_ends_the_run_and_closes_the_back_end():
    def talks():
        yield ask("a")
        raise WhetError("line 7 of the table is damaged: mend it")

    backend = Scripted(Answer)
    with pytest.raises(WhetError, match="line 7"):
        asyncio.run(Engine(backend, AnswerCache(None), concurrency=2).buy(talks()))
    assert backend.closed == 1


def test_schema_is_written_as_it_is():
    assert json.loads(Answer("a", tokens=((1, -0.1),)).to_json())["tokens"] == [[1, -0.1]]
