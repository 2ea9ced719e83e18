"""Finds out which family a base model belongs to, and loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.images.loading import ModelChoice, load_model
from regforge.training.interface import Family, FamilyError

if TYPE_CHECKING:
    import torch

    from regforge.recipe.training import TrainingRecipe

# The classes of model_index.json. A pipeline for another task has a class of its own.
_SD, _SDXL, _SD3 = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
)
_TRAINABLE = "Stable Diffusion 1.x, 2.x, XL and 3 can be trained, and embedded/tinyworld."


def open_family(recipe: TrainingRecipe, device: torch.device, dtype: torch.dtype) -> Family:
    """Load the recipe's base model, frozen.

    A safety checker is left out: it would black out pictures that show how training goes.

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

    def check(pipeline_class: str) -> None:
        if pipeline_class not in (_SD, _SDXL, _SD3):
            raise FamilyError(
                f"{recipe.base_model} is a {pipeline_class}, which cannot be trained (base_model).",
                hint=_TRAINABLE,
            )
        if pipeline_class == _SD3 and recipe.optimizer.min_snr_gamma is not None:
            StableDiffusion3.refuse_min_snr()

    choice = ModelChoice(
        recipe.base_model,
        recipe.revision,
        recipe.variant,
        key="base_model",
        variant_key="variant",
    )
    pipeline, folder = load_model(choice, dtype, check)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    kinds: dict[str, Callable[[Any, Path, str | None], Family]] = {
        _SD: StableDiffusion,
        _SDXL: StableDiffusionXL,
        _SD3: StableDiffusion3,
    }
    return kinds[type(pipeline).__name__](pipeline, folder, recipe.variant)
