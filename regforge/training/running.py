"""A training run from recipe to weights: loads, goes on where it stopped, saves, draws, finishes.

    DIR/recipe.yaml                                  the recipe in full
    DIR/checkpoints/step-000500/                     to go on from
    DIR/validation/step-000500.webp                  what the model drew then
    DIR/snapshots/step-000500/                       what would have been the result then
    DIR/lora/pytorch_lora_weights.safetensors        the result (`method: lora`)
    DIR/model/                                       the result (`method: full`)
    DIR/README.md samples.webp images/ loss.svg    for people
    DIR/log.jsonl state.json                         for programs

Knows the order of things and what goes from one to the next, and no part's inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.devices import is_out_of_memory, pick_device
from regforge.progress import Reporter, Task
from regforge.recipe import TrainingRecipe, check_training_recipe
from regforge.runs import TrainingFolder
from regforge.training.dataset_runs import check_folders
from regforge.training.opening import OpenRun, open_run
from regforge.training.problems import not_finite, out_of_memory
from regforge.training.recording import history, write_curve
from regforge.training.results import TrainedModel, final_loss, peak_memory
from regforge.training.stopping import Stop, stopping

if TYPE_CHECKING:
    from regforge.training.loop import StepLosses
    from regforge.training.processes import Processes
    from regforge.training.validation import Drawing

_READ_EVERY = 10
"""Steps between two looks at the losses; each look makes the host wait for the device."""

_IMAGES_ON_THE_WAY, _IMAGES_AT_THE_END = 2, 4


def train(
    recipe: TrainingRecipe,
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
        recipe: What to do; see `regforge.recipe.load_training_recipe`.
        out: The run's folder; `runs/<name>` if left out.
        fresh: Delete what an earlier run made in the folder.
        reporter: Where progress goes; standard error by default.

    Returns:
        What was made.

    Raises:
        KeyboardInterrupt: Somebody asked to stop; everything is saved.
        RegforgeError: Something the user can put right; the message says what.
    """
    from regforge.training.processes import start_processes

    check_training_recipe(recipe)
    processes = start_processes(pick_device(recipe.device, "device"))
    if not processes.is_main:
        reporter = Reporter(quiet=True)
    folder = TrainingFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    check_folders(recipe, folder.path)
    session = _Session(recipe, folder, processes, reporter or Reporter())
    with stopping() as stop, _claimed(session, fresh=fresh):
        return session.run(stop)


@contextmanager
def _claimed(session: _Session, *, fresh: bool) -> Iterator[None]:
    """Hold the folder; of several processes, the first one does, and the others wait for it."""
    processes, folder, recipe = session.processes, session.folder, session.recipe
    if not processes.is_main:
        processes.wait()
        yield
        return
    with folder.locked():
        fresh = fresh or recipe.checkpoint.resume == "never"
        if folder.own(recipe, fresh=fresh):
            session.reporter.say(f"Going on with {folder.path}")
        processes.wait()
        yield


