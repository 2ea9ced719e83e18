"""Image files, with what made the image written into them.

The text is the one that web UIs and image browsers read: the prompt, the negative prompt, and a
line of parameters. It lies where they look for it: in the `parameters` chunk of a PNG, and in the
Exif user comment of a WebP or JPEG. Equal pixels and text give equal bytes.
"""

from __future__ import annotations

import io
import json
import re
import struct
from typing import Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from regforge.images.interface import ModelIdentity, Pixels, RenderError, is_told, job_size
from regforge.images.schedulers import sampler_name
from regforge.recipe.models import Render
from regforge.records import ImageJob

Format = Literal["webp", "png", "jpeg"]

SUFFIXES: dict[Format, str] = {"webp": "webp", "png": "png", "jpeg": "jpg"}

_WEBP_METHOD = 1
"""Of 0 to 6. The files of 4 are 2 to 5 % smaller and take three to five times as long."""


def encode_image(pixels: Pixels, *, format: Format, quality: int, text: str | None) -> bytes:  # noqa: A002
    """An image file.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        format: `webp` and `png` are lossless.
        quality: 1 to 100, for `jpeg`.
        text: What made the image, to be written into the file; None for nothing.

    Raises:
        RenderError: The text is longer than a JPEG can hold.
    """
    image, out = Image.fromarray(pixels), io.BytesIO()
    text = None if text is None else _storable(text)
    if format == "png":
        chunks = PngInfo()
        if text is not None:
            chunks.add_text("parameters", text)
        image.save(out, "PNG", pnginfo=chunks)
        return out.getvalue()
    exif = b"" if text is None else _exif(text)
    if format == "webp":
        image.save(
            out, "WEBP", lossless=True, exact=True, quality=0, method=_WEBP_METHOD, exif=exif
        )
    elif len(exif) > 65_533:
        raise RenderError(
            f"The prompt and parameters of an image are longer than a JPEG can hold ({len(exif)} "
            "bytes).",
            hint="Set render.format: webp",
        )
    else:
        image.save(out, "JPEG", quality=quality, subsampling=0, optimize=True, exif=exif)
    return out.getvalue()


def size_of(image: bytes) -> tuple[int, int]:
    """Width and height of an image file, in pixels."""
    with Image.open(io.BytesIO(image)) as decoded:
        return decoded.size


def parameters_text(job: ImageJob, render: Render, identity: ModelIdentity) -> str:
    """What made an image, in the form of the AUTOMATIC1111 web UI.

    The prompt, `Negative prompt: ...` if there is one, and a last line `Steps: 25, Sampler: DDIM,
    CFG scale: 4, Seed: 1, Size: 96x96, Model: ...`.
    """
    width, height = job_size(job, identity)
    values: dict[str, object] = {
        "Steps": render.steps if is_told(render, "steps") else None,
        "Sampler": sampler_name(identity.scheduler) if is_told(render, "scheduler") else None,
        "CFG scale": f"{render.guidance_scale:g}" if is_told(render, "guidance_scale") else None,
        "Seed": job.seed if is_told(render, "seed") else None,
        "Size": f"{width}x{height}",
        "Model": identity.model,
        "Revision": identity.revision,
        "VAE": identity.vae,
        "LoRA": identity.loras_as_json,
        "Precision": identity.dtype if render.renderer == "local" else None,
        "Class noun": job.prompt.class_noun,
        "Prompt set": job.prompt.prompt_set,
        "Image": job.id,
        "Generator": "regforge",
    }
    lines = [_one_paragraph(job.prompt.text)]
    if render.negative_prompt.strip():
        lines.append(f"Negative prompt: {render.negative_prompt.strip()}")
    known = ((name, value) for name, value in values.items() if value is not None)
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in known))
    return "\n".join(lines)


def _one_paragraph(text: str) -> str:
    """The prompt without a line that readers would take for the negative prompt."""
    return re.sub(r"\s*\n\s*(?=Negative prompt:)", " ", text.strip())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _storable(text: str) -> str:
    """The text without what no file can hold: halves of characters, and zeros."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _exif(text: str) -> bytes:
    """Exif data with nothing but a user comment.

    Written by hand: Pillow gives the comment a type (BYTE) that common readers do not expect.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    entry, end = ">HHII", struct.pack(">I", 0)
    # A header of 8 bytes, then two directories with one entry of 12 bytes each.
    first, second = 8, 8 + 2 + 12 + 4
    return b"".join(
        (
            b"Exif\0\0",
            struct.pack(">2sHI", b"MM", 42, first),
            struct.pack(">H", 1),
            struct.pack(entry, 0x8769, 4, 1, second),  # LONG: where the Exif directory lies
            end,
            struct.pack(">H", 1),
            struct.pack(entry, 0x9286, 7, len(comment), second + 2 + 12 + 4),  # UNDEFINED
            end,
            comment,
        )
    )
