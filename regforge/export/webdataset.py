"""WebDataset: tar files of images, captions and metadata.

A sample is three members that share a name, `00001.webp`, `00001.txt` and `00001.json`. The card
beside the tar files says what is in them: else `datasets` guesses from the first five samples, and
stops at the first later one that has more (a slot that was empty, another type of image).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from regforge.embedded.phrase_banks import with_article
from regforge.export import common
from regforge.export.imagefolder import card, features, files_named, load_text, patterns_of
from regforge.export.interface import IMAGES, ExportError, Material, Plan, Seen

FOLDER = "shards"
CARD = f"{FOLDER}/README.md"

SAMPLES = 1000
"""At most so many in a tar file."""

BYTES = 500_000_000
"""And no more where they come to this."""


class WebDataset:
    """The format of the webdataset library, which `datasets` reads too."""

    name = "webdataset"
    title = "WebDataset"

    def refuses(self, caption: str) -> None:
        """Nothing: a text file holds any text."""

    def plan(self, material: Material) -> Plan:
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
        front = {
            "configs": [
                {
                    "config_name": "default",
                    "description": f"content {material.content}",  # see imagefolder
                    "data_files": [{"split": "train", "path": "*.tar"}],
                }
            ],
            "dataset_info": {"features": columns},
        }
        count = len(names)
        text = (
            f"# Regularization images of {with_article(material.class_noun)}\n\n"
            f"{common.some(count, 'image')} in {common.some(len(shards), 'tar file')}.\n"
        )
        return Plan(
            files={CARD: card(front, text)},
            command=common.command_line(["python", "-c", load_text(material.seen(FOLDER))]),
            notes=_notes(count, len(shards), suffixes),
            shards=shards,
        )

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """The samples that the webdataset builder of `datasets` would give."""
        del root  # it names files beside itself only
        where = out / CARD
        for name in files_named(where.parent, patterns_of(where)):
            yield from _samples(where.parent / name, f"{FOLDER}/{name}")


def _parts(images: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """The images of one tar file after another."""
    part: list[str] = []
    size = 0
    for name in names:
        own = _size(images / name)
        if part and (len(part) == SAMPLES or size + own > BYTES):
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    yield part


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # it is gone; the check says so


def _samples(path: Path, name: str) -> Iterator[Seen]:
    """The images of a tar file with their captions; members of a sample follow one another."""
    try:
        with tarfile.open(path) as tar:
            image, text = "", None
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                if stem != image.partition(".")[0] and image:
                    yield Seen(f"{name}/{image}", text, regularization=True)
                    image, text = "", None
                if suffix == "txt":
                    stream = tar.extractfile(member)
                    text = stream.read().decode() if stream else None
                elif suffix != "json":
                    image = member.name
            if image:
                yield Seen(f"{name}/{image}", text, regularization=True)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error


def _notes(count: int, shards: int, suffixes: Sequence[str]) -> list[str]:
    notes = [
        f"The tar files hold {common.every(count, 'image')}, each with its own caption (`.txt`) "
        "and everything known about it (`.json`). Their order is balanced, so the first tar files "
        "are a balanced part."
        if shards > 1
        else f"The tar file holds {common.every(count, 'image')}, each with its own caption "
        "(`.txt`) and everything known about it (`.json`).",
        f"Only {FOLDER}/ is needed. The folder {IMAGES}/ stays beside it, with the same images; "
        "delete it if no other trainer uses it and space is short.",
    ]
    if len(suffixes) > 1:
        notes.append(
            f"The images are of several types ({', '.join(suffixes)}), and a sample has one of "
            "them: read whichever is there."
        )
    return notes


TRAINER = WebDataset()
