"""Small datasets in memory, and images for them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from odd_images import file_of
from PIL import Image

from regforge.auditing import Audit, Check, audit_dataset
from regforge.records import Example

KNOWN = {"model_revision": "c", "seed": 0, "scheduler": "ddim", "steps": 4, "guidance_scale": 1.0}


class InMemory:
    """A dataset as `open_dataset` returns one."""

    layout = "folder"
    revision: str | None = None

    def __init__(self, examples: Sequence[Example], **more: Any) -> None:
        self.name = str(more.get("name", "owls"))
        self.license: str | None = more.get("license")
        self.slots: tuple[str, ...] = tuple(more.get("slots", ()))
        self.run: Path | None = more.get("run")
        self.notes: list[str] = []
        self.opened = 0  # images that were asked for
        self._examples = examples

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        for example in self._examples:
            self.opened += images
            yield example
        self.notes = ["was read to its end"]


def make_image(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Coarse noise, other noise for each number: images that look nothing like one another."""
    generator = np.random.default_rng(number)
    small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def example(number: int, text: str | None = "an owl", **more: Any) -> Example:
    values: dict[str, Any] = {"image": file_of(make_image(number)), "width": 32, "height": 32}
    return Example(**({"id": f"{number:03d}.png", "text": text} | values | more))


def closed(number: int, text: str | None = "an owl", **more: Any) -> Example:
    """A row as regforge stores it: with hashes, and with a file that nobody may open."""
    metadata = {"image_digest": f"{number:064x}", "perceptual_hash": f"{hash_of(number):016x}"}
    metadata |= more.pop("data", {})
    return example(number, text, **({"image": b"do not open", "metadata": metadata} | more))


def hash_of(number: int) -> int:
    """A 64-bit hash that is far from the others."""
    return int(np.random.default_rng(number).integers(0, 2**64, dtype=np.uint64))


def audit(rows: Sequence[Example], *, dataset: dict[str, Any] | None = None, **more: Any) -> Audit:
    return audit_dataset(InMemory(rows, **(dataset or {})), **more)


def checked(found: Audit, name: str) -> Check:
    """The check of that name."""
    return next(check for check in found.checks if check.name == name)


def expect(check: Check, grade: str, *said: str, **numbers: object) -> None:
    """Compare a check's grade and some of its numbers, and look for words in its sentences."""
    assert check.grade == grade, check
    assert {name: check.numbers[name] for name in numbers} == numbers
    assert [words for words in said if words not in f"{check.finding} {check.advice}"] == []


def write_run(folder: Path, recipe: str, offered: dict[str, list[str]] | None = None) -> Path:
    """As much of a run's folder as an audit reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    slots = {name: {"values": values} for name, values in (offered or {}).items()}
    (folder / "vocabulary.json").write_text(json.dumps({"slots": slots}), encoding="utf-8")
    return folder
