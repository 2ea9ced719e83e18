"""What the loopback Hub answers to whoever writes: uploads, commits, tags, pull requests."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from hub_reading import DATE, Answer, Reading, Refused, answer_json
from hub_storage import Commit, Entry, PullRequest, Repository, Tree, git_sha1, is_lfs


class Call(Reading):
    """One request of any kind."""

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
