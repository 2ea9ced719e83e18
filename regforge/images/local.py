"""Draws with any diffusers text-to-image pipeline on this machine."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regforge.devices import (
    first_batch_size,
    free_memory,
    is_out_of_memory,
    pick_device,
    pick_dtype,
)
from regforge.images.loading import load_pipeline
from regforge.images.prompt_cache import PromptCache, can_encode
from regforge.images.renderer import (
    ModelIdentity,
    Pixels,
    RenderedImage,
    RenderError,
    RenderSettingError,
    by_size,
    job_size,
)
from regforge.images.schedulers import set_scheduler
from regforge.journal import Journal, Reporter
from regforge.recipe.models import Render
from regforge.records import ImageJob, without_folders
from regforge.words import first_line

if TYPE_CHECKING:
    import torch

DENOISERS = ("unet", "transformer", "prior")
"""Attributes of pipelines that hold the network which takes the most time."""

_SLICE_PIXELS = 512 * 512
"""Larger images are decoded one by one on a GPU: one keeps it busy, and many need much memory."""


def open_local(
    render: Render, *, journal: Journal, reporter: Reporter, batch_size: int | None = None
) -> LocalRenderer:
    """Load the recipe's model and make it ready to draw; see `images.open_renderer`."""
    start = time.monotonic()
    device = pick_device(render.device)
    dtype = pick_dtype(render.dtype, device)
    pipeline, revision, loras, notes = load_pipeline(render, dtype)
    for note in notes:
        journal.event("lora", note=note)
        reporter.say(note)
    scheduler = set_scheduler(pipeline, render.scheduler)
    width, height = default_size(pipeline, render)
    identity = ModelIdentity(
        without_folders(render.model),
        revision,
        scheduler,
        str(dtype).removeprefix("torch."),
        width,
        height,
        loras,
        render.vae and without_folders(render.vae),
    )
    place(pipeline, render, device, width * height)
    journal.event(
        "model_loaded",
        model=identity.model,
        revision=identity.revision,
        dtype=identity.dtype,
        device=str(device),
        seconds=round(time.monotonic() - start, 3),
    )
    if render.batch_size != "auto":
        batch_size = render.batch_size
    return LocalRenderer(
        pipeline,
        render,
        identity,
        batch_size or first_batch_size(device, width * height),
        journal=journal,
        reporter=reporter,
    )


