"""The budget: no order of calls, however many at once, passes a limit."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.annotate.budget import Budget
from whet.annotate.prices import Price
from whet.annotate.protocol import Stop

PRICE = Price(input=1e6, output=1e6)  # a dollar a token, so that sums are exact


async def call(budget, bound, used, *, free=False, naps=1, seen=None):
    """Admit a call, let others run, and settle it; return whether it was admitted."""
    try:
        await budget.admit(*bound)
    except Stop as stop:
        if stop.fatal:
            raise
        return False
    for _ in range(naps):
        await asyncio.sleep(0)
    await budget.settle(bound, used, free=free)
    if seen is not None:
        seen()
    return True


def run(budget, calls, at_once):
    """Make calls with so many at a time; return what was admitted."""

    async def work():
        queue, admitted = iter(calls), []

        async def worker():
            for bound, used, free, naps in queue:
                admitted.append(await call(budget, bound, used, free=free, naps=naps))

        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(at_once))), 10)
        return admitted

    return asyncio.run(work())


def test_no_limit_admits_all():
    budget = Budget()
    assert run(budget, [((10, 10), (1, 1), False, 1)] * 50, 8) == [True] * 50
    assert (budget.spent.calls, budget.spent.cost) == (50, 0.0)
    assert (budget.spent.prompt_tokens, budget.spent.completion_tokens) == (50, 50)


@pytest.mark.parametrize("at_once", [1, 4, 64])
@pytest.mark.parametrize("limit", [0, 1, 7])
def test_calls_are_counted_when_they_are_admitted(limit, at_once):
    budget = Budget(max_calls=limit)
    admitted = run(budget, [((1, 1), None, False, 3)] * 40, at_once)
    assert sum(admitted) == budget.spent.calls == limit


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_cost_stops_before_the_call_that_would_pass_it(at_once):
    """Each call reserves 10 and uses 3: the last one must find 10 free."""
    budget = Budget(PRICE, max_cost=50)
    admitted = run(budget, [((8, 2), (2, 1), False, 2)] * 100, at_once)
    assert budget.spent.cost == 3 * sum(admitted)
    assert 40 < budget.spent.cost <= 50


def test_call_that_could_cost_exactly_the_rest_is_admitted():
    budget = Budget(PRICE, max_cost=30)
    assert run(budget, [((5, 5), (5, 5), False, 1)] * 4, 4).count(True) == 3
    assert budget.spent.cost == 30


def test_call_without_a_word_counts_at_its_bound():
    budget = Budget(PRICE, max_cost=100)
    run(budget, [((7, 3), None, False, 1)], 1)
    assert budget.spent.cost == 10
    assert (budget.spent.prompt_tokens, budget.spent.completion_tokens) == (7, 3)


def test_call_that_was_turned_down_costs_nothing_but_counts():
    budget = Budget(PRICE, max_cost=10, max_calls=3)
    assert run(budget, [((5, 5), None, True, 1)] * 4, 2).count(True) == 3
    assert (budget.spent.calls, budget.spent.cost) == (3, 0.0)


def test_cap_is_said_with_the_flag_and_the_value():
    for budget, words in (
        (Budget(max_calls=0), "--max-calls 0 is reached"),
        (Budget(PRICE, max_cost=0.5), "--max-cost 0.5 would be passed"),
    ):
        with pytest.raises(Stop, match=words) as raised:
            asyncio.run(budget.admit(1, 1))
        assert "the same command again" in raised.value.reason


def test_budget_can_be_used_in_several_loops():
    budget = Budget(PRICE, max_cost=1000)
    for _ in range(3):
        run(budget, [((80, 20), (1, 1), False, 3)] * 40, 32)
    assert budget.spent.calls == 120


def test_both_limits_hold_together():
    """Calls that wait for money must look at the number of calls once more."""
    for limit in range(1, 30):
        budget = Budget(PRICE, max_cost=40, max_calls=limit)
        calls = [((5, 5), (0, i % 3), False, i % 4) for i in range(200)]
        assert sum(run(budget, calls, 16)) <= limit
        assert budget.spent.calls <= limit


def test_newcomer_does_not_slip_past_the_number_of_calls():
    """It found a call left, had to wait for its turn, and meanwhile the call was taken."""

    async def work():
        budget = Budget(PRICE, max_cost=10, max_calls=3)
        await budget.admit(5, 5)
        waiting = [asyncio.create_task(call(budget, (5, 0), (0, 0), naps=9)) for _ in range(2)]
        await asyncio.sleep(0)
        await budget.settle((5, 5), (0, 0))
        await asyncio.sleep(0)
        late = [asyncio.create_task(call(budget, (0, 0), (0, 0), naps=9)) for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*waiting, *late), 5)
        return budget.spent.calls

    assert asyncio.run(work()) == 3


@pytest.mark.parametrize("seed", range(6))
def test_rounding_leaves_nothing_reserved_for_ever(seed):
    """After any number of calls of any size, a call that does not fit is told so at once."""
    budget = Budget(Price(input=2.5, output=10), max_cost=1e5)
    rng = random.Random(seed)

    async def work():
        under_way = []
        for _ in range(4000):
            size = rng.randint(10**6, 10**7), rng.randint(1, 10**6)
            await budget.admit(*size)
            under_way.append(size)
            if len(under_way) > 64:
                await budget.settle(under_way.pop(rng.randrange(64)), (1, 1))
        for size in under_way:
            await budget.settle(size, (1, 1))
        with pytest.raises(Stop):
            await asyncio.wait_for(budget.admit(10**12, 0), 1)

    asyncio.run(work())


def test_usage_below_nothing_gives_nothing_back():
    budget = Budget(PRICE, max_cost=20)
    run(budget, [((5, 5), (-1000, -1000), False, 1)] * 10, 1)
    assert budget.spent.cost >= 0


def test_call_that_was_cancelled_gives_its_reserve_back_or_is_booked():
    """Ctrl-C in a notebook: the same budget must not wait for calls that are no more."""
    from llm_server import LLMServer, Say
    from whet.annotate.openai import OpenAIBackend
    from whet.annotate.protocol import Request

    request = Request((("user", "hello"),), max_tokens=8)
    with LLMServer(lambda made: Say(delay=5) if made.number == 1 else None) as server:
        budget = Budget(Price(100, 100), max_cost=0.02)
        backend = OpenAIBackend("m", base_url=server.url, key_env=None, budget=budget)

        async def interrupted():
            await backend.complete([request])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(backend.complete([request]), 0.2)
            await backend.close()

        asyncio.run(interrupted())

        async def again():
            for _ in range(100):
                await asyncio.wait_for(backend.complete([request]), 3)

        with pytest.raises(Stop):
            asyncio.run(again())
    assert budget.spent.cost <= 0.02


CALLS = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 60), st.integers(0, 60)),  # the bound
        st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1))),  # shares of it used
        st.booleans(),  # free
        st.integers(0, 5),  # how long it takes
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    calls=CALLS,
    max_cost=st.one_of(st.none(), st.integers(0, 400)),
    max_calls=st.one_of(st.none(), st.integers(0, 40)),
    at_once=st.sampled_from([1, 2, 7, 64]),
    price=st.sampled_from([PRICE, Price(3e5, 7e5), Price(0.1e6, 0.0), Price(0.0, 0.0)]),
)
def test_no_limit_is_ever_passed(calls, max_cost, max_calls, at_once, price):
    """Nor is a call turned away that would fit when nothing else is under way."""
    budget = Budget(price, max_cost, max_calls)
    made = [
        (bound, None if used is None else tuple(int(b * s) for b, s in
                                                zip(bound, used, strict=True)), free, naps)
        for bound, used, free, naps in calls
    ]  # fmt: skip
    spent = []

    async def work():
        queue = iter(made)

        async def worker():
            for bound, used, free, naps in queue:
                before = budget.spent.cost
                if not await call(
                    budget, bound, used, free=free, naps=naps,
                    seen=lambda: spent.append((budget.spent.cost, budget.spent.calls)),
                ):  # fmt: skip
                    room = max_cost is None or before + price.cost(*bound) <= max_cost
                    assert not room or max_calls is not None or at_once > 1

        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(at_once))), 20)

    asyncio.run(work())
    for cost, count in spent:
        assert max_cost is None or cost <= max_cost + 1e-9
        assert max_calls is None or count <= max_calls
    assert budget._reserved == pytest.approx(0.0, abs=1e-9)
    assert budget.spent.calls <= len(calls)
