"""Answers a chat request: choices are scored, anything else is written. Knows no LiteLLM.

The same messages, schema, seed and temperature give the same reply, in any process, whatever was
asked before and whatever is cached.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regforge.embedded.language_model.cache import cache_directory
from regforge.embedded.language_model.drawing import Question, draw
from regforge.embedded.language_model.engine import (
    Engine,
    Generation,
    Message,
    Sampling,
    message_text,
)
from regforge.embedded.language_model.scoring import ScoreTable, stems_for
from regforge.embedded.language_model.smollm import SmolLM

# Where a value that the schema leaves open starts to end, in tokens.
_TOKENS = {"integer": 6, "number": 8}
_TOKENS_ELSE = 64
_NAMED = re.compile(r"^\W*class noun\W*[:=]\s*[\"'`]?([\w][\w '-]*?)[\"'`]?[.,;]?\s*$", re.I | re.M)
_QUOTED = re.compile(r"(?<!\w)[\"'`\u201c]([A-Za-z][\w-]*(?: [\w-]+){0,3})[\"'`\u201d](?!\w)")


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        messages: the conversation.
        schema: JSON schema of the reply, or None for plain text.
        seed: None derives one from the rest of the request.
        sampling: how to draw; of it, a schema uses only the temperature.
    """

    messages: Sequence[Message]
    schema: dict[str, Any] | None = None
    seed: int | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def rng(self) -> random.Random:
        """The randomness of this request: a function of what it says."""
        parts = [list(self.messages), self.schema, self.seed, self.sampling.temperature]
        text = json.dumps(parts, sort_keys=True, default=str)
        return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()))


class LanguageModel:
    """The embedded language model. Loads nothing until it is first needed.

    Args:
        engine: what scores and writes; SmolLM2-135M by default.
        cache_dir: for weights and scores; see `cache.cache_directory` for the default.
    """

    def __init__(self, engine: Engine | None = None, cache_dir: Path | None = None) -> None:
        self._engine = engine
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._scores: ScoreTable | None = None

    def reply(self, request: Request) -> Generation:
        """Answer a request.

        A reply that consists of choices alone reports no tokens: its messages are searched for a
        class noun but never fed to the network.

        Raises:
            LanguageModelMissing: the weights, or llguidance for what is no choice, are missing.
            LanguageModelError: the request cannot be satisfied; the message says why.
        """
        engine, scores = self._ready()
        rng = request.rng()
        if request.schema is None:
            return engine.generate(request.messages, request.sampling, rng)
        oracle = _Oracle(request, engine, scores, rng)
        value = draw(request.schema, oracle, rng, request.sampling.temperature)
        text = json.dumps(value, ensure_ascii=False)
        return Generation(text, "stop", oracle.prompt_tokens, oracle.completion_tokens)

    def _ready(self) -> tuple[Engine, ScoreTable]:
        with self._lock:
            cache_dir = self._cache_dir or cache_directory()
            if self._engine is None:
                self._engine = SmolLM(cache_dir)
            if self._scores is None:
                self._scores = ScoreTable(self._engine, cache_dir)
            return self._engine, self._scores


class _Oracle:
    """Language for one request (see `drawing.Oracle`); counts the tokens it spends."""

    def __init__(
        self, request: Request, engine: Engine, scores: ScoreTable, rng: random.Random
    ) -> None:
        self._request = request
        self._engine = engine
        self._table = scores
        self._rng = rng
        self._class_noun = class_noun_in(request.messages)
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def scores(self, question: Question) -> list[float] | None:
        noun = question.class_noun or self._class_noun
        stems = stems_for(question.field) if question.stems is None else question.stems
        if noun is None or not stems:
            return None
        return self._table.scores(noun, question.options, stems)

    def write(self, schema: dict[str, Any], field: str) -> Any:
        budget = _TOKENS.get(schema.get("type", ""), _TOKENS_ELSE)
        sampling = Sampling(self._request.sampling.temperature, max_tokens=budget)
        prefix = f'{{"{field}": ' if field else ""
        written = self._engine.generate(self._request.messages, sampling, self._rng, schema, prefix)
        self.prompt_tokens += written.prompt_tokens
        self.completion_tokens += written.completion_tokens
        return json.loads(written.text)


def class_noun_in(messages: Sequence[Message]) -> str | None:
    """The class noun a conversation is about, or None.

    The last line of the form `class noun: teapot`; failing that, the first quoted phrase of one to
    four words in the last user message.
    """
    texts = [message_text(message) for message in messages]
    if named := _NAMED.findall("\n".join(texts)):
        return str(named[-1]).strip()
    asked = [t for t, m in zip(texts, messages, strict=True) if m.get("role") == "user"]
    quoted = _QUOTED.search(asked[-1]) if asked else None
    return quoted[1] if quoted else None
