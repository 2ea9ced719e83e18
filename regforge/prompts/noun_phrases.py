"""Where a caption speaks of the subject, or of others of its class: noun phrases and their ends.

    a small white and blue sks robot toy    with black hands
    ohwx, a young woman                     with short brown hair

A phrase goes from its determiner to its noun; an apposition ("ohwx, a young woman", "a dog called
sks", "sks is a robot toy") belongs to it. Knows English word classes, and no language model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from regforge.embedded import phrase_banks
from regforge.prompts.captions import plurals
from regforge.prompts.word_classes import (
    BOUNDARIES,
    DEFINITE,
    DETERMINERS,
    INDEFINITE,
    NUMERALS,
    Word,
    ends_phrase,
    is_adjective,
)

_MOST_DESCRIBING = 8
ONE = frozenset(("a", "an", "the", "one", "this"))
"""Determiners of one thing of a kind."""

_QUOTES = frozenset(("", '"', "'", "“", "”", "‘", "’", "*"))
NAMING = frozenset("named called nicknamed labelled labeled titled".split())
"""What stands between a noun and its name."""
BEFORE_VERBS = frozenset("i we you he she they it can could may might will would".split())
"""Behind these stands a verb: "I love", "can see"."""
_APPOSED = frozenset((",", "(", "-", "–", "—", ":", ""))
_PEOPLE = frozenset(
    "woman man girl boy lady gentleman guy person child kid male female model individual subject "
    "teenager toddler baby 1girl 1boy".split()
)


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A phrase about the subject or about another of its class, as places among a caption's words.

    Attributes:
        first: Its first word.
        last: Its last.
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
    """The phrase banks' super-category of a class noun; None for one they do not know."""
    try:
        return phrase_banks.load().super_category(class_noun)
    except phrase_banks.UnknownClassNoun:
        return None


def noun_phrases(words: list[Word], class_noun: str) -> list[NounPhrase]:
    """All phrases of a caption that name the identifier or the class noun, in their order.

    Args:
        words: See `word_classes.words_of`.
        class_noun: What the subject is.
    """
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
        phrase = None
        if word.kind == "identifier":
            phrase = _of_identifier(words, place, class_noun, category)
        elif word.kind == "noun" and (halves or not _is_compound(words, place)):
            first, determiner, clear = _start(words, place)
            plural = _plural(word, class_noun)
            phrase = NounPhrase(first, place, False, determiner, place, plural, clear)
        if phrase is None:
            place += 1
            continue
        phrase = _measured(words, phrase, class_noun)
        while found and found[-1].last >= phrase.first:  # "a dog called sks": one phrase
            phrase = replace(phrase, first=min(phrase.first, found.pop().first))
        found.append(phrase)
        place = phrase.last + 1
    return found


def _measured(words: list[Word], phrase: NounPhrase, class_noun: str) -> NounPhrase:
    """With "a pair of" before it, where that is part of the class noun."""
    measure, of, _ = class_noun.lower().partition(" of ")
    start = phrase.first - 2
    if not of or start < 0 or words[phrase.first - 1].lower != "of":
        return phrase
    if words[start].lower != measure.rsplit(maxsplit=1)[-1]:
        return phrase
    first, determiner, clear = _start(words, start)
    return replace(phrase, first=first, determiner=determiner, plural="", clear=clear)


def _of_identifier(
    words: list[Word], place: int, class_noun: str, category: str | None
) -> NounPhrase:
    first, determiner, clear = _start(words, place)
    last, head = place, place
    after = place + 1
    if (noun := _noun_after(words, after, first=place)) is not None or (
        noun := _kindred(words, after, category, determined=bool(determiner))
    ) is not None:
        last = head = noun
    elif (noun := _noun_before(words, place, class_noun)) is not None:
        first, determiner, clear = _start(words, noun)
        head = noun
    if (apposed := _apposed(words, last, head == place, category)) is not None:
        head = apposed if head == place else head
        last = apposed
    plural = _plural(words[head], class_noun) if head != place else ""
    return NounPhrase(first, last, True, determiner, head, plural, clear)


# ------------------------------------------------------------------------------------- its end


def _noun_after(words: list[Word], place: int, *, first: int | None = None) -> int | None:
    """The class noun behind a place, if only describing words stand between."""
    for k in range(place, min(place + _MOST_DESCRIBING, len(words))):
        word = words[k]
        if not _continues(words, k, k == place and first is None):
            return None
        if word.kind == "noun":
            return k
        if word.kind or (not _coordinates(words, k) and ends_phrase(words, k)):
            return None
    return None


def _continues(words: list[Word], place: int, opening: bool) -> bool:
    """Whether a phrase goes on over the punctuation before a word: "small, white, fluffy dog"."""
    gap = words[place].gap
    if opening or gap in _QUOTES:
        return True
    return gap == "," and place > 0 and is_adjective(words[place - 1].lower)


def _coordinates(words: list[Word], place: int) -> bool:
    """Whether a word is the "and" of two adjectives: "white and blue", not "a cat and a dog"."""
    if words[place].lower not in ("and", "or", "&") or not 0 < place < len(words) - 1:
        return False
    before, after = words[place - 1], words[place + 1]
    return not (before.kind or after.kind) and all(
        is_adjective(each.lower) for each in (before, after)
    )


