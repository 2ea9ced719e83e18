"""What the parts of training share.

    Draw     (order)      which image, and the number that all its randomness follows from
    Batch    (examples)   the tensors of some draws, on the CPU
    Family   (families)   what differs between kinds of models, and nothing else

A family knows its latents, its text embeddings, its time, its target and how its denoiser is
called. It knows nothing about datasets, losses over a batch, optimizers or steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from regforge.errors import RegforgeError
from regforge.training.order import Draw

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Embeddings = dict[str, "Tensor"]
"""What the denoiser is told about one caption, without a batch axis; or about a batch, with it."""


class FamilyError(RegforgeError):
    """A base model that cannot be trained."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which part of an image a latent shows; SDXL is told, others are not.

    Attributes:
        original: Height and width of the whole image, in pixels, before it was resized.
        top_left: Where the crop begins (y, x), in pixels of the resized image.
        target: Height and width of the crop, in pixels.
    """

    original: tuple[int, int]
    top_left: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Some examples whose latents have one shape: photos first, then regularization images.

    Attributes:
        moments: float32 [N, 2, C, h, w]: what `Family.encode_images` said of each crop.
        sampling_noise: float32 [N, C, h, w], normal: which latents are drawn from the moments.
        noise: float32 [N, C, h, w], normal: what is added to the latents.
        uniform: float32 [N], 0 to 1: at which time.
        captions: What each example is trained with; empty where the caption was dropped.
        embeddings: Of the captions, with a batch axis; None while a text encoder is trained.
        geometry: Which part of its image each example shows.
        photos: How many of the examples are photos of the subject.
    """

    moments: Tensor
    sampling_noise: Tensor
    noise: Tensor
    uniform: Tensor
    captions: Sequence[str]
    embeddings: Embeddings | None
    geometry: Sequence[Geometry]
    photos: int

    def __len__(self) -> int:
        return len(self.captions)


class Examples(Protocol):
    """The photos and regularization images of a training run, ready to be drawn.

    Attributes:
        photos: How many photos there are.
        images: How many regularization images; 0 for none.
        revision: The regularization dataset's commit on the Hub, if it is from there.
        notes: What a person should know about them, a sentence each.
    """

    photos: int
    images: int
    revision: str | None
    notes: Sequence[str]

    def prepare(self) -> None:
        """Compute all latents and text embeddings that can be kept, before the first step.

        Afterwards neither the autoencoder nor frozen text encoders are needed any more, unless
        `data.cache` is `none`: then nothing is kept.
        """
        ...

    def batches(self, draws: Sequence[Draw]) -> list[Batch]:
        """The tensors of some draws, those of one shape together.

        What an example is depends on its draw and the recipe alone: not on the other draws, and
        not on whether latents and embeddings are cached.
        """
        ...


class Family(Protocol):
    """A loaded base model, ready to be trained.

    Attributes:
        name: `sd`, `sdxl` or `sd3`.
        pipeline: The diffusers pipeline whose modules these are; validation draws with it.
        resolution: Side of the square images it was made for, in pixels.
        side_multiple: Heights and widths are multiples of it, in pixels.
        lora_targets: Layers of the denoiser that get a LoRA, by the end of their names.
        text_lora_targets: Likewise, of the text encoders.
        denoiser_name: What the pipeline calls the denoiser.
        trainable_encoders: The text encoders that `method.text_encoder` trains, by name.
        source: The folder that it was loaded from.
        variant: The weights variant that it was loaded from.
    """

    name: str
    pipeline: Any
    source: Path
    variant: str | None
    resolution: int
    side_multiple: int
    lora_targets: Sequence[str]
    text_lora_targets: Sequence[str]
    denoiser_name: str
    trainable_encoders: Sequence[str]

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        ...

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """By the pipeline's names for them (`text_encoder`, `text_encoder_2`, ...)."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """The autoencoder's distribution of latents.

        Args:
            pixels: float [N, 3, H, W], -1 to 1.

        Returns:
            float32 [N, 2, C, H/8, W/8]: mean and standard deviation, before shift and scale.
        """
        ...

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents as the denoiser knows them: one sample of each distribution, shifted and scaled.

        Args:
            moments: As `encode_images` returned.
            noise: Normal, [N, C, h, w].
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents as the denoiser knows them: float32 [N, 3, H, W], about -1 to 1."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Embeddings]:
        """Embeddings of captions, each computed as it would be alone.

        Gradients flow where a text encoder is being trained. The keys are the names that the
        pipeline has for these arguments, so that it can draw from them.
        """
        ...

    def release_text_encoders(self) -> None:
        """Give their memory back. From now on `encode_captions` cannot be called."""
        ...

    def times(self, uniform: Tensor) -> Tensor:
        """Times to train at, from numbers drawn evenly out of 0 to 1: [N] in the model's units."""
        ...

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents with noise at some times."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should predict."""
        ...

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Weight of each example's loss: float32 [N]; ones without min-SNR."""
        ...

    def predict(
        self, noisy: Tensor, times: Tensor, embeddings: Embeddings, geometry: Sequence[Geometry]
    ) -> Tensor:
        """What the denoiser predicts: [N, C, h, w]."""
        ...

    def save_lora(
        self,
        folder: Path,
        layers: Mapping[str, Mapping[str, torch.Tensor]],
        metadata: Mapping[str, Any],
    ) -> Path:
        """Write LoRA weights as `pipeline.load_lora_weights` takes them.

        Args:
            folder: Where `pytorch_lora_weights.safetensors` goes.
            layers: By module (`denoiser`, `text_encoder`, ...), peft's state dict.
            metadata: By module, the LoRA's configuration.
        """
        ...
