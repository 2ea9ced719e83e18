"""Which examples meet at which step, and what each draws at random: functions of the seed alone.

Every example that is ever trained on has a number, counted through the whole training: numbers of
instance examples and of regularization examples each begin at 0. What an example is (its image,
crop, dropped words, time step, noise) follows from (seed, stream, number) and nothing else. So a
resumed run goes on exactly, and one batch of 8 sees what 8 batches of 1 accumulate to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Stream = Literal["instance", "class"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One example of a batch.

    Attributes:
        stream: Whether it is a photo or a regularization image.
        number: Its number in its stream, from 0 through the whole training.
        index: Which image of the stream's set.
    """

    stream: Stream
    number: int
    index: int


class Shuffled:
    """An endless shuffled sequence over a set; each pass shows every item once.

    Args:
        count: Items in the set, at least 1.
        seed: Decides the order.
        stream: Sequences of different streams are independent.
    """

    def __init__(self, count: int, seed: int, stream: Stream) -> None:
        self._count = count
        self._seed = seed
        self._stream: Stream = stream
        self._pass: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> int:
        """The item at a place of the sequence, 0 and up."""
        turn, place = divmod(number, self._count)
        if self._pass is None or self._pass[0] != turn:
            rng = generator(self._seed, self._stream, turn, "order")
            self._pass = turn, rng.permutation(self._count)
        return int(self._pass[1][place])


@dataclass(frozen=True)
class Batches:
    """The batches of a training run.

    Attributes:
        photos: How many photos there are.
        images: How many regularization images there are; 0 for none.
        batch_size: Photos in a batch.
        per_instance: Regularization images beside each photo.
        accumulation: Batches per optimizer step.
        seed: The recipe's.
        processes: How many processes train together; each has batches of its own.
        process: Which of them this is, from 0.
    """

    photos: int
    images: int
    batch_size: int
    per_instance: int
    accumulation: int
    seed: int
    processes: int = 1
    process: int = 0

    def step(self, step: int) -> Iterator[list[Draw]]:
        """This process's batches of one optimizer step: photos first, then regularization images.

        Args:
            step: 0 and up.
        """
        for micro in range(step * self.accumulation, (step + 1) * self.accumulation):
            turn = micro * self.processes + self.process
            batch = _draws("instance", self._instances, turn, self.batch_size)
            if self.images:
                batch += _draws("class", self._classes, turn, self.batch_size * self.per_instance)
            yield batch

    # Kept, so that a set is shuffled once a pass: large ones take milliseconds.

    @cached_property
    def _instances(self) -> Shuffled:
        return Shuffled(self.photos, self.seed, "instance")

    @cached_property
    def _classes(self) -> Shuffled:
        return Shuffled(self.images, self.seed, "class")


def _draws(stream: Stream, order: Shuffled, turn: int, size: int) -> list[Draw]:
    return [Draw(stream, number, order[number]) for number in range(turn * size, (turn + 1) * size)]


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers that follow from a seed and some names, and from nothing else."""
    return np.random.Generator(np.random.PCG64(number_of(seed, *names)))


def number_of(seed: int, *names: str | int) -> int:
    """A number of 63 bits that follows from a seed and some names."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
