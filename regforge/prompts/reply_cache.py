"""Replies on disk: the same question to the same model is paid for once.

    <folder>/ab/abcd...json    {"format": 1, "text": "...", "model": "...",
                                "prompt_tokens": 210, "completion_tokens": 90}

The file's name is the SHA-256 of everything that could change the reply. Only replies that were
good enough to use are kept. A damaged file counts as none. Knows nothing of what a reply means,
and never sees a key or token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regforge.files import cache_folder, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class KeptReply:
    """A reply as it was received.

    Attributes:
        text: All of it, with whatever stood around the JSON.
        model: Who said it.
        prompt_tokens: Tokens read; None if the server did not say.
        completion_tokens: Tokens written; None if the server did not say.
    """

    text: str
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ReplyCache:
    """A folder of replies; several processes may share it.

    Args:
        folder: Created when first written to; `replies` in regforge's cache folder by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "replies"

    def get(self, key: str) -> KeptReply | None:
        """The reply kept under a key, or None."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            if entry.pop("format") != FORMAT or not isinstance(entry["text"], str):
                return None
            return KeptReply(**entry)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def put(self, key: str, reply: KeptReply) -> None:
        """Keep a reply.

        Raises:
            StorageError: The folder cannot be written.
        """
        entry = {"format": FORMAT, **asdict(reply)}
        write_atomically(self._path(key), json.dumps(entry, ensure_ascii=False))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def key_of(parts: Mapping[str, Any]) -> str:
    """A name, 64 hex digits, for everything that could change a reply."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
