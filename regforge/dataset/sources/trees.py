"""Files by path, wherever they lie: in a folder, or in zip archives; on the Hub, see `remote`.

A path is relative and has forward slashes. Hidden files, and what operating systems leave behind,
are not seen, nor is what links lead to outside of the folder. Archives are only ever read: nothing
in them becomes a path on disk.
"""

from __future__ import annotations

import os
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.recipe.named_files import inside

UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What is raised while a damaged file is read from any of the trees."""

_LITTER = frozenset({"__MACOSX", "__pycache__"})


class CannotOpen(RegforgeError):
    """A dataset that is not there, is damaged, or holds no images."""

    exit_code = EXIT_USAGE


class Tree:
    """Files that can be read, with their sizes in bytes, in the order of their paths."""

    files: Mapping[str, int]

    def open(self, path: str) -> BinaryIO:
        """One of `files`, from its beginning; can be sought in.

        Raises:
            OSError: It cannot be read.
            CannotOpen: The archive it lies in cannot be read.
            HubError: The Hub does not give it.
        """
        raise NotImplementedError

    def place(self, path: str) -> Path | None:  # noqa: ARG002
        """Where it lies on this machine's disk, links followed; None if it does not."""
        return None

    def close(self) -> None:
        """Let go of what is held open; it can be read again all the same."""


def read_bytes(tree: Tree, path: str, most: int) -> bytes:
    """A whole file.

    Raises:
        ValueError: It has more than `most` bytes.
        OSError: It cannot be read; see `Tree.open` for the rest.
    """
    if tree.files[path] > most:
        raise ValueError(f"has more than {most:,} bytes")
    with tree.open(path) as stream:
        return stream.read(tree.files[path])


def is_visible(path: str) -> bool:
    """Whether a path is neither hidden nor litter."""
    parts = [part for part in path.split("/") if part not in (".", "..")]
    return not any(part.startswith(".") or part in _LITTER for part in parts)


def suffix_of(path: str) -> str:
    """Such as `.png`, in lower case."""
    return posixpath.splitext(path)[1].lower()


def stem_of(path: str) -> str:
    """The path without its suffix."""
    return posixpath.splitext(path)[0]


class LocalTree(Tree):
    """A folder.

    Attributes:
        strays: Paths of links that lead out of the folder, or nowhere; they are not followed.
    """

    def __init__(self, root: Path, only: Iterable[str] | None = None) -> None:
        """Look at the paths `only`; at all that are there if left out."""
        self._root = root
        self._places: dict[str, Path] = {}
        self.strays: list[str] = []
        sizes: dict[str, int] = {}
        try:
            for name, path in self._walk() if only is None else ((n, root / n) for n in only):
                place = self._followed(name, path) if only or path.is_symlink() else path
                if place and (size := _size(place)) is not None:
                    sizes[name], self._places[name] = size, place
        except OSError as error:
            raise CannotOpen(f"{error.filename or root} cannot be read: {error.strerror}.") from (
                error
            )
        self.files = dict(sorted(sizes.items()))

    @classmethod
    def of_file(cls, path: Path) -> LocalTree:
        """A file that the user has named: it may be a link to anywhere."""
        tree = cls(path.parent, only=())
        tree._places, tree.files = {path.name: path}, {path.name: path.stat().st_size}
        return tree

    def open(self, path: str) -> BinaryIO:
        """See `Tree`."""
        return self._places[path].open("rb")

    def place(self, path: str) -> Path | None:
        """See `Tree`."""
        return self._places[path].resolve()

    def _followed(self, name: str, path: Path) -> Path | None:
        real = inside(path, self._root)
        if real is None and path.is_symlink():
            self.strays.append(name)
        return real

    def _walk(self) -> Iterator[tuple[str, Path]]:
        been: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(self._root, followlinks=True, onerror=_raise):
            here = Path(folder)
            facts = here.stat()
            if (facts.st_dev, facts.st_ino) in been:  # a link that leads back
                folders.clear()
                continue
            been.add((facts.st_dev, facts.st_ino))
            at = "" if here == self._root else f"{here.relative_to(self._root).as_posix()}/"
            folders[:] = [
                name
                for name in sorted(filter(is_visible, folders))
                if not (here / name).is_symlink() or self._followed(at + name, here / name)
            ]
            yield from ((at + name, here / name) for name in names if is_visible(name))


def _size(path: Path) -> int | None:
    """Bytes of a file; None of what is none: a pipe, a device."""
    try:
        facts = path.stat()
    except FileNotFoundError:  # it was there a moment ago
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _raise(error: OSError) -> None:
    raise error


class ZipTree(Tree):
    """What lies in some zip archives, each a folder of that name; a single one has no name."""

    def __init__(self, base: Tree, archives: Iterable[str]) -> None:
        self._base = base
        self._archives = tuple(archives)
        self._open: tuple[str, zipfile.ZipFile, BinaryIO] | None = None
        self._lies_in: dict[str, tuple[str, str]] = {}
        sizes: dict[str, int] = {}
        for archive in self._archives:
            for entry in self._archive(archive).infolist():
                path = entry.filename.replace("\\", "/")
                path = path if len(self._archives) == 1 else f"{archive}/{path}"
                # So much larger than packed, a file can only be there to harm.
                bomb = entry.file_size > 2**23 + 200 * entry.compress_size
                if _counts(entry, archive) and is_visible(path) and not bomb:
                    self._lies_in[path] = (archive, entry.filename)
                    sizes[path] = entry.file_size
        self.close()
        self.files = dict(sorted(sizes.items()))

    def open(self, path: str) -> BinaryIO:
        """See `Tree`."""
        archive, name = self._lies_in[path]
        try:
            return cast(BinaryIO, self._archive(archive).open(name))
        except RegforgeError:
            raise
        except Exception as error:  # zipfile raises almost anything on a damaged archive
            raise OSError(f"cannot be unpacked: {error}") from error

    def close(self) -> None:
        """See `Tree`."""
        if self._open is not None:
            self._open[1].close()
            self._open[2].close()
            self._open = None

    def _archive(self, path: str) -> zipfile.ZipFile:
        """One is held open at a time: a repository may have hundreds."""
        if self._open is None or self._open[0] != path:
            self.close()
            stream = self._base.open(path)
            try:
                self._open = (path, zipfile.ZipFile(stream), stream)
            except Exception as error:  # as above
                stream.close()
                if isinstance(error, RegforgeError):
                    raise
                raise CannotOpen(f"{path} is no zip archive, or is damaged: {error}.") from error
        return self._open[1]


def _counts(entry: zipfile.ZipInfo, archive: str) -> bool:
    if entry.flag_bits & 0x1:
        raise CannotOpen(
            f"{archive} is locked with a password.", hint="Unpack it and name the folder."
        )
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    return bool(entry.filename) and not (entry.is_dir() or is_link)
