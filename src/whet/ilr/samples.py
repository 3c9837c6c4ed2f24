"""Samples of a model, put with the rows that they are of."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from whet.errors import WhetError


def by_row(table: pa.Table, samples: pa.Table) -> list[list[dict[str, Any]]]:
    """Return the samples of each row of a table, both in the order that they have.

    Parameters
    ----------
    table, samples : pyarrow.Table
        Both with ``row``.

    Raises
    ------
    WhetError
        If the table has a row number twice, or a sample is of none of its rows.

    Examples
    --------
    >>> table, samples = pa.table({"row": [5, 3]}), pa.table({"row": [3, 3], "sample": [0, 1]})
    >>> [len(of_row) for of_row in by_row(table, samples)]
    [0, 2]
    """
    rows = table["row"].to_pylist()
    found: dict[int, list[dict[str, Any]]] = {row: [] for row in rows}
    if len(found) < len(rows):
        raise WhetError("the column 'row' has a number twice: number the rows anew")
    for sample in samples.to_pylist():
        if sample["row"] not in found:
            raise WhetError(
                f"a sample is of row {sample['row']}, which the demonstrations do not have: give "
                "samples of these rows"
            )
        found[sample["row"]].append(sample)
    return list(found.values())
