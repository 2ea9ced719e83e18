"""What is trained on at which step, and the tensors of it: what all parts of training share.

Every example has a number, counted through the whole training, from 0 for instance examples and
for regularization examples alike. What an example is (image, crop, dropped words, time step, noise)
follows from (seed, stream, number) and nothing else. So a resumed run goes on exactly, and one
batch of 8 sees what 8 batches of 1 accumulate to. Latents and text embeddings are computed once.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import write_atomically
from regforge.journal import Reporter
from regforge.version import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regforge.recipe.training import TrainingRecipe

    Tensors = dict[str, Tensor]


Stream = Literal["instance", "class"]
"""Instance images, or regularization images (class images, as DreamBooth calls them)."""

Embeddings = dict[str, "Tensor"]
"""A caption's text embeddings by the pipeline's argument names, with or without a batch axis."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One example of a batch: its stream, its number in it, and which image of the stream's set.

    A class twin is `of` an instance example and has its image, crop, noise and time.
    """

    stream: Stream
    number: int
    index: int
    of: Draw | None = None

    @property
    def source(self) -> Draw:
        """The example whose image, crop, noise and time it has: mostly its own."""
        return self.of or self


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which part of an image a latent shows: SDXL's conditioning, in pixels, y before x.

    `original` is the size before the image was resized, `top_left` a place of the resized image.
    """

    original: tuple[int, int]
    top_left: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Examples whose latents have one shape: instance images first, class twins last.

    Attributes:
        moments: float32 [N, 2, C, h, w]: the autoencoder's mean and deviation of each crop.
        sampling_noise: float32 [N, C, h, w], normal: draws the latents from the moments.
        noise: float32 [N, C, h, w], normal: what is added to the latents.
        uniform: float32 [N], 0 to 1: at which time.
        captions: What each example is trained with; empty where the caption was dropped.
        embeddings: Of the captions, with a batch axis; of those in `fresh` any numbers, and empty
            if that is all of them.
        fresh: Which captions are to be encoded now, as what encodes them is being trained.
        geometry: Which part of its image each example shows.
        instances: How many of the examples are instance images.
        twins: How many are class twins.
    """

    moments: Tensor
    sampling_noise: Tensor
    noise: Tensor
    uniform: Tensor
    captions: Sequence[str]
    embeddings: Embeddings
    fresh: Sequence[int]
    geometry: Sequence[Geometry]
    instances: int
    twins: int = 0

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Batches:
    """Which examples each process trains on at each step.

    Attributes:
        instances: How many instance images there are.
        regularization: How many images the regularization dataset has; 0 for none.
        batch_size: Instance images in a batch.
        per_instance: Regularization images beside each instance image.
        accumulation: Batches per optimizer step.
        process: Which of the processes this is, from 0; each has batches of its own.
        twins: Share of the regularization images that are class twins; 1 without a dataset.
        shapes: Of each image of a stream, what those of a batch should have in common.
    """

    instances: int
    regularization: int
    batch_size: int
    per_instance: int
    accumulation: int
    seed: int
    processes: int = 1
    process: int = 0
    twins: float = 0.0
    shapes: Mapping[str, Sequence[object]] = field(default_factory=dict)

    @property
    def instances_per_step(self) -> int:
        """Instance images in this process's share of an optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def regularization_per_step(self) -> int:
        """Regularization images in this process's share of an optimizer step."""
        return self.instances_per_step * self.per_instance if self.has_prior else 0

    @property
    def has_prior(self) -> bool:
        """Whether there are regularization images."""
        return self.regularization > 0 or self.twins > 0

    def step(self, step: int) -> Iterator[list[Draw]]:
        """This process's batches of an optimizer step, 0 and up: instance images first."""
        for micro in range(step * self.accumulation, (step + 1) * self.accumulation):
            turn = micro * self.processes + self.process
            numbers = range(turn * self.batch_size, (turn + 1) * self.batch_size)
            draws = [Draw("instance", each, self._instances.item(each)) for each in numbers]
            beside = self.per_instance if self.has_prior else 0
            yield draws + [
                self._class_draw(each.number * beside + n, each)
                for each in draws
                for n in range(beside)
            ]

    def _class_draw(self, number: int, instance: Draw) -> Draw:
        """A regularization image beside an instance image; twins are spread over the numbers."""
        twins = math.floor(number * self.twins)
        if math.floor((number + 1) * self.twins) > twins:
            return Draw("class", number, instance.index, of=instance)
        return Draw("class", number, self._regularization.item(number - twins))

    # Kept, so that a set is shuffled once a pass: large ones take milliseconds.

    @cached_property
    def _instances(self) -> _Shuffled:
        return self._shuffled("instance", self.instances, 1)

    @cached_property
    def _regularization(self) -> _Shuffled:
        beside = self.per_instance * (1 - self.twins)
        return self._shuffled("class", self.regularization, beside)

    def _shuffled(self, stream: Stream, count: int, beside: float) -> _Shuffled:
        # Of whole optimizer steps: how they are divided into batches changes nothing.
        together = round(self.instances_per_step * self.processes * beside)
        return _Shuffled(count, self.seed, stream, self.shapes.get(stream, ()), max(1, together))


