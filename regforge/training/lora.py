"""A linear layer with a LoRA beside it, as one operation.

peft computes `base(x) + lora_B(lora_A(x)) * scaling` as five, each with a gradient of its own, and
converts `x` to the precision of the LoRA and the result back. Here the LoRA is added in place, in
the precision of the frozen weight, and only the input and the narrow product are kept for the
gradient. The numbers are the same but for the order of sums. Knows peft's layer; knows nothing
about models or training.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def speed_up(module: nn.Module) -> None:
    """Let the LoRA layers of a module compute as above, where they are plain.

    DoRA, dropout and layers that are not linear stay peft's; where the frozen weight has 16 bits,
    they compute in them.
    """
    layers: list[Any] = [each for each in module.modules() if isinstance(each, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        if type(layer) is Linear and _is_plain(layer):
            layer.__class__ = LoraLinear
        elif weight.dtype in (torch.float16, torch.bfloat16):
            lower = torch.autocast(weight.device.type, weight.dtype)
            layer.forward = lower(layer.forward)


def _is_plain(layer: Any) -> bool:
    dropout = any(not isinstance(each, nn.Identity) for each in layer.lora_dropout.values())
    other = any(layer.lora_bias.values()) or layer.lora_variant or layer.fan_in_fan_out
    return not dropout and not other


class LoraLinear(Linear):
    """peft's layer with another forward pass while one LoRA is active."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `peft.tuners.lora.Linear`."""
        active = self.active_adapters
        other = bool(args or kwargs) or self.disable_adapters or self.merged or len(active) != 1
        if other or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        name, base = active[0], self.base_layer
        narrow, wide = self.lora_A[name].weight, self.lora_B[name].weight
        product: Tensor = _LinearWithLora.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, narrow, wide, self.scaling[name]
        )
        return product


class _LinearWithLora(torch.autograd.Function):
    """x W' + bias + scale (x A') B', whose weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        narrow: Tensor,
        wide: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a, b = narrow.to(weight.dtype), wide.to(weight.dtype)
        product = functional.linear(rows, weight, bias)
        inner = rows @ a.t()
        if scale != 1:
            inner *= scale
        product.addmm_(inner, b.t())
        ctx.save_for_backward(rows, weight, a, b, inner)
        ctx.scale, ctx.dtypes = scale, (x.dtype, narrow.dtype, wide.dtype)
        return product.view(*x.shape[:-1], product.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        of_x, of_narrow, of_wide = ctx.dtypes
        flat = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        of_inner = flat @ b
        if ctx.scale != 1:
            of_inner *= ctx.scale
        back = None
        if ctx.needs_input_grad[0]:
            back = (flat @ weight).addmm_(of_inner, a)
            back = back.view(*gradient.shape[:-1], back.shape[-1]).to(of_x)
        return (
            back,
            None,
            None,
            (of_inner.t() @ rows).to(of_narrow),
            (flat.t() @ inner).to(of_wide),
            None,
        )
