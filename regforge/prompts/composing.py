"""`mode: compose`: the language model fills all its slots of each caption together.

It is asked in waves of a fixed number of calls. Each call of a wave is shown what was used before
the wave, and the replies are merged in the order of the calls, so that the rows depend neither on
how many calls are open at once nor on how many rows are wanted in the end. Slots that are not the
language model's (`from: list`, `file`, `bank`) are left to the sampler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from regforge.embedded.phrase_banks import Phrase, compatible
from regforge.journal import Journal
from regforge.prompts.compatibility import contradictions, repetitions
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.phrase_questions import (
    MOST_IN_SCHEMA,
    array,
    bank_options,
    closed_object,
    enum,
    essence,
    no_use,
    spellings,
)
from regforge.prompts.phrase_rules import PhraseRules, tidy
from regforge.prompts.vocabulary import BankPhrases, VocabularyError, listed_values
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe import Recipe, Slot, slots_of
from regforge.words import gist

CALLS_PER_WAVE = 4
MOST_USED_SHOWN = 40
"""Phrases of a slot that the model is shown as used; more would cost more than they help."""

_EMPTY_WAVES = 3


class Captions(BaseModel):
    """The reply of a model that writes captions: the phrases of each by slot."""

    captions: list[dict[str, str]]


class Columns(BaseModel):
    """The embedded model's captions: by slot, the phrases of one caption after another.

    It draws each value for itself. Drawn slot by slot, phrases can be kept from coming twice.
    """

    columns: dict[str, list[str]]

    @property
    def captions(self) -> list[dict[str, str]]:
        """The same by caption."""
        rows = zip(*self.columns.values(), strict=True)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]


def compose_rows(
    recipe: Recipe, client: LanguageModelClient, *, journal: Journal
) -> Iterator[dict[str, str]]:
    """Yield phrases for one caption after another, without end; asks as rows are taken.

    Yields:
        A phrase for each slot that says `from: llm`; no row twice.

    Raises:
        VocabularyError: No slot is the language model's, one has nothing to choose among, or the
            model has nothing new to say.
        RegforgeError: The language model cannot be used.
    """
    slots = tuple(slot for slot in slots_of(recipe) if slot.origin == "llm")
    if not slots:
        raise VocabularyError(
            "prompts.mode: compose needs a slot that the language model fills.",
            hint="Leave out `mode`, or give a slot `from: llm`.",
        )
    yield from _Composer(recipe, client, journal, slots).rows()


@dataclass
class _Composer:
    recipe: Recipe
    client: LanguageModelClient
    journal: Journal
    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        self._seen: set[tuple[str, ...]] = set()
        self._refused: str | None = None
        self._messages = Messages(self.recipe)
        self._rules = PhraseRules.of(self.recipe)
        self._used: dict[str, Counter[str]] = {slot.name: Counter() for slot in self.slots}
        given = [slot for slot in self.slots if slot.values]
        self._values = {each.name: listed_values(each, self.recipe.subject)[0] for each in given}
        self._spelled = {name: spellings(values) for name, values in self._values.items()}
        self._bank: dict[str, Mapping[str, Phrase]] = {}
        chooses = self.client.chooses_only
        self._schema = self._drawing_schema() if chooses else self._writing_schema()

    def rows(self) -> Iterator[dict[str, str]]:
        wave, empty = 0, 0
        while empty < _EMPTY_WAVES:
            questions = [self._question(wave, call) for call in range(CALLS_PER_WAVE)]
            replies = self.client.ask(questions)
            fresh = [
                row
                for question, reply in zip(questions, replies, strict=True)
                if reply is not None
                for row in self._take(question.item, reply)
            ]
            yield from fresh
            wave, empty = wave + 1, 0 if fresh else empty + 1
        failed = (self.client.failed.get(question.item) for question in questions)
        raise no_use(
            f"The language model has nothing new after {len(self._seen)} captions, "
            f"{_EMPTY_WAVES * CALLS_PER_WAVE} calls in a row brought no usable one",
            next(filter(None, failed), self._refused),
            self.journal,
            "Use `mode: vocabulary`, lower `prompts.count`",
        )

    def _question(self, wave: int, call: int) -> Question:
        wanted = self.recipe.prompts.compose_batch
        item = f"captions, wave {wave + 1}, call {call + 1}"
        seed = question_seed(self.recipe.seed, "compose", wave, call)
        messages = self._messages(
            "compose",
            slots=[
                {"name": slot.name, "values": list(self._values.get(slot.name, ())) or None}
                for slot in self.slots
            ],
            wanted=wanted,
            used=self._most_used(),
            call=call,
        )
        if self.client.chooses_only:
            return Question(item, messages, Columns, schema=self._schema, seed=seed)

        def problems(reply: Captions) -> list[str]:
            faults = [fault for row in reply.captions if (fault := self._checked(row)[1])]
            good = len(reply.captions) - len(faults)
            if good >= max(1, wanted // 2):
                return []
            complaint = f"Only {good} of {wanted} captions can be used"
            return [f"{complaint}: {'; '.join(faults[:5])}" if faults else complaint]

        return Question(item, messages, Captions, schema=self._schema, problems=problems, seed=seed)

    def _most_used(self) -> dict[str, list[tuple[str, int]]]:
        """The phrases of each slot that were used most, those used of late first among equals."""
        shown: dict[str, list[tuple[str, int]]] = {}
        for name, counts in self._used.items():
            latest_first = list(counts.items())[::-1]
            if ranked := sorted(latest_first, key=lambda used: -used[1]):
                shown[name] = ranked[:MOST_USED_SHOWN]
        return shown

    def _drawing_schema(self) -> dict[str, Any]:
        """JSON schema by which the embedded model draws captions from values and banks."""
        count = self.recipe.prompts.compose_batch
        bank = BankPhrases.of(self.recipe)
        columns: dict[str, Any] = {}
        for slot in self.slots:
            name = slot.name
            options = self._values.get(name) or bank_options(self.recipe, slot, bank, 1)
            self._bank[name] = bank.find(name, options)
            among = min(len(options), max(count, (len(options) + 1) // 2))
            unique = len(options) >= count
            columns[name] = {**array(options, count, among), "uniqueItems": unique}
        schema = closed_object({"columns": closed_object(columns)})
        return {**schema, "x-class-noun": bank.class_noun}

    def _writing_schema(self) -> dict[str, Any]:
        """JSON schema of captions, in what strict providers take."""
        properties: dict[str, Any] = {slot.name: {"type": "string"} for slot in self.slots}
        if sum(map(len, self._values.values())) <= MOST_IN_SCHEMA:
            properties |= {name: enum(texts) for name, texts in self._values.items()}
        return closed_object({"captions": {"type": "array", "items": closed_object(properties)}})

    def _take(self, item: str, reply: Captions | Columns) -> Iterator[dict[str, str]]:
        faults: list[str] = []
        for phrases in reply.captions:
            row, fault = self._checked(phrases)
            key = tuple(gist(phrase) for phrase in row.values())
            if not fault and key in self._seen:
                continue
            if not fault and not self._goes_together(row):
                fault = f"{', '.join(map(repr, row.values()))} do not go together"
            if fault:
                faults.append(fault)
                continue
            self._seen.add(key)
            for name, phrase in row.items():
                self._used[name][phrase] += 1
            yield row
        if faults:
            left_out = f"{len(faults)} captions left out: "
            self._refused = f"{left_out}{faults[0]}."
            self.journal.failure("prompts", item, left_out + "; ".join(faults))

    def _checked(self, phrases: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
        """The phrases tidied, and why they cannot be used, or None if they can."""
        row: dict[str, str] = {}
        for slot in self.slots:
            name, raw = slot.name, phrases.get(slot.name, "")
            if name in self._values:
                row[name] = self._spelled[name].get(essence(raw), "")
                why = None if row[name] else "is none of the values"
            else:
                row[name] = tidy(raw, name)
                why = self._rules.fault(row[name], name)
            if why:
                return row, f"{name} {raw!r} ({why})"
        return row, None

    def _goes_together(self, row: Mapping[str, str]) -> bool:
        """Whether the banks let the phrases stand together; a model that writes sees to it."""
        if not self.recipe.prompts.compatibility:
            return True
        columns = {name: (phrase,) for name, phrase in row.items()}
        if contradictions(columns) or repetitions(columns):
            return False
        known = [bank[row[name]] for name, bank in self._bank.items() if row[name] in bank]
        return len(known) < 2 or compatible(*known)
