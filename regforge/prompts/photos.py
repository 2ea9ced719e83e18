"""The user's photos and their captions: read, checked, and written by a vision model where missing.

Captions come from a text file beside the photo (`01.jpg`, `01.txt`) or from metadata.jsonl or
metadata.csv as `datasets` reads them (`file_name` and `text`, `prompt` or `caption`). `{}` in them
stands for identifier and class noun. Every fault of every file is told at once.
"""

from __future__ import annotations

import base64
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
from pydantic import BaseModel

from regforge.embedded.phrase_banks import with_noun
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import (
    MOST_CAPTION,
    MOST_IMAGE,
    MOST_TEXT,
    read_file,
    read_text,
    write_atomically,
)
from regforge.image_files import BrokenImage, decode, orientation, patient, plain
from regforge.prompts.captions import (
    instance_caption,
    several_texts,
    without_syntax,
    word_pattern,
)
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.phrase_rules import PhraseRules, tidy
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe import Recipe, kind_of
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
from regforge.words import subject_name

_CAPTION_KEYS = ("text", "caption", "prompt")
_UNREAD_SUFFIXES = frozenset((".heic", ".heif", ".avif", ".jxl", ".raw", ".dng", ".cr2", ".nef"))
_TURNED = frozenset((5, 6, 7, 8))  # EXIF orientations with width and height exchanged

_LONGEST_SIDE = 768  # pixels to which photos are shrunk before they are sent

_SLOT = {"background": "background", "pose": "motion", "lighting": "lighting"}
"""Whose grammar each part of a vision model's reply has, in the order of the caption."""


