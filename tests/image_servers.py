"""Loopback servers that behave as ComfyUI and the web UI document it, or badly on purpose.

    with ComfyServer() as server:
        ...  # server.url is the api_base; server.drawn is what it has drawn

What takes time with a real one takes questions here: ComfyUI's queue goes on by one image each time
it is asked about, so that no test depends on a clock.
"""

import base64
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servers import Handler, Loopback, png_of

Answer = tuple[int, Any]
"""A status and what is sent, bytes or JSON; a status of 0 breaks the connection."""
Fault = Callable[[str, Mapping[str, Any]], Answer | None]
"""Given a path and the body, another answer than the proper one, or None."""


class _Server(Loopback):
    """Subclasses answer."""

    def __init__(self, fault: Fault = lambda path, body: None) -> None:
        self.fault = fault
        self.asked: list[str] = []
        self.logins: set[str | None] = set()
        self._lock = threading.RLock()
        super().__init__(self._handler())

    def answer(self, path: str, query: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        raise NotImplementedError

    def _handler(self) -> type[Handler]:
        server = self

        class Asked(Handler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or b"{}")
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                with server._lock:
                    server.asked.append(parts.path)
                    server.logins.add(self.headers.get("Authorization"))
                    found = server.fault(parts.path, body)
                    status, content = found or server.answer(parts.path, query, body)
                if status == 0:
                    self.close_connection = True
                    return
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

        return Asked


def plain_workflow() -> dict[str, Any]:
    """ComfyUI's first workflow: a checkpoint, two texts, one sampler."""

    def text(said: str) -> dict[str, Any]:
        return {"class_type": "CLIPTextEncode", "inputs": {"text": said, "clip": ["4", 1]}}

    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 8566257,
                "steps": 20,
                "cfg": 8.0,
                "sampler_name": "dpmpp_2m",
                "scheduler": "karras",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 32, "height": 24, "batch_size": 4},
        },
        "6": text("scenery in a glass bottle"),
        "7": text("text, watermark"),
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]},
        },
    }


