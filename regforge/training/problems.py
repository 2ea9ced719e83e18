"""What can go wrong while training, in words that say what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regforge.errors import EXIT_USAGE, RegforgeError

if TYPE_CHECKING:
    from pathlib import Path

    from regforge.recipe.training import TrainingRecipe


class TrainingFailed(RegforgeError):
    """Training that cannot go on. What was saved before is kept."""


class TrainingSetup(RegforgeError):
    """Training that cannot begin: the recipe asks for what is not there."""

    exit_code = EXIT_USAGE


class ExamplesError(RegforgeError):
    """Instance or regularization images that cannot be trained on."""

    exit_code = EXIT_USAGE


class FamilyError(RegforgeError):
    """A base model that cannot be trained."""


def out_of_memory(recipe: TrainingRecipe, when: str) -> TrainingFailed:
    """What to change, most useful first, leaving out what the recipe has already."""
    optimizer = recipe.optimizer
    at_once, anew = [], []
    if not optimizer.gradient_checkpointing:
        at_once.append("optimizer.gradient_checkpointing=true")
    if recipe.data.cache == "memory":
        at_once.append("data.cache=disk")
    if optimizer.batch_size > 1:
        accumulated = optimizer.batch_size * optimizer.gradient_accumulation
        anew.append(
            f"optimizer.batch_size=1 with optimizer.gradient_accumulation={accumulated}, which "
            "learns the same"
        )
    if optimizer.precision == "fp32":
        anew.append("optimizer.precision=bf16")
    if recipe.method.kind == "full":
        anew.append("method.kind=lora")
    elif recipe.method.text_encoder:
        anew.append("method.text_encoder=false")
    if optimizer.name == "adamw":
        anew.append("optimizer.name=adamw8bit")
    anew.append("a smaller data.resolution")
    hint = f"Start over (--fresh) with {', or '.join(anew)}."
    if at_once:
        hint = (
            f"Set {' and '.join(at_once)} and go on from what is saved. If that is not enough: "
            + (hint[0].lower() + hint[1:])
        )
    return TrainingFailed(f"Out of memory {when}.", hint=hint)


def not_finite(recipe: TrainingRecipe, step: int, saved: Path | None) -> TrainingFailed:
    """The loss has become infinite or not a number; `saved` is the last checkpoint before that."""
    ways = [f"a lower optimizer.lr (it is {recipe.optimizer.lr:g})"]
    if recipe.optimizer.precision == "fp16":
        ways.append("optimizer.precision=bf16")
    if recipe.optimizer.warmup_steps == 0:
        ways.append("optimizer.warmup_steps=100")
    if recipe.optimizer.max_grad_norm is None:
        ways.append("optimizer.max_grad_norm=1.0")
    kept = f" The last good checkpoint is kept: {saved}." if saved else ""
    return TrainingFailed(
        f"The loss is not a number any more at step {step}; training has stopped.{kept}",
        hint="Start over (--fresh, or another --out) with " + ", or ".join(ways) + ".",
    )
