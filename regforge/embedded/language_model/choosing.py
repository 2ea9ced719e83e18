"""Draws a reply from a JSON schema of choices: phrases that fit the class noun, by their scores.

The same messages, schema, seed and temperature give the same reply, in any process, whatever was
asked before and whatever is cached. Knows no LiteLLM.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from regforge.embedded.language_model.errors import SchemaError
from regforge.embedded.language_model.scoring import Engine, ScoreTable, stems_for
from regforge.embedded.language_model.smollm import SmolLM
from regforge.files import cache_folder

Schema = Mapping[str, Any]


class LanguageModel:
    """The embedded language model. Loads nothing until a choice has to be scored.

    Args:
        engine: Scores phrases; SmolLM2-135M by default.
        cache_dir: Folder for weights and scores; `language-model` below regforge's cache folder
            by default.
    """

    def __init__(self, engine: Engine | None = None, cache_dir: Path | None = None) -> None:
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
