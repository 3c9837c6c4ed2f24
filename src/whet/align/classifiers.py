"""The initial and the refined classifier of judged completions, and the gold labels between."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from whet.align.judge import spoken
from whet.align.recipe import ClassifierSettings
from whet.classify.reward import reward_text
from whet.errors import WhetError, WhetWarning, did_you_mean
from whet.posttrain.examples import read_examples
from whet.rounds import Progress
from whet.store import RunFolder, read_json, sweep
from whet.tables import read_table, write_table

if TYPE_CHECKING:
    from whet.classify.refiner import LabelRefiner

#: The classifiers by name.
INITIAL, REFINED = "initial", "refined"


class GoldNeeded(Exception):
    """The run waits for a person: a random sample of completions has no gold labels yet.

    Attributes
    ----------
    path : Path
        The table to fill in.
    rows : int
    classes : list of str

    Examples
    --------
    >>> print(GoldNeeded(Path("run/gold.csv"), 50, ["safe", "unsafe"]))
    run/gold.csv holds 50 random completions: write 'safe' or 'unsafe' into gold_label
    """

    def __init__(self, path: Path, rows: int, classes: list[str]) -> None:
        names = " or ".join(repr(name) for name in classes)
        super().__init__(f"{path} holds {rows} random completions: write {names} into gold_label")
        self.path, self.rows, self.classes = path, rows, classes


def read_corpus(path: Path) -> pa.Table:
    """Read judged completions that are there already.

    Returns
    -------
    pyarrow.Table
        ``prompt``, ``completion``, ``pseudo_label`` and, where given, ``pseudo_prob`` and
        ``gold_label``; the row's place is its number.

    Raises
    ------
    WhetError
        If a column is missing.
    """
    table = read_examples(path, ["prompt", "completion", "pseudo_label"])
    names = ["prompt", "completion", "pseudo_label", "pseudo_prob", "gold_label"]
    return table.select([name for name in names if name in table.column_names])


def gold_labels(
    corpus: pa.Table,
    named: Path | None,
    sample: Path,
    settings: ClassifierSettings,
    classes: list[str],
) -> list[str | None]:
    """Return a gold label for some rows of a corpus, None for the others.

    They come from the corpus's own column ``gold_label``, else from the file that is named, else
    from the sample, once somebody has filled it in.

    Parameters
    ----------
    corpus : pyarrow.Table
    named : Path or None
        Table with ``row``, the place in the corpus, and ``gold_label``.
    sample : Path
        CSV file that is written where there are no gold labels; an existing one is kept.
    settings : ClassifierSettings
    classes : list of str

    Raises
    ------
    GoldNeeded
        If there are none yet.
    WhetError
        If a label is no class, or a row is not in the corpus.
    """
    if "gold_label" in corpus.column_names:
        given = dict(enumerate(corpus["gold_label"].to_pylist()))
        return _in_order(given, corpus.num_rows, classes, "the corpus")
    path = sample if named is None else named
    given = _read_gold(path) if path.is_file() or named is not None else {}
    gold = _in_order(given, corpus.num_rows, classes, str(path))
    if any(label is not None for label in gold):
        return gold
    if named is not None:
        raise WhetError(f"{named} holds no gold label: fill in the column gold_label")
    if not sample.is_file():
        _write_sample(corpus, sample, settings)
    raise GoldNeeded(sample, min(settings.gold_rows, corpus.num_rows), classes)


def _read_gold(path: Path) -> dict[int, Any]:
    table = read_table(path)
    for column in ("row", "gold_label"):
        if column not in table.column_names:
            raise WhetError(
                f"{path} has no column {column!r}{did_you_mean(column, table.column_names)}: gold "
                "labels need row and gold_label"
            )
    rows = table["row"].to_pylist()
    for row in rows:
        if not isinstance(row, int):
            raise WhetError(f"{path} has the row {row!r}: give the number of a row of the corpus")
    if len(set(rows)) < len(rows):
        raise WhetError(f"{path} has a row twice: give each once")
    return dict(zip(rows, table["gold_label"].to_pylist(), strict=True))


def _in_order(given: dict[int, Any], n: int, classes: list[str], source: str) -> list[str | None]:
    gold: list[str | None] = [None] * n
    for row, value in given.items():
        label = "" if value is None else str(value).strip()
        if not 0 <= row < n:
            raise WhetError(f"{source} has the row {row}, and the corpus has {n}: correct it")
        if label and label not in classes:
            raise WhetError(
                f"row {row} of {source} has the gold label {label!r}"
                f"{did_you_mean(label, classes)}: use the classes of the judge's task"
            )
        gold[row] = label or None
    return gold


def _write_sample(corpus: pa.Table, path: Path, settings: ClassifierSettings) -> None:
    random = np.random.default_rng([settings.seed, corpus.num_rows])
    size = min(settings.gold_rows, corpus.num_rows)
    rows = random.choice(corpus.num_rows, size, replace=False)
    picked = corpus.take(pa.array(rows))
    sweep(path)
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "gold_label": pa.array([""] * size),
            "prompt": [_plain(spoken(prompt)) for prompt in picked["prompt"].to_pylist()],
            "completion": [_plain(spoken(said)) for said in picked["completion"].to_pylist()],
        }
    )
    write_table(table, path)


def _plain(text: str) -> str:
    """Return text that a spreadsheet takes for no formula; it is shown, and never read back."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def train_classifier(
    name: str,
    corpus: pa.Table,
    gold: list[str | None],
    folder: Path,
    settings: ClassifierSettings,
    decided: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a classifier into its folder, or return what a finished one has recorded.

    Parameters
    ----------
    name : {"initial", "refined"}
        ``initial`` takes the judge's labels for the truth; it reads no gold label, not even to be
        measured. ``refined`` is what :class:`whet.LabelRefiner` makes of labels and gold.
    corpus : pyarrow.Table
        ``prompt``, ``completion``, ``pseudo_label``, and ``pseudo_prob`` where known.
    gold : list of str or None, one a row
    folder : Path
        A run folder; ``model/`` in it is the classifier.
    settings : ClassifierSettings
    decided : dict
        What else decides the result; a folder that was begun with another is refused.
    progress : callable, optional

    Raises
    ------
    WhetError
        If the labels cannot be learned from.
    """
    run = RunFolder(folder, {"classifier": name, **decided}, resume=True)
    try:
        if run.complete:
            return read_json(folder / "run.json")
        run.open()
        refiner = _refiner(name, settings)
        texts = _texts(corpus, settings.encoder)
        labels = corpus["pseudo_label"].to_pylist()
        sure = _confidence(corpus) if settings.method == "tsp" and name == REFINED else None
        with warnings.catch_warnings():
            if name == INITIAL:  # that it has no gold labels is meant
                warnings.simplefilter("ignore", WhetWarning)
            refiner.fit_refine(
                texts,
                labels,
                gold if name == REFINED else None,
                confidence=sure,
                run=run,
                progress=progress,
            )
        refiner.save_pretrained(folder / "model")
        record = {
            "classes": refiner.classes_.tolist(),
            "method": refiner.method,
            "encoder": settings.encoder,
            "rows": corpus.num_rows,
            "labelled": sum(label is not None for label in labels),
            "changed": int(refiner.changed_.sum()),
            "verdict": refiner.verdict_,
            "estimate": {key: e.as_dict() for key, e in refiner.estimate_.items()},
            "gold": refiner.gold_,
            "class_counts": refiner.class_counts_,
        }
        run.finish(record)
        return read_json(folder / "run.json")
    finally:
        run.close()


def _refiner(name: str, settings: ClassifierSettings) -> LabelRefiner:
    from whet.classify.refiner import LabelRefiner
    from whet.finetune.settings import Settings

    tunes = settings.encoder.startswith("hf:")
    common: dict[str, Any] = {
        "encoder": settings.encoder,
        "random_state": settings.seed,
        "finetune": Settings.from_dict(settings.finetune) if tunes else None,
    }
    if name == INITIAL:
        return LabelRefiner("pn", rounds=1, guard="off", **common)
    return LabelRefiner(
        settings.method,
        rounds=settings.rounds,
        folds=settings.folds,
        gold_budget=settings.gold_budget,
        **common,
    )


def _texts(corpus: pa.Table, encoder: str) -> list[str]:
    """Return what the classifier reads, as its reward function will build it."""
    tokenizer = None
    if encoder.startswith("hf:"):
        from whet.posttrain.models import load_tokenizer

        tokenizer = load_tokenizer(encoder.removeprefix("hf:"))
    return [
        reward_text(prompt, completion, tokenizer)
        for prompt, completion in zip(
            corpus["prompt"].to_pylist(), corpus["completion"].to_pylist(), strict=True
        )
    ]


def _confidence(corpus: pa.Table) -> Any:  # noqa: ANN401 - array of shape (n,), or None
    if "pseudo_prob" not in corpus.column_names:
        return None
    sure = np.array([np.nan if p is None else p for p in corpus["pseudo_prob"].to_pylist()], float)
    return None if np.isnan(sure).all() else sure
