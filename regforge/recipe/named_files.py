"""The files that a recipe names: whether they are there, and what of them counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from regforge.files import read_text

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no folder can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def names_recipe(name: str) -> bool:
    """Whether what a recipe names, of a dataset, is another recipe: a YAML file."""
    return name.lower().endswith((".yaml", ".yml"))


def phrases_in(path: Path) -> list[str]:
    """The phrases of a text file, one a line.

    `#` at the start of a line or after a space starts a comment.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    lines = read_text(path).splitlines()
    stripped = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in lines)
    return [line for line in stripped if line]


def photos_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        OSError: It cannot be read.
    """
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(
        path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def caption_files_of(photos: Sequence[Path], folder: Path) -> list[Path]:
    """The files with captions that are there, by name: beside a photo, and for all of them."""
    beside = {photo.with_suffix(suffix) for photo in photos for suffix in CAPTION_SUFFIXES}
    together = {folder / name for name in METADATA}
    return sorted(path for path in beside | together if path.is_file())
