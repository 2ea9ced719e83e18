"""Which weights of a family are trained: a LoRA beside its modules, all of them, or a new token.

Trained weights are float32 whatever the precision of the others: small steps vanish in 16 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from regforge.recipe.training import Method
from regforge.training.batches import TrainingSetup
from regforge.training.checkpoints import CheckpointError
from regforge.training.families.base import Family, in_precision
from regforge.words import did_you_mean

_ADAPTER = "default"
"""What peft calls our LoRA."""

DENOISER = "denoiser"


def attach(family: Family, method: Method, *, keep_base: bool = False) -> Trainable:
    """Make a fresh family's modules ready to be trained.

    A new LoRA begins with random numbers from torch's global generator. It changes nothing until
    it is trained. For `Trainable.teacher` and `Trainable.drift` a full fine-tune has to
    `keep_base`, a copy of the modules.

    Raises:
        TrainingSetup: `method.targets` names no layer.
    """
    denoiser = family.denoiser
    modules: dict[str, nn.Module] = {} if method.kind == "embedding" else {DENOISER: denoiser}
    if method.text_encoder:
        encoders = family.text_encoders
        modules |= {name: encoders[name] for name in family.trainable_encoders if name in encoders}
    copies: dict[str, nn.Module] = {}
    if method.kind == "lora":
        _check_targets(denoiser, method.targets or ())
        for name, module in modules.items():
            theirs = family.lora_targets if name == DENOISER else family.text_lora_targets
            chosen = method.targets if name == DENOISER else None
            _add_lora(module, method, chosen or theirs)
    elif method.kind == "full":
        if keep_base:
            copies = {name: copy.deepcopy(module) for name, module in modules.items()}
        for module in modules.values():
            in_precision(module, torch.float32)
            module.requires_grad_(requires_grad=True)
    return Trainable(family, method, modules, copies)


class Trainable:
    """The trained weights of a family.

    `modules` are those that hold some, by name: `denoiser`, and text encoders by the pipeline's;
    `untouched` copies of them from before, where they are fine-tuned in full.
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        modules: Mapping[str, nn.Module],
        untouched: Mapping[str, nn.Module],
    ) -> None:
        self.family = family
        self.method = method
        self.modules = modules
        self._untouched = untouched
        for module in modules.values():
            module.train()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, float32, as `module.name`."""
        return {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        } | self._token_rows

    @property
    def _token_rows(self) -> dict[str, nn.Parameter]:
        token = self.family.token
        rows = {} if token is None else token.parameters
        return {f"{name}.new_token": parameter for name, parameter in rows.items()}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """For an optimizer; a group has an `lr` only where it is not the optimizer's own.

        A new token's comes last.
        """
        own: list[nn.Parameter] = []
        text: list[nn.Parameter] = []
        rows = self._token_rows
        for name, parameter in self.parameters.items():
            if name not in rows:
                (own if name.startswith(f"{DENOISER}.") else text).append(parameter)
        groups: list[dict[str, Any]] = [{"params": each} for each in (own, text) if each]
        if len(groups) > 1 and self.method.text_encoder_lr is not None:
            groups[1]["lr"] = self.method.text_encoder_lr
        if self.family.token is not None:
            # Without decay, which would draw it from where the class noun lies to nowhere.
            lr = self.family.token.lr
            groups.append({"params": list(rows.values()), "lr": lr, "weight_decay": 0.0})
        return groups

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        for name, each in {DENOISER: self.family.denoiser, **self.modules}.items():
            module: Any = each
            if name == DENOISER:
                module.enable_gradient_checkpointing()
            elif hasattr(module, "activation_checkpointing_enable"):  # newer transformers
                module.activation_checkpointing_enable()
            else:
                module.gradient_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """While the block runs, the family predicts and encodes like the untouched base model.

        Nothing can be trained through it.
        """
        with self.family.token.untrained() if self.family.token else nullcontext():
            if self.method.kind != "full":
                self._enable_loras(enabled=False)
                try:
                    yield
                finally:
                    self._enable_loras(enabled=True)
                return
            if not self._untouched:
                raise RuntimeError("attach(..., keep_base=True) keeps the copy that this needs")
            self._put_in(self._untouched)
            try:
                yield
            finally:
                self._put_in(self.modules)

    def drift(self) -> Iterator[Tensor]:
        """Yield the squared change of the weights, layer by layer: float32 scalars with a gradient.

        The sum of squares of s B A for a LoRA (s is its scale), which is
        s^2 * sum((A A^T) * (B^T B)) without that product; of W - W0 for a full fine-tune. DoRA and
        a new token are not for this.
        """
        for name, module in self.modules.items():
            if self.method.kind == "full":
                before = dict(self._untouched[name].named_parameters())
                for key, parameter in module.named_parameters():
                    yield (parameter - before[key].detach()).square().sum()
            layers: list[Any] = [each for each in module.modules() if isinstance(each, LoraLayer)]
            for layer in layers:
                narrow = layer.lora_A[_ADAPTER].weight.flatten(1)
                wide = layer.lora_B[_ADAPTER].weight.flatten(1)
                product = ((narrow @ narrow.t()) * (wide.t() @ wide)).sum()
                yield layer.scaling[_ADAPTER] ** 2 * product

    def _enable_loras(self, *, enabled: bool) -> None:
        for module in self.modules.values():
            for layer in module.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.enable_adapters(enabled=enabled)

    def _put_in(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            theirs = self.family.denoiser_name if name == DENOISER else name
            setattr(self.family.pipeline, theirs, module)

    # ---------------------------------------------------------------------------------- states

    def state_dict(self) -> dict[str, Tensor]:
        """What is trained, live: a copy is the caller's to make."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of `state_dict`; those of other weights are a CheckpointError."""
        _copy(state, self.state_dict())

    def lora_layers(self) -> dict[str, dict[str, Tensor]]:
        """By module, the LoRA's tensors under peft's names; empty for a full fine-tune."""
        if self.method.kind != "lora":
            return {}
        return {
            name: dict(
                get_peft_model_state_dict(
                    module,
                    adapter_name=_ADAPTER,
                    save_embedding_layers=False,  # else the vocabulary of a text encoder that grew
                )
            )
            for name, module in self.modules.items()
        }

    def lora_metadata(self) -> dict[str, dict[str, Any]]:
        """By module, the LoRA's peft configuration, always in one order, as JSON can hold it."""
        modules: dict[str, Any] = dict(self.modules)
        return {
            name: {
                key: sorted(value) if isinstance(value, set) else value
                for key, value in module.peft_config[_ADAPTER].to_dict().items()
            }
            for name, module in modules.items()
        }


