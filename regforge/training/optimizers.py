"""Optimizers by name, learning rates by step, and the precision of the forward pass.

Learning rates are functions of the step number alone, so that a resumed run needs no state of a
scheduler.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from regforge.devices import pick_dtype
from regforge.training.problems import TrainingSetup
from regforge.words import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from regforge.recipe.training import Optimizer, TrainingRecipe

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


def make_optimizer(
    groups: Iterable[dict[str, Any]], settings: Optimizer, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimizer.

    Args:
        groups: Each with `params` and `lr`.
        settings: Name, betas, weight decay.
        device: Where the parameters are.

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
            raise TrainingSetup(
                f"optimizer.name: there is no {settings.name!r}.{did_you_mean(other, OPTIMIZERS)}",
                hint=f"Known are {', '.join(OPTIMIZERS)}.",
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


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rates of a step; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


@dataclass(frozen=True)
class Precision:
    """Of what numbers are.

    Attributes:
        weights: Of frozen weights.
        forward: Of the forward pass where that is lower than float32, else None.
    """

    weights: torch.dtype
    forward: torch.dtype | None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context for forward passes.

        It does nothing where the weights have that precision already: autocast would convert what
        norms return to float32, and back for each layer after them.
        """
        if self.forward in (None, self.weights):
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.forward)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Keeps float16 gradients from vanishing; does nothing for other precisions."""
        return torch.amp.GradScaler(device.type, enabled=self.forward is torch.float16)


def precision_of(recipe: TrainingRecipe, device: torch.device) -> Precision:
    """The recipe's precision on a device, chosen as rendering chooses it.

    Weights that are all trained stay in float32, whatever the forward pass uses.

    Raises:
        DeviceError: The device does not have it.
    """
    dtype = pick_dtype(recipe.optimizer.precision, device, "optimizer.precision")
    forward = None if dtype is torch.float32 else dtype
    return Precision(torch.float32 if recipe.method.kind == "full" else dtype, forward)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors that the optimizer changes, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
