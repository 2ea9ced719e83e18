"""Files: whole or not there, read with care, known by their digests; and the folders they are in.

Who is killed while writing leaves the old file or the new one, never a part of one; the rest lies
beside it under a name that only regforge gives (`UNFINISHED`), to be deleted by the next process.
Files that a recipe names may be pipes, devices or without end.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from regforge.errors import RegforgeError

UNFINISHED = ".unfinished-"
"""Prefix of the names of half-written files and folders."""


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

_MOST_NOTED = 1000


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
            content: bytes | None = stream.read(most + 1)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have that name") from error
    if content is None:  # files of the system's that wait, such as /proc/kmsg
        raise OSError(errno.EAGAIN, "there is nothing to be read yet")
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
def open_atomically(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block has ended well.

    Without `sync` it does not wait for the disk, and a power cut can leave the new name on an empty
    file.

    Raises:
        StorageError: The folder cannot be created or written.
    """
    temporary = path.with_name(UNFINISHED + secrets.token_hex(8))
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as stream:
                yield stream
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Create a folder to make something in; what is in it at the end of the block is deleted.

    It lies in `parent`, so that its content can be renamed to its place.

    Raises:
        StorageError: It cannot be created, or the block raised an OSError.
    """
    temporary = parent / (UNFINISHED + secrets.token_hex(8))
    try:
        with storage_errors(parent):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path, *, below: bool = True) -> None:
    """Delete what killed writers left in a folder, which need not exist; nobody may be writing.

    With `below`, its folders are searched too; links are not followed.

    Raises:
        StorageError: Something cannot be deleted.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name.startswith(UNFINISHED):
                delete(Path(place, name))
        folders[:] = [each for each in folders if below and not each.startswith(UNFINISHED)]


def delete(path: Path) -> None:
    """Delete a file, a link (and not what it leads to), or a folder with all that is in it.

    Raises:
        StorageError: It cannot be deleted.
    """
    with storage_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that anybody may have written.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none that can be read."""
    try:
        found = parse_json(read_file(path, MOST_TEXT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_in_cache(name: str, key: str, value: Any) -> None:
    """Note a value in a JSON file of the cache folder, which keeps the newest 1,000 of them.

    A read-only cache must not stop a run: where nothing can be written, nothing is noted.
    """
    path = cache_folder() / name
    noted = list({**read_object(path), key: value}.items())[-_MOST_NOTED:]
    with suppress(StorageError):
        write_atomically(path, json.dumps(dict(noted), indent=1))


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as a StorageError about `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: Exception) -> StorageError:
    """Translate a failed write; of safetensors' errors too."""
    if not isinstance(error, OSError):
        found = re.search(r"\(os error (\d+)\)", str(error))  # as Rust says it
        number = int(found[1]) if found else 0
        error = OSError(number, os.strerror(number) if number else str(error))
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


# ---------------------------------------------------------------------------------------- digests

_LARGE = 64 * 2**20
"""Bytes from which on a file's digest is kept between processes."""

_DIGESTS = "digests.json"

_SETTLED = 2.0
"""Seconds since a file's last change after which its times tell the next change."""

_OF_A_MODEL = frozenset((".json", ".txt", ".safetensors", ".model", ".py"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    Raises:
        OSError: It cannot be read.
    """
    path = path.resolve()
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def revision_of(folder: Path) -> str:
    """Which version of a model lies in a folder.

    Returns:
        The commit of a repository in the Hub's cache, else `sha256:...` of the names and contents
        of all files that decide what the model does: configurations, weights, tokenizers, code.

    Raises:
        OSError: A file cannot be read.
    """
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _OF_A_MODEL and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(bytes.fromhex(file_digest(path)))
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int, created: int) -> str:
    key, version = str(path), [size, changed, created]
    known = read_object(cache_folder() / _DIGESTS).get(key) if size >= _LARGE else None
    if isinstance(known, list) and known[:-1] == version and isinstance(known[-1], str):
        return known[-1]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if size >= _LARGE and time.time() - max(changed, created) / 1e9 > _SETTLED:
        note_in_cache(_DIGESTS, key, [*version, digest])
    return digest


# -------------------------------------------------------- what comes with regforge and is not code

_PACKAGE = Path(__file__).resolve().parent


def recipes_folder() -> Path:
    """The folder of the recipes that come with regforge."""
    return _shared_folder("recipes")


def templates_folder() -> Path:
    """The folder of the caption and card templates that come with regforge."""
    return _shared_folder("templates")


def embedded_folder(name: str) -> Path:
    """The folder of one embedded model, such as `tinyworld`; it need not exist."""
    return _PACKAGE / "embedded" / name


def _shared_folder(name: str) -> Path:
    """Of an installed package or of a checkout."""
    places = (_PACKAGE / f"_{name}", _PACKAGE.parent / name)
    for folder in places:
        if folder.is_dir():
            return folder
    raise RegforgeError(
        f"The {name} folder that comes with regforge is missing (looked in {places[0]} and "
        f"{places[1]}).",
        hint="Install regforge again: pip install --force-reinstall --no-deps regforge",
    )
