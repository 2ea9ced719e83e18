"""Which weights of a family are trained, and what can be done with them.

Trained weights are float32 whatever the precision of the others: small steps vanish in 16 bits.
Knows peft; knows nothing about losses, optimizers or files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regforge.recipe.training import Method
from regforge.training.checkpoints import CheckpointError
from regforge.training.families.base import in_precision
from regforge.training.interface import Family
from regforge.training.lora import speed_up
from regforge.training.problems import TrainingSetup
from regforge.words import did_you_mean

ADAPTER = "default"
"""What peft calls our LoRA."""

DENOISER = "denoiser"


def attach(family: Family, method: Method, *, teacher: bool = False) -> Trainable:
    """Make a family's modules ready to be trained: a LoRA beside them, or all of their weights.

    A new LoRA begins with random numbers from torch's global generator. It changes nothing until
    it is trained.

    Args:
        family: Fresh: nothing of it is trained yet.
        method: What to train.
        teacher: Whether `Trainable.teacher` will be needed. A full fine-tune then keeps a copy.

    Raises:
        TrainingSetup: `method.targets` names no layer.
    """
    names = tuple(family.text_encoders) if method.text_encoder else ()
    encoders = {
        name: family.text_encoders[name] for name in names if name in family.trainable_encoders
    }
    if method.kind == "lora":
        denoiser = family.denoiser
        _add_lora(denoiser, method, _checked(denoiser, method.targets) or family.lora_targets)
        for encoder in encoders.values():
            _add_lora(encoder, method, family.text_lora_targets)
        return Trainable(family, method, {DENOISER: denoiser, **encoders}, {})
    modules: dict[str, nn.Module] = {DENOISER: family.denoiser, **encoders}
    copies = {name: copy.deepcopy(module) for name, module in modules.items()} if teacher else {}
    for module in modules.values():
        in_precision(module, torch.float32)
        module.requires_grad_(requires_grad=True)
    return Trainable(family, method, modules, copies)


class Trainable:
    """The trained weights of a family.

    Args:
        family: Whose they are.
        method: How they are trained.
        modules: Those that hold some, by name: `denoiser`, and text encoders by the pipeline's.
        untouched: Copies of them from before, where they are fine-tuned in full.
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
        }

    @property
    def groups(self) -> list[dict[str, Any]]:
        """For an optimizer; a group has an `lr` only where it is not the optimizer's own."""
        groups: list[dict[str, Any]] = []
        for is_text in (False, True):
            found = [
                parameter
                for name, parameter in self.parameters.items()
                if is_text != name.startswith(f"{DENOISER}.")
            ]
            if found:
                groups.append({"params": found})
        if len(groups) > 1 and self.method.text_encoder_lr is not None:
            groups[1]["lr"] = self.method.text_encoder_lr
        return groups

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        for name, module in self.modules.items():
            if name == DENOISER:
                module.enable_gradient_checkpointing()  # type: ignore[operator]
            else:
                _checkpoint_activations(module)

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """While the block runs, the family predicts and encodes like the untouched base model.

        Nothing can be trained through it.
        """
        if self.method.kind == "lora":
            switched = _lora_layers(self.modules.values())
            for layer in switched:
                layer.enable_adapters(enabled=False)
            try:
                yield
            finally:
                for layer in switched:
                    layer.enable_adapters(enabled=True)
            return
        if not self._untouched:
            raise RuntimeError("attach(..., teacher=True) keeps the copy that this needs")
        self._exchange(self._untouched)
        try:
            yield
        finally:
            self._exchange(self.modules)

    def _exchange(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            theirs = self.family.denoiser_name if name == DENOISER else name
            setattr(self.family.pipeline, theirs, module)

    # ---------------------------------------------------------------------------------- states

    def state_dict(self) -> dict[str, Tensor]:
        """What is trained, live: a copy is the caller's to make."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of `state_dict`.

        Raises:
            CheckpointError: They are of other weights.
        """
        parameters = self.parameters
        _check(state, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def lora_layers(self) -> dict[str, dict[str, Tensor]]:
        """By module, the LoRA's tensors under peft's names; empty for a full fine-tune."""
        if self.method.kind != "lora":
            return {}
        from peft import get_peft_model_state_dict

        return {
            name: dict(get_peft_model_state_dict(module, adapter_name=ADAPTER))
            for name, module in self.modules.items()
        }

    def lora_metadata(self) -> dict[str, dict[str, Any]]:
        """By module, the LoRA's peft configuration, as plain values that JSON can hold."""
        return {name: _plain(module.peft_config[ADAPTER]) for name, module in self.modules.items()}  # type: ignore[index]


class Average:
    """An exponential moving average of trained weights, float32, on their device.

    It begins fast, (1 + n) / (10 + n) after n updates, so that the first weights are forgotten.

    Args:
        trainable: Whose weights.
        decay: How much of the average stays at an update, in the long run.
    """

    def __init__(self, trainable: Trainable, decay: float) -> None:
        self._decay = decay
        self._live = trainable.parameters
        self._mean = {name: each.detach().clone() for name, each in self._live.items()}
        self._updates = 0

    def update(self) -> None:
        """Take in the weights as they are, after an optimizer step."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

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
        """Take over the values of `state_dict`.

        Raises:
            CheckpointError: They are of other weights.
        """
        means = {name: value for name, value in state.items() if name != "updates"}
        _check(means, self._mean)
        for name, value in means.items():
            self._mean[name].copy_(value)
        self._updates = int(state["updates"])


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != {name: tuple(value.shape) for name, value in own.items()}:
        raise CheckpointError(
            "The saved weights are not those that this recipe trains.",
            hint="Train in another folder with --out, or begin again with --fresh.",
        )


def _add_lora(module: nn.Module, method: Method, targets: Sequence[str]) -> None:
    from peft import LoraConfig

    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.rank if method.alpha is None else method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        use_dora=method.dora,
        use_rslora=method.rslora,
        target_modules=sorted(targets),
    )
    module.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    speed_up(module)


def _checked(module: nn.Module, targets: Sequence[str] | None) -> Sequence[str]:
    """The recipe's targets, each of which is the end of some layer's name.

    Raises:
        TrainingSetup: One of them is not.
    """
    layers = [
        name for name, each in module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)
    ]
    ends = {name: _ends(name) for name in layers}
    known = {end for found in ends.values() for end in found}
    for target in targets or ():
        if target in known:
            continue
        kinds = sorted({_kind(name) for name in layers})
        raise TrainingSetup(
            f"method.targets: no layer of the denoiser is called {target!r}."
            f"{did_you_mean(target, known)}",
            hint=f"Layers end in {', '.join(kinds)}.",
        )
    return targets or ()


def _ends(name: str) -> list[str]:
    """All ends of a dotted name, itself among them."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _kind(name: str) -> str:
    """The shortest end of a name that says something: `to_q`, `to_out.0`."""
    return next(end for end in reversed(_ends(name)) if not end[0].isdigit())


def _checkpoint_activations(encoder: Any) -> None:
    """Of a transformers model, whose newer versions have another name for it."""
    if hasattr(encoder, "activation_checkpointing_enable"):
        encoder.activation_checkpointing_enable()
    else:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})


def _lora_layers(modules: Iterable[nn.Module]) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, BaseTunerLayer)
    ]


def _plain(config: Any) -> dict[str, Any]:
    """Without what JSON has no form for, and in an order that is always the same."""
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
