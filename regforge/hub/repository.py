"""One repository of the Hub: what it holds, and the requests that change it.

What only reads, or may be done twice, is tried again here when the Hub is busy or the connection
is cut. What changes something is tried once: whoever calls has to look at what became of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from regforge.errors import RegforgeError
from regforge.hub.errors import HubError, RepoType, asked_to_wait, explained, is_passing, missing
from regforge.progress import Reporter, Task
from regforge.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

T = TypeVar("T")

ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
_LONGEST_PAUSE = 300.0  # the Hub counts requests in windows of five minutes

# One request asks for the upload of so many, and progress is told after each.
_FILES_PER_UPLOAD = 25
_BYTES_PER_UPLOAD = 500_000_000
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class State:
    """What a repository holds at a revision.

    Attributes:
        commit: 40 hex digits; None before the first commit.
        private: Whether only some may read it.
        files: Path -> digest: SHA-256 of large files, git's blob SHA-1 of others.
    """

    commit: str | None
    private: bool
    files: Mapping[str, str]


@dataclass(frozen=True)
class Digest:
    """What a file's content is called on the Hub.

    Attributes:
        sha256: 64 hex digits; names large files.
        blob: 40 hex digits, the SHA-1 of git's blob; names the others.
    """

    sha256: str
    blob: str

    @classmethod
    def of(cls, source: Path | bytes) -> Digest:
        """Digest a file or a content, reading it once.

        Raises:
            RegforgeError: The file cannot be read.
        """
        if isinstance(source, bytes):
            blob = hashlib.sha1(b"blob %d\0" % len(source) + source).hexdigest()
            return cls(hashlib.sha256(source).hexdigest(), blob)
        try:
            sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % source.stat().st_size)
            with source.open("rb") as stream:
                while chunk := stream.read(_MEGABYTE):
                    sha256.update(chunk)
                    sha1.update(chunk)
        except OSError as error:
            raise RegforgeError(f"{source} cannot be read: {error.strerror or error}.") from error
        return cls(sha256.hexdigest(), sha1.hexdigest())


@dataclass(frozen=True)
class Changes:
    """What has to be done to a repository.

    Attributes:
        add: Path in the repository -> what it shall hold; new ones and replaced ones.
        delete: Paths that have to go.
    """

    add: Mapping[str, Path | bytes]
    delete: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.add) + len(self.delete)


class Patience:
    """Waits between attempts, and gives up after too many in a row."""

    def __init__(self, explain: Callable[[Exception], HubError], reporter: Reporter) -> None:
        self._explain = explain
        self._reporter = reporter
        self._failures = 0

    def success(self) -> None:
        """Something has gone well; failures are counted anew."""
        self._failures = 0

    def failure(self, error: Exception) -> None:
        """Wait for as long as is worth it.

        Raises:
            HubError: It will not go well, or has not for too often.
        """
        self._failures += 1
        wait = max(PAUSE * 2 ** (self._failures - 1), asked_to_wait(error))
        if not is_passing(error) or self._failures == ATTEMPTS or wait > _LONGEST_PAUSE:
            raise self._explain(error) from error
        self._reporter.say(f"{self._explain(error).message} Trying again in {wait:.0f} s.")
        sleep(wait)


class Repository:
    """A repository of the Hub, with the token of whoever runs this.

    Args:
        repo_id: `user/name`.
        repo_type: `dataset` or `model`.
        reporter: Gets progress.
    """

    def __init__(self, repo_id: str, repo_type: RepoType, reporter: Reporter) -> None:
        from huggingface_hub import HfApi

        self.id = repo_id
        self.type: RepoType = repo_type
        self._reporter = reporter
        # Nobody writes without a token, so it is sent where others are not sent unasked, too.
        self._api = HfApi(token=True, library_name="regforge", library_version=__version__)
        self._digests: dict[Path, Digest] = {}

    def explain(self, error: Exception) -> HubError:
        """An exception of the client in plain words."""
        return explained(error, self.id, repo_type=self.type)

    def missing(self) -> HubError:
        """That it is not there."""
        return missing(self.id, self.type)

    def patience(self) -> Patience:
        """For requests that change something."""
        return Patience(self.explain, self._reporter)

    def _patiently(self, request: Callable[[], T]) -> T:
        patience = self.patience()
        while True:
            try:
                return request()
            except Exception as error:
                patience.failure(error)

    # ------------------------------------------------------------------------------- reading

    def state(self, revision: str | None = None) -> State | None:
        """What it holds at a revision, or at main; None if there is no such repository."""
        return self._patiently(lambda: self._state(revision))

    def _state(self, revision: str | None) -> State | None:
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        try:
            info = self._api.repo_info(self.id, repo_type=self.type, revision=revision)
        except RepositoryNotFoundError:
            return None
        files = {}
        if info.sha is not None:
            for entry in self._api.list_repo_tree(
                self.id, recursive=True, revision=info.sha, repo_type=self.type
            ):
                if isinstance(entry, RepoFile):
                    files[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
        return State(info.sha, bool(info.private), files)

    def tags(self) -> dict[str, str]:
        """Tag -> the commit that it names."""
        refs = self._patiently(lambda: self._api.list_repo_refs(self.id, repo_type=self.type))
        return {ref.name: ref.target_commit for ref in refs.tags}

    def content(self, path: str, commit: str) -> bytes:
        """What a small file holds."""

        def download() -> bytes:
            file = self._api.hf_hub_download(self.id, path, repo_type=self.type, revision=commit)
            return Path(file).read_bytes()

        return self._patiently(download)

    # ------------------------------------------------------------------------------- writing

    def create(self, *, private: bool) -> None:
        """Make the repository; no harm if it is there."""
        self._patiently(
            lambda: self._api.create_repo(
                self.id, repo_type=self.type, private=private, exist_ok=True
            )
        )

    def changes(
        self,
        files: Mapping[str, Path | bytes],
        delete: Sequence[str],
        remote: Mapping[str, str],
    ) -> Changes:
        """What turns a repository's files into those that it shall hold.

        Args:
            files: Path in the repository -> the file, or its content.
            delete: Paths that shall be gone.
            remote: Path -> digest, what the repository holds.
        """

        def is_there(path: str) -> bool:  # what is not there is not read for nothing
            if path not in remote:
                return False
            digest = self._digest(files[path])
            return remote[path] in (digest.sha256, digest.blob)

        add = {path: files[path] for path in sorted(files) if not is_there(path)}
        return Changes(add, tuple(sorted(set(delete) & remote.keys() - files.keys())))

    def _digest(self, source: Path | bytes) -> Digest:
        if isinstance(source, bytes):
            return Digest.of(source)
        if source not in self._digests:
            self._digests[source] = Digest.of(source)
        return self._digests[source]

    def commit(
        self, changes: Changes, *, message: str, parent: str | None, create_pr: bool
    ) -> None:
        """Upload files and commit changes, if the parent is still the newest commit of main.

        Args:
            changes: What to do.
            message: Of the commit; its first line is the title of the pull request.
            parent: 40 hex digits; None for a repository without commits.
            create_pr: Commit into a new pull request instead of main.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = []
        for path, source in changes.add.items():
            sha256 = bytes.fromhex(self._digest(source).sha256)
            addition = CommitOperationAdd(path, source)
            addition.upload_info.sha256 = sha256  # or the client reads the file once more
            additions.append(addition)
        self._upload(additions, create_pr)
        self._api.create_commit(
            self.id,
            [*additions, *(CommitOperationDelete(path, False) for path in changes.delete)],
            commit_message=message,
            repo_type=self.type,
            revision="main",
            parent_commit=parent,
            create_pr=create_pr,
        )

    def _upload(self, additions: Sequence[CommitOperationAdd], create_pr: bool) -> None:
        """Upload what does not travel within the commit itself; what is there already is not."""
        size = sum(addition.upload_info.size for addition in additions)
        count = f"{len(additions)} file{'s' if len(additions) != 1 else ''}"
        with self._reporter.task(
            f"uploading {count}", max(1, round(size / _MEGABYTE)), unit="MB"
        ) as task:
            done = 0
            for some in _portions(additions):
                self._patiently(lambda some=some: self._preupload(some, create_pr))  # type: ignore[misc]
                done += sum(addition.upload_info.size for addition in some)
                _advance_to(task, done, size)

    def _preupload(self, additions: Sequence[CommitOperationAdd], create_pr: bool) -> None:
        self._api.preupload_lfs_files(
            self.id,
            additions,
            repo_type=self.type,
            create_pr=create_pr,
            free_memory=False,
            # A .gitignore in the repository would silently leave out some of the files.
            gitignore_content="# regforge wants all of these files\n",
        )

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        self._api.create_tag(self.id, tag=name, revision=commit, repo_type=self.type)

    def pull_requests(self, title: str) -> list[int]:
        """Numbers of the open pull requests of a title, newest first."""

        def find() -> list[int]:
            discussions = self._api.get_repo_discussions(
                self.id,
                repo_type=self.type,
                discussion_type="pull_request",
                discussion_status="open",
            )
            return [found.num for found in discussions if found.title == title.partition("\n")[0]]

        return self._patiently(find)


@contextmanager
def quiet_client() -> Iterator[None]:
    """The client's own progress bars stay away while the block runs."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _portions(additions: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    some: list[CommitOperationAdd] = []
    size = 0
    for addition in additions:
        if some and (len(some) == _FILES_PER_UPLOAD or size >= _BYTES_PER_UPLOAD):
            yield some
            some, size = [], 0
        some.append(addition)
        size += addition.upload_info.size
    if some:
        yield some


def _advance_to(task: Task, done: int, size: int) -> None:
    total = task.total or 0
    task.advance((total if done == size else min(total, done // _MEGABYTE)) - task.done)
