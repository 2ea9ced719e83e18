"""Structured-caption regularization datasets for personalizing text-to-image models.

    run = regforge.run("recipes/quickstart.yaml", out="runs/quickstart")
    run.dataset()                   # a datasets.Dataset; run.to_pandas() without the images
    regforge.audit(run)             # is it fit for training?

    trained = regforge.train("recipes/train-quickstart.yaml", out="runs/cat")
    regforge.sample(trained, ["a photo of a {} on a beach"])
    regforge.evaluate([trained], out="evaluations/cat").to_pandas()

A recipe may be a file, a mapping of the same keys, or what `load_recipe` returned; results stand
for their folders wherever a path is expected, and a notebook shows them as images and tables.

The package's layers, and which of them may import which, are in docs/architecture.md. Importing
this module costs nothing: what it offers is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.api import check, publish
    from regforge.auditing import Audit
    from regforge.auditing import audit_dataset as audit
    from regforge.errors import RegforgeError
    from regforge.evaluation import Evaluation, Samples, evaluate, sample
    from regforge.exporting import Exported
    from regforge.exporting import export_dataset as export
    from regforge.forge import Run, run
    from regforge.recipe import (
        Recipe,
        TrainingRecipe,
        load_recipe,
        load_recipes,
        load_training_recipe,
    )
    from regforge.training import TrainedModel, train

__all__ = [
    "Audit",
    "Evaluation",
    "Exported",
    "Recipe",
    "RegforgeError",
    "Run",
    "Samples",
    "TrainedModel",
    "TrainingRecipe",
    "__version__",
    "audit",
    "check",
    "evaluate",
    "export",
    "load_recipe",
    "load_recipes",
    "load_training_recipe",
    "publish",
    "run",
    "sample",
    "train",
]

_HOMES = {
    "Audit": "regforge.auditing",
    "Evaluation": "regforge.evaluation",
    "Exported": "regforge.exporting",
    "Recipe": "regforge.recipe",
    "RegforgeError": "regforge.errors",
    "Run": "regforge.forge",
    "Samples": "regforge.evaluation",
    "TrainedModel": "regforge.training",
    "TrainingRecipe": "regforge.recipe",
    "audit": "regforge.auditing:audit_dataset",
    "check": "regforge.api",
    "evaluate": "regforge.evaluation",
    "export": "regforge.exporting:export_dataset",
    "load_recipe": "regforge.recipe",
    "load_recipes": "regforge.recipe",
    "load_training_recipe": "regforge.recipe",
    "publish": "regforge.api",
    "run": "regforge.forge",
    "sample": "regforge.evaluation",
    "train": "regforge.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regforge' has no attribute {name!r}")
    module, _, original = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), original or name)


def __dir__() -> list[str]:
    return __all__
