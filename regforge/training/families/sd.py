"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, noise or v prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from regforge.training.families.base import LatentFamily
from regforge.training.families.diffusion import DiscreteNoise
from regforge.training.interface import Embeddings, FamilyError, Geometry


class DiffusionFamily(LatentFamily):
    """What a UNet with discrete noise needs; Stable Diffusion XL adds to it."""

    def __init__(self, pipeline: Any, source: Path, variant: str | None = None) -> None:
        super().__init__(pipeline, source, variant)
        takes, has = self.settings.in_channels, pipeline.vae.config.latent_channels
        if takes != has:
            raise FamilyError(
                f"The base model's UNet takes {takes} channels and a latent has {has}: it is for "
                "inpainting or another task.",
                hint="Choose the model that draws from text alone.",
            )
        self.schedule = DiscreteNoise(pipeline.scheduler.config)

    def times(self, uniform: Tensor) -> Tensor:
        """See `Family`: int64, 0 to 999."""
        return self.schedule.times(uniform)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Family`."""
        return self.schedule.noisy(latents, noise, times)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Family`."""
        return self.schedule.target(latents, noise, times)

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """See `Family`."""
        return self.schedule.weights(times, min_snr_gamma)


class StableDiffusion(DiffusionFamily):
    """Stable Diffusion 1.x, 2.x, and the embedded pipeline."""

    name = "sd"

    def _encode(self, captions: list[str]) -> Embeddings:
        embeds, _ = self.pipeline.encode_prompt(
            captions, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds}

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        del geometry  # it is not told
        predicted: Tensor = self.denoiser(
            self._as_computed(noisy),
            times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            return_dict=False,
        )[0]
        return predicted
