"""What every renderer is: jobs in, images out; and the one rule by which jobs become batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from regforge.embedded import EMBEDDED
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import cache_folder, note_in_cache, read_object
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

Pixels = npt.NDArray[np.uint8]
"""An image: uint8 [H, W, 3], RGB, 0 to 255."""


class RenderError(RegforgeError):
    """An image that could not be made."""


class ModelUnavailable(RenderError):
    """The rendering model is not there, may not be used, or is of another kind."""


class RenderSettingError(RenderError):
    """Something below `render` in the recipe that does not go with the model or the machine."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class LoraIdentity:
    """Which LoRA lies over a model, as a dataset records it: a file, a folder or a repository.

    The revision is `sha256:...` of the file, or the commit of the repository.
    """

    name: str
    revision: str
    scale: float


@dataclass(frozen=True)
class ModelIdentity:
    """Which model draws, as a dataset records it.

    Attributes:
        model: As the recipe names it; of a path its last part, which tells nothing of the machine.
        revision: Commit of the repository, or `sha256:...` of a local folder's files; None where
            unknown.
        scheduler: As the recipe names it, else the class of the model's own.
        width: Pixels of an image whose prompt asks for no size of its own; height likewise.
        vae: Its autoencoder, where it is not its own.
        takes_guidance: Whether a recipe's guidance scale reaches it; some guide as they were made.
        sent: The settings that a server is told; None where the renderer alone decides that.
    """

    model: str
    revision: str | None
    scheduler: str
    dtype: str
    width: int
    height: int
    loras: tuple[LoraIdentity, ...] = ()
    vae: str | None = None
    takes_guidance: bool = True
    sent: frozenset[str] | None = None

    @property
    def loras_as_json(self) -> str | None:
        """The LoRAs as a JSON list; None if there are none."""
        return json.dumps([asdict(each) for each in self.loras]) if self.loras else None


@dataclass(frozen=True)
class RenderedImage:
    """An image as it comes from the model.

    Attributes:
        nsfw: Whether the model's own safety checker, or the image service, objected. The image
            is then black.
        not_finite: Whether some of its numbers overflowed (NaN or infinite); those are black.
    """

    job: ImageJob
    pixels: Pixels
    nsfw: bool
    not_finite: bool = False


@dataclass(frozen=True)
class EncodedImage:
    """An image as a file, not judged yet; `image` is its content. See `RenderedImage`."""

    job: ImageJob
    image: bytes
    nsfw: bool
    not_finite: bool


class Renderer(Protocol):
    """Draws images.

    Attributes:
        batch_size: How many images it draws at a time; it becomes smaller when memory runs out,
            and never larger.
        ahead: How many images it has to know of beyond those that are asked for, so that all its
            workers have something to do; 0 if it draws one batch after the other.
    """

    identity: ModelIdentity
    batch_size: int
    ahead: int = 0

    def expect(self, jobs: Sequence[ImageJob]) -> None:  # noqa: ARG002
        """Say what will be asked for later; where `ahead` is not 0, `render` may yield it early."""
        return

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage | EncodedImage]:
        """Draw images in the batches of `batches`: size by size, in the order of the jobs.

        Several workers draw several batches at a time; images come as they are done then, expected
        ones among them. It ends when all jobs are drawn.

        Raises:
            RenderError: An image cannot be made, and the next one could not either.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads. The renderer is of no use afterwards."""
        ...


def is_sent(render: Render, setting: str, identity: ModelIdentity | None = None) -> bool:
    """Whether the model gets a setting, such as `steps`, `scheduler` or `seed`.

    Services get none, and servers of one's own some: what was not sent must be in no record. The
    `identity` of a model that is open says what it takes.
    """
    if identity is not None and identity.sent is not None:
        return setting in identity.sent
    if render.renderer in ("comfyui", "files"):  # nobody has asked them yet
        return False
    if render.renderer == "hosted":
        return render.api_base is not None and setting in ("seed", "steps", "negative_prompt")
    return setting != "guidance_scale" or identity is None or identity.takes_guidance


def sampling(identity: ModelIdentity, render: Render) -> str:
    """The scheduler and what its steps leave out, such as `unipc, cache interval 2`."""
    left_out = (f"{name.lower()} {value}" for name, value in render.shortcuts.items())
    return ", ".join((identity.scheduler, *left_out))


def job_size(job: ImageJob, identity: ModelIdentity) -> tuple[int, int]:
    """Width and height of a job's image, in pixels."""
    return job.prompt.width or identity.width, job.prompt.height or identity.height


def by_size(jobs: Sequence[ImageJob], identity: ModelIdentity) -> list[list[ImageJob]]:
    """The jobs grouped by the size of their images: first the size that comes first."""
    groups: dict[tuple[int, int], list[ImageJob]] = {}
    for job in jobs:
        groups.setdefault(job_size(job, identity), []).append(job)
    return list(groups.values())


def batches(
    jobs: Sequence[ImageJob], batch_size: int, identity: ModelIdentity
) -> list[list[ImageJob]]:
    """Which jobs are drawn together. A resumed run makes the same batches from the same jobs.

    The batches of a selection of whole batches, put one after the other, are those batches again.
    """
    return [
        group[start : start + batch_size]
        for group in by_size(jobs, identity)
        for start in range(0, len(group), batch_size)
    ]


# ----------------------------------------------------------------------------- how long images take

_EMBEDDED_SECONDS_PER_STEP = 0.012
"""Of the embedded pipeline on two ordinary cores, until this machine has tried it."""

_SPEEDS = "speeds.json"
"""In the cache folder: seconds by model, size and steps."""


def seconds_per_image(render: Render) -> float | None:
    """What an image took here the last time; None for a model that was not tried yet."""
    known = read_object(cache_folder() / _SPEEDS).get(_speed_key(render))
    if isinstance(known, int | float):
        return float(known)
    if render.model != EMBEDDED:
        return None
    start, stop = render.guidance_window
    whole = render.steps / render.cache_interval * (1 + stop - start) / 2
    return _EMBEDDED_SECONDS_PER_STEP * whole


def remember_speed(render: Render, images: int, seconds: float) -> None:
    """Note what some images took, all in all."""
    note_in_cache(_SPEEDS, _speed_key(render), round(seconds / images, 4))


def _speed_key(render: Render) -> str:
    size = f"{render.width or 'own'}x{render.height or 'own'}"
    steps = ", ".join([f"{render.steps} steps", *map(" ".join, render.shortcuts.items())])
    return f"{render.model} {size} {steps}, {render.device or 'best device'}"
