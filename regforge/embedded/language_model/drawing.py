"""Draws a value that a JSON schema describes: walks its structure, and chooses at the leaves.

Knows no language: what fits is asked of `Oracle.scores`, and a leaf that is no choice (a free
string, a number, a keyword not handled here) is handed to `Oracle.write`. All randomness is one
`random.Random`, of which only `random()` is used: its sequence is the same in every Python version.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

from regforge.embedded.language_model.errors import SchemaError
from regforge.embedded.language_model.schema import (
    Json,
    Schema,
    SchemaReader,
    branches,
    identity,
    is_array,
    is_object,
    is_union,
)

_DEPTH = 12  # beyond it a recursive schema is brought to its end
_TRIES = 20  # draws before we say that nothing satisfies the schema
_USUAL_LENGTH = 3  # of an array that does not say how long it is


@dataclass(frozen=True)
class Question:
    """A choice to be scored.

    Attributes:
        field: name of the nearest property, or "".
        options: the texts to choose among.
        class_noun: from `x-class-noun`, or None.
        stems: from `x-stems`, or None; empty asks for a uniform choice.
    """

    field: str
    options: tuple[str, ...]
    class_noun: str | None
    stems: tuple[str, ...] | None


class Oracle(Protocol):
    """What the walk cannot know by itself."""

    def scores(self, question: Question) -> Sequence[float] | None:
        """The fit of each option in nats, or None if all are as good."""
        ...

    def write(self, schema: Schema, field: str) -> Json:
        """A value for a self-contained schema that is no choice."""
        ...


def draw(schema: Schema, oracle: Oracle, rng: random.Random, temperature: float = 1.0) -> Json:
    """Draw a value that validates against a schema.

    Args:
        schema: a JSON schema (draft 2020-12); `x-class-noun`, `x-stems` and `x-top-k` guide
            the choices.
        oracle: scores the choices and writes the rest.
        rng: the source of all randomness.
        temperature: 0 takes the best option each time, 1 is lively; odds are
            exp(score / (2 * temperature)).

    Raises:
        SchemaError: no value was found that satisfies the schema, or an annotation is wrong.
    """
    reader = SchemaReader(schema)
    value = _Walk(reader, oracle, rng, temperature).draw(schema, _Place())
    # Right by construction, but for keywords beside a $ref that contradict its target. A reply
    # that broke its promise would surface much later and far from here.
    if not reader.is_valid(value):
        raise SchemaError("no reply was found that satisfies the schema")
    return value


@dataclass(frozen=True)
class _Place:
    """Where in the reply we are, and the annotations in force there."""

    field: str = ""
    class_noun: str | None = None
    stems: tuple[str, ...] | None = None
    top_k: int | None = None
    depth: int = 0

    def inside(self, schema: Schema) -> _Place:
        """Take up the annotations of a schema."""
        noun = schema.get("x-class-noun", self.class_noun)
        if noun is not None and not (isinstance(noun, str) and noun.strip()):
            raise SchemaError(f"x-class-noun must be a noun, not {noun!r}")
        stems = schema.get("x-stems", self.stems)
        if not isinstance(stems, list | tuple | None) or not all(
            isinstance(stem, str) for stem in stems or ()
        ):
            raise SchemaError(f"x-stems must be a list of strings, not {stems!r}")
        top_k = schema.get("x-top-k", self.top_k)
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise SchemaError(f"x-top-k must be a whole number above 0, not {top_k!r}")
        stems = None if stems is None else tuple(stems)
        return _Place(self.field, noun and noun.strip(), stems, top_k, self.depth + 1)

    def property(self, name: str) -> _Place:
        """Step into a property; stems and top-k belong to the field left behind."""
        return replace(self, field=name, stems=None, top_k=None)

    def error(self, problem: str) -> SchemaError:
        """An error that says where it happened."""
        return SchemaError(f"{self.field or 'the reply'}: {problem}")


class _Ranking:
    """The options of a leaf, best first, with their odds; null is the last resort."""

    def __init__(
        self, options: list[Json], scores: Sequence[float] | None, temperature: float, top_k: int
    ) -> None:
        fit = [0.0] * len(options) if scores is None else scores
        order = sorted(range(len(options)), key=lambda i: (options[i] is None, -fit[i], i))
        warmth = 2 * max(temperature, 1e-6)
        best = fit[order[0]]  # but for null, which may score higher and still comes last
        self._odds = [math.exp(max(-700.0, min(0.0, (fit[i] - best) / warmth))) for i in order]
        self._values = [options[i] for i in order]
        real = sum(option is not None for option in options)
        self._top_k = max(1, real if scores is None else min(top_k, real))
        self.size = len(options)

    def choose(self, rng: random.Random, count: int = 1) -> list[Json]:
        """Draw different options, at most `size`, from the top k (or more if more are needed)."""
        pool = list(range(max(self._top_k, count)))
        chosen = []
        for _ in range(count):
            cumulative = list(accumulate(self._odds[i] for i in pool))
            spot = bisect_right(cumulative, rng.random() * cumulative[-1], hi=len(pool) - 1)
            chosen.append(self._values[pool.pop(spot)])
        return chosen

    def choose_any(self, rng: random.Random) -> Json:
        """Draw one option, fitting or not."""
        return self._values[int(rng.random() * self.size)]


class _Walk:
    def __init__(
        self, reader: SchemaReader, oracle: Oracle, rng: random.Random, temperature: float
    ) -> None:
        self._reader = reader
        self._oracle = oracle
        self._rng = rng
        self._temperature = temperature
        self._loose = False  # draw anything valid rather than anything fitting
        self._wrote = False
        self._rankings: dict[tuple[int, _Place], _Ranking | None] = {}

    def draw(self, schema: Schema | bool, place: _Place) -> Json:
        schema = self._reader.resolve(schema)
        place = place.inside(schema)
        if place.depth > 4 * _DEPTH:
            raise place.error("the schema describes only values without end")
        ranking = self._ranking(schema, place)
        if ranking is not None:
            return ranking.choose_any(self._rng) if self._loose else ranking.choose(self._rng)[0]
        if is_union(schema):
            return self._union(schema, place)
        if is_object(schema):
            return self._object(schema, place)
        if is_array(schema):
            return self._array(schema, place)
        self._wrote = True
        return self._oracle.write(self._reader.self_contained(schema), place.field)

    def _union(self, schema: Schema, place: _Place) -> Json:
        """One branch, by chance; null only where nothing else is offered."""
        ways = [self._reader.resolve(branch) for branch in branches(schema)]
        if place.depth > _DEPTH:  # end a recursion where that is possible
            ways = [way for way in ways if self._reader.options(way) is not None] or ways
        elif not self._loose:
            ways = [way for way in ways if way.get("type") != "null"] or ways
        for _ in range(_TRIES):
            value = self.draw(ways[int(self._rng.random() * len(ways))], place)
            if "anyOf" in schema or self._reader.is_valid(value, schema):
                return value
        raise place.error("the branches of oneOf are not exclusive")

    def _object(self, schema: Schema, place: _Place) -> Json:
        """All properties, required or not, as long as the recursion is not too deep."""
        required = schema.get("required", [])
        value = {}
        for name, inner in schema.get("properties", {}).items():
            wanted = inner is not False and place.depth < _DEPTH
            if self._loose:
                wanted = wanted and self._rng.random() < 0.5
            if wanted or name in required:
                value[name] = self.draw(inner, place.property(name))
        return value

    def _array(self, schema: Schema, place: _Place) -> Json:
        prefix, items = schema.get("prefixItems", []), schema.get("items", False)
        low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        unique, ranking = schema.get("uniqueItems", False), None
        if items is False:
            high = min(high, len(prefix))
        elif unique and not prefix:
            items = self._reader.resolve(items)
            ranking = self._ranking(items, place.inside(items))
            high = min(high, ranking.size) if ranking else high
        if low > high:
            raise place.error(f"{low} items asked for, only {high} possible")
        usual = max(low, len(prefix)) or _USUAL_LENGTH
        length = self._length(low, high, usual if "maxItems" not in schema else None, place)
        if ranking:
            return ranking.choose(self._rng, length)
        value: list[Json] = []
        for index in range(length):
            inner = prefix[index] if index < len(prefix) else items
            item = self._another(inner, place, value) if unique else [self.draw(inner, place)]
            if not item and len(value) < low:
                raise place.error(f"found no {low} different items")
            value += item
        return value

    def _length(self, low: int, high: float, usual: int | None, place: _Place) -> int:
        """As usual if there is something usual, else between the bounds by chance."""
        if place.depth > _DEPTH // 2:  # or trees of arrays grow out of hand
            return low
        if usual is not None:
            return int(min(usual, high))
        low = max(low, min(1, int(high)))
        return low + int(self._rng.random() * (int(high) - low + 1))

    def _another(self, schema: Schema, place: _Place, others: list[Json]) -> list[Json]:
        """An item that differs from the others, in a list; an empty list if none was found."""
        seen = {identity(other) for other in others}
        was_loose = self._loose
        try:
            for attempt in range(_TRIES * (len(others) + 2)):
                self._loose = was_loose or attempt >= _TRIES // 2
                item = self.draw(schema, place)
                if identity(item) not in seen:
                    return [item]
                if self._wrote and attempt >= _TRIES:
                    break  # every try costs seconds
        finally:
            self._loose = was_loose
        return []

    def _ranking(self, schema: Schema, place: _Place) -> _Ranking | None:
        key = (id(schema), replace(place, depth=0))
        if key not in self._rankings:
            options = self._reader.options(schema)
            self._rankings[key] = None if options is None else self._rank(options, place)
        return self._rankings[key]

    def _rank(self, options: list[Json], place: _Place) -> _Ranking:
        if not options:
            raise place.error("none of the options is allowed")
        blind = place.stems is None and all(isinstance(option, bool | None) for option in options)
        scores = None
        if len(options) > 1 and not blind:
            texts = tuple(_text(option) for option in options)
            scores = self._oracle.scores(
                Question(place.field, texts, place.class_noun, place.stems)
            )
        return _Ranking(
            options, scores, self._temperature, place.top_k or max(4, len(options) // 4)
        )


def _text(option: Json) -> str:
    """An option as the model reads it."""
    if isinstance(option, str):
        return option
    if isinstance(option, bool | None):
        return {True: "yes", False: "no", None: "none"}[option]
    return json.dumps(option)
