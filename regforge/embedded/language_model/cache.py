"""Where the language model keeps what is expensive to compute, and how it writes it.

Knows nothing about what is stored. Readers must treat every file as untrusted: an interrupted or
older program may have written it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """`$REGFORGE_CACHE`, or `~/.cache/regforge`, with `language-model` below it (not created)."""
    base = os.environ.get("REGFORGE_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "regforge") / "language-model"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the directory cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # or a crash may leave the new name on an empty file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
