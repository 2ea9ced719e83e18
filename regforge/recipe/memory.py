"""How much memory of a device a recipe takes: an estimate, until a GPU has measured it.

What is on the device at each moment of a rendering or a training is added up, and the largest
moment counts. Weights are counted: from the headers of a model's files where it is on this machine,
else from the table below. Activations are what layers keep for the gradient, counted as well, on
PyTorch's device `meta` with models of the real size (a LoRA of rank 16 on the usual layers, 16
bits, attention that keeps no matrix), which tests/recipe/test_memory.py repeats; for other sizes of
image and batch in proportion. What drawing and autoencoders take is a generous guess.

Sizes are in bytes; a card of 24 GB has 24 * 2**30.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from regforge.devices import BYTES_PER_PIXEL, gpu_memory
from regforge.files import expanded
from regforge.recipe.model_checks import is_embedded
from regforge.recipe.named_files import (
    MODEL_INDEX,
    LoraError,
    is_file,
    language_models,
    shapes_in,
)
from regforge.recipe.pipelines import Family, family_of, folder_here, read_json
from regforge.recipe.rendering import Render
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import uses_regularization

GB = 2**30
CARDS = (12, 16, 24, 48, 80)
"""Sizes of GPUs that people have, in GB."""

_CONTEXT = 0.8 * GB
"""CUDA itself, its libraries, and what PyTorch's allocator cannot use."""
_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight; nf4 has a scale in 32 bits for each 64 of them."""
_STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""Bytes that optimizers keep for each trained number."""
_SAMPLES = 4
"""Validation images that are drawn together; they are decoded one by one."""
_DRAWN = 500
"""Bytes for each pixel of these while they are drawn."""


class Part(NamedTuple):
    """Numbers of a network: all, those in linear layers, and those of its largest tensor.

    Only linear layers are quantized.
    """

    all: float
    linear: float
    largest: float

    def bytes(self, each: float, quantize: str | None = None) -> float:
        """What its weights take, with so many bytes for each that is not quantized."""
        if quantize is None:
            return self.all * each
        return self.linear * _BYTES[quantize] + (self.all - self.linear) * each


class Sizes(NamedTuple):
    """What counts of a model.

    Attributes:
        encoders: Text encoders by name; quantized are those that are no CLIP.
        adapted: Numbers of a LoRA of rank 1 on its usual layers.
        kept: Bytes that the denoiser keeps for the gradient for each pixel of an image: all, and
            with gradient checkpointing.
        side: Of its images, in pixels.
    """

    denoiser: Part
    encoders: Mapping[str, Part]
    vae: Part
    adapted: float
    kept: tuple[float, float]
    side: int = 1024


def _millions(*numbers: float) -> Part:
    return Part(*(number * 1e6 for number in numbers))


ENCODERS = {
    "clip-l": _millions(123.1, 84.9, 37.9),
    "clip-h": _millions(340.4, 289.4, 50.6),
    "clip-g": _millions(694.7, 630.8, 63.2),
    "t5-xxl": _millions(4762.3, 4630.5, 131.6),
    "gemma2-2b": _millions(2614.3, 2024.3, 589.8),
    "llama3.1-8b": _millions(8030.3, 6979.3, 525.3),
    "mistral-24b": _millions(23340.5, 22668.1, 671.1),
    "qwen2.5-vl-7b": _millions(8292.2, 7199.8, 545.0),
    "qwen3-4b": _millions(4022.5, 3633.3, 389.0),
    "qwen3-8b": _millions(8190.7, 6945.8, 622.3),
    "qwen3-vl-4b": _millions(4437.8, 4044.4, 389.0),
}
_VAES = {
    "kl": _millions(83.8, 2.1, 2.4),
    "qwen": _millions(126.9, 0, 4),
    "dc": _millions(312, 0, 9),
}


def _model(
    denoiser: Part,
    encoders: str,
    adapted: float,
    kept: tuple[float, float],
    vae: str = "kl",
    side: int = 1024,
) -> Sizes:
    known = {each: ENCODERS[each] for each in encoders.split()}
    return Sizes(denoiser, known, _VAES[vae], adapted * 1e6, kept, side)


