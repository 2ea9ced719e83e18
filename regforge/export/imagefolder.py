"""Hugging Face `datasets`: the layout as an ImageFolder.

The card names the files. Without that, `datasets` counts suffixes, finds as many text files of
captions as images, and loads the text files instead of PNG or JPEG files, without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from regforge.embedded.phrase_banks import with_article
from regforge.export import common
from regforge.export.interface import IMAGES, ExportError, Material, Plan, Seen
from regforge.export.layout import METADATA

CARD = "README.md"

_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?)?"
)


def features(columns: Mapping[str, str | Mapping[str, str]]) -> list[dict[str, Any]]:
    """Columns as the YAML of a card lists them."""
    return [
        {"name": name, "dtype": kind}
        if isinstance(kind, str)
        else {"name": name, "struct": features(kind)}
        for name, kind in columns.items()
    ]


def card(front: Mapping[str, Any], text: str) -> str:
    """A card: YAML between two lines, then Markdown."""
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{head}---\n\n{text}"


def front_of(path: Path) -> dict[str, Any]:
    """The YAML of a card.

    Raises:
        ExportError: It cannot be read.
    """
    text = common.text_of(path)
    try:
        front = yaml.safe_load(text.split("---\n")[1])
    except (yaml.YAMLError, IndexError) as error:
        raise ExportError(f"{path} has no YAML between --- at its top.") from error
    if not isinstance(front, dict):
        raise ExportError(f"{path} has no YAML between --- at its top.")
    return front


def patterns_of(path: Path) -> list[str]:
    """The files that a card names for the split `train` of its configuration.

    Raises:
        ExportError: It names none.
    """
    try:
        (config,) = front_of(path)["configs"]
        (files,) = [each for each in config["data_files"] if each["split"] == "train"]
        return [files["path"]] if isinstance(files["path"], str) else list(files["path"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} names no files: `datasets` would load the captions instead of the images."
        ) from error


def files_named(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files that the patterns of a card name, by their path below the card's folder.

    Raises:
        ExportError: A pattern leads elsewhere.
    """
    found = []
    for pattern in patterns:
        if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
            raise ExportError(f"{folder / CARD} names {pattern}, which is not in its folder.")
        found += sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))
    return found


class ImageFolder:
    """`datasets.load_dataset("imagefolder")`, and all that reads such a folder."""

    name = "imagefolder"
    title = "Hugging Face datasets (ImageFolder)"

    def refuses(self, caption: str) -> str | None:
        """A caption that is a date, as Arrow finds them in JSON."""
        return "`datasets` would read it as a time" if _DATE.fullmatch(caption) else None

    def plan(self, material: Material) -> Plan:
        """The card."""
        count = len(material.images)
        suffixes = sorted({image.name.rpartition(".")[2] for image in material.images})
        files = [*(f"{IMAGES}/*.{suffix}" for suffix in suffixes), METADATA]
        front = {
            "configs": [
                {
                    "config_name": "default",
                    # `datasets` caches a folder under its last name and a hash of this.
                    "description": f"content {material.content}",
                    "data_files": [{"split": "train", "path": files}],
                    "features": [{"name": "image", "dtype": "image"}, *features(material.columns)],
                }
            ]
        }
        columns = ", ".join(f"`{name}`" for name in ("image", *material.columns))
        text = (
            f"# Regularization images of {with_article(material.class_noun)}\n\n"
            f"{common.some(count, 'image')}, one row each. Columns: {columns}.\n"
        )
        return Plan(
            files={CARD: card(front, text)},
            command=common.command_line(["python", "-c", load_text(material.seen())]),
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

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """The rows that the ImageFolder builder of `datasets` would give.

        It takes the rows of the metadata file; an image without a row is left out, and a row
        without an image is an error.
        """
        del root  # it names files below its own folder only
        patterns = patterns_of(out / CARD)
        if METADATA not in patterns:
            raise ExportError(f"{out / CARD} does not name {METADATA}: captions would be lost.")
        found = set(files_named(out, patterns))
        for row in _rows(out / METADATA):
            path = row.get("file_name")
            if path not in found:
                raise ExportError(f"{METADATA} names {path}, which is not among the images.")
            yield Seen(path, row.get("text"), regularization=True)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of metadata.jsonl, one in memory at a time.

    Raises:
        ExportError: It is not there, or a line is no row.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ExportError(f"{path}:{number}: is no JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ExportError(f"{path}:{number}: is no row.")
                yield row
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error


def load_text(folder: str) -> str:
    """Python that loads a folder and shows what it is."""
    return f'import datasets; print(datasets.load_dataset({json.dumps(folder)}, split="train"))'


TRAINER = ImageFolder()
