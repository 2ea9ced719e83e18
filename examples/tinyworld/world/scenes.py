"""The twenty places of the tiny world, each a function that paints on a `Canvas`.

Coordinates are fractions of the image, colours RGB 0-255. Every scene keeps some randomness of
its own (clouds, trees, furniture), so that a place is a kind of image, not one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

Color = tuple[int, int, int]
SKY: tuple[Color, Color] = ((110, 175, 240), (205, 230, 250))


class Canvas:
    """A square RGB image of `side` pixels with a few painting verbs."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.side = side
        self.rng = rng
        self.horizon = rng.uniform(0.52, 0.6)
        self.pixels = np.zeros((side, side, 3), np.uint8)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def jitter(self, color: Color, amount: float = 12) -> Color:
        noise = self.rng.uniform(-amount, amount, 3)
        r, g, b = (int(c) for c in np.clip(np.array(color) + noise, 0, 255))
        return r, g, b

    def pick(self, colors: list[Color]) -> Color:
        return colors[int(self.rng.integers(len(colors)))]

    def _gradient(self, rows: int, top: Color, bottom: Color) -> np.ndarray:
        t = np.linspace(0, 1, rows)[:, None, None]
        band = np.array(self.jitter(top)) * (1 - t) + np.array(self.jitter(bottom)) * t
        return band.repeat(self.side, 1).astype(np.uint8)

    def backdrop(self, top: Color, bottom: Color) -> None:
        self.pixels = np.ascontiguousarray(self._gradient(self.side, top, bottom))

    def ground(self, y: float, top: Color, bottom: Color) -> None:
        row = int(y * self.side)
        self.pixels[row:] = self._gradient(self.side - row, top, bottom)

    def _points(self, *points: tuple[float, float]) -> list[tuple[int, int]]:
        return [(int(x * self.side), int(y * self.side)) for x, y in points]

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        a, b = self._points((x0, y0), (x1, y1))
        cv2.rectangle(self.pixels, a, b, color, -1)

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        corners = np.array(self._points(*points), np.int32)
        cv2.fillPoly(self.pixels, [corners], color, cv2.LINE_AA)

    def circle(self, x: float, y: float, radius: float, color: Color) -> None:
        center = self._points((x, y))[0]
        cv2.circle(self.pixels, center, max(1, int(radius * self.side)), color, -1, cv2.LINE_AA)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        axes = (max(1, int(rx * self.side)), max(1, int(ry * self.side)))
        center = self._points((x, y))[0]
        cv2.ellipse(self.pixels, center, axes, 0, 0, 360, color, -1, cv2.LINE_AA)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float, color: Color) -> None:
        a, b = self._points((x0, y0), (x1, y1))
        cv2.line(self.pixels, a, b, color, max(1, int(width * self.side)), cv2.LINE_AA)

    def clouds(self, count: int) -> None:
        for _ in range(count):
            x, y = self.uniform(0, 1), self.uniform(0.05, 0.25)
            for k in range(3):
                dy = self.uniform(-0.015, 0.015)
                self.ellipse(x + k * 0.06 - 0.06, y + dy, 0.07, 0.035, (250, 250, 252))

    def hills(self, y: float, height: float, color: Color) -> None:
        frequency, phase = self.uniform(1.5, 3.5), self.uniform(0, 6.3)
        ridge = [
            (float(x), y + height * math.sin(frequency * x * 3 + phase))
            for x in np.linspace(0, 1, 24)
        ]
        self.polygon([(0, 1), *ridge, (1, 1)], color)


