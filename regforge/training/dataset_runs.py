"""Makes the regularization dataset that a training recipe names by its recipe.

The run lies where `regforge run` puts it, in runs/<its name>, and is used as it is when it is
finished. Knows what a finished run is; `regforge.forge` knows how to make one.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

from regforge.forge.folder import RunFolder, RunFolderError
from regforge.progress import Reporter
from regforge.recipe import Recipe, TrainingRecipe, dataset_recipe_of, recipe_digest
from regforge.training.problems import TrainingSetup

_LOOK_EVERY = 0.5  # seconds


def with_dataset(recipe: TrainingRecipe, *, is_main: bool, reporter: Reporter) -> TrainingRecipe:
    """The recipe with a dataset in place of the recipe of one, which is run if need be.

    Args:
        recipe: What is trained.
        is_main: Whether this is the process that runs it; the others wait until it is finished,
            for as long as that takes.
        reporter: Where progress goes.

    Returns:
        The same recipe if it names a dataset, or none.

    Raises:
        RegforgeError: The dataset cannot be made.
    """
    made_by = dataset_recipe_of(recipe)
    if made_by is None:
        return recipe
    folder = RunFolder(Path("runs") / made_by.name)
    if not is_main:
        # Not by a barrier: those give up after some minutes. Our launcher ends us if it fails.
        while not is_finished(folder, made_by):
            time.sleep(_LOOK_EVERY)
    elif not is_finished(folder, made_by):
        _run(made_by, folder, reporter)
    prior = recipe.regularization.model_copy(update={"dataset": str(folder.path)})
    return recipe.model_copy(update={"regularization": prior})


def _run(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> None:
    from regforge import forge

    named = f"{recipe.prompts.count * recipe.render.images_per_prompt:,} regularization images"
    reporter.say(f"First the {named}, in {folder.path}")
    try:
        forge.run(recipe, out=folder.path, reporter=reporter)
    except RunFolderError as error:  # its hints are for `regforge run`
        raise TrainingSetup(
            f"The regularization images cannot be made: {error.message}",
            hint="Run their recipe yourself, with --out or --fresh, and name the run: "
            "--set regularization.dataset=RUN",
        ) from error
    gc.collect()  # what has drawn them makes room


def is_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's run with all its images, and the dataset of them."""
    state = folder.state()
    images = recipe.prompts.count * recipe.render.images_per_prompt
    same = state.get("recipe_digest") == recipe_digest(recipe)
    return same and state.get("images") == images and folder.dataset.is_dir()
