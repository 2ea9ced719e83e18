"""Changes that are too many for one commit: a pull request that is merged when it is complete.

Its title names the commit that it starts from and what it changes, so that whoever comes back,
after a lost answer or in another session, finds it and goes on. Knows nothing about tags.
"""

from __future__ import annotations

from dataclasses import dataclass

from regforge.hub.changes import Changes, Differ
from regforge.hub.errors import page
from regforge.hub.repository import Patience, Repository, State, not_taken

_DESCRIPTION = (
    "Made by regforge, which merges it when all files are there. It is a draft until then."
)


@dataclass(frozen=True)
class Proposal:
    """A complete pull request.

    Attributes:
        number: That of the pull request.
        url: Its page.
        commit: The newest commit of its branch.
    """

    number: int
    url: str
    commit: str


class PullRequests:
    """The pull requests of one publication: one at a time, none left behind.

    Args:
        repository: Where.
        differ: Compares files.
        batch: How many files a commit takes.
    """

    def __init__(self, repository: Repository, differ: Differ, batch: int) -> None:
        self._repository = repository
        self._differ = differ
        self._batch = batch
        self._number: int | None = None

    def propose(
        self, parent: State, changes: Changes, message: str, patience: Patience
    ) -> Proposal | None:
        """Bring some changes into a pull request, or finish one that was begun.

        Returns:
            The complete pull request, open; None if main has moved on and all is to be done anew.

        Raises:
            HubError: A commit cannot be made.
            Exception: What the client raises where the pull request cannot be opened; calling
                again goes on from there.
        """
        title = f"{message.strip()[:150]} [{self._differ.name(parent.commit, changes)}]"
        found = self._repository.find_pull_request(title)
        if found is None:
            self.withdraw("Something else was published in between.")
            found = self._repository.open_pull_request(title, _DESCRIPTION), True
        self._number, draft = found
        head = self._fill(parent, changes, message, patience)
        if head is None:
            self.withdraw("The repository was changed in between; another one follows.")
            return None
        if draft:
            self._repository.offer_pull_request(self._number)
        address = page(self._repository.id, self._repository.type)
        return Proposal(self._number, f"{address}/discussions/{self._number}", head)

    def merge(self, proposal: Proposal, parent: State) -> None:
        """Put a complete pull request on main, unless somebody else was faster.

        Raises:
            Exception: What the client raises; main tells what became of it.
        """
        if self._repository.head() != parent.commit:
            self.withdraw("The repository was changed in between; another one follows.")
            return
        self._repository.merge_pull_request(proposal.number)
        self._number = None

    def withdraw(self, why: str) -> None:
        """Close what was begun and not merged."""
        if self._number is not None:
            self._repository.close_pull_request(self._number, why)
        self._number = None

    def _fill(
        self, parent: State, changes: Changes, message: str, patience: Patience
    ) -> str | None:
        """Commit until the branch holds all changes; None if it holds something else, too."""
        ref = f"refs/pr/{self._number}"
        committed = False
        while True:
            branch = self._repository.state(ref)
            if branch is None:
                raise self._repository.missing()
            if not self._differ.is_underway(branch.files, parent.files, changes):
                return None
            remaining = self._differ.remaining(branch.files, changes)
            if not remaining:
                return branch.commit
            if committed:
                raise not_taken(self._repository, remaining)
            committed = self._commit_all(ref, branch.commit, remaining, message, patience)

    def _commit_all(
        self, ref: str, head: str | None, remaining: Changes, message: str, patience: Patience
    ) -> bool:
        """One commit after another, until one goes wrong; the branch tells what became of it."""
        while remaining:
            batch = remaining.first(self._batch)
            try:
                head = self._repository.commit(
                    batch, self._differ, message=message, parent=head, ref=ref
                )
            except Exception as error:
                patience.failure(error)
                return False
            patience.success()
            remaining = remaining.without(batch)
        return True
