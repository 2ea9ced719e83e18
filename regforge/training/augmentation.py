"""How examples vary each time they are drawn: crops of images, and wordings of captions.

The paper couples its data with dropout and cropping; its rules and rates are not known to us, so
what happens here is our interpretation:

    crop              a random square of the image, out of so many that follow from its name
    caption dropout   the whole caption is left out, of instance and regularization images alike
    slot dropout      each slot of a regularization caption may be left out; the caption is then
                      composed again from the others, by the template it was made with
    crop wording      the caption of a tight crop says that it is a close-up

All of it follows from the seed and the draw, or the image's size and name, alone.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from regforge.files import read_text
from regforge.image_files import flattened
from regforge.prompts.against import ATTRIBUTES, Surroundings
from regforge.prompts.captions import (
    CaptionTemplate,
    CaptionTemplateError,
    article_for,
    is_photograph,
    opening,
    word_pattern,
    words,
)
from regforge.training.batches import Draw, ExamplesError, Geometry, generator

TIGHT = 0.75
"""A crop whose side is less than this share of the image's shorter side is a close-up."""

Kind = Literal["random", "center", "none"]


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image, and the size it is resized to; sizes are height and width in pixels.

    Attributes:
        box: Left, top, right and bottom of the part, in pixels of the image, mirrored if `flip`.
    """

    original: tuple[int, int]
    box: tuple[int, int, int, int]
    target: tuple[int, int]
    flip: bool = False

    @property
    def geometry(self) -> Geometry:
        """Its place, with the corner in pixels of the image as it was resized."""
        left, top, right, bottom = self.box
        down, across = self.target[0] / (bottom - top), self.target[1] / (right - left)
        return Geometry(self.original, (round(top * down), round(left * across)), self.target)

    @property
    def tight(self) -> bool:
        """Whether it shows so little of the image that it is a close-up."""
        left, top, right, bottom = self.box
        return min(bottom - top, right - left) < TIGHT * min(self.original)


@dataclass(frozen=True, slots=True)
class Cropping:
    """How images are cropped: the recipe's `crop`, `crop_scale`, `crops_per_image` and seed.

    Attributes:
        resolution: Side of the square crops, in pixels; for `none`, the root of the area.
        multiple: Heights and widths are multiples of it.
    """

    kind: Kind
    scale: float
    count: int
    resolution: int
    multiple: int
    seed: int

    @property
    def variants(self) -> int:
        """How many crops there are of each image, the mirrored ones not counted."""
        return self.count if self.kind == "random" else 1

    def crop(
        self, size: tuple[int, int], stream: str, name: str, variant: int, *, flip: bool = False
    ) -> Crop:
        """One of the crops of an image.

        `random` takes a square whose side is even between `scale` and 1 of the shorter side, at an
        even place; `center` the largest square in the middle; `none` everything, but for what
        the nearest bucket has no room for.

        `size` is the image's height and width in pixels, as a viewer shows it; randomness follows
        from stream, name and variant.
        """
        height, width = size
        if self.kind == "none":
            target = self._bucket(size)
            scale = min(height / target[0], width / target[1])
            down, across = round(target[0] * scale), round(target[1] * scale)
            top, left = (height - down) // 2, (width - across) // 2
            return Crop(size, (left, top, left + across, top + down), target, flip)
        side, target = min(size), (self.resolution, self.resolution)
        top, left = (height - side) // 2, (width - side) // 2
        if self.kind == "random":
            rng = generator(self.seed, stream, name, variant, "box")
            side = max(1, round(side * rng.uniform(self.scale, 1.0)))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        return Crop(size, (left, top, left + side, top + side), target, flip)

    def _bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the nearest proportions out of few, so that many images have the same.

        The longer side is `resolution` and up to twice that in sixteenths, the shorter one as long
        as the area is not larger than its square, for which some models have no room.
        """
        step = max(1, round(self.resolution / 16 / self.multiple)) * self.multiple
        area, ratio = self.resolution**2, max(size) / min(size)
        longer = min(
            range(self.resolution, 2 * self.resolution + 1, step),
            key=lambda side: abs(math.log(side**2 / area / ratio)),
        )
        shorter = max(1, area // longer // self.multiple) * self.multiple
        return (longer, shorter) if size[0] > size[1] else (shorter, longer)


def pixels_of(image: Image.Image, crop: Crop) -> np.ndarray:
    """A crop of a decoded image: uint8 [height, width, 3], RGB, antialiased where it shrinks."""
    if crop.flip:
        image = ImageOps.mirror(image)
    height, width = crop.target
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=crop.box))


