"""The user's photos and their captions, read and checked before anything is drawn.

Captions come from a text file beside the photo (`01.jpg`, `01.txt`) or from metadata.jsonl or
metadata.csv as `datasets` reads them (`file_name` and `text`, `prompt` or `caption`). Every fault
of every file is told at once. Nothing is written.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import MOST_CAPTION, MOST_IMAGE, read_file, read_text
from regforge.image_files import orientation
from regforge.recipe.named_files import (
    LEADS_OUT,
    METADATA,
    ByName,
    captions_beside,
    csv_rows,
    inside,
    json_rows,
    photos_in,
    strays_in,
)
from regforge.records import SEED_BITS

_CAPTION_KEYS = ("text", "caption", "prompt")
_UNREAD_SUFFIXES = frozenset((".heic", ".heif", ".avif", ".jxl", ".raw", ".dng", ".cr2", ".nef"))
_TURNED = frozenset((5, 6, 7, 8))  # EXIF orientations with width and height exchanged

DescribePhotos = Callable[[Sequence[Path]], Mapping[str, str]]
"""Writes captions of photos, by file name."""


class PhotosError(RegforgeError):
    """Photos or captions that cannot be used; the message has a line for each."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class PhotoCaption:
    """A photo of the subject and its caption.

    Attributes:
        file: Its file name.
        caption: As it was written, white space tidied.
        width: Pixels, as a viewer shows it.
        height: Pixels, as a viewer shows it.
        seed: 0 to 2**32 - 1: the one it was made with, if it is a generated image that says so,
            else one that follows from its bytes.
        digest: SHA-256 of the file, 64 hex digits.
    """

    file: str
    caption: str
    width: int
    height: int
    seed: int
    digest: str


def photo_captions(
    folder: Path, *, describe: DescribePhotos | None = None
) -> tuple[PhotoCaption, ...]:
    """The photos of a folder with their captions, by file name.

    Args:
        folder: `subject.images`; folders inside it are not looked into.
        describe: Called once with the photos that have no caption (`captions: auto`).

    Raises:
        PhotosError: There are no photos; or some cannot be read or have no caption.
    """
    try:
        entries = sorted(folder.iterdir())
        photos = photos_in(folder)
    except OSError as error:
        raise PhotosError(f"{folder} cannot be read: {error.strerror}.") from error
    problems = [
        f"{path.name}: {path.suffix} is not read; save it as JPEG or PNG"
        for path in entries
        if path.suffix.lower() in _UNREAD_SUFFIXES and not path.name.startswith(".")
    ]
    if not photos and not problems:
        raise PhotosError(
            f"{folder} has no photos.", hint="Put the subject's photos there (JPEG, PNG, WebP)."
        )
    problems += [f"{path.name}: {LEADS_OUT}" for path in strays_in(folder)]
    metadata = _read_metadata(folder, photos, problems)
    read = {path: _read_photo(path, problems) for path in photos}
    captions = {
        path: _caption_in(files, problems) or _text(metadata, path)
        for path, files in captions_beside(photos, folder).items()
    }
    silent = [path for path in photos if not captions[path] and read[path] is not None]
    if silent and describe and not problems:
        said = describe(silent)
        captions |= {path: _tidy(said.get(path.name, "")) for path in silent}
        silent = [path for path in silent if not captions[path]]
    problems += [f"{path.name}: has no caption" for path in silent]
    if problems:
        raise PhotosError(
            f"The photos in {folder} cannot be used as they are:\n"
            + "\n".join(f"  {problem}" for problem in sorted(problems)),
            hint="A caption stands in a text file beside its photo (01.txt for 01.jpg) or in "
            "metadata.jsonl; `subject.captions: auto` lets a vision model write the missing ones."
            if silent
            else None,
        )
    found = []
    for path in photos:
        facts = read[path]
        assert facts is not None  # or there would be a problem
        width, height, own_seed, digest = facts
        seed = _as_seed(metadata.get(path.name, {}).get("seed"))
        seed = own_seed if seed is None else seed
        seed = int(digest[: SEED_BITS // 4], 16) if seed is None else seed
        found.append(PhotoCaption(path.name, captions[path], width, height, seed, digest))
    return tuple(found)


# --------------------------------------------------------------------------------------- captions


def _caption_in(files: Sequence[Path], problems: list[str]) -> str:
    for path in files:
        try:
            return _tidy(read_text(path, MOST_CAPTION))
        except UnicodeDecodeError:
            problems.append(f"{path.name}: is not UTF-8 text")
        except OSError as error:
            problems.append(f"{path.name}: cannot be read: {error.strerror}")
    return ""


def _text(metadata: Mapping[str, Mapping[str, Any]], photo: Path) -> str:
    entry = metadata.get(photo.name, {})
    said = (entry[key] for key in _CAPTION_KEYS if entry.get(key))
    return next((_tidy(str(each)) for each in said if isinstance(each, str | int | float)), "")


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _read_metadata(
    folder: Path, photos: Sequence[Path], problems: list[str]
) -> dict[str, Mapping[str, Any]]:
    """The entries of metadata.jsonl and metadata.csv by file name."""
    found: dict[str, Mapping[str, Any]] = {}
    names = ByName(path.name for path in photos)
    for path in (folder / name for name in METADATA):
        if inside(path, folder) is None or not path.is_file():
            continue
        try:
            with path.open("rb") as stream:
                rows = json_rows(stream) if path.suffix == ".jsonl" else csv_rows(stream)
                for line, entry in rows:
                    where = f"{path.name}:{line}"
                    if isinstance(entry, str):
                        problems.append(f"{where}: {entry}")
                    elif not isinstance(said := entry.get("file_name"), str):
                        problems.append(f"{where}: is no entry with a `file_name`")
                    elif (file := names.find(posixpath.normpath(said))) is None:
                        problems.append(f"{where}: there is no photo {said!r}")
                    else:
                        found.setdefault(file, entry)
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: cannot be read: {error}")
    return found


# ----------------------------------------------------------------------------------------- images


def _read_photo(path: Path, problems: list[str]) -> tuple[int, int, int | None, str] | None:
    """Width, height, its own seed and digest of a photo that can be read to its end."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = read_file(path, MOST_IMAGE)
        if not content:
            problems.append(f"{path.name}: is empty")
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                width, height = image.size
                if orientation(image) in _TURNED:
                    width, height = height, width
                seed = _seed_in(image.info)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problems.append(
            f"{path.name}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it first"
        )
    except UnidentifiedImageError:
        problems.append(f"{path.name}: is not an image")
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        problems.append(f"{path.name}: cannot be read to its end: {error}")
    else:
        return width, height, seed, hashlib.sha256(content).hexdigest()
    return None


def _seed_in(info: Mapping[Any, Any]) -> int | None:
    """The seed that image generators leave in PNG text, if any ("Seed: 42", "seed": 42)."""
    own = _as_seed(info.get("seed"))
    for key in ("parameters", "prompt", "Comment"):
        found = re.search(r'seed"?\s*[:=]\s*(\d{1,20})\b', str(info.get(key, "")), re.IGNORECASE)
        if own is None and found:
            own = _as_seed(found[1])
    return own


def _as_seed(value: Any) -> int | None:
    digits = re.fullmatch(r"\d{1,20}", str(value).strip())
    return int(digits[0]) % 2**SEED_BITS if digits else None
