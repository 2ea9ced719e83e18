"""The architectures of the embedded pipeline."""

from __future__ import annotations

from typing import Any

SIDE = 96
LATENT_CHANNELS = 16
TEXT_WIDTH = 192
TEXT_LENGTH = 48


def autoencoder() -> Any:
    """AutoencoderKL, 8x smaller a side, 2.6M parameters.

    Few channels at full resolution: that is where a CPU spends its time.
    """
    from diffusers import AutoencoderKL

    channels = (16, 32, 64, 128)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def text_encoder(tokenizer: Any) -> Any:
    """CLIPTextModel, 4 layers of width 192, 48 tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


def unet() -> Any:
    """UNet2DConditionModel on 12 x 12 latents, 9M parameters.

    Attention only at 6 x 6: at 12 x 12 it costs a third of the speed. Instead
    `addition_embed_type="text"` gives every layer a summary of the caption beside the timestep,
    computed by the UNet itself, so that pipelines and training scripts need not know.
    """
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        attention_head_dim=4,
        use_linear_projection=True,
    )
    torch.nn.init.zeros_(model.conv_out.weight)
    torch.nn.init.zeros_(model.conv_out.bias)
    # The caption's summary must not drown the timestep's embedding at the start.
    torch.nn.init.constant_(model.add_embedding.norm2.weight, 0.3)
    return model


def noise_schedule() -> Any:
    """The diffusion process: v-prediction with zero terminal SNR.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    arXiv 2305.08891: without it, images can be neither very bright nor very dark.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing steps, but pipelines warn about any other value
    )


def draft_decoder() -> Any:
    """A throw-away decoder that works at a quarter of the resolution.

    Training the encoder against it is four times faster than against the real decoder, which is
    then trained on the finished latents and need not be ready before the UNet can start.
    """
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.GroupNorm(8, channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )

        def forward(self, x: Any) -> Any:
            return x + self.body(x)

    return nn.Sequential(
        nn.Conv2d(LATENT_CHANNELS, 128, 3, padding=1),
        Residual(128),
        nn.Conv2d(128, 4 * 64, 1),
        nn.PixelShuffle(2),
        Residual(64),
        nn.SiLU(),
        nn.Conv2d(64, 3 * 16, 3, padding=1),
        nn.PixelShuffle(4),
    )
