"""Queries that nobody vouches for, on real SQLite databases; and the task that compares results."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from helpers import snapshot
from whet.errors import WhetError
from whet.ilr import sql_pool
from whet.ilr.sql_pool import Failed, Rows, SqlPool
from whet.ilr.sql_worker import Database
from whet.ilr.tasks.sql import Sql, digest, is_ordered, statement


def make_database(path, *statements):
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        for statement in statements:
            made.execute(statement)
        made.commit()
    return path


@pytest.fixture
def database(tmp_path):
    count = "WITH RECURSIVE r(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM r LIMIT 2000)"
    return make_database(
        tmp_path / "data" / "a.sqlite",
        f"CREATE TABLE t AS {count} SELECT a, 'name ' || a AS name FROM r",
        "CREATE VIRTUAL TABLE words USING fts5(word)",
        "CREATE TABLE odd AS SELECT x'ff00' AS blob, CAST(x'e9ff' AS TEXT) AS latin, NULL AS none",
    )


@pytest.fixture(scope="module")
def pool():
    with SqlPool(2, seconds=60) as pool:
        yield pool


@pytest.fixture(scope="module")
def hasty():
    with SqlPool(1, seconds=0.2) as pool:
        yield pool


def one(pool, database, query):
    (outcome,) = pool.run([(database, query)])
    return outcome


def children():
    """Processes that this one has started and not waited for."""
    return subprocess.run(
        ["ps", "--no-headers", "-o", "pid,stat,args", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()


def workers():
    return [line for line in children() if "sql_worker" in line or "<defunct>" in line]


# --- what queries may do --------------------------------------------------------------------------

LOOP = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r)"
REFUSED = {
    "drop": "DROP TABLE t",
    "delete": "DELETE FROM t",
    "delete returning": "DELETE FROM t RETURNING *",
    "insert": "INSERT INTO t SELECT * FROM t",
    "update": "UPDATE t SET a = 0",
    "alter": "ALTER TABLE t RENAME TO u",
    "create": "CREATE TABLE u (a)",
    "temporary": "CREATE TEMP TABLE u AS SELECT 1",
    "view": "CREATE TEMP VIEW v AS SELECT 1",
    "full text": "CREATE VIRTUAL TABLE u USING fts5(a)",
    "attach": "ATTACH 'made_by_a_query.db' AS e",
    "detach": "DETACH main",
    "vacuum": "VACUUM",
    "vacuum into": "VACUUM INTO 'made_by_a_query.db'",
    "pragma": "PRAGMA journal_mode = WAL",
    "schema": "PRAGMA writable_schema = 1",
    "pragma function": "SELECT * FROM pragma_database_list",
    "statements": "SELECT * FROM sqlite_stmt",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT s",
    "reindex": "REINDEX",
    "analyze": "ANALYZE",
    "extension": "SELECT load_extension('/lib/x.so')",
    "tokenizer": "SELECT fts3_tokenizer('simple')",
    "match": "SELECT * FROM words WHERE words MATCH 'a'",
    "two statements": "SELECT 1; DROP TABLE t",
}
TOO_LARGE = {
    "random blob": "SELECT randomblob(2000000000)",
    "zero blob": "SELECT zeroblob(2000000000)",
    "hex": "SELECT hex(zeroblob(900000))",
    "replace": "SELECT length(replace(hex(zeroblob(400000)), '0', '00000000'))",
    "doubling": "WITH RECURSIVE r(x) AS (SELECT 'a' UNION SELECT x || x FROM r) SELECT x FROM r",
    "blobs": f"{LOOP} SELECT zeroblob(900000) FROM r",
    "text": "SELECT '" + "x" * 200_000 + "'",
}
ERROR = {
    "read a file": "SELECT readfile('/etc/passwd')",
    "write a file": "SELECT writefile('made_by_a_query', 'x')",
    "edit": "SELECT edit('x', 'sh')",
    "regular expression": "SELECT 'aaaa' REGEXP '(a+)+$'",
    "no table": "SELECT * FROM nothing",
    "no SQL": "I am sorry, but I cannot do that.",
    "nothing": "",
    "comment": "-- SELECT 1",
    "parameter": "SELECT ?1",
    "nested parentheses": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "nested queries": "SELECT " + "(SELECT " * 300 + "1" + ")" * 300,
    "nots": "SELECT " + "NOT " * 9000 + "1",
    "sum": "SELECT 1" + "+1" * 9000,
    "unions": " UNION ALL ".join(["SELECT 1"] * 700),
    "like": "SELECT 'a' LIKE '" + "%" * 60_000 + "'",
    "json": "SELECT json('" + "[" * 20_000 + "]" * 20_000 + "')",
    "null byte": "SELECT 1\0; DROP TABLE t",
    "surrogates": "SELECT '\udcff\ud800'",
}
TIMEOUT = {
    "endless": f"{LOOP} SELECT count(*) FROM r",
    "cross join": "SELECT count(*) FROM t a, t b, t c, t d",
    "sort": "SELECT a.name || b.name FROM t a, t b, t c ORDER BY 1 LIMIT 1",
    "many joins": "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(40)),
    "json group": "SELECT json_group_array(a.name) FROM t a, t b, t c",
    # These stay inside one call, which no look at the clock interrupts.
    "instr": "SELECT instr(hex(zeroblob(490000)), hex(zeroblob(240000)) || '1')",
    "glob": "SELECT hex(zeroblob(490000)) GLOB '*" + "0" * 990 + "1'",
}
HARMLESS = {
    "printf": "SELECT printf('%1000000000d', 1)",
    "infinity": "SELECT 9e999",
    "division": "SELECT 1 / 0",
    "explain": "EXPLAIN SELECT * FROM t",
    "no utf-8": "SELECT CAST(x'fffe00ff' AS TEXT)",
}
HOSTILE = {"refused": REFUSED, "too_large": TOO_LARGE, "error": ERROR, "timeout": TIMEOUT}


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        pytest.param(kind, query, id=f"{kind}: {name}")
        for kind, queries in HOSTILE.items()
        for name, query in queries.items()
    ],
)
def test_hostile_queries_fail_and_change_nothing(
    kind, query, pool, hasty, database, tmp_path, monkeypatch
):
    """The kind says which bound held; the queries of the last kind would take days."""
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    outcome = one(hasty if kind == "timeout" else pool, database, query)
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind == kind, outcome
    assert outcome.detail
    assert snapshot(tmp_path) == before
    assert one(pool, database, "SELECT count(*) FROM t") == Rows(((2000,),))


@pytest.mark.parametrize("name", ["drop", "insert", "create", "attach", "vacuum into", "pragma"])
def test_without_the_authorizer_the_file_is_still_read_only(name, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    opened = Database(str(database), patience=1)
    opened._connection.set_authorizer(None)
    with contextlib.suppress(sqlite3.Error):
        opened.rows(REFUSED[name], seconds=9, max_rows=9, max_bytes=9999)
    opened.close()
    assert snapshot(tmp_path) == before


def test_a_thousand_hostile_queries_leave_the_file_as_it_was(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256(database.read_bytes()).digest()
    quick = [*REFUSED.values(), *ERROR.values(), *HARMLESS.values(), TOO_LARGE["random blob"]]
    slow = list(TIMEOUT.values())
    queries = [
        f"{query} /* {k} */"
        for k, query in enumerate(itertools.islice(itertools.cycle(quick), 990))
    ]
    queries += [f"{query} /* {k} */" for k, query in enumerate((slow * 2)[:10])]
    with SqlPool(2, seconds=0.1) as pool:
        outcomes = pool.run([(database, query) for query in queries])
        assert len(set(queries)) == len(outcomes) == 1000
        assert one(pool, database, "SELECT sum(a) FROM t") == Rows(((2001000,),))
    kinds = {outcome.kind for outcome in outcomes if isinstance(outcome, Failed)}
    assert kinds == {"refused", "too_large", "error", "timeout"}
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert [path.name for path in database.parent.iterdir()] == ["a.sqlite"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("name", "code"), [("endless", None), ("glob", -signal.SIGALRM)])
def test_who_ends_a_late_query(name, code, database):
    """SQLite itself, where it looks at the clock; or else the alarm, and another process comes."""
    with SqlPool(1, seconds=0.1) as pool:
        one(pool, database, "SELECT 1")
        (worker,) = pool._workers
        assert one(pool, database, TIMEOUT[name]) == Failed("timeout", sql_pool.LATE)
        assert worker._process.returncode == code
        assert one(pool, database, "SELECT 2") == Rows(((2,),))


def test_a_process_that_neither_answers_nor_ends_is_killed(database, monkeypatch):
    with SqlPool(1, seconds=0.1) as pool:
        one(pool, database, "SELECT 1")
        (worker,) = pool._workers
        os.kill(worker._process.pid, signal.SIGSTOP)  # its alarm cannot ring
        assert one(pool, database, "SELECT 2").kind == "timeout"
        assert worker._process.returncode == -signal.SIGKILL
        assert one(pool, database, "SELECT 2") == Rows(((2,),))


def test_a_query_that_needs_too_much_memory_ends_alone(database):
    query = "SELECT " + ", ".join(f"zeroblob(900000 + {i})" for i in range(900))
    with SqlPool(1, seconds=20, memory=300_000_000) as pool:
        assert one(pool, database, query).kind == "too_large"
        assert one(pool, database, "SELECT 1") == Rows(((1,),))


def test_a_crash_is_an_error_of_the_query_alone(database):
    with SqlPool(1, seconds=20) as pool:
        one(pool, database, "SELECT 1")
        (worker,) = pool._workers
        threading.Timer(0.2, os.kill, (worker._process.pid, signal.SIGSEGV)).start()
        crashed, fine = pool.run([(database, TIMEOUT["endless"]), (database, "SELECT 1")])
        assert crashed == Failed("error", f"the process ended by signal {signal.SIGSEGV:d}")
        assert fine == Rows(((1,),))


def test_a_process_that_dies_idle_is_replaced(database):
    with SqlPool(1, seconds=20) as pool:
        one(pool, database, "SELECT 1")
        (worker,) = pool._workers
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        assert one(pool, database, "SELECT 2") == Rows(((2,),))


def test_a_process_that_cannot_start_is_no_failed_query(database, monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(7)")
    monkeypatch.setattr(sql_pool.sql_worker, "__file__", str(broken))
    with SqlPool(1) as pool, pytest.raises(WhetError, match="ended with code 7"):
        one(pool, database, "SELECT 1")


# --- results --------------------------------------------------------------------------------------


def test_values_come_back_as_they_are(pool, database):
    query = "SELECT 1, -9223372036854775808, 0.1, 9e999, 'a''\n\0', blob, latin, none FROM odd"
    values = (1, -(2**63), 0.1, float("inf"), "a'\n\0", b"\xff\x00", "\udce9\udcff", None)
    query = query.replace("\0", "' || char(0) || '")
    assert one(pool, database, query) == Rows((values,))


def test_results_come_in_the_order_of_the_queries(pool, database, tmp_path):
    other = make_database(tmp_path / "b.sqlite", "CREATE TABLE t AS SELECT 'b' AS name")
    queries = [f"SELECT name, {k % 7} FROM t LIMIT 1" for k in range(60)]
    jobs = [((database, other)[k % 2], query) for k, query in enumerate(queries)]
    expected = [Rows(((("name 1", "b")[k % 2], k % 7),)) for k in range(60)]
    assert pool.run(jobs) == pool.run(jobs) == expected


def test_equal_pairs_run_once(pool, database):
    """``random()`` tells runs apart."""
    outcomes = pool.run([(database, "SELECT random()")] * 3 + [(database, "SELECT  random()")])
    assert outcomes[0] == outcomes[1] == outcomes[2] != outcomes[3]


def test_what_is_kept_of_an_outcome_is_what_comes_back(pool, database):
    assert pool.map(type, [(database, "SELECT a FROM t"), (database, "?")]) == [Rows, Failed]


@pytest.mark.parametrize(
    ("limits", "query", "fits"),
    [
        ({"max_rows": 10}, "SELECT a FROM t LIMIT 10", True),
        ({"max_rows": 10}, "SELECT a FROM t LIMIT 11", False),
        ({"max_bytes": 1000}, "SELECT printf('%900d', 1)", True),
        ({"max_bytes": 1000}, "SELECT printf('%1100d', 1)", False),
        ({"max_bytes": 1000}, "SELECT zeroblob(1100)", False),
        ({"max_bytes": 1000}, "SELECT 1 FROM t LIMIT 200", False),
    ],
)
def test_results_are_bounded(database, limits, query, fits):
    with SqlPool(1, **limits) as pool:
        outcome = one(pool, database, query)
    assert isinstance(outcome, Rows) if fits else outcome.kind == "too_large"


def test_functions_and_clauses_that_questions_need_are_allowed(pool, database):
    queries = [
        "SELECT max(abs(a)), round(avg(a), 2), upper(min(name)) FROM t",
        "SELECT a, row_number() OVER (ORDER BY a DESC) FROM t WHERE name LIKE '%1' LIMIT 3",
        "WITH x AS (SELECT a % 3 AS g FROM t) SELECT g, count(*) FROM x GROUP BY g HAVING g > 0",
        "SELECT strftime('%Y', '2024-05-06'), date('2024-05-06', '+1 day'), CAST('7' AS INTEGER)",
        "SELECT name FROM t WHERE a IN (SELECT a FROM t WHERE a < 3) EXCEPT SELECT 'name 1'",
        "SELECT value FROM json_each('[1, 2]') ORDER BY value",
        "SELECT CASE WHEN a > 1 THEN iif(a > 2, 'x', 'y') END FROM t LIMIT 3",
        "SELECT sqrt(4), power(2, 3), group_concat(a) FROM (SELECT a FROM t LIMIT 2);",
    ]
    assert [type(outcome) for outcome in pool.run([(database, q) for q in queries])] == [Rows] * 8


# --- databases ------------------------------------------------------------------------------------


def test_a_missing_database_is_one_sentence(pool, tmp_path):
    with pytest.raises(WhetError, match=r"the database .*no\.sqlite does not exist: "):
        one(pool, tmp_path / "no.sqlite", "SELECT 1")


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 999]
)
def test_a_file_that_is_no_database_is_one_sentence(pool, tmp_path, content):
    path = tmp_path / "a.sqlite"
    path.write_bytes(content)
    with pytest.raises(WhetError, match=r"a\.sqlite (is no SQLite database|is damaged|cannot)"):
        one(pool, path, "SELECT 1")
    assert path.read_bytes() == content


def test_a_locked_database_is_one_sentence(database):
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with SqlPool(1, seconds=0.5) as pool:
            with pytest.raises(WhetError, match="is locked by another program: "):
                one(pool, database, "SELECT 1")
            writer.execute("ROLLBACK")
            assert one(pool, database, "SELECT 1") == Rows(((1,),))
            writer.execute("BEGIN EXCLUSIVE")  # now the process has it open
            with pytest.raises(WhetError, match="is locked by another program: "):
                one(pool, database, "SELECT count(*) FROM t")


def test_a_database_that_changes_between_calls_is_read_anew(pool, database):
    assert one(pool, database, "SELECT count(*) FROM t") == Rows(((2000,),))
    make_database(database, "DELETE FROM t WHERE a > 5")
    assert one(pool, database, "SELECT count(*) FROM t") == Rows(((5,),))


def test_reading_a_database_with_a_write_ahead_log_makes_no_files(pool, tmp_path):
    path = make_database(tmp_path / "w.sqlite", "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)")
    assert [p.name for p in tmp_path.iterdir()] == ["w.sqlite"]
    assert one(pool, path, "SELECT count(*) FROM t") == Rows(((0,),))
    assert [p.name for p in tmp_path.iterdir()] == ["w.sqlite"]


def test_what_is_in_a_write_ahead_log_counts(pool, tmp_path):
    path = make_database(tmp_path / "w.sqlite", "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        assert one(pool, path, "SELECT count(*) FROM t") == Rows(((1,),))


def test_a_log_that_begins_between_queries_counts(pool, tmp_path):
    path = make_database(tmp_path / "w.sqlite", "PRAGMA journal_mode = WAL", "CREATE TABLE t (a)")
    for count in range(3):
        assert one(pool, path, "SELECT count(*) FROM t") == Rows(((count,),))
        make_database(path, "INSERT INTO t VALUES (1)")


def test_what_a_failure_says_can_be_shown_on_a_terminal(pool, database):
    for query in (
        "\x1b[31mred\u202e",
        "PRAGMA '\x1b]0;title\x07'",
        "SELECT '\n\x9b' FROM \"\x1b\"",
    ):
        assert one(pool, database, query).detail.isprintable()


def test_a_path_is_a_path_whatever_it_looks_like(pool, tmp_path):
    path = make_database(tmp_path / "a?mode=rwc&b#c %41.sqlite", "CREATE TABLE t AS SELECT 1 AS a")
    assert one(pool, path, "SELECT a FROM t") == Rows(((1,),))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_path_may_hold_any_bytes(pool, tmp_path):
    try:
        path = make_database(tmp_path / "\udcff.sqlite", "CREATE TABLE t AS SELECT 1 AS a")
    except (OSError, UnicodeError, sqlite3.Error):
        pytest.skip("no such file names here")
    assert one(pool, path, "SELECT a FROM t") == Rows(((1,),))


def test_a_view_of_a_foreign_database_may_call_no_more_than_a_query(pool, tmp_path):
    path = make_database(
        tmp_path / "a.sqlite", "CREATE VIEW v AS SELECT load_extension('/lib/x.so') AS a"
    )
    assert one(pool, path, "SELECT * FROM v") == Failed("error", "unsafe use of load_extension()")


# --- processes ------------------------------------------------------------------------------------


def test_nothing_is_left_of_processes_and_files(database):
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    before = workers()
    with SqlPool(2, seconds=0.1) as pool:
        pool.run([(database, query) for query in [*TIMEOUT.values(), *REFUSED.values()]])
        assert len(workers()) <= len(before) + 2
    assert workers() == before
    if handles:
        assert len(os.listdir("/proc/self/fd")) == handles


def test_processes_see_no_environment(database, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "canary")
    with SqlPool(1) as pool:
        one(pool, database, "SELECT 1")
        pid = pool._workers[0]._process.pid
        if not os.path.exists(f"/proc/{pid}/environ"):
            pytest.skip("no /proc")
        with open(f"/proc/{pid}/environ", "rb") as file:
            assert b"canary" not in file.read()


ASKING = """
    import os, signal, sys, threading
    from whet.ilr.sql_pool import SqlPool
    path, query, seconds, interrupted = sys.argv[1:]
    with SqlPool(2, seconds=float(seconds)) as pool:
        print(pool.run([(path, "SELECT 7")]), flush=True)
        try:
            if interrupted == "yes":  # as a terminal does: all processes of the group
                threading.Timer(0.3, os.killpg, (0, signal.SIGINT)).start()
            pool.run([(path, query), (path, query + " ")])
        except KeyboardInterrupt:
            print("interrupted", len(pool._workers), pool.run([(path, "SELECT 8")]))
