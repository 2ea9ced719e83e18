"""Pipelines of known models' sizes whose weights mean nothing: made here, without any download."""

from __future__ import annotations

from typing import Any

from regforge.embedded import TINYWORLD

KINDS = ("sd15", "sdxl", "flux")
"""Stable Diffusion 1.5, Stable Diffusion XL, FLUX.1-dev."""

_VOCABULARY = 49408


def random_pipeline(kind: str, device: Any, dtype: Any, *, tiny: bool = False) -> Any:
    """A text-to-image pipeline with random weights, made on the device in a precision.

    `tiny` keeps the kind's structure and makes everything in it small, to see that code runs.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return {"sd15": _sd15, "sdxl": _sdxl, "flux": _flux}[kind](tiny)
    finally:
        torch.set_default_dtype(before)


def _sd15(tiny: bool) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    sizes: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
    if tiny:
        sizes = {"cross_attention_dim": 32, "attention_head_dim": 2, "sample_size": 8}
        sizes["block_out_channels"] = (32,) * 4
    return StableDiffusionPipeline(
        vae=_autoencoder(tiny, 512, scaling_factor=0.18215),
        text_encoder=_clip(tiny, 768, layers=12, heads=12),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(layers_per_block=1 if tiny else 2, **sizes),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, **_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(tiny: bool) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    sizes: dict[str, Any] = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "layers_per_block": 2,
    }
    if tiny:
        sizes = {
            "sample_size": 8,
            "block_out_channels": (32, 32, 32),
            "transformer_layers_per_block": (1, 1, 1),
            "attention_head_dim": 2,
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
            "layers_per_block": 1,
        }
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        **sizes,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(tiny, 1024, scaling_factor=0.13025),
        text_encoder=_clip(tiny, 768, layers=12, heads=12),
        text_encoder_2=_clip(tiny, 1280, layers=32, heads=20, projected=True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **_NOISE),
    )


def _flux(tiny: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    sizes: dict[str, Any] = {}  # the class's own are FLUX.1's
    text = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    if tiny:
        text = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        sizes = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32}
        sizes |= {"attention_head_dim": 16, "num_attention_heads": 2, "pooled_projection_dim": 32}
        sizes |= {"axes_dims_rope": (4, 4, 8)}
    t5 = T5Config(d_kv=text["d_model"] // text["num_heads"], feed_forward_proj="gated-gelu", **text)
    t5.vocab_size = _VOCABULARY
    return FluxPipeline(
        vae=_autoencoder(tiny, 1024, scaling_factor=0.3611, shift_factor=0.1159, channels=16),
        text_encoder=_clip(tiny, 768, layers=12, heads=12),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        transformer=FluxTransformer2DModel(guidance_embeds=True, **sizes),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


_NOISE: Any = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _autoencoder(tiny: bool, side: int, *, channels: int = 4, **scale: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32,) * 4 if tiny else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=channels,
        sample_size=64 if tiny else side,
        **scale,
    )


def _clip(tiny: bool, width: int, *, layers: int, heads: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if tiny:
        width, layers, heads = 32, 1, 2
    config = CLIPTextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer")
