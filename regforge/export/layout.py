"""Files of an export: images with their captions, hard links, tar files.

Every file is written beside its place and renamed into it, so that none is ever there in part.
They are not forced onto the disk one by one: an export has two files an image, and can be made
again. Knows nothing about trainers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from regforge.errors import RegforgeError
from regforge.export.interface import IMAGES, ExportError
from regforge.files import open_atomically, storage_error

METADATA = "metadata.jsonl"

_SAME = 1 << 20


def suffix_of(image: bytes) -> str | None:
    """`png`, `jpg` or `webp` by the file's first bytes; None if it is none of them."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if image[:3] == b"\xff\xd8\xff":
        return "jpg"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def stems(count: int, digits: int) -> Iterator[str]:
    """`00001`, `00002`, ..., all of one length."""
    digits = max(digits, len(str(count)))
    return (f"{number:0{digits}d}" for number in range(1, count + 1))


class Folder:
    """Writes below the export's folder, and creates what folders it needs.

    Args:
        top: The export's folder.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self._top = str(top)
        self._made: set[str] = set()

    def path(self, name: str) -> Path:
        """A path below the folder; its own folder is created.

        Raises:
            ExportError: It would lie outside.
            StorageError: A folder cannot be created.
        """
        folder = name.rpartition("/")[0]
        if name.startswith("/") or ".." in name.split("/"):
            raise ExportError(f"{name} does not lie in the export's folder.")
        path = Path(f"{self._top}/{name}")  # joining paths by pieces costs more than writing them
        if folder not in self._made:
            with _told(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        return path

    def write(self, name: str, content: bytes, *, replace: bool = True) -> None:
        """Write a file, unless it is there with this content.

        Args:
            name: Path below the folder.
            content: Its bytes.
            replace: Whether it may take the place of a file with other content.

        Raises:
            ExportError: There is one, and it may not.
            StorageError: It cannot be written.
        """
        path = self.path(name)
        with _told(path):
            if _holds(path, content):
                return
            if not replace and path.exists():
                raise _in_the_way(path)
            with open_atomically(path, sync=False) as stream:
                stream.write(content)

    def write_lines(self, name: str, lines: Iterable[bytes]) -> str:
        """Write a file of many lines; returns its SHA-256, 64 hex digits.

        Raises:
            StorageError: It cannot be written.
        """
        path, digest = self.path(name), hashlib.sha256()
        with _told(path), open_atomically(path, sync=False) as stream:
            for line in lines:
                stream.write(line)
                digest.update(line)
        return digest.hexdigest()

    def link(self, name: str, source: Path, *, replace: bool = True) -> None:
        """Make a hard link to a file, or a copy where there can be no link.

        Args:
            name: Path below the folder.
            source: The file.
            replace: As for `write`.

        Raises:
            ExportError: See there.
            StorageError: It cannot be written.
        """
        path = self.path(name)
        with _told(path):
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
        """Write a tar file of images, each with `.txt` and `.json`; deterministic.

        Args:
            name: Path below the folder.
            images: File names below `IMAGES`.
            rows: JSON about each of them.

        Raises:
            StorageError: It cannot be written.
        """
        path = self.path(name)
        with (
            _told(path),
            open_atomically(path, sync=False) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for member, content in shard_members(self.top, images, rows):
                info = tarfile.TarInfo(member)
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, BytesIO(content))


def shard_members(
    top: Path, images: Sequence[str], rows: Mapping[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """What a tar file of these images holds, in order: (name, content).

    Raises:
        OSError: An image cannot be read.
    """
    for decoded in images:
        image = top / IMAGES / decoded
        yield decoded, image.read_bytes()
        yield f"{image.stem}.txt", image.with_suffix(".txt").read_bytes()
        yield f"{image.stem}.json", rows[decoded]


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes.

    Raises:
        OSError: One cannot be read.
    """
    first, second = one.stat(), other.stat()
    if (first.st_ino, first.st_dev) == (second.st_ino, second.st_dev):
        return True
    if first.st_size != second.st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while piece := left.read(_SAME):
            if piece != right.read(_SAME):
                return False
    return True


def _in_the_way(path: Path) -> ExportError:
    return ExportError(
        f"{path} is there already, and is no file of this export.",
        hint="Move it away, or choose another folder with --out.",
    )


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Failures to write become ours."""
    try:
        yield
    except RegforgeError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
