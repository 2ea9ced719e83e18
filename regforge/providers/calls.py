"""Sends calls to a provider, no more and no faster than allowed, counts them and logs them.

The one place where text and images are paid for. Calls that come too fast wait in a queue, in
order; none is rejected. Knows nothing of what a call is about.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from regforge.errors import RegforgeError
from regforge.journal import Journal, calls
from regforge.providers.errors import CallFailed, CostLimitReached, ModelUnusable, UnreachableModel
from regforge.recipe.rendering import Render
from regforge.recipe.sections import LanguageModel
from regforge.words import dollars, duration

MINUTE = 60.0
SLACK = 0.25
"""How far behind its schedule, in seconds, a late call may start without delaying the next ones."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
_LONGEST_NAP = 1.0
_LONGEST_RETRY_AFTER = 600.0
_A_DAY = 86_400.0

_COUNTED = ("prompt_tokens", "completion_tokens", "cost")
_PRICE_KEYS = {
    "prompts.llm": "prompts.llm.input_cost_per_token and prompts.llm.output_cost_per_token",
    "render": "render.cost_per_image",
}


class Clock:
    """Time, which tests replace by one that flies."""

    def now(self) -> float:
        """Seconds from some moment, never going back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass
class Reservation:
    """Tokens that a call uses up; corrected when their number is known."""

    time: float
    tokens: int


class RateLimiter:
    """Lets calls start: so many at a time, at a certain rate, first come first served.

    Calls are paced evenly. In any minute at most `rpm` start, also if some start late (up to
    `SLACK`), and together they use at most `tpm` tokens, save for a call that is larger than that
    by itself: it has a minute of its own.
    """

    def __init__(
        self,
        clock: Clock,
        concurrency: int = 1,
        rpm: int | None = None,
        tpm: int | None = None,
    ) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._queue = asyncio.Lock()
        self._clock = clock
        # Two calls that are `rpm` calls apart may come SLACK nearer than planned.
        self._interval = (MINUTE + SLACK) / rpm if rpm else 0.0
        self._tpm = tpm
        self._next = float("-inf")
        self._reservations: deque[Reservation] = deque()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places; waits until one is free."""
        async with self._places:
            yield

    async def start(self, tokens: int) -> Reservation:
        """Wait until a call of so many tokens may start; correct the tokens when it is over."""
        async with self._queue:
            # While this one sleeps, a pause may begin, and a reservation may turn out smaller.
            while (delay := self.delay(tokens)) > 0:
                await self._clock.sleep(min(delay, _LONGEST_NAP))
            return self.take(tokens)

    def pause(self, seconds: float) -> None:
        """Let nothing start for so long."""
        self._next = max(self._next, self._clock.now() + seconds)

    def take(self, tokens: int = 0) -> Reservation:
        """Count a call of so many tokens that starts now."""
        now = self._clock.now()
        self._next = max(self._next, now - SLACK) + self._interval
        reservation = Reservation(now, tokens)
        if self._tpm is not None:
            self._reservations.append(reservation)
        return reservation

    def delay(self, tokens: int = 0) -> float:
        """Seconds until a call of so many tokens may start; 0 or less means now."""
        now = self._clock.now()
        while self._reservations and self._reservations[0].time + MINUTE <= now:
            self._reservations.popleft()
        free_at = now
        if self._tpm is not None:
            excess = tokens + sum(each.tokens for each in self._reservations) - self._tpm
            for each in self._reservations:
                if excess <= 0:
                    break
                excess -= each.tokens
                free_at = each.time + MINUTE
        return max(self._next, free_at) - now


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


@dataclass
class Usage:
    """What the calls of one run came to.

    Attributes:
        cached: Answers that were on disk already.
        failed_calls: Calls without a usable reply.
        prompt_tokens: As far as servers counted them; `completion_tokens` likewise.
        uncounted_calls: Replies whose server did not count tokens.
        cost: US dollars for the replies; None if the price of any is unknown.
        unpriced_tokens: Tokens whose price is unknown.
    """

    calls: int = 0
    cached: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted_calls: int = 0
    cost: float | None = 0.0
    unpriced_tokens: int = 0

    def __str__(self) -> str:
        """Such as `12 calls, 1 failed, 3 from the cache, 4210 tokens, cost unknown`."""
        tokens = self.prompt_tokens + self.completion_tokens
        counted = f"{tokens} tokens"
        if self.uncounted_calls:
            counted = f"{tokens} tokens or more" if tokens else "tokens unknown"
        parts = (
            f"{self.calls} calls",
            f"{self.failed_calls} failed" if self.failed_calls else "",
            f"{self.cached} from the cache" if self.cached else "",
            counted,
            "cost unknown" if self.cost is None else dollars(self.cost),
        )
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Reply:
    """What came back; tokens and cost (US dollars) are None where unknown."""

    content: Any
    cost: float | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None


