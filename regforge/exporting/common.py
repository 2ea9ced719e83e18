"""What the trainers' modules share: wording, quoting, and reading back. Knows no trainer."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    USUAL_PHOTOS,
    ExportedImage,
    ExportError,
    Material,
)
from regforge.prompts.captions import article_for
from regforge.recipe.pipelines import NAMED
from regforge.recipe.single_files import names_file
from regforge.words import counted

T = TypeVar("T")

PAIRS = 2000
"""Of one photo and one regularization image, that a command trains on. That many steps of one and
one are the default of regforge's own trainer too."""

_SMALLEST = 32  # half of it is the smallest side of a bucket


def every(number: int, noun: str) -> str:
    """All of so many, such as "all 2,000 images"."""
    return f"the only {noun}" if number == 1 else f"all {counted(number, noun)}"


def shown(images: int) -> str:
    """How often `PAIRS` pairs show each of so many images, such as "each image 20 times"."""
    if images > PAIRS:
        return f"{PAIRS:,} of the images"
    times = round(PAIRS / images)
    return "each image about once" if times == 1 else f"each image about {counted(times, 'time')}"


def mixture(material: Material, title: str) -> tuple[float, float]:
    """How often an epoch has to show a photo, and a regularization image.

    For trainers that train on all images alike: then only the numbers of the two can weigh one
    against the other. Neither comes less than once, or some of them would never be shown.
    """
    if material.prior_weight == 0:
        raise ExportError(
            f"{title} has no loss weight for a set of images, so a prior weight of 0 would mean to "
            "leave the regularization images out.",
            hint="Give another --prior-weight, or train without a regularization set.",
        )
    ratio = len(material.images) / material.photo_count / material.prior_weight
    return max(1.0, ratio), max(1.0, 1 / ratio)


def repeated(material: Material, title: str) -> Iterator[tuple[str, ExportedImage, int]]:
    """Each photo and each regularization image: its folder, and how often an epoch has to show it.

    It is for trainers that are told so image by image; together they make up the `mixture`.
    """
    folders = ((SUBJECT, material.photos), (IMAGES, material.images))
    for (folder, images), times in zip(folders, mixture(material, title), strict=True):
        often, more = divmod(round(len(images) * times), max(len(images), 1))
        for number, image in enumerate(images):
            yield folder, image, often + (number < more)


def side(material: Material, title: str) -> int:
    """The side of a square of pixels to train at, for trainers whose sizes come in steps of 16."""
    if material.resolution < _SMALLEST:
        raise ExportError(
            f"{title} cannot train at {material.resolution} pixels.",
            hint=f"Give --resolution {_SMALLEST} or more.",
        )
    return material.resolution


def mixing_notes(material: Material, title: str, photo: float, image: float) -> list[str]:
    """What to say of a `mixture`: what comes of it in an epoch, and what that is of the weight."""
    count, photos = len(material.images), material.photo_count
    shown, others = round(count * image), round(photos * photo)
    notes = [
        f"{title} trains on photos and regularization images alike, each with its own caption, "
        f"and uses {every(count, 'regularization image')}. An epoch shows each photo "
        f"{_often(photo)} and each of them {_often(image)}, so the two mix {others:,} to {shown:,}."
    ]
    if material.prior_weight != 1:
        notes.append(
            f"{title} has no loss weight for a set of images. Prior weight "
            f"{material.prior_weight:g} is written as the ratio of images in an epoch, which comes "
            f"to {shown / others:.2g}."
        )
    return notes


def _often(times: float) -> str:
    if times == 1:
        return "once"
    return f"{times:.4g} times{'' if times == round(times) else ' on average'}"


def class_caption(class_noun: str) -> str:
    """Such as `a photo of an owl`."""
    return f"a photo of {article_for(class_noun)(class_noun)}"


def folder_notes(material: Material) -> list[str]:
    """What to say of a base model that is a file, to users of trainers that take folders alone."""
    if not names_file(material.base_model):
        return []
    return [
        f"{PurePath(material.base_model).name} is a single file, and a folder in diffusers' layout "
        f"is needed: {material.kind.pipeline}.from_single_file(FILE).save_pretrained(FOLDER) makes "
        "one. Put it where the command names the file."
    ]


def closing_notes(material: Material, folder: str = SUBJECT) -> list[str]:
    """What to say of photos that are missing; `folder` is where the trainer wants them."""
    notes = []
    if not material.photos:
        captions = ", each with its caption in a .txt file," if folder == SUBJECT else ""
        notes.append(
            f"No photos of the subject were given. Put them{captions} into "
            f"{material.path(folder)} before you start; repeats are computed for {USUAL_PHOTOS} of "
            "them. Exporting again with --subject does it for you."
        )
    return notes


