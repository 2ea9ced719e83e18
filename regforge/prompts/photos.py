"""The user's photos and their captions, read and checked before anything is drawn.

Captions come from a text file beside the photo (`01.jpg`, `01.txt`) or from metadata.jsonl or
metadata.csv as `datasets` reads them (`file_name` and `text`, `prompt` or `caption`). Every fault
of every file is told at once. Nothing is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import (
    MOST_CAPTION,
    MOST_IMAGE,
    MOST_TEXT,
    read_file,
    read_text,
    write_atomically,
)
from regforge.image_files import orientation, patient
from regforge.prompts.captions import word_pattern
from regforge.prompts.prompt_syntax import several_texts, without_syntax
from regforge.recipe.named_files import (
    CAPTION_SUFFIXES,
    LEADS_OUT,
    METADATA,
    ByName,
    captions_beside,
    content_of,
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
        caption: As it was written, white space tidied and prompt syntax taken off.
        width: Pixels, as a viewer shows it.
        height: Pixels, as a viewer shows it.
        seed: 0 to 2**32 - 1: the one it was made with, if it is a generated image that says so,
            else one that follows from its bytes.
        digest: SHA-256 of the file, 64 hex digits.
        written: The caption with its prompt syntax; empty if it has none.
    """

    file: str
    caption: str
    width: int
    height: int
    seed: int
    digest: str
    written: str = ""


def photo_captions(
    folder: Path,
    identifier: str | None = None,
    *,
    describe: DescribePhotos | None = None,
    spoken: bool = True,
) -> tuple[PhotoCaption, ...]:
    """The photos of a folder with their captions, by file name.

    Args:
        folder: `subject.images`; folders inside it are not looked into.
        identifier: The subject's, which is no prompt syntax: "[V]".
        describe: Called once with the photos that have no caption (`captions: auto`).
        spoken: Whether captions are wanted; without, all are empty.

    Raises:
        PhotosError: There are no photos; or some cannot be read, have no caption, or one that
            stands for several: `{red|blue}`.
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
        for path, files in (captions_beside(photos, folder) if spoken else {}).items()
    } or dict.fromkeys(photos, "")
    silent = [path for path in photos if spoken and not captions[path] and read[path] is not None]
    if silent and describe and not problems:
        said = describe(silent)
        captions |= {path: _tidy(said.get(path.name, "")) for path in silent}
        silent = [path for path in silent if not captions[path]]
    problems += [f"{path.name}: has no caption" for path in silent]
    problems += [
        f"{path.name}: its caption holds {several}, which stands for several texts; write one"
        for path in photos
        if (several := several_texts(captions[path]))
    ]
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
        written = captions[path]
        caption = without_syntax(written, identifier)
        found.append(
            PhotoCaption(
                *(path.name, caption, width, height, seed, digest),
                written=written if caption != written else "",
            )
        )
    return tuple(found)


def write_captions(photos: Sequence[Path], captions: Mapping[str, str]) -> Iterator[str]:
    """Write captions into text files beside photos; a file that is there stays as it is.

    Args:
        photos: Photos without a caption.
        captions: Theirs, by file name.

    Yields:
        What was written and what was not, a sentence each.

    Raises:
        StorageError: A file cannot be written.
    """
    written = 0
    folder = photos[0].parent
    beside = captions_beside(photos, folder)
    stems = Counter(photo.stem for photo in photos_in(folder))
    for photo in photos:
        place = photo.parent / f"{photo.stem}{CAPTION_SUFFIXES[0]}"
        there = beside[photo] or ([place] if os.path.lexists(place) else [])
        if there or stems[photo.stem] > 1:
            why = f"{there[0].name} is there" if there else "another photo has that name"
            yield f"The caption of {photo.name} is not written beside it: {why}."
        elif photo.name in captions:
            write_atomically(place, captions[photo.name] + "\n")
            written += 1
    if written:
        yield f"{written} captions are written beside the photos in {folder}."


def captions_of_run(run: Path, photos: Path, identifier: str) -> dict[str, str]:
    """Captions that a vision model wrote for a run, of photos that are the same here, by file name.

    Args:
        run: The run's folder; one that described nothing, or is none, has none.
        photos: The folder here.
        identifier: Takes the place of the run's own.
    """
    try:
        captions = json.loads(content_of(run / "captions.json", run, MOST_TEXT))
        subject = yaml.safe_load(content_of(run / "recipe.yaml", run, MOST_TEXT))["subject"]
        theirs, own = Path(subject["images"]), subject["identifier"]
        found = {
            photo.name: str(captions[photo.name])
            for photo in photos_in(photos)
            if photo.name in captions and _same(photo, theirs / photo.name)
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return {}
    if not own or own == identifier:
        return found
    pattern = word_pattern(str(own))
    return {name: pattern.sub(lambda _: identifier, text) for name, text in found.items()}


def _same(photo: Path, other: Path) -> bool:
    return read_file(other, MOST_IMAGE) == read_file(photo, MOST_IMAGE)


def syntax_notes(photos: Sequence[PhotoCaption]) -> list[str]:
    """What to tell of captions whose prompt syntax was taken off, a sentence each."""
    return [
        f"{photo.file}: prompt syntax is taken off its caption: {photo.written!r} is read as "
        f"{photo.caption!r}"
        for photo in photos
        if photo.written
    ]


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
        with patient():
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
