"""Stable Diffusion 1.x, 2.x and XL: a UNet, discrete noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regforge.images.finding import FoundModel
from regforge.recipe.pipelines import TRAINS
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Embeddings, FamilyError, Geometry
from regforge.training.families.base import Family


class DiscreteNoise:
    """1000 steps, and a noise or v prediction: Stable Diffusion 1.x, 2.x and XL.

    At time t a latent is `sqrt(a[t]) * latent + sqrt(1 - a[t]) * noise`. `uniform` are numbers from
    0 to 1 [N], `times` [N] in the model's units, `latents` and `noise` [N, C, ...].

    Args:
        config: `scheduler.config`: betas, prediction type, zero terminal SNR.

    Raises:
        FamilyError: The denoiser predicts something else, or has another kind of time.
    """

    def __init__(self, config: Any) -> None:
        from diffusers import DDPMScheduler

        self._prediction: str = config.get("prediction_type", "epsilon")
        if self._prediction not in ("epsilon", "v_prediction"):
            raise FamilyError(
                f"The base model predicts {self._prediction!r}, and training knows epsilon and "
                "v_prediction."
            )
        if str(config.get("_class_name", "")).startswith("EDM") or "sigma_data" in config:
            raise FamilyError(
                "The base model has continuous noise levels (EDM), which training does not know.",
                hint=f"{TRAINS}.",
            )
        # One product of 1000 factors: float64 keeps the small ones near the end right.
        betas = DDPMScheduler.from_config(config).betas.double()
        signal = torch.cumprod(1 - betas, 0)
        self._variances = torch.stack([signal, 1 - signal]).float()

    def times(self, uniform: Tensor) -> Tensor:
        """Equally likely steps: int64 [N]."""
        count = self._variances.shape[1]
        return (uniform * count).long().clamp(0, count - 1)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See the class."""
        signal_part, noise_part = self._factors(times, latents)
        return signal_part * latents + noise_part * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noise, or the velocity (arXiv 2202.00512, appendix D)."""
        if self._prediction == "epsilon":
            return noise
        signal_part, noise_part = self._factors(times, latents)
        return signal_part * noise - noise_part * latents

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Min-SNR weights, each example's from its own time: float32 [N].

        min(SNR, gamma) / SNR for noise and min(SNR, gamma) / (SNR + 1) for velocity, as in
        https://arxiv.org/abs/2303.09556 (section 3.4) and
        https://github.com/TiankaiHang/Min-SNR-Diffusion-Training. Where nothing of the signal is
        left (zero terminal SNR) that is 1 and 0.
        """
        if min_snr_gamma is None:
            return torch.ones(len(times), device=times.device)
        signal, noise = self._at(times)
        if self._prediction == "epsilon":  # gamma / SNR, without dividing by an SNR of 0
            return (min_snr_gamma * noise / signal).clamp(max=1.0)
        snr = signal / noise
        return snr.clamp(max=min_snr_gamma) / (snr + 1)

    def _at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of signal and noise: float32 [N] each."""
        if self._variances.device != times.device:  # once: a copy at each step would be waited for
            self._variances = self._variances.to(times.device)
        signal, noise = self._variances[:, times]
        return signal, noise

    def _factors(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Their square roots, to be multiplied with batches like this one."""
        shape = (-1, *[1] * (like.dim() - 1))
        signal, noise = self._at(times)
        return signal.sqrt().view(shape), noise.sqrt().view(shape)


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
