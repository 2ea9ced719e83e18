"""Draws with servers of one's own over HTTP; subclasses know what each kind of them is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from regforge.files import parse_json
from regforge.images.renderer import ModelIdentity, ModelUnavailable, RenderSettingError
from regforge.images.services import ServiceRenderer
from regforge.journal import Journal, Reporter
from regforge.providers.calls import Clock, Reply
from regforge.providers.errors import CallFailed, Failure, WrongKey, retry_after
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

if TYPE_CHECKING:
    import httpx

PASSWORD = "REGFORGE_SERVER_PASSWORD"
"""Environment variable with the `user:password` that servers may want."""

_MOST_BYTES = 128 * 2**20
"""Of an answer, with an image in base64."""
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError)
"""What reading an answer raises that is not what it should be."""
_TO_CONNECT, _TO_ANSWER = 5.0, 60.0
_REST = 30.0
"""Seconds for which a server that was not there is left alone while others are."""


@dataclass
class Server:
    """A server that draws.

    Attributes:
        busy: How many images it was asked for that it has not given yet.
        rests_until: By the clock, when it is asked again although others are there.
        met: Whether it was asked what it has since it last failed.
        known: What it has drawn, or is about to, that nobody has fetched.
    """

    base: str
    busy: int = 0
    rests_until: float = float("-inf")
    met: bool = False
    known: dict[str, str] = field(default_factory=dict)


class ServerRenderer(ServiceRenderer):
    """A `Renderer` that asks servers of one's own over HTTP, each image where least is to be done.

    A server that goes away is left alone for a while, and its images are drawn by the others.
    Opening it asks each server what it has, so that what is missing is known before anything is
    drawn; one that does not answer is left out as long as another does.

    Raises:
        ModelUnavailable: No server answers, or none has what the recipe wants.
        RenderSettingError: The recipe wants something of them that there is not.
    """

    tries = 10  # a server that is started again takes a minute to load its model
    name = "a server"

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, clock: Clock | None = None
    ) -> None:
        self._servers = [Server(base.rstrip("/")) for base in render.servers]
        self._http: httpx.AsyncClient | None = None
        super().__init__(
            render, journal=journal, reporter=reporter, clock=clock, servers=len(self._servers)
        )
        try:
            self.identity = self._loop.run(self._met())
        except BaseException:
            self.close()
            raise

    async def _met(self) -> ModelIdentity:
        """Who draws, by the servers that answer."""
        met, absent = list[tuple[Server, ModelIdentity]](), list[CallFailed]()
        for server in self._servers:
            try:
                met.append((server, await self._meet(server)))
            except CallFailed as failure:
                if not failure.may_pass or failure.kind == "garbled":
                    raise ModelUnavailable(failure.message, hint=failure.hint) from failure
                server.rests_until = self._caller.clock.now() + _REST
                absent.append(failure)
            except WrongKey as error:
                raise ModelUnavailable(error.message, hint=error.hint) from error
        if not met:
            raise ModelUnavailable(absent[0].message, hint=absent[0].hint)
        for each in absent:
            self._reporter.say(f"warning: {each.message} The others draw.")
        (first, identity), *others = met
        for server, other in others:
            if other != identity:
                raise RenderSettingError(
                    f"{first.base} draws with {_named(identity)}, and {server.base} with "
                    f"{_named(other)}.",
                    hint="Give both the same checkpoint and VAE, or name the one in render.model.",
                )
        return identity

    async def _meet(self, server: Server) -> ModelIdentity:
        try:
            identity = await self._greet(server)
        except _UNREADABLE as error:
            raise self._odd(server) from error
        server.met = True
        return identity

    async def _greet(self, server: Server) -> ModelIdentity:
        """Ask a server what it has. A CallFailed if it does not answer."""
        raise NotImplementedError

    def _identity(
        self, model: str, revision: str | None, scheduler: str, **more: Any
    ) -> ModelIdentity:
        width, height = self._render.width, self._render.height
        assert width is not None
        assert height is not None
        return ModelIdentity(model, revision, scheduler, "unknown", width, height, **more)

    async def _image(self, server: Server, job: ImageJob, width: int, height: int) -> bytes:
        """Have a server draw an image."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop asking."""
        if self._http is not None:
            self._loop.run(self._http.aclose())
        super().close()

    async def _send(self, job: ImageJob, width: int, height: int) -> Reply:
        now = self._caller.clock.now()
        server = min(self._servers, key=lambda each: (each.rests_until > now, each.busy))
        server.busy += 1
        try:
            if not server.met and (other := await self._meet(server)) != self.identity:
                raise CallFailed("refused", f"{server.base} draws with {_named(other)} now.")
            content = await self._image(server, job, width, height)
        except _UNREADABLE as error:
            raise self._odd(server) from error
        except CallFailed as failure:
            server.met = False  # before it is asked again, see what it has by now
            if failure.kind in ("unreachable", "lost"):
                server.rests_until = self._caller.clock.now() + _REST
            raise
        finally:
            server.busy -= 1
        return Reply(content, self._render.cost_per_image or 0.0)

    async def _json(
        self, server: Server, method: Literal["GET", "POST"], path: str, **request: Any
    ) -> Any:
        """What a server answers, parsed; see `_bytes`."""
        try:
            return parse_json(await self._bytes(server, method, path, **request))
        except ValueError as error:
            raise self._odd(server) from error

    def _odd(self, server: Server) -> CallFailed:
        """Of an answer that lacks what is to be in it."""
        message = f"What answers at {server.base} is not {self.name}."
        return CallFailed("garbled", message, hint="Correct render.api_base.")

    async def _bytes(
        self,
        server: Server,
        method: Literal["GET", "POST"],
        path: str,
        *,
        patience: float = _TO_ANSWER,
        **request: Any,
    ) -> bytes:
        """The content of a server's answer within so many seconds; `request` is more for httpx.

        Raises:
            CallFailed: There is no answer, or it says no.
            WrongKey: The server wants a password, or another one.
        """
        import httpx

        if self._http is None:
            user, _, password = os.environ.get(PASSWORD, "").partition(":")
            self._http = httpx.AsyncClient(
                auth=(user, password) if user else None,
                limits=httpx.Limits(max_connections=None),
            )
        content, timeout = bytearray(), httpx.Timeout(patience, connect=_TO_CONNECT)
        try:
            async with self._http.stream(
                method, server.base + path, timeout=timeout, **request
            ) as response:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise CallFailed("refused", f"{server.base} sent too large an answer.")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CallFailed(
                "unreachable",
                f"{server.base} cannot be reached: is {self.name} running there?",
                hint="Start the server, or correct render.api_base.",
                raw=str(error),
            ) from error
        except httpx.TimeoutException as error:
            raise CallFailed("timeout", f"{server.base} is silent.", raw=str(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"The connection to {server.base} broke."
            raise CallFailed("lost", message, raw=str(error)) from error
        if response.status_code != 200:
            raise self._no(server, path, response.status_code, response.headers, bytes(content))
        return bytes(content)

    def _no(
        self, server: Server, path: str, status: int, headers: httpx.Headers, content: bytes
    ) -> CallFailed | WrongKey:
        """What it means that a server says no, with its own reason."""
        reason = _reason(content)
        said = f"{server.base} says ({status}): {reason}"
        if not reason:
            said = f"{server.base} answers {path} with {status} and gives no reason."
        if status in (401, 403):
            return WrongKey(said, hint=f"Set the environment variable {PASSWORD} to user:password.")
        kind: Failure = "refused"
        if status in (429, 503):
            kind = "busy"
        elif status >= 500:
            kind = "server"
        hint = (
            f"There is no {path}: correct render.api_base."
            if status < 400 or (status == 404 and reason in ("", "Not Found"))
            else None
        )
        return CallFailed(
            kind,
            said,
            hint=hint,
            retry_after=retry_after(headers),
            raw=content.decode("utf-8", "replace"),
        )


def _named(identity: ModelIdentity) -> str:
    return f"{identity.model} ({identity.revision})" if identity.revision else identity.model


def _reason(content: bytes) -> str:
    """What an error's JSON says, whichever way the server words it; empty if nothing."""
    try:
        said = parse_json(content)
    except ValueError:
        return ""
    return " ".join(" ".join(_sentences(said)).split())[:1000]


def _sentences(said: Any) -> Iterator[str]:
    """The messages in an error: FastAPI's, the web UI's and ComfyUI's."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, list):
        for each in said:
            yield from _sentences(each)
    elif isinstance(said, dict):
        for key in ("error", "errors", "detail", "loc", "msg", "message", "details"):
            yield from _sentences(said.get(key))
        nodes = said.get("node_errors")
        for node, each in nodes.items() if isinstance(nodes, dict) else ():
            if isinstance(each, dict):
                yield f"Node {node} ({each.get('class_type')}):"
                yield from _sentences(each.get("errors"))
