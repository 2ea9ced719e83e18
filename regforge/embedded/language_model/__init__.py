"""A language model that needs no network: SmolLM2-135M behind LiteLLM as `embedded/smollm2-135m`.

It chooses: every enum of a JSON schema is answered by scoring the options against the class noun.
It does not write. `docs/language-model.md` says what to expect and how to ask.

    from regforge.embedded import language_model

    language_model.register()
    litellm.completion(model=language_model.MODEL, messages=..., response_format=..., seed=1)

Importing this package is cheap; LiteLLM, torch and the weights load when they are first used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.embedded.language_model.smollm import (
    INSTALL_COMMAND,
    LanguageModelError,
    LanguageModelMissing,
    ScoreTable,
    SmolLM,
    find_weights,
    stems_for,
)
from regforge.files import cache_folder

if TYPE_CHECKING:
    from litellm import ModelResponse
    from litellm.llms.custom_llm import CustomLLM

__all__ = [
    "INSTALL_COMMAND",
    "MODEL",
    "LanguageModel",
    "LanguageModelError",
    "LanguageModelMissing",
    "SchemaError",
    "is_installed",
    "register",
]

PROVIDER = "embedded"
NAME = "smollm2-135m"
MODEL = f"{PROVIDER}/{NAME}"
_UNSUPPORTED = ("tools", "functions", "logprobs", "logit_bias", "audio")

Schema = Mapping[str, Any]
_lock = threading.Lock()


class SchemaError(LanguageModelError):
    """The request's JSON schema is not one of choices."""


def is_installed() -> bool:
    """Whether the weights are there, without loading them."""
    try:
        find_weights()
    except LanguageModelMissing:
        return False
    return True


