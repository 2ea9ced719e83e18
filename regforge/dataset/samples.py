"""A grid of sample images with their captions, for the card.

Chooses images that are spread over the prompt sets and the phrases of the slots, always the same
ones, and lays them out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from regforge.records import ImageRow

SAMPLES = 16
"""Images in a grid."""

TILE = 256
"""Approximate width of an image in the grid, in pixels."""

_CANDIDATES = 1024
_MARGIN = 16
_GAP = 6
_FONT_SIZE = 15
_MOST_LINES = 5
_BACKGROUND, _TEXT, _LABEL, _EDGE = "white", "#1f2328", "#6e7781", "#d0d7de"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class SampleChooser:
    """Chooses some of `total` rows, seen one by one."""

    def __init__(self, total: int) -> None:
        self._stride = max(1, total // _CANDIDATES)
        self._seen = 0
        self._candidates: dict[str, list[ImageRow]] = {}

    def add(self, row: ImageRow) -> None:
        """The next row; its image is not needed."""
        of_set = self._candidates.setdefault(row.prompt_set, [])
        if self._seen % self._stride == 0 or not of_set:
            of_set.append(row)
        self._seen += 1

    def choose(self, count: int = SAMPLES) -> list[str]:
        """Ids of up to `count` rows, in the order in which they were added.

        Every prompt set has its share and at least one. Within a set, each next row is the first
        that brings most phrases not shown yet.
        """
        chosen: list[ImageRow] = []
        shown: set[tuple[str, str]] = set()
        for name, quota in self._quotas(count).items():
            left = list(self._candidates[name])
            for _ in range(quota):
                best = max(left, key=lambda row: len(_phrases(row) - shown))
                left.remove(best)
                shown |= _phrases(best)
                chosen.append(best)
        return [row.id for row in sorted(chosen, key=lambda row: row.index)]

    def _quotas(self, count: int) -> dict[str, int]:
        """How many of each set: one each, and then one at a time to the set that is shortest."""
        sizes = {name: len(rows) for name, rows in self._candidates.items()}
        quotas = dict.fromkeys(list(sizes)[:count], 1)
        while sum(quotas.values()) < min(count, sum(sizes.values())):
            open_sets = [name for name in quotas if quotas[name] < sizes[name]]
            neediest = max(open_sets, key=lambda name: sizes[name] / quotas[name])
            quotas[neediest] += 1
        return quotas


def samples_grid(rows: Iterable[ImageRow], *, columns: int = 4) -> Image.Image:
    """Images in a grid, each with its prompt set and caption below; see `labelled_grid`."""

    def decoded(row: ImageRow) -> Image.Image:
        with Image.open(io.BytesIO(row.image)) as image:
            return image.convert("RGB")

    tiles = ((decoded(row), row.prompt_set, row.text) for row in rows)
    return labelled_grid(tiles, columns=columns)


def labelled_grid(
    tiles: Iterable[tuple[Image.Image, str, str]], *, columns: int = 4
) -> Image.Image:
    """A grid of (RGB image, label or "", caption); a blank image without tiles.

    Each is about `TILE` pixels wide: larger images are made smaller; of smaller ones the size is
    doubled, tripled, ...
    """
    fit = [(fitted(image, TILE), label, text) for image, label, text in tiles]
    width = max((image.width for image, _, _ in fit), default=TILE)
    font = ImageFont.load_default(_FONT_SIZE)
    blocks = [_block(*each, width, font) for each in fit]
    lines = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    across = min(columns, len(blocks)) or 1
    size = (
        _MARGIN + across * (width + _MARGIN),
        _MARGIN + sum(max(block.height for block in line) + _MARGIN for line in lines),
    )
    grid = Image.new("RGB", size, _BACKGROUND)
    top = _MARGIN
    for line in lines:
        for column, block in enumerate(line):
            grid.paste(block, (_MARGIN + column * (width + _MARGIN), top))
        top += max(block.height for block in line) + _MARGIN
    return grid


def as_webp(image: Image.Image) -> bytes:
    """The image as a WebP file of good quality."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()


def _phrases(row: ImageRow) -> set[tuple[str, str]]:
    return {(slot, phrase) for slot, phrase in row.slots.items() if phrase}


def fitted(image: Image.Image, largest: int, smallest: int | None = None) -> Image.Image:
    """An image as it stands in a grid: never cropped, and enlarged by whole factors only.

    A side longer than `largest` is made that long, in pixels; a small image is enlarged to about
    `smallest`, by default to `largest`.
    """
    longest = max(image.size)
    if longest > largest:
        scale = largest / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, round((smallest or largest) / longest))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.BICUBIC)


def _block(image: Image.Image, label: str, text: str, width: int, font: _Font) -> Image.Image:
    """An image with its label and its caption below."""
    lines = [(label, _LABEL)] if label else []
    lines += [(line, _TEXT) for line in _wrapped(text, width, font)]
    height = round(_FONT_SIZE * 1.3)
    block = Image.new("RGB", (width, image.height + _GAP + height * len(lines)), _BACKGROUND)
    left = (width - image.width) // 2
    block.paste(image, (left, 0))
    draw = ImageDraw.Draw(block)
    # A white image needs an edge on a white page.
    draw.rectangle((left, 0, left + image.width - 1, image.height - 1), outline=_EDGE)
    for number, (line, color) in enumerate(lines):
        draw.text((0, image.height + _GAP + number * height), line, fill=color, font=font)
    return block


def _wrapped(text: str, width: int, font: _Font) -> list[str]:
    """Lines of at most `width` pixels, breaking words only where one alone is too long."""
    lines = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= _MOST_LINES:
        return lines
    last = lines[_MOST_LINES - 1]
    while last and font.getlength(last + " ...") > width:
        last = last[:-1]
    return [*lines[: _MOST_LINES - 1], f"{last.rstrip()} ..."]
