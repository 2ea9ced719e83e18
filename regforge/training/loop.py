"""One optimizer step after the other: what a batch costs, and how weights follow its gradient.

For each example: the mean squared error between prediction and target over all elements of its
latent, times the weight of its own time (1, or min-SNR's). Over an optimizer step:

    instance = mean over its instance images      prior = mean over its regularization images
    loss = instance + prior_weight * prior + drift_penalty * |W - W0|^2

The means are over the whole optimizer step, so it does not matter how its examples were divided
into batches. Everything random in a step follows from (seed, step), and learning rates are
functions of the step, so that a step is the same whether or not the run was stopped before it. The
host never waits for the device here: losses stay there until `Losses.read`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regforge.devices import pick_dtype
from regforge.images.encoding import stacked
from regforge.training.batches import Batch, TrainingSetup, number_of
from regforge.training.checkpoints import TrainingState, restore_optimizer
from regforge.training.processes import Processes
from regforge.training.weights import MovingAverage, Trainable
from regforge.words import did_you_mean

if TYPE_CHECKING:
    from regforge.recipe.training import Optimizer, TrainingRecipe
    from regforge.training.examples import Examples
    from regforge.training.families.base import Family

_SHORT = 512
"""Positions of a latent."""


def _on_device(batch: Batch, device: torch.device) -> Batch:
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
        embeddings={name: move(each) for name, each in batch.embeddings.items()},
    )


# ----------------------------------------------------------------------- optimizers and precision


def make_optimizer(
    groups: Iterable[dict[str, Any]], settings: Optimizer, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimizer, for groups with `params` and perhaps an `lr` of their own.

    Raises:
        TrainingSetup: There is no such optimizer, or its package is not installed.
    """
    common: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    made: torch.optim.Optimizer
    match settings.name.lower():
        case "adamw":
            fused = device.type in ("cuda", "cpu")
            made = torch.optim.AdamW(list(groups), **common, fused=fused)
        case "adamw8bit":
            package = _package("bitsandbytes", settings.name)
            made = package.optim.AdamW8bit(list(groups), **common)
        case "prodigy":
            package = _package("prodigyopt", settings.name)
            made = package.Prodigy(list(groups), **common, decouple=True, safeguard_warmup=True)
        case other:
            known = ("adamw", "adamw8bit", "prodigy")
            raise TrainingSetup(
                f"optimizer.name: there is no {settings.name!r}.{did_you_mean(other, known)}",
                hint=f"Known are {', '.join(known)}.",
            )
    for group in made.param_groups:
        group["base_lr"] = group["lr"]
    return made


