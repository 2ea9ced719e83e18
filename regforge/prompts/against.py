"""The `against` set: a photo's caption again, with another thing in the place of the subject.

    photo           a photo of my old sks teapot on a kitchen table
    regularization  a photo of a small red teapot on a kitchen table

The noun phrase around the identifier (article, adjectives, identifier, class noun) is replaced;
everything else stays, word for word, so that the identifier is left to stand for the subject alone.
Knows English determiners and prepositions, and no language model. `photos` reads the captions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import noun_pattern, tidy, word_pattern, words

ATTRIBUTES = ("size", "shape", "color", "texture", "material")
"""Slots that stand before the class noun, where a template puts none there itself."""

_MOST_ADJECTIVES = 4

_DETERMINERS = frozenset(
    "a an the this that my our your his her its their one some another each every two three four "
    "five".split()
)
_BOUNDARIES = frozenset(
    "about above across after against along among and around as at before behind below beneath "
    "beside between by during for from in inside into is are was near next of on onto or over past "
    "through to toward towards under underneath up upon with within without while who which "
    # What a caption opens with is no adjective either.
    "closeup close-up drawing illustration image painting photo photograph picture portrait render "
    "shot sketch".split()
)


class PhotoCaptionUnclear(RegforgeError):
    """A photo's caption that does not say where the subject is."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Surroundings:
    """What a photo's caption says around its subject.

    Attributes:
        before: Up to the noun phrase, such as "a photo of".
        after: From behind it, such as "on a kitchen table".
    """

    before: str
    after: str

    def caption(self, attributes: Sequence[str], noun: str, article: Callable[[str], str]) -> str:
        """The caption with another thing of the class in it.

        Args:
            attributes: What stands before the noun; empty ones are left out.
            noun: The class noun.
            article: Puts "a" or "an" before a phrase, see `captions.article_for`.
        """
        return tidy(f"{self.before}{article(words([*attributes, noun]))}{self.after}")

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


def surroundings(caption: str, class_noun: str, identifier: str | None, file: str) -> Surroundings:
    """Cut the subject's noun phrase out of a photo's caption.

    Args:
        caption: Such as "a photo of a sks teapot on a table" or "sks teapot, kitchen table".
        class_noun: Where the caption has only the identifier, it takes its place.
        identifier: The subject's; where the caption lacks it, the class noun is looked for.
        file: The photo, for the error.

    Raises:
        PhotoCaptionUnclear: It names neither the identifier nor the class noun.
    """
    text = " ".join(caption.split())
    found = _subject(text, class_noun, identifier)
    if found is None:
        named = f"neither {identifier!r} nor {class_noun!r}" if identifier else f"no {class_noun!r}"
        example = words([identifier or "", class_noun])
        raise PhotoCaptionUnclear(
            f"{file}: its caption says {named}: {text!r}.",
            hint="The `against` set puts another thing of the class in the subject's place, so the "
            f"caption has to name the subject, as in 'a photo of a {example} on a table'.",
        )
    start, end = found
    before = text[: _noun_phrase_start(text, start)]
    return Surroundings(before, _without_subject(text[end:], class_noun, identifier))


def _subject(text: str, class_noun: str, identifier: str | None) -> tuple[int, int] | None:
    """Where the identifier and the class noun stand, as a span of the text."""
    nouns = noun_pattern(class_noun)
    if identifier and (named := word_pattern(identifier).search(text)):
        end = _noun_end(text, named.end(), nouns)
        ahead = [noun for noun in nouns.finditer(text, 0, named.start()) if end == named.end()]
        if ahead and text[ahead[-1].end() : named.start()].isspace():  # "teapot sks"
            return ahead[-1].start(), end
        return named.start(), end
    found = nouns.search(text)
    return found.span() if found else None


def _noun_end(text: str, position: int, nouns: re.Pattern[str]) -> int:
    """Where the noun phrase ends whose identifier ends at a position.

    The class noun belongs to it if only adjectives stand between: "sks old teapot", but not "sks
    on a dog bed".
    """
    found = nouns.search(text, position)
    if found is None:
        return position
    between = text[position : found.start()]
    adjectives = between.split()
    joined = not re.search(r"[^\w\s'’-]", between) and between[:1].isspace()
    if joined and len(adjectives) <= _MOST_ADJECTIVES and not any(map(_ends_phrase, adjectives)):
        return found.end()
    return position


def _noun_phrase_start(text: str, position: int) -> int:
    """Where the noun phrase begins that has its noun at a position.

    Its determiner, and the adjectives behind that. Without one, the adjectives back to a
    preposition, a comma or the beginning: "photo of shiny sks teapot".
    """
    before = list(re.finditer(r"\S+", text[:position]))
    start = position
    for count, word in enumerate(reversed(before)):
        plain = word[0].lower()
        if plain in _DETERMINERS:
            return word.start()
        ahead = before[-count - 2][0].lower() if count + 1 < len(before) else ""
        if plain in _BOUNDARIES or not re.search(r"\w$", plain) or _is_verb(plain, ahead):
            return start
        if count >= _MOST_ADJECTIVES:
            return position
        start = word.start()
    return start


def _is_verb(word: str, ahead: str) -> bool:
    """A participle behind a noun ("a man holding") acts; elsewhere ("a sleeping") it describes."""
    return word.endswith("ing") and bool(ahead) and ahead not in _DETERMINERS | _BOUNDARIES


def _ends_phrase(word: str) -> bool:
    return word.lower() in _BOUNDARIES | _DETERMINERS


def _without_subject(text: str, class_noun: str, identifier: str | None) -> str:
    """The rest of a caption, with "the teapot" wherever the subject is named again."""
    while identifier and (named := word_pattern(identifier).search(text)):
        end = _noun_end(text, named.end(), noun_pattern(class_noun))
        start = _noun_phrase_start(text, named.start())
        text = f"{text[:start]}the {class_noun}{text[end:]}"
    return text
