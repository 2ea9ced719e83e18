"""A phrase of the banks, and which phrases, groups of class nouns and places suit one another."""

from collections.abc import Mapping
from dataclasses import dataclass

from regforge.embedded.bank_files import Kind

OWN_SLOTS = ("shape", "color", "texture", "motion")
"""Slots that every super-category's own file fills; `motion` is for living things only."""

SHARED_SLOTS = {"background": "places.yaml", "lighting": "lighting.yaml", "style": "styles.yaml"}
"""Slots that all super-categories draw from one file, and that file."""

SLOTS = (*OWN_SLOTS, *SHARED_SLOTS)


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase, and what it goes with.

    Attributes:
        text: The words, ready to stand in a caption.
        slot: The slot it fills.
        tags: What it is; for a place these are what `fits` and `avoids` of others look at.
        fits: If not empty, it needs a place with at least one of these tags.
        avoids: It needs a place with none of these tags.
        only_for: If not empty, only these super-categories or groups use it.
        not_for: These super-categories or groups never use it.
    """

    text: str
    slot: str
    tags: frozenset[str] = frozenset()
    fits: frozenset[str] = frozenset()
    avoids: frozenset[str] = frozenset()
    only_for: frozenset[str] = frozenset()
    not_for: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.text


def compatible(first: Phrase, second: Phrase, *more: Phrase) -> bool:
    """Whether phrases can stand in one caption.

    Only a place restricts the others: no swimming in a kitchen, no starry sky there either.
    """
    chosen = (first, second, *more)
    places = [phrase for phrase in chosen if phrase.slot == "background"]
    return all(_suits(phrase.fits, phrase.avoids, place) for phrase in chosen for place in places)


def _suits(fits: frozenset[str], avoids: frozenset[str], place: Phrase) -> bool:
    return (not fits or not fits.isdisjoint(place.tags)) and avoids.isdisjoint(place.tags)


@dataclass(frozen=True, slots=True)
class NounGroup:
    """Class nouns that behave alike, such as the songbirds."""

    names: frozenset[str]
    """What `only_for` and `not_for` call it: itself, what it is also, and its super-category."""
    nouns: tuple[str, ...]
    fits: frozenset[str]
    avoids: frozenset[str]

    def uses(self, phrase: Phrase) -> bool:
        """Whether the phrase is ever said of these nouns."""
        if not phrase.not_for.isdisjoint(self.names):
            return False
        if phrase.only_for:
            # A place reserved for this group needs no matching tag.
            return not phrase.only_for.isdisjoint(self.names)
        if phrase.slot != "background":
            return True
        # Unlike a phrase, a group that fits no tag fits no place but the reserved ones.
        return not self.fits.isdisjoint(phrase.tags) and self.avoids.isdisjoint(phrase.tags)


@dataclass(frozen=True, slots=True)
class Category:
    """A super-category: its groups of class nouns, and the phrases of its own file."""

    kind: Kind
    default: NounGroup
    groups: Mapping[str, NounGroup]
    without_article: frozenset[str]
    own: tuple[Phrase, ...]
