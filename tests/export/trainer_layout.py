"""A small export for the trainers' tests: material, and the layout that the core would write."""

import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePath

from hypothesis import strategies
from PIL import Image

from regforge.export.settings import tidy
from regforge.export.trainer import (
    IMAGES,
    SUBJECT,
    ExportedImage,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)

CAPTIONS = (
    "a photo of a red teapot, on a table",
    'a teapot, made of glass; "quoted", it\'s {braced} [brackets] <angled> & 100% _under_score_',
    "ein schöner Teekännchen-Traum aus 日本 🫖, naïve façade",
    "1,000 tiny teapots",
    "- # a: teapot | 'single' \\n backslash ${HOME} $(pwd) `id` !x *star ~tilde",
    "teapot " * 120 + "end",
)
PHOTO_CAPTIONS = ("a photo of sks teapot, on a stone", "sks teapot in a garden")
HARD_FOLDERS = ("with space", "quo'te \"d", "ünï 日本 🫖", "dollar$HOME `x` #1 & co; \\ - %s {x}")

_HARD = " ,_'\"{}[]<>#:$%&\\|`*?aé日🫖\u2028\x85\x0b\x1c\u200b"
_ANY = strategies.characters(codec="utf-8")
TEXTS = strategies.one_of(
    strategies.text(_ANY, min_size=1, max_size=60),
    strategies.text(_HARD, min_size=1),
    strategies.text("ab, ", min_size=500, max_size=3000),
    strategies.sampled_from(["[name] of a teapot", "a [trigger] teapot", "a\nb", "a\rb", " a "]),
)
"""What may stand in somebody's dataset as a caption."""

ONE_LINE_TEXTS = TEXTS.map(tidy).filter(bool)
"""The same as the core hands it to a trainer."""


def material(
    out: Path,
    *,
    captions: Sequence[str] = CAPTIONS,
    photos: Sequence[str] = PHOTO_CAPTIONS,
    root: PurePath | None = None,
    size: tuple[int, int] = (64, 64),
    **more: object,
) -> Material:
    settings: dict[str, object] = {
        "class_noun": "teapot",
        "identifier": "sks",
        "resolution": 64,
        "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
    }
    return Material(
        out=out,
        root=root or out,
        images=[ExportedImage(f"{n:05d}.webp", text, *size) for n, text in enumerate(captions, 1)],
        photos=[ExportedImage(f"{n:02d}.jpg", text, *size) for n, text in enumerate(photos, 1)],
        **(settings | more),  # type: ignore[arg-type]
    )


def write(trainer: Trainer, made_from: Material) -> Plan:
    """Write the layout and a trainer's files, in the order and places of the core."""
    for folder, images in ((IMAGES, made_from.images), (SUBJECT, made_from.photos)):
        for number, image in enumerate(images):
            path = made_from.out / folder / image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image.width, image.height), (number % 256, 0, 0)).save(path)
            path.with_suffix(".txt").write_bytes(image.caption.encode())
    plan = trainer.plan(made_from)
    for name, text in plan.files.items():
        path = made_from.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    for name, source in plan.links.items():
        path = made_from.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(made_from.out / source)
    return plan


def read(trainer: Trainer, made_from: Material) -> tuple[list[LoadedImage], list[LoadedImage]]:
    """(regularization images, photos) as the trainer's module reads them, sorted by path."""
    seen = sorted(trainer.read(made_from.out, made_from.root), key=lambda one: one.path)
    return (
        [one for one in seen if one.regularization],
        [one for one in seen if not one.regularization],
    )


def captions_of(images: Sequence[ExportedImage]) -> list[str]:
    return [image.caption for image in images]


def run_by_shell(script: Path, folder: Path) -> list[str]:
    """The words after `accelerate launch` as a shell hands them over."""
    folder.mkdir()
    accelerate = folder / "accelerate"
    accelerate.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$WORDS"\n')
    accelerate.chmod(0o755)
    words = folder / "words"
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "WORDS": str(words)}
    subprocess.run(["sh", str(script)], env=environment, check=True, cwd=folder)
    launch, *rest = words.read_bytes().decode().split("\0")[:-1]
    assert launch == "launch"
    return rest


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """`--key=value` words by key; the value is empty for a bare `--key`."""
    split = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
    return {key: value for key, _, value in split}
