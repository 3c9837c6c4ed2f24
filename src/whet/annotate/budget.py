"""What a run may spend, and what it has spent: checked before every call, retries included."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from whet.annotate.prices import Price
from whet.annotate.protocol import Stop


@dataclass
class Spent:
    """What calls have cost so far.

    Attributes
    ----------
    calls : int
        Calls sent, retries included.
    prompt_tokens, completion_tokens : int
        As servers counted them, or the bound of a call that ended without a word.
    cost : float
        In US dollars; 0 where no price is known.

    Examples
    --------
    >>> Spent().calls
    0
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Budget:
    """Admits calls while they fit.

    Parameters
    ----------
    price : Price or None
        What tokens cost; None for a model of one's own, which costs nothing.
    max_cost : float or None
        Most US dollars of this run.
    max_calls : int or None
        Most calls of this run.

    Examples
    --------
    >>> budget = Budget(max_calls=1)
    >>> asyncio.run(budget.admit(100, 10))
    >>> budget.spent.calls
    1
    >>> asyncio.run(budget.admit(100, 10))
    Traceback (most recent call last):
    ...
    whet.annotate.protocol.Stop: --max-calls 1 is reached: the same command again makes as many more
    """

    def __init__(
        self,
        price: Price | None = None,
        max_cost: float | None = None,
        max_calls: int | None = None,
    ) -> None:
        self.price, self.max_cost, self.max_calls = price, max_cost, max_calls
        self.spent = Spent()
        self._reserved, self._in_flight = 0.0, 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._condition = asyncio.Condition()

    @property
    def _settled(self) -> asyncio.Condition:
        """The condition of the running loop: a budget may serve one run after another."""
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._condition = asyncio.get_running_loop(), asyncio.Condition()
        return self._condition

    def bound(self, prompt_tokens: int, completion_tokens: int, share: float = 1.0) -> float:
        """Return what a call of these tokens costs, in US dollars, at a share of the price."""
        if self.price is None:
            return 0.0
        return share * self.price.cost(prompt_tokens, completion_tokens)

    async def admit(
        self, prompt_tokens: int, completion_tokens: int, *, share: float = 1.0, wait: bool = True
    ) -> None:
        """Reserve the most that a call can cost, waiting while calls in flight may give back.

        Parameters
        ----------
        prompt_tokens, completion_tokens : int
            Most tokens of the call.
        share : float
            Of the price, for batches.
        wait : bool
            Whether calls in flight will be settled while this one waits.

        Raises
        ------
        Stop
            If the call would pass a limit even when all calls in flight have been settled.
        """
        most = self.bound(prompt_tokens, completion_tokens, share)
        if self.max_calls is not None and self.spent.calls >= self.max_calls:
            raise self._no_more_calls()
        if self.max_cost is not None:
            async with self._settled:
                while self.spent.cost + self._reserved + most > self.max_cost:
                    if not wait or not self._in_flight:
                        raise Stop(
                            f"--max-cost {self.max_cost:g} would be passed by the next call "
                            f"(spent ${self.spent.cost:.4f}, the call may cost ${most:.4f}): "
                            "the same command again spends up to as much once more",
                            fatal=False,
                        )
                    await self._settled.wait()
                    if self.max_calls is not None and self.spent.calls >= self.max_calls:
                        raise self._no_more_calls()
        self._reserved += most
        self._in_flight += 1
        self.spent.calls += 1

    def _no_more_calls(self) -> Stop:
        return Stop(
            f"--max-calls {self.max_calls} is reached: the same command again makes as many more",
            fatal=False,
        )

    async def settle(
        self,
        bound: tuple[int, int],
        usage: tuple[int, int] | None,
        *,
        free: bool = False,
        share: float = 1.0,
    ) -> None:
        """Book what an admitted call has used.

        Parameters
        ----------
        bound : (int, int)
            What was admitted.
        usage : (int, int) or None
            Prompt and completion tokens as the server counted them; None where it said nothing,
            which counts as the bound: a provider may charge for a reply that never arrived.
        free : bool
            The server turned the call down, so that it costs nothing.
        share : float
            As admitted.
        """
        self._in_flight -= 1
        # With no call in flight nothing is reserved, whatever rounding has left.
        self._reserved = self._reserved - self.bound(*bound, share) if self._in_flight else 0.0
        if not free:
            used = bound if usage is None else (max(0, usage[0]), max(0, usage[1]))
            self.spent.prompt_tokens += used[0]
            self.spent.completion_tokens += used[1]
            self.spent.cost += self.bound(*used, share)
        if self.max_cost is not None:
            async with self._settled:
                self._settled.notify_all()
