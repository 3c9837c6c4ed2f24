"""The conversations that give a row its label: ask, check, ask once more, else abstain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.annotate.prompts import (
    again,
    label_probability,
    label_request,
    packed_request,
    parse_label,
    parse_packed,
    without_thinking,
)
from whet.annotate.protocol import Conversation, Failure, Request, together
from whet.annotate.task import Task


@dataclass(frozen=True)
class Label:
    """A class that the annotator gave.

    Attributes
    ----------
    name : str
        One of the task's classes.
    probability : float or None
        In 0 to 1: the model's own probability of the label, or the share of samples that agree;
        None where neither is known.
    explanation : str or None
        What the model wrote before it decided.

    Examples
    --------
    >>> Label("spam", 0.9).name
    'spam'
    """

    name: str
    probability: float | None = None
    explanation: str | None = None


@dataclass(frozen=True)
class Abstain:
    """Why a row has no label.

    Attributes
    ----------
    reason : str
        ``no class`` (the answers named none), ``empty text``, ``example`` (the row is shown in the
        prompt), or the cause of a :class:`whet.annotate.protocol.Failure`.
    detail : str
        More, for a person.

    Examples
    --------
    >>> str(Abstain("no class", "'maybe'"))
    "no class: 'maybe'"
    """

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


Outcome = Label | Abstain


def label_rows(
    task: Task, texts: Sequence[str], *, samples: int = 1, temperature: float = 0.0
) -> Conversation[list[Outcome]]:
    """Return the conversation that labels rows; more than one row shares a request.

    Parameters
    ----------
    task : Task
    texts : sequence of str
        Rendered rows. One by default; several are packed into one request, and those whose answer
        is missing or doubtful are asked alone.
    samples : int
        Answers a row; with more than one the label is their majority (the first of equals), and
        its probability the share that agree.
    temperature : float
        0 for the most probable answer.
    """
    if len(texts) == 1 and not texts[0].strip():
        return _done([Abstain("empty text")])
    ask = _packed if len(texts) > 1 else _alone
    if samples == 1:
        return ask(task, texts, temperature, 0)
    return _majority([ask(task, texts, temperature, sample) for sample in range(samples)])


def _done(outcomes: list[Outcome]) -> Conversation[list[Outcome]]:
    yield from ()
    return outcomes


def _alone(
    task: Task, texts: Sequence[str], temperature: float, sample: int
) -> Conversation[list[Outcome]]:
    request = label_request(task, texts[0], temperature=temperature, sample=sample)
    outcome = yield from ask_label(task, request)
    return [outcome]


def ask_label(task: Task, request: Request) -> Conversation[Outcome]:
    """Ask for one label, and once more if the answer names no class."""
    said = ""
    for attempt in range(2):
        (reply,) = yield [request]
        if isinstance(reply, Failure):
            return Abstain(reply.cause, reply.detail)
        found = parse_label(reply.text, list(task.classes))
        if found is not None:
            return Label(
                found.label, label_probability(reply, found.label), _printable(found.explanation)
            )
        said = reply.text
        if attempt == 0:
            # What the model thought aloud is not sent back.
            request = again(request, task, (without_thinking(said) or "")[:1000] or "(nothing)")
    shown = "".join(c if c.isprintable() else " " for c in said)
    return Abstain("no class", repr(shown[:80]))


def _printable(text: str | None) -> str | None:
    return (
        None if text is None else "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    )


def _packed(
    task: Task, texts: Sequence[str], temperature: float, sample: int
) -> Conversation[list[Outcome]]:
    full = [i for i, text in enumerate(texts) if text.strip()]
    if len(full) < 2:
        return (yield from together([label_one(task, text, temperature, sample) for text in texts]))
    shown = [texts[i] for i in full]
    (reply,) = yield [packed_request(task, shown, temperature=temperature, sample=sample)]
    outcomes: list[Outcome] = [Abstain("empty text")] * len(texts)
    doubtful = full
    if not isinstance(reply, Failure):
        found = parse_packed(reply.text, shown, list(task.classes))
        for i, said in zip(full, found, strict=True):
            if said is not None:
                outcomes[i] = Label(said.label, None, _printable(said.explanation))
        doubtful = [i for i, said in zip(full, found, strict=True) if said is None]
    singles = [label_one(task, texts[i], temperature, sample) for i in doubtful]
    alone = yield from together(singles)
    for i, outcome in zip(doubtful, alone, strict=True):
        # Without its probability, which the other rows of the pack do not have.
        outcomes[i] = replace(outcome, probability=None) if isinstance(outcome, Label) else outcome
    return outcomes


def label_one(task: Task, text: str, temperature: float, sample: int) -> Conversation[Outcome]:
    """Ask for the label of one row."""
    if not text.strip():
        return Abstain("empty text")
    request = label_request(task, text, temperature=temperature, sample=sample)
    return (yield from ask_label(task, request))


def _majority(talks: list[Conversation[list[Outcome]]]) -> Conversation[list[Outcome]]:
    samples = yield from together(talks)
    return [agree(said) for said in zip(*samples, strict=True)]


def agree(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the label that most samples give, with the share of all samples that give it."""
    labels = [outcome for outcome in outcomes if isinstance(outcome, Label)]
    if not labels:
        return outcomes[0]
    name, count = Counter(label.name for label in labels).most_common(1)[0]
    first = next(label for label in labels if label.name == name)
    return replace(first, probability=count / len(outcomes))