class PhotosError(RegforgeError):
    """Photos or captions that cannot be used; the message has a line for each."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class PhotoCaption:
    """A photo of the subject and its caption.

    Attributes:
        caption: As it was written, white space tidied and prompt syntax taken off.
        width: Pixels, as a viewer shows it; height likewise.
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
    class_noun: str = "",
    *,
    describe: Callable[[Sequence[Path]], Mapping[str, str]] | None = None,
    spoken: bool = True,
) -> tuple[PhotoCaption, ...]:
    """Read the photos of a folder with their captions, by file name.

    Args:
        folder: `subject.images`; folders inside it are not looked into.
        identifier: The subject's, which is no prompt syntax: "[V]".
        class_noun: The subject's; it and the identifier take the place of `{}`.
        describe: Writes captions, by file name; called once with the photos that have none
            (`captions: auto`).
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
    facts = {path: _read_photo(path, problems) for path in photos}
    captions = {
        path: _caption_in(files, problems) or _text(metadata, path)
        for path, files in (captions_beside(photos, folder) if spoken else {}).items()
    } or dict.fromkeys(photos, "")
    silent = [path for path in photos if spoken and not captions[path] and facts[path] is not None]
    if silent and describe and not problems:
        described = describe(silent)
        captions |= {path: _one_line(described.get(path.name, "")) for path in silent}
        silent = [path for path in silent if not captions[path]]
    name = subject_name(identifier, class_noun)
    captions = {path: with_noun(caption, name) for path, caption in captions.items()}
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
    for path, known in facts.items():
        assert known is not None  # or there would be a problem
        width, height, own_seed, digest = known
        seeds = (_as_seed(metadata.get(path.name, {}).get("seed")), own_seed)
        given = (seed for seed in seeds if seed is not None)
        seed = next(given, int(digest[: SEED_BITS // 4], 16))
        caption = without_syntax(captions[path], identifier)
        written = captions[path] if caption != captions[path] else ""
        found.append(PhotoCaption(path.name, caption, width, height, seed, digest, written))
    return tuple(found)


def write_captions(photos: Sequence[Path], captions: Mapping[str, str]) -> Iterator[str]:
    """Write captions, by file name, into text files beside photos that have none.

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
    """Take over captions that a vision model wrote for a run, by file name, of the same photos.

    The identifier takes the place of the run's own. A folder that is no run's has none.
    """
    try:
        captions = json.loads(content_of(run / "captions.json", run, MOST_TEXT))
        subject = yaml.safe_load(content_of(run / "recipe.yaml", run, MOST_TEXT))["subject"]
        theirs, own = Path(subject["images"]), subject["identifier"]
        found = {
            photo.name: str(captions[photo.name])
            for photo in photos_in(photos)
            if photo.name in captions
            and read_file(theirs / photo.name, MOST_IMAGE) == read_file(photo, MOST_IMAGE)
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return {}
    if not own or own == identifier:
        return found
    pattern = word_pattern(str(own))
    return {name: pattern.sub(lambda _: identifier, text) for name, text in found.items()}


def syntax_notes(photos: Sequence[PhotoCaption]) -> list[str]:
    """Tell of captions whose prompt syntax was taken off, a sentence each."""
    return [
        f"{photo.file}: prompt syntax is taken off its caption: {photo.written!r} is read as "
        f"{photo.caption!r}"
        for photo in photos
        if photo.written
    ]


def _caption_in(files: Sequence[Path], problems: list[str]) -> str:
    for path in files:
        try:
            return _one_line(read_text(path, MOST_CAPTION))
        except UnicodeDecodeError:
            problems.append(f"{path.name}: is not UTF-8 text")
        except OSError as error:
            problems.append(f"{path.name}: cannot be read: {error.strerror}")
    return ""


def _text(metadata: Mapping[str, Mapping[str, Any]], photo: Path) -> str:
    entry = metadata.get(photo.name, {})
    found = (entry[key] for key in _CAPTION_KEYS if entry.get(key))
    return next((_one_line(str(each)) for each in found if isinstance(each, str | int | float)), "")


def _one_line(text: str) -> str:
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
                    elif not isinstance(named := entry.get("file_name"), str):
                        problems.append(f"{where}: is no entry with a `file_name`")
                    elif (file := names.find(posixpath.normpath(named))) is None:
                        problems.append(f"{where}: there is no photo {named!r}")
                    else:
                        found.setdefault(file, entry)
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: cannot be read: {error}")
    return found


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


# ----------------------------------------------------------------------------------- vision models


class PhotoCaptionError(RegforgeError):
    """A photo that was not described."""


class NoVision(PhotoCaptionError):
    """A model that cannot look at photos."""

    exit_code = EXIT_USAGE


class Scene(BaseModel):
    """The reply about an object: nothing of what it looks like, for that is the identifier's."""

    background: str
    lighting: str


class LivingScene(BaseModel):
    """The reply about a living thing."""

    background: str
    pose: str
    lighting: str


def describe_photos(
    photos: Sequence[Path], recipe: Recipe, client: LanguageModelClient
) -> dict[str, str]:
    """Write captions of photos, such as "a photo of a sks teapot on a table, in soft daylight".

    Only the place, the light and, for living things, the pose come from the model, so that every
    photo's caption has the same form.

    Returns:
        A caption for each photo, by its file name. It has the identifier if the recipe has one.

    Raises:
        NoVision: The model is the embedded one.
        PhotoCaptionError: A photo cannot be read, or the model did not describe it.
        RegforgeError: The model cannot be used.
    """
    model = recipe.prompts.llm.vision_model or recipe.prompts.llm.model
    if model.startswith("embedded/"):
        raise NoVision(
            f"subject.captions: auto needs a model that sees, and {model} does not.",
            hint="Name one in `prompts.llm.vision_model`, such as gpt-4o-mini or ollama_chat/"
            "llava, or write a .txt file with a caption beside each photo.",
        )
    *before, asked = Messages(recipe)("photo")
    rules = PhraseRules.of(recipe)

    def problems(reply: BaseModel) -> list[str]:
        return [
            f"{part}: {phrase!r} {why}"
            for part, phrase in _parts(reply).items()
            if phrase or part != "lighting"
            if (why := rules.fault(phrase, _SLOT[part]))
        ]

    questions = []
    for photo in photos:
        text = {"type": "text", "text": asked["content"]}
        image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
        questions.append(
            Question(
                f"photo {photo.name}",
                [*before, {**asked, "content": [text, image]}],
                LivingScene if kind_of(recipe) == "living" else Scene,
                problems=problems,
                seed=question_seed(recipe.seed, "photo", photo.name),
                model=model,
            )
        )
    replies = dict(zip([photo.name for photo in photos], client.ask(questions), strict=True))
    if silent := [name for name, reply in replies.items() if reply is None]:
        raise PhotoCaptionError(
            f"{model} did not describe {', '.join(silent)}"
            + (f": {reason}" if (reason := client.failed.get(f"photo {silent[0]}")) else "."),
            hint=f"Write the caption into {Path(silent[0]).stem}.txt beside the photo, or name "
            "another model in `prompts.llm.vision_model`.",
        )
    named = instance_caption(recipe.subject.identifier, recipe.subject.class_noun)
    captions = {}
    for name, reply in replies.items():
        parts = _parts(reply)
        light = f", {parts['lighting']}" if parts["lighting"] else ""
        around = " ".join(filter(None, [named, parts.get("pose"), parts["background"]]))
        captions[name] = around + light
    return captions


def _parts(reply: Any) -> dict[str, str]:
    texts = reply.model_dump()
    return {part: tidy(texts[part], slot) for part, slot in _SLOT.items() if part in texts}


def data_url(photo: Path) -> str:
    """Encode a photo as a JPEG `data:` URL: upright, shrunk, without what the camera wrote into it.

    Raises:
        PhotoCaptionError: It cannot be read as an image.
    """
    try:
        image = plain(decode(photo.read_bytes()))
    except (OSError, BrokenImage) as error:
        raise PhotoCaptionError(f"{photo} cannot be read as an image: {error}.") from error
    image.info = {}
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
