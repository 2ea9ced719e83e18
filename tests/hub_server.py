"""A loopback Hugging Face Hub: models and datasets, commits, pull requests, tags; and faults.

    with LoopbackHub() as hub:
        hub.put("me/teapots", {"README.md": "# Teapots"})  # as somebody else would
        hub.fail("POST .*/commit/", 500, times=2)
        ...  # hub.url is HF_ENDPOINT; hub.requests is what arrived

Standard library only, on 127.0.0.1 and a port of its own. It speaks the part of the Hub's HTTP
interface that huggingface_hub 1.x and datasets 4 and 5 use, without Xet: the clients need
HF_HUB_DISABLE_XET=1. Every blob lies in a folder, so that large repositories take no memory.

The fixture `hub` (tests/conftest.py) is one that this process is already redirected to; a process
of its own gets `hub_environment(hub, home)`.
"""

import hashlib
import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qs, urlsplit

import pytest
from hub_answers import Answer, Call, Refused, Request
from hub_storage import LFS_NAMES, LFS_SIZE, Entry, PullRequest, Repository, git_sha1, is_lfs
from servers import Handler, Loopback

__all__ = ["LFS_SIZE", "LoopbackHub", "Status", "hub_environment", "redirect"]

_CHUNK = 2**20

Status = int | Literal["cut"]


@dataclass
class Fault:
    match: re.Pattern[str]
    status: Status
    times: float
    after: bool
    skip: int
    headers: Mapping[str, str]
    message: str


