"""Files that are whole or not there: atomic writes, and the cache folder.

Whoever is killed while writing leaves the old file or the new one, never a part of one.
"""

from __future__ import annotations

import errno
import os
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
    return Path(base).expanduser() if base else Path.home() / ".cache" / "regforge"


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
