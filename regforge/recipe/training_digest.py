"""The digest of a training recipe: one number for everything that decides where training goes.

Two recipes with the same digest take the same steps, so one may go on from the other's checkpoint.
It covers every field that is not marked `RUNTIME`, with defaults filled in, and what the photos and
their captions are. How many steps are taken is not in it where the learning rate does not depend on
it: the same recipe with more steps goes on.

Of a base model on this machine it covers what its files hold. Of one on the Hub, and of the
regularization dataset, it covers the name: the address and revision as the recipe has them, or the
name of the folder. Of a dataset that is named by its recipe it covers that recipe's digest and how
many images it asks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regforge.hub.address import HubAddress
from regforge.recipe.digest import digest_of, fields_of, model_of, photos_of, recipe_digest
from regforge.recipe.loading import dataset_recipe_of
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import uses_regularization

SCHEME = 1
"""Raised when the digest is computed differently; all old digests are void then."""

_OF_BOTH_METHODS = ("kind", "text_encoder", "text_encoder_lr")


def training_digest(recipe: TrainingRecipe) -> str:
    """The SHA-256 of what decides where training goes, 64 hex digits.

    Raises:
        RecipeError: A photo cannot be read, or something is wrong with the dataset's recipe.
    """
    return digest_of({"scheme": SCHEME, **training_data_of(recipe)})


def training_data_of(recipe: TrainingRecipe) -> dict[str, Any]:
    """What the digest covers, as JSON values: useful to see why two digests differ.

    Raises:
        RecipeError: A photo cannot be read, or something is wrong with the dataset's recipe.
    """
    data = {key: value for key, value in fields_of(recipe).items() if value != {}}
    data["base_model"] = model_of(recipe.base_model, ("base_model",))
    made_by = dataset_recipe_of(recipe)
    taken = recipe.subject.captions == "auto" and made_by is not None
    # Captions that the dataset's recipe has written are covered by its digest.
    described = taken and made_by is not None and made_by.subject.captions != "files"
    data["subject"]["images"] = photos_of(recipe.subject.images, captions=not described)
    if recipe.subject.captions == "auto":
        del data["subject"]["captions"]  # as before there was a choice
    data["regularization"] = _regularization(recipe, data["regularization"])
    data["method"] = _method(recipe, data["method"])
    if (
        recipe.optimizer.scheduler == "constant"
        and recipe.optimizer.warmup_steps <= recipe.optimizer.steps
    ):
        del data["optimizer"]["steps"]
    if not recipe.optimizer.ema:
        data["optimizer"]["ema_decay"] = None
    return data


def _regularization(recipe: TrainingRecipe, data: dict[str, Any]) -> dict[str, Any] | None:
    named = recipe.regularization
    if named.dataset is None or not uses_regularization(recipe):
        return None
    made_by = dataset_recipe_of(recipe)
    if made_by is not None:
        images = made_by.prompts.count * made_by.render.images_per_prompt
        return {**data, "dataset": {"recipe": recipe_digest(made_by), "images": images}}
    address = HubAddress.parse(named.dataset)
    place = str(address.at(named.revision)) if address else _name(named.dataset)
    return {**data, "dataset": place, "revision": None}


def _method(recipe: TrainingRecipe, data: dict[str, Any]) -> dict[str, Any]:
    method = recipe.method
    data["alpha"] = float(method.alpha or method.rank)
    rate = method.text_encoder_lr or recipe.optimizer.lr
    data["text_encoder_lr"] = rate if method.text_encoder else None
    if method.kind == "full":
        return {key: data[key] for key in _OF_BOTH_METHODS}
    return data


def _name(named: str) -> str:
    """A name as it is, of a path the last part."""
    return Path(named).name if Path(named).is_absolute() else named
