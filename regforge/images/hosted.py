"""Draws with an image service, patiently and within its budget; answers are not trusted.

A service draws each image by itself, so batches are single images; several are asked for at the
same time. How calls are limited and paid for is in `providers.calls`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from regforge.images.renderer import ModelIdentity, ModelUnavailable, is_sent
from regforge.images.services import ServiceRenderer
from regforge.journal import Journal, Reporter
from regforge.providers import library
from regforge.providers.calls import Clock, Reply, server_arguments
from regforge.providers.errors import CallFailed, meaning
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

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
