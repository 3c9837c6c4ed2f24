"""Tables of any length, a batch of rows at a time: what is read twice must not be held."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from whet.errors import WhetError
from whet.store import sha256_of, sweep, write_atomic
from whet.tables import check_output, read_table

#: Rows held at a time.
BATCH = 2048


class RowStream:
    """The rows of a table, to be read any number of times.

    Parquet, CSV, TSV and JSONL files are read a batch at a time; anything else that
    :func:`whet.tables.read_table` takes is held in memory.

    Parameters
    ----------
    source : path or table
        See :func:`whet.tables.read_table`.
    limit : int, optional
        Only so many first rows.

    Attributes
    ----------
    schema : pyarrow.Schema
        CSV columns stay text here; JSONL columns have the type that holds all their values.
    num_rows : int

    Raises
    ------
    WhetError
        With the file, the row and the remedy.

    Examples
    --------
    >>> rows = RowStream({"text": ["a", "b", "c"]}, limit=2)
    >>> rows.num_rows, [batch.num_rows for batch in rows.batches()]
    (2, [2])
    """

    def __init__(self, source: object, limit: int | None = None) -> None:
        path = Path(source) if isinstance(source, str | Path) else None
        self.name = str(path) if path is not None else "the table"
        self._path = path if path is not None and path.is_file() else None
        suffix = self._path.suffix.lower() if self._path is not None else ""
        self._kind = {".tsv": "csv", ".csv": "csv", ".ndjson": "jsonl"}.get(suffix, suffix[1:])
        self._limit = limit
        if self._kind not in ("csv", "jsonl", "parquet"):
            self._kind, self._table = "table", read_table(source)
        self.schema, whole = self._measure()
        self._whole = whole
        self.num_rows = whole if limit is None else min(whole, limit)
        if self.num_rows == 0:
            raise WhetError(f"{self.name} has no rows: give at least one")

    def unlimited(self) -> RowStream:
        """Return the same rows without the limit."""
        stream = copy.copy(self)
        stream.num_rows = self._whole
        return stream

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, at most 2,048 at a time."""
        left = self.num_rows
        for batch in self._batches():
            part = batch.slice(0, left)
            if part.num_rows:
                yield part
            left -= part.num_rows
            if left <= 0:
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._kind == "table":
            yield from self._table.to_batches(max_chunksize=BATCH)
        elif self._kind == "parquet":
            try:
                yield from self._parquet().iter_batches(BATCH)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error
        elif self._kind == "csv":
            for rows in self._csv_rows():
                columns = list(zip(*rows, strict=True))
                yield pa.record_batch(
                    [pa.array([v or None for v in c], pa.string()) for c in columns],
                    schema=self.schema,
                )
        else:
            for objects in self._json_rows():
                yield pa.RecordBatch.from_pylist(objects, schema=self.schema)

    def _measure(self) -> tuple[pa.Schema, int]:
        if self._kind == "table":
            return self._table.schema.remove_metadata(), self._table.num_rows
        if self._kind == "parquet":
            file = self._parquet()
            return file.schema_arrow.remove_metadata(), file.metadata.num_rows
        if self._kind == "csv":
            rows = sum(len(batch) for batch in self._csv_rows())
            return self.schema, rows
        schema, rows = pa.schema([]), 0
        for objects in self._json_rows():
            rows += len(objects)
            try:
                # Columns in the order in which they first occur, also those of later rows.
                names = dict.fromkeys(name for row in objects for name in row)
                part = pa.table({n: pa.array([row.get(n) for row in objects]) for n in names})
                schema = pa.unify_schemas([schema, part.schema], promote_options="permissive")
            except (pa.ArrowException, UnicodeEncodeError, OverflowError):
                return self._in_memory()
        return schema, rows

    def _in_memory(self) -> tuple[pa.Schema, int]:
        """Fall back on the reader that holds all rows; it names what is wrong."""
        self._kind, self._table = "table", read_table(self._path)
        return self._table.schema, self._table.num_rows

    def _parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._path)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> WhetError:
        reason = (str(error).splitlines() or ["it is damaged"])[0].rstrip(". ")
        return WhetError(f"{self.name} cannot be read ({reason}): write it again")

    def _not_utf8(self) -> WhetError:
        """Name the first line that is not UTF-8."""
        assert self._path is not None  # noqa: S101
        number = 1
        with self._path.open("rb") as file, contextlib.suppress(UnicodeDecodeError):
            for line in file:
                line.decode()
                number += 1
        return WhetError(
            f"{self.name} is not UTF-8 (line {number}): save it as UTF-8, for example with iconv "
            "-f latin1 -t utf-8"
        )

    def _csv_rows(self) -> Iterator[list[list[str]]]:
        """Yield lists of rows; the first call sets the schema from the header."""
        csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
        assert self._path is not None  # noqa: S101
        delimiter = "\t" if self._path.suffix.lower() == ".tsv" else ","
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
                header = next(reader, None)
                if not header:
                    raise WhetError(f"{self.name} is empty: it needs a header and rows")
                self.schema = pa.schema([(name, pa.string()) for name in header])
                rows: list[list[str]] = []
                for row in reader:
                    if not row:
                        if len(header) > 1:
                            continue
                        row = [""]
                    if len(row) != len(header):
                        raise WhetError(
                            f"line {reader.line_num} of {self.name} has {len(row)} values, the "
                            f"header {len(header)}: mend it, or quote values that hold a comma"
                        )
                    rows.append(row)
                    if len(rows) == BATCH:
                        yield rows
                        rows = []
                if rows:
                    yield rows
        except UnicodeDecodeError as error:
            raise self._not_utf8() from error
        except csv.Error as error:
            raise WhetError(
                f"line {reader.line_num} of {self.name} cannot be read ({error}): mend it"
            ) from error

    def _json_rows(self) -> Iterator[list[dict[str, Any]]]:
        assert self._path is not None  # noqa: S101
        rows: list[dict[str, Any]] = []
        try:
            with self._path.open(encoding="utf-8-sig", newline="\n") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise WhetError(
                            f"line {number} of {self.name} is not valid JSON ({error}): mend or "
                            "remove it"
                        ) from error
                    if not isinstance(row, dict):
                        raise WhetError(
                            f"line {number} of {self.name} is {type(row).__name__}, not an object "
                            'with named columns: write rows as {"text": ..., "label": ...}'
                        )
                    rows.append(row)
                    if len(rows) == BATCH:
                        yield rows
                        rows = []
        except UnicodeDecodeError as error:
            raise self._not_utf8() from error
        if rows:
            yield rows