"""


def ask(database, query, seconds, interrupted):
    """Run queries in another program, in a process group of its own."""
    arguments = [str(database), query, str(seconds), interrupted]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ASKING), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )


def test_ctrl_c_ends_the_queries_and_the_pool_can_go_on(database):
    asking = ask(database, TIMEOUT["endless"], 60, "yes")
    out, err = asking.communicate(timeout=60)
    assert err == ""
    assert out.splitlines() == ["[Rows(rows=((7,),))]", "interrupted 0 [Rows(rows=((8,),))]"]
    assert asking.returncode == 0


def test_processes_of_a_killed_program_end_by_themselves(database):
    """Also one that is inside a call of C: its own alarm ends it."""
    asking = ask(database, TIMEOUT["glob"], 0.5, "no")
    assert asking.stdout.readline() == "[Rows(rows=((7,),))]\n"
    listed = ["ps", "--no-headers", "-o", "pid", "--ppid", str(asking.pid)]
    pids = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    asking.kill()
    asking.communicate()
    assert pids
    deadline = time.monotonic() + 30
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid):
    """Whether a process is there; one that has ended may wait for a parent that never asks."""
    listed = subprocess.run(
        ["ps", "--no-headers", "-o", "stat", "-p", pid], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()[:1] not in ("", "Z")


# --- the task -------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    """A folder in Spider's layout, with a gold query of each kind."""
    make_database(
        tmp_path / "database" / "zoo" / "zoo.sqlite",
        "CREATE TABLE animal (name TEXT, legs INT, weight REAL)",
        "INSERT INTO animal VALUES ('emu', 2, 0.1), ('ant', 6, 0.2), ('owl', 2, 0.3)",
    )
    queries = [
        "SELECT legs FROM animal",
        "SELECT name FROM animal ORDER BY legs, name",
        "SELECT sum(weight) FROM animal",
        "SELECT name FROM animal WHERE legs = 8",
        "SELECT wings FROM animal",
    ]
    rows = [{"db_id": "zoo", "question": f"{k}?", "query": q} for k, q in enumerate(queries)]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    return tmp_path


