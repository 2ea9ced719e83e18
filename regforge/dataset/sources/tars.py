"""Reads WebDataset: .tar archives whose members of one key belong together (01.jpg, 01.txt).

The key of a member is its path up to the first dot of its name, as in
https://github.com/webdataset/webdataset (tariterators.py). A sample's members follow one another.
Archives are read from front to back and nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from regforge.dataset.sources.caption_columns import (
    Findings,
    as_caption,
    caption_column,
    caption_in,
    columns_in,
)
from regforge.dataset.sources.choosing import METADATA, Choice
from regforge.dataset.sources.trees import IMAGE_SUFFIXES, CannotOpen, Tree, is_visible, suffix_of
from regforge.errors import RegforgeError
from regforge.files import MOST_CAPTION, MOST_IMAGE
from regforge.image_files import BrokenImage, Header, read_header
from regforge.records import Example

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_TEXTS = ("txt", "caption", "text")
_MOST_UNPACKED, _MOST_TIMES = 2**26, 30  # images are packed already, texts to a tenth at most


@dataclass
class _Sample:
    key: str
    images: dict[str, tuple[bytes, Header]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


class TarReader:
    """Some .tar archives; `asked` is the member, or JSON key, that the user wants captions from."""

    def __init__(self, tree: Tree, choice: Choice, asked: str | None) -> None:
        self.layout = "webdataset"
        self.slots: tuple[str, ...] = ()
        self.notes = list(choice.notes)
        self._tree = tree
        self._archives = choice.data
        self._asked = asked
        self._was_there = False

    def read(self, *, images: bool, findings: Findings) -> Iterator[Example]:
        """All of them, archive by archive."""
        for archive in self._archives:
            prefix = f"{archive}/" if len(self._archives) > 1 else ""
            for sample in self._samples(archive, images, findings):
                yield from self._examples(sample, prefix, findings)

    def _samples(self, archive: str, images: bool, findings: Findings) -> Iterator[_Sample]:
        sample = _Sample("")
        try:
            with self._tree.open(archive) as file, tarfile.open(fileobj=file) as tar:
                # Going back in a compressed archive means beginning anew.
                whole = images or tar.fileobj is not file
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or it remembers all of them
                    _refuse_bomb(member, tar.offset, self._tree.files[archive], archive)
                    key = _KEY.fullmatch(member.name.removeprefix("./"))
                    if key is None or not member.isfile() or not is_visible(key[0]):
                        continue
                    if key[1] != sample.key:
                        yield sample
                        sample = _Sample(key[1])
                    stream = cast(BinaryIO, tar.extractfile(member))
                    if suffix_of(key[0]) in IMAGE_SUFFIXES:
                        image = _image(stream, member.size, whole)
                        if image is None:
                            findings.broken.add(member.name)
                        else:
                            sample.images[key[2]] = (image[0] if images else b"", image[1])
                    elif self._is_text(key[2]) and member.size <= MOST_CAPTION:
                        sample.texts[key[2]] = stream.read()
                    if member.name.rpartition("/")[2] in METADATA:
                        findings.unread_metadata.add(member.name)
                if not _ends(tar):
                    findings.endless.add(archive)
        except RegforgeError:
            raise
        except Exception as error:  # tarfile and its unpackers raise almost anything
            raise CannotOpen(f"{archive} is no tar archive, or is damaged: {error}.") from error
        yield sample

    def _is_text(self, name: str) -> bool:
        return name == self._asked or name.rpartition(".")[2].lower() in (*_TEXTS, "json")

    def _examples(self, sample: _Sample, prefix: str, findings: Findings) -> Iterator[Example]:
        for name, (image, header) in sample.images.items():
            stem = name.rpartition(".")[0]
            text, columns = self._caption(sample, f"{stem}." if stem else "", findings)
            own = f".{name}" if len(sample.images) > 1 else ""
            yield findings.example(f"{prefix}{sample.key}{own}", image, header, text, columns)

    def _caption(
        self, sample: _Sample, stem: str, findings: Findings
    ) -> tuple[str | None, Mapping[str, Any]]:
        """(caption, other columns) of an image: by members of its very name, or by any."""
        columns: dict[str, Any] = {}
        for prefix in dict.fromkeys((stem, "")):
            columns = {**columns_in(sample.texts.get(f"{prefix}json", b"")), **columns}
        asked = self._asked if self._asked in sample.texts else None
        self._was_there |= asked is not None
        if self._asked and not asked:
            if self._asked not in columns and not self._was_there:
                there = ", ".join([*sample.texts, *columns]) or "nothing but its image"
                raise CannotOpen(
                    f"The sample {sample.key!r} has no {self._asked!r}; it has {there}."
                )
            self._was_there = True
            return as_caption(columns.pop(self._asked, None)), columns
        names = [asked] if asked else [f"{p}{s}" for p in dict.fromkeys((stem, "")) for s in _TEXTS]
        for name in names:
            if name in sample.texts:
                try:
                    text = caption_in(sample.texts[name])
                except UnicodeDecodeError:
                    findings.unreadable_captions.add(f"{sample.key}.{name}")
                    continue
                if text is not None:
                    return text, columns
        column = caption_column(columns, None, sample.key)
        return as_caption(columns.pop(column)) if column else None, columns


def _image(stream: BinaryIO, size: int, whole: bool) -> tuple[bytes, Header] | None:
    """An image, with its bytes if it has to be read as a whole; None if it is broken."""
    if size > MOST_IMAGE:
        return None
    try:
        content = stream.read() if whole else b""
        return content, read_header(io.BytesIO(content) if whole else stream)
    except BrokenImage:
        return None


def _refuse_bomb(member: tarfile.TarInfo, end: int, packed: int, archive: str) -> None:
    """Never unpack what is so much larger than its archive that it can only be there to harm."""
    if end > _MOST_UNPACKED + _MOST_TIMES * packed:
        raise CannotOpen(
            f"{archive} holds {member.name!r}, with which it would unpack to over {end:,} bytes, "
            f"and it has {packed:,}.",
            hint="If that is meant, unpack it and name the folder.",
        )


def _ends(tar: tarfile.TarFile) -> bool:
    """Whether an archive that was read has the mark of its end, a block of zeros.

    Raises:
        ReadError: Something else is there, which tarfile takes for the end.
    """
    assert tar.fileobj is not None  # it is open
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it breaks off")
    return bool(rest)
