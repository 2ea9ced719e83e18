"""What a class noun must be like: a bare common noun phrase of English, "robot toy".

Captions put an article and attributes before it ("a small red robot toy"), so whatever brings its
own, is a name, or is no noun, makes captions that are no English. What can be told from the words
alone is refused with the noun to write instead; what cannot is a doubt, and is only said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from regforge.embedded.english import folded, words_of

if TYPE_CHECKING:
    from regforge.embedded.phrase_banks import PhraseBanks

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
_VERBS = re.compile(r"\b(?:is|are|was|were)\b", re.I)

_ADVICE = "write what kind of thing the subject is, such as 'cat' or 'robot toy'"

Step = Callable[[str], tuple[str, str]]


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
    for step in _STEPS:
        better, why = step(text)
        if better != text:
            reasons.append(why)
            text = better
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
    if len(parts) == 2 and all(_is_bank_noun(part) for part in parts):
        yield f"{noun!r} are two subjects, and a recipe is about one."


# ------------------------------------------------------------------------------------------ steps


def _usual_letters(text: str) -> tuple[str, str]:
    return unicodedata.normalize("NFKC", text), "has letters of an unusual width or form"


def _without_tag_count(text: str) -> tuple[str, str]:
    tag = re.fullmatch(r"\d\+?([a-z]{3,})", text)
    return (tag[1] if tag and knows_word(tag[1]) else text), "is a tag, and captions are sentences"


def _without_image(text: str) -> tuple[str, str]:
    return _OF_AN_IMAGE.sub("", text), "says 'photo of', which captions say themselves"


def _first_alternative(text: str) -> tuple[str, str]:
    parts = re.split(r"[|/,;\n]|\s+or\s+", text)
    first = next((part for part in parts if re.search(r"\w", part)), "")
    return first.strip(" ") if len(parts) > 1 else text, "lists several; a recipe is about one"


def _without_punctuation(text: str) -> tuple[str, str]:
    text = text.replace("’", "'")
    text = re.sub(r":\s*\d*\.?\d+", "", text)
    outside = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)
    text = outside if re.search(r"\w", outside) else text
    text = re.split(r":|\s-+\s|\s[–—]\s", text)[0]
    text = re.sub(r"[&+]", " and ", text).replace("_", " ")
    text = re.sub(r"[^\w\s'-]|(?<!\w)['-]|['-](?!\w)", " ", text)
    return " ".join(text.split()), "has punctuation, which captions would repeat"


def _without_name(text: str) -> tuple[str, str]:
    why = "says a name, for which the identifier stands"
    return re.sub(r"\s(?:named|called)\s.*", "", text), why


def _without_determiner(text: str) -> tuple[str, str]:
    words = text.split()
    while len(words) > 1 and (
        words[0].lower() in _DETERMINERS or (words[0].isdigit() and words[-1].endswith("s"))
    ):
        words.pop(0)
    if len(words) == 1 and words[0].lower() in _DETERMINERS:
        words = []
    why = "begins with an article, a possessive or a number, which captions put there themselves"
    return " ".join(words), why


def _without_owner(text: str) -> tuple[str, str]:
    owner = re.match(r"(?:[A-Z][\w-]*\s+)*[A-Z][\w-]*'s?\s+(?=\w)", text)
    if owner and not _is_proper(owner[0].split()[-1].replace("'", "")):
        text = text[owner.end() :]
    return text, "names an owner; the class is what the subject shares with others"


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


_STEPS: tuple[Step, ...] = (
    _usual_letters,
    _without_tag_count,
    _without_image,
    _first_alternative,
    _without_punctuation,
    _without_name,
    _without_determiner,
    _without_owner,
    _without_capitals,
)


# ------------------------------------------------------------------------------------------ words


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
    return any(noun.lower().endswith(each) for each in _banks().proper_nouns)


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
    from regforge.embedded import load_vocabulary

    plain = unicodedata.normalize("NFKD", word.casefold()).encode("ascii", "ignore").decode()
    known = _banks().words
    forms = (plain, plain.removesuffix("s"), plain.removesuffix("es"))
    return bool(plain) and (
        any(form in known for form in forms)
        or any(plain in noun.split() for noun in load_vocabulary()["class_noun"])
    )


def _is_bank_noun(noun: str) -> bool:
    from regforge.recipe.defaults import bank_kind

    return bank_kind(noun) is not None


def _banks() -> PhraseBanks:
    from regforge.embedded import phrase_banks

    return phrase_banks.load()
