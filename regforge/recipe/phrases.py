"""What a class noun and a phrase of a caption can be, whoever wrote them.

A class noun is a bare common noun phrase of English, "robot toy": captions put an article and
attributes before it ("a small red robot toy"), so whatever brings its own, is a name, or is no
noun, makes captions that are no English. What can be told from the words alone is refused with the
noun to write instead; what cannot is a doubt.

Phrases may come from the user, a model or another dataset. Placeholders ("n/a"), talk ("I cannot
help"), paths, format strings and the syntax of other programs would stand in captions letter by
letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial

from regforge.embedded import load_vocabulary, phrase_banks
from regforge.recipe.models import bank_kind
from regforge.words import beginning, folded, has_words, words_of

# ------------------------------------------------------------------------------- class nouns

_DETERMINERS = frozenset(
    "a an the my our your his her its their this that these those some any one each every another "
    "no two three four five six seven eight nine ten several many few both".split()
)
_FOREIGN_ARTICLES = frozenset(
    "el la los las un una unos unas le les une des du il lo gli der das ein eine einen den dem o "
    "os as um uma het een de".split()
)
_NO_NOUNS = frozenset(
    "none null nil na n/a nan unknown unspecified undefined tbd todo class noun subject "
    "identifier placeholder xxx class_noun class-noun i me myself you we us it he him she they "
    "them mine yours".split()
)
_VAGUE = frozenset("thing object item stuff something anything subject entity things".split())
_PROPER = frozenset(
    "christmas easter halloween hanukkah ramadan thanksgiving african american arabian arabic "
    "asian australian austrian bavarian belgian brazilian british canadian caribbean celtic "
    "chinese cuban czech danish dutch egyptian english ethiopian european finnish french georgian "
    "german gothic greek hawaiian hungarian icelandic indian indonesian irish italian japanese "
    "korean mexican mongolian moroccan navajo nepalese nordic norwegian peruvian persian polish "
    "portuguese roman romanian russian scandinavian scottish siamese siberian spanish swedish "
    "swiss syrian thai tibetan tiffany turkish ukrainian venetian victorian edwardian vietnamese "
    "viking welsh alaskan parisian panama bengal maine dalmatian labrador chihuahua rottweiler "
    "pomeranian maltese samoyed akita alsatian weimaraner newfoundland airedale yorkshire jack "
    "russell great dane st bernard saint doberman angora cheshire highland shetland clydesdale "
    "lego barbie bluetooth army wellington oxford chelsea adirondack moka bunsen erlenmeyer petri "
    "venn rubik".split()
)
_OF_AN_IMAGE = re.compile(
    r"^(?:(?:an?|the|my)\s+)?(?:photo|photograph|picture|image|pic|snapshot)s?\s+of\s+", re.I
)
_NAMED = re.compile(r"\s(?:named|called)\s.*")
_VERBS = re.compile(r"\b(?:is|are|was|were)\b", re.I)

_ADVICE = "write what kind of thing the subject is, such as 'cat' or 'robot toy'"


def noun_fault(noun: str) -> str | None:
    """Why a class noun cannot stand in captions, and what to write instead; None if it can.

    Args:
        noun: One line that is not blank.
    """
    text, reasons = " ".join(noun.split()), []
    if folded(text) in _NO_NOUNS:
        return f"is no noun: {_ADVICE}"
    first, *others = folded(text).split()
    foreign = first in _FOREIGN_ARTICLES and others and not any(map(knows_word, others))
    if foreign or not all(map(_is_latin, unicodedata.normalize("NFKC", text))):
        return "is not English, and captions are: write the English noun, such as 'cat'"
    for step, why in _STEPS:
        before, text = text, step(text)
        if text != before:
            reasons.append(why)
    before, (text, why) = text, _without_capitals(text)
    if text != before:
        reasons.append(why)
    if len(text) < 2 or folded(text) in _NO_NOUNS or _VERBS.search(text):
        return f"{reasons[0] if reasons else 'is no noun'}: {_ADVICE}"
    return f"{reasons[0]}: write '{text}'" if reasons else None


def noun_doubts(noun: str) -> Iterator[str]:
    """What may be wrong with a class noun that `noun_fault` lets pass, a sentence each."""
    words = words_of(noun)
    if set(words) <= _VAGUE:
        yield f"{noun!r} says nothing: captions and images need a class such as 'robot toy'."
    elif not any(map(knows_word, words)) and not re.search(r"\b[A-Z]{2,}\b", noun):
        yield (
            f"no word list of regforge knows {noun!r}. Captions are English: if this is another "
            "language, or a name, write the English noun for what kind of thing it is."
        )
    elif strange := [
        word
        for word in noun.split()
        if re.match(r"[A-Z][a-z]", word) and not _is_proper(word) and not _is_one_of_banks(noun)
    ]:
        yield (
            f"{strange[0]!r} has a capital. If it names a make or one single thing, leave it out: "
            "the class is what the subject shares with others."
        )
    parts = noun.lower().split(" and ")
    if len(parts) == 2 and all(bank_kind(part) for part in parts):
        yield f"{noun!r} are two subjects, and a recipe is about one."


def _without_tag_count(text: str) -> str:
    tag = re.fullmatch(r"\d\+?([a-z]{3,})", text)
    return tag[1] if tag and knows_word(tag[1]) else text


def _first_alternative(text: str) -> str:
    parts = re.split(r"[|/,;\n]|\s+or\s+", text)
    first = next((part for part in parts if re.search(r"\w", part)), "")
    return first.strip(" ") if len(parts) > 1 else text


def _without_punctuation(text: str) -> str:
    text = text.replace("’", "'")
    text = re.sub(r":\s*\d*\.?\d+", "", text)
    outside = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)
    text = outside if re.search(r"\w", outside) else text
    text = re.split(r":|\s-+\s|\s[–—]\s", text)[0]
    text = re.sub(r"[&+]", " and ", text).replace("_", " ")
    text = re.sub(r"[^\w\s'-]|(?<!\w)['-]|['-](?!\w)", " ", text)
    return " ".join(text.split())


def _without_determiner(text: str) -> str:
    words = text.split()
    while len(words) > 1 and (
        words[0].lower() in _DETERMINERS or (words[0].isdigit() and words[-1].endswith("s"))
    ):
        words.pop(0)
    return "" if len(words) == 1 and words[0].lower() in _DETERMINERS else " ".join(words)


def _without_owner(text: str) -> str:
    owner = re.match(r"(?:[A-Z][\w-]*\s+)*[A-Z][\w-]*'s?\s+(?=\w)", text)
    foreign = owner and not _is_proper(owner[0].split()[-1].replace("'", ""))
    return text[owner.end() :] if owner and foreign else text


_STEPS: tuple[tuple[Callable[[str], str], str], ...] = (
    (partial(unicodedata.normalize, "NFKC"), "has letters of an unusual width or form"),
    (_without_tag_count, "is a tag, and captions are sentences"),
    (partial(_OF_AN_IMAGE.sub, ""), "says 'photo of', which captions say themselves"),
    (_first_alternative, "lists several; a recipe is about one"),
    (_without_punctuation, "has punctuation, which captions would repeat"),
    (partial(_NAMED.sub, ""), "says a name, for which the identifier stands"),
    (
        _without_determiner,
        "begins with an article, a possessive or a number, which captions put there themselves",
    ),
    (_without_owner, "names an owner; the class is what the subject shares with others"),
)
"""What is taken off a class noun, in this order, and why it is refused then."""


def _without_capitals(text: str) -> tuple[str, str]:
    words = text.split()
    if text == text.lower() or _is_one_of_banks(text):
        return text, ""
    plain = [word if _may_be_capital(word) else _lowered(word) for word in words]
    plain[:-1] = [  # "PlayStation controller"
        word if re.search(r"[a-z][A-Z]", word) else lower
        for word, lower in zip(words[:-1], plain[:-1], strict=True)
    ]
    head = plain[-1]
    if head[:1].isupper() and not _may_be_capital(head):  # a name: "dog Rex", "Labubu"
        known = [word for word in plain[:-1] if word == word.lower()]
        if not known:
            return "", f"looks like a name (common nouns have no capitals: '{text.lower()}')"
        return " ".join(known), "is a name; the class is what kind of thing it is"
    named = [word for word in plain if word[:1].isupper() and not _may_be_capital(word)]
    if named and words[-1] == head:  # "Moka pot" may be a kind of pot
        return text, ""
    if named:  # "Eiffel Tower"
        kept = [word for word in plain if word not in named]
        return " ".join(kept), "is a name; the class is what kind of thing it is"
    return " ".join(plain), "has capitals, which common nouns have not"


def _may_be_capital(word: str) -> bool:
    """Whether English writes it so: "T-shirt", "VR headset", "Dalmatian", "iPhone"."""
    if word == word.lower() or re.fullmatch(r"[A-Z](?:-.*)?", word):
        return True
    if word.isupper():
        return len(word) <= 5 and (word.lower() in _INITIALS or not knows_word(word.lower()))
    parts = re.findall(r"[A-Z]?[a-z]+", word)
    inside = not word[1:].islower() and "-" not in word
    return _is_proper(word) or (inside and not all(knows_word(part.lower()) for part in parts))


_INITIALS = frozenset("tv rc suv led vr ar dj cd dvd pc usb atm".split())


def _is_proper(word: str) -> bool:
    plain = word.lower().partition("-")[0].removesuffix("'s")
    return plain in _PROPER or plain.removesuffix("s") in _PROPER


def _is_one_of_banks(noun: str) -> bool:
    """Whether the banks write the noun with capitals themselves: "old Shiba Inu"."""
    return any(noun.lower().endswith(each) for each in phrase_banks.load().proper_nouns)


def _lowered(word: str) -> str:
    """A word without capitals if it is a common one; "RobotToy" is two."""
    if not all(knows_word(part) for part in words_of(word)):
        parts = re.findall(r"[A-Z][a-z]+|[a-z]+", word)
        joined = "".join(parts) == word and len(parts) > 1
        known = joined and all(knows_word(part.lower()) for part in parts)
        return " ".join(parts).lower() if known else word
    return word.lower()


def _is_latin(character: str) -> bool:
    return character.isascii() or "LATIN" in unicodedata.name(character, "")


def knows_word(word: str) -> bool:
    """Whether a word, or its singular, is English that the shipped lists know; accents aside."""
    plain = unicodedata.normalize("NFKD", word.casefold()).encode("ascii", "ignore").decode()
    known = phrase_banks.load().words
    forms = (plain, plain.removesuffix("s"), plain.removesuffix("es"))
    return bool(plain) and (
        any(form in known for form in forms)
        or any(plain in noun.split() for noun in load_vocabulary()["class_noun"])
    )


# ----------------------------------------------------------------------------------- phrases

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
_CODE = re.compile(r"__[\w/*.-]+__|^\s*\d*\.?\d+::|\{[^{}]*\}|<\w+:[^<>]*>|%[a-z]\b|\$\{", re.I)
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
        advice = "Write each alternative as a phrase of its own; a wildcard file is a slot's `file`"
        if found[0].startswith("__"):
            advice = "Write the phrases of that wildcard file here, or name it as a slot's `file`"
        elif found[0].endswith("::"):
            advice = "How often each of a slot's `values` comes, `weights` beside them say"
        return (
            f"has {found[0].strip()!r} in it, which nothing fills in: captions would say it as it "
            f"stands. {advice}"
        )
    return None


def cut(phrase: str) -> str:
    """A phrase in quotation marks, for an error; of a long one, the beginning."""
    return repr(beginning(phrase))


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
    # Quality tags are names that models were trained on: "score_8_up".
    if found := _MARKUP.search(text.replace("_", "") if slot == "quality" else text):
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
    known = phrase_banks.load().words

    def lowered(found: re.Match[str]) -> str:
        word = found[0].lower()
        return word if word in known and word not in ("led", "tv", "suv", "rc") else found[0]

    return re.sub(r"\b[A-Z]{3,}\b", lowered, text)
