"""What a card is made of: front matter, regforge's part, words around it, and a grid of samples.

Knows which of these are regforge's and which are somebody's own; knows nothing about what they say.
The samples are spread over the prompt sets and the phrases of the slots, always the same ones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont, ImageOps

from regforge.records import ImageRow

BEGIN = "<!-- regforge:begin -->"
END = "<!-- regforge:end -->"

OUR_KEYS = frozenset(
    {"license", "pretty_name", "language", "task_categories", "size_categories", "tags"}
    | {"configs", "dataset_info"}
)
"""Keys of the front matter that regforge writes; all others are somebody's own."""

LICENSE_KEYS = frozenset({"license_name", "license_link"})
"""Keys that say more about `license: other`. Of the card on disk, whoever wrote them."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A card's parts: its front matter, regforge's part, and the texts before and after that."""

    front: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    ours: str | None = None  # None if it lacks one of its markers
    after: str = ""
    readable: bool = True  # the front matter is a mapping, or not there

    @classmethod
    def parse(cls, text: str | None) -> Card:
        """Take a card apart. Without both markers nothing says what is ours: all is theirs."""
        text = (text or "").removeprefix("\ufeff").replace("\r\n", "\n")
        found = _FRONT_MATTER.match(text)
        rest = text[found.end() :] if found else text
        try:
            front = (yaml.safe_load(found.group(1)) or {}) if found else {}
        except (yaml.YAMLError, ValueError, RecursionError):  # a date such as 2024-13-45
            front = None
        readable = isinstance(front, dict)
        front = front if isinstance(front, dict) else {}
        before, begin, inside = rest.partition(BEGIN)
        ours, end, after = inside.partition(END)
        if begin and end:
            return cls(front, before, ours, after.removeprefix("\n"), readable)
        return cls(front, after=f"\n{rest.strip()}\n" if rest.strip() else "", readable=readable)

    def as_text(self) -> str:
        """The card as a file; secrets in the front matter are not masked."""
        front = front_matter(self.front)
        return f"---\n{front}---\n{self.before}{BEGIN}{self.ours or ''}{END}\n{self.after}"


def front_matter(values: Mapping[str, Any]) -> str:
    """The front matter as YAML, without the lines around it."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


class _Dumper(yaml.SafeDumper):
    """Writes what reads back the same."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Only double quotes keep every kind of line break.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def merged(
    local: str, remote: str | None, *, our_keys: frozenset[str] = OUR_KEYS
) -> tuple[str, list[str]]:
    """The card for a repository: regforge's part of the local one, everybody's words of theirs.

    Of the words around regforge's part and of keys that are not regforge's, the repository's count;
    where it has none, the local ones.

    Returns:
        The card, byte for byte the repository's if that says the same; and what of the local one
        was left out, a sentence each.
    """
    ours, theirs = Card.parse(local), Card.parse(remote)
    our_keys |= LICENSE_KEYS
    front = {
        key: value
        for key, value in {**ours.front, **theirs.front}.items()
        if key in ours.front or key not in our_keys
    }
    front |= {key: value for key, value in ours.front.items() if key in our_keys}
    both = Card(
        front,
        theirs.before if theirs.before.strip() else ours.before,
        ours.ours,
        theirs.after if theirs.after.strip() else ours.after,
        theirs.readable,
    )
    card = remote if remote and both == theirs else both.as_text()
    return card, list(_left_out(ours, theirs, our_keys))


def _left_out(ours: Card, theirs: Card, our_keys: frozenset[str]) -> Iterator[str]:
    if not theirs.readable:
        yield "README.md: the front matter on the Hub cannot be read, and was written anew."
    kept = "differs from the one on the Hub, and that was kept"
    for where, own, other in (
        ("before", ours.before, theirs.before),
        ("after", ours.after, theirs.after),
    ):
        if own.strip() and other.strip() and own.strip() != other.strip():
            yield f"README.md: the text {where} regforge's part {kept}."
    for key, value in ours.front.items():
        if key not in our_keys and theirs.front.get(key, value) != value:
            yield f"README.md: the key {key!r} {kept}."


# -------------------------------------------------------------------------------- a grid of samples


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
