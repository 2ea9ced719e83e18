"""Fills the vocabulary of a recipe: the phrases of every slot, and which do not go together.

    list, file   as the user wrote them
    bank         the phrase banks
    llm          the language model, see `phrase_questions`

In `mode: compose` the slots of the language model are left out, because it fills them caption by
caption (`composing`). Also tells before the first call how many calls there will be, and of about
how many tokens: messages are rendered and measured, replies guessed from what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, fsum
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.embedded.phrase_banks import SLOTS
from regforge.journal import Journal, Reporter
from regforge.prompts.captions import is_photograph
from regforge.prompts.compatibility import (
    ASKED_ABOUT,
    PLACE,
    among,
    ask_for_clashes,
    clashes_known_to_banks,
    portions,
    settle,
)
from regforge.prompts.composing import CALLS_PER_WAVE, MOST_USED_SHOWN
from regforge.prompts.messages import Messages, tokens_in
from regforge.prompts.phrase_questions import (
    SlotFiller,
    phrases_per_question,
    phrases_wanted,
    rounds_needed,
)
from regforge.prompts.phrase_rules import odd_for_user
from regforge.prompts.vocabulary import (
    BankPhrases,
    Pair,
    Vocabulary,
    VocabularyError,
    given_phrases,
    listed_values,
)
from regforge.recipe import Recipe, Slot, drawn_slots, kind_of, slots_of
from regforge.recipe.phrases import cut

if TYPE_CHECKING:
    from regforge.providers.language_model import LanguageModelClient

_COLORS = frozenset(
    "red green blue yellow white black gray grey brown pink purple beige teal turquoise".split()
)
_OWN = ("list", "file")
"""Origins of phrases that the user wrote for this very recipe."""

_Phrases = dict[str, tuple[str, ...]]
_Weights = dict[str, tuple[float, ...]]


def fill_vocabulary(
    recipe: Recipe,
    client: LanguageModelClient | None,
    *,
    journal: Journal,
    reporter: Reporter,
) -> Vocabulary:
    """Find the phrases that captions are drawn from.

    The client is asked where a slot says `from: llm`; it may be None if none does.

    Returns:
        Phrases of every slot of the recipe; in `mode: compose` of those not from the language
        model. None is empty, none has the identifier in it.

    Raises:
        VocabularyError: A slot cannot be filled; the message says which, why and what to do.
        MessageError: A message template of the recipe is wrong.
        RegforgeError: The language model cannot be used.
    """
    slots = drawn_slots(recipe)
    if recipe.prompts.mode == "compose":
        slots = tuple(slot for slot in slots if slot.origin != "llm")
    filling = _Filling(recipe, client, journal, reporter, slots)
    path = recipe.prompts.vocabulary
    return filling.made() if path is None else filling.reused(path)


@dataclass(frozen=True)
class _Filling:
    recipe: Recipe
    client: LanguageModelClient | None
    journal: Journal
    reporter: Reporter
    slots: tuple[Slot, ...]

    @cached_property
    def _bank(self) -> BankPhrases:
        return BankPhrases.of(self.recipe)

    def made(self) -> Vocabulary:
        """A vocabulary made of the recipe alone."""
        recipe, client = self.recipe, self.client
        asked = tuple(slot for slot in self.slots if slot.origin == "llm")
        messages = Messages(recipe) if asked else None  # complains before the first call
        phrases, weights = self._given(self.slots)
        if messages is not None:
            if client is None:
                raise VocabularyError(
                    "The recipe has slots for the language model to fill, and there is none to ask."
                )
            phrases |= SlotFiller(
                recipe, client, messages, self._bank, self.journal, self.reporter
            ).fill(asked)
        phrases = {slot.name: phrases[slot.name] for slot in self.slots}
        clashes: frozenset[Pair] = frozenset()
        if recipe.prompts.compatibility:
            if client is None or messages is None or client.chooses_only:
                clashes = clashes_known_to_banks(phrases, self._bank)
            else:
                clashes = ask_for_clashes(
                    phrases,
                    client=client,
                    messages=messages,
                    bank=self._bank,
                    seed=recipe.seed,
                    reporter=self.reporter,
                )
            own = frozenset(slot.name for slot in self.slots if slot.origin in _OWN)
            phrases, clashes = settle(phrases, clashes, own, self.journal)
        return Vocabulary(
            class_noun=recipe.subject.class_noun,
            kind=kind_of(recipe),
            slots=phrases,
            weights=weights | self._photo_weights(phrases),
            incompatible=clashes,
            language_model=recipe.prompts.llm.model if asked else None,
            origins={slot.name: slot.origin for slot in self.slots},
        )

    def reused(self, path: Path) -> Vocabulary:
        """A vocabulary of an earlier run; phrases that the recipe itself lists are kept."""
        before = Vocabulary.load(path, self.recipe.subject.identifier)
        own = tuple(slot for slot in self.slots if slot.origin in _OWN)
        taken = [slot.name for slot in self.slots if slot not in own]
        phrases, weights = self._given(own)
        if missing := [name for name in taken if name not in before.slots]:
            raise VocabularyError(
                f"{path} has no phrases for the slot {missing[0]!r}.",
                hint=f"It has {', '.join(before.slots) or 'none'}. Add the slot there, leave it "
                "out of `prompts.slots`, or leave out `prompts.vocabulary`.",
            )
        if before.class_noun.casefold() != self.recipe.subject.class_noun.casefold():
            self.reporter.say(
                f"warning: {path} is about {before.class_noun!r}, the recipe about "
                f"{self.recipe.subject.class_noun!r}"
            )
        phrases = {
            slot.name: phrases.get(slot.name) or before.slots[slot.name] for slot in self.slots
        }
        clashes: frozenset[Pair] = frozenset()
        if self.recipe.prompts.compatibility:
            clashes = among(phrases, before.incompatible)
            phrases, clashes = settle(phrases, clashes, frozenset(phrases), self.journal)
        origins = {slot.name: slot.origin for slot in own}
        return Vocabulary(
            class_noun=self.recipe.subject.class_noun,
            kind=kind_of(self.recipe),
            slots=phrases,
            weights=weights | {n: before.weights[n] for n in taken if n in before.weights},
            incompatible=clashes,
            language_model=before.language_model if taken else None,
            origins={name: origins.get(name) or before.origins[name] for name in phrases},
        )

    def _given(self, slots: tuple[Slot, ...]) -> tuple[_Phrases, _Weights]:
        """Phrases and weights of those slots for which nobody is asked."""
        subject, bank = self.recipe.subject, self._bank
        given = [slot for slot in slots if slot.origin != "llm"]
        phrases = {slot.name: given_phrases(slot, subject, bank) for slot in given}
        weights = {slot.name: listed_values(slot, subject)[1] for slot in slots if slot.weights}
        for slot in slots:
            if slot.origin in _OWN:
                self._warn_of_odd_ones(slot.name, phrases[slot.name])
        stated = _COLORS.intersection(bank.class_noun.lower().split()[:-1])
        colored = any(slot.name in ("color", "colour") for slot in slots)
        if stated and not bank.listed and colored:
            self.reporter.say(
                f"warning: the class noun {bank.class_noun!r} says a color, and the slot 'color' "
                "will say others of it; leave out one of the two"
            )
        if not bank.known and any(map(self._needs_bank, slots)):
            self.reporter.say(
                f"warning: no phrase bank knows the class noun {bank.class_noun!r}; phrases for "
                f"any {bank.super_category.replace('_', ' ')} are used"
            )
        return phrases, {name: each for name, each in weights.items() if each}

    def _needs_bank(self, slot: Slot) -> bool:
        chooses = self.client is not None and self.client.chooses_only
        return slot.origin == "bank" or (chooses and slot.origin == "llm" and slot.values is None)

    def _warn_of_odd_ones(self, slot: str, phrases: tuple[str, ...]) -> None:
        """Warn of the user's own phrases that read badly where the shipped templates put them.

        They are used all the same: a template of one's own may put them elsewhere.
        """
        odd: dict[str, list[str]] = {}
        for phrase in phrases:
            if why := odd_for_user(phrase, slot):
                odd.setdefault(why, []).append(phrase)
        for why, (first, *others) in odd.items():
            more = f" (and {len(others)} more like it)" if others else ""
            self.reporter.say(f"warning: slot {slot!r}: {cut(first)}{more} {why}")

    def _photo_weights(self, phrases: Mapping[str, tuple[str, ...]]) -> _Weights:
        """Weights by which `prompts.photo_share` of all styles are photographs."""
        drawn = [s for s in self.slots if s.name == "style" and s.origin in ("llm", "bank")]
        if not drawn or drawn[0].mode != "sample":
            return {}
        photos = [is_photograph(style) for style in phrases["style"]]
        share, count = self.recipe.prompts.photo_share, sum(photos)
        if not 0 < count < len(photos):
            return {}
        of_photo, of_art = share / count, (1 - share) / (len(photos) - count)
        return {"style": tuple(round(of_photo if photo else of_art, 6) for photo in photos)}


# ------------------------------------------------------------------------------------------ plans

_TOKENS_PER_PHRASE = 8
_TOKENS_PER_REPLY = 20
_TOKENS_PER_PHOTO = 1100
_TOKENS_PER_PHOTO_REPLY = 60
_SHARE_OF_CLASHES = 0.2
_TOKENS_PER_CLASH = 2
_STAND_IN = "a phrase of five words"


@dataclass(frozen=True)
class CallPlan:
    """Calls that a run will make if nothing fails, and about how many tokens go and come."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: CallPlan) -> CallPlan:
        return CallPlan(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def plan_calls(recipe: Recipe, *, photos: int = 0) -> CallPlan:
    """Estimate what the language model will be asked for a recipe; loads no model.

    The embedded model is asked too, but for a choice, which costs no tokens. `photos` are those
    that a vision model will describe (`captions: auto`).

    Raises:
        MessageError: A message template of the recipe is wrong.
        VocabularyError: A slot's own phrases cannot be used.
    """
    plan = sum(_calls(recipe), CallPlan())
    if recipe.prompts.llm.model.startswith("embedded/"):
        plan = CallPlan(plan.calls)
    if photos:
        sent = tokens_in(Messages(recipe)("photo")) + _TOKENS_PER_PHOTO
        plan += CallPlan(photos, photos * sent, photos * _TOKENS_PER_PHOTO_REPLY)
    return plan


def _calls(recipe: Recipe) -> Iterator[CallPlan]:
    prompts = recipe.prompts
    structured = prompts.sets.get("amplify", 0.0) + prompts.sets.get("against", 0.0)
    asked = [slot for slot in drawn_slots(recipe) if slot.origin == "llm"]
    if not asked:
        return
    messages = Messages(recipe)
    if prompts.mode == "compose":
        if structured:
            yield _compose(recipe, messages, asked, structured / fsum(prompts.sets.values()))
    elif prompts.vocabulary is None:
        yield from (_vocabulary(recipe, messages, slot) for slot in asked)
        if prompts.compatibility and not prompts.llm.model.startswith("embedded/"):
            yield from _compatibility(recipe, messages)


def _vocabulary(recipe: Recipe, messages: Messages, slot: Slot) -> CallPlan:
    wanted, rounds = phrases_wanted(recipe, slot), rounds_needed(recipe, slot)
    if slot.values is not None:
        text = messages("choose", slot=slot.name, values=list(slot.values), wanted=wanted)
        replied = min(wanted, len(slot.values)) * _TOKENS_PER_PHRASE
        return CallPlan(1, tokens_in(text), replied + _TOKENS_PER_REPLY)
    # In the middle round half of the phrases are there already.
    text = messages(
        "vocabulary",
        slot=slot.name,
        slots=[each.name for each in slots_of(recipe)],
        wanted=phrases_per_question(recipe, wanted),
        known=[_STAND_IN] * (wanted // 2 if rounds > 1 else 0),
    )
    replied = (wanted + wanted // 5) * _TOKENS_PER_PHRASE + _TOKENS_PER_REPLY
    return CallPlan(rounds, rounds * tokens_in(text), replied)


def _compatibility(recipe: Recipe, messages: Messages) -> Iterator[CallPlan]:
    bank = BankPhrases.of(recipe)
    names = (*ASKED_ABOUT, PLACE)
    slots = [slot for slot in slots_of(recipe) if slot.name in names]
    phrases = {slot.name: _expected(recipe, slot, bank) for slot in slots}
    for portion in portions(phrases, bank):
        pairs = len(portion.phrases) * len(portion.backgrounds)
        replied = int(pairs * _SHARE_OF_CLASHES) * _TOKENS_PER_CLASH + _TOKENS_PER_REPLY
        yield CallPlan(1, tokens_in(portion.message(messages)), replied)


def _expected(recipe: Recipe, slot: Slot, bank: BankPhrases) -> Sequence[str]:
    """The phrases a slot will have, or as many stand-ins."""
    if slot.origin in _OWN or (slot.origin == "bank" and slot.name in SLOTS):
        return given_phrases(slot, recipe.subject, bank)
    wanted = phrases_wanted(recipe, slot)
    if slot.values is not None:
        return slot.values[:wanted]
    return [f"{_STAND_IN} {number}" for number in range(wanted)]


def _compose(recipe: Recipe, messages: Messages, slots: Sequence[Slot], share: float) -> CallPlan:
    batch = recipe.prompts.compose_batch
    rows = recipe.prompts.count * share
    calls = CALLS_PER_WAVE * ceil(rows / (batch * CALLS_PER_WAVE))
    shown = [(_STAND_IN, 1)] * min(MOST_USED_SHOWN, batch * CALLS_PER_WAVE)
    text = messages(
        "compose",
        slots=[{"name": slot.name, "values": list(slot.values or ()) or None} for slot in slots],
        wanted=batch,
        used={slot.name: shown for slot in slots} if calls > CALLS_PER_WAVE else {},
        call=0,
    )
    replied = batch * len(slots) * (_TOKENS_PER_PHRASE + 3) + _TOKENS_PER_REPLY
    return CallPlan(calls, calls * tokens_in(text), calls * replied)
