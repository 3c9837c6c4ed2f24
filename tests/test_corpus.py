"""What goes out comes back: every format keeps every value, the order, and the files it read."""

import csv
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings

from helpers import snapshot
from whet.corpus import check_texts, read_corpus
from whet.errors import WhetError
from whet.store import write_atomic
from whet.tables import read_table, write_table

quick = settings(deadline=None, max_examples=40)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

#: Texts that formats have been known to lose.
SPACED = ["", " ", "\n", "\r\n", "\r", "\t", "\0", "\u2028", "\x85", "\ufeff", " 1", "1 "]
WORDS = r"""
    " "" ' , ; # \ \n [1] {} NA N/A null None true True TRUE false nan NaN inf 007 1.50 -0 +1 1e5
    0x1 .5 5. 1_000 9007199254740993 9223372036854775808 2024-01-01 12:30 💰 é مرحبا
"""
AWKWARD = st.sampled_from([*SPACED, *WORDS.split(), "مرحبا\u202e"])
TEXT = AWKWARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERLIKE = st.text("0123456789.+-eEnaif tru", min_size=1, max_size=6)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(
    ["a,b", 'say "so"', "two\nlines", "été", " padded ", "1", "true"]
)
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tables(draw, values=TEXT, kind=None):
    """Return a table of 1-4 columns with gaps, in front of them a column that counts the rows."""
    names = draw(
        st.lists(NAME, min_size=1, max_size=4, unique=True).filter(lambda n: "id" not in n)
    )
    n = draw(st.integers(1, 8))
    column = st.lists(st.none() | values, min_size=n, max_size=n)
    return pa.table({"id": range(n)} | {name: pa.array(draw(column), kind) for name in names})


