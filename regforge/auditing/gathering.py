"""Goes once through a dataset and keeps what the checks need: a few hundred bytes an image.

Images are opened a few at a time, in parallel, and only where their hashes are not stored with
them. What a check's result is, and how numbers are put into sentences, is here too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from PIL import Image

from regforge.dataset.sources import CaptionedDataset
from regforge.image_files import (
    DEEP,
    OTHER_COLOURS,
    BrokenImage,
    TooManyPixels,
    decode,
    flattened,
    oddities,
    patient,
    plain,
)
from regforge.images.curation import constant_colour_of, perceptual_hash_of, pixel_digest_of
from regforge.journal import Reporter
from regforge.records import Example

Grade = Literal["good", "look", "bad", "unknown"]

MOST_EXAMPLES = 5

PROVENANCE = ("model", "model_revision", "seed", "scheduler", "steps", "guidance_scale")
"""Columns that say how an image was made."""

LOW_QUALITY = 75
"""JPEG quality below which 8 x 8 blocks show, on the scale of libjpeg, 1 to 100."""

_LUMINANCE_SUM = 3691
"""Sum of the luminance table of ITU-T T.81 (JPEG), annex K.1, which is quality 50."""

CANNOT_BE_READ = "cannot be read"
TOO_LARGE = "too large to open"
LOW_JPEG_QUALITY = "low JPEG quality"
STALE_DIGEST = "changed since it was made"

_BATCH = 32


# ----------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Check:
    """The result of one check: `look` is worth a look, `bad` will harm training.

    The finding is one sentence with numbers; `numbers` are the same for scripts. The advice is
    empty where nothing is to be done. Examples are a few ids or phrases that show it.
    """

    name: str
    grade: Grade
    finding: str
    advice: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[str] = ()


def of(count: int, total: int, what: str = "images") -> str:
    """Such as `3 of 64 images (5 %)`; a part that is not nothing is never called 0 %."""
    return f"{count:,} of {total:,} {what} ({percent(count, total)})"


def percent(count: float, total: float) -> str:
    """Such as `5 %`, `under 1 %`, `over 99 %`."""
    if not total or not count:
        return "0 %"
    part = 100 * count / total
    if part < 1:
        return "under 1 %"
    return "over 99 %" if 99 < part < 100 else f"{part:.0f} %"


def ratio(count: float, total: float) -> float:
    """A share for scripts, 0 to 1, to four digits; 0 of nothing is 0."""
    return round(count / total, 4) if total else 0.0


def graded(count: int, total: int, most: float) -> Grade:
    """`bad` for more than a share `most`, `look` for any, `good` for none."""
    return "bad" if count > most * total else "look" if count else "good"


def worse(*grades: Grade) -> Grade:
    """The worst of some grades."""
    order: tuple[Grade, ...] = ("good", "unknown", "look", "bad")
    return max(grades, key=order.index)


def shortened(text: str, most: int = 120) -> str:
    """A text in one line that is not too long for a table."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def printable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and no output can print."""
    return text.encode("utf-8", errors="replace").decode()


# ----------------------------------------------------------------------------------- a single image


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What matters to training about an image's file.

    Attributes:
        digest: SHA-256 of the file, 64 hex digits; empty where not known, as are the pixels'.
        pixels: SHA-256 of the RGB pixels, 64 hex digits.
        hash: 64-bit pHash; None where not known.
        troubles: What is wrong with it, in the words above; `black` and `a single colour` too.
    """

    digest: str
    pixels: str = ""
    hash: int | None = None
    troubles: tuple[str, ...] = ()


def inspect_image(image: bytes) -> ImageFacts:
    """Hash an image's file, and find what is wrong with it; never fails for a broken one."""
    digest = hashlib.sha256(image).hexdigest()
    try:
        stored = decode(image)
    except TooManyPixels:
        return ImageFacts(digest, troubles=(TOO_LARGE,))
    except BrokenImage:
        return ImageFacts(digest, troubles=(CANNOT_BE_READ,))
    troubles = [each for each in oddities(image, stored) if each != OTHER_COLOURS]
    quality = jpeg_quality(getattr(stored, "quantization", None) or {})
    if quality is not None and quality < LOW_QUALITY:
        troubles.append(LOW_JPEG_QUALITY)
    # As trainers turn it into RGB, with what lies below transparent parts; of 16 bits, what they
    # should have seen: many of them cut all to white.
    decoded = flattened(stored) if DEEP in troubles else stored.convert("RGB")
    if constant := constant_colour_of(decoded):
        troubles.append(constant)
    perceptual = int(perceptual_hash_of(decoded), 16)
    return ImageFacts(digest, pixel_digest_of(decoded), perceptual, tuple(troubles))


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int | None:
    """The quality a JPEG file was saved with, about, on the scale of libjpeg, 1 to 100.

    libjpeg scales the standard table by 5000 / quality percent below 50, by 200 - 2 * quality
    percent from there on (jcparam.c, jpeg_quality_scaling); this is that rule, backwards.

    Args:
        tables: The file's quantization tables by number; 0 is that of luminance. Without it the
            file is no JPEG.
    """
    luminance = tables.get(0)
    if not luminance:
        return None
    scale = 100 * sum(luminance) / _LUMINANCE_SUM
    quality = 5000 / scale if scale > 100 else (200 - scale) / 2
    return max(1, min(100, round(quality)))


