"""A loopback server that speaks the OpenAI protocol, well, or badly on purpose.

    with OpenAIServer(lambda call: said('{"color": "red"}')) as server:
        ...  # server.url is the api_base; server.calls is what arrived

Chat completions and image generations, standard library only. It listens on 127.0.0.1 and on a
port of its own, forgets nothing, and stops with the block: whatever still hangs then is let go.
"""

import asyncio
import base64
import json
import random
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LONGEST_HANG = 30.0


@dataclass(frozen=True)
class Call:
    """A request that arrived; `number` counts from 0 in the order of arrival."""

    number: int
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    time: float

    @property
    def format(self) -> str | None:
        """`json_schema`, `json_object`, or None for plain text."""
        kind: str | None = (self.body.get("response_format") or {}).get("type")
        return kind

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema the reply should follow, if one was sent."""
        wanted = (self.body.get("response_format") or {}).get("json_schema") or {}
        return wanted.get("schema")

    @property
    def text(self) -> str:
        """What all messages say, one below the other."""
        return "\n".join(str(message["content"]) for message in self.body.get("messages", ()))


@dataclass(frozen=True)
class Reply:
    """What is sent back, `wait` seconds later; a status of 0 closes the connection instead."""

    status: int = 200
    body: Mapping[str, Any] | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0


Answer = Callable[[Call], Reply]


def said(
    content: str | None,
    *,
    finish_reason: str = "stop",
    tokens: tuple[int, int] | None = (20, 10),
    wait: float = 0.0,
) -> Reply:
    """A chat completion; `tokens` are those of the prompt and of the reply."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    body: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
    body |= {"model": "loopback", "choices": [choice]}
    if tokens is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        body["usage"] = dict(zip(names, (*tokens, sum(tokens)), strict=True))
    return Reply(body=body, wait=wait)