def as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column as it is spelt in a file; a bool may be spelt in two ways."""
    if pa.types.is_boolean(column.type):
        return [None if v is None else str(v) for v in column.to_pylist()]
    return column.cast(pa.string()).to_pylist()


def same_text(found: pa.ChunkedArray, expected: list[str | None]) -> bool:
    if pa.types.is_boolean(found.type):
        return as_text(found) == [v and v.capitalize() for v in expected]
    return as_text(found) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def there_and_back(table: pa.Table, path: Path) -> pa.Table:
    write_table(table, path)
    return read_table(path)


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(table=tables(kind=pa.string()))
def test_texts_survive(suffix, folder, table):
    back = there_and_back(table, folder / f"texts{suffix}")
    assert back.column_names == table.column_names
    for name in table.column_names[1:]:
        assert same_text(back[name], table[name].to_pylist()), name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("kind", "values"),
    [(pa.int64(), INT64), (pa.bool_(), st.booleans())],
    ids=["int", "bool"],
)
@quick
@given(data=st.data())
def test_typed_labels_survive_with_gaps(suffix, kind, values, folder, data):
    table = data.draw(tables(values, kind))
    back = there_and_back(table, folder / f"typed{suffix}")
    assert back.to_pydict() == table.to_pydict()
    for name in table.column_names:
        if table[name].null_count < table.num_rows:
            assert back.schema.field(name).type == table.schema.field(name).type


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(table=tables(st.floats(allow_nan=False), pa.float64()))
def test_numbers_survive(suffix, folder, table):
    assert there_and_back(table, folder / f"floats{suffix}").to_pydict() == table.to_pydict()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@quick
@given(table=tables(kind=pa.string()))
def test_formats_with_types_keep_strings_strings(suffix, folder, table):
    back = there_and_back(table, folder / f"strings{suffix}")
    assert back.to_pydict() == table.to_pydict()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_a_value_in_the_only_column_survive(suffix, tmp_path):
    table = pa.table({"text": ["a", None, "", "b"]})
    assert there_and_back(table, tmp_path / f"one{suffix}").to_pydict() == table.to_pydict()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_more_rows_than_a_batch_keep_their_order(suffix, tmp_path):
    table = pa.table({"id": range(25_000), "text": [f"a,\n{i}" for i in range(25_000)]})
    assert there_and_back(table, tmp_path / f"long{suffix}").to_pydict() == table.to_pydict()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_longer_than_a_read_block_survives(suffix, tmp_path):
    long = 'line, "quoted"\n' * 200_000
    table = pa.table({"id": [1, 2, 3], "text": ["a", long, "b"]})
    assert there_and_back(table, tmp_path / f"wide{suffix}").to_pydict() == table.to_pydict()


# --- against readers and writers that are not ours --------------------------------------------


@quick
@given(table=tables(kind=pa.string()))
def test_python_reads_the_csv(folder, table):
    write_table(table, folder / "out.csv")
    content = (folder / "out.csv").read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    assert header == table.column_names
    columns = table.to_pydict().values()
    assert rows == [
        ["" if v is None else str(v) for v in row] for row in zip(*columns, strict=True)
    ]


@quick
@given(table=tables(TEXT, pa.string()))
def test_python_reads_the_json_lines(folder, table):
    write_table(table, folder / "out.jsonl")
    lines = (folder / "out.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == table.to_pylist()


@quick
@given(
    rows=st.lists(st.tuples(NUMBERLIKE | TEXT, NUMBERLIKE), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example(rows=[("007", "1.50")], end="\n", quoting=csv.QUOTE_MINIMAL)
@example(rows=[("1", "0.1"), ("2", "-0")], end="\n", quoting=csv.QUOTE_MINIMAL)
def test_types_found_in_a_csv_lose_no_character(folder, rows, end, quoting):
    # Python leaves a bare carriage return unquoted, which no reader can tell from a line's end.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in value for row in rows for value in row))
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=quoting)
        writer.writerows([("a", "b"), *rows])
    table = read_table(folder / "in.csv")
    for name, values in zip("ab", zip(*rows, strict=True), strict=True):
        found = table[name]
        spelt = [v or "" for v in values]
        if not pa.types.is_string(found.type):
            assert same_text(found, [v or None for v in values])
        else:
            assert [v or "" for v in found.to_pylist()] == spelt


@pytest.mark.parametrize(
    ("spelt", "kind"),
    [
        (["007", "008"], pa.string()),
        (["1.50", "2.25"], pa.string()),
        (["1.5", "2.25"], pa.float64()),
        (["1", "", "-2"], pa.int64()),
        (["True", "False"], pa.bool_()),
        (["true", "", "false"], pa.bool_()),
        (["true", "False"], pa.string()),
        (["NA", "null"], pa.string()),
        (["1", "one"], pa.string()),
        (["true"] * 1_500 + ["maybe"], pa.string()),
        (["1"] * 1_500 + ["1.0"], pa.string()),
    ],
    ids=lambda value: str(value)[:30],
)
def test_type_of_a_csv_column(spelt, kind, tmp_path):
    (tmp_path / "in.csv").write_text("id,a\n" + "".join(f"x,{v}\n" for v in spelt))
    assert read_table(tmp_path / "in.csv")["a"].type == kind


@quick
@given(rows=st.lists(st.fixed_dictionaries({}, optional={"a": TEXT, "b": INT64}), min_size=1))
def test_json_lines_of_python_are_read(folder, rows):
    ends = ["\n", "\r\n", "\n\n"]
    lines = [json.dumps(row) + ends[i % 3] for i, row in enumerate(rows)]
    (folder / "in.jsonl").write_text("".join(lines).rstrip(), newline="")
    found = read_table(folder / "in.jsonl")
    names = {name for row in rows for name in row}
    if names:
        assert found.to_pylist() == [{c: row.get(c) for c in found.column_names} for row in rows]
    assert set(found.column_names) == names


def test_json_array_is_read_like_lines(tmp_path):
    rows = [{"a": "x", "b": 1}, {"a": None, "b": 2}]
    (tmp_path / "in.json").write_text(json.dumps(rows, indent=1))
    assert read_table(tmp_path / "in.json").to_pylist() == rows


# --- objects in memory ------------------------------------------------------------------------

COLUMNS = {"text": ["a", "", "💰", None], "llm": ["x", "y", None, "x"], "n": [1, 2, 3, 4]}
FRAME = pd.DataFrame(COLUMNS)
SOURCES = {
    "dict": COLUMNS,
    "dict of arrays": COLUMNS | {"n": np.arange(1, 5)},
    "pyarrow": pa.table(COLUMNS),
    "pandas": FRAME,
    "pandas, string index": FRAME.set_axis(["w", "x", "y", "z"], axis=0),
    "pandas, shuffled index": FRAME.set_axis([3, 0, 2, 1], axis=0),
    "pandas, sliced": pd.concat([FRAME, FRAME])[4:],
    "pandas, object dtype": FRAME.astype({"text": object, "llm": object}),
    "polars": pl.DataFrame(COLUMNS),
    "polars, in chunks": pl.concat([pl.DataFrame(COLUMNS)[:1], pl.DataFrame(COLUMNS)[1:]]),
    "datasets": SimpleNamespace(data=SimpleNamespace(table=pa.table(COLUMNS))),
    "pyarrow, other strings": pa.table(
        {
            "text": pa.array(COLUMNS["text"], pa.large_string()),
            "llm": pa.array(COLUMNS["llm"], pa.string_view()),
            "n": COLUMNS["n"],
        }
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_table_gives_the_same_rows(name):
    table = read_table(SOURCES[name])
    assert table.to_pydict() == COLUMNS
    assert table.schema.types == [pa.string(), pa.string(), pa.int64()]
    assert table.schema.metadata is None


CATEGORICAL = {
    "pyarrow": pa.table({c: pa.array(COLUMNS[c]).dictionary_encode() for c in ("text", "llm")}),
    "pandas": FRAME.astype({"text": "category", "llm": "category"}),
    "polars": pl.DataFrame(
        COLUMNS, schema_overrides={"text": pl.Categorical, "llm": pl.Categorical}
    ),
}


@pytest.mark.parametrize("name", CATEGORICAL)
def test_categories_are_read_as_their_values(name):
    corpus = read_corpus(CATEGORICAL[name], text="text", pseudo="llm")
    assert corpus.texts == ["a", "", "💰", ""]
    assert corpus.pseudo_labels == COLUMNS["llm"]


def test_named_pandas_index_is_a_column():
    table = read_table(FRAME.set_index("text"))
    assert sorted(table.column_names) == ["llm", "n", "text"]
    assert table["text"].to_pylist() == COLUMNS["text"]


def test_table_in_memory_is_not_changed():
    frame = FRAME.copy()
    read_corpus(frame, text="text", pseudo="llm")
    pd.testing.assert_frame_equal(frame, FRAME)


@pytest.mark.parametrize("source", [None, 3, ["a"], b"a"])
def test_what_is_no_table_is_refused(source):
    with pytest.raises(WhetError, match=f"{type(source).__name__} is no table: pass a path"):
        read_table(source)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(WhetError, match="mend"):
        read_table({"text": ["a", "b"], "llm": ["x"]})


def test_surrogate_in_memory_is_refused():
    with pytest.raises(WhetError, match="surrogate"):
        read_table({"text": ["a", "\ud800"]})


@quick
@given(texts=st.lists(st.none() | st.just(float("nan")) | TEXT))
def test_texts_are_checked_without_change(texts):
    assert check_texts(texts) == [t if isinstance(t, str) else "" for t in texts]


@quick
@given(before=st.lists(TEXT, max_size=3), half=st.characters(categories=["Cs"]), tail=TEXT)
def test_row_of_a_surrogate_is_named(before, half, tail):
    with pytest.raises(WhetError, match=f"text {len(before)} holds half of a surrogate pair"):
        check_texts([*before, tail + half, "\ud800"])


@quick
@given(row=st.integers(0, 50))
def test_line_of_a_byte_that_is_no_utf8_is_named(folder, row):
    lines = [b"text,llm", *[b"a,b"] * 51]
    lines[row + 1] = b"caf\xe9,b"
    (folder / "latin.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(WhetError, match=rf"byte 0xe9 in line {row + 2}\)"):
        read_table(folder / "latin.csv")


# --- folders ----------------------------------------------------------------------------------


@settings(quick, max_examples=30)
@given(shards=st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=4))
def test_shards_of_a_saved_data_set_keep_their_order(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("saved")
    schema = pa.schema([("text", pa.string())], metadata={"huggingface": "{}"})
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        with pa.ipc.new_stream(folder / name, schema) as stream:
            stream.write_table(pa.table({"text": texts}, schema=schema))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    before = snapshot(folder)
    table = read_table(folder)
    assert table.to_pydict() == {"text": [text for shard in shards for text in shard]}
    assert table.schema.metadata is None
    assert snapshot(folder) == before


def test_parquet_files_of_a_folder_are_read_by_name(tmp_path):
    for name in ("part-2", "part-0", "part-1"):
        pq.write_table(pa.table({"text": [name, "x"]}), tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("not data")
    read = read_table(str(tmp_path))["text"].to_pylist()
    assert read == ["part-0", "x", "part-1", "x", "part-2", "x"]


def test_parquet_files_of_different_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "2.parquet")
    with pytest.raises(WhetError, match=str(tmp_path)):
        read_table(tmp_path)


# --- files are safe ---------------------------------------------------------------------------

TABLE = pa.table({"text": ["a", None, "b\nc"], "llm": [1, 0, None]})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_leaves_the_file_as_it_is(suffix, tmp_path):
    path = tmp_path / f"in{suffix}"
    write_table(TABLE, path)
    before, stat = snapshot(tmp_path), path.stat()
    read_table(path)
    assert snapshot(tmp_path) == before
    assert path.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_write_keeps_the_old_file_and_no_other(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"out{suffix}"
    path.write_text("yesterday's")
    before = snapshot(tmp_path)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_table(TABLE, path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_table_that_the_format_cannot_hold_keeps_the_old_file(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    path.write_text("yesterday's")
    before = snapshot(tmp_path)
    with pytest.raises(WhetError, match="'tags'"):
        write_table(pa.table({"text": ["a"], "tags": [["b"]]}), path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_writer_that_is_stopped_half_way_leaves_nothing(error, tmp_path):
    def half(file):
        file.write(b"half of it")
        raise error

    with pytest.raises(error):
        write_atomic(tmp_path / "out.csv", half)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_replaces_the_old_file_only(suffix, tmp_path):
    (tmp_path / "other.txt").write_text("stays")
    path = tmp_path / f"out{suffix}"
    path.write_text("yesterday's, and much longer than what replaces it" * 100)
    write_table(TABLE, path)
    assert sorted(snapshot(tmp_path)) == ["other.txt", f"out{suffix}"]
    assert read_table(path).to_pydict() == TABLE.to_pydict()


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.json", "missing/out.csv"])
def test_output_that_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(WhetError, match=name.split("/")[0]):
        write_table(TABLE, tmp_path / name)
    assert snapshot(tmp_path) == {}


# --- probabilities of labels ----------------------------------------------------------------------


def test_probabilities_are_read_as_numbers_with_gaps():
    table = {"t": ["a", "b", "c"], "gpt": ["x", "y", None], "llama": ["x", None, "y"]}
    table |= {"p": [0.9, None, None], "q": ["0.5", "", "1"]}
    corpus = read_corpus(table, text="t", pseudo="gpt,llama", pseudo_prob="p,q")
    np.testing.assert_array_equal(corpus.confidence, [[0.9, 0.5], [np.nan] * 2, [np.nan, 1]])
    assert read_corpus(table, text="t", pseudo="gpt").confidence is None


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("p", "--pseudo-prob names 1 columns for 2 annotators"),
        ("p,r", "no column 'r'.*--pseudo-prob"),
        ("p,gpt", "'gpt' is named twice .*pseudo-prob"),
        ("p,t", "'t' is named twice"),
        ("p,w", "'w' of the table holds no numbers .*probabilities"),
    ],
)
def test_unusable_columns_of_probabilities_are_named(named, words):
    table = {"t": ["a", "b"], "gpt": ["x", "y"], "llama": ["x", "y"]}
    table |= {"p": [0.9, 0.8], "w": ["much", "little"]}
    with pytest.raises(WhetError, match=words):
        read_corpus(table, text="t", pseudo="gpt,llama", pseudo_prob=named)


@pytest.mark.parametrize(
    ("gold", "pseudo", "read"),
    [
        ([1, None, 0], ["0", "1", "1"], ["1", None, "0"]),
        ([1.0, float("nan"), 0.0], ["0", "1", "1"], ["1", None, "0"]),
        ([1, None, 0], ["spam", "ham", "ham"], [1, None, 0]),  # other classes: refused later
        ([1, None, 0], [0, 1, 1], [1, None, 0]),
        ([True, None, False], ["True", "False", "1"], [True, None, False]),
        ([0.5, None, 1.0], ["0", "1", "1"], [0.5, None, 1.0]),
    ],
)
def test_whole_gold_numbers_are_the_classes_that_are_called_so(gold, pseudo, read):
    table = {"t": ["a", "b", "c"], "g": gold, "p": pseudo}
    assert read_corpus(table, text="t", pseudo="p", gold="g").gold_labels == read
