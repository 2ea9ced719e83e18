"""The `against` set: a photo's caption again, with another thing in the place of the subject.

    photo           a photo of my old sks teapot on a kitchen table
    regularization  a photo of a small red teapot on a kitchen table

The subject's noun phrase (see `noun_phrases`) is replaced; everything else stays, word for word, so
that the identifier is left to stand for the subject alone. An attribute that the rest of the
caption states (see `stated`) is not varied, and where it is not sure which words are about the
subject, the caption is taken as it is without the identifier. Lists of tags stay lists.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import article_for, tidy, words
from regforge.prompts.noun_phrases import (
    NAMING,
    ONE,
    NounPhrase,
    bare,
    behind_trigger,
    category_of,
    is_kindred,
    noun_phrases,
    trails,
)
from regforge.prompts.stated import TagList, kinds_of_slot, stated, tag_list
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

_Edit = tuple[int, int, str]
"""First character, one past the last, and what comes in their place."""


class PhotoCaptionUnclear(RegforgeError):
    """A photo's caption that does not name the subject."""

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
        fixed: The words that keep an attribute from being varied, by its kind.
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
        """Write the caption with another thing of the class in it.

        Attributes, by slot, stand before the noun; `captions.article_for` makes the article.
        """
        if self.verbatim is not None:
            return self.verbatim
        phrase = words([*attributes.values(), self.plural or noun])
        phrase = words([self.lead, phrase]) if self.plural else article(phrase)
        return tidy(f"{self.before}{_cased(phrase, self.capital)}{self.after}")

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
    """List those slots whose attribute a caption cannot have varied, with the words that state it.

    Those of a caption taken as it is have the reason.
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
    """Say which of some slots a caption cannot have varied and why; None if it can have all.

    Such as "color is not varied, as the caption says 'brown hair'".
    """
    found = unvaried(around, slots)
    if not found:
        return None
    if isinstance(around, Surroundings) and around.verbatim is not None:
        return f"its caption is used as it is without the identifier, as {around.unclear}"
    states = " and ".join(repr(text) for text in dict.fromkeys(found.values()))
    verb = "are" if len(found) > 1 else "is"
    return f"{' and '.join(found)} {verb} not varied, as it says {states}"


def cut_open(
    caption: str, class_noun: str, identifier: str | None, file: str, *, vary: bool = True
) -> CutCaption:
    """Cut a photo's caption open at its subject.

    Args:
        caption: Such as "a photo of a sks teapot on a table" or "sks teapot, kitchen table".
        class_noun: Takes the place of the identifier where the caption has that alone.
        identifier: Where the caption lacks it, the class noun is looked for.
        file: The photo, for the error.
        vary: Whether attributes are to be varied, or the caption only freed from the identifier.

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
    found = words_of(text, class_noun, identifier)
    if trails(found):
        text = f"{text[: found[-2].end]}, {text[found[-1].start :]}"
        found = words_of(text, class_noun, identifier)
    phrases = noun_phrases(found, class_noun)
    if not phrases:
        named = f"neither {identifier!r} nor {class_noun!r}" if identifier else f"no {class_noun!r}"
        example = words([identifier or "", class_noun])
        raise PhotoCaptionUnclear(
            f"{file}: its caption says {named}: {text!r}.",
            hint="The `against` set puts another thing of the class in the subject's place, so the "
            f"caption has to name the subject, as in 'a photo of a {example} on a table'.",
        )
    if behind := behind_trigger(text, class_noun, found):
        text, found, phrases = behind
    subject = _Subject(text, class_noun, found, phrases, category, person)
    return subject.varied() if vary else subject.as_it_is()


def _cased(text: str, capital: bool) -> str:
    return text[:1].upper() + text[1:] if capital else text


