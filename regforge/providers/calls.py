"""Sends calls to a provider, no more and no faster than allowed, counts them and logs them.

The one place where text and images are paid for. Knows limits, tokens and money, and nothing of
what a call is about or what a reply should be.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from regforge.errors import RegforgeError
from regforge.journal import Journal, calls
from regforge.progress import dollars, duration
from regforge.providers.errors import CallFailed, CostLimitReached, ModelUnusable, UnreachableModel
from regforge.providers.limits import Budget, Clock, Rate, RateLimiter, Reservation, backoff
from regforge.recipe.models import Render
from regforge.recipe.prompts import LanguageModel

_LONGEST_RETRY_AFTER = 600.0
_A_DAY = 86_400.0

_PRICE_KEYS = {
    "prompts.llm": "prompts.llm.input_cost_per_token and prompts.llm.output_cost_per_token",
    "render": "render.cost_per_image",
}


@dataclass(frozen=True)
class Price:
    """US dollars for a token."""

    read: float
    written: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many."""
        return self.read * prompt_tokens + self.written * completion_tokens


class Paid(Protocol):
    """What a reply says of itself: tokens, and US dollars; None where unknown."""

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens read."""

    @property
    def completion_tokens(self) -> int | None:
        """Tokens written."""

    @property
    def cost(self) -> float | None:
        """US dollars."""


Reply = TypeVar("Reply", bound=Paid)


@dataclass
class Usage:
    """What the calls of one run came to.

    Attributes:
        calls: Calls that were sent.
        cached: Answers that were on disk already.
        failed_calls: Calls without a usable reply.
        prompt_tokens: Tokens read, as far as servers said.
        completion_tokens: Tokens written, as far as servers said.
        uncounted_calls: Replies whose server did not say how many tokens they took.
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
        parts = [f"{self.calls} calls"]
        if self.failed_calls:
            parts.append(f"{self.failed_calls} failed")
        if self.cached:
            parts.append(f"{self.cached} from the cache")
        tokens = self.prompt_tokens + self.completion_tokens
        if self.uncounted_calls:
            parts.append(f"{tokens} tokens or more" if tokens else "tokens unknown")
        else:
            parts.append(f"{tokens} tokens")
        parts.append("cost unknown" if self.cost is None else dollars(self.cost))
        return ", ".join(parts)


@dataclass
class Caller:
    """Sends one call after the other, several at a time.

    Attributes:
        section: Section of the recipe that the settings are: `prompts.llm` or `render`.
        event: Name of the calls in the log.
        settings: How many at a time, how fast, and for how much.
        journal: Gets a line for each call; says what earlier sessions of the run spent.
        clock: Where waiting comes from.
        usage: What it has come to.
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
        rate = Rate(settings.rpm, settings.tpm if isinstance(settings, LanguageModel) else None)
        self.limiter = RateLimiter(settings.max_concurrency, rate, self.clock)
        before = () if limit is None else tuple(calls(self.journal.events(), self.event))
        self._unanswered = any("may_cost" in each for each in before)
        self._budget = Budget(limit, _spent(before))
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

        Args:
            work: Sends it.
            model: LiteLLM id.
            entry: What the log says of it.
            tokens: About how many it takes.
            most: US dollars that it can cost at most; None if the price is unknown.

        Raises:
            CallFailed: There is no reply.
            ModelUnusable: There will be none to any other call either, or no money for one.
        """
        reserved = await self._reserve(model, most)
        spent = reserved  # whatever happens, until it is known better
        try:
            reservation = await self.limiter.start(tokens)
            reply = await self._timed(work, {"model": model, **entry}, reservation, most)
            spent = reserved if reply.cost is None else reply.cost
            return reply
        except RegforgeError as error:
            spent = reserved if _may_be_billed(error) else 0.0
            raise
        finally:
            self._budget.settle(reserved, spent)

    def seconds_to_wait(self, model: str, failure: CallFailed, failures: int) -> float:
        """How long to wait before another try; as long as the provider asks, for everybody.

        Args:
            model: LiteLLM id.
            failure: Why there is no reply.
            failures: How often in a row that was.

        Raises:
            UnreachableModel: It is too long to wait.
        """
        if failure.retry_after is None:
            return backoff(failures, self._rng)
        seconds = failure.retry_after
        if seconds > _LONGEST_RETRY_AFTER:
            long = "more than a day" if seconds > _A_DAY else f"the next {duration(seconds)}"
            raise UnreachableModel(
                f"{model} takes no calls for {long}: {failure.message}",
                hint="Run the same command again then.",
            )
        self.limiter.pause(seconds)  # it will refuse the others as well
        return seconds

    async def _timed(
        self,
        work: Callable[[], Awaitable[Reply]],
        entry: Mapping[str, Any],
        reservation: Reservation,
        most: float | None,
    ) -> Reply:
        """Send, and write down what it took."""
        self.usage.calls += 1
        if self._budget.limit is not None:
            # Of a session that is killed, this line is all that the next one knows of the call.
            entry = {**entry, "call": uuid.uuid4().hex}
            self.journal.event(f"{self.event}_sent", **entry, may_cost=most)
        start = time.perf_counter()
        self.under_way.add(task := asyncio.current_task())
        try:
            reply = await work()
        except (RegforgeError, asyncio.CancelledError) as error:
            self.usage.failed_calls += 1
            paid: dict[str, Any] = {"cost": 0.0}
            if _may_be_billed(error):
                paid["may_cost"] = most
                self._unanswered = True
            else:
                reservation.tokens = 0
            seconds = round(time.perf_counter() - start, 3)
            reason = error.args[0] if isinstance(error, RegforgeError) else "Interrupted."
            self.journal.event(self.event, **entry, seconds=seconds, error=reason, **paid)
            raise
        finally:
            self.under_way.discard(task)
        self.answers += 1
        self._count(reply, reservation)
        self.journal.event(
            self.event,
            **entry,
            seconds=round(time.perf_counter() - start, 3),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost=reply.cost,
        )
        return reply

    def _count(self, reply: Paid, reservation: Reservation) -> None:
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

    async def _reserve(self, model: str, most: float | None) -> float:
        """Set aside the most that a call can cost; waits for running ones where that helps."""
        limit = self._budget.limit
        if limit is not None and most is None:
            raise ModelUnusable(
                f"The price of {model} is unknown, so max_cost cannot be kept.",
                hint=f"Set {_PRICE_KEYS[self.section]}, or leave out {self.section}.max_cost.",
            )
        if not await self._budget.reserve(most or 0.0):
            counted = (
                ", with what calls without an answer may have cost" if self._unanswered else ""
            )
            cheaper = "prompts.llm.max_tokens to make calls cheaper"
            raise CostLimitReached(
                f"Stopped before {self.section}.max_cost = {dollars(limit)} was exceeded: "
                f"{dollars(self._budget.spent)} spent{counted}, and the next call may cost "
                f"{dollars(most)}.",
                hint=f"Raise {self.section}.max_cost to go on"
                + (f", or lower {cheaper}." if self.section == "prompts.llm" else "."),
            )
        return most or 0.0


def _may_be_billed(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError) or (
        isinstance(error, CallFailed) and error.may_be_billed
    )


def _spent(calls: Iterable[Mapping[str, Any]]) -> float:
    """US dollars that calls have cost, with those that they may have cost unseen."""
    paid = (entry.get(key) for entry in calls for key in ("cost", "may_cost"))
    return sum(float(each) for each in paid if isinstance(each, int | float) and each > 0)