_NOT_TRAINED = (0.0, 0.0)
# fmt: off
MODELS: Mapping[str, Sizes] = {
    "sd1": _model(_millions(859.5, 270.0, 29.5), "clip-l", 0.199, (3256, 825), side=512),
    "sd2": _model(_millions(865.9, 301.2, 29.5), "clip-h", 0.207, (3256, 825), side=768),
    "sdxl": _model(_millions(2567.5, 2232.6, 29.5), "clip-l clip-g", 1.452, (5778, 592)),
    "sd3": _model(_millions(2028.3, 2027.1, 14.2), "clip-l clip-g t5-xxl", 0.587, (3765, 481)),
    "sd3.5": _model(_millions(8056.6, 8053.7, 35.5), "clip-l clip-g t5-xxl", 1.474, (14163, 1173)),
    "flux1-dev": _model(_millions(11901.4, 11898.3, 56.6), "clip-l t5-xxl", 2.802, (25312, 2147)),
    "chroma": _model(_millions(8900.0, 8897.9, 47.2), "t5-xxl", 2.802, (25314, 2151)),
    "flux2-klein-base-4b": _model(_millions(3875.5, 3875.5, 84.9), "qwen3-4b", 1.044,
                                  (16375, 1389)),
    "flux2-klein-base-9b": _model(_millions(9078.6, 9078.6, 151.0), "qwen3-8b", 1.737,
                                  (27706, 2101)),
    "flux2-dev": _model(_millions(32223.3, 32223.3, 339.7), "mistral-24b", 4.817, (74067, 4442)),
    "qwen-image": _model(_millions(20430.4, 20424.8, 56.6), "qwen2.5-vl-7b", 1.475, (26434, 1935),
                         "qwen"),
    "krea2": _model(_millions(12820.1, 12818.6, 226.5), "qwen3-vl-4b", 2.997, (34000, 2600),
                    "qwen"),  # activations in proportion to width and depth
    "z-image": _model(_millions(6154.9, 6153.9, 39.3), "qwen3-4b", 1.044, (32664, 2081)),
    "lumina2": _model(_millions(2609.8, 2609.2, 21.2), "gemma2-2b", 0.461, (20363, 2655)),
    "sana": _model(_millions(1604.5, 848.8, 30.1), "gemma2-2b", 0.538, (3332, 261), "dc"),
    "hidream": _model(_millions(17105.7, 17103.3, 78.6), "clip-l clip-g t5-xxl llama3.1-8b", 0.983,
                      (32000, 2200)),  # likewise
    "hunyuan-image": _model(_millions(17425.8, 17421.7, 77.1), "qwen2.5-vl-7b", 1.491,
                            _NOT_TRAINED),
}
# fmt: on
"""By the names of families in `pipelines`. Counted on the device `meta`, from the classes' own
configurations and those that the models' cards have."""

_OTHER_KEPT = (0.25, 0.02)
"""Of models that are not in the table: what is kept for a pixel, by the root of their size."""
_USUAL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
# Embeddings are no linear layers, though their weights look alike; what a language model answers
# with is not quantized.
_NOT_LINEAR = re.compile(
    r"embed_tokens|shared\.|lm_head|(position|token)_embedding|pos_embed\.weight|relative_atten"
)


def known_sizes(family: Family) -> Sizes | None:
    """The sizes of a family's models, if they are in the table."""
    return MODELS.get(family.name) or MODELS.get(family.like)


def sizes_of(
    model: str,
    revision: str | None = None,
    config: str | None = None,
    targets: Sequence[str] | None = None,
) -> Sizes | None:
    """The sizes of the model that a recipe names; None if nothing tells.

    Args:
        model: As in `render.model` and `base_model`.
        revision: Of a repository.
        config: What describes a model that is a file.
        targets: Layers that get a LoRA, by the end of their names; the usual ones by default.
    """
    family = family_of(model)
    known = known_sizes(family) if family is not None else None
    folder = folder_here(model, revision, config)
    sizes = (folder and _counted(folder, known, targets)) or known
    if sizes is not None and model.lower().endswith(".gguf") and is_file(expanded(model)):
        numbers = expanded(model).stat().st_size / 2  # as if they had 16 bits, like the others
        sizes = sizes._replace(denoiser=sizes.denoiser._replace(all=numbers, linear=0))
    return sizes


