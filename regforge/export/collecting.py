"""The first look at a dataset: captions, sizes, what to balance, and which images are odd.

Images of a dataset that regforge did not make are decoded to their end, a few at a time: a header
says nothing about the rest. What is kept is a few hundred bytes an image, so that 100,000 of them
fit in little memory.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath

from regforge.dataset.sources import CaptionedDataset
from regforge.export.columns import Columns
from regforge.export.common import some
from regforge.export.interface import ExportError
from regforge.export.order import Traits, balanced_order
from regforge.image_files import (
    ANIMATED,
    DEEP,
    OTHER_COLOURS,
    TRANSPARENT,
    TURNED,
    BrokenImage,
    decode,
    oddities,
    patient,
    plain,
)
from regforge.progress import Reporter
from regforge.records import Example

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Image files that all trainers read; ai-toolkit skips BMP."""

_SHOWN = 5
_BATCH = 16


@dataclass
class Collected:
    """A dataset without its images.

    Attributes:
        ids: As the dataset calls its images.
        captions: As they stand there.
        widths: Pixels, of an odd image as a viewer shows it.
        heights: Pixels, likewise.
        broken: Numbers of images that cannot be decoded to their end; they are left out.
        odd: By number of the image, why trainers may see another image than a viewer shows; see
            `image_files.oddities`. They are exported as plain copies.
        traits: What the order goes by.
        columns: Of metadata.jsonl.
        class_nouns: How often each is said.
        models: How often each is said; None where an image names none.
        digest: SHA-256 over ids, captions, sizes and the digests of the images; 64 hex digits.
    """

    columns: Columns
    ids: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    widths: array[int] = field(default_factory=lambda: array("l"))
    heights: array[int] = field(default_factory=lambda: array("l"))
    broken: set[int] = field(default_factory=set)
    odd: dict[int, tuple[str, ...]] = field(default_factory=dict)
    traits: Traits = field(default_factory=Traits)
    class_nouns: Counter[str] = field(default_factory=Counter)
    models: Counter[str | None] = field(default_factory=Counter)
    digest: str = ""

    def order(self, limit: int | None) -> list[int]:
        """Numbers of the images to be exported, in their order there."""
        order = balanced_order(self.traits, "prompt_set")
        return [index for index in order if index not in self.broken][:limit]

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence."""
        names = [self.ids[index] for index in sorted(self.broken)]
        what = f"{some(len(names), 'image')} that cannot be decoded to the end"
        return [f"Left out: {what} ({_first(names)})."] if names else []


def collect(dataset: CaptionedDataset, reporter: Reporter) -> Collected:
    """Look through a dataset.

    Raises:
        ExportError: It holds no image, or files that trainers do not read.
        RegforgeError: It cannot be read.
    """
    found = Collected(Columns(dataset.slots))
    unread: list[str] = []
    digest = hashlib.sha256()
    foreign = dataset.layout != "regforge"
    examples = dataset.examples(images=foreign)
    with reporter.task("reading captions", None, "images") as task, patient():
        for example, kinds, content in _seen(examples) if foreign else _stored(examples):
            if kinds:
                found.odd[len(found.ids)] = kinds
            _add(found, example)
            digest.update(_facts(example, content))
            if not content:
                found.broken.add(len(found.ids) - 1)
            if example.file:  # the Hub's cache links names to files that have none
                name = PurePosixPath(example.id)
                name = name if name.suffix else PurePosixPath(example.file.name)
                unread += [str(name)] if name.suffix.lower() not in READ_SUFFIXES else []
            task.advance()
    if len(found.ids) == len(found.broken):
        raise ExportError(f"{dataset.name} has no images that can be read.")
    if unread:
        raise cannot_read(unread)
    found.digest = digest.hexdigest()
    return found


_Seen = tuple[Example, tuple[str, ...], str]
"""An example, how its image is odd, and the image's SHA-256; empty if it cannot be decoded."""


def _stored(examples: Iterator[Example]) -> Iterator[_Seen]:
    """Examples of a dataset that regforge made: each image was decoded before it got its digest."""
    return ((each, (), str(each.metadata.get("image_digest"))) for each in examples)


def _seen(examples: Iterator[Example]) -> Iterator[_Seen]:
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(examples, _BATCH)):
            yield from pool.map(_decoded, batch)


def _decoded(example: Example) -> _Seen:
    try:
        image = decode(example.image)
    except BrokenImage:
        return replace(example, image=b""), (), ""
    kinds = oddities(example.image, image)
    content = hashlib.sha256(example.image).hexdigest()
    width, height = plain(image).size if kinds else image.size
    return replace(example, image=b"", width=width, height=height), kinds, content


_REASONS = {
    TURNED: "stored turned, and written upright",
    TRANSPARENT: "transparent, and written on white",
    DEEP: "stored with 16 bits a channel, and written with 8",
    ANIMATED: "animated, and the first frame was written",
    OTHER_COLOURS: "not stored as RGB, and written so",
}


def odd_notes(odd: Iterable[Sequence[str]], noun: str) -> list[str]:
    """What was written of odd images, a sentence for each kind.

    Args:
        odd: The kinds of each; none of a plain one.
        noun: What they are.
    """
    counts = Counter(kind for kinds in odd for kind in kinds)
    return [
        f"{some(counts[kind], noun)} {'was' if counts[kind] == 1 else 'were'} {said}: trainers do "
        "not all read such files alike."
        for kind, said in _REASONS.items()
        if counts[kind]
    ]


def cannot_read(names: list[str]) -> ExportError:
    """Some image files are of a type that not all trainers read."""
    return ExportError(
        f"{len(names):,} of the images are of a type that not all trainers read: {_first(names)}.",
        hint="Save them as PNG, JPEG or WebP first.",
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


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


def _facts(example: Example, content: str) -> bytes:
    """What an example is known by."""
    facts = [example.id, example.text, example.width, example.height, content]
    return json.dumps(facts, default=str).encode()
