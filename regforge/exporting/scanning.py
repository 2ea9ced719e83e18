"""The first pass over a dataset: captions, sizes, columns of metadata, odd images, and the order.

Images of a dataset that regforge did not make are decoded to their end, a few at a time: a header
says nothing about the rest. What is kept is a few hundred bytes an image, so that 100,000 of them
fit in little memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regforge.dataset.sources import CaptionedDataset
from regforge.exporting.trainer import ExportError
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
from regforge.journal import Reporter
from regforge.records import Example
from regforge.words import counted

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Image files that all trainers read; ai-toolkit skips BMP."""

WINDOW = 256
"""Out of how many images the next one is chosen. More of them balance hardly better."""

_SHOWN = 5
_BATCH = 16

Kind = str | dict[str, str]
"""`string`, `int64`, `float64`, `bool`; for a struct, the kinds of its parts."""

_Codes = NDArray[np.int64]


# ------------------------------------------------------------------------------------------- order
#
# Many trainers use only the first so-and-so many regularization images, so every beginning of the
# order is balanced: each prompt set is spread evenly over the whole, and within a set the next
# image is the one, out of a few drawn at random, whose slots have fallen behind most.


class Traits:
    """What the order goes by, gathered one image at a time: a number for each different value."""

    def __init__(self) -> None:
        self.count = 0
        self._codes: dict[str, array[int]] = {}
        self._values: dict[str, dict[Hashable, int]] = {}

    def add(self, traits: Mapping[str, Hashable]) -> None:
        """One more image; what it has no value for is its value None."""
        for name, value in traits.items():
            values = self._values.setdefault(name, {None: 0})
            codes = self._codes.setdefault(name, array("q"))
            codes.extend([0] * (self.count - len(codes)))
            codes.append(values.setdefault(value, len(values)))
        self.count += 1

    def columns(self) -> dict[str, _Codes]:
        """Number of each image's value, (images,), by trait."""
        return {
            name: np.array([*codes, *[0] * (self.count - len(codes))], np.int64)
            for name, codes in self._codes.items()
        }


def balanced_order(traits: Traits, stratum: str) -> list[int]:
    """Numbers of the images in an order of which every beginning is balanced.

    The j-th image of a stratum (a value of the trait whose balance is guaranteed) with n stands at
    (j + 1/2) / n of the way. So among the first k images of N, a stratum has k * n / N of them,
    give or take (1 + number of strata) / 2. The other traits are balanced greedily within each.
    """
    columns = traits.columns()
    strata = columns.pop(stratum, np.zeros(traits.count, np.int64))
    place = np.zeros(traits.count)
    for number in np.unique(strata):
        members = np.flatnonzero(strata == number)
        ordered = members[_spread([codes[members] for codes in columns.values()], len(members))]
        place[ordered] = (np.arange(len(members)) + 0.5) / len(members)
    return [int(index) for index in np.argsort(place, kind="stable")]


def _spread(traits: Sequence[_Codes], count: int) -> list[int]:
    """An order of 0 to count - 1 in which each value of each trait comes in its share so far.

    Greedy: each step takes, of a window over a shuffled list, the image whose values are most
    behind. It costs a few numpy calls on `WINDOW` rows an image.
    """
    shuffled = list(range(count))
    random.Random(0).shuffle(shuffled)
    columns, share_parts, start = [], [], 0
    for codes in traits:
        different, column, counts = np.unique(codes, return_inverse=True, return_counts=True)
        if 1 < len(different) < len(codes):  # else there is nothing to balance
            columns.append(column + start)
            share_parts.append(counts / len(codes))
            start += len(different)
    if not columns or count < 3:
        return shuffled
    table, shares = np.stack(columns, axis=1), np.concatenate(share_parts)
    waiting = np.array(shuffled[:WINDOW])
    taken = np.zeros(len(shares))
    order: list[int] = []
    following = len(waiting)
    while len(waiting):
        values = table[waiting]
        ahead = (taken[values] - shares[values] * len(order)).sum(axis=1)
        best = int(ahead.argmin())
        taken[values[best]] += 1
        order.append(int(waiting[best]))
        if following < count:
            waiting[best] = shuffled[following]
            following += 1
        else:
            waiting = np.delete(waiting, best)
    return order


