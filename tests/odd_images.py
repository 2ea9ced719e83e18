"""Image files that readers take for other images than viewers show, and damaged ones."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIZE = (12, 8)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width: int, height: int, depth: int, color: int, pixels: bytes) -> bytes:
    """A PNG file of these pixels; each line begins with a zero byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def turned(orientation: int = 6, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(noise(), kind, exif=exif)


def transparent(kind: str = "PNG") -> bytes:
    """White noise of which the left half is transparent, black below."""
    pixels = np.zeros((SIZE[1], SIZE[0], 4), dtype=np.uint8)
    pixels[:, SIZE[0] // 2 :] = (200, 30, 30, 255)
    return file_of(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))


def deep_grey() -> bytes:
    """16-bit grey from dark to half bright."""
    ramp = np.linspace(300, 33000, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[::-1])
    return file_of(Image.fromarray(ramp))


def deep_colour() -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, (SIZE[1], 3 * SIZE[0])).astype(">u2")
    return png(*SIZE, 16, 2, b"".join(b"\0" + line.tobytes() for line in values))


def animated(kind: str = "WEBP") -> bytes:
    frames = [noise(seed=number) for number in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


ODD = {
    "turned JPEG": (turned(), "turned", "jpg"),
    "mirrored PNG": (turned(2, "PNG"), "turned", "png"),
    "turned WebP": (turned(8, "WEBP"), "turned", "webp"),
    "transparent PNG": (transparent(), "transparent", "png"),
    "transparent WebP": (transparent("WEBP"), "transparent", "webp"),
    "transparent palette": (
        file_of(noise().convert("P"), transparency=0),
        "not stored as RGB",
        "png",
    ),
    "grey of 16 bits": (deep_grey(), "16 bits", "png"),
    "colours of 16 bits": (deep_colour(), "16 bits", "png"),
    "palette": (file_of(noise().convert("P")), "not stored as RGB", "png"),
    "CMYK": (file_of(noise().convert("CMYK"), "JPEG"), "not stored as RGB", "jpg"),
    "animated WebP": (animated(), "animated", "webp"),
    "animated PNG": (animated("PNG"), "animated", "png"),
}
"""Name -> (file, what an export says about it, its suffix)."""

PLAIN = {
    "grey": (file_of(noise().convert("L")), "png"),
    "opaque": (file_of(noise().convert("RGBA")), "png"),
    "upright": (turned(1), "jpg"),
    "JPEG": (file_of(noise(), "JPEG"), "jpg"),
}
"""Name -> (file, its suffix)."""


def cut(content: bytes, share: float = 0.5) -> bytes:
    """The first part of a file."""
    return content[: int(len(content) * share)]
