"""Where a caption speaks of the subject, or of others of its class: noun phrases and their ends.

    a small white and blue sks robot toy    with black hands
    ohwx, a young woman                     with short brown hair

A phrase goes from its determiner to its noun; an apposition ("ohwx, a young woman", "a dog called
sks", "sks is a robot toy") belongs to it. Knows English word classes, and no language model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from regforge.embedded import phrase_banks
from regforge.prompts.captions import noun_pattern, plurals
from regforge.prompts.word_classes import (
    BOUNDARIES,
    DEFINITE,
    DETERMINERS,
    INDEFINITE,
    MEDIA,
    NUMERALS,
    Word,
    ends_phrase,
    is_adjective,
    words_of,
)

ONE = frozenset(("a", "an", "the", "one", "this"))
"""Determiners of one thing of a kind."""
NAMING = frozenset("named called nicknamed labelled labeled titled".split())
"""What stands between a noun and its name."""

_MOST_DESCRIBING = 8
_QUOTES = frozenset(("", '"', "'", "“", "”", "‘", "’", "*"))
_APPOSED = frozenset((",", "(", "-", "–", "—", ":", ""))
_BEFORE_VERBS = frozenset("i we you he she they it can could may might will would".split())
_PEOPLE = frozenset(
    "woman man girl boy lady gentleman guy person child kid male female model individual subject "
    "teenager toddler baby 1girl 1boy".split()
)
_OPENS = re.compile(  # how vision models begin
    r"(?:there (?:is|are)|this is|(?:an?|the|this|these|in (?:this|the))\b[^,.]*"
    rf"\b(?:{'|'.join(sorted(MEDIA))}))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A phrase about the subject or about another of its class, as places among a caption's words.

    Attributes:
        named: Whether the identifier is in it.
        determiner: In lower case; empty if there is none.
        head: Its noun, or the identifier if that stands for it.
        plural: The class noun of several, such as "teapots"; empty for one.
        clear: Whether its beginning is known.
    """

    first: int
    last: int
    named: bool
    determiner: str
    head: int
    plural: str = ""
    clear: bool = True


@functools.lru_cache(maxsize=4096)
def category_of(class_noun: str) -> str | None:
    """Look up the phrase banks' super-category of a class noun, if they know it."""
    try:
        return phrase_banks.load().super_category(class_noun)
    except phrase_banks.UnknownClassNoun:
        return None


def is_kindred(word: Word, category: str | None) -> bool:
    """Tell whether a word may be another noun for a subject of a category: "puppy" of a dog."""
    text = word.lower
    if is_adjective(text) or word.kind:
        return word.kind == "noun"
    if category == "person" and text in _PEOPLE:
        return True
    return category is not None and category_of(text) == category and text.isalpha()


def noun_phrases(words: Sequence[Word], class_noun: str) -> list[NounPhrase]:
    """Find all phrases of a caption that name the identifier or the class noun, in their order."""
    found: list[NounPhrase] = []
    category = category_of(class_noun)
    # "a cat dress" is about a cat only where nothing else is.
    halves = not any(
        word.kind == "identifier" or (word.kind and not _is_compound(words, place))
        for place, word in enumerate(words)
    )
    place = 0
    while place < len(words):
        word = words[place]
        if word.kind == "identifier":
            phrase = _of_identifier(words, place, class_noun, category)
        elif word.kind and (halves or not _is_compound(words, place)):
            first, determiner, clear = _start(words, place)
            plural = _plural(word, class_noun)
            phrase = NounPhrase(first, place, False, determiner, place, plural, clear)
        else:
            place += 1
            continue
        measure, of, _ = class_noun.lower().partition(" of ")
        start = phrase.first - 2
        if of and start >= 0 and words[start].lower == measure.rsplit(maxsplit=1)[-1]:
            first, determiner, clear = _start(words, start)  # "a pair of"
            phrase = replace(phrase, first=first, determiner=determiner, plural="", clear=clear)
        while found and found[-1].last >= phrase.first:  # "a dog called sks": one phrase
            phrase = replace(phrase, first=min(phrase.first, found.pop().first))
        found.append(phrase)
        place = phrase.last + 1
    return found


def _of_identifier(
    words: Sequence[Word], place: int, class_noun: str, category: str | None
) -> NounPhrase:
    first, determiner, clear = _start(words, place)
    last = head = place
    noun = _reached(words, place + 1, lambda word: word.kind == "noun")
    if noun is None:
        noun = _kindred(words, place + 1, category, determined=bool(determiner))
    if noun is not None:
        last = head = noun
    elif (noun := _noun_before(words, place, class_noun)) is not None:
        first, determiner, clear = _start(words, noun)
        head = noun
    if (apposed := _apposed(words, last, head == place, category)) is not None:
        head = apposed if head == place else head
        last = apposed
    plural = _plural(words[head], class_noun) if head != place else ""
    return NounPhrase(first, last, True, determiner, head, plural, clear)


# --------------------------------------------------------------------------------------- its end