def _kindred(
    words: list[Word], place: int, category: str | None, *, determined: bool
) -> int | None:
    """Another noun for the subject right behind its identifier: "sks puppy", "a sks figurine"."""
    k = place
    while k < len(words) and words[k].gap in _QUOTES and not words[k].kind:
        if is_kindred(words[k], category):
            return k
        if ends_phrase(words, k) or words[k].lower.endswith("ing"):
            return None
        if not is_adjective(words[k].lower):
            follows = k + 1 == len(words) or words[k + 1].gap or ends_phrase(words, k + 1)
            return k if determined and follows and words[k].text.isalpha() else None
        k += 1
    return None


def is_kindred(word: Word, category: str | None) -> bool:
    """Whether a word may be another noun for the subject: "puppy" of a dog, "girl" of a woman.

    Args:
        word: Any.
        category: Of the class noun, see `category_of`.
    """
    text = word.lower
    if is_adjective(text) or word.kind:
        return word.kind == "noun"
    if category == "person" and text in _PEOPLE:
        return True
    return category is not None and category_of(text) == category and text.isalpha()


def _noun_before(words: list[Word], place: int, class_noun: str) -> int | None:
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
    alone = not _plural(words[noun], class_noun)
    return noun if gap in _APPOSED and closed and alone else None


def _apposed(words: list[Word], last: int, nameless: bool, category: str | None) -> int | None:
    """The noun of an apposition or predicate behind a phrase: ", a young woman", "is a toy".

    Args:
        words: All.
        last: The phrase's last word.
        nameless: Whether the phrase has no noun yet, so that any noun for the subject will do.
        category: Of the class noun.
    """
    place = last + 1
    predicate = nameless and place < len(words) and words[place].lower in ("is", "was")
    place += predicate
    if place >= len(words) or words[place].gap not in ({""} if predicate else _APPOSED):
        return None
    determined = words[place].lower in INDEFINITE | {"the", "my", "our", "this"}
    bare = nameless and not predicate and bool(words[place].gap)  # "ohwx, young woman"
    if not determined and not (bare and _describes_or_names(words[place])):
        return None
    for k in range(place + determined, min(place + _MOST_DESCRIBING, len(words))):
        word = words[k]
        if not _continues(words, k, k == place):
            return None
        if word.kind == "noun" or is_kindred(word, category):
            return k if _ends_apposition(words, k, nameless) else None
        if word.kind or (not _coordinates(words, k) and ends_phrase(words, k)):
            return None
    return None


def _describes_or_names(word: Word) -> bool:
    return word.kind == "noun" or is_adjective(word.lower)


def _ends_apposition(words: list[Word], place: int, nameless: bool) -> bool:
    """Whether an apposition may end with its noun at a place.

    "sks dog, a cat and a ball" is a list, "sks dog, a corgi, running" says it again.
    """
    if _is_compound(words, place):
        return False
    if place + 1 == len(words):
        return True
    following = words[place + 1]
    listed = following.gap == "," and following.lower in DETERMINERS
    if listed or following.lower in ("and", "or"):
        return False
    return nameless or bool(words[place].kind) or bool(following.gap)


def _is_compound(words: list[Word], place: int) -> bool:
    """Whether the noun is the first half of another: "dog bed", "teapot lid"."""
    if place + 1 == len(words):
        return False
    following = words[place + 1]
    if following.gap or following.kind or following.lower in ("'s", "’s"):
        return False
    return not (ends_phrase(words, place + 1) or is_adjective(following.lower))


# ----------------------------------------------------------------------------------- its beginning


def _start(words: list[Word], place: int) -> tuple[int, str, bool]:
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
            return _with_numeral(words, k)
        if word.kind:
            break
        if word.lower in ("'s", "’s"):
            first = k
            continue
        if _coordinates(words, k):
            continue
        if k > 0 and not word.gap and words[k - 1].lower in BEFORE_VERBS:
            break
        determined = k > 0 and not gap and words[k - 1].lower in DETERMINERS
        inside = determined and word.lower not in BOUNDARIES  # "a lit sks candle"
        if ends_phrase(words, k) and not inside:
            break
        first = k
    else:
        if place >= _MOST_DESCRIBING:
            return place, "", False
    return (first if comma is None else comma), "", True


def _with_numeral(words: list[Word], place: int) -> tuple[int, str, bool]:
    """A determiner and the one before it: "these two", "one of the" is none."""
    determiner = words[place].lower
    before = words[place - 1].lower if place and not words[place].gap else ""
    if before in DEFINITE and determiner in NUMERALS:
        return place - 1, determiner, True
    return place, determiner, True


def _plural(word: Word, class_noun: str) -> str:
    """The class noun of several if the word is a plural of it, or of its last word; else ""."""
    form = word.lower.partition(" of ")[0].split()[-1]
    before, of, after = class_noun.partition(" of ")
    *start, last = before.split()
    if form not in plurals(last.lower()):
        return ""
    return " ".join([*start, f"{form}{of}{after}"])  # "robot toys", "cups of tea"
