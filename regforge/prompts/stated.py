"""What a caption says of its subject outside the subject's own noun phrase.

    a woman | with short brown hair wearing a red dress      hair, clothes
    a robot toy | . The robot is painted a glossy blue.      color, surface
    a robot toy | with black hands on a white table          nothing: these are of other things

Where the rest of a caption states an attribute, another one before the noun would contradict it. A
describing word counts as the subject's where the noun behind it is the subject, its hair, its fur
or its surface, and where there is no noun behind it, unless the sentence is about another thing. In
doubt it counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from regforge.prompts.noun_phrases import is_kindred
from regforge.prompts.word_classes import (
    BODIES,
    BUILDS,
    COPULAS,
    DEFINITE,
    DETERMINERS,
    GARMENTS,
    HAIR,
    HAIR_HUES,
    HAIRY,
    MARKS,
    PREPOSITIONS,
    PRONOUNS,
    Word,
    ends_phrase,
    is_adjective,
    is_form,
    is_hue,
    is_surface,
)

KINDS = ("hue", "surface", "form", "hair", "clothes")

_OF_THINGS = {
    "color": "hue",
    "colour": "hue",
    "texture": "surface",
    "material": "surface",
    "pattern": "surface",
    "finish": "surface",
    "shape": "form",
    "size": "form",
}
_OF_PEOPLE = _OF_THINGS | {
    "color": "hair",
    "colour": "hair",
    "hair": "hair",
    "texture": "clothes",
    "material": "clothes",
    "clothes": "clothes",
    "clothing": "clothes",
    "outfit": "clothes",
    "build": "form",
}
_FINISHED = frozenset(
    "painted colored coloured upholstered covered wrapped coated finished clad trimmed".split()
)
_MADE = frozenset(
    "made crafted carved built constructed knitted sculpted woven molded cast".split()
)
_SHADES = frozenset(
    "shade shades swirl swirls mix mixture blend combination hue hues tone tones".split()
)
_LONGEST_CLAUSE = 60
_IMAGE = r"(?:photo\w*|picture|image|portrait|shot|film|drawing|sketch|still|illustration)"
_COLORLESS_IMAGE = re.compile(
    rf"\b(?:black[- ]and[- ]white|b&w) (?:\w+ )?{_IMAGE}|"
    rf"(?:{_IMAGE}|taken|drawn|rendered) in (?:black and white|b&w)|"
    r"(?:^|, ?)(?:in )?black[- ]and[- ]white(?:,|$)|"
    r"\b(?:monochrome|gr[ae]y ?scale|sepia|line ?art)\b",
    re.IGNORECASE,
)
"""Images without colours, of which nothing can be "bright red"."""


def kinds_of_slot(slot: str, *, person: bool | None) -> tuple[str, ...]:
    """Which kinds of attributes a slot varies, of `KINDS`; none for a slot of the user's own.

    The banks' colours of people are those of their hair, and their textures are clothes.

    Args:
        slot: Any.
        person: Whether the subject is a person; None if nobody knows.
    """
    of = [] if person else [_OF_THINGS]
    of += [] if person is False else [_OF_PEOPLE]
    return tuple(dict.fromkeys(kinds[slot] for kinds in of if slot in kinds))


def stated(
    words: Sequence[Word],
    hidden: Collection[int],
    *,
    category: str | None,
    caption: str,
    apposed: int | None = None,
) -> Mapping[str, str]:
    """What kinds of attributes a caption states of its subject, and with which words.

    Args:
        words: Of the whole caption, see `word_classes.words_of`.
        hidden: Places of words that do not count: the subject's own phrase, and those of others.
        category: Of the class noun, see `noun_phrases.category_of`; None if nobody knows.
        caption: The text.
        apposed: The place behind the subject's phrase, where "a grey sloth" of "sks plushie, a
            grey sloth, on a bed" may say what it is.

    Returns:
        The words that state it, by kind.
    """
    if category is None:  # a class noun that no bank knows may be a person's, or a thing's
        both = (
            stated(words, hidden, category=each, caption=caption, apposed=apposed)
            for each in ("person", "")
        )
        return {kind: text for found in both for kind, text in found.items()}
    found: dict[str, str] = {}
    person = category == "person"

    def say(kind: str, first: int, last: int) -> None:
        found.setdefault(kind, caption[words[first].start : words[last].end])

    if image := _COLORLESS_IMAGE.search(caption):
        found["hair" if person else "hue"] = image[0].strip(" ,")
    place = 0
    while place < len(words):
        word = words[place].lower
        if place in hidden or words[place].kind:
            place += 1
            continue
        if person and word in GARMENTS:
            say("clothes", place, _garment(words, place))
        if person and (word in HAIRY or word.endswith("-haired")):
            say("hair", place, place)
        of = words[place + 1].lower if place + 1 < len(words) else ""
        if not person and word in _MADE and of in ("of", "from", "out", "in"):
            say("surface", place, min(place + 2, len(words) - 1))
        if not person and word in MARKS:
            say("surface", place, place)
            say("hue", place, place)
        if not is_adjective(word) and word not in HAIR_HUES:
            place += 1
            continue
        last = _chain(words, place, hidden)
        for kind, first in _of_chain(words, place, last, hidden, category, apposed).items():
            say(kind, first, min(last + 1, len(words) - 1) if _noun(words, last) else last)
        place = last + 1
    return found


def _chain(words: Sequence[Word], place: int, hidden: Collection[int]) -> int:
    """The last of the describing words that go together: "long, wavy, light brown"."""
    last = place
    k = place + 1
    while k < len(words) and k not in hidden and not words[k].kind:
        joined = words[k].gap == "" or words[k].gap == ","
        if not joined or (words[k].gap and words[k].lower.endswith("ing")):
            break
        if words[k].lower in ("and", "or", "&", "with"):
            more = k + 1 < len(words) and k + 1 not in hidden and not words[k + 1].gap
            if words[k].lower == "with" or not more or not is_adjective(words[k + 1].lower):
                break
            k += 1
        elif not is_adjective(words[k].lower) and words[k].lower not in HAIR_HUES:
            break
        last = k
        k += 1
    return last


def _noun(words: Sequence[Word], last: int) -> Word | None:
    """The noun that describing words stand before, if there is one."""
    if last + 1 >= len(words) or words[last + 1].gap not in ("", '"'):
        return None
    following = words[last + 1]
    if following.kind:
        return following
    if following.lower in BODIES | HAIR | BUILDS | MARKS:
        return following
    return None if ends_phrase(words, last + 1) and not _plural_noun(words, last) else following


def _plural_noun(words: Sequence[Word], last: int) -> bool:
    """Whether the word behind ends in "s" as nouns do: "black hands", and not "black is"."""
    word = words[last + 1].lower
    return (
        word.endswith("s")
        and word not in COPULAS | PRONOUNS | DETERMINERS
        and len(word) > 3
        and not word.endswith("ss")
    )


def _of_chain(
    words: Sequence[Word],
    first: int,
    last: int,
    hidden: Collection[int],
    category: str | None,
    apposed: int | None,
) -> dict[str, int]:
    """The kinds of attributes that describing words state of the subject, and where each begins."""
    noun = _noun(words, last)
    kinds: Mapping[str, Callable[[str], bool]] = {}
    if noun is None:
        kinds = _of_predicate(words, first, last, category)
    elif last + 1 not in hidden:
        definite = first > 0 and words[first - 1].lower in DEFINITE
        again = bool(noun.kind) or (definite and is_kindred(noun, category))
        again = again or (first - 1 == apposed and _is_apposition(words[first - 1]))
        again = again or _says_what_it_is(words, first, category)
        kinds = _of_noun(noun.lower, category, again=again)
    found: dict[str, int] = {}
    for k in range(first, last + 1):
        for kind, holds in kinds.items():
            if holds(words[k].lower):
                found.setdefault(kind, k)
    return found


def _of_noun(
    noun: str, category: str | None, *, again: bool
) -> Mapping[str, Callable[[str], bool]]:
    """The kinds of attributes that words before a noun can state of the subject.

    Args:
        noun: In lower case.
        category: Of the class noun.
        again: Whether the noun is the subject itself.
    """
    if category != "person":
        walls = category == "building" and noun in ("walls", "facade", "siding", "bricks")
        return _THINGS if again or walls or noun in BODIES else {}
    if noun in HAIR:
        return {"hair": lambda word: word in HAIR_HUES or is_hue(word)}
    return {"form": is_form} if again or noun in BUILDS else {}


def _of_predicate(
    words: Sequence[Word], first: int, last: int, category: str | None
) -> Mapping[str, Callable[[str], bool]]:
    """The kinds of attributes that words with no noun behind them can state of the subject."""
    head, linked = _clause_head(words, first)
    itself = _is_noun_itself(words, first, last) and not _says_what_it_is(words, first, category)
    if itself or _is_another(head, category):
        return {}
    if category != "person":
        return _THINGS
    if (head is not None and head.lower in HAIR) or (first and words[first - 1].lower in HAIR):
        return {"hair": is_hue}  # "her hair dyed pink"
    return {"form": is_form} if linked else {}


_THINGS: dict[str, Callable[[str], bool]] = {
    "hue": is_hue,
    "surface": is_surface,
    "form": is_form,
}


def _is_noun_itself(words: Sequence[Word], first: int, last: int) -> bool:
    """Whether describing words are a thing of their own: "next to an orange", "on the stone".

    Without a verb, those behind a preposition are a place or a light: "on grass", "in gold".
    """
    if first == 0 or words[first].gap:
        return False
    ahead = words[first - 1].lower
    if first > 1 and words[first - 2].lower in _FINISHED | _MADE | _SHADES:
        return False
    if ahead in DETERMINERS:
        return True
    return ahead in PREPOSITIONS and not (ahead == "in" and is_hue(words[last].lower))


def _clause_head(words: Sequence[Word], place: int) -> tuple[Word | None, bool]:
    """The noun that the clause before a place is about, if one is found, and whether it has a verb.

    "The wall behind it is white" is about the wall; "it is white" is about it.
    """
    start = place
    while start > max(0, place - _LONGEST_CLAUSE) and not set(".;:!?,") & set(words[start].gap):
        start -= 1
        joins = words[start].lower in ("while", "but", "whose", "and") and start < place - 1
        if joins and (words[start].lower != "and" or _opens_clause(words[start + 1])):
            start += 1
            break
    verbs = [k for k in range(start, place) if words[k].lower in COPULAS]
    if not verbs:
        return None, False
    for k in range(start, verbs[0]):
        word = words[k]
        owned = k + 1 < verbs[0] and words[k + 1].lower in ("'s", "’s")
        if word.kind or word.lower in PRONOUNS:
            if not owned:
                return word, True
        elif word.lower not in DETERMINERS and word.lower not in ("'s", "’s"):
            is_noun = not is_adjective(word.lower) and not ends_phrase(words, k)
            if is_noun or (k > 0 and _plural_noun(words, k - 1)):
                return word, True
    return None, True


def _is_apposition(word: Word) -> bool:
    return word.gap == "," and word.lower in ("a", "an", "the")


def _says_what_it_is(words: Sequence[Word], first: int, category: str | None) -> bool:
    """Whether describing words are in "it is a brown tabby"."""
    if first < 2 or words[first - 1].lower not in ("a", "an"):
        return False
    verb = words[first - 2].lower.replace("’", "'")
    if verb in ("it's", "he's", "she's"):
        return True
    return verb in ("is", "was") and not _is_another(_clause_head(words, first)[0], category)


def _opens_clause(word: Word) -> bool:
    return word.lower in DETERMINERS | PRONOUNS


def _is_another(head: Word | None, category: str | None) -> bool:
    """Whether a clause is about another thing than the subject."""
    if head is None or head.kind or is_kindred(head, category):
        return False
    return head.lower not in PRONOUNS | BODIES | HAIR | BUILDS | _THE_SUBJECT


def _garment(words: Sequence[Word], place: int) -> int:
    """The last word of what is worn: "wearing a red dress"."""
    for k in range(place + 1, min(place + 6, len(words))):
        if words[k].gap:
            break
        if words[k].lower in GARMENTS:
            return k
    return place


_THE_SUBJECT = frozenset("subject figure character object item creature thing one".split())
