"""Draws with any diffusers text-to-image pipeline on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

from regforge.devices import (
    first_batch_size,
    free_memory,
    is_out_of_memory,
    pick_device,
    pick_dtype,
    saturating_batch_size,
)
from regforge.images.encoding import PromptCache, can_encode
from regforge.images.loading import load_pipeline, require_quantizer
from regforge.images.pipelines import (
    DENOISERS,
    as_uint8,
    call_settings,
    default_size,
    guidance_input,
    inputs_of,
    not_finite,
    place,
    set_scheduler,
)
from regforge.images.renderer import (
    ModelIdentity,
    RenderedImage,
    Renderer,
    RenderError,
    RenderSettingError,
    by_size,
    job_size,
)
from regforge.images.shortcuts import require_shortcuts, shorten
from regforge.journal import Journal, Reporter
from regforge.recipe.pipelines import ALONE, mismatch
from regforge.recipe.rendering import Render
from regforge.records import ImageJob, Prompt, without_folders
from regforge.words import first_line

_LARGEST_GPU_BATCH = 128
"""As many images as a shard has."""


def open_local(
    render: Render, *, journal: Journal, reporter: Reporter, batch_size: int | None = None
) -> LocalRenderer:
    """Load the recipe's model and make it ready to draw; see `images.open_renderer`."""
    start = time.monotonic()
    require_quantizer(render.quantize, render.device, "render.quantize", "render.device")
    device = pick_device(render.device)
    dtype = pick_dtype(render.dtype, device)
    pipeline, revision, loras, notes = load_pipeline(render, dtype)
    for note in notes:
        journal.event("lora", note=note)
        reporter.say(note)
    if made_for := mismatch(
        render.model, render.revision, render.steps, render.guidance_scale, render.config
    ):
        reporter.say(
            f"{without_folders(render.model)} is made for {made_for} (render.steps, "
            "render.guidance_scale)"
        )
    require_shortcuts(render, type(pipeline).__name__)
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
        guidance_input(pipeline) is not None,
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
    renderer = LocalRenderer(
        pipeline,
        render,
        identity,
        batch_size or first_batch_size(device, width * height),
        journal=journal,
        reporter=reporter,
    )
    free = batch_size is None and type(pipeline).__name__ not in ALONE
    if free and device.type == "cuda" and not render.compile:
        import torch

        most = first_batch_size(device, width * height, _LARGEST_GPU_BATCH)
        renderer.find_batch_size(torch.cuda.get_device_name(device), most)
    return renderer


class LocalRenderer(Renderer):
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
        self.batch_size = 1 if type(pipeline).__name__ in ALONE else batch_size
        self._pipeline = pipeline
        self._render = render
        self._journal = journal
        self._reporter = reporter
        self._settings = call_settings(pipeline, render)
        self.forget_prompts()
        self._inputs = inputs_of(pipeline).keys()
        self._uncompiled = self._compile() if render.compile else None
        self._shortcuts = shorten(pipeline, render)

    def forget_prompts(self) -> None:
        """Encode prompts anew: the weights of the text encoders have changed."""
        self._prompts: PromptCache | None = None
        if can_encode(self._pipeline):
            has_scale = guidance_input(self._pipeline) is not None
            guided = self._render.guidance_scale > 1 or not has_scale
            self._prompts = PromptCache(self._pipeline, guided=guided)

    def find_batch_size(
        self, device: str, most: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Set `batch_size` to what saturates a device, by its name; see `saturating_batch_size`.

        What is drawn for that, in two steps, is thrown away. Where it fails, nothing changes:
        `render` says what is wrong.
        """
        which, settings = self.identity, self._settings
        size = f"{which.width} x {which.height}"
        about = f"{which.model} {which.revision}, {which.dtype}, {size}, {device}"
        job = ImageJob(0, "", Prompt(0, "a photo", "", "object", "naive"), seed=0)
        self._settings = {**settings, "num_inference_steps": 2}
        with suppress(Exception):
            self.batch_size = saturating_batch_size(
                about, lambda count: self._call([job] * count), most, clock
            )
        self._settings = settings
        free_memory()
        self._journal.event("batch_size", size=self.batch_size, reason="saturates the device")

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
        self._pipeline = self._prompts = self._uncompiled = self._shortcuts = None
        free_memory()

    # -------------------------------------------------------------------------------- one batch

    def _draw_or_halve(self, batch: Sequence[ImageJob]) -> list[RenderedImage] | None:
        """None if memory did not suffice and batches are smaller now."""
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
        negatives = [self._render.negative_for(job.prompt.prompt_set) for job in batch]
        nothing = arguments.pop("negative_prompt", None)
        if self._prompts is not None:
            arguments |= self._prompts.arguments(texts, negatives)
        else:
            arguments["prompt"] = texts
            if nothing is not None:
                arguments["negative_prompt"] = [each or nothing for each in negatives]
        takes = {name: value for name, value in arguments.items() if name in self._inputs}
        if self._shortcuts is not None:
            self._shortcuts.begin(len(batch))
        with torch.inference_mode():
            return self._pipeline(**takes)

    # ------------------------------------------------------------------------- when it goes wrong

    def _halve(self, tried: int) -> None:
        free_memory()
        if tried == 1:
            raise RenderError(
                f"Memory does not suffice for a single image of {self.identity.model}.",
                hint="Try render.offload: group, render.quantize: int8, render.dtype: float16, a "
                "smaller render.width and height, or render.device: cpu.",
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
        import torch

        before = {}
        for name in DENOISERS:
            module = getattr(self._pipeline, name, None)
            if isinstance(module, torch.nn.Module):
                before[name] = module
                if getattr(module, "_repeated_blocks", None):  # one of each kind takes the time
                    cast(Any, module).compile_repeated_blocks()
                else:
                    setattr(self._pipeline, name, torch.compile(module))
        return before

    def _give_up_compiling(self, error: Exception) -> None:
        for name, module in (self._uncompiled or {}).items():
            for block in module.modules():
                block._compiled_call_impl = None
            if getattr(self._pipeline, name) is not module:
                setattr(self._pipeline, name, module)
                self._shortcuts = shorten(self._pipeline, self._render)
        self._uncompiled = None
        reason = first_line(error)
        self._journal.event("compile_failed", reason=reason)
        self._reporter.say(
            f"torch.compile does not work here ({reason[:200]}); going on without it."
        )
