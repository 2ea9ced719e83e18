"""Which keys make a recipe another one than a run's: for people whose run is not gone on with.

Compares what recipes say, and leaves out what `digest` and `training_digest` leave out.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from regforge.recipe.digest import data_of
from regforge.recipe.models import Recipe
from regforge.recipe.problems import RecipeError
from regforge.recipe.resolved import resolved_yaml
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_digest import training_data_of


def changed_keys(before: object, recipe: Recipe | TrainingRecipe) -> list[str]:
    """The keys that differ and count for the digest, such as `prompts.template`.

    Args:
        before: What `resolved_yaml` wrote of the other recipe, loaded.
        recipe: A recipe of the same kind.

    Returns:
        Their dotted names in the order of the recipe. None if the difference lies in what a file
        says. If a file of then is gone, or the recipe is of another version, all that differ.
    """
    said = _differing(before, yaml.safe_load(resolved_yaml(recipe)))
    try:
        counted = _differing(_covered(type(recipe).model_validate(before)), _covered(recipe))
    except (ValidationError, RecipeError):
        return said
    return [key for key in said if any(_meet(key, other) for other in counted)]


def _covered(recipe: Recipe | TrainingRecipe) -> dict[str, Any]:
    return training_data_of(recipe) if isinstance(recipe, TrainingRecipe) else data_of(recipe)


def _differing(before: object, now: object) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [key for key in new | old if new.get(key) != old.get(key)]


def _meet(key: str, other: str) -> bool:
    """Whether one key is the other or lies below it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _flat(value: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: each
        for key, below in value.items()
        for name, each in _flat(below, f"{prefix}.{key}" if prefix else str(key)).items()
    }
