"""The prompt sets at work: rows of phrases become captions until one can be used.

    amplify    the caption template, over the whole vocabulary
    captions   a photo's caption without the identifier
    against    a photo's caption with another thing in the subject's place

(The `naive` set has one plain caption, and those of the `import` set are there already; see
`imported`.)
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from regforge.errors import RegforgeError
from regforge.journal import Journal
from regforge.prompts.against import CutCaption, unvaried
from regforge.prompts.captions import CaptionTemplate, article_for, template_for
from regforge.prompts.photos import PhotoCaption
from regforge.prompts.sampling import Row, Rows
from regforge.prompts.tokens import TokenBudget
from regforge.records import SEED_BITS
from regforge.words import listed

PHOTO = "photo "
"""The slot, named as no recipe can name one, that holds the photo's number in the `against` set."""

Fault = tuple[str, str]
"""Why a caption cannot be used: its kind, in the plural ("name the identifier"), and in full."""

REPEATED = "were said before"
_INCOMPATIBLE: Fault = ("do not go together", "its phrases do not go together, however redrawn")
_MOST_LISTED = 100
"""Refused captions that go to the ledger one by one, for each set and kind."""


class NotEnoughPrompts(RegforgeError):
    """There are not as many captions as were asked for."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption of a set.

    Attributes:
        slots: The phrase in each slot of the recipe that is in it, None for the others.
        template: Name of its template, empty if it follows a photo's caption or was imported.
        photo: The photo whose caption it follows.
        repeats: Whether it may come again, as nothing in it can be varied.
        language_model: Who supplied its phrases, where that is the caption's own affair.
    """

    text: str
    slots: dict[str, str | None]
    template: str = ""
    photo: PhotoCaption | None = None
    repeats: bool = False
    language_model: str | None = None


@dataclass(kw_only=True)
class PromptSet(ABC):
    """A source of captions, with an account of those that were passed over.

    Attributes:
        slots: The recipe's.
        budget: Counts tokens.
        journal: Gets the first refused captions of each kind.
        language_model: Who supplied phrases, if a language model did.
    """

    name: ClassVar[str]
    slots: tuple[str, ...]
    budget: TokenBudget
    journal: Journal
    language_model: str | None = None
    made: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    _listed: Counter[str] = field(default_factory=Counter)

    @abstractmethod
    def captions(self, fault: Callable[[Caption], Fault | None]) -> Iterator[Caption]:
        """Yield the captions that `fault` has no objection to, until there are no more."""

    @abstractmethod
    def not_enough(self, index: int, count: int) -> NotEnoughPrompts:
        """Build the error for having no more captions after `index` of `count` of all sets."""

    def refuse(self, fault: Fault, text: str | None = None) -> None:
        """Count a caption that was passed over, and write the first ones of its kind down."""
        kind, reason = fault
        self.refused[kind] += 1
        self._listed[kind] += 1
        if self._listed[kind] > _MOST_LISTED + 1:
            return
        if self._listed[kind] > _MOST_LISTED:
            reason, text = f"there are more that {kind}; they are not listed", None
        self.journal.failure("prompts", f"{self.name} caption", reason, raw=text)

    def refusals(self) -> str:
        """Sum up what was passed over, such as "3 do not go together"; empty if nothing was."""
        return listed(
            [f"{count:,} {kind}" for kind, count in self.refused.most_common() if count > 0]
        )


