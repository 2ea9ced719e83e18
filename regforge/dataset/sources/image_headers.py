"""Reads image headers: the size, how the image is turned, and what it was generated with.

Decodes no pixels. Image generators leave a text in the files they write
(AUTOMATIC1111's web UI began it, regforge does it too): the prompt, `Negative prompt: ...`, and a
last line `Steps: 30, Sampler: Euler a, CFG scale: 7, Seed: 1, Model hash: ...`. It lies in the
`parameters` text of a PNG, and in the Exif user comment of a JPEG or WebP.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from PIL import Image

from regforge.errors import RegforgeError
from regforge.image_files import BrokenImage, TooManyPixels
from regforge.recipe.named_files import IMAGE_SUFFIXES as PHOTO_SUFFIXES

IMAGE_SUFFIXES = PHOTO_SUFFIXES | {".jfif"}

UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".psd", ".raw", ".dng", ".svg"})
"""Images too, but no trainer reads them."""

_ORIENTATION, _EXIF_FOLDER, _USER_COMMENT = 0x0112, 0x8769, 0x9286
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
    """Read the header of an image file.

    Raises:
        BrokenImage: It is no image, or has so many pixels that it may be a bomb.
        HubError: The Hub does not give it.
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
    orientation = exif.get(_ORIENTATION)
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