GOLD_ONLY = [
    # row, completion, multiset, set
    (0, "SELECT legs FROM animal", 1, 1),
    (0, "SELECT legs FROM animal ORDER BY 1 DESC", 1, 1),
    (0, "SELECT DISTINCT legs FROM animal", 0, 1),
    (0, "SELECT legs + 0.0 FROM animal", 1, 1),
    (0, "SELECT CAST(legs AS TEXT) FROM animal", 0, 0),
    (0, "SELECT legs, name FROM animal", 0, 0),
    (0, "SELECT arms FROM animal", 0, 0),
    (0, "```sql\nSELECT legs FROM animal;\n```", 1, 1),
    (0, "Sure:\n```\nSELECT legs FROM animal", 1, 1),
    (1, "SELECT name FROM animal ORDER BY legs, name", 1, 1),
    (1, "SELECT name FROM animal ORDER BY name", 0, 1),
    (2, "SELECT 0.3 + 0.2 + 0.1 FROM animal LIMIT 1", 1, 0),
    (2, "SELECT 0.6001", 0, 0),
    (3, "SELECT name FROM animal WHERE 0", np.nan, np.nan),
    (4, "SELECT 1", np.nan, np.nan),
]


@pytest.mark.parametrize("comparison", ["multiset", "set"])
def test_scores(questions, comparison):
    task = Sql(comparison, workers=1)
    table = task.load(questions, "dev").take([row for row, *_ in GOLD_ONLY])
    wanted = [pair[0 if comparison == "multiset" else 1] for _, _, *pair in GOLD_ONLY]
    scores = task.score(table, [completion for _, completion, *_ in GOLD_ONLY])
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, wanted)


