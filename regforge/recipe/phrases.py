"""What a phrase of a caption can never be, whoever wrote it: the user, a model, another dataset.

Placeholders ("n/a"), talk ("I cannot help"), paths, format strings and the syntax of other programs
would stand in captions letter by letter. Knows no grammar of slots beyond what makes a phrase
impossible; what a language model's phrases must be like besides is in `prompts.phrase_rules`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from regforge.embedded.english import folded, has_words, words_of

BEFORE_NOUN = frozenset({"shape", "size", "color", "texture", "material"})
"""Slots whose phrases stand right before the class noun."""

MOST_CHARACTERS = 200

_NOTHING = (
    r"n\.?/?a\.?|none(?: of (?:the above|these|them))?|null|nil|nan|nada|nothing|undefined|unknown|"
    r"unspecified|default|tbd|todo|etc|varies|variable|misc(?:ellaneous)?|placeholder|example|empty|"
    r"blank|lorem ipsum.*|true|false|yes|no|ok|okay|xxx+|the same|"
    r"(?:not|un)[ -]?(?:applicable|available|specified|known|provided|given)|"
    r"(?:no|any|some|all|other|various|different|same|similar|multiple|several|assorted|random|mixed|unknown|"
    r"unspecified|default)"
    r"(?: (?:{slot}|colou?r|shape|size|texture|material|background|place|lighting|light|style|"
    r"motion|kind|type|option|value|phrase|thing|choice)s?)?"
    r"(?: (?:specified|given|provided|known|mentioned))?"
)
_TALK = re.compile(
    r"\b(?:as an? (?:ai|language model|assistant)|(?:ai|language) (?:assistant|model)|"
    r"i(?: ?['’]?m| am) (?:sorry|unable|not able|an? )|"
    r"(?:i|we) (?:can ?not|can['’]?t|won['’]?t|will|would|do not|don['’]?t|could|must|have to|hope|"
    r"think|apologi[sz]e)|"
    r"(?:ignore|disregard|forget)\b.*\b(?:instruction|prompt|above|previous|rule|message)s?|"
    r"(?:system|user|assistant) ?(?:prompt|:)|"
    r"(?:sorry|certainly|sure|of course),? (?:here|but|i\b)|"
    r"here (?:are|is|['’]s) (?:the|a|an|some|your|\d+|more)|let me know|"
    r"please (?:provide|note|let|specify)|click here|jailbreak)"
    r"|^(?:sorry|certainly|sure|of course|absolutely|i apologi[sz]e)\b",
)
_PATH = re.compile(r"\w+://|\bwww\.|(?:^|\s)(?:~|\.{1,2})?/+[\w.]|[/\\]\.\.|\.\.[/\\]|\\")
_CODE = re.compile(r"__\w+__|\{[^{}]*\}|<\w+:[^<>]*>|%[a-z]\b|\$\{", re.I)
_MARKUP = re.compile(
    r"[()\[\]{}<>|$@^=~`_\\]|#[0-9a-f]{3,8}\b|(?<!\d)(?<!\d )%|(?<!\d):\s*\d|&\w+;"
)
_OPENING = re.compile(
    r"(?:(?:an?|the)\s(?:[\w-]+\s){0,3})?(?:photo|photograph|picture|image|painting|drawing)\sof\b",
    re.I,
)


def nonsense(text: str, slot: str = "") -> str | None:
    """Why a text says nothing that an image could show, as "is a placeholder"; None if it may.

    Args:
        text: A phrase, or a whole caption.
        slot: The phrase's slot, so that "no color" is known for what it is.
    """
    plain = " ".join(folded(text).split()).strip(" .,;:!?\"'`*()-")
    if not re.search(r"[^\W_]", plain):
        return "has no word in it"
    named = re.escape(slot.replace("_", " ")) or "slot"
    nothing = re.fullmatch(_NOTHING.replace("{slot}", named), re.sub(r"\s*\(.*", "", plain))
    if nothing or (slot in BEFORE_NOUN and plain == slot):
        return "is a placeholder, which captions would say as it stands"
    if _TALK.search(plain):
        return "is talk, and no phrase of a caption"
    if _PATH.search(text) and (slot or not re.search(r"\s", text.strip())):
        return "is an address or a path, and no phrase of a caption"
    if found := _CODE.search(text):
        return f"has {found[0]!r} in it, which nothing fills in: captions would say it as it stands"
    return None


def cut(phrase: str) -> str:
    """A phrase in quotation marks, for an error; of a long one, the beginning."""
    return repr(phrase if len(phrase) <= 60 else f"{phrase[:57]}...")


def no_phrase(text: str, slot: str, class_noun: str, identifier: str | None) -> str | None:
    """Why a phrase cannot stand in any caption, and what to write instead; None if it may.

    Args:
        text: The phrase, as it is written.
        slot: Where it is to stand.
        class_noun: Of the recipe.
        identifier: Of the recipe; never in a caption.
    """
    return next(_faults(text, slot, class_noun, identifier), None)


def _faults(text: str, slot: str, class_noun: str, identifier: str | None) -> Iterator[str]:
    if not text.strip():
        yield "is empty"
    if len(text) > MOST_CHARACTERS:
        yield f"is {len(text):,} characters long, and a phrase has a few words"
        return
    if len(text.splitlines()) > 1 or not text.isprintable():
        yield "is not one line of plain text"
    if identifier and has_words(text, identifier):
        yield f"contains the identifier {identifier!r}, which no caption may say"
    if why := nonsense(text, slot):
        yield why
    if found := _MARKUP.search(text):
        yield f"has {found[0]!r} in it: no syntax of prompts is known here; write words alone"
    if strange := [c for c in text if unicodedata.category(c) in ("So", "Co") and c != "°"]:
        yield f"has {strange[0]!r} in it; write words alone"
    if (bare := _bare(text, slot)) != text.strip():
        yield f"has a number, a name or punctuation around it: write {bare!r}"
    if (lowered := without_shouting(text)) != text:
        yield f"is in capitals: write {lowered!r}"
    opening = _OPENING.match(text)
    if opening and (slot != "style" or has_words(text[opening.end() :], class_noun)):
        yield "is a whole caption, and a phrase is one part of it"
    if slot in BEFORE_NOUN:
        yield from _before_noun_faults(text, class_noun)


def _bare(text: str, slot: str) -> str:
    """A phrase without a list's number, its slot's name, marks around it and an end mark."""
    text = re.sub(r"^\s*(?:[-*+•]\s+|\(?\d{1,3}[.)]\s+)", "", text)
    text = re.sub(rf"^\s*{re.escape(slot)}\s*:", "", text, flags=re.I).strip(' *"“”`_.,;:!?')
    return text[1:-1] if text[:1] == text[-1:] == "'" and len(text) > 1 else text


def _before_noun_faults(text: str, class_noun: str) -> Iterator[str]:
    first, _, rest = text.strip().partition(" ")
    if first.lower() in ("a", "an", "the") and rest:
        yield f"begins with an article, which captions put there: write {rest!r}"
    if folded(text) == folded(class_noun) or folded(text).endswith(f" {folded(class_noun)}"):
        yield f"ends in the class noun {class_noun!r}, which captions say after it"
    for part in re.split(r"\b(?:and|with|on|over|to|in)\b|,", text):  # "pale blue and dark blue"
        said = words_of(part)
        if twice := [word for word in said if said.count(word) > 1]:
            yield f"says {twice[0]!r} twice"


def without_shouting(text: str) -> str:
    """A text with common words in capitals put into small letters: "RED" is "red", "LED" stays."""
    from regforge.embedded import phrase_banks

    known = phrase_banks.load().words

    def lowered(found: re.Match[str]) -> str:
        word = found[0].lower()
        return word if word in known and word not in ("led", "tv", "suv", "rc") else found[0]

    return re.sub(r"\b[A-Z]{3,}\b", lowered, text)
