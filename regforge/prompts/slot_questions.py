"""Asks the language model for the phrases of slots.

    no `values`   it writes phrases, in rounds, each round shown what is there already
    `values`      it chooses those that suit the class noun
    embedded      it chooses either way: among `values`, else among the phrases of the banks

All slots of a round are asked at the same time, and what comes out does not depend on how many
calls are open at once. Knows what a usable phrase is through `phrase_rules`, and nothing of how
captions are made or how a call is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from regforge.embedded.bank_files import gist
from regforge.errors import EXIT_FAILED
from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.prompts.given_phrases import BankShelf, listed, no_bank_phrases, sample
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.phrase_rules import PhraseRules, Sifted
from regforge.prompts.vocabulary import VocabularyError
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe import Recipe, Slot, slots_of

EXTRA_ROUNDS = 3
"""Rounds beyond those that a model needs if all its phrases are usable."""

MOST_OPTIONS = 120
"""Most phrases that the embedded model weighs for one slot; scoring them takes seconds."""

MOST_IN_SCHEMA = 250
"""Most choices that a schema lists; providers bound the size of enums."""

_MOST_PER_QUESTION = 80
_TOKENS_PER_PHRASE = 16
_STALLED = 2


class NoPhrases(VocabularyError):
    """The language model gave nothing usable."""

    exit_code = EXIT_FAILED


class Phrases(BaseModel):
    """What is asked for: phrases of one slot."""

    phrases: list[str]


class Choice(BaseModel):
    """What the embedded model is asked for: phrases by slot, because the name tells it a lot."""

    phrases: dict[str, list[str]]


@dataclass
class _Progress:
    """How far one slot is."""

    slot: Slot
    count: int
    options: tuple[str, ...] = ()
    found: list[str] = field(default_factory=list)
    rounds: int = 0
    stalled: int = 0
    done: bool = False
    reason: str | None = None

    @property
    def missing(self) -> int:
        return self.count - len(self.found)


@dataclass(frozen=True)
class SlotFiller:
    """Fills the language model's slots of one recipe.

    Attributes:
        recipe: Its subject, counts and seed.
        client: Whom to ask.
        messages: What to say.
        rules: What a usable phrase is.
        shelf: The phrases of the banks.
        journal: Gets what was refused.
        reporter: Gets the progress.
    """

    recipe: Recipe
    client: LanguageModelClient
    messages: Messages
    rules: PhraseRules
    shelf: BankShelf
    journal: Journal
    reporter: Reporter

    def fill(self, slots: Sequence[Slot]) -> dict[str, tuple[str, ...]]:
        """Phrases of every slot, at most as many as it asks for.

        Raises:
            VocabularyError: A slot ends with no phrase, or its `values` cannot be used.
            RegforgeError: The client gives up: the model is unreachable, the budget is spent.
        """
        progress = [self._start(slot) for slot in slots]
        done = sum(each.done for each in progress)
        with self.reporter.task("vocabulary", len(slots), "slots", done) as task:
            while pending := [each for each in progress if not each.done]:
                replies = self.client.ask([self._question(each) for each in pending])
                for each, reply in zip(pending, replies, strict=True):
                    self._take(each, reply)
                task.advance(sum(each.done for each in pending))
        self._check(progress)
        return {each.slot.name: tuple(each.found) for each in progress}

    # ---------------------------------------------------------------------- before the first call

    def _start(self, slot: Slot) -> _Progress:
        count = phrases_wanted(self.recipe, slot)
        if slot.values is not None:
            options, _ = listed(slot, self.rules)
            if self.client.chooses_only and slot.count is None:
                # A model that ranks always has a better half, never a reason to stop.
                count = min(count, max(4, (len(options) + 1) // 2))
        elif self.client.chooses_only:
            options = bank_options(self.recipe, slot, self.shelf, count)
        else:
            return _Progress(slot, count)
        progress = _Progress(slot, min(count, len(options)), options)
        if self.client.chooses_only and len(options) <= count:  # nothing to choose
            progress.found, progress.done = list(options), True
        return progress

    # ------------------------------------------------------------------------------------ asking

    def _question(self, progress: _Progress) -> Question:
        slot = progress.slot
        seed = question_seed(self.recipe.seed, slot.name, progress.rounds)
        item = f"slot {slot.name}, round {progress.rounds + 1}"
        if progress.options:
            return self._choice(progress, item, seed)
        wanted = phrases_per_question(self.recipe, progress.missing)
        known = tuple(progress.found)
        messages = self.messages(
            "vocabulary",
            slot=slot.name,
            slots=[each.name for each in slots_of(self.recipe)],
            wanted=wanted,
            known=list(known),
        )

        def problems(reply: Phrases) -> list[str]:
            sifted = self.rules.sift(slot.name, reply.phrases, known)
            usable = len(sifted.phrases) + sifted.repeated
            if usable >= max(1, wanted // 5):
                return []
            said = f"Only {usable} of the {wanted} phrases asked for can be used"
            return [f"{said}: {sifted.complaint()}" if sifted.refused else said]

        return Question(item, messages, Phrases, problems=problems, seed=seed)

    def _choice(self, progress: _Progress, item: str, seed: int) -> Question:
        slot, options = progress.slot, progress.options
        messages = self.messages(
            "choose", slot=slot.name, values=list(options), wanted=progress.count
        )
        if self.client.chooses_only:
            schema = _ranking_schema(slot, options, self.shelf.class_noun, progress.count)
            return Question(item, messages, Choice, schema=schema, seed=seed)

        def problems(reply: Phrases) -> list[str]:
            if _among(options, reply.phrases).phrases:
                return []
            return ["None of the phrases is in the list. Copy phrases from it letter by letter."]

        schema = _choice_schema(options)
        return Question(item, messages, Phrases, schema=schema, problems=problems, seed=seed)

    # ------------------------------------------------------------------------------------ replies

    def _take(self, progress: _Progress, reply: Any | None) -> None:
        slot = progress.slot
        progress.rounds += 1
        before = len(progress.found)
        item = f"slot {slot.name}, round {progress.rounds}"
        if reply is None:
            progress.reason = self.client.failed.get(item)
        else:
            sifted = self._sift(progress, reply)
            if sifted.refused:
                left_out = f"{len(sifted.refused)} phrases left out: "
                self.journal.failure("prompts", item, left_out + sifted.complaint(most=100))
                progress.reason = left_out + sifted.complaint()
            progress.found += sifted.phrases[: progress.missing]
        progress.stalled = 0 if len(progress.found) > before else progress.stalled + 1
        progress.done = (
            not progress.missing
            or progress.stalled >= _STALLED
            or progress.rounds >= rounds_allowed(self.recipe, slot)
            or bool(progress.options and progress.found)
        )
        if progress.done and progress.options:  # as the recipe orders them, not the model
            progress.found.sort(key=progress.options.index)

    def _sift(self, progress: _Progress, reply: Any) -> Sifted:
        slot = progress.slot
        texts = reply.phrases[slot.name] if isinstance(reply, Choice) else reply.phrases
        if progress.options:
            return _among(progress.options, texts)
        return self.rules.sift(slot.name, texts, progress.found)

    def _check(self, progress: Sequence[_Progress]) -> None:
        if empty := [each for each in progress if not each.found]:
            raise no_use(
                f"The language model gave no usable phrase for "
                f"{_slots([each.slot.name for each in empty])}",
                next((each.reason for each in empty if each.reason), None),
                self.journal,
                "Give the slot `values`, fill it `from: bank`",
            )
        for each in progress:
            if each.missing and not each.options:
                self.reporter.say(
                    f"slot {each.slot.name}: the language model ran out of phrases at "
                    f"{len(each.found)} of {each.count}"
                )


def bank_options(recipe: Recipe, slot: Slot, shelf: BankShelf, count: int) -> tuple[str, ...]:
    """The phrases of the banks among which the embedded model chooses.

    Args:
        recipe: Its seed draws them where there are more than the model can weigh in good time.
        slot: Which slot.
        shelf: Whose phrases.
        count: How many the model is to choose.

    Raises:
        VocabularyError: The banks have none.
    """
    phrases = shelf.placeable(slot.name)
    if not phrases:
        raise no_bank_phrases(slot, shelf)
    seed = question_seed(recipe.seed, slot.name, "options")
    return tuple(sample(phrases, max(count, MOST_OPTIONS), seed))


def no_use(what: str, reason: str | None, journal: Journal, instead: str) -> NoPhrases:
    """The error for a language model that is of no use.

    Args:
        what: What it did not do, without a full stop.
        reason: Why, the last time; None if nobody knows.
        journal: Where to read what it said.
        instead: How to do without it, the beginning of a hint.
    """
    hint = f"{journal.ledger} has what it said. " if journal.ledger else ""
    if reason is None or "prompts.llm." not in reason:  # or the reason says what to change
        hint += f"{instead}, or name another model in `prompts.llm.model`."
    return NoPhrases(f"{what}: {reason}" if reason else f"{what}.", hint=hint.strip() or None)


# ------------------------------------------------------------------------------------------ plans


def phrases_wanted(recipe: Recipe, slot: Slot) -> int:
    """How many phrases to find for a slot."""
    return slot.count or recipe.prompts.phrases_per_slot


def phrases_per_question(recipe: Recipe, missing: int) -> int:
    """How many phrases to ask for when some are missing: a few more, within the longest reply."""
    longest = recipe.prompts.llm.max_tokens
    room = _MOST_PER_QUESTION if longest is None else longest // _TOKENS_PER_PHRASE
    most = max(8, min(_MOST_PER_QUESTION, room))
    return min(most, missing + max(2, missing // 5))


def rounds_needed(recipe: Recipe, slot: Slot) -> int:
    """Rounds for a slot if every phrase is usable."""
    if slot.values is not None:
        return 1
    count = phrases_wanted(recipe, slot)
    return -(-count // phrases_per_question(recipe, count))


def rounds_allowed(recipe: Recipe, slot: Slot) -> int:
    """Most rounds for a slot."""
    return rounds_needed(recipe, slot) + EXTRA_ROUNDS


# ---------------------------------------------------------------------------------------- choices


def choices(options: Sequence[str]) -> dict[str, Any]:
    """JSON schema of one of some phrases."""
    return {"type": "string", "enum": list(options)}


def closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with all these properties and no others; strict providers' form."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _choice_schema(options: Sequence[str]) -> dict[str, Any]:
    item = choices(options) if len(options) <= MOST_IN_SCHEMA else {"type": "string"}
    return closed_object({"phrases": {"type": "array", "items": item}})


def _ranking_schema(
    slot: Slot, options: Sequence[str], class_noun: str, count: int
) -> dict[str, Any]:
    """JSON schema by which the embedded model chooses `count` different phrases of a slot.

    Of the user's values the best ones; the banks have fitting phrases in plenty, so of theirs it
    draws among half as many more, likelier ones first, and another seed brings others.
    """
    drawn = {
        "type": "array",
        "items": choices(options),
        "minItems": count,
        "maxItems": count,
        "uniqueItems": True,
        "x-top-k": count if slot.values else min(len(options), count + (count + 1) // 2),
    }
    schema = closed_object({"phrases": closed_object({slot.name: drawn})})
    return {**schema, "x-class-noun": class_noun}


def _among(options: Sequence[str], texts: Sequence[str]) -> Sifted:
    """Those texts that are options, as the options spell them."""
    chosen: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    spelled = spellings(options)
    for text in texts:
        option = spelled.get(essence(text))
        if option is None:
            refused.append((text, "is not in the list"))
        else:
            chosen[option] = None
    return Sifted(tuple(chosen), 0, tuple(refused))


def spellings(options: Sequence[str]) -> dict[str, str]:
    """Options by their `essence`."""
    return {essence(option): option for option in options}


def essence(text: str) -> str:
    """What is left of a choice that a model copied carelessly."""
    return gist(text.strip(" \"'.-"))


def _slots(names: Sequence[str]) -> str:
    *most, last = (repr(name) for name in names)
    return f"the slots {', '.join(most)} and {last}" if most else f"the slot {last}"
