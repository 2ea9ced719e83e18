"""What an exporter for one trainer gets, gives, and shares with the others.

The core (`writing`) lays out images and captions once, the same way for every trainer:

    DIR/images/00001.webp  00001.txt     regularization images, each with its one-line caption
    DIR/subject/01.jpg  01.txt           the instance images, if there are any
    DIR/metadata.jsonl                   everything known about each regularization image
    DIR/README-<trainer>.md              how to use it: the notes and the command
    DIR/export.json                      written last: what was exported, from which dataset

A `Trainer` says which configuration and which further folders (hard links) one trainer needs, what
it does with captions, and how it would read all of that. It neither writes nor decodes anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path, PurePath
from typing import Any, TypeVar

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.prompts.captions import instance_caption
from regforge.recipe.pipelines import NAMED, Family
from regforge.words import is_token

IMAGES = "images"
SUBJECT = "subject"
METADATA = "metadata.jsonl"

USUAL_PHOTOS = 5
"""What repeats are computed with while there are no photos."""

NO_BASE_MODEL = "BASE-MODEL"
"""Stands where the model to be trained belongs and nobody has named one."""


class ExportError(RegforgeError):
    """A dataset that cannot be exported as asked."""

    exit_code = EXIT_USAGE


T = TypeVar("T")


def entry_of(table: Mapping[str, T | None], family: Family) -> T | None:
    """The entry for a family, else for the one it is like; None if it is not to be trained so."""
    return table.get(family.name, table.get(family.like))


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """An image in the layout; its one-line caption stands beside it in a `.txt` file."""

    name: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an export is made with.

    Attributes:
        resolution: Side of a square of pixels to train at.
        base_model: Repository or folder, or `NO_BASE_MODEL`.
        family: What kind of model that is; None if nobody said, see `Trainer.families`.
        predicts_v: Whether it predicts the velocity; see `pipelines.predicts_v`.
        root: The export's folder on the machine that trains, absolute.
        limit: At most so many images.
        notes: What was decided, as far as a person should know.
    """

    class_noun: str
    identifier: str
    resolution: int
    base_model: str
    family: Family | None = None
    predicts_v: bool = False
    prior_weight: float = 1.0
    root: PurePath
    limit: int | None = None
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """For comparing with another export."""
        names = ("class_noun", "identifier", "resolution", "base_model", "prior_weight", "limit")
        family = self.family and self.family.name
        facts = {name: getattr(self, name) for name in names}
        return facts | {"family": family, "root": self.root.as_posix()}


@dataclass(frozen=True, kw_only=True)
class Material(Settings):
    """What a trainer's files are made from.

    Attributes:
        out: The export's folder, absolute.
        images: Regularization images below `IMAGES`; every first part of them is balanced.
        photos: Instance images below `SUBJECT`.
        columns: Columns of metadata.jsonl but for `file_name`, in order: `string`, `int64`,
            `float64`, `bool`, or for a struct the same by name.
        content: Digest of the dataset and of how it is exported, 16 hex digits.
    """

    out: Path
    images: Sequence[ExportedImage]
    photos: Sequence[ExportedImage]
    columns: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    content: str = ""

    def path(self, *parts: str) -> str:
        """A path below the export's folder as the trainer will see it, with forward slashes."""
        return self.root.joinpath(*parts).as_posix()

    def entry(self, table: Mapping[str, T | None]) -> T:
        """The entry of a trainer's table for the base model; see `Trainer.families`."""
        if (found := entry_of(table, self.kind)) is None:
            raise ExportError(f"{self.kind.title} is none of {', '.join(table)}.")
        return found

    @property
    def kind(self) -> Family:
        """The base model's family, for trainers that have `Trainer.families`."""
        if self.family is None:
            raise ExportError(f"{self.base_model} is of no known family.")
        return self.family

    @property
    def photo_count(self) -> int:
        """How many photos of the subject to count on."""
        return len(self.photos) or USUAL_PHOTOS

    @property
    def repeats(self) -> int:
        """How often each photo comes so that one-to-one training uses every image.

        He et al. (arXiv 2311.04315) train with batches of one photo and one regularization image,
        whatever the size of either set.
        """
        return ceil(len(self.images) / self.photo_count)

    @property
    def instance_prompt(self) -> str:
        """One caption for the subject, such as "a photo of a sks teapot", as in DreamBooth."""
        return instance_caption(self.identifier, self.class_noun)

    @property
    def run_name(self) -> str:
        """A file name for what is trained, such as `sks-teapot-lora`."""
        words = re.findall(r"\w+", f"{self.identifier} {self.class_noun}".casefold())
        return "-".join([*words, "lora"])