PAIRS = [
    # first, second, multiset, set
    ("SELECT legs FROM animal", "SELECT legs + 0 FROM animal ORDER BY rowid", True, True),
    ("SELECT legs FROM animal", "SELECT legs FROM animal ORDER BY legs", False, True),
    ("SELECT 1 WHERE 0", "SELECT name FROM animal WHERE legs = 8", True, True),
    ("SELECT legs FROM animal", "SELECT DISTINCT legs FROM animal", False, True),
    ("not SQL", "not SQL", True, True),
    ("not SQL", "nor SQL", False, False),
    ("SELECT 1", "nor SQL", False, False),
]


@pytest.mark.parametrize("comparison", ["multiset", "set"])
def test_agreement(questions, comparison):
    task = Sql(comparison, workers=1)
    table = task.load(questions, "dev").take([0] * len(PAIRS))
    first, second = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    wanted = [pair[2 if comparison == "multiset" else 3] for pair in PAIRS]
    assert task.agree(table, first, second).tolist() == wanted
    assert task.agree(table, second, first).tolist() == wanted


def test_loading(questions):
    table = Sql(workers=1).load(questions, "dev")
    assert table.column_names == ["row", "prompt", "completion", "reference", "database"]
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["completion"].equals(table["reference"])
    prompt = table["prompt"][0].as_py()
    assert prompt.startswith("USER:\n")
    assert prompt.endswith("Question:\n0?\n\nASSISTANT:\n")
    assert "CREATE TABLE animal (name TEXT, legs INT, weight REAL);" in prompt


