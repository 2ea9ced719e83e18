"""The second pass over a dataset: files of an export, written once for all trainers.

Every file is written beside its place and renamed into it, so that none is ever there in part.
They are not forced onto the disk one by one: an export has two files an image, and can be made
again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from regforge.dataset.sources import CaptionedDataset
from regforge.exporting.common import lines_of
from regforge.exporting.scanning import ScannedDataset, cannot_read, metadata_line, odd_notes
from regforge.exporting.settings import naming, tidy
from regforge.exporting.trainer import IMAGES, METADATA, SUBJECT, ExportedImage, ExportError, Plan
from regforge.files import file_digest, open_atomically, storage_errors
from regforge.image_files import decode, oddities, patient, plain_png
from regforge.journal import Reporter
from regforge.prompts.captions import instance_caption
from regforge.prompts.photos import captions_of_run, photo_captions, syntax_notes
from regforge.records import Example
from regforge.words import counted


class ExportFolder:
    """Writes below the export's folder, and creates what folders it needs.

    All methods raise a `StorageError` where nothing can be written; without `replace`, an
    `ExportError` instead of taking the place of a file with other content.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self._top = str(top)
        self._made: set[str] = set()

    def path(self, name: str) -> Path:
        """A path below the folder; its own folder is created."""
        folder = name.rpartition("/")[0]
        path = Path(f"{self._top}/{name}")  # joining paths by pieces costs more than writing them
        if folder not in self._made:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        return path

    def write(self, name: str, content: bytes, *, replace: bool = True) -> None:
        """Write a file, unless it is there with this content."""
        path = self.path(name)
        with storage_errors(path):
            with suppress(FileNotFoundError):
                if path.stat().st_size == len(content) and path.read_bytes() == content:
                    return
                if not replace:
                    raise _in_the_way(path)
            with open_atomically(path, sync=False) as stream:
                stream.write(content)

    def link(self, name: str, source: Path, *, replace: bool = True) -> None:
        """Make a hard link to a file, or a copy where there can be no link."""
        path = self.path(name)
        with storage_errors(path):
            if source.is_symlink():  # a link to it would be another symbolic link
                source = source.resolve()
            try:
                os.link(source, path)
            except FileExistsError:
                if same_content(path, source):
                    return
                if not replace:
                    raise _in_the_way(path) from None
                path.unlink()
                self.link(name, source)
            except OSError:
                with source.open("rb") as original, open_atomically(path, sync=False) as stream:
                    shutil.copyfileobj(original, stream)

    def write_shard(self, name: str, images: Sequence[str], rows: Mapping[str, bytes]) -> None:
        """Write a tar file of images, each with `.txt` and `.json`; see `metadata_rows`."""
        path = self.path(name)
        with (
            storage_errors(path),
            open_atomically(path, sync=False) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for member, content in shard_members(self.top, images, rows):
                info = tarfile.TarInfo(member)
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, BytesIO(content))

    def write_zip(self, name: str, members: Mapping[str, str]) -> None:
        """Write a zip file: name in it -> file below the folder; always with the same bytes."""
        path = self.path(name)
        with (
            storage_errors(path),
            open_atomically(path, sync=False) as stream,
            zipfile.ZipFile(stream, "w") as archive,
        ):
            for member, source in members.items():
                info = zipfile.ZipInfo(member)
                info.create_system, info.external_attr = 3, 0o644 << 16
                archive.writestr(info, (self.top / source).read_bytes())


