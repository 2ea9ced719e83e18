"""Draws with an image service, through LiteLLM.

Knows how to ask, what the answers and refusals mean, and how to be patient with a busy server. A
service draws each image by itself, so batches are single images; several are asked for at the same
time. Knows nothing about local models.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import io
import logging
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from regforge.images.interface import (
    ModelIdentity,
    ModelUnavailable,
    Pixels,
    RenderedImage,
    RenderError,
    RenderSettingError,
    job_size,
)
from regforge.journal import Journal, without_secrets
from regforge.progress import Reporter
from regforge.recipe.models import Render
from regforge.records import ImageJob

_SIDE = 1024
_TIMEOUT = 180.0
_MOST_BYTES = 64 * 2**20
_FORMATS = ("PNG", "JPEG", "WEBP")

# The OpenAI client below LiteLLM tries three times by itself, heeding Retry-After.
_TRIES = 4
_LONGEST_WAIT = 60.0

_REFUSALS = ("content_policy", "moderation_blocked", "safety system", "content policy")


class _TryAgain(RenderError):
    """The service is busy, broken or gone; it may not be so in a moment."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(RenderError):
    """The service does not want to draw this."""


class HostedRenderer:
    """A `Renderer` that asks an image service.

    Args:
        render: Which model and where.
        journal: Where calls, their cost and refusals are written down.
        reporter: Where people are told that the service is busy.
        first_wait: Seconds to wait before the second try; twice as long before each further one.

    Raises:
        RenderSettingError: A setting that image services do not take.
    """

    batch_size = 1

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, first_wait: float = 1.0
    ) -> None:
        _refuse_local_settings(render)
        self.identity = ModelIdentity(
            render.model, None, "unknown", "unknown", render.width or _SIDE, render.height or _SIDE
        )
        self._render = render
        self._journal = journal
        self._reporter = reporter
        self._first_wait = first_wait
        self._runner = asyncio.Runner()

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`. When one image fails for good, those on their way come first."""
        loop = self._runner.get_loop()
        coming = iter(jobs)
        running: deque[asyncio.Task[RenderedImage]] = deque()
        failure: RenderError | None = None
        try:
            while True:
                while failure is None and len(running) < self._render.max_concurrency:
                    job = next(coming, None)
                    if job is None:
                        break
                    running.append(loop.create_task(self._draw(job)))
                if not running:
                    break
                # Not the first that is done: images come in the order of their jobs.
                self._runner.run(asyncio.wait({running[0]}))
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
        self._runner.close()

    # -------------------------------------------------------------------------------- one image

    async def _draw(self, job: ImageJob) -> RenderedImage:
        for number in range(_TRIES):
            try:
                return RenderedImage(job, await self._ask(job), nsfw=False)
            except _Refused as refusal:
                return self._refused(job, refusal)
            except _TryAgain as busy:
                if number == _TRIES - 1:
                    raise self._unreachable(busy) from busy
                wait = busy.wait or self._first_wait * 2**number * random.uniform(0.75, 1.25)
                if number == 1:
                    self._reporter.say(f"{self.identity.model}: {busy}; trying again.")
                await asyncio.sleep(min(wait, _LONGEST_WAIT))
        raise AssertionError

    def _refused(self, job: ImageJob, refusal: _Refused) -> RenderedImage:
        """A black image in place of the one that the service did not want to draw."""
        reason = f"{self.identity.model} refused to draw it"
        self._journal.failure("images", job.id, reason, str(refusal))
        width, height = job_size(job, self.identity)
        return RenderedImage(job, np.zeros((height, width, 3), np.uint8), nsfw=True)

    async def _ask(self, job: ImageJob) -> Pixels:
        litellm = _litellm()
        start, cost = time.monotonic(), None
        width, height = job_size(job, self.identity)
        try:
            reply = await litellm.aimage_generation(
                model=self._render.model,
                prompt=job.prompt.text,
                n=1,
                size=f"{width}x{height}",
                timeout=_TIMEOUT,
                num_retries=0,
                drop_params=True,
                **self._server(job),
            )
            cost = getattr(reply, "_hidden_params", {}).get("response_cost")
            pixels = _decoded(await self._image_of(reply), width, height)
        except Exception as error:
            self._note(job, start, cost, type(error).__name__)
            if isinstance(error, RenderError):
                raise
            raise self._meaning(error) from error
        self._note(job, start, cost, None)
        return pixels

    def _server(self, job: ImageJob) -> dict[str, Any]:
        """Arguments for a server of one's own; official ones refuse what they do not know."""
        if self._render.api_base is None:
            return {}
        extra: dict[str, Any] = {"seed": job.seed, "steps": self._render.steps}
        if self._render.negative_prompt:
            extra["negative_prompt"] = self._render.negative_prompt
        arguments: dict[str, Any] = {"api_base": self._render.api_base, "extra_body": extra}
        if self._render.model.startswith("openai/") and "OPENAI_API_KEY" not in os.environ:
            arguments["api_key"] = "none"  # most need no key, and the client wants one
        return arguments

    def _note(self, job: ImageJob, start: float, cost: float | None, error: str | None) -> None:
        self._journal.event(
            "image_call",
            model=self._render.model,
            image=job.id,
            seconds=round(time.monotonic() - start, 3),
            cost=cost,
            error=error,
        )

    # ------------------------------------------------------------------------------- the picture

    async def _image_of(self, reply: Any) -> bytes:
        """The image file in a reply, or behind the address in it."""
        for entry in reply.data or ():
            if entry.b64_json:
                try:
                    return base64.b64decode(entry.b64_json.rpartition(",")[2], validate=True)
                except binascii.Error as error:
                    raise _TryAgain("its answer is not readable") from error
            if entry.url:
                return await self._download(entry.url)
        raise _TryAgain("its answer holds no image")

    async def _download(self, url: str) -> bytes:
        import httpx

        if not self._may_fetch(url):
            raise RenderError(f"{self.identity.model} answered with an address that is not https.")
        content = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=60, follow_redirects=False) as client,
                client.stream("GET", url) as response,
            ):
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith(("image/", "application/o")):
                    raise _TryAgain(f"its image cannot be fetched (status {response.status_code})")
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise RenderError(f"{self.identity.model} sent too large an image file.")
        except httpx.HTTPError as error:
            raise _TryAgain("its image cannot be fetched") from error
        return bytes(content)

    def _may_fetch(self, url: str) -> bool:
        """Whether an address in a reply is a safe one: https, or the recipe's own server."""
        address, own = urlsplit(url), urlsplit(self._render.api_base or "")
        return address.scheme == "https" or (
            address.scheme == own.scheme == "http" and address.netloc == own.netloc
        )

    # ---------------------------------------------------------------------------- what went wrong

    def _meaning(self, error: Exception) -> Exception:
        """What an exception of LiteLLM means."""
        name, said = self.identity.model, _message(error)
        status = getattr(error, "status_code", None)
        text = " ".join(f"{type(each).__name__} {each}" for each in _chain(error)).lower()
        if "contentpolicy" in text or any(word in text for word in _REFUSALS):
            return _Refused(said)
        if status in (401, 403) or "api_key client option" in text:
            return ModelUnavailable(
                f"{name} does not accept your key: {said}.",
                hint="Put a valid key into the provider's environment variable, such as "
                "OPENAI_API_KEY.",
            )
        if status == 404:
            return ModelUnavailable(
                f"{name} is not there: {said}.", hint="Check render.model and render.api_base."
            )
        if "insufficient_quota" in text:
            return RenderError(f"{name}: the account has no credit left ({said}).")
        if status in (408, 409, 429) or (status or 500) >= 500:
            return _TryAgain(said, _retry_after(error))
        return RenderSettingError(
            f"{name} does not accept the request: {said}.",
            hint="Often the size: services draw only certain render.width and render.height.",
        )

    def _unreachable(self, error: _TryAgain) -> RenderError:
        where = f" at {self._render.api_base}" if self._render.api_base else ""
        return RenderError(
            f"{self.identity.model}{where} did not draw an image in {_TRIES} tries: {error}.",
            hint="Run the same command again when it is back; what was made is kept.",
        )


def _refuse_local_settings(render: Render) -> None:
    for key in ("scheduler", "lora", "variant", "revision"):
        if getattr(render, key) is not None:
            raise RenderSettingError(f"render.{key} does not go with `renderer: hosted`.")
    if render.negative_prompt and render.api_base is None:
        raise RenderSettingError(
            "render.negative_prompt goes with `renderer: hosted` only for a server of your own "
            "(render.api_base)."
        )


@functools.cache
def _litellm() -> Any:
    """LiteLLM, imported so that it asks nothing of the network and says nothing on its own."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # or it would read .env files
    import litellm

    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    return litellm


def _decoded(file: bytes, width: int, height: int) -> Pixels:
    """The pixels, uint8 [H, W, 3]; the size is checked before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as picture:
            if picture.size != (width, height):
                raise RenderSettingError(
                    f"{width} x {height} pixels were asked for, and {picture.width} x "
                    f"{picture.height} came.",
                    hint=f"Set render.width: {picture.width} and render.height: {picture.height}.",
                )
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _TryAgain("its answer is no PNG, JPEG or WebP image") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _message(error: Exception) -> str:
    """What the service itself said, in one line and without keys."""
    bodies = (getattr(each, "body", None) for each in _chain(error))
    said = next(
        (body["message"] for body in bodies if isinstance(body, dict) and "message" in body), None
    )
    lines = str(said or error).strip().splitlines() or [type(error).__name__]
    return without_secrets(lines[0][:300]).rstrip(".")


def _retry_after(error: Exception) -> float | None:
    """Seconds that the service asks to wait, if it does."""
    for each in _chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers.get("retry-after", "")))
        except ValueError:
            continue
    return None
