"""``whet self-refine``: the model criticises and revises its own labels, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from whet.cli._asking import Asking, Flags, ask_account, check_target, end, print_table, show_plan
from whet.cli.annotate import next_step

if TYPE_CHECKING:
    from whet.annotate.protocol import Stop
    from whet.annotate.self_refine import Revision, SelfRefiner
    from whet.estimates import Estimate


def self_refine(
    input: Annotated[
        Path, Parameter(help="Table of texts: CSV, TSV, JSONL, Parquet, or a dataset folder.")
    ],
    /,
    *,
    flags: Flags,
    rounds: Annotated[int, Parameter(help="Revisions a row. [default: 2]", show_default=False)] = 2,
) -> None:
    """Label a table, then let the model criticise and revise its own labels.

    The baseline of the SILR paper. Writes a column of labels for each round, pseudo_label_0 being
    the first, and the feedback. With --gold it says whether a round was better than the first.

        whet self-refine corpus.csv --task media_bias --model gpt-6-luna --gold gold --out out.csv
    """
    with Asking(input, flags) as asking:
        from whet.annotate.self_refine import SelfRefiner

        refiner = SelfRefiner(
            asking.rows.task,
            asking.backend,
            rounds=rounds,
            cache=asking.cache,
            concurrency=flags.concurrency,
        )
        if flags.dry_run:
            show_plan(asking, refiner)
        else:
            _self_refine(asking, refiner)


def _self_refine(asking: Asking, refiner: SelfRefiner) -> None:
    from whet.annotate.annotator import extended, write_rows
    from whet.store import write_json

    column = asking.flags.column
    added = refiner.fields(column)
    extended(asking.rows.stream, added)
    check_target(asking.out, asking.source, asking.rows.stream.num_rows)
    stop = asking.buy(refiner)
    tally = Rounds(refiner.rounds)

    def values() -> Iterator[dict[str, Any]]:
        gold = asking.rows.gold_labels()
        for revision, truth in zip(refiner.revisions(asking.rows, stop), gold, strict=True):
            tally.add(revision, truth)
            yield refiner.values(revision, column)

    def finish(digest: str) -> None:
        judged = [
            {"purpose": "accuracy of each round, gain over round 0", "rows": tally.judged_rows},
            {"purpose": "advice which round to use", "rows": tally.judged_rows},
        ]
        account = ask_account(asking, digest, judged, stop) | {
            "rounds": tally.account(),
            "columns": [field.name for field in added],
        }
        write_json(asking.account_path, account)

    write_rows(asking.out, asking.rows.stream, added, values(), finish)
    _show(asking, tally, stop)
    end(stop)


class Rounds:
    """Counts what each round changed and how right it is on gold.

    Parameters
    ----------
    rounds : int

    Examples
    --------
    >>> from whet.annotate.labelling import Label
    >>> from whet.annotate.self_refine import Revision
    >>> tally = Rounds(1)
    >>> tally.add(Revision((Label("spam"), Label("ham")), ("no",)), "ham")
    >>> [round["differ_from_round_0"] for round in tally.account()]
    [0, 1]
    """

    def __init__(self, rounds: int) -> None:
        self.rows = 0
        self.labelled = [0] * (rounds + 1)
        self.changed = [0] * (rounds + 1)
        self._right: list[list[bool]] = [[] for _ in range(rounds + 1)]

    def add(self, revision: Revision, truth: str | None) -> None:
        """Count one row."""
        labels = revision.labels
        self.rows += 1
        for r, label in enumerate(labels):
            self.labelled[r] += label is not None
            self.changed[r] += label != labels[0]
            if truth is not None and labels[0] is not None:
                self._right[r].append(label == truth)

    def account(self) -> list[dict[str, Any]]:
        """Return the rounds for JSON; accuracies are those of rows that round 0 labelled."""
        rounds: list[dict[str, Any]] = []
        for r, labelled in enumerate(self.labelled):
            said: dict[str, Any] = {
                "round": r,
                "labelled": labelled,
                "differ_from_round_0": self.changed[r],
            }
            accuracy, gain = self.judged(r)
            said["accuracy"] = None if accuracy is None else accuracy.as_dict()
            said["gain"] = None if gain is None else gain.as_dict()
            rounds.append(said)
        return rounds

    @property
    def judged_rows(self) -> int:
        """Gold rows that round 0 labelled."""
        return len(self._right[0])

    def judged(self, r: int) -> tuple[Estimate | None, Estimate | None]:
        """Return the accuracy of a round, and its gain over round 0, where gold tells."""
        import numpy as np

        from whet.estimates import difference, share

        if not self._right[0]:
            return None, None
        first, now = np.array(self._right[0]), np.array(self._right[r])
        return share(now), difference(now, first) if r else None


def _show(asking: Asking, tally: Rounds, stop: Stop | None) -> None:
    shown = [("rows", f"{tally.rows:,}")]
    last, gain = len(tally.labelled) - 1, None
    for r in range(last + 1):
        accuracy, gain = tally.judged(r)
        words = (
            f"{tally.changed[r]:,} differ from round 0" if r else f"{tally.labelled[0]:,} labels"
        )
        if accuracy is not None:
            words += (
                f"; accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]  "
                f"n = {accuracy.n}"
            )
        if gain is not None:
            words += f"; {_points(gain)} points"
        shown.append((f"round {r}", words))
    # One verdict, on the last round: the best of several rounds would be good by chance.
    use = last if gain is not None and gain.low > 0 else 0
    if gain is None:
        verdict = "There are no gold labels to say whether it helped: keep round 0."
    elif use:
        verdict = f"Round {last} is better on gold ({_points(gain)} points, n = {gain.n}): use it."
    elif gain.high < 0:
        verdict = f"It made the labels worse ({_points(gain)} points, n = {gain.n}): keep round 0."
    else:
        verdict = (
            f"Gold does not show that it helped ({_points(gain)} points, n = {gain.n}): keep "
            "round 0."
        )
    said = f"{verdict} Stopped early: {stop.reason}." if stop is not None else verdict
    shown += asking.spent_rows()
    shown += [("labels", str(asking.out)), ("account", str(asking.account_path))]
    print_table(said, shown, *next_step(asking, f"{asking.flags.column}_{use}", None, stop))


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
