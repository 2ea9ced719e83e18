"""Stable Diffusion XL: two CLIP text encoders, and a UNet that is told sizes and crops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regforge.training.families.sd import DiffusionFamily
from regforge.training.interface import Embeddings, Geometry


class StableDiffusionXL(DiffusionFamily):
    """Stable Diffusion XL, the base model."""

    name = "sdxl"
    encoder_names = ("text_encoder", "text_encoder_2")
    trainable_encoders: Sequence[str] = ("text_encoder", "text_encoder_2")

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

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`. Each example is told the size and crop of its own image."""
        told = {
            "text_embeds": self._as_computed(embeddings["pooled_prompt_embeds"]),
            # In float32: bfloat16 has no 1365, nor any other odd number above 256.
            "time_ids": time_ids(geometry).to(self.device, non_blocking=True),
        }
        predicted: Tensor = self.denoiser(
            self._as_computed(noisy),
            times,
            encoder_hidden_states=self._as_computed(embeddings["prompt_embeds"]),
            added_cond_kwargs=told,
            return_dict=False,
        )[0]
        return predicted


def time_ids(geometry: Sequence[Geometry]) -> Tensor:
    """What SDXL is told about each image, in pixels, y before x: float32 [N, 6].

    Original size, top left corner of the crop, target size: the order of `_get_add_time_ids` in
    diffusers' pipeline_stable_diffusion_xl.py.
    """
    rows = [(*each.original, *each.top_left, *each.target) for each in geometry]
    return torch.tensor(rows, dtype=torch.float32)
