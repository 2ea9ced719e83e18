"""What a session trains with: dataset, model, examples and loop, loaded and put together.

Knows in which order, and when memory can be given back; knows nothing about steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.devices import free_memory, pick_device
from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.recipe import TrainingRecipe, training_digest
from regforge.training.recording import Record

if TYPE_CHECKING:
    import torch

    from regforge.training.checkpoints import Checkpoints
    from regforge.training.interface import Family
    from regforge.training.loop import Loop
    from regforge.training.processes import Processes
    from regforge.training.validation import Painter
    from regforge.training.weights import Trainable


@dataclass(frozen=True)
class OpenRun:
    """What is open while a session trains."""

    family: Family
    trainable: Trainable
    loop: Loop
    checkpoints: Checkpoints
    painter: Painter
    record: Record
    journal: Journal
    device: torch.device
    dataset_revision: str | None


def open_run(
    recipe: TrainingRecipe,
    folder: Path,
    processes: Processes,
    reporter: Reporter,
    begin: Callable[[str], None],
) -> OpenRun:
    """Make the dataset if need be, load the model, and prepare the examples.

    Args:
        recipe: What to do.
        folder: The run's.
        processes: All of them, and which one this is.
        reporter: Where progress goes.
        begin: Told what is being done, such as "while the model was loaded": for messages.

    Raises:
        RegforgeError: Something of it is not there, or cannot be trained on.
    """
    import torch

    from regforge.training.checkpoints import Checkpoints
    from regforge.training.dataset_runs import with_dataset
    from regforge.training.examples import open_examples
    from regforge.training.families import find_base_model, open_family
    from regforge.training.loop import Loop
    from regforge.training.optimizers import precision_of
    from regforge.training.validation import Painter
    from regforge.training.weights import attach

    digest = training_digest(recipe)  # of the recipe as it was given
    begin("while the model was looked for")
    find_base_model(recipe)  # before hours go into its regularization images
    begin("while the regularization images were made")
    recipe = with_dataset(recipe, is_main=processes.is_main, reporter=reporter)
    begin("while the model was loaded")
    reporter.say(f"Loading {recipe.base_model}")
    device = processes.device or pick_device(recipe.device, "device")
    precision = precision_of(recipe, device)
    journal = Journal(folder if processes.is_main else None)
    record = Record(recipe, folder, journal, quiet=not processes.is_main)
    family = open_family(recipe, device, precision.weights)
    examples = open_examples(
        recipe,
        family,
        cache_folder=None,
        device=device,
        reporter=reporter,
        processes=processes.count,
        process=processes.index,
    )
    for note in examples.notes:
        reporter.say(note)
    begin("while images and captions were encoded")
    examples.prepare()
    painter = Painter(recipe, family, device=device, precision=precision)
    if recipe.data.cache != "none":
        _release(recipe, family, device)
    torch.manual_seed(recipe.seed)  # a new LoRA begins with random numbers
    teacher = recipe.regularization.target == "teacher" and examples.images > 0
    trainable = attach(family, recipe.method, teacher=teacher)
    if recipe.optimizer.gradient_checkpointing:
        trainable.checkpoint_gradients()
    loop = Loop(
        recipe,
        family,
        trainable,
        examples,
        device=device,
        precision=precision,
        processes=processes,
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.checkpoint.keep, digest=digest)
    return OpenRun(
        family,
        trainable,
        loop,
        checkpoints,
        painter,
        record,
        journal,
        device,
        examples.revision,
    )


def _release(recipe: TrainingRecipe, family: Family, device: torch.device) -> None:
    """Give back the memory of what is not needed between here and the next images."""
    if not recipe.method.text_encoder:
        family.release_text_encoders()
    if device.type != "cpu":
        family.pipeline.vae.to("cpu")
        free_memory()