class _Shuffled:
    """An endless shuffled sequence over a set; each pass shows every item once.

    Of `together` items that follow each other, as few as possible differ in shape.
    """

    def __init__(
        self, count: int, seed: int, stream: Stream, shapes: Sequence[object], together: int
    ) -> None:
        self._count = count
        self._seed = seed
        self._stream = stream
        self._shapes = shapes
        self._together = together
        self._pass: tuple[int, np.ndarray] | None = None

    def item(self, number: int) -> int:
        turn, place = divmod(number, self._count)
        if self._pass is None or self._pass[0] != turn:
            rng = generator(self._seed, self._stream, turn, "order")
            order = rng.permutation(self._count)
            if self._shapes and self._together > 1:
                order = self._alike(order, -turn * self._count % self._together, rng)
            self._pass = turn, order
        return int(self._pass[1][place])

    def _alike(self, order: np.ndarray, first: int, rng: np.random.Generator) -> np.ndarray:
        """The order changed: after the `first`, which end what the last pass began, in groups."""
        size = self._together
        of_shape: dict[object, list[int]] = {}
        for index in order.tolist():
            of_shape.setdefault(self._shapes[index], []).append(index)
        groups: list[list[int]] = []
        rest: list[int] = []
        for members in of_shape.values():
            end = len(members) - len(members) % size
            groups += [members[at : at + size] for at in range(0, end, size)]
            rest += members[end:]
        while groups and len(rest) < first:
            rest += groups.pop()
        end = len(rest) - (len(rest) - first) % size
        groups += [rest[at : at + size] for at in range(first, end, size)]
        between = [index for at in rng.permutation(len(groups)) for index in groups[at]]
        return np.array([*rest[:first], *between, *rest[max(first, end) :]])


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers that follow from a seed and some names, and from nothing else."""
    return np.random.Generator(np.random.PCG64(number_of(seed, *names)))


def number_of(seed: int, *names: str | int) -> int:
    """A number of 63 bits that follows from a seed and some names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


# -------------------------------------------------------------------------------- what can go wrong


class TrainingFailed(RegforgeError):
    """Training that cannot go on. What was saved before is kept."""


class TrainingSetup(RegforgeError):
    """Training that cannot begin: the recipe asks for what is not there."""

    exit_code = EXIT_USAGE


class ExamplesError(RegforgeError):
    """Instance or regularization images that cannot be trained on."""

    exit_code = EXIT_USAGE


class FamilyError(RegforgeError):
    """A base model that cannot be trained."""


def out_of_memory(recipe: TrainingRecipe, when: str) -> TrainingFailed:
    """What to change, most useful first, leaving out what the recipe has already."""
    optimizer = recipe.optimizer
    at_once, anew = [], []
    if not optimizer.gradient_checkpointing:
        at_once.append("optimizer.gradient_checkpointing=true")
    if recipe.data.cache == "memory":
        at_once.append("data.cache=disk")
    if optimizer.batch_size > 1:
        accumulated = optimizer.batch_size * optimizer.gradient_accumulation
        anew.append(
            f"optimizer.batch_size=1 with optimizer.gradient_accumulation={accumulated}, which "
            "learns the same"
        )
    if optimizer.precision == "fp32":
        anew.append("optimizer.precision=bf16")
    if recipe.method.kind == "full":
        anew.append("method.kind=lora")
    elif recipe.method.text_encoder:
        anew.append("method.text_encoder=false")
    if recipe.method.kind == "lora" and recipe.method.quantize is None:
        anew.append("method.quantize=int8")
    if optimizer.name == "adamw":
        anew.append("optimizer.name=adamw8bit")
    anew.append("a smaller data.resolution")
    hint = f"Start over (--fresh) with {', or '.join(anew)}."
    if at_once:
        hint = (
            f"Set {' and '.join(at_once)} and go on from what is saved. If that is not enough: "
            + (hint[0].lower() + hint[1:])
        )
    return TrainingFailed(f"Out of memory {when}.", hint=hint)


