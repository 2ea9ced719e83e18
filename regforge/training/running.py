"""A training run from recipe to weights: loads, goes on where it stopped, saves, draws, finishes.

    DIR/lora/pytorch_lora_weights.safetensors        the result (`method: lora`)
    DIR/model/                                       the result (`method: full`)
    DIR/checkpoints/step-000500/                     to go on from
    DIR/validation/step-000500.webp                  what the model drew then
    DIR/snapshots/step-000500/                       what would have been the result then
    DIR/README.md samples.webp images/ loss.svg      for people
    DIR/log.jsonl state.json recipe.yaml             for programs

Knows the order of things and what goes from one to the next, and no part's inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.devices import is_out_of_memory, pick_device
from regforge.journal import Journal, Reporter, Task
from regforge.recipe import (
    RecipeSource,
    TrainingRecipe,
    checked,
    load_training_recipe,
    recipe_digest,
)
from regforge.runs import TrainingFolder
from regforge.training.batches import not_finite, out_of_memory
from regforge.training.card import write_card
from regforge.training.data import check_folders, with_dataset
from regforge.training.examples import Examples
from regforge.training.families import find_base_model, open_family
from regforge.training.processes import Processes, StopSignals, start_processes
from regforge.training.recording import (
    Record,
    TrainedModel,
    ValidationSampler,
    final_loss,
    history,
    peak_memory,
    write_curve,
    write_grid,
    write_images,
)
from regforge.training.saving import result_path, save_result

if TYPE_CHECKING:
    import torch

    from regforge.training.checkpoints import Checkpoints
    from regforge.training.families.base import Family
    from regforge.training.loop import Loop, StepLosses
    from regforge.training.recording import Sample
    from regforge.training.weights import Trainable

_READ_EVERY = 10
"""Steps between two reads of the losses; each makes the host wait for the device."""

_IMAGES_ON_THE_WAY, _IMAGES_AT_THE_END = 2, 4


def train(
    recipe: TrainingRecipe | RecipeSource,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> TrainedModel:
    """Carry out a training recipe, or go on with its run.

    Killed at any instant, it loses the steps since the last checkpoint; SIGTERM and Ctrl-C save
    first. Called again, it goes on, and ends with what it would have ended with. Under
    `accelerate launch` all processes call it; the first one writes.

    Args:
        recipe: What to do: a recipe, its file, or a mapping of its keys; see
            `load_training_recipe`.
        out: The run's folder; `runs/<name>` if left out.
        fresh: Delete what an earlier run made in the folder.
        reporter: Where progress goes; standard error by default.

    Raises:
        KeyboardInterrupt: Interrupted; everything is saved.
        RegforgeError: Something the user can put right; the message says what.
    """
    if not isinstance(recipe, TrainingRecipe):
        recipe = load_training_recipe(recipe)
    recipe = checked(recipe)
    processes = start_processes(pick_device(recipe.device, "device"))
    if not processes.is_main:
        reporter = Reporter(quiet=True)
    folder = TrainingFolder(Path(out) if out is not None else recipe.folder)
    check_folders(recipe, folder.path)
    with StopSignals() as stop:
        run = _Run(recipe, folder, processes, reporter or Reporter(), stop)
        with run.locked(fresh=fresh):
            return run.carry_out()


class _Run:
    """One call of `train`. `_open` loads what the other steps work with."""

    family: Family
    trainable: Trainable
    loop: Loop
    checkpoints: Checkpoints
    sampler: ValidationSampler
    record: Record
    device: torch.device
    dataset_revision: str | None

    def __init__(
        self,
        recipe: TrainingRecipe,
        folder: TrainingFolder,
        processes: Processes,
        reporter: Reporter,
        stop: StopSignals,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.processes = processes
        self.reporter = reporter
        self.stop = stop
        self.steps = recipe.optimizer.steps
        self.start = time.monotonic()
        self.now = "at the start"  # what is being done, for errors

    @contextmanager
    def locked(self, *, fresh: bool) -> Iterator[None]:
        """Hold the folder; of several processes, the first one does, and the others wait for it."""
        if not self.processes.is_main:
            self.processes.wait()
            yield
            return
        with self.folder.locked():
            fresh = fresh or self.recipe.checkpoint.resume == "never"
            if self.folder.own(self.recipe, fresh=fresh):
                self.reporter.say(f"Going on with {self.folder.path}")
            self.processes.wait()
            yield

    def carry_out(self) -> TrainedModel:
        """Do what is left of the run.

        Raises:
            TrainingFailed: Out of memory, or the loss is not a number any more.
        """
        done = self._finished()
        if done is not None:
            self.reporter.say(f"Nothing to do: all {done.steps} steps are done.")
            self._say_what_was_missed(done.steps)
            return done
        try:
            self._open()
            try:
                self._train()
                self.stop.deferred = False
                return self._finish()
            finally:
                self.record.close()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self.recipe, self.now) from error

    def _finished(self) -> TrainedModel | None:
        """What an earlier session made, if nothing is left to do."""
        made = self.folder.state().get("finished")
        if not made or made["steps"] != self.steps:
            return None
        paths = (self.folder.path / made["weights"], self.folder.path / "samples.webp")
        return self._result(made) if all(path.exists() for path in paths) else None

    def _result(self, made: dict[str, Any]) -> TrainedModel:
        return TrainedModel(
            folder=self.folder.path,
            weights=self.folder.path / made["weights"],
            steps=made["steps"],
            seconds=time.monotonic() - self.start,
            instance_loss=made["instance_loss"],
            prior_loss=made["prior_loss"],
            peak_memory=made["peak_memory"],
        )

    # ------------------------------------------------------------------------------------ opening

    def _open(self) -> None:
        """Make the dataset if need be, load the model, and prepare the examples.

        Raises:
            RegforgeError: Something of it is not there, or cannot be trained on.
        """
        import torch

        from regforge.training.checkpoints import Checkpoints
        from regforge.training.loop import Loop, precision_of
        from regforge.training.weights import attach

        recipe, processes, path = self.recipe, self.processes, self.folder.path
        digest = recipe_digest(recipe)  # of the recipe as it was given
        self.now = "while the model was looked for"
        find_base_model(recipe)  # before hours go into its regularization images
        self.now = "while the regularization images were made"
        recipe = with_dataset(recipe, is_main=processes.is_main, reporter=self.reporter)
        self.now = "while the model was loaded"
        self.reporter.say(f"Loading {recipe.base_model}")
        self.device = processes.device or pick_device(recipe.device, "device")
        precision = precision_of(recipe, self.device)
        journal = Journal(path if processes.is_main else None)
        self.record = Record(recipe, path, journal, quiet=not processes.is_main)
        self.family = open_family(recipe, self.device, precision.weights)
        examples = Examples(
            recipe,
            self.family,
            device=self.device,
            reporter=self.reporter,
            processes=processes.count,
            process=processes.index,
        )
        self.dataset_revision = examples.revision
        for note in [*(self.family.token.notes if self.family.token else ()), *examples.notes]:
            self.reporter.say(note)
        self.now = "while images and captions were encoded"
        self.sampler = ValidationSampler(
            recipe, self.family, device=self.device, precision=precision
        )
        examples.prepare()
        self.now = "while the denoiser was loaded"
        torch.manual_seed(recipe.seed)  # a new LoRA begins with random numbers
        batches, target = examples.batches, recipe.regularization.target
        keep_base = batches.twins > 0 or (target == "teacher" and batches.has_prior)
        keep_base |= recipe.regularization.drift_penalty > 0
        self.trainable = attach(self.family, recipe.method, keep_base=keep_base)
        if recipe.optimizer.gradient_checkpointing:
            self.trainable.checkpoint_gradients()
        self.loop = Loop(
            recipe,
            self.family,
            self.trainable,
            examples,
            device=self.device,
            precision=precision,
            processes=processes,
        )
        self.checkpoints = Checkpoints(
            path / "checkpoints", keep=recipe.checkpoint.keep, digest=digest
        )

    # ----------------------------------------------------------------------------------- training

    def _train(self) -> None:
        """All steps that are left."""
        from regforge.training.loop import Losses

        every, snapshots = self.recipe.checkpoint.every, self.recipe.checkpoint.snapshots
        draws = self.recipe.validation.every
        saved = 0
        if (state := self.checkpoints.newest(at_most=self.steps)) is not None:
            self.loop.restore(state)
            saved = state.step
            self.reporter.say(f"Going on after step {saved}.")
        self._save_snapshot(saved)
        self._say_what_was_missed(saved)
        waiting = Losses()
        with self.reporter.task("training", self.steps, "steps", done=saved) as task:
            self.record.restart_clock()
            self.stop.deferred = True
            for step in range(saved + 1, self.steps + 1):
                self.now = f"at step {step}"
                waiting.add(step, *self.loop.step(step - 1))
                stopped = self.stop.requested
                if self.processes.count > 1:  # they ask one another only now and then
                    stopped = step % _READ_EVERY == 0 and self.processes.any(stopped)
                to_save = stopped or step % every == 0 or step == self.steps
                to_draw = draws and step % draws == 0 and step < self.steps
                if not (to_save or to_draw or step in snapshots or step % _READ_EVERY == 0):
                    continue
                self._note(waiting.read(), task)
                self._save_snapshot(step)  # before the checkpoint: nobody comes back to before it
                if to_save:
                    self._save(step)
                if stopped:
                    self._interrupt(step)
                if to_draw:
                    self._draw(step)
        self.checkpoints.wait()

    def _note(self, losses: list[StepLosses], task: Task) -> None:
        """Record losses, show them, and see that they are numbers.

        Raises:
            TrainingFailed: They are not.
        """
        bad = next((each for each in losses if not each.is_finite), None)
        self.record.steps([each for each in losses if bad is None or each.step < bad.step])
        if bad is not None:
            self.checkpoints.wait()
            saved = self.checkpoints.all()
            self.record.journal.event("not_finite", step=bad.step)
            raise not_finite(self.recipe, bad.step, saved[-1] if saved else None)
        if losses:
            instance = sum(each.instance for each in losses) / len(losses)
            prior = sum(each.prior for each in losses) / len(losses)
            task.note(f"loss {instance:.4f}" + (f" + {prior:.4f}" if self.loop.has_prior else ""))
            task.advance(len(losses))

    def _save(self, step: int) -> None:
        if self.processes.is_main:
            self.checkpoints.save(self.loop.state(step))

    def _save_snapshot(self, step: int) -> None:
        """The result so far, if the recipe wants it after this step."""
        if self.processes.is_main and step in self.recipe.checkpoint.snapshots:
            self.now = f"while the weights of step {step} were saved"
            with self.loop.result():
                save_result(self.family, self.trainable, self.folder.path, step=step)
            self.record.restart_clock()

    def _say_what_was_missed(self, done: int) -> None:
        """Snapshots that were asked for when their steps were over."""
        path, method, word = self.folder.path, self.recipe.method, self.recipe.subject.word
        missed = [
            str(step)
            for step in self.recipe.checkpoint.snapshots
            if step <= done and not result_path(path, method, word, step).exists()
        ]
        if missed:
            steps, was = ("steps", "were") if len(missed) > 1 else ("step", "was")
            self.reporter.say(
                f"No snapshot of {steps} {', '.join(missed)}: trained before it {was} asked for; "
                "--fresh starts over."
            )

    def _interrupt(self, step: int) -> None:
        """Stop by KeyboardInterrupt, now that all is saved."""
        self.checkpoints.wait()
        self.record.journal.event("stopped", step=step)
        self.reporter.say(f"Stopped after step {step} of {self.steps}; all of it is saved.")
        raise KeyboardInterrupt

    def _draw(self, step: int) -> None:
        """A validation grid; the first process draws, the others wait."""
        if self.processes.is_main:
            self.now = f"while images were drawn after step {step}"
            try:
                with self.loop.result():
                    samples = self.sampler.draw(
                        _IMAGES_ON_THE_WAY, stopped=lambda: self.stop.requested
                    )
            except KeyboardInterrupt:
                self._save(step)
                self._interrupt(step)
            write_grid(samples, self.folder.path / "validation" / f"step-{step:06d}.webp")
            self._record_images(samples, step)
        self.processes.wait()
        self.record.restart_clock()

    def _record_images(self, samples: Sequence[Sample], step: int) -> None:
        """Send images to the tracker, and say why they are black if they are."""
        self.record.images(step, [each.image for each in samples])
        count = sum(each.not_finite for each in samples)
        if count:
            self.record.journal.event("images_not_finite", step=step, images=count)
            self.reporter.say(
                f"{count} of the {len(samples)} images drawn after step {step} are black: their "
                "numbers overflowed (NaN). Where the losses are numbers, optimizer.precision: fp32 "
                "or bf16 helps; where it does not, the weights are spoilt: lower optimizer.lr."
            )

    def _finish(self) -> TrainedModel:
        """Weights, samples, card: everything a finished run leaves."""
        path, entries = self.folder.path, history(self.folder.path)
        about = {
            "base_revision": self.family.source.revision,
            "dataset_revision": self.dataset_revision,
            "family": self.family.name,
        }
        made: dict[str, Any] = {
            "steps": self.steps,
            "instance_loss": final_loss(entries, "instance_loss"),
            "prior_loss": final_loss(entries, "prior_loss") if self.loop.has_prior else None,
            "peak_memory": peak_memory(self.device),
            **about,
        }
        if self.processes.is_main:
            self.now = "while the result was saved"
            self.reporter.say("Saving the weights, and drawing what they have learned")
            with self.loop.result():
                weights = save_result(self.family, self.trainable, path, name=self.recipe.name)
                samples = self.sampler.draw(_IMAGES_AT_THE_END)
            write_grid(samples, path / "samples.webp")
            write_images(samples, path)
            self._record_images(samples, self.steps)
            write_curve(entries, path / "loss.svg")
            write_card(self.recipe, path, **about)
            made["weights"] = str(weights.relative_to(path))
            self.folder.remember(finished=made)
        self.processes.wait()
        return self._result(self.folder.state()["finished"])
