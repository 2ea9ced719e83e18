"""A grid of sample images with their captions, for the card.

Chooses images that are spread over the prompt sets and the phrases of the slots, always the same
ones, and lays them out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from regforge.records import ImageRow

SAMPLES = 16
"""Images in a grid."""

TILE = 256
"""Approximate width of an image in the grid, in pixels."""

_CANDIDATES = 1024
_MARGIN = 16
_GAP = 6
_FONT_SIZE, _LINE = 15, 1.35
_MOST_LINES = 5
BACKGROUND, TEXT, LABEL, _EDGE = "white", "#1f2328", "#6e7781", "#d0d7de"


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
    blocks = []
    for image, label, text in fit:
        words = [text_block(label, width, _FONT_SIZE, LABEL, 1)] if label else []
        words.append(text_block(text, width, _FONT_SIZE, TEXT, _MOST_LINES))
        blocks.append(stacked([beside([image], width, framed=True), stacked(words)], _GAP))
    starts = range(0, len(blocks), columns)
    lines = [beside(blocks[start : start + columns], width, _MARGIN) for start in starts]
    return ImageOps.expand(stacked(lines, _MARGIN), _MARGIN, BACKGROUND)


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


def stacked(parts: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Images below one another, as wide as the widest."""
    size = (
        max((part.width for part in parts), default=TILE),
        sum(part.height for part in parts) + gap * max(0, len(parts) - 1),
    )
    block = Image.new("RGB", size, BACKGROUND)
    top = 0
    for part in parts:
        block.paste(part, (0, top))
        top += part.height + gap
    return block


def beside(
    parts: Sequence[Image.Image], width: int, gap: int = 0, *, framed: bool = False
) -> Image.Image:
    """Images in a row, each in the middle of a cell of that width, at the top."""
    size = (len(parts) * (width + gap) - gap, max(part.height for part in parts))
    row = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(row)
    for number, part in enumerate(parts):
        left = number * (width + gap) + (width - part.width) // 2
        row.paste(part, (left, 0))
        if framed:  # a white image needs an edge on a white page
            draw.rectangle((left, 0, left + part.width - 1, part.height - 1), outline=_EDGE)
    return row


def text_block(
    text: str, width: int, size: int, color: str, most_lines: int | None = None
) -> Image.Image:
    """Lines of at most so many pixels, breaking words only where one alone is too long.

    Where lines are left out, the last one ends in "...".
    """
    font = ImageFont.load_default(size)
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
    if most_lines and len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and font.getlength(last + " ...") > width:
            last = last[:-1]
        lines[most_lines - 1 :] = [f"{last.rstrip()} ..."]
    height = round(size * _LINE)
    block = Image.new("RGB", (width, height * len(lines)), BACKGROUND)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, number * height), line, fill=color, font=font)
    return block
