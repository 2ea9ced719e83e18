"""Makes the regularization dataset that a training recipe names by its recipe.

The run lies where `regforge run` puts it, in runs/<its name>, and is used as it is when it is
finished. Knows what a finished run is; `regforge.forge` knows how to make one.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

from regforge.progress import Reporter
from regforge.recipe import Recipe, TrainingRecipe, dataset_recipe_of, recipe_digest
from regforge.runs import FolderInUse, RunFolder, RunFolderError
from regforge.training.problems import TrainingSetup

_LOOK_EVERY = 0.5  # seconds


def dataset_folder(recipe: Recipe) -> RunFolder:
    """Where a dataset that is named by its recipe lies, or will lie."""
    return RunFolder(Path("runs") / recipe.name)


def check_folders(recipe: TrainingRecipe, folder: Path) -> None:
    """See that the training and the dataset that it names by its recipe do not want one folder.

    Args:
        recipe: What is trained.
        folder: The training run's.

    Raises:
        TrainingSetup: They do.
    """
    made_by = dataset_recipe_of(recipe)
    if made_by is not None and dataset_folder(made_by).path.resolve() == folder.resolve():
        raise TrainingSetup(
            f"The training and its regularization images would both lie in {folder}.",
            hint=f"Give the training recipe another name than {made_by.name!r}, or choose another "
            "folder with --out.",
        )


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
    folder = dataset_folder(made_by)
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

    named = f"{images_of(recipe):,} regularization images"
    reporter.say(f"First the {named}, in runs/{recipe.name}")
    while not is_finished(folder, recipe):
        try:
            forge.run(recipe, out=folder.path, reporter=reporter)
        except FolderInUse:  # as when two trainings with the same images start together
            reporter.say("Another regforge is making them; waiting until it is done.")
            _wait_for(folder)
        except RunFolderError as error:  # its hints are for `regforge run`
            raise TrainingSetup(
                f"The regularization images cannot be made: {error.message}",
                hint=f"`regforge run {recipe.source or 'RECIPE'} --fresh` starts them over (what "
                "is there is deleted). Or run that recipe with --out RUN, and here use "
                "--set regularization.dataset=RUN",
            ) from error
    gc.collect()  # what has drawn them makes room
    reporter.say("Now the training")


def _wait_for(folder: RunFolder) -> None:
    """Until no other process holds a folder."""
    while True:
        try:
            with folder.locked():
                return
        except FolderInUse:
            time.sleep(_LOOK_EVERY)


def images_of(recipe: Recipe) -> int:
    """How many images a dataset recipe asks for."""
    return recipe.prompts.count * recipe.render.images_per_prompt


def is_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's run with all its images, and the dataset of them."""
    same = folder.digest == recipe_digest(recipe)
    return same and folder.state().get("images") == images_of(recipe) and folder.dataset.is_dir()
