"""Finds out which family a base model belongs to, and loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.images.loading import ModelChoice, find_model, load_model
from regforge.recipe.training_checks import TRAINABLE, TRAINS
from regforge.training.interface import Family, FamilyError

if TYPE_CHECKING:
    import torch

    from regforge.recipe.training import TrainingRecipe


def find_base_model(recipe: TrainingRecipe) -> None:
    """See that the recipe's base model can be trained; it is downloaded if need be, not loaded.

    Raises:
        ModelUnavailable: It is not there, or may not be used.
        FamilyError: It is of a kind that cannot be trained, or not in the way that is asked for.
    """
    find_model(_choice(recipe), _check(recipe))


def _choice(recipe: TrainingRecipe) -> ModelChoice:
    return ModelChoice(
        recipe.base_model,
        recipe.revision,
        recipe.variant,
        key="base_model",
        variant_key="variant",
    )


def _check(recipe: TrainingRecipe) -> Callable[[str], None]:
    """What looks at the class of a pipeline before anything large is downloaded."""
    from regforge.training.families.sd3 import StableDiffusion3

    def check(pipeline_class: str) -> None:
        if pipeline_class not in TRAINABLE:
            raise FamilyError(
                f"{recipe.base_model} is a {pipeline_class}, which cannot be trained (base_model).",
                hint=f"{TRAINS}.",
            )
        if (
            pipeline_class == "StableDiffusion3Pipeline"
            and recipe.optimizer.min_snr_gamma is not None
        ):
            StableDiffusion3.refuse_min_snr()

    return check


def open_family(recipe: TrainingRecipe, device: torch.device, dtype: torch.dtype) -> Family:
    """Load the recipe's base model, frozen.

    A safety checker is left out: it would black out images that show how training goes.

    Args:
        recipe: Names it.
        device: Where it goes.
        dtype: Precision of frozen weights. The autoencoder computes in float32 all the same.

    Raises:
        ModelUnavailable: It is not there, or may not be used.
        FamilyError: It is of a kind that cannot be trained, or not in the way that is asked for.
    """
    from regforge.training.families.sd import StableDiffusion
    from regforge.training.families.sd3 import StableDiffusion3
    from regforge.training.families.sdxl import StableDiffusionXL

    pipeline, folder = load_model(_choice(recipe), dtype, _check(recipe))
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    kinds: dict[str, Callable[[Any, Path, str | None], Family]] = {
        "StableDiffusionPipeline": StableDiffusion,
        "StableDiffusionXLPipeline": StableDiffusionXL,
        "StableDiffusion3Pipeline": StableDiffusion3,
    }
    return kinds[type(pipeline).__name__](pipeline, folder, recipe.variant)
