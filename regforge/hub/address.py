"""How people name a repository of the Hub: `user/name`, `user/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_REPOSITORY = re.compile(r"(?:datasets/)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s@]+))?")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of the Hub at a branch, tag or commit; None is the main branch."""

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubAddress | None:
        """Parse `user/name`, `user/name@v1`, the same after `datasets/`, or the page's URL.

        Returns None for any other text.
        """
        text = re.sub(r"^(?:https?://[^/\s]+/(?=datasets/)|hf://)", "", text.strip()).rstrip("/")
        found = _REPOSITORY.fullmatch(re.sub(r"/tree/(?=[^/]+$)", "@", text))
        if found is None or any(set(part) <= {"."} for part in found["id"].split("/")):
            return None
        return cls(found["id"], found["revision"])

    def at(self, revision: str | None) -> HubAddress:
        """The same repository at another revision; unchanged for None."""
        return self if revision is None else replace(self, revision=revision)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id
