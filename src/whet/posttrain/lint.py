"""What of the rows would not be learned as meant: counted before anything is trained.

Training runs without a word on rows whose completion was cut away, or whose end was: the loss of
the first is 0, and a model that never sees an end mark never stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from whet.errors import WhetError
from whet.posttrain.examples import is_conversational
from whet.posttrain.settings import DpoSettings, TrainSettings
from whet.posttrain.tokens import Encoded, encode


@dataclass(frozen=True)
class Lint:
    r"""Counts of rows; a row of preferences has a fault if either of its completions has it.

    Attributes
    ----------
    n : int
        Rows.
    max_length : int
        Most tokens of a row.
    truncated : int
        Rows with more tokens, which lose their end.
    untrained : int
        Of these, rows whose prompt alone fills ``max_length``: nothing of them is learned.
    endless : int
        Rows whose trained tokens hold no end mark.
    empty : int
        Rows with an empty completion.
    merged : int
        Rows whose last tokens of the prompt merge with the completion's first ones, so that the
        model is trained on another prompt than it is asked with.
    marks : int
        Rows of text that hold what the tokenizer takes for one of its special tokens.
    unanswered : int or None
        Rows without the answer marker; None where none was named.
    marker : str or None

    Examples
    --------
    >>> lint = Lint(n=10, max_length=64, truncated=2, untrained=1, endless=2, empty=0, merged=0,
    ...     marks=0, unanswered=3, marker="####")
    >>> print(*lint.lines(), sep="\n")
    2 of 10 rows are longer than 64 tokens and lose their end; of 1 nothing is left to learn
    2 of 10 rows have no end mark among the learned tokens
    3 of 10 rows have no answer marker '####'
    """

    n: int
    max_length: int
    truncated: int
    untrained: int
    endless: int
    empty: int
    merged: int
    marks: int
    unanswered: int | None
    marker: str | None

    def check(self) -> None:
        """Raise ``WhetError`` if no row would train, or no row would teach the model to stop."""
        if self.untrained == self.n:
            raise WhetError(
                f"in all {self.n} rows the prompt alone fills the {self.max_length} tokens that a "
                "row may have, so that nothing would be learned: raise max_length"
            )
        if self.endless == self.n:
            raise WhetError(
                f"none of the {self.n} rows holds an end mark among its learned tokens, so that "
                "the model would never learn to stop: raise max_length if rows are cut, or mend "
                "the chat template"
            )

    def lines(self) -> list[str]:
        """Return a sentence for each fault that there is."""
        of = f"of {self.n:,} rows"
        lost = f"; of {self.untrained:,} nothing is left to learn" if self.untrained else ""
        said = [
            (
                self.truncated,
                f"are longer than {self.max_length:,} tokens and lose their end{lost}",
            ),
            (self.endless, "have no end mark among the learned tokens"),
            (self.empty, "have an empty completion"),
            (self.merged, "have a prompt whose last tokens merge with the completion's first"),
            (self.marks, "hold what the tokenizer takes for one of its special tokens"),
            (self.unanswered or 0, f"have no answer marker {self.marker!r}"),
        ]
        return [f"{count:,} {of} {fault}" for count, fault in said if count]


def lint(
    table: pa.Table,
    tokenizer: Any,  # noqa: ANN401
    settings: TrainSettings,
    marker: str | None = None,
    *,
    ends: Sequence[int] | None = None,
) -> Lint:
    """Count what would go wrong with rows of demonstrations or preferences.

    Parameters
    ----------
    table : pyarrow.Table
        With ``prompt`` and ``completion``; for ``DpoSettings`` with ``prompt``, ``chosen`` and
        ``rejected``.
    tokenizer : tokenizer of transformers
        With an end mark, as :func:`whet.posttrain.models.load_tokenizer` gives it.
    settings : TrainSettings
        Its ``max_length`` counts.
    marker : str, optional
        What every answer holds, such as ``####``.
    ends : sequence of int, optional
        Tokens that end a completion; the tokenizer's end mark.
    """
    names = completion_columns(settings)
    prompts = table["prompt"].to_pylist()
    sides = {name: table[name].to_pylist() for name in names}
    return judge(
        [encode(tokenizer, prompts, completions) for completions in sides.values()],
        list(sides.values()),
        settings.max_length,
        [tokenizer.eos_token_id] if ends is None else ends,
        marker,
        None if is_conversational(table) else tokenizer,
    )


def completion_columns(settings: TrainSettings) -> list[str]:
    """Return the columns of what is learned: ``completion``, or ``chosen`` and ``rejected``."""
    return ["chosen", "rejected"] if isinstance(settings, DpoSettings) else ["completion"]


def judge(
    encoded: Sequence[Sequence[Encoded]],
    completions: Sequence[Sequence[Any]],
    max_length: int,
    ends: Sequence[int],
    marker: str | None,
    tokenizer: Any,  # noqa: ANN401
) -> Lint:
    """Count the faults of rows that are tokens already; see :func:`lint`.

    The tokenizer is None for messages, whose template puts in special tokens of its own.
    """
    stops, marked = set(ends), _finder_of_marks(tokenizer)
    learned = [[row.ids[row.start : max_length] for row in side] for side in encoded]
    faults = {
        "truncated": [[len(row.ids) > max_length for row in side] for side in encoded],
        "untrained": [[not tokens for tokens in side] for side in learned],
        "endless": [[stops.isdisjoint(tokens) for tokens in side] for side in learned],
        "empty": [[not _text(said).strip() for said in side] for side in completions],
        "merged": [[row.start < row.prompt for row in side] for side in encoded],
        "marks": [[marked(row.ids) for row in side] for side in encoded],
        "unanswered": [
            [marker is not None and marker not in _text(c) for c in s] for s in completions
        ],
    }
    counts = {
        name: sum(any(sides) for sides in zip(*found, strict=True))
        for name, found in faults.items()
    }
    unanswered = counts.pop("unanswered")
    return Lint(
        n=len(encoded[0]),
        max_length=max_length,
        marker=marker,
        unanswered=None if marker is None else unanswered,
        **counts,
    )


def _text(said: Any) -> str:  # noqa: ANN401
    """Return text, or the contents of messages."""
    return said if isinstance(said, str) else "\n".join(message["content"] for message in said)


def _finder_of_marks(tokenizer: Any) -> Callable[[list[int]], bool]:  # noqa: ANN401
    """Return a function that tells whether tokens of text hold special ones that are not added."""
    if tokenizer is None:
        return lambda ids: False
    # Letters that the vocabulary lacks become the unknown token without being a mark.
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    added = len(tokenizer("", verbose=False)["input_ids"]) + 1  # the end mark
    return lambda ids: sum(token in special for token in ids) > added
