"""What families of models are to training, and what they share: noise processes, latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regforge.training.batches import Embeddings, FamilyError, Geometry

if TYPE_CHECKING:
    from regforge.recipe.training import TrainingRecipe


# -------------------------------------------------------------------------------------------- noise

# `uniform` are numbers from 0 to 1 [N], `times` [N] in the model's units, `latents` and `noise`
# [N, C, ...].


class DiscreteNoise:
    """1000 steps, and a noise or v prediction: Stable Diffusion 1.x, 2.x and XL.

    At time t a latent is `sqrt(a[t]) * latent + sqrt(1 - a[t]) * noise`.

    Args:
        config: `scheduler.config`: betas, prediction type, zero terminal SNR.

    Raises:
        FamilyError: The denoiser predicts something else, or has another kind of time.
    """

    def __init__(self, config: Any) -> None:
        from diffusers import DDPMScheduler

        self._prediction: str = config.get("prediction_type", "epsilon")
        if self._prediction not in ("epsilon", "v_prediction"):
            raise FamilyError(
                f"The base model predicts {self._prediction!r}, and training knows epsilon and "
                "v_prediction."
            )
        if str(config.get("_class_name", "")).startswith("EDM") or "sigma_data" in config:
            raise FamilyError(
                "The base model has continuous noise levels (EDM), which training does not know.",
                hint="Stable Diffusion 1.x, 2.x, XL and 3 can be trained.",
            )
        # One product of 1000 factors: float64 keeps the small ones near the end right.
        betas = DDPMScheduler.from_config(config).betas.double()
        signal = torch.cumprod(1 - betas, 0)
        self._variances = torch.stack([signal, 1 - signal]).float()

    def times(self, uniform: Tensor) -> Tensor:
        """Equally likely steps: int64 [N]."""
        count = self._variances.shape[1]
        return (uniform * count).long().clamp(0, count - 1)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See the class."""
        signal_part, noise_part = self._factors(times, latents)
        return signal_part * latents + noise_part * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noise, or the velocity (arXiv 2202.00512, appendix D)."""
        if self._prediction == "epsilon":
            return noise
        signal_part, noise_part = self._factors(times, latents)
        return signal_part * noise - noise_part * latents

    def weights(self, times: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Min-SNR weights, each example's from its own time: float32 [N].

        min(SNR, gamma) / SNR for noise and min(SNR, gamma) / (SNR + 1) for velocity, as in
        https://arxiv.org/abs/2303.09556 (section 3.4) and
        https://github.com/TiankaiHang/Min-SNR-Diffusion-Training. Where nothing of the signal is
        left (zero terminal SNR) that is 1 and 0.
        """
        if min_snr_gamma is None:
            return torch.ones(len(times), device=times.device)
        signal, noise = self._at(times)
        if self._prediction == "epsilon":  # gamma / SNR, without dividing by an SNR of 0
            return (min_snr_gamma * noise / signal).clamp(max=1.0)
        snr = signal / noise
        return snr.clamp(max=min_snr_gamma) / (snr + 1)

    def _at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of signal and noise: float32 [N] each."""
        if self._variances.device != times.device:  # once: a copy at each step would be waited for
            self._variances = self._variances.to(times.device)
        signal, noise = self._variances[:, times]
        return signal, noise

    def _factors(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Their square roots, to be multiplied with batches like this one."""
        shape = (-1, *[1] * (like.dim() - 1))
        signal, noise = self._at(times)
        return signal.sqrt().view(shape), noise.sqrt().view(shape)


class FlowMatching:
    """A straight line from the latents to the noise: Stable Diffusion 3 and 3.5.

    Times are 0 (no noise) to 1000 (nothing but noise).

    Args:
        config: `scheduler.config`: the number of steps, and the shift.
    """

    def __init__(self, config: Any) -> None:
        self._units = float(config.num_train_timesteps)
        # A shift that depends on the image's size belongs to drawing, as in diffusers' scripts.
        self._time_shift = 1.0 if config.get("use_dynamic_shifting") else float(config.shift)

    def times(self, uniform: Tensor) -> Tensor:
        """Logit-normal times, shifted like the scheduler's: float32 [N].

        https://arxiv.org/abs/2403.03206, sections 3.1 and 5.3.2; as in diffusers'
        train_dreambooth_sd3.py, but not rounded to 1000 steps.
        """
        share = torch.sigmoid(torch.special.ndtri(uniform))
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


# ----------------------------------------------------------------------------------------- families


# So many captions are encoded at a time: a text encoder's activations are small, T5's are not.
_CAPTIONS_AT_ONCE = 16


class Family(ABC):
    """A loaded base model, ready to be trained.

    Knows its latents, its text embeddings, its time, its target and how its denoiser is called;
    nothing about datasets, losses over a batch, optimizers or steps.

    Attributes:
        pipeline: The diffusers pipeline whose modules these are; validation draws with it.
        source: The folder that it was loaded from.
        variant: The weights variant that it was loaded from, such as `fp16`.
        name: `sd`, `sdxl` or `sd3`.
        denoiser_name: What the pipeline calls the denoiser.
        encoder_names: What it calls its text encoders.
        trainable_encoders: Those of them that `method.text_encoder` trains.
        lora_targets: Layers of the denoiser that get a LoRA, by the end of their names.
        text_lora_targets: Likewise, of the text encoders.
        resolution: Side of the square images it was made for, in pixels.
        side_multiple: Heights and widths are multiples of it, in pixels.
    """

    name: ClassVar[str]
    denoiser_name: ClassVar[str] = "unet"
    encoder_names: ClassVar[Sequence[str]] = ("text_encoder",)
    trainable_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    lora_targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")
    text_lora_targets: ClassVar[Sequence[str]] = ("q_proj", "k_proj", "v_proj", "out_proj")

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

    # ------------------------------------------------------------------- what each family defines

    @classmethod
    def check(cls, recipe: TrainingRecipe) -> None:
        """Refuse a recipe that asks for what this family cannot do.

        Raises:
            FamilyError: It does.
        """
        del recipe  # most can do all

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

    @abstractmethod
    def _encode(self, captions: list[str]) -> Embeddings:
        """Embeddings of some captions, with a batch axis."""

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
        """The autoencoder's distribution of latents, before shift and scale.

        Computed in float32: many autoencoders overflow or blur in float16. From float
        [N, 3, H, W], -1 to 1, to mean and standard deviation, float32 [N, 2, C, H/8, W/8].
        """
        with self._exact_vae() as vae:
            moments = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
            return torch.stack([moments.mean, moments.std], dim=1)

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
        """Embeddings of captions, each computed as it would be alone.

        Gradients flow where a text encoder is being trained. The keys are the pipeline's own names
        of these arguments, so `pipeline(prompt_embeds=..., ...)` takes them, stacked; and as
        `negative_...` those of an empty caption.

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