def _csv_schema(schema: pa.Schema, path: Path) -> pa.Schema:
    """Return the schema that CSV can hold: views become plain strings, bytes are refused."""
    for i, column in enumerate(schema):
        if pa.types.is_string_view(column.type) or pa.types.is_dictionary(column.type):
            schema = schema.set(i, pa.field(column.name, pa.string()))
        elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            raise WhetError(
                f"the column {column.name!r} holds {column.type}, which {path.name} cannot: write "
                ".jsonl or .parquet"
            )
    return schema


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Gather batches: a Parquet file of small row groups is slow to read."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(part.num_rows for part in group) >= 8 * BATCH:
            yield group
            group = []
    if group:
        yield group


def write_stream(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    finish: Callable[[str], None] = lambda digest: None,
) -> None:
    """Write batches as they come, atomically, in the format of the file's suffix.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``.
    schema : pyarrow.Schema
        Of every batch.
    batches : iterable of pyarrow.RecordBatch
    finish : callable
        Given the SHA-256 of the file when all is written, before it gets its name.

    Raises
    ------
    WhetError
        If the suffix is none of these, or cannot hold a column's type.
    """
    check_output(path, schema.empty_table())
    suffix = path.suffix.lower()

    def write(file: BinaryIO) -> None:
        if suffix in (".jsonl", ".ndjson"):
            for batch in batches:
                for row in batch.to_pylist():
                    plain = {k: None if v != v else v for k, v in row.items()}
                    file.write(json.dumps(plain, ensure_ascii=False, default=str).encode() + b"\n")
            return
        if suffix == ".parquet":
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for group in _groups(batches):
                    writer.write_table(pa.Table.from_batches(group, schema))
            return
        options = pa_csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        plain = _csv_schema(schema, path)
        with pa_csv.CSVWriter(file, plain, write_options=options) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(plain))

    def write_and_finish(file: BinaryIO) -> None:
        write(file)
        file.flush()
        finish(sha256_of(Path(file.name)))

    sweep(path)
    write_atomic(path, write_and_finish)
