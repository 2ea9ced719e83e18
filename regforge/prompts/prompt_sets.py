"""The prompt sets: how a row of phrases becomes a caption in each of them.

    naive      one plain caption, again and again
    amplify    the caption template, over the whole vocabulary
    against    a photo's caption with another thing in the subject's place

(The captions of the `import` set are there already; see `imported`.)

Knows what a caption of its set is made of; whether it may be used (duplicates, exclusions) is for
`writing`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from regforge.prompts.against import Followed, unvaried
from regforge.prompts.captions import CaptionTemplate, article_for
from regforge.prompts.photos import PhotoCaption
from regforge.prompts.rows import Row
from regforge.prompts.tokens import TokenBudget
from regforge.records import SEED_BITS

PHOTO = "photo "
"""The slot, named as no recipe can name one, that holds the photo's number in the `against` set."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption of a set.

    Attributes:
        text: What it says.
        slots: The phrase in each slot of the recipe that is in it, None for the others.
        template: Name of its template, empty if it follows a photo's caption or was imported.
        photo: The photo whose caption it follows.
        repeats: Whether it may be said again, as nothing in it can be varied.
        language_model: Who supplied its phrases, where that is the caption's own affair.
    """

    text: str
    slots: dict[str, str | None]
    template: str = ""
    photo: PhotoCaption | None = None
    repeats: bool = False
    language_model: str | None = None


class PromptSet(Protocol):
    """What `writing` asks of a set.

    Attributes:
        name: As the recipe calls it.
        drawn: The slots whose phrases are from the vocabulary.
    """

    name: str
    drawn: tuple[str, ...]

    def caption(self, row: Row, /) -> Caption | None:
        """The caption of a row, or None if it would be too long."""

    def shortest(self) -> Iterator[str]:
        """Its captions with no phrase drawn; over the limit, nothing can be made."""


@dataclass(frozen=True)
class Fitting:
    """What to do with a caption that has too many tokens.

    Attributes:
        budget: Counts them.
        shorten: Leave out slots until it fits, or else refuse it.
    """

    budget: TokenBudget
    shorten: bool

    def fit(
        self,
        row: Row,
        write: Callable[[Mapping[str, str | None]], str],
        droppable: Sequence[str],
    ) -> tuple[str, Mapping[str, str | None]] | None:
        """A text within the limit and the phrases that are left in it, or None.

        Args:
            row: The phrases.
            write: Makes a text of them; None stands for a slot that is left out.
            droppable: The slots that may go, in this order.
        """
        phrases: Mapping[str, str | None] = row
        text = write(phrases)
        if self.budget.fits(text):
            return text, phrases
        for slot in droppable if self.shorten else ():
            if phrases.get(slot):
                phrases = {**phrases, slot: None}
                text = write(phrases)
                if self.budget.fits(text):
                    return text, phrases
        return None


class Naive:
    """One plain caption, the only one that may come twice."""

    name = "naive"
    drawn: tuple[str, ...] = ()

    def __init__(self, template: CaptionTemplate, slots: Sequence[str]) -> None:
        self.text = template.render({})
        self._template = template.name
        self._slots = tuple(slots)

    def caption(self, _row: Row, /) -> Caption:
        """The same for every row."""
        return Caption(self.text, dict.fromkeys(self._slots), self._template)

    def shortest(self) -> Iterator[str]:
        """The caption."""
        yield self.text


class Amplify:
    """Structured captions over the whole vocabulary."""

    name = "amplify"

    def __init__(self, template: CaptionTemplate, slots: Sequence[str], fitting: Fitting) -> None:
        self.drawn = tuple(slots)
        self._template = template
        self._fitting = fitting
        # The least important go first; what is around the subject goes last of all.
        others = [slot for slot in self.drawn[::-1] if slot != "background"]
        self._droppable = (*others, "background")

    def caption(self, row: Row) -> Caption | None:
        """The template's text, in one of its forms; over the limit, without its last slots."""
        form = self._template.form({slot: row.get(slot) for slot in self.drawn})

        def write(phrases: Mapping[str, str | None]) -> str:
            return self._template.render(phrases, form)

        fitted = self._fitting.fit(row, write, self._droppable)
        if fitted is None:
            return None
        text, phrases = fitted
        slots = {slot: phrases.get(slot) for slot in self.drawn}
        return Caption(text, slots, self._template.name)

    def shortest(self) -> Iterator[str]:
        """What the template writes without slots."""
        for form in range(self._template.forms):
            yield self._template.render({}, form)