@dataclass
class _Session:
    """One call of `train`; the parts that it puts together."""

    recipe: TrainingRecipe
    folder: TrainingFolder
    processes: Processes
    reporter: Reporter
    start: float = field(default_factory=time.monotonic)
    at: str = "at the start"

    def run(self, stop: Stop) -> TrainedModel:
        try:
            return self._run(stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self.recipe, self.at) from error

    def _run(self, stop: Stop) -> TrainedModel:
        done = self._finished()
        if done is not None:
            self.reporter.say(f"Nothing to do: all {done.steps} steps are done.")
            self._say_what_was_missed(done.steps)
            return done
        run = open_run(self.recipe, self.folder.path, self.processes, self.reporter, self._begin)
        try:
            self._train(run, stop)
            stop.deferred = False
            return self._finish(run)
        finally:
            run.record.close()

    # --------------------------------------------------------------------------------------- parts

    def _begin(self, doing: str) -> None:
        """Note down what is being done, such as `at step 12`."""
        self.at = doing

    def _finished(self) -> TrainedModel | None:
        """What an earlier session made, if nothing is left to do."""
        made = self.folder.state().get("finished")
        if not made or made["steps"] != self.recipe.optimizer.steps:
            return None
        weights = self.folder.path / made["weights"]
        if not weights.exists() or not (self.folder.path / "samples.webp").exists():
            return None
        return self._result(made, weights)

    def _result(self, made: dict[str, Any], weights: Path) -> TrainedModel:
        return TrainedModel(
            folder=self.folder.path,
            weights=weights,
            steps=made["steps"],
            seconds=time.monotonic() - self.start,
            instance_loss=made["instance_loss"],
            prior_loss=made["prior_loss"],
            peak_memory=made["peak_memory"],
        )

    def _train(self, run: OpenRun, stop: Stop) -> None:
        """All steps that are left."""
        from regforge.training.loop import Losses

        steps, every = self.recipe.optimizer.steps, self.recipe.checkpoint.every
        saved = self._restore(run)
        self._keep(run, saved)
        self._say_what_was_missed(saved)
        waiting = Losses()
        with self.reporter.task("training", steps, "steps", done=saved) as task:
            run.record.pause_ends()
            stop.deferred = True
            for step in range(saved + 1, steps + 1):
                self.at = f"at step {step}"
                waiting.add(step, *run.loop.step(step - 1))
                stopped = self._stopped(stop, step)
                to_save = stopped or step % every == 0 or step == steps
                to_draw = self._validates(step)
                to_keep = step in self.recipe.checkpoint.snapshots
                if not (to_save or to_draw or to_keep or step % _READ_EVERY == 0):
                    continue
                self._note(run, waiting.read(), task)
                self._keep(run, step)  # before the checkpoint: nobody comes back to before it
                if to_save:
                    self._save(run, step)
                if stopped:
                    self._give_way(run, step)
                if to_draw:
                    self._draw(run, step, stop)
        run.checkpoints.wait()

    def _restore(self, run: OpenRun) -> int:
        """Go on from the newest checkpoint; returns how many steps are done."""
        snapshot = run.checkpoints.newest(at_most=self.recipe.optimizer.steps)
        if snapshot is None:
            return 0
        run.loop.restore(snapshot)
        self.reporter.say(f"Going on after step {snapshot.step}.")
        return snapshot.step

    def _stopped(self, stop: Stop, step: int) -> bool:
        """Whether to stop; several processes ask one another only now and then."""
        if self.processes.count == 1:
            return stop.requested
        return step % _READ_EVERY == 0 and self.processes.any(stop.requested)

    def _validates(self, step: int) -> bool:
        every = self.recipe.validation.every
        return bool(every) and step % every == 0 and step < self.recipe.optimizer.steps

    def _note(self, run: OpenRun, losses: list[StepLosses], task: Task) -> None:
        """Write losses down, show them, and see that they are numbers.

        Raises:
            TrainingFailed: They are not.
        """
        bad = next((each for each in losses if not each.is_finite), None)
        good = [each for each in losses if bad is None or each.step < bad.step]
        run.record.steps(good)
        if bad is not None:
            run.checkpoints.wait()
            saved = run.checkpoints.all()
            run.journal.event("not_finite", step=bad.step)
            raise not_finite(self.recipe, bad.step, saved[-1] if saved else None)
        if losses:
            instance = sum(each.instance for each in losses) / len(losses)
            prior = sum(each.prior for each in losses) / len(losses)
            task.note(f"loss {instance:.4f}" + (f" + {prior:.4f}" if run.loop.has_prior else ""))
            task.advance(len(losses))

    def _save(self, run: OpenRun, step: int) -> None:
        if self.processes.is_main:
            run.checkpoints.save(run.loop.snapshot(step, {}))

    def _keep(self, run: OpenRun, step: int) -> None:
        """The result so far, if the recipe wants it after this step."""
        from regforge.training.saving import save_snapshot

        if self.processes.is_main and step in self.recipe.checkpoint.snapshots:
            self.at = f"while the weights of step {step} were saved"
            with run.loop.result():
                save_snapshot(run.family, run.trainable, self.folder.path, step)
            run.record.pause_ends()

    def _say_what_was_missed(self, done: int) -> None:
        """Snapshots that were asked for when their steps were over."""
        from regforge.training.saving import snapshot_path

        path, method = self.folder.path, self.recipe.method
        missed = [
            str(step)
            for step in self.recipe.checkpoint.snapshots
            if step <= done and not snapshot_path(path, method, step).exists()
        ]
        if missed:
            steps, was = ("steps", "were") if len(missed) > 1 else ("step", "was")
            self.reporter.say(
                f"No snapshot of {steps} {', '.join(missed)}: trained before it {was} asked for; "
                "--fresh starts over."
            )

    def _give_way(self, run: OpenRun, step: int) -> None:
        """Stop, now that all is saved.

        Raises:
            KeyboardInterrupt: Always.
        """
        run.checkpoints.wait()
        run.journal.event("stopped", step=step)
        steps = self.recipe.optimizer.steps
        self.reporter.say(f"Stopped after step {step} of {steps}; all of it is saved.")
        raise KeyboardInterrupt

    def _draw(self, run: OpenRun, step: int, stop: Stop) -> None:
        """A validation grid; the first process draws, the others wait."""
        from regforge.training.validation import write_grid

        if self.processes.is_main:
            self.at = f"while images were drawn after step {step}"
            try:
                with run.loop.result():
                    drawn = run.painter.draw(_IMAGES_ON_THE_WAY, stopped=lambda: stop.requested)
            except KeyboardInterrupt:
                self._save(run, step)
                self._give_way(run, step)
            write_grid(drawn, self.folder.path / "validation" / f"step-{step:06d}.webp")
            self._say_what_overflowed(run, drawn, step)
            run.record.images(step, [each.image for each in drawn])
        self.processes.wait()
        run.record.pause_ends()

    def _say_what_overflowed(self, run: OpenRun, drawn: Sequence[Drawing], step: int) -> None:
        """Tell people why validation images are black, if they are."""
        count = sum(each.not_finite for each in drawn)
        if count:
            run.journal.event("images_not_finite", step=step, images=count)
            self.reporter.say(
                f"{count} of the {len(drawn)} images drawn after step {step} are black: their "
                "numbers overflowed (NaN). Where the losses are numbers, optimizer.precision: fp32 "
                "or bf16 helps; where it does not, the weights are spoilt: lower optimizer.lr."
            )

    def _finish(self, run: OpenRun) -> TrainedModel:
        """Weights, samples, card: everything a finished run leaves."""
        from regforge.digests import revision_of
        from regforge.training.saving import save_result, write_card
        from regforge.training.validation import write_grid, write_images

        path, entries = self.folder.path, history(self.folder.path)
        about = {
            "base_revision": revision_of(run.family.source),
            "dataset_revision": run.dataset_revision,
            "family": run.family.name,
        }
        made: dict[str, Any] = {
            "steps": self.recipe.optimizer.steps,
            "instance_loss": final_loss(entries, "instance_loss"),
            "prior_loss": final_loss(entries, "prior_loss") if run.loop.has_prior else None,
            "peak_memory": peak_memory(run.device),
            **about,
        }
        if self.processes.is_main:
            self.at = "while the result was saved"
            self.reporter.say("Saving the weights, and drawing what they have learned")
            with run.loop.result():
                weights = save_result(run.family, run.trainable, path, name=self.recipe.name)
                drawn = run.painter.draw(_IMAGES_AT_THE_END)
            write_grid(drawn, path / "samples.webp")
            self._say_what_overflowed(run, drawn, made["steps"])
            write_images(drawn, path)
            run.record.images(made["steps"], [each.image for each in drawn])
            write_curve(entries, path / "loss.svg")
            write_card(self.recipe, path, **about)
            made["weights"] = str(weights.relative_to(path))
            self.folder.remember(finished=made)
        self.processes.wait()
        made = self.folder.state()["finished"]
        return self._result(made, path / made["weights"])
