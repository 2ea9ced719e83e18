"""Puts files into a repository of the Hub so that a reader sees the old version or the new one.

One commit, checked against its parent, then the tag. Knows nothing about what the files hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regforge.errors import RegforgeError
from regforge.hub.errors import HubError, RepoType, page
from regforge.hub.repository import Changes, Repository, State, quiet_client
from regforge.progress import Reporter

_ROUNDS = 10  # commits that go well and are outdone by somebody else's, before we give up


@dataclass(frozen=True)
class Remote:
    """What a repository holds at one commit.

    Attributes:
        commit: 40 hex digits; None for a repository without commits.
        files: Path -> its digest: SHA-256 of large files, git's blob SHA-1 of others.
        read: Fetches a small file, such as README.md; None if there is none.
    """

    commit: str | None
    files: Mapping[str, str]
    read: Callable[[str], bytes | None]


@dataclass(frozen=True)
class Wanted:
    """What a repository shall hold.

    Attributes:
        files: Path in the repository -> the file, or its content.
        delete: Paths that shall be there no more; those that are not there anyway do no harm.
    """

    files: Mapping[str, Path | bytes]
    delete: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """What became of it.

    Attributes:
        repo_id: `user/name`.
        url: The repository's page.
        commit: The commit that holds the files, 40 hex digits.
        changed: Whether anything had to be changed.
        uploaded: How many files were added or replaced.
        deleted: How many were taken out.
        tag: The tag that names the commit now, or None.
        pull_request: The page of the pull request that waits for somebody to merge it, or None.
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
    wanted: Callable[[Remote], Wanted],
    *,
    message: str,
    repo_type: RepoType = "dataset",
    private: bool = True,
    tag: str | None = None,
    create_pr: bool = False,
    reporter: Reporter | None = None,
) -> Published:
    """Make a repository hold some files, creating it if need be.

    Args:
        repo_id: `user/name`.
        wanted: Says what it shall hold, given what it holds; asked again when somebody else has
            committed in between. Of a repository that holds it all, it has to say the same again,
            or publishing twice makes two commits.
        message: Of the commit, its first line.
        repo_type: `dataset` or `model`.
        private: Whether a new repository is private. One that is public already is refused.
        tag: Names the commit afterwards. One that names another commit already is refused before
            anything is uploaded.
        create_pr: Leave it as a pull request for somebody to merge. It cannot be tagged yet.
        reporter: Gets progress.

    Returns:
        What was done; nothing if the files are all there.

    Raises:
        HubError: It cannot be done. Main holds what it held before, or all of the files.
        RegforgeError: A file cannot be read, or what `wanted` raises.
    """
    if create_pr and tag is not None:
        raise HubError(
            "A pull request cannot be tagged before it is merged.",
            hint="Leave out the tag; when it is merged, publish the same again with the tag.",
        )
    publication = _Publication(
        Repository(repo_id, repo_type, reporter or Reporter(quiet=True)), wanted, message, tag
    )
    with quiet_client():
        return publication.run(private=private, create_pr=create_pr)


class _Publication:
    """Looks what main holds, changes what is not as wanted, and looks again until all is.

    Whatever goes wrong on the way, a lost answer or another's commit, the next look tells where
    things stand; so nothing has to be known about what became of a request.
    """

    def __init__(
        self,
        repository: Repository,
        wanted: Callable[[Remote], Wanted],
        message: str,
        tag: str | None,
    ) -> None:
        self._repository = repository
        self._wanted = wanted
        self._message = message
        self._asked: Wanted | None = None
        self._tag = tag
        self._patience = repository.patience()

    def run(self, *, private: bool, create_pr: bool) -> Published:
        made = Changes({}, ())
        for _ in range(_ROUNDS):
            state = self._state(private)
            changes = self._changes(state)
            if not changes:
                self._name(state.commit)
                return self._published(state.commit, made)
            self._refuse_taken_tag()
            made = changes
            if create_pr and (found := self._pull_request()) is not None:
                return self._published(found[1], made, found[0])
            try:
                self._repository.commit(
                    changes, message=self._message, parent=state.commit, create_pr=create_pr
                )
            except RegforgeError:
                raise
            except Exception as error:
                self._patience.failure(error)
        path, *others = [*made.add, *made.delete]
        more = f" and {len(others)} more" if others else ""
        raise HubError(
            f"{self._repository.id} does not come to hold what was committed: {path}{more}.",
            hint="Look whether somebody else writes there at the same time, and run it again.",
        )

    def _pull_request(self) -> tuple[str, str | None] | None:
        """Page and commit of an open pull request of ours that holds all that is wanted."""
        if (wanted := self._asked) is None:
            return None
        for number in self._repository.pull_requests(self._message):
            branch = self._repository.state(f"refs/pr/{number}")
            if branch is not None and not self._against(wanted, branch):
                address = page(self._repository.id, self._repository.type)
                return f"{address}/discussions/{number}", branch.commit
        return None

    def _state(self, private: bool) -> State:
        state = self._repository.state()
        if state is None:
            self._wanted(Remote(None, {}, lambda _: None))  # it may refuse; nothing is made then
            self._repository.create(private=private)
            state = self._repository.state()
        if state is None:
            raise self._repository.missing()
        if private and not state.private:
            address = page(self._repository.id, self._repository.type)
            raise HubError(
                f"{self._repository.id} is public already, and a private one is asked for.",
                hint=f"Make it private on {address}/settings, choose another name, or publish it "
                "as a public one.",
            )
        return state

    def _changes(self, state: State) -> Changes:
        def read(path: str) -> bytes | None:
            if state.commit is None or path not in state.files:
                return None
            return self._repository.content(path, state.commit)

        # Where all is as it was wanted, nothing has to be merged anew; where somebody else was
        # there in between, it has.
        if self._asked is None or self._against(self._asked, state):
            self._asked = self._wanted(Remote(state.commit, state.files, read))
        return self._against(self._asked, state)

    def _against(self, wanted: Wanted, state: State) -> Changes:
        return self._repository.changes(wanted.files, wanted.delete, state.files)

    # ----------------------------------------------------------------------------------- tag

    def _refuse_taken_tag(self) -> None:
        """A tag that is there cannot name a commit that is still to be made."""
        if self._tag is not None and (named := self._repository.tags().get(self._tag)):
            raise self._taken(named)

    def _name(self, commit: str | None) -> None:
        """Tag a commit; no harm if it is tagged so already."""
        if self._tag is None or commit is None:
            return
        self._patience.success()
        while (named := self._repository.tags().get(self._tag)) != commit:
            if named is not None:
                raise self._taken(named)
            try:
                self._repository.tag(self._tag, commit)
                return
            except Exception as error:
                try:
                    self._patience.failure(error)
                except HubError as problem:
                    raise HubError(
                        f"All files are published, but not tagged {self._tag!r}: {problem.message}",
                        hint=problem.hint,
                    ) from error

    def _taken(self, named: str) -> HubError:
        return HubError(
            f"The tag {self._tag!r} of {self._repository.id} names another version already, "
            f"commit {named[:7]}.",
            hint="A tag stays where it is, for those who rely on it: choose a new one.",
        )

    def _published(self, commit: str | None, made: Changes, url: str | None = None) -> Published:
        return Published(
            repo_id=self._repository.id,
            url=page(self._repository.id, self._repository.type),
            commit=commit or "",
            changed=bool(made),
            uploaded=len(made.add),
            deleted=len(made.delete),
            tag=self._tag,
            pull_request=url,
        )
