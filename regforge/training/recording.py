"""What a training run tells on its way: losses, images of what it has learned, and the result."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge import journal as journals
from regforge.dataset.card_parts import as_webp, labelled_grid
from regforge.display import Displayed
from regforge.embedded.phrase_banks import with_noun
from regforge.files import write_atomically
from regforge.journal import Journal
from regforge.recipe.training import DEFAULT_PROMPTS
from regforge.training.batches import TrainingSetup, number_of
from regforge.words import duration, subject_name

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from regforge.recipe.training import TrainingRecipe
    from regforge.training.batches import Embeddings
    from regforge.training.families.base import Family
    from regforge.training.loop import Precision, StepLosses


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
        if losses[-1].drift is not None:
            values["drift"] = losses[-1].drift
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
            with redirect_stdout(sys.stderr):
                self._tracker.finish()


def _tracker(recipe: TrainingRecipe, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it which process they are in
    kind = LOGGER_TYPE_TO_CLASS[recipe.tracking]
    where: dict[str, Any] = {}
    if kind.requires_logging_directory:
        where = {"logging_dir": folder / "tracking"}
    elif recipe.tracking == "trackio":  # else each session would be a run of some other name
        where = {"name": folder.name, "resume": "allow" if history(folder) else "never"}
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
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
    for value in _ticks(top):
        lines.append(
            f'<path d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>'
            f'<text x="{_LEFT - 6}" y="{y(value)}" dy="4" text-anchor="end">{value:g}</text>'
        )
    for step in _ticks(last, least=1):
        lines.append(
            f'<text x="{x(step)}" y="{_HEIGHT - 12}" text-anchor="middle">{step:.0f}</text>'
        )
    for number, (name, curve) in enumerate(curves.items()):
        path_data = " ".join(f"{x(step)},{y(value)}" for step, value in curve)
        lines.append(
            f'<polyline points="{path_data}" fill="none" stroke="{_COLORS[name]}" '
            'stroke-width="1.6" stroke-linejoin="round"/>'
            f'<text x="{_LEFT + 110 * number}" y="20" fill="{_COLORS[name]}">{name} loss</text>'
        )
    write_atomically(path, "\n".join([*lines, "</svg>", ""]))


def _ticks(top: float, least: float = 0.0) -> list[float]:
    """Three to six round numbers from 0 up to `top`: 1, 2 or 5 times a power of ten apart."""
    decade = 10.0 ** math.floor(math.log10(top / 4))
    step = max(least, next(n * decade for n in (1, 2, 5, 10) if n * decade >= top / 4))
    return [number * step for number in range(int(top / step * (1 + 1e-9)) + 1)]


def _points(entries: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    size = max(1, -(-len(entries) // _POINTS))
    groups = [entries[start : start + size] for start in range(0, len(entries), size)]
    return [
        (group[-1]["step"], sum(entry[key] for entry in group) / len(group)) for group in groups
    ]


# -------------------------------------------------------------------------------- images on the way

# Drawn with the modules that are being trained, of the same prompts and seeds each time, so that
# only the weights differ.


IMAGES = "images"
"""The folder, in a run's, with one image of each prompt."""

_AT_ONCE = 4


@dataclass(frozen=True)
class Sample:
    """An image of a prompt; where its numbers overflowed it is black."""

    prompt: str
    number: int
    image: Image.Image
    not_finite: bool


def prompts_of(recipe: TrainingRecipe) -> tuple[str, ...]:
    """The recipe's validation prompts, or two with the identifier."""
    name = subject_name(recipe.subject.word, recipe.subject.class_noun)
    return tuple(with_noun(text, name) for text in recipe.validation.prompts or DEFAULT_PROMPTS)


