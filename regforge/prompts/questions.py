"""What is asked of a language model, what comes back, and what can go wrong on the way.

Plain types that the modules of the language model client share; they know no provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from regforge.errors import RegforgeError
from regforge.prompts.replies import Message, Schema


class ModelUnusable(RegforgeError):
    """The language model cannot be used at all; asking it anything else is pointless."""


class UnreachableModel(ModelUnusable):
    """Nobody answers."""


class WrongKey(ModelUnusable):
    """There is no API key, or the provider does not take it."""


class UnknownModel(ModelUnusable):
    """The provider has no such model, or nobody knows the provider."""


class OutOfCredit(ModelUnusable):
    """The provider's account is empty."""


class CostLimitReached(ModelUnusable):
    """The next call could cost more than is left of `max_cost`."""


Failure = Literal["busy", "server", "timeout", "lost", "unreachable", "form", "refused"]


class CallFailed(RegforgeError):
    """One call got no reply.

    Attributes:
        kind: `busy`, `server`, `timeout`, `lost` (connection broke) and `unreachable` may pass;
            `form`: the provider does not take this response format; `refused`: anything else.
        retry_after: Seconds that the provider asks to wait, or None.
        raw: All that the provider said.
    """

    def __init__(
        self,
        kind: Failure,
        message: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        raw: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after = retry_after
        self.raw = raw

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help."""
        return self.kind not in ("form", "refused")

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may have worked on it."""
        return self.kind in ("timeout", "lost")


@dataclass(frozen=True)
class Question:
    """Something to ask of a language model.

    Attributes:
        item: What it is about, for the log and the ledger: "slot color, call 1".
        messages: The chat; contents may be lists with `image_url` parts, for vision models.
        reply: What the reply has to validate against.
        schema: JSON schema to send instead of the reply's own; keys beginning with `x-` are for
            the embedded model and are not sent to others.
        problems: Further checks of the validated reply: sentences about what is wrong with it.
        seed: For the model's sampling.
        model: LiteLLM id, instead of the settings' model.
    """

    item: str
    messages: Sequence[Message]
    reply: type[BaseModel]
    schema: Schema | None = None
    problems: Callable[[Any], list[str]] | None = None
    seed: int | None = None
    model: str | None = None


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


@dataclass(frozen=True)
class Call:
    """What goes to the provider, once."""

    model: str
    messages: Sequence[Message]
    response_format: Mapping[str, Any] | None
    seed: int | None


@dataclass(frozen=True)
class Received:
    """What came back; tokens and cost (US dollars) are None where unknown."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None


@dataclass(frozen=True)
class Price:
    """US dollars for a token."""

    read: float
    written: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many."""
        return self.read * prompt_tokens + self.written * completion_tokens


class Provider(Protocol):
    """What this module needs of whoever knows LiteLLM."""

    async def send(self, call: Call) -> Received:
        """Send one call; raises CallFailed, or a ModelUnusable if nothing else will help."""

    def price(self, model: str) -> Price | None:
        """What its tokens cost, or None if unknown."""

    def chooses_only(self, model: str) -> bool:
        """Whether it is the embedded model, which takes schemas as they are."""


def dollars(amount: float) -> str:
    """Such as `$12.30` and `$0.000045`."""
    if amount >= 0.1 or amount == 0:
        return f"${amount:.2f}"
    return f"${amount:.6f}".rstrip("0")
