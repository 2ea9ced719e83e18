"""What a phrase must be like to stand in a caption, and how untidy ones are put right.

Language models number their lists, quote their items and name the subject again; all of it would
end up in thousands of captions. docs/vocabulary.md has the grammar of the standard slots.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from regforge.embedded import phrase_banks
from regforge.embedded.phrase_banks import indefinite_article
from regforge.prompts.captions import TAKES_NOUN, plurals
from regforge.recipe import Recipe
from regforge.recipe.phrases import BEFORE_NOUN, no_phrase, without_shouting
from regforge.words import MEDIA, gist, has_words

MOST_WORDS = 12
_MOST_CHARACTERS = 120
_MOST_READ = 2000
_MOST_WORDS_BEFORE_NOUN = 5

_PREPOSITIONS = frozenset(
    "about above across against along alongside amid amidst among amongst around at atop before "
    "behind below beneath beside between beyond by down during for from in inside into near next "
    "of off on onto opposite out outside over past through throughout to toward towards under "
    "underneath underwater up upon with within without".split()
)
_LEADS_TO_PLACE = frozenset("deep far half halfway high just low midway partly right".split())
_ARTICLES = frozenset(("a", "an", "the"))
_BULLET = re.compile(r"^(?:[-*+•·–—▪●]+\s+|\(?\d{1,3}[.):]\s+|\(?[a-z][.)]\s+)", re.I)
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\u00a0": " "})
_AROUND = " \t\"'`*_.,;:"
_MADE_OF = re.compile(r"^made (?:out )?(?:of|from) ", re.I)
_TALK = re.compile(r"\b(?:i|you|we|me|my|your|our)\b", re.I)
_PUNCTUATION = frozenset(" -',.&/%°+–")
_LIGHT = re.compile(
    r"\b(?:sunny|sunlit|sunlight|sunshine|misty|foggy|rainy|raining|stormy|moonlit|moonlight|candlelit|"
    r"night|midnight|dawn|dusk|sunset|sunrise|noon|midday|evening|morning|afternoon|daylight|"
    r"golden hour|blue hour|starry)\b",
    re.I,
)


@dataclass(frozen=True)
class Sifted:
    """The usable phrases of a reply, how many were there already, and why others were refused."""

    phrases: tuple[str, ...]
    repeated: int = 0
    refused: tuple[tuple[str, str], ...] = ()

    def complaint(self, most: int = 8) -> str:
        """Sum up what was refused, such as `'red teapot' (names the class noun)`."""
        named = [f"{text!r} ({why})" for text, why in self.refused[:most]]
        more = len(self.refused) - len(named)
        return "; ".join([*named, *([f"and {more} more"] if more else [])])


@dataclass(frozen=True)
class PhraseRules:
    """The rules for one subject: no phrase names its class noun or identifier."""

    class_noun: str
    identifier: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> PhraseRules:
        """Take the rules for a recipe's subject."""
        return cls(recipe.subject.class_noun, recipe.subject.identifier)

    def sift(self, slot: str, phrases: Iterable[str], known: Collection[str] = ()) -> Sifted:
        """Tidy a language model's phrases and keep the usable ones that are not `known`."""
        seen = {gist(phrase) for phrase in known}
        kept: list[str] = []
        refused: list[tuple[str, str]] = []
        repeated = 0
        for raw in phrases:
            phrase = tidy(raw, slot)
            if why := self.fault(phrase, slot):
                refused.append((raw[:_MOST_CHARACTERS], why))
            elif gist(phrase) in seen:
                repeated += 1
            else:
                seen.add(gist(phrase))
                kept.append(phrase)
        return Sifted(tuple(kept), repeated, tuple(refused))

    def fault(self, phrase: str, slot: str) -> str | None:
        """Say why a tidied phrase cannot stand in a caption; None if it can."""
        if not phrase:
            return "empty"
        if strange := sorted({c for c in phrase if not _is_plain(c)}):
            shown = "a line break" if "\n" in strange else repr(strange[0])
            return f"contains {shown}"
        if len(phrase.split()) > MOST_WORDS or len(phrase) > _MOST_CHARACTERS:
            return f"longer than {MOST_WORDS} words"
        return (
            no_phrase(phrase, slot, self.class_noun, self.identifier)
            or ("names the class noun" if self._names_class(phrase) else None)
            or ("is talk" if _TALK.search(phrase) else None)
            or grammar_fault(phrase, slot)
        )

    def _names_class(self, phrase: str) -> bool:
        """Whether it has the class noun or its head ("teapot" of "ceramic teapot"), or a plural."""
        whole = " ".join(self.class_noun.split())
        head = re.split(r" (?:of|with|without|in|on|for|from) ", whole)[0].split()[-1:]
        names = [form for name in (whole, *head) for form in (name, *plurals(name))]
        return any(has_words(phrase, name) for name in names)


