"""A small recipe on the embedded models, and runs of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import Shell, WriteRecipe

from regforge.recipe import Recipe, load_recipe

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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def write_recipe(tmp_path: Path, repo: Path) -> WriteRecipe:
    """Writes the small recipe with other keys; a value that is a mapping is laid over the old."""

    def write(**changes: Any) -> Path:
        content = dict(SMALL)
        content["subject"] = SMALL["subject"] | {"images": str(repo / "examples/subjects/cat")}
        for key, value in changes.items():
            before = content.get(key)
            both = isinstance(before, dict) and isinstance(value, dict)
            content[key] = before | value if both else value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def small(write_recipe: WriteRecipe) -> Recipe:
    return load_recipe(write_recipe())


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Shell:
    """Commands, typed in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capfd)
