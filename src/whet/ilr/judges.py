"""Judges by name, as the command line and recipes write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError, did_you_mean

if TYPE_CHECKING:
    from whet.ilr.feedback import Comparer, Judge, Scores
    from whet.ilr.tasks.protocol import Task

#: What comes before the colon of a judge's name, and what comes after it.
KINDS = {
    "oracle": "",
    "noisy": "ACCURACY",
    "reward": "FOLDER",
    "evaluator": "FOLDER",
    "file": "FILE",
    "llm": "",
    "people": "",
}


@dataclass(frozen=True)
class LlmSettings:
    """How a language model is asked which of two answers is better.

    Parameters
    ----------
    model : str, optional
        As the server names it; or a folder.
    backend : str
        ``openai`` (any compatible server), ``anthropic`` or ``local``.
    base_url : str, optional
        Address of the server.
    key_env : str, optional
        Environment variable that holds the key.
    samples : int
        Answers to each question; their agreement is the probability.
    concurrency : int
        Questions at a time.
    timeout : float
        Seconds that an answer may take.
    max_tokens : int, optional
        Most tokens of an answer.
    max_cost : float, optional
        Most US dollars of one run of the command.
    max_calls : int, optional
        Most calls of one run of the command.
    price : str, optional
        US dollars for a million tokens in and out, as in ``"0.15,0.6"``.

    Examples
    --------
    >>> LlmSettings(model="judge-1").backend
    'openai'
    """

    model: str | None = None
    backend: str = "openai"
    base_url: str | None = None
    key_env: str | None = None
    samples: int = 1
    concurrency: int = 16
    timeout: float = 120.0
    max_tokens: int | None = None
    max_cost: float | None = None
    max_calls: int | None = None
    price: str | None = None

    def deciding(self) -> dict[str, Any]:
        """Return what decides the verdicts: not what they cost, nor how fast they come."""
        names = ("model", "backend", "base_url", "samples", "max_tokens")
        return {name: getattr(self, name) for name in names}


def check_judge(name: str) -> tuple[str, str]:
    """Return kind and argument of a judge's name.

    Raises
    ------
    WhetError
        If there is no such judge, or its argument is missing or not a share.

    Examples
    --------
    >>> check_judge("reward:models/reward")
    ('reward', 'models/reward')
    """
    kind, _, argument = name.partition(":")
    if kind not in KINDS:
        known = [f"{kind}:{what}" if what else kind for kind, what in KINDS.items()]
        raise WhetError(
            f"the judge {name!r} is not known{did_you_mean(kind, KINDS)}: write one of "
            + ", ".join(known)
        )
    if KINDS[kind] and not argument:
        raise WhetError(f"the judge {kind!r} needs more: write {kind}:{KINDS[kind]}")
    if kind == "noisy":
        try:
            share = float(argument)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise WhetError(f"the judge {name!r}: {argument!r} is no share; write noisy:0.75")
    if kind == "people" and argument and (not argument.isdecimal() or int(argument) < 1):
        raise WhetError(
            f"the judge {name!r}: {argument!r} is no number of comparisons; write people, or "
            "people:200"
        )
    return kind, argument


def make_judge(
    name: str,
    task: Task,
    *,
    llm: LlmSettings | None = None,
    cache: Path | None = None,
    scoring: str = "both",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Judge:
    """Return a judge by its name.

    Parameters
    ----------
    name : str
        ``oracle`` and ``noisy:ACCURACY`` read references; ``reward:FOLDER`` is a classifier that
        ``whet refine`` trained; ``evaluator:FOLDER`` what :mod:`whet.ilr.evaluator` trained;
        ``file:FILE`` a table of scores or choices; ``llm`` asks a language model. ``people``, or
        ``people:MOST``, is a judge of recipes alone: see :class:`whet.ilr.people.People`.
    task : Task
    llm : LlmSettings, optional
        Of the judge ``llm``.
    cache : Path, optional
        File of its answers; in memory unless given.
    scoring : {"both", "released"}
        Of judges that read two answers side by side.
    seed : int
        Of ``noisy``.
    progress : callable, optional

    Raises
    ------
    WhetError
        If there is no such judge, or its folder, file or settings cannot be used.

    Examples
    --------
    >>> from whet.ilr.tasks.find import load_task
    >>> make_judge("oracel", load_task("chains"))
    Traceback (most recent call last):
    ...
    whet.errors.WhetError: the judge 'oracel' is not known (did you mean 'oracle'?): write one of \
oracle, noisy:ACCURACY, reward:FOLDER, evaluator:FOLDER, file:FILE, llm, people
    """
    from whet.ilr.feedback import BothOrders, NoisyOracle, Oracle, Reward, ScoreFile
    from whet.ilr.tasks.protocol import criterion_of

    kind, argument = check_judge(name)
    if kind == "oracle":
        return Oracle(task)
    if kind == "noisy":
        return NoisyOracle(task, float(argument), seed)
    if kind == "people":
        raise WhetError(
            f"the judge {name!r} is one of whet ilr, which waits for people: have them answer with "
            "whet label --compare FILE --out judged.parquet, and give that as file:judged.parquet"
        )
    if kind == "file":
        return ScoreFile(argument)
    if kind == "reward":
        from whet.classify.reward import RewardFunction

        return Reward(RewardFunction.from_pretrained(argument))
    comparer: Comparer
    if kind == "evaluator":
        from whet.ilr.evaluator import Evaluator

        comparer = Evaluator.from_pretrained(argument)
    else:
        comparer = _AskedLlm(llm or LlmSettings(), criterion_of(task), cache, progress)
    return BothOrders(comparer, scoring)


class _AskedLlm:
    """A language model that is asked through a cache; a reached budget ends the command."""

    def __init__(
        self,
        settings: LlmSettings,
        criterion: str | None,
        cache: Path | None,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        from whet.align.judge import connected
        from whet.align.recipe import JudgeSettings
        from whet.annotate.cache import AnswerCache
        from whet.ilr.llm_judge import LLMJudge, comparing

        task = comparing(criterion)
        asked = JudgeSettings(task=task.name, **asdict(settings))
        if settings.backend != "local":  # which would be loaded twice
            connected(asked, task, AnswerCache(None))  # before the cache becomes a file
        kept = AnswerCache(cache)
        self.judge = LLMJudge(
            connected(asked, task, kept),
            task=task,
            cache=kept,
            samples=settings.samples,
            concurrency=settings.concurrency,
            progress=progress,
        )

    def accept(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Scores:
        """Return P(accept), or raise ``Stop`` where the budget was reached."""
        from whet.annotate.protocol import Stop

        found = self.judge.accept(prompts, first, second)
        if self.judge.stopped is not None:
            raise Stop(self.judge.stopped, fatal=False)
        return found
