"""Text to SQL on real databases (the layouts of Spider and BIRD): what counts is the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.ilr.sql_pool import Failed, Outcome, SqlPool, Value
from whet.ilr.tasks.protocol import (
    as_prompt,
    check_columns,
    check_lengths,
    demonstrations,
    read_split,
    values_of,
)

Comparison = Literal["multiset", "set"]

#: A fenced block of a completion; SQL may follow the word sql.
_FENCE = re.compile(r"```[ \t]*(?:sql|sqlite)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
#: What may hold the letters ORDER BY without meaning them, parentheses, and words.
_PART = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)"
    r"|[()]|\w+|\S",
    re.DOTALL,
)
_SCHEMA = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND type = 'table' ORDER BY rowid"


@dataclass(frozen=True)
class Result:
    """What is kept of a query's rows: how many, and hashes that are equal if the rows are.

    Examples
    --------
    >>> from whet.ilr.sql_pool import Rows
    >>> first, second = (digest(Rows(rows)) for rows in (((1,), (2,)), ((2.0,), (1,))))
    >>> first.any_order == second.any_order, first.in_order == second.in_order
    (True, False)
    """

    rows: int
    in_order: bytes
    any_order: bytes
    as_set: bytes


class Sql:
    """Text to SQL: completions are queries, equal if their results are.

    A folder holds ``<split>.parquet`` (or ``.json``, ``.jsonl``, ``.csv``, as Spider and BIRD
    come) with ``db_id``, ``question``, ``query`` or ``SQL``, and perhaps ``evidence``; and
    ``database/<db_id>/<db_id>.sqlite``, below ``<split>_databases`` or ``databases`` likewise. The
    prompt shows the CREATE TABLE statements of the database.

    Parameters
    ----------
    comparison : {"multiset", "set"}
        ``multiset``: equal rows, each as often; in the same order where the reference has an ORDER
        BY at its top level (of two completions: where one of them has). Numbers are compared to 10
        significant digits. ``set``: equal sets of rows, as the paper's code and BIRD's compare,
        blind to how often a row comes and in what order.
    workers : int, optional
        Processes that run queries; see :class:`whet.ilr.sql_pool.SqlPool`.
    seconds : float
        Limit of a query; the paper's is 30.

    Examples
    --------
    >>> import contextlib, json, sqlite3, tempfile
    >>> row = {"db_id": "zoo", "question": "How many?", "query": "SELECT count(*) FROM animal"}
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     (folder / "database" / "zoo").mkdir(parents=True)
    ...     with contextlib.closing(sqlite3.connect(folder / "database/zoo/zoo.sqlite")) as made:
    ...         _ = made.execute("CREATE TABLE animal AS SELECT 'emu' AS name")
    ...     _ = (folder / "train.json").write_text(json.dumps([row]))
    ...     task = Sql(workers=1)
    ...     table = task.load(folder, "train")
    ...     task.score(table, ["SELECT 1"]), task.score(table, ["DROP TABLE animal"])
    (array([1.]), array([0.]))
    """

    name = "sql"
    marker: str | None = None

    def __init__(
        self,
        comparison: Comparison = "multiset",
        *,
        workers: int | None = None,
        seconds: float = 30.0,
    ) -> None:
        if comparison not in ("multiset", "set"):
            raise WhetError(f"comparison = {comparison!r}: choose 'multiset' or 'set'")
        self.comparison = comparison
        self.workers = workers
        self.seconds = seconds

    def load(self, folder: Path, split: str) -> pa.Table:
        """Return a split; ``database`` (string) is the path of each row's SQLite file.

        Columns ``llm_sql_<model>``, queries that models wrote, come along as ``llm_<model>``.
        """
        table = _read(folder, split)
        databases = _find_databases(folder, split, table["db_id"].to_pylist())
        with self._pool() as pool:
            found = pool.map(_schema, [(path, _SCHEMA) for path in databases.values()])
        schemas = dict(zip(databases, found, strict=True))
        names = table["db_id"].to_pylist()
        prompts = [
            as_prompt(_question(schemas[name], question, evidence))
            for name, question, evidence in zip(
                names, table["question"].to_pylist(), table["evidence"].to_pylist(), strict=True
            )
        ]
        models = {
            "llm_" + name.removeprefix("llm_sql_"): table[name].cast(pa.string())
            for name in table.column_names
            if name.startswith("llm_sql_")
        }
        queries = table["query"].to_pylist()
        paths = pa.array([databases[name] for name in names], pa.string())
        return demonstrations(prompts, queries, queries, database=paths, **models)

    def agree(
        self, table: pa.Table, first: Sequence[str], second: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Return whether queries return the same, shape (n,).

        Two empty results are the same; queries that fail only if they are the same text.
        """
        check_lengths(table, first, second)
        results = zip(*self._run(table, first, second), strict=True)
        same = [
            a == b or self._same(left, right, a, b)
            for a, b, (left, right) in zip(first, second, results, strict=True)
        ]
        return np.array(same, dtype=np.bool_)

    def score(self, table: pa.Table, completions: Sequence[str]) -> NDArray[np.float64]:
        """Return 1 where a query returns what the ``reference`` returns, 0 where not, shape (n,).

        NaN where the reference fails or returns no row, since wrong queries often return none.
        """
        check_lengths(table, completions)
        references = [reference or "" for reference in values_of(table, "reference")]
        results = zip(*self._run(table, references, completions), strict=True)
        scores = [
            float(self._same(gold, result, query))
            if isinstance(gold, Result) and gold.rows
            else np.nan
            for query, (gold, result) in zip(references, results, strict=True)
        ]
        return np.array(scores, dtype=np.float64)

    def _pool(self) -> SqlPool:
        return SqlPool(self.workers, seconds=self.seconds)

    def _run(self, table: pa.Table, *columns: Sequence[str]) -> list[list[Result | Failed]]:
        """Return the results of several completions a row, one list a column."""
        databases = values_of(table, "database")
        jobs = [
            (database, statement(query))
            for queries in columns
            for database, query in zip(databases, queries, strict=True)
        ]
        with self._pool() as pool:
            results = pool.map(digest, jobs)
        n = len(databases)
        return [results[k * n : (k + 1) * n] for k in range(len(columns))]

    def _same(self, first: Result | Failed, second: Result | Failed, *queries: str) -> bool:
        """Compare results, in order if one of the queries asks for an order."""
        if isinstance(first, Failed) or isinstance(second, Failed):
            return False
        if self.comparison == "set":
            return first.as_set == second.as_set
        if any(is_ordered(statement(query)) for query in queries):
            return first.in_order == second.in_order
        return first.any_order == second.any_order


