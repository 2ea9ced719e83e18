"""Files that are whole or not there: atomic writes, files that people name, and the cache folder.

Whoever is killed while writing leaves the old file or the new one, never a part of one. Whoever
reads what a recipe names may have been given a pipe, a device or a file without end.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regforge.errors import RegforgeError

# The mask can only be read by changing it: two threads at once would leave it changed.
_ASKING_FOR_UMASK = threading.Lock()


class StorageError(RegforgeError, OSError):
    """A file or folder that cannot be written: no permission, a full disk, a read-only mount."""


def cache_folder() -> Path:
    """`$REGFORGE_CACHE`, or `~/.cache/regforge`; not created."""
    base = os.environ.get("REGFORGE_CACHE")
    return expanded(base) if base else Path.home() / ".cache" / "regforge"


def expanded(path: str | Path) -> Path:
    """The path with `~` written out; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


MOST_TEXT = 64 * 2**20
"""Bytes of a text file that a recipe may name."""
MOST_CAPTION = 2**20
"""Bytes of a file with the caption of one image."""
MOST_IMAGE = 256 * 2**20
"""Bytes of an image file; a larger one is none that anybody trains on."""


def read_file(path: Path, most: int) -> bytes:
    """The content of an ordinary file of at most so many bytes.

    Raises:
        OSError: There is none, or it cannot be read; or it is a pipe or a device, which may never
            end, or larger. `strerror` says so in words.
    """
    try:
        _check_ordinary(path.stat())  # opening a device may set it off, opening a pipe waits
        with open(path, "rb", opener=_without_waiting) as stream:
            _check_ordinary(os.fstat(stream.fileno()))
            content = stream.read(most + 1)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have that name") from error
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes")
    return content


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """The text of a file that a recipe names, with a line feed at the end of each line.

    Raises:
        OSError: See `read_file`.
        UnicodeDecodeError: It is not UTF-8.
    """
    text = read_file(path, most).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_ordinary(facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        StorageError: The folder cannot be created or written.
    """
    with open_atomically(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block has ended well.

    Raises:
        StorageError: The folder cannot be created or written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # or a crash may leave the new name on an empty file
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes files that nobody else can read
        Path(temporary).replace(path)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What a failed write means, for people."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full: {path} could not be written.",
            hint="Make room and run the same command again; what was made is kept.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Choose another folder with --out, or give yourself the right to write there.",
        )
    return StorageError(f"{path} cannot be written: {error.strerror or error}.")


def _umask() -> int:
    with _ASKING_FOR_UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