def decode(content: bytes, size: tuple[int, int], name: str) -> Image.Image:
    """An image as a viewer shows it: turned by its Exif data, RGB, white where it is transparent.

    `size` is the height and width that its header promised, as a viewer shows it.

    Raises:
        ExamplesError: It cannot be decoded to its end.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            image = _turned(opened, (size[1], size[0]))
            if image.size != (size[1], size[0]):
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            return flattened(image)
    except Exception as error:  # Pillow's readers raise anything on a damaged file
        raise ExamplesError(
            f"{name} cannot be decoded: {str(error).rstrip('.') or type(error).__name__}.",
            hint="Take the file out, or put a whole copy in its place, and run the command again.",
        ) from error


def _turned(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image turned as its Exif data says, if whoever read the header took it so too."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged Exif data leaves the image as good as it was
        return image
    return image if image.size == size != turned.size else turned


# --------------------------------------------------------------------------------------- captions


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of an image, the phrases in it that may be left out, and how to do that.

    `compose` writes it from some of the phrases; None where nothing can be left out.
    """

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)
    compose: Callable[[Mapping[str, str | None]], str] | None = None


@dataclass(frozen=True, slots=True)
class Captioning:
    """How captions are varied: the recipe's seed, and its `data` section's rates and wording."""

    seed: int
    caption_dropout: float
    slot_dropout: float
    crop_wording: bool

    def vary(self, draw: Draw, caption: Caption, *, tight: bool) -> str:
        """The caption that a draw is trained with; `tight`: its crop is a close-up."""
        rng = generator(self.seed, draw.stream, draw.number, "caption")
        if rng.random() < self.caption_dropout:
            return ""
        text = caption.text
        if caption.compose is not None:
            slots = caption.slots.items()
            kept = {slot: phrase for slot, phrase in slots if rng.random() >= self.slot_dropout}
            if len(kept) < len(slots):
                text = caption.compose(kept)
        return close_up(text) if tight and self.crop_wording else text


class Composer:
    """Composes captions of a dataset again, by its caption.j2; `name` is for errors."""

    def __init__(self, template: Path, name: str, slots: Sequence[str]) -> None:
        self._file = template
        self._name = name
        self._slots = slots
        self._template = functools.lru_cache(maxsize=64)(self._load)

    def caption(
        self,
        text: str,
        slots: Mapping[str, str | None],
        *,
        class_noun: str,
        kind: str,
        prompt_set: str | None,
    ) -> Caption:
        """A caption that can be shortened, if the template writes its whole text as it stands.

        Of a caption made of a photo's only what stands before the class noun can be left out:
        the rest is the instance image's own caption.

        Raises:
            CaptionTemplateError: The template cannot be used.
        """
        template = self._template(class_noun, kind)
        phrases = {slot: phrase for slot, phrase in slots.items() if phrase}
        if prompt_set in ("captions", "against"):
            before = template.attributes or ATTRIBUTES
            return _against(text, {s: phrases[s] for s in before if s in phrases}, class_noun)
        style = phrases.get("style", "")
        opens = bool(style) and text.startswith(opening(style)) and not is_photograph(style)

        for form in range(template.forms if phrases else 0):

            def compose(kept: Mapping[str, str | None], form: int = form) -> str:
                # Without its style a painting would be "a photo of".
                style = {"style": "a picture"} if opens and not kept.get("style") else {}
                return template.render({**kept, **style}, form)

            try:
                if compose(phrases) == text:
                    return Caption(text, phrases, compose)
            except CaptionTemplateError:
                break
        return Caption(text)

    def _load(self, class_noun: str, kind: str) -> CaptionTemplate:
        try:
            source = read_text(self._file)
        except (OSError, UnicodeDecodeError) as error:
            raise CaptionTemplateError(f"{self._name} cannot be read: {error}.") from error
        # A dataset may have slots that its template does not use, where none were filled.
        used = [slot for slot in self._slots if slot in source]
        return CaptionTemplate(self._file, self._name, class_noun=class_noun, kind=kind, slots=used)


