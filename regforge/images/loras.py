"""LoRAs on a loaded pipeline: found, laid on, and taken off again. For all who draw.

Sees to it that a LoRA changes the model: a file of which nothing, or almost nothing, has a place in
the pipeline is refused rather than drawn without. Knows nothing about which images are wanted.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge.digests import file_digest
from regforge.embedded.pipeline import quiet_loading
from regforge.files import expanded
from regforge.hub import HubAddress
from regforge.images.interface import LoraIdentity
from regforge.images.model_hub import download
from regforge.lora_files import LoraError, layers_in, lora_in, require_lora
from regforge.recipe.models import Lora
from regforge.words import first_line

_FEWEST_FITTING = 0.5
"""Of a LoRA's layers. With fewer it was trained on another model."""


@dataclass(frozen=True)
class FoundLora:
    """A LoRA on this machine.

    Attributes:
        file: Its weights.
        identity: What a dataset records of it.
    """

    file: Path
    identity: LoraIdentity


def find_loras(named: Sequence[Lora]) -> list[FoundLora]:
    """The files of a recipe's LoRAs, downloaded if they are on the Hub.

    Raises:
        LoraError: One is not there, or is none.
        HubError: The Hub has it not, or cannot be reached.
    """
    return [_found(each) for each in named]


def _found(lora: Lora) -> FoundLora:
    path = expanded(lora.path)
    address = None if path.exists() else HubAddress.parse(lora.path)
    if address is None:
        file = lora_in(path) if path.is_dir() else path
        if file is None or not file.exists():
            raise LoraError(
                f"There is no LoRA {lora.path} (render.lora).",
                hint="It is a .safetensors file, a folder with one, or user/name on the Hub.",
            )
        require_lora(file)
        identity = LoraIdentity(path.name, f"sha256:{file_digest(file)}", lora.scale)
        return FoundLora(file, identity)
    got = download(address)
    file = None if got.is_pipeline else lora_in(got.folder)
    if file is None:
        raise LoraError(f"{address} is a whole model and no LoRA (render.lora).")
    require_lora(file)
    return FoundLora(file, LoraIdentity(address.repo_id, got.commit, lora.scale))


def lay_on(pipeline: Any, model: str, weights: Sequence[tuple[Path, float]]) -> list[str]:
    """Put LoRAs on a pipeline, in any format that diffusers takes.

    Args:
        pipeline: A loaded diffusers pipeline without LoRAs. After an error nobody knows its state.
        model: What messages call it.
        weights: Each file and its scale.

    Returns:
        A sentence for each LoRA of which some layers have no place in the pipeline.

    Raises:
        LoraError: The pipeline takes none, or not these: fewer than half of a LoRA's layers have a
            place in it.
    """
    if weights and not hasattr(pipeline, "load_lora_weights"):
        raise LoraError(f"{model} takes no LoRA ({type(pipeline).__name__}).")
    notes, names = [], [f"lora_{number}" for number in range(len(weights))]
    for name, (file, _) in zip(names, weights, strict=True):
        layers = layers_in(file)
        _load(pipeline, model, file, name)
        there = min(_layers(pipeline, name), layers)
        if there == 0 or there < _FEWEST_FITTING * layers:
            raise LoraError(
                f"Only {there} of {layers} layers of the LoRA {file} found a place in {model}."
                if there
                else f"None of the {layers} layers of the LoRA {file} has a place in {model}.",
                hint="It was trained on another kind of model: name that one as the base model, or "
                "take a LoRA that was trained on this one.",
            )
        if there < layers:
            notes.append(
                f"{layers - there} of {layers} layers of the LoRA {file.name} have no place in "
                f"{model}: was it trained on another model?"
            )
    if len(weights) > 1 or any(scale != 1 for _, scale in weights):
        pipeline.set_adapters(names, [scale for _, scale in weights])
    return notes


def _load(pipeline: Any, model: str, file: Path, name: str) -> None:
    try:
        with silent(), quiet_loading():
            pipeline.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True
            )
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, IndexError):  # diffusers, of a text encoder without any layer of its
            reason = (
                "it has layers for a part, such as the text encoder, in which none of them fits"
            )
        raise LoraError(
            f"The LoRA {file} does not fit {model}: {reason}.",
            hint="It is for another kind of model, or its file lacks a part.",
        ) from error


def take_off(pipeline: Any) -> None:
    """Take all LoRAs off; what is left is what was there before, bit by bit."""
    with silent():
        pipeline.unload_lora_weights()


def _layers(pipeline: Any, name: str) -> int:
    """How many layers of a pipeline a LoRA changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    return sum(
        isinstance(each, BaseTunerLayer) and name in getattr(each, "scaling", {})
        for module in modules
        for each in module.modules()
    )


@contextmanager
def silent() -> Iterator[None]:
    """Without the libraries' remarks: what matters of them, we find out ourselves."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = [(each, each.get_verbosity()) for each in (diffusers_logging, transformers_logging)]
    try:
        for each, _ in both:
            each.set_verbosity(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, verbosity in both:
            each.set_verbosity(verbosity)
