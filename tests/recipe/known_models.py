"""The denoisers and text encoders of known models as they are, without memory: on `meta`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


def on_meta(make: Callable[[], Any]) -> Any:
    """A network of the real size in 16 bits."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return make()
    finally:
        torch.set_default_dtype(before)


def denoiser(name: str) -> Any:
    """Of a family, by its name in `regforge.recipe.memory.MODELS`."""
    import diffusers as d

    kind, settings = _DENOISERS[name]
    return on_meta(lambda: getattr(d, kind)(**settings))


_KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
_KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_DENOISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd2": (
        "UNet2DConditionModel",
        {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    ),
    "sdxl": ("UNet2DConditionModel", _SDXL),
    "sd3": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    ),
    "sd3.5": (
        "SD3Transformer2DModel",
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "qk_norm": "rms_norm",
        },
    ),
    "flux1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "flux2-klein-base-4b": (
        "Flux2Transformer2DModel",
        {**_KLEIN, "joint_attention_dim": 7680, "guidance_embeds": False},
    ),
    "flux2-klein-base-9b": (
        "Flux2Transformer2DModel",
        {**_KLEIN_9B, "joint_attention_dim": 12288, "guidance_embeds": False},
    ),
    "flux2-dev": ("Flux2Transformer2DModel", {}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "krea2": ("Krea2Transformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "sana": ("SanaTransformer2DModel", {}),
    "hidream": (
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "caption_channels": [4096, 4096],
            "llama_layers": [*range(32), *[31] * 16],
            "axes_dims_rope": (64, 32, 32),
        },
    ),
    "hunyuan-image": ("HunyuanImageTransformer2DModel", {"text_embed_2_dim": 1472}),
}


def encoder(name: str) -> Any:
    """A text encoder, by its name in `regforge.recipe.memory.ENCODERS`."""
    import transformers as t

    kind, config, settings = _ENCODERS[name]
    return on_meta(lambda: getattr(t, kind)(getattr(t, config)(**settings)))


def _clip(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "projection_dim": width,
        "num_attention_heads": width // 64,
    }


def _decoder(
    width: int, inner: int, layers: int, heads: tuple[int, int, int], words: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": words,
        "tie_word_embeddings": tied,
    }


def _seeing(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision}


_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_T5 = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip-l": ("CLIPTextModel", "CLIPTextConfig", _clip(768, 12)),
    "clip-h": ("CLIPTextModel", "CLIPTextConfig", _clip(1024, 23)),
    "clip-g": ("CLIPTextModelWithProjection", "CLIPTextConfig", _clip(1280, 32)),
    "t5-xxl": ("T5EncoderModel", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "gemma2-2b": (
        "Gemma2Model",
        "Gemma2Config",
        _decoder(2304, 9216, 26, (8, 4, 256), 256000, tied=True),
    ),
    "qwen3-4b": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        _decoder(2560, 9728, 36, (32, 8, 128), 151936, tied=True),
    ),
    "qwen3-8b": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        _decoder(4096, 12288, 36, (32, 8, 128), 151936, tied=False),
    ),
    "llama3.1-8b": (
        "LlamaForCausalLM",
        "LlamaConfig",
        _decoder(4096, 14336, 32, (32, 8, 128), 128256, tied=False),
    ),
    "qwen2.5-vl-7b": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        _seeing(
            {
                **_decoder(3584, 18944, 28, (28, 4, 128), 152064, tied=False),
                "rope_parameters": _SECTIONS,
            },
            {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        ),
    ),
    "qwen3-vl-4b": (
        "Qwen3VLModel",
        "Qwen3VLConfig",
        _seeing(
            {
                **_decoder(2560, 9728, 36, (32, 8, 128), 151936, tied=True),
                "rope_parameters": _SECTIONS,
            },
            {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2560,
            },
        ),
    ),
    "mistral-24b": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        _seeing(
            {
                "model_type": "mistral",
                **_decoder(5120, 32768, 40, (32, 8, 128), 131072, tied=False),
            },
            {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096},
        ),
    ),
}


# ------------------------------------------------------------------------------------ activations


def _empty(*shape: int) -> Any:
    import torch

    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


CALLS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "sd1": (512, lambda net: net(_empty(1, 4, 64, 64), _empty(1), _empty(1, 77, 768))),
    "sdxl": (
        1024,
        lambda net: net(
            _empty(1, 4, 128, 128),
            _empty(1),
            _empty(1, 77, 2048),
            added_cond_kwargs={"text_embeds": _empty(1, 1280), "time_ids": _empty(1, 6)},
        ),
    ),
    "flux1-dev": (
        1024,
        lambda net: net(
            *(_empty(1, 4096, 64), _empty(1, 512, 4096), _empty(1, 768), _empty(1)),
            *(_empty(4096, 3), _empty(512, 3), _empty(1)),
        ),
    ),
    "z-image": (1024, lambda net: net([_empty(16, 1, 128, 128)], _empty(1), [_empty(256, 2560)])),
}
"""A forward pass of a photo: the side of the photo, in pixels, and the call."""


class _Kept:
    """Bytes of the tensors that a forward pass keeps for the gradient, each storage once."""

    def __init__(self, net: Any) -> None:
        self._weights = {self._of(each) for each in net.parameters()}
        self._storages: dict[int, Any] = {}

    @staticmethod
    def _of(tensor: Any) -> int:
        return int(tensor.untyped_storage()._cdata)

    def keep(self, tensor: Any) -> Any:
        if self._of(tensor) not in self._weights:
            self._storages[self._of(tensor)] = tensor.untyped_storage()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


def kept_for_the_gradient(name: str, add_lora: Callable[[Any], None]) -> tuple[float, float]:
    """Bytes for each pixel that a denoiser with a LoRA keeps: all, and with checkpointing."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    side, call = CALLS[name]
    net = denoiser(name)
    net.requires_grad_(requires_grad=False).train()
    add_lora(net)
    everything, inputs, largest = _Kept(net), _Kept(net), [0]

    def noted(block: Any, *args: Any) -> Any:
        for each in args:
            if isinstance(each, torch.Tensor):
                inputs.keep(each)
        inside = _Kept(net)
        with saved_tensors_hooks(inside.keep, lambda tensor: tensor):
            result = block(*args)
        largest[0] = max(largest[0], inside.bytes)
        return result

    with _flash_attention():
        with saved_tensors_hooks(everything.keep, lambda tensor: tensor):
            call(net)
        net.enable_gradient_checkpointing(noted)
        outside = _Kept(net)
        with saved_tensors_hooks(outside.keep, lambda tensor: tensor):
            call(net)
    sparing = inputs.bytes + outside.bytes + largest[0]
    return everything.bytes / side**2, sparing / side**2


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attention that keeps its inputs and its output, and nothing else, as on a GPU."""
    import torch

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            output = query.new_empty(*query.shape[:-1], value.shape[-1])
            ctx.save_for_backward(query, key, value, output)
            return output

    def attend(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return Attention.apply(query, key, value)

    with (
        torch.device("meta"),
        patch("torch.nn.functional.scaled_dot_product_attention", attend),
        patch("torch.is_autocast_enabled", lambda *_: False),  # there is none on this device
    ):
        yield
