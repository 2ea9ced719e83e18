"""The vocabulary of a class noun: its phrases by slot, and which of them do not go together.

Knows the file `vocabulary.json`, which people may edit, and nothing of where phrases come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json, read_text, write_atomically

FORMAT = 1

Pair = tuple[str, str, str, str]
"""(slot, phrase, other slot, phrase there), with slot < other slot."""


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
    def load(cls, path: Path) -> Vocabulary:
        """Read vocabulary.json.

        Raises:
            VocabularyError: It is missing or says something else; the message says what.
        """
        try:
            content = parse_json(read_text(path))
        except OSError as error:
            raise VocabularyError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise VocabularyError(f"{path} is not JSON: {error}.") from error
        try:
            return cls(
                class_noun=str(content["class_noun"]),
                kind=str(content["kind"]),
                slots={name: _phrases(slot["values"]) for name, slot in content["slots"].items()},
                weights={
                    name: tuple(float(weight) for weight in slot["weights"])
                    for name, slot in content["slots"].items()
                    if "weights" in slot
                },
                incompatible=frozenset(
                    _pair(entry["slot"], entry["phrase"], entry["other_slot"], there)
                    for entry in content.get("incompatible", ())
                    for there in entry["phrases"]
                ),
                language_model=content.get("language_model"),
                origins={name: slot.get("from", "list") for name, slot in content["slots"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VocabularyError(
                f"{path} is not a vocabulary: {type(error).__name__} {error}.",
                hint="Compare it with a vocabulary.json of another run, or delete it.",
            ) from error


def _phrases(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError("`values` must be a list that is not empty")
    return tuple(str(value) for value in values)


def _pair(slot: str, phrase: str, other: str, there: str) -> Pair:
    first, second = sorted(((slot, phrase), (other, there)))
    return (*first, *second)
