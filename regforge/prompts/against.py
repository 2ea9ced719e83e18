"""The `against` set: a photo's caption again, with another thing in the place of the subject.

    photo           a photo of my old sks teapot on a kitchen table
    regularization  a photo of a small red teapot on a kitchen table

The subject's noun phrase (see `noun_phrases`) is replaced; everything else stays, word for word, so
that the identifier is left to stand for the subject alone. An attribute that the rest of the
caption states (see `stated`) is not varied, and where it is not sure which words are about the
subject, the caption is taken as it is without the identifier. Lists of tags stay lists (see
`tag_lists`). Knows English word classes, and no language model. `photos` reads the captions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import article_for, tidy, words
from regforge.prompts.identifier_forms import bare, behind_trigger, trails
from regforge.prompts.noun_phrases import (
    NAMING,
    ONE,
    NounPhrase,
    category_of,
    is_kindred,
    noun_phrases,
)
from regforge.prompts.stated import kinds_of_slot, stated
from regforge.prompts.tag_lists import TagList, tag_list
from regforge.prompts.word_classes import (
    CONJUNCTIONS,
    DEFINITE,
    INDEFINITE,
    MEDIA,
    NUMERALS,
    PREPOSITIONS,
    Word,
    begins_sentence,
    ends_phrase,
    is_adjective,
    words_of,
)

ATTRIBUTES = ("size", "shape", "color", "texture", "material")
"""Slots that stand before the class noun, where a template puts none there itself."""


_MOST_CHARACTERS = 10_000

_OTHERS = frozenset("another other second third different".split())


class PhotoCaptionUnclear(RegforgeError):
    """A photo's caption that does not say where the subject is."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Surroundings:
    """What a photo's caption says around its subject.

    Attributes:
        before: Up to the noun phrase, such as "a photo of".
        after: From behind it, such as "on a kitchen table".
        lead: What stands before the attributes of several, such as "two".
        plural: The class noun of several, such as "teapots"; empty for one.
        capital: Whether the noun phrase begins a sentence.
        verbatim: The caption itself, where nothing is to be varied.
        fixed: The words that keep an attribute from being varied, by its kind (`stated.KINDS`).
        person: Whether the subject is a person; None if nobody knows.
        unclear: Why nothing is varied although it might be; empty if that is as it should be.
    """

    before: str
    after: str
    lead: str = ""
    plural: str = ""
    capital: bool = False
    verbatim: str | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    person: bool | None = False
    unclear: str = ""

    def caption(
        self, attributes: Mapping[str, str], noun: str, article: Callable[[str], str]
    ) -> str:
        """The caption with another thing of the class in it.

        Args:
            attributes: What stands before the noun, by slot; empty ones are left out.
            noun: The class noun.
            article: Puts "a" or "an" before a phrase, see `captions.article_for`.
        """
        if self.verbatim is not None:
            return self.verbatim
        phrase = words([*attributes.values(), self.plural or noun])
        phrase = words([self.lead, phrase]) if self.plural else article(phrase)
        if self.capital:
            phrase = phrase[:1].upper() + phrase[1:]
        return tidy(f"{self.before}{phrase}{self.after}")

    @property
    def style(self) -> str | None:
        """How the caption opens, if in a way that takes a noun: "a photo of"."""
        text = self.before.strip()
        return text if text.lower().endswith(" of") else None

    @property
    def background(self) -> str | None:
        """What follows the subject, place and pose and all; None if nothing does."""
        text = self.after.strip(" ,.;:()[]")
        belongs = self.after.startswith(("'", "’"))  # "sks's ears"
        return text if re.search(r"\w", text) and not belongs else None


CutCaption = Surroundings | TagList
"""A photo's caption, cut open at its subject."""


def unvaried(around: CutCaption, slots: Sequence[str]) -> dict[str, str]:
    """The slots whose attribute a caption cannot have varied, and the words of it that state it.

    Args:
        around: The caption.
        slots: Slots that would be varied.

    Returns:
        For each of these slots the words; those of a caption taken as it is have the reason.
    """
    if isinstance(around, Surroundings) and around.verbatim is not None:
        return dict.fromkeys(slots, around.unclear)
    return {
        slot: around.fixed[kind]
        for slot in slots
        for kind in kinds_of_slot(slot, person=around.person)
        if kind in around.fixed
    }


