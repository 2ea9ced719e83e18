"""How fast and for how much a provider may be asked: calls and tokens a minute, waiting, money.

Calls that come too fast wait in a queue, in order; none is rejected. Knows no provider and no
language model. Time comes from a `Clock`, so that tests need not wait.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

MINUTE = 60.0
SLACK = 0.25
"""How far behind its schedule, in seconds, a late call may start without delaying the next ones."""

LONGEST_NAP = 1.0

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0


class Clock(Protocol):
    """Seconds from some moment, and waiting for them to pass."""

    def now(self) -> float:
        """Seconds, never going back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The clock on the wall."""

    def now(self) -> float:
        """Seconds, never going back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass
class Reservation:
    """Tokens that a call uses up; corrected when their number is known."""

    time: float
    tokens: int


class Rate:
    """When the next call may start. Knows no clock: the caller says what time it is.

    Calls are paced evenly. In any minute at most `rpm` start, also if some start late (up to
    `SLACK`), and together they use at most `tpm` tokens, save for a call that is larger than that
    by itself: it has a minute of its own.

    Args:
        rpm: Calls a minute, or None.
        tpm: Tokens a minute, or None.
    """

    def __init__(self, rpm: int | None = None, tpm: int | None = None) -> None:
        # Two calls that are `rpm` calls apart may come SLACK nearer than planned.
        self._interval = (MINUTE + SLACK) / rpm if rpm else 0.0
        self._tpm = tpm
        self._next = float("-inf")
        self._reservations: deque[Reservation] = deque()

    def delay(self, now: float, tokens: int = 0) -> float:
        """Seconds until a call of so many tokens may start; 0 or less means now."""
        return max(self._next - now, self._delay_by_tokens(now, tokens))

    def take(self, now: float, tokens: int = 0) -> Reservation:
        """A call of so many tokens starts."""
        self._next = max(self._next, now - SLACK) + self._interval
        reservation = Reservation(now, tokens)
        if self._tpm is not None:
            self._reservations.append(reservation)
        return reservation

    def pause(self, until: float) -> None:
        """Nothing starts before."""
        self._next = max(self._next, until)

    def _delay_by_tokens(self, now: float, tokens: int) -> float:
        while self._reservations and self._reservations[0].time + MINUTE <= now:
            self._reservations.popleft()
        if self._tpm is None or not self._reservations:
            return 0.0
        excess = tokens + sum(each.tokens for each in self._reservations) - self._tpm
        free_at = now
        for each in self._reservations:
            if excess <= 0:
                break
            excess -= each.tokens
            free_at = each.time + MINUTE
        return free_at - now


class RateLimiter:
    """Lets calls start: so many at a time, at a certain rate, first come first served.

    Args:
        concurrency: Most calls at the same time.
        rate: When one may start.
        clock: Where time comes from.
    """

    def __init__(self, concurrency: int, rate: Rate, clock: Clock) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._queue = asyncio.Lock()
        self._rate = rate
        self._clock = clock

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places; waits until one is free."""
        async with self._places:
            yield

    async def start(self, tokens: int) -> Reservation:
        """Wait until a call of so many tokens may start; correct the tokens when it is over."""
        async with self._queue:
            # While this one sleeps, a pause may begin, and a reservation may turn out smaller.
            while (delay := self._rate.delay(self._clock.now(), tokens)) > 0:
                await self._clock.sleep(min(delay, LONGEST_NAP))
            return self._rate.take(self._clock.now(), tokens)

    def pause(self, seconds: float) -> None:
        """Nobody starts for so long, because the provider said so."""
        self._rate.pause(self._clock.now() + seconds)


class Budget:
    """Money that must not be overspent, with several calls at the same time.

    Args:
        limit: US dollars, or None for as much as needed.
        spent: US dollars that earlier sessions spent of it.
    """

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self.limit = limit
        self.spent = spent
        self._reserved: list[float] = []
        self._settled = asyncio.Event()

    async def reserve(self, amount: float) -> bool:
        """Set aside what a call costs at most; waits for running calls if it may fit after them.

        Returns:
            False if it does not fit, with nothing running any more.
        """
        # Three times 0.1 is a little more than 0.3.
        limit = None if self.limit is None else self.limit * (1 + 1e-9)
        while limit is not None and self.spent + sum(self._reserved) + amount > limit:
            if not self._reserved:
                return False
            self._settled.clear()
            await self._settled.wait()
        self._reserved.append(amount)
        return True

    def settle(self, reserved: float, actual: float) -> None:
        """A call is over: instead of what was set aside for it, this was spent."""
        self._reserved.remove(reserved)
        self.spent += actual
        self._settled.set()


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: exponential, capped, with full jitter."""
    return rng.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 30)))


def retry_after(headers: Mapping[str, str] | None, now: float | None = None) -> float | None:
    """Seconds that a reply's Retry-After header asks to wait, or None.

    Args:
        headers: Of the reply; names in any case.
        now: Seconds since 1970, for headers that give a date.
    """
    named = {name.lower(): value for name, value in (headers or {}).items()}
    now = time.time() if now is None else now
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(named[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            # Some servers say when, in seconds since 1970, and not for how long.
            return max(0.0, seconds - now if seconds > now / 2 else seconds)
    try:
        date = email.utils.parsedate_to_datetime(named["retry-after"])
        return max(0.0, date.timestamp() - now)
    except (KeyError, ValueError, OverflowError):
        return None
