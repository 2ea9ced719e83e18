"""What is reviewed: the images of a run, finished or not, or of anybody's folder."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.dataset.decisions import DecisionFile, Key, Review, decisions_of, kept_file
from regforge.dataset.sources import CannotOpen, open_dataset
from regforge.dataset.sources.opened import key_of
from regforge.dataset.store import read_file, rows_by_group
from regforge.errors import RegforgeError
from regforge.files import MOST_IMAGE, StorageError, cache_folder, write_atomically
from regforge.files import read_file as read_bytes
from regforge.image_files import BrokenImage, decode, plain
from regforge.recipe import Recipe, load_recipe
from regforge.recipe.named_files import photos_in
from regforge.records import Example, ImageRow
from regforge.runs import RunFolder, is_training_run

if TYPE_CHECKING:
    from regforge.prompts.tokens import TokenBudget

THUMBNAIL_SIZE = 256
"""Longest side of a thumbnail, in pixels."""

_GROUPS_KEPT = 2
"""Row groups of a run's shards whose image files stay in memory, since neighbours are asked for."""


@dataclass
class Material:
    """Images with their captions, and the decisions about them.

    Attributes:
        name: Of the folder.
        run: The run that they belong to; None for a folder that is not ours.
        file: Where the decisions lie.
        examples: The images as they are stored, without their files, in order.
        notes: What is in the folder and is not reviewed, a sentence each.
    """

    name: str
    folder: Path
    run: RunFolder | None
    file: DecisionFile
    examples: dict[Key, Example] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: str = "folder"
    """Another one when the images have changed."""
    _places: dict[Key, tuple[Path, int]] = field(default_factory=dict)  # shard, row group
    _groups: OrderedDict[tuple[Path, int, str], dict[Key, bytes]] = field(
        default_factory=OrderedDict
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._keys = list(self.examples)
        self.file.read()  # what is wrong with it is said before anything else

    def review(self) -> Review:
        """What the decisions come to now."""
        return Review(self.file.read())

    def refresh(self) -> None:
        """Look at the images again, if a run has changed them.

        Raises:
            ParquetError: A shard is damaged.
        """
        shards = self._shards()
        facts = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in shards]
        version = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        if self.run is None or version == self.version:
            return
        examples, places = dict[Key, Example](), dict[Key, tuple[Path, int]]()
        for path in shards:
            groups = (group for group, rows in enumerate(rows_by_group(path)) for _ in range(rows))
            for row, group in zip(read_file(path, images=False), groups, strict=True):
                key = row.id, row.image_digest
                examples[key], places[key] = _as_example(row), (path, group)
        with self._lock:
            self.examples, self._places, self.version = examples, places, version
            self._keys = list(examples)

    def key_at(self, version: str, number: int) -> Key:
        """Image `number` of those that there were at `version`; a KeyError if there are others."""
        with self._lock:
            if version != self.version or number >= len(self._keys):
                raise KeyError(number)
            return self._keys[number]

    def read(self, key: Key) -> bytes:
        """The file of an image, also of one that was replaced since.

        Raises:
            KeyError: There is no such image.
            RegforgeError, OSError: It cannot be read.
        """
        if self.run is None:
            file = self.examples[key].file
            assert file is not None
            return read_bytes(file, MOST_IMAGE)
        if key not in self._places:
            if (file := kept_file(self.run.path, *key)) is None:
                raise KeyError(key)
            return read_bytes(file, MOST_IMAGE)
        with self._lock:
            path, group = self._places[key]
            known = path, group, self.version
            if known not in self._groups:
                rows = read_file(path, groups=[group])
                self._groups[known] = {(row.id, row.image_digest): row.image for row in rows}
                while len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(known)
            return self._groups[known][key]

    def thumbnail(self, key: Key) -> bytes | None:
        """A small WebP copy of an image, upright; made once. None if the image cannot be shown.

        Raises:
            KeyError: There is no such image.
        """
        name = key[1]
        if self.run is None:
            file = self.examples[key].file
            assert file is not None
            about = file.stat()
            name = f"{file} {about.st_mtime_ns} {about.st_size}"
        digest = hashlib.sha256(f"{THUMBNAIL_SIZE} {name}".encode(errors="replace")).hexdigest()
        path = cache_folder() / "thumbnails" / digest[:2] / f"{digest}.webp"
        with suppress(OSError):
            return path.read_bytes()
        small = small_copy(self.read(key))
        if small is not None:
            with suppress(StorageError):  # a read-only cache must not stop anybody
                write_atomically(path, small)
        return small

    def photos(self) -> list[Path]:
        """The subject's photos, as far as they are there."""
        recipe = self.recipe
        folder = recipe.subject.images if recipe else None
        return photos_in(folder) if folder and folder.is_dir() else []

    @cached_property
    def budget(self) -> TokenBudget | None:
        """How long a caption may be; None where there is no recipe."""
        from regforge.prompts.tokens import token_budget

        recipe = self.recipe
        return token_budget(recipe.render, recipe.prompts.max_tokens) if recipe else None

    @cached_property
    def recipe(self) -> Recipe | None:
        """The run's recipe; None where there is none that can be read."""
        with suppress(RegforgeError):
            return load_recipe(self.run.recipe) if self.run else None
        return None

    def _shards(self) -> list[Path]:
        if self.run is None:
            return []
        found = (path for path in self.run.shards.glob("*.parquet") if path.stem.isdecimal())
        return sorted(found, key=lambda path: int(path.stem))


def open_material(folder: Path) -> Material:
    """Open a run, or a folder of images with captions.

    Raises:
        CannotOpen: There are no images, or they lie in files of another kind.
        DecisionsError: The decisions about them cannot be read.
        ParquetError: A shard is damaged.
    """
    run = RunFolder(folder)
    if run.digest is not None and is_training_run(folder):
        raise CannotOpen(
            f"{folder} is a training: it holds a model, and no images to review.",
            hint="Name the run, or the folder, of its regularization images.",
        )
    if run.digest is not None:
        material = Material(
            run.path.name, run.path, run, DecisionFile(decisions_of(folder, run.path))
        )
        material.refresh()
        if material.examples or (run.prompts.is_file() and run.vocabulary.is_file()):
            return material
    if not folder.exists():  # nothing on the Hub is reviewed
        hint = "Name a run, a recipe, or a folder of captioned images."
        raise CannotOpen(f"{folder} is not there.", hint=hint)
    dataset = open_dataset(folder, reviewed=False)
    found = {key_of(each): each for each in dataset.examples(images=False)}
    if dataset.run is not None:
        return open_material(dataset.run)
    if any(each.file is None for each in found.values()):
        raise CannotOpen(
            f"{folder} is no folder of image files.",
            hint="Unpack it first: regforge export ... --to imagefolder, or unzip.",
        )
    file = DecisionFile(decisions_of(folder, None))
    return Material(dataset.name, folder, None, file, found, dataset.notes)


def small_copy(content: bytes) -> bytes | None:
    """A thumbnail of an image file; None if it cannot be decoded."""
    try:
        image = plain(decode(content))
    except BrokenImage:
        return None
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80)
    return out.getvalue()


def _as_example(row: ImageRow) -> Example:
    names = ("seed", "image_digest", "perceptual_hash", "scores", "reference")
    return Example(
        id=row.id,
        image=b"",
        text=row.text,
        width=row.width,
        height=row.height,
        class_noun=row.class_noun,
        kind=row.kind,
        prompt_set=row.prompt_set,
        slots=row.slots,
        metadata={name: getattr(row, name) for name in names},
    )
