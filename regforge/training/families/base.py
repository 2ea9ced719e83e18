"""What all families of latent diffusion models share: autoencoder, captions, modules.

Knows diffusers' pipelines. Each family adds its time, its target and how its denoiser is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regforge.training.interface import Embeddings, FamilyError

# So many captions are encoded at a time: a text encoder's activations are small, T5's are not.
_CAPTIONS_AT_ONCE = 16


class LatentFamily:
    """A loaded diffusers pipeline as `regforge.training.interface.Family` describes it.

    Attributes:
        pipeline: The diffusers pipeline.
        source: The folder that it was loaded from.
        variant: The weights variant that it was loaded from, such as `fp16`.
        resolution: Side of the square images it was made for, in pixels.
        side_multiple: Heights and widths are multiples of it, in pixels.
    """

    name: str
    denoiser_name: str = "unet"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    trainable_encoders: Sequence[str] = ("text_encoder",)
    """Those of the text encoders that `method.text_encoder` trains."""
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    text_lora_targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj")

    def __init__(self, pipeline: Any, source: Path, variant: str | None = None) -> None:
        self.pipeline = pipeline
        self.source = source
        self.variant = variant
        for module in (self.denoiser, pipeline.vae, *self.text_encoders.values()):
            module.requires_grad_(requires_grad=False)
            module.eval()
        config = pipeline.vae.config
        self.resolution: int = self._sample_size() * pipeline.vae_scale_factor
        self.side_multiple: int = self._latent_multiple() * pipeline.vae_scale_factor
        self._shift = self._per_channel(config, "latents_mean", getattr(config, "shift_factor", 0))
        deviation = self._per_channel(config, "latents_std", 1)
        self._scale = config.scaling_factor / deviation

    # --------------------------------------------------------------------------------- modules

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        module: nn.Module = getattr(self.pipeline, self.denoiser_name)
        return module

    @property
    def settings(self) -> Any:
        """The denoiser's configuration."""
        return self.denoiser.config

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """By the pipeline's names for them; without those that were released or never there."""
        found = {name: getattr(self.pipeline, name, None) for name in self.encoder_names}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    def release_text_encoders(self) -> None:
        """Give their memory back. From now on `encode_captions` cannot be called."""
        for name in self.text_encoders:
            setattr(self.pipeline, name, None)

    def _sample_size(self) -> int:
        size = self.settings.sample_size
        if not isinstance(size, int):
            raise FamilyError(
                "The base model was not made for square images; its denoiser says so."
            )
        return size

    def _latent_multiple(self) -> int:
        """Sides of latents are multiples of this."""
        multiple: int = 2 ** (len(self.settings.down_block_types) - 1)
        return multiple

    # --------------------------------------------------------------------------------- latents

    @staticmethod
    def _per_channel(config: Any, name: str, otherwise: float | None) -> Tensor:
        values = getattr(config, name, None)
        return torch.tensor(values if values is not None else [otherwise or 0.0]).view(1, -1, 1, 1)

    def _norm(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of latents, where the others are."""
        if self._scale.device != like.device:  # once: a copy at each step would be waited for
            self._shift, self._scale = self._shift.to(like.device), self._scale.to(like.device)
        return self._shift, self._scale

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """See `Family`. Computed in float32: many autoencoders overflow or blur in float16."""
        with self._exact_vae() as vae:
            moments = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
            return torch.stack([moments.mean, moments.std], dim=1)

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """See `Family`."""
        shift, scale = self._norm(moments)
        return (moments[:, 0] + moments[:, 1] * noise - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents as the denoiser knows them: float32 [N, 3, H, W], about -1 to 1."""
        with self._exact_vae() as vae:
            latents = latents.to(vae.device, torch.float32)
            shift, scale = self._norm(latents)
            pixels: Tensor = vae.decode(latents / scale + shift, return_dict=False)[0]
            return pixels

    @contextmanager
    def _exact_vae(self) -> Iterator[Any]:
        vae = self.pipeline.vae
        dtype = vae.dtype
        in_precision(vae, torch.float32)
        try:
            with torch.autocast(vae.device.type, enabled=False):
                yield vae
        finally:
            in_precision(vae, dtype)

    # -------------------------------------------------------------------------------- captions

    def encode_captions(self, captions: Sequence[str]) -> list[Embeddings]:
        """See `Family`. The keys are the pipeline's own names of these arguments.

        So `pipeline(prompt_embeds=..., ...)` takes them, stacked; and as `negative_...` those of
        an empty caption.

        Raises:
            FamilyError: The text encoders were released.
        """
        encoders = self.text_encoders.values()
        if not encoders:
            raise FamilyError("The text encoders were released; captions cannot be encoded.")
        trained = any(p.requires_grad for encoder in encoders for p in encoder.parameters())
        found: list[Embeddings] = []
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()), quiet():
            for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
                batch = list(captions[start : start + _CAPTIONS_AT_ONCE])
                embeddings = self._encode(batch)
                found += [
                    {name: values[row] for name, values in embeddings.items()}
                    for row in range(len(batch))
                ]
        return found

    def _encode(self, captions: list[str]) -> Embeddings:
        """Embeddings of some captions, with a batch axis."""
        raise NotImplementedError

    def _as_computed(self, value: Tensor) -> Tensor:
        """A tensor in the precision of the denoiser's weights."""
        return value.to(self.device, next(self.denoiser.parameters()).dtype)

    # ---------------------------------------------------------------------------------- saving

    def save_lora(
        self,
        folder: Path,
        layers: Mapping[str, Mapping[str, Tensor]],
        metadata: Mapping[str, Any],
    ) -> Path:
        """See `Family`."""
        arguments: dict[str, Any] = {}
        for module, state in layers.items():
            theirs = self.denoiser_name if module == "denoiser" else module
            arguments[f"{theirs}_lora_layers"] = {
                portable(theirs, key): value.detach().cpu().contiguous()
                for key, value in state.items()
            }
            arguments[f"{theirs}_lora_adapter_metadata"] = dict(metadata[module])
        self.pipeline.save_lora_weights(folder, safe_serialization=True, **arguments)
        return folder / "pytorch_lora_weights.safetensors"


def portable(module: str, key: str) -> str:
    """The name of a text encoder's weight that every version of transformers understands.

    Since version 5 the layers of CLIPTextModel are no longer below `text_model`; diffusers takes
    that part away again where there is none.
    """
    if module.startswith("text_encoder") and not key.startswith("text_model."):
        return f"text_model.{key}"
    return key


def in_precision(module: Any, dtype: torch.dtype) -> None:
    """Convert a module's weights; diffusers warns of that even where it has nothing to warn of."""
    if module.dtype != dtype:
        with quiet():
            module.to(dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Without diffusers' warnings, such as one for each caption that is cut off, at each step."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
