"""Stable Diffusion: 1.x, 2.x and XL (a UNet, discrete noise), 3 and 3.5 (a transformer, flow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regforge.training.batches import Embeddings, FamilyError, Geometry
from regforge.training.families.base import DiscreteNoise, Family, FlowMatching

if TYPE_CHECKING:
    from regforge.recipe.training import TrainingRecipe


class StableDiffusion(DiscreteNoise, Family):
    """Stable Diffusion 1.x, 2.x, and the embedded pipeline: one CLIP text encoder."""

    name = "sd"

    def __init__(self, pipeline: Any, source: Path, variant: str | None = None) -> None:
        Family.__init__(self, pipeline, source, variant)
        takes, has = self.settings.in_channels, pipeline.vae.config.latent_channels
        if takes != has:
            raise FamilyError(
                f"The base model's UNet takes {takes} channels and a latent has {has}: it is for "
                "inpainting or another task.",
                hint="Choose the model that draws from text alone.",
            )
        DiscreteNoise.__init__(self, pipeline.scheduler.config)

    def _encode(self, captions: list[str]) -> Embeddings:
        embeds, _ = self.pipeline.encode_prompt(
            captions, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds}

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        predicted: Tensor = self.denoiser(
            self._as_computed(noisy),
            times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            added_cond_kwargs=self._conditions(embeddings, geometry),
            return_dict=False,
        )[0]
        return predicted

    def _conditions(self, *_arguments: Any, **_more: Any) -> dict[str, Tensor] | None:
        """What conditions the UNet besides the caption's embeddings."""
        return None


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two CLIP text encoders, and a UNet conditioned on sizes and crops."""

    name = "sdxl"
    encoder_names = ("text_encoder", "text_encoder_2")
    trainable_encoders = ("text_encoder", "text_encoder_2")

    def _encode(self, captions: list[str]) -> Embeddings:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            captions,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        # The pipeline draws with zeros where there is no caption, and SDXL was trained so:
        # dropped captions have to be the same thing.
        if self.pipeline.config.force_zeros_for_empty_prompt:
            there = torch.tensor([bool(caption) for caption in captions]).to(embeds)
            embeds, pooled = embeds * there[:, None, None], pooled * there[:, None]
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

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


class StableDiffusion3(FlowMatching, Family):
    """Stable Diffusion 3 and 3.5: a transformer, two CLIP text encoders and perhaps T5."""

    name = "sd3"
    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trainable_encoders = ("text_encoder", "text_encoder_2")
    lora_targets = (
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
        Family.__init__(self, pipeline, source, variant)
        FlowMatching.__init__(self, pipeline.scheduler.config)

    @classmethod
    def check(cls, recipe: TrainingRecipe) -> None:
        """See `Family`."""
        if recipe.optimizer.min_snr_gamma is not None:
            raise FamilyError(
                "optimizer.min_snr_gamma is for models that predict noise or velocity; Stable "
                "Diffusion 3 learns by flow matching, which weights times by how often it draws "
                "them.",
                hint="Leave optimizer.min_snr_gamma out.",
            )

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

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        del geometry  # it is not conditioned on sizes
        predicted: Tensor = self.denoiser(
            hidden_states=self._as_computed(noisy),
            timestep=times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            pooled_projections=self._as_computed(embeddings["pooled_prompt_embeds"]),
            return_dict=False,
        )[0]
        return predicted
