"""People as the judge of a run: what they are asked, what is taken over, and runs that wait."""

import gc
import io
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import whet
from whet.errors import WhetError
from whet.ilr.feedback import Oracle, judge_disagreements
from whet.ilr.judges import check_judge, make_judge
from whet.ilr.pairs import preferences
from whet.ilr.people import COMPARISONS, JUDGED, VERDICTS, People, PeopleWanted, Waiting
from whet.ilr.tasks.find import load_task
from whet.review.comparing import open_comparison
from whet.review.session import session_file
from whet.review.terminal import label_in_terminal
from whet.rounds import Halt
from whet.store import read_json, write_parquet
from whet.tables import read_table

N = 12
TABLE = pa.table(
    {
        "row": range(N),
        "prompt": [f"{i} + 1?" for i in range(N)],
        "completion": [f"{i}" for i in range(N)],
    }
)
OLD, NEW = TABLE["completion"].to_pylist(), [f"{i + 1}" for i in range(N)]


def wanted(judge, table=TABLE, old=OLD, new=NEW):
    """Return the one session that a judge waits for."""
    with pytest.raises(PeopleWanted) as caught:
        judge.score(table, old, new)
    (session,) = caught.value.sessions
    return session


def answer(session, choose=lambda asked: 1.0, most=None):
    """Let a person answer: ``choose`` gives the score of a row, or None where nobody can decide."""
    source, out = session.folder / COMPARISONS, session.folder / JUDGED
    asked = pq.read_table(source).to_pylist()
    with open_comparison(source, out=out) as people:
        for _ in range(len(asked) if most is None else most):
            if (item := people.next("ann")) is None:
                break
            score = choose(asked[item.row])
            new = "left" if item.shown["left"] == asked[item.row]["proposal"] else "right"
            old = {"left": "right", "right": "left"}[new]
            said = {1.0: new, 0.0: old, 0.5: "same", None: None}[score]
            people.answer("ann", item.row, said, 1.0)
        people.write()


def test_pairs_wait_until_all_are_answered(tmp_path):
    judge = People(tmp_path / "people")
    session = wanted(judge)
    assert (session.total, session.left) == (N, N)
    asked = pq.read_table(session.folder / COMPARISONS)
    assert asked.column_names == ["row", "prompt", "completion", "proposal"]  # no reference
    assert asked["proposal"].to_pylist() == NEW
    scores = [[1.0, 0.0, 0.5, None][i % 4] for i in range(N)]
    answer(session, lambda row: scores[int(row["completion"])], most=N - 1)
    assert wanted(judge).left == 1
    answer(session, lambda row: scores[int(row["completion"])])
    found = judge.score(TABLE, OLD, NEW)
    np.testing.assert_array_equal(found.values, np.array(scores, dtype=float))
    assert found.failures == {i: "nobody could decide" for i in range(3, N, 4)}
    assert (tmp_path / "people" / VERDICTS).is_file()


def test_enough_leaves_the_rest_for_good(tmp_path):
    folder = tmp_path / "people"
    assert wanted(People(folder, enough=True)).left == N  # nothing is answered: nothing is enough
    answer(wanted(People(folder)), most=5)
    assert wanted(People(folder)).left == N - 5
    found = People(folder, enough=True).score(TABLE, OLD, NEW)
    assert (np.nansum(found.values), found.failed) == (5.0, N - 5)
    assert set(found.failures.values()) == {"nobody answered"}
    (session,) = (path for path in folder.iterdir() if path.is_dir())
    answer(Waiting(session, 0, 0))  # who comes late changes nothing
    np.testing.assert_array_equal(People(folder).score(TABLE, OLD, NEW).values, found.values)


def test_answers_count_when_they_are_given(tmp_path):
    """Of a page that is still open, or was killed: none waits for the table to be written."""
    judge = People(tmp_path / "people")
    session = wanted(judge)
    source, out = session.folder / COMPARISONS, session.folder / JUDGED
    session_file(out).touch()  # as while it is being made
    assert wanted(judge).left == N
    with open_comparison(source, out=out, n=5, seed=3) as people:  # of rows and sides of its own
        before = session_file(out).read_bytes()
        assert wanted(judge).left == N
        assert session_file(out).read_bytes() == before
        for _ in range(4):
            item = people.next("ann")
            new = NEW[item.row]
            people.answer("ann", item.row, "left" if item.shown["left"] == new else "right", 1.0)
        assert wanted(judge).left == N - 4
        assert len(people.items) == 5  # and who answers is shown no other rows
        people.answer("ann", people.next("ann").row, None, 1.0)
        assert wanted(judge).left == N - 5
    out.unlink()
    found = replace(judge, enough=True).score(TABLE, OLD, NEW)
    assert np.nansum(found.values) == 4.0
    assert sorted(found.failures.values()) == ["nobody answered"] * 7 + ["nobody could decide"]