def register(language_model: LanguageModel | None = None) -> None:
    """Teach LiteLLM the model `embedded/smollm2-135m`. Calling it again changes nothing.

    Args:
        language_model: Answers from now on, instead of one with SmolLM2 and the usual cache
            folder; for tests and special folders.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network
    import litellm

    with _lock:
        others = [each for each in litellm.custom_provider_map if each["provider"] != PROVIDER]
        if language_model is not None or len(others) == len(litellm.custom_provider_map):
            handler = _handler(language_model or LanguageModel())
            litellm.custom_provider_map = [
                *others,
                {"provider": PROVIDER, "custom_handler": handler},
            ]


class LanguageModel:
    """The embedded language model. Loads nothing until a choice has to be scored.

    The same messages, schema, seed and temperature give the same reply, in any process, whatever
    was asked before and whatever is cached.

    Args:
        engine: Scores phrases; SmolLM2-135M by default.
        cache_dir: Folder for weights and scores; `language-model` below regforge's cache folder
            by default.
    """

    def __init__(self, engine: SmolLM | None = None, cache_dir: Path | None = None) -> None:
        self._engine = engine
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._table: ScoreTable | None = None

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        schema: Schema | None,
        *,
        seed: int | None = None,
        temperature: float = 1.0,
    ) -> str:
        """Draw a reply, as JSON.

        Args:
            messages: The conversation. It is part of the seed; the network never reads it.
            schema: Objects whose properties are objects, choices (`enum` of strings) or arrays of
                choices (`minItems`, `uniqueItems`); `x-class-noun` and `x-top-k` guide the draw.
            seed: Random seed; None derives one from the rest of the request.
            temperature: 0 takes the best phrases, 1 is lively; odds are
                exp(score / (2 * temperature)).

        Raises:
            LanguageModelMissing: The weights are not installed.
            SchemaError: There is no schema, or one of more than choices.
        """
        parts = [list(messages), schema, seed, temperature]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()
        rng = random.Random(int.from_bytes(digest))
        value = self._draw(schema or {}, "", None, rng, temperature)
        return json.dumps(value, ensure_ascii=False)

    def _draw(
        self, schema: Schema, field: str, noun: str | None, rng: random.Random, temperature: float
    ) -> Any:
        noun = schema.get("x-class-noun", noun)
        if "properties" in schema:
            return {
                name: self._draw(inner, name, noun, rng, temperature)
                for name, inner in schema["properties"].items()
            }
        is_array = schema.get("type") == "array"
        options = schema.get("items", {}).get("enum") if is_array else schema.get("enum")
        if not options or not all(isinstance(option, str) for option in options):
            raise SchemaError(
                f"The embedded language model only chooses: {field or 'the reply'} has to be an "
                "enum of phrases, or an array of one."
            )
        count = schema.get("minItems", 0) if is_array else 1
        unique = schema.get("uniqueItems", False)
        if unique and count > len(set(options)):
            raise SchemaError(f"{field}: {count} phrases asked for, only {len(options)} given")
        fit = self._scores(noun, options, field)
        order = sorted(range(len(options)), key=lambda i: (-fit[i], i))
        most = schema.get("x-top-k") or max(4, len(options) // 4)
        if not any(fit):  # all fit equally well: the first are no better than the others
            most = len(options)
        warmth = 2 * max(temperature, 1e-6)
        odds = [math.exp(max(-700.0, (fit[i] - fit[order[0]]) / warmth)) for i in order]
        pool = list(range(min(len(options), max(most, count if unique else 1))))
        chosen = []
        for _ in range(count):
            cumulative = list(accumulate(odds[i] for i in pool))
            spot = bisect_right(cumulative, rng.random() * cumulative[-1], hi=len(pool) - 1)
            chosen.append(options[order[pool.pop(spot) if unique else pool[spot]]])
        return chosen if is_array else chosen[0]

    def _scores(self, noun: str | None, options: Sequence[str], field: str) -> list[float]:
        """The fit of each option in nats; zeros where the model judges no better than chance."""
        stems = stems_for(field)
        if noun is None or not stems or len(options) < 2:
            return [0.0] * len(options)
        with self._lock:
            if self._table is None:
                folder = self._cache_dir or cache_folder() / "language-model"
                self._table = ScoreTable(self._engine or SmolLM(folder), folder)
        return self._table.scores(noun, options, stems)


# --------------------------------------------------------------------------------------- LiteLLM


def _handler(language_model: LanguageModel) -> CustomLLM:
    """An object that LiteLLM calls; a class in a function, because its base is LiteLLM's."""
    from litellm.llms.custom_llm import CustomLLM

    class Handler(CustomLLM):
        """LiteLLM passes everything by keyword, and more than we read."""

        def completion(self, *_: Any, **call: Any) -> ModelResponse:
            return _complete(language_model, call)

        async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
            return await asyncio.to_thread(_complete, language_model, call)

        def streaming(self, *_: Any, **call: Any) -> Any:
            raise _refusal(call, "does not stream; leave out stream=True")

        def astreaming(self, *_: Any, **call: Any) -> Any:
            raise _refusal(call, "does not stream; leave out stream=True")

    return Handler()


def _complete(language_model: LanguageModel, call: dict[str, Any]) -> ModelResponse:
    from litellm import Usage
    from litellm.exceptions import BadRequestError, NotFoundError

    options = call["optional_params"]
    if call["model"] != NAME:
        raise _refusal(call, f"is called {PROVIDER}/{NAME}")
    if refused := [name for name in _UNSUPPORTED if options.get(name)]:
        raise _refusal(call, f"does not support {', '.join(refused)}")
    if (options.get("n") or 1) != 1:
        raise _refusal(call, "gives one reply a call; vary the seed instead of n")
    # LiteLLM has made dicts of pydantic models by now.
    asked = options.get("response_format") or {}
    schema = (asked.get("json_schema") or {}).get("schema") or asked.get("response_schema")
    temperature = options.get("temperature")
    try:
        text = language_model.reply(
            call["messages"],
            schema,
            seed=options.get("seed"),
            temperature=1.0 if temperature is None else float(temperature),
        )
    except LanguageModelMissing as error:
        raise NotFoundError(str(error), call["model"], PROVIDER) from error
    except LanguageModelError as error:
        raise BadRequestError(str(error), call["model"], PROVIDER) from error
    response = call["model_response"]
    response.model = call["model"]
    response.created = int(time.time())
    response.choices[0].message.content = text
    response.choices[0].finish_reason = "stop"
    response.usage = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    response._hidden_params["response_cost"] = 0.0
    return response


def _refusal(call: dict[str, Any], why: str) -> Exception:
    from litellm.exceptions import BadRequestError

    message = f"the embedded language model {why}"
    return BadRequestError(message, call["model"], PROVIDER)
