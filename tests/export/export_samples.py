"""Datasets in memory, and drawing their images, for the tests of exporting."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from regforge.exporting import Exported, export_dataset
from regforge.exporting.trainer import ExportedImage, Material
from regforge.recipe.pipelines import NAMED, predicts_v
from regforge.records import Example

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"}
SHAPES = ("round", "square", "tall", "flat")
COLORS = ("red", "green", "blue")
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
OWN = "its own"

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


@dataclass
class Memory:
    """A dataset that is opened already."""

    rows: list[Example]
    name: str = "me/teapots"
    layout: str = "regforge"
    revision: str | None = None
    license: str | None = "openrail++"
    slots: tuple[str, ...] = ()
    run: Path | None = None
    notes: list[str] = field(default_factory=list)
    reads: int = 0
    """How often the images were read."""

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        self.reads += images
        for row in self.rows:
            yield row if images else replace(row, image=b"")


def make_image(number: int, size: tuple[int, int] = (16, 16), suffix: str = "png") -> bytes:
    """A small image; another one for each number."""
    content = io.BytesIO()
    color = (number % 251, number // 251 % 251, number * 7 % 251)
    Image.new("RGB", size, color).save(content, FORMATS[suffix], compress_level=1)
    return content.getvalue()


def example(number: int, text: str | None = OWN, **more: Any) -> Example:
    """An image of a dataset of somebody else, with a caption of its own."""
    suffix, size = more.pop("suffix", "png"), more.pop("size", (16, 16))
    image = more.pop("image", None) or make_image(number, size, suffix)
    caption = f"a teapot, number {number}" if text is OWN else text
    return Example(f"n{number}", image, caption, *size, **more)


def ours(count: int = 40, seed: int = 0) -> Memory:
    """A dataset as regforge makes them: prompt sets, slots, and all other columns."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        prompt_set = "against" if rng.random() < 0.25 else "amplify"
        shape, color = rng.choice(SHAPES), rng.choice(COLORS) if rng.random() < 0.9 else None
        image = make_image(number, suffix="webp")
        metadata = {
            "seed": rng.randrange(2**32),
            "model": SDXL,
            "guidance_scale": 5.0,
            "language_model": None,
            "image_digest": hashlib.sha256(image).hexdigest(),
            "scores": {"alignment": rng.random(), "duplicate_distance": None},
        }
        row = example(
            number,
            f"a photo of a {color or 'plain'} {shape} teapot, no. {number}",
            image=image,
            class_noun="teapot",
            kind="object",
            prompt_set=prompt_set,
            slots={"shape": shape, "color": color},
            metadata=metadata,
        )
        rows.append(row)
    return Memory(rows, slots=("shape", "color"))


def theirs(captions: Sequence[str | None], **more: Any) -> Memory:
    """A dataset of somebody else with these captions."""
    rows = [example(number, text, **more) for number, text in enumerate(captions)]
    return Memory(rows, layout="folder")


def photo_folder(
    folder: Path,
    captions: Sequence[str | None] = ("a photo of sks teapot",) * 4,
    suffix: str = "jpg",
    size: tuple[int, int] = (20, 10),
) -> Path:
    """A folder with photos of the subject."""
    folder.mkdir()
    for number, caption in enumerate(captions):
        image = make_image(1000 + number, size, suffix)
        (folder / f"IMG_{number}.{suffix}").write_bytes(image)
        if caption is not None:
            (folder / f"IMG_{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def image_folder(folder: Path, files: dict[str, bytes], caption: str = "a sks teapot") -> Path:
    """A folder with these image files, all with one caption."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def export(dataset: Any, out: Path, *to: str, **options: Any) -> Exported:
    """Without a base model for one that is named nowhere, of the family of SDXL."""
    if "base_model" not in options:
        options.setdefault("family", "sdxl")
    return export_dataset(dataset, to=to or ["kohya"], out=out, **options)


def layout(out: Path, folder: str = "images") -> dict[str, str]:
    """The images of a folder and their captions."""
    files = sorted(path for path in (out / folder).iterdir() if path.suffix != ".txt")
    return {path.name: path.with_suffix(".txt").read_bytes().decode() for path in files}


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def material(
    images: int = 6, photos: int = 2, size: tuple[int, int] = (64, 64), **more: Any
) -> Material:
    """What a trainer's files are planned from, without any file."""
    family = NAMED[more.pop("family", "sdxl")]
    settings = {"class_noun": "teapot", "identifier": "sks", "resolution": 64, "family": family}
    settings["base_model"] = family.repository
    settings["predicts_v"] = predicts_v(family.repository, family)
    captions = more.pop("captions", ["a teapot"] * images)
    root = more.pop("root", Path("/data/t"))
    return Material(
        out=root,
        root=root,
        images=[ExportedImage(f"{n:05d}.png", text, *size) for n, text in enumerate(captions, 1)],
        photos=[ExportedImage(f"{n:02d}.jpg", "a sks", *size) for n in range(1, photos + 1)],
        **(settings | more),
    )
