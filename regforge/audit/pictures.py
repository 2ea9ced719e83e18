"""Opens one picture and says what matters to training: its hashes, and what is wrong with it.

Never raises for a picture that cannot be read: that is one of the things to find. Knows nothing of
datasets.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from regforge.images.curation import (
    constant_colour_of,
    perceptual_hash_of,
    pixel_digest_of,
)

FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "GIF", "TIFF")
"""The fewer decoders see what comes from elsewhere, the better."""

ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""

LOW_QUALITY = 75
"""JPEG quality below which 8 x 8 blocks show, on the scale of libjpeg, 1 to 100."""

_LUMINANCE_SUM = 3691
"""Sum of the luminance table of ITU-T T.81 (JPEG), annex K.1, which is quality 50."""

CANNOT_BE_READ = "cannot be read"
TOO_LARGE = "too large to open"
TURNED = "turned by EXIF"
TRANSPARENT = "transparent"
LOW_JPEG_QUALITY = "low JPEG quality"
MANY_FRAMES = "animated"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a picture's file found.

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
    """Look at a picture.

    Args:
        image: The encoded file.
    """
    digest = hashlib.sha256(image).hexdigest()
    try:
        picture, troubles = _opened(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Look(digest, troubles=(TOO_LARGE,))
    except Exception:  # Pillow's decoders raise almost anything for a damaged file
        return Look(digest, troubles=(CANNOT_BE_READ,))
    constant = constant_colour_of(picture)
    return Look(
        digest,
        pixel_digest_of(picture),
        int(perceptual_hash_of(picture), 16),
        (*troubles, constant) if constant else tuple(troubles),
    )


def _opened(image: bytes) -> tuple[Image.Image, list[str]]:
    """The picture as RGB, as trainers turn it into, and its troubles."""
    with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
        if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or 2**63):
            raise Image.DecompressionBombError
        troubles = []
        if getattr(picture, "n_frames", 1) > 1:
            troubles.append(MANY_FRAMES)
        if picture.getexif().get(ORIENTATION, 1) not in (0, 1):
            troubles.append(TURNED)
        quality = jpeg_quality(getattr(picture, "quantization", None) or {})
        if quality is not None and quality < LOW_QUALITY:
            troubles.append(LOW_JPEG_QUALITY)
        picture.load()
        if _is_transparent(picture):
            troubles.append(TRANSPARENT)
        return picture.convert("RGB"), troubles


def _is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel lets something through; an alpha channel that is all 255 harms nobody."""
    if not picture.has_transparency_data:
        return False
    alpha = picture.convert("RGBA").getchannel("A")
    return any(alpha.histogram()[:255])


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
    """The picture as RGB, turned as a viewer shows it; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # as in `look_at`, which says what is wrong
        return None
