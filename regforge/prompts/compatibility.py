"""Which phrases do not go together: no swimming in a kitchen, no starry sky there either.

The place restricts the others. For phrases of the banks the banks know; of other phrases a
language model that can write is asked, one question for each restricting slot and portion of its
phrases. The sampler draws clashing combinations again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from regforge.embedded.phrase_banks import compatible
from regforge.journal import Journal, Reporter
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.vocabulary import BankPhrases, Pair, VocabularyError, pair_of
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe.phrases import BEFORE_NOUN
from regforge.words import HUES, words_of

PLACE = "background"

ASKED_ABOUT = ("motion", "lighting")
"""Slots whose phrases often contradict a place. Of texture and style only the banks are asked:
what a language model writes there seldom does."""

_RESTRICTING = (*ASKED_ABOUT, "texture", "style")
_MOST_PAIRS = 1600
_MOST_PLACES = 100
_MOST_CLASHING = 0.8
_MOST_COMPARED = 1_000_000  # of longer lists captions may say odd things

_TIMES = tuple(
    (re.compile(rf"\b(?:{words})\b", re.I), frozenset(times.split()))
    for words, times in (
        ("night|midnight|nighttime|moonlit|moonlight|moon|starry|starlit|stars", "night"),
        ("morning|dawn|sunrise|daybreak|first light of day", "morning"),
        ("noon|midday", "day"),
        ("afternoon", "day evening"),
        ("evening|dusk|sunset|twilight|setting sun|nightfall", "evening"),
        ("golden hour|blue hour", "morning evening"),
        ("daylight|sunny|sunlit|sunlight|sunshine|sun|overcast|blue sky", "morning day evening"),
    )
)
_COLORLESS = re.compile(
    r"\b(?:black[- ](?:and|&)[- ]white|b&w|bw|monochrome|monochromatic|sepia|gr[ae]y[- ]?scale|"
    r"daguerreotype|tintype|colou?rless|blueprint)\b",
    re.I,
)
_MAY_COME_TWICE = frozenset(
    "and with of a the in on color colored haired trimmed topped clad dressed toned".split()
)

Slots = Mapping[str, Sequence[str]]
_Marked = Mapping[str, Mapping[str, frozenset[str]]]


# ------------------------------------------------------------------------------- without asking


def clashes_known_to_banks(slots: Slots, bank: BankPhrases) -> frozenset[Pair]:
    """List the pairs that the banks rule out; phrases that they do not know go with everything."""
    places = bank.find(PLACE, slots.get(PLACE, ()))
    return frozenset(
        pair_of(slot, text, PLACE, place_text)
        for slot in _RESTRICTING
        for text, phrase in bank.find(slot, slots.get(slot, ())).items()
        for place_text, place in places.items()
        if not compatible(phrase, place)
    )


def contradictions(slots: Slots) -> frozenset[Pair]:
    """List the pairs that cannot both be true, as far as their words show it.

    Two times of day ("at night in Tokyo", "in soft morning light"), and a hue in an image without
    colors ("a black-and-white photo of", "bright red").
    """
    timed = {
        slot: {text: times for text in slots.get(slot, ()) if (times := _times(text)) is not None}
        for slot in (PLACE, *_RESTRICTING)
    }
    colorless = [each for each in slots.get("style", ()) if _COLORLESS.search(each)]
    hues = [each for each in slots.get("color", ()) if HUES.intersection(words_of(each))]
    none: frozenset[str] = frozenset()
    colored = {"style": dict.fromkeys(colorless, none), "color": dict.fromkeys(hues, none)}
    return _pairs(timed, frozenset.isdisjoint) | _pairs(colored, frozenset.isdisjoint)


def repetitions(slots: Slots) -> frozenset[Pair]:
    """List the pairs before the class noun that say a word twice: "a matte black matte teapot"."""
    words = {
        slot: {text: frozenset(words_of(text)) - _MAY_COME_TWICE for text in slots[slot]}
        for slot in sorted(BEFORE_NOUN & slots.keys())
    }
    return _pairs(words, lambda one, other: not one.isdisjoint(other))


def _pairs(
    marked: _Marked, clash: Callable[[frozenset[str], frozenset[str]], bool]
) -> frozenset[Pair]:
    return frozenset(
        pair_of(slot, text, other, there)
        for slot, other in itertools.combinations(marked, 2)
        if len(marked[slot]) * len(marked[other]) <= _MOST_COMPARED
        for text, mark in marked[slot].items()
        for there, other_mark in marked[other].items()
        if clash(mark, other_mark)
    )


def _times(text: str) -> frozenset[str] | None:
    """The times of day that a phrase can be true of; None if it says nothing of them."""
    found = [times for pattern, times in _TIMES if pattern.search(text)]
    return frozenset.intersection(*found) if found else None


# ------------------------------------------------------------------------------------------ asking


class Clash(BaseModel):
    """A phrase and the backgrounds it contradicts, by their numbers from 1."""

    phrase: int
    backgrounds: list[int]


class Clashes(BaseModel):
    """The reply that is asked for."""

    clashes: list[Clash]


@dataclass(frozen=True)
class Portion:
    """Phrases and backgrounds of one question."""

    slot: str
    phrases: tuple[str, ...]
    backgrounds: tuple[str, ...]
    number: int

    def message(self, messages: Messages) -> list[dict[str, Any]]:
        """Write the conversation."""
        phrases, backgrounds = list(self.phrases), list(self.backgrounds)
        return messages("compatibility", slot=self.slot, phrases=phrases, backgrounds=backgrounds)

    def pairs(self, reply: Clashes) -> frozenset[Pair]:
        """List the pairs that a reply names; numbers that do not exist are left out."""
        return frozenset(
            pair_of(self.slot, self.phrases[clash.phrase - 1], PLACE, self.backgrounds[number - 1])
            for clash in reply.clashes
            if 1 <= clash.phrase <= len(self.phrases)
            for number in clash.backgrounds
            if 1 <= number <= len(self.backgrounds)
        )

    def problems(self, reply: Clashes) -> list[str]:
        """Say what is wrong with a reply, in words for the model."""
        phrases = {clash.phrase for clash in reply.clashes}
        backgrounds = {number for clash in reply.clashes for number in clash.backgrounds}
        found = [
            f"There is no {what} {min(strange)}; they go from 1 to {len(there)}."
            for what, named, there in (
                ("phrase", phrases, self.phrases),
                ("background", backgrounds, self.backgrounds),
            )
            if (strange := named - set(range(1, len(there) + 1)))
        ]
        most = _MOST_CLASHING * len(self.phrases) * len(self.backgrounds)
        if len(self.pairs(reply)) > most:
            found.append(
                "Nearly every pair is listed. List only the pairs that contradict each other; "
                "most go together."
            )
        return found


def portions(slots: Slots, bank: BankPhrases | None = None) -> Iterator[Portion]:
    """Cut the questions to ask small enough that the longest reasonable reply fits.

    Slots whose phrases, and the backgrounds, are all known to the bank are left out.
    """
    places = tuple(slots.get(PLACE, ()))
    all_known = bank is not None and len(bank.find(PLACE, places)) == len(places)
    for slot in ASKED_ABOUT:
        phrases = tuple(slots.get(slot, ()))
        if all_known and bank and len(bank.find(slot, phrases)) == len(phrases):
            continue
        numbers = itertools.count(1)
        for start in range(0, len(places), _MOST_PLACES):
            some_places = places[start : start + _MOST_PLACES]
            rows = _MOST_PAIRS // len(some_places)
            for first in range(0, len(phrases), rows):
                yield Portion(slot, phrases[first : first + rows], some_places, next(numbers))


def ask_for_clashes(
    slots: Slots,
    *,
    client: LanguageModelClient,
    messages: Messages,
    bank: BankPhrases,
    seed: int,
    reporter: Reporter,
) -> frozenset[Pair]:
    """List the pairs that contradict each other, as the banks and the language model see it.

    A question that fails is in the ledger and costs only its own pairs: captions may then say
    odd things, which is no reason to stop a run.
    """
    asked = list(portions(slots, bank))
    questions = [
        Question(
            f"compatibility of {each.slot}, question {each.number}",
            each.message(messages),
            Clashes,
            problems=each.problems,
            seed=question_seed(seed, "compatibility", each.slot, each.number),
        )
        for each in asked
    ]
    replies = client.ask(questions) if questions else []
    answers = list(zip(asked, replies, strict=True))
    if failed := sorted({each.slot for each, reply in answers if reply is None}):
        reporter.say(
            f"warning: the language model did not say which {' and '.join(failed)} phrases go "
            "with which backgrounds; some captions may be odd"
        )
    pairs = (each.pairs(reply) for each, reply in answers if reply is not None)
    return clashes_known_to_banks(slots, bank).union(*pairs)


# ---------------------------------------------------------------------------------------- settling


def settle(
    slots: Mapping[str, tuple[str, ...]],
    clashes: frozenset[Pair],
    fixed: frozenset[str],
    journal: Journal,
) -> tuple[dict[str, tuple[str, ...]], frozenset[Pair]]:
    """Leave out phrases that go with no phrase of another slot: they could never be drawn.

    Args:
        slots: Phrases of each slot.
        clashes: Pairs that do not go together.
        fixed: Slots whose phrases the user listed. Those stay, and if one clashes with
            everything, its clashes are forgotten instead.
        journal: Gets what was left out or forgotten.

    Returns:
        The phrases and the clashes that remain; no slot ends up empty.

    Raises:
        VocabularyError: A phrase that the user listed contradicts all those of another slot.
    """
    remaining = dict(slots)
    untrue = contradictions(slots)
    clashing = {*clashes, *untrue, *repetitions(slots)}
    against = _partners(clashing)
    contradicted = _partners(untrue)
    while stuck := _stuck(remaining, against):
        slot, phrase, other = stuck
        forgotten = set(against[stuck])
        if slot in fixed:
            forgotten -= contradicted.get(stuck, set())
            if forgotten.isdisjoint(remaining[other]):
                raise VocabularyError(
                    f"slot {slot!r}: {phrase!r} contradicts every phrase of the slot {other!r}, "
                    f"such as {remaining[other][0]!r}.",
                    hint=f"Take it out, or give {other!r} a phrase that goes with it.",
                )
        if slot in fixed or len(remaining[slot]) == 1:
            against[stuck] -= forgotten
            for there in forgotten:
                against[other, there, slot].remove(phrase)
                clashing.remove(pair_of(slot, phrase, other, there))
            why = f"goes with no {other}, but stays, because there is no other choice"
        else:
            remaining[slot] = tuple(each for each in remaining[slot] if each != phrase)
            why = f"left out: goes with no {other}"
        journal.failure("prompts", f"slot {slot}", f"{phrase!r} {why}")
    return remaining, among(remaining, clashing)


def among(slots: Slots, clashes: Set[Pair]) -> frozenset[Pair]:
    """Select the pairs whose phrases are both there."""
    there = {(slot, phrase) for slot, phrases in slots.items() for phrase in phrases}
    return frozenset(each for each in clashes if each[:2] in there and each[2:] in there)


def _partners(clashes: Set[Pair]) -> dict[tuple[str, str, str], set[str]]:
    """What a phrase of a slot clashes with in another slot."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for slot, phrase, other, there in clashes:
        found.setdefault((slot, phrase, other), set()).add(there)
        found.setdefault((other, there, slot), set()).add(phrase)
    return found


def _stuck(
    slots: Slots, partners: Mapping[tuple[str, str, str], set[str]]
) -> tuple[str, str, str] | None:
    """The first phrase that clashes with all phrases of another slot, and that slot."""
    none: set[str] = set()
    # Restricting slots first: rather lose a motion than the place it cannot happen in.
    for slot in sorted(slots, key=lambda name: name == PLACE):
        for phrase in slots[slot]:
            for other in slots:
                if partners.get((slot, phrase, other), none).issuperset(slots[other]):
                    return slot, phrase, other
    return None
