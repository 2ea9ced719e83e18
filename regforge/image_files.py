"""Image files: decoded to the end, and made plain where trainers would see another image.

A viewer, and regforge's own training, show an image upright, on white where it is transparent, and
with 16 bits scaled to 8. Many trainers do none of this.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from regforge.errors import RegforgeError

ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""

TURNED = "turned by EXIF"
TRANSPARENT = "transparent"
ANIMATED = "animated"
DEEP = "16 bits"
OTHER_COLOURS = "not RGB"

_FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "GIF", "TIFF")
"""The fewer decoders see what comes from elsewhere, the better."""

_SPEED = 1  # of PNG compression; 6, the default, takes longer and saves little


class BrokenImage(RegforgeError):
    """A file that is no image, or one that should not be opened; the message says why."""


class TooManyPixels(BrokenImage):
    """An image so large that it may be a bomb."""


def decode(content: bytes, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Decode an image file to its end, as it is stored; an animated one stands at its first frame.

    Raises:
        BrokenImage: It is no image of these formats, breaks off, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 2**63):
            raise Image.DecompressionBombError
        image.load()
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        raise BrokenImage(str(error).rstrip(".") or type(error).__name__) from error
    return image


def oddities(content: bytes, image: Image.Image) -> tuple[str, ...]:
    """Reasons why trainers may see another image than a viewer shows: the file's, decoded."""
    # Of a PNG with 16 bits a colour Pillow keeps 8, and does not say so.
    png = content[:8] == b"\x89PNG\r\n\x1a\n" and content[24] == 16
    found, deep = [], png or image.mode in ("I", "F") or image.mode.startswith("I;16")
    # MPO is a JPEG with further photos behind it, which no reader looks at.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        found.append(ANIMATED)
    if orientation(image) not in (0, 1):
        found.append(TURNED)
    if deep:
        found.append(DEEP)
    # An alpha channel that is all 255 harms nobody.
    if image.has_transparency_data and any(image.convert("RGBA").getchannel("A").histogram()[:255]):
        found.append(TRANSPARENT)
    if not deep and image.mode not in ("RGB", "RGBA", "L", "LA"):
        found.append(OTHER_COLOURS)
    return tuple(found)


def plain(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: upright, see `flattened` for the rest."""
    with suppress(Exception):  # damaged Exif data leaves the image as good as it was
        image = ImageOps.exif_transpose(image)
    return flattened(image)


def flattened(image: Image.Image) -> Image.Image:
    """The image as it is stored, RGB with 8 bits a channel, on white where it is transparent."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits; Pillow would cut, not scale
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, above).convert("RGB")
    return image.convert("RGB")


def plain_png(content: bytes) -> bytes:
    """A PNG file of the image as a viewer shows it, with its colour profile and nothing else in it.

    Raises:
        BrokenImage: See `decode`.
    """
    stored, out = decode(content), io.BytesIO()
    profile = stored.info.get("icc_profile") if stored.mode in ("RGB", "RGBA") else None
    image = plain(stored)
    image.info = {}
    image.save(out, "PNG", compress_level=_SPEED, icc_profile=profile)
    return out.getvalue()


def patient() -> warnings.catch_warnings[None]:
    """No warnings of Pillow's about damaged files while many are decoded: they are findings.

    Not in `decode` itself, since threads share the filters.
    """
    return warnings.catch_warnings(action="ignore", category=Warning)


def orientation(image: Image.Image) -> int:
    """The orientation in the EXIF data, 1 to 8; 1 is upright."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as in `plain`
        return 1
