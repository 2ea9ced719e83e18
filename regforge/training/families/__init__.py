"""The kinds of text-to-image models that can be trained.

A family is a subclass of `base.Family`: its modules, text embeddings, noise and how its denoiser is
called. To add one, write it in a module here, with a noise process of `base`, and name it with its
pipeline's class in `regforge.recipe.pipelines.TRAINABLE`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from regforge.images.loading import ModelChoice, find_model, load_model
from regforge.recipe.pipelines import TRAINABLE, TRAINS
from regforge.training.batches import FamilyError

if TYPE_CHECKING:
    import torch

    from regforge.recipe.training import TrainingRecipe
    from regforge.training.families.base import Family


def find_base_model(recipe: TrainingRecipe) -> None:
    """Check that the recipe's base model can be trained; downloaded if need be, not loaded.

    Raises:
        ModelUnavailable: It is not there, or may not be used.
        FamilyError: It is of a kind that cannot be trained, or not in the way that is asked for.
    """
    find_model(_choice(recipe), lambda pipeline_class: _check(recipe, pipeline_class))


def open_family(recipe: TrainingRecipe, device: torch.device, dtype: torch.dtype) -> Family:
    """Load the recipe's base model, frozen.

    A safety checker is left out: it would black out images that show how training goes. `dtype` is
    the precision of frozen weights; the autoencoder computes in float32 all the same.

    Raises:
        ModelUnavailable: See `find_base_model`.
        FamilyError: Likewise.
    """
    pipeline, folder = load_model(
        _choice(recipe), dtype, lambda pipeline_class: _check(recipe, pipeline_class)
    )
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return _family(type(pipeline).__name__)(pipeline, folder, recipe.variant)


def _choice(recipe: TrainingRecipe) -> ModelChoice:
    return ModelChoice(
        recipe.base_model,
        recipe.revision,
        recipe.variant,
        key="base_model",
        variant_key="variant",
    )


def _check(recipe: TrainingRecipe, pipeline_class: str) -> None:
    if pipeline_class not in TRAINABLE:
        raise FamilyError(
            f"{recipe.base_model} is a {pipeline_class}, which cannot be trained (base_model).",
            hint=f"{TRAINS}.",
        )
    _family(pipeline_class).check(recipe)


def _family(pipeline_class: str) -> type[Family]:
    module, _, name = TRAINABLE[pipeline_class].partition(".")
    family: type[Family] = getattr(import_module(f"{__name__}.{module}"), name)
    return family
