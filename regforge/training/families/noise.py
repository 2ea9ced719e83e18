"""Noise processes that families share: times, noisy latents, targets and weights of the loss.

`uniform` are numbers from 0 to 1 [N], `times` [N] in the model's units, `latents` and `noise`
[N, C, ...].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regforge.training.problems import FamilyError


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
