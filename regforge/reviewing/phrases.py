"""Phrases before images: a run's vocabulary, edited, and what becomes of its captions."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from regforge.dataset.decisions import DecisionsError
from regforge.errors import RegforgeError
from regforge.files import file_digest, write_atomically
from regforge.forge.prompting import PromptStage
from regforge.forge.running import run as run_recipe
from regforge.journal import Journal, Reporter
from regforge.prompts.vocabulary import Vocabulary, VocabularyError, pair_of
from regforge.recipe import Recipe
from regforge.records import read_prompts
from regforge.reviewing.material import Material
from regforge.runs import RunFolder

MOST_CAPTIONS = 200
"""Captions that are shown: the first ones of the run."""

_COMPOSED = (
    "A language model composes these captions one by one, so what another phrase would change "
    "cannot be shown. Correct a caption in prompts.jsonl, a line each; for other phrases change "
    "the recipe and run it with --fresh. Nothing is drawn yet."
)

Edits = Mapping[str, Sequence[tuple[str | None, str]]]
"""By slot, (the phrase that it was or None, the phrase) for all that are to stay."""


def phrases_of(material: Material) -> dict[str, Any]:
    """The vocabulary and the first captions, for the page.

    Raises:
        VocabularyError, RecordError: They cannot be read.
    """
    run = _run_of(material)
    recipe = material.recipe
    composed = recipe is not None and recipe.prompts.mode == "compose"
    return {
        "slots": {} if composed else Vocabulary.load(run.vocabulary).slots,
        "note": _COMPOSED if composed else None,
        "captions": _captions(run),
        "digest": file_digest(run.vocabulary),
    }


def preview(material: Material, edits: Edits) -> list[str]:
    """The first captions as an edited vocabulary would give them; writes nothing into the run.

    Raises:
        DecisionsError: They would need a language model, or the recipe cannot be read.
        RegforgeError: There can be no such captions; the message says why.
    """
    run, recipe = _run_of(material), _recipe_of(material)
    with tempfile.TemporaryDirectory() as temporary:
        there = RunFolder(Path(temporary))
        for file in (run.captions, run.imported):
            if file.is_file():
                shutil.copy2(file, there.path)
        _edited(Vocabulary.load(run.vocabulary), edits).save(there.vocabulary)
        try:
            Vocabulary.load(there.vocabulary, recipe.subject.identifier)
        except VocabularyError as error:
            message = error.message.removeprefix(f"{there.vocabulary}: ")
            raise DecisionsError(message) from error
        count = min(recipe.prompts.count, MOST_CAPTIONS)
        with PromptStage(recipe, there, Journal(None), Reporter(quiet=True)) as stage:
            return [prompt.text for prompt in stage.prompts(count)]


def save(material: Material, edits: Edits, digest: str) -> dict[str, Any]:
    """Write an edited vocabulary into the run, and its captions anew; returns `phrases_of` then.

    `digest` is the one that the edited vocabulary had, which may have changed since.

    Raises:
        DecisionsError: See `preview`; or it has changed, or there are images already.
        RegforgeError: There can be no such captions.
    """
    preview(material, edits)
    run = _run_of(material)
    with run.locked():
        if file_digest(run.vocabulary) != digest or any(run.shards.glob("*.parquet")):
            raise DecisionsError(
                "The vocabulary or the run has changed since the page was opened.",
                hint="Load the page again.",
            )
        before = run.vocabulary.read_bytes()
        _edited(Vocabulary.load(run.vocabulary), edits).save(run.vocabulary)
    recipe, count = _recipe_of(material), sum(1 for _ in read_prompts(run.prompts))
    try:
        run_recipe(recipe, run.path, limit=count, until="prompts", reporter=Reporter(quiet=True))
    except RegforgeError:  # there are too few combinations, or prompts.jsonl was edited as well
        write_atomically(run.vocabulary, before)
        raise
    return phrases_of(material)


def _run_of(material: Material) -> RunFolder:
    if material.run is None:
        raise DecisionsError(f"{material.name} is no run, and has no vocabulary.")
    return material.run


def _recipe_of(material: Material) -> Recipe:
    recipe = material.recipe
    if recipe is None or recipe.prompts.mode == "compose":
        raise DecisionsError(
            "Which captions change cannot be told: a language model composes them, or the run's "
            "recipe cannot be read.",
            hint=f"Edit vocabulary.json in {material.folder}, or the recipe.",
        )
    return recipe


def _captions(run: RunFolder) -> list[str]:
    return [prompt.text for prompt in islice(read_prompts(run.prompts), MOST_CAPTIONS)]


def _edited(vocabulary: Vocabulary, edits: Edits) -> Vocabulary:
    """The vocabulary with other phrases; what is known of one is so whatever it says now."""
    if unknown := edits.keys() - vocabulary.slots.keys():
        raise DecisionsError(f"The vocabulary has no slot {min(unknown)!r}.")
    slots, weights = dict(vocabulary.slots), dict(vocabulary.weights)
    spelled: dict[tuple[str, str | None], str] = {}  # the phrases that stay, by what they were
    for slot, phrases in edits.items():
        kept = {" ".join(text.split()): was for was, text in phrases if text.strip()}
        slots[slot] = tuple(kept)
        spelled |= {(slot, was): text for text, was in kept.items()}
        if slot in weights:
            known = dict(zip(vocabulary.slots[slot], weights[slot], strict=True))
            usual = sum(weights[slot]) / len(weights[slot])
            weights[slot] = tuple(known.get(was or "", usual) for was in kept.values())

    def now(slot: str, phrase: str) -> str | None:
        return spelled.get((slot, phrase)) if slot in edits else phrase

    pairs = (
        pair_of(one, first, other, second)
        for one, before, other, there in vocabulary.incompatible
        if (first := now(one, before)) and (second := now(other, there))
    )
    return replace(vocabulary, slots=slots, weights=weights, incompatible=frozenset(pairs))
