"""Transformers that learn by flow matching: one family, and what each of these models adds to it.

What they are given and return is what diffusers' pipelines (0.42) hand to their schedulers, which
tests hold; layers that get a LoRA, times and latents are those of its scripts, where there is one
(examples/dreambooth/train_dreambooth_lora_*.py at commit 58eb52c). The file of each is named there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

from regforge.images.encoding import as_called
from regforge.images.finding import FoundModel
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Embeddings, Geometry
from regforge.training.families.base import Family

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_JOINT = tuple(f"attn.{name}" for name in (*_ATTENTION, *_ADDED))
_FEED_FORWARD = tuple(f"{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", 2))


class Point(NamedTuple):
    """What a denoiser is asked about.

    Attributes:
        x: Noisy latents, as tokens if they are packed.
        share: How much of them is noise, 0 to 1: float32 [N].
        words: Embeddings as the pipeline's call takes them.
        size: Height and width of the latents.
    """

    x: Tensor
    share: Tensor
    words: Mapping[str, Any]
    size: Sequence[int]


class Flow(Family):
    """A straight line from the latents to the noise.

    Times are 0 (no noise) to 1000 (nothing but noise), like the scheduler's.

    Attributes:
        packed: The denoiser is given latents as tokens, of squares of so many numbers a side; None
            if as they are.
        multiple: Heights and widths of latents are multiples of it.
        logit_normal: Whether times are drawn more often in the middle, unless the recipe says.
        guidance: What a model is trained at that was distilled from guidance; 1 is none. As in the
            examples of diffusers' README_flux.md.
    """

    denoiser_name = "transformer"
    trainable_encoders: ClassVar[Sequence[str]] = ()
    lora_targets: Sequence[str] = _ATTENTION
    packed: ClassVar[int | None] = None
    multiple: ClassVar[int] = 2
    logit_normal: ClassVar[bool] = False
    guidance: ClassVar[float] = 1.0

    def __init__(
        self, pipeline: Any, source: FoundModel, device: torch.device, recipe: TrainingRecipe
    ) -> None:
        super().__init__(pipeline, source, device, recipe)
        sampling = recipe.optimizer.timestep_sampling
        self._middle = self.logit_normal if sampling == "auto" else sampling == "logit_normal"
        config = pipeline.scheduler.config
        self._units = float(config.num_train_timesteps)
        # A shift that depends on the image's size belongs to drawing, as in diffusers' scripts.
        dynamic = config.get("use_dynamic_shifting")
        self._time_shift = 1.0 if dynamic else float(config.get("shift", 1.0))

    def _call(self, at: Point) -> Tensor:
        """The direction from latents to noise, in the form of `at.x`."""
        usual = {"hidden_states": at.x, "timestep": at.share}
        usual["encoder_hidden_states"] = at.words["prompt_embeds"]
        return self._predicted(**usual | self._conditions(at))

    def _conditions(self, at: Point) -> dict[str, Any]:
        """What the denoiser is given besides, or instead."""
        del at
        return {}

    # ------------------------------------------------------------------------------------- noise

    def times(self, uniform: Tensor) -> Tensor:
        """Times shifted like the scheduler's: float32 [N].

        https://arxiv.org/abs/2403.03206, sections 3.1 and 5.3.2; not rounded to 1000 steps.
        """
        share = torch.sigmoid(torch.special.ndtri(uniform)) if self._middle else uniform
        shifted = self._time_shift * share / (1 + (self._time_shift - 1) * share)
        return shifted * self._units

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The point of the line at each time."""
        share = (times / self._units).view(-1, *[1] * (latents.dim() - 1))
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The direction of the line, the same at all times."""
        del times
        return noise - latents

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Ones: how often times are drawn weights them."""
        del min_snr_gamma
        return torch.ones(len(times), device=times.device)

    # ---------------------------------------------------------------------------------- denoiser

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """See `Family`."""
        del geometry  # they are not conditioned on sizes
        words = {
            name: self._as_computed(value) if value.is_floating_point() else value
            for name, value in embeddings.items()
        }
        x, size = self._as_computed(noisy), noisy.shape[-2:]
        if self.packed:
            x = pixel_unshuffle(x, self.packed).flatten(2).transpose(1, 2)
        at = Point(x, times / self._units, as_called(self.pipeline, words), size)
        return self.unpacked(self._call(at), size)

    def unpacked(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """See `Family`."""
        if not self.packed:
            return latents
        rows, columns = (side // self.packed for side in size)
        tokens = latents.transpose(1, 2).unflatten(2, (rows, columns))
        return pixel_shuffle(tokens, self.packed)

    def _guidance(self, x: Tensor) -> Tensor | None:
        if not self.settings.get("guidance_embeds"):
            return None
        return torch.full((len(x),), self.guidance, device=x.device)

    def _places(self, *sides: int) -> Tensor:
        """Positions of tokens in a grid, row by row: [tokens, axes]."""
        return torch.cartesian_prod(*(torch.arange(n, device=self.device) for n in sides))

    def _latent_side(self) -> int:
        own = getattr(self.pipeline, "default_sample_size", None)
        return own or self.settings.get("sample_size") or 128

    def _latent_multiple(self) -> int:
        return self.multiple


class StableDiffusion3(Flow):
    """Stable Diffusion 3 and 3.5 (stable_diffusion_3/pipeline_stable_diffusion_3.py)."""

    name = "sd3"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trainable_encoders = ("text_encoder", "text_encoder_2")
    lora_targets = _JOINT
    logit_normal = True

    def _latent_multiple(self) -> int:
        size: int = self.settings.patch_size
        return size

    def _conditions(self, at: Point) -> dict[str, Any]:
        pooled = at.words["pooled_prompt_embeds"]
        return {"timestep": at.share * 1000, "pooled_projections": pooled}


class Flux(Flow):
    """FLUX.1 and Krea's (flux/pipeline_flux.py): CLIP, which can be trained, and T5."""

    name = "flux1"
    encoder_names: ClassVar[Sequence[str]] = ("text_encoder", "text_encoder_2")
    trainable_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    lora_targets = (*_JOINT, *_FEED_FORWARD)
    packed = 2

    def _conditions(self, at: Point) -> dict[str, Any]:
        return {
            **self._tokens(at),
            "pooled_projections": at.words["pooled_prompt_embeds"],
            "guidance": self._guidance(at.x),
        }

    def _tokens(self, at: Point) -> dict[str, Tensor]:
        images = self._places(1, *(side // 2 for side in at.size))
        texts = images.new_zeros(at.words["prompt_embeds"].shape[1], 3)
        return {"img_ids": images, "txt_ids": texts}


class Chroma(Flux):
    """Chroma1 (chroma/pipeline_chroma.py): no CLIP and no guidance, but T5's mask."""

    name = "chroma"
    encoder_names = ("text_encoder",)
    trainable_encoders = ()

    def _conditions(self, at: Point) -> dict[str, Any]:
        texts = at.words["prompt_attention_mask"]
        mask = torch.cat([texts, texts.new_ones(at.x.shape[:2])], dim=1)

        def checkpointed(block: Any, *args: Any) -> Any:
            """Without the mask, which diffusers 0.42 forgets there, single blocks get three."""
            whole = partial(block, attention_mask=mask) if len(args) == 3 else block
            return checkpoint(whole, *args, use_reentrant=False)

        denoiser: Any = self.denoiser
        denoiser._gradient_checkpointing_func = checkpointed
        return {**self._tokens(at), "attention_mask": mask}


class Flux2(Flow):
    """FLUX.2 klein and dev (flux2/pipeline_flux2_klein.py, pipeline_flux2.py): a language model.

    Latents are squares of four numbers, normalized by the autoencoder's running statistics.
    """

    name = "flux2"
    packed = 1

    def __init__(
        self, pipeline: Any, source: FoundModel, device: torch.device, recipe: TrainingRecipe
    ) -> None:
        super().__init__(pipeline, source, device, recipe)
        self.pixels_per_latent *= 2
        norm, epsilon = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
        self._shift = norm.running_mean.float().view(1, -1, 1, 1)
        self._scale = (norm.running_var.float() + epsilon).rsqrt().view(1, -1, 1, 1)
        single = range(self.settings.num_single_layers)
        out = (f"single_transformer_blocks.{number}.attn.to_out" for number in single)
        self.lora_targets = (*_ATTENTION, "to_qkv_mlp_proj", *out)

    def _moments(self, vae: Any, pixels: Tensor) -> Tensor:
        return pixel_unshuffle(super()._moments(vae, pixels), 2)

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return super()._pixels(vae, pixel_shuffle(latents, 2))

    def _conditions(self, at: Point) -> dict[str, Any]:
        return {
            "guidance": self._guidance(at.x),
            "txt_ids": self._places(1, 1, 1, at.words["prompt_embeds"].shape[1]),
            "img_ids": self._places(1, *at.size, 1),
        }


class QwenImage(Flow):
    """Qwen-Image (qwenimage/pipeline_qwenimage.py): an autoencoder of videos, of one frame here."""

    name = "qwen-image"
    packed = 2

    def _moments(self, vae: Any, pixels: Tensor) -> Tensor:
        return super()._moments(vae, pixels[:, :, None])[:, :, :, 0]

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return super()._pixels(vae, latents[:, :, None])[:, :, 0]

    def _conditions(self, at: Point) -> dict[str, Any]:
        return {
            "guidance": self._guidance(at.x),
            "encoder_hidden_states_mask": at.words["prompt_embeds_mask"],
            "img_shapes": [[(1, *(side // 2 for side in at.size))]] * len(at.x),
        }


class Krea2(QwenImage):
    """Krea 2 (krea2/pipeline_krea2.py): several layers of Qwen3-VL, and Qwen-Image's latents."""

    name = "krea2"
    lora_targets = (
        *(*_ATTENTION, "to_gate", "ff.up", "ff.down", "img_in", "final_layer.linear"),
        *("text_fusion.projector", "txt_in.linear_1", "txt_in.linear_2", "time_mod_proj"),
        *("time_embed.linear_1", "time_embed.linear_2"),
    )

    def _conditions(self, at: Point) -> dict[str, Any]:
        images = self._places(1, *(side // 2 for side in at.size))
        texts = images.new_zeros(at.words["prompt_embeds"].shape[1], 3)
        return {
            "encoder_attention_mask": at.words["prompt_embeds_mask"],
            "position_ids": torch.cat([texts, images]),
        }


class ZImage(Flow):
    """Z-Image (z_image/pipeline_z_image.py), whose time runs from noise to image."""

    name = "z-image"

    def _call(self, at: Point) -> Tensor:
        images, texts = list(at.x[:, :, None]), at.words["prompt_embeds"]
        found = self.denoiser(images, 1 - at.share, texts, return_dict=False)[0]
        return -torch.stack(list(found))[:, :, 0]


class Lumina2(Flow):
    """Lumina Image 2 (lumina2/pipeline_lumina2.py), whose time runs from noise to image."""

    name = "lumina2"

    def _call(self, at: Point) -> Tensor:
        return -super()._call(at._replace(share=1 - at.share))

    def _conditions(self, at: Point) -> dict[str, Any]:
        return {"encoder_attention_mask": at.words["prompt_attention_mask"]}


class Sana(Flow):
    """Sana (sana/pipeline_sana.py): an autoencoder without a distribution, 32 times smaller."""

    name = "sana"
    lora_targets = ("to_q", "to_k", "to_v")
    multiple = 1

    def _moments(self, vae: Any, pixels: Tensor) -> Tensor:
        mean = vae.encode(pixels).latent
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)

    def _conditions(self, at: Point) -> dict[str, Any]:
        time = at.share * 1000 * self.settings.timestep_scale
        return {"timestep": time, "encoder_attention_mask": at.words["prompt_attention_mask"]}


class AuraFlow(Flow):
    """AuraFlow (aura_flow/pipeline_aura_flow.py); diffusers has no script to train it."""

    name = "auraflow"
    lora_targets = (*_ATTENTION, *_ADDED)

    def _latent_side(self) -> int:
        return 128  # its configuration says 64, and it was made for 1024 pixels


class HiDream(Flow):
    """HiDream-I1 (hidream_image/pipeline_hidream_image.py): two CLIPs, T5 and all of Llama."""

    name = "hidream"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    lora_targets = ("to_q", "to_k", "to_v", "to_out")

    def _prepare(self, denoiser: Any) -> None:
        # Or it would leave its output in patches while it is trained; as in diffusers' script.
        denoiser.register_to_config(force_inference_output=True)
        for module in denoiser.modules():
            if hasattr(module, "_force_inference_output"):
                module._force_inference_output = True

    def _call(self, at: Point) -> Tensor:
        return -self._predicted(
            hidden_states=at.x,
            timesteps=at.share * 1000,
            encoder_hidden_states_t5=at.words["prompt_embeds_t5"],
            encoder_hidden_states_llama3=at.words["prompt_embeds_llama3"],
            pooled_embeds=at.words["pooled_prompt_embeds"],
        )
