"""What the language model asks of the network behind it: two methods and a name.

`SmolLM` is the real engine; tests bring their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = Mapping[str, Any]
"""One chat message: `role` and `content` (a string, or OpenAI's list of text parts)."""


@dataclass(frozen=True)
class Sampling:
    """How to draw words.

    Attributes:
        temperature: 0 takes the likeliest, 1 the model's own odds; at most 2 makes sense.
        top_p: draw among the likeliest words that hold this share of the probability, 0..1.
        max_tokens: stop after so many; inside a schema, start closing the JSON after so many.
        stop: strings that end the text (and are not part of it).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """Text the network wrote, why it stopped (`stop` or `length`), and what it read and wrote."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """A network that can score and write."""

    @property
    def digest(self) -> str:
        """Identifies the weights; scores are cached under it."""
        ...

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        """log P(option | stem) in nats, for each option, in order."""
        ...

    def generate(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        rng: random.Random,
        schema: dict[str, Any] | None = None,
        prefix: str = "",
    ) -> Generation:
        """Write a reply to a chat; with a schema, JSON that validates against it.

        `prefix` is the beginning of the reply, put in the model's mouth and not returned.
        """
        ...


def message_text(message: Message) -> str:
    """The text of a message; parts that are not text are left out."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
