"""The subject's photos in an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regforge.export.captions import naming, tidy
from regforge.export.collecting import cannot_read
from regforge.export.common import some
from regforge.export.interface import SUBJECT, Picture
from regforge.export.layout import Folder, stems, suffix_of
from regforge.prompts.photos import photo_captions

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Subject:
    """The photos that go into an export.

    Attributes:
        pictures: As they are called there.
        files: Where each lies now.
        digests: SHA-256 of each, 64 hex digits.
        notes: What a person should know about them.
    """

    pictures: Sequence[Picture] = ()
    files: Sequence[Path] = ()
    digests: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def facts(self) -> list[list[str]]:
        """What they are known by."""
        pairs = zip(self.pictures, self.digests, strict=True)
        return [[picture.name, picture.caption, digest] for picture, digest in pairs]

    def lay(self, folder: Folder, *, restore: bool) -> None:
        """Put the photos and their captions into the export's folder.

        Args:
            folder: The export's folder.
            restore: Whether they were there before; only what is missing is then put there.

        Raises:
            ExportError: A file is in the way that is not ours.
            StorageError: A file cannot be written.
        """
        for picture, file in zip(self.pictures, self.files, strict=True):
            name = f"{SUBJECT}/{picture.name}"
            caption = f"{name.rpartition('.')[0]}.txt"
            if not (restore and (folder.top / name).exists()):
                folder.link(name, file, replace=False)
            if not (restore and (folder.top / caption).exists()):
                folder.write(caption, picture.caption.encode(), replace=False)


def read_subject(photos: Path | None, *, identifier: str, class_noun: str) -> Subject:
    """Read the photos of a folder, and describe those that have no caption.

    Raises:
        PhotosError: There are none, or some cannot be read.
        ExportError: They are of a type that trainers do not read.
    """
    if photos is None:
        return Subject()
    plain = f"a photo of {identifier} {class_noun}"
    described: list[str] = []

    def describe(silent: Sequence[Path]) -> Mapping[str, str]:
        described.extend(path.name for path in silent)
        return dict.fromkeys(described, plain)

    found = photo_captions(photos, describe=describe)
    files = [photos / photo.file for photo in found]
    suffixes = [_suffix(file) for file in files]
    if unread := [file.name for file, suffix in zip(files, suffixes, strict=True) if not suffix]:
        raise cannot_read(unread)
    pictures = [
        Picture(f"{stem}.{suffix}", tidy(photo.caption) or plain, photo.width, photo.height)
        for stem, suffix, photo in zip(stems(len(found), 2), suffixes, found, strict=True)
    ]
    captions = [picture.caption for picture in pictures]
    notes = _notes(len(described), plain, captions, identifier, sum(map(is_turned, files)))
    return Subject(pictures, files, [photo.digest for photo in found], notes)


def is_turned(file: Path) -> bool:
    """Whether a viewer turns or mirrors the picture by what its EXIF data say.

    Raises:
        OSError: It is no picture.
    """
    from PIL import Image

    with Image.open(file) as image:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)


def _suffix(file: Path) -> str | None:
    with file.open("rb") as stream:
        return suffix_of(stream.read(16))


def _notes(
    described: int, plain: str, captions: Sequence[str], identifier: str, turned: int
) -> list[str]:
    notes = []
    if described:
        notes.append(f"{some(described, 'photo')} had no caption and got '{plain}'.")
    if unnamed := len(captions) - naming(captions, identifier):
        notes.append(
            f"The caption of {some(unnamed, 'photo')} does not say '{identifier}', so these would "
            "not teach it. Add it to the captions, or name yours with --identifier."
        )
    if turned:
        notes.append(
            f"{some(turned, 'photo')} {'are' if turned > 1 else 'is'} stored turned, with the "
            "right way up in EXIF data that some trainers ignore. Save them upright to be sure."
        )
    return notes
