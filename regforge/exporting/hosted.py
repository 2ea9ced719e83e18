"""Hosted trainers (fal, Replicate, Civitai): a flat zip of images, each with its caption beside it.

They take one set of images and have neither repeats nor regularization images, so the zip holds
each photo as often as it has to be seen. Read: `extract_zip` and the inputs of train.py in
replicate/flux-fine-tuner at commit 026b011 (which trains with ai-toolkit), `handleZip` and
`handleNextAfterCheck` in src/components/Training/Form/TrainingImages.tsx of civitai/civitai at
79f2cd2, and fal's pages about its trainers' inputs.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from regforge.exporting import ai_toolkit, common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)
from regforge.words import counted

FOLDER = "zip"
ZIP = f"{FOLDER}/dataset.zip"
INCOMPLETE = f"{FOLDER}/regularization-only.zip"
"""Its name while there are no photos, so that nobody pays for training with it."""

_CIVITAI = 1000  # images that it takes; it drops the others with a message
_TITLE = "A hosted trainer"
_KINDS = {SUBJECT: "subject", IMAGES: "regularization"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def _plan(material: Material) -> Plan:
    members = {}
    for folder, image, often in common.repeated(material, _TITLE):
        stem, _, suffix = image.name.rpartition(".")
        for number in range(1, often + 1):
            name = f"{_KINDS[folder]}-{stem}-{number}"
            members[f"{name}.{suffix}"] = f"{folder}/{image.name}"
            members[f"{name}.txt"] = f"{folder}/{stem}.txt"
    name = ZIP if material.photos else INCOMPLETE
    file = common.python_string(material.path(name))
    upload = f"import fal_client; print(fal_client.upload_file({file}))"
    return Plan(
        files={},
        command=common.command_line(["python", "-c", upload]),
        notes=_notes(material, name, len(members) // 2),
        zips={name: members},
    )


def _notes(material: Material, name: str, held: int) -> list[str]:
    notes = [
        *common.mixing_notes(material, _TITLE, *common.mixture(material, _TITLE)),
        f"{name} holds {counted(held, 'image')}, each with its caption in a .txt file: photos come "
        "in it as often as they are to be seen, because a hosted trainer has no repeats.",
        "Leave the trigger word empty. Replicate and Civitai put it before each caption that does "
        "not have it, and then all regularization images teach the subject; the photos' captions "
        "name it already. At Replicate, delete the TOK that stands there.",
        "fal: the command uploads the zip and prints its address for images_data_url "
        "(pip install fal-client). Set create_masks and is_style to false: the one weighs images "
        "by a mask of the subject, the other drops the captions.",
        "Replicate (ostris/flux-dev-lora-trainer): the zip is input_images. Set autocaption to "
        f"false, and steps to {2 * common.PAIRS:,}, half of which show a photo.",
        "Civitai: drop the zip into the form and choose captions, not tags, when asked.",
    ]
    if held > _CIVITAI:
        notes.append(
            f"Civitai takes {_CIVITAI:,} images and drops the others. Export with "
            f"--limit {_CIVITAI // 2 - material.photo_count} for it."
        )
    if not material.photos:
        notes.append(
            f"No photos of the subject were given, so the zip has none and is called {name}. "
            "Export again with --subject before you upload it."
        )
    return notes


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The images of the zip with the text files beside them; copies of an image count together."""
    del root  # it names files in itself only
    path = out / ZIP
    name = ZIP if path.exists() else INCOMPLETE
    shown: Counter[tuple[str, str, str]] = Counter()
    try:
        with zipfile.ZipFile(out / name) as archive:
            for member in archive.namelist():
                stem, dot, suffix = member.rpartition(".")
                if f"{dot}{suffix}".lower() in _SUFFIXES:
                    caption = archive.read(f"{stem}.txt").decode()
                    shown[stem.rpartition("-")[0], suffix, caption] += 1
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ExportError(f"{out / name} cannot be read: {error}") from error
    for (stem, suffix, caption), times in shown.items():
        regularization = not stem.startswith(f"{_KINDS[SUBJECT]}-")
        yield LoadedImage(f"{name}/{stem}-1.{suffix}", caption, regularization, times)


TRAINER = Trainer(
    "zip", "fal, Replicate and Civitai", _plan, _read, refuses=ai_toolkit.TRAINER.refuses
)
