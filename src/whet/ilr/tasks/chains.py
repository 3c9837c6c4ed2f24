"""Arithmetic made on the spot: problems of any length and size, with worked, checkable answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from whet.errors import WhetError
from whet.ilr.tasks.answers import AnswerTask, final_number, number_in
from whet.ilr.tasks.protocol import as_prompt, demonstrations

Form = Literal["chain", "story"]

#: Shares, in tenths, of all problems that belong to a split.
_TENTHS = {"test": range(1), "validation": range(1, 2), "train": range(2, 10)}
#: Draws without a new problem after which there are too few of them.
_PATIENCE = 10_000
#: Factors and divisors of stories.
_FACTORS = (2, 3, 4, 5)
#: Least modulus of a form: a story needs room, for it speaks of no single marble.
_LEAST = {"chain": 2, "story": 10}

_NAMES = ("Ana", "Ben", "Carla", "Dev", "Ema", "Farid", "Grace", "Hugo", "Ines", "Jun", "Kemi")


@dataclass(frozen=True)
class _Story:
    """Sentences for a start, for each operation, and the question."""

    start: str
    steps: dict[str, tuple[str, ...]]
    question: str


_STORIES = (
    _Story(
        "{a} has {n} marbles.",
        {
            "+": ("{b} gives {a} {n} more.", "{a} finds {n} marbles under the sofa."),
            "-": ("{a} loses {n} of them.", "{a} gives {n} marbles to {b}."),
            "*": ("{a} plays until there are {n} times as many.",),
            "/": ("{a} sorts them into {n} equal bags and keeps one bag.",),
        },
        "How many marbles does {a} have now?",
    ),
    _Story(
        "A bus leaves with {n} passengers.",
        {
            "+": ("At the next stop {n} people get on.", "Then {n} pupils and nobody else get on."),
            "-": ("At the market {n} of them get off.", "{n} passengers change to the train."),
            "*": ("At the station the number grows to {n} times as many.",),
            "/": ("It breaks down, and one of {n} equal groups waits for the repair.",),
        },
        "How many passengers are on the bus at the end?",
    ),
    _Story(
        "{a} bakes {n} loaves of bread.",
        {
            "+": ("{b} brings {n} more loaves.", "Another {n} come out of the oven."),
            "-": ("Customers buy {n} loaves.", "{a} gives {n} of them to a school."),
            "*": ("A large order makes {a} bake until there are {n} times as many.",),
            "/": ("{n} shops share them equally, and {a} looks at the shelf of one shop.",),
        },
        "How many loaves are left there?",
    ),
    _Story(
        "There are {n} dollars in the savings box of {a}.",
        {
            "+": ("{a} earns {n} dollars and puts them in.", "{b} adds a gift of {n} dollars."),
            "-": ("{a} takes out {n} dollars for a book.", "A repair costs {n} of them."),
            "*": ("By summer the sum has become {n} times as large.",),
            "/": ("{a} splits the sum into {n} equal parts and leaves one part in the box.",),
        },
        "How many dollars are in the box in the end?",
    ),
    _Story(
        "{a} counts {n} birds at the lake.",
        {
            "+": ("A flock of {n} lands.", "{b} sees {n} others arrive."),
            "-": ("A dog scares {n} of them away.", "Towards evening {n} birds fly off."),
            "*": ("In spring there are {n} times as many.",),
            "/": ("In autumn one of {n} equal flocks stays.",),
        },
        "How many birds are at the lake after that?",
    ),
)


@dataclass(frozen=True)
class Problem:
    """A number and what is done to it.

    Parameters
    ----------
    start : int
    steps : tuple of (str, int)
        Each one of ``+``, ``-``, ``*``, ``/`` with its operand.

    Examples
    --------
    >>> problem = Problem(7, (("+", 4), ("*", 3)))
    >>> print(problem, "is", problem.solve(modulus=10))
    7 +4 *3 is [1, 3]
    """

    start: int
    steps: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return " ".join([str(self.start), *(f"{sign}{n}" for sign, n in self.steps)])

    def solve(self, modulus: int | None = None) -> list[int]:
        """Return the value after each step; with a modulus, its remainder."""
        values, value = [], self.start
        for sign, n in self.steps:
            value = {"+": value + n, "-": value - n, "*": value * n, "/": value // (n or 1)}[sign]
            value = value % modulus if modulus else value
            values.append(value)
        return values

    def work(self, modulus: int | None = None) -> str:
        """Return the worked answer: a line a step, then ``####`` and the result."""
        values = [self.start, *self.solve(modulus)]
        lines = [
            f"{before} {sign} {n} = {after}"
            for before, (sign, n), after in zip(values, self.steps, values[1:], strict=False)
        ]
        return "\n".join([*lines, f"#### {values[-1]}"])

    @property
    def split(self) -> str:
        """The split that the problem belongs to, by its hash: no seed moves it."""
        tenth = hashlib.sha256(str(self).encode()).digest()[0] % 10
        return next(name for name, tenths in _TENTHS.items() if tenth in tenths)


