"""What the page in the browser is served: itself, the images, and decisions; and who is let in.

A random token stands in the address. Host and Origin are checked, so that no other page can reach
it by a name that leads here, and only JSON that was posted from the page itself changes anything.
Paths of files are never taken from an address: images are known by their number.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from regforge.dataset.decisions import Decision, Key
from regforge.errors import RegforgeError
from regforge.files import MOST_IMAGE, parse_json, read_file, templates_folder
from regforge.image_files import BrokenImage, decode, plain, plain_png
from regforge.images.curation import perceptual_hash_of
from regforge.records import Example
from regforge.reviewing.deciding import decide
from regforge.reviewing.material import Material, small_copy
from regforge.reviewing.phrases import phrases_of, preview, save

_MOST_POSTED = 16 * 2**20
"""Bytes of what a page may post: decisions about 50,000 images."""

_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}


def application(material: Material, token: str, host: str) -> Starlette:
    """The page and all that it asks for, below `/<token>/`; `host` is where it listens."""
    page = _Page(material)
    paths = {
        "": page.static,
        "review.{kind}": page.static,
        "images.json": page.images,
        "subject.json": page.subject,
        "phrases.json": page.phrases,
        "photo/{number:int}": page.photo,
        "decided/{number:int}": page.decided,
        "decisions": page.decisions,
        "{kind}/{version}/{number:int}": page.image,
    }
    routes = [Route(f"/{token}/{path}", endpoint) for path, endpoint in paths.items()]
    for path, endpoint in (("decisions", page.decide), ("phrases.json", page.edit)):
        routes.append(Route(f"/{token}/{path}", endpoint, methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, token=token, host=host)],
        exception_handlers={RegforgeError: _said},
    )


def _said(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 422)


class _Page:
    """What is answered; each method is one address, and those for GET run in threads."""

    def __init__(self, material: Material) -> None:
        self._material = material

    def static(self, request: Request) -> Response:
        kind = request.path_params.get("kind", "html")
        if kind not in _KINDS:
            raise HTTPException(404, "There is no such page.")
        content = (templates_folder() / "review" / f"review.{kind}").read_bytes()
        return Response(content, media_type=_KINDS[kind])

    def images(self, _: Request) -> Response:
        self._material.refresh()
        return JSONResponse(_images(self._material))

    def subject(self, _: Request) -> Response:
        return JSONResponse(_subject(self._material))

    def image(self, request: Request) -> Response:
        asked, material = request.path_params, self._material
        try:
            key = material.key_at(asked["version"], asked["number"])
            if asked["kind"] == "image":
                return _file(material.read(key))
            return _small(material.thumbnail(key))
        except (KeyError, OSError, RegforgeError) as error:
            raise HTTPException(404, "The image cannot be read.") from error

    def photo(self, request: Request) -> Response:
        photos, number = self._material.photos(), request.path_params["number"]
        if number >= len(photos):
            raise HTTPException(404, "There is no such photo.")
        return _small(small_copy(read_file(photos[number], MOST_IMAGE)))

    def decided(self, request: Request) -> Response:
        number = request.path_params["number"]
        keys = [each.key for each in self._material.file.read() if each.n == number]
        try:
            return _small(small_copy(self._material.read(keys[0])))
        except LookupError as error:
            raise HTTPException(404, "The image is not kept.") from error

    def decisions(self, request: Request) -> Response:
        self._material.refresh()
        return JSONResponse({"version": self._material.version, "decisions": self._after(request)})

    def phrases(self, _: Request) -> Response:
        return JSONResponse(phrases_of(self._material))

    async def edit(self, request: Request) -> Response:
        """Say what an edited vocabulary comes to; where it has a digest, write it down."""
        posted = await self._posted(request)
        try:
            slots = {
                str(slot): [(was and str(was), str(text)) for was, text in some]
                for slot, some in posted["slots"].items()
            }
            digest = posted.get("digest")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HTTPException(400, "That is no vocabulary.") from error
        if digest is None:
            return JSONResponse(
                {"captions": await run_in_threadpool(preview, self._material, slots)}
            )
        return JSONResponse(await run_in_threadpool(save, self._material, slots, str(digest)))

    async def decide(self, request: Request) -> Response:
        try:
            wanted = [Decision.from_json(each) for each in await self._posted(request)]
        except (ValueError, TypeError) as error:
            raise HTTPException(400, f"That is no decision: {error}.") from error
        await run_in_threadpool(decide, self._material, wanted)
        return JSONResponse({"decisions": self._after(request)})

    async def _posted(self, request: Request) -> Any:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "Only JSON may be posted.")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > _MOST_POSTED:
                raise HTTPException(413, "Too much at once.")
        try:
            posted = parse_json(bytes(content))
            json.dumps(posted, ensure_ascii=False).encode()  # halves of characters, too, are none
        except ValueError as error:
            raise HTTPException(400, f"That is no JSON: {error}.") from error
        return posted

    def _after(self, request: Request) -> list[dict[str, Any]]:
        """The decisions that a page does not know yet."""
        known = request.query_params.get("after", "0")
        after = int(known) if known.isdecimal() and len(known) < 16 else 0
        return [each.as_dict() for each in self._material.file.read() if each.n > after]


class _Guard:
    """Lets in who knows the token, from a page of this server, by a name that is this machine's."""

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app = app
        self._token = token.encode()
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                cached = {} if b"cache-control" in headers else {b"cache-control": b"no-store"}
                message["headers"] = [*message["headers"], *_HEADERS.items(), *cached.items()]
            await send(message)

        problem = self._problem(scope)
        app: ASGIApp = PlainTextResponse(problem, 403) if problem else self._app
        await app(scope, receive, guarded)

    def _problem(self, scope: Scope) -> str | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._is_ours(host, scope["server"][1]):
            return "This server goes by another name."
        if origin is not None and origin != f"http://{host}":
            return "No other page may ask this server."
        if scope["method"] not in ("GET", "HEAD") and origin is None:
            return "Only the page itself may change anything."
        given = scope["path"].removeprefix("/").partition("/")[0].encode()
        return None if secrets.compare_digest(given, self._token) else "The token is missing."

    def _is_ours(self, host: str, port: int) -> bool:
        """Whether a Host header is an address, or the name that it was started with.

        A foreign name that leads here is somebody's attempt to read along: DNS rebinding.
        """
        name, _, given = host.rpartition(":")
        if given != str(port):
            return False
        if name in (self._host, f"[{self._host}]", "localhost"):
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not is_here(self._host)


