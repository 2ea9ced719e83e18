"""Sends calls to a language model, no more and no faster than allowed, and counts them.

Knows limits, tokens and money, and nothing of what a call is about or what a reply should be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from regforge.errors import RegforgeError
from regforge.journal import Journal
from regforge.prompts.limits import Claim, Clock, Purse, Rate, Turns
from regforge.prompts.questions import (
    Call,
    CallFailed,
    CostLimitReached,
    ModelUnusable,
    Provider,
    Received,
    Usage,
    dollars,
)
from regforge.prompts.replies import Message
from regforge.recipe.prompts import LanguageModel

_TOKENS_OF_AN_IMAGE = 2000
_FIRST_REPLY_GUESS = 1000


@dataclass
class _Sizes:
    """How large the calls to one model turned out, to guess the next one."""

    scale: float = 1.0
    longest_reply: int = _FIRST_REPLY_GUESS

    def learn(self, estimate: int, received: Received) -> None:
        if received.prompt_tokens:
            self.scale = max(self.scale, received.prompt_tokens / estimate)
        if received.completion_tokens:
            self.longest_reply = max(self.longest_reply, received.completion_tokens)


@dataclass
class Caller:
    """Sends one call after the other, several at a time.

    Attributes:
        settings: How fast, and for how much.
        provider: Sends them.
        journal: Gets a line for each.
        clock: Where waiting comes from.
        usage: What it has come to.
        answers: How many calls got a reply, good or bad.
        under_way: The tasks that wait for a reply.
    """

    settings: LanguageModel
    provider: Provider
    journal: Journal
    clock: Clock
    usage: Usage = field(default_factory=Usage)
    answers: int = 0

    def __post_init__(self) -> None:
        rate = Rate(self.settings.rpm, self.settings.tpm)
        self._turns = Turns(self.settings.max_concurrency, rate, self.clock)
        self._purse = Purse(self.settings.max_cost)
        self._sizes: dict[str, _Sizes] = {}
        self.under_way: set[asyncio.Task[Any] | None] = set()

    def pause(self, seconds: float) -> None:
        """Start no call for so long, because the provider said so."""
        self._turns.pause(seconds)

    def place(self) -> AbstractAsyncContextManager[None]:
        """One of the places for questions at the same time; waits until one is free."""
        return self._turns.place()

    async def send(self, call: Call, item: str, attempt: int) -> Received:
        """Send from a place, as soon as rate and money allow.

        Args:
            call: What to send.
            item: What it is about, for the log.
            attempt: Which try it is, from 1.

        Raises:
            CallFailed: There is no reply.
            ModelUnusable: There will be none to any other call either, or no money for one.
        """
        estimate = estimate_tokens(call.messages, call.response_format)
        sizes = self._sizes.setdefault(call.model, _Sizes())
        reading = round(estimate * sizes.scale)
        reserved = await self._reserve(call.model, reading)
        spent = reserved  # whatever happens, until it is known better
        try:
            writing = min(sizes.longest_reply, self.settings.max_tokens)
            claim = await self._turns.start(reading + writing)
            received = await self._timed(call, item, attempt, claim)
            sizes.learn(estimate, received)
            spent = reserved if received.cost is None else received.cost
            return received
        except RegforgeError as error:
            spent = reserved if _may_be_billed(error) else 0.0
            raise
        finally:
            self._purse.settle(reserved, spent)

    async def _timed(self, call: Call, item: str, attempt: int, claim: Claim) -> Received:
        """Send, and write down what it took."""
        self.usage.calls += 1
        entry: dict[str, Any] = {"item": item, "model": call.model}
        entry |= {"attempt": attempt, "cached": False}
        start = time.perf_counter()
        self.under_way.add(task := asyncio.current_task())
        try:
            received = await self.provider.send(call)
        except RegforgeError as error:
            self.usage.failed_calls += 1
            seconds = round(time.perf_counter() - start, 3)
            self.journal.event("llm_call", **entry, seconds=seconds, error=error.args[0])
            if not _may_be_billed(error):
                claim.tokens = 0
            raise
        finally:
            self.under_way.discard(task)
        self.answers += 1
        self._count(received, claim)
        self.journal.event(
            "llm_call",
            **entry,
            seconds=round(time.perf_counter() - start, 3),
            prompt_tokens=received.prompt_tokens,
            completion_tokens=received.completion_tokens,
            cost=received.cost,
        )
        return received

    def _count(self, received: Received, claim: Claim) -> None:
        usage = self.usage
        if received.prompt_tokens is None or received.completion_tokens is None:
            usage.uncounted_calls += 1
        else:
            usage.prompt_tokens += received.prompt_tokens
            usage.completion_tokens += received.completion_tokens
            claim.tokens = received.prompt_tokens + received.completion_tokens
            if received.cost is None:
                usage.unpriced_tokens += claim.tokens
        if usage.cost is not None:
            usage.cost = None if received.cost is None else usage.cost + received.cost

    async def _reserve(self, model: str, prompt_tokens: int) -> float:
        """Set aside the most that a call can cost; waits for running ones where that helps."""
        limit = self.settings.max_cost
        if limit is None:
            worst = 0.0
        else:
            price = self.provider.price(model)
            if price is None:
                raise ModelUnusable(
                    f"The price of {model} is unknown, so max_cost cannot be kept.",
                    hint="Set prompts.llm.input_cost_per_token and "
                    "prompts.llm.output_cost_per_token, or leave out prompts.llm.max_cost.",
                )
            worst = price.of(prompt_tokens, self.settings.max_tokens)
        if not await self._purse.reserve(worst):
            raise CostLimitReached(
                f"Stopped before prompts.llm.max_cost = {dollars(limit or 0)} was exceeded: "
                f"{dollars(self._purse.spent)} spent, and the next call may cost {dollars(worst)}.",
                hint="Raise prompts.llm.max_cost to go on, or lower prompts.llm.max_tokens to make "
                "calls cheaper.",
            )
        return worst


def _may_be_billed(error: RegforgeError) -> bool:
    return isinstance(error, CallFailed) and error.may_be_billed


def estimate_tokens(messages: Sequence[Message], shape: Mapping[str, Any] | None) -> int:
    """About how many tokens a prompt has, rather too many: 3 bytes of UTF-8 each."""
    total = _bytes(str(shape or "")) / 3
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        for part in parts:
            text = part.get("text")
            total += _TOKENS_OF_AN_IMAGE if text is None else _bytes(text) / 3
        total += 10
    return int(total) + 10


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
