"""Structured-caption regularization datasets for personalizing text-to-image models.

    recipe = regforge.load_recipe("recipes/quickstart.yaml", overrides=["prompts.count=16"])
    run = regforge.run(recipe, out="runs/quickstart")
    datasets.load_dataset(str(run.dataset))

    recipe = regforge.load_training_recipe("recipes/train-quickstart.yaml")
    trained = regforge.train(recipe, out="runs/cat")
    found = regforge.evaluate([trained.folder], out="evaluations/cat")

The package's layers, and which of them may import which, are in docs/architecture.md. Importing
this module costs nothing: what it offers is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.evaluation import Evaluation, evaluate
    from regforge.forge import Run, run
    from regforge.recipe import Recipe, TrainingRecipe, load_recipe, load_training_recipe
    from regforge.training import TrainedModel, train

__all__ = [
    "Evaluation",
    "Recipe",
    "Run",
    "TrainedModel",
    "TrainingRecipe",
    "__version__",
    "evaluate",
    "load_recipe",
    "load_training_recipe",
    "run",
    "train",
]

_HOMES = {
    "Evaluation": "regforge.evaluation",
    "Recipe": "regforge.recipe",
    "Run": "regforge.forge",
    "TrainedModel": "regforge.training",
    "TrainingRecipe": "regforge.recipe",
    "evaluate": "regforge.evaluation",
    "load_recipe": "regforge.recipe",
    "load_training_recipe": "regforge.recipe",
    "run": "regforge.forge",
    "train": "regforge.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'regforge' has no attribute {name!r}")
