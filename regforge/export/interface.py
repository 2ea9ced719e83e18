"""What an exporter is: material in, files and plain words out.

The core (`writing`) lays out images and captions once, the same way for every trainer:

    DIR/images/00001.webp  00001.txt     regularization images, each with its one-line caption
    DIR/subject/01.jpg  01.txt           the photos of the subject, if there are any
    DIR/metadata.jsonl                   everything known about each regularization image
    DIR/README-<trainer>.md              how to use it: the notes and the command
    DIR/export.json                      written last: what was exported, from which dataset

What differs between trainers is a `Trainer`: which configuration it reads, which further folders
(hard links) it needs, what it does with captions, and how it would read all of that. A trainer
neither writes nor decodes anything itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

from regforge.errors import EXIT_USAGE, RegforgeError

IMAGES = "images"
"""Folder of the regularization images, in the export's folder."""

SUBJECT = "subject"
"""Folder of the subject's photos."""


class ExportError(RegforgeError):
    """A dataset that cannot be exported as asked."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """An image in the layout.

    Attributes:
        name: Its file name, such as `00001.webp`; the caption stands in `00001.txt`.
        caption: One line, not empty.
        width: Pixels.
        height: Pixels.
    """

    name: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Material:
    """What a trainer's files are made from.

    Attributes:
        out: The export's folder, absolute.
        root: That folder as the trainer will see it, absolute; `out` unless it trains elsewhere.
        images: The regularization images below `IMAGES`, in an order of which every beginning
            is balanced over prompt sets and slots.
        photos: The subject's images below `SUBJECT`; none if no subject was named.
        class_noun: Such as `teapot`.
        identifier: Such as `sks`.
        resolution: Side of a square of pixels that the trainer shall train at.
        base_model: Repository or folder of the model to be trained.
        prior_weight: Weight of the regularization loss; 1 is the paper's.
        columns: The columns of metadata.jsonl but for `file_name`, in order: `string`, `int64`,
            `float64`, `bool`, or for a struct the same by name.
        content: Digest of the dataset and of how it is exported, 16 hex digits.
    """

    out: Path
    root: PurePath
    images: Sequence[ExportedImage]
    photos: Sequence[ExportedImage]
    class_noun: str
    identifier: str
    resolution: int
    base_model: str
    prior_weight: float = 1.0
    columns: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    content: str = ""

    def seen(self, *parts: str) -> str:
        """A path below the export's folder as the trainer will see it, with forward slashes."""
        return self.root.joinpath(*parts).as_posix()


@dataclass(frozen=True)
class Plan:
    """What one trainer needs beside the layout.

    Attributes:
        files: Path below the export's folder -> its text.
        links: Path below the export's folder -> the file of the layout it is a hard link to.
        command: How to start the trainer, as it is typed.
        notes: What the trainer will do with the data, in plain words, a sentence or two each. The
            first says how many of the regularization images it uses, and how.
        shards: Path of a tar file below the export's folder -> names of the regularization
            images in it, each with its caption and its line of metadata.jsonl.
    """

    files: Mapping[str, str]
    command: str
    notes: Sequence[str]
    links: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as the trainer would load it from the files that were written.

    Attributes:
        path: Where it lies, below the export's folder.
        caption: What the trainer would train it with; None where it has one caption for all.
        regularization: Whether it counts as a regularization image.
        repeats: How often an epoch shows it; 0 if never.
    """

    path: str
    caption: str | None
    regularization: bool
    repeats: float = 1.0


class Trainer(Protocol):
    """One third-party trainer.

    Attributes:
        name: As `--to` takes it.
        title: As its authors write it.
    """

    name: str
    title: str

    def refuses(self, caption: str) -> str | None:
        """Why this trainer could not keep a (one-line, non-empty) caption, or None if it can."""
        ...

    def plan(self, material: Material) -> Plan:
        """What to write for it."""
        ...

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """What the trainer would load, found by reading the written files the way it reads them.

        Args:
            out: The export's folder, where it lies now.
            root: That folder as the files name it.

        Raises:
            ExportError: The trainer would refuse a file; the message says why.
        """
        ...
