"""Opens one image and says what matters to training: its hashes, and what is wrong with it.

Never raises for an image that cannot be read: that is one of the things to find. Knows nothing of
datasets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from regforge.image_files import (
    DEEP,
    OTHER_COLOURS,
    BrokenImage,
    TooManyPixels,
    decode,
    flattened,
    oddities,
    plain,
)
from regforge.images.curation import (
    constant_colour_of,
    perceptual_hash_of,
    pixel_digest_of,
)

LOW_QUALITY = 75
"""JPEG quality below which 8 x 8 blocks show, on the scale of libjpeg, 1 to 100."""

_LUMINANCE_SUM = 3691
"""Sum of the luminance table of ITU-T T.81 (JPEG), annex K.1, which is quality 50."""

CANNOT_BE_READ = "cannot be read"
TOO_LARGE = "too large to open"
LOW_JPEG_QUALITY = "low JPEG quality"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an image's file found.

    Attributes:
        digest: SHA-256 of the file, 64 hex digits.
        pixels: SHA-256 of the RGB pixels, 64 hex digits; empty if it cannot be read.
        hash: 64-bit pHash; None if it cannot be read.
        troubles: What is wrong with it, in the words above; `black` and `a single colour` too.
    """

    digest: str
    pixels: str = ""
    hash: int | None = None
    troubles: tuple[str, ...] = ()


def look_at(image: bytes) -> Look:
    """Look at an image.

    Args:
        image: The encoded file.
    """
    digest = hashlib.sha256(image).hexdigest()
    try:
        stored = decode(image)
    except TooManyPixels:
        return Look(digest, troubles=(TOO_LARGE,))
    except BrokenImage:
        return Look(digest, troubles=(CANNOT_BE_READ,))
    troubles = [each for each in oddities(image, stored) if each != OTHER_COLOURS]
    quality = jpeg_quality(getattr(stored, "quantization", None) or {})
    if quality is not None and quality < LOW_QUALITY:
        troubles.append(LOW_JPEG_QUALITY)
    # As trainers turn it into RGB, with what lies below transparent parts; of 16 bits, what they
    # should have seen: many of them cut all to white.
    decoded = flattened(stored) if DEEP in troubles else stored.convert("RGB")
    constant = constant_colour_of(decoded)
    return Look(
        digest,
        pixel_digest_of(decoded),
        int(perceptual_hash_of(decoded), 16),
        (*troubles, constant) if constant else tuple(troubles),
    )


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """The quality a JPEG file was saved with, about, on the scale of libjpeg, 1 to 100.

    libjpeg scales the standard table by 5000 / quality percent below 50, by 200 - 2 * quality
    percent from there on (jcparam.c, jpeg_quality_scaling); this is that rule, backwards.

    Args:
        tables: The file's quantization tables by number; 0 is that of luminance.

    Returns:
        None where there is no such table: the file is no JPEG.
    """
    luminance = tables.get(0)
    if not luminance:
        return None
    scale = 100 * sum(luminance) / _LUMINANCE_SUM
    quality = 5000 / scale if scale > 100 else (200 - scale) / 2
    return max(1, min(100, round(quality)))


def upright(image: bytes) -> Image.Image | None:
    """The image as RGB, as a viewer shows it; None if it cannot be read."""
    try:
        return plain(decode(image))
    except BrokenImage:  # `look_at` says what is wrong
        return None
