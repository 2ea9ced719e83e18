"""Fills the vocabulary of a recipe: the phrases of every slot, and which do not go together.

    list, file   as the user wrote them
    bank         the phrase banks
    llm          the language model, see `slot_questions`

In `mode: compose` the slots of the language model are left out, because it fills them caption by
caption (`composing`). Knows nothing of how captions are drawn from the phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.prompts.captions import is_photograph
from regforge.prompts.compatibility import ask_for_clashes, clashes_known_to_banks, settle
from regforge.prompts.given_phrases import BankShelf, from_bank, from_file, listed
from regforge.prompts.messages import Messages
from regforge.prompts.phrase_rules import PhraseRules, odd_for_user
from regforge.prompts.slot_questions import SlotFiller
from regforge.prompts.vocabulary import Pair, Vocabulary, VocabularyError
from regforge.recipe import Recipe, Slot, drawn_slots, kind_of, slots_of
from regforge.recipe.phrases import cut

if TYPE_CHECKING:
    from regforge.providers.language_model import LanguageModelClient


def fill_vocabulary(
    recipe: Recipe,
    client: LanguageModelClient | None,
    *,
    journal: Journal,
    reporter: Reporter,
) -> Vocabulary:
    """The vocabulary that captions are drawn from.

    Args:
        recipe: What to fill.
        client: Asked where a slot says `from: llm`; may be None if none does.
        journal: Gets the phrases that were refused, with reasons.
        reporter: Gets progress and warnings.

    Returns:
        Phrases of every slot of the recipe; in `mode: compose` of those not from the language
        model. None is empty, none has the identifier in it.

    Raises:
        VocabularyError: A slot cannot be filled; the message says which, why and what to do.
        MessageError: A message template of the recipe is wrong.
        RegforgeError: The language model cannot be used.
    """
    return _Filling(recipe, client, journal, reporter).vocabulary()


@dataclass(frozen=True)
class _Filling:
    recipe: Recipe
    client: LanguageModelClient | None
    journal: Journal
    reporter: Reporter

    def vocabulary(self) -> Vocabulary:
        slots = drawn_slots(self.recipe)
        if self.recipe.prompts.mode == "compose":
            slots = tuple(slot for slot in slots if slot.origin != "llm")
        if (path := self.recipe.prompts.vocabulary) is not None:
            return self._reused(path, slots)
        return self._made(slots)

    def _made(self, slots: tuple[Slot, ...]) -> Vocabulary:
        asked = tuple(slot for slot in slots if slot.origin == "llm")
        messages = Messages(self.recipe) if asked else None  # complains before the first call
        phrases, weights = self._given(slots)
        if asked:
            phrases |= self._filler(messages).fill(asked)
        ordered = {slot.name: phrases[slot.name] for slot in slots}
        origins = {slot.name: slot.origin for slot in slots}
        ordered, clashes = self._compatibility(ordered, origins, messages)
        weights |= self._photo_weights(slots, ordered)
        return Vocabulary(
            class_noun=self.recipe.subject.class_noun,
            kind=kind_of(self.recipe),
            slots=ordered,
            weights=weights,
            incompatible=clashes,
            language_model=self.recipe.prompts.llm.model if asked else None,
            origins=origins,
        )

    def _photo_weights(
        self, slots: tuple[Slot, ...], phrases: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[float, ...]]:
        """Weights by which `prompts.photo_share` of all styles are photographs."""
        drawn = [s for s in slots if s.name == "style" and s.origin in ("llm", "bank")]
        if not drawn or drawn[0].mode != "sample":
            return {}
        photos = [is_photograph(style) for style in phrases["style"]]
        share, count = self.recipe.prompts.photo_share, sum(photos)
        if not 0 < count < len(photos):
            return {}
        of_photo, of_art = share / count, (1 - share) / (len(photos) - count)
        return {"style": tuple(round(of_photo if photo else of_art, 6) for photo in photos)}

    # --------------------------------------------------------------------------------- the phrases

    def _given(
        self, slots: tuple[Slot, ...]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[float, ...]]]:
        """Phrases and weights of the slots for which nobody is asked."""
        rules, shelf = self._rules, self._shelf
        phrases: dict[str, tuple[str, ...]] = {}
        weights: dict[str, tuple[float, ...]] = {}
        for slot in slots:
            if slot.origin == "list":
                phrases[slot.name], slot_weights = listed(slot, rules)
                if slot_weights:
                    weights[slot.name] = slot_weights
            elif slot.origin == "file":
                phrases[slot.name] = from_file(slot, rules)
            elif slot.origin == "bank":
                phrases[slot.name] = from_bank(slot, shelf)
        for slot in slots:
            if slot.origin in _OWN:
                self._say_odd_ones(slot.name, phrases[slot.name])
        stated = _COLORS.intersection(shelf.class_noun.lower().split()[:-1])
        if stated and not shelf.listed and any(slot.name in ("color", "colour") for slot in slots):
            self.reporter.say(
                f"warning: the class noun {shelf.class_noun!r} says a color, and the slot 'color' "
                "will say others of it; leave out one of the two"
            )
        if not shelf.known and self._needs_banks(slots):
            self.reporter.say(
                f"warning: no phrase bank knows the class noun {shelf.class_noun!r}; phrases for "
                f"any {shelf.super_category.replace('_', ' ')} are used"
            )
        return phrases, weights

    def _say_odd_ones(self, slot: str, phrases: tuple[str, ...]) -> None:
        """Say which of the user's own phrases read badly where the shipped templates put them.

        They are used all the same: a template of one's own may put them elsewhere.
        """
        odd: dict[str, list[str]] = {}
        for phrase in phrases:
            if why := odd_for_user(phrase, slot):
                odd.setdefault(why, []).append(phrase)
        for why, (first, *others) in odd.items():
            more = f" (and {len(others)} more like it)" if others else ""
            self.reporter.say(f"warning: slot {slot!r}: {cut(first)}{more} {why}")

    def _needs_banks(self, slots: tuple[Slot, ...]) -> bool:
        from_model = self.client is not None and self.client.chooses_only
        return any(
            slot.origin == "bank" or (from_model and slot.origin == "llm" and slot.values is None)
            for slot in slots
        )

    def _filler(self, messages: Messages | None) -> SlotFiller:
        if self.client is None or messages is None:
            raise VocabularyError(
                "The recipe has slots for the language model to fill, and there is none to ask."
            )
        return SlotFiller(
            self.recipe,
            self.client,
            messages,
            self._rules,
            self._shelf,
            self.journal,
            self.reporter,
        )

    def _compatibility(
        self,
        slots: dict[str, tuple[str, ...]],
        origins: Mapping[str, str],
        messages: Messages | None,
    ) -> tuple[dict[str, tuple[str, ...]], frozenset[Pair]]:
        if not self.recipe.prompts.compatibility:
            return slots, frozenset()
        shelf = self._shelf
        if self.client is None or messages is None or self.client.chooses_only:
            clashes = clashes_known_to_banks(slots, shelf)
        else:
            clashes = ask_for_clashes(
                slots,
                client=self.client,
                messages=messages,
                shelf=shelf,
                seed=self.recipe.seed,
                reporter=self.reporter,
            )
        fixed = frozenset(
            slot.name for slot in slots_of(self.recipe) if origins.get(slot.name) in _OWN
        )
        return settle(slots, clashes, fixed, self.journal)

    # ------------------------------------------------------------------- vocabulary.json of before

    def _reused(self, path: Path, slots: tuple[Slot, ...]) -> Vocabulary:
        """A vocabulary of an earlier run; what the recipe itself lists still comes from there."""
        before = Vocabulary.load(path, self._rules.identifier)
        own = tuple(slot for slot in slots if slot.origin in _OWN)
        phrases, weights = self._given(own)
        missing = [slot.name for slot in slots if slot not in own and slot.name not in before.slots]
        if missing:
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
        ordered: dict[str, tuple[str, ...]] = {}
        for slot in slots:
            ordered[slot.name] = phrases.get(slot.name) or before.slots[slot.name]
            if slot not in own and slot.name in before.weights:
                weights[slot.name] = before.weights[slot.name]
        there = {(name, phrase) for name, texts in ordered.items() for phrase in texts}
        clashes = frozenset(
            each
            for each in before.incompatible
            if (each[0], each[1]) in there and (each[2], each[3]) in there
        )
        if self.recipe.prompts.compatibility:
            ordered, clashes = settle(ordered, clashes, frozenset(ordered), self.journal)
        taken = [slot.name for slot in slots if slot not in own]
        return Vocabulary(
            class_noun=self.recipe.subject.class_noun,
            kind=kind_of(self.recipe),
            slots=ordered,
            weights=weights,
            incompatible=clashes if self.recipe.prompts.compatibility else frozenset(),
            language_model=before.language_model if taken else None,
            origins={
                slot.name: slot.origin if slot in own else before.origins[slot.name]
                for slot in slots
            },
        )

    @property
    def _rules(self) -> PhraseRules:
        return PhraseRules(self.recipe.subject.class_noun, self.recipe.subject.identifier)

    @property
    def _shelf(self) -> BankShelf:
        return BankShelf.of(self.recipe.subject.class_noun, kind_of(self.recipe))


_COLORS = frozenset(
    "red green blue yellow white black gray grey brown pink purple beige teal turquoise".split()
)
_OWN = ("list", "file")
"""Origins of phrases that the user wrote for this very recipe."""
