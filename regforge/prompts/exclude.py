"""What captions must not say: the prompts of a benchmark, phrases of the user's own.

A caption says what an entry says if all of the entry's content words are in it, in any order: "a
teapot with a mountain in the background" is said by "a teapot before snowy mountains". That keeps
out more than the entry itself, which is what one wants of an evaluation. The class noun, the
identifier and small words do not count, on either side.

Also takes phrases out of a vocabulary that no caption can use, before anything is drawn.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from regforge import resources
from regforge.embedded.english import has_words
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import noun_pattern, word_pattern
from regforge.prompts.vocabulary import Vocabulary
from regforge.recipe.named_files import phrases_in

_SMALL_WORDS = frozenset(
    # Words of place, and "background" with them: "in a city" is "with a city in the background".
    "a an the this that these those its it his her their my and or of on in at to by for from with "
    "without over under above below near next beside behind between against inside outside before "
    "front top back background around across along through into onto up down off out is are be "
    "being as some very wearing photo picture image".split()
)

MATERIALS = frozenset(
    "acetate acrylic aluminium aluminum bamboo bone brass bronze canvas cardboard ceramic "
    "china chrome clay copper corduroy cotton crystal denim earthenware enamel enameled felt "
    "fleece fur glass gold granite iron jade knitted lace leather linen marble metal nylon "
    "paper papier pewter plaster plastic plush porcelain raku resin rubber satin silk silver "
    "stainless steel stone stoneware suede terracotta tin titanium tweed velvet vinyl wax "
    "wicker wood wooden wool woolen".split()
)
"""Words for what things are made of, as they stand in class nouns and in phrases."""

_MATERIAL_SLOTS = ("texture", "material")


class ExclusionError(RegforgeError):
    """Something to exclude that cannot be used, or that leaves nothing to say."""

    exit_code = EXIT_USAGE


# ------------------------------------------------------------------------------------------ words


@functools.lru_cache(maxsize=65_536)
def fold(word: str) -> str:
    """A word without its plural ending and in lower case; close enough to compare by."""
    word = word.casefold()
    if len(word) <= 3 or word.endswith(("ss", "us", "is")):
        return word
    for ending, singular in (("ies", "y"), ("ves", "f")):
        if word.endswith(ending):
            return word[: -len(ending)] + singular
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def content_words(text: str) -> frozenset[str]:
    """The folded words of a text that say something; "cube-shaped" is two."""
    found = (word for word in re.findall(r"[^\W_]+", text.casefold()) if word not in _SMALL_WORDS)
    return frozenset(map(fold, found))


# ------------------------------------------------------------------------------------- exclusions


@dataclass(frozen=True)
class Exclusions:
    """What captions must not say.

    Attributes:
        entries: The prompts and phrases to keep out, and the content words of each.
        subject: Matches the class noun, whose first mention does not count.
    """

    entries: tuple[tuple[str, frozenset[str]], ...] = ()
    subject: re.Pattern[str] | None = None

    @classmethod
    def load(
        cls, names: Iterable[str], *, class_noun: str, identifier: str | None = None
    ) -> Exclusions:
        """Read `prompts.exclude`.

        Args:
            names: Names of benchmarks that come with regforge, such as `dreambench`, and paths of
                text files with one prompt or phrase a line, in which {} may stand for the subject.
            class_noun: What the captions are about.
            identifier: The subject's.

        Raises:
            ExclusionError: A file cannot be read, or a line has nothing to look for.
        """
        subject = noun_pattern(class_noun)
        entries: dict[str, frozenset[str]] = {}
        for name in names:
            for text in _prompts_of(name):
                words = content_words(_without_subject(text, subject, identifier))
                if not words:
                    raise ExclusionError(
                        f"{name}: {text!r} has no word to look for besides the class noun and "
                        "small words."
                    )
                entries[text] = words
        return cls(tuple(entries.items()), subject)

    def forbids(self, text: str) -> str | None:
        """The first entry that a text says, or None."""
        if not self.entries:
            return None
        words = content_words(self.subject.sub(" ", text, count=1) if self.subject else text)
        return next((entry for entry, wanted in self.entries if wanted <= words), None)


def _without_subject(prompt: str, subject: re.Pattern[str], identifier: str | None) -> str:
    """A prompt to exclude without its place for the subject, or the subject itself."""
    if "{}" in prompt:
        return prompt.replace("{}", " ")
    if identifier:
        prompt = word_pattern(identifier).sub(" ", prompt)
    return subject.sub(" ", prompt, count=1)


def _prompts_of(name: str) -> list[str]:
    shipped = resources.templates() / "benchmarks" / f"{name}.yaml"
    try:
        if re.fullmatch(r"[a-z0-9_-]+", name) and shipped.is_file():
            return _texts_in(yaml.safe_load(shipped.read_text(encoding="utf-8"))["prompts"])
        return list(phrases_in(Path(name)).values())
    except OSError as error:
        raise ExclusionError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ExclusionError(f"{name} is not UTF-8 text.") from error


def _texts_in(prompts: Any) -> list[str]:
    """The prompts of a benchmark, whichever kind of subject and group they stand under."""
    if isinstance(prompts, str):
        return [prompts]
    parts = prompts.values() if isinstance(prompts, dict) else prompts
    return [text for part in parts for text in _texts_in(part)]


# ----------------------------------------------------------------------------- usable vocabularies


@dataclass(frozen=True)
class Usable:
    """A vocabulary without the phrases that no caption can use.

    Attributes:
        vocabulary: What is left. Slots with no phrase left are not in it.
        removed: By slot, each phrase that was taken out and why.
    """

    vocabulary: Vocabulary
    removed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def usable(
    vocabulary: Vocabulary, exclusions: Exclusions, *, class_noun: str, identifier: str | None
) -> Usable:
    """Take out what alone says something excluded, names the identifier, or a second material.

    A class noun that names its material ("ceramic teapot") takes no phrase that names one as well
    ("glazed porcelain"), unless the user listed it. That may empty the slot; nothing else may.

    Raises:
        ExclusionError: A slot has nothing left to say.
    """
    material = next(iter(_materials_in(class_noun)), None)
    kept: dict[str, list[int]] = {}
    removed: dict[str, dict[str, str]] = {}
    for slot, phrases in vocabulary.slots.items():
        own = vocabulary.origins.get(slot) in ("list", "file")
        second = material if slot in _MATERIAL_SLOTS and not own else None
        faults = [
            _second_material(second, phrase)
            or _named(identifier, phrase)
            or _said(exclusions, phrase)
            for phrase in phrases
        ]
        kept[slot] = [number for number, fault in enumerate(faults) if fault is None]
        if gone := {phrase: why for phrase, why in zip(phrases, faults, strict=True) if why}:
            removed[slot] = gone
        if not kept[slot] and not second:
            phrase, why = next(iter(removed[slot].items()))
            raise ExclusionError(
                f"None of the {len(phrases)} phrases of slot {slot!r} can be used: {phrase!r} "
                f"{why}.",
                hint="Give the slot other phrases, take it out of `prompts.slots`, or change "
                "`prompts.exclude`.",
            )
    return Usable(_only(vocabulary, kept), removed) if removed else Usable(vocabulary)


def _only(vocabulary: Vocabulary, kept: Mapping[str, list[int]]) -> Vocabulary:
    slots, weights = vocabulary.slots, vocabulary.weights
    return replace(
        vocabulary,
        slots={name: tuple(slots[name][n] for n in rest) for name, rest in kept.items() if rest},
        weights={name: tuple(weights[name][n] for n in kept[name]) for name in weights},
    )


def _said(exclusions: Exclusions, phrase: str) -> str | None:
    entry = exclusions.forbids(phrase)
    return f"says what is excluded, {entry!r}" if entry else None


def _named(identifier: str | None, phrase: str) -> str | None:
    found = identifier and has_words(phrase, identifier)
    return f"contains the identifier {identifier!r}" if found else None


def _second_material(material: str | None, phrase: str) -> str | None:
    """Why a phrase cannot stand before a noun that names its material, or None if it can."""
    found = _materials_in(phrase) if material else ()
    return f"names a material, and the class noun says {material!r}" if found else None


def _materials_in(text: str) -> list[str]:
    words = re.findall(r"[a-z]+(?!\w|-finish)", text.lower())  # satin-finish is no satin
    return [word for word in words if word in MATERIALS]
