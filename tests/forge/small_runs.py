"""Running small recipes, and reading what came out."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from regforge.dataset.store import read_rows
from regforge.forge import Run, run
from regforge.journal import Reporter
from regforge.recipe import Recipe
from regforge.records import ImageRow

WriteRecipe = Callable[..., Path]

SMALL: dict[str, Any] = {
    "name": "small",
    "subject": {"class_noun": "cat", "identifier": "sks"},
    "prompts": {
        "count": 10,
        "sets": {"against": 1, "amplify": 3},
        "slots": [
            {"name": "color", "values": ["red", "blue", "black", "white", "pink"]},
            {"name": "background", "values": ["on a beach", "in a forest", "in a city"]},
            {"name": "style", "values": ["a photo of", "a pencil sketch of"]},
        ],
    },
    "render": {"steps": 2, "batch_size": 4, "dtype": "float32"},
    "curate": {"max_duplicate_distance": None},
}


def write_small(path: Path, repo: Path, **changes: Any) -> Path:
    """Write the small recipe with other keys; a value that is a mapping is laid over the old."""
    content = SMALL | {
        "subject": SMALL["subject"] | {"images": str(repo / "examples/subjects/cat")}
    }
    for key, value in changes.items():
        before = content.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        content[key] = before | value if both else value
    path.write_text(yaml.safe_dump(content))
    return path


def write_captioned(folder: Path, captions: Iterable[str | None]) -> Path:
    """A folder of small images, each with its caption in a text file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (16, 16), (number % 256, 80, 160)).save(folder / f"{number:03}.png")
        if caption is not None:
            (folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
    return folder


def quietly(recipe: Recipe, out: Path, **options: Any) -> Run:
    return run(recipe, out=out, reporter=Reporter(quiet=True), **options)


def rows_of(done: Run) -> list[ImageRow]:
    return list(read_rows(done.dataset_folder))


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of every file of a run that must come out the same each time."""
    files = [folder / name for name in ("imported.jsonl", "vocabulary.json", "prompts.jsonl")]
    files += sorted((folder / "dataset").rglob("*")) + sorted((folder / "shards").rglob("*"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }
