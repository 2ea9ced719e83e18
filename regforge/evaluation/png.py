"""The file of a drawn image: a PNG that says what made it.

The chunk `regforge` says it as JSON, for us; `parameters` as web UIs write it, for image browsers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from regforge.files import parse_json

_CHUNK = "regforge"
_BLACKED_OUT = "blacked_out"
_SPEED = 1  # of compression; 6, the default, takes longer and saves little


def is_made_from(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a file is there, is whole, and says that all this made it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            says = parse_json(image.info[_CHUNK])
            image.verify()
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, Image.DecompressionBombError):
        return False
    return isinstance(says, dict) and made_from.items() <= says.items()


def read(path: Path) -> tuple[Image.Image, bool]:
    """The image, RGB, and whether a safety checker made it black."""
    with Image.open(path, formats=["PNG"]) as image:
        blacked_out = bool(json.loads(image.info[_CHUNK]).get(_BLACKED_OUT))
        return image.convert("RGB"), blacked_out


def as_png(
    image: Image.Image,
    made_from: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    blacked_out: bool,
) -> bytes:
    """The file of an image.

    Args:
        image: RGB.
        made_from: What `is_made_from` is asked later, and more; has `prompt`.
        parameters: Name and value of what image browsers are to show.
        blacked_out: Whether a safety checker made it black.
    """
    line = ", ".join(f"{key}: {value}" for key, value in parameters.items())
    chunks = PngInfo()
    chunks.add_text("parameters", f"{made_from['prompt']}\n{line}".replace("\0", ""))
    blacked = {_BLACKED_OUT: True} if blacked_out else {}
    chunks.add_text(_CHUNK, json.dumps({**made_from, **blacked}))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=chunks, compress_level=_SPEED)
    return out.getvalue()