def refused(status: int, message: str, *, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words them; `retry_after="1"` becomes the header Retry-After."""
    error = {"message": message, "type": "error", "param": None, "code": code}
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Reply(status, {"error": error}, named)


def example(schema: Mapping[str, Any], number: int = 0) -> Any:
    """A value that follows a JSON schema; another one for another number where there is a choice.

    Knows what pydantic writes for models of strings, numbers, enums, lists and nested models.
    """

    def make(part: Mapping[str, Any], place: str) -> Any:  # noqa: PLR0911
        if "$ref" in part:
            return make(schema["$defs"][part["$ref"].rpartition("/")[2]], place)
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in part:
                return make(part[choice][0], place)
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return part["enum"][number % len(part["enum"])]
        match part.get("type"):
            case "object":
                named = part.get("properties", {}).items()
                return {name: make(inner, name) for name, inner in named}
            case "array":
                count = max(1, part.get("minItems", 1))
                return [make(part.get("items", {}), f"{place} {at}") for at in range(count)]
            case "integer" | "number":
                return part.get("minimum", number)
            case "boolean":
                return number % 2 == 0
            case "null":
                return None
        return f"{place} {number}"

    return make(schema, "value")


def by_schema(call: Call) -> Reply:
    """Answers every question with an `example` of the schema it came with."""
    return said(json.dumps(example(call.schema or {}, call.number)))


class Faults:
    """Answers well, save for a share of the calls that fail in a way drawn for each.

    The way depends on the seed and on the call's number, not on timing. `made` lists what was done:
    number of the call -> kind.
    """

    KINDS = ("429", "500", "hang", "prose", "truncated", "think", "empty", "wrong schema")

    def __init__(
        self,
        good: Answer,
        *,
        share: float = 0.3,
        seed: int = 0,
        kinds: tuple[str, ...] = KINDS,
        hang: float = LONGEST_HANG,
    ) -> None:
        self._good = good
        self._share = share
        self._seed = seed
        self._kinds = kinds
        self._failures = {
            "429": refused(429, "Rate limit reached, slow down.", retry_after="0.2"),
            "500": refused(500, "The server had an error."),
            "hang": said("too late", wait=hang),
            "prose": said("Certainly! A teapot can have many colors, such as red or blue."),
            "empty": said(""),
            "wrong schema": said('{"something": "else"}'),
        }
        self.made: dict[int, str] = {}

    def __call__(self, call: Call) -> Reply:
        rng = random.Random(f"{self._seed}/{call.number}")
        if rng.random() >= self._share:
            return self._good(call)
        kind = self.made[call.number] = rng.choice(self._kinds)
        if kind in self._failures:
            return self._failures[kind]
        body: Any = self._good(call).body
        content = body["choices"][0]["message"]["content"]
        if kind == "truncated":
            return said(content[: max(1, len(content) * 2 // 3)])
        thought = 'The user wants {JSON}. Perhaps {"a": 1}? No.'
        return said(f"<think>\n{thought}\n</think>\n\nHere it is:\n```json\n{content}\n```")


def without_format(good: Answer, *refused_formats: str) -> Answer:
    """Answers 400 to calls with one of these response formats, as servers do that lack them."""

    def answer(call: Call) -> Reply:
        if call.format in refused_formats:
            return refused(400, f"response_format of type {call.format!r} is not supported")
        return good(call)

    return answer


def png_of(seed: int, width: int, height: int) -> bytes:
    """A PNG of noise, the same for the same seed and size."""
    rng = random.Random(seed)
    rows = b"".join(b"\0" + rng.randbytes(width * 3) for _ in range(height))

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def drawn(call: Call) -> Reply:
    """Image generation: `n` images of noise in the size asked for, from `seed` onwards."""
    width, height = (int(side) for side in str(call.body.get("size", "64x64")).split("x"))
    first = int(call.body.get("seed") or 0)
    seeds = range(first, first + int(call.body.get("n") or 1))
    images = [base64.b64encode(png_of(seed, width, height)).decode() for seed in seeds]
    return Reply(body={"created": 1, "data": [{"b64_json": image} for image in images]})


class Handler(BaseHTTPRequestHandler):
    """Says nothing of what it is asked."""

    protocol_version = "HTTP/1.1"  # keeps connections open, as real servers do
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who asked may be gone: no news
            super().handle_error(*address)


class Loopback:
    """A server on 127.0.0.1 and a port of its own while the block runs.

    Attributes:
        url: Its address, without a slash at the end.
    """

    def __init__(self, handler: type[Handler]) -> None:
        self._http = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class OpenAIServer(Loopback):
    """The server; its address is the api_base.

    Args:
        chat: Answers /chat/completions.
        images: Answers /images/generations.
        rpm: Refuse calls that come faster, with 429; a second's worth may come at once. How many
            did is in `violations`.
    """

    def __init__(
        self, chat: Answer = by_schema, *, images: Answer = drawn, rpm: int | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.violations = 0
        self.most_at_once = 0
        self._answers = {"/chat/completions": chat, "/images/generations": images}
        self._rpm = rpm
        self._credit = self._full = max(1.0, (rpm or 0) / 60)
        self._credited = time.monotonic()
        self._open = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        super().__init__(self._handler())
        self.url += "/v1"

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        super().__exit__()

    def _answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Reply:
        with self._lock:
            call = Call(len(self.calls), path, body, headers, time.monotonic())
            self.calls.append(call)
            if not self._within_rate(call.time):
                self.violations += 1
                wait = (1 - self._credit) * 60 / (self._rpm or 1)
                return refused(429, "Too many requests.", retry_after=f"{wait:.3f}")
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            answer = self._answers.get(path.removeprefix("/v1"))
            reply = answer(call) if answer else refused(404, f"No such path: {path}")
            # An event, so that closing the server does not wait for those that hang.
            self._closing.wait(min(reply.wait, LONGEST_HANG))
            return reply
        finally:
            with self._lock:
                self._open -= 1

    def _within_rate(self, now: float) -> bool:
        if self._rpm is None:
            return True
        grown = self._credit + (now - self._credited) * self._rpm / 60
        self._credit, self._credited = min(self._full, grown), now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def _handler(self) -> type[Handler]:
        server = self

        class Chat(Handler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or b"{}")
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = server._answer(self.path, headers, body)
                if reply.status == 0 or server._closing.is_set():
                    self.close_connection = True
                    return
                data = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data.encode())))
                    self.end_headers()
                    self.wfile.write(data.encode())
                except OSError:  # whoever asked did not wait
                    self.close_connection = True

        return Chat


class FlyingTime:
    """A clock whose sleepers wake at once; `slept` is how long they meant to sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
