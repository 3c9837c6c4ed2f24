"""What ``whet sft`` and ``whet dpo`` share: the rows' faults, progress, the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table


def run(
    train: Callable[..., Path],
    file: Path,
    columns: Sequence[str],
    model: str,
    out: Path,
    settings: Any,  # noqa: ANN401 - TrainSettings or DpoSettings
    marker: str | None,
) -> None:
    """Train, and print what was trained and what to do next.

    Parameters
    ----------
    train : callable
        :func:`whet.posttrain.trainers.train_sft` or ``train_dpo``.
    file : Path
    columns : sequence of str
        That the file needs.
    model : str
    out : Path
    settings : TrainSettings or DpoSettings
    marker : str or None
    """
    from whet.cli._progress import ProgressReporter
    from whet.finetune.processes import launched_rank
    from whet.posttrain.examples import read_examples
    from whet.posttrain.ranks import one_voice
    from whet.report.page import add_report
    from whet.report.training_summary import summarise_training
    from whet.store import read_json

    leads = launched_rank() == 0
    with one_voice(), ProgressReporter() if leads else nullcontext() as progress:
        table = read_examples(file, columns)
        tell = None if progress is None else progress.say
        folder = train(model, table, out, settings, marker=marker, progress=progress, tell=tell)
    if leads:
        account = read_json(folder / "training.json")
        add_report(folder, account, summarise_training, "the model is")
        _show(account, folder)


def _show(account: dict[str, Any], folder: Path) -> None:
    from whet.cli import console, plain
    from whet.cli._summary import report_row
    from whet.report.training_summary import next_step, tuned

    history, lint = account["history"], account["lint"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    learned = lint["n"] - lint["untrained"]
    for name, value in (
        ("rows", f"{learned:,} of {lint['n']:,} trained on"),
        ("steps", f"{account['steps']:,}, of at most {account['batch_size']:,} rows each"),
        ("loss", f"{history[0]['loss']:.4f} at step 1, {history[-1]['loss']:.4f} at the end"),
        *_preferences(account),
        ("trained", tuned(account)),
        ("time", f"{account['seconds']:.1f} s on {account['device']}"),
        ("model", str(folder)),
        *report_row(folder),
        ("full account", str(folder / "training.json")),
    ):
        table.add_row(plain(name), plain(value))
    screen = console()
    screen.print(table)
    screen.print()
    screen.print(plain(f"Next: {next_step(folder, account)}"))


def _preferences(account: dict[str, Any]) -> list[tuple[str, str]]:
    if account["kind"] != "dpo":
        return []
    last = account["history"][-1]
    if not last["rewards/margins"]:
        return [("chosen preferred", "nothing yet: the model has not moved; take more steps")]
    return [
        ("chosen preferred", f"{last['rewards/accuracies']:.1%} of the pairs of the last steps"),
        ("margin", f"{last['rewards/margins']:.4f}, beta included"),
    ]