class LoopbackHub(Loopback):
    """A Hub on this machine; a context manager.

    Attributes:
        url: What HF_ENDPOINT is set to.
        requests: What arrived, oldest first.
        token: May read and write everything, except what is gated.
        read_token: May only read.
        page_size: How many entries a page of a file listing has.
    """

    token = "hf_loopbackWriterTokenOfTheTests"
    read_token = "hf_loopbackReaderTokenOfTheTests"
    user = "me"

    page_size = 1000

    def __init__(self, folder: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._faults: list[Fault] = []
        self._callbacks: list[tuple[re.Pattern[str], Callable[[], object]]] = []
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="hub-")
        self._folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._names = itertools.count()
        super().__init__(type("BoundHandler", (_Handler,), {"hub": self}))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._temporary is not None:
            self._temporary.cleanup()

    # ------------------------------------------------------------------ what a test looks at

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path],
        *,
        delete: tuple[str, ...] = (),
        repo_type: str = "dataset",
        private: bool = False,
        gated: bool = False,
        title: str = "Somebody's commit",
    ) -> str:
        """Commit files to main as somebody else would, and make the repository if need be.

        Returns:
            The commit.
        """
        with self.lock:
            repository = self._repositories.get((repo_type, repo_id))
            if repository is None:
                repository = self.create(repo_id, repo_type=repo_type, private=private)
                repository.gated = gated
            tree = dict(repository.commits[repository.refs["main"]].tree)
            for path, content in files.items():
                tree[path] = self._store(path, content)
            for path in delete:
                del tree[path]
            return repository.commit("main", tree, title)

    def create(
        self, repo_id: str, *, repo_type: str = "dataset", private: bool = False
    ) -> Repository:
        """A new repository with the first commit that the Hub makes itself."""
        with self.lock:
            made = self._repositories[repo_type, repo_id] = Repository(repo_id, repo_type, private)
            attributes = "".join(
                f"*{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES
            )
            tree = {".gitattributes": self._store(".gitattributes", attributes)}
            made.commit("main", tree, "initial commit")
            return made

    def repository(self, repo_id: str, *, repo_type: str = "dataset") -> Repository | None:
        """All about a repository; None if there is none."""
        return self._repositories.get((repo_type, repo_id))

    def head(self, repo_id: str, *, repo_type: str = "dataset") -> str | None:
        """The newest commit of main; None if there is no such repository."""
        found = self.repository(repo_id, repo_type=repo_type)
        return None if found is None else found.refs["main"]

    def files(
        self, repo_id: str, revision: str = "main", *, repo_type: str = "dataset"
    ) -> dict[str, bytes]:
        """The files at a revision, without .gitattributes."""
        found = self._repositories[repo_type, repo_id]
        sha = found.resolve(revision)
        assert sha is not None, f"{repo_id} has no {revision}"
        tree = found.commits[sha].tree
        return {
            path: (self._folder / entry.blob).read_bytes()
            for path, entry in sorted(tree.items())
            if path != ".gitattributes"
        }

    def tags(self, repo_id: str, *, repo_type: str = "dataset") -> dict[str, str]:
        """Tag -> commit."""
        found = self.repository(repo_id, repo_type=repo_type)
        return {} if found is None else dict(found.tags)

    def tag(self, repo_id: str, tag: str, revision: str = "main") -> None:
        """Name a dataset's commit as somebody else would."""
        found = self._repositories["dataset", repo_id]
        sha = found.resolve(revision)
        assert sha is not None
        found.tags[tag] = sha

    def history(self, repo_id: str) -> list[str]:
        """Titles of a dataset's commits, newest first; the last is the Hub's `initial commit`."""
        found = self._repositories["dataset", repo_id]
        sha, titles = found.resolve("main"), []
        while sha is not None:
            titles.append(found.commits[sha].title)
            sha = found.commits[sha].parent
        return titles

    def pull_requests(self, repo_id: str) -> list[PullRequest]:
        """All that were ever opened for a dataset."""
        return self._repositories["dataset", repo_id].pull_requests

    @property
    def writes(self) -> list[str]:
        """The requests so far that may have changed something."""
        return [request.line for request in self.requests if request.writes]

    # --------------------------------------------------------------------------- faults

    def fail(
        self,
        match: str,
        status: Status = 500,
        *,
        times: float = 1,
        after: bool = False,
        skip: int = 0,
        headers: Mapping[str, str] | None = None,
        message: str = "injected by the test",
    ) -> None:
        """Make requests go wrong.

        Args:
            match: Regular expression, searched in `METHOD /path`.
            status: HTTP status; "cut" closes the connection without a word.
            times: How often; `math.inf` for always.
            after: The request is carried out, and only its answer is lost.
            skip: Let so many go well first.
            headers: Of the answer, such as Retry-After.
            message: What the answer says.
        """
        pattern = re.compile(match)
        self._faults.append(Fault(pattern, status, times, after, skip, headers or {}, message))

    def on(self, match: str, callback: Callable[[], object]) -> None:
        """Call something once before a matching request is handled, such as another's commit.

        Of several that match, the one that was asked for first; the next has the next request.
        """
        self._callbacks.append((re.compile(match), callback))

    def heal(self) -> None:
        """No faults and no callbacks any more."""
        self._faults.clear()
        self._callbacks.clear()

    def _fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.times > 0 and fault.match.search(line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _call_back(self, line: str) -> None:
        with self.lock:
            due = next((pair for pair in self._callbacks if pair[0].search(line)), None)
            if due is not None:
                self._callbacks.remove(due)
        if due is not None:
            due[1]()

    # --------------------------------------------------------------------------- blobs

    def _store(self, path: str, content: bytes | str | Path) -> Entry:
        if isinstance(content, Path):
            size = content.stat().st_size
            if is_lfs(path, size):
                with content.open("rb") as stream:
                    blob = hashlib.file_digest(stream, "sha256").hexdigest()
                shutil.copyfile(content, self._folder / blob)
                return Entry(blob, size, lfs=True)
            content = content.read_bytes()
        if isinstance(content, str):
            content = content.encode()
        lfs = is_lfs(path, len(content))
        blob = hashlib.sha256(content).hexdigest() if lfs else git_sha1(content)
        self.blob(blob).write_bytes(content)
        return Entry(blob, len(content), lfs)

    def blob(self, name: str) -> Path:
        """The file of a blob, which may not be there."""
        return self._folder / name

    def scratch(self) -> Path:
        """The name of a new file."""
        return self._folder / f"upload-{next(self._names)}"


class _Handler(Handler):
    hub: LoopbackHub

    def _serve(self) -> None:
        upload: Path | None = None
        body = b""
        if self.command == "PUT":
            upload = self.hub.scratch()
            with upload.open("wb") as stream:
                for chunk in self._body():
                    stream.write(chunk)
        else:
            body = b"".join(self._body())
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            parts.path,
            parse_qs(parts.query, keep_blank_values=True),
            "Authorization" in self.headers,
            self.headers.get("Range"),
            body,
        )
        with self.hub.lock:
            self.hub.requests.append(request)
        fault = self.hub._fault(request.line)
        try:
            if fault is None or fault.after:
                self.hub._call_back(request.line)
                answer = Call(self.hub, request, self.headers, upload).answer()
            if fault is not None and fault.status == "cut":
                self.close_connection = True
                return
            if fault is not None and isinstance(fault.status, int):
                answer = Refused(fault.status, fault.message).answer
                answer.headers |= fault.headers
            self._send(answer)
        finally:
            if upload is not None:
                upload.unlink(missing_ok=True)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (chunk := self.rfile.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk

    def _send(self, answer: Answer) -> None:
        size = answer.file[2] if answer.file else len(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        if answer.file is None:
            self.wfile.write(answer.body)
            return
        with answer.file[0].open("rb") as stream:
            stream.seek(answer.file[1])
            _copy(stream, self.wfile, size)


def _copy(source: BinaryIO, target: Any, size: int) -> None:
    while size > 0 and (chunk := source.read(min(size, _CHUNK))):
        size -= len(chunk)
        target.write(chunk)


# ------------------------------------------------------------------------- pointing clients at it


def hub_environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is this one; its caches lie in `home`."""
    kept = {name: value for name, value in os.environ.items() if not _NAMES.match(name)}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": hub.token,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


_NAMES = re.compile(r"HF_|HUGGING|(https?|all|no)_proxy$", re.IGNORECASE)


def redirect(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, home: Path) -> None:
    """Make this Hub that of huggingface_hub and datasets in this process, which read their
    settings when they are imported; and nobody waits before trying again."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    environment = hub_environment(hub, home)
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    cache = home / "hub"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(cache),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr("regforge.hub.commits.sleep", lambda _: None)

    tables = home / "datasets"
    for name, setting in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": tables,
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": tables / "downloads",
        "EXTRACTED_DATASETS_PATH": tables / "downloads" / "extracted",
    }.items():
        if hasattr(datasets.config, name):
            monkeypatch.setattr(datasets.config, name, setting)
    # It remembers listings, and one Hub's port may be the next one's.
    huggingface_hub.HfFileSystem.clear_instance_cache()