def test_a_schema_may_hold_any_bytes(questions):
    make_database(
        questions / "database" / "zoo" / "zoo.sqlite",
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = CAST(x'"
        + b"CREATE TABLE animal (name TEXT, legs INT, weight REAL /* \xff */)".hex()
        + "' AS TEXT)",
    )
    assert "/* ? */" in Sql(workers=1).load(questions, "dev")["prompt"][0].as_py()


def test_loading_the_layout_of_bird(questions):
    shutil.move(questions / "database", questions / "train_databases")
    row = {"question_id": 3, "db_id": "zoo", "question": "How many?", "evidence": "an emu walks"}
    rows = [row | {"SQL": "SELECT 3", "parsed": {"conds": [1, "a"]}}, row | {"SQL": "SELECT 4"}]
    (questions / "train.json").write_text(json.dumps(rows))
    table = Sql(workers=1).load(questions, "train")
    assert table["completion"].to_pylist() == ["SELECT 3", "SELECT 4"]
    assert "an emu walks" in table["prompt"][1].as_py()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"db_id": "../zoo"}, "does not exist"),
        ({"db_id": "farm"}, "does not exist"),
        ({"query": None}, "row 0 of .* has nothing in the column 'query'"),
        ({"question": ...}, "has no column 'question'"),
    ],
)
def test_what_cannot_be_loaded(questions, change, message):
    row = {"db_id": "zoo", "question": "?", "query": "SELECT 1"} | change
    rows = [{name: value for name, value in row.items() if value is not ...}]
    (questions / "dev.json").write_text(json.dumps(rows))
    with pytest.raises(WhetError, match=message):
        Sql(workers=1).load(questions, "dev")