def why_unvaried(around: CutCaption, slots: Sequence[str]) -> str | None:
    """Which of some slots a caption cannot have varied and why, in words; None if it can have all.

    Such as "color is not varied, as the caption says 'brown hair'".
    """
    found = unvaried(around, slots)
    if isinstance(around, Surroundings) and around.verbatim is not None:
        return (
            f"its caption is used as it is without the identifier, as {around.unclear}"
            if found
            else None
        )
    if not found:
        return None
    several = len(found) > 1
    states = " and ".join(repr(text) for text in dict.fromkeys(found.values()))
    return f"{' and '.join(found)} {'are' if several else 'is'} not varied, as it says {states}"


def cut_open(
    caption: str, class_noun: str, identifier: str | None, file: str, *, vary: bool = True
) -> CutCaption:
    """Cut a photo's caption open at its subject.

    Args:
        caption: Such as "a photo of a sks teapot on a table" or "sks teapot, kitchen table".
        class_noun: Where the caption has only the identifier, it takes its place.
        identifier: The subject's; where the caption lacks it, the class noun is looked for.
        file: The photo, for the error.
        vary: Whether attributes are to be varied; without, the caption is only freed from the
            identifier.

    Raises:
        PhotoCaptionUnclear: It names neither the identifier nor the class noun, or is longer than
            any model reads.
    """
    text = " ".join(caption.split())
    if len(text) > _MOST_CHARACTERS:
        raise PhotoCaptionUnclear(
            f"{file}: its caption has {len(text):,} characters, and no model reads more than "
            f"{_MOST_CHARACTERS:,}.",
            hint="Say in a few sentences what is around the subject.",
        )
    if identifier:
        text = bare(text, class_noun, identifier)
    category = category_of(class_noun)
    person = None if category is None else category == "person"
    if tags := tag_list(text, class_noun, identifier, person=person, varied=vary):
        return tags
    if " " not in text:  # the name of a file
        text = text.replace("_", " ")
    spoken = words_of(text, class_noun, identifier)
    if trails(spoken):
        text = f"{text[: spoken[-2].end]}, {text[spoken[-1].start :]}"
        spoken = words_of(text, class_noun, identifier)
    phrases = noun_phrases(spoken, class_noun)
    if not phrases:
        raise _nameless(text, class_noun, identifier, file)
    if behind := behind_trigger(text, class_noun, spoken):
        text, spoken, phrases = behind
    subject = _Subject(text, class_noun, spoken, phrases, category)
    return subject.varied() if vary else subject.as_it_is()


def _nameless(text: str, class_noun: str, identifier: str | None, file: str) -> PhotoCaptionUnclear:
    named = f"neither {identifier!r} nor {class_noun!r}" if identifier else f"no {class_noun!r}"
    example = words([identifier or "", class_noun])
    return PhotoCaptionUnclear(
        f"{file}: its caption says {named}: {text!r}.",
        hint="The `against` set puts another thing of the class in the subject's place, so the "
        f"caption has to name the subject, as in 'a photo of a {example} on a table'.",
    )


