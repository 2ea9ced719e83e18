"""What families of models are to training, and what they share: latents and captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regforge.devices import free_memory
from regforge.images.encoding import encode, encode_negative
from regforge.images.finding import FoundModel
from regforge.images.loading import load_part
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Embeddings, FamilyError, Geometry

if TYPE_CHECKING:
    from regforge.training.tokens import TokenRows

# So many captions are encoded at a time: a text encoder's activations are small, T5's are not.
_CAPTIONS_AT_ONCE = 16


class Family(ABC):
    """A base model, ready to be trained.

    Knows its latents, its text embeddings, its time, its target and how its denoiser is called;
    nothing about datasets, losses over a batch, optimizers or steps.

    Large models do not fit on a device as a whole. So each part goes there when it is first used,
    the denoiser is not even loaded before, and text encoders and autoencoder can be sent away.

    Attributes:
        pipeline: The diffusers pipeline whose modules these are; validation draws with it.
        source: What it was loaded from.
        device: Where it computes.
        variant: The weights variant that it was loaded from, such as `fp16`.
        name: Such as `sdxl` or `flux1`.
        denoiser_name: What the pipeline calls the denoiser.
        encoder_names: What it calls its text encoders.
        trainable_encoders: Those of them that `method.text_encoder` trains.
        lora_targets: Layers of the denoiser that get a LoRA, by the end of their names.
        text_lora_targets: Likewise, of the text encoders.
        resolution: Side of the square images it was made for, in pixels.
        side_multiple: Heights and widths are multiples of it, in pixels.
        pixels_per_latent: Pixels a side that one number of a latent stands for.
        token: The new token of its CLIP text encoders, if it was given one.
    """

    name: ClassVar[str]
    denoiser_name: ClassVar[str] = "unet"
    encoder_names: ClassVar[Sequence[str]] = ("text_encoder",)
    trainable_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    text_lora_targets: ClassVar[Sequence[str]] = ("q_proj", "k_proj", "v_proj", "out_proj")

    def __init__(
        self, pipeline: Any, source: FoundModel, device: torch.device, recipe: TrainingRecipe
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self.device = device
        self.variant = recipe.variant
        self._quantize = recipe.method.quantize
        self.token: TokenRows | None = None
        for module in (pipeline.vae, *self.text_encoders.values()):
            module.requires_grad_(requires_grad=False).eval()
        config = pipeline.vae.config
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self.resolution: int = self._latent_side() * pipeline.vae_scale_factor
        self.side_multiple: int = self._latent_multiple() * pipeline.vae_scale_factor
        self._shift = self._per_channel(config, "latents_mean", getattr(config, "shift_factor", 0))
        deviation = self._per_channel(config, "latents_std", 1)
        self._scale = getattr(config, "scaling_factor", 1) / deviation

    # ------------------------------------------------------------------- what each family defines

    @abstractmethod
    def times(self, uniform: Tensor) -> Tensor:
        """Times to train at, from numbers drawn evenly out of 0 to 1: [N] in the model's units."""

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents with noise at some times."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should predict."""

    @abstractmethod
    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Weight of each example's loss: float32 [N]; ones without min-SNR."""

    @abstractmethod
    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """What the denoiser predicts: [N, C, h, w]."""

    def unpacked(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """Latents as they are between the pipeline's steps, [N, C, h, w]; `size` is (h, w)."""
        del size
        return latents

    def _predicted(self, *args: Any, **values: Any) -> Tensor:
        """What the denoiser returns."""
        predicted: Tensor = self.denoiser(*args, **values, return_dict=False)[0]
        return predicted

    def _moments(self, vae: Any, pixels: Tensor) -> Tensor:
        """See `encode_images`; the autoencoder is in float32."""
        moments = vae.encode(pixels).latent_dist
        return torch.stack([moments.mean, moments.std], dim=1)

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """See `decode`; shift and scale are taken off already."""
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    # --------------------------------------------------------------------------------- modules

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer, loaded when it is first asked for."""
        module: Any = getattr(self.pipeline, self.denoiser_name)
        if module.device.type == "meta":
            dtype, name = self.pipeline.vae.dtype, self.denoiser_name
            module = load_part(self.source, name, dtype, self.variant, self._quantize)
            module.requires_grad_(requires_grad=False).eval().to(self.device)
            self._prepare(module)
            self.pipeline.register_modules(**{self.denoiser_name: module})
        denoiser: nn.Module = module
        return denoiser

    def _prepare(self, denoiser: Any) -> None:
        """Set up a denoiser that was just loaded; most are as they should be."""
        del denoiser

    @property
    def settings(self) -> Any:
        """The denoiser's configuration."""
        return getattr(self.pipeline, self.denoiser_name).config

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """By the pipeline's names for them; without those that were released or never there."""
        found = {name: getattr(self.pipeline, name, None) for name in self.encoder_names}
        return {name: module for name, module in found.items() if module is not None}

    def release_text_encoders(self) -> None:
        """Give their memory back. From now on `encode_captions` cannot be called."""
        for name in self.text_encoders:
            setattr(self.pipeline, name, None)
        free_memory()

    def put_vae_away(self) -> None:
        """Keep the autoencoder in main memory until it is used again."""
        self.pipeline.vae.to("cpu")
        free_memory()

    def _latent_side(self) -> int:
        """Side of the latents it was made for."""
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
        """The autoencoder's distribution of latents, before shift and scale.

        Computed in float32: many autoencoders overflow or blur in float16. From float
        [N, 3, H, W], -1 to 1, to mean and standard deviation, float32 [N, 2, C, H/8, W/8].
        """
        with self._exact_vae() as vae:
            return self._moments(vae, pixels.to(vae.device, torch.float32))

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents as the denoiser knows them: a sample of each distribution, shifted and scaled.

        `moments` are as `encode_images` returned, `noise` is normal, [N, C, h, w].
        """
        shift, scale = self._norm(moments)
        return (moments[:, 0] + moments[:, 1] * noise - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents as the denoiser knows them: float32 [N, 3, H, W], about -1 to 1."""
        with self._exact_vae() as vae:
            latents = latents.to(vae.device, torch.float32)
            shift, scale = self._norm(latents)
            # One by one: in float32 an image of 1024 pixels takes gigabytes.
            each = (latents / scale + shift).split(1)
            return torch.cat([self._pixels(vae, one) for one in each])

    @contextmanager
    def _exact_vae(self) -> Iterator[Any]:
        vae = self.pipeline.vae.to(self.device)
        dtype = vae.dtype
        in_precision(vae, torch.float32)
        try:
            with torch.autocast(vae.device.type, enabled=False):
                yield vae
        finally:
            in_precision(vae, dtype)

    # -------------------------------------------------------------------------------- captions

    def encode_captions(self, captions: Sequence[str]) -> list[Embeddings]:
        """Embeddings of captions, each computed as it would be alone.

        Gradients flow where a text encoder is being trained. An empty caption is what the pipeline
        guides away from where it is given no negative prompt. See `regforge.images.encoding`.

        Raises:
            FamilyError: The text encoders were released.
        """
        encoders = self.text_encoders.values()
        if not encoders:
            raise FamilyError("The text encoders were released; captions cannot be encoded.")
        for encoder in encoders:
            encoder.to(self.device)
        trained = self.token is not None
        trained |= any(p.requires_grad for encoder in encoders for p in encoder.parameters())
        said = [caption for caption in captions if caption]
        found: list[Embeddings] = []
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()), quiet():
            for start in range(0, len(said), _CAPTIONS_AT_ONCE):
                batch = said[start : start + _CAPTIONS_AT_ONCE]
                found += encode(self.pipeline, batch, self.device)
            nothing = {}
            if len(said) < len(captions):
                nothing = encode_negative(self.pipeline, None, self.device)
        each = iter(found)
        return [next(each) if caption else nothing for caption in captions]

    def _as_computed(self, value: Tensor) -> Tensor:
        """A tensor in the precision of the denoiser's weights."""
        denoiser: Any = self.denoiser
        return value.to(self.device, denoiser.dtype)  # of nf4 the first weight is no number

    # ---------------------------------------------------------------------------------- saving

    def save_lora(
        self,
        folder: Path,
        layers: Mapping[str, Mapping[str, Tensor]],
        metadata: Mapping[str, Any],
    ) -> Path:
        """Write LoRA weights as `pipeline.load_lora_weights` takes them; returns the file.

        `layers` is peft's state dict and `metadata` its configuration of each module.
        """
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
