"""Reads metadata.jsonl back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regforge.export.interface import ExportError


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metadata.jsonl, one in memory at a time.

    Raises:
        ExportError: It is not there, or a line is no row.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ExportError(f"{path}:{number}: is no JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ExportError(f"{path}:{number}: is no row.")
                yield row
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error
