"""SHA-256 of files and of model folders; each file is read once.

A file is read again only when its size or one of its times has changed. Digests of large files are
kept in the cache folder too: a base model of 7 GB takes five to fifteen seconds the first time.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from regforge.files import StorageError, cache_folder, write_atomically

_LARGE = 64 * 2**20
"""Bytes from which on a file's digest is kept between processes."""

_SETTLED = 2.0
"""Seconds since a file's last change after which its times tell the next change."""

_MOST_KEPT = 1000
_OF_A_MODEL = frozenset((".json", ".txt", ".safetensors", ".model", ".py"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    Raises:
        OSError: It cannot be read.
    """
    path = path.resolve()
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def revision_of(folder: Path) -> str:
    """Which version of a model lies in a folder.

    Returns:
        The commit of a repository in the Hub's cache, else `sha256:...` of the names and contents
        of all files that decide what the model does: configurations, weights, tokenizers, code.

    Raises:
        OSError: A file cannot be read.
    """
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _OF_A_MODEL and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(bytes.fromhex(file_digest(path)))
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int, created: int) -> str:
    key, version = str(path), [size, changed, created]
    known = _kept().get(key) if size >= _LARGE else None
    if isinstance(known, list) and known[:-1] == version and isinstance(known[-1], str):
        return known[-1]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if size >= _LARGE and time.time() - max(changed, created) / 1e9 > _SETTLED:
        newest = {**_kept(), key: [*version, digest]}
        with suppress(StorageError):  # a read-only cache must not stop a run
            kept = json.dumps(dict(list(newest.items())[-_MOST_KEPT:]))
            write_atomically(cache_folder() / "digests.json", kept)
    return digest


def _kept() -> dict[str, object]:
    try:
        content = json.loads((cache_folder() / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