class Chains(AnswerTask):
    r"""Chains of operations, with a modulus or as stories, at any difficulty.

    A *chain* computes with remainders: ``+``, ``-``, ``*`` with operands 0 to modulus - 1. A
    *story* tells of marbles, passengers or loaves, and no number in it reaches the modulus; it also
    divides, without remainder. The worked answer has a line a step and ends in ``#### result``.

    The splits ``train``, ``validation`` and ``test`` share no problem (start and steps, in whatever
    words), whatever their seeds: a hash of the problem says where it belongs, 8, 1 and 1 tenths.
    No problem comes twice in a split.

    Parameters
    ----------
    operations : int
        Steps of a problem, at least 1.
    modulus : int
        At least 2, for stories at least 10.
    form : {"chain", "story"}
    train, validation, test : int
        Rows of the splits.
    seed : int

    Examples
    --------
    >>> table = Chains(operations=2, test=1).load(None, "test")
    >>> print(table["prompt"][0].as_py() + table["completion"][0].as_py())
    USER:
    Modulo 10: start with 6, then - 6, then + 0.
    <BLANKLINE>
    ASSISTANT:
    6 - 6 = 0
    0 + 0 = 0
    #### 0
    """

    name = "chains"
    marker: str | None = "####"

    def __init__(
        self,
        operations: int = 4,
        modulus: int = 10,
        form: Form = "chain",
        *,
        train: int = 8_000,
        validation: int = 1_000,
        test: int = 1_000,
        seed: int = 0,
    ) -> None:
        if form not in _LEAST:
            raise WhetError(f"form = {form!r}: choose 'chain' or 'story'")
        if operations < 1 or modulus < _LEAST[form]:
            raise WhetError(
                f"operations = {operations}, modulus = {modulus}: give at least 1 and, for the "
                f"form {form!r}, at least {_LEAST[form]}"
            )
        self.operations = operations
        self.modulus = modulus
        self.form = form
        self.rows = {"train": train, "validation": validation, "test": test}
        self.seed = seed

    def answer(self, text: str) -> str | None:
        """Return the number after the last ``####``."""
        return final_number(text)

    def normal(self, answer: str) -> str | None:
        """Return the number of a reference, which may be a worked answer too."""
        return self.answer(answer) or number_in(answer)

    def load(self, folder: Path | None, split: str) -> pa.Table:
        """Return a split; no folder is read. ``problem`` is what :class:`Problem` prints."""
        if split not in self.rows:
            raise WhetError(f"the split {split!r}: chains have {', '.join(self.rows)}")
        random = np.random.default_rng([self.seed, list(self.rows).index(split)])
        problems = self._problems(split, random)
        worked = [problem.work(self._modulus) for problem in problems]
        return demonstrations(
            [as_prompt(self._words(problem, random)) for problem in problems],
            worked,
            [self.answer(text) for text in worked],
            problem=pa.array([str(problem) for problem in problems], pa.string()),
        )

    @property
    def _modulus(self) -> int | None:
        """What a result is the remainder of; stories just stay small."""
        return self.modulus if self.form == "chain" else None

    def _problems(self, split: str, random: np.random.Generator) -> list[Problem]:
        """Draw different problems of a split."""
        found: dict[Problem, None] = {}
        misses = 0
        while len(found) < self.rows[split]:
            problem = self._draw(random)
            if problem.split == split and problem not in found:
                found[problem], misses = None, 0
            else:
                misses += 1
            if misses == _PATIENCE:
                raise WhetError(
                    f"{self.rows[split]:,} problems for the split {split!r}, but only about "
                    f"{len(found):,} exist with {self.operations} operations and modulus "
                    f"{self.modulus}: raise one of them, or ask for fewer"
                )
        return list(found)

    def _draw(self, random: np.random.Generator) -> Problem:
        start = value = int(random.integers(0 if self.form == "chain" else 2, self.modulus))
        steps = []
        for _ in range(self.operations):
            choices = self._choices(value)
            sign = list(choices)[random.integers(len(choices))]
            n = choices[sign][int(random.integers(len(choices[sign])))]
            steps.append((sign, n))
            value = Problem(value, ((sign, n),)).solve(self._modulus)[0]
        return Problem(start, tuple(steps))

    def _choices(self, value: int) -> dict[str, Sequence[int]]:
        """Return the operations that are possible at a value, with their operands."""
        if self.form == "chain":
            return dict.fromkeys("+-*", range(self.modulus))
        choices: dict[str, Sequence[int]] = {
            "+": range(2, self.modulus - value),
            "-": range(2, value + 1),
            "*": [n for n in _FACTORS if 0 < value * n < self.modulus],
            "/": [n for n in _FACTORS if value and value % n == 0],
        }
        return {sign: operands for sign, operands in choices.items() if len(operands)}

    def _words(self, problem: Problem, random: np.random.Generator) -> str:
        """Return the question of a problem."""
        if self.form == "chain":
            steps = "".join(f", then {sign} {n}" for sign, n in problem.steps)
            return f"Modulo {self.modulus}: start with {problem.start}{steps}."
        story = _STORIES[random.integers(len(_STORIES))]
        first, second = random.choice(_NAMES, 2, replace=False)
        sentences = [story.start.format(a=first, n=problem.start)]
        for sign, n in problem.steps:
            phrases = story.steps[sign]
            phrase = phrases[random.integers(len(phrases))]
            sentences.append(phrase.format(a=first, b=second, n=n))
        return " ".join([*sentences, story.question.format(a=first)])
