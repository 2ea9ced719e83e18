"""Draws with the API of the AUTOMATIC1111 web UI, which Forge and SD.Next have too.

By modules/api/api.py and modules/api/models.py of github.com/AUTOMATIC1111/stable-diffusion-webui:

    GET /sdapi/v1/options      {sd_model_checkpoint, sd_vae, ...}: what it has loaded
    GET /sdapi/v1/sd-models    [{title, model_name, hash, sha256, filename}]
    GET /sdapi/v1/samplers     [{name, aliases, options}]
    GET /sdapi/v1/schedulers   [{name, label}]: since its version 1.9, and in Forge
    POST /sdapi/v1/txt2img     draws; answers {images: [base64], info: JSON as text}

The server answers when the image is done. Nothing can be asked for twice without being drawn twice,
so an image that was under way when a run was interrupted is drawn again.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from regforge.files import parse_json
from regforge.images.pipelines import sampler_name
from regforge.images.renderer import ModelIdentity, RenderSettingError
from regforge.images.servers import Server, ServerRenderer
from regforge.journal import Journal, Reporter
from regforge.providers.calls import Clock
from regforge.providers.errors import CallFailed
from regforge.recipe.rendering import AS_LOADED, Render
from regforge.records import ImageJob, without_folders
from regforge.words import listed, nearest

_TIMEOUT = 1800.0
"""Seconds for an image: others may be drawn before it."""
_OWN_VAE = ("", "None", "none", "Automatic", None)


class WebuiRenderer(ServerRenderer):
    """A `Renderer` that asks web UIs for one image after the other."""

    name = "a web UI"
    size_hint = "Its own window says more."

    def __init__(
        self, render: Render, *, journal: Journal, reporter: Reporter, clock: Clock | None = None
    ) -> None:
        self._requests = dict[str, dict[str, Any]]()
        super().__init__(render, journal=journal, reporter=reporter, clock=clock)

    async def _greet(self, server: Server) -> ModelIdentity:
        render = self._render
        options, models, samplers = [
            await self._json(server, "GET", f"/sdapi/v1/{what}")
            for what in ("options", "sd-models", "samplers")
        ]
        wanted = render.model if render.model != AS_LOADED else options["sd_model_checkpoint"]
        model = next((each for each in models if wanted in _names(each)), None)
        if model is None:
            raise RenderSettingError(
                f"render.model: {server.base} has no checkpoint {wanted!r}.",
                hint=f"It has {listed([str(each['title']) for each in models], 5) or 'none'}.",
            )
        known = {name for each in samplers for name in (each["name"], *(each.get("aliases") or ()))}
        sampler = sampler_name(render.scheduler or "euler")
        chosen = {"sampler_name": sampler}
        name, _, scheduler = sampler.rpartition(" ")
        if sampler not in known and name in known:  # what was one name is two since 1.9
            if scheduler not in {each["label"] for each in await self._schedulers(server)}:
                name = ""
            chosen = {"sampler_name": name, "scheduler": scheduler}
        if chosen["sampler_name"] not in known:
            near = nearest(sampler, known)
            raise RenderSettingError(
                f"render.scheduler: {server.base} has no sampler {sampler!r}.",
                hint=f"Did you mean {near!r}?" if near else f"It has {listed(sorted(known), 12)}.",
            )
        self._requests[server.base] = {
            **chosen,
            "override_settings": {"sd_model_checkpoint": model["title"]},
            # Going back to another checkpoint after each image would load both each time.
            "override_settings_restore_afterwards": False,
        }
        extra = [options.get("sd_vae"), *options.get("forge_additional_modules", ())]
        vae = listed([without_folders(str(each)) for each in extra if each not in _OWN_VAE])
        digest = f"sha256:{model['sha256']}" if model.get("sha256") else model.get("hash")
        return self._identity(
            re.sub(r" \[\w+\]$", "", str(model["title"])),
            ", ".join(filter(None, (digest, vae and f"VAE {vae}"))) or None,
            sampler,
            vae=vae or None,
        )

    async def _schedulers(self, server: Server) -> Any:
        try:
            return await self._json(server, "GET", "/sdapi/v1/schedulers")
        except CallFailed as failure:
            if failure.kind != "refused":
                raise
            return []  # older ones, and SD.Next

    async def _image(self, server: Server, job: ImageJob, width: int, height: int) -> bytes:
        render = self._render
        reply = await self._json(
            server,
            "POST",
            "/sdapi/v1/txt2img",
            json={
                "prompt": _literally(job.prompt.text),
                "negative_prompt": _literally(render.negative_for(job.prompt.prompt_set)),
                "seed": job.seed,
                "width": width,
                "height": height,
                "steps": render.steps,
                "cfg_scale": render.guidance_scale,
                "batch_size": 1,
                "n_iter": 1,
                **self._requests[server.base],
            },
            patience=_TIMEOUT,
        )
        images = reply["images"]
        if not images:
            raise CallFailed("server", f"{server.base} sent no image.")
        self._see_to_it(server, job, reply.get("info"))
        try:
            return base64.b64decode(images[0].rpartition(",")[2], validate=True)
        except binascii.Error as error:
            raise CallFailed("server", "The answer is not readable.") from error

    def _see_to_it(self, server: Server, job: ImageJob, info: Any) -> None:
        """What it says of the image must be what the rows will say.

        Raises:
            CallFailed: It drew with something else than it was asked to.
        """
        try:
            said = parse_json(info) if isinstance(info, str) else info
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        seed, model = said.get("seed"), said.get("sd_model_name")
        ours = without_folders(self.identity.model)
        if isinstance(seed, int) and seed != job.seed:
            raise CallFailed("refused", f"{server.base} drew seed {seed} in place of {job.seed}.")
        if isinstance(model, str) and not ours.startswith(without_folders(model)):
            raise CallFailed("refused", f"{server.base} drew with {model} in place of {ours}.")


def _names(model: dict[str, Any]) -> set[Any]:
    """What a checkpoint may be called."""
    title = str(model["title"])
    file = without_folders(str(model.get("filename") or title))
    names = {title, re.sub(r" \[\w+\]$", "", title), file, model.get("model_name")}
    return (names | {model.get("hash"), model.get("sha256")}) - {None, ""}


def _literally(text: str) -> str:
    """A caption whose brackets are no weights."""
    return re.sub(r"(?<!\\)([()\[\]])", r"\\\1", text)
