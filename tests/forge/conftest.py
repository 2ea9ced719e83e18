"""A small recipe on the embedded models, and runs of it."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import WriteRecipe, write_small

from regforge.recipe import Recipe, load_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def write_recipe(tmp_path: Path, repo: Path) -> WriteRecipe:
    """Writes the small recipe with other keys, see `write_small`."""

    def write(**changes: Any) -> Path:
        return write_small(tmp_path / "recipe.yaml", repo, **changes)

    return write


@pytest.fixture
def small(write_recipe: WriteRecipe) -> Recipe:
    return load_recipe(write_recipe())