class ComfyServer(_Server):
    """ComfyUI: a queue, a history, and what the plain workflow needs.

    Attributes:
        drawn: The workflows that were drawn, in order.
        wrong: What becomes of an image instead, by how many were drawn before it; see `FAILED`.
        scale: Pixels of a side for each that was asked for.
    """

    FAILED: Mapping[str, tuple[str, str]] = {
        "memory": ("torch.OutOfMemoryError", "Allocation on device"),
        "missing": ("FileNotFoundError", "no such file: clip.safetensors"),
    }

    def __init__(self, fault: Fault = lambda path, body: None) -> None:
        super().__init__(fault)
        self.checkpoints = ["v1-5.safetensors", "other.safetensors"]
        self.drawn: list[dict[str, Any]] = []
        self.wrong: dict[int, str] = {}
        self.scale = 1
        self.queue: list[list[Any]] = []
        self.history: dict[str, Any] = {}
        self._files: dict[str, bytes] = {}

    def restart(self) -> None:
        """Forget the queue and the history, as ComfyUI does when it is started again."""
        self.queue, self.history = [], {}

    def answer(self, path: str, query: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        if path == "/prompt":
            return self._queued(body)
        if path == "/queue":
            running, pending = self.queue[:1], self.queue[1:]
            self.go_on()
            return 200, {"queue_running": running, "queue_pending": pending}
        if path.startswith("/history"):
            one = path.removeprefix("/history").strip("/")
            return 200, {k: v for k, v in self.history.items() if one in ("", k)}
        if path.startswith("/object_info/"):
            name = path.rpartition("/")[2]
            classes = {node["class_type"] for node in plain_workflow().values()}
            named = {"required": {"ckpt_name": [self.checkpoints, {}]}} if "Check" in name else {}
            return 200, {name: {"input": named}} if name in classes else {}
        if path == "/view" and query.get("subfolder") == "regforge":
            return 200, self._files[query["filename"]]
        return 404, {}

    def _queued(self, body: Mapping[str, Any]) -> Answer:
        for id_, node in body["prompt"].items():
            name = node["inputs"].get("ckpt_name", self.checkpoints[0])
            if name not in self.checkpoints:
                details = f"ckpt_name: '{name}' not in {self.checkpoints}"
                errors = [{"type": "value_not_in_list", "message": "Value not in list"}]
                errors[0]["details"] = details
                node_errors = {id_: {"errors": errors, "class_type": node["class_type"]}}
                error = {"message": "Prompt outputs failed validation", "details": ""}
                return 400, {"error": error, "node_errors": node_errors}
        id_ = str(uuid.uuid4())
        self.queue.append([len(self.queue), id_, body["prompt"], body["extra_data"], ["9"]])
        return 200, {"prompt_id": id_, "number": 1, "node_errors": {}}

    def go_on(self) -> None:
        """Draw the image that is first in the queue."""
        if not self.queue:
            return
        item = self.queue.pop(0)
        workflow, wrong = item[2], self.wrong.pop(len(self.drawn), None)
        self.drawn.append(workflow)
        entry: dict[str, Any] = {"prompt": item, "outputs": {}}
        entry["status"] = {"status_str": "success", "completed": True, "messages": []}
        if wrong:
            kind, message = self.FAILED[wrong]
            what = {"node_id": "3", "node_type": "KSampler"}
            what |= {"exception_type": kind, "exception_message": message}
            entry["status"] = {"status_str": "error", "messages": [["execution_error", what]]}
        else:
            folder, _, name = workflow["9"]["inputs"]["filename_prefix"].rpartition("/")
            name += "_00001_.png"
            width, height = (workflow["5"]["inputs"][side] for side in ("width", "height"))
            seed = workflow["3"]["inputs"]["seed"]
            self._files[name] = png_of(seed, width * self.scale, height * self.scale)
            image = {"filename": name, "subfolder": folder, "type": "output"}
            entry["outputs"] = {"9": {"images": [image]}}
        self.history[item[1]] = entry


class WebuiServer(_Server):
    """The web UI: options, checkpoints, samplers, and an image for a request.

    Attributes:
        drawn: The requests that were drawn, in order.
        samplers: Their names; `schedulers` are None for a version without that list.
        info: What it says of an image besides.
    """

    def __init__(self, fault: Fault = lambda path, body: None) -> None:
        super().__init__(fault)
        self.drawn: list[Mapping[str, Any]] = []
        self.samplers = ["Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras"]
        self.schedulers: list[str] | None = None
        self.vae = "Automatic"
        self.info: dict[str, Any] = {}

    def answer(self, path: str, query: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        match path.removeprefix("/sdapi/v1/"):
            case "options":
                loaded = {"sd_model_checkpoint": "v1-5.safetensors [6ce0161689]"}
                return 200, {**loaded, "sd_vae": self.vae}
            case "sd-models":
                first = {"title": "v1-5.safetensors [6ce0161689]", "model_name": "v1-5"}
                first |= {"hash": "6ce0161689", "sha256": "6ce0" + 60 * "1"}
                other = {"title": "xl/other.safetensors", "model_name": "other", "hash": None}
                return 200, [first, {**other, "filename": "/models/xl/other.safetensors"}]
            case "samplers":
                return 200, [{"name": name, "aliases": [], "options": {}} for name in self.samplers]
            case "schedulers" if self.schedulers is not None:
                return 200, [{"name": s.lower(), "label": s} for s in self.schedulers]
            case "txt2img":
                self.drawn.append(body)
                image = png_of(body["seed"], body["width"], body["height"])
                info = {"seed": body["seed"], **self.info}
                return 200, {"images": [base64.b64encode(image).decode()], "info": json.dumps(info)}
        return 404, {"detail": "Not Found"}
