"""Tiny random pipelines of the families that learn by flow matching."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from images import drawing

from regforge.embedded import TINYWORLD


def build(kind: str, folder: Path) -> str:
    """The folder of a tiny model of a kind, one of `KINDS` or `DRAWN`."""
    import torch

    torch.manual_seed(0)
    {**KINDS, **DRAWN}[kind](folder)
    return str(folder)


def _tokenizer() -> Any:
    """One that can chat."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer", model_max_length=1200)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
    )
    return tokenizer


def _scheduler(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **more})


_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 2,
}


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**{**_VAE, "scaling_factor": 0.4, "shift_factor": 0.1, **more})


def _qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.5, 0.2, 0.1, 0.0],
        latents_std=[2.0, 1.5, 0.7, 1.1],
    )


def _language_model(layers: int = 2, width: int = 8) -> dict[str, Any]:
    return {
        "vocab_size": len(_tokenizer()),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 1200,
    }


def _chroma(folder: Path) -> None:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel
    from transformers import T5EncoderModel

    tokenizer = _tokenizer()
    ChromaPipeline(
        scheduler=_scheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=T5EncoderModel(drawing._t5_config(len(tokenizer), 16)),
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=8,
            approximator_layers=1,
        ),
    ).save_pretrained(folder)


def _flux2_parts(*, guided: bool) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(**_VAE)
    with torch.no_grad():
        vae.bn.running_mean.uniform_(-1, 1)
        vae.bn.running_var.uniform_(0.5, 4)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guided,
    )
    return {"vae": vae, "transformer": transformer, "scheduler": _scheduler()}


def _flux2_klein(folder: Path) -> None:
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    Flux2KleinPipeline(
        **_flux2_parts(guided=False),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_language_model(layers=27))),
        tokenizer=_tokenizer(),
    ).save_pretrained(folder)


def _flux2_dev(folder: Path) -> None:
    """With the embedded tokenizer in place of a processor, which would need torchvision."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **_language_model(layers=30)},
        vision_config={"model_type": "pixtral", "num_attention_heads": 2, **vision},
    )
    Flux2Pipeline(
        **_flux2_parts(guided=True),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=_tokenizer(),
    ).save_pretrained(folder)


def _qwen_image(folder: Path) -> None:
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {**_language_model(), "rope_parameters": _sections([1, 1, 0])}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=_vision())
    )
    QwenImagePipeline(
        scheduler=_scheduler(use_dynamic_shifting=True),
        vae=_qwen_vae(),
        text_encoder=encoder,
        tokenizer=_tokenizer(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 6, 6),
        ),
    ).save_pretrained(folder)


def _vision() -> dict[str, Any]:
    return {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 2,
        "out_hidden_size": 8,
        "patch_size": 14,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }


def _sections(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def _krea2(folder: Path) -> None:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text = {**_language_model(), "rope_parameters": _sections([1, 1, 0])}
    Krea2Pipeline(
        scheduler=_scheduler(use_dynamic_shifting=True),
        vae=_qwen_vae(),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=_vision())),
        tokenizer=_tokenizer(),
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=8,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    ).save_pretrained(folder)


def z_image(folder: Path) -> None:
    """A Z-Image folder."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    ZImagePipeline(
        scheduler=_scheduler(),
        vae=_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**_language_model())),
        tokenizer=_tokenizer(),
        transformer=ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
    ).save_pretrained(folder)


def _gemma(width: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**_language_model(width=width), query_pre_attn_scalar=4))


def _lumina2(folder: Path) -> None:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    Lumina2Pipeline(
        scheduler=_scheduler(),
        vae=_vae(
            # The pipeline counts on latents that are eight times smaller.
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
        ),
        text_encoder=_gemma(8),
        tokenizer=_tokenizer(),
        transformer=Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(300, 32, 32),
            cap_feat_dim=8,
        ),
    ).save_pretrained(folder)


