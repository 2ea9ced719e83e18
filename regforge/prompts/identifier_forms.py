"""How captions name a subject: behind or before what is said of it, in quotes, as half a word."""

from __future__ import annotations

import re
from collections.abc import Sequence

from regforge.prompts.captions import noun_pattern
from regforge.prompts.noun_phrases import (
    BEFORE_VERBS,
    NAMING,
    ONE,
    NounPhrase,
    category_of,
    is_kindred,
    noun_phrases,
)
from regforge.prompts.word_classes import (
    DETERMINERS,
    MEDIA,
    Word,
    ends_phrase,
    is_adjective,
    words_of,
)


def bare(text: str, class_noun: str, identifier: str) -> str:
    """A caption whose identifier stands for itself, as a word of its own.

    Such as in "a woman (ohwx)", 'a dog called "sks"', "<sks> dog", "a sks-dog", "a sks-style car",
    "sks' lid" and "a dog. Its name is sks".

    Args:
        text: One line.
        class_noun: What the subject is.
        identifier: The subject's.
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
    told = re.sub(rf"{name}(?:\s+and\b|[.,;])?\s*", " ", text, flags=re.IGNORECASE).strip()
    return told if noun_pattern(class_noun).search(told) else text


def trails(spoken: Sequence[Word]) -> bool:
    """Whether a caption ends with the identifier as a word of no sentence.

    Such as "a cat on a table sks".
    """
    if len(spoken) < 3 or spoken[-1].kind != "identifier" or spoken[-1].gap:
        return False
    place = len(spoken) - 2
    ahead = spoken[place]
    if ahead.kind or ahead.lower in DETERMINERS | NAMING or is_adjective(ahead.lower):
        return False
    if ahead.lower.endswith("ed") or spoken[place - 1].lower in BEFORE_VERBS:
        return False
    return not ends_phrase(spoken, place) and any(word.kind == "noun" for word in spoken[:place])


_OPENS = re.compile(
    r"(?:there (?:is|are)|this is|(?:an?|the|this|these|in (?:this|the))\b[^,.]*"
    rf"\b(?:{'|'.join(sorted(MEDIA))}))\b",
    re.IGNORECASE,
)
"""How vision models begin."""


def behind_trigger(
    text: str, class_noun: str, spoken: list[Word]
) -> tuple[str, list[Word], list[NounPhrase]] | None:
    """What stands behind a trigger word: "ohwx, a photo of a woman on a bench".

    Captioning tools put the identifier, perhaps with the class noun, before what a vision model has
    said of the photo.

    Returns:
        The rest, its words and the phrases about the subject; None where the caption's first words
        are a part of it.
    """
    nth = next((k for k, word in enumerate(spoken) if k and set(",.:;|") & set(word.gap)), 0)
    trigger, behind = spoken[:nth], spoken[nth:]
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
        said = words_of(rest, noun, None)
        found = noun_phrases(said, noun)
        if found and found[0].clear and found[0].determiner in ONE and not found[0].plural:
            return rest, said, found
    return None
