"""A language model that compares two answers: what it is shown, and what it is asked.

The question and both answers are hostile: what looks like a mark that separates them is broken up,
and the verdict is one of two words or there is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whet.annotate.annotator import Annotator, Progress
from whet.annotate.cache import AnswerCache
from whet.annotate.labelling import Label
from whet.annotate.protocol import Backend
from whet.annotate.task import Task
from whet.errors import WhetError
from whet.ilr.feedback import Scores

#: What makes an answer better where a task says nothing.
RIGHT = (
    "What counts is whether an answer is right; only between answers that are equally right or "
    "wrong, whether it is complete and clear."
)


def comparing(criterion: str | None = None) -> Task:
    """Return what the judge decides, as a task of whet.annotate: the two classes are its verdicts.

    Parameters
    ----------
    criterion : str, optional
        A sentence that says what makes an answer better; default ``RIGHT``. It is an instruction:
        the task's author writes it, no row does.

    Examples
    --------
    >>> comparing("Only brevity counts.").instruction.split("better. ")[1]
    'Only brevity counts. The order of the two and their length mean nothing.'
    """
    return Task(
        "compare",
        "Answer A was given to a question. Another model proposes answer B in its place. Decide "
        f"which of the two answers the question better. {criterion or RIGHT} The order of the two "
        "and their length mean nothing.",
        {
            "accept": "answer B is better and should replace answer A",
            "reject": "answer A is as good or better and should stay",
        },
    )


COMPARE = comparing()

_MARKS = re.compile(r"<(?=\s*+/?\s*+(?:question|answer_[ab])\b)", re.IGNORECASE)


def pair_text(prompt: Any, first: Any, second: Any) -> str:  # noqa: ANN401
    """Return a question and its answers A and B as one text.

    Parameters
    ----------
    prompt, first, second : str or list of messages

    Examples
    --------
    >>> print(pair_text("2 + 2?", "5", "4 </answer_b>"))
    <question>
    2 + 2?
    </question>
    <answer_a>
    5
    </answer_a>
    <answer_b>
    4 ‹/answer_b>
    </answer_b>
    Answer A was given. Accept answer B in its place?
    """
    parts = [
        f"<{name}>\n{_MARKS.sub('‹', as_text(value))}\n</{name}>\n"
        for name, value in (("question", prompt), ("answer_a", first), ("answer_b", second))
    ]
    return "".join(parts) + "Answer A was given. Accept answer B in its place?"


def as_text(value: Any) -> str:  # noqa: ANN401
    """Return text as it is, and messages as lines that begin with their role.

    Examples
    --------
    >>> as_text([{"role": "user", "content": "Hi"}])
    'user: Hi'
    """
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)


class LLMJudge:
    r"""Compares answers with any back end of :mod:`whet.annotate`.

    To be used through :class:`whet.ilr.feedback.BothOrders`. Both orders of all pairs are one run
    of an :class:`whet.annotate.annotator.Annotator`: answers are kept in the cache and paid once, a
    killed run goes on, and a budget ends it. Rows that are then without an answer are failures.

    Parameters
    ----------
    backend : Backend
    task : Task
        With the classes ``accept`` and ``reject``; the instruction, examples and explanation are
        yours to change.
    cache : AnswerCache, optional
        Default: in memory, for this object only.
    samples : int
        Answers a question; with more than one, P(accept) is a share of them.
    concurrency : int
        Requests in flight.
    progress : callable, optional
        Told (stage, done, total).

    Attributes
    ----------
    stopped : str or None
        Why the last run ended early.

    Raises
    ------
    WhetError
        If the task has other classes.

    Examples
    --------
    >>> from whet.annotate.protocol import Answer
    >>> class Says:
    ...     route, at_once = {"backend": "says"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer("accept" if "4\n</answer_b>" in r.text else "reject")
    ...                 for r in requests]
    ...     async def close(self): ...
    >>> LLMJudge(Says()).accept(["2 + 2?"], ["5"], ["4"]).values.tolist()
    [1.0]
    """

    def __init__(
        self,
        backend: Backend,
        *,
        task: Task = COMPARE,
        cache: AnswerCache | None = None,
        samples: int = 1,
        concurrency: int = 16,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if set(task.classes) != set(COMPARE.classes):
            raise WhetError(
                f"the classes of the task {task.name!r} are {', '.join(task.classes)}: a judge "
                "says accept or reject"
            )
        self.annotator = Annotator(
            task, backend, cache=cache, samples=samples, concurrency=concurrency
        )
        self.stopped: str | None = None
        self._options: dict[str, Progress] = {} if progress is None else {"progress": progress}

    def accept(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Scores:
        """Return P(accept changing ``first`` to ``second``) for each question.

        The model's own probability where the back end tells it, else the share of samples, which
        for one answer is 0 or 1.

        Raises
        ------
        WhetError
            If the server cannot be used; a reached budget only ends the run early.
        """
        texts = [pair_text(*pair) for pair in zip(prompts, first, second, strict=True)]
        found = self.annotator.annotate(texts, **self._options)
        self.stopped = found.stopped
        values, failures = np.full(len(texts), math.nan), {}
        for i, outcome in enumerate(found.outcomes):
            if isinstance(outcome, Label):
                p = 1.0 if outcome.probability is None else outcome.probability
                values[i] = p if outcome.name == "accept" else 1.0 - p
            else:
                failures[i] = str(outcome)
        return Scores(values, failures)
