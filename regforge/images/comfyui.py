"""Draws with ComfyUI: the recipe's workflow, queued once for each image.

By ComfyUI's server (server.py and execution.py of github.com/comfyanonymous/ComfyUI):

    POST /prompt               {prompt, extra_data}: puts a workflow into the queue; answers
                               {prompt_id}, or 400 with {error, node_errors}
    GET /queue                 {queue_running, queue_pending}: lists of [number, prompt_id, prompt,
                               extra_data, outputs]
    GET /history/{prompt_id}   {prompt_id: {prompt, outputs, status}} when it is done; {} before
    GET /view                  a file that a node has saved
    GET /object_info/{class}   a node's inputs, and the files that they may name

Every workflow carries a mark in its `extra_data`, so that a run which was interrupted finds what it
has asked for in queue and history, and no image is drawn twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from regforge.images.renderer import ModelIdentity, RenderSettingError
from regforge.images.servers import Server, ServerRenderer
from regforge.journal import Journal, Reporter
from regforge.providers.calls import Clock
from regforge.providers.errors import CallFailed
from regforge.recipe.rendering import Render
from regforge.recipe.workflows import WorkflowError, read_workflow
from regforge.records import ImageJob
from regforge.words import listed, nearest

_MARK = "regforge"
_FIRST_LOOK, _LATER_LOOKS = 0.1, 1.0
"""Seconds between two looks whether an image is done."""
_RECORDED = ("seed", "steps", "guidance_scale")


class ComfyRenderer(ServerRenderer):
    """A `Renderer` that has ComfyUI carry out a workflow, at one server or at several."""

    name = "ComfyUI"
    size_hint = "ComfyUI's own window says more when it loads the workflow."
    resize_hint = (
        "Set render.width: {width} and render.height: {height}; where the workflow enlarges what "
        "it draws, with render.nodes: {{width: [], height: []}}."
    )

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, clock: Clock | None = None
    ) -> None:
        assert render.workflow is not None
        try:
            self._workflow = read_workflow(render.workflow, render.nodes)
        except WorkflowError as error:
            raise RenderSettingError(f"render.workflow: {error.message}.") from error
        super().__init__(render, journal=journal, reporter=reporter, clock=clock)

    async def _greet(self, server: Server) -> ModelIdentity:
        await self._look(server)
        classes = {node["class_type"] for node in self._workflow.filled({}).values()}
        asked = [self._json(server, "GET", f"/object_info/{quote(each, '')}") for each in classes]
        about = {name: info for each in await asyncio.gather(*asked) for name, info in each.items()}
        if missing := sorted(classes - about.keys()):
            raise CallFailed(
                "refused",
                f"ComfyUI at {server.base} has no node {listed(missing, 5)}.",
                hint="Install the custom nodes that the workflow needs.",
            )
        for id_, node in self._workflow.filled({"model": self._render.model}).items():
            for name, value in node["inputs"].items():
                there = _choices(about[node["class_type"]], name)
                if isinstance(value, str) and there is not None and value not in there:
                    raise CallFailed(
                        "refused",
                        f"ComfyUI at {server.base} has no {value!r} for the {name} of node {id_} "
                        f"({node['class_type']}).",
                        hint=f"It has {listed(_nearest_first(value, there), 5)}."
                        if there
                        else "It has none at all.",
                    )
        places = self._workflow.places
        return self._identity(
            self._render.model,
            f"workflow sha256:{self._workflow.digest}",
            self._workflow.scheduler,
            sent=frozenset(("scheduler", *(key for key in _RECORDED if places[key]))),
        )

    async def _look(self, server: Server) -> None:
        """Note what a server is about to draw for us, or has drawn."""
        queue, history = await asyncio.gather(
            self._json(server, "GET", "/queue"),
            self._json(server, "GET", "/history", params={"max_items": "200"}),
        )
        done = (each["prompt"] for each in history.values() if _failure(each) is None)
        for item in (*done, *queue["queue_pending"], *queue["queue_running"]):
            if isinstance(mark := item[3].get(_MARK), str):
                server.known[mark] = item[1]

    async def _image(self, server: Server, job: ImageJob, width: int, height: int) -> bytes:
        render = self._render
        values: dict[str, Any] = {
            "prompt": _literally(job.prompt.text),
            "negative_prompt": _literally(render.negative_for(job.prompt.prompt_set)),
            "seed": job.seed,
            "width": width,
            "height": height,
            "steps": render.steps,
            "guidance_scale": render.guidance_scale,
            "model": render.model,
        }
        text = json.dumps(self._workflow.filled(values), sort_keys=True)
        mark = hashlib.sha256(f"{job.id}.{job.attempt} {text}".encode()).hexdigest()[:32]
        if (known := server.known.pop(mark, None)) is not None:
            try:
                return await self._result(server, known)
            except CallFailed as failure:  # it failed, or its file was deleted
                if failure.kind in ("unreachable", "lost", "timeout"):
                    raise
        # Another name each time: what a node has saved already, it does not save again.
        values["filename"] = f"regforge/{job.id}.{job.attempt}.{uuid.uuid4().hex[:6]}"
        body = {"prompt": self._workflow.filled(values), "extra_data": {_MARK: mark}}
        reply = await self._json(server, "POST", "/prompt", json=body)
        return await self._result(server, reply["prompt_id"])

    async def _result(self, server: Server, prompt_id: str) -> bytes:
        """The image of a workflow in the queue, when it is done."""
        wait = _FIRST_LOOK
        while (entry := await self._entry(server, prompt_id)) is None:
            queue = await self._json(server, "GET", "/queue")
            there = (*queue["queue_running"], *queue["queue_pending"])
            if not any(item[1] == prompt_id for item in there):
                # It may have been done between the two questions.
                if (entry := await self._entry(server, prompt_id)) is not None:
                    break
                raise CallFailed(
                    "server", f"{server.base} has forgotten what it was to draw: was it restarted?"
                )
            await self._caller.clock.sleep(wait)
            wait = min(_LATER_LOOKS, wait * 1.5)
        if (failure := _failure(entry)) is not None:
            raise failure
        output = self._workflow.output
        files = entry["outputs"].get(output, {}).get("images", [])
        if len(files) != 1:
            many = "1 image at a time is needed" if files else "an image is needed"
            raise CallFailed(
                "refused" if files else "server",
                f"Node {output} of the workflow saved {len(files)} images, and {many}.",
                hint="Set its batch size to 1.",
            )
        names = {name: files[0].get(name, "") for name in ("filename", "subfolder", "type")}
        return await self._bytes(server, "GET", "/view", params=names)

    async def _entry(self, server: Server, prompt_id: str) -> Any:
        """What the history says of a workflow that is done; None before."""
        history = await self._json(server, "GET", f"/history/{quote(prompt_id, '')}")
        return history.get(prompt_id)


def _nearest_first(wrong: str, there: list[str]) -> list[str]:
    near = nearest(wrong, there)
    return [near, *(each for each in there if each != near)] if near else there


def _literally(text: str) -> str:
    """A caption whose parentheses are no weights."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def _failure(entry: Mapping[str, Any]) -> CallFailed | None:
    """What kept a workflow in the history from being done, by the server's own words."""
    status = entry.get("status") or {}
    if status.get("status_str") != "error":
        return None
    for kind, what in status.get("messages") or ():
        if kind == "execution_error":
            error = f"{what.get('exception_type')}: {what.get('exception_message')}"
            memory = "memory" in error.lower()
            return CallFailed(
                "server" if memory else "refused",
                f"Node {what.get('node_id')} ({what.get('node_type')}) failed: "
                f"{' '.join(error.split())[:500]}",
                raw=json.dumps(what)[:10_000],
            )
    return CallFailed("server", "The workflow was interrupted.")


def _choices(info: Mapping[str, Any], name: str) -> list[str] | None:
    """The values that an input of a node may have; None if that is anything."""
    inputs = info.get("input", {})
    said = next((inputs[part][name] for part in _parts(inputs) if name in inputs[part]), None)
    if not isinstance(said, list) or not said:
        return None
    kind, more = said[0], said[1] if len(said) > 1 else {}
    options = kind if isinstance(kind, list) else more.get("options") if kind == "COMBO" else None
    return [str(each) for each in options] if isinstance(options, list) else None


def _parts(inputs: Mapping[str, Any]) -> Iterator[str]:
    yield from (part for part in ("required", "optional") if isinstance(inputs.get(part), dict))
