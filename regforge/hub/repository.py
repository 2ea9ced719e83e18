"""One repository of the Hub: what it holds, and the requests that change it.

What only reads, or may be done twice, is tried again here when the Hub is busy or the connection
is cut. What changes something is tried once: whoever calls has to look at what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from regforge.hub.changes import Changes, Differ
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

    def head(self) -> str | None:
        """The newest commit of main."""
        info = self._patiently(lambda: self._api.repo_info(self.id, repo_type=self.type))
        return info.sha

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

    def commit(
        self, changes: Changes, differ: Differ, *, message: str, parent: str | None, ref: str
    ) -> str:
        """Upload files and commit changes, if the parent is still the newest commit.

        Returns:
            The commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = []
        for path, source in changes.add.items():
            sha256 = bytes.fromhex(differ.digest(source).sha256)
            addition = CommitOperationAdd(path, source)
            addition.upload_info.sha256 = sha256  # or the client reads the file once more
            additions.append(addition)
        self._upload(additions, ref)
        made = self._api.create_commit(
            self.id,
            [*additions, *(CommitOperationDelete(path, False) for path in changes.delete)],
            commit_message=message,
            repo_type=self.type,
            revision=ref,
            parent_commit=parent,
        )
        return made.oid

    def _upload(self, additions: Sequence[CommitOperationAdd], ref: str) -> None:
        """Upload what does not travel within the commit itself; what is there already is not."""
        size = sum(addition.upload_info.size for addition in additions)
        count = f"{len(additions)} file{'s' if len(additions) != 1 else ''}"
        with self._reporter.task(
            f"uploading {count}", max(1, round(size / _MEGABYTE)), unit="MB"
        ) as task:
            done = 0
            for some in _portions(additions):
                self._patiently(lambda some=some: self._preupload(some, ref))  # type: ignore[misc]
                done += sum(addition.upload_info.size for addition in some)
                _advance_to(task, done, size)

    def _preupload(self, additions: Sequence[CommitOperationAdd], ref: str) -> None:
        self._api.preupload_lfs_files(
            self.id,
            additions,
            repo_type=self.type,
            revision=ref,
            free_memory=False,
            # A .gitignore in the repository would silently leave out some of the files.
            gitignore_content="# regforge wants all of these files\n",
        )

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        self._api.create_tag(self.id, tag=name, revision=commit, repo_type=self.type)

    # ------------------------------------------------------------------------- pull requests

    def find_pull_request(self, title: str) -> tuple[int, bool] | None:
        """The number of a pull request that is not closed, and whether it is a draft."""

        def find() -> tuple[int, bool] | None:
            for found in self._api.get_repo_discussions(
                self.id,
                repo_type=self.type,
                discussion_type="pull_request",
                discussion_status="open",
            ):
                if found.title == title and found.status in ("draft", "open"):
                    return found.num, found.status == "draft"
            return None

        return self._patiently(find)

    def open_pull_request(self, title: str, description: str) -> int:
        """Start a pull request as a draft; `refs/pr/N` is where its commits go."""
        made = self._api.create_pull_request(
            self.id, title, description=description, repo_type=self.type
        )
        return made.num

    def offer_pull_request(self, number: int) -> None:
        """Say that a draft is complete."""
        self._api.change_discussion_status(self.id, number, "open", repo_type=self.type)

    def merge_pull_request(self, number: int) -> None:
        """Put all of it on main at once."""
        self._api.merge_pull_request(self.id, number, repo_type=self.type)

    def close_pull_request(self, number: int, comment: str) -> None:
        """Close it, if the Hub lets us; that it stays open does no harm to anybody."""
        with suppress(Exception):
            self._api.change_discussion_status(
                self.id, number, "closed", comment=comment, repo_type=self.type
            )


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


def not_taken(repository: Repository, changes: Changes) -> HubError:
    """What to say where the Hub said yes to changes and has not made them."""
    paths = [*changes.add, *changes.delete]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return HubError(
        f"{repository.id} does not come to hold what was committed: {paths[0]}{more}.",
        hint="Look whether somebody else writes there at the same time, and run it again.",
    )


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