class LocalRenderer:
    """A `Renderer` on a loaded pipeline that is on its device.

    Every image has noise of its own, from its own seed and made on the CPU, so that it does not
    depend on its batch, nor on the device.
    """

    def __init__(
        self,
        pipeline: Any,
        render: Render,
        identity: ModelIdentity,
        batch_size: int,
        *,
        journal: Journal,
        reporter: Reporter,
    ) -> None:
        self.identity = identity
        self.batch_size = batch_size
        self._pipeline = pipeline
        self._render = render
        self._journal = journal
        self._reporter = reporter
        self._settings = call_settings(pipeline, render)
        self._prompts = None
        if can_encode(pipeline):
            guided = render.guidance_scale > 1
            self._prompts = PromptCache(pipeline, render.negative_prompt, guided=guided)
        self._inputs = inputs_of(pipeline).keys()
        self._uncompiled = self._compile() if render.compile else None

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`."""
        groups = by_size(jobs, self.identity)
        if self._prompts is not None:
            self._prompts.expect([job.prompt.text for group in groups for job in group])
        for group in groups:
            done = 0
            while done < len(group):
                batch = group[done : done + self.batch_size]
                images = self._draw_or_halve(batch)
                if images is not None:
                    yield from images
                    done += len(batch)

    def close(self) -> None:
        """Forget the model and give its memory back."""
        self._pipeline = self._prompts = self._uncompiled = None
        free_memory()

    # -------------------------------------------------------------------------------- one batch

    def _draw_or_halve(self, batch: Sequence[ImageJob]) -> list[RenderedImage] | None:
        """The batch's images, or None if memory did not suffice and batches are smaller now."""
        try:
            return self._draw(batch)
        except RenderError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise self._problem(batch, error) from error
        # Out of the block above, or the error would keep the batch's memory from being freed.
        self._halve(len(batch))
        return None

    def _draw(self, batch: Sequence[ImageJob]) -> list[RenderedImage]:
        try:
            output = self._call(batch)
        except Exception as error:
            if self._uncompiled is None or is_out_of_memory(error):
                raise
            self._give_up_compiling(error)
            output = self._call(batch)
        self._uncompiled = None  # it works; nothing to go back to
        images = as_uint8(output.images)
        flags = [False] * len(batch)
        for name in ("nsfw_content_detected", "nsfw_detected"):
            flags = getattr(output, name, None) or flags
        width, height = job_size(batch[0], self.identity)
        if images.shape != (len(batch), height, width, 3):
            _, got_height, got_width, _ = images.shape
            raise RenderSettingError(
                f"{width} x {height} pixels were asked for, and {self.identity.model} draws "
                f"{got_width} x {got_height}.",
                hint=f"Set render.width: {got_width} and render.height: {got_height}.",
            )
        return [
            RenderedImage(job, pixels, bool(nsfw), overflowed)
            for job, pixels, nsfw, overflowed in zip(
                batch, images, flags, not_finite(output.images), strict=True
            )
        ]

    def _call(self, batch: Sequence[ImageJob]) -> Any:
        import torch

        width, height = job_size(batch[0], self.identity)
        arguments = {**self._settings, "width": width, "height": height}
        arguments["generator"] = [torch.Generator("cpu").manual_seed(job.seed) for job in batch]
        texts = [job.prompt.text for job in batch]
        negative = arguments.pop("negative_prompt", None)
        if self._prompts is not None:
            arguments |= self._prompts.arguments(texts)
        else:
            arguments["prompt"] = texts
            if negative is not None:
                arguments["negative_prompt"] = [negative] * len(batch)
        takes = {name: value for name, value in arguments.items() if name in self._inputs}
        with torch.inference_mode():
            return self._pipeline(**takes)

    # ------------------------------------------------------------------------- when it goes wrong

    def _halve(self, tried: int) -> None:
        free_memory()
        if tried == 1:
            raise RenderError(
                f"Memory does not suffice for a single image of {self.identity.model}.",
                hint="Try render.offload: true, render.dtype: float16, a smaller render.width and "
                "height, or render.device: cpu.",
            )
        # The last batch of a size can be smaller than the others.
        self.batch_size = max(1, min(tried, self.batch_size) // 2)
        self._journal.event("batch_size", size=self.batch_size, reason="out of memory")
        self._reporter.say(
            f"Out of memory with {tried} images at a time; going on with {self.batch_size}."
        )

    def _problem(self, batch: Sequence[ImageJob], error: Exception) -> RenderError:
        width, height = job_size(batch[0], self.identity)
        reason = first_line(error)
        if isinstance(error, ValueError) and ("height" in reason or "width" in reason):
            return RenderSettingError(
                f"{self.identity.model} cannot draw {width} x {height} pixels: {reason}.",
                hint="Most models want multiples of 8, some of 16 or 64.",
            )
        kind = type(error).__name__
        return RenderError(
            f"{self.identity.model} failed on image {batch[0].id}: {kind}: {reason}.",
            hint="Nothing that was made is lost. If it happens again, try another "
            "render.scheduler, render.dtype: float32 or render.compile: false.",
        )

    # ---------------------------------------------------------------------------------- compiling

    def _compile(self) -> dict[str, Any]:
        """Compile the denoiser; returns its networks as they were before, by name."""
        import torch

        before = {}
        for name in DENOISERS:
            module = getattr(self._pipeline, name, None)
            if isinstance(module, torch.nn.Module):
                before[name] = module
                setattr(self._pipeline, name, torch.compile(module))
        return before

    def _give_up_compiling(self, error: Exception) -> None:
        for name, module in (self._uncompiled or {}).items():
            setattr(self._pipeline, name, module)
        self._uncompiled = None
        reason = first_line(error)
        self._journal.event("compile_failed", reason=reason)
        self._reporter.say(
            f"torch.compile does not work here ({reason[:200]}); going on without it."
        )


# ---------------------------------------------------------------------------- diffusers pipelines


def inputs_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a call of the pipeline."""
    return inspect.signature(pipeline.__call__).parameters


def call_settings(pipeline: Any, render: Render) -> dict[str, Any]:
    """The arguments that all calls have in common, of those that the pipeline takes.

    Raises:
        RenderSettingError: The recipe has a negative prompt, and the pipeline takes none.
    """
    inputs = inputs_of(pipeline)
    scale = inputs.get("guidance_scale")
    absent = scale is None or scale.default is None
    guidance = "true_cfg_scale" if absent and "true_cfg_scale" in inputs else "guidance_scale"
    # A distilled model's `guidance_scale` is an input like any other, without a negative side.
    distilled = guidance == "guidance_scale" and "true_cfg_scale" in inputs
    if render.negative_prompt and ("negative_prompt" not in inputs or distilled):
        raise RenderSettingError(
            f"{render.model} takes no negative prompt ({type(pipeline).__name__}).",
            hint="Leave render.negative_prompt out.",
        )
    settings: dict[str, Any] = {
        "num_inference_steps": render.steps,
        guidance: render.guidance_scale,
        "output_type": "pt",
    }
    if render.guidance_scale > 1:
        if render.negative_prompt:
            settings["negative_prompt"] = render.negative_prompt
        elif guidance == "true_cfg_scale":
            settings["negative_prompt"] = " "  # without one these pipelines do not guide at all
    return {name: value for name, value in settings.items() if name in inputs}


def default_size(pipeline: Any, render: Render) -> tuple[int, int]:
    """Width and height of an image, in pixels: the recipe's, else the model's own.

    Raises:
        RenderSettingError: Neither says.
    """
    width = render.width or _own_side(pipeline, "width")
    height = render.height or _own_side(pipeline, "height")
    if width is None or height is None:
        raise RenderSettingError(
            f"{render.model} does not say how large its images are.",
            hint="Set render.width and render.height.",
        )
    return width, height


def _own_side(pipeline: Any, name: str) -> int | None:
    """Width or height of the images that a pipeline makes by itself, in pixels."""
    parameter = inputs_of(pipeline).get(name)
    if parameter is not None and isinstance(parameter.default, int):
        return parameter.default
    latents = getattr(pipeline, "default_sample_size", None)
    for denoiser in DENOISERS:
        config = getattr(getattr(pipeline, denoiser, None), "config", {})
        latents = latents or config.get("sample_size")
    factor = getattr(pipeline, "vae_scale_factor", None)
    return latents * factor if isinstance(latents, int) and isinstance(factor, int) else None


def place(pipeline: Any, render: Render, device: torch.device, pixels: int) -> None:
    """Put the pipeline where it computes, in the way that is fastest for images of so many pixels.

    Raises:
        RenderError: It is too large for the device.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "watermark", None) is not None:
        # SDXL marks its images if a certain library happens to be installed. Models that are
        # trained on the images would learn to draw the mark.
        pipeline.watermark = None
    try:
        if render.offload and device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RenderError(
            f"{render.model} does not fit into the memory of {device}.",
            hint="Try render.offload: true or render.dtype: float16.",
        ) from error
    if device.type == "cuda":
        # Convolutions are faster with the channels last there. On a CPU they are slower.
        for module in (getattr(pipeline, name, None) for name in ("unet", "vae")):
            if module is not None:
                module.to(memory_format=torch.channels_last)
        if pixels > _SLICE_PIXELS and hasattr(getattr(pipeline, "vae", None), "enable_slicing"):
            pipeline.vae.enable_slicing()


def as_uint8(images: Any) -> Pixels:
    """A pipeline's images as uint8 [N, H, W, 3], with one copy from the device.

    Args:
        images: A tensor [N, 3, H, W] or an array [N, H, W, 3] with values 0 to 1, or PIL images.
    """
    import torch

    pixels: Pixels
    if isinstance(images, torch.Tensor):
        # What is not a number becomes black; `not_finite` tells such images from black ones.
        scaled = torch.nan_to_num(images.float()).clamp(0, 1).mul(255).round()
        pixels = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    elif isinstance(images, np.ndarray):
        pixels = np.rint(np.nan_to_num(images).clip(0, 1) * 255).astype(np.uint8)
    else:
        pixels = np.stack([np.asarray(each.convert("RGB"), dtype=np.uint8) for each in images])
    return pixels


def not_finite(images: Any) -> Sequence[bool]:
    """Of each image, whether some of its numbers overflowed; `images` as in `as_uint8`."""
    import torch

    if isinstance(images, torch.Tensor):
        return [not fine for fine in torch.isfinite(images).flatten(1).all(dim=1).tolist()]
    if isinstance(images, np.ndarray):
        return [not np.isfinite(image).all() for image in images]
    return [False] * len(images)