def test_answers_are_kept_where_the_verdicts_are_lost(tmp_path):
    judge = People(tmp_path / "people")
    answer(wanted(judge, new=[*NEW[:4], *OLD[4:]]))
    judge.score(TABLE, OLD, [*NEW[:4], *OLD[4:]])
    session = wanted(judge)
    answer(session, most=3)
    (tmp_path / "people" / VERDICTS).unlink()
    before = {path: path.read_bytes() for path in session.folder.iterdir()}
    with pytest.raises(WhetError, match=r"lacks pairs that .*verdicts.* had.* move the folder"):
        judge.score(TABLE, OLD, NEW)
    assert {path: path.read_bytes() for path in session.folder.iterdir()} == before
    session.folder.rename(tmp_path / "away")
    assert wanted(judge).left == N


def test_who_answered_for_a_run_is_led_back_to_it(tmp_path, monkeypatch):
    session = wanted(People(tmp_path / "people"))
    source, out = session.folder / COMPARISONS, session.folder / JUDGED
    with open_comparison(source, out=out) as people:
        assert people.next_step() == "run the same whet ilr command again"
    monkeypatch.chdir(session.folder)
    with open_comparison(type(out)(COMPARISONS), out=type(out)(JUDGED)) as people:
        assert people.next_step() == "run the same whet ilr command again"
    with open_comparison(source, out=tmp_path / JUDGED) as people:
        assert people.next_step().startswith("whet replace")


def test_a_pair_is_asked_about_once(tmp_path):
    judge = People(tmp_path / "people")
    answer(wanted(judge))
    assert judge.score(TABLE, OLD, NEW).failed == 0
    newer = [*NEW[:4], *["?"] * (N - 4)]
    session = wanted(judge, new=newer)
    assert pq.read_table(session.folder / COMPARISONS)["completion"].to_pylist() == OLD[4:]
    answer(session, lambda row: 0.0)
    assert judge.score(TABLE, OLD, newer).values.tolist() == [1.0] * 4 + [0.0] * (N - 4)
    assert judge.score(TABLE, OLD, NEW).values.tolist() == [1.0] * N
    same = [*OLD[:6], *NEW[6:]]  # equal answers are a tie
    assert judge.score(TABLE, OLD, same).values.tolist() == [0.5] * 6 + [1.0] * 6


def test_what_is_known_may_grow_while_people_answer(tmp_path):
    """Two rounds that share pairs wait together; the answers to neither are lost."""
    judge = People(tmp_path / "people")
    half, other = [*NEW[:6], *OLD[6:]], [*OLD[:3], *NEW[3:]]
    first, second = wanted(judge, new=half), wanted(judge, new=other)
    assert (first.total, second.total) == (6, 9)
    answer(second, lambda row: 0.0)
    answer(first)
    assert judge.score(TABLE, OLD, half).values.tolist() == [1.0] * 6 + [0.5] * 6
    values = judge.score(TABLE, OLD, other).values.tolist()
    assert values == [0.5] * 3 + [1.0] * 3 + [0.0] * 6  # of both, those that were taken over first


def test_some_pairs_are_drawn_for_who_has_little_time(tmp_path):
    folder = tmp_path / "people"
    session = wanted(People(folder, most=4))
    drawn = pq.read_table(session.folder / COMPARISONS)["completion"].to_pylist()
    assert len(drawn) == 4
    back = TABLE.take(list(range(N))[::-1])
    assert wanted(People(folder, most=4), back, OLD[::-1], NEW[::-1]).total == 4
    other = wanted(People(tmp_path / "other", most=4, seed=1))
    assert pq.read_table(other.folder / COMPARISONS)["completion"].to_pylist() != drawn
    answer(session)
    found = People(folder, most=4).score(TABLE, OLD, NEW)
    assert [OLD[i] for i in np.flatnonzero(found.values == 1)] == drawn
    assert set(found.failures.values()) == {"not one of the 4 pairs that people were asked about"}
    assert found.failed == N - 4