@dataclass(kw_only=True)
class DrawnSet(PromptSet):
    """A set whose captions are made of rows.

    Attributes:
        shorten: Whether a caption over the limit may lose slots.
        drawn: The slots whose phrases are from the vocabulary.
        droppable: The slots that may go, in this order.
        rows: Phrases; set before captions are asked for.
    """

    shorten: bool
    drawn: tuple[str, ...] = ()
    droppable: tuple[str, ...] = ()
    rows: Rows = field(init=False)
    _tried_all: bool = False

    @abstractmethod
    def caption(self, row: Row, /) -> Caption | None:
        """Write the caption of a row; None if it would be too long."""

    @abstractmethod
    def shortest(self) -> Iterator[str]:
        """Yield the captions with no phrase drawn; over the limit, nothing can be made."""

    def captions(self, fault: Callable[[Caption], Fault | None]) -> Iterator[Caption]:
        """Yield the usable captions of the rows, of all combinations in the end."""
        left_out = self.rows.design.left_out(self.rows.presence)
        absent = next(left_out)
        for rows, patience in self.rows.phases():
            useless = 0
            if patience is None:
                self._tried_all = True
                self.refused.clear()
            for row in rows:
                said = row and {slot: text for slot, text in row.items() if slot not in absent}
                if (caption := self._usable(said, fault)) is not None:
                    useless = 0
                    self.made += 1
                    absent = next(left_out)
                    yield caption
                    continue
                useless += 1
                if useless == patience:
                    break

    def _usable(self, row: Row | None, fault: Callable[[Caption], Fault | None]) -> Caption | None:
        if row is None:
            self.refuse(_INCOMPATIBLE)
            return None
        caption = self.caption(row)
        if caption is None:
            kind = f"have more than {self.budget.limit} tokens"
            phrases = "; ".join(text for slot, text in row.items() if slot != PHOTO)
            self.refuse((kind, f"would {kind}"), phrases)
        elif found := fault(caption):
            self.refuse(found, caption.text)
        else:
            return caption
        return None

    def _is_bare(self, row: Row) -> bool:
        """Whether the caption of a row has no phrase that was drawn, though there are slots."""
        return bool(self.drawn) and not any(slot in row for slot in self.drawn)

    def fit(
        self, row: Row, write: Callable[[Mapping[str, str | None]], str]
    ) -> tuple[str, Mapping[str, str | None]] | None:
        """Find a text within the limit and the phrases that are left in it, if there is one."""
        phrases: Mapping[str, str | None] = row
        text = write(phrases)
        if self.budget.fits(text):
            return text, phrases
        for slot in self.droppable if self.shorten else ():
            if phrases.get(slot):
                phrases = {**phrases, slot: None}
                text = write(phrases)
                if self.budget.fits(text):
                    return text, phrases
        return None

    def not_enough(self, index: int, count: int) -> NotEnoughPrompts:
        """Build the error, with how many ways there were and what to add."""
        sizes = {plan.name: plan.size for plan in self.rows.design.plans}
        if self._tried_all:
            self.refused[REPEATED] -= self.made  # trying all combinations met these again
            ways = " × ".join(f"{size} {name.strip()}" for name, size in sizes.items() if size > 1)
            total = f"{self.rows.design.combinations:,} ways ({ways})" if ways else "one way"
            rest = f"; of the others {self.refusals()}" if self.refusals() else ""
            account = f"Its phrases combine in {total}, and {self.made:,} are used{rest}."
        else:
            account = f"Too many in a row were refused; in all {self.refusals()}."
        advice = "Give the recipe slots that vary"
        vocabulary = (name for name in sizes if name != PHOTO)
        if shortest := min(vocabulary, key=lambda name: sizes[name], default=None):
            advice = f"Add phrases or slots (the shortest, `{shortest}`, has {sizes[shortest]})"
        if self.rows.presence:
            advice += f", raise the presence of {' and '.join(self.rows.presence)}"
        return NotEnoughPrompts(
            f"Only {index:,} of {count:,} captions could be made: the {self.name} set has no more "
            f"after {self.made:,}. {account}",
            hint=f"{advice}, lower the share of {self.name} in `prompts.sets`, or set "
            f"prompts.count to {index}. ledger.jsonl has what was refused.",
        )