class ValidationSampler:
    """Draws the validation prompts with the family's live modules.

    Frozen text encoders may be released afterwards: the prompts are encoded at once.
    """

    def __init__(
        self, recipe: TrainingRecipe, family: Family, *, device: torch.device, precision: Precision
    ) -> None:
        self._recipe = recipe
        self._family = family
        self._device = device
        self._precision = precision
        self._embeddings: dict[str, Embeddings] | None = None
        if not recipe.trains_text:
            captions = ["", *prompts_of(recipe)]
            encoded = family.encode_captions(captions)
            self._embeddings = {
                caption: {name: value.cpu() for name, value in each.items()}
                for caption, each in zip(captions, encoded, strict=True)
            }

    def draw(self, each: int, *, stopped: Callable[[], bool] = lambda: False) -> list[Sample]:
        """Draw so many images of each prompt, in their order, with the weights as they are.

        Raises:
            KeyboardInterrupt: `stopped`, which is called after each denoising step, returned True.
        """
        import torch

        from regforge.images.pipelines import guidance_of, not_finite

        reached: dict[str, Any] = {}

        def check(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            if stopped():
                raise KeyboardInterrupt
            reached.update(values)
            return values

        recipe, family = self._recipe, self._family
        side = recipe.data.resolution or family.resolution
        wanted = [(prompt, n) for prompt in prompts_of(recipe) for n in range(each)]
        samples: list[Sample] = []
        family.pipeline.set_progress_bar_config(disable=True)
        with _ready(family, self._device), torch.no_grad():
            for start in range(0, len(wanted), _AT_ONCE):
                batch = wanted[start : start + _AT_ONCE]
                seeds = [number_of(recipe.seed, "validation", *one) for one in batch]
                with self._precision.autocast(self._device):
                    family.pipeline(
                        **self._prompts([prompt for prompt, _ in batch]),
                        **guidance_of(family.pipeline, recipe.validation.guidance_scale),
                        num_inference_steps=recipe.validation.steps,
                        height=side,
                        width=side,
                        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                        output_type="latent",
                        callback_on_step_end=check,
                        **_exact_size(family.pipeline),
                    )
                # Not by the pipeline: under float16 many autoencoders draw black.
                size = (side // family.pixels_per_latent,) * 2
                pixels = family.decode(family.unpacked(reached["latents"], size)).cpu()
                black = torch.nan_to_num(pixels, nan=-1.0, posinf=-1.0, neginf=-1.0)
                images = family.pipeline.image_processor.postprocess(black)
                samples += [
                    Sample(prompt, number, image, overflowed)
                    for (prompt, number), image, overflowed in zip(
                        batch, images, not_finite(pixels), strict=True
                    )
                ]
        return samples

    def _prompts(self, prompts: list[str]) -> dict[str, Any]:
        """Prompts, and empty negative ones, as arguments of the pipeline."""
        from regforge.images.encoding import arguments

        if self._embeddings is None:
            return {"prompt": prompts}
        each = [self._embeddings[prompt] for prompt in prompts]
        nothing = [self._embeddings[""]] * len(prompts)
        return arguments(self._family.pipeline, each, nothing, self._device)


def _exact_size(pipeline: Any) -> dict[str, bool]:
    """Sana would draw in the nearest of some sizes otherwise."""
    from regforge.images.pipelines import inputs_of

    name = "use_resolution_binning"
    return {name: False} if name in inputs_of(pipeline) else {}


def write_grid(samples: Sequence[Sample], path: Path) -> None:
    """The images with their prompts below, as WebP."""
    columns = 1 + max((each.number for each in samples), default=0)
    tiles = [(each.image, "", each.prompt) for each in samples]
    write_atomically(path, as_webp(labelled_grid(tiles, columns=max(2, min(4, columns)))))


def write_images(samples: Sequence[Sample], folder: Path) -> None:
    """The first image of each prompt, in the order of the prompts, as WebP."""
    first = [each.image for each in samples if each.number == 0]
    for number, image in enumerate(first, start=1):
        write_atomically(folder / IMAGES / f"{number:02d}.webp", as_webp(image))


@contextmanager
def _ready(family: Family, device: torch.device) -> Iterator[None]:
    """All modules on the device and not training, then each as it was before."""
    from torch import nn

    modules = [each for each in family.pipeline.components.values() if isinstance(each, nn.Module)]
    before = [(module, next(module.parameters()).device, module.training) for module in modules]
    try:
        for module in modules:
            module.to(device).eval()
        yield
    finally:
        for module, place, training in before:
            module.to(place).train(training)