def test_verdicts_belong_to_their_comparisons(tmp_path):
    judge = People(tmp_path / "people")
    session = wanted(judge)
    answer(session)
    path, good = session.folder / JUDGED, pq.read_table(session.folder / JUDGED)
    kept = session_file(path).read_bytes()
    session_file(path).write_bytes(b"no")
    with pytest.raises(WhetError, match=r"sqlite cannot be read .*: restore it; or move the fold"):
        judge.score(TABLE, OLD, NEW)
    session_file(path).write_bytes(kept)
    write_parquet(path, good.slice(0, 5))
    with pytest.raises(WhetError, match=r"was changed after whet label .* or move the fold"):
        judge.score(TABLE, OLD, NEW)
    session_file(path).unlink()  # another program's table: it has no session
    at = good.column_names.index("proposal")
    for wrong in (
        good.set_column(at, "proposal", pa.array([*NEW[:5], "another", *NEW[6:]])),
        good.slice(0, 5),
        good.take([0, 1, 2, 3, 4, 6, 5, *range(7, N)]),
    ):
        write_parquet(path, wrong)
        with pytest.raises(
            WhetError, match=r"row 5 of .*judged.parquet is not that of .*: move the f"
        ):
            judge.score(TABLE, OLD, NEW)
    write_parquet(path, good.drop_columns("prompt"))
    with pytest.raises(WhetError, match="row 0 of"):
        judge.score(TABLE, OLD, NEW)
    at = good.column_names.index("score")
    write_parquet(path, good.set_column(at, "score", pa.array([7.0] * N)))
    with pytest.raises(WhetError, match="scores are from 0 to 1"):
        judge.score(TABLE, OLD, NEW)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(WhetError, match=r"judged\.parquet"):
        judge.score(TABLE, OLD, NEW)
    assert not (tmp_path / "people" / VERDICTS).exists()
    write_parquet(path, good)
    assert judge.score(TABLE, OLD, NEW).failed == 0


def test_an_arm_ends_where_people_have_no_verdict(tmp_path):
    judge = People(tmp_path / "people")
    answer(wanted(judge), lambda row: None)
    with pytest.raises(Halt, match="people gave no verdict about any of 12 comparisons"):
        judge.score(TABLE, OLD, NEW)
    other = [f"{i + 2}" for i in range(N)]
    answer(wanted(judge, new=other), most=1)
    found = replace(judge, enough=True).score(TABLE, OLD, other)
    left = [i for i in range(N) if i in found.failures]
    assert len(left) == N - 1
    with pytest.raises(Halt):  # nobody is asked again
        judge.score(TABLE.take(left), [OLD[i] for i in left], [other[i] for i in left])


def test_pairs_for_dpo_are_judged_as_well(tmp_path):
    """A row has several pairs, which are numbered anew."""
    samples = pa.table(
        {
            "row": np.repeat(range(N), 4),
            "sample": [0, 1, 2, 3] * N,
            "completion": [said for i in range(N) for said in (f"{i}", f"{i + 1}", "a", f"b{i}")],
        }
    )
    judge = People(tmp_path / "people", most=6)
    with pytest.raises(PeopleWanted) as caught:
        preferences(TABLE, samples, judge, share=1.0)
    (session,) = caught.value.sessions
    answer(session)
    found = preferences(TABLE, samples, judge, share=1.0)
    assert (found.table.num_rows, found.failed) == (6, 2 * N - 6)
    asked = pq.read_table(session.folder / COMPARISONS)
    assert found.table["chosen"].to_pylist() == asked["proposal"].to_pylist()


def test_people_see_what_makes_an_answer_better(tmp_path):
    criterion = "Only brevity <b>counts</b>."
    session = wanted(People(tmp_path / "people", criterion=criterion))
    source, out = session.folder / COMPARISONS, session.folder / JUDGED
    said = []
    with open_comparison(source, out=out) as people:
        label_in_terminal(people, "ann", io.StringIO("q\n"), said.append)
        assert people.criterion == criterion
    assert criterion in said
    answer(session)
    assert People(tmp_path / "people").score(TABLE, OLD, NEW).failed == 0
    task = load_task("saferpaca")
    pq.write_table(pq.read_table(source).drop_columns("criterion"), tmp_path / "p.parquet")
    with open_comparison(tmp_path / "p.parquet", out=tmp_path / "j.parquet", task=task) as people:
        assert people.criterion == task.criterion


