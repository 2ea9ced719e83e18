"""Tiny random models of every family that can be trained, and what their tests share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from images import drawing
from torch import Tensor

from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Embeddings, Geometry
from regforge.training.families import open_family
from regforge.training.families.base import Family
from regforge.training.weights import Trainable

KINDS = ("sd", "sd-v", "sdxl", "sd3")
"""Stable Diffusion that predicts noise, and velocity (the embedded one); XL; and 3."""

CAPTIONS = ("a photo of a red teapot on a beach", "a blue cat")
GEOMETRY = (Geometry((100, 80), (3, 4), (32, 32)), Geometry((50, 61), (0, 0), (32, 32)))
CPU = torch.device("cpu")


def build(kind: str, folder: Path) -> str:
    """What a recipe's `base_model` says for a family."""
    match kind:
        case "sd-v":
            return "embedded/tinyworld"
        case "sd":
            return sd(folder)
        case "sdxl":
            return drawing.sdxl(folder)
        case "sd3":
            return drawing.sd3(folder)
    raise AssertionError(kind)


def sd(folder: Path, *, in_channels: int = 4, **scheduler: Any) -> str:
    """A Stable Diffusion folder; it predicts noise unless the scheduler is told otherwise."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    parts = drawing._parts()
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
        cross_attention_dim=16,
    )
    StableDiffusionPipeline(
        **parts,
        text_encoder=CLIPTextModel(drawing._text_config(len(parts["tokenizer"]), 16, 16)),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def recipe(base: str, method: dict[str, Any] | None = None, **more: Any) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "name": "tiny",
            "base_model": base,
            "subject": {"images": "photos", "class_noun": "teapot"},
            "method": {"rank": 4, "alpha": 2, **(method or {})},
            **more,
        }
    )


def opened(base: str, dtype: torch.dtype = torch.float32, **more: Any) -> Family:
    return open_family(recipe(base, **more), CPU, dtype)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents_of(family: Family, count: int = 2) -> Tensor:
    side = family.resolution // family.pipeline.vae_scale_factor
    return random(count, family.pipeline.vae.config.latent_channels, side, side)


def embedded(family: Family, captions: Sequence[str] = CAPTIONS) -> Embeddings:
    """Embeddings of captions, with a batch axis."""
    each = family.encode_captions(captions)
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def predicted(family: Family) -> Tensor:
    """What the family says of two fixed latents with fixed captions."""
    noisy = latents_of(family)
    times = family.times(torch.tensor([0.3, 0.8]))
    return family.predict(noisy, times, embedded(family), GEOMETRY)


def move(trainable: Trainable, by: float = 0.05) -> None:
    """Change all that is trained, as training would."""
    with torch.no_grad():
        for number, parameter in enumerate(trainable.parameters.values()):
            parameter += by * random(*parameter.shape, seed=number)
