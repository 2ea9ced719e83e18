"""The subject's photos in an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regforge.export.captions import naming, tidy
from regforge.export.collecting import cannot_read, odd_notes
from regforge.export.common import some
from regforge.export.interface import SUBJECT, ExportedImage
from regforge.export.layout import Folder, stems, suffix_of
from regforge.image_files import decode, oddities, patient, plain_png
from regforge.prompts.captions import instance_caption
from regforge.prompts.photos import captions_of_run, photo_captions, syntax_notes


@dataclass(frozen=True)
class Subject:
    """The photos that go into an export.

    Attributes:
        images: As they are called there.
        files: Where each lies now.
        digests: SHA-256 of each, 64 hex digits.
        odd: Whether each is written as a plain copy; see `image_files.oddities`.
        notes: What a person should know about them.
    """

    images: Sequence[ExportedImage] = ()
    files: Sequence[Path] = ()
    digests: Sequence[str] = ()
    odd: Sequence[bool] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def facts(self) -> list[list[str]]:
        """What they are known by."""
        pairs = zip(self.images, self.digests, strict=True)
        return [[image.name, image.caption, digest] for image, digest in pairs]

    def lay(self, folder: Folder, *, restore: bool) -> None:
        """Put the photos and their captions into the export's folder.

        Args:
            folder: The export's folder.
            restore: Whether they were there before; only what is missing is then put there.

        Raises:
            ExportError: A file is in the way that is not ours.
            StorageError: A file cannot be written.
        """
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


def read_subject(
    photos: Path | None, *, identifier: str, class_noun: str, run: Path | None = None
) -> Subject:
    """Read the photos of a folder, and describe those that have no caption.

    Args:
        photos: The folder; without one there are none.
        identifier: The subject's.
        class_noun: What it is.
        run: The run's folder of the dataset, whose vision model may have described them.

    Raises:
        PhotosError: There are none, or some cannot be read.
        ExportError: They are of a type that trainers do not read.
    """
    if photos is None:
        return Subject()
    plain = instance_caption(identifier, class_noun)
    described: list[str] = []
    lent = captions_of_run(run, photos, identifier) if run is not None else {}

    def describe(silent: Sequence[Path]) -> Mapping[str, str]:
        described.extend(path.name for path in silent if path.name not in lent)
        return dict.fromkeys(described, plain) | lent

    found = photo_captions(photos, identifier, describe=describe)
    files = [photos / photo.file for photo in found]
    suffixes, kinds = zip(*map(_looked_at, files), strict=True)
    if unread := [file.name for file, suffix in zip(files, suffixes, strict=True) if not suffix]:
        raise cannot_read(unread)
    images = [
        ExportedImage(
            f"{stem}.{'png' if odd else suffix}",
            tidy(photo.caption) or plain,
            photo.width,
            photo.height,
        )
        for stem, suffix, odd, photo in zip(
            stems(len(found), 2), suffixes, kinds, found, strict=True
        )
    ]
    captions = [image.caption for image in images]
    notes = _notes(len(described), plain, captions, identifier)
    notes += [*syntax_notes(found), *odd_notes(kinds, "photo")]
    return Subject(images, files, [photo.digest for photo in found], list(map(bool, kinds)), notes)


def _looked_at(file: Path) -> tuple[str | None, tuple[str, ...]]:
    content = file.read_bytes()
    with patient():
        return suffix_of(content), oddities(content, decode(content))


def _notes(described: int, plain: str, captions: Sequence[str], identifier: str) -> list[str]:
    notes = []
    if described:
        notes.append(f"{some(described, 'photo')} had no caption and got '{plain}'.")
    if unnamed := len(captions) - naming(captions, identifier):
        notes.append(
            f"The caption of {some(unnamed, 'photo')} does not say '{identifier}', so these would "
            "not teach it. Add it to the captions, or name yours with --identifier."
        )
    return notes
