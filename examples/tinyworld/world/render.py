"""Puts an image together: a drawing in a place, under a light, in a style.

Images are painted at twice their size and shrunk at the end. Output is uint8 RGB, `side` pixels
square, and the share of each pixel that the subject covers (float32, 0-1).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import cv2
import numpy as np

from . import drawings
from .captions import Spec
from .drawings import Drawing, Emblem
from .scenes import SCENES, Canvas

cv2.setNumThreads(1)
SIDE = 96
FLOATING = ("space", "sea")  # no ground, so no shadow


@dataclass(frozen=True)
class Image:
    """A rendered image: `image` uint8 (side, side, 3), `mask` float32 (side, side), 0-1."""

    image: np.ndarray
    mask: np.ndarray
    drawing: Drawing


@functools.cache
def _paper() -> np.ndarray:
    """A fixed sheet of paper grain with unit variance, cut at random for each image."""
    noise = np.random.RandomState(0).randn(512, 512).astype(np.float32)
    grain = cv2.GaussianBlur(noise, (0, 0), 1.4)
    return grain / grain.std()


def _grain(side: int, rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(512 - side, size=2)
    return _paper()[y : y + side, x : x + side, None]


def _watercolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    flat = cv2.medianBlur(image, 5).astype(np.float32)
    blurred = cv2.GaussianBlur(flat, (0, 0), side * 0.03)
    edges = np.clip((blurred - flat).mean(-1, keepdims=True) * 0.5, -20, 20)
    grain = _grain(side, rng)
    painted = flat * 0.78 + 255 * 0.22 - np.abs(edges) * 1.2 + grain * 6
    yy, xx = np.mgrid[:side, :side] / side
    border = np.minimum(np.minimum(xx, 1 - xx), np.minimum(yy, 1 - yy))[..., None]
    wet = np.clip((border + grain * 0.01) / 0.06, 0, 1)
    return painted * wet + 248 * (1 - wet)


def _sketch(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    lines = np.abs(cv2.Laplacian(cv2.GaussianBlur(gray, (0, 0), 1.2), cv2.CV_32F, ksize=3))
    # The subject is drawn with a firm hand, the scene behind it lightly.
    pressure = 0.4 + 0.6 * mask
    ink = np.clip(lines * 2.6, 0, 190) * pressure
    wash = 250 - (250 - image.astype(np.float32)) * (0.22 + 0.33 * mask)[..., None]
    return wash - ink[..., None] + _grain(side, rng) * 4


def _pixel_art(image: np.ndarray) -> np.ndarray:
    blocks = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    blocks = (blocks // 37 * 37 + 16).astype(np.uint8)  # seven levels a channel, 16 to 238
    return cv2.resize(blocks, image.shape[:2], interpolation=cv2.INTER_NEAREST)


def _apply_style(
    image: np.ndarray, mask: np.ndarray, style: str, rng: np.random.Generator
) -> np.ndarray:
    if style == "watercolor":
        image = _watercolor(image, rng)
    elif style == "sketch":
        image = _sketch(image, mask, rng)
    elif style == "pixel art":
        image = _pixel_art(image)
    return np.clip(image, 0, 255).astype(np.uint8)


def _apply_light(image: np.ndarray, light: str) -> np.ndarray:
    pixels = image.astype(np.float32)
    if light == "sunset":
        t = np.linspace(0, 1, image.shape[0])[:, None, None]
        glow = np.array([62, 28, 12]) * (1 - t) + np.array([28, 6, 6])
        pixels = pixels * np.array([1.02, 0.76, 0.6]) + glow
    elif light == "night":
        pixels = pixels * np.array([0.36, 0.42, 0.62]) + np.array([4, 8, 28])
    elif light == "fog":
        gray = pixels.mean(-1, keepdims=True)
        pixels = gray * 0.2 + pixels * 0.38 + np.array([218, 222, 228]) * 0.42
    return np.clip(pixels, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Pose:
    """Where the drawing stands: width in pixels, centre x, feet y, tilt in degrees, squash 0-1."""

    width: float
    x: float
    feet: float
    tilt: float
    squash: float


def _pose(spec: Spec, side: int, rng: np.random.Generator) -> _Pose:
    low, high = {"small": (0.38, 0.42), "large": (0.8, 0.86), None: (0.58, 0.64)}[spec.size]
    scale = float(rng.uniform(low, high))
    reach = 0.12 * (1 - scale)
    x = side * float(rng.uniform(0.5 - reach, 0.5 + reach))
    feet, tilt, squash = side * float(rng.uniform(0.9, 0.94)), float(rng.uniform(-3, 3)), 1.0
    if spec.motion == "jumping":
        feet, tilt = feet - side * 0.2 * (1.25 - scale), tilt - 14
    elif spec.motion == "running":
        tilt += 8
    elif spec.motion == "sleeping":
        squash = 0.72
    return _Pose(scale * side, x, feet, tilt, squash)


def _place_drawing(pixels: np.ndarray, pose: _Pose, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp a drawing onto an empty image: premultiplied RGB float32, alpha float32."""
    half = drawings.SIDE / 2
    turn = np.vstack([cv2.getRotationMatrix2D((half, drawings.SIDE), pose.tilt, 1), [0, 0, 1]])
    sx = pose.width / drawings.SIDE
    sy = sx * pose.squash
    move = np.array(
        [[sx, 0, pose.x - sx * half], [0, sy, pose.feet - sy * drawings.SIDE], [0, 0, 1]]
    )
    matrix = (move @ turn)[:2]
    alpha = pixels[..., 3:].astype(np.float32) / 255
    layers = np.concatenate([pixels[..., :3] * alpha, alpha], -1).astype(np.float32)
    warped = cv2.warpAffine(layers, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return warped[..., :3], warped[..., 3]


def _shadow(image: np.ndarray, pose: _Pose, lifted: bool) -> np.ndarray:
    side = image.shape[0]
    shade = np.zeros((side, side), np.float32)
    y = int(side * 0.94 if lifted else pose.feet - pose.width * 0.01)
    axes = (int(pose.width * 0.4), int(pose.width * 0.06))
    cv2.ellipse(shade, (int(pose.x), y), axes, 0, 0, 360, 0.45, -1)
    return image * (1 - cv2.GaussianBlur(shade, (0, 0), side * 0.012))[..., None]


def _speed_lines(image: np.ndarray, pose: _Pose) -> None:
    side = image.shape[0]
    for k in range(3):
        y = int(pose.feet - pose.width * (0.25 + 0.22 * k))
        start = int(pose.x + pose.width * 0.5)
        end = (int(start + side * 0.16), y)
        cv2.line(image, (start, y), end, (255, 255, 255), side // 45, cv2.LINE_AA)


def _sleep_signs(image: np.ndarray, pose: _Pose) -> None:
    side = image.shape[0]
    for k in range(2):
        x = int(min(side * 0.8, pose.x + pose.width * 0.3) + k * side * 0.07)
        y = int(max(side * 0.2, pose.feet - pose.width * 0.72) - k * side * 0.1)
        size = side / 230 * (1 + 0.3 * k)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, "Z", (x, y), font, size, (255, 255, 255), side // 45, cv2.LINE_AA)


def render(
    spec: Spec,
    seed: int,
    *,
    drawing: Drawing | None = None,
    emblem: Emblem | None = None,
    side: int = SIDE,
) -> Image:
    """Paint one image; the same arguments give the same image.

    Args:
        spec: What to show.
        seed: Source of everything the spec leaves open.
        drawing: The drawing to use; by default one of the class noun's training drawings.
        emblem: A detail to put on the drawing.
        side: Side of the finished image, in pixels.
    """
    rng = np.random.default_rng(seed)
    big = 2 * side
    if drawing is None:
        drawing = random.Random(seed).choice(drawings.of_class(spec.class_noun))
    canvas = Canvas(big, rng)
    SCENES[spec.place](canvas)
    pixels = drawings.pattern(drawings.recolor(drawing.pixels, spec.color), spec.texture, rng)
    if emblem is not None:
        pixels = drawings.add_emblem(pixels, emblem)
    pose = _pose(spec, big, rng)
    subject, alpha = _place_drawing(pixels, pose, big)
    image = canvas.pixels.astype(np.float32)
    if spec.place not in FLOATING:
        image = _shadow(image, pose, lifted=spec.motion == "jumping")
    if spec.motion == "running":
        _speed_lines(image, pose)
    image = np.clip(image * (1 - alpha[..., None]) + subject, 0, 255).astype(np.uint8)
    if spec.motion == "sleeping":
        _sleep_signs(image, pose)
    lit = _apply_light(image, spec.light)
    styled = _apply_style(lit, alpha, spec.style, rng)
    shrink = cv2.INTER_NEAREST if spec.style == "pixel art" else cv2.INTER_AREA
    return Image(
        image=cv2.resize(styled, (side, side), interpolation=shrink),
        mask=cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA),
        drawing=drawing,
    )


def grid(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Lay images out in rows: uint8 (rows * side, columns * side, 3), white where none is."""
    side = images[0].shape[0]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * side, i % columns * side
        sheet[y : y + side, x : x + side] = image
    return sheet