def upright(image: bytes) -> Image.Image | None:
    """The image as RGB, as a viewer shows it; None if it cannot be read."""
    try:
        return plain(decode(image))
    except BrokenImage:
        return None


# --------------------------------------------------------------------------------------- a dataset


@dataclass
class Gathered:
    """What is known about the images, in columns of the same length; None is not known.

    Attributes:
        sizes: (width, height) in pixels.
        slots: Phrases by name of the slot.
        references: Photos whose captions were followed.
        missing: Number of images without a column of `PROVENANCE`.
        models: Number of images by (model, revision).
        troubles: Number of images by what is wrong with their files.
        trouble_ids: A few of them each.
        opened: Whether the images were opened.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    nouns: list[str | None] = field(default_factory=list)
    sets: list[str | None] = field(default_factory=list)
    slots: dict[str, list[str | None]] = field(default_factory=dict)
    references: list[str | None] = field(default_factory=list)
    files: list[ImageFacts] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    models: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    trouble_ids: dict[str, list[str]] = field(default_factory=dict)
    opened: bool = False

    @cached_property
    def captions(self) -> Counter[str]:
        """Captions, and how many images have each; without the images that have none."""
        return Counter(text for text in self.texts if text and not text.isspace())


def has_stored_hashes(example: Example) -> bool:
    """Whether a row has its own digest and perceptual hash, so that its image can stay closed."""
    stored = (example.metadata.get("image_digest"), example.metadata.get("perceptual_hash"))
    return all(isinstance(each, str) and each for each in stored)


def gather(
    dataset: CaptionedDataset,
    *,
    images: bool,
    class_noun: str | None = None,
    see: Callable[[Sequence[Example]], None] | None = None,
    reporter: Reporter | None = None,
) -> Gathered:
    """Go through a dataset; images that are not opened have the hashes stored with them.

    `class_noun` takes the place of what the rows say. `see` gets every batch of images too, while
    they are in memory.
    """
    found = Gathered(opened=images, slots={name: [] for name in dataset.slots})
    interned: dict[str, str] = {}
    reporter = reporter or Reporter(quiet=True)
    examples = dataset.examples(images=images)
    with (
        reporter.task("auditing", None, "images") as task,
        patient(),
        ThreadPoolExecutor() as pool,
    ):
        while batch := list(islice(examples, _BATCH)):
            encoded = [example.image for example in batch]
            files = pool.map(inspect_image, encoded) if images else map(_stored, batch)
            for example, facts in zip(batch, files, strict=True):
                _add(found, example, facts, class_noun, interned)
            if see is not None:
                see(batch)
            task.advance(len(batch))
    return found


def _stored(example: Example) -> ImageFacts:
    """What the row itself says; anything that is no hash is not known."""
    digest, perceptual = (example.metadata.get(n) for n in ("image_digest", "perceptual_hash"))
    try:
        number = int(str(perceptual), 16)
    except ValueError:
        number = -1
    known = 0 <= number < 2**64
    return ImageFacts(str(digest or "").lower(), hash=number if known else None)


def _add(
    found: Gathered,
    example: Example,
    facts: ImageFacts,
    class_noun: str | None,
    interned: dict[str, str],
) -> None:
    def kept(value: object) -> str | None:
        """The text; equal phrases and captions are kept once."""
        if not isinstance(value, str):
            return None
        return interned.get(value) or interned.setdefault(value, printable(value))

    data = example.metadata
    found.ids.append(printable(example.id))
    found.texts.append(kept(example.text))
    found.sizes.append((example.width, example.height))
    found.nouns.append(kept(class_noun or example.class_noun))
    found.sets.append(kept(example.prompt_set))
    for name, values in found.slots.items():
        values.append(kept(example.slots.get(name) or None))
    found.references.append(kept(data.get("reference")))
    for name in PROVENANCE:
        found.missing[name] += data.get(name) in (None, "")
    if data.get("model"):
        revision = data.get("model_revision")
        found.models[printable(str(data["model"])), str(revision) if revision else None] += 1
    found.files.append(facts)
    digest = data.get("image_digest")
    stale = isinstance(digest, str) and digest and digest.lower() != facts.digest
    for trouble in (*facts.troubles, *([STALE_DIGEST] if stale else [])):
        found.troubles[trouble] += 1
        ids = found.trouble_ids.setdefault(trouble, [])
        if len(ids) < MOST_EXAMPLES:
            ids.append(found.ids[-1])
