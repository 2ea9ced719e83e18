"""Hugging Face `datasets`: the layout as an ImageFolder, and as WebDataset's tar files.

The card of an ImageFolder names the files. Without that, `datasets` counts suffixes, finds as many
text files of captions as images, and loads the text files instead of PNG or JPEG files, without a
word.

A sample of WebDataset is three members that share a name, `00001.webp`, `00001.txt` and
`00001.json`. The card beside the tar files says what is in them: else `datasets` guesses from the
first five samples, and stops at the first later one that has more (a slot that was empty, another
type of image).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from regforge.embedded.phrase_banks import with_article
from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    METADATA,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)
from regforge.words import counted

CARD = "README.md"

_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?)?"
)


# ------------------------------------------------------------------- what WebDataset needs as well


def features(columns: Mapping[str, str | Mapping[str, str]]) -> list[dict[str, Any]]:
    """Columns as the YAML of a card lists them."""
    return [
        {"name": name, "dtype": kind}
        if isinstance(kind, str)
        else {"name": name, "struct": features(kind)}
        for name, kind in columns.items()
    ]


def card(material: Material, config: Mapping[str, Any], text: str, **front: Any) -> str:
    """A card: YAML between two lines, then Markdown."""
    # `datasets` caches a folder under its last name and a hash of the description.
    about = {"config_name": "default", "description": f"content {material.content}"}
    head = {"configs": [{**about, **config}], **front}
    yaml_text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10_000)
    title = f"# Regularization images of {with_article(material.class_noun)}"
    return f"---\n{yaml_text}---\n\n{title}\n\n{text}\n"


def load_command(folder: str) -> str:
    """Python that loads a folder and shows what it is."""
    name = common.python_string(folder)
    code = f'import datasets; print(datasets.load_dataset({name}, split="train"))'
    return common.command_line(["python", "-c", code])


def files_named(path: Path) -> list[str]:
    """The files that a card names for the split `train`, by their path below its folder.

    Raises:
        ExportError: It names none, or leads elsewhere.
    """
    try:
        front = yaml.safe_load(common.text_of(path).split("---\n")[1])
        (config,) = front["configs"]
        (named,) = [each["path"] for each in config["data_files"] if each["split"] == "train"]
    except (yaml.YAMLError, IndexError) as error:
        raise ExportError(f"{path} has no YAML between --- at its top.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} names no files: `datasets` would load the captions instead of the images."
        ) from error
    found = []
    for pattern in [named] if isinstance(named, str) else map(str, named):
        if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
            raise ExportError(f"{path} names {pattern}, which is not in its folder.")
        files = path.parent.glob(pattern)
        found += sorted(file.relative_to(path.parent).as_posix() for file in files)
    return found


# ------------------------------------------------------------------------------------- ImageFolder


def _refuses(caption: str) -> str | None:
    """A caption that is a date, as Arrow finds them in JSON."""
    return "`datasets` would read it as a time" if _DATE.fullmatch(caption) else None


def _plan_imagefolder(material: Material) -> Plan:
    count = len(material.images)
    suffixes = sorted({image.name.rpartition(".")[2] for image in material.images})
    files = [*(f"{IMAGES}/*.{suffix}" for suffix in suffixes), METADATA]
    config = {
        "data_files": [{"split": "train", "path": files}],
        "features": [{"name": "image", "dtype": "image"}, *features(material.columns)],
    }
    columns = ", ".join(f"`{name}`" for name in ("image", *material.columns))
    text = f"{counted(count, 'image')}, one row each. Columns: {columns}."
    return Plan(
        files={CARD: card(material, config, text)},
        command=load_command(material.path()),
        notes=[
            f"`load_dataset` gives {common.every(count, 'image')}, each with its own caption "
            "in the column `text` and everything else that is known about it.",
            f"{CARD} names the images and {METADATA}. Keep it: without it `datasets` "
            "guesses by the suffixes, and may load the captions' text files and no images.",
            "The photos of the subject are not part of it."
            if material.photos
            else "It holds no photos of the subject; the trainer gets those by itself.",
        ],
    )


def _read_imagefolder(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The rows that the ImageFolder builder of `datasets` would give.

    It takes the rows of the metadata file; an image without a row is left out, and a row without an
    image is an error.
    """
    del root  # it names files below its own folder only
    found = set(files_named(out / CARD))
    if METADATA not in found:
        raise ExportError(f"{out / CARD} does not name {METADATA}: captions would be lost.")
    for number, line in enumerate(common.lines_of(out / METADATA), 1):
        try:
            row = json.loads(line)
            path, caption = row["file_name"], row.get("text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{out / METADATA}:{number}: is no row: {error}") from error
        if path not in found:
            raise ExportError(f"{METADATA} names {path}, which is not among the images.")
        yield LoadedImage(path, caption, regularization=True)