def _counted(folder: Path, known: Sizes | None, targets: Sequence[str] | None) -> Sizes | None:
    """Sizes by the headers of a folder's files; None if some are not there."""
    index = read_json(str(folder), MODEL_INDEX)
    name = next((each for each in ("transformer", "unet", "prior") if each in index), "none")
    encoders = sorted(path.name for path in folder.glob("text_encoder*"))
    try:
        shapes = {part: shapes_in(folder / part) for part in (name, "vae", *encoders)}
    except (LoraError, OSError):  # whoever loads it says so
        return None
    if not shapes[name] or not shapes["vae"]:
        return None
    denoiser, vae = _part_of(shapes[name]), _part_of(shapes["vae"])
    ends = tuple(f".{each}.weight" for each in targets or _USUAL_TARGETS)
    adapted = sum(sum(shape) for key, shape in shapes[name].items() if key.endswith(ends))
    if known is not None and targets is None:
        adapted = round(known.adapted * min(1, sqrt(denoiser.all / known.denoiser.all)))
    root = sqrt(denoiser.all)
    kept = _OTHER_KEPT if known is None else tuple(k / sqrt(known.denoiser.all) for k in known.kept)
    no_clip = language_models(folder)
    latents = read_json(str(folder), f"{name}/config.json").get("sample_size")
    config = read_json(str(folder), "vae/config.json")
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    side = known.side if known is not None else 1024
    if isinstance(latents, int) and isinstance(blocks, list):
        side = latents * 2 ** (len(blocks) - 1)
    return Sizes(
        denoiser,
        {part if part in no_clip else f"clip-{part}": _part_of(shapes[part]) for part in encoders},
        vae,
        adapted,
        (kept[0] * root, kept[1] * root),
        side,
    )


def _part_of(shapes: Mapping[str, Sequence[int]]) -> Part:
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    linear = sum(
        size
        for name, size in sizes.items()
        if len(shapes[name]) == 2 and name.endswith(".weight") and not _NOT_LINEAR.search(name)
    )
    return Part(sum(sizes.values()), linear, max(sizes.values(), default=0))


# ---------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Memory:
    """An estimate: bytes on the device at each moment, by its name.

    Attributes:
        there: Bytes of the GPU that is here, if there is one.
        change: What to set so that it fits there, if it does not as it is.
    """

    moments: Mapping[str, float]
    there: int | None = None
    change: str | None = None

    @property
    def peak(self) -> float:
        """Bytes at the largest moment."""
        return max(self.moments.values()) + _CONTEXT

    @property
    def cards(self) -> list[int]:
        """The GPUs of `CARDS`, in GB, that have so much."""
        return [card for card in CARDS if self.peak <= card * GB]

    def __str__(self) -> str:
        when = max(self.moments, key=lambda name: self.moments[name])
        fits = f"fits GPUs from {self.cards[0]} GB on" if self.cards else "too much for 80 GB"
        return f"about {self.peak / GB:.1f} GB of a GPU, {when}; {fits} (an estimate)"

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        moments = {name: round(size) for name, size in self.moments.items()}
        return {"peak": round(self.peak), "moments": moments, "fits_gb": self.cards}

    @property
    def warnings(self) -> list[str]:
        """What to say where the GPU that is here has less."""
        if self.there is None or self.peak <= self.there:
            return []
        advice = f": {self.change} should do" if self.change else ", whatever is set"
        return [
            f"memory: this takes about {self.peak / GB:.1f} GB (an estimate), and the GPU has "
            f"{self.there / GB:.1f} GB{advice}."
        ]


def rendering_memory(render: Render, sizes: Sizes) -> Memory:
    """What drawing takes on a GPU, one image at a time unless the recipe says how many."""
    each = 4 if render.dtype == "float32" else 2
    images = render.batch_size if isinstance(render.batch_size, int) else 1
    pixels = (render.width or sizes.side) * (render.height or sizes.side) * images
    drawn, offload = pixels * BYTES_PER_PIXEL * each / 2, render.offload
    parts = [*_encoders(sizes, each, render.quantize), sizes.denoiser.bytes(each, render.quantize)]
    parts.append(sizes.vae.bytes(each))
    if offload in ("group", "sequential"):
        largest = max(part.largest for part in (sizes.denoiser, *sizes.encoders.values()))
        layers = largest * each * (2 if offload == "group" else 1)
        return Memory({"layer by layer": layers + drawn})
    if offload == "model":
        return Memory({"in denoising steps": max(parts) + drawn})
    return Memory({"with all of the model there": sum(parts) + drawn})


