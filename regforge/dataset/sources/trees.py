"""Files by path, wherever they lie: in a folder, in zip archives, or on the Hub.

A path is relative and has forward slashes. Hidden files, and what operating systems leave behind,
are not seen, nor is what links lead to outside of the folder. Archives are only ever read: nothing
in them becomes a path on disk.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.hub import HubAddress, HubError, explained
from regforge.hub.errors import is_transient
from regforge.recipe.named_files import IMAGE_SUFFIXES as PHOTO_SUFFIXES
from regforge.recipe.named_files import inside

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile, RepoFolder


UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What is raised while a damaged file is read from any of the trees."""

IMAGE_SUFFIXES = PHOTO_SUFFIXES | {".jfif"}

UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".psd", ".raw", ".dng", ".svg"})
"""Images too, but no trainer reads them."""

CARD = "README.md"

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


# ------------------------------------------------------------------------------------------ the Hub


_MOST_PATTERNS = 100
_HEADER = 2**16
_BLOCK = 2**22


def look_up(address: HubAddress) -> tuple[Path, Mapping[str, int], bool]:
    """(folder of the commit in the cache, its files on the Hub, whether only a copy was found).

    Raises:
        HubError: It may not be read; or it cannot be reached, and there is no copy.
    """
    try:
        folder = _fetched(address, [CARD])  # finds out the commit, and notes it in the cache
        return folder, _listed(address, folder.name), False
    except Exception as error:
        problem = explained(error, address.repo_id, revision=address.revision)
        if not _may_be_cached(error):
            raise problem from error
        try:
            folder = _fetched(address, [CARD], cached=True)
        except Exception:
            raise problem from error
        return folder, _listed_before(address, folder), True


def download(address: HubAddress, commit: str, paths: Sequence[str], *, cached: bool) -> None:
    """Fetch some files of a commit into the cache; `cached`: check that they are there.

    Raises:
        HubError: The Hub does not give them.
    """
    patterns = [glob.escape(path) for path in paths]
    if len(paths) > _MOST_PATTERNS:  # each file is compared with each pattern
        patterns = sorted({f"*{glob.escape(Path(path).suffix)}" for path in paths})
    try:
        _fetched(address.at(commit), patterns, cached=cached)
    except Exception as error:
        raise explained(error, address.repo_id, revision=address.revision) from error


def _fetched(address: HubAddress, patterns: Sequence[str], *, cached: bool = False) -> Path:
    """The folder of the commit, with the files that fit; raises whatever huggingface_hub does."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            address.repo_id,
            repo_type="dataset",
            revision=address.revision,
            allow_patterns=list(patterns),
            local_files_only=cached,
            tqdm_class=None if sys.stderr.isatty() and patterns != [CARD] else _no_bar(),
        )
    )


def _no_bar() -> Any:
    """A progress bar that is never shown, for small files and for logs."""
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def _listed(address: HubAddress, commit: str) -> dict[str, int]:
    from huggingface_hub import HfApi

    return _sizes(
        HfApi().list_repo_tree(
            address.repo_id, repo_type="dataset", revision=commit, recursive=True
        )
    )


def _listed_before(address: HubAddress, folder: Path) -> Mapping[str, int]:
    """The files that the commit has by the listing in the cache; those in the folder if none is."""
    try:
        from huggingface_hub import get_cached_repo_tree

        entries = get_cached_repo_tree(address.repo_id, repo_type="dataset", revision=folder.name)
    except Exception:  # an older huggingface_hub, or a copy that another program has fetched
        return LocalTree(folder).files
    return _sizes(entries)


def _sizes(entries: Iterable[RepoFile | RepoFolder]) -> dict[str, int]:
    from huggingface_hub.hf_api import RepoFile

    found = {each.path: each.size for each in entries if isinstance(each, RepoFile)}
    return {path: found[path] for path in sorted(found) if is_visible(path)}


def _may_be_cached(error: Exception) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) or is_transient(error)


class HubTree(Tree):
    """The files of a commit, read by range requests."""

    def __init__(self, address: HubAddress, commit: str, files: Mapping[str, int]) -> None:
        self.files = files
        self._address = address
        self._commit = commit
        self._system: Any = None

    def open(self, path: str) -> BinaryIO:
        """See `Tree`."""
        from huggingface_hub import HfFileSystem

        if self._system is None:
            self._system = HfFileSystem(skip_instance_cache=True)
        options: dict[str, Any] = {"block_size": _BLOCK}
        if suffix_of(path) in IMAGE_SUFFIXES:
            options = {"block_size": _HEADER}  # mostly, no more than the header is wanted
        elif suffix_of(path) == ".parquet":
            options = {"cache_type": "none"}  # pyarrow asks for just what it needs
        name = f"datasets/{self._address.repo_id}@{self._commit}/{path}"
        try:
            inner = self._system.open(name, "rb", size=self.files[path], **options)
        except Exception as error:
            raise self._explained(error) from error
        return cast(BinaryIO, _HubFile(inner, self))

    def _explained(self, error: Exception) -> HubError:
        return explained(error, self._address.repo_id, revision=self._commit)


class _HubFile(io.RawIOBase):
    """A file of the Hub; errors of the client become HubErrors."""

    def __init__(self, inner: Any, tree: HubTree) -> None:
        self._inner = inner
        self._tree = tree

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        left = self._inner.size - self._inner.tell()
        try:
            # Never -1: of a whole file, the client keeps no account of what was read.
            return bytes(self._inner.read(left if size is None or size < 0 else min(size, left)))
        except Exception as error:
            raise self._tree._explained(error) from error

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def close(self) -> None:
        self._inner.close()
        super().close()
