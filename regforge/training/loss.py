"""What a batch costs: the error of each example, and how errors become one loss.

For each example: mean squared error between prediction and target over all elements of its
latent, times the weight of its own time (1, or min-SNR's). Over an optimizer step:

    instance = mean over its photos           prior = mean over its regularization images
    loss = instance + prior_weight * prior

The means are over the whole optimizer step. So it does not matter how its examples were divided
into batches: 1 batch of 8 is 8 batches of 1, and groups of different shapes count by their size.
Knows nothing about optimizers, devices or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regforge.training.interface import Batch, Embeddings, Family, Geometry


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        prior_weight: Weight of the regularization images' loss.
        min_snr_gamma: See `Family.weights`.
        teacher: Opens a context in which the family's modules are the untouched base model; its
            predictions are then what regularization images teach. None: they teach themselves.
    """

    prior_weight: float = 1.0
    min_snr_gamma: float | None = None
    teacher: Callable[[], AbstractContextManager[object]] | None = None

    def example_losses(self, family: Family, batch: Batch) -> Tensor:
        """The weighted error of each example, from one forward pass: float32 [N]."""
        latents = family.latents(batch.moments, batch.sampling_noise)
        times = family.times(batch.uniform)
        noisy = family.noisy(latents, batch.noise, times)
        prediction = _predict(family, batch, noisy, times)
        target = family.target(latents, batch.noise, times).float()
        if self.teacher is not None and batch.photos < len(batch):
            regularization = _from(batch, batch.photos)
            with torch.no_grad(), self.teacher():
                taught = _predict(
                    family, regularization, noisy[batch.photos :], times[batch.photos :]
                )
            target = torch.cat([target[: batch.photos], taught.float()])
        errors = (prediction.float() - target).square().flatten(1).mean(1)
        return errors * family.weights(times, self.min_snr_gamma).to(errors)

    def parts(self, losses: Tensor, photos: int, of_photos: int, of_images: int) -> Tensor:
        """What a batch adds to the means of its optimizer step.

        Args:
            losses: As `example_losses` returned.
            photos: How many of them are photos' (the first ones).
            of_photos: Photos in the whole optimizer step.
            of_images: Regularization images in it; 0 for none.

        Returns:
            float32 [2]: shares of instance loss and prior loss.
        """
        instance = losses[:photos].sum() / of_photos
        prior = losses[photos:].sum() / max(1, of_images)
        return torch.stack([instance, prior])

    def total(self, parts: Tensor) -> Tensor:
        """The loss whose gradient is followed."""
        return parts[0] + self.prior_weight * parts[1]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; the host does not wait for them to arrive."""

    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return replace(
        batch,
        moments=move(batch.moments),
        sampling_noise=move(batch.sampling_noise),
        noise=move(batch.noise),
        uniform=move(batch.uniform),
        embeddings=batch.embeddings and {name: move(e) for name, e in batch.embeddings.items()},
    )


def _predict(family: Family, batch: Batch, noisy: Tensor, times: Tensor) -> Tensor:
    embeddings = batch.embeddings
    if embeddings is None:
        embeddings = _stacked(family.encode_captions(batch.captions))
    geometry: Sequence[Geometry] = batch.geometry
    return family.predict(noisy, times, embeddings, geometry)


def _stacked(embeddings: Sequence[Embeddings]) -> Embeddings:
    return {name: torch.stack([each[name] for each in embeddings]) for name in embeddings[0]}


def _from(batch: Batch, start: int) -> Batch:
    """The examples from one on."""
    embeddings = batch.embeddings
    return Batch(
        moments=batch.moments[start:],
        sampling_noise=batch.sampling_noise[start:],
        noise=batch.noise[start:],
        uniform=batch.uniform[start:],
        captions=batch.captions[start:],
        embeddings=embeddings and {name: each[start:] for name, each in embeddings.items()},
        geometry=batch.geometry[start:],
        photos=max(0, batch.photos - start),
    )