def shard_members(
    top: Path, images: Sequence[str], rows: Mapping[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """What a tar file of these images holds, in order: (name, content)."""
    for name in images:
        image = top / IMAGES / name
        yield name, image.read_bytes()
        yield f"{image.stem}.txt", image.with_suffix(".txt").read_bytes()
        yield f"{image.stem}.json", rows[name]


def metadata_rows(out: Path) -> dict[str, bytes]:
    """The lines of metadata.jsonl by the name of the image, without the file's name."""
    start = f'{{"file_name": "{IMAGES}/'.encode()
    rows = {}
    for line in lines_of(out / METADATA):
        name, _, rest = line.removeprefix(start).partition(b'", ')
        rows[name.decode("utf-8", "replace")] = b"{" + rest.rstrip(b"\n")
    return rows


def sha256(text: str) -> str:
    """SHA-256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file, 64 hex digits; None if it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return None


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    return one.samefile(other) or (
        one.stat().st_size == other.stat().st_size and file_digest(one) == file_digest(other)
    )


def _in_the_way(path: Path) -> ExportError:
    return ExportError(
        f"{path} is there already, and is no file of this export.",
        hint="Move it away, or choose another folder with --out.",
    )


def _suffix_of(image: bytes) -> str | None:
    """`png`, `jpg` or `webp` by the file's first bytes; None if it is none of them."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if image[:3] == b"\xff\xd8\xff":
        return "jpg"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def _stems(count: int, digits: int) -> list[str]:
    """`00001`, `00002`, ..., all of one length."""
    digits = max(digits, len(str(count)))
    return [f"{number:0{digits}d}" for number in range(1, count + 1)]


def write_target(
    folder: ExportFolder, plan: Plan, files: Mapping[str, str], before: Mapping[str, str]
) -> list[str]:
    """Write what one trainer needs and is not there yet; the texts left as somebody changed them.

    `files` are all of its texts, `before` their SHA-256 as they were written before, if they were.
    """
    changed = []
    for path, text in files.items():
        there = digest_of(folder.top / path)
        if there is not None and path in before and there != before[path]:
            if there != sha256(text):
                changed.append(path)
        else:
            folder.write(path, text.encode(), replace=path in before)
    for path, source in plan.links.items():
        if not (before and (folder.top / path).exists()):
            folder.link(path, folder.top / source, replace=False)
    missing = [path for path in plan.shards if not (folder.top / path).exists()]
    rows = metadata_rows(folder.top) if missing else {}
    for path in missing:
        folder.write_shard(path, plan.shards[path], rows)
    for path, members in plan.zips.items():
        if not (folder.top / path).exists():
            folder.write_zip(path, members)
    return changed


# --------------------------------------------------------------------------- regularization images


def write_images(
    source: CaptionedDataset,
    scanned: ScannedDataset,
    order: Sequence[int],
    captions: Sequence[str],
    folder: ExportFolder,
    keep: Set[str],
    reporter: Reporter,
) -> tuple[list[str], str]:
    """Write images, captions and metadata.jsonl, with one image in memory at a time.

    `order` are numbers of images in the order of the layout, `captions` those to be written, in
    that order. Paths in `keep`, below the folder, are left as they are.

    Returns:
        The names of the images in their order; SHA-256 of metadata.jsonl.
    """
    changed = ExportError(f"{source.name} changed while it was read; export it again.")
    places = {index: place for place, index in enumerate(order)}
    kinds = scanned.columns.kinds
    stems, names, lines = _stems(len(order), 5), [""] * len(order), [b""] * len(order)
    with reporter.task("writing", len(order), "images") as task:
        for index, example in enumerate(source.examples()):
            if index >= len(scanned.ids) or example.id != scanned.ids[index]:
                raise changed
            if (place := places.get(index)) is None:
                continue
            if (suffix := _suffix_of(example.image)) is None:
                raise cannot_read([example.id])
            odd = index in scanned.odd
            if odd:
                example, suffix = _plain(example, scanned.sizes[index]), "png"
            else:
                _see_that_it_is_whole(source, example)
            stem, names[place] = f"{IMAGES}/{stems[place]}", f"{stems[place]}.{suffix}"
            if (image := f"{stem}.{suffix}") not in keep:
                if example.file and not odd:
                    folder.link(image, example.file)
                else:
                    folder.write(image, example.image)
            if f"{stem}.txt" not in keep:
                folder.write(f"{stem}.txt", captions[place].encode())
            lines[place] = metadata_line(
                example, file_name=image, text=captions[place], kinds=kinds
            )
            task.advance()
    if not all(names):
        raise changed
    metadata = b"".join(lines)
    if METADATA not in keep:
        folder.write(METADATA, metadata)
    return names, hashlib.sha256(metadata).hexdigest()


def _plain(example: Example, size: tuple[int, int]) -> Example:
    """The example with a plain copy of its odd image."""
    image, metadata = plain_png(example.image), dict(example.metadata)
    if metadata.get("image_digest"):
        metadata["image_digest"] = hashlib.sha256(image).hexdigest()
    return replace(example, image=image, width=size[0], height=size[1], metadata=metadata)


def _see_that_it_is_whole(source: CaptionedDataset, example: Example) -> None:
    digest = example.metadata.get("image_digest") if source.layout == "regforge" else None
    if digest and hashlib.sha256(example.image).hexdigest() != digest:
        raise ExportError(
            f"Image {example.id} of {source.name} is not the one that was drawn.",
            hint="The dataset is damaged: make or download it again.",
        )


# -------------------------------------------------------------------------------- instance images


@dataclass(frozen=True)
class SubjectPhotos:
    """The instance images that go into an export, and the files they are made from.

    `odd` says which are written as plain copies; see `image_files.oddities`.
    """

    images: Sequence[ExportedImage] = ()
    files: Sequence[Path] = ()
    digests: Sequence[str] = ()
    odd: Sequence[bool] = ()
    notes: Sequence[str] = ()

    @property
    def facts(self) -> list[list[str]]:
        """What they are known by: (name, caption, digest)."""
        pairs = zip(self.images, self.digests, strict=True)
        return [[image.name, image.caption, digest] for image, digest in pairs]

    def write(self, folder: ExportFolder, *, restore: bool) -> None:
        """Put the images and their captions into the folder; to restore, only what is missing."""
        for image, file, odd in zip(self.images, self.files, self.odd, strict=True):
            name = f"{SUBJECT}/{image.name}"
            caption = f"{name.rpartition('.')[0]}.txt"
            if not (restore and (folder.top / name).exists()):
                if odd:
                    folder.write(name, plain_png(file.read_bytes()), replace=False)
                else:
                    folder.link(name, file, replace=False)
            if not (restore and (folder.top / caption).exists()):
                folder.write(caption, image.caption.encode(), replace=False)


def read_photos(
    photos: Path | None, *, identifier: str, class_noun: str, run: Path | None
) -> SubjectPhotos:
    """Read the photos of a folder, and describe those that have no caption.

    `run` is the run's folder of the dataset, whose vision model may have described them. Raises a
    `PhotosError` for none, or `ExportError` for files of a type that trainers do not read.
    """
    if photos is None:
        return SubjectPhotos()
    default = instance_caption(identifier, class_noun)
    described: list[str] = []
    lent = captions_of_run(run, photos, identifier) if run is not None else {}

    def describe(silent: Sequence[Path]) -> Mapping[str, str]:
        described.extend(path.name for path in silent if path.name not in lent)
        return dict.fromkeys(described, default) | lent

    found = photo_captions(photos, identifier, class_noun, describe=describe)
    files = [photos / photo.file for photo in found]
    images, kinds, unread = [], [], []
    for stem, file, photo in zip(_stems(len(found), 2), files, found, strict=True):
        content = file.read_bytes()
        with patient():
            kinds.append(oddities(content, decode(content)))
        suffix = _suffix_of(content)
        unread += [] if suffix else [file.name]
        name = f"{stem}.{'png' if kinds[-1] else suffix}"
        caption = tidy(photo.caption) or default
        images.append(ExportedImage(name, caption, photo.width, photo.height))
    if unread:
        raise cannot_read(unread)
    notes = []
    if described:
        notes.append(f"{counted(len(described), 'photo')} had no caption and got '{default}'.")
    if unnamed := len(images) - naming([image.caption for image in images], identifier):
        notes.append(
            f"The caption of {counted(unnamed, 'photo')} does not say '{identifier}', so these "
            "would not teach it. Add it to the captions, or name yours with --identifier."
        )
    notes += [*syntax_notes(found), *odd_notes(kinds, "photo")]
    digests = [photo.digest for photo in found]
    return SubjectPhotos(images, files, digests, list(map(bool, kinds)), notes)
