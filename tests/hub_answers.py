"""What the loopback Hub answers, and who may do what."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import yaml
from hub_storage import Commit, Entry, PullRequest, Repository, Tree, git_sha1, is_lfs

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
class Call:
    """One request, and who makes it."""

    hub: "LoopbackHub"
    request: Request
    headers: Any
    upload: Path | None

    def answer(self) -> Answer:
        try:
            for methods, pattern, route in _ROUTES:
                found = re.fullmatch(pattern, self.request.path)
                if found and self.request.method in methods.split():
                    groups = [unquote(group) if group else "" for group in found.groups()]
                    with self.hub.lock:
                        return route(self, *groups)
            raise Refused(404, f"The loopback Hub does not know {self.request.line}")
        except Refused as refused:
            return refused.answer

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
                "id": repo_id,
                "sha": commit.sha,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "siblings": siblings,
            }
        )

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

    # ---------------------------------------------------------------------------- writing

    def create(self) -> Answer:
        self._need_login()
        given = self._json()
        kind = given.get("type") or "model"
        repo_id = f"{given.get('organization') or self.hub.user}/{given['name']}"
        if self._token != self.hub.token:
            namespace = repo_id.split("/", maxsplit=1)[0]
            raise Refused(
                403,
                f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"',
            )
        found = self.hub.repository(repo_id, repo_type=kind)
        page = (found or Repository(repo_id, kind)).page
        if found is not None:
            error = f"You already created this {kind} repo"
            return answer_json({"error": error, "url": f"{self.hub.url}/{page}"}, status=409)
        private = given.get("visibility") == "private" or bool(given.get("private"))
        self.hub.create(repo_id, repo_type=kind, private=private)
        return answer_json({"url": f"{self.hub.url}/{page}", "name": repo_id, "id": repo_id})

    def validate_yaml(self) -> Answer:
        content = self._json()["content"]
        found = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
        with suppress(yaml.YAMLError):
            if found:
                yaml.safe_load(found[1])
            return answer_json({"errors": [], "warnings": []})
        told = {"errors": [{"message": "YAML is malformed"}], "warnings": []}
        return answer_json(told, status=400)

    def preupload(self, kind: str, repo_id: str, revision: str) -> Answer:
        self._need_login()
        commit = self._commit(self._repository(kind, repo_id), revision)
        given = self._json()
        ignored = self._ignored(commit, given.get("gitIgnore"))
        told = []
        for file in given["files"]:
            path = file["path"]
            current = commit.tree.get(path)
            told.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs(path, file["size"]) else "regular",
                    "shouldIgnore": Path(path).suffix in ignored,
                    "oid": current.blob if current else None,
                }
            )
        return answer_json({"files": told, "commitOid": commit.sha})

    def _ignored(self, commit: Commit, given: str | None) -> set[str]:
        """Suffixes that .gitignore keeps out; of its language, `*.suffix` is enough."""
        if not given and ".gitignore" in commit.tree:
            given = self.hub.blob(commit.tree[".gitignore"].blob).read_text()
        return {line[1:].strip() for line in (given or "").splitlines() if line.startswith("*.")}

    def lfs_batch(self, kind: str, repo_id: str) -> Answer:
        self._need_login()
        given = self._json()
        self._repository(kind, repo_id)
        if "ref" in given:  # the client names none for a pull request
            self._need_right_to_write()
        told = []
        for wanted in given["objects"]:
            known = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.blob(wanted["oid"]).is_file():
                known["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wanted['oid']}"}}
            told.append(known)
        return answer_json({"transfer": "basic", "objects": told})

    def lfs_put(self, oid: str) -> Answer:
        # As at a storage service: the address is the permission, and no token is sent along.
        if "Authorization" in self.headers:
            raise Refused(400, "Only one way of authorization is allowed")
        assert self.upload is not None
        with self.upload.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != oid:
                raise Refused(400, "The content is not what its name says")
        self.upload.replace(self.hub.blob(oid))
        return Answer(headers={"ETag": f'"{oid}"'})

    def commit(self, kind: str, repo_id: str, revision: str) -> Answer:
        self._need_login()
        repository = self._repository(kind, repo_id)
        create_pr = self.request.query.get("create_pr", ["0"])[0] in ("1", "true")
        if not create_pr:
            self._need_right_to_write()
        head = self._commit(repository, revision)
        header, tree = self._applied(head.tree)
        parent = header.get("parentCommit")
        if parent is not None and parent != head.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        address = f"{self.hub.url}/{repository.page}"
        told: dict[str, Any] = {"success": True, "hookOutput": ""}
        if create_pr:
            opened = PullRequest(len(repository.pull_requests) + 1, header["summary"])
            repository.pull_requests.append(opened)
            revision = f"refs/pr/{opened.number}"
            repository.refs[revision] = head.sha
            told["pullRequestUrl"] = f"{address}/discussions/{opened.number}"
        elif revision not in repository.refs:
            raise Refused(400, f"{revision} is no branch")
        sha = repository.commit(revision, tree, header["summary"])
        return answer_json(told | {"commitOid": sha, "commitUrl": f"{address}/commit/{sha}"})

    def _applied(self, before: Tree) -> tuple[dict[str, Any], Tree]:
        tree = dict(before)
        header: dict[str, Any] = {}
        for line in self.request.body.splitlines():
            if not line.strip():
                continue
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    header = value
                case "file":
                    content = base64.b64decode(value["content"])
                    blob = git_sha1(content)
                    self.hub.blob(blob).write_bytes(content)
                    tree[value["path"]] = Entry(blob, len(content), lfs=False)
                case "lfsFile":
                    blob = value["oid"]
                    if not self.hub.blob(blob).is_file():
                        raise Refused(400, f"LFS object {blob} was not uploaded")
                    size = self.hub.blob(blob).stat().st_size
                    tree[value["path"]] = Entry(blob, size, lfs=True)
                case "deletedFile":
                    if tree.pop(value["path"], None) is None:
                        message = "A file with this name doesn't exist"
                        raise Refused(404, message, "EntryNotFound")
        return header, tree

    def tag(self, kind: str, repo_id: str, revision: str) -> Answer:
        self._need_right_to_write()
        repository = self._repository(kind, repo_id)
        name = self._json()["tag"]
        if name in repository.tags:
            raise Refused(409, "Tag reference exists already")
        repository.tags[name] = self._commit(repository, revision).sha
        return answer_json({})

    # ------------------------------------------------------------------------ pull requests

    def discussions(self, kind: str, repo_id: str) -> Answer:
        repository = self._repository(kind, repo_id)
        pulls = [self._discussion(repository, pull) for pull in reversed(repository.pull_requests)]
        return answer_json({"discussions": pulls, "count": len(pulls), "start": 0})

    def _discussion(self, repository: Repository, pull: PullRequest) -> dict[str, Any]:
        return {
            "num": pull.number,
            "title": pull.title,
            "status": "open",
            "author": {"name": self.hub.user},
            "createdAt": DATE,
            "isPullRequest": True,
            "repo": {"name": repository.id, "type": repository.type},
            "events": [],
        }


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


# Revisions with a slash arrive quoted (refs%2Fpr%2F1), except where they are the rest of a path.
_API = r"/api/(models|datasets)/([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/whoami-v2", Call.whoami),
    ("POST", r"/api/repos/create", Call.create),
    ("POST", r"/api/validate-yaml", Call.validate_yaml),
    ("GET HEAD", _API, Call.info),
    ("GET HEAD", _API + r"/revision/(.+)", Call.info),
    ("GET", _API + r"/tree/([^/]+)(?:/(.*))?", Call.tree),
    ("POST", _API + r"/paths-info/(.+)", Call.paths_info),
    ("GET", _API + r"/refs", Call.refs),
    ("POST", _API + r"/preupload/(.+)", Call.preupload),
    ("POST", _API + r"/commit/(.+)", Call.commit),
    ("POST", _API + r"/tag/(.+)", Call.tag),
    ("GET", _API + r"/discussions", Call.discussions),
    ("POST", r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Call.lfs_batch),
    ("PUT", r"/_lfs/([0-9a-f]{64})", Call.lfs_put),
    (
        "GET HEAD",
        r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+|refs/(?:pr|convert)/[^/]+)/(.+)",
        Call.resolve,
    ),
)
