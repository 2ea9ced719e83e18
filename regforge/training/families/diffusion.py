"""Noise as Stable Diffusion 1.x, 2.x and XL know it: 1000 steps, and a noise or v prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regforge.training.interface import FamilyError


class DiscreteNoise:
    """The noise schedule of a scheduler's configuration.

    At time t a latent is `sqrt(a[t]) * latent + sqrt(1 - a[t]) * noise`.

    Args:
        config: `scheduler.config`: betas, prediction type, zero terminal SNR.

    Attributes:
        prediction: `epsilon` or `v_prediction`.

    Raises:
        FamilyError: The denoiser predicts something else, or has another kind of time.
    """

    def __init__(self, config: Any) -> None:
        from diffusers import DDPMScheduler

        self.prediction: str = config.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise FamilyError(
                f"The base model predicts {self.prediction!r}, and training knows epsilon and "
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
        self._parts = torch.stack([signal, 1 - signal]).float()

    def times(self, uniform: Tensor) -> Tensor:
        """Every step is as likely as any other: int64 [N]."""
        count = self._parts.shape[1]
        return (uniform * count).long().clamp(0, count - 1)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents with noise."""
        signal_part, noise_part = self._factors(times, latents)
        return signal_part * latents + noise_part * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noise, or the velocity (arXiv 2202.00512, appendix D)."""
        if self.prediction == "epsilon":
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
        signal, noise = self._values(times)
        if self.prediction == "epsilon":  # gamma / SNR, without dividing by an SNR of 0
            return (min_snr_gamma * noise / signal).clamp(max=1.0)
        snr = signal / noise
        return snr.clamp(max=min_snr_gamma) / (snr + 1)

    def _values(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of signal and noise: float32 [N] each."""
        if self._parts.device != times.device:  # once: a copy at each step would be waited for
            self._parts = self._parts.to(times.device)
        signal, noise = self._parts[:, times]
        return signal, noise

    def _factors(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Their square roots, to be multiplied with batches like this one."""
        shape = (-1, *[1] * (like.dim() - 1))
        signal, noise = self._values(times)
        return signal.sqrt().view(shape), noise.sqrt().view(shape)
