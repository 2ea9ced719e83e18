"""Images as they stand in the page: thumbnails as data URIs, and plots as SVG elements.

Knows files and budgets; nothing of models or scores.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup, escape
from PIL import Image

BUDGET = 7_200_000
"""Bytes of all thumbnails; a third more in base64, so that a page stays near 10 MB."""

_SIZES = (320, 256, 192, 160)
_BYTES_OF_PIXEL = 0.2  # of a photo-like WebP of this quality, on the high side
_QUALITY = 82
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


class Thumbnails:
    """Makes thumbnails until the page is full.

    Args:
        folder: What files are relative to; nothing outside of it is ever shown.
        count: How many there will be at most, which decides their size.
        budget: Bytes of all of them.
    """

    def __init__(self, folder: Path, count: int, budget: int = BUDGET) -> None:
        self._folder = folder.resolve()
        self._left = budget
        share = budget / max(1, count)
        self.size = next(
            (size for size in _SIZES if size * size * _BYTES_OF_PIXEL <= share), _SIZES[-1]
        )
        self._full = False
        self.missing: list[str] = []
        self.left_out = 0

    def uri(self, file: str) -> str | None:
        """The image as a data URI; None where there is none, or no room for it.

        Args:
            file: Relative to the folder.
        """
        content = None if self._full else self._read(file)
        if self._full or (content is not None and len(content) > self._left):
            self._full = True  # and stays so: what is left out are the last ones, not the large
            self.left_out += 1
            return None
        if content is None:
            self.missing.append(file)
            return None
        self._left -= len(content)
        return f"data:image/webp;base64,{base64.b64encode(content).decode()}"

    def _read(self, file: str) -> bytes | None:
        try:
            path = (self._folder / file).resolve()
            if not path.is_relative_to(self._folder):
                return None
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=4)
        return buffer.getvalue()


def inline_svg(svg: bytes, name: str, prefix: str) -> Markup:
    """A plot as an element of the page.

    The page's Content-Security-Policy allows no styles but its own, so those of the plot become
    attributes; its ids get a prefix, so that they are unique in the page.

    Args:
        svg: As `plots.drawn` has it.
        name: What it shows, for those who cannot see it.
        prefix: Of ids; letters and a hyphen.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for part in element.attrib.pop("style", "").split(";"):
            key, _, value = part.partition(":")
            if value:
                element.set(key.strip(), value.strip())
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif value.startswith("#") and key == f"{{{_XLINK}}}href":
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
    for key in ("width", "height"):
        del root.attrib[key]  # the page decides
    root.set("stroke-linejoin", "round")
    text = ElementTree.tostring(root, encoding="unicode")
    label = Markup(' role="img" aria-label="{}"').format(name)
    return Markup(re.sub(r"^<svg", lambda _: f"<svg{label}", text, count=1))


def dot(low: float, mean: float, high: float, scale: Sequence[float], label: str) -> Markup:
    """A small mark for an interval: a line from low to high and a dot for the mean.

    Args:
        low: Its lower end.
        mean: Where the dot is.
        high: Its upper end.
        scale: What the left and the right edge stand for; a third number is marked with a line.
        label: For those who cannot see it.
    """
    width, height, edge = 120.0, 14.0, 5.0
    reach = scale[1] - scale[0]

    def x(value: float) -> str:
        share = (value - scale[0]) / reach if reach > 0 else 0.5
        share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.5
        return f"{edge + share * (width - 2 * edge):.1f}"

    middle = height / 2
    marked = "".join(
        f'<line class="zero" x1="{x(at)}" x2="{x(at)}" y1="0" y2="{height:g}"/>' for at in scale[2:]
    )
    return Markup(
        f'<svg class="dot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{marked}'
        f'<line class="arm" x1="{x(low)}" x2="{x(high)}" y1="{middle:g}" y2="{middle:g}"/>'
        f'<circle cx="{x(mean)}" cy="{middle:g}" r="3.6"/></svg>'
    )