def training_memory(recipe: TrainingRecipe, sizes: Sizes) -> Memory:
    """What a training takes on a GPU."""
    optimizer, method = recipe.optimizer, recipe.method
    each = 4 if optimizer.precision == "fp32" else 2
    side = recipe.data.resolution or sizes.side
    batch = optimizer.batch_size
    if uses_regularization(recipe):
        batch *= 1 + recipe.regularization.per_instance
    encoders = sum(_encoders(sizes, each, method.quantize))
    # The autoencoder computes in float32, one image after the other.
    vae = sizes.vae.bytes(4) + side**2 * BYTES_PER_PIXEL * 2
    denoiser = _trained_weights(recipe, sizes, each)
    stays = encoders if recipe.trains_text else 0.0
    if recipe.data.cache == "none":
        stays = encoders + sizes.vae.bytes(4)
    kept = sizes.kept[optimizer.gradient_checkpointing] * batch * side**2 * each / 2
    if method.quantize is not None:  # a layer's weights are made whole while it computes
        kept += sizes.denoiser.largest * each
    drawing = max(_SAMPLES * side**2 * _DRAWN * each / 2, vae)
    return Memory(
        {
            "while captions are encoded": encoders,
            "while images are encoded": stays + vae,
            "in training steps": stays + denoiser + kept,
            "while validation images are drawn": stays + denoiser + drawing,
        }
    )


def _encoders(sizes: Sizes, each: float, quantize: str | None) -> list[float]:
    return [
        part.bytes(each, None if name.startswith("clip") else quantize)
        for name, part in sizes.encoders.items()
    ]


def _trained_weights(recipe: TrainingRecipe, sizes: Sizes, each: float) -> float:
    """The denoiser with what is trained of it: weights, gradients, states, average and teacher."""
    optimizer, method, whole = recipe.optimizer, recipe.method, sizes.denoiser.all
    moving = 8 + _STATES.get(optimizer.name, 8) + (4 if optimizer.ema else 0)
    if method.kind == "full":
        prior = recipe.regularization
        taught = prior.target == "teacher" and uses_regularization(recipe)
        copy = 4 if taught or prior.drift_penalty else 0
        cast = 2 if each == 2 else 0  # of a forward pass in 16 bits
        return whole * (moving + copy + cast)
    trained = sizes.adapted * method.rank if method.kind == "lora" else 0.0
    return sizes.denoiser.bytes(each, method.quantize) + trained * moving


# --------------------------------------------------------------------------------------- settings

_SPARING = {"gradient_checkpointing": True}
TRAINING: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "gradient_checkpointing: true": {"optimizer": _SPARING},
    "quantize: int8": {"optimizer": _SPARING, "method": {"quantize": "int8"}},
    "quantize: nf4": {"optimizer": _SPARING, "method": {"quantize": "nf4"}},
}
"""What makes the training of a LoRA lighter, lighter and lighter: what to set for it."""

RENDERING: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "offload: model": {"offload": "model"},
    "quantize: int8": {"offload": "model", "quantize": "int8"},
    "quantize: nf4": {"offload": "model", "quantize": "nf4"},
    "offload: group": {"offload": "group"},
}
"""Likewise of drawing."""


def lightest_change(plan: Render | TrainingRecipe, sizes: Sizes, there: float) -> str | None:
    """The first of these settings with which a recipe fits into so many bytes, if any does."""
    for name, keys in (RENDERING if isinstance(plan, Render) else TRAINING).items():
        laid_over = {
            key: getattr(plan, key).model_copy(update=value) if isinstance(value, dict) else value
            for key, value in keys.items()
        }
        if memory_of(plan.model_copy(update=laid_over), sizes).peak <= there:
            return name
    return None


def memory_of(plan: Render | TrainingRecipe, sizes: Sizes) -> Memory:
    """What drawing or training takes with a model of some sizes."""
    if isinstance(plan, Render):
        return rendering_memory(plan, sizes)
    return training_memory(plan, sizes)


def estimate(plan: Render | TrainingRecipe) -> Memory | None:
    """What a recipe takes on a GPU; None without one in it, or if the model's sizes are unknown.

    Looks at the GPU that is here, if there is one, and at what is here of the model.
    """
    targets = None
    if isinstance(plan, Render):
        model, nowhere = plan.model, plan.renderer != "local"
    else:
        model, nowhere, targets = plan.base_model, False, plan.method.targets
    if nowhere or is_embedded(model) or plan.device == "cpu":
        return None
    sizes = sizes_of(model, plan.revision, plan.config, targets)
    if sizes is None:
        return None
    found, there = memory_of(plan, sizes), gpu_memory(plan.device)
    change = None
    if there is not None and (name := lightest_change(plan, sizes, there)) is not None:
        sections = {"render": RENDERING[name]} if isinstance(plan, Render) else TRAINING[name]
        change = ", ".join(
            f"{section}.{key}: {str(value).lower()}"
            for section, keys in sections.items()
            for key, value in keys.items()
        )
    return replace(found, there=there, change=change)