class _Subject:
    """The subject in one caption, and what becomes of it."""

    def __init__(
        self,
        text: str,
        class_noun: str,
        spoken: list[Word],
        phrases: list[NounPhrase],
        category: str | None,
    ) -> None:
        self._text = text
        self._noun = class_noun
        self._words = spoken
        self._phrases = phrases
        self._category = category
        self._person = None if category is None else category == "person"
        self._article = article_for(class_noun)

    # ---------------------------------------------------------------------------------- varied

    def varied(self) -> Surroundings:
        """The caption with a place where the subject's first noun phrase was."""
        main = self._main
        if not main.clear:
            return self.as_it_is("it is not clear which of its words are about the subject")
        if self._may_be_restated():
            return self.as_it_is("it may speak of the subject with two different nouns")
        edits: list[tuple[int, int, str]] = []
        hidden: set[int] = set(range(main.first, main.last + 1))
        for each in self._phrases:
            edit = None
            if each is main:
                continue
            if each.named:
                edit = self._again(each, f"the {each.plural or self._noun}")
            elif not self._is_distinct(each):
                edit = self._bared(each)
                if edit is None:
                    continue
            hidden.update(range(each.first, each.last + 1))
            edits += [edit] if edit else []
        start, end = self._words[main.first].start, self._words[main.last].end
        return Surroundings(
            self._edited(0, start, edits) + self._of(main),
            self._unapposed(main, self._edited(end, len(self._text), edits)),
            lead=main.determiner if main.plural and main.determiner in NUMERALS else "",
            plural=main.plural,
            capital=self._is_capital(main),
            fixed=stated(
                self._words,
                hidden,
                category=self._category,
                caption=self._text,
                apposed=main.last + 1,
            ),
            person=self._person,
        )

    def _of(self, phrase: NounPhrase) -> str:
        """What "photo sks teapot" lacks before its noun phrase: "of "."""
        ahead = self._words[phrase.first - 1].lower if phrase.first else ""
        return "of " if ahead in MEDIA and not self._words[phrase.first].gap else ""

    @functools.cached_property
    def _main(self) -> NounPhrase:
        """The phrase that is replaced: the first about the subject.

        In "a woman holding a cup, ohwx woman looking at viewer" the woman is one and the same, in
        "a dog next to sks dog" there are two dogs.
        """
        named = next((each for each in self._phrases if each.named), self._phrases[0])
        if self._restates(named):
            trailing = named.first == len(self._words) - 1  # "arafed cat on a blanket, sks"
            for each in self._phrases[: self._phrases.index(named)]:
                alone = each.determiner in ONE or (trailing and not each.determiner)
                if alone and not each.plural:
                    return each if each.clear else named
        return named

    def _may_be_restated(self) -> bool:
        """Whether the subject may stand before its phrase under another noun.

        Such as the girl in "a girl holding a cup, ohwx woman looking at viewer".
        """
        main = self._main
        if not main.named or not self._restates(main) or main.determiner in ("a", "an"):
            return False
        return any(
            is_kindred(self._words[k], self._category) and not ends_phrase(self._words, k)
            for k in range(1, main.first)
            if self._words[k - 1].lower in ("a", "an") or is_adjective(self._words[k - 1].lower)
        )

    def _restates(self, phrase: NounPhrase) -> bool:
        """Whether a phrase begins a part of the caption of its own, as a tag or a sentence does."""
        gap = self._words[phrase.first].gap
        return bool(set(",.;:(|") & set(gap)) and phrase.determiner not in _OTHERS

    def _is_distinct(self, phrase: NounPhrase) -> bool:
        """Whether a phrase without the identifier is about another one of the class."""
        spoken = {self._words[k].lower for k in range(phrase.first, phrase.last + 1)}
        if spoken & _OTHERS or phrase.plural:
            return True
        ahead = self._words[phrase.first - 1].lower if phrase.first else ""
        joined = not self._words[phrase.first].gap and (
            ahead in PREPOSITIONS | {"and"} or ahead.endswith("ing")
        )
        of_image = phrase.first > 1 and self._words[phrase.first - 2].lower in MEDIA
        if phrase.determiner in DEFINITE:
            return False
        if phrase.first > self._main.first:
            return joined
        return not of_image

    def _again(self, phrase: NounPhrase, text: str) -> tuple[int, int, str]:
        """The subject named once more: "the teapot", or nothing if nothing is said of it."""
        start, end = self._words[phrase.first].start, self._words[phrase.last].end
        nth = phrase.last + 1
        follows = self._words[nth].gap[:1] if nth < len(self._words) else "."
        if self._words[phrase.first].gap in (",", ".", ";", "|") and follows in (",", "."):
            return self._words[phrase.first - 1].end, end, ""
        return start, end, text[:1].upper() + text[1:] if self._is_capital(phrase) else text

    def _bared(self, phrase: NounPhrase) -> tuple[int, int, str] | None:
        """A later "the small white toy" without what the subject looks like; None if it has none.

        A phrase with "a" may be about another one; whatever it states is not varied then.
        """
        between = range(phrase.first + 1, phrase.last)
        if phrase.determiner not in DEFINITE or not between:
            return None
        if not all(is_adjective(self._words[k].lower) for k in between):
            return None
        return self._words[phrase.first].end, self._words[phrase.last].start, " "

    def _edited(self, start: int, end: int, edits: Sequence[tuple[int, int, str]]) -> str:
        text, at = "", start
        for first, last, new in sorted(edits):
            if start <= first and last <= end:
                text += self._text[at:first] + new
                at = last
        return text + self._text[at:end]

    def _unapposed(self, main: NounPhrase, after: str) -> str:
        """What follows an apposition without the comma or bracket that closed it."""
        inside = self._text[self._words[main.first].start : self._words[main.last].end]
        nth = main.last + 1
        if "(" in inside and ")" not in inside and "(" not in after.split(")", 1)[0]:
            return after.replace(")", "", 1)
        if "," not in inside or nth == len(self._words) or self._words[nth].gap != ",":
            return after
        goes_on = ends_phrase(self._words, nth) and self._words[nth].lower not in CONJUNCTIONS
        return after[1:] if goes_on and self._words[main.first].kind == "identifier" else after

    def _is_capital(self, phrase: NounPhrase) -> bool:
        text = self._words[phrase.first].text
        title = text[:1].isupper() and (len(text) == 1 or text[1:].islower())
        return title and begins_sentence(self._words, phrase.first)

    # ------------------------------------------------------------------------------- as it is

    def as_it_is(self, unclear: str = "") -> Surroundings:
        """The caption without the identifier, and nothing else changed but an article."""
        edits = []
        said = False
        for phrase in self._phrases:
            if phrase.named:
                edits.append(self._unnamed(phrase, again=said, classed=bool(unclear)))
            said = said or phrase.named or phrase is self._main
        text = tidy(self._edited(0, len(self._text), edits))
        balanced = self._text.count("(") == self._text.count(")")
        if balanced and text.count(")") > text.count("("):  # "ohwx (woman, 30s)"
            text = text.replace(")", "", 1)
        return Surroundings("", "", verbatim=text, person=self._person, unclear=unclear)

    def _unnamed(self, phrase: NounPhrase, *, again: bool, classed: bool) -> tuple[int, int, str]:
        """A phrase that has the identifier, without it.

        Args:
            phrase: The phrase.
            again: Whether the subject was named before.
            classed: Whether the class noun takes the place of another noun: of "puppy" in "a sks
                puppy".
        """
        start, end = self._words[phrase.first].start, self._words[phrase.last].end
        described = range(phrase.first + bool(phrase.determiner), phrase.last + 1)
        text, at = "", self._words[described[0]].start
        for k in described:
            word = self._words[k]
            other = classed and k == phrase.head and not word.kind
            if word.kind == "identifier" or other:
                text += self._text[at : word.start]
                text += self._noun if k == phrase.head else ""
                at = word.end
        text = " ".join((text + self._text[at:end]).replace("_", " ").split())
        # An apposition is what is left of its phrase: "ohwx, a young woman", "a dog called sks".
        naming = rf"\W*\b(?:{'|'.join(NAMING)})\W*$"
        text = re.sub(naming, "", text.strip(" ,:-–—("))
        text = re.sub(r"^(?:is|was) ", "", text.strip(" ,:-–—("))
        own = text.split(" ", 1)[0].lower()
        determiner = self._text[start : self._words[described[0]].start].strip().lower()
        if own in INDEFINITE | DEFINITE:
            pass
        elif determiner in ("a", "an") or not (determiner or phrase.plural or again):
            text = self._article(text)
        elif determiner:
            text = f"{determiner} {text}"
        elif again and not phrase.plural:
            text = f"the {text}"
        if again:
            return self._again(phrase, text)
        text = self._of(phrase) + text
        return start, end, text[:1].upper() + text[1:] if self._is_capital(phrase) else text
