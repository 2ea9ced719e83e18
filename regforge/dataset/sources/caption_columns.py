"""Finds captions and metadata, makes examples of them, and counts what a person should know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regforge.dataset.sources.trees import CannotOpen
from regforge.image_files import Header
from regforge.records import Example
from regforge.words import counted, listed, nearest

COLUMNS = ("text", "caption", "prompt", "txt")
"""Where captions stand, the first one that there is."""

SIDECARS = (".txt", ".caption", ".json")
"""Files beside an image of the same name that hold its caption, the first one that there is."""

_STRUCTS = ("slots", "scores")
_NOT_METADATA = frozenset({"image", "width", "height", "id"})
MOST_NAMES = 12  # of columns, in a message
_NAMED = 3  # of the things that were left out
_NUMBERS = {"seed": int, "steps": int, "guidance_scale": float}


def caption_column(columns: Iterable[str], asked: str | None, where: str) -> str | None:
    """The column with the captions: the one the user asked for, or one whose name fits, or None.

    Raises:
        CannotOpen: There is no such column as the user asked for; `where` names what has none.
    """
    names = list(columns)
    if asked is None:
        by_name = {name.lower(): name for name in reversed(names)}
        return next((by_name[name] for name in COLUMNS if name in by_name), None)
    if asked in names:
        return asked
    near = nearest(asked, names)
    raise CannotOpen(
        f"{where} has no column {asked!r}; it has {listed(names, MOST_NAMES)}.",
        hint=f"Did you mean --caption-column {near}?" if near else None,
    )


def no_captions(where: str, columns: Sequence[str]) -> str:
    """The note on a dataset in which no column has a name for captions."""
    return (
        f"{where} has no column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has "
        f"{listed(columns, MOST_NAMES)}. If captions stand in one of them, say so: "
        "--caption-column NAME."
    )


def as_caption(value: Any) -> str | None:
    """A caption as it stands there; None for nothing, or nothing but white space.

    The first of a list of captions.
    """
    if isinstance(value, list | tuple):
        value = next((each for each in value if as_caption(each)), None)
    return value if isinstance(value, str) and value.strip() else None


def caption_in(content: bytes) -> str | None:
    """The caption in a text file; the line break at its end is not part of it.

    Raises:
        UnicodeDecodeError: The file is not UTF-8.
    """
    return as_caption(re.sub(r"\r?\n\Z", "", content.decode("utf-8-sig")))


def columns_in(content: bytes) -> dict[str, Any]:
    """What a JSON file says about its image; nothing if it is no JSON object."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def whole(name: object) -> str:
    """A name without halves of characters, which JSON can hold and no file."""
    return str(name).encode("utf-8", errors="replace").decode()


def _plain(name: str, value: Any) -> Any:
    """The value if it is a plain one and no NaN, a known number made from text; else None."""
    if name in _STRUCTS:
        return value if isinstance(value, Mapping) else None
    if name in _NUMBERS and isinstance(value, str):  # CSV has nothing but text
        try:
            value = _NUMBERS[name](value)
        except ValueError:
            return value or None
    plain = isinstance(value, str | int) or (isinstance(value, float) and not math.isnan(value))
    return value if plain else None


class LeftOut:
    """Things that were left out, of which the first few are named."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if len(self._first) < _NAMED:
            self._first.append(name)

    def named(self) -> str:
        """Such as `a.png, b.png, c.png and 4 more`."""
        more = self.count - len(self._first)
        return f"{', '.join(self._first)} and {more:,} more" if more else listed(self._first)


class Findings:
    """Makes the examples, and counts what a person should know once all have been read."""

    def __init__(self) -> None:
        self.images = 0
        self.broken = LeftOut()
        self.unreadable_captions = LeftOut()
        self.unread_metadata = LeftOut()
        self.endless = LeftOut()
        self._silent = 0
        self._from_parameters = 0

    def example(
        self,
        name: str,
        image: bytes,
        header: Header,
        text: str | None,
        columns: Mapping[str, Any],
        *,
        file: Path | None = None,
        class_noun: str | None = None,
    ) -> Example:
        """An example from an image file, its caption and the columns beside it.

        Columns count more than the header, whose prompt is the caption where there is none; values
        that are not plain are left out. `class_noun` is for images that no column says it of.
        """
        if text is None and header.prompt is not None:
            text = header.prompt
            self._from_parameters += 1
        self.images += 1
        self._silent += text is None
        known = {
            whole(key): _plain(key, value)
            for key, value in columns.items()
            if key not in _NOT_METADATA
        }
        slots = known.pop("slots", None) or {}
        noun, kind, prompts = (known.pop(key, None) for key in ("class_noun", "kind", "prompt_set"))
        return Example(
            id=name,
            image=image,
            text=text,
            width=header.width,
            height=header.height,
            class_noun=as_caption(noun) or class_noun,
            kind=kind if kind in ("object", "living") else None,
            prompt_set=as_caption(prompts),
            slots={whole(key): v if isinstance(v, str) else None for key, v in slots.items()},
            metadata={**header.metadata, **{k: v for k, v in known.items() if v is not None}},
            file=file,
        )

    def sentences(self) -> list[str]:
        """For people."""
        found = []
        if self.broken.count:
            found.append(
                f"Left out: {counted(self.broken.count, 'image')} that cannot be read "
                f"({self.broken.named()})."
            )
        if self.unreadable_captions.count:
            found.append(
                f"{counted(self.unreadable_captions.count, 'caption file')} not in UTF-8, and so "
                f"not read ({self.unreadable_captions.named()})."
            )
        if self.endless.count:
            found.append(
                f"{self.endless.named()} lacks the mark of its end, and may have been cut off."
            )
        if self.unread_metadata.count:
            found.append(
                f"Not read: {self.unread_metadata.named()}. Unpack the archive to have it read."
            )
        if self._from_parameters:
            found.append(
                f"{counted(self._from_parameters, 'caption')} taken from what the image's "
                "generator wrote into the file."
            )
        if self._silent and self._silent == self.images:
            found.append("No image has a caption.")
        elif self._silent:
            found.append(f"{self._silent:,} of {self.images:,} images have no caption.")
        return found
