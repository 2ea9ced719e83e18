"""Writes what a finished dataset says about itself anew: its card and its recipe, not its images.

For another licence or another repository. The result is what `build_dataset` would have written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regforge.dataset.build import DatasetError
from regforge.dataset.card import Refusals, Survey, write_card
from regforge.dataset.card_parts import Card
from regforge.dataset.parquet import read_rows
from regforge.dataset.store import SHARD_SIZE, Store, StoreError
from regforge.files import write_atomically
from regforge.recipe import Recipe, RecipeError, slots_of
from regforge.recipe.problems import Place
from regforge.recipe.yaml_nodes import Dumper, plain, read_yaml

_SECTION = re.compile(r"^dataset:\n(?:[ #].*\n|\n)*", re.MULTILINE)
_MADE_WITH = re.compile(r"^\| made with \| (.*) \|$", re.MULTILINE)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a finished dataset, with the names of files alone; none of them is looked for.

    Raises:
        DatasetError: It has none, or one that cannot be read.
    """
    return _parsed(_text_of(folder / "recipe.yaml"), folder / "recipe.yaml")


def rewrite(folder: Path, shards: Path, settings: Mapping[str, Any]) -> bool:
    """Change the recipe's `dataset` section, and write the card that goes with it.

    Killed at any instant, the files are those of before, those of afterwards, or the new card
    beside the old recipe; the next call goes on from there.

    `settings` has the keys of the section with their new values; the shards that it was built from
    know what was refused. Returns whether anything had to be written.

    Raises:
        DatasetError: The recipe or the card cannot be read, or a shard is missing.
        NoDataset, ParquetError: The data is not complete, or damaged.
        StorageError: The folder cannot be written.
    """
    text, card = _text_of(folder / "recipe.yaml"), _text_of(folder / "README.md")
    section = recipe_of(folder).dataset.model_dump(mode="json")
    known = Card.parse(card)
    if known.ours is None:
        raise _unreadable(folder / "README.md")
    if {**section, **settings} == section and known.front.get("license") == section["license"]:
        return False
    body = {"dataset": {**section, **settings}}
    changed = yaml.dump(body, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=88)
    text = _SECTION.sub(lambda _: changed, text, count=1)
    recipe = _parsed(text, folder / "recipe.yaml")
    write_atomically(folder / "README.md", _card(folder, shards, recipe, card))
    write_atomically(folder / "recipe.yaml", text)
    return True


def _card(folder: Path, shards: Path, recipe: Recipe, existing: str) -> str:
    survey = Survey([slot.name for slot in slots_of(recipe)])
    digest = ""
    for row in read_rows(folder, images=False):
        survey.add(row)
        digest = row.recipe_digest
    store, refusals = Store(shards, list(survey.slots), digest), Refusals()
    for number in range(survey.last_index // SHARD_SIZE + 1):
        try:
            rejected = store.rejected(number)
        except StoreError as error:
            raise DatasetError(
                f"The card cannot be written anew: {error.message}",
                hint="Run the recipe again; `dataset.license` and `dataset.repo_id` in it do the "
                "same.",
            ) from error
        for each in rejected:
            if each.index <= survey.last_index:
                refusals.add(each)
    return write_card(
        survey,
        refusals,
        recipe,
        versions=_versions(existing),
        vocabulary=(folder / "vocabulary.json").is_file(),
        existing=existing,
    )


def _versions(card: str) -> dict[str, str]:
    """What made the images, as the card says it; they may have been made on another machine."""
    found = _MADE_WITH.search(Card.parse(card).ours or "")
    words = [html.unescape(each).split() for each in found.group(1).split(", ")] if found else []
    return {pair[0]: pair[1] for pair in words if len(pair) == 2}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path) from error


def _parsed(text: str, path: Path) -> Recipe:
    try:
        node, problems = read_yaml(text, Place(str(path), path.parent, 1, 1))
        if node is not None and not problems:
            return Recipe.model_validate(plain(node))
    except (ValidationError, RecipeError) as error:
        raise _unreadable(path) from error
    raise _unreadable(path)


def _unreadable(path: Path) -> DatasetError:
    return DatasetError(
        f"{path} is missing, or not what regforge wrote there.",
        hint="Run the recipe again: it is written anew, and your own text in the card is kept.",
    )
