"""What is trained on at which step, and the tensors of it: what all parts of training share.

Every example has a number, counted through the whole training, from 0 for instance examples and
for regularization examples alike. What an example is (image, crop, dropped words, time step, noise)
follows from (seed, stream, number) and nothing else. So a resumed run goes on exactly, and one
batch of 8 sees what 8 batches of 1 accumulate to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Stream = Literal["instance", "class"]
"""Instance images, or regularization images (class images, as DreamBooth calls them)."""

Embeddings = dict[str, "Tensor"]
"""A caption's text embeddings by the pipeline's argument names, with or without a batch axis."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One example of a batch: its stream, its number in it, and which image of the stream's set."""

    stream: Stream
    number: int
    index: int


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
    """Examples whose latents have one shape: instance images first, then regularization images.

    Attributes:
        moments: float32 [N, 2, C, h, w]: the autoencoder's mean and deviation of each crop.
        sampling_noise: float32 [N, C, h, w], normal: draws the latents from the moments.
        noise: float32 [N, C, h, w], normal: what is added to the latents.
        uniform: float32 [N], 0 to 1: at which time.
        captions: What each example is trained with; empty where the caption was dropped.
        embeddings: Of the captions, with a batch axis; None while a text encoder is trained.
        geometry: Which part of its image each example shows.
        instances: How many of the examples are instance images.
    """

    moments: Tensor
    sampling_noise: Tensor
    noise: Tensor
    uniform: Tensor
    captions: Sequence[str]
    embeddings: Embeddings | None
    geometry: Sequence[Geometry]
    instances: int

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Batches:
    """Which examples each process trains on at each step.

    Attributes:
        instances: How many instance images there are.
        regularization: How many regularization images there are; 0 for none.
        batch_size: Instance images in a batch.
        per_instance: Regularization images beside each instance image.
        accumulation: Batches per optimizer step.
        process: Which of the processes this is, from 0; each has batches of its own.
    """

    instances: int
    regularization: int
    batch_size: int
    per_instance: int
    accumulation: int
    seed: int
    processes: int = 1
    process: int = 0

    @property
    def instances_per_step(self) -> int:
        """Instance images in this process's share of an optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def regularization_per_step(self) -> int:
        """Regularization images in this process's share of an optimizer step."""
        return self.instances_per_step * self.per_instance if self.regularization else 0

    def step(self, step: int) -> Iterator[list[Draw]]:
        """This process's batches of an optimizer step, 0 and up: instance images first."""
        for micro in range(step * self.accumulation, (step + 1) * self.accumulation):
            turn = micro * self.processes + self.process
            draws = self._instances.draws(turn, self.batch_size)
            if self.regularization:
                draws += self._regularization.draws(turn, self.batch_size * self.per_instance)
            yield draws

    # Kept, so that a set is shuffled once a pass: large ones take milliseconds.

    @cached_property
    def _instances(self) -> _Shuffled:
        return _Shuffled(self.instances, self.seed, "instance")

    @cached_property
    def _regularization(self) -> _Shuffled:
        return _Shuffled(self.regularization, self.seed, "class")


class _Shuffled:
    """An endless shuffled sequence over a set; each pass shows every item once."""

    def __init__(self, count: int, seed: int, stream: Stream) -> None:
        self._count = count
        self._seed = seed
        self._stream: Stream = stream
        self._pass: tuple[int, np.ndarray] | None = None

    def draws(self, turn: int, size: int) -> list[Draw]:
        numbers = range(turn * size, (turn + 1) * size)
        return [Draw(self._stream, number, self._item(number)) for number in numbers]

    def _item(self, number: int) -> int:
        turn, place = divmod(number, self._count)
        if self._pass is None or self._pass[0] != turn:
            rng = generator(self._seed, self._stream, turn, "order")
            self._pass = turn, rng.permutation(self._count)
        return int(self._pass[1][place])


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers that follow from a seed and some names, and from nothing else."""
    return np.random.Generator(np.random.PCG64(number_of(seed, *names)))


def number_of(seed: int, *names: str | int) -> int:
    """A number of 63 bits that follows from a seed and some names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
