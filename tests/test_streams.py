"""Tables of any length: what is read again is the same, and what is written is whole."""

import gc
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.annotate.annotator import write_rows
from whet.errors import WhetError
from whet.streams import BATCH, RowStream, write_stream
from whet.tables import read_table

MANY = 2 * BATCH + 77


def rows_of(stream):
    return [row for batch in stream.batches() for row in batch.to_pylist()]


def problem(source, **options):
    """Return the one sentence that is said of a table that cannot be read."""
    with pytest.raises(WhetError) as raised:
        rows_of(RowStream(source, **options))
    message = str(raised.value)
    assert "\n" not in message
    return message


def quoted(value):
    return '"' + value.replace('"', '""') + '"'


def sample(n):
    return {"id": [str(i) for i in range(n)], "text": [f"row {i}" for i in range(n)]}


def write(path, data):
    """Write columns in the form that the suffix names, not with whet."""
    table = pa.table(data)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=1000)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(data), *(mark.join(row.values()) for row in table.to_pylist())]
        path.write_text("\n".join(lines) + "\n")
    return path


SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [1, BATCH - 1, BATCH, BATCH + 1, MANY])
def test_all_rows_come_in_order_and_come_again(tmp_path, suffix, n):
    path = write(tmp_path / f"a{suffix}", sample(n))
    stream = RowStream(path)
    assert stream.num_rows == n
    assert stream.schema.names == ["id", "text"]
    for _ in range(2):
        batches = list(stream.batches())
        assert max(batch.num_rows for batch in batches) <= BATCH
        assert all(batch.schema.equals(stream.schema) for batch in batches)
        assert pa.Table.from_batches(batches).to_pydict() == sample(n)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit", [1, 5, BATCH, BATCH + 1, MANY, 10**9])
def test_limit_takes_the_first_rows(tmp_path, suffix, limit):
    path = write(tmp_path / f"a{suffix}", sample(MANY))
    stream = RowStream(path, limit)
    assert stream.num_rows == min(limit, MANY)
    assert [row["id"] for row in rows_of(stream)] == sample(min(limit, MANY))["id"]


@pytest.mark.parametrize("limit", [None, 3, MANY])
def test_tables_in_memory(limit):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    data = sample(MANY)
    for source in (data, pa.table(data), pandas.DataFrame(data), polars.DataFrame(data)):
        stream = RowStream(source, limit)
        assert stream.num_rows == (limit or MANY)
        assert stream.schema.names == ["id", "text"]
        assert rows_of(stream) == rows_of(stream)
        assert [row["id"] for row in rows_of(stream)] == data["id"][:limit]
        assert max(batch.num_rows for batch in stream.batches()) <= BATCH


def test_two_readers_at_once_do_not_disturb_one_another(tmp_path):
    stream = RowStream(write(tmp_path / "a.csv", sample(MANY)))
    pairs = zip(stream.batches(), stream.batches(), strict=True)
    assert all(one.equals(other) for one, other in pairs)


def test_reader_that_stops_early_closes_the_file(tmp_path, recwarn):
    stream = RowStream(write(tmp_path / "a.csv", sample(MANY)), limit=3)
    rows_of(stream)
    gc.collect()
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]


# --- CSV ------------------------------------------------------------------------------------------


def test_quoted_newlines_and_commas_across_batches(tmp_path):
    texts = [f'a,{i}\n"b"\r\n, {"x" * (i % 90)}\n\n' for i in range(MANY)]
    path = tmp_path / "a.csv"
    lines = [f"{i},{quoted(text)}" for i, text in enumerate(texts)]
    path.write_bytes(("id,text\n" + "\n".join(lines)).encode())
    stream = RowStream(path)
    assert stream.num_rows == MANY
    assert [row["text"] for row in rows_of(stream)] == texts
    assert [row["id"] for row in rows_of(stream)] == [str(i) for i in range(MANY)]
    assert read_table(path)["text"].to_pylist() == texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_marks_of_utf8(tmp_path, end, mark):
    path = tmp_path / "a.csv"
    path.write_bytes(mark + end.join(["text,n", "größe,1", '"a, b",2', ""]).encode())
    assert rows_of(RowStream(path)) == [{"text": "größe", "n": "1"}, {"text": "a, b", "n": "2"}]


