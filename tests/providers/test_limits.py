"""Rates, waiting and money, in a time of their own: nothing here waits."""

import asyncio
import heapq
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regforge.providers.calls import (
    LONGEST_WAIT,
    MINUTE,
    SLACK,
    Budget,
    Clock,
    RateLimiter,
    backoff,
)
from regforge.providers.errors import retry_after

gaps = st.floats(0, 20, allow_nan=False)
late = st.floats(0, SLACK, allow_nan=False)


def most_in_a_minute(times: list[float], weights: list[int] | None = None) -> int:
    weights = weights or [1] * len(times)
    return max(
        sum(w for t, w in zip(times, weights, strict=True) if start <= t < start + MINUTE - 1e-6)
        for start in times
    )


class Hand(Clock):
    """A clock that stands where it was put."""

    time = 0.0

    def now(self) -> float:
        return self.time


def limiter(**limits: int) -> tuple[RateLimiter, Hand]:
    clock = Hand()
    return RateLimiter(clock, **limits), clock


@settings(max_examples=60)
@given(st.integers(1, 40), st.lists(st.tuples(gaps, late), min_size=2, max_size=120))
def test_no_minute_has_more_calls_than_allowed(rpm: int, calls: list[tuple[float, float]]) -> None:
    (rate, clock), starts = limiter(rpm=rpm), []
    for gap, lateness in calls:
        clock.time += gap if gap > 10 else 0.0  # a crowd, with a pause now and then
        clock.time += max(0.0, rate.delay()) + lateness
        rate.take()
        starts.append(clock.time)
    assert most_in_a_minute(starts) <= rpm


@settings(max_examples=60)
@given(
    st.integers(50, 500),
    st.lists(st.tuples(gaps, st.integers(1, 120), st.integers(1, 120)), min_size=2, max_size=80),
)
def test_no_minute_has_too_many_tokens(tpm: int, calls: list[tuple[float, int, int]]) -> None:
    (rate, clock), starts, used = limiter(tpm=tpm), [], []
    for gap, guess, actual in calls:
        clock.time += gap if gap > 10 else 0.0
        guess = max(guess, actual)
        clock.time += max(0.0, rate.delay(guess))
        rate.take(guess).tokens = actual
        starts.append(clock.time)
        used.append(actual)
    alone = max(used)  # a call larger than the limit goes by itself
    assert most_in_a_minute(starts, used) <= max(tpm, alone)


def test_calls_are_paced_evenly_and_none_is_lost() -> None:
    rate, clock = limiter(rpm=600)
    for _ in range(200):
        clock.time += max(0.0, rate.delay()) + 0.03  # each wakes a little late
        rate.take()
    assert clock.time == pytest.approx(199 * 0.1, rel=0.01)


def test_a_pause_holds_for_everybody_and_without_limits_nobody_waits() -> None:
    rate, clock = limiter(rpm=60)
    rate.take()
    rate.pause(30.0)
    clock.time = 10.0
    assert rate.delay() == 20.0
    clock.time = 30.0
    rate.take()
    assert rate.delay() > 0.7
    rate, _ = limiter()
    for _ in range(100):
        assert rate.delay(10**9) <= 0
        rate.take(10**9)


def test_a_call_waits_until_enough_tokens_are_a_minute_old_or_given_back() -> None:
    rate, clock = limiter(tpm=100)
    assert rate.delay(5000) <= 0  # larger than the limit: it goes by itself
    first = rate.take(50)
    clock.time = 10.0
    rate.take(50)
    clock.time = 20.0
    assert [rate.delay(tokens) for tokens in (50, 51, 5000)] == [40.0, 50.0, 50.0]
    first.tokens = 0
    assert rate.delay(50) <= 0


# Many at a time


class Schedule(Clock):
    """A clock that jumps to the next moment at which somebody wants to wake up."""

    def __init__(self) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.Event()
        heapq.heappush(self._sleepers, (self.time + seconds, id(wake), wake))
        await wake.wait()

    def run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        async def drive() -> list[Any]:
            tasks = [asyncio.ensure_future(each) for each in work]
            while not all(task.done() for task in tasks):
                for _ in range(20):
                    await asyncio.sleep(0)
                if self._sleepers:
                    self.time, _, wake = heapq.heappop(self._sleepers)
                    wake.set()
            return [task.result() for task in tasks]

        return asyncio.run(drive())


def test_places_are_given_in_order_and_so_many_at_a_time() -> None:
    schedule, order, now_open, most = Schedule(), [], 0, 0

    async def call(number: int, limiter: RateLimiter) -> None:
        nonlocal now_open, most
        async with limiter.place():
            await limiter.start(10)
            order.append(number)
            now_open += 1
            most = max(most, now_open)
            await schedule.sleep(7.0)
            now_open -= 1

    limiter = RateLimiter(schedule, 3, rpm=60)
    schedule.run(*(call(number, limiter) for number in range(30)))
    assert order == list(range(30))
    assert most == 3


def test_whoever_waits_for_tokens_goes_on_as_soon_as_a_reservation_shrinks() -> None:
    schedule = Schedule()
    limiter = RateLimiter(schedule, 5, tpm=100)

    async def first() -> None:
        reservation = await limiter.start(95)
        await schedule.sleep(3.0)
        reservation.tokens = 10

    async def second() -> float:
        await limiter.start(50)
        return schedule.now()

    assert schedule.run(first(), second())[1] == pytest.approx(3.0, abs=1.0)


def test_a_pause_reaches_those_who_sleep_already() -> None:
    schedule = Schedule()
    limiter = RateLimiter(schedule, 5, rpm=30)
    starts = []

    async def call() -> None:
        await limiter.start(0)
        starts.append(schedule.now())

    async def pause() -> None:
        await schedule.sleep(1.0)
        limiter.pause(100.0)

    schedule.run(call(), call(), pause())
    assert starts[0] == 0.0
    assert starts[1] >= 101.0


# Money


def test_money_is_never_overspent_and_a_call_that_may_fit_waits() -> None:
    schedule, budget = Schedule(), Budget(1.0)
    spent = []

    async def call(worst: float, actual: float) -> bool:
        if not await budget.reserve(worst):
            return False
        await schedule.sleep(1.0)
        budget.settle(worst, actual)
        spent.append(actual)
        assert budget.spent <= 1.0
        return True

    went = schedule.run(*(call(0.4, 0.1) for _ in range(20)))
    # 7 calls leave 0.3, which is less than the next one may cost.
    assert went.count(True) == 7
    assert sum(spent) == pytest.approx(0.7)


def test_without_a_limit_money_does_not_matter() -> None:
    async def call() -> bool:
        return await Budget(None).reserve(1e9)

    assert asyncio.run(call())


# Waiting


def test_backoff_grows_with_jitter_and_has_a_cap() -> None:
    rng = random.Random(0)
    highest = [max(backoff(failures, rng) for _ in range(300)) for failures in (1, 2, 3, 20, 5000)]
    assert highest[0] <= 0.5 < highest[1] <= 1.0 < highest[2] <= 2.0
    assert LONGEST_WAIT * 0.9 < highest[3] <= LONGEST_WAIT
    assert highest[4] <= LONGEST_WAIT
    assert min(backoff(3, rng) for _ in range(300)) < 0.2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (None, None),
        ({}, None),
        ({"Retry-After": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read(headers: dict[str, str] | None, seconds: float | None) -> None:
    assert retry_after(headers, now=60.0) == seconds
