"""What a training run made, for people and for scripts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.progress import duration

if TYPE_CHECKING:
    import torch

_MEAN_OF = 100
"""The final losses are means over the last so many steps: single ones say little."""


@dataclass(frozen=True)
class TrainedModel:
    """What a training run made.

    Attributes:
        folder: The run's folder.
        weights: The LoRA's file, or the folder of the whole pipeline.
        steps: How many optimizer steps it was trained.
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

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "weights": str(self.weights),
            "samples": str(self.samples),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "instance_loss": self.instance_loss,
            "prior_loss": self.prior_loss,
            "peak_memory": self.peak_memory,
        }

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


def final_loss(entries: list[dict[str, Any]], key: str) -> float:
    """Mean over the last steps of a run's history."""
    if not entries:  # somebody deleted the log
        return 0.0
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