def test_values_stay_as_they_are_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\n007,1e5,true\n 1 ,NA,\n")
    assert rows_of(RowStream(path)) == [
        {"a": "007", "b": "1e5", "c": "true"},
        {"a": " 1 ", "b": "NA", "c": None},
    ]


def test_empty_lines(tmp_path):
    """Between rows they are none; in a table of one column they are empty texts."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n\n3,4\n\n")
    assert RowStream(path).num_rows == 2
    path.write_text("text\none\n\ntwo\n")
    assert [row["text"] for row in rows_of(RowStream(path))] == ["one", None, "two"]
    assert read_table(path).num_rows == 3


@pytest.mark.parametrize("bad", ["1", "1,2,3", '"1,2"'])
@pytest.mark.parametrize("before", [1, BATCH + 5])
def test_ragged_row_is_named_with_its_line(tmp_path, bad, before):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * before + bad + "\n1,2\n")
    message = problem(path)
    assert f"line {before + 2} of {path}" in message
    assert "the header 2" in message


def test_line_of_a_ragged_row_counts_lines_in_quotes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"1\n1\n1",2\n1\n')
    assert f"line 5 of {path}" in problem(path)


@pytest.mark.parametrize("content", ['a,b\n1,"2\n', 'a,b\n"1"x,2\n'])
def test_quotes_that_do_not_match_are_named(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    message = problem(path)
    assert str(path) in message
    assert "line 2" in message or "line 3" in message


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".json"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_empty_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert str(path) in problem(path)


@pytest.mark.parametrize("content", ["text,label\n", "text\n"])
def test_header_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert "has no rows" in problem(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("before", [0, BATCH + 5])
def test_bytes_that_are_not_utf8_are_refused(tmp_path, suffix, before):
    path = write(tmp_path / f"a{suffix}", sample(before + 1))
    path.write_bytes(path.read_bytes() + "9,größe\n".encode("latin1"))
    message = problem(path)
    assert f"{path} is not UTF-8" in message
    assert "iconv" in message
    assert f"line {len(path.read_bytes().splitlines())}" in message


def test_utf16_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text\nhello\n".encode("utf-16"))
    assert "not UTF-8" in problem(path)


def test_nul_in_a_text_does_no_harm(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,n\na\x00b,1\n")
    try:
        assert rows_of(RowStream(path)) == [{"text": "a\x00b", "n": "1"}]
    except WhetError as error:
        assert "line 2" in str(error)  # noqa: PT017 - Python 3.11 cannot read it


def test_large_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,n\n" + "x" * 3_000_000 + ",1\n")
    assert len(rows_of(RowStream(path))[0]["text"]) == 3_000_000


def test_what_is_not_there_is_named(tmp_path):
    assert "does not exist" in problem(tmp_path / "none.csv")
    (tmp_path / "a.txt").write_text("text\na\n")
    assert ".txt" in problem(tmp_path / "a.txt")


# --- JSON lines -----------------------------------------------------------------------------------


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [
        (1, 2.5, pa.float64()),
        (2.5, 1, pa.float64()),
        (None, "a", pa.string()),
        ("a", None, pa.string()),
        (None, [1], pa.list_(pa.int64())),
        ([1], [2.5], pa.list_(pa.float64())),
        ([], ["a"], pa.list_(pa.string())),
        (True, None, pa.bool_()),
        (2**53 + 1, 5, pa.int64()),
    ],
)
def test_types_that_differ_over_batches_become_one(tmp_path, early, late, kind):
    rows = [{"v": early}] * (BATCH + 1) + [{"v": late}] * BATCH
    stream = RowStream(lines(tmp_path / "a.jsonl", rows))
    assert stream.schema.field("v").type == kind
    assert rows_of(stream) == rows
    out = tmp_path / "b.parquet"
    write_stream(out, stream.schema, stream.batches())
    assert pq.read_table(out).to_pylist() == rows


@pytest.mark.parametrize(
    ("early", "late"),
    [(1, "a"), ("a", 1), (True, 1), ({"a": 1}, "a"), (1, [1]), (2**53 + 1, 0.5), (1, 2**70)],
)
def test_types_that_do_not_go_together_are_named(tmp_path, early, late):
    rows = [{"v": early}] * (BATCH + 1) + [{"v": late}]
    path = lines(tmp_path / "a.jsonl", rows)
    message = problem(path)
    assert "'v'" in message
    assert str(path) in message


def test_objects_that_differ_over_batches(tmp_path):
    rows = [{"v": {"a": 1}}] * (BATCH + 1) + [{"v": {"b": "x"}}]
    found = rows_of(RowStream(lines(tmp_path / "a.jsonl", rows)))
    assert found[0]["v"] == {"a": 1, "b": None}
    assert found[-1]["v"] == {"a": None, "b": "x"}


def test_columns_that_come_late(tmp_path):
    rows = [{"text": "a"}] * BATCH + [{"n": 1, "text": "b"}] + [{"z": "c"}] + [{}]
    stream = RowStream(lines(tmp_path / "a.jsonl", rows))
    assert stream.schema.names == ["text", "n", "z"]
    found = rows_of(stream)
    assert found[0] == {"text": "a", "n": None, "z": None}
    assert found[BATCH:] == [
        {"text": "b", "n": 1, "z": None},
        {"text": None, "n": None, "z": "c"},
        {"text": None, "n": None, "z": None},
    ]


def test_lines_end_where_json_lines_end(tmp_path):
    """Not at the other characters that Unicode takes for line ends."""
    texts = ["a\u2028b", "a\x85b", "a\x0bb\x0c", "größe \U0001f389"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + "".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n\n" for t in texts).encode()
    )
    assert [row["text"] for row in rows_of(RowStream(path))] == texts


@pytest.mark.parametrize("bad", ["{", "nonsense", '{"a": 1} {"a": 2}', "[1]", "5", "null", '"a"'])
@pytest.mark.parametrize("before", [0, BATCH + 3])
def test_bad_line_is_named(tmp_path, bad, before):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * before + bad + "\n")
    assert f"line {before + 1} of {path}" in problem(path)


def test_half_a_character_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "b"}\n' * 5 + '{"a": "\\ud83d"}\n')
    message = problem(path)
    assert "surrogate" in message
    assert "row 5" in message


def test_deep_nesting_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    assert "line 1" in problem(path)


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_that_is_none_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    assert f"{path} cannot be read" in problem(path)
    write(path, sample(5))
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path} cannot be read" in problem(path)


def test_parquet_that_is_damaged_inside_is_named(tmp_path):
    """The foot is whole, so that it is found only when the rows are read."""
    path = write(tmp_path / "a.parquet", sample(3000))
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(bytes(content))
    assert str(path) in problem(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None]).dictionary_encode(),
        pa.array(["a", "b", None], pa.large_string()),
        pa.array(["a", "b", None], pa.string_view()),
        pa.array([1, 2, None], pa.int8()),
        pa.array([1.5, float("nan"), None]),
        pa.array([True, False, None]),
        pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        pa.array([0, 1, None], pa.date32()),
        pa.array([None, None, None], pa.null()),
        pa.array([b"a", b"\xff", None], pa.binary()),
        pa.array([1, 2, None], pa.duration("s")),
        pa.array([1, 2, None], pa.decimal128(5, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_of_column_is_carried_or_refused_in_words(tmp_path, column, suffix):
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y", "z"], "v": column}), source)
    stream = RowStream(source)
    out = tmp_path / f"b{suffix}"
    added = [pa.field("label", pa.string())]
    try:
        write_rows(out, stream, added, iter([{"label": "l"}] * 3))
    except WhetError as error:
        assert "'v'" in str(error)  # noqa: PT017 - one of two good ends
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet"]
        return
    found = read_table(out)
    assert found["text"].to_pylist() == ["x", "y", "z"]
    assert found["label"].to_pylist() == ["l"] * 3
    if suffix == ".parquet":
        assert str(found["v"].to_pylist()) == str(column.to_pylist())
    if suffix == ".jsonl":
        assert "NaN" not in out.read_text()


def test_pandas_index_is_no_column(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(sample(5), index=[3, 1, 4, 1, 5])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.reset_index(drop=True).to_parquet(tmp_path / "b.parquet")
    names = read_table(tmp_path / "a.parquet").column_names
    assert RowStream(tmp_path / "a.parquet").schema.names == names
    assert RowStream(tmp_path / "b.parquet").schema.names == ["id", "text"]


# --- writing --------------------------------------------------------------------------------------

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=9)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.none(), TEXT), min_size=1, max_size=30))
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_again(tmp_path_factory, suffix, texts):
    folder = tmp_path_factory.mktemp("trip")
    data = {"id": [str(i) for i in range(len(texts))], "text": pa.array(texts, pa.string())}
    stream = RowStream(data)
    write_stream(folder / f"a{suffix}", stream.schema, stream.batches())
    again = RowStream(folder / f"a{suffix}")
    found = [row["text"] for row in rows_of(again)]
    separated = suffix in (".csv", ".tsv")
    assert found == ([t or None for t in texts] if separated else texts)
    write_stream(folder / f"b{suffix}", again.schema, again.batches())
    once, twice = (folder / f"{name}{suffix}" for name in "ab")
    if separated:
        third = RowStream(twice)
        assert rows_of(third) == rows_of(again)
    else:
        assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_long_tables_are_written_whole_and_the_same_each_time(tmp_path, suffix):
    stream = RowStream(write(tmp_path / f"a{suffix}", sample(MANY)))
    added = [pa.field("label", pa.string()), pa.field("p", pa.float64())]
    for name in "bc":
        values = ({"label": "x" if i % 2 else None, "p": i / 7} for i in range(MANY))
        write_rows(tmp_path / f"{name}{suffix}", stream, added, values)
    found = RowStream(tmp_path / f"b{suffix}")
    assert found.num_rows == MANY
    assert found.schema.names == ["id", "text", "label", "p"]
    assert float(rows_of(found)[-1]["p"]) == (MANY - 1) / 7
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"c{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("after", [0, 5, BATCH + 5])
@pytest.mark.parametrize(
    "error", [OSError(28, "no more"), WhetError("no more"), KeyboardInterrupt("no more")], ids=repr
)
def test_error_on_the_way_leaves_nothing_half_written(tmp_path, suffix, after, error):
    stream = RowStream(sample(MANY))
    out = tmp_path / f"out{suffix}"
    out.write_text("before")

    def values():
        for i in range(MANY):
            if i == after:
                raise error
            yield {"label": "a"}

    with pytest.raises(type(error), match="no more"):
        write_rows(out, stream, [pa.field("label", pa.string())], values())
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_few_values_are_an_error(tmp_path, suffix):
    stream = RowStream(sample(5))
    values = iter([{"label": "a"}] * 4)
    with pytest.raises((RuntimeError, StopIteration, WhetError)):
        write_rows(tmp_path / f"o{suffix}", stream, [pa.field("label", pa.string())], values)
    assert list(tmp_path.iterdir()) == []


def test_column_that_is_there_already_is_refused(tmp_path):
    stream = RowStream(sample(5))
    with pytest.raises(WhetError, match=r"'text'.*--column"):
        write_rows(tmp_path / "o.csv", stream, [pa.field("text", pa.string())], iter([]))
    assert list(tmp_path.iterdir()) == []


def test_nested_columns_do_not_go_into_csv(tmp_path):
    stream = RowStream({"text": ["a"], "v": [[1, 2]]})
    with pytest.raises(WhetError, match="'v'"):
        write_stream(tmp_path / "o.csv", stream.schema, stream.batches())
    write_stream(tmp_path / "o.jsonl", stream.schema, stream.batches())
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {"text": "a", "v": [1, 2]}


@pytest.mark.parametrize("name", ["o.txt", "o", "o.json", "none/o.csv"])
def test_other_suffixes_and_folders_are_refused(tmp_path, name):
    stream = RowStream(sample(2))
    with pytest.raises(WhetError):
        write_stream(tmp_path / name, stream.schema, stream.batches())