@pytest.mark.parametrize("content", ["[", "3", "[3]", '["a"]', '{"a": 1}', "[]"])
def test_a_list_of_questions_that_is_none(questions, content):
    (questions / "dev.json").write_text(content)
    with pytest.raises(WhetError):
        Sql(workers=1).load(questions, "dev")


def test_a_folder_without_databases(questions):
    shutil.rmtree(questions / "database")
    with pytest.raises(WhetError, match="has no folder dev_databases or database or databases"):
        Sql(workers=1).load(questions, "dev")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n  by a limit 3", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("WITH x AS (SELECT 1 ORDER BY 1) SELECT * FROM x", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t -- ORDER BY a", False),
        ('SELECT "order" FROM t /* ORDER */ WHERE [by] = 1', False),
        ("SELECT a FROM t ORDER /* of */ BY a", True),
        ("SELECT a FROM t WHERE b = ')' ORDER BY a", True),
    ],
)
def test_where_an_order_is_asked_for(query, ordered):
    assert is_ordered(query) is ordered


VALUES = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=2), st.binary(max_size=2)
)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=6), st.randoms(use_true_random=False))
def test_hashes_are_equal_if_rows_are(rows, random):
    shuffled = random.sample(rows, len(rows))
    first, second = digest(Rows(tuple(rows))), digest(Rows(tuple(shuffled)))
    assert first.any_order == second.any_order
    assert first.as_set == second.as_set == digest(Rows(tuple(rows * 2))).as_set
    if rows == shuffled:  # which Python compares as the paper's code does: 1 == 1.0
        assert first.in_order == second.in_order
    changed = digest(Rows((*rows, (10, 10))))
    assert changed.any_order != first.any_order
    assert changed.as_set != first.as_set
    assert (rows[1:] == rows) == (digest(Rows(tuple(rows[1:]))).any_order == first.any_order)


