"""The vocabulary of a class noun: its phrases by slot, and which of them do not go together.

Knows the file `vocabulary.json`, which people may edit, and nothing of where phrases come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json, read_text, write_atomically
from regforge.recipe.phrases import cut, no_phrase

FORMAT = 1

Pair = tuple[str, str, str, str]
"""(slot, phrase, other slot, phrase there), with slot < other slot."""


_T = TypeVar("_T")


class VocabularyError(RegforgeError):
    """A vocabulary file that cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Vocabulary:
    """Phrases by slot.

    Attributes:
        class_noun: What the phrases are about.
        kind: `object` or `living`.
        slots: Phrases of each slot, in the order of the recipe's slots; none is empty.
        weights: For slots whose phrases are not equally frequent, a weight above 0 for each.
        incompatible: Pairs of phrases that do not go together.
        language_model: LiteLLM id of the model that supplied phrases; None if none did.
        origins: Where each slot's phrases came from: `llm`, `list`, `file` or `bank`.
    """

    class_noun: str
    kind: str
    slots: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    incompatible: frozenset[Pair] = frozenset()
    language_model: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    def compatible(self, phrases: Mapping[str, str | None]) -> bool:
        """Whether the phrases, one or none for each slot, can stand in one caption."""
        if not self.incompatible:
            return True
        chosen = sorted((slot, phrase) for slot, phrase in phrases.items() if phrase)
        return not any(
            (*first, *second) in self.incompatible
            for number, first in enumerate(chosen)
            for second in chosen[number + 1 :]
        )

    def save(self, path: Path) -> None:
        """Write vocabulary.json, atomically.

        Raises:
            StorageError: The file cannot be written.
        """
        grouped: dict[tuple[str, str, str], list[str]] = {}
        for slot, phrase, other, there in sorted(self.incompatible):
            grouped.setdefault((slot, phrase, other), []).append(there)
        content: dict[str, Any] = {
            "format": FORMAT,
            "class_noun": self.class_noun,
            "kind": self.kind,
            "language_model": self.language_model,
            "slots": {
                name: {
                    "from": self.origins.get(name, "list"),
                    "values": list(values),
                    **({"weights": list(self.weights[name])} if name in self.weights else {}),
                }
                for name, values in self.slots.items()
            },
            "incompatible": [
                {"slot": slot, "phrase": phrase, "other_slot": other, "phrases": there}
                for (slot, phrase, other), there in grouped.items()
            ],
        }
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path, identifier: str | None = None) -> Vocabulary:
        """Read vocabulary.json, which people may have edited.

        Args:
            path: The file.
            identifier: A phrase that has it is refused.

        Raises:
            VocabularyError: It is missing or says something else; the message says what and where.
        """
        try:
            content = parse_json(read_text(path))
        except OSError as error:
            raise VocabularyError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise VocabularyError(f"{path} is not JSON: {error}.") from error
        try:
            return _Reading(identifier).vocabulary(content)
        except _Wrong as error:
            raise VocabularyError(
                f"{path}: {error}.",
                hint="Compare it with a vocabulary.json of another run, or delete it.",
            ) from error


class _Wrong(VocabularyError):
    """What is wrong in a vocabulary file, and where in it."""


_NAMES: dict[type, str] = {str: "a text", dict: "a mapping", list: "a list"}


@dataclass(frozen=True)
class _Reading:
    """Reads the content of a vocabulary file, key by key."""

    identifier: str | None

    def vocabulary(self, content: Any) -> Vocabulary:
        content = _of(dict, content, "the whole file")
        noun = _of(str, content.get("class_noun"), "class_noun")
        kind = _of(str, content.get("kind"), "kind")
        model = content.get("language_model")
        slots: dict[str, tuple[str, ...]] = {}
        weights: dict[str, tuple[float, ...]] = {}
        origins: dict[str, str] = {}
        for name, slot in _of(dict, content.get("slots"), "slots").items():
            at = f"slots.{name}"
            values = _of(list, _of(dict, slot, at).get("values"), f"{at}.values")
            if not values:
                raise _Wrong(f"{at}.values is empty")
            slots[name] = tuple(
                self._phrase(value, name, noun, f"{at}.values[{number}]")
                for number, value in enumerate(values)
            )
            origins[name] = _of(str, slot.get("from", "list"), f"{at}.from")
            if "weights" in slot:
                weights[name] = _weights(slot["weights"], len(values), f"{at}.weights")
        pairs: set[Pair] = set()
        for number, entry in enumerate(_of(list, content.get("incompatible", []), "incompatible")):
            at = f"incompatible[{number}]"
            _of(dict, entry, at)
            one, phrase, other = (
                _of(str, entry.get(key), f"{at}.{key}") for key in ("slot", "phrase", "other_slot")
            )
            for there in _of(list, entry.get("phrases"), f"{at}.phrases"):
                pairs.add(_pair(one, phrase, other, _of(str, there, f"{at}.phrases")))
        return Vocabulary(
            class_noun=noun,
            kind=kind,
            slots=slots,
            weights=weights,
            incompatible=frozenset(pairs),
            language_model=None if model is None else _of(str, model, "language_model"),
            origins=origins,
        )

    def _phrase(self, value: Any, slot: str, noun: str, at: str) -> str:
        phrase = _of(str, value, at)
        if fault := no_phrase(phrase, slot, noun, self.identifier):
            raise _Wrong(f"{at}: {cut(phrase)} {fault}")
        return phrase


def _of(kind: type[_T], value: Any, at: str) -> _T:
    if not isinstance(value, kind):
        raise _Wrong(f"{at} is missing" if value is None else f"{at} must be {_NAMES[kind]}")
    return value


def _weights(given: Any, count: int, at: str) -> tuple[float, ...]:
    weights = _of(list, given, at)
    sound = all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < math.inf
        for each in weights
    )
    if not sound or len(weights) != count:
        raise _Wrong(f"{at} must be {count} numbers above 0, one for each value")
    return tuple(map(float, weights))


def _pair(slot: str, phrase: str, other: str, there: str) -> Pair:
    first, second = sorted(((slot, phrase), (other, there)))
    return (*first, *second)