@dataclass(frozen=True)
class _Subject:
    """The subject in one caption, and what becomes of it."""

    text: str
    noun: str
    words: list[Word]
    phrases: list[NounPhrase]
    category: str | None
    person: bool | None

    def _lower(self, place: int) -> str:
        return self.words[place].lower if place >= 0 else ""

    def _span(self, phrase: NounPhrase) -> tuple[int, int]:
        return self.words[phrase.first].start, self.words[phrase.last].end

    def varied(self) -> Surroundings:
        """The caption with a place where the subject's first noun phrase was."""
        main = self._main
        if not main.clear:
            return self.as_it_is("it is not clear which of its words are about the subject")
        if self._may_be_restated():
            return self.as_it_is("it may speak of the subject with two different nouns")
        edits: list[_Edit] = []
        hidden = set(range(main.first, main.last + 1))
        for each in self.phrases:
            edit = None
            if each is main:
                continue
            if each.named:
                edit = self._again(each, f"the {each.plural or self.noun}")
            elif not self._is_distinct(each):
                edit = self._bared(each)
                if edit is None:
                    continue
            hidden.update(range(each.first, each.last + 1))
            edits += [edit] if edit else []
        start, end = self._span(main)
        return Surroundings(
            self._edited(0, start, edits) + self._of(main),
            self._unapposed(main, self._edited(end, len(self.text), edits)),
            lead=main.determiner if main.plural and main.determiner in NUMERALS else "",
            plural=main.plural,
            capital=self._is_capital(main),
            fixed=stated(
                self.words,
                hidden,
                category=self.category,
                caption=self.text,
                apposed=main.last + 1,
            ),
            person=self.person,
        )

    def _of(self, phrase: NounPhrase) -> str:
        """What "photo sks teapot" lacks before its noun phrase: "of "."""
        bare_medium = self._lower(phrase.first - 1) in MEDIA and not self.words[phrase.first].gap
        return "of " if bare_medium else ""

    @functools.cached_property
    def _main(self) -> NounPhrase:
        """The phrase that is replaced: the first about the subject.

        In "a woman holding a cup, ohwx woman looking at viewer" the woman is one and the same, in
        "a dog next to sks dog" there are two dogs.
        """
        named = next((each for each in self.phrases if each.named), self.phrases[0])
        if self._restates(named):
            trailing = named.first == len(self.words) - 1  # "arafed cat on a blanket, sks"
            for each in self.phrases[: self.phrases.index(named)]:
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
            is_kindred(self.words[k], self.category) and not ends_phrase(self.words, k)
            for k in range(1, main.first)
            if self._lower(k - 1) in ("a", "an") or is_adjective(self._lower(k - 1))
        )

    def _restates(self, phrase: NounPhrase) -> bool:
        """Whether a phrase begins a part of the caption of its own, as a tag or a sentence does."""
        gap = self.words[phrase.first].gap
        return bool(set(",.;:(|") & set(gap)) and phrase.determiner not in _OTHERS

    def _is_distinct(self, phrase: NounPhrase) -> bool:
        """Whether a phrase without the identifier is about another one of the class."""
        inside = {self._lower(k) for k in range(phrase.first, phrase.last + 1)}
        if inside & _OTHERS or phrase.plural:
            return True
        if phrase.determiner in DEFINITE:
            return False
        ahead = self._lower(phrase.first - 1)
        if phrase.first > self._main.first:
            joins = ahead in PREPOSITIONS | {"and"} or ahead.endswith("ing")
            return joins and not self.words[phrase.first].gap
        return self._lower(phrase.first - 2) not in MEDIA

    def _again(self, phrase: NounPhrase, text: str) -> _Edit:
        """The subject named once more: "the teapot", or nothing if nothing is said of it."""
        start, end = self._span(phrase)
        nth = phrase.last + 1
        follows = self.words[nth].gap[:1] if nth < len(self.words) else "."
        if self.words[phrase.first].gap in (",", ".", ";", "|") and follows in (",", "."):
            return self.words[phrase.first - 1].end, end, ""
        return start, end, _cased(text, self._is_capital(phrase))

    def _bared(self, phrase: NounPhrase) -> _Edit | None:
        """A later "the small white toy" without what the subject looks like; None if it has none.

        A phrase with "a" may be about another one; whatever it states is not varied then.
        """
        between = range(phrase.first + 1, phrase.last)
        described = between and all(is_adjective(self._lower(k)) for k in between)
        if phrase.determiner not in DEFINITE or not described:
            return None
        return self.words[phrase.first].end, self.words[phrase.last].start, " "

    def _edited(self, start: int, end: int, edits: Sequence[_Edit]) -> str:
        text, at = "", start
        for first, last, new in sorted(edits):
            if start <= first and last <= end:
                text += self.text[at:first] + new
                at = last
        return text + self.text[at:end]

    def _unapposed(self, main: NounPhrase, after: str) -> str:
        """What follows an apposition without the comma or bracket that closed it."""
        start, end = self._span(main)
        inside, nth = self.text[start:end], main.last + 1
        if "(" in inside and ")" not in inside and "(" not in after.split(")", 1)[0]:
            return after.replace(")", "", 1)
        if "," not in inside or nth == len(self.words) or self.words[nth].gap != ",":
            return after
        goes_on = ends_phrase(self.words, nth) and self._lower(nth) not in CONJUNCTIONS
        return after[1:] if goes_on and self.words[main.first].kind == "identifier" else after

    def _is_capital(self, phrase: NounPhrase) -> bool:
        text = self.words[phrase.first].text
        title = text[:1].isupper() and (len(text) == 1 or text[1:].islower())
        return title and begins_sentence(self.words, phrase.first)

    def as_it_is(self, unclear: str = "") -> Surroundings:
        """The caption without the identifier, and nothing else changed but an article."""
        edits = []
        again = False
        for phrase in self.phrases:
            if phrase.named:
                edits.append(self._unnamed(phrase, again=again, classed=bool(unclear)))
            again = again or phrase.named or phrase is self._main
        text = tidy(self._edited(0, len(self.text), edits))
        balanced = self.text.count("(") == self.text.count(")")
        if balanced and text.count(")") > text.count("("):  # "ohwx (woman, 30s)"
            text = text.replace(")", "", 1)
        return Surroundings("", "", verbatim=text, person=self.person, unclear=unclear)

    def _unnamed(self, phrase: NounPhrase, *, again: bool, classed: bool) -> _Edit:
        """A phrase without its identifier; `again` if the subject was named before.

        Where `classed`, the class noun takes the place of another noun: "puppy" in "a sks puppy".
        """
        start, end = self._span(phrase)
        described = range(phrase.first + bool(phrase.determiner), phrase.last + 1)
        opening = self.words[described[0]].start
        text, at = "", opening
        for k in described:
            word = self.words[k]
            if word.kind == "identifier" or (classed and k == phrase.head and not word.kind):
                text += self.text[at : word.start] + (self.noun if k == phrase.head else "")
                at = word.end
        text = " ".join((text + self.text[at:end]).replace("_", " ").split())
        # An apposition is what is left of its phrase: "ohwx, a young woman", "a dog called sks".
        text = re.sub(rf"\W*\b(?:{'|'.join(NAMING)})\W*$", "", text.strip(" ,:-–—("))
        text = re.sub(r"^(?:is|was) ", "", text.strip(" ,:-–—("))
        determiner = self.text[start:opening].strip().lower()
        if text.split(" ", 1)[0].lower() not in INDEFINITE | DEFINITE:
            if determiner in ("a", "an") or not (determiner or phrase.plural or again):
                text = article_for(self.noun)(text)
            elif determiner or not phrase.plural:
                text = f"{determiner or 'the'} {text}"
        if again:
            return self._again(phrase, text)
        return start, end, _cased(self._of(phrase) + text, self._is_capital(phrase))
