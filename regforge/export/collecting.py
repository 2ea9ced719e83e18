"""The first look at a dataset, without its images: captions, sizes, and what to balance.

Everything here is a few hundred bytes a picture, so that 100,000 of them fit in little memory.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

from regforge.dataset.sources import CaptionedDataset
from regforge.export.columns import Columns
from regforge.export.interface import ExportError
from regforge.export.order import Traits, balanced_order
from regforge.progress import Reporter
from regforge.records import Example

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Image files that all trainers read; ai-toolkit skips BMP."""

_SHOWN = 5


@dataclass
class Collected:
    """A dataset without its images.

    Attributes:
        ids: As the dataset calls its pictures.
        captions: As they stand there.
        widths: Pixels.
        heights: Pixels.
        traits: What the order goes by.
        columns: Of metadata.jsonl.
        class_nouns: How often each is said.
        models: How often each is said; None where a picture names none.
        digest: SHA-256 over ids, captions, sizes and the digests of the images, as far as they are
            known; 64 hex digits.
    """

    columns: Columns
    ids: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    widths: array[int] = field(default_factory=lambda: array("l"))
    heights: array[int] = field(default_factory=lambda: array("l"))
    traits: Traits = field(default_factory=Traits)
    class_nouns: Counter[str] = field(default_factory=Counter)
    models: Counter[str | None] = field(default_factory=Counter)
    digest: str = ""

    def order(self, limit: int | None) -> list[int]:
        """Numbers of the pictures to be exported, in their order there."""
        return balanced_order(self.traits, "prompt_set")[:limit]


def collect(dataset: CaptionedDataset, reporter: Reporter) -> Collected:
    """Look through a dataset.

    Raises:
        ExportError: It is empty, or holds files that trainers do not read.
        RegforgeError: It cannot be read.
    """
    found = Collected(Columns(dataset.slots))
    unread: list[str] = []
    digest = hashlib.sha256()
    with reporter.task("reading captions", None, "pictures") as task:
        for example in dataset.examples(images=False):
            _add(found, example)
            digest.update(_facts(example))
            if example.file and example.file.suffix.lower() not in READ_SUFFIXES:
                unread.append(example.file.name)
            task.advance()
    if not found.ids:
        raise ExportError(f"{dataset.name} has no pictures.")
    if unread:
        raise cannot_read(unread)
    found.digest = digest.hexdigest()
    return found


def cannot_read(names: list[str]) -> ExportError:
    """Some image files are of a type that not all trainers read."""
    return ExportError(
        f"{len(names):,} of the pictures are of a type that not all trainers read: "
        + ", ".join(names[:_SHOWN])
        + (", ..." if len(names) > _SHOWN else "."),
        hint="Save them as PNG, JPEG or WebP first.",
    )


def _add(found: Collected, example: Example) -> None:
    found.ids.append(example.id)
    found.captions.append(example.text)
    found.widths.append(example.width)
    found.heights.append(example.height)
    found.columns.add(example)
    found.class_nouns.update([example.class_noun] if example.class_noun else [])
    model = example.metadata.get("model")
    found.models[model if isinstance(model, str) else None] += 1
    traits: dict[str, Hashable] = {f"slot {name}": value for name, value in example.slots.items()}
    traits |= {"prompt_set": example.prompt_set, "class_noun": example.class_noun}
    found.traits.add(traits | {"text": example.text})


def _facts(example: Example) -> bytes:
    """What an example is known by."""
    content = example.metadata.get("image_digest") or _size(example.file)
    facts = [example.id, example.text, example.width, example.height, content]
    return json.dumps(facts, default=str).encode()


def _size(file: Path | None) -> int | None:
    try:
        return file.stat().st_size if file else None
    except OSError:
        return None  # reading it will say what is wrong
