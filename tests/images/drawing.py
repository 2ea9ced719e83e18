"""What the tests of rendering share: jobs, opened renderers, and tiny models of several families.

The tiny models have random weights and the embedded tokenizer; they draw noise, quickly.
"""

from pathlib import Path
from typing import Any

import numpy as np

from regforge.embedded import TINYWORLD
from regforge.images import open_renderer
from regforge.images.renderer import Pixels, Renderer
from regforge.journal import Journal, Reporter
from regforge.recipe.rendering import Render
from regforge.records import ImageJob, Prompt, image_jobs

DIGEST = "3f2a9c01b7de" + "0" * 52
CAPTIONS = (
    "a photo of a red teapot on a beach",
    "a photo of a blue cat in a forest at night",
    "a pencil sketch of a green owl in the snow",
    "a watercolor painting of a yellow robot toy",
    "a photo of a black dog sleeping in a bedroom",
)


def prompt(index: int, **more: Any) -> Prompt:
    text = more.pop("text", CAPTIONS[index % len(CAPTIONS)])
    return Prompt(index, text, "teapot", "object", "amplify", **more)


def jobs(count: int) -> list[ImageJob]:
    return list(image_jobs([prompt(index) for index in range(count)], DIGEST))


def opened(*, earlier: int | None = None, folder: Path | None = None, **render: Any) -> Renderer:
    """A renderer; `earlier` is the batch size of an earlier session, `folder` gets the journal."""
    quick = {"steps": 2, "width": 48, "height": 48}
    plain = {"guidance_scale": 4.0, "dtype": "float32", "device": "cpu"}
    return open_renderer(
        Render(**(quick | plain | render)),
        journal=Journal(folder),
        reporter=Reporter(quiet=True),
        batch_size=earlier,
    )


def drawn(renderer: Renderer, todo: list[ImageJob]) -> Pixels:
    """The pixels of all jobs, [N, H, W, 3]."""
    images = list(renderer.render(todo))
    assert [image.job for image in images] == todo
    return np.stack([image.pixels for image in images])


def difference(first: Pixels, second: Pixels) -> int:
    """The largest difference of a value, in levels of 255."""
    return int(np.abs(first.astype(int) - second).max())


def _parts() -> dict[str, Any]:
    """A tokenizer, and an autoencoder whose latents are half as large as its images."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer")
    return {"vae": vae, "tokenizer": tokenizer}


def _text_config(vocabulary: int, width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        eos_token_id=1,
        bos_token_id=0,
    )


def _t5_config(vocabulary: int, width: int) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=vocabulary, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2
    )


def sdxl(folder: Path) -> str:
    """A Stable Diffusion XL folder."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = _parts()
    size = len(parts["tokenizer"])
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        norm_num_groups=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 12,
        cross_attention_dim=16 + 12,
    )
    StableDiffusionXLPipeline(
        **parts,
        tokenizer_2=parts["tokenizer"],
        text_encoder=CLIPTextModel(_text_config(size, 16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(size, 12, 12)),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)
    return str(folder)


def flux(folder: Path) -> str:
    """A Flux folder: flow matching, no classifier-free guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    parts = _parts()
    size = len(parts["tokenizer"])
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    parts["vae"].register_to_config(shift_factor=0.1)
    FluxPipeline(
        **parts,
        tokenizer_2=parts["tokenizer"],
        text_encoder=CLIPTextModel(_text_config(size, 12, 12)),
        text_encoder_2=T5EncoderModel(_t5_config(size, 16)),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return str(folder)


def sd3(folder: Path) -> str:
    """A Stable Diffusion 3 folder."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    parts = _parts()
    size = len(parts["tokenizer"])
    parts["vae"].register_to_config(shift_factor=0.1)
    transformer = SD3Transformer2DModel(
        sample_size=24,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=28,
        out_channels=4,
    )
    StableDiffusion3Pipeline(
        **parts,
        text_encoder=CLIPTextModelWithProjection(_text_config(size, 16, 16)),
        tokenizer_2=parts["tokenizer"],
        text_encoder_2=CLIPTextModelWithProjection(_text_config(size, 12, 12)),
        tokenizer_3=parts["tokenizer"],
        text_encoder_3=T5EncoderModel(_t5_config(size, 32)),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return str(folder)


def with_safety_checker(folder: Path, *, flagged: bool) -> str:
    """The embedded model with a safety checker that finds everything, or nothing, unsafe."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = CLIPConfig(projection_dim=8)
    config.vision_config = vision
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():  # an image is unsafe if it is more similar to a concept than this
        for limits in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            limits.fill_(-2.0 if flagged else 2.0)
    pipeline = StableDiffusionPipeline.from_pretrained(
        TINYWORLD,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessorPil(size=16, crop_size=16),
    )
    pipeline.save_pretrained(folder)
    return str(folder)
