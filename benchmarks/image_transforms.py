"""The image transforms of torchvision that diffusers' training scripts call, where it is missing.

PyPI has torchvision for some builds of PyTorch only. On Pillow images its transforms are calls of
Pillow and a copy to a tensor; these are the same calls, so that a step of a script costs the same.
`timed.py` lets a script import this module as `torchvision.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

InterpolationMode = IntEnum(
    "InterpolationMode", {each.name: each.value for each in Image.Resampling}
)


def Compose(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One transform after the other."""

    def transform(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return transform


def Resize(size: int, interpolation: int) -> Callable[[Image.Image], Image.Image]:
    """To a length of the shorter side."""

    def transform(image: Image.Image) -> Image.Image:
        wanted = tuple(int(side * size / min(image.size)) for side in image.size)
        return image if wanted == image.size else image.resize(wanted, interpolation)  # type: ignore[arg-type]

    return transform


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A part of an image."""
    return image.crop((left, top, left + width, top + height))


class RandomCrop:
    """A square somewhere in an image."""

    def __init__(self, size: int) -> None:
        self.size = (size, size)

    @staticmethod
    def get_params(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        spare = image.height - size[0], image.width - size[1]
        top, left = (int(torch.randint(0, each + 1, (1,))) for each in spare)
        return top, left, *size

    def __call__(self, image: Image.Image) -> Image.Image:
        """The part; an image of that size as it is."""
        return image if image.size == self.size else crop(image, *self.get_params(image, self.size))


class CenterCrop(RandomCrop):
    """The square in the middle of an image."""

    @staticmethod
    def get_params(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        return (image.height - size[0]) // 2, (image.width - size[1]) // 2, *size


def RandomHorizontalFlip(p: float) -> Callable[[Image.Image], Image.Image]:
    """Mirrors with a probability."""
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return lambda image: image.transpose(mirror) if float(torch.rand(1)) < p else image


def ToTensor() -> Callable[[Image.Image], Tensor]:
    """To float32 [3, H, W], 0 to 1."""

    def transform(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255)

    return transform


def Normalize(mean: list[float], std: list[float]) -> Callable[[Tensor], Tensor]:
    """Subtracts a mean and divides by a deviation, by channel."""
    shift, scale = (torch.as_tensor(each).view(-1, 1, 1) for each in (mean, std))
    return lambda pixels: pixels.clone().sub_(shift).div_(scale)
