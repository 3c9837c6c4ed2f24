"""Make two small models with random weights for a recipe's task: for trials without a download.

    python examples/scratch_models.py RECIPE.yaml

They are written where the recipe names them: its model, and the smaller one of its weak supervisor.
Their tokenizer has the words of the task's splits.
"""

import sys
from pathlib import Path

from whet.ilr.recipe import load_recipe
from whet.ilr.scratch import save_scratch
from whet.ilr.tasks.find import load_task


def main(path: str) -> None:
    """Make the models of a recipe."""
    recipe = load_recipe(Path(path))
    task = load_task(recipe.task, **recipe.options)
    folder = None if recipe.data is None else Path(recipe.data)
    tables = [task.load(folder, split) for split in (recipe.train, recipe.test) if split]
    columns = [table[name] for table in tables for name in ("prompt", "completion")]
    texts = [text for column in columns for text in column.to_pylist()]
    save_scratch(texts, Path(recipe.model), width=64)
    if recipe.weak is not None:
        save_scratch(texts, Path(recipe.weak.model), width=32)


if __name__ == "__main__":
    main(sys.argv[1])
