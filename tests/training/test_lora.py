"""LoRA layers compute what peft's do."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.testing import assert_close

from regforge.recipe.training import Method
from regforge.training.weights import LoraLinear, Trainable, speed_up


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.bare = nn.Linear(6, 5, bias=False)
        self.conv = nn.Conv2d(3, 4, 3)


def layers(dtype: torch.dtype = torch.float32, *, fast: bool, **options: Any) -> nn.Module:
    """With a LoRA beside each layer, in float32, that does something."""
    torch.manual_seed(0)
    targets = ["linear", "bare", "conv"]
    config = LoraConfig(r=2, target_modules=targets, **{"lora_alpha": 3, **options})
    module = inject_adapter_in_model(config, Layers().to(dtype))
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    if fast:
        speed_up(module)
    return module


def computed(module: nn.Module, name: str, x: Tensor) -> dict[str, Tensor]:
    """What a layer returns, and all gradients."""
    x = x.clone().requires_grad_()
    result = module.get_submodule(name)(x)
    result.float().square().sum().backward()
    gradients = {key: each.grad for key, each in module.named_parameters() if each.requires_grad}
    found = {"result": result, "x": x.grad, **gradients}
    return {key: value for key, value in found.items() if value is not None}


@pytest.fixture(params=[(6,), (4, 6), (2, 3, 6), (0, 6)], ids=str)
def x(request: pytest.FixtureRequest) -> Iterator[Tensor]:
    torch.manual_seed(1)
    return torch.randn(request.param)


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 2}, {"use_rslora": True}])
@pytest.mark.parametrize("name", ["linear", "bare"])
def test_results_and_gradients_of_peft(name: str, options: dict[str, Any], x: Tensor) -> None:
    module = layers(fast=True, **options)
    assert type(module.get_submodule(name)) is LoraLinear
    found, expected = computed(module, name, x), computed(layers(fast=False, **options), name, x)
    assert len(found) == 4
    assert_close(found, expected)


def test_in_16_bits_masters_and_their_gradients_stay_float32_and_autocast_decides() -> None:
    x = torch.randn(40, 6)
    exact = computed(layers(fast=False), "linear", x)
    found = computed(layers(torch.bfloat16, fast=True), "linear", x.bfloat16())
    assert found["result"].dtype == found["x"].dtype == torch.bfloat16
    for name, value in found.items():
        if "lora_" in name:
            assert value.dtype == torch.float32
        assert (value.float() - exact[name]).norm() < 0.02 * exact[name].norm()
    kept = layers(torch.bfloat16, fast=True).get_submodule("linear")(x.requires_grad_())
    assert kept.dtype == torch.bfloat16  # whatever the input is
    module = layers(fast=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.get_submodule("linear")(torch.randn(3, 6)).dtype == torch.bfloat16


def test_the_base_is_the_base_while_the_lora_is_off() -> None:
    layer: Any = layers(fast=True).get_submodule("linear")
    x = torch.randn(3, 6)
    layer.enable_adapters(enabled=False)
    assert_close(layer(x), layer.base_layer(x), rtol=0, atol=0)
    layer.enable_adapters(enabled=True)
    assert (layer(x) - layer.base_layer(x)).abs().max() > 0.1


def test_merged_is_as_before_and_two_loras_add_up() -> None:
    layer: Any = layers(fast=True).get_submodule("linear")
    x = torch.randn(3, 6)
    before, base = layer(x), layer.base_layer(x)
    layer.merge()
    assert_close(layer(x), before)
    layer.unmerge()
    module = layers(fast=True)
    config = LoraConfig(r=2, target_modules=["linear"])
    inject_adapter_in_model(config, module, adapter_name="other")
    both: Any = module.get_submodule("linear")
    both.lora_A["other"].weight.data = both.lora_A["default"].weight.data
    both.lora_B["other"].weight.data = both.lora_B["default"].weight.data
    both.set_adapter(["default", "other"])
    scale = both.scaling["other"] / both.scaling["default"]
    assert_close(both(x), base + (1 + scale) * (before - base))


@pytest.mark.parametrize(
    ("name", "options"),
    [("linear", {"use_dora": True}), ("linear", {"lora_dropout": 0.5}), ("conv", {})],
)
def test_other_layers_are_pefts_in_their_own_precision(name: str, options: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 6, 6)
    for dtype in (torch.float32, torch.bfloat16):
        layer: Any = layers(dtype, fast=True, **options).get_submodule(name)
        assert type(layer).__module__ == peft.tuners.lora.layer.__name__
        seen = []
        layer.lora_A["default"].register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        assert layer(x.to(dtype)).dtype == dtype
        assert {each.dtype for each in seen} <= {dtype}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
def test_drift_is_the_square_of_the_whole_product(options: dict[str, Any]) -> None:
    module = layers(fast=True, **options)
    family: Any = SimpleNamespace(token=None)
    found = sum(Trainable(family, Method(), {"denoiser": module}, {}).drift())
    product, parameters = torch.zeros(()), dict(module.named_parameters())
    trained = [each for name, each in parameters.items() if "lora_" in name]
    for name in ("linear", "bare", "conv"):
        narrow, wide = (parameters[f"{name}.lora_{x}.default.weight"].flatten(1) for x in "AB")
        change = module.get_submodule(name).scaling["default"] * (wide @ narrow)
        peft_s = module.get_submodule(name).get_delta_weight("default")
        assert_close(change.view_as(peft_s), peft_s)
        product = product + change.square().sum()
    assert_close(found, product)
    gradients = [torch.autograd.grad(each, trained) for each in (found, product)]
    assert_close(*gradients, rtol=1e-4, atol=1e-4)
