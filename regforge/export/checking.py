"""Reads an export back and compares it with the dataset.

First the files themselves: each image of the layout with its size and caption, each link, each
tar file, each configuration. Then what the trainer makes of them, as its module reads it. Only
reads; knows no trainer.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regforge.export.common import some
from regforge.export.interface import (
    IMAGES,
    SUBJECT,
    ExportedImage,
    ExportError,
    Material,
    Plan,
    Trainer,
)
from regforge.export.layout import METADATA, same_content, shard_members
from regforge.image_files import BrokenImage, decode, oddities, patient
from regforge.progress import Task

_SHOWN = 20


@dataclass(frozen=True)
class Checked:
    """What the check of one trainer's files found.

    Attributes:
        images: How many regularization images were compared.
        photos: How many photos of the subject.
        differences: What is not as it should be, a line each.
    """

    images: int
    photos: int
    differences: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "images": self.images,
            "photos": self.photos,
            "differences": list(self.differences),
        }

    def as_text(self) -> str:
        """One line if all is well, else a line for each of the first differences."""
        if not self.differences:
            photos = f" and {some(self.photos, 'photo')}" if self.photos else ""
            images = some(self.images, "image")
            return f"checked: {images}{photos}, captions and sizes equal"
        count = len(self.differences)
        lines = [f"checked: {some(count, 'difference')}"]
        lines += [f"  {line}" for line in self.differences[:_SHOWN]]
        lines += [f"  ... and {count - _SHOWN:,} more"] if count > _SHOWN else []
        return "\n".join(lines)


def check_layout(material: Material, digests: Mapping[str, str], task: Task) -> list[str]:
    """Compare the images, photos and metadata that all trainers share.

    Args:
        material: What was exported.
        digests: SHA-256 of the further files, by their path below the folder.
        task: Advanced by one for each image.
    """
    found = [*_changed(material.out, digests)]
    with ThreadPoolExecutor() as pool, patient():
        for folder, images in ((IMAGES, material.images), (SUBJECT, material.photos)):
            for differences in pool.map(partial(_image, material.out, folder), images):
                found += differences
                task.advance()
    return found


def check_export(
    trainer: Trainer, material: Material, plan: Plan, digests: Mapping[str, str]
) -> Checked:
    """Compare what a trainer would load with what was exported.

    Args:
        trainer: Which.
        material: What was exported.
        plan: What was written for it.
        digests: SHA-256 of the texts as they were written for it.
    """
    texts = {name: digests[name] for name in plan.files if name in digests}
    found = [*_changed(material.out, texts), *_written(material.out, plan)]
    try:
        found += _seen(trainer, material, plan)
    except ExportError as error:
        found.append(f"{trainer.title} would refuse it: {error}")
    return Checked(len(material.images), len(material.photos), list(dict.fromkeys(found)))


# ---------------------------------------------------------------------------------------- files


def _image(out: Path, folder: str, image: ExportedImage) -> list[str]:
    return list(_differences(out / folder / image.name, folder, image))


def _differences(path: Path, folder: str, decoded: ExportedImage) -> Iterator[str]:
    name = f"{folder}/{decoded.name}"
    wanted = (decoded.width, decoded.height)
    try:
        content = path.read_bytes()
        image = decode(content)
    except (OSError, BrokenImage) as error:
        why = f"cannot be read: {error}"
        yield f"{name}: {why if path.is_file() else 'missing'}"
    else:
        if image.size != wanted:
            yield f"{name}: is {image.width} x {image.height}, not {wanted[0]} x {wanted[1]}"
        if kinds := oddities(content, image):
            yield f"{name}: is {' and '.join(kinds)}"
    caption = path.with_suffix(".txt")
    try:
        text = caption.read_bytes()
    except OSError:
        yield f"{folder}/{caption.name}: missing"
    else:
        if text != decoded.caption.encode():
            yield f"{folder}/{caption.name}: says {_short(text)}, not {_short(decoded.caption)}"


def _changed(out: Path, digests: Mapping[str, str]) -> Iterator[str]:
    for name, digest in digests.items():
        if (now := _digest(out / name)) != digest:
            yield f"{name}: {'changed since it was written' if now else 'missing'}"


def _written(out: Path, plan: Plan) -> Iterator[str]:
    """What is not as the plan has it."""
    for name, source in plan.links.items():
        try:
            same = same_content(out / name, out / source)
        except OSError:
            yield f"{name}: missing"
        else:
            if not same:
                yield f"{name}: is not {source}"
    rows = metadata_rows(out) if plan.shards else {}
    for name, images in plan.shards.items():
        yield from _shard(out, name, images, rows)


def metadata_rows(out: Path) -> dict[str, bytes]:
    """The lines of metadata.jsonl by the name of the image, in the order of their numbers.

    Raises:
        ExportError: It cannot be read.
    """
    start = f'{{"file_name": "{IMAGES}/'.encode()
    rows = {}
    try:
        with (out / METADATA).open("rb") as stream:
            for line in stream:
                name, _, rest = line.removeprefix(start).partition(b'", ')
                rows[name.decode()] = b"{" + rest.rstrip(b"\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{out / METADATA} cannot be read: {error}") from error
    return rows


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


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


# -------------------------------------------------------------------------------------- trainer


def _seen(trainer: Trainer, material: Material, plan: Plan) -> Iterator[str]:
    """Where what the trainer loads is not what was exported."""
    expected = {f"{IMAGES}/{image.name}": (image, True) for image in material.images}
    expected |= {f"{SUBJECT}/{photo.name}": (photo, False) for photo in material.photos}
    waiting = set(expected)
    for seen in trainer.read(material.out, material.root):
        source = _source(seen.path, plan)
        if source not in expected and not material.photos and not seen.regularization:
            continue  # a photo that the user has put there
        if source not in expected:
            yield f"{seen.path}: is loaded, but was not exported"
            continue
        if source not in waiting:
            yield f"{seen.path}: is loaded twice"
        waiting.discard(source)
        image, regularization = expected[source]
        if seen.regularization != regularization:
            kinds = ("an instance image", "a regularization image")
            yield (
                f"{seen.path}: counts as {kinds[seen.regularization]}, not as "
                f"{kinds[regularization]}"
            )
        if seen.caption is not None and seen.caption != image.caption:
            yield f"{seen.path}: has caption {_short(seen.caption)}, not {_short(image.caption)}"
    photos = {f"{SUBJECT}/{photo.name}" for photo in material.photos}
    if photos <= waiting:  # a trainer of which the photos are no business
        waiting -= photos
    yield from (f"{name}: {trainer.title} would not load it" for name in sorted(waiting))


def _source(path: str, plan: Plan) -> str:
    """The file of the layout that is behind a path that a trainer loads."""
    folder, _, name = path.rpartition("/")
    return f"{IMAGES}/{name}" if folder in plan.shards else plan.links.get(path, path)


def _short(text: str | bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
