"""``whet sft``: fine-tune a causal language model on demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whet.posttrain.settings import TrainSettings


def sft(
    file: Annotated[
        Path,
        Parameter(help="CSV, JSONL or Parquet with the columns prompt and completion."),
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="Folder or hub id of a causal language model.")],
    out: Annotated[Path, Parameter(help="Folder of the trained model.")],
    marker: Annotated[
        str | None,
        Parameter(help="What every answer holds; rows without it are counted.", show_default=False),
    ] = None,
    settings: Annotated[TrainSettings, Parameter(name="*")] = TrainSettings(),  # noqa: B008
) -> None:
    """Fine-tune a language model on demonstrations, after a look at what they would not teach.

    The loss is on completions and their end mark. The same command goes on with a broken run.

        whet sft demos.jsonl --model models/base --out tuned
    """
    from whet.cli._training import run
    from whet.posttrain.trainers import train_sft

    run(train_sft, file, ["prompt", "completion"], model, out, settings, marker)
