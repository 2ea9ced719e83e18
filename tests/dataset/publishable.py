"""A small finished dataset, as a run leaves it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_rows import DIGEST, SLOTS, make_row

from regforge.dataset.build import build_dataset
from regforge.dataset.store import SHARD_SIZE, Rejection, Store
from regforge.publishing.package import Package, pack
from regforge.recipe import Recipe, resolved_yaml
from regforge.records import image_id

RECIPE: dict[str, Any] = {
    "name": "teapots",
    "subject": {"class_noun": "teapot", "kind": "object"},
    "prompts": {"slots": [{"name": name, "values": ["x"]} for name in SLOTS]},
    "dataset": {"license": "cc-by-4.0", "repo_id": "me/teapots"},
}
VERSIONS = {"regforge": "0.0.9", "torch": "2.13.0+cpu", "some_lib": "1.0"}


def recipe(**dataset: Any) -> Recipe:
    return Recipe.model_validate({**RECIPE, "dataset": {**RECIPE["dataset"], **dataset}})


def fill(folder: Path, rows: Sequence[Any]) -> Store:
    store = Store(folder / "shards", SLOTS, DIGEST)
    for number in sorted({row.index // SHARD_SIZE for row in rows}):
        own = [row for row in rows if row.index // SHARD_SIZE == number]
        gone = number * SHARD_SIZE + SHARD_SIZE - 1
        reasons = ("black",) if number else ("looks like image x-000001 (distance 1)",)
        store.write(number, own, [Rejection(image_id(DIGEST, gone), gone, "", reasons, 3)])
    return store


def build(folder: Path, rows: Sequence[Any] | None = None, made_by: Recipe | None = None) -> Path:
    """A dataset of `rows`, by default images 0 to 4 and 130; returns its folder."""
    rows = [make_row(index) for index in (0, 1, 2, 3, 4, 130)] if rows is None else rows
    made_by = made_by or recipe()
    build_dataset(
        fill(folder, rows),
        folder / "dataset",
        count=len(rows),
        recipe=made_by,
        recipe_yaml=resolved_yaml(made_by, portable=True),
        caption_template="a {{ color }}",
        versions=VERSIONS,
    )
    return folder / "dataset"


def packed(dataset: Path, rows: int = 6) -> Package:
    return pack(dataset, "teapots", rows=rows, recipe_digest=DIGEST, slots=SLOTS)