def statement(completion: str) -> str:
    r"""Return the query of a completion: its first fenced block, or all of it.

    Examples
    --------
    >>> statement("Here it is:\n```sql\nSELECT 1;\n```")
    'SELECT 1;'
    """
    fenced = _FENCE.search(completion)
    return (fenced[1] if fenced else completion).strip()


def is_ordered(query: str) -> bool:
    """Return whether a query that SQLite accepts has an ORDER BY outside of parentheses.

    Examples
    --------
    >>> is_ordered("SELECT a FROM t ORDER BY b"), is_ordered("SELECT a FROM (SELECT 1 ORDER BY 1)")
    (True, False)
    """
    depth, last = 0, ""
    for part in _PART.findall(query):
        depth += {"(": 1, ")": -1}.get(part, 0)
        if not depth and last == "order" and part.lower() == "by":
            return True
        if not part.startswith(("--", "/*")):
            last = part.lower()
    return False


def digest(outcome: Outcome) -> Result | Failed:
    """Return hashes of a query's rows, or its failure."""
    if isinstance(outcome, Failed):
        return outcome
    exact = [repr([_number(value) for value in row]) for row in outcome.rows]
    rough = [repr([_number(_rounded(value)) for value in row]) for row in outcome.rows]
    return Result(len(rough), _hash(rough), _hash(sorted(rough)), _hash(sorted(set(exact))))


def _rounded(value: Value) -> Value:
    """Return a number with 10 digits: sums depend on the order in which SQLite adds."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _number(value: Value) -> Value:
    """Return a whole float as int, since 2 and 2.0 are equal."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hash(lines: list[str]) -> bytes:
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _question(schema: str, question: str, evidence: str) -> str:
    hint = f"Known:\n{evidence}\n\n" if evidence else ""
    return (
        f"Write one SQLite query that answers the question.\n\nSchema:\n{schema}\n\n"
        f"{hint}Question:\n{question}"
    )


def _schema(outcome: Outcome) -> str:
    """Return the statements that made the tables."""
    if isinstance(outcome, Failed):
        raise WhetError(f"the schema of a database cannot be read ({outcome.detail}): mend it")
    schema = "\n".join(str(row[0]) + ";" for row in outcome.rows)
    return schema.encode(errors="replace").decode()  # names may hold bytes that are no UTF-8


def _read(folder: Path, split: str) -> pa.Table:
    """Return ``db_id``, ``question``, ``query``, ``evidence`` and what else a split holds."""
    path = folder / f"{split}.json"
    table = _read_list(path) if path.is_file() else read_split(folder, split)
    if "SQL" in table.column_names and "query" not in table.column_names:
        table = table.rename_columns(["query" if c == "SQL" else c for c in table.column_names])
    if "evidence" not in table.column_names:
        table = table.append_column("evidence", pa.array([""] * table.num_rows))
    check_columns(table, ("db_id", "question", "query"), f"the split {split!r} of {folder}")
    return table


def _read_list(path: Path) -> pa.Table:
    """Read a JSON list of objects; Spider's hold parsed queries, too, which are left out."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        plain = [
            {name: value for name, value in row.items() if not isinstance(value, list | dict)}
            for row in rows
        ]
        return pa.Table.from_pylist(plain)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, pa.ArrowException) as e:
        raise WhetError(f"{path} is no JSON list of questions ({e}): restore it") from e


def _find_databases(folder: Path, split: str, names: Sequence[str]) -> dict[str, str]:
    """Return the absolute path of each database by its name."""
    roots = [folder / name for name in (f"{split}_databases", "database", "databases")]
    root = next((path for path in roots if path.is_dir()), None)
    if root is None:
        raise WhetError(
            f"{folder} has no folder {' or '.join(path.name for path in roots)}: name the folder "
            "that holds the questions and the databases"
        )
    found = {}
    for name in dict.fromkeys(names):
        path = root / name / f"{name}.sqlite"
        if Path(name).name != name or not path.is_file():
            raise WhetError(f"the database {path} does not exist: add it, or leave out its rows")
        found[name] = str(path.resolve())
    return found
