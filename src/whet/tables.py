"""Tables in and out: CSV, TSV, JSONL, Parquet, Hugging Face dataset folders, dataframes."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq

from whet.errors import WhetError, did_you_mean
from whet.store import write_atomic

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def read_table(source: object) -> pa.Table:
    """Read rows from a file, a folder or an object in memory.

    Parameters
    ----------
    source : path or table
        A ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson``, ``.json`` or ``.parquet`` file; a folder
        written by Hugging Face ``save_to_disk`` or holding Parquet files; a dict of columns; or
        any table with the Arrow C stream interface (pandas, polars, pyarrow, ``datasets``).

    Returns
    -------
    pyarrow.Table
        Rows in input order. A CSV column becomes a number or a bool only where that loses
        nothing; ``007`` stays text.

    Raises
    ------
    WhetError
        With the file, the row or column, and the remedy.

    Examples
    --------
    >>> read_table({"text": ["a", "b"]}).num_rows
    2
    """
    if isinstance(source, str | os.PathLike):
        return _plain_columns(_read_path(Path(source)))
    try:
        if isinstance(source, pa.Table):
            table = source
        elif isinstance(source, dict) or hasattr(source, "__arrow_c_stream__"):
            table = pa.table(source)
        elif hasattr(getattr(source, "data", None), "table"):  # datasets.Dataset
            table = source.data.table  # type: ignore[attr-defined]
        else:
            raise WhetError(
                f"{type(source).__name__} is no table: pass a path, a dict of columns, or a "
                "pandas, polars or pyarrow table"
            )
    except (pa.ArrowException, UnicodeError) as error:
        raise WhetError(f"the table cannot be read ({_first_line(error)}): mend it") from error
    if isinstance(source, dict) or table.schema.metadata is None:
        return _plain_columns(table)
    # A pandas index that only counts rows is not a column of the data.
    extra = [c for c in table.column_names if c.startswith("__index_level_")]
    return _plain_columns(table.drop_columns(extra).replace_schema_metadata(None))


def _read_path(path: Path) -> pa.Table:
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise WhetError(
            f"{path} does not exist{did_you_mean(path.name, near) if near else ''}: name a file "
            "or a dataset folder"
        )
    try:
        if path.is_dir():
            return _read_folder(path)
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return pq.read_table(path)
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, "\t" if suffix == ".tsv" else ",")
        if suffix in (".jsonl", ".ndjson", ".json"):
            return _read_json(path)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    except (pa.ArrowException, OSError) as error:
        raise WhetError(
            f"{path} cannot be read ({_first_line(error)}): it is damaged, truncated or not what "
            "its name says; write it again"
        ) from error
    raise WhetError(
        f"{path} has the suffix {path.suffix!r}: whet reads {', '.join(_SUFFIXES)} and dataset "
        "folders; convert it"
    )


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise WhetError(
            f"{path} is not UTF-8 (line 1 begins with the mark of UTF-16): save it as UTF-8, for "
            "example with iconv -f utf-16 -t utf-8"
        )
    content.decode("utf-8")  # Arrow names no position when this fails
    if not content.strip():
        raise WhetError(f"{path} is empty: it needs a header and rows")
    with pa_csv.open_csv(
        io.BytesIO(content),
        read_options=pa_csv.ReadOptions(block_size=_block(content)),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        ),
    ) as reader:
        header = reader.schema.names
    table = pa_csv.read_csv(
        io.BytesIO(content),
        # One thread, because only then Arrow names the row that it cannot parse.
        read_options=pa_csv.ReadOptions(block_size=_block(content), use_threads=False),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=len(header) > 1
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return pa.table(
        [_typed(table.column(i)) for i in range(table.num_columns)], names=table.column_names
    )


def _block(content: bytes) -> int:
    """One block for the whole file: Arrow cannot read a value that straddles two."""
    return min(max(len(content) + 1, 1 << 20), (1 << 31) - 1)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give text the type of its values where writing them back gives the same text."""
    if column.null_count == len(column):
        return column
    booleans = {"true": True, "false": False, "True": True, "False": False}
    distinct = pc.unique(column.slice(0, 1000).drop_null()).to_pylist()
    if distinct and all(value in booleans for value in distinct):
        whole = pc.unique(column.drop_null()).to_pylist()
        if all(value in booleans for value in whole) and len({v[0].isupper() for v in whole}) == 1:
            return pa.chunked_array([[booleans.get(v) for v in column.to_pylist()]], pa.bool_())
    for kind in (pa.int64(), pa.float64()):
        try:
            typed = column.cast(kind)
        except pa.ArrowInvalid:
            continue
        if typed.cast(pa.string()).equals(column):
            return typed
    return column


