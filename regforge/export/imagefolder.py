"""Hugging Face `datasets`: the layout as an ImageFolder.

The card names the files. Without that, `datasets` counts suffixes, finds as many text files of
captions as images, and loads the text files instead of PNG or JPEG files, without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from regforge.embedded.phrase_banks import with_article
from regforge.export import common
from regforge.export.trainer import (
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
    code = f'import datasets; print(datasets.load_dataset({json.dumps(folder)}, split="train"))'
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


def _plan(material: Material) -> Plan:
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


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
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


TRAINER = Trainer("imagefolder", "Hugging Face datasets (ImageFolder)", _plan, _read, _refuses)
