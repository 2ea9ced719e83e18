"""The vocabulary of a class noun: its phrases by slot, and which of them do not go together.

`vocabulary.json`, which people may edit, and the phrases that are there without asking anybody: a
slot's `values`, a text file, the phrase banks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regforge.embedded import phrase_banks
from regforge.embedded.phrase_banks import Phrase
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json, read_text, write_atomically
from regforge.recipe import Recipe, Slot, Subject, kind_of
from regforge.recipe.named_files import phrases_in
from regforge.recipe.phrases import cut, no_phrase
from regforge.words import folded, plain

FORMAT = 1

Pair = tuple[str, str, str, str]
"""(slot, phrase, other slot, phrase there), with slot < other slot."""

_DEFAULT_CATEGORY = {"living": "animal", "object": "rigid_object"}


class VocabularyError(RegforgeError):
    """A vocabulary that cannot be used, or a slot that cannot be filled."""

    exit_code = EXIT_USAGE


def pair_of(slot: str, phrase: str, other: str, there: str) -> Pair:
    """Build the pair of two phrases, whichever is named first."""
    first, second = sorted(((slot, phrase), (other, there)))
    return (*first, *second)


# ------------------------------------------------------------------------------- vocabulary.json


class _SlotEntry(BaseModel):
    model_config = ConfigDict(strict=True)

    origin: str = Field("list", alias="from")
    values: list[str] = Field(min_length=1)
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None


class _ClashEntry(BaseModel):
    model_config = ConfigDict(strict=True)

    slot: str
    phrase: str
    other_slot: str
    phrases: list[str]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    class_noun: str
    kind: str
    language_model: str | None = None
    slots: dict[str, _SlotEntry]
    incompatible: list[_ClashEntry] = []


_WRONG = {
    "missing": "is missing",
    "too_short": "is empty",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "float_type": "must be a number above 0",
    "greater_than": "must be a number above 0",
    "finite_number": "must be a number above 0",
}


@dataclass(frozen=True)
class Vocabulary:
    """Phrases by slot.

    Attributes:
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
        """Read vocabulary.json, which people may have edited; no phrase may have the identifier.

        Raises:
            VocabularyError: It is missing or holds something else; the message names the key.
        """
        try:
            content = _File.model_validate(parse_json(read_text(path)))
        except OSError as error:
            raise VocabularyError(f"{path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
            what = _WRONG.get(first["type"], first["msg"])
            missing = first["input"] is None and first["type"] != "missing"
            what = "is missing" if missing else what
            raise _unlike(path, f"{at.removeprefix('.') or 'the whole file'} {what}") from error
        except ValueError as error:
            raise VocabularyError(f"{path} is not JSON: {error}.") from error
        for name, slot in content.slots.items():
            for number, phrase in enumerate(slot.values):
                if fault := no_phrase(phrase, name, content.class_noun, identifier):
                    at = f"slots.{name}.values[{number}]"
                    raise _unlike(path, f"{at}: {cut(phrase)} {fault}")
            if slot.weights is not None and len(slot.weights) != len(slot.values):
                count = f"{len(slot.values)} numbers above 0, one for each value"
                raise _unlike(path, f"slots.{name}.weights must be {count}")
        return cls(
            class_noun=content.class_noun,
            kind=content.kind,
            slots={name: tuple(slot.values) for name, slot in content.slots.items()},
            weights={
                name: tuple(slot.weights) for name, slot in content.slots.items() if slot.weights
            },
            incompatible=frozenset(
                pair_of(entry.slot, entry.phrase, entry.other_slot, there)
                for entry in content.incompatible
                for there in entry.phrases
            ),
            language_model=content.language_model,
            origins={name: slot.origin for name, slot in content.slots.items()},
        )


def _unlike(path: Path, what: str) -> VocabularyError:
    hint = "Compare it with a vocabulary.json of another run, or delete it."
    return VocabularyError(f"{path}: {what}.", hint=hint)


# ------------------------------------------------------------------------------------ the banks


@dataclass(frozen=True)
class BankPhrases:
    """What the phrase banks have for one class noun.

    Phrases come as they stand in a caption: the banks' styles ("a photo") get their "of" here. Not
    `known` is a class noun of which the banks have the kind alone.
    """

    class_noun: str
    super_category: str
    known: bool

    @classmethod
    def of(cls, recipe: Recipe) -> BankPhrases:
        """Find the super-category of a recipe's class noun, or its kind's most general one.

        A class noun that the banks have under the other kind gets the general one as well.
        """
        noun, kind = recipe.subject.class_noun, kind_of(recipe)
        try:
            name = phrase_banks.super_category(noun)
        except phrase_banks.UnknownClassNoun:
            return cls(noun, _DEFAULT_CATEGORY[kind], known=False)
        known = phrase_banks.kind(name) == kind
        return cls(noun, name if known else _DEFAULT_CATEGORY[kind], known)

    @property
    def listed(self) -> bool:
        """Whether the banks have the class noun word for word: "red panda", not "red teapot"."""
        return self.class_noun.lower() in phrase_banks.load().class_nouns(self.super_category)

    def phrases(self, slot: str) -> dict[str, Phrase]:
        """List the phrases of a slot; none if no bank has it or this kind of subject lacks it."""
        if slot not in phrase_banks.SLOTS:
            return {}
        found = phrase_banks.phrases(slot, self.super_category, self.class_noun)
        return {f"{each.text} of" if slot == "style" else each.text: each for each in found}

    def placeable(self, slot: str) -> dict[str, Phrase]:
        """List those of them that go with at least one of the places of this class noun."""
        phrases = self.phrases(slot)
        if slot == "background":
            return phrases
        places = self.phrases("background").values()
        return {
            text: phrase
            for text, phrase in phrases.items()
            if any(phrase_banks.compatible(phrase, place) for place in places)
        }

    def find(self, slot: str, texts: Iterable[str]) -> dict[str, Phrase]:
        """Find the bank's phrase for each text that is one, whoever wrote it down."""
        known = {plain(text): phrase for text, phrase in self.phrases(slot).items()}
        if slot == "style":
            known |= {plain(text).removesuffix(" of"): each for text, each in known.items()}
        return {text: known[plain(text)] for text in texts if plain(text) in known}

    def lacks(self, slot: str, *, chosen: bool = False) -> VocabularyError:
        """Build the error for a slot without phrases; perhaps the embedded model was to choose."""
        what, hint = f"the phrase banks have no {slot} for {self.class_noun!r}.", ""
        if chosen:
            what = f"the embedded language model only chooses among phrases, and {what}"
            hint = " A model that writes (`prompts.llm.model`) fills any slot."
        known = "Only living things have it"
        if slot not in phrase_banks.SLOTS:
            known = f"They have {', '.join(phrase_banks.SLOTS)}"
        way_out = f"{known}. Give the slot `values`, or leave it out of `prompts.slots`."
        return VocabularyError(f"slot {slot!r}: {what}", hint=way_out + hint)


def sample(phrases: Iterable[str], count: int, seed: int) -> tuple[str, ...]:
    """Draw at most `count` phrases, the same for the same seed, in their order."""
    texts = list(phrases)
    drawn = sorted(texts, key=lambda text: hashlib.sha256(f"{seed}/{text}".encode()).digest())
    kept = set(drawn[:count])
    return tuple(text for text in texts if text in kept)


# ------------------------------------------------------------------------------- given phrases


def given_phrases(slot: Slot, subject: Subject, bank: BankPhrases) -> tuple[str, ...]:
    """List the phrases of a slot that is not the language model's: its values, file or banks'.

    Raises:
        VocabularyError: There are none, or one of them cannot stand in a caption.
    """
    if slot.origin == "list":
        return listed_values(slot, subject)[0]
    if slot.origin == "file":
        return _in_file(slot, subject)
    if phrases := tuple(bank.placeable(slot.name)):
        return phrases
    raise bank.lacks(slot.name)


def listed_values(slot: Slot, subject: Subject) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """List the `values` of a slot, none twice, and their weights if there are any.

    "A photo of" and "a photo of" are one phrase, and so are their weights.

    Raises:
        VocabularyError: One of them cannot stand in a caption.
    """
    texts = [
        _checked(value, slot.name, subject, f"slot {slot.name!r}, value {number}")
        for number, value in enumerate(slot.values or (), 1)
    ]
    summed: dict[str, float] = {}
    for text, weight in zip(texts, slot.weights or [1.0] * len(texts), strict=True):
        summed[folded(text)] = summed.get(folded(text), 0.0) + weight
    return _distinct(texts), tuple(summed.values()) if slot.weights else None


def _in_file(slot: Slot, subject: Subject) -> tuple[str, ...]:
    path = slot.file or Path()
    try:
        lines = phrases_in(path)
    except OSError as error:
        raise VocabularyError(
            f"slot {slot.name!r}: {path} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise VocabularyError(f"slot {slot.name!r}: {path} is not UTF-8 text.") from error
    phrases = _distinct(
        _checked(line, slot.name, subject, f"{path}:{number}") for number, line in lines.items()
    )
    if not phrases:
        raise VocabularyError(
            f"slot {slot.name!r}: {path} has no phrases.", hint="Write one phrase a line."
        )
    return phrases


def _distinct(phrases: Iterable[str]) -> tuple[str, ...]:
    """Phrases without those that differ from another in capitals alone; small letters win."""
    spelled: dict[str, str] = {}
    for phrase in phrases:
        if spelled.setdefault(folded(phrase), phrase) != phrase == phrase.lower():
            spelled[folded(phrase)] = phrase
    return tuple(spelled.values())


def _checked(phrase: str, slot: str, subject: Subject, where: str) -> str:
    """A phrase as captions say it, white space tidied."""
    if fault := no_phrase(phrase, slot, subject.class_noun, subject.identifier):
        raise VocabularyError(f"{where}: {cut(phrase)} {fault}.")
    return " ".join(phrase.split())