# -------------------------------------------------------------------------------- metadata.jsonl
#
# Readers such as `datasets` want one kind for a column in all its rows. A dataset of somebody else
# may hold anything; what is not of one kind becomes text.

_ALWAYS: dict[str, Kind] = {"text": "string", "width": "int64", "height": "int64"}
_OURS = ("class_noun", "kind", "prompt_set")
_INT64 = 2**63


class Columns:
    """Finds out the columns of a dataset, one example at a time."""

    def __init__(self, slots: Sequence[str]) -> None:
        self._slots = tuple(slots)
        self._kinds: dict[str, Kind] = {}

    def add(self, example: Example) -> None:
        """Take note of the columns of one example; those without any value do not count."""
        for name, value in _values(example).items():
            if (found := _kind(value)) is not None:
                self._kinds[name] = _both(self._kinds.get(name), found)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Each column but `file_name` and its kind, in the order in which they are written."""
        kinds = dict(self._kinds)
        late = {"id": kinds.pop("id")} if "id" in kinds else {}
        slots: dict[str, Kind] = {"slots": dict.fromkeys(self._slots, "string")}
        first = {**_ALWAYS, **{name: kinds.pop(name) for name in _OURS if name in kinds}}
        found = {**first, **(slots if self._slots else {}), **kinds, **late}
        return {
            # Parts of a struct without a value anywhere are left out.
            name: {part: each for part, each in kind.items() if each}
            if isinstance(kind, dict)
            else kind
            for name, kind in found.items()
        }


def metadata_line(
    example: Example, *, file_name: str, text: str, kinds: Mapping[str, Kind]
) -> bytes:
    """A line of metadata.jsonl, with its end; `kinds` are `Columns.kinds`."""
    values = _values(example)
    values |= {"text": text, "width": example.width, "height": example.height}
    values["slots"] = dict(example.slots)
    row = {name: _as(values.get(name), kind) for name, kind in kinds.items()}
    line = json.dumps({"file_name": file_name, **row}, ensure_ascii=False, allow_nan=False)
    return line.encode("utf-8", "replace") + b"\n"


def _values(example: Example) -> dict[str, Any]:
    """What is known about an example, by the name of its column, but for text, size and slots."""
    # Turned images are written upright.
    taken = {*_ALWAYS, *_OURS, "id", "slots", "image", "exif_orientation"}
    # `datasets` takes a column with this in its name for the path of another image.
    found = {name.replace("file_name", "source_file"): v for name, v in example.metadata.items()}
    values: dict[str, Any] = {name: getattr(example, name) for name in (*_OURS, "id")}
    return values | {name: value for name, value in found.items() if name not in taken}


def _kind(value: Any) -> Kind | None:
    """The kind of a value; None if it says nothing."""
    if isinstance(value, Mapping):
        parts = {str(name): _scalar_kind(each) or "" for name, each in value.items()}
        return parts if any(parts.values()) else None
    return _scalar_kind(value)


def _scalar_kind(value: Any) -> str | None:
    nothing = isinstance(value, float) and not math.isfinite(value)
    if nothing or value is None or isinstance(value, bytes | bytearray):
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -_INT64 <= value < _INT64 else "string"
    return "float64" if isinstance(value, float) else "string"


def _both(one: Kind | None, other: Kind) -> Kind:
    """The kind that holds values of both; an empty one holds none yet."""
    if not one or one == other:
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        both = {name: _both(one.get(name), other.get(name, "")) for name in names}
        return {name: kind if isinstance(kind, str) else "string" for name, kind in both.items()}
    if not other:
        return one
    return "float64" if {str(one), str(other)} == {"int64", "float64"} else "string"


def _as(value: Any, kind: Kind) -> Any:
    """A value as one of this kind; None if it says nothing."""
    if isinstance(kind, dict):
        parts = value if isinstance(value, Mapping) else {}
        return {name: _as(parts.get(name), each) for name, each in kind.items()}
    if _scalar_kind(value) is None:
        return None
    if kind == "float64":
        return float(value)
    if kind == "string" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


# ------------------------------------------------------------------------------------------- scan


@dataclass
class ScannedDataset:
    """A dataset without its images.

    Attributes:
        sizes: (width, height) in pixels, of an odd image as a viewer shows it.
        broken: Numbers of images that cannot be decoded to their end; they are left out.
        odd: By number of the image, why trainers may see another image than a viewer shows; see
            `image_files.oddities`. They are exported as plain copies.
        traits: What the order goes by.
        models: Of how many images each model is named; image APIs, which have no scheduler, are
            `hosted` instead.
        digest: SHA-256 over ids, captions, sizes and the digests of the images; 64 hex digits.
    """

    columns: Columns
    ids: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    odd: dict[int, tuple[str, ...]] = field(default_factory=dict)
    traits: Traits = field(default_factory=Traits)
    class_nouns: Counter[str] = field(default_factory=Counter)
    models: Counter[str | None] = field(default_factory=Counter)
    hosted: set[str] = field(default_factory=set)
    digest: str = ""

    def order(self, limit: int | None) -> list[int]:
        """Numbers of the images to be exported, in their order there."""
        order = balanced_order(self.traits, "prompt_set")
        return [index for index in order if index not in self.broken][:limit]

    def add(self, example: Example) -> None:
        """Take note of one more image."""
        self.ids.append(example.id)
        self.captions.append(example.text)
        self.sizes.append((example.width, example.height))
        self.columns.add(example)
        self.class_nouns.update([example.class_noun] if example.class_noun else [])
        model = example.metadata.get("model")
        if isinstance(model, str) and example.metadata.get("scheduler", "") is None:
            self.hosted.add(model)
            model = None
        self.models[model if isinstance(model, str) else None] += 1
        traits: dict[str, Hashable] = {f"slot {name}": v for name, v in example.slots.items()}
        traits |= {"prompt_set": example.prompt_set, "class_noun": example.class_noun}
        self.traits.add(traits | {"text": example.text})

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence."""
        names = [self.ids[index] for index in sorted(self.broken)]
        what = f"{counted(len(names), 'image')} that cannot be decoded to the end"
        return [f"Left out: {what} ({_first(names)})."] if names else []


