"""The image service client: asks for images through LiteLLM, patiently and within its budget.

    client = ImageClient(recipe.render, journal, reporter)
    pixels = await client.draw(ImageRequest("image 1", "a cat", 64, 64, {}), decode)

Knows how to ask, and how to get at the file in an answer; what its pixels must be like is the
business of the caller. How calls are limited and paid for is in `calls`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.providers import library
from regforge.providers.calls import Caller
from regforge.providers.errors import CallFailed
from regforge.providers.limits import Clock, RealClock
from regforge.recipe.models import Render

TRIES = 6
"""How often an image is asked for when the service is busy, fails or sends something else."""

_TIMEOUT = 180.0
_MOST_BYTES = 64 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRequest:
    """An image to ask for.

    Attributes:
        item: Its name, for the log and the ledger.
        prompt: What it shows.
        width: Pixels.
        height: Pixels.
        extra: What else is sent, for a server of one's own: `seed`, `steps`, `negative_prompt`.
    """

    item: str
    prompt: str
    width: int
    height: int
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class _Answer:
    """What came back: the file, or where it lies; US dollars, None if unknown."""

    entries: tuple[Any, ...]
    cost: float | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def image_price(render: Render, width: int, height: int) -> float | None:
    """Price of one image in US dollars: by the recipe, else by LiteLLM's list, else free at home.

    Returns:
        None if nobody knows.
    """
    if render.cost_per_image is not None:
        return render.cost_per_image
    listed = library.listed_image_price(render.model, width, height)
    if listed is None and library.is_local(render.model, render.api_base):
        return 0.0
    return listed


@dataclass
class ImageClient:
    """Asks an image service, several images at a time.

    Attributes:
        render: Which model and where, how fast, for how much.
        journal: Gets every call (`log.jsonl`) and every failure (`ledger.jsonl`).
        reporter: Told that the service is busy.
        clock: Where waiting comes from.
    """

    render: Render
    journal: Journal
    reporter: Reporter
    clock: Clock = field(default_factory=RealClock)

    def __post_init__(self) -> None:
        self._caller = Caller("render", "image_call", self.render, self.journal, self.clock)

    @property
    def used(self) -> bool:
        """Whether anything was asked for."""
        return self._caller.usage.calls > 0

    async def draw(self, request: ImageRequest, decode: Callable[[bytes], T]) -> T:
        """Ask for an image, again and again if need be.

        Args:
            request: What to ask for.
            decode: Makes something of the file; a CallFailed of its own counts as a bad answer.

        Raises:
            CallFailed: There is no image. The reason is in the ledger.
            ModelUnusable: There will be none to any other request either.
        """
        model = self.render.model
        for attempt in range(1, TRIES):
            try:
                return await self._try(request, decode, attempt)
            except CallFailed as failure:
                if not failure.may_pass:
                    self._write_down(request, failure)
                    raise
                seconds = self._caller.seconds_to_wait(model, failure, attempt)
                self._write_down(request, failure, f" Tried again after {seconds:.1f} s.")
                if attempt == 2:
                    self.reporter.say(f"{model}: {failure.message} Trying again.")
                await self.clock.sleep(seconds)
        try:
            return await self._try(request, decode, TRIES)
        except CallFailed as failure:
            self._write_down(request, failure, f" Given up after {TRIES} tries.")
            raise

    def _write_down(self, request: ImageRequest, failure: CallFailed, more: str = "") -> None:
        self.journal.failure("images", request.item, failure.message + more, failure.raw)

    async def _try(self, request: ImageRequest, decode: Callable[[bytes], T], attempt: int) -> T:
        limited = self.render.max_cost is not None
        answer = await self._caller.send(
            lambda: self._send(request),
            model=self.render.model,
            entry={"image": request.item, "attempt": attempt},
            # Prices are in LiteLLM, which takes seconds to import.
            most=image_price(self.render, request.width, request.height) if limited else None,
        )
        return decode(await self._file_in(answer))

    async def _send(self, request: ImageRequest) -> _Answer:
        render, base = self.render, self.render.api_base
        arguments: dict[str, Any] = library.server_of("render", render.model, base)
        if request.extra:
            arguments["extra_body"] = dict(request.extra)
        try:
            reply = await asyncio.wait_for(
                library.litellm().aimage_generation(
                    model=render.model,
                    prompt=request.prompt,
                    n=1,
                    size=f"{request.width}x{request.height}",
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
            raise library.meaning(
                error,
                section="render",
                model=render.model,
                base=base,
                answered=self._caller.answers > 0,
                timeout=_TIMEOUT,
            ) from error
        price = image_price(render, request.width, request.height)
        listed = library.money(getattr(reply, "_hidden_params", {}).get("response_cost"))
        cost = listed if listed and render.cost_per_image is None else price
        return _Answer(tuple(getattr(reply, "data", None) or ()), cost)

    # ---------------------------------------------------------------------------------- the file

    async def _file_in(self, answer: _Answer) -> bytes:
        """The image file in an answer, or behind the address in it."""
        for entry in answer.entries:
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
        address, own = urlsplit(url), urlsplit(self.render.api_base or "")
        return address.scheme == "https" or (
            address.scheme == own.scheme == "http" and address.netloc == own.netloc
        )
