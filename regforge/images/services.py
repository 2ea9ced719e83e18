"""What draws elsewhere and is asked image by image: in turn, patiently, within rate and budget.

Batches are single images; several are asked for at the same time, at one server or at several. How
calls are limited and paid for is in `providers.calls`. Answers are not trusted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from PIL import Image

from regforge.images.renderer import (
    ModelIdentity,
    ModelUnavailable,
    Pixels,
    RenderedImage,
    Renderer,
    RenderError,
    RenderSettingError,
    is_sent,
    job_size,
)
from regforge.journal import Journal, Reporter
from regforge.providers import library
from regforge.providers.calls import Caller, Clock, Reply, server_arguments
from regforge.providers.errors import CallFailed, ModelUnusable, UnknownModel, WrongKey, meaning
from regforge.recipe.rendering import Render
from regforge.records import ImageJob
from regforge.words import listed

_FORMATS = ("PNG", "JPEG", "WEBP")
_AHEAD = 4
"""Of several servers, the faster ones may be so many times their share ahead of the slowest."""


class ServiceRenderer(Renderer):
    """A `Renderer` that asks for one image at a time; subclasses say whom, and how.

    Attributes:
        tries: How often an image is asked for when the service is busy, fails or sends something
            else.
        size_hint: What to do about a request that the service does not accept.
        resize_hint: What to do about images of another size than was asked for.
    """

    batch_size = 1
    tries = 6
    size_hint = "Often the size: services draw only certain render.width and render.height."
    resize_hint = "Set render.width: {width} and render.height: {height}."

    def __init__(
        self,
        render: Render,
        *,
        journal: Journal,
        reporter: Reporter,
        clock: Clock | None = None,
        servers: int = 1,
    ) -> None:
        self._render = render
        self._journal = journal
        self._reporter = reporter
        self._caller = Caller("render", "image_call", render, journal, clock or Clock())
        self._loop = library.EventLoop()
        self._at_once = render.max_concurrency * servers
        self._most = self._at_once * (1 if servers == 1 else _AHEAD)

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`. When one image fails for good, those on their way come first."""
        coming = iter(jobs)
        running: deque[asyncio.Task[RenderedImage]] = deque()
        failure: RenderError | None = None

        async def fill() -> None:
            """Ask for as many as may be asked for, until the one that comes next is there."""
            while True:
                busy = [task for task in running if not task.done()]
                while failure is None and len(busy) < self._at_once and len(running) < self._most:
                    if (job := next(coming, None)) is None:
                        break
                    busy.append(asyncio.create_task(self._draw(job)))
                    running.append(busy[-1])
                if not running or running[0].done():  # images come in the order of their jobs
                    return
                one = self._most == self._at_once  # all others wait for it
                await asyncio.wait(
                    {running[0]} if one else busy, return_when=asyncio.FIRST_COMPLETED
                )

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
        self._loop.close()

    async def _draw(self, job: ImageJob) -> RenderedImage:
        width, height = job_size(job, self.identity)
        try:
            return RenderedImage(job, await self._try_often(job, width, height), nsfw=False)
        except CallFailed as failure:
            if failure.kind != "policy":
                raise self._no_image(failure) from failure
            # A black image in place of the one that the service did not want to draw.
            return RenderedImage(job, np.zeros((height, width, 3), np.uint8), nsfw=True)
        except (WrongKey, UnknownModel) as error:
            raise ModelUnavailable(error.message, hint=error.hint) from error
        except ModelUnusable as error:
            raise RenderError(error.message, hint=error.hint) from error

    async def _try_often(self, job: ImageJob, width: int, height: int) -> Pixels:
        model, attempt = self.identity.model, 1
        while True:
            try:
                reply = await self._caller.send(
                    lambda: self._send(job, width, height),
                    model=model,
                    entry={"image": job.id, "attempt": attempt},
                    most=self._most_cost(width, height),
                )
                return _decoded(await self._file_in(reply), width, height, self.resize_hint)
            except CallFailed as failure:
                text, wait, last = failure.message, 0.0, attempt == self.tries
                if failure.may_pass and last:
                    text += f" Given up after {self.tries} tries."
                elif failure.may_pass:
                    wait = self._caller.seconds_to_wait(model, failure, attempt)
                    text += f" Tried again after {wait:.1f} s."
                self._journal.failure("images", job.id, text, failure.raw)
                if last or not failure.may_pass:
                    raise
                if attempt == 2:
                    self._reporter.say(f"{model}: {failure.message} Trying again.")
            await self._caller.clock.sleep(wait)
            attempt += 1

    def _no_image(self, failure: CallFailed) -> RenderError:
        servers = listed(self._render.servers, 3, "or")
        where = f"{self.identity.model} at {servers}" if servers else self.identity.model
        if failure.may_pass:
            return RenderError(
                f"{where} did not draw an image in {self.tries} tries: {failure.message}",
                hint="Run the same command again when it is back; what was made is kept.",
            )
        return RenderSettingError(
            f"{where} does not accept the request: {failure.message}",
            hint=failure.hint or self.size_hint,
        )

    def _most_cost(self, width: int, height: int) -> float | None:  # noqa: ARG002
        """US dollars that an image may cost; None if unknown."""
        return self._render.cost_per_image or 0.0

    async def _send(self, job: ImageJob, width: int, height: int) -> Reply:
        """Ask once. Raises as `Caller.send` does."""
        raise NotImplementedError

    async def _file_in(self, reply: Reply) -> bytes:
        """The image file of a reply."""
        content: bytes = reply.content
        return content


