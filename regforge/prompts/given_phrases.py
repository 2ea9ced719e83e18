"""Phrases that are there already: a slot's `values`, a text file, or the phrase banks.

Knows where they lie and which of them suit a class noun. Nobody is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regforge.embedded import phrase_banks
from regforge.embedded.bank_files import plain
from regforge.embedded.english import folded
from regforge.embedded.phrase_banks import Phrase
from regforge.prompts.phrase_rules import PhraseRules
from regforge.prompts.vocabulary import VocabularyError
from regforge.recipe import Slot
from regforge.recipe.named_files import phrases_in
from regforge.recipe.phrases import cut, no_phrase

_DEFAULT_CATEGORY = {"living": "animal", "object": "rigid_object"}


@dataclass(frozen=True)
class BankShelf:
    """What the phrase banks have for one class noun.

    Phrases come as they stand in a caption: the banks' styles ("a photo") get their "of" here.

    Attributes:
        class_noun: The subject.
        super_category: Whose phrases they are.
        known: Whether the banks know the class noun, or only its kind.
    """

    class_noun: str
    super_category: str
    known: bool

    @classmethod
    def of(cls, class_noun: str, kind: str) -> BankShelf:
        """The shelf of a class noun; of its kind's most general category if nobody listed it.

        Args:
            class_noun: The subject.
            kind: `object` or `living`. A class noun that the banks have under the other kind
                gets the general category as well.
        """
        try:
            name = phrase_banks.super_category(class_noun)
        except phrase_banks.UnknownClassNoun:
            return cls(class_noun, _DEFAULT_CATEGORY[kind], known=False)
        if phrase_banks.kind(name) != kind:
            return cls(class_noun, _DEFAULT_CATEGORY[kind], known=False)
        return cls(class_noun, name, known=True)

    @property
    def listed(self) -> bool:
        """Whether the banks have the class noun word for word: "red panda", not "red teapot"."""
        return self.class_noun.lower() in phrase_banks.load().class_nouns(self.super_category)

    def phrases(self, slot: str) -> dict[str, Phrase]:
        """The phrases of a slot; empty if no bank has the slot or this kind of subject lacks it."""
        if slot not in phrase_banks.SLOTS:
            return {}
        found = phrase_banks.phrases(slot, self.super_category, self.class_noun)
        return {_in_caption(phrase): phrase for phrase in found}

    def placeable(self, slot: str) -> dict[str, Phrase]:
        """Those of them that go with at least one of the places of this class noun."""
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
        """The bank's phrase for each text that is one, whoever wrote it down."""
        known = {plain(text): phrase for text, phrase in self.phrases(slot).items()}
        if slot == "style":
            known |= {plain(text).removesuffix(" of"): each for text, each in known.items()}
        return {text: known[plain(text)] for text in texts if plain(text) in known}


def _in_caption(phrase: Phrase) -> str:
    return f"{phrase.text} of" if phrase.slot == "style" else phrase.text


def listed(slot: Slot, rules: PhraseRules) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """The `values` of a slot, none twice, and their weights if there are any.

    "A photo of" and "a photo of" are one phrase, and so are their weights.

    Raises:
        VocabularyError: One of them can be no phrase.
    """
    values = slot.values or ()
    texts = [
        _checked(value, slot.name, rules, f"slot {slot.name!r}, value {number}")
        for number, value in enumerate(values, 1)
    ]
    summed: dict[str, float] = {}
    for text, weight in zip(texts, slot.weights or [1.0] * len(texts), strict=True):
        summed[folded(text)] = summed.get(folded(text), 0.0) + weight
    return distinct(texts), tuple(summed.values()) if slot.weights else None


def distinct(phrases: Iterable[str]) -> tuple[str, ...]:
    """Phrases without those that differ from another in capitals alone; small letters win."""
    spelled: dict[str, str] = {}
    for phrase in phrases:
        if spelled.setdefault(folded(phrase), phrase) != phrase == phrase.lower():
            spelled[folded(phrase)] = phrase
    return tuple(spelled.values())


def from_file(slot: Slot, rules: PhraseRules) -> tuple[str, ...]:
    """The phrases of a text file: one a line, `#` at the start or after a space is a comment.

    Raises:
        VocabularyError: It cannot be read, has no phrase, or one that can be none.
    """
    path = slot.file or Path()
    try:
        lines = phrases_in(path)
    except OSError as error:
        raise VocabularyError(
            f"slot {slot.name!r}: {path} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise VocabularyError(f"slot {slot.name!r}: {path} is not UTF-8 text.") from error
    phrases = distinct(
        _checked(line, slot.name, rules, f"{path}:{number}") for number, line in lines.items()
    )
    if not phrases:
        raise VocabularyError(
            f"slot {slot.name!r}: {path} has no phrases.", hint="Write one phrase a line."
        )
    return phrases


def from_bank(slot: Slot, shelf: BankShelf) -> tuple[str, ...]:
    """The phrases that the banks have for the class noun.

    Raises:
        VocabularyError: They have none.
    """
    if phrases := tuple(shelf.placeable(slot.name)):
        return phrases
    raise VocabularyError(
        f"slot {slot.name!r}: the phrase banks have no {slot.name} for {shelf.class_noun!r}.",
        hint=_way_out(slot.name),
    )


def sample(phrases: Mapping[str, Phrase], count: int, seed: int) -> list[str]:
    """At most `count` phrases, the same for the same seed, in their order."""

    def lot(text: str) -> bytes:
        return hashlib.sha256(f"{seed}/{text}".encode()).digest()

    drawn = set(sorted(phrases, key=lot)[:count])
    return [text for text in phrases if text in drawn]


def no_bank_phrases(slot: Slot, shelf: BankShelf) -> VocabularyError:
    """What to say when a model that only chooses has nothing to choose among."""
    return VocabularyError(
        f"slot {slot.name!r}: the embedded language model only chooses among phrases, and the "
        f"phrase banks have no {slot.name} for {shelf.class_noun!r}.",
        hint=f"{_way_out(slot.name)} A model that writes (`prompts.llm.model`) fills any slot.",
    )


def _way_out(name: str) -> str:
    slots: Sequence[str] = phrase_banks.SLOTS
    known = f"They have {', '.join(slots)}" if name not in slots else "Only living things have it"
    return f"{known}. Give the slot `values`, or leave it out of `prompts.slots`."


def _checked(phrase: str, slot: str, rules: PhraseRules, where: str) -> str:
    """A phrase as captions say it, white space tidied."""
    if fault := no_phrase(phrase, slot, rules.class_noun, rules.identifier):
        raise VocabularyError(f"{where}: {cut(phrase)} {fault}.")
    return " ".join(phrase.split())
