"""Image files: decoded to the end, made plain where trainers would see another image; headers.

A viewer, and regforge's own training, show an image upright, on white where it is transparent, and
with 16 bits scaled to 8. Many trainers do none of this.

Image generators leave a text in the files they write (AUTOMATIC1111's web UI began it, regforge
does it too): the prompt, `Negative prompt: ...`, and a last line `Steps: 30, Sampler: Euler a,
CFG scale: 7, Seed: 1, Model hash: ...`. It lies in the `parameters` text of a PNG, and in the Exif
user comment of a JPEG or WebP.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

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


# ------------------------------------------------------------------------------------------ headers


_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_LONGEST_TEXT = 100_000
# Bounded, so that no text of a stranger can keep it busy.
_PARAMETER = re.compile(r'(\w[\w \-/]{0,40}):\s{0,4}("(?:\\.|[^"\\]){0,9999}"|[^,]*)(?:,|$)')


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file: pixels as stored, and what a generator wrote into it.

    Attributes:
        metadata: `seed`, `steps`, `scheduler`, `guidance_scale`, `negative_prompt`, `model`,
            `model_hash` of a generated image, as far as they are there; `exif_orientation`, 2 to
            8, if the image is to be turned.
    """

    width: int
    height: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None


def read_header(stream: BinaryIO) -> Header:
    """Read the header of an image file; decodes no pixels.

    Raises:
        BrokenImage: It is no image, or has so many pixels that it may be a bomb.
        RegforgeError: The stream does not give it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd Exif data, which does no harm
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream) as image:
                width, height = image.size
                exif = _exif(image)
                metadata, prompt = _parameters(_generator_text(image, exif))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except RegforgeError:
        raise
    except Exception as error:  # Pillow's readers raise anything on a damaged file
        raise BrokenImage("is not an image that can be read") from error
    orientation = exif.get(ORIENTATION)
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        metadata["exif_orientation"] = orientation
    return Header(width, height, metadata, prompt)


def _exif(image: Image.Image) -> Image.Exif:
    if "exif" not in image.info and image.format in ("TIFF", "MPO"):
        return image.getexif()
    # Not `getexif`: for a PNG that decodes the whole image.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except Exception:  # damaged Exif data leaves the image as good as it was
        return Image.Exif()
    return exif


def _generator_text(image: Image.Image, exif: Image.Exif) -> str:
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    except Exception:  # as above
        return ""
    return _comment_text(comment) if isinstance(comment, bytes) else str(comment or "")


def _comment_text(comment: bytes) -> str:
    """An Exif user comment: eight bytes that name the encoding, then the text."""
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        # The standard leaves the byte order open. Latin letters have their zeros in front, or not.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", errors="replace")
    return (text if code in (b"ASCII\0\0\0", bytes(8)) else comment).decode(errors="replace")


def _parameters(text: str) -> tuple[dict[str, Any], str | None]:
    """(metadata, prompt) of a text that an image generator left; nothing of any other text."""
    *lines, last = text[:_LONGEST_TEXT].strip("\0 \r\n").splitlines() or [""]
    found = {name.strip(): _unquoted(value) for name, value in _PARAMETER.findall(last)}
    if "Steps" not in found or "Seed" not in found:
        return {}, None
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    prompt = prompt.strip()
    known = {name: _as(kind, found.get(key)) for key, (name, kind) in _KNOWN.items()}
    known["negative_prompt"] = negative.strip() or None
    return {name: value for name, value in known.items() if value is not None}, prompt or None


_KNOWN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Seed": ("seed", int),
    "Steps": ("steps", int),
    "Sampler": ("scheduler", str),
    "CFG scale": ("guidance_scale", float),
    "Model": ("model", str),
    "Model hash": ("model_hash", str),
    "Revision": ("model_revision", str),
}


def _as(kind: Callable[[str], Any], value: str | None) -> Any:
    try:
        return kind(value) if value else None
    except ValueError:
        return None


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value.strip()
