"""The artwork: loading it from the baked atlases, recolouring it, putting emblems on it.

A drawing is an RGBA uint8 array of 128 x 128 pixels, standing on the bottom edge. Coordinates of
emblems are in those pixels.
"""

from __future__ import annotations

import functools
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from . import vocabulary as v

ARTWORK = Path(__file__).parent.parent / "artwork"
SIDE = 128
COLUMNS = 16


@dataclass(frozen=True)
class Emblem:
    """A fine detail on a drawing: what makes one subject different from its look-alikes.

    Attributes:
        shape: 'letters', 'star', 'heart', 'bolt', 'ring' or 'zigzag'.
        x, y: Centre, in drawing pixels (0-128).
        size: Width of the emblem in drawing pixels.
        text: Two letters, for 'letters'.
        ink, paper: RGB of the mark and of the badge under it (None: no badge).
    """

    shape: str
    x: float
    y: float
    size: float = 36
    text: str = ""
    ink: tuple[int, int, int] = (30, 30, 40)
    paper: tuple[int, int, int] | None = (250, 250, 245)


@dataclass(frozen=True, eq=False)
class Drawing:
    """One drawing and where it came from."""

    name: str
    class_noun: str | None
    icon_set: str
    purpose: str
    pixels: np.ndarray


@functools.cache
def load(atlas: str) -> tuple[Drawing, ...]:
    """All drawings of an atlas.

    Args:
        atlas: 'classes' (training), 'relatives' (more of them, for the judge), 'subjects' (held
            out) or 'extras'.
    """
    rows = json.loads((ARTWORK / "index.json").read_text())[atlas]
    sheet = np.asarray(Image.open(ARTWORK / f"{atlas}.webp").convert("RGBA"))
    drawings = []
    for i, row in enumerate(rows):
        y, x = i // COLUMNS * SIDE, i % COLUMNS * SIDE
        drawings.append(
            Drawing(
                name=f"{row['set']}:{row['icon']}",
                class_noun=row.get("class_noun"),
                icon_set=row["set"],
                purpose=row.get("purpose", atlas),
                pixels=sheet[y : y + SIDE, x : x + SIDE].copy(),
            )
        )
    return tuple(drawings)


@functools.cache
def of_class(class_noun: str) -> tuple[Drawing, ...]:
    """The training drawings of a class noun."""
    return tuple(d for d in load("classes") if d.class_noun == class_noun)


def bend(drawing: Drawing, rng: random.Random) -> Drawing:
    """A new drawing made of an old one: mirrored, stretched, its colours exchanged."""
    pixels = drawing.pixels
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.6:
        order = rng.sample(range(3), 3)
        pixels = pixels[..., [*order, 3]]
    width = rng.randint(80, 128)
    narrow = cv2.resize(np.ascontiguousarray(pixels), (width, 128), interpolation=cv2.INTER_AREA)
    left = (128 - width) // 2
    pixels = np.pad(narrow, ((0, 0), (left, 128 - width - left), (0, 0)))
    return replace(drawing, pixels=pixels)


def recolor(pixels: np.ndarray, color: str | None) -> np.ndarray:
    """Tint a drawing, keeping its shading and most of its eyes, outlines and highlights."""
    if color is None:
        return pixels
    rgb, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3]
    luma = rgb @ np.array([0.3, 0.59, 0.11], np.float32) / 255
    median = float(np.median(luma[alpha > 128]))
    tone = np.clip(0.5 + (luma - median) * 0.9, 0, 1)[..., None]
    target = np.array(v.COLORS[color][0], np.float32)
    dark = target * (tone * 1.5 + 0.25)
    bright = target + (255 - target) * (tone - 0.5) * 1.5
    tinted = np.where(tone < 0.5, dark, bright)
    keep = ((luma < 0.12) | (luma > 0.97))[..., None] * 0.54
    if color in ("black", "white"):
        keep = keep * 0.3
    out = pixels.copy()
    out[..., :3] = np.clip(rgb * keep + tinted * (1 - keep), 0, 255)
    return out