def _sana(folder: Path) -> None:
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 4,
        decoder_block_types=("ResBlock",) * 4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        scaling_factor=0.4,
    )
    SanaPipeline(
        tokenizer=_tokenizer(),
        text_encoder=_gemma(8),
        vae=vae,
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
            sample_size=16,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)


def _aura_flow(folder: Path) -> None:
    import torch
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = _tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    with torch.no_grad():
        transformer.context_embedder.weight *= 20  # or captions would hardly count
    AuraFlowPipeline(
        scheduler=_scheduler(shift=1.73),
        vae=_vae(shift_factor=None),
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2
            )
        ),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def _hidream(folder: Path) -> None:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import (
        CLIPTextModelWithProjection,
        LlamaConfig,
        LlamaForCausalLM,
        T5EncoderModel,
    )

    tokenizer = _tokenizer()
    clip = drawing._text_config(len(tokenizer), 8, 8)
    clip.max_position_embeddings = 128
    HiDreamImagePipeline(
        scheduler=_scheduler(),
        vae=_vae(),
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(drawing._t5_config(len(tokenizer), 16)),
        tokenizer_3=tokenizer,
        text_encoder_4=LlamaForCausalLM(
            LlamaConfig(**_language_model(), attn_implementation="eager")
        ),
        tokenizer_4=_tokenizer(),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[16, 8],
            text_emb_dim=16,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
        ),
    ).save_pretrained(folder)


def _cogview4(folder: Path) -> None:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    CogView4Pipeline(
        tokenizer=_tokenizer(),
        text_encoder=GlmModel(GlmConfig(**_language_model(), pad_token_id=0)),
        vae=_vae(),
        transformer=CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(16, 16),
        ),
        scheduler=_scheduler(use_dynamic_shifting=True),
    ).save_pretrained(folder)


def _ernie(folder: Path) -> None:
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    ErnieImagePipeline(
        transformer=ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=8,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=_flux2_parts(guided=False)["vae"],
        text_encoder=Qwen3Model(Qwen3Config(**_language_model())),
        tokenizer=_tokenizer(),
        scheduler=_scheduler(),
    ).save_pretrained(folder)


def _hunyuan_image(folder: Path) -> None:
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        T5EncoderModel,
    )

    tokenizer = _tokenizer()
    text = {**_language_model(), "rope_parameters": _sections([1, 1, 0])}
    HunyuanImagePipeline(
        scheduler=_scheduler(),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=32,
            scaling_factor=0.4,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=_vision())
        ),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(drawing._t5_config(len(tokenizer), 16)),
        tokenizer_2=tokenizer,
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=8,
            text_embed_2_dim=16,
            rope_axes_dim=(8, 8),
        ),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
    ).save_pretrained(folder)


def _ovis_image(folder: Path) -> None:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    OvisImagePipeline(
        scheduler=_scheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**_language_model())),
        tokenizer=_tokenizer(),
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 6, 6),
        ),
    ).save_pretrained(folder)


def _pixart_sigma(folder: Path) -> None:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from transformers import T5EncoderModel

    tokenizer = _tokenizer()
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(drawing._t5_config(len(tokenizer), 16)),
        vae=_vae(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            num_layers=1,
            norm_num_groups=2,
            cross_attention_dim=16,
            sample_size=32,  # it knows a few alone
            caption_channels=16,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


DRAWN: dict[str, Callable[[Path], Any]] = {
    "cogview4": _cogview4,
    "ernie-image": _ernie,
    "hunyuan-image": _hunyuan_image,
    "ovis-image": _ovis_image,
    "pixart-sigma": _pixart_sigma,
}
"""Models that are drawn with and not trained."""

KINDS: dict[str, Callable[[Path], Any]] = {
    "sd3": drawing.sd3,
    "flux1": drawing.flux,
    "chroma": _chroma,
    "flux2": _flux2_klein,
    "flux2-dev": _flux2_dev,
    "qwen-image": _qwen_image,
    "krea2": _krea2,
    "z-image": z_image,
    "lumina2": _lumina2,
    "sana": _sana,
    "auraflow": _aura_flow,
    "hidream": _hidream,
}