def _read_json(path: Path) -> pa.Table:
    text = path.read_bytes().decode("utf-8-sig")
    rows: list[dict[str, Any]] = []
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WhetError(f"{path} is not valid JSON ({error}): mend it") from error
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise WhetError(
                    f"line {number} of {path} is not valid JSON ({error}): mend or remove it"
                ) from error
            _check_json_row(rows[-1], f"line {number}", path)
    for number, row in enumerate(rows):
        _check_json_row(row, f"row {number}", path)
    if not rows:
        raise WhetError(f"{path} has no rows: give at least one text")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        if has_surrogate(name):
            raise WhetError(f"{path} has the column {name!a}, half of a surrogate pair: remove it")
    return pa.table({name: _json_column(path, name, rows) for name in names})


def _check_json_row(row: object, where: str, path: Path) -> None:
    if not isinstance(row, dict):
        raise WhetError(
            f"{where} of {path} is {type(row).__name__}, not an object with named columns: write "
            'rows as {"text": ..., "label": ...}'
        )


def _json_column(path: Path, name: str, rows: list[dict[str, Any]]) -> pa.Array:
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        row = next(
            r for r, v in enumerate(values) if has_surrogate(json.dumps(v, ensure_ascii=False))
        )
        raise WhetError(
            f"row {row} of {path}, column {name!r}, holds half of a surrogate pair "
            f"({error.object[error.start]!a}), which is no character: remove it or encode "
            "the file again"
        ) from error
    except (pa.ArrowException, OverflowError) as error:
        raise WhetError(
            f"the column {name!r} of {path} mixes types ({_first_line(error)}): use one type"
        ) from error


def _read_folder(path: Path) -> pa.Table:
    """Read what ``datasets`` writes with ``save_to_disk``, or a folder of Parquet files."""
    if (path / "state.json").is_file():
        state_file = path / "state.json"
        try:
            state = json.loads(state_file.read_text(encoding="utf-8"))
            names = [str(entry["filename"]) for entry in state["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise WhetError(
                f"{state_file} is damaged ({error!r}): save the data set again"
            ) from error
        if not names:
            raise WhetError(f"{state_file} names no data files: save the data set again")
        tables = []
        for name in names:
            if Path(name).name != name:
                raise WhetError(
                    f"{state_file} names the data file {name!r} outside its folder: "
                    "save the data set again"
                )
            with pa.memory_map(str(path / name)) as stream:
                tables.append(pa_ipc.open_stream(stream).read_all())
        return pa.concat_tables(tables).replace_schema_metadata(None)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if (p / "state.json").is_file())
        raise WhetError(
            f"{path} holds the splits {', '.join(splits)}: name one, for example "
            f"{path / (splits[0] if splits else 'train')}"
        )
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise WhetError(
            f"the folder {path} holds neither a saved data set nor Parquet files: name a file"
        )
    return pa.concat_tables([pq.read_table(file) for file in files])


def _plain_columns(table: pa.Table) -> pa.Table:
    """Turn string views, large strings and categories into plain values."""
    for position, field in enumerate(table.schema):
        column = table.column(position)
        if pa.types.is_dictionary(field.type):
            column = pa.array(column.to_pylist())
        elif pa.types.is_string_view(field.type):
            column = pa.array(column.to_pylist(), pa.string())
        elif pa.types.is_large_string(field.type):
            with contextlib.suppress(pa.ArrowInvalid):  # over 2 GiB a chunk: it stays large
                column = column.cast(pa.string())
        table = table.set_column(position, field.name, column)
    return table


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table atomically in the format of the file's suffix.

    Parameters
    ----------
    table : pyarrow.Table
    path : Path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``.

    Raises
    ------
    WhetError
        If the suffix is none of these.
    """
    check_output(path, table)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd"))
    elif suffix in (".csv", ".tsv"):
        options = pa_csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        write_atomic(path, lambda file: pa_csv.write_csv(table, file, options))
    else:
        write_atomic(path, lambda file: _write_json_lines(table, file))


def check_output(path: Path, table: pa.Table | None = None) -> None:
    """Raise ``WhetError`` if a table, or this one, cannot be written to ``path``."""
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"):
        raise WhetError(
            f"{path} has the suffix {path.suffix!r}: whet writes .csv, .tsv, .jsonl and .parquet"
        )
    if not path.parent.is_dir():
        raise WhetError(f"the folder {path.parent} does not exist: create it first")
    if path.is_dir():
        raise WhetError(f"{path} is a folder: name a file")
    if table is not None and path.suffix.lower() in (".csv", ".tsv"):
        nested = next((f for f in table.schema if pa.types.is_nested(f.type)), None)
        if nested is not None:
            raise WhetError(
                f"the column {nested.name!r} holds {nested.type}, which {path.name} cannot: write "
                ".jsonl or .parquet"
            )


def _write_json_lines(table: pa.Table, file: Any) -> None:  # noqa: ANN401
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> WhetError:
    line = error.object[: error.start].count(b"\n") + 1
    return WhetError(
        f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} in line {line}): save it as "
        "UTF-8, for example with iconv -f latin1 -t utf-8"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def has_surrogate(value: str) -> bool:
    """Whether a string holds half of a surrogate pair, which is no character."""
    return any("\ud800" <= character <= "\udfff" for character in value)
