"""Draws with an image service.

A service draws each image by itself, so batches are single images; several are asked for at the
same time. Knows what images must be like; how a service is asked, and paid, is the business of
`regforge.providers`.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from regforge.images.interface import (
    ModelIdentity,
    ModelUnavailable,
    Pixels,
    RenderedImage,
    RenderError,
    RenderSettingError,
    is_told,
    job_size,
)
from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.providers.errors import CallFailed, ModelUnusable, UnknownModel, WrongKey
from regforge.providers.image_model import TRIES, ImageClient, ImageRequest
from regforge.providers.library import EventLoop, close_clients, missing_key
from regforge.providers.limits import Clock, RealClock
from regforge.recipe.models import Render
from regforge.records import ImageJob

SIDE = 1024
"""Pixels of an image whose recipe names no size; services want to be told one."""

_FORMATS = ("PNG", "JPEG", "WEBP")


class HostedRenderer:
    """A `Renderer` that asks an image service.

    Args:
        render: Which model and where.
        journal: Where calls, their cost and refusals are written down.
        reporter: Where people are told that the service is busy.
        clock: For tests that do not want to wait.
    """

    batch_size = 1

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, clock: Clock | None = None
    ) -> None:
        self.identity = ModelIdentity(
            render.model, None, "unknown", "unknown", render.width or SIDE, render.height or SIDE
        )
        self._render = render
        self._client = ImageClient(render, journal, reporter, clock or RealClock())
        self._loop = EventLoop()

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`. When one image fails for good, those on their way come first."""
        coming = iter(jobs)
        running: deque[asyncio.Task[RenderedImage]] = deque()
        failure: RenderError | None = None

        async def fill() -> None:
            """Ask for as many as may be asked for, and wait for the one that comes next."""
            while failure is None and len(running) < self._render.max_concurrency:
                if (job := next(coming, None)) is None:
                    break
                running.append(asyncio.create_task(self._draw(job)))
            if running:  # not the first that is done: images come in the order of their jobs
                await asyncio.wait({running[0]})

        try:
            while self._loop.run(fill()) is None and running:
                try:
                    image = running.popleft().result()
                except RenderError as error:
                    failure = failure or error
                else:
                    yield image
        finally:
            for task in running:
                task.cancel()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Stop asking."""
        if self._client.used:
            self._loop.run(close_clients())
        self._loop.close()

    async def _draw(self, job: ImageJob) -> RenderedImage:
        width, height = job_size(job, self.identity)
        request = ImageRequest(job.id, job.prompt.text, width, height, self._extra(job))
        try:
            pixels = await self._client.draw(request, lambda file: _decoded(file, width, height))
        except CallFailed as failure:
            if failure.kind != "policy":
                raise self._without_an_image(failure) from failure
            # A black image in place of the one that the service did not want to draw.
            return RenderedImage(job, np.zeros((height, width, 3), np.uint8), nsfw=True)
        except (WrongKey, UnknownModel) as error:
            raise ModelUnavailable(error.message, hint=error.hint) from error
        except ModelUnusable as error:
            raise RenderError(error.message, hint=error.hint) from error
        return RenderedImage(job, pixels, nsfw=False)

    def _extra(self, job: ImageJob) -> dict[str, Any]:
        """What is sent to a server of one's own; official ones refuse what they do not know."""
        render = self._render
        negative = render.negative_prompt or None
        extra = {"seed": job.seed, "steps": render.steps, "negative_prompt": negative}
        return {
            name: value
            for name, value in extra.items()
            if value is not None and is_told(render, name)
        }

    def _without_an_image(self, failure: CallFailed) -> RenderError:
        model = self.identity.model
        where = f" at {self._render.api_base}" if self._render.api_base else ""
        if failure.may_pass:
            return RenderError(
                f"{model}{where} did not draw an image in {TRIES} tries: {failure.message}",
                hint="Run the same command again when it is back; what was made is kept.",
            )
        return RenderSettingError(
            f"{model}{where} does not accept the request: {failure.message}",
            hint=failure.hint
            or "Often the size: services draw only certain render.width and render.height.",
        )


def require_service(render: Render) -> None:
    """See that a service can be asked, as far as that is known without asking it.

    Raises:
        ModelUnavailable: There is no key.
    """
    if key := missing_key(render.model, render.api_base):
        raise ModelUnavailable(
            f"There is no API key for {render.model} (render.model).",
            hint=f"Set the environment variable {key}.",
        )


def _decoded(file: bytes, width: int, height: int) -> Pixels:
    """The pixels, uint8 [H, W, 3]; the size is checked before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            if image.size != (width, height):
                raise CallFailed(
                    "refused",
                    f"{width} x {height} pixels were asked for, and {image.width} x "
                    f"{image.height} came.",
                    hint=f"Set render.width: {image.width} and render.height: {image.height}.",
                )
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CallFailed("server", "The answer is no PNG, JPEG or WebP image.") from error
