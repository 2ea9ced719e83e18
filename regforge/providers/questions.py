"""What is asked of a language model, what comes back, and how large that is.

Plain types that the modules of the language model client share; they know no provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from regforge.providers.calls import Price
from regforge.providers.replies import Message, Schema

_TOKENS_OF_AN_IMAGE = 2000
_FIRST_REPLY_GUESS = 1000


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


@dataclass(frozen=True)
class Call:
    """What goes to the provider, once.

    Attributes:
        model: LiteLLM id.
        messages: The chat.
        response_format: The form that the reply is to have, or None.
        parameters: What else is sent, by its name: `temperature`, `max_tokens`, `seed`. A provider
            may refuse each of them.
    """

    model: str
    messages: Sequence[Message]
    response_format: Mapping[str, Any] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Received:
    """What came back; tokens and cost (US dollars) are None where unknown."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None


class Provider(Protocol):
    """What this module needs of whoever knows LiteLLM."""

    async def send(self, call: Call) -> Received:
        """Send one call; raises CallFailed, or a ModelUnusable if nothing else will help."""

    def price(self, model: str) -> Price | None:
        """What its tokens cost, or None if unknown."""

    def chooses_only(self, model: str) -> bool:
        """Whether it is the embedded model, which takes schemas as they are."""


@dataclass
class Sizes:
    """How large the calls to one model turned out, to guess the next one."""

    scale: float = 1.0
    longest_reply: int = _FIRST_REPLY_GUESS

    def learn(self, estimate: int, received: Received) -> None:
        """Take in how large a call of about so many prompt tokens turned out."""
        if received.prompt_tokens:
            self.scale = max(self.scale, received.prompt_tokens / estimate)
        if received.completion_tokens:
            self.longest_reply = max(self.longest_reply, received.completion_tokens)


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
