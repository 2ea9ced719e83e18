"""Which part of an image is trained on, and its pixels.

Knows geometry and Pillow. A crop follows from the image's size, its name and the seed; the same
crop comes out whatever else is in the batch and however often it is asked for.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.image_files import flattened
from regforge.training.interface import Geometry
from regforge.training.order import generator

TIGHT = 0.75
"""A crop whose side is less than this share of the image's shorter side is a close-up."""

_RESAMPLING = Image.Resampling.LANCZOS

Kind = Literal["random", "center", "none"]


class ExamplesError(RegforgeError):
    """Photos or regularization images that cannot be trained on."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image, and the size it is brought to.

    Attributes:
        original: Height and width of the image, in pixels.
        box: Left, top, right and bottom of the part, in pixels of the image; of the mirrored one
            if it is mirrored.
        target: Height and width that the part is resized to, in pixels.
        flip: Whether the image is mirrored first.
    """

    original: tuple[int, int]
    box: tuple[int, int, int, int]
    target: tuple[int, int]
    flip: bool = False

    @property
    def geometry(self) -> Geometry:
        """What SDXL is told: the corner is counted in pixels of the image as it was resized."""
        left, top, right, bottom = self.box
        down, across = self.target[0] / (bottom - top), self.target[1] / (right - left)
        return Geometry(self.original, (round(top * down), round(left * across)), self.target)

    @property
    def tight(self) -> bool:
        """Whether it shows so little of the image that it is a close-up."""
        left, top, right, bottom = self.box
        return min(bottom - top, right - left) < TIGHT * min(self.original)


@dataclass(frozen=True, slots=True)
class Cropping:
    """How images are cropped.

    Attributes:
        kind: `data.crop`.
        scale: `data.crop_scale`.
        count: `data.crops_per_image`.
        resolution: Side of the square crops, in pixels; for `none`, the root of the area.
        multiple: Heights and widths are multiples of it.
        seed: The recipe's.
    """

    kind: Kind
    scale: float
    count: int
    resolution: int
    multiple: int
    seed: int

    @property
    def variants(self) -> int:
        """How many crops there are of each image, the mirrored ones not counted."""
        return self.count if self.kind == "random" else 1

    def crop(
        self, size: tuple[int, int], stream: str, name: str, variant: int, *, flip: bool = False
    ) -> Crop:
        """One of the crops of an image.

        `random` takes a square whose side is even between `scale` and 1 of the shorter side, at an
        even place; `center` the largest square in the middle; `none` everything, with its
        proportions kept as far as `multiple` allows.

        Args:
            size: Height and width of the image, in pixels, as a viewer shows it.
            stream: Whether it is a photo or a regularization image.
            name: Of the image.
            variant: Which of `variants`.
            flip: Whether it is mirrored.
        """
        height, width = size
        if self.kind == "none":
            return Crop(size, (0, 0, width, height), self._whole(size), flip)
        side, target = min(size), (self.resolution, self.resolution)
        top, left = (height - side) // 2, (width - side) // 2
        if self.kind == "random":
            rng = generator(self.seed, stream, name, variant, "box")
            side = max(1, round(side * rng.uniform(self.scale, 1.0)))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        return Crop(size, (left, top, left + side, top + side), target, flip)

    def _whole(self, size: tuple[int, int]) -> tuple[int, int]:
        ratio = math.sqrt(size[0] / size[1])

        def rounded(pixels: float) -> int:
            return max(1, round(pixels / self.multiple)) * self.multiple

        return rounded(self.resolution * ratio), rounded(self.resolution / ratio)


def pixels_of(image: Image.Image, crop: Crop) -> np.ndarray:
    """The pixels of a crop.

    Args:
        image: As `decode` returned it.
        crop: Made for its size.

    Returns:
        uint8 [height, width, 3], RGB; antialiased where it is smaller than the part was.
    """
    if crop.flip:
        image = ImageOps.mirror(image)
    height, width = crop.target
    return np.asarray(image.resize((width, height), _RESAMPLING, box=crop.box))


def decode(content: bytes, size: tuple[int, int], name: str) -> Image.Image:
    """An image as a viewer shows it: turned by its Exif data, RGB, white where it is transparent.

    Args:
        content: The file.
        size: Height and width that its header promised, as a viewer shows it.
        name: For the error.

    Raises:
        ExamplesError: It cannot be decoded to its end.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            image = _turned(opened, (size[1], size[0]))
            if image.size != (size[1], size[0]):
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            return flattened(image)
    except Exception as error:  # Pillow's readers raise anything on a damaged file
        raise ExamplesError(
            f"{name} cannot be decoded: {str(error).rstrip('.') or type(error).__name__}.",
            hint="Take the file out, or put a whole copy in its place, and run the command again.",
        ) from error


def _turned(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image turned as its Exif data says, if whoever read the header took it so too."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged Exif data leaves the image as good as it was
        return image
    return image if image.size == size != turned.size else turned
