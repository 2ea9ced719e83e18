"""What captions without slots talk about: how rich their words are, and what they say.

A color, a place and a style are looked for with the words of the shipped phrase banks: the last
word of every color ("cherry red"), the last word of every place behind a preposition ("on an empty
beach"), the last word of every style but "photo" ("a loose watercolor sketch of"). A rule of thumb:
it overlooks words that no bank has.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from regforge.audit.captions import counted, entropy
from regforge.audit.findings import Check, Grade, percent, ratio
from regforge.audit.gathering import Gathered
from regforge.embedded import phrase_banks
from regforge.prompts.exclude import plain_words

FEW_WORDS = 6
SOME_WORDS = 12
"""Effective words of a set that says almost nothing ("a photo of a woman" has 4), and little."""

SELDOM = 0.1
"""Share of captions below which a set counts as not saying such a thing."""

_REACH = 6  # words behind a preposition among which a place is looked for
_NO_COLORS = frozenset(
    "colored haired marked toned tone browned colorful "
    "bright dark deep fair light pale vivid".split()
)
_PLAIN_COLORS = frozenset("red orange yellow green blue purple pink brown grey".split())
_NO_STYLES = frozenset("photo photograph picture shot snapshot still".split())


def coverage(found: Gathered) -> Check:
    """How rich the captions' words are, and what they say.

    Effective words are the exponential of Shannon's entropy of the words: as many words, used
    equally often, would be as rich (Hill number of order 1; Jost, Oikos 113, 2006).
    """
    counts = counted(found)
    total = counts.total()
    if not total:
        return Check("word coverage", "unknown", "There are no captions.")
    words: Counter[str] = Counter()
    says: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {slot: Counter() for slot in ("color", "place", "style")}
    for text, count in counts.items():
        spoken = plain_words(text).split()
        for word in spoken:
            words[word] += count
        for slot, value in _said(spoken).items():
            says[slot] += count
            values[slot][value] += count
    effective = math.exp(entropy(words.values()))
    numbers = {
        "words": words.total(),
        "distinct_words": len(words),
        "type_token_ratio": ratio(len(words), words.total()),
        "evenness": round(math.log(effective) / math.log(len(words)), 3) if len(words) > 1 else 0.0,
        "effective_words": round(effective, 1),
        "says": {slot: ratio(says[slot], total) for slot in values},
        "most_said": {slot: dict(found.most_common(5)) for slot, found in values.items()},
    }
    nothing = all(says[slot] < SELDOM * total for slot in values)
    grade: Grade = (
        "bad" if effective < FEW_WORDS else "look" if nothing or effective < SOME_WORDS else "good"
    )
    said = ", ".join(f"a {slot} {percent(says[slot], total)}" for slot in values)
    return Check(
        "word coverage",
        grade,
        f"{len(words):,} different words, as rich as {effective:.0f} used equally often; of "
        f"{total:,} captions {said}.",
        "Captions hardly differ in what they say: vary color, place and style." * (grade != "good"),
        numbers,
        [f"{slot}: {', '.join(top)}" for slot, counter in values.items() if (top := _top(counter))],
    )


def _top(counter: Counter[str]) -> list[str]:
    return [word for word, _ in counter.most_common(4)]


def _said(words: list[str]) -> Mapping[str, str]:
    """The first color, place and style that a caption says."""
    lexicon = _lexicon()
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        if word in lexicon.colors:
            found.setdefault("color", word)
        if word in lexicon.styles:
            found.setdefault("style", word)
        if word in lexicon.prepositions:
            near = words[number + 1 : number + 1 + _REACH]
            place = next((each for each in near if each in lexicon.places), None)
            if place:
                found.setdefault("place", place)
    return found


class _Lexicon(NamedTuple):
    colors: frozenset[str]
    places: frozenset[str]
    prepositions: frozenset[str]
    styles: frozenset[str]


@functools.cache
def _lexicon() -> _Lexicon:
    banks = phrase_banks.load()

    def phrases(slot: str) -> list[list[str]]:
        texts = {p.text for name in banks.super_categories for p in banks.phrases(slot, name)}
        return [plain_words(text).split() for text in texts]

    def last(slot: str, besides: frozenset[str] = frozenset()) -> set[str]:
        endings = (next((w for w in reversed(p) if w not in besides), "") for p in phrases(slot))
        return set(endings) - {""}

    return _Lexicon(
        frozenset(last("color", _NO_COLORS) | _PLAIN_COLORS),
        frozenset(last("background")),
        frozenset(words[0] for words in phrases("background")),
        frozenset(last("style") - _NO_STYLES),
    )