def _reached(
    words: Sequence[Word], start: int, is_noun: Callable[[Word], bool], *, opening: bool = False
) -> int | None:
    """The noun from a place on, if only describing words stand before it."""
    for k in range(start, min(start + _MOST_DESCRIBING, len(words))):
        gap = words[k].gap  # "small, white, fluffy dog" goes on over commas
        listed = gap == "," and k > 0 and is_adjective(words[k - 1].lower)
        if gap not in _QUOTES and not listed and not (opening and k == start):
            return None
        if is_noun(words[k]):
            return k
        if words[k].kind or (not _coordinates(words, k) and ends_phrase(words, k)):
            return None
    return None


def _coordinates(words: Sequence[Word], place: int) -> bool:
    """Whether a word is the "and" of two adjectives: "white and blue", not "a cat and a dog"."""
    if words[place].lower not in ("and", "or", "&") or not 0 < place < len(words) - 1:
        return False
    around = (words[place - 1], words[place + 1])
    return not any(each.kind or not is_adjective(each.lower) for each in around)


def _kindred(
    words: Sequence[Word], place: int, category: str | None, *, determined: bool
) -> int | None:
    """Another noun for the subject right behind its identifier: "sks puppy", "a sks figurine"."""
    for k in range(place, len(words)):
        word = words[k]
        if word.gap not in _QUOTES or word.kind:
            return None
        if is_kindred(word, category):
            return k
        if ends_phrase(words, k) or word.lower.endswith("ing"):
            return None
        if not is_adjective(word.lower):
            follows = k + 1 == len(words) or words[k + 1].gap or ends_phrase(words, k + 1)
            return k if determined and follows and word.text.isalpha() else None
    return None


def _noun_before(words: Sequence[Word], place: int, class_noun: str) -> int | None:
    """The class noun before the identifier: "teapot sks", "a dog called sks", "a woman, ohwx"."""
    naming = place > 1 and words[place - 1].lower in NAMING and words[place - 1].gap in ("", ",")
    noun = place - 2 if naming else place - 1
    if noun < 0 or words[noun].kind == "identifier":
        return None
    if not words[noun].kind:  # "a beagle named sks"
        other = naming and words[noun].text.isalpha() and not ends_phrase(words, noun)
        return noun if other and not is_adjective(words[noun].lower) else None
    gap = words[place].gap
    if gap in _QUOTES or (naming and gap in _APPOSED):
        return noun
    closed = place + 1 == len(words) or words[place + 1].gap[:1] in {",", ")", "-", "–", "—"}
    closed = closed or ends_phrase(words, place + 1)
    return noun if gap in _APPOSED and closed and not _plural(words[noun], class_noun) else None


def _apposed(words: Sequence[Word], last: int, nameless: bool, category: str | None) -> int | None:
    """The noun of an apposition or predicate behind a phrase: ", a young woman", "is a toy".

    A `nameless` phrase has no noun yet, so that any noun for the subject will do.
    """
    place = last + 1
    predicate = nameless and place < len(words) and words[place].lower in ("is", "was")
    place += predicate
    if place >= len(words) or words[place].gap not in ({""} if predicate else _APPOSED):
        return None
    word = words[place]
    determined = word.lower in INDEFINITE | {"the", "my", "our", "this"}
    bare = nameless and not predicate and bool(word.gap)  # "ohwx, young woman"
    if not determined and not (bare and (word.kind == "noun" or is_adjective(word.lower))):
        return None
    noun = _reached(
        words,
        place + determined,
        lambda each: each.kind == "noun" or is_kindred(each, category),
        opening=not determined,
    )
    return noun if noun is not None and _ends_apposition(words, noun, nameless) else None


def _ends_apposition(words: Sequence[Word], place: int, nameless: bool) -> bool:
    """Whether an apposition may end with its noun at a place.

    "sks dog, a cat and a ball" is a list, "sks dog, a corgi, running" says it again.
    """
    if _is_compound(words, place):
        return False
    if place + 1 == len(words):
        return True
    following = words[place + 1]
    if following.lower in ("and", "or") or (
        following.gap == "," and following.lower in DETERMINERS
    ):
        return False
    return nameless or bool(words[place].kind) or bool(following.gap)


def _is_compound(words: Sequence[Word], place: int) -> bool:
    """Whether the noun is the first half of another: "dog bed", "teapot lid"."""
    if place + 1 == len(words):
        return False
    following = words[place + 1]
    if following.gap or following.kind or following.lower in ("'s", "’s"):
        return False
    return not (ends_phrase(words, place + 1) or is_adjective(following.lower))


# ----------------------------------------------------------------------------------- its beginning


