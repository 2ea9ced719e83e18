"""Numbers of a training run: log.jsonl, trackers, the loss curve, and the result for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge import journal as journals
from regforge.display import Displayed
from regforge.files import write_atomically
from regforge.journal import Journal
from regforge.training.problems import TrainingSetup
from regforge.words import duration

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from regforge.recipe.training import TrainingRecipe
    from regforge.training.loop import StepLosses

_MEAN_OF = 100
"""The final losses are means over the last so many steps: single ones say little."""


@dataclass(frozen=True)
class TrainedModel(Displayed):
    """What a training run made. It stands for its folder wherever a path is expected.

    Attributes:
        weights: The LoRA's file, or the folder of the whole pipeline.
        seconds: Of work in this session.
        instance_loss: Mean over the last 100 steps.
        prior_loss: Likewise; None without regularization.
        peak_memory: Most memory in use in this session, in bytes: the GPU's, or the process's.
    """

    folder: Path
    weights: Path
    steps: int
    seconds: float
    instance_loss: float
    prior_loss: float | None
    peak_memory: int

    @property
    def samples(self) -> Path:
        """An image of what the model draws."""
        return self.folder / "samples.webp"

    def shown_image(self) -> Path:
        """The samples."""
        return self.samples

    def __fspath__(self) -> str:
        return str(self.folder)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        values = vars(self) | {"samples": self.samples, "seconds": round(self.seconds, 1)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}

    def as_text(self) -> str:
        """For people."""
        prior = "" if self.prior_loss is None else f", prior loss {self.prior_loss:.4f}"
        return (
            f"{self.steps:,} steps, {duration(self.seconds)}, at most "
            f"{self.peak_memory / 2**30:.1f} GiB of memory\n"
            f"instance loss {self.instance_loss:.4f}{prior} (mean of the last steps)\n"
            f"weights  {self.weights}\n"
            f"samples  {self.samples}"
        )


class Record:
    """Writes losses and images to the run's log and its tracker, which a quiet process lacks.

    Raises:
        TrainingSetup: The tracker is not installed.
    """

    def __init__(
        self, recipe: TrainingRecipe, folder: Path, journal: Journal, *, quiet: bool = False
    ) -> None:
        self.journal = journal
        self._tracker = None
        self._since = time.monotonic()
        if recipe.tracking != "none" and not quiet:
            self._tracker = _tracker(recipe, folder)

    def steps(self, losses: Sequence[StepLosses]) -> None:
        """Record the means of some steps, under the number of the last."""
        if not losses:
            return
        now = time.monotonic()
        values: dict[str, float] = {
            "instance_loss": sum(each.instance for each in losses) / len(losses),
            "prior_loss": sum(each.prior for each in losses) / len(losses),
            "gradient_norm": losses[-1].gradient,
            "lr": losses[-1].rate,
            "seconds": round((now - self._since) / len(losses), 5),
        }
        self._since = now
        self.journal.event("train_step", step=losses[-1].step, steps=len(losses), **values)
        if self._tracker is not None:
            self._tracker.log(values, step=losses[-1].step)

    def restart_clock(self) -> None:
        """Leave out the time since the last step: something else was done."""
        self._since = time.monotonic()

    def images(self, step: int, images: Sequence[Image.Image]) -> None:
        """Send validation images to the tracker, if it takes some."""
        if self._tracker is None or not hasattr(self._tracker, "log_images"):
            return
        import numpy as np

        stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
        if self._tracker.name == "tensorboard":
            self._tracker.log_images({"validation": stacked}, step=step, dataformats="NHWC")
        else:
            self._tracker.log_images({"validation": list(stacked)}, step=step)

    def close(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            self._tracker.finish()


def _tracker(recipe: TrainingRecipe, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it which process they are in
    kind = LOGGER_TYPE_TO_CLASS[recipe.tracking]
    where = {"logging_dir": folder / "tracking"} if kind.requires_logging_directory else {}
    try:
        tracker = kind(recipe.name, **where)
        tracker.start()
    except ImportError as error:
        raise TrainingSetup(
            f"tracking: {recipe.tracking} is not installed.",
            hint=f"pip install {recipe.tracking}, or use tracking=none and log.jsonl.",
        ) from error
    return tracker


def history(folder: Path) -> list[dict[str, Any]]:
    """The `train_step` entries of a run's log, each step once, in order.

    A run that was killed and resumed has done some steps twice; what was done last counts.
    """
    entries: list[dict[str, Any]] = []
    for entry in journals.read(folder / "log.jsonl"):
        if entry.get("event") == "train_step":
            first = entry["step"] - entry["steps"]
            while entries and entries[-1]["step"] > first:
                entries.pop()
            entries.append(entry)
    return entries


def final_loss(entries: list[dict[str, Any]], key: str) -> float:
    """Mean over the last steps of a run's history; 0 if somebody deleted the log."""
    last = [each for each in entries if each["step"] > entries[-1]["step"] - _MEAN_OF]
    steps = sum(each["steps"] for each in last)
    return float(sum(each[key] * each["steps"] for each in last) / max(1, steps))


def peak_memory(device: torch.device) -> int:
    """Most memory that was in use, in bytes: the GPU's, or else the process's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# ---------------------------------------------------------------------------------- the loss curve

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 34
_POINTS = 200
_COLORS = {"instance": "#0969da", "prior": "#bc4c00"}


def write_curve(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw instance and prior loss over steps, as SVG (matplotlib is no core dependency).

    Many points become at most 200, each the mean of its neighbours: single steps say little, as
    every step draws other times.
    """
    curves = {"instance": _points(entries, "instance_loss")}
    if any(entry["prior_loss"] for entry in entries):
        curves["prior"] = _points(entries, "prior_loss")
    points = [each for curve in curves.values() for each in curve]
    top = max((value for _, value in points), default=0.0) or 1.0
    last = max((step for step, _ in points), default=0.0) or 1.0

    def x(step: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last:.1f}"

    def y(value: float) -> str:
        return f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / (1.05 * top):.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#57606a">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(
            f'<path d="M{_LEFT} {y(top * share)}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>'
            f'<text x="{_LEFT - 6}" y="{y(top * share)}" dy="4" text-anchor="end">'
            f"{top * share:.3g}</text>"
            f'<text x="{x(last * share)}" y="{_HEIGHT - 12}" text-anchor="middle">'
            f"{round(last * share)}</text>"
        )
    for number, (name, curve) in enumerate(curves.items()):
        path_data = " ".join(f"{x(step)},{y(value)}" for step, value in curve)
        lines.append(
            f'<polyline points="{path_data}" fill="none" stroke="{_COLORS[name]}" '
            'stroke-width="1.6" stroke-linejoin="round"/>'
            f'<text x="{_LEFT + 110 * number}" y="20" fill="{_COLORS[name]}">{name} loss</text>'
        )
    write_atomically(path, "\n".join([*lines, "</svg>", ""]))


def _points(entries: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    size = max(1, -(-len(entries) // _POINTS))
    groups = [entries[start : start + size] for start in range(0, len(entries), size)]
    return [
        (group[-1]["step"], sum(entry[key] for entry in group) / len(group)) for group in groups
    ]
