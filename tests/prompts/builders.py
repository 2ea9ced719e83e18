"""Recipes, vocabularies and photos, and a language model client that answers as a test has it."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from regforge.journal import Journal, Reporter
from regforge.prompts.filling import fill_vocabulary
from regforge.prompts.photos import PhotoCaption
from regforge.prompts.tokens import TokenBudget
from regforge.prompts.vocabulary import Vocabulary, pair_of
from regforge.prompts.writing import write_prompts
from regforge.providers.language_model import Question
from regforge.providers.replies import understand
from regforge.recipe import Recipe
from regforge.records import Prompt

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
    client: Any = None,
    journal: Journal | None = None,
    lines: list[str] | None = None,
) -> Vocabulary:
    """The recipe's vocabulary; `lines` get what is reported on the way."""
    reporter = Reporter(quiet=True)
    if lines is not None:
        reporter.say = lines.append  # type: ignore[method-assign]
    return fill_vocabulary(recipe, client, journal=journal or Journal(None), reporter=reporter)


def text_of(question: Question) -> str:
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


COLORS = ("red", "orange", "blue", "green", "white", "black")
PLACES = ("on a shelf", "in a garden", "by a lake", "on a bed")
STYLES = ("a photo of", "a watercolor painting of", "a pencil sketch of")
AGAINST = {"against": 1}
SLOTS = {"color": COLORS, "background": PLACES, "style": STYLES}


def drawing(
    slots: Mapping[str, Any] = SLOTS,
    *,
    render: dict[str, Any] | None = None,
    seed: int = 0,
    subject: dict[str, Any] | None = None,
    **prompts: Any,
) -> Recipe:
    """A recipe for a teapot whose slots a vocabulary fills; a slot may have settings."""
    plain = {"class_noun": "teapot", "kind": "object", "identifier": "sks"}
    listed = [{"name": n, **(v if isinstance(v, dict) else {})} for n, v in slots.items()]
    about = {**plain, **(subject or {})}
    return recipe_of({"slots": listed, **prompts}, subject=about, render=render or {}, seed=seed)


def vocabulary_of(
    slots: Mapping[str, Any] = SLOTS,
    clashes: Mapping[tuple[str, str], tuple[str, str]] | None = None,
    **fields: Any,
) -> Vocabulary:
    pairs = frozenset(pair_of(*one, *other) for one, other in (clashes or {}).items())
    return Vocabulary("teapot", "object", slots, incompatible=pairs, **fields)


def photos_of(*captions: str, **facts: Any) -> list[PhotoCaption]:
    known = {"width": 400, "height": 300, "seed": 7, "digest": "0" * 64} | facts
    return [PhotoCaption(f"{n:02}.jpg", caption, **known) for n, caption in enumerate(captions)]


def by_words(limit: int = 77) -> TokenBudget:
    """A token a word, and two for start and end."""
    return TokenBudget(limit, "the test's words", lambda text: 2 + len(text.split()))


def written(
    recipe: Recipe, count: int, words: Vocabulary | None = None, **options: Any
) -> list[Prompt]:
    options.setdefault("budget", by_words())
    return list(write_prompts(recipe, words or vocabulary_of(), count=count, **options))


def texts_of(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def a(color: str | None) -> str:
    return f"an {color}" if color == "orange" else f"a {color}"
