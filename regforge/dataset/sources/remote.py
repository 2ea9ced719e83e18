"""Lists the files of a dataset on the Hub, and fetches them, all at once or piece by piece."""

from __future__ import annotations

import glob
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from regforge.dataset.sources.choosing import CARD
from regforge.dataset.sources.image_headers import IMAGE_SUFFIXES
from regforge.dataset.sources.trees import LocalTree, Tree, is_visible, suffix_of
from regforge.hub import HubAddress, HubError, explained
from regforge.hub.errors import is_transient

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile, RepoFolder

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
