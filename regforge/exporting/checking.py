"""Reads an export back and compares it with the dataset.

First the files themselves: each image of the layout with its size and caption, each link, each
tar file, each configuration. Then what the trainer makes of them, as its module reads it.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regforge.display import Displayed
from regforge.exporting.layout import digest_of, metadata_rows, same_content, shard_members
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportedImage,
    ExportError,
    Material,
    Plan,
    Trainer,
)
from regforge.image_files import BrokenImage, decode, oddities, patient
from regforge.journal import Task
from regforge.words import beginning, counted, from_here

_SHOWN = 20


@dataclass(frozen=True)
class CheckResult:
    """How many images were compared for one trainer, and what is not as it should be, in lines."""

    images: int
    photos: int
    differences: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {**vars(self), "differences": list(self.differences)}

    def as_text(self) -> str:
        """One line if all is well, else a line for each of the first differences."""
        if not self.differences:
            photos = f" and {counted(self.photos, 'photo')}" if self.photos else ""
            return f"checked: {counted(self.images, 'image')}{photos}, captions and sizes equal"
        count = len(self.differences)
        lines = [f"checked: {counted(count, 'difference')}"]
        lines += [f"  {line}" for line in self.differences[:_SHOWN]]
        lines += [f"  ... and {count - _SHOWN:,} more"] if count > _SHOWN else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Target:
    """What was written for one trainer; `files` are all paths but that of the README."""

    name: str
    title: str
    readme: Path
    files: Sequence[str]
    command: str
    notes: Sequence[str]
    checked: CheckResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "name": self.name,
            "readme": str(self.readme),
            "files": list(self.files),
            "command": self.command,
            "notes": list(self.notes),
            "checked": self.checked.as_dict() if self.checked else None,
        }

    def as_text(self) -> str:
        """For a terminal."""
        lines = [self.title, *(f"- {note}" for note in self.notes), ""]
        lines += [f"  {line}" for line in self.command.splitlines()]
        lines += ["", f"  More in {from_here(self.readme)}"]
        checked = self.checked.as_text() if self.checked else ""
        return "\n".join([*lines, *(f"  {line}" for line in checked.splitlines())])


@dataclass(frozen=True)
class Exported(Displayed):
    """What an export was: how many regularization and instance images, and for which trainers.

    The notes say what a person should know about the data, whatever the trainer.
    """

    out: Path
    dataset: str
    images: int
    photos: int
    notes: Sequence[str]
    targets: Sequence[Target]

    @property
    def differs(self) -> bool:
        """Whether a check found differences."""
        return any(target.checked and target.checked.differences for target in self.targets)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        targets = [target.as_dict() for target in self.targets]
        return {**vars(self), "out": str(self.out), "notes": list(self.notes), "targets": targets}

    def as_text(self) -> str:
        """For a terminal."""
        photos = f" and {counted(self.photos, 'photo')}" if self.photos else ""
        head = f"{counted(self.images, 'image')} of {self.dataset}{photos} in {from_here(self.out)}"
        parts = ["\n".join([head, *(f"- {note}" for note in self.notes)])]
        parts += [target.as_text() for target in self.targets]
        if self.differs:
            parts.append(
                "What is missing is written again by the same command without --check. Delete "
                "what was changed before that, or export to another folder."
            )
        return "\n\n".join(parts)


def check_layout(material: Material, digests: Mapping[str, str], task: Task) -> list[str]:
    """Compare what all trainers share; `digests` are the SHA-256 of files other than images."""
    found = [*_changed(material.out, digests)]
    with ThreadPoolExecutor() as pool, patient():
        for folder, images in ((IMAGES, material.images), (SUBJECT, material.photos)):
            for differences in pool.map(partial(_image, material.out / folder), images):
                found += differences
                task.advance()
    return found


def check_export(
    trainer: Trainer, material: Material, plan: Plan, digests: Mapping[str, str]
) -> list[str]:
    """Compare what a trainer would load with what was exported; differences, a line each.

    `digests` are the SHA-256 of the texts as they were written for it.
    """
    texts = {name: digests[name] for name in plan.files if name in digests}
    found = [*_changed(material.out, texts), *_written(material.out, plan)]
    try:
        found += _loaded(trainer, material, plan)
    except ExportError as error:
        found.append(f"{trainer.title} would refuse it: {error}")
    return found


# ------------------------------------------------------------------------------------------ files


def _image(folder: Path, wanted: ExportedImage) -> list[str]:
    path = folder / wanted.name
    name = f"{folder.name}/{wanted.name}"
    found = []
    try:
        content = path.read_bytes()
        image = decode(content)
    except (OSError, BrokenImage) as error:
        found.append(f"{name}: {f'cannot be read: {error}' if path.is_file() else 'missing'}")
    else:
        if image.size != (wanted.width, wanted.height):
            sizes = (*image.size, wanted.width, wanted.height)
            found.append("{}: is {} x {}, not {} x {}".format(name, *sizes))
        if kinds := oddities(content, image):
            found.append(f"{name}: is {' and '.join(kinds)}")
    caption = path.with_suffix(".txt")
    name = f"{folder.name}/{caption.name}"
    try:
        text = caption.read_bytes()
    except OSError:
        return [*found, f"{name}: missing"]
    if text != wanted.caption.encode():
        found.append(f"{name}: says {_short(text)}, not {_short(wanted.caption)}")
    return found


def _changed(out: Path, digests: Mapping[str, str]) -> Iterator[str]:
    for name, digest in digests.items():
        if (now := digest_of(out / name)) != digest:
            yield f"{name}: {'changed since it was written' if now else 'missing'}"


def _written(out: Path, plan: Plan) -> Iterator[str]:
    """What is not as the plan has it."""
    for name, source in plan.links.items():
        try:
            if not same_content(out / name, out / source):
                yield f"{name}: is not {source}"
        except OSError:
            yield f"{name}: missing"
    rows = metadata_rows(out) if plan.shards else {}
    for name, images in plan.shards.items():
        yield from _shard(out, name, images, rows)
    for name, members in plan.zips.items():
        yield from _zip(out, name, members)


def _shard(out: Path, name: str, images: Sequence[str], rows: Mapping[str, bytes]) -> Iterator[str]:
    try:
        with tarfile.open(out / name) as tar:
            for member, content in shard_members(out, images, rows):
                info = tar.next()
                stream = tar.extractfile(info) if info else None
                if info is None or info.name != member or not stream or stream.read() != content:
                    yield f"{name}: {member} is not in it as it should be"
                    return
            if tar.next() is not None:
                yield f"{name}: holds more than it should"
    except FileNotFoundError as error:
        missing = Path(error.filename)
        yield f"{missing.relative_to(out) if missing.is_relative_to(out) else missing}: missing"
    except (OSError, tarfile.TarError, KeyError) as error:
        yield f"{name}: cannot be read: {error}"


def _zip(out: Path, name: str, members: Mapping[str, str]) -> Iterator[str]:
    try:
        with zipfile.ZipFile(out / name) as archive:
            held = archive.namelist()
            if len(held) > len(members):
                yield f"{name}: holds more than it should"
            for member, source in members.items():
                if member not in held or archive.read(member) != (out / source).read_bytes():
                    yield f"{name}: {member} is not in it as it should be"
                    return
    except FileNotFoundError as error:
        yield f"{Path(error.filename).relative_to(out)}: missing"
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        yield f"{name}: cannot be read: {error}"


# ---------------------------------------------------------------------------------------- trainer


def _loaded(trainer: Trainer, material: Material, plan: Plan) -> Iterator[str]:
    """Where what the trainer loads is not what was exported."""
    expected = {f"{IMAGES}/{image.name}": (image, True) for image in material.images}
    photos = {f"{SUBJECT}/{photo.name}": (photo, False) for photo in material.photos}
    expected |= photos
    waiting = set(expected)
    for loaded in trainer.read(material.out, material.root):
        folder, _, name = loaded.path.rpartition("/")
        source = plan.links.get(loaded.path, loaded.path)
        source = f"{IMAGES}/{name}" if folder in plan.shards else source
        source = plan.zips.get(folder, {}).get(name, source)
        if source not in expected:
            if loaded.regularization or photos:  # else one that the user has put there
                yield f"{loaded.path}: is loaded, but was not exported"
            continue
        if source not in waiting:
            yield f"{loaded.path}: is loaded twice"
        waiting.discard(source)
        image, regularization = expected[source]
        if loaded.regularization != regularization:
            kinds = ("an instance image", "a regularization image")
            yield (
                f"{loaded.path}: counts as {kinds[loaded.regularization]}, not as "
                f"{kinds[regularization]}"
            )
        if loaded.caption is not None and loaded.caption != image.caption:
            said, wanted = _short(loaded.caption), _short(image.caption)
            yield f"{loaded.path}: has caption {said}, not {wanted}"
    if photos.keys() <= waiting:  # a trainer of which the photos are no business
        waiting -= photos.keys()
    yield from (f"{name}: {trainer.title} would not load it" for name in sorted(waiting))


def _short(text: str | bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return repr(beginning(shown))
