"""Stable Diffusion 3: flow matching with a transformer, two CLIP text encoders and perhaps T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from regforge.training.families.base import LatentFamily
from regforge.training.interface import Embeddings, FamilyError, Geometry


class StableDiffusion3(LatentFamily):
    """Stable Diffusion 3 and 3.5. Times are 0 (no noise) to 1000 (nothing but noise)."""

    name = "sd3"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trainable_encoders: Sequence[str] = ("text_encoder", "text_encoder_2")
    lora_targets: Sequence[str] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )

    def __init__(self, pipeline: Any, source: Path, variant: str | None = None) -> None:
        super().__init__(pipeline, source, variant)
        config = pipeline.scheduler.config
        self._units = float(config.num_train_timesteps)
        # A shift that depends on the image's size belongs to drawing, as in diffusers' scripts.
        self._time_shift = 1.0 if config.get("use_dynamic_shifting") else float(config.shift)

    def _latent_multiple(self) -> int:
        size: int = self.settings.patch_size
        return size

    def _encode(self, captions: list[str]) -> Embeddings:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            captions,
            None,
            None,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def times(self, uniform: Tensor) -> Tensor:
        """See `Family`: float32 [N], logit-normal and shifted like the scheduler's.

        https://arxiv.org/abs/2403.03206, sections 3.1 and 5.3.2; as in diffusers'
        train_dreambooth_sd3.py, but not rounded to 1000 steps.
        """
        share = torch.sigmoid(torch.special.ndtri(uniform))
        shifted = self._time_shift * share / (1 + (self._time_shift - 1) * share)
        return shifted * self._units

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Family`: on the straight line from the latents to the noise."""
        share = (times / self._units).view(-1, *[1] * (latents.dim() - 1))
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See `Family`: the direction of that line, the same at all times."""
        del times
        return noise - latents

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """See `Family`.

        Raises:
            FamilyError: There is no min-SNR in flow matching.
        """
        if min_snr_gamma is not None:
            self.refuse_min_snr()
        return torch.ones(len(times), device=times.device)

    @staticmethod
    def refuse_min_snr() -> NoReturn:
        """Say why there is no min-SNR here."""
        raise FamilyError(
            "optimizer.min_snr_gamma is for models that predict noise or velocity; Stable "
            "Diffusion 3 learns by flow matching, which weights times by how often it draws them.",
            hint="Leave optimizer.min_snr_gamma out.",
        )

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        del geometry  # it is not told
        predicted: Tensor = self.denoiser(
            hidden_states=self._as_computed(noisy),
            timestep=times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            pooled_projections=self._as_computed(embeddings["pooled_prompt_embeds"]),
            return_dict=False,
        )[0]
        return predicted