IMAGEFOLDER = Trainer(
    "imagefolder",
    "Hugging Face datasets (ImageFolder)",
    _plan_imagefolder,
    _read_imagefolder,
    refuses=_refuses,
)


# --------------------------------------------------------------------------------------- WebDataset

SHARDS = "shards"
SHARDS_CARD = f"{SHARDS}/README.md"

SAMPLES = 1000
BYTES = 500_000_000
"""The most in a tar file, whichever comes first."""


def _plan_webdataset(material: Material) -> Plan:
    """The tar files and their card."""
    names = [image.name for image in material.images]
    parts = list(_parts(material.out / IMAGES, names))
    shards = {f"{SHARDS}/{number:05d}.tar": part for number, part in enumerate(parts)}
    suffixes = sorted({name.rpartition(".")[2] for name in names})
    columns = [
        *({"name": suffix, "dtype": "image"} for suffix in suffixes),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": features(material.columns)},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]
    config = {"data_files": [{"split": "train", "path": "*.tar"}]}
    text = f"{counted(len(names), 'image')} in {counted(len(shards), 'tar file')}."
    return Plan(
        files={SHARDS_CARD: card(material, config, text, dataset_info={"features": columns})},
        command=load_command(material.path(SHARDS)),
        notes=_shard_notes(len(names), len(shards), suffixes),
        shards=shards,
    )


def _parts(images: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """The images of one tar file after another."""
    part: list[str] = []
    size = 0
    for name in names:
        path = images / name
        own = path.stat().st_size if path.is_file() else 0  # the check says that it is gone
        if part and (len(part) == SAMPLES or size + own > BYTES):
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    yield part


def _shard_notes(count: int, shards: int, suffixes: Sequence[str]) -> list[str]:
    files = "The tar file holds" if shards == 1 else "The tar files hold"
    order = "Their order is balanced, so the first tar files are a balanced part."
    notes = [
        f"{files} {common.every(count, 'image')}, each with its own caption (`.txt`) and "
        f"everything known about it (`.json`).{'' if shards == 1 else f' {order}'}",
        f"Only {SHARDS}/ is needed. The folder {IMAGES}/ stays beside it, with the same images; "
        "delete it if no other trainer uses it and space is short.",
    ]
    if len(suffixes) > 1:
        notes.append(
            f"The images are of several types ({', '.join(suffixes)}), and a sample has one of "
            "them: read whichever is there."
        )
    return notes


def _read_webdataset(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The samples that the webdataset builder of `datasets` would give."""
    del root  # it names files beside itself only
    for name in files_named(out / SHARDS_CARD):
        yield from _samples(out / SHARDS / name, f"{SHARDS}/{name}")


def _samples(path: Path, name: str) -> Iterator[LoadedImage]:
    """The images of a tar file with their captions; members of a sample follow one another."""
    try:
        with tarfile.open(path) as tar:
            image, text = "", None
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                if stem != image.partition(".")[0] and image:
                    yield LoadedImage(f"{name}/{image}", text, regularization=True)
                    image, text = "", None
                if suffix == "txt":
                    stream = tar.extractfile(member)
                    text = stream.read().decode() if stream else None
                elif suffix != "json":
                    image = member.name
            if image:
                yield LoadedImage(f"{name}/{image}", text, regularization=True)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error


WEBDATASET = Trainer("webdataset", "WebDataset", _plan_webdataset, _read_webdataset)
