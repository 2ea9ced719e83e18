"""What the loopback Hub answers to whoever reads, and who may do what."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import yaml
from hub_storage import Commit, Repository, Tree

if TYPE_CHECKING:
    from hub_server import LoopbackHub

DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Request:
    """A request that arrived; the body of an upload is not kept."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    authorized: bool
    range: str | None
    body: bytes = b""

    @property
    def line(self) -> str:
        """Such as `GET /api/datasets/me/teapots`; what faults are matched against."""
        return f"{self.method} {self.path}"

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.method not in ("GET", "HEAD") and not re.search(
            r"/paths-info/|/api/validate-yaml", self.path
        )


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    file: tuple[Path, int, int] | None = None  # path, first byte, how many


class Refused(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


@dataclass
class Reading:
    """One request that reads, and who makes it."""

    hub: "LoopbackHub"
    request: Request
    headers: Any
    upload: Path | None

    # ---------------------------------------------------------------------------- rights

    @property
    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in (self.hub.token, self.hub.read_token):
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def _repository(self, kind: str, repo_id: str) -> Repository:
        found = self.hub.repository(repo_id, repo_type=kind.removesuffix("s") or "model")
        token = self._token
        if found is None or (found.private and token is None):
            # Whoever does not say who they are learns nothing about what there is.
            raise Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit:
        sha = repository.resolve(revision or "main")
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[sha]

    def _need_login(self) -> None:
        if self._token is None:
            raise Refused(401, "Invalid username or password.")

    def _need_right_to_write(self) -> None:
        self._need_login()
        if self._token != self.hub.token:
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter")

    def _need_access(self, repository: Repository) -> None:
        if repository.gated:
            status = 403 if self._token else 401
            raise Refused(status, f"Access to {repository.id} is restricted.", "GatedRepo")

    def _json(self) -> Any:
        return json.loads(self.request.body or b"{}")

    # ---------------------------------------------------------------------------- reading

    def whoami(self) -> Answer:
        self._need_login()
        return answer_json({"type": "user", "name": self.hub.user, "orgs": [], "auth": {}})

    def info(self, kind: str, repo_id: str, revision: str = "") -> Answer:
        repository = self._repository(kind, repo_id)
        commit = self._commit(repository, revision)
        siblings = []
        for path, entry in sorted(commit.tree.items()):
            told: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.request.query:
                told |= {"size": entry.size, "blobId": entry.oid}
                if entry.lfs:
                    told["lfs"] = {"sha256": entry.blob, "size": entry.size, "pointerSize": 130}
            siblings.append(told)
        return answer_json(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "author": repo_id.split("/", maxsplit=1)[0],
                "sha": commit.sha,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
                "createdAt": DATE,
                "lastModified": DATE,
                "cardData": self._card(commit),
            }
        )

    def _card(self, commit: Commit) -> Any:
        entry = commit.tree.get("README.md")
        if entry is None:
            return {}
        found = re.match(
            rb"---\r?\n(.*?)\r?\n---", self.hub.blob(entry.blob).read_bytes(), re.DOTALL
        )
        return (yaml.safe_load(found[1]) if found else None) or {}

    def tree(self, kind: str, repo_id: str, revision: str, path: str = "") -> Answer:
        commit = self._commit(self._repository(kind, repo_id), revision)
        prefix = path.strip("/") + "/" if path else ""
        query = {name: values[0] for name, values in self.request.query.items()}
        recursive = query.get("recursive", "false").lower() == "true"
        entries = list(_listing(commit.tree, prefix, recursive=recursive))
        if prefix and not entries:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        start = int(query.get("cursor", "0"))
        end = start + self.hub.page_size
        headers = {}
        if end < len(entries):
            following = f"{self.hub.url}{self.request.path}?recursive={recursive}&cursor={end}"
            headers["Link"] = f'<{following}>; rel="next"'
        return answer_json(entries[start:end], headers)

    def paths_info(self, kind: str, repo_id: str, revision: str) -> Answer:
        commit = self._commit(self._repository(kind, repo_id), revision)
        if "json" in self.headers.get("Content-Type", ""):
            paths = self._json()["paths"]
        else:
            pairs = parse_qsl(self.request.body.decode(), keep_blank_values=True)
            paths = [value for name, value in pairs if name == "paths"]
        told = []
        for path in paths:
            if path in commit.tree:
                told.append(commit.tree[path].info(path))
            elif path and any(name.startswith(path.rstrip("/") + "/") for name in commit.tree):
                told.append(_folder(path))
        return answer_json(told)

    def refs(self, kind: str, repo_id: str) -> Answer:
        repository = self._repository(kind, repo_id)

        def told(refs: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": prefix + name, "targetCommit": sha}
                for name, sha in refs.items()
            ]

        pulls = {name: sha for name, sha in repository.refs.items() if name.startswith("refs/")}
        branches = {name: sha for name, sha in repository.refs.items() if name not in pulls}
        return answer_json(
            {
                "branches": told(branches, "refs/heads/"),
                "tags": told(repository.tags, "refs/tags/"),
                "converts": [],
                "pullRequests": told(pulls, ""),
            }
        )

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> Answer:
        repository = self._repository(kind, repo_id)
        commit = self._commit(repository, revision)
        self._need_access(repository)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        entry = commit.tree.get(path)
        if entry is None:
            refused = Refused(404, "Entry not found", "EntryNotFound").answer
            refused.headers |= headers
            return refused
        headers["ETag"] = f'"{entry.blob}"'
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.blob}"', "X-Linked-Size": str(entry.size)}
        file = self.hub.blob(entry.blob)
        kind = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.request.range or "")
        if wanted is None or self.request.method == "HEAD":
            return Answer(200, b"", headers, kind, (file, 0, entry.size))
        start, end = int(wanted[1]), min(int(wanted[2] or entry.size), entry.size - 1)
        if start >= entry.size:
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{entry.size}"}, kind)
        headers["Content-Range"] = f"bytes {start}-{end}/{entry.size}"
        return Answer(206, b"", headers, kind, (file, start, end - start + 1))


def answer_json(told: Any, headers: dict[str, str] | None = None, *, status: int = 200) -> Answer:
    return Answer(status, json.dumps(told).encode(), headers or {})


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _listing(tree: Tree, prefix: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    folders = set()
    for path, entry in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                yield _folder(folder)
        if recursive or len(parts) == 1:
            yield entry.info(path)