def test_messages_are_judged(tmp_path):
    def said(role, texts):
        return [[{"role": role, "content": text}] for text in texts]

    table = pa.table(
        {
            "row": range(N),
            "prompt": said("user", TABLE["prompt"].to_pylist()),
            "completion": said("assistant", OLD),
        }
    )
    judge, new = People(tmp_path / "people"), said("assistant", NEW)
    answer(wanted(judge, table, table["completion"].to_pylist(), new), lambda row: 0.5)
    found = judge_disagreements(judge, table, new, [False] * N)
    assert found.values.tolist() == [0.5] * N
    later = said("assistant", [*NEW[1:], "?"])
    answer(wanted(judge, table, table["completion"].to_pylist(), later), lambda row: 0.5)
    again = judge_disagreements(judge, table, later, [False] * N)
    assert again.values.tolist() == [0.5] * N


def test_names_of_the_judge():
    assert check_judge("people:200") == ("people", "200")
    for wrong in ("people:0", "people:many", "people:-3", "people:1.5"):
        with pytest.raises(WhetError, match="is no number of comparisons; write people, or"):
            check_judge(wrong)
    with pytest.raises(WhetError, match="have them answer with whet label --compare"):
        make_judge("people", load_task("chains"))


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("trl")
    from whet.ilr.scratch import save_scratch

    task = load_task("chains", operations=1, modulus=5, train=40, test=10)
    tables = [task.load(None, split) for split in ("train", "test")]
    texts = [t for x in tables for c in ("prompt", "completion") for t in x[c].to_pylist()]
    gc.freeze()  # each training collects garbage, among all that the libraries' imports made
    return save_scratch(
        texts, tmp_path_factory.mktemp("models") / "base", width=16, layers=1, heads=2, length=96
    )


def recipe(base, **changes):
    steps = {"tune": "full", "learning_rate": 5e-3, "max_steps": 3, "batch_size": 8}
    said = {"max_new_tokens": 10, "tokens_per_batch": 4096}
    return {
        "task": "chains",
        "options": {"operations": 1, "modulus": 5, "train": 40, "test": 10},
        "model": str(base),
        "weak": {"model": str(base), "train": {"max_steps": 40}, "generate": said},
        "judge": "people",
        "sft": steps | {"max_length": 96},
        "propose": said | {"temperature": 1.0},  # else the second round proposes as the first
        "evaluate": said,
        "rounds": 2,
        "arms": {"sft": None, "ilr": None, "filter": {"rounds": 1}},
        "out": "run",
    } | changes


def truth(demonstrations):
    """Return what the oracle says of a pair."""
    rows = {row["prompt"]: row for row in demonstrations.to_pylist()}
    oracle = Oracle(load_task("chains", operations=1, modulus=5))

    def choose(asked):
        row = pa.Table.from_pylist([rows[asked["prompt"]]])
        return float(oracle.score(row, [asked["completion"]], [asked["proposal"]]).values[0])

    return choose


class Killed(BaseException):
    """Ends a run where it stands."""


def test_a_run_with_people_ends_as_with_the_oracle(base, tmp_path, monkeypatch):
    """It waits for each round, is killed whenever it writes what is new, and asks nothing twice."""
    from whet.ilr import people, pipeline
    from whet.ilr.recipe import parse_recipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "try_report", lambda *args: None)  # it has tests of its own
    oracle = Oracle(load_task("chains", operations=1, modulus=5))
    keys = recipe(base, out="machine")
    expected = pipeline.Ilr(parse_recipe(keys), judges={"people": oracle}).run()["arms"]
    shutil.copytree("machine/stages", "run/stages")  # the same models: no second training
    shutil.copy("machine/settings.json", "run")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(base)))
    write, met = people.write_parquet, set()

    def dying(path, table):
        if (path, table.num_rows) not in met:
            met.add((path, table.num_rows))
            raise Killed
        write(path, table)

    monkeypatch.setattr(people, "write_parquet", dying)
    said, waits = None, []
    while said is None or said.code == 3:
        assert len(waits) < 6
        try:
            said = whet(["ilr", "recipe.yaml"])
        except Killed:
            continue
        if said.code == 3:
            commands = [x for x in said.out.splitlines() if x.startswith("whet label --compare")]
            waits.append(len(commands))
            choose = truth(pq.read_table("run/demonstrations.parquet"))
            for command in commands:
                folder = (tmp_path / shlex.split(command)[3]).parent
                answer(Waiting(folder, 0, 0), choose)
    assert said.code == 0, said.err
    assert len(waits) == 2  # a round each
    assert waits[0] == 1  # ilr and filter have the same proposals in the first round
    assert len(met) == 4
    found = read_json(tmp_path / "run" / "run.json")["arms"]
    for name, arm in expected.items():
        for mine, its in zip(found[name]["rounds"], arm["rounds"], strict=True):
            assert mine | {"seconds": 0} == its | {"seconds": 0}
    assert found["ilr"]["rounds"][1]["accepted"] > 0
    assert (tmp_path / "run/test.parquet").read_bytes() == (
        tmp_path / "machine/test.parquet"
    ).read_bytes()


