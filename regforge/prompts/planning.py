"""How many calls the language model will get, and about how many tokens, before the first one.

The real messages are rendered and measured; replies are guessed from what is asked. Calls that fail
and are repeated are not counted. Touches nothing and loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, fsum

from regforge.embedded.phrase_banks import SLOTS
from regforge.prompts.compatibility import ASKED_ABOUT, PLACE, portions
from regforge.prompts.composing import CALLS_PER_WAVE, MOST_USED_SHOWN
from regforge.prompts.given_phrases import BankShelf, from_bank, from_file, listed
from regforge.prompts.messages import Messages, tokens_in
from regforge.prompts.phrase_rules import PhraseRules
from regforge.prompts.slot_questions import phrases_per_question, phrases_wanted, rounds_needed
from regforge.recipe import Recipe, Slot, drawn_slots, kind_of, slots_of

_TOKENS_PER_PHRASE = 8
_TOKENS_PER_REPLY = 20
_TOKENS_PER_PHOTO = 1100
_TOKENS_PER_PHOTO_REPLY = 60
_SHARE_OF_CLASHES = 0.2
_TOKENS_PER_CLASH = 2
_STAND_IN = "a phrase of five words"


@dataclass(frozen=True)
class CallPlan:
    """What a run will ask.

    Attributes:
        calls: Questions, each a call if nothing fails.
        prompt_tokens: About how many tokens are sent in all.
        completion_tokens: About how many tokens come back in all.
    """

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
    """What the language model will be asked for a recipe.

    The embedded model is asked too, but for a choice, which costs no tokens.

    Args:
        recipe: Any recipe.
        photos: How many photos a vision model will describe (`captions: auto`).

    Raises:
        MessageError: A message template of the recipe is wrong.
        VocabularyError: A slot's own phrases cannot be used.
    """
    plan = sum(_calls(recipe), CallPlan())
    if recipe.prompts.llm.model.startswith("embedded/"):
        plan = CallPlan(plan.calls)
    return plan + _photos(recipe, photos)


def _calls(recipe: Recipe) -> Iterator[CallPlan]:
    prompts = recipe.prompts
    structured = prompts.sets.get("amplify", 0.0)
    structured += prompts.sets.get("against", 0.0) if prompts.against == "varied" else 0.0
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
    asked_for = wanted + wanted // 5
    return CallPlan(
        rounds, rounds * tokens_in(text), asked_for * _TOKENS_PER_PHRASE + _TOKENS_PER_REPLY
    )


def _compatibility(recipe: Recipe, messages: Messages) -> Iterator[CallPlan]:
    shelf = BankShelf.of(recipe.subject.class_noun, kind_of(recipe))
    phrases = {
        slot.name: _expected(recipe, slot, shelf)
        for slot in slots_of(recipe)
        if slot.name in (*ASKED_ABOUT, PLACE)
    }
    for portion in portions(phrases, shelf):
        text = messages(
            "compatibility",
            slot=portion.slot,
            phrases=list(portion.phrases),
            backgrounds=list(portion.backgrounds),
        )
        pairs = len(portion.phrases) * len(portion.backgrounds)
        clashes = int(pairs * _SHARE_OF_CLASHES) * _TOKENS_PER_CLASH
        yield CallPlan(1, tokens_in(text), clashes + _TOKENS_PER_REPLY)


def _expected(recipe: Recipe, slot: Slot, shelf: BankShelf) -> Sequence[str]:
    """The phrases a slot will have, or as many stand-ins."""
    rules = PhraseRules(recipe.subject.class_noun, recipe.subject.identifier)
    match slot.origin:
        case "list":
            return listed(slot, rules)[0]
        case "file":
            return from_file(slot, rules)
        case "bank" if slot.name in SLOTS:
            return from_bank(slot, shelf)
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


def _photos(recipe: Recipe, photos: int) -> CallPlan:
    if not photos:
        return CallPlan()
    text = tokens_in(Messages(recipe)("photo"))
    return CallPlan(photos, photos * (text + _TOKENS_PER_PHOTO), photos * _TOKENS_PER_PHOTO_REPLY)