def pattern(pixels: np.ndarray, texture: str | None, rng: np.random.Generator) -> np.ndarray:
    """Print stripes, dots or checks over a drawing, dark on bright and bright on dark."""
    if texture is None:
        return pixels
    yy, xx = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    period, offset = 19.0, float(rng.uniform(0, 19))
    if texture == "striped":
        angle = (0.0, math.pi / 4)[int(rng.integers(2))]
        printed = (xx * math.cos(angle) + yy * math.sin(angle) + offset) % period < period * 0.42
    elif texture == "dotted":
        dx, dy = (xx + offset) % period - period / 2, (yy + offset) % period - period / 2
        printed = dx**2 + dy**2 < (period * 0.3) ** 2
    else:
        cell = period * 0.75
        printed = ((xx + offset) // cell + (yy + offset) // cell) % 2 == 0
    rgb, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3]
    ink = 255.0 if rgb[alpha > 128].mean() < 150 else 30.0
    out = pixels.copy()
    out[..., :3] = np.where(printed[..., None], rgb * 0.3 + ink * 0.7, rgb)
    return out


def _mark(shape: str, size: float) -> list[tuple[float, float]]:
    """Corner points of an emblem around (0, 0)."""
    r = size * 0.42
    if shape == "star":
        radii = [r, r * 0.42] * 5
        return [
            (radius * math.sin(k * math.pi / 5), -radius * math.cos(k * math.pi / 5))
            for k, radius in enumerate(radii)
        ]
    if shape == "heart":
        ts = np.linspace(0, 2 * math.pi, 40)
        return [
            (
                r * 16 * math.sin(t) ** 3 / 17,
                -r * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 15,
            )
            for t in ts
        ]
    bolt = [(0.2, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.2, 1), (0.6, -0.2), (0.05, -0.2)]
    return [(x * r, y * r) for x, y in bolt]


def add_emblem(pixels: np.ndarray, emblem: Emblem) -> np.ndarray:
    """Draw `emblem` onto a drawing; it never paints outside the drawing's own outline."""
    scale = 4  # supersampled, so that small letters have clean edges
    big = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    rgb = np.ascontiguousarray(big[..., :3])
    x, y, size = (int(value * scale) for value in (emblem.x, emblem.y, emblem.size))
    if emblem.paper and emblem.shape == "letters":
        half, tall = size // 2, int(size * 0.36)
        cv2.rectangle(rgb, (x - half, y - tall), (x + half, y + tall), emblem.paper, -1)
    elif emblem.paper and emblem.shape != "zigzag":
        cv2.circle(rgb, (x, y), size // 2, emblem.paper, -1, cv2.LINE_AA)
    if emblem.shape == "letters":
        font, thickness = cv2.FONT_HERSHEY_DUPLEX, max(2, size // 14)
        (width, height), _ = cv2.getTextSize(emblem.text, font, 1.0, thickness)
        factor = size * 0.84 / width
        origin = (int(x - width * factor / 2), int(y + height * factor / 2))
        cv2.putText(rgb, emblem.text, origin, font, factor, emblem.ink, thickness, cv2.LINE_AA)
    elif emblem.shape == "ring":
        cv2.circle(rgb, (x, y), int(size * 0.3), emblem.ink, max(2, size // 7), cv2.LINE_AA)
    elif emblem.shape == "zigzag":
        step = size // 8
        points = [(x - size // 2 + k * step, y + (step if k % 2 else -step)) for k in range(9)]
        cv2.polylines(rgb, [np.array(points, np.int32)], False, emblem.ink, step, cv2.LINE_AA)
    else:
        corners = np.array([(x + px, y + py) for px, py in _mark(emblem.shape, size)], np.int32)
        cv2.fillPoly(rgb, [corners], emblem.ink, cv2.LINE_AA)
    out = pixels.copy()
    out[..., :3] = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return out
