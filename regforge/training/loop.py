"""One optimizer step after the other.

The host never waits for the device here: losses stay there until somebody reads them, some steps
at a time (`Losses`). Everything random in a step follows from (seed, step), so that a step is the
same whether or not the run was stopped before it. Knows nothing about files, progress or people.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regforge.training.checkpoints import Snapshot, restore_optimizer
from regforge.training.loss import Objective, on_device
from regforge.training.optimizers import (
    Precision,
    learning_rate_factor,
    make_optimizer,
    parameters_of,
    set_learning_rate,
)
from regforge.training.order import Batches, number_of
from regforge.training.processes import Processes
from regforge.training.weights import Average, Trainable

if TYPE_CHECKING:
    from regforge.recipe.training import TrainingRecipe
    from regforge.training.interface import Batch, Examples, Family

_SHORT = 512
"""Positions of a latent."""


class Loop:
    """Trains a family's weights on examples.

    Args:
        recipe: What to do.
        family: The base model.
        trainable: What of it is trained.
        examples: Prepared.
        device: Where all of it happens.
        precision: Of the forward pass.
        processes: Who else trains.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        family: Family,
        trainable: Trainable,
        examples: Examples,
        *,
        device: torch.device,
        precision: Precision,
        processes: Processes | None = None,
    ) -> None:
        settings, regularization = recipe.optimizer, recipe.regularization
        self._settings = settings
        self._seed = recipe.seed
        self._family = family
        self._trainable = trainable
        self._examples = examples
        self._device = device
        self._precision = precision
        self._processes = processes or Processes()
        self._batches = Batches(
            photos=examples.photos,
            images=examples.images,
            batch_size=settings.batch_size,
            per_instance=regularization.per_instance,
            accumulation=settings.gradient_accumulation,
            seed=recipe.seed,
            processes=self._processes.count,
            process=self._processes.index,
        )
        self._objective = Objective(
            prior_weight=regularization.prior_weight,
            min_snr_gamma=settings.min_snr_gamma,
            teacher=trainable.teacher if regularization.target == "teacher" else None,
        )
        self._optimizer = make_optimizer(trainable.groups, settings, device)
        self._parameters = parameters_of(self._optimizer)
        self._scaler = precision.scaler(device)
        self._average = Average(trainable, settings.ema_decay) if settings.ema else None
        self._processes.agree([parameter.detach() for parameter in self._parameters])
        if settings.compile:
            family.denoiser.compile()

    @property
    def has_prior(self) -> bool:
        """Whether there is a prior loss."""
        return self._examples.images > 0

    def step(self, step: int) -> tuple[Tensor, float]:
        """Do one optimizer step.

        Args:
            step: 0 and up.

        Returns:
            On the device, float32 [3]: instance loss, prior loss and the length of the gradient
            before it was clipped, of this process; and the learning rate.
        """
        rate = set_learning_rate(self._optimizer, learning_rate_factor(self._settings, step))
        # For dropout inside the model; what examples draw follows from their own numbers.
        torch.manual_seed(number_of(self._seed, "step", step, self._processes.index))
        parts = self._backward(step)
        self._average_gradients(parts)
        self._scaler.unscale_(self._optimizer)
        length = torch.nn.utils.clip_grad_norm_(
            self._parameters, self._settings.max_grad_norm or float("inf")
        )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        if self._scaler.is_enabled():  # it has left out a step with infinite gradients
            length = torch.nan_to_num(length, posinf=0.0)
        return torch.cat([parts, length.detach().reshape(1).to(parts)]), rate

    def _backward(self, step: int) -> Tensor:
        """Gradients of one step's loss; returns its two parts."""
        batches, plan = self._batches, self._settings
        of_photos = plan.batch_size * plan.gradient_accumulation
        of_images = of_photos * batches.per_instance if batches.images else 0
        sums = torch.zeros(2, device=self._device)
        for draws in batches.step(step):
            for batch in self._examples.batches(draws):
                with _attention(batch, self._device, self._precision):
                    with self._precision.autocast(self._device):
                        losses = self._objective.example_losses(
                            self._family, on_device(batch, self._device)
                        )
                    parts = self._objective.parts(losses, batch.photos, of_photos, of_images)
                    self._scaler.scale(self._objective.total(parts)).backward()
                sums += parts.detach()
        return sums

    def _average_gradients(self, parts: Tensor) -> None:
        if self._processes.count == 1:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._processes.average([*(p.grad for p in self._parameters if p.grad is not None), parts])

    def snapshot(self, step: int, extra: Mapping[str, Any]) -> Snapshot:
        """Everything that `restore` needs; its tensors are the live ones.

        Args:
            step: How many steps are done.
            extra: What else to remember.
        """
        return Snapshot(
            step=step,
            weights=self._trainable.state_dict(),
            optimizer=self._optimizer.state_dict(),
            average=self._average.state_dict() if self._average else {},
            scaler=self._scaler.state_dict(),
            extra=extra,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Be as at the time of the snapshot.

        Raises:
            CheckpointError: It is of another kind of training.
        """
        self._trainable.load_state_dict(snapshot.weights)
        restore_optimizer(self._optimizer, snapshot)
        if snapshot.scaler:
            self._scaler.load_state_dict(dict(snapshot.scaler))
        if self._average is not None and snapshot.average:
            self._average.load_state_dict(snapshot.average)

    @contextmanager
    def result(self) -> Iterator[None]:
        """While the block runs, the weights are those to be shown and saved: the average if any."""
        if self._average is None:
            yield
        else:
            with self._average.applied():
                yield


def _attention(
    batch: Batch, device: torch.device, precision: Precision
) -> AbstractContextManager[None]:
    """How attention is computed while this block runs.

    On a CPU, in 16 bits, the gradient of the fused kernel takes three times as long as the plain
    one's for short sequences, and less for long ones.
    """
    short = batch.noise[0, 0].numel() <= _SHORT
    if device.type != "cpu" or precision.forward is None or not short:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class StepLosses:
    """What one step cost.

    Attributes:
        step: Its number, from 1.
        instance: Mean over its photos.
        prior: Mean over its regularization images; 0 without any.
        gradient: Length of the gradient before it was clipped.
        rate: Learning rate of the first parameter group.
    """

    step: int
    instance: float
    prior: float
    gradient: float
    rate: float

    @property
    def is_finite(self) -> bool:
        """Whether the losses and the gradient are ordinary numbers."""
        return all(map(math.isfinite, (self.instance, self.prior, self.gradient)))


class Losses:
    """Losses that are still on the device, until somebody reads them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Tensor, float]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, step: int, values: Tensor, rate: float) -> None:
        """What `Loop.step` returned for a step, counted from 1."""
        self._waiting.append((step, values, rate))

    def read(self) -> list[StepLosses]:
        """All that wait; the host waits for the device."""
        if not self._waiting:
            return []
        rows = torch.stack([values for _, values, _ in self._waiting]).tolist()
        read = [
            StepLosses(step, instance, prior, gradient, rate)
            for (step, _, rate), (instance, prior, gradient) in zip(
                self._waiting, rows, strict=True
            )
        ]
        self._waiting.clear()
        return read
