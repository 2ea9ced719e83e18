"""The columns of metadata.jsonl: which there are, of which kind, and a row of them.

Readers such as `datasets` want one kind for a column in all its rows. A dataset of somebody else
may hold anything; what is not of one kind becomes text. Knows nothing about files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from regforge.records import Example

Kind = str | dict[str, str]
"""`string`, `int64`, `float64`, `bool`; for a struct, the kinds of its parts."""

_ALWAYS: dict[str, str] = {"text": "string", "width": "int64", "height": "int64"}
_OURS = ("class_noun", "kind", "prompt_set")
_LATE = ("id",)
_INT64 = 2**63


class Columns:
    """Finds out the columns of a dataset, one example at a time.

    Args:
        slots: Names of the dataset's slots.
    """

    def __init__(self, slots: Sequence[str]) -> None:
        self._slots = tuple(slots)
        self._kinds: dict[str, Kind] = {}

    def add(self, example: Example) -> None:
        """Take note of the columns of one example; those without any value do not count."""
        for name, value in _values(example).items():
            found = _kind(value)
            if found is not None:
                self._kinds[name] = _both(self._kinds.get(name), found)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Each column but `file_name` and its kind, in the order in which they are written."""
        slots: dict[str, Kind] = (
            {"slots": dict.fromkeys(self._slots, "string")} if self._slots else {}
        )
        ours = {name: self._kinds[name] for name in _OURS if name in self._kinds}
        late = {name: self._kinds[name] for name in _LATE if name in self._kinds}
        first = {**_ALWAYS, **ours, **slots}
        rest = {name: kind for name, kind in self._kinds.items() if name not in first | late}
        return {name: _told(kind) for name, kind in {**first, **rest, **late}.items()}

    def row(
        self, example: Example, *, file_name: str, text: str, kinds: Mapping[str, Kind]
    ) -> dict[str, Any]:
        """A row of metadata.jsonl.

        Args:
            example: Whose.
            file_name: Where the image lies, below the folder of metadata.jsonl.
            text: The caption as it was exported.
            kinds: What `kinds` says.
        """
        values = _values(example)
        values |= {"text": text, "width": example.width, "height": example.height}
        values["slots"] = dict(example.slots)
        row = {name: _as(values.get(name), kind) for name, kind in kinds.items()}
        return {"file_name": file_name, **row}


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of metadata.jsonl, with the line's end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def _values(example: Example) -> dict[str, Any]:
    """What is known about an example, by the name of its column, but for text, size and slots."""
    # Turned images are written upright.
    taken = {*_ALWAYS, *_OURS, *_LATE, "slots", "image", "exif_orientation"}
    # `datasets` takes a column with this in its name for the path of another image.
    found = {name.replace("file_name", "source_file"): v for name, v in example.metadata.items()}
    values: dict[str, Any] = {name: getattr(example, name) for name in (*_OURS, *_LATE)}
    return values | {name: value for name, value in found.items() if name not in taken}


def _told(kind: Kind) -> Kind:
    """The kind without the parts that have no value anywhere."""
    return {name: each for name, each in kind.items() if each} if isinstance(kind, dict) else kind


def _kind(value: Any) -> Kind | None:
    """The kind of a value; None if it says nothing."""
    if isinstance(value, Mapping):
        parts = {str(name): _scalar_kind(each) for name, each in value.items()}
        return {name: kind or "" for name, kind in parts.items()} if any(parts.values()) else None
    return _scalar_kind(value)


def _scalar_kind(value: Any) -> str | None:
    if value is None or isinstance(value, bytes | bytearray) or _is_nan(value):
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -_INT64 <= value < _INT64 else "string"
    return "float64" if isinstance(value, float) else "string"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _both(one: Kind | None, other: Kind) -> Kind:
    """The kind that holds values of both; an empty one holds none yet."""
    if not one or one == other:
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        both = {name: _both(one.get(name), other.get(name, "")) for name in names}
        return {name: kind if isinstance(kind, str) else "string" for name, kind in both.items()}
    if not other:
        return one
    return "float64" if {str(one), str(other)} == {"int64", "float64"} else "string"


def _as(value: Any, kind: Kind) -> Any:
    """A value as one of this kind; None if it says nothing."""
    if isinstance(kind, dict):
        parts = value if isinstance(value, Mapping) else {}
        return {name: _as(parts.get(name), each) for name, each in kind.items()}
    if _scalar_kind(value) is None:
        return None
    if kind == "float64":
        return float(value)
    if kind == "string" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value
