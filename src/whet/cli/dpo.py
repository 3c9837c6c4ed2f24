"""``whet dpo``: train a causal language model on preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whet.posttrain.settings import DpoSettings


def dpo(
    file: Annotated[
        Path,
        Parameter(help="CSV, JSONL or Parquet with the columns prompt, chosen and rejected."),
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="Folder or hub id of a causal language model.")],
    out: Annotated[Path, Parameter(help="Folder of the trained model.")],
    marker: Annotated[
        str | None,
        Parameter(help="What every answer holds; rows without it are counted.", show_default=False),
    ] = None,
    settings: Annotated[DpoSettings, Parameter(name="*")] = DpoSettings(),  # noqa: B008
) -> None:
    """Train a language model on preferences: DPO, IPO, and two for labels that may be wrong.

    The same command goes on with a broken run.

        whet dpo pairs.jsonl --model tuned --out preferred
    """
    from whet.cli._training import run
    from whet.posttrain.trainers import train_dpo

    run(train_dpo, file, ["prompt", "chosen", "rejected"], model, out, settings, marker)
