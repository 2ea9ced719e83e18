"""Goes once through a dataset and keeps what the checks need: a few hundred bytes an image.

Images are opened a few at a time, in parallel, and only where their hashes are not stored with
them. Knows no grades.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from regforge.audit.findings import MOST_EXAMPLES
from regforge.audit.images import Look, look_at
from regforge.dataset.sources import CaptionedDataset
from regforge.image_files import patient
from regforge.progress import Reporter, Task
from regforge.records import Example

PROVENANCE = ("model", "model_revision", "seed", "scheduler", "steps", "guidance_scale")
"""Columns that say how an image was made."""

STALE_DIGEST = "changed since it was made"

_BATCH = 32

See = Callable[[Sequence[str], Sequence[bytes]], None]
"""Gets the ids and files of some images, while they are in memory."""


@dataclass
class Gathered:
    """What is known about the images, in columns of the same length.

    Attributes:
        ids: Their names.
        texts: Captions; None where there is none.
        sizes: (width, height) in pixels.
        nouns: Class nouns; None where nobody says.
        sets: Prompt sets; None where nobody says.
        slots: Phrases by name of the slot.
        references: Photos whose captions were followed; None where nobody says.
        digests: SHA-256 of the files, 64 hex digits; empty where not known.
        pixels: SHA-256 of the pixels, 64 hex digits; empty where not known.
        hashes: 64-bit pHashes; None where not known.
        missing: Images without a column of `PROVENANCE`.
        models: Images by (model, revision).
        troubles: Images by what is wrong with their files.
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
    digests: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    hashes: list[int | None] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    models: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    trouble_ids: dict[str, list[str]] = field(default_factory=dict)
    opened: bool = False


def sayable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and no output can print."""
    return text.encode("utf-8", errors="replace").decode()


def first_of(dataset: CaptionedDataset) -> Example | None:
    """The first image's row, without the image; None for a dataset with nothing in it."""
    return next(iter(dataset.examples(images=False)), None)


def has_stored_hashes(example: Example) -> bool:
    """Whether a row says its own digest and perceptual hash, so that its image can stay closed."""
    stored = (example.metadata.get("image_digest"), example.metadata.get("perceptual_hash"))
    return all(isinstance(each, str) and each for each in stored)


def gather(
    dataset: CaptionedDataset,
    *,
    images: bool,
    class_noun: str | None = None,
    see: See | None = None,
    reporter: Reporter | None = None,
) -> Gathered:
    """Go through a dataset.

    Args:
        dataset: Any.
        images: Whether to open the images; without, stored hashes are taken at their word.
        class_noun: What all images show; None takes what the rows say.
        see: Gets every batch of images too.
        reporter: Gets progress.

    Raises:
        RegforgeError: The dataset cannot be read.
    """
    found = Gathered(opened=images, slots={name: [] for name in dataset.slots})
    known: dict[str, str] = {}  # equal phrases and captions are kept once
    reporter = reporter or Reporter(quiet=True)
    with reporter.task("auditing", None, "images") as task, patient():
        for example, look in _looks(dataset.examples(images=images), images, see, task):
            _add(found, example, look, class_noun, known)
    return found


def _looks(
    examples: Iterator[Example], images: bool, see: See | None, task: Task
) -> Iterator[tuple[Example, Look | None]]:
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(examples, _BATCH)):
            looks = pool.map(look_at, [each.image for each in batch]) if images else [None] * _BATCH
            yield from zip(batch, looks, strict=False)
            if see is not None:
                see([each.id for each in batch], [each.image for each in batch])
            task.advance(len(batch))


def _add(
    found: Gathered,
    example: Example,
    look: Look | None,
    class_noun: str | None,
    known: dict[str, str],
) -> None:
    def kept(value: str | None) -> str | None:
        if value is None or value in known:
            return None if value is None else known[value]
        return known.setdefault(value, sayable(value))

    data = example.metadata
    found.ids.append(sayable(example.id))
    found.texts.append(kept(example.text))
    found.sizes.append((example.width, example.height))
    found.nouns.append(kept(class_noun or example.class_noun))
    found.sets.append(kept(example.prompt_set))
    for name, values in found.slots.items():
        values.append(kept(example.slots.get(name) or None))
    reference = data.get("reference")
    found.references.append(kept(reference if isinstance(reference, str) else None))
    for name in PROVENANCE:
        found.missing[name] += data.get(name) in (None, "")
    if data.get("model"):
        revision = data.get("model_revision")
        found.models[sayable(str(data["model"])), str(revision) if revision else None] += 1
    _add_look(found, example, look or _stored(data))


def _add_look(found: Gathered, example: Example, look: Look) -> None:
    found.digests.append(look.digest)
    found.pixels.append(look.pixels)
    found.hashes.append(look.hash)
    troubles = look.troubles
    said = example.metadata.get("image_digest")
    if isinstance(said, str) and said and said.lower() != look.digest:
        troubles = (*troubles, STALE_DIGEST)
    for trouble in troubles:
        found.troubles[trouble] += 1
        ids = found.trouble_ids.setdefault(trouble, [])
        if len(ids) < MOST_EXAMPLES:
            ids.append(found.ids[-1])


def _stored(data: Mapping[str, Any]) -> Look:
    """What the row itself says; anything that is no hash is not known."""
    digest, perceptual = data.get("image_digest"), data.get("perceptual_hash")
    try:
        number: int | None = int(str(perceptual), 16)
    except ValueError:
        number = None
    if number is not None and number.bit_length() > 64:
        number = None
    return Look(str(digest or "").lower(), hash=number)
