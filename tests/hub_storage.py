"""What the loopback Hub keeps: repositories, commits, pull requests. Nothing about requests."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

LFS_SIZE = 10 * 2**20
LFS_NAMES = tuple(
    ".arrow .bin .gz .jpeg .jpg .parquet .png .safetensors .tar .webp .zip".split()
)  # what the .gitattributes of a new dataset say


@dataclass
class Entry:
    """A file of a commit."""

    blob: str  # name of its content: SHA-256 of an LFS file, git's blob SHA-1 of another
    size: int
    lfs: bool

    @property
    def oid(self) -> str:
        """Git's blob SHA-1; of an LFS file, that of the pointer."""
        if not self.lfs:
            return self.blob
        return git_sha1(
            b"version https://git-lfs.github.com/spec/v1\n"
            b"oid sha256:%s\nsize %d\n" % (self.blob.encode(), self.size)
        )

    def info(self, path: str) -> dict[str, Any]:
        told = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.lfs:
            told["lfs"] = {"oid": self.blob, "size": self.size, "pointerSize": 130}
        return told


Tree = dict[str, Entry]


@dataclass
class Commit:
    sha: str
    tree: Tree
    title: str
    parent: str | None


@dataclass
class PullRequest:
    number: int
    title: str


@dataclass
class Repository:
    id: str
    type: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branches and refs/pr/N
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)

    def commit(self, ref: str, tree: Tree, title: str) -> str:
        parent = self.refs.get(ref)
        # Not the time: the same steps give the same commits in every run.
        known = f"{self.type} {self.id} {title} {parent} {len(self.commits)}"
        sha = hashlib.sha1(known.encode()).hexdigest()
        self.commits[sha] = Commit(sha, tree, title, parent)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision.startswith(("refs/heads/", "refs/tags/")):
            revision = revision.split("/", 2)[2]
        found = self.refs.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    @property
    def page(self) -> str:
        return f"{'' if self.type == 'model' else self.type + 's/'}{self.id}"


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps a file outside git."""
    return size > 0 and (path.lower().endswith(LFS_NAMES) or size > LFS_SIZE)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