def scan(dataset: CaptionedDataset, reporter: Reporter) -> ScannedDataset:
    """Look through a dataset.

    Raises:
        ExportError: It holds no image, or files that trainers do not read.
    """
    found = ScannedDataset(Columns(dataset.slots))
    unread: list[str] = []
    digest = hashlib.sha256()
    foreign = dataset.layout != "regforge"  # ours were decoded before they got their digests
    examples = dataset.examples(images=foreign)
    with reporter.task("reading captions", None, "images") as task, patient():
        for example, kinds, content in _decoded(examples) if foreign else _stored(examples):
            number = len(found.ids)
            if kinds:
                found.odd[number] = kinds
            if not content:
                found.broken.add(number)
            found.add(example)
            facts = [example.id, example.text, example.width, example.height, content]
            digest.update(json.dumps(facts, default=str).encode())
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


_Scanned = tuple[Example, tuple[str, ...], str]
"""An example, how its image is odd, and the image's SHA-256; empty if it cannot be decoded."""


def _stored(examples: Iterator[Example]) -> Iterator[_Scanned]:
    return ((each, (), str(each.metadata.get("image_digest"))) for each in examples)


def _decoded(examples: Iterator[Example]) -> Iterator[_Scanned]:
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(examples, _BATCH)):
            yield from pool.map(_decode, batch)


def _decode(example: Example) -> _Scanned:
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
    """What was written instead of odd images, a sentence for each kind of oddity."""
    counts = Counter(kind for kinds in odd for kind in kinds)
    return [
        f"{counted(counts[kind], noun)} {'was' if counts[kind] == 1 else 'were'} {reason}: "
        "trainers do not all read such files alike."
        for kind, reason in _REASONS.items()
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