@dataclass(frozen=True)
class Plan:
    """What one trainer needs beside the layout; paths are below the export's folder.

    Attributes:
        files: Path -> text.
        command: How to start the trainer, as it is typed.
        notes: What the trainer will do with the data, a sentence or two each. The first says how
            many of the regularization images it uses, and how.
        links: Path -> file of the layout that it is a hard link to.
        shards: Path of a tar file -> names of the regularization images in it, each with its
            caption and its line of metadata.jsonl.
        zips: Path of a zip file -> name in it -> file of the layout.
    """

    files: Mapping[str, str]
    command: str
    notes: Sequence[str]
    links: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, Sequence[str]] = field(default_factory=dict)
    zips: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image as the trainer would load it from the files that were written.

    Attributes:
        path: Where it lies, below the export's folder.
        caption: What it would be trained with; None where there is one caption for all.
        regularization: Whether it counts as a regularization image.
        repeats: How often an epoch shows it; 0 if never.
    """

    path: str
    caption: str | None
    regularization: bool
    repeats: float = 1.0


@dataclass(frozen=True, eq=False)
class Trainer:
    """One third-party trainer.

    Attributes:
        name: As `--to` takes it.
        title: As its authors write it.
        plan: What to write for it.
        read: What it would load, found by reading the written files the way it reads them. Gets
            the folder where it lies now, and as the files name it; raises `ExportError` for what
            the trainer would refuse or ignore.
        families: The base models that it trains, by `Family.name`: each with what it is called
            there, or None where it cannot be trained though the one it is like can. None for a
            trainer whose files name no base model.
        refuses: Why it could not keep a caption, which is one line without white space around it;
            None if it can, or any.
        tokens: The base models, as in `families`, for which its files ask for the embedding of a
            new token; None for a trainer of which we know no such thing.
    """

    name: str
    title: str
    plan: Callable[[Material], Plan]
    read: Callable[[Path, PurePath], Iterator[LoadedImage]]
    families: Mapping[str, Any] | None = None
    refuses: Callable[[str], str | None] | None = None
    tokens: Mapping[str, Any] | None = None

    def trains(self, family: Family) -> bool:
        """Whether its files are for a base model of this family."""
        return self.families is not None and entry_of(self.families, family) is not None

    def token_notes(self, material: Material) -> Iterator[str]:
        """What to say where the identifier is the name of a new token, which it does not train."""
        family = material.family
        trained = self.tokens and family and entry_of(self.tokens, family) is not None
        if is_token(material.identifier) and not trained:
            yield (
                f"{material.identifier} is the name of a new token, and these files ask "
                f"{self.title} for none: it would be read as the letters it is made of. Name a "
                "rare word instead (--identifier ohwx), or train the token with regforge, "
                "OneTrainer (SD, SDXL, SD 3, FLUX.1) or diffusers (SD 1.5, SDXL, FLUX.1)."
            )


def refuse_untrainable(
    settings: Settings, trainers: Sequence[Trainer], known: Sequence[Trainer], drawn_by: str
) -> None:
    """Raise an `ExportError` for a base model that one of the trainers would not train.

    It names those of the `known` ones that do, and the image API that drew the images, if one did.
    """
    unknown = f"{drawn_by}, which drew the images, is an image API" if drawn_by else "none is named"
    if settings.base_model != NO_BASE_MODEL:
        unknown = f"nothing tells which {settings.base_model} is"
    for trainer in trainers:
        if trainer.families is None:
            continue
        if (family := settings.family) is None:
            raise ExportError(
                f"{trainer.title} trains each kind of base model in its own way, and {unknown}.",
                hint="Name the model with --base-model, or its kind with --family: "
                f"{', '.join(name for name in sorted(NAMED) if trainer.trains(NAMED[name]))}.",
            )
        if entry_of(trainer.families, family) is None:
            others = [each.name for each in known if each.trains(family)]
            raise ExportError(
                f"{trainer.title} cannot train {family.title} with a regularization set.",
                hint=f"Trainers that can: --to {', '.join(others)}." if others else None,
            )
