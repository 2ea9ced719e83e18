"""WebDataset, which `datasets` reads too: tar files of images, captions and metadata.

A sample is three members that share a name, `00001.webp`, `00001.txt` and `00001.json`. The card
beside the tar files says what is in them: else `datasets` guesses from the first five samples, and
stops at the first later one that has more (a slot that was empty, another type of image).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from regforge.export import common
from regforge.export.imagefolder import card, features, files_named, load_command
from regforge.export.trainer import IMAGES, ExportError, LoadedImage, Material, Plan, Trainer
from regforge.words import counted

FOLDER = "shards"
CARD = f"{FOLDER}/README.md"

SAMPLES = 1000
BYTES = 500_000_000
"""The most in a tar file, whichever comes first."""


def _plan(material: Material) -> Plan:
    """The tar files and their card."""
    names = [image.name for image in material.images]
    parts = list(_parts(material.out / IMAGES, names))
    shards = {f"{FOLDER}/{number:05d}.tar": part for number, part in enumerate(parts)}
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
        files={CARD: card(material, config, text, dataset_info={"features": columns})},
        command=load_command(material.path(FOLDER)),
        notes=_notes(len(names), len(shards), suffixes),
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


def _notes(count: int, shards: int, suffixes: Sequence[str]) -> list[str]:
    files = "The tar file holds" if shards == 1 else "The tar files hold"
    order = "Their order is balanced, so the first tar files are a balanced part."
    notes = [
        f"{files} {common.every(count, 'image')}, each with its own caption (`.txt`) and "
        f"everything known about it (`.json`).{'' if shards == 1 else f' {order}'}",
        f"Only {FOLDER}/ is needed. The folder {IMAGES}/ stays beside it, with the same images; "
        "delete it if no other trainer uses it and space is short.",
    ]
    if len(suffixes) > 1:
        notes.append(
            f"The images are of several types ({', '.join(suffixes)}), and a sample has one of "
            "them: read whichever is there."
        )
    return notes


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The samples that the webdataset builder of `datasets` would give."""
    del root  # it names files beside itself only
    for name in files_named(out / CARD):
        yield from _samples(out / FOLDER / name, f"{FOLDER}/{name}")


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


TRAINER = Trainer("webdataset", "WebDataset", _plan, _read)