def beach(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.clouds(2)
    c.ground(h - 0.1, (40, 130, 200), (70, 190, 215))
    c.ground(h + 0.06, (245, 225, 165), (225, 195, 130))
    c.line(0, h + 0.06, 1, h + 0.06, 0.02, (250, 250, 250))
    x = c.uniform(0.02, 0.2) if c.rng.random() < 0.5 else c.uniform(0.8, 0.98)
    c.line(x, 0.75, x, 0.25, 0.03, (130, 90, 50))
    for k in range(5):
        angle = k * 1.26
        tip = (x + 0.2 * math.cos(angle), 0.28 + 0.12 * math.sin(angle))
        c.line(x, 0.25, tip[0], tip[1], 0.025, (50, 140, 60))


def forest(c: Canvas) -> None:
    h = c.horizon
    c.backdrop((150, 195, 160), (200, 225, 190))
    c.ground(h + 0.05, (75, 110, 50), (50, 80, 35))
    for k in range(7):
        x, top = k / 6 + c.uniform(-0.06, 0.06), c.uniform(0, 0.25)
        width = c.uniform(0.02, 0.045)
        c.line(x, 0.2, x, h + c.uniform(0.06, 0.14), width, c.jitter((90, 62, 40)))
        green = c.jitter((35, 105, 50), 18)
        c.polygon([(x - 0.13, top + 0.38), (x + 0.13, top + 0.38), (x, top)], green)
        upper = [(x - 0.1, top + 0.22), (x + 0.1, top + 0.22), (x, top - 0.12)]
        c.polygon(upper, c.jitter(green))


def snow(c: Canvas) -> None:
    h = c.horizon
    c.backdrop((170, 195, 220), (225, 235, 245))
    c.hills(h - 0.05, 0.05, c.jitter((215, 225, 238), 6))
    c.ground(h + 0.05, (245, 248, 252), (222, 232, 245))
    for k in range(3):
        x = k / 2 + c.uniform(-0.12, 0.12)
        c.polygon([(x - 0.08, h + 0.07), (x + 0.08, h + 0.07), (x, h - 0.27)], (70, 110, 100))
        c.polygon([(x - 0.045, h - 0.1), (x + 0.045, h - 0.1), (x, h - 0.27)], (245, 248, 250))
    for _ in range(24):
        c.circle(c.uniform(0, 1), c.uniform(0, 1), 0.01, (255, 255, 255))


def city(c: Canvas) -> None:
    c.backdrop(*SKY)
    x = -0.05
    while x < 1:
        width, top = c.uniform(0.1, 0.2), c.uniform(0.08, 0.38)
        c.rect(x, top, x + width, 0.8, c.jitter((110, 120, 140), 28))
        for i in range(int(width / 0.05)):
            for j in range(7):
                if c.rng.random() < 0.75:
                    left, up = x + 0.015 + i * 0.05, top + 0.04 + j * 0.07
                    c.rect(left, up, left + 0.02, up + 0.035, (245, 235, 170))
        x += width + c.uniform(0, 0.02)
    c.ground(c.horizon + 0.12, (120, 120, 125), (90, 90, 95))


def desert(c: Canvas) -> None:
    h = c.horizon
    c.backdrop((120, 190, 240), (245, 225, 190))
    c.hills(h, 0.06, c.jitter((225, 170, 95)))
    c.hills(h + 0.12, 0.05, c.jitter((210, 150, 75)))
    c.ground(0.82, (222, 165, 90), (200, 140, 70))
    for x in (c.uniform(0.04, 0.25), c.uniform(0.75, 0.96)):
        green = (60, 130, 70)
        c.line(x, h + 0.15, x, h - 0.14, 0.04, green)
        c.line(x - 0.06, h, x, h + 0.03, 0.028, green)
        c.line(x - 0.06, h - 0.07, x - 0.06, h, 0.028, green)


def kitchen(c: Canvas) -> None:
    h = c.horizon
    c.backdrop((238, 225, 200), (238, 225, 200))
    for i in range(9):
        c.line(i / 8, 0, i / 8, h, 0.006, (215, 200, 175))
    for j in range(5):
        c.line(0, j / 8, 1, j / 8, 0.006, (215, 200, 175))
    c.rect(0, 0, 1, 0.16, c.jitter((150, 95, 55)))
    c.line(0.5, 0, 0.5, 0.16, 0.01, (100, 60, 35))
    x = c.uniform(0.05, 0.6)
    c.rect(x, 0.22, x + 0.3, 0.45, (190, 225, 250))
    c.line(x + 0.15, 0.22, x + 0.15, 0.45, 0.012, (255, 255, 255))
    c.ground(h + 0.05, (175, 120, 70), (150, 98, 55))
    c.line(0, h + 0.05, 1, h + 0.05, 0.02, (120, 75, 40))


def bedroom(c: Canvas) -> None:
    c.backdrop((190, 200, 225), (190, 200, 225))
    c.ground(0.72, (165, 125, 90), (145, 105, 75))
    x, blanket = c.uniform(-0.1, 0.25), c.jitter((190, 80, 100), 25)
    c.rect(x, 0.4, x + 0.06, 0.85, (110, 70, 45))
    c.rect(x + 0.04, 0.55, x + 0.75, 0.8, blanket)
    c.rect(x + 0.06, 0.5, x + 0.22, 0.58, (250, 250, 250))
    w = c.uniform(0.55, 0.72)
    c.rect(w, 0.08, w + 0.24, 0.36, (170, 215, 250))
    c.rect(w - 0.04, 0.05, w + 0.02, 0.42, (230, 190, 90))
    c.rect(w + 0.22, 0.05, w + 0.28, 0.42, (230, 190, 90))


def meadow(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.clouds(3)
    c.hills(h - 0.03, 0.04, c.jitter((120, 185, 80)))
    c.ground(h + 0.05, (110, 190, 70), (70, 150, 45))
    for _ in range(40):
        x, y = c.uniform(0, 1), c.uniform(h + 0.08, 1)
        c.line(x, y, x + c.uniform(-0.01, 0.01), y - 0.04, 0.008, c.jitter((60, 140, 40)))


def space(c: Canvas) -> None:
    c.backdrop((8, 8, 30), (30, 15, 60))
    for _ in range(50):
        c.circle(c.uniform(0, 1), c.uniform(0, 1), c.uniform(0.004, 0.009), (255, 255, 240))
    x, y, r = c.uniform(0.1, 0.9), c.uniform(0.1, 0.3), c.uniform(0.08, 0.12)
    c.circle(x, y, r, c.jitter((220, 150, 90), 25))
    c.ellipse(x, y, r * 1.7, r * 0.25, (235, 210, 160))
    c.ellipse(0.5, 1.05, 0.8, c.uniform(0.22, 0.3), c.jitter((150, 150, 160)))
    for _ in range(5):
        c.ellipse(c.uniform(0.1, 0.9), c.uniform(0.88, 1), 0.05, 0.018, (120, 120, 130))


def sea(c: Canvas) -> None:
    c.backdrop((60, 170, 220), (10, 60, 130))
    c.hills(0.85, 0.03, c.jitter((215, 195, 140)))
    for _ in range(6):
        x, coral = c.uniform(0, 1), c.pick([(40, 150, 90), (230, 90, 110), (240, 150, 60)])
        for j in range(3):
            lean = c.uniform(-0.03, 0.03)
            c.line(x + j * 0.03, 0.95, x + j * 0.03 + lean, c.uniform(0.6, 0.8), 0.02, coral)
    for _ in range(12):
        radius = c.uniform(0.01, 0.022)
        c.circle(c.uniform(0, 1), c.uniform(0, 0.8), radius, (170, 220, 245))


def mountain(c: Canvas) -> None:
    base = c.horizon + 0.1
    c.backdrop(*SKY)
    for k in range(4):
        x, top = k / 3 + c.uniform(-0.1, 0.1), c.uniform(0.08, 0.25)
        width, cap = c.uniform(0.25, 0.38), 0.3
        c.polygon([(x - width, base), (x + width, base), (x, top)], c.jitter((110, 115, 135)))
        y = top + (base - top) * cap
        c.polygon([(x - width * cap, y), (x + width * cap, y), (x, top)], (245, 248, 252))
    c.ground(c.horizon + 0.05, (120, 160, 90), (85, 125, 65))


def road(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.clouds(2)
    c.ground(h - 0.08, (120, 175, 85), (90, 145, 60))
    c.ground(h + 0.08, (85, 85, 92), (65, 65, 72))
    shift = c.uniform(0, 0.2)
    for k in range(6):
        c.rect(k * 0.22 - shift, 0.87, k * 0.22 + 0.12 - shift, 0.9, (250, 240, 200))
    c.line(0, h + 0.09, 1, h + 0.09, 0.015, (235, 235, 235))


def garden(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.rect(0, h - 0.16, 1, h, (250, 250, 245))
    for k in range(13):
        c.line(k / 12, h - 0.2, k / 12, h + 0.05, 0.03, (235, 235, 228))
    c.ground(h + 0.02, (95, 165, 65), (65, 130, 45))
    petals = [(235, 60, 90), (250, 200, 50), (200, 90, 210), (250, 250, 250), (250, 130, 60)]
    for _ in range(26):
        x, y = c.uniform(0, 1), c.uniform(h + 0.05, 1)
        c.circle(x, y, 0.026, c.pick(petals))
        c.circle(x, y, 0.01, (250, 220, 80))


def library(c: Canvas) -> None:
    c.backdrop((120, 80, 50), (100, 65, 40))
    covers = [(170, 50, 50), (50, 90, 150), (60, 130, 80), (200, 160, 70), (120, 70, 140)]
    for j in range(4):
        y, x = 0.02 + j * 0.19, 0.01
        while x < 0.98:
            width = c.uniform(0.03, 0.05)
            cover = c.jitter(c.pick(covers), 18)
            c.rect(x, y + c.uniform(0, 0.04), x + width - 0.006, y + 0.15, cover)
            x += width
        c.line(0, y + 0.165, 1, y + 0.165, 0.02, (80, 50, 30))
    c.ground(0.76, (150, 105, 70), (125, 85, 55))


def lake(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.hills(h - 0.15, 0.06, c.jitter((80, 130, 100)))
    c.ground(h - 0.08, (60, 130, 190), (90, 165, 210))
    for _ in range(12):
        x, y = c.uniform(0, 1), c.uniform(h - 0.06, h + 0.15)
        c.line(x, y, x + c.uniform(0.05, 0.15), y, 0.01, (190, 220, 240))
    c.hills(0.84, 0.03, c.jitter((110, 150, 70)))
    for _ in range(4):
        x = c.uniform(0, 1)
        c.line(x, 0.85, x + 0.01, 0.62, 0.014, (80, 110, 50))
        c.ellipse(x + 0.01, 0.62, 0.016, 0.045, (110, 70, 40))


def farm(c: Canvas) -> None:
    h = c.horizon
    c.backdrop(*SKY)
    c.clouds(2)
    c.ground(h, (195, 180, 80), (165, 145, 55))
    x = c.uniform(0.02, 0.6)
    c.rect(x, 0.32, x + 0.34, h + 0.06, (180, 45, 40))
    c.polygon([(x - 0.03, 0.33), (x + 0.37, 0.33), (x + 0.17, 0.15)], (120, 50, 45))
    c.rect(x + 0.12, 0.42, x + 0.22, h + 0.06, (250, 245, 235))
    for k in range(8):
        c.line(k / 7 * 1.6 - 0.3, 1, k / 7, h + 0.08, 0.012, (140, 120, 45))


def cave(c: Canvas) -> None:
    c.backdrop((75, 65, 60), (50, 42, 40))
    x, opening = 0.5 + c.uniform(-0.15, 0.15), c.jitter((160, 190, 215))
    c.ellipse(x, 0.35, c.uniform(0.22, 0.32), c.uniform(0.22, 0.3), opening)
    c.ground(0.75, (95, 85, 75), (70, 60, 52))
    for _ in range(7):
        x = c.uniform(0, 1)
        c.polygon([(x - 0.05, 0), (x + 0.05, 0), (x, c.uniform(0.12, 0.3))], (60, 52, 48))


def studio(c: Canvas) -> None:
    c.backdrop((252, 252, 252), (235, 235, 238))


def volcano(c: Canvas) -> None:
    h = c.horizon
    c.backdrop((150, 90, 90), (235, 150, 100))
    x = c.uniform(0.25, 0.75)
    slope = [(x - 0.45, h + 0.1), (x - 0.08, 0.15), (x + 0.08, 0.15), (x + 0.45, h + 0.1)]
    c.polygon(slope, c.jitter((80, 60, 58)))
    lava = [(x - 0.08, 0.15), (x + 0.08, 0.15), (x + 0.04, 0.45), (x, 0.3), (x - 0.05, 0.42)]
    c.polygon(lava, (250, 110, 30))
    for _ in range(4):
        radius = c.uniform(0.05, 0.08)
        c.circle(x + c.uniform(-0.1, 0.1), c.uniform(0.02, 0.13), radius, c.jitter((120, 105, 105)))
    c.ground(h + 0.06, (75, 60, 58), (50, 40, 40))
    for _ in range(3):
        a = c.uniform(0, 1)
        c.line(a, c.uniform(0.7, 0.8), a + c.uniform(-0.2, 0.2), 1, 0.02, (250, 120, 40))


def classroom(c: Canvas) -> None:
    c.backdrop((230, 215, 180), (230, 215, 180))
    c.rect(0.1, 0.06, 0.9, 0.48, (120, 80, 45))
    c.rect(0.13, 0.09, 0.87, 0.45, (40, 95, 70))
    for _ in range(4):
        x, y = c.uniform(0.18, 0.6), c.uniform(0.14, 0.4)
        c.line(x, y, x + c.uniform(0.08, 0.25), y, 0.014, (235, 240, 235))
    c.ground(0.72, (190, 140, 90), (165, 115, 70))


SCENES: dict[str, Callable[[Canvas], None]] = {
    f.__name__: f
    for f in (
        beach, forest, snow, city, desert, kitchen, bedroom, meadow, space, sea, mountain, road,
        garden, library, lake, farm, cave, studio, volcano, classroom,
    )
}  # fmt: skip
