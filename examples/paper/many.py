"""Trains many LoRAs on one frozen model, in one forward pass.

K runs that differ in subject, regularization images and seed alone go side by side. Each has its
own LoRA, new token, AdamW moments, examples and noise, and they are those that `regforge train`
gives it; every trained tensor has one more axis in front, for the runs. The loop, the losses, the
optimizer and the checkpoints are regforge's own.

Row i of a batch, of its captions too, belongs to run i % K, wherever it comes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear, LoraLayer
from torch import Tensor
from torch.nn import functional

from regforge.devices import pick_device
from regforge.images.encoding import encode
from regforge.journal import Reporter
from regforge.recipe import TrainingRecipe
from regforge.training.batches import Batch, Batches, Draw
from regforge.training.examples import Examples
from regforge.training.families import open_family
from regforge.training.families.base import Family
from regforge.training.loop import Loop, precision_of
from regforge.training.tokens import TokenRows
from regforge.training.weights import Trainable, attach


def many_loop(recipes: Sequence[TrainingRecipe]) -> Loop:
    """The loop of many runs; its weights and states have an axis of the runs in front.

    Recipes differ in `subject`, `regularization.dataset` and `seed` at most, and train the text
    encoder, so that all captions are encoded at their step. Of a single one it is regforge's own.
    """
    first = recipes[0]
    device = pick_device(first.device, "device")
    precision = precision_of(first, device)
    states, examples = [], []
    for recipe in recipes:
        family = open_family(recipe, device, precision.weights)
        torch.manual_seed(recipe.seed)
        trainable = attach(family, recipe.method)
        states.append({name: value.clone() for name, value in trainable.state_dict().items()})
        own = Examples(recipe, family, device=device, reporter=Reporter(quiet=True))
        own.prepare()
        examples.append(own)
    if len(recipes) == 1:
        return Loop(first, family, trainable, own, device=device, precision=precision)
    _side_by_side(family, trainable, states)
    together: Any = _ManyExamples(examples)
    return _ManyLoop(first, family, trainable, together, device=device, precision=precision)


def _side_by_side(
    family: Family, trainable: Trainable, states: Sequence[dict[str, Tensor]]
) -> None:
    """Give a family's LoRA and new token, which one run has, to all runs."""
    for layer in chain(*(module.modules() for module in trainable.modules.values())):
        if isinstance(layer, LoraLayer):
            many: Any = layer
            many.__class__ = _ManyConv if isinstance(layer, Conv2d) else _ManyLinear
            many.__dict__.pop("forward", None)
    if family.token is not None:
        family.token.__class__ = _ManyTokenRows
    trainable.__class__ = _ManyTrainable
    for name, parameter in trainable.parameters.items():
        parameter.data = torch.stack([state[name] for state in states])
    # The family's own encodes empty captions once for all.
    family.encode_captions = lambda captions: encode(family.pipeline, captions, family.device)


class _ManyLoop(Loop):
    def _clip(self) -> Tensor:
        """Shorten each run's gradient by itself; returns the length of the longest."""
        grads = [each.grad for each in self._parameters if each.grad is not None]
        lengths = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        most = self._settings.max_grad_norm or float("inf")
        factors = (most / (lengths + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))
        return lengths.max()


@dataclass(frozen=True)
class _ManyBatches(Batches):
    """The draws of all runs, one after the other; counts are those of one run."""

    each: Sequence[Batches] = ()

    def step(self, step: int) -> Iterator[list[Draw]]:
        for together in zip(*(one.step(step) for one in self.each), strict=True):
            yield list(chain(*together))


class _ManyExamples:
    def __init__(self, each: Sequence[Examples]) -> None:
        self._each = each
        of_one = each[0].batches
        self.batches = _ManyBatches(**asdict(of_one), each=[one.batches for one in each])

    def tensors(self, draws: Sequence[Draw]) -> list[Batch]:
        """One batch of all runs."""
        size = len(draws) // len(self._each)
        of_runs = [
            batch
            for number, one in enumerate(self._each)
            for batch in one.tensors(draws[number * size : (number + 1) * size])
        ]
        first, runs = of_runs[0], len(of_runs)

        def mixed(name: str) -> Tensor:
            return torch.stack([getattr(batch, name) for batch in of_runs], 1).flatten(0, 1)

        def dealt(name: str) -> list[Any]:
            return list(chain(*zip(*(getattr(batch, name) for batch in of_runs), strict=True)))

        return [
            replace(
                first,
                **{name: mixed(name) for name in ("moments", "sampling_noise", "noise", "uniform")},
                **{name: dealt(name) for name in ("captions", "geometry")},
                **{name: getattr(first, name) * runs for name in ("instances", "twins")},
                fresh=range(len(draws)),
            )
        ]


class _ManyTrainable(Trainable):
    def drift(self) -> Iterator[Tensor]:
        """See `Trainable.drift`; the sum of all runs, of which each has its own gradient."""
        for module in self.modules.values():
            for layer in module.modules():
                if isinstance(layer, _ManyLinear | _ManyConv):
                    narrow, wide = (each.flatten(2) for each in _weights(layer, torch.float32))
                    yield ((narrow @ narrow.mT) * (wide.mT @ wide)).sum()


class _ManyTokenRows(TokenRows):
    def _with_rows(self, name: str, ids: Tensor, embedded: Tensor) -> Tensor:
        """As that of one run, with the rows of each caption's own."""
        if not self._hooked:
            return embedded
        rows = self.parameters[name]
        number = ids - self._first[name]
        is_token = (number >= 0) & (number < rows.shape[1])
        of_run = torch.arange(len(ids), device=ids.device) % len(rows)
        own = rows[of_run[:, None], number.clamp(0, rows.shape[1] - 1)]
        return torch.where(is_token[..., None], own.to(embedded.dtype), embedded)


class _ManyLinear(Linear):
    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """The LoRA's weights are [K, rank, in] and [K, out, rank]."""
        product: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return product
        narrow, wide = _weights(self, x.dtype)
        rows = x.reshape(len(x) // len(narrow), len(narrow), -1, x.shape[-1])
        added = rows @ narrow.transpose(1, 2) @ wide.transpose(1, 2)
        return product + added.view_as(product)


class _ManyConv(Conv2d):
    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """The LoRA's weights are [K, rank, in, h, w] and [K, out, rank, 1, 1]."""
        base: Any = self.base_layer
        product: Tensor = base(x)
        if self.disable_adapters:
            return product
        narrow, wide = _weights(self, x.dtype)
        of_runs = zip(x.unflatten(0, (-1, len(narrow))).unbind(1), narrow, strict=True)
        inner = torch.stack(  # quicker on a CPU than one grouped convolution
            [functional.conv2d(own, by, None, base.stride, base.padding) for own, by in of_runs], 1
        )
        added = wide.flatten(2) @ inner.flatten(3)
        return product + added.view_as(product)


def _weights(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    narrow, wide = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return narrow.to(dtype), (wide * layer.scaling["default"]).to(dtype)
