"""Asks the language model for the phrases of slots.

    no `values`   it writes phrases, in rounds, each round shown what is there already
    `values`      it chooses those that suit the class noun
    embedded      it chooses either way: among `values`, else among the phrases of the banks

All slots of a round are asked at the same time, and what comes out does not depend on how many
calls are open at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from regforge.errors import EXIT_FAILED
from regforge.journal import Journal, Reporter
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.phrase_rules import PhraseRules, Sifted
from regforge.prompts.vocabulary import BankPhrases, VocabularyError, listed_values, sample
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe import Recipe, Slot, slots_of
from regforge.words import gist, listed

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
    """The reply of a model that writes: phrases of one slot."""

    phrases: list[str]


class Choice(BaseModel):
    """The embedded model's reply: phrases by slot, because the name tells it a lot."""

    phrases: dict[str, list[str]]


@dataclass
class _Progress:
    """How far one slot is; `options` are what the model chooses among, if it chooses."""

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

    @property
    def name(self) -> str:
        return self.slot.name


@dataclass(frozen=True)
class SlotFiller:
    """Fills the language model's slots of one recipe."""

    recipe: Recipe
    client: LanguageModelClient
    messages: Messages
    bank: BankPhrases
    journal: Journal
    reporter: Reporter

    def fill(self, slots: Sequence[Slot]) -> dict[str, tuple[str, ...]]:
        """Find phrases for every slot, at most as many as it asks for.

        All slots of a round are asked at the same time.

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
        return {each.name: tuple(each.found) for each in progress}

    def _start(self, slot: Slot) -> _Progress:
        count = phrases_wanted(self.recipe, slot)
        if slot.values is not None:
            options, _ = listed_values(slot, self.recipe.subject)
            if self.client.chooses_only and slot.count is None:
                # A model that ranks always has a better half, never a reason to stop.
                count = min(count, max(4, (len(options) + 1) // 2))
        elif self.client.chooses_only:
            options = bank_options(self.recipe, slot, self.bank, count)
        else:
            return _Progress(slot, count)
        progress = _Progress(slot, min(count, len(options)), options)
        if self.client.chooses_only and len(options) <= count:  # nothing to choose
            progress.found, progress.done = list(options), True
        return progress

    def _question(self, progress: _Progress) -> Question:
        name, options = progress.name, progress.options
        seed = question_seed(self.recipe.seed, name, progress.rounds)
        item = f"slot {name}, round {progress.rounds + 1}"
        if options:
            messages = self.messages(
                "choose", slot=name, values=list(options), wanted=progress.count
            )
            if self.client.chooses_only:
                ranking = self._ranking_schema(progress)
                return Question(item, messages, Choice, schema=ranking, seed=seed)
        else:
            wanted = phrases_per_question(self.recipe, progress.missing)
            messages = self.messages(
                "vocabulary",
                slot=name,
                slots=[each.name for each in slots_of(self.recipe)],
                wanted=wanted,
                known=list(progress.found),
            )

        def problems(reply: Phrases) -> list[str]:
            sifted = self._sift(progress, reply)
            usable = len(sifted.phrases) + sifted.repeated
            if options:
                copy = "Copy phrases from it letter by letter."
                return [] if usable else [f"None of the phrases is in the list. {copy}"]
            if usable >= max(1, wanted // 5):
                return []
            complaint = f"Only {usable} of the {wanted} phrases asked for can be used"
            return [f"{complaint}: {sifted.complaint()}" if sifted.refused else complaint]

        schema = _choice_schema(options) if options else None
        return Question(item, messages, Phrases, schema=schema, problems=problems, seed=seed)

    def _ranking_schema(self, progress: _Progress) -> dict[str, Any]:
        """JSON schema by which the embedded model chooses different phrases of a slot.

        Of the user's values the best ones; the banks have fitting phrases in plenty, so of theirs
        it draws among half as many more, likelier ones first, and another seed brings others.
        """
        count, options = progress.count, progress.options
        among = min(len(options), count + (count + 1) // 2)
        drawn = array(options, count, count if progress.slot.values else among)
        schema = closed_object({"phrases": closed_object({progress.name: drawn})})
        return {**schema, "x-class-noun": self.bank.class_noun}

    def _take(self, progress: _Progress, reply: Any | None) -> None:
        progress.rounds += 1
        before = len(progress.found)
        item = f"slot {progress.name}, round {progress.rounds}"
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
            or progress.rounds >= rounds_allowed(self.recipe, progress.slot)
            or bool(progress.options and progress.found)
        )
        if progress.done and progress.options:  # as the recipe orders them, not the model
            progress.found.sort(key=progress.options.index)

    def _sift(self, progress: _Progress, reply: Any) -> Sifted:
        texts = reply.phrases[progress.name] if isinstance(reply, Choice) else reply.phrases
        if not progress.options:
            return PhraseRules.of(self.recipe).sift(progress.name, texts, progress.found)
        spelled = spellings(progress.options)
        chosen = {text: spelled.get(essence(text)) for text in texts}
        found = dict.fromkeys(option for option in chosen.values() if option is not None)
        strange = [(text, "is not in the list") for text, option in chosen.items() if not option]
        return Sifted(tuple(found), 0, tuple(strange))

    def _check(self, progress: Sequence[_Progress]) -> None:
        if empty := [each for each in progress if not each.found]:
            slots = f"the slot{'s' if empty[1:] else ''} {listed([repr(e.name) for e in empty])}"
            raise no_use(
                f"The language model gave no usable phrase for {slots}",
                next((each.reason for each in empty if each.reason), None),
                self.journal,
                "Give the slot `values`, fill it `from: bank`",
            )
        for each in progress:
            if each.missing and not each.options:
                self.reporter.say(
                    f"slot {each.name}: the language model ran out of phrases at "
                    f"{len(each.found)} of {each.count}"
                )


def bank_options(recipe: Recipe, slot: Slot, bank: BankPhrases, count: int) -> tuple[str, ...]:
    """List the phrases of the banks among which the embedded model chooses `count`.

    Drawn with the recipe's seed where there are more than the model can weigh in good time.
    """
    phrases = bank.placeable(slot.name)
    if not phrases:
        raise bank.lacks(slot.name, chosen=True)
    seed = question_seed(recipe.seed, slot.name, "options")
    return sample(phrases, max(count, MOST_OPTIONS), seed)


def no_use(what: str, reason: str | None, journal: Journal, instead: str) -> NoPhrases:
    """Build the error for a language model that is of no use, with its last reason if known."""
    hint = f"{journal.ledger} has what it said. " if journal.ledger else ""
    if reason is None or "prompts.llm." not in reason:  # or the reason says what to change
        hint += f"{instead}, or name another model in `prompts.llm.model`."
    return NoPhrases(f"{what}: {reason}" if reason else f"{what}.", hint=hint.strip() or None)


def phrases_wanted(recipe: Recipe, slot: Slot) -> int:
    """Count the phrases to find for a slot."""
    return slot.count or recipe.prompts.phrases_per_slot


def phrases_per_question(recipe: Recipe, missing: int) -> int:
    """Count the phrases to ask for: a few more than are missing, within the longest reply."""
    longest = recipe.prompts.llm.max_tokens
    room = _MOST_PER_QUESTION if longest is None else longest // _TOKENS_PER_PHRASE
    most = max(8, min(_MOST_PER_QUESTION, room))
    return min(most, missing + max(2, missing // 5))


def rounds_needed(recipe: Recipe, slot: Slot) -> int:
    """Count the rounds for a slot if every phrase is usable."""
    if slot.values is not None:
        return 1
    count = phrases_wanted(recipe, slot)
    return -(-count // phrases_per_question(recipe, count))


def rounds_allowed(recipe: Recipe, slot: Slot) -> int:
    """Count the most rounds for a slot."""
    return rounds_needed(recipe, slot) + EXTRA_ROUNDS


def enum(options: Sequence[str]) -> dict[str, Any]:
    """Build the JSON schema of one of some phrases."""
    return {"type": "string", "enum": list(options)}


def array(options: Sequence[str], count: int, among: int) -> dict[str, Any]:
    """Build the JSON schema of `count` different options, drawn from the `among` likeliest."""
    return {
        "type": "array",
        "items": enum(options),
        "minItems": count,
        "maxItems": count,
        "uniqueItems": True,
        "x-top-k": among,
    }


def closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Build the JSON schema of an object with these properties alone, as strict providers want."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _choice_schema(options: Sequence[str]) -> dict[str, Any]:
    item = enum(options) if len(options) <= MOST_IN_SCHEMA else {"type": "string"}
    return closed_object({"phrases": {"type": "array", "items": item}})


def spellings(options: Sequence[str]) -> dict[str, str]:
    """Map options by their `essence`."""
    return {essence(option): option for option in options}


def essence(text: str) -> str:
    """Reduce a choice that a model may have copied carelessly."""
    return gist(text.strip(" \"'.-"))
