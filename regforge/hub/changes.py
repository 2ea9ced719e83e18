"""What has to be changed in a repository so that it holds some files.

Compares by content, as the Hub names it, and reads each file once. Knows nothing about requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regforge.errors import RegforgeError

Source = Path | bytes
_CHUNK = 2**20


@dataclass(frozen=True)
class Digest:
    """What a file's content is called on the Hub.

    Attributes:
        size: In bytes.
        sha256: 64 hex digits; names large files.
        blob: 40 hex digits, the SHA-1 of git's blob; names the others.
    """

    size: int
    sha256: str
    blob: str

    def names(self, remote: str | None) -> bool:
        """Whether a file on the Hub, given by its digest there, has this content."""
        return remote in (self.sha256, self.blob)


@dataclass(frozen=True)
class Changes:
    """What has to be done to a repository.

    Attributes:
        add: Path in the repository -> what it shall hold; new ones and replaced ones.
        delete: Paths that have to go.
    """

    add: Mapping[str, Source]
    delete: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.add) + len(self.delete)

    def first(self, count: int) -> Changes:
        """As many of them as go into one commit, additions first."""
        add = dict(list(self.add.items())[:count])
        return Changes(add, self.delete[: count - len(add)])

    def without(self, done: Changes) -> Changes:
        """What is left of them."""
        return Changes(
            {path: source for path, source in self.add.items() if path not in done.add},
            tuple(path for path in self.delete if path not in done.delete),
        )


class Differ:
    """Compares files with those of a repository, and remembers what it has read."""

    def __init__(self) -> None:
        self._known: dict[Path, Digest] = {}

    def changes(
        self, files: Mapping[str, Source], delete: tuple[str, ...], remote: Mapping[str, str]
    ) -> Changes:
        """What turns a repository's files into those that it shall hold.

        Args:
            files: Path in the repository -> the file, or its content.
            delete: Paths that shall be gone.
            remote: Path -> digest, what the repository holds.
        """
        # What is not there is not read for nothing.
        add = {
            path: files[path]
            for path in sorted(files)
            if path not in remote or not self.digest(files[path]).names(remote[path])
        }
        return Changes(add, tuple(sorted(set(delete) & remote.keys() - files.keys())))

    def digest(self, source: Source) -> Digest:
        """The digests of a file or of a content.

        Raises:
            RegforgeError: The file cannot be read.
        """
        if isinstance(source, bytes):
            blob = hashlib.sha1(b"blob %d\0" % len(source) + source).hexdigest()
            return Digest(len(source), hashlib.sha256(source).hexdigest(), blob)
        if source not in self._known:
            self._known[source] = _read(source)
        return self._known[source]

    def is_underway(
        self, branch: Mapping[str, str], parent: Mapping[str, str], changes: Changes
    ) -> bool:
        """Whether a branch holds what its parent holds, and some of the changes or all."""
        return all(
            branch.get(path) == parent.get(path) or self._is_done(path, branch, changes)
            for path in branch.keys() | parent.keys()
        )

    def remaining(self, branch: Mapping[str, str], changes: Changes) -> Changes:
        """Those of the changes that a branch does not hold yet."""
        return Changes(
            {
                path: source
                for path, source in changes.add.items()
                if not self._is_done(path, branch, changes)
            },
            tuple(path for path in changes.delete if path in branch),
        )

    def _is_done(self, path: str, branch: Mapping[str, str], changes: Changes) -> bool:
        if path in changes.add:
            return path in branch and self.digest(changes.add[path]).names(branch[path])
        return path in changes.delete and path not in branch

    def name(self, parent: str | None, changes: Changes) -> str:
        """12 hex digits that stand for some changes to some commit."""
        lines = [str(parent), *(f"- {path}" for path in changes.delete)]
        lines += [f"+ {path} {self.digest(source).sha256}" for path, source in changes.add.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _read(path: Path) -> Digest:
    try:
        size = path.stat().st_size
        sha256 = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % size)
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha256.update(chunk)
                blob.update(chunk)
    except OSError as error:
        raise RegforgeError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Digest(size, sha256.hexdigest(), blob.hexdigest())
