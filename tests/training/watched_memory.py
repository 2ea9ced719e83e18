"""Trains, in a process of its own, and prints what it held at most in each phase, in bytes.

    python watched_memory.py BASE_MODEL FOLDER

Counted is the process's resident memory beyond what it had before the model was opened; `kept` is
what a forward pass keeps for the gradient, weights left out.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from torch.autograd.graph import saved_tensors_hooks
from training_runs import QUIET, recipe

from regforge.training import running
from regforge.training.families import base
from regforge.training.loop import Loop


def resident() -> int:
    """Bytes of main memory that this process has."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Notes the most that was held in each phase, from another thread."""

    def __init__(self) -> None:
        self.phase = "before"
        self.most: dict[str, int] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        wait = threading.Event()
        while not wait.wait(0.002):
            phase, now = self.phase, resident()
            self.most[phase] = max(now, self.most.get(phase, 0))

    def enter(self, phase: str) -> Any:
        """A hook that begins a phase."""

        def begin(*_: Any) -> None:
            self.phase = phase

        return begin


def main(model: str, folder: str) -> None:
    watch = Watch()
    open_family, load_part = running.open_family, base.load_part

    def opened(*args: Any, **more: Any) -> Any:
        before = resident()
        watch.most["before"] = before
        watch.phase = "captions"
        family = open_family(*args, **more)
        family.pipeline.vae.encoder.register_forward_pre_hook(watch.enter("latents"))
        return family

    def loaded(*args: Any, **more: Any) -> Any:
        watch.phase = "loading"
        return load_part(*args, **more)

    draw = running.ValidationSampler.draw

    def drawn(*args: Any, **more: Any) -> Any:
        watch.phase = "drawing"
        return draw(*args, **more)

    running.ValidationSampler.draw = drawn  # type: ignore[method-assign]
    kept: dict[int, int] = {}
    example_losses = Loop.example_losses

    def losses(loop: Loop, batch: Any) -> Any:
        weights = {each.untyped_storage().data_ptr() for each in loop._family.denoiser.parameters()}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        watch.phase = "steps"
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            return example_losses(loop, batch)

    running.open_family, base.load_part = opened, loaded  # type: ignore[attr-defined]
    Loop.example_losses = losses  # type: ignore[method-assign]
    running.train(recipe(base_model=model, optimizer={"steps": 1}), folder, reporter=QUIET)
    before = watch.most.pop("before")
    phases = {phase: most - before for phase, most in watch.most.items()}
    print(json.dumps(phases | {"kept": sum(kept.values())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
