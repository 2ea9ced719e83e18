"""ComfyUI's training nodes: one folder with a folder of photos and one of regularization images.

Read in Comfy-Org/ComfyUI: comfy_extras/nodes_dataset.py at commit 0535c30
(`LoadImageTextDataSetFromFolderNode`: repeats and captions; `MakeTrainingDataset`),
folder_paths.py at 1df2885 (where a folder has to lie) and comfy/sd1_clip.py at 443393b
(`SDTokenizer`: what becomes of parentheses and of "embedding:").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)

FOLDER = "comfyui"

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def _refuses(caption: str) -> str | None:
    if re.search(r"(?:^|\s)embedding:", caption):
        return "it has embedding:, which would be replaced by a file of that name"
    return None


def _escaped(caption: str) -> str:
    """Parentheses would set weights, and be gone."""
    return re.sub(r"[()]", r"\\\g<0>", caption)


def _trained(text: str) -> str:
    return re.sub(r"\\([()])", r"\1", text)


def _plan(material: Material) -> Plan:
    times = [round(each) for each in common.mixture(material, TRAINER.title)]
    noun = material.class_noun
    # A dot in a path could be the start of a suffix, and each of that is replaced by .txt.
    names = [
        f"{often}_{common.folder_name(text.replace('.', ' '))}"
        for often, text in zip(times, (f"{material.identifier} {noun}", noun), strict=True)
    ]
    if names[0].casefold() == names[1].casefold():
        names[0] += " photos"
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    for source, name, images in zip(
        (SUBJECT, IMAGES), names, (material.photos, material.images), strict=True
    ):
        links |= common.links_to(f"{FOLDER}/{name}", source, images, captions=True)
        for image in images:
            if _escaped(image.caption) != image.caption:
                path = f"{FOLDER}/{name}/{image.name.rpartition('.')[0]}.txt"
                files[path] = _escaped(image.caption)
                del links[path]
    return Plan(
        files=files,
        links=links,
        command=common.command_line(
            ["cp", "-r", material.path(FOLDER), f"ComfyUI/input/{material.run_name}"]
        ),
        notes=_notes(material, names, *times),
    )


def _notes(material: Material, names: list[str], photos: int, images: int) -> list[str]:
    return [
        *common.mixing_notes(material, TRAINER.title, photos, images),
        "The folder has to lie in ComfyUI's input folder; a symbolic link is refused. Choose "
        f'{material.run_name} in "Load Image-Text (from Folder)". It reads both folders in it, '
        "and takes the number before the _ of each as its repeats.",
        'Connect it to "Make Training Dataset", and that to "Train LoRA", through "Resolution '
        f'Bucket" if the images differ in size. {2 * common.PAIRS:,} steps of one image show each '
        f"kind {common.PAIRS:,} times.",
        "ComfyUI takes parentheses in a caption for weights, so they have a backslash in these "
        "text files. An image without a text file is trained with an empty caption.",
        *common.closing_notes(material, folder=f"{FOLDER}/{names[0]}"),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `LoadImageTextDataSetFromFolderNode` would load."""
    del root  # it names nothing by its path
    for folder in common.files_in(out / FOLDER):
        repeats = folder.name.partition("_")[0]
        for path in common.images_in(folder, _SUFFIXES) if folder.is_dir() else ():
            name, beside = path.relative_to(out).as_posix(), path.with_suffix(".txt")
            if name.count(path.suffix) > 1:
                raise ExportError(f"{name} has {path.suffix} in it twice: its caption is lost.")
            yield LoadedImage(
                name,
                _trained(common.text_of(beside).strip()) if beside.is_file() else "",
                regularization=(out / IMAGES / path.name).is_file(),
                repeats=int(repeats) if repeats.isdigit() else 1,
            )


TRAINER = Trainer("comfyui", "ComfyUI", _plan, _read, refuses=_refuses)