@dataclass(kw_only=True)
class Amplify(DrawnSet):
    """Structured captions over the whole vocabulary, by one of its templates with their shares."""

    name = "amplify"
    templates: Sequence[tuple[CaptionTemplate, float]]

    def __post_init__(self) -> None:
        self.drawn = self.slots
        # The least important go first; what is around the subject goes last of all.
        others = [slot for slot in self.drawn[::-1] if slot != "background"]
        self.droppable = (*others, "background")

    def caption(self, row: Row) -> Caption | None:
        """Fill the template, in one of its forms; over the limit, without its last slots."""
        said = {slot: row.get(slot) for slot in self.drawn}
        template = template_for(said, self.templates)
        form = template.form(said)
        fitted = self.fit(row, lambda phrases: template.render(phrases, form))
        if fitted is None:
            return None
        text, phrases = fitted
        slots = {slot: phrases.get(slot) for slot in self.drawn}
        return Caption(text, slots, template.name, repeats=self._is_bare(row))

    def shortest(self) -> Iterator[str]:
        """Yield what the template writes without slots."""
        for template, _ in self.templates:
            for form in range(template.forms):
                yield template.render({}, form)


@dataclass(kw_only=True)
class Against(DrawnSet):
    """Photos' captions, each with another thing of the class in the subject's place.

    A caption in which nothing can be varied comes as often as any other photo's.

    Attributes:
        photos: The photos and their captions, cut open at the subject.
        class_noun: Of the thing.
        attributes: The slots whose phrases stand before the class noun.
    """

    name = "against"
    photos: Sequence[tuple[PhotoCaption, CutCaption]]
    class_noun: str
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._article = article_for(self.class_noun)
        self.drawn = self.attributes
        self.droppable = self.drawn[::-1]
        self._fixed = [unvaried(around, self.drawn).keys() for _, around in self.photos]

    def caption(self, row: Row) -> Caption | None:
        """Put the row's attributes into the photo's caption; over the limit, without the last."""
        number = int(row[PHOTO])
        (photo, around), fixed = self.photos[number], self._fixed[number]
        row = {slot: phrase for slot, phrase in row.items() if slot not in fixed}
        fitted = self.fit(row, lambda phrases: self._write(around, phrases))
        if fitted is None:
            return None
        text, phrases = fitted
        varied = {slot: phrases.get(slot) for slot in self.drawn}
        kept = {"style": around.style, "background": around.background}
        slots = {slot: varied.get(slot, kept.get(slot)) for slot in self.slots}
        repeats = self.name == "captions" or self._is_bare(row)
        return Caption(text, slots, photo=photo, repeats=repeats)

    def shortest(self) -> Iterator[str]:
        """Yield each photo's caption with the bare class noun in it."""
        for _, around in self.photos:
            yield self._write(around, {})

    def _write(self, around: CutCaption, phrases: Mapping[str, str | None]) -> str:
        attributes = {slot: phrases.get(slot) or "" for slot in self.drawn}
        return around.caption(attributes, self.class_noun, self._article)


@dataclass(kw_only=True)
class Captions(Against):
    """Photos' captions without the identifier, and nothing else changed."""

    name = "captions"


def size_like(photo: PhotoCaption, area: int) -> tuple[int, int]:
    """Compute the width and height of an image of about `area` pixels with a photo's proportions.

    Multiples of 64 for images of 512 pixels and more a side, of 8 for smaller ones, as autoencoders
    need them.
    """
    multiple = 64 if area >= 512 * 512 else 8
    scale = math.sqrt(area / (photo.width * photo.height))

    def rounded(pixels: int) -> int:
        return max(multiple, round(pixels * scale / multiple) * multiple)

    return rounded(photo.width), rounded(photo.height)


def repeated_seed(photo: PhotoCaption, again: int) -> int:
    """Derive the seed of an image whose caption came `again` times before: the photo's at first."""
    if not again:
        return photo.seed
    digest = hashlib.sha256(f"{photo.seed}/{again}".encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8])
