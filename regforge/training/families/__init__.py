"""The kinds of text-to-image models that can be trained.

A family is a subclass of `base.Family`: its modules, text embeddings, noise and how its denoiser is
called. To add one, write it in a module here, with `DiscreteNoise` or as a `Flow`, and name it with
its pipeline's class in `regforge.recipe.pipelines.TRAINABLE`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from regforge.images.finding import ModelChoice, find_model
from regforge.images.loading import load_model, require_quantizer
from regforge.recipe.pipelines import TRAINABLE
from regforge.recipe.training_checks import unfit
from regforge.training.batches import FamilyError

if TYPE_CHECKING:
    import torch

    from regforge.recipe.training import TrainingRecipe
    from regforge.training.families.base import Family


def find_base_model(recipe: TrainingRecipe) -> type[Family]:
    """The family of the recipe's base model; it is downloaded if need be, and not loaded.

    Raises:
        ModelUnavailable: It is not there, or may not be used.
        FamilyError: It is of a kind that cannot be trained, or not in the way that is asked for.
        RenderSettingError: This machine cannot quantize it.
    """
    require_quantizer(recipe.method.quantize, recipe.device, "method.quantize", "device")
    found: list[type[Family]] = []
    find_model(_choice(recipe), lambda pipeline_class: found.append(_check(recipe, pipeline_class)))
    return found[0]


def open_family(recipe: TrainingRecipe, device: torch.device, dtype: torch.dtype) -> Family:
    """Load the recipe's base model, frozen, but for the denoiser, which comes when it is asked for.

    Its text encoders get the recipe's new token if it has one.

    A safety checker is left out: it would black out images that show how training goes. `dtype` is
    the precision of frozen weights; the autoencoder computes in float32 all the same.

    Raises:
        ModelUnavailable: See `find_base_model`.
        FamilyError: Likewise.
    """
    family = find_base_model(recipe)
    pipeline, found = load_model(_choice(recipe), dtype, without=family.denoiser_name)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    opened = family(pipeline, found, device, recipe)
    if recipe.trains_text:  # they stay
        for encoder in opened.text_encoders.values():
            encoder.to(device)
    if recipe.subject.token is not None:
        from regforge.training.tokens import TokenRows

        opened.token = TokenRows(pipeline, recipe.subject)
    return opened


def _choice(recipe: TrainingRecipe) -> ModelChoice:
    return ModelChoice(
        recipe.base_model,
        recipe.revision,
        recipe.variant,
        recipe.config,
        quantize=recipe.method.quantize,
        key="base_model",
        variant_key="variant",
    )


def _check(recipe: TrainingRecipe, pipeline_class: str) -> type[Family]:
    for found in unfit(recipe, pipeline_class):
        raise FamilyError(f"{'.'.join(map(str, found.location))}: {found.message}.")
    module, _, name = TRAINABLE[pipeline_class].family.partition(".")
    family: type[Family] = getattr(import_module(f"{__name__}.{module}"), name)
    return family