def adapter_file(material: Material) -> str:
    """Where the adapter lies that keeps a distilled base model so; empty if there is none."""
    adapter = material.kind.adapter
    return f"weights/{adapter.rpartition('/')[2]}" if adapter else ""


def distillation_notes(material: Material, how: str = "") -> list[str]:
    """What to say of a base model that was distilled; `how` is how the trainer keeps it so."""
    family = material.kind
    if not family.distilled:
        return []
    title = f"{family.title} is distilled to few steps"
    if how:
        steps, guidance = family.made_for
        sampled = f"Sample with {steps} steps and guidance {guidance:g}."
        return [f"{title}; {how}, so that training does not undo it. {sampled}"]
    return [
        f"{title}, and training undoes that: with the LoRA it needs more steps and guidance. "
        f"Rather train {NAMED[family.like].repository}, whose LoRAs mostly work with it too, on "
        "regularization images which that model drew."
    ]


def command_line(*groups: Sequence[str]) -> str:
    """A command as it is typed in a shell, one group of words a line."""
    return " \\\n  ".join(shlex.join(group) for group in groups if group)


def python_string(text: str) -> str:
    """A text as a string of Python in double quotes."""
    return json.dumps(text, ensure_ascii=False)  # Python does not join the halves of a \ud83e\uded6


def as_json(value: object) -> str:
    """JSON in plain ASCII: some trainers open their files in the encoding of the machine."""
    return json.dumps(value, indent=2) + "\n"


def toml_string(text: str) -> str:
    """A text as a TOML string in one line.

    Trainers read with the package `toml` 0.10, which stumbles over an escaped quote at the start of
    a string. So a text with quotes or backslashes stands between single quotes where it can.
    """
    if not re.search('["\\\\\x00-\x1f\x7f]', text):
        return f'"{text}"'
    if not re.search("['\x00-\x1f\x7f]", text):
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub("[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'


def folder_name(text: str) -> str:
    """A text as every system can have it in the name of a folder."""
    return re.sub(r'[<>:"/\\|?*]', " ", text)[:80].strip(" .") or "thing"


def links_to(
    folder: str, source: str, images: Sequence[ExportedImage], *, captions: bool = False
) -> dict[str, str]:
    """Links in a folder to the images of a folder of the layout."""
    names = [image.name for image in images]
    if captions:
        names = [n for name in names for n in (name, f"{name.rpartition('.')[0]}.txt")]
    return {f"{folder}/{name}": f"{source}/{name}" for name in names}


# ----------------------------------------------------------------------------------- reading back


def text_of(path: Path) -> str:
    """The text of a file that was written for a trainer, with its line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing: the trainer would stop at once.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}.") from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, one in memory at a time."""
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error


def json_of(path: Path) -> Any:
    """The value in a JSON file that was written for a trainer."""
    try:
        return json.loads(text_of(path))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}.") from error


def toml_of(path: Path) -> dict[str, Any]:
    """The tables in a TOML file that was written for a trainer."""
    try:
        return tomllib.loads(text_of(path))
    except tomllib.TOMLDecodeError as error:
        raise ExportError(f"{path} is no TOML: {error}.") from error


def checked(kind: type[T], value: object, where: Path, title: str) -> T:
    """The content of the configuration `where` as its pydantic model.

    The model allows what the trainer reads as it was meant, and forbids other keys; `title` is that
    of the trainer, which would refuse them, ignore them, or take a default.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    place = f"{where}: {place}" if place else str(where)
    if first["type"] == "missing":
        raise ExportError(f"{place} is missing: {title} would stop, or take its default.")
    if first["type"] == "extra_forbidden":
        raise ExportError(f"{place} does not belong there: {title} would refuse or ignore it.")
    raise ExportError(f"{place} is {first['input']!r}, and {title} needs another: {first['msg']}.")


def below(path: str, root: PurePath, where: Path) -> str:
    """A path from the trainer's file `where` as it is below the export's folder, its `root`."""
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
    """What lies in a folder, sorted by name; hidden things too."""
    if not folder.is_dir():
        if not required:
            return []
        raise ExportError(f"{folder} is missing: the trainer would find no images.")
    return sorted(folder.iterdir())


def images_in(
    folder: Path, suffixes: frozenset[str], *, required: bool = True, recursive: bool = False
) -> Iterator[Path]:
    """The files of a folder with such a suffix, in any case of letters, sorted by name.

    Recursive means folders below it count, except hidden ones.
    """
    for path in files_in(folder, required=required):
        if path.is_dir():
            if recursive and not path.name.startswith("."):
                yield from images_in(path, suffixes, recursive=True)
        elif path.suffix.lower() in suffixes:
            yield path


def only_line(file: Path, lines: Sequence[str], otherwise: str) -> str:
    """The caption in a file that should have one line."""
    if len(lines) != 1:
        raise ExportError(f"{file} has {counted(len(lines), 'line')}: {otherwise}.")
    return lines[0]