@dataclass
class Caller:
    """Sends one call after the other, several at a time.

    Attributes:
        section: Section of the recipe that the settings are: `prompts.llm` or `render`.
        event: Name of the calls in the log.
        journal: Gets a line for each call; tells what earlier sessions of the run spent.
        answers: How many calls got a reply, good or bad.
        under_way: The tasks that wait for a reply.
    """

    section: str
    event: str
    settings: LanguageModel | Render
    journal: Journal
    clock: Clock
    usage: Usage = field(default_factory=Usage)
    answers: int = 0

    def __post_init__(self) -> None:
        settings, limit = self.settings, self.settings.max_cost
        tpm = settings.tpm if isinstance(settings, LanguageModel) else None
        self.limiter = RateLimiter(self.clock, settings.max_concurrency, settings.rpm, tpm)
        before = () if limit is None else tuple(calls(self.journal.events(), self.event))
        paid = (entry.get(key) for entry in before for key in ("cost", "may_cost"))
        spent = sum(float(each) for each in paid if isinstance(each, int | float) and each > 0)
        self._unanswered = any("may_cost" in each for each in before)
        self._budget = Budget(limit, spent)
        self._rng = random.Random()  # only for how long to wait
        self.under_way: set[asyncio.Task[Any] | None] = set()

    async def send(
        self,
        work: Callable[[], Awaitable[Reply]],
        *,
        model: str,
        entry: Mapping[str, Any],
        tokens: int = 0,
        most: float | None = None,
    ) -> Reply:
        """Send a call, as soon as rate and money allow.

        `entry` is more of its line in the log; `tokens` is about how many it takes, and `most` how
        many US dollars it can cost at most, None if the price is unknown.

        Raises:
            CallFailed: There is no reply.
            ModelUnusable: There will be none to any other call either, or no money for one.
        """
        await self._reserve(model, most)
        reserved = spent = most or 0.0  # whatever happens, until it is known better
        line: dict[str, Any] = {"model": model, **entry}
        try:
            reservation = await self.limiter.start(tokens)
            self.usage.calls += 1
            if self._budget.limit is not None:
                # Of a session that is killed, this is all that the next one knows of the call.
                line["call"] = uuid.uuid4().hex
                self.journal.event(f"{self.event}_sent", **line, may_cost=most)
            start = time.perf_counter()
            self.under_way.add(task := asyncio.current_task())
            try:
                reply = await work()
            except (RegforgeError, asyncio.CancelledError) as error:
                self.usage.failed_calls += 1
                line |= {"cost": 0.0}
                if isinstance(error, asyncio.CancelledError) or (
                    isinstance(error, CallFailed) and error.may_be_billed
                ):
                    line["may_cost"] = most
                    self._unanswered = True
                else:
                    spent = reservation.tokens = 0
                line["error"] = str(getattr(error, "message", "Interrupted."))
                self._log(line, start)
                raise
            finally:
                self.under_way.discard(task)
            spent = reserved if reply.cost is None else reply.cost
            self._count(reply, reservation)
            line |= {name: getattr(reply, name) for name in _COUNTED}
            self._log(line, start)
            return reply
        finally:
            self._budget.settle(reserved, spent)

    async def _reserve(self, model: str, most: float | None) -> None:
        """Set aside the most that a call can cost; waits for running ones where that helps."""
        if self._budget.limit is not None and most is None:
            raise ModelUnusable(
                f"The price of {model} is unknown, so max_cost cannot be kept.",
                hint=f"Set {_PRICE_KEYS[self.section]}, or leave out {self.section}.max_cost.",
            )
        if await self._budget.reserve(most or 0.0):
            return
        counted = ", with what calls without an answer may have cost" if self._unanswered else ""
        text = self.section == "prompts.llm"
        cheaper = ", or lower prompts.llm.max_tokens to make calls cheaper" if text else ""
        raise CostLimitReached(
            f"Stopped before {self.section}.max_cost = {dollars(self._budget.limit)} was exceeded: "
            f"{dollars(self._budget.spent)} spent{counted}, and the next call may cost "
            f"{dollars(most)}.",
            hint=f"Raise {self.section}.max_cost to go on{cheaper}.",
        )

    def _log(self, line: Mapping[str, Any], start: float) -> None:
        seconds = round(time.perf_counter() - start, 3)
        self.journal.event(self.event, **line, seconds=seconds)

    def _count(self, reply: Reply, reservation: Reservation) -> None:
        self.answers += 1
        usage = self.usage
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            usage.uncounted_calls += 1
        else:
            usage.prompt_tokens += reply.prompt_tokens
            usage.completion_tokens += reply.completion_tokens
            reservation.tokens = reply.prompt_tokens + reply.completion_tokens
            if reply.cost is None:
                usage.unpriced_tokens += reservation.tokens
        if usage.cost is not None:
            usage.cost = None if reply.cost is None else usage.cost + reply.cost

    def seconds_to_wait(self, model: str, failure: CallFailed, failures: int) -> float:
        """How long to wait before another try, after so many failures in a row.

        A wait that the provider asks for holds for all calls.

        Raises:
            UnreachableModel: It is too long to wait.
        """
        seconds = failure.retry_after
        if seconds is None:
            return backoff(failures, self._rng)
        if seconds > _LONGEST_RETRY_AFTER:
            long = "more than a day" if seconds > _A_DAY else f"the next {duration(seconds)}"
            raise UnreachableModel(
                f"{model} takes no calls for {long}: {failure.message}",
                hint="Run the same command again then.",
            )
        self.limiter.pause(seconds)  # it will refuse the others as well
        return seconds


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: exponential, capped, with full jitter."""
    return rng.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 30)))


def server_arguments(section: str, model: str, base: str | None) -> dict[str, Any]:
    """The arguments that name a server to LiteLLM.

    Raises:
        UnreachableModel: The address is none.
    """
    if base is None:
        return {}
    if not base.startswith(("http://", "https://")):
        raise UnreachableModel(
            f"{section}.api_base is {base!r}, which is no URL.",
            hint="It looks like http://127.0.0.1:8000/v1.",
        )
    arguments = {"api_base": base}
    if model.startswith("openai/") and not os.environ.get("OPENAI_API_KEY"):
        arguments["api_key"] = "none"  # servers on this machine rarely want one
    return arguments
