"""A language model client that answers as a test tells it, and recipes to ask it with."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.prompts.filling import fill_vocabulary
from regforge.prompts.vocabulary import Vocabulary
from regforge.providers.language_model import Question
from regforge.providers.replies import understand
from regforge.recipe import Recipe

Answer = Callable[[Question, int], Any]
"""What is said to a question, as text or as JSON; the number is 1 for the repair of a bad reply."""


class FakeClient:
    """Reads replies as the real client does, repairs once, and keeps what it was asked."""

    def __init__(
        self,
        answer: Answer,
        *,
        journal: Journal | None = None,
        chooses_only: bool = False,
        at_once: int = 1,
    ) -> None:
        self.chooses_only = chooses_only
        self.asked: list[Question] = []
        self.complaints: dict[str, tuple[str, ...]] = {}
        self.failed: dict[str, str] = {}
        self._answer = answer
        self._journal = journal
        self._at_once = at_once

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        self.asked += questions
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(self._ask, questions))

    def _ask(self, question: Question) -> Any:
        for attempt in range(2):
            said = self._answer(question, attempt)
            text = said if isinstance(said, str) else json.dumps(said)
            reading = understand(text, question.reply, question.problems)
            if reading.value is not None:
                return reading.value
            self.complaints[question.item] = reading.complaints
        self.failed[question.item] = " ".join(reading.complaints)
        if self._journal:
            self._journal.failure("prompts", question.item, "no usable reply", text)
        return None


def fill(
    recipe: Recipe,
    client: FakeClient | None = None,
    journal: Journal | None = None,
    lines: list[str] | None = None,
) -> Vocabulary:
    """The recipe's vocabulary; `lines` get what is said on the way."""
    reporter = Reporter(quiet=True)
    if lines is not None:
        reporter.say = lines.append  # type: ignore[method-assign]
    asked: Any = client
    return fill_vocabulary(recipe, asked, journal=journal or Journal(None), reporter=reporter)


def text_of(question: Question) -> str:
    """What the messages of a question say."""
    return "\n".join(str(message["content"]) for message in question.messages)


def go_together(vocabulary: Vocabulary, phrases: Mapping[str, str | None]) -> bool:
    pairs = itertools.combinations(sorted((s, p) for s, p in phrases.items() if p), 2)
    return vocabulary.incompatible.isdisjoint((*one, *other) for one, other in pairs)


def recipe_of(prompts: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    """A recipe for a teapot called sks, asking a model that can write."""
    plain = {
        "name": "test",
        "subject": {"class_noun": "ceramic teapot", "identifier": "sks"},
        "prompts": {"llm": {"model": "openai/fake"}, **(prompts or {})},
    }
    return Recipe.model_validate({**plain, **sections})
