"""The embedded language model fills vocabularies and captions from the phrase banks."""

import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from builders import fill, recipe_of
from test_filling_over_http import client_of

from regforge.embedded import language_model, phrase_banks
from regforge.journal import Journal
from regforge.prompts.composing import compose_rows
from regforge.prompts.vocabulary import BankPhrases, Vocabulary, VocabularyError
from regforge.recipe import Recipe

EMBEDDED = {"model": language_model.MODEL}


def embedded_recipe(noun: str, seed: int = 0, **prompts: Any) -> Recipe:
    return recipe_of({"llm": EMBEDDED, **prompts}, subject={"class_noun": noun}, seed=seed)


def choose(recipe: Recipe, cache: Path) -> Vocabulary:
    with client_of(recipe, cache) as client:
        return fill(recipe, client)


class ByChecksum:
    """Scores phrases without any weights."""

    digest = "checksum"

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        return [-zlib.crc32(f"{stem} {option}".encode()) / 2**28 for option in options]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    monkeypatch.setattr(litellm, "custom_provider_map", [])
    engine: Any = ByChecksum()
    language_model.register(language_model.LanguageModel(engine, tmp_path / "scores"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("noun", ["teapot", "dog"])
def test_the_embedded_model_chooses_a_whole_vocabulary(noun: str, tmp_path: Path) -> None:
    vocabulary = choose(embedded_recipe(noun), tmp_path / "one")
    assert vocabulary == choose(embedded_recipe(noun), tmp_path / "two")
    assert ("motion" in vocabulary.slots) == (noun == "dog")
    shelf = BankPhrases(noun, phrase_banks.super_category(noun), known=True)
    for slot, phrases in vocabulary.slots.items():
        assert len(phrases) >= 25
        assert len(set(phrases)) == len(phrases)
        assert set(phrases) <= set(shelf.phrases(slot))
    assert vocabulary.incompatible
    assert vocabulary.language_model == language_model.MODEL
    other = choose(embedded_recipe(noun, seed=1), tmp_path / "one")
    assert set(other.slots["background"]) != set(vocabulary.slots["background"])


@pytest.mark.slow
def test_the_embedded_model_prefers_what_suits_the_class_noun(tmp_path: Path) -> None:
    places = {
        "frying pan": ["on a stove", "on a kitchen counter", "over a campfire", "in a kitchen"],
        "sheep": ["in a meadow", "in a farmyard", "on a grassy hillside", "behind a fence"],
    }
    values = [place for both in zip(*places.values(), strict=True) for place in both]
    slots = [{"name": "background", "from": "llm", "values": values}]
    for noun, fitting in places.items():
        chosen = choose(embedded_recipe(noun, slots=slots), tmp_path).slots["background"]
        assert len(chosen) == 4  # the better half
        assert len(set(chosen) & set(fitting)) >= 3
    count = [{**slots[0], "count": 2}]
    assert len(choose(embedded_recipe("sheep", slots=count), tmp_path).slots["background"]) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("noun", ["teapot", "dog"])
def test_the_embedded_model_composes_captions_that_go_together(noun: str, tmp_path: Path) -> None:
    recipe = embedded_recipe(noun, mode="compose", compose_batch=8)
    with client_of(recipe, tmp_path) as client:
        rows = list(islice(compose_rows(recipe, client, journal=Journal(None)), 60))
    shelf = BankPhrases(noun, phrase_banks.super_category(noun), known=True)
    for row in rows:
        assert phrase_banks.compatible(
            *(shelf.phrases(slot)[phrase] for slot, phrase in row.items())
        )
    for slot in rows[0]:
        used = [row[slot] for row in rows]
        assert max(used.count(phrase) for phrase in used) <= 20  # no phrase in every caption


def test_a_slot_that_no_bank_has_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    recipe = embedded_recipe("teapot", slots=["era"])
    with client_of(recipe, tmp_path) as client:
        with pytest.raises(VocabularyError, match="only chooses among phrases") as caught:
            fill(recipe, client)
        with pytest.raises(VocabularyError, match="only chooses among phrases"):
            next(compose_rows(recipe, client, journal=Journal(None)))
        assert client.usage.calls == 0
    assert "values" in str(caught.value)
