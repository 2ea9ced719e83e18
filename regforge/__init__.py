"""Structured-caption regularization datasets for personalizing text-to-image models.

    recipe = regforge.load_recipe("recipes/quickstart.yaml", overrides=["prompts.count=16"])
    run = regforge.run(recipe, out="runs/quickstart")
    datasets.load_dataset(str(run.dataset))

The package's layers, and which of them may import which, are in docs/architecture.md. Importing
this module costs nothing: what it offers is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.forge import Run, run
    from regforge.recipe import Recipe, load_recipe

__all__ = ["Recipe", "Run", "__version__", "load_recipe", "run"]

_HOMES = {
    "Recipe": "regforge.recipe",
    "Run": "regforge.forge",
    "load_recipe": "regforge.recipe",
    "run": "regforge.forge",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'regforge' has no attribute {name!r}")