def not_finite(recipe: TrainingRecipe, step: int, saved: Path | None) -> TrainingFailed:
    """The loss has become infinite or not a number; `saved` is the last checkpoint before that."""
    ways = [f"a lower optimizer.lr (it is {recipe.optimizer.lr:g})"]
    if recipe.optimizer.precision == "fp16":
        ways.append("optimizer.precision=bf16")
    if recipe.optimizer.warmup_steps == 0:
        ways.append("optimizer.warmup_steps=100")
    if recipe.optimizer.max_grad_norm is None:
        ways.append("optimizer.max_grad_norm=1.0")
    kept = f" The last good checkpoint is kept: {saved}." if saved else ""
    return TrainingFailed(
        f"The loss is not a number any more at step {step}; training has stopped.{kept}",
        hint="Start over (--fresh, or another --out) with " + ", or ".join(ways) + ".",
    )


# ------------------------------------------------------------------------------------- kept tensors

# Kept is what the models returned, bit for bit, so that a cached run and one that is not come to
# the same numbers. Names on disk follow from the model's weights and from its input, so that a
# cache never has the answers of another model.


_CHECKSUM = "crc32"


class Store:
    """Keeps nothing: every tensor is computed again."""

    keeps = False

    def load(self, key: str) -> Tensors | None:
        """Tensors that were saved under a key, on the CPU; None if there are none."""
        del key
        return None

    def save(self, key: str, tensors: Tensors) -> None:
        """Keep tensors of the CPU under a key."""


class MemoryStore(Store):
    """Keeps tensors in main memory, until the process ends."""

    keeps = True

    def __init__(self) -> None:
        self._kept: dict[str, Tensors] = {}

    def load(self, key: str) -> Tensors | None:
        """See `Store`."""
        return self._kept.get(key)

    def save(self, key: str, tensors: Tensors) -> None:
        """See `Store`."""
        self._kept[key] = tensors


class DiskStore(Store):
    """Keeps tensors in a safetensors file each, where later runs find them.

    A damaged file counts as none, and is reported: what it held is computed and written again.
    """

    keeps = True

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter

    def load(self, key: str) -> Tensors | None:
        """See `Store`."""
        from safetensors import safe_open

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                written = (file.metadata() or {}).get(_CHECKSUM)
            if written != _checksum(tensors):
                raise ValueError("its checksum is wrong")
        except Exception as error:  # whatever safetensors raises on a damaged file
            self._reporter.say(f"{path} is damaged and is made again ({error}).")
            return None
        return tensors

    def save(self, key: str, tensors: Tensors) -> None:
        """See `Store`.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        from safetensors.torch import save

        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path(key), save(whole, {_CHECKSUM: _checksum(whole)}))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    number = 0
    for name in sorted(tensors):
        number = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), number))
    return f"{number:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def key_of(*parts: object) -> str:
    """A name of 64 hex digits that follows from some parts; different parts, different names."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def identity(modules: Mapping[str, nn.Module], *about: object) -> str:
    """Which models these are: a digest of their classes, configurations and weights.

    Weights of some GB take seconds. The same model under another name or revision is the same.
    `about` is what else the modules' outputs depend on.
    """
    digest = hashlib.sha256(key_of(__version__, *about).encode())
    for name, module in sorted(modules.items()):
        config: Any = getattr(module, "config", None) or {}
        plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Where a model was loaded from, which begins with "_", does not count.
        facts = {key: str(value) for key, value in sorted(plain.items()) if key[:1] != "_"}
        digest.update(key_of(name, type(module).__name__, facts).encode())
        for place, tensor in sorted(module.state_dict().items()):
            digest.update(key_of(place, tensor.dtype, tuple(tensor.shape)).encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()
