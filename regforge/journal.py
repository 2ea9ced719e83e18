"""What a run writes down about itself.

    log.jsonl      calls, tokens, cost, timings: {"time": ..., "event": "llm_call", ...}
    ledger.jsonl   everything that was refused or went wrong, with the reason and what was
                   received: {"time": ..., "stage": "prompts", "item": ..., "reason": ...}

Lines are appended whole and never changed. Tokens and keys are blotted out.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regforge.files import storage_error

_SECRET = re.compile(r"\b(?:hf_|sk-|sk_|api_org_|gsk_|xai-|AIza|Bearer\s+)[\w\-.]{8,}")
_RAW_LIMIT = 20_000


class Journal:
    """The log and the ledger of one run; safe to use from several threads.

    Args:
        folder: The run's folder, or None to write nothing down.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.failures = 0

    @property
    def ledger(self) -> Path | None:
        """The file with everything that was refused; None if nothing is written down."""
        return None if self._folder is None else self._folder / "ledger.jsonl"

    def events(self) -> Iterator[dict[str, Any]]:
        """What the log says so far, of earlier sessions too."""
        return iter(()) if self._folder is None else read(self._folder / "log.jsonl")

    def event(self, event: str, **fields: Any) -> None:
        """Write down something that happened.

        Args:
            event: What, in snake case: `llm_call`, `stage`, `rendered`.
            **fields: Anything that JSON can hold.
        """
        self._append("log.jsonl", {"event": event, **fields})

    def failure(self, stage: str, item: str, reason: str, raw: str | None = None) -> None:
        """Write down something that was refused or went wrong.

        Args:
            stage: `prompts`, `images` or `dataset`.
            item: What it was, such as `slot color, call 2` or an image's id.
            reason: Why, in one sentence.
            raw: What was received, such as the language model's reply.
        """
        self.failures += 1
        entry: dict[str, Any] = {"stage": stage, "item": item, "reason": reason}
        if raw is not None:
            entry["raw"] = raw[:_RAW_LIMIT]
        self._append("ledger.jsonl", entry)

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        if self._folder is None:
            return
        stamped = {"time": round(time.time(), 3), **entry}
        line = without_secrets(json.dumps(stamped, ensure_ascii=False, default=str)) + "\n"
        path = self._folder / name
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    os.write(handle, line.encode(errors="replace"))
                finally:
                    os.close(handle)
        except OSError as error:
            raise storage_error(path, error) from error


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log or ledger; a half-written last line is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def without_secrets(text: str) -> str:
    """The text with everything that looks like a token or key blotted out.

    Also every value of an environment variable whose name ends in TOKEN, KEY or SECRET.
    """
    text = _SECRET.sub("[secret]", text)
    for name in os.environ:
        if name.upper().endswith(("TOKEN", "KEY", "SECRET", "PASSWORD")):
            value = os.environ.get(name, "")
            if len(value) >= 8:
                text = text.replace(value, "[secret]")
    return text
