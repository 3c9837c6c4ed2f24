"""Train two small base models for a recipe on chains: for a trial without a download.

    python examples/scratch_models.py RECIPE.yaml

They are written where the recipe names them: its model, and the smaller one of its weak supervisor.
They are trained on chains with other moduli, so that they know the form of the answers and none of
the facts that the recipe's task needs.
"""

import sys
from pathlib import Path

import pyarrow as pa

from whet.cli._progress import ProgressReporter
from whet.ilr.llm_judge import pair_text
from whet.ilr.recipe import load_recipe
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task
from whet.posttrain.settings import TrainSettings
from whet.posttrain.trainers import train_sft

STEPS = 1000


def main(path: str) -> None:
    """Make the models of a recipe."""
    recipe = load_recipe(Path(path))
    options = recipe.options | {"train": 3000}
    own = load_task(recipe.task, **recipe.options).load(None, "train")
    moduli = [m for m in range(6, 11) if m != options["modulus"]]
    others = [load_task("chains", **options | {"modulus": m}).load(None, "train") for m in moduli]
    table = pa.concat_tables([t.select(["prompt", "completion"]) for t in others])
    columns = [t[name] for t in (table, own) for name in ("prompt", "completion")]
    texts = [text for column in columns for text in column.to_pylist()]
    texts.append(pair_text("", "", ""))  # what a judge of two answers reads
    settings = TrainSettings(
        learning_rate=5e-3, max_steps=STEPS, batch_size=32, max_length=96, tune="full"
    )
    models = {recipe.model: (64, 2)}
    if recipe.weak is not None:
        models[recipe.weak.model] = (32, 1)
    for name, (width, layers) in models.items():
        start = save_scratch(texts, Path(f"{name}-scratch"), width=width, layers=layers)
        with ProgressReporter() as progress:
            train_sft(start, table, Path(name), settings, progress=progress)


if __name__ == "__main__":
    main(sys.argv[1])