def test_the_printed_commands_go_on(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = recipe(base, arms={"sft": None, "ilr": {"rounds": 1, "judge": "people:3"}}, test=None)
    (tmp_path / "recipe.yaml").write_text(json.dumps(keys))
    planned = whet(["ilr", "recipe.yaml", "--plan"])
    assert "People compare at most 3 pairs." in planned.out
    said = whet(["ilr", "recipe.yaml"])
    assert said.code == 3, said.err
    assert "Nothing is wrong: 3 of 3 comparisons wait for people." in said.out
    assert "3 of 3 wait\nwhet label" in said.out
    assert "ilr: at most 15 % of the proposals that people judge are taken" in said.out
    lines = said.out.splitlines()
    label = next(shlex.split(line) for line in lines if line.startswith("whet label"))
    again = next(shlex.split(line) for line in lines if line.startswith("whet ilr"))
    assert again == ["whet", "ilr", "recipe.yaml"]
    assert "--enough" not in said.out
    said = whet([*again[1:], "--enough"])
    assert said.code == 3
    assert "--enough takes what is answered, and of these comparisons nothing is" in said.out
    monkeypatch.setattr("sys.stdin", io.StringIO("left\nq\n"))
    ended = whet([*label[1:], "--tui"])
    assert ended.code == 0
    assert "Next: run the same whet ilr command again" in ended.out
    (tmp_path / label[-1]).unlink()  # as if the command had been killed
    said = whet(again[1:])
    assert said.code == 3
    assert "2 of 3 comparisons wait" in said.out
    enough = next(line for line in said.out.splitlines() if line.endswith("--enough"))
    said = whet(shlex.split(enough)[1:])
    assert said.code == 0, said.err
    (_, record) = read_json(tmp_path / "run" / "run.json")["arms"]["ilr"]["rounds"]
    assert record["judged"] == 1
    judged = read_table(tmp_path / "run/arms/ilr/01/judged.parquet")
    failures = [why for why in judged["failure"].to_pylist() if why]
    assert failures.count("nobody answered") == 2
    assert len(failures) == record["failed"]
    assert whet([*again[1:], "--enough"]).code == 0  # a finished run is shown again
    page = (tmp_path / "run" / "report.html").read_text()
    assert "copy <code>people/</code> and <code>settings.json</code>" in page
    for name in ("people", "stages"):  # the second so that nothing is trained again
        shutil.copytree(tmp_path / "run" / name, tmp_path / "again" / name)
    shutil.copy(tmp_path / "run" / "settings.json", tmp_path / "again")
    assert whet([*again[1:], "--out", "again"]).code == 0  # and nobody is asked
    assert read_table(tmp_path / "again/arms/ilr/01/judged.parquet") == judged


def test_who_waits_for_an_answer_is_said(tmp_path, capsys):
    from whet.cli.ilr import _show_wanted
    from whet.ilr.recipe import parse_recipe

    arms = {"ilr": None, "bold": {"like": "ilr", "alpha": 0.5}, "filter": None, "dpo": None}
    keys = {"task": "chains", "model": "m", "judge": "people:9", "arms": arms, "out": str(tmp_path)}
    (tmp_path / "arms/ilr/01").mkdir(parents=True)
    (tmp_path / "arms/ilr/01/round.json").write_text("{}")
    one, two = Waiting(tmp_path / "people/1", 9, 4), Waiting(tmp_path / "people/2", 6, 6)
    waits = [*PeopleWanted([one]).of("ilr"), *PeopleWanted([one, two]).of("bold")]
    _show_wanted(PeopleWanted(waits), parse_recipe(keys), "whet ilr r.yaml", enough=False)
    said = capsys.readouterr().out
    assert f"ilr, round 2; bold, round 1: 4 of 9 wait\n{one.command}\n" in said
    assert f"bold, round 1: 6 of 6 wait\n{two.command}\n" in said
    assert [line.split(" of the")[0] for line in said.splitlines() if "at most" in line] == [
        "ilr: at most 15 %",
        "bold: at most 50 %",
    ]


def test_enough_needs_people(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(base, judge="oracle")))
    said = whet(["ilr", "recipe.yaml", "--enough"])
    assert said.code == 2
    assert "--enough is about people, and no arm of recipe.yaml asks any" in said.err
