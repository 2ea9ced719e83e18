"""A grid of images with their prompts, a section a prompt, a row a model.

Knows images and text; knows nothing about who drew them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from regforge.dataset.samples import fitted

TILE = 256
"""Images larger than this are made smaller, to so many pixels at their longest side."""

_SMALL = 224  # smaller ones are made larger, by a whole factor, to about so many
_MOST_COLUMNS = 8
_MARGIN, _GAP, _SECTION_GAP = 24, 8, 28
_TITLE_SIZE, _LABEL_SIZE = 20, 15
_LINE = 1.35
_BACKGROUND, _TITLE, _LABEL, _EDGE = "white", "#1f2328", "#6e7781", "#d0d7de"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class Row:
    """Images that belong together.

    Attributes:
        label: What stands above them; nothing if empty.
        tiles: RGB, as `fitted` makes them.
    """

    label: str
    tiles: list[Image.Image]


@dataclass(frozen=True)
class Section:
    """What was drawn of one prompt.

    Attributes:
        title: The prompt.
        rows: One a model.
    """

    title: str
    rows: Sequence[Row]


def tile_of(image: Image.Image) -> Image.Image:
    """The image at the size that it has in a grid."""
    return fitted(image, TILE, _SMALL)


def draw_grid(sections: Sequence[Section], *, footer: str = "") -> Image.Image:
    """All images, with their prompts above them.

    Args:
        sections: From top to bottom. Rows with more than eight images are broken evenly.
        footer: Stands small below everything.

    Returns:
        An RGB image.
    """
    rows = [row for section in sections for row in section.rows]
    columns = max((_columns(len(row.tiles)) for row in rows), default=1)
    cell = max((tile.width for row in rows for tile in row.tiles), default=TILE)
    width = max(columns * cell + (columns - 1) * _GAP, 2 * TILE)
    blocks = [_section(section, columns, cell, width) for section in sections]
    if footer:
        blocks.append(_text(footer, width, _LABEL_SIZE, _LABEL))
    height = sum(block.height for block in blocks) + _SECTION_GAP * (len(blocks) - 1)
    grid = Image.new("RGB", (width + 2 * _MARGIN, max(0, height) + 2 * _MARGIN), _BACKGROUND)
    top = _MARGIN
    for block in blocks:
        grid.paste(block, (_MARGIN, top))
        top += block.height + _SECTION_GAP
    return grid


def _columns(count: int) -> int:
    """How many images of a row stand side by side."""
    lines = max(1, math.ceil(count / _MOST_COLUMNS))
    return math.ceil(count / lines)


def _section(section: Section, columns: int, cell: int, width: int) -> Image.Image:
    parts = [_text(section.title, width, _TITLE_SIZE, _TITLE)]
    for row in section.rows:
        if row.label:
            parts.append(_text(row.label, width, _LABEL_SIZE, _LABEL))
        for start in range(0, len(row.tiles), columns):
            parts.append(_line(row.tiles[start : start + columns], cell, width))
    height = sum(part.height for part in parts) + _GAP * (len(parts) - 1)
    block = Image.new("RGB", (width, height), _BACKGROUND)
    top = 0
    for part in parts:
        block.paste(part, (0, top))
        top += part.height + _GAP
    return block


def _line(tiles: Sequence[Image.Image], cell: int, width: int) -> Image.Image:
    line = Image.new("RGB", (width, max(tile.height for tile in tiles)), _BACKGROUND)
    draw = ImageDraw.Draw(line)
    for number, tile in enumerate(tiles):
        left = number * (cell + _GAP) + (cell - tile.width) // 2
        line.paste(tile, (left, 0))
        # A white image needs an edge on a white page.
        draw.rectangle((left, 0, left + tile.width - 1, tile.height - 1), outline=_EDGE)
    return line


def _text(text: str, width: int, size: int, color: str) -> Image.Image:
    font: Font = ImageFont.load_default(size)
    lines = _wrapped(text, width, font)
    height = round(size * _LINE)
    block = Image.new("RGB", (width, height * len(lines)), _BACKGROUND)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, number * height), line, fill=color, font=font)
    return block


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """Lines of at most so many pixels, breaking words only where one alone is too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