def _decoded(file: bytes, width: int, height: int, hint: str) -> Pixels:
    """The pixels, uint8 [H, W, 3]; the size is checked before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            if image.size != (width, height):
                raise CallFailed(
                    "refused",
                    f"{width} x {height} pixels were asked for, and {image.width} x "
                    f"{image.height} came.",
                    hint=hint.format(width=image.width, height=image.height),
                )
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CallFailed("server", "The answer is no PNG, JPEG or WebP image.") from error


# --------------------------------------------------------------------- image APIs, through LiteLLM

SIDE = 1024
"""Pixels of an image whose recipe names no size; services want to be told one."""

_TIMEOUT = 180.0
_TO_CONNECT = 10.0
_MOST_BYTES = 64 * 2**20


def require_service(render: Render) -> None:
    """Raise ModelUnavailable if the service cannot be asked: no key, no provider, no server."""
    if problem := library.not_ready("render", render.model, render.server):
        raise ModelUnavailable(problem[0], hint=problem[1])
    address = urlsplit(render.server or "")
    host, port = address.hostname, address.port or (443 if address.scheme == "https" else 80)
    if host is None or (address.scheme in getproxies() and not proxy_bypass(host)):
        return
    try:
        socket.create_connection((host, port), timeout=_TO_CONNECT).close()
    except OSError as error:
        raise ModelUnavailable(
            f"{render.model} cannot be reached at {render.server}.",
            hint="Start the server, or correct render.api_base.",
        ) from error


def image_price(render: Render, width: int, height: int) -> float | None:
    """Price of one image in US dollars: by the recipe, else by LiteLLM's list, else free at home.

    None if unknown.
    """
    if render.cost_per_image is not None:
        return render.cost_per_image
    listed = library.listed_image_price(render.model, width, height)
    return 0.0 if listed is None and library.is_local(render.model, render.server) else listed


class HostedRenderer(ServiceRenderer):
    """A `Renderer` that asks an image service."""

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, clock: Clock | None = None
    ) -> None:
        self.identity = ModelIdentity(
            render.model, None, "unknown", "unknown", render.width or SIDE, render.height or SIDE
        )
        super().__init__(render, journal=journal, reporter=reporter, clock=clock)

    def close(self) -> None:
        """Stop asking."""
        if self._caller.usage.calls:
            self._loop.run(library.close_clients())
        super().close()

    def _most_cost(self, width: int, height: int) -> float | None:
        # Prices are in LiteLLM, which takes seconds to import.
        limited = self._render.max_cost is not None
        return image_price(self._render, width, height) if limited else None

    async def _send(self, job: ImageJob, width: int, height: int) -> Reply:
        render = self._render
        arguments = server_arguments("render", render.model, render.server)
        negative = render.negative_for(job.prompt.prompt_set) or None
        extra = {"seed": job.seed, "steps": render.steps, "negative_prompt": negative}
        # For a server of one's own; official ones refuse what they do not know.
        extra = {k: v for k, v in extra.items() if v is not None and is_sent(render, k)}
        if extra:
            arguments["extra_body"] = extra
        try:
            reply = await asyncio.wait_for(
                library.litellm().aimage_generation(
                    model=render.model,
                    prompt=job.prompt.text,
                    n=1,
                    size=f"{width}x{height}",
                    timeout=_TIMEOUT,
                    num_retries=0,
                    drop_params=True,
                    **arguments,
                ),
                1.5 * _TIMEOUT,
            )
        except TimeoutError:
            raise CallFailed("timeout", f"No reply within {_TIMEOUT:g} s.") from None
        except Exception as error:
            raise meaning(
                error,
                section="render",
                model=render.model,
                base=render.server,
                answered=self._caller.answers > 0,
                timeout=_TIMEOUT,
            ) from error
        listed = library.money(getattr(reply, "_hidden_params", {}).get("response_cost"))
        if not listed or render.cost_per_image is not None:
            listed = image_price(render, width, height)
        return Reply(tuple(getattr(reply, "data", None) or ()), listed)

    # ---------------------------------------------------------------------------------- the file

    async def _file_in(self, reply: Reply) -> bytes:
        for entry in reply.content:
            if entry.b64_json:
                try:
                    return base64.b64decode(entry.b64_json.rpartition(",")[2], validate=True)
                except binascii.Error as error:
                    raise CallFailed("server", "The answer is not readable.") from error
            if entry.url:
                return await self._download(entry.url)
        raise CallFailed("server", "The answer holds no image.")

    async def _download(self, url: str) -> bytes:
        import httpx

        if not self._may_fetch(url):
            raise CallFailed("refused", "It answered with an address that is not https.", raw=url)
        content = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=60, follow_redirects=False) as client,
                client.stream("GET", url) as response,
            ):
                kind, status = response.headers.get("content-type", ""), response.status_code
                if status != 200 or not kind.startswith(("image/", "application/o")):
                    raise CallFailed("server", f"The image cannot be fetched (status {status}).")
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise CallFailed("refused", "It sent too large an image file.")
        except httpx.HTTPError as error:
            raise CallFailed("server", "The image cannot be fetched.", raw=str(error)) from error
        return bytes(content)

    def _may_fetch(self, url: str) -> bool:
        """Whether an address in a reply is a safe one: https, or the recipe's own server."""
        address, own = urlsplit(url), urlsplit(self._render.server or "")
        return address.scheme == "https" or (
            address.scheme == own.scheme == "http" and address.netloc == own.netloc
        )