class MovingAverage:
    """An exponential moving average of trained weights, float32, on their device.

    It begins fast, with a decay of (1 + n) / (10 + n) after n updates, so that the first weights
    are forgotten. torch's and not diffusers' `EMAModel`, which copies all weights to main memory
    and back whenever the average is shown.
    """

    def __init__(self, trainable: Trainable, decay: float) -> None:
        self._decay = decay
        self._live = trainable.parameters
        self._mean = {name: each.detach().clone() for name, each in self._live.items()}
        self._updates = 0

    def update(self) -> None:
        """Take in the weights as they are, after an optimizer step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        live = [parameter.detach() for parameter in self._live.values()]
        get_ema_multi_avg_fn(decay)(list(self._mean.values()), live, None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While the block runs, the weights are the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._live.items():
            parameter.data, self._mean[name] = self._mean[name], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        """The average, live, and `updates`: how many there were."""
        return {**self._mean, "updates": torch.tensor(self._updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of `state_dict`; those of other weights are a CheckpointError."""
        _copy({name: value for name, value in state.items() if name != "updates"}, self._mean)
        self._updates = int(state["updates"])


def _copy(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    shapes = {name: value.shape for name, value in state.items()}
    if shapes != {name: value.shape for name, value in own.items()}:
        raise CheckpointError(
            "The saved weights are not those that this recipe trains.",
            hint="Train in another folder with --out, or begin again with --fresh.",
        )
    for name, value in own.items():
        value.copy_(state[name])


# ---------------------------------------------------------------------------------- LoRA layers


def _check_targets(module: nn.Module, targets: Sequence[str]) -> None:
    """Refuse targets that are not the end of some layer's name."""
    layers = [
        name.split(".")
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear | nn.Conv2d)
    ]
    ends = {".".join(parts[start:]) for parts in layers for start in range(len(parts))}
    for target in targets:
        if target not in ends:
            # The shortest end that says something: `to_q`, `to_out.0`.
            kinds = {".".join(parts[-2 if parts[-1].isdigit() else -1 :]) for parts in layers}
            raise TrainingSetup(
                f"method.targets: no layer of the denoiser is called {target!r}."
                f"{did_you_mean(target, sorted(ends))}",
                hint=f"Layers end in {', '.join(sorted(kinds))}.",
            )


def _add_lora(module: nn.Module, method: Method, targets: Sequence[str]) -> None:
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.rank if method.alpha is None else method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        use_dora=method.dora,
        use_rslora=method.rslora,
        target_modules=sorted(targets),
    )
    module.add_adapter(config, adapter_name=_ADAPTER)  # type: ignore[operator]
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    speed_up(module)


def speed_up(module: nn.Module) -> None:
    """Let the LoRA layers of a module compute as `LoraLinear`, where they are plain.

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
    is_float = layer.get_base_layer().weight.is_floating_point()  # of a .gguf, bytes
    return is_float and not dropout and not other


class LoraLinear(Linear):
    """peft's linear layer, with the LoRA beside it computed in one operation.

    peft computes `base(x) + lora_B(lora_A(x)) * scaling` as five, each with a gradient of its own,
    and converts `x` to the precision of the LoRA and the result back. Here the LoRA is added in
    place, in the precision of the frozen weight, and only the input and the narrow product are
    kept for the gradient. The numbers are the same but for the order of sums.
    """

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