class Against:
    """Photos' captions, each with another thing of the class in the subject's place.

    Args:
        photos: The photos and what their captions say around the subject.
        class_noun: Of the thing.
        attributes: The slots whose phrases stand before the class noun; none if the captions are
            only freed from the identifier (`prompts.against: plain`).
        slots: The recipe's.
        fitting: For long captions.

    A caption in which nothing can be varied comes as often as any other photo's.
    """

    name = "against"

    def __init__(
        self,
        photos: Sequence[tuple[PhotoCaption, Followed]],
        class_noun: str,
        attributes: Sequence[str] | None,
        slots: Sequence[str],
        fitting: Fitting,
    ) -> None:
        self._noun = class_noun
        self._slots = tuple(slots)
        self._fitting = fitting
        self._article = article_for(class_noun)
        self.drawn = tuple(attributes or ())
        self._photos = tuple(
            (photo, around, tuple(unvaried(around, self.drawn))) for photo, around in photos
        )
        self._plain = attributes is None

    def caption(self, row: Row) -> Caption | None:
        """The photo's caption with the row's attributes; over the limit, without the last ones."""
        photo, around, fixed = self._photos[int(row[PHOTO])]
        row = {slot: phrase for slot, phrase in row.items() if slot not in fixed}

        def write(phrases: Mapping[str, str | None]) -> str:
            return self._write(around, phrases)

        fitted = self._fitting.fit(row, write, self.drawn[::-1])
        if fitted is None:
            return None
        text, phrases = fitted
        varied = {slot: phrases.get(slot) for slot in self.drawn}
        kept = {"style": around.style, "background": around.background}
        slots = {slot: varied.get(slot, kept.get(slot)) for slot in self._slots}
        repeats = self._plain or (bool(fixed) and len(fixed) == len(self.drawn))
        return Caption(text, slots, photo=photo, repeats=repeats)

    def shortest(self) -> Iterator[str]:
        """Each photo's caption with the bare class noun in it."""
        for _, around, _ in self._photos:
            yield self._write(around, {})

    def _write(self, around: Followed, phrases: Mapping[str, str | None]) -> str:
        attributes = {slot: phrases.get(slot) or "" for slot in self.drawn}
        return around.caption(attributes, self._noun, self._article)


def size_like(photo: PhotoCaption, area: int) -> tuple[int, int]:
    """The size of an image with a photo's proportions.

    Args:
        photo: The photo.
        area: About how many pixels the image is to have: the renderer's width times height.

    Returns:
        Width and height, multiples of 64 for images of 512 pixels and more a side, of 8 for
        smaller ones, as autoencoders need them.
    """
    multiple = 64 if area >= 512 * 512 else 8
    scale = math.sqrt(area / (photo.width * photo.height))

    def rounded(pixels: int) -> int:
        return max(multiple, round(pixels * scale / multiple) * multiple)

    return rounded(photo.width), rounded(photo.height)


def repeated_seed(photo: PhotoCaption, again: int) -> int:
    """The seed of an image whose caption was said before: another one each time, from the photo's.

    Args:
        photo: The photo.
        again: How often the caption was said before; the first image has the photo's own seed.
    """
    if not again:
        return photo.seed
    digest = hashlib.sha256(f"{photo.seed}/{again}".encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8])