def tidy(raw: str, slot: str) -> str:
    """Take off numbering, quotation marks, a final period or a needless article."""
    text = unicodedata.normalize("NFC", raw[:_MOST_READ]).translate(_QUOTES).strip()
    if re.fullmatch(r"__[\w/*.-]+__", text):  # a wildcard of other programs, which nothing fills in
        return text
    text = _BULLET.sub("", text).strip(_AROUND)
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    text = without_capital(without_shouting(text))
    if slot in BEFORE_NOUN:
        first, _, rest = text.partition(" ")
        text = rest if first in _ARTICLES and rest else text
        text = _MADE_OF.sub("", text)
    return _as_opening(text) if slot == "style" else text


def without_capital(text: str) -> str:
    """Lower the first letter of a common word, not that of "LED", "U-shaped" and "Monet"."""
    first = re.match(r"[^\W\d_]+", text)
    word = first[0].lower() if first else ""
    known = word in _ARTICLES | _PREPOSITIONS or word in phrase_banks.load().words
    if first and known and first[0][1:] == word[1:] and (len(word) > 1 or text[1:2] == " "):
        return word[0] + text[1:]
    return text


def _as_opening(style: str) -> str:
    """Make "watercolor painting" read "a watercolor painting of"."""
    words = style.split()
    takes_noun = bool(words) and words[-1] in TAKES_NOUN
    if not takes_noun and (not words or words[-1].lower() not in MEDIA or "," in style):
        return style  # "Pixar style" and "cinematic, 8k" are no kinds of images
    if words[0] in _PREPOSITIONS or "\n" in style:
        return style
    if words[0] not in _ARTICLES:
        style = f"{indefinite_article(style)} {style}"
    return style if takes_noun else f"{style} of"


def odd_for_user(phrase: str, slot: str) -> str | None:
    """Say what reads badly in a phrase that the user wrote; None if nothing does.

    A style may also close the caption ("in the style of Monet") or leave its "of" to the template.
    """
    first, last = phrase.lower().split()[0], phrase.rsplit(maxsplit=1)[-1]
    if without_capital(phrase) != phrase and slot != "style":
        return "begins with a capital, and stands in the middle of captions"
    if slot == "style":
        opens = first in _ARTICLES | _PREPOSITIONS or last in TAKES_NOUN
        return (
            None if opens else 'does not open a caption, as "a photo of" does, and ends it instead'
        )
    return None if slot == "background" and _LIGHT.search(phrase) else grammar_fault(phrase, slot)


def grammar_fault(phrase: str, slot: str) -> str | None:
    """Say why a phrase does not read well where the shipped templates put it; None if it does."""
    words = phrase.lower().split()
    first, why = words[0], None
    if slot in BEFORE_NOUN and (first in _PREPOSITIONS or _MADE_OF.match(phrase)):
        why = "does not read well before the class noun"
    elif slot in BEFORE_NOUN and len(words) > _MOST_WORDS_BEFORE_NOUN:
        why = f"longer than {_MOST_WORDS_BEFORE_NOUN} words before the class noun"
    elif slot == "background" and _LIGHT.search(phrase):
        why = "speaks of light, weather or time, which is for the slot lighting"
    elif slot in ("background", "lighting") and not _leads_to_place(words):
        lit = slot == "lighting" and first.endswith(("lit", "ed"))
        why = None if lit else "does not start with a preposition"
    elif slot == "motion" and first in {*_ARTICLES, "is", "are", "to"}:
        why = "does not start with a present participle"
    elif slot == "style" and first not in _ARTICLES:
        why = 'does not start with "a" or "an"'
    elif slot == "style" and words[-1] not in TAKES_NOUN:
        why = 'does not end in "of"'
    elif slot == "style" and (
        len(words) < 3 or words[-2] in ("style", "look", "aesthetic", "vibe")
    ):
        why = "is no kind of image"
    return why


def _leads_to_place(words: list[str]) -> bool:
    """Whether it starts as "on a shelf", "half-buried in sand" or "nestled in leaves" do."""
    if words[0] in _PREPOSITIONS:
        return True
    leads = words[0] in _LEADS_TO_PLACE or words[0].endswith(("ing", "ed")) or "-" in words[0]
    return leads and any(word in _PREPOSITIONS for word in words[1:3])


def _is_plain(character: str) -> bool:
    """Letters of any script, marks, digits and a little punctuation: no braces, no markup."""
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"
