"""What takes both kinds of recipe, or what both kinds of run made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.recipe import AnyRecipe, Recipe, RecipeSource, TrainingRecipe, load_any_recipe

if TYPE_CHECKING:
    from regforge.forge.plan import Plan
    from regforge.images import Engine
    from regforge.publishing import PublishedRun
    from regforge.training.plan import TrainingPlan


def check(
    recipe: AnyRecipe | RecipeSource,
    out: str | os.PathLike[str] | None = None,
    *,
    engine: Engine = "local",
    workers: int | None = None,
) -> Plan | TrainingPlan:
    """Look a recipe of either kind over and say what its run would do; touches nothing.

    Args:
        recipe: A recipe, its file, or a mapping of its keys.
        out: The run's folder; `runs/<name>` if left out.
        engine: Where the images of a dataset would be drawn; see `run`.
        workers: As of `run`.

    Raises:
        RegforgeError: It cannot be carried out.
    """
    if not isinstance(recipe, Recipe | TrainingRecipe):
        recipe = load_any_recipe(recipe)
    folder = Path(out) if out is not None else None
    if isinstance(recipe, Recipe):
        from regforge.forge.plan import make_plan

        return make_plan(recipe, folder, engine=engine, workers=workers)
    from regforge.images.ray_cluster import ClusterSettingError
    from regforge.training.plan import make_training_plan

    if engine != "local":
        raise ClusterSettingError(
            f"--engine {engine} draws the images of a dataset, and this recipe trains.",
            hint="Several GPUs train with `accelerate launch`.",
        )
    return make_training_plan(recipe, out=folder)


def publish(run: str | os.PathLike[str], **options: Any) -> PublishedRun:
    """Put what a run made on the Hugging Face Hub, in one commit: its dataset, or its model.

    Args:
        run: What `run` or `train` returned, or its folder.
        options: As of `publish_run` and `publish_model`: repo_id, private, tag, license_id,
            create_pr, reporter.

    Raises:
        RegforgeError: It cannot be published; nothing has been uploaded.
    """
    from regforge.publishing.datasets import publish_run
    from regforge.publishing.models import publish_model
    from regforge.runs import is_training_run

    return (publish_model if is_training_run(run) else publish_run)(Path(run), **options)
