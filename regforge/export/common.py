"""What the trainers' modules have in common: how much to train, wording, quoting, reading back.

Knows no trainer.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path, PurePath
from typing import Any

from regforge.export.interface import SUBJECT, ExportError, Material
from regforge.prompts.captions import instance_caption

PAIRS = 2000
"""Of one photo and one regularization image, that a command trains on. That many steps of one and
one are the default of regforge's own trainer too."""

USUAL_PHOTOS = 5
"""What repeats are computed with while there are no photos."""


def photos(material: Material) -> int:
    """How many photos of the subject to count on."""
    return len(material.photos) or USUAL_PHOTOS


def repeats(material: Material) -> int:
    """How often each photo comes so that one-to-one training uses every image.

    He et al. (arXiv 2311.04315) train with batches of one photo and one regularization image,
    whatever the size of either set.
    """
    return ceil(len(material.images) / photos(material))


def some(number: int, noun: str) -> str:
    """A number and what it counts, such as "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def every(number: int, noun: str) -> str:
    """All of so many, such as "all 2,000 images"."""
    return f"the only {noun}" if number == 1 else f"all {some(number, noun)}"


def shown(images: int) -> str:
    """How often `PAIRS` pairs show each of so many images, such as "each image 20 times"."""
    if images > PAIRS:
        return f"{PAIRS:,} of the images"
    times = round(PAIRS / images)
    return "each image about once" if times == 1 else f"each image about {some(times, 'time')}"


def instance_prompt(material: Material) -> str:
    """One caption for the subject, such as "a photo of a sks teapot", as in DreamBooth."""
    return instance_caption(material.identifier, material.class_noun)


def run_name(material: Material) -> str:
    """A file name for what is trained, such as `sks-teapot-lora`."""
    words = re.findall(r"\w+", f"{material.identifier} {material.class_noun}".casefold())
    return "-".join([*words, "lora"])


def command_line(*groups: Sequence[str]) -> str:
    """A command as it is typed in a shell, one group of words a line."""
    return " \\\n  ".join(shlex.join(group) for group in groups)


def as_json(value: object) -> str:
    """A value as JSON text.

    Some trainers open their files in the encoding of the machine, so it is plain ASCII.
    """
    return json.dumps(value, indent=2) + "\n"


def without_photos(material: Material, folder: str = SUBJECT) -> list[str]:
    """What to say if no photos of the subject were given; nothing if they were."""
    if material.photos:
        return []
    captions = ", each with its caption in a .txt file," if folder == SUBJECT else ""
    return [
        f"No photos of the subject were given. Put them{captions} into {material.seen(folder)} "
        f"before you start; repeats are computed for {USUAL_PHOTOS} of them. Exporting again with "
        "--subject does it for you."
    ]


# ---------------------------------------------------------------------------------- reading back


def text_of(path: Path) -> str:
    """The text of a file that was written for a trainer, with its line ends as they are.

    Raises:
        ExportError: It is not there, or is no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing: the trainer would stop at once.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}.") from error


def json_of(path: Path) -> Any:
    """The value in a JSON file that was written for a trainer.

    Raises:
        ExportError: It is not there, or is no JSON.
    """
    try:
        return json.loads(text_of(path))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}.") from error


def below(path: object, root: PurePath, where: Path) -> str:
    """A path from a trainer's file, as it is below the export's folder, with forward slashes.

    Args:
        path: What the file says.
        root: The export's folder as the files name it.
        where: Which file says it, for the message.

    Raises:
        ExportError: It is no path, or leads out of the export's folder.
    """
    if not isinstance(path, str):
        raise ExportError(f"{where}: {path!r} should be the path of a folder or file.")
    try:
        inside = type(root)(path).relative_to(root)
    except ValueError as error:
        raise ExportError(
            f"{where}: {path} does not lie in {root.as_posix()}.",
            hint="The export was moved or edited by hand. Export again, with --root if it will lie "
            "in another folder.",
        ) from error
    if ".." in inside.parts:
        raise ExportError(f"{where}: {path} leads out of {root.as_posix()}.")
    return inside.as_posix()


def files_in(folder: Path, *, required: bool = True) -> list[Path]:
    """What lies in a folder, sorted by name; hidden things too.

    Raises:
        ExportError: It is required and is not there.
    """
    if not folder.is_dir():
        if not required:
            return []
        raise ExportError(f"{folder} is missing: the trainer would find no images.")
    return sorted(folder.iterdir())


def images_in(
    folder: Path, suffixes: frozenset[str], *, required: bool = True, recursive: bool = False
) -> Iterator[Path]:
    """The files of a folder with such a suffix, in any case of letters, sorted by name.

    Args:
        folder: Where they lie.
        suffixes: With their dot, in small letters.
        required: Whether a missing folder is an error; if it is not, it counts as empty.
        recursive: Whether folders below it count, except hidden ones.

    Raises:
        ExportError: It is required and is not there.
    """
    for path in files_in(folder, required=required):
        if path.is_dir():
            if recursive and not path.name.startswith("."):
                yield from images_in(path, suffixes, recursive=True)
        elif path.suffix.lower() in suffixes:
            yield path