def is_here(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --------------------------------------------------------------------------- what the page is told


def _images(material: Material) -> dict[str, Any]:
    if material.run is not None:
        following = f"Carry it out: {material.run.command}"
    else:
        following = f"Decisions: {material.file.path}"
    slots = dict.fromkeys(name for each in material.examples.values() for name in each.slots)
    return {
        "name": material.name,
        "version": material.version,
        "run": material.run is not None,
        "next": following,
        "slots": list(slots),
        "rows": [_row(key, each) for key, each in material.examples.items()],
    }


def _row(key: Key, example: Example) -> dict[str, Any]:
    facts = example.metadata
    scores = facts.get("scores")
    scores = scores if isinstance(scores, dict) else {}
    found = str(facts.get("perceptual_hash") or "")
    return {
        "id": key[0],
        "image": key[1],
        "text": example.text or "",
        "set": example.prompt_set,
        "slots": dict(example.slots),
        "seed": facts.get("seed"),
        "width": example.width,
        "height": example.height,
        "reference": facts.get("reference"),
        "hash": found if len(found) == 16 else "",
        "alignment": _number(scores.get("alignment")),
        "distance": _number(scores.get("duplicate_distance")),
    }


def _number(value: Any) -> float | None:
    return round(value, 4) if isinstance(value, int | float) else None


def _subject(material: Material) -> dict[str, Any]:
    """The subject's photos, and how near each image comes to one of them: 0 to 64 bits."""
    photos = material.photos()
    hashes = []
    for path in photos:
        try:
            hashes.append(int(perceptual_hash_of(plain(decode(read_file(path, MOST_IMAGE)))), 16))
        except (OSError, BrokenImage):
            continue
    nearness = [
        min((_hash_of(each) ^ one).bit_count() for one in hashes)
        for each in material.examples.values()
        if hashes
    ]
    return {"photos": [path.name for path in photos], "nearness": nearness}


def _hash_of(example: Example) -> int:
    return int(str(example.metadata.get("perceptual_hash") or 0), 16)


def _file(content: bytes) -> Response:
    """An image as it is, of a kind that every browser shows."""
    starts = {b"RIF": "image/webp", b"\x89PN": "image/png", b"\xff\xd8\xff": "image/jpeg"}
    if (kind := starts.get(content[:3])) is None:
        kind, content = "image/png", plain_png(content)
    return Response(content, media_type=kind, headers=_FOREVER)


def _small(content: bytes | None) -> Response:
    if content is None:
        raise HTTPException(404, "The image cannot be shown.")
    return Response(content, media_type="image/webp", headers=_FOREVER)
