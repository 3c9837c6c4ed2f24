"""``whet predict``: label new texts with a classifier that ``whet refine`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    model: Annotated[Path, Parameter(help="Model folder, or the run folder that holds it.")],
    input: Annotated[Path, Parameter(help="Table of texts, as for whet refine.")],
    /,
    *,
    text: Annotated[str, Parameter(help="Column of texts.")],
    out: Annotated[Path, Parameter(help="File to write: .csv, .tsv, .jsonl or .parquet.")],
    trust_remote_code: Annotated[
        bool,
        Parameter(
            help="Run the code that a fine-tuned model brings; it can do all that you can.",
            negative="",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Label new texts; writes all input columns, predicted_label and predicted_prob.

    whet predict run/model new.csv --text text --out predicted.csv
    """
    import numpy as np
    import pyarrow as pa

    from whet.classify.refiner import LabelRefiner
    from whet.corpus import require_column, text_column
    from whet.errors import WhetError
    from whet.tables import check_output, read_table, write_table

    check_output(out)
    if out.exists() and input.exists() and out.samefile(input):
        raise WhetError(f"--out {out} is the input, which whet never changes: choose another file")
    refiner = LabelRefiner.from_pretrained(model, trust_remote_code=trust_remote_code)
    table = read_table(input)
    require_column(table, text, "--text", str(input))
    for name in ("predicted_label", "predicted_prob"):
        if name in table.column_names:
            raise WhetError(f"{input} already has the column {name!r}: rename it")
    check_output(out, table)
    probability = refiner.predict_proba(text_column(table, text, str(input)))
    best = probability.argmax(axis=1)
    table = table.append_column("predicted_label", pa.array(refiner.classes_[best].tolist()))
    table = table.append_column("predicted_prob", pa.array(probability[np.arange(len(best)), best]))
    write_table(table, out)

    from whet.cli import console, plain

    console().print(plain(f"{table.num_rows:,} rows labelled in {out}"))