def _against(text: str, attributes: Mapping[str, str], class_noun: str) -> Caption:
    if not attributes:  # all of it is the photo's
        return Caption(text, {}, lambda _: text)
    article = article_for(class_noun)
    noun_phrase = article(words([*attributes.values(), class_noun]))
    found = list(word_pattern(noun_phrase).finditer(text))
    if len(found) != 1:
        return Caption(text)
    start, end = found[0].span()
    around = Surroundings(text[:start], text[end:], capital=text[start].isupper())

    def compose(kept: Mapping[str, str | None]) -> str:
        return around.caption({s: kept.get(s) or "" for s in attributes}, class_noun, article)

    return Caption(text, attributes, compose) if compose(attributes) == text else Caption(text)


# What captions call an image of something, as the last word before "of".
_MEDIA = (
    "art artwork cartoon closeup collage drawing engraving etching illustration image linocut "
    "mosaic mural painting panel photo photograph picture portrait poster print render rendering "
    "scene shot sketch snapshot still sticker watercolor watercolour woodcut"
)
_DETERMINED = re.compile(r"(an?|the|one|this)\s+", re.IGNORECASE)
_IMAGE = re.compile(
    rf"(?P<article>(?:an?|the|one|this)\s+)?(?P<rest>(?:[\w'’-]+\s+){{0,5}}?"
    rf"(?:{'|'.join(_MEDIA.split())})\s+of\s)",
    re.IGNORECASE,
)
_FRAMED = re.compile(
    r"\b(?:close[ -]?ups?|macro|zoomed|wide[ -]angle|wide[ -]shot|wide view|long shot|full[ -]body|"
    r"panoram\w+|aerial|bird['’]s[ -]eye|distan\w+|far away|from afar|tightly framed)\b",
    re.IGNORECASE,
)
# What makes a sentence of a caption.
_SENTENCE = re.compile(
    r"[.!?;:]|\b(?:is|are|was|were|has|have|can|shows?|depicts?|features?|there|it|this|these)\b",
    re.IGNORECASE,
)


def close_up(caption: str) -> str:
    """A caption that says it shows a part of the image.

    - One that names its medium says what kind of it: "a photo of a cat" becomes "a close-up photo
      of a cat", "an oil painting of a cat" "a close-up oil painting of a cat".
    - Another phrase with an article is what the close-up shows: "a close-up of a cat on a mat".
    - Anything else, such as tags and sentences, has "close-up, " before it.
    - A caption that speaks of its framing already ("macro", "close-up", "wide shot") is left as it
      is, and so is an empty one.
    """
    if not caption.strip() or _FRAMED.search(caption):
        return caption
    if found := _IMAGE.match(caption):
        article, rest = found["article"] or "", caption[found.start("rest") :]
        if article.strip().lower() in ("a", "an"):
            article = "A " if article[0].isupper() else "a "
        elif not article and rest[0].isupper():
            return "Close-up " + rest[0].lower() + rest[1:]
        return f"{article}close-up {rest}"
    if _DETERMINED.match(caption) and not _SENTENCE.search(caption):
        capital = caption[0].isupper()
        return f"{'A' if capital else 'a'} close-up of {caption[0].lower()}{caption[1:]}"
    return f"close-up, {caption}"