def test_statements_of_completions():
    assert statement("  SELECT 1;\n") == "SELECT 1;"
    assert statement("```SQL\nSELECT 1\n```\nor\n```sql\nSELECT 2\n```") == "SELECT 1"


def test_unknown_comparison():
    with pytest.raises(WhetError, match="choose 'multiset' or 'set'"):
        Sql("exact")


# --- real databases -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spider():
    from conftest import DATA

    if not (DATA / "spider_rebuilt").is_dir():
        pytest.skip(f"data set spider_rebuilt not found under {DATA}; set WHET_DATA")
    return DATA / "spider_rebuilt"


def test_gold_queries_of_spider_are_right_and_empty_ones_do_not_count(spider):
    raw = pq.read_table(spider / "test.parquet")
    task = Sql()
    table = task.load(spider, "test")
    scores = task.score(table, table["reference"].to_pylist())
    judged = np.array(raw["exec_ok"].to_pylist()) & (np.array(raw["n_rows"].to_pylist()) > 0)
    np.testing.assert_array_equal(scores, np.where(judged, 1.0, np.nan))


def test_queries_of_models_on_spider_are_judged_as_upstream_did(spider):
    """One question differs: its gold query returns the text '4' where the models return 4."""
    raw = pq.read_table(spider / "test.parquet")
    task = Sql()
    table = task.load(spider, "test")
    for model in ("dail_gpt4", "graphix_t5"):
        scores = task.score(table, table[f"llm_{model}"].to_pylist())
        theirs = np.array(raw[f"llm_ok_{model}"].to_pylist(), dtype=float)
        assert (scores != theirs)[~np.isnan(scores)].sum() == 1


def test_sets_are_blind_to_duplicates_and_order(spider):
    table = Sql().load(spider, "test")
    completions = table["llm_dail_gpt4_sc"].to_pylist()
    scores, sets = (Sql(kind).score(table, completions) for kind in ("multiset", "set"))
    assert np.array_equal(np.isnan(scores), np.isnan(sets))
    assert 0 < np.nansum(sets) - np.nansum(scores) < 40