def _start(words: Sequence[Word], place: int) -> tuple[int, str, bool]:
    """Where the phrase begins that has its noun or identifier at a place.

    Returns:
        The first word's place, the determiner in lower case or "", and whether that is sure.
    """
    first = place
    comma = None  # the phrase if what stands before a comma is not part of it
    for k in range(place - 1, max(place - _MOST_DESCRIBING, 0) - 1, -1):
        word, gap = words[k], words[k + 1].gap
        if gap not in _QUOTES and not (gap == "," and is_adjective(word.lower)):
            break
        if gap == "," and comma is None:
            comma = first
        if word.lower in DETERMINERS:
            before = words[k - 1].lower if k and not word.gap else ""
            several = before in DEFINITE and word.lower in NUMERALS  # "these two"
            return k - several, word.lower, True
        if word.kind:
            break
        if word.lower in ("'s", "’s"):
            first = k
            continue
        if _coordinates(words, k):
            continue
        if k > 0 and not word.gap and words[k - 1].lower in _BEFORE_VERBS:
            break  # "I love sks", "can see sks"
        determined = k > 0 and not gap and words[k - 1].lower in DETERMINERS
        inside = determined and word.lower not in BOUNDARIES  # "a lit sks candle"
        if ends_phrase(words, k) and not inside:
            break
        first = k
    else:
        if place >= _MOST_DESCRIBING:
            return place, "", False
    return (first if comma is None else comma), "", True


def _plural(word: Word, class_noun: str) -> str:
    """The class noun of several if the word is a plural of it, or of its last word; else ""."""
    form = word.lower.partition(" of ")[0].split()[-1]
    before, of, after = class_noun.partition(" of ")
    *start, last = before.split()
    if form not in plurals(last.lower()):
        return ""
    return " ".join([*start, f"{form}{of}{after}"])  # "robot toys", "cups of tea"


# ------------------------------------------------------------------------------- identifiers


def bare(text: str, class_noun: str, identifier: str) -> str:
    """Make a caption's identifier a word of its own that stands for itself.

    Such as in "a woman (ohwx)", 'a dog called "sks"', "<sks> dog", "a sks-dog", "a sks-style car",
    "sks' lid" and "a dog. Its name is sks".
    """
    named = r"\s+".join(map(re.escape, identifier.split()))
    noun = noun_pattern(class_noun).pattern
    for pattern, instead in (
        (rf"[(\"“'‘<`*]{{1,2}}\s*({named})\s*[)\"”'’>`*]{{1,2}}(?!\w)", r"\1"),
        (rf"(?<![\w-])({named})\s*[-/+=]\s*(?={noun}(?!-))", r"\1 "),
        (rf"({noun})[-/+=](?={named}(?![\w-]))", r"\1 "),
        (rf"(?<![\w-])({named})-(?:styled?|like|type|themed|inspired|branded)(?![\w-])", r"\1"),
        (rf"^([^'‘’]*(?<!\w){named}(?<=s))['’](?=\s+\w)", r"\1's"),
        (rf"({noun})(?:['’]s\s+name\s+is|\s+is\s+(?:called|named))\s+(?={named}(?!\w))", r"\1 "),
        (rf",?\s+whose\s+name\s+is\s+(?={named}(?!\w))", " named "),
    ):
        text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
    name = rf"(?:^|(?<=[.;,])\s*|\s+and\s+)(?:her|his|its|the)\s+name\s+is\s+{named}(?!\w)"
    rest = re.sub(rf"{name}(?:\s+and\b|[.,;])?\s*", " ", text, flags=re.IGNORECASE).strip()
    return rest if noun_pattern(class_noun).search(rest) else text


def trails(words: Sequence[Word]) -> bool:
    """Tell whether a caption ends with the identifier outside its sentence: "a cat here sks"."""
    if len(words) < 3 or words[-1].kind != "identifier" or words[-1].gap:
        return False
    place = len(words) - 2
    ahead = words[place]
    if ahead.kind or ahead.lower in DETERMINERS | NAMING or is_adjective(ahead.lower):
        return False
    if ahead.lower.endswith("ed") or words[place - 1].lower in _BEFORE_VERBS:
        return False
    return not ends_phrase(words, place) and any(word.kind == "noun" for word in words[:place])


def behind_trigger(
    text: str, class_noun: str, words: Sequence[Word]
) -> tuple[str, list[Word], list[NounPhrase]] | None:
    """Find what stands behind a trigger word: "ohwx, a photo of a woman on a bench".

    Captioning tools put the identifier, perhaps with the class noun, before what a vision model has
    said of the photo.

    Returns:
        The rest, its words and the phrases about the subject; None where the caption's first words
        are a part of it.
    """
    nth = next((k for k, word in enumerate(words) if k and set(",.:;|") & set(word.gap)), 0)
    trigger, behind = words[:nth], words[nth:]
    if not trigger or trigger[0].kind != "identifier" or not all(word.kind for word in trigger):
        return None
    rest = text[behind[0].start :]
    begins = behind[0].lower in ("a", "an", "the", *MEDIA) and len(trigger) == 1
    if any(word.kind == "identifier" for word in behind) or not (begins or _OPENS.match(rest)):
        return None
    category = category_of(class_noun)
    others = [bool(category) and is_kindred(word, category) for word in behind]
    ends = zip(behind, others, [*others[1:], False], strict=True)  # the puppy of a corgi puppy
    for noun in (class_noun, *(word.lower for word, is_one, goes_on in ends if is_one > goes_on)):
        rest_words = words_of(rest, noun, None)
        found = noun_phrases(rest_words, noun)
        if found and found[0].clear and found[0].determiner in ONE and not found[0].plural:
            return rest, rest_words, found
    return None
