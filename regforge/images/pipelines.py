"""What has to be known about diffusers pipelines to call any of them.

Which inputs a pipeline takes and under which names, how large its images are, where it computes
fastest, and what its output looks like. Knows no model by name and no recipe beyond `render`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regforge.devices import is_out_of_memory
from regforge.images.interface import Pixels, RenderError, RenderSettingError
from regforge.recipe.models import Render

if TYPE_CHECKING:
    import torch

DENOISERS = ("unet", "transformer", "prior")
"""Attributes of pipelines that hold the network which takes the most time."""

_SLICE_PIXELS = 512 * 512
"""Larger images are decoded one by one on a GPU: one keeps it busy, and many need much memory."""


def inputs_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """What calling the pipeline takes."""
    return inspect.signature(pipeline.__call__).parameters


def call_settings(pipeline: Any, render: Render) -> dict[str, Any]:
    """What every call has in common, of what the pipeline takes.

    Raises:
        RenderSettingError: The recipe has a negative prompt, and the pipeline takes none.
    """
    inputs = inputs_of(pipeline)
    guidance = _guidance_input(inputs)
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


def _guidance_input(inputs: Mapping[str, inspect.Parameter]) -> str:
    """Under which name a pipeline takes the strength of classifier-free guidance."""
    plain = inputs.get("guidance_scale")
    absent = plain is None or plain.default is None
    return "true_cfg_scale" if absent and "true_cfg_scale" in inputs else "guidance_scale"


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
    """Put the pipeline where it computes, in the way that is fastest there.

    Args:
        pipeline: In main memory.
        render: Whether parts of it stay there until used.
        device: Where to.
        pixels: Of one image.

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

    if isinstance(images, torch.Tensor):
        # What is not a number becomes black; `not_finite` tells such images from black ones.
        scaled = torch.nan_to_num(images.float()).clamp(0, 1).mul(255).round()
        pixels: Pixels = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return pixels
    if isinstance(images, np.ndarray):
        levels: Pixels = np.rint(np.nan_to_num(images).clip(0, 1) * 255).astype(np.uint8)
        return levels
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in images])


def not_finite(images: Any) -> Sequence[bool]:
    """Of each image, whether some of its numbers overflowed; `images` as in `as_uint8`."""
    import torch

    if isinstance(images, torch.Tensor):
        return [not fine for fine in torch.isfinite(images).flatten(1).all(dim=1).tolist()]
    if isinstance(images, np.ndarray):
        return [not np.isfinite(image).all() for image in images]
    return [False] * len(images)


def nsfw_flags(output: Any, count: int) -> Sequence[bool]:
    """What the pipeline's safety checker says of each image; False where there is none."""
    for name in ("nsfw_content_detected", "nsfw_detected"):
        flags = getattr(output, name, None)
        if flags is not None:
            return [bool(flag) for flag in flags]
    return [False] * count
