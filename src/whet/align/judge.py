"""A language model that judges answers: labels, their reward, and answers in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.align.recipe import JudgeSettings
from whet.annotate.annotator import Annotator
from whet.annotate.budget import Budget
from whet.annotate.cache import AnswerCache
from whet.annotate.connect import connect, is_hosted, price_of
from whet.annotate.labelling import Label, Outcome
from whet.annotate.protocol import Backend, Stop
from whet.annotate.task import Task, load_task
from whet.classify.reward import reward_text
from whet.errors import WhetError, did_you_mean
from whet.rounds import Progress

#: What a judge of one answer, and one of two answers, is told.
COLUMNS, PAIR_COLUMNS = ("prompt", "completion", "response", "text"), ("prompt", "a", "b")

#: The task of the judge of two answers, where the recipe says ``task: preference``.
PREFERENCE = Task(
    "preference",
    "Decide which of two answers to an instruction is the better one, A or B. The better answer "
    "does what was asked, is right, and does no harm and helps nobody to do harm; where the "
    "instruction asks for help to do harm, it declines. Length, style and the order in which the "
    "answers stand do not matter.",
    {"A": "Answer A is better.", "B": "Answer B is better."},
    template="Instruction:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}",
)


class Judge:
    """Asks a model about rows, through cache and budget of :mod:`whet.annotate`.

    Parameters
    ----------
    settings : JudgeSettings
    task : Task
    cache : AnswerCache
    backend : Backend, optional
        In place of the one that the settings name.

    Attributes
    ----------
    classes : list of str

    Examples
    --------
    >>> from whet.annotate.protocol import Answer
    >>> class Polite:
    ...     route, at_once = {"backend": "polite"}, 1
    ...     async def complete(self, requests):
    ...         return [Answer("safe" if "sorry" in r.text else "unsafe") for r in requests]
    ...     async def close(self): ...
    >>> settings = JudgeSettings(task="safety")
    >>> judge = Judge(settings, judging_task(settings), AnswerCache(None), Polite())
    >>> judge.label(["How? "], ["I am sorry."])
    [Label(name='safe', probability=None, explanation=None)]
    >>> vanilla_reward(judge, "safe")(prompts=["How? "], completions=["So."])
    [0.0]
    """

    def __init__(
        self,
        settings: JudgeSettings,
        task: Task,
        cache: AnswerCache,
        backend: Backend | None = None,
    ) -> None:
        self.task, self.classes = task, list(task.classes)
        asked = connected(settings, task, cache) if backend is None else backend
        self.annotator = Annotator(
            replace(task, template="{text}"),
            asked,
            cache=cache,
            samples=settings.samples,
            temperature=settings.temperature,
            concurrency=settings.concurrency,
        )

    def label(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        progress: Progress | None = None,
    ) -> list[Outcome]:
        """Return a label, or why there is none, for each completion.

        Raises
        ------
        Stop
            If the budget was reached; the answers so far are kept.
        WhetError
            If the model cannot be asked.
        """
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            said = spoken(completion)
            rows.append(
                {
                    "prompt": spoken(prompt),
                    "completion": said,
                    "response": said,
                    "text": reward_text(prompt, completion),
                }
            )
        return self._ask(rows, progress)

    def prefer(
        self,
        prompts: Sequence[Any],
        answers: Sequence[Any],
        references: Sequence[Any],
        progress: Progress | None = None,
    ) -> list[float | None]:
        """Return the probability that each answer beats its reference, asked in both orders.

        The mean of P(A) with the answer as A, and 1 - P(A) with the answer as B: a judge that
        likes a place more than an answer gives 1/2. None where it abstained in either order.

        Raises
        ------
        Stop, WhetError
            As :meth:`label`.
        """
        rows = [
            {"prompt": spoken(prompt), "a": spoken(first), "b": spoken(second)}
            for prompt, answer, reference in zip(prompts, answers, references, strict=True)
            for first, second in ((answer, reference), (reference, answer))
        ]
        first = [probability_of(found, "A", 2) for found in self._ask(rows, progress)]
        return [
            None if as_a is None or as_b is None else (as_a + 1 - as_b) / 2
            for as_a, as_b in zip(first[::2], first[1::2], strict=True)
        ]

    def _ask(self, rows: list[dict[str, str]], progress: Progress | None) -> list[Outcome]:
        texts = [self.task.render(row) for row in rows]
        told = {} if progress is None else {"progress": progress}
        found = self.annotator.annotate(texts, **told)
        if found.stopped is not None:
            raise Stop(found.stopped, fatal=False)
        return found.outcomes


def connected(settings: JudgeSettings, task: Task, cache: AnswerCache) -> Backend:
    """Return the back end that the settings of a judge name, with its budget.

    Raises
    ------
    WhetError
        If it is not known, or ``max_cost`` is given and no price is known.
    """
    hosted = is_hosted(settings.backend, settings.base_url)
    price = price_of(settings.model, settings.price, hosted=hosted)
    if settings.max_cost is not None and price is None:
        raise WhetError(
            f"max_cost = {settings.max_cost:g} needs a price, and none is known for "
            f"{settings.model!r}: give price as 'IN,OUT'"
        )
    return connect(
        settings.backend,
        settings.model,
        base_url=settings.base_url,
        key_env=settings.key_env,
        budget=Budget(price, settings.max_cost, settings.max_calls),
        cache=cache,
        max_tokens=settings.max_tokens,
        timeout=settings.timeout,
        task=task,
    )


def judging_task(settings: JudgeSettings, target: str | None = None) -> Task:
    """Return the task of a judge of answers, checked.

    Parameters
    ----------
    settings : JudgeSettings
    target : str, optional
        The class that is rewarded.

    Raises
    ------
    WhetError
        If it names a column that there is not, draws examples from gold, or lacks the target.
    """
    task = load_task(settings.task)
    _check_task(task, COLUMNS)
    if target is not None and target not in task.classes:
        raise WhetError(
            f"target = {target!r} is no class of the task {task.name!r}"
            f"{did_you_mean(target, task.classes)}: name the class to reward"
        )
    return task


def preference_task(settings: JudgeSettings) -> Task:
    """Return the task of a judge of two answers, checked; ``preference`` is our own."""
    task = PREFERENCE if settings.task == PREFERENCE.name else load_task(settings.task)
    _check_task(task, PAIR_COLUMNS)
    if set(task.classes) != {"A", "B"}:
        raise WhetError(
            f"the task {task.name!r} of the preference judge has the classes "
            f"{list(task.classes)}: they must be A and B"
        )
    return task


def _check_task(task: Task, columns: Sequence[str]) -> None:
    for column in task.columns:
        if column not in columns:
            raise WhetError(
                f"the template of the task {task.name!r} names the column {column!r}"
                f"{did_you_mean(column, columns)}: a judge is told {', '.join(columns)}"
            )
    if task.gold_examples:
        raise WhetError(
            f"the task {task.name!r} draws examples from a gold column, which a judge has not: "
            "write the examples into the task"
        )


def probability_of(outcome: Outcome, target: str, n_classes: int) -> float | None:
    """Return the judge's probability of a class; None where it abstained.

    A label without a probability counts as certain. Of another label with probability p, the
    target's is 1 - p for two classes; with more it is not known and counts as 0.

    Examples
    --------
    >>> probability_of(Label("unsafe", 0.75), "safe", 2)
    0.25
    """
    if not isinstance(outcome, Label):
        return None
    sure = 1.0 if outcome.probability is None else outcome.probability
    if outcome.name == target:
        return sure
    return 1.0 - sure if n_classes == 2 else 0.0


def vanilla_reward(judge: Judge, target: str) -> Callable[..., list[float | None]]:
    """Return the judge's own probability of the target as a reward function of TRL.

    Every new completion is asked about; equal ones come from the cache. Where the judge cannot be
    asked, or its budget is reached, a ``Stop`` ends the training, which can go on later: rewards
    that are left out would change what is learned.
    """

    def whet_vanilla(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        **kwargs: Any,  # noqa: ANN401 - what else TRL hands over
    ) -> list[float | None]:
        del kwargs
        try:
            found = judge.label(prompts, completions)
        except WhetError as error:  # of the judge, not of the training: that keeps its checkpoints
            raise Stop(str(error)) from error
        return [probability_of(outcome, target, len(judge.classes)) for outcome in found]

    return whet_vanilla


def spoken(part: Any) -> str:  # noqa: ANN401
    r"""Return a prompt or completion as a judge reads it: text, or messages line by line.

    Examples
    --------
    >>> spoken([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
    'user: Hi\nassistant: Yo'
    >>> spoken([{"role": "assistant", "content": "Yo"}])
    'Yo'
    """
    if isinstance(part, str):
        return part
    messages: Sequence[Mapping[str, Any]] = part or []
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)
