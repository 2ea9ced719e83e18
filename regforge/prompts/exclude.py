"""What captions must not say: prompts of a benchmark, phrases of the user's own, each other.

A caption says what an entry says if all of the entry's content words are in it, in any order: "a
teapot with a mountain in the background" is said by "a teapot before snowy mountains". That keeps
out more than the entry itself, which is what one wants of an evaluation. The class noun, the
identifier and small words do not count, on either side.

Also takes phrases out of a vocabulary that no caption can use, before anything is drawn.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import templates_folder
from regforge.prompts.captions import noun_pattern, word_pattern
from regforge.prompts.vocabulary import Vocabulary
from regforge.recipe.named_files import phrases_in
from regforge.words import has_words, plain_words

_SMALL_WORDS = frozenset(
    # Words of place, and "background" with them: "in a city" is "with a city in the background".
    "a an the this that these those its it his her their my and or of on in at to by for from with "
    "without over under above below near next beside behind between against inside outside before "
    "front top back background around across along through into onto up down off out is are be "
    "being as some very wearing photo picture image".split()
)
_MATERIALS = frozenset(
    "acetate acrylic aluminium aluminum bamboo bone brass bronze canvas cardboard ceramic "
    "china chrome clay copper corduroy cotton crystal denim earthenware enamel enameled felt "
    "fleece fur glass gold granite iron jade knitted lace leather linen marble metal nylon "
    "paper papier pewter plaster plastic plush porcelain raku resin rubber satin silk silver "
    "stainless steel stone stoneware suede terracotta tin titanium tweed velvet vinyl wax "
    "wicker wood wooden wool woolen".split()
)
_MATERIAL_SLOTS = ("texture", "material")


class ExclusionError(RegforgeError):
    """Something to exclude that cannot be used, or that leaves nothing to say."""

    exit_code = EXIT_USAGE


# ------------------------------------------------------------------------------------- exclusions


@functools.lru_cache(maxsize=65_536)
def _fold(word: str) -> str:
    """A word without its plural ending; close enough to compare by."""
    if len(word) <= 3 or word.endswith(("ss", "us", "is")):
        return word
    for ending, singular in (("ies", "y"), ("ves", "f")):
        if word.endswith(ending):
            return word[: -len(ending)] + singular
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def content_words(text: str) -> frozenset[str]:
    """List the folded words of a text that say something; "cube-shaped" is two."""
    found = re.findall(r"[^\W_]+", text.casefold())
    return frozenset(_fold(word) for word in found if word not in _SMALL_WORDS)


@dataclass(frozen=True)
class Exclusions:
    """The prompts and phrases to keep out, and the content words of each.

    The first mention of the subject, the class noun, does not count.
    """

    entries: tuple[tuple[str, frozenset[str]], ...] = ()
    subject: re.Pattern[str] | None = None

    @classmethod
    def load(
        cls, names: Iterable[str], *, class_noun: str, identifier: str | None = None
    ) -> Exclusions:
        """Read `prompts.exclude`.

        Each name is that of a benchmark that comes with regforge, such as `dreambench`, or a text
        file with one prompt or phrase a line, in which {} may stand for the subject.

        Raises:
            ExclusionError: A file cannot be read, or a line has nothing to look for.
        """
        subject = noun_pattern(class_noun)
        entries: dict[str, frozenset[str]] = {}
        for name in names:
            for text in _prompts_of(name):
                rest = text.replace("{}", " ")
                if "{}" not in text:
                    rest = word_pattern(identifier).sub(" ", rest) if identifier else rest
                    rest = subject.sub(" ", rest, count=1)
                entries[text] = content_words(rest)
                if not entries[text]:
                    raise ExclusionError(
                        f"{name}: {text!r} has no word to look for besides the class noun and "
                        "small words."
                    )
        return cls(tuple(entries.items()), subject)

    def forbids(self, text: str) -> str | None:
        """Find the first entry that a text says."""
        if not self.entries:
            return None
        words = content_words(self.subject.sub(" ", text, count=1) if self.subject else text)
        return next((entry for entry, wanted in self.entries if wanted <= words), None)


def _prompts_of(name: str) -> list[str]:
    shipped = templates_folder() / "benchmarks" / f"{name}.yaml"
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


def usable(
    vocabulary: Vocabulary, exclusions: Exclusions, *, class_noun: str, identifier: str | None
) -> tuple[Vocabulary, dict[str, dict[str, str]]]:
    """Take out what alone says something excluded, names the identifier, or a second material.

    A class noun that names its material ("ceramic teapot") takes no phrase that names one as well
    ("glazed porcelain"), unless the user listed it. That may empty the slot; nothing else may.

    Returns:
        What is left, without slots that have no phrase, and each phrase taken out, with the reason,
        by slot.

    Raises:
        ExclusionError: A slot has nothing left to say.
    """
    material = next(iter(_materials_in(class_noun)), None)
    slots: dict[str, tuple[str, ...]] = {}
    weights = dict(vocabulary.weights)
    removed: dict[str, dict[str, str]] = {}
    for slot, phrases in vocabulary.slots.items():
        own = vocabulary.origins.get(slot) in ("list", "file")
        second = material if slot in _MATERIAL_SLOTS and not own else None
        faults = [_fault(phrase, exclusions, identifier, second) for phrase in phrases]
        kept = [number for number, fault in enumerate(faults) if fault is None]
        if slot in weights:
            weights[slot] = tuple(weights[slot][n] for n in kept)
        if kept:
            slots[slot] = tuple(phrases[n] for n in kept)
        if len(kept) < len(phrases):
            removed[slot] = {text: why for text, why in zip(phrases, faults, strict=True) if why}
        if not kept and not second:
            phrase, why = next(iter(removed[slot].items()))
            raise ExclusionError(
                f"None of the {len(phrases)} phrases of slot {slot!r} can be used: {phrase!r} "
                f"{why}.",
                hint="Give the slot other phrases, take it out of `prompts.slots`, or change "
                "`prompts.exclude`.",
            )
    return replace(vocabulary, slots=slots, weights=weights), removed


def _fault(
    phrase: str, exclusions: Exclusions, identifier: str | None, material: str | None
) -> str | None:
    if material and _materials_in(phrase):
        return f"names a material, and the class noun says {material!r}"
    if identifier and has_words(phrase, identifier):
        return f"contains the identifier {identifier!r}"
    entry = exclusions.forbids(phrase)
    return f"says what is excluded, {entry!r}" if entry else None


def _materials_in(text: str) -> list[str]:
    words = re.findall(r"[a-z]+(?!\w|-finish)", text.lower())  # satin-finish is no satin
    return [word for word in words if word in _MATERIALS]


# ------------------------------------------------------------------------------------- duplicates


class Duplicates:
    """The captions so far: eight bytes of each, and the words where near-duplicates are asked for.

    Args:
        near: Captions that share more than this part of their words (Jaccard similarity, above 0
            to 1) count as the same; None to compare exactly.
    """

    def __init__(self, near: float | None = None) -> None:
        self._digests: set[int] = set()
        self._near = NearDuplicates(near) if near is not None and near < 1 else None

    def add(self, text: str) -> str | None:
        """Remember a caption, or say what it repeats."""
        words = plain_words(text)
        digest = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest())
        if digest in self._digests:
            return "was said before"
        if self._near is not None:
            if (like := self._near.find(words)) is not None:
                return f"says nearly the same as {like!r}"
            self._near.add(words)
        self._digests.add(digest)
        return None


class NearDuplicates:
    """Finds a caption that shares most of its words with a new one, exactly and without scanning.

    Two sets of words as similar as `least` share a word among the first few of either, in any
    order of all words (prefix filtering: Chaudhuri, Ganti and Kaushik, 2006). Only captions that
    share one of those are compared. With rare words first there are few; how rare they are is
    counted anew whenever the captions have doubled.

    Args:
        least: Jaccard similarity above which captions count as the same, 0 to 1.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._texts: list[str] = []
        self._words: list[frozenset[str]] = []
        self._with_word: dict[str, list[int]] = defaultdict(list)
        self._uses: Counter[str] = Counter()

    def find(self, text: str) -> str | None:
        """Find a caption that is more alike than allowed."""
        words = frozenset(text.split())
        candidates = {number for word in self._first(words) for number in self._with_word[word]}
        for number in sorted(candidates):
            other = self._words[number]
            shared = len(words & other)
            if shared > self._least * (len(words) + len(other) - shared):
                return self._texts[number]
        return None

    def add(self, text: str) -> None:
        """Remember a caption."""
        self._texts.append(text)
        self._words.append(frozenset(text.split()))
        fresh = range(len(self._texts) - 1, len(self._texts))
        if len(self._texts).bit_count() == 1:
            self._uses = Counter(word for words in self._words for word in words)
            self._with_word.clear()
            fresh = range(len(self._texts))
        for number in fresh:
            for word in self._first(self._words[number]):
                self._with_word[word].append(number)

    def _first(self, words: frozenset[str]) -> list[str]:
        """Words of which at least one is shared with every set that is alike."""
        count = len(words) - math.ceil(self._least * len(words)) + 1
        return sorted(words, key=lambda word: (self._uses[word], word))[:count]