def _package(name: str, optimizer: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise TrainingSetup(
            f"optimizer.name: {optimizer} needs {name}, which is not installed.",
            hint=f"pip install {name}, or use adamw.",
        ) from error


def learning_rate_factor(settings: Optimizer, step: int) -> float:
    """What the learning rate is multiplied by at a step, 0 and up.

    In `warmup_steps` it grows evenly to 1; then it stays (`constant`), or falls to 0 after the
    last step along a line (`linear`) or half a cosine (`cosine`).
    """
    warmup = min(settings.warmup_steps, settings.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, settings.steps - warmup)
    match settings.scheduler:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1.0 - done)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Precision:
    """Precision of frozen weights, and of the forward pass where that is lower than float32."""

    weights: torch.dtype
    forward: torch.dtype | None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context for forward passes.

        It does nothing where the weights have that precision already: autocast would convert what
        norms return to float32, and back for each layer after them.
        """
        if self.forward in (None, self.weights):
            return nullcontext()
        return torch.autocast(device.type, self.forward)


def precision_of(recipe: TrainingRecipe, device: torch.device) -> Precision:
    """The recipe's precision on a device, chosen as rendering chooses it.

    Weights that are all trained stay in float32, whatever the forward pass uses.

    Raises:
        DeviceError: The device does not have it.
    """
    dtype = pick_dtype(recipe.optimizer.precision, device, "optimizer.precision")
    forward = None if dtype is torch.float32 else dtype
    return Precision(torch.float32 if recipe.method.kind == "full" else dtype, forward)


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


# ---------------------------------------------------------------------------------------- the loop


class Loop:
    """Trains a family's weights on prepared examples, on a device in some precision."""

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
        settings, prior = recipe.optimizer, recipe.regularization
        self._settings = settings
        self._seed = recipe.seed
        self._family = family
        self._trainable = trainable
        self._examples = examples
        self._device = device
        self._precision = precision
        self._processes = processes or Processes()
        self._prior_weight = prior.prior_weight
        self._drift_penalty = 0.0 if recipe.method.kind == "embedding" else prior.drift_penalty
        self._teacher = trainable.teacher
        self._teaches_all = prior.target == "teacher"
        self._optimizer = make_optimizer(trainable.groups, settings, device)
        self._parameters: list[Tensor] = [
            parameter for group in self._optimizer.param_groups for parameter in group["params"]
        ]
        self._token_rows = list(family.token.parameters.values()) if family.token else []
        # Keeps float16 gradients from vanishing; does nothing for other precisions.
        float16 = precision.forward is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=float16)
        self._average = MovingAverage(trainable, settings.ema_decay) if settings.ema else None
        self._processes.agree([parameter.detach() for parameter in self._parameters])
        if settings.compile:
            family.denoiser.compile()

    @property
    def has_prior(self) -> bool:
        """Whether there is a prior loss."""
        return self._examples.batches.has_prior

    def step(self, step: int) -> tuple[Tensor, float]:
        """Do an optimizer step, 0 and up.

        Returns:
            On the device, float32 [3]: instance loss, prior loss and the length of the gradient
            before it was clipped, of this process, and [4] with |W - W0|^2 where that is penalized;
            and the learning rate of the first group.
        """
        factor = learning_rate_factor(self._settings, step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        # For dropout inside the model; what examples draw follows from their own numbers.
        torch.manual_seed(number_of(self._seed, "step", step, self._processes.index))
        parts = self._backward(step)
        self._average_gradients(parts)
        self._scaler.unscale_(self._optimizer)
        length = self._clip()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        if self._scaler.is_enabled():  # it has left out a step with infinite gradients
            length = torch.nan_to_num(length, posinf=0.0)
        values = torch.cat([parts[:2], length.detach().reshape(1).to(parts), parts[2:]])
        return values, float(self._optimizer.param_groups[0]["lr"])

    def _backward(self, step: int) -> Tensor:
        """Gradients of one step's loss; returns its two parts, and the drift if it is penalized."""
        batches = self._examples.batches
        prior_count = max(1, batches.regularization_per_step)
        sums = torch.zeros(2, device=self._device)
        for draws in batches.step(step):
            for batch in self._examples.tensors(draws):
                with _attention(batch, self._device, self._precision):
                    with self._precision.autocast(self._device):
                        losses = self.example_losses(_on_device(batch, self._device))
                    instance = losses[: batch.instances].sum() / batches.instances_per_step
                    prior = losses[batch.instances :].sum() / prior_count
                    loss = self._scaler.scale(instance + self._prior_weight * prior)
                    if loss.requires_grad:  # no caption may hold the new token, if that is all
                        loss.backward()
                sums += torch.stack([instance, prior]).detach()
        if not self._drift_penalty:
            return sums
        drift = torch.zeros(1, device=self._device)
        for change in self._trainable.drift():  # one by one: each frees what its gradient needs
            self._scaler.scale(self._drift_penalty * change).backward()
            drift += change.detach()
        return torch.cat([sums, drift])

    def example_losses(self, batch: Batch) -> Tensor:
        """The weighted error of each example, from one forward pass: float32 [N]."""
        family = self._family
        latents = family.latents(batch.moments, batch.sampling_noise)
        times = family.times(batch.uniform)
        noisy = family.noisy(latents, batch.noise, times)
        prediction = self._predict(batch, noisy, times, 0)
        target = family.target(latents, batch.noise, times).float()
        first = batch.instances if self._teaches_all else len(batch) - batch.twins
        if first < len(batch):
            with torch.no_grad(), self._teacher():
                taught = self._predict(batch, noisy, times, first)
            target = torch.cat([target[:first], taught.float()])
        errors = (prediction.float() - target).square().flatten(1).mean(1)
        return errors * family.weights(times, self._settings.min_snr_gamma).to(errors)

    def _predict(self, batch: Batch, noisy: Tensor, times: Tensor, start: int) -> Tensor:
        """The denoiser's prediction for the examples from one on."""
        known, numbers = batch.embeddings, range(start, len(batch))
        embeddings = {name: values[start:] for name, values in known.items()}
        if fresh := [number for number in batch.fresh if number >= start]:
            made = self._family.encode_captions([batch.captions[number] for number in fresh])
            each = [{name: values[number] for name, values in known.items()} for number in numbers]
            for number, one in zip(fresh, made, strict=True):
                as_known = {name: value.to(known.get(name, value)) for name, value in one.items()}
                each[number - start] = as_known
            embeddings = stacked(each)
        return self._family.predict(
            noisy[start:], times[start:], embeddings, batch.geometry[start:]
        )

    def _clip(self) -> Tensor:
        """Shorten the gradient if need be; returns its length before."""
        return torch.nn.utils.clip_grad_norm_(
            self._parameters, self._settings.max_grad_norm or float("inf")
        )

    def _average_gradients(self, parts: Tensor) -> None:
        several = self._processes.count > 1
        # A new token that no caption of the step held: for several processes it may be in others'.
        for parameter in self._parameters if several else self._token_rows:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if several:
            grads = [p.grad for p in self._parameters if p.grad is not None]
            self._processes.average([*grads, parts])

    def state(self, step: int) -> TrainingState:
        """Everything that `restore` needs after so many steps; its tensors are the live ones."""
        return TrainingState(
            step=step,
            weights=self._trainable.state_dict(),
            optimizer=self._optimizer.state_dict(),
            average=self._average.state_dict() if self._average else {},
            scaler=self._scaler.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Be as at the time of the state.

        Raises:
            CheckpointError: It is of another kind of training.
        """
        self._trainable.load_state_dict(state.weights)
        restore_optimizer(self._optimizer, state)
        if state.scaler:
            self._scaler.load_state_dict(dict(state.scaler))
        if self._average is not None and state.average:
            self._average.load_state_dict(state.average)

    @contextmanager
    def result(self) -> Iterator[None]:
        """While the block runs, the weights are those to be shown and saved: the average if any."""
        with self._average.applied() if self._average else nullcontext():
            yield


@dataclass(frozen=True)
class StepLosses:
    """What a step, counted from 1, cost: means over its instance and regularization images.

    `gradient` is its length before it was clipped, `rate` the first group's learning rate, `drift`
    |W - W0| before the step, where that is penalized.
    """

    step: int
    instance: float
    prior: float
    gradient: float
    rate: float
    drift: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the losses and the gradient are ordinary numbers."""
        return all(map(math.isfinite, (self.instance, self.prior, self.gradient)))


class Losses:
    """Buffers losses on the device; one transfer per read."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Tensor, float]] = []

    def add(self, step: int, values: Tensor, rate: float) -> None:
        """Buffer what `Loop.step` returned for a step, counted from 1."""
        self._waiting.append((step, values, rate))

    def read(self) -> list[StepLosses]:
        """Take everything out of the buffer; the host waits for the device."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        rows = torch.stack([values for _, values, _ in waiting]).tolist()
        return [
            StepLosses(
                step,
                instance,
                prior,
                gradient,
                rate,
                math.sqrt(max(drift[0], 0.0)) if drift else None,
            )
            for (step, _, rate), (instance, prior, gradient, *drift) in zip(
                waiting, rows, strict=True
            )
        ]
