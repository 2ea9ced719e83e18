"""Stable Diffusion 1.x, 2.x and XL: a UNet, discrete noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regforge.images.finding import FoundModel
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Embeddings, FamilyError, Geometry
from regforge.training.families.base import DiscreteNoise, Family


class StableDiffusion(DiscreteNoise, Family):
    """Stable Diffusion 1.x, 2.x, and the embedded pipeline: one CLIP text encoder."""

    name = "sd"

    def __init__(
        self, pipeline: Any, source: FoundModel, device: torch.device, recipe: TrainingRecipe
    ) -> None:
        Family.__init__(self, pipeline, source, device, recipe)
        takes, has = self.settings.in_channels, pipeline.vae.config.latent_channels
        if takes != has:
            raise FamilyError(
                f"The base model's UNet takes {takes} channels and a latent has {has}: it is for "
                "inpainting or another task.",
                hint="Choose the model that draws from text alone.",
            )
        DiscreteNoise.__init__(self, pipeline.scheduler.config)

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        return self._predicted(
            self._as_computed(noisy),
            times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            added_cond_kwargs=self._conditions(embeddings, geometry),
        )

    def _conditions(self, *_arguments: Any, **_more: Any) -> dict[str, Tensor] | None:
        """What conditions the UNet besides the caption's embeddings."""
        return None


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two CLIP text encoders, and a UNet conditioned on sizes and crops."""

    name = "sdxl"
    encoder_names = ("text_encoder", "text_encoder_2")
    trainable_encoders = ("text_encoder", "text_encoder_2")

    def _conditions(
        self, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> dict[str, Tensor]:
        return {
            "text_embeds": self._as_computed(embeddings["pooled_prompt_embeds"]),
            # In float32: bfloat16 has no 1365, nor any other odd number above 256.
            "time_ids": time_ids(geometry).to(self.device, non_blocking=True),
        }


def time_ids(geometry: Sequence[Geometry]) -> Tensor:
    """SDXL's conditioning on sizes and crops, in pixels, y before x: float32 [N, 6].

    Original size, top left corner of the crop, target size: the order of `_get_add_time_ids` in
    diffusers' pipeline_stable_diffusion_xl.py.
    """
    rows = [(*each.original, *each.top_left, *each.target) for each in geometry]
    return torch.tensor(rows, dtype=torch.float32)
