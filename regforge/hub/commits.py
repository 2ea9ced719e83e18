"""Puts files into a repository of the Hub so that a reader sees the old version or the new one.

One commit, checked against its parent, then the tag. What only reads, or may be done twice, is
tried again when the Hub is busy or the connection is cut. After what changes something, the
repository is looked at again: whatever became of a request, that tells where things stand.
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
from regforge.hub.errors import (
    HubError,
    RepoType,
    explained,
    is_transient,
    missing,
    page,
    retry_after,
)
from regforge.journal import Reporter
from regforge.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

T = TypeVar("T")

ATTEMPTS = 5
_PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
_LONGEST_PAUSE = 300.0  # the Hub counts requests in windows of five minutes
_ROUNDS = 10  # commits that go well and are outdone by somebody else's, before we give up

# One request asks for the upload of so many, and progress is reported after each.
_FILES_PER_UPLOAD = 25
_BYTES_PER_UPLOAD = 500_000_000
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Remote:
    """What a repository holds at one commit."""

    commit: str | None  # 40 hex digits; None for a repository without commits
    files: Mapping[str, str]  # path -> SHA-256 of a large file, git's blob SHA-1 of another
    read: Callable[[str], bytes | None]  # fetches a small file; None if there is none
    private: bool = True


@dataclass(frozen=True)
class Contents:
    """What a repository shall hold, or what has to be changed there."""

    files: Mapping[str, Path | bytes]  # path in the repository -> the file, or its content
    delete: tuple[str, ...] = ()  # paths that shall be there no more, if they are

    @property
    def paths(self) -> list[str]:
        """All paths, those to be deleted last."""
        return [*self.files, *self.delete]


@dataclass(frozen=True)
class Published:
    """What was published: pages of the repository and of the pull request, if one waits.

    `commit` holds the files and is named by `tag`; `uploaded` files were added or replaced.
    """

    repo_id: str
    url: str
    commit: str
    changed: bool
    uploaded: int
    deleted: int
    tag: str | None = None
    pull_request: str | None = None


def publish_files(
    repo_id: str,
    contents: Callable[[Remote], Contents],
    *,
    message: str,
    repo_type: RepoType = "dataset",
    private: bool = True,
    tag: str | None = None,
    create_pr: bool = False,
    reporter: Reporter | None = None,
) -> Published:
    """Make a repository hold some files, creating it if need be; nothing is done if they are there.

    `contents` is given what the repository holds and returns what it shall hold; it is called again
    when somebody else has committed in between. Of a repository that holds it all, it has to return
    the same again, or publishing twice makes two commits. `private` is about a new repository; one
    that is public already is refused then, and so is, before anything is uploaded, a tag that names
    another commit already. With `create_pr` the commit is left for somebody to merge, untagged.

    Raises:
        HubError: It cannot be done. Main holds what it held before, or all of the files.
        RegforgeError: A file cannot be read, or what `contents` raises.
    """
    if create_pr and tag is not None:
        raise HubError(
            "A pull request cannot be tagged before it is merged.",
            hint="Leave out the tag; when it is merged, publish the same again with the tag.",
        )
    repository = _Repository(repo_id, repo_type, reporter or Reporter(quiet=True))
    with quiet_client():
        return repository.publish(contents, message, private, tag, create_pr)


class _Retries:
    """Waits between attempts, and gives up after too many."""

    def __init__(self, explain: Callable[[Exception], HubError], reporter: Reporter) -> None:
        self._explain = explain
        self._reporter = reporter
        self._failures = 0

    def failure(self, error: Exception) -> None:
        """Wait for as long as is worth it.

        Raises:
            HubError: It will not go well, or has not for too often.
        """
        self._failures += 1
        wait = max(_PAUSE * 2 ** (self._failures - 1), retry_after(error))
        if not is_transient(error) or self._failures == ATTEMPTS or wait > _LONGEST_PAUSE:
            raise self._explain(error) from error
        self._reporter.say(f"{self._explain(error).message} Trying again in {wait:.0f} s.")
        sleep(wait)


class _Repository:
    """A repository of the Hub, with the token of whoever runs this."""

    def __init__(self, repo_id: str, repo_type: RepoType, reporter: Reporter) -> None:
        from huggingface_hub import HfApi

        self._id = repo_id
        self._type: RepoType = repo_type
        self._page = page(repo_id, repo_type)
        self._reporter = reporter
        # Nobody writes without a token, so it is sent where others are not sent unasked, too.
        self._api = HfApi(token=True, library_name="regforge", library_version=__version__)
        self._digests: dict[Path, tuple[str, str]] = {}

    def publish(
        self,
        contents: Callable[[Remote], Contents],
        message: str,
        private: bool,
        tag: str | None,
        create_pr: bool,
    ) -> Published:
        """See `publish_files`: change what is not as it shall be, and look again until all is."""
        wanted: Contents | None = None
        done, retries = Contents({}), self._retries()
        for _ in range(_ROUNDS):
            remote = self._ready(contents, private)
            # Where all is as it was to be, nothing has to be merged anew; where somebody else was
            # there in between, it has.
            if wanted is None or self._changes(wanted, remote).paths:
                wanted = contents(remote)
            changes = self._changes(wanted, remote)
            if not changes.paths:
                if tag is not None and remote.commit is not None:
                    self._tag(tag, remote.commit)
                return self._published(remote.commit, done, tag)
            if tag is not None and (named := self._tags().get(tag)):
                raise self._taken(tag, named)
            done = changes
            if create_pr and (found := self._pull_request(wanted, message)) is not None:
                return self._published(found[1], done, tag, found[0])
            try:
                self._commit(changes, message, remote.commit, create_pr)
            except RegforgeError:
                raise
            except Exception as error:
                retries.failure(error)
        path, *others = done.paths
        more = f" and {len(others)} more" if others else ""
        raise HubError(
            f"{self._id} does not come to hold what was committed: {path}{more}.",
            hint="Look whether somebody else writes there at the same time, and run it again.",
        )

    def _published(
        self, commit: str | None, done: Contents, tag: str | None, pull_request: str | None = None
    ) -> Published:
        return Published(
            self._id,
            self._page,
            commit or "",
            changed=bool(done.paths),
            uploaded=len(done.files),
            deleted=len(done.delete),
            tag=tag,
            pull_request=pull_request,
        )

    def _retries(self) -> _Retries:
        return _Retries(
            lambda error: explained(error, self._id, repo_type=self._type), self._reporter
        )

    def _retried(self, request: Callable[[], T]) -> T:
        retries = self._retries()
        while True:
            try:
                return request()
            except Exception as error:
                retries.failure(error)

    # ------------------------------------------------------------------------------- reading

    def _remote(self, revision: str | None = None) -> Remote | None:
        """What it holds at a revision, or at main; None if there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        def look() -> Remote | None:
            try:
                info = self._api.repo_info(self._id, repo_type=self._type, revision=revision)
            except RepositoryNotFoundError:
                return None
            commit, files = info.sha, {}
            if commit is not None:
                for entry in self._api.list_repo_tree(
                    self._id, recursive=True, revision=commit, repo_type=self._type
                ):
                    if isinstance(entry, RepoFile):
                        files[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id

            def read(path: str) -> bytes | None:
                if path not in files:
                    return None
                return self._retried(lambda: self._content(path, commit))

            return Remote(commit, files, read, bool(info.private))

        return self._retried(look)

    def _content(self, path: str, commit: str | None) -> bytes:
        file = self._api.hf_hub_download(self._id, path, repo_type=self._type, revision=commit)
        return Path(file).read_bytes()

    def _tags(self) -> dict[str, str]:
        """Tag -> the commit that it names."""
        refs = self._retried(lambda: self._api.list_repo_refs(self._id, repo_type=self._type))
        return {ref.name: ref.target_commit for ref in refs.tags}

    def _pull_request(self, wanted: Contents, message: str) -> tuple[str, str | None] | None:
        """Page and commit of an open pull request of ours that holds all that is wanted."""
        title = message.partition("\n")[0]

        def find() -> list[int]:
            discussions = self._api.get_repo_discussions(
                self._id,
                repo_type=self._type,
                discussion_type="pull_request",
                discussion_status="open",
            )
            return [found.num for found in discussions if found.title == title]

        for number in self._retried(find):
            branch = self._remote(f"refs/pr/{number}")
            if branch is not None and not self._changes(wanted, branch).paths:
                return f"{self._page}/discussions/{number}", branch.commit
        return None

    def _changes(self, wanted: Contents, remote: Remote) -> Contents:
        """What turns the files of a repository into those that it shall hold."""

        def is_there(path: str) -> bool:  # what is not there is not read for nothing
            return path in remote.files and remote.files[path] in self._digest(wanted.files[path])

        add = {path: wanted.files[path] for path in sorted(wanted.files) if not is_there(path)}
        gone = set(wanted.delete) & remote.files.keys() - wanted.files.keys()
        return Contents(add, tuple(sorted(gone)))

    def _digest(self, source: Path | bytes) -> tuple[str, str]:
        """SHA-256, by which the Hub calls large files, and git's blob SHA-1; read once."""
        if isinstance(source, bytes):
            blob = hashlib.sha1(b"blob %d\0" % len(source) + source).hexdigest()
            return hashlib.sha256(source).hexdigest(), blob
        if source not in self._digests:
            try:
                sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % source.stat().st_size)
                with source.open("rb") as stream:
                    while chunk := stream.read(_MEGABYTE):
                        sha256.update(chunk)
                        sha1.update(chunk)
            except OSError as error:
                raise RegforgeError(
                    f"{source} cannot be read: {error.strerror or error}."
                ) from error
            self._digests[source] = sha256.hexdigest(), sha1.hexdigest()
        return self._digests[source]

    # ------------------------------------------------------------------------------- writing

    def _ready(self, contents: Callable[[Remote], Contents], private: bool) -> Remote:
        """What it holds; created if it is not there, refused if it is public and must not be."""
        remote = self._remote()
        if remote is None:
            contents(Remote(None, {}, lambda _: None))  # it may refuse; nothing is made then
            self._retried(
                lambda: self._api.create_repo(
                    self._id, repo_type=self._type, private=private, exist_ok=True
                )
            )
            remote = self._remote()
        if remote is None:
            raise missing(self._id, self._type)
        if private and not remote.private:
            raise HubError(
                f"{self._id} is public already, and a private one is asked for.",
                hint=f"Make it private on {self._page}/settings, choose another name, or publish "
                "it as a public one.",
            )
        return remote

    def _commit(self, changes: Contents, message: str, parent: str | None, create_pr: bool) -> None:
        """Upload files and commit changes, if the parent is still the newest commit of main."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = []
        for path, source in changes.files.items():
            sha256 = bytes.fromhex(self._digest(source)[0])
            addition = CommitOperationAdd(path, source)
            addition.upload_info.sha256 = sha256  # or the client reads the file once more
            additions.append(addition)
        self._upload(additions, create_pr)
        self._api.create_commit(
            self._id,
            [*additions, *(CommitOperationDelete(path, False) for path in changes.delete)],
            commit_message=message,
            repo_type=self._type,
            revision="main",
            parent_commit=parent,
            create_pr=create_pr,
        )

    def _upload(self, additions: Sequence[CommitOperationAdd], create_pr: bool) -> None:
        """Upload what does not travel within the commit itself; what is there already is not."""

        def preupload(some: Sequence[CommitOperationAdd]) -> None:
            self._api.preupload_lfs_files(
                self._id,
                some,
                repo_type=self._type,
                create_pr=create_pr,
                free_memory=False,
                # A .gitignore in the repository would silently leave out some of the files.
                gitignore_content="# regforge wants all of these files\n",
            )

        total = sum(addition.upload_info.size for addition in additions)
        name = f"uploading {len(additions)} file{'s' if len(additions) != 1 else ''}"
        megabytes, done = max(1, round(total / _MEGABYTE)), 0
        with self._reporter.task(name, megabytes, unit="MB") as task:
            for some in _portions(additions):
                self._retried(lambda some=some: preupload(some))  # type: ignore[misc]
                done += sum(addition.upload_info.size for addition in some)
                reached = megabytes if done == total else min(megabytes, done // _MEGABYTE)
                task.advance(reached - task.done)

    def _tag(self, tag: str, commit: str) -> None:
        """Tag a commit; no harm if it is tagged so already."""
        retries = self._retries()
        while (named := self._tags().get(tag)) != commit:
            if named is not None:
                raise self._taken(tag, named)
            try:
                self._api.create_tag(self._id, tag=tag, revision=commit, repo_type=self._type)
                return
            except Exception as error:
                try:
                    retries.failure(error)
                except HubError as problem:
                    raise HubError(
                        f"All files are published, but not tagged {tag!r}: {problem.message}",
                        hint=problem.hint,
                    ) from error

    def _taken(self, tag: str, named: str) -> HubError:
        return HubError(
            f"The tag {tag!r} of {self._id} names another version already, commit {named[:7]}.",
            hint="A tag stays where it is, for those who rely on it: choose a new one.",
        )


@contextmanager
def quiet_client() -> Iterator[None]:
    """Hide the client's own progress bars while the block runs."""
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
