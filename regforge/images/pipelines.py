"""Diffusers pipelines: where they are placed, their schedulers, and the settings of their calls.

A new scheduler keeps everything that the model's own knows about the model (its betas, what it
predicts, where its steps lie).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regforge.devices import is_out_of_memory
from regforge.images.renderer import Pixels, RenderError, RenderSettingError
from regforge.recipe.pipelines import GUIDED_FROM_ZERO, UNDISTILLED, usual
from regforge.recipe.rendering import SCHEDULERS, Render
from regforge.words import did_you_mean

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

DENOISERS = ("unet", "transformer", "prior")
"""Attributes of pipelines that hold the network which takes the most time."""

_SLICE_PIXELS = 512 * 512
"""Larger images are decoded one by one on a GPU: one keeps it busy, and many need much memory."""


def inputs_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a call of the pipeline."""
    return inspect.signature(pipeline.__call__).parameters


_SIDES = {"ZImagePipeline": 128, "ZImageOmniPipeline": 128}
"""Sides of latents that are in a pipeline's code, and in none of its configurations."""


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
    parameter = inputs_of(pipeline).get(name)
    if parameter is not None and isinstance(parameter.default, int):
        return parameter.default
    latents = getattr(pipeline, "default_sample_size", None)
    for denoiser in DENOISERS:
        config = getattr(getattr(pipeline, denoiser, None), "config", {})
        latents = latents or config.get("sample_size")
    latents = latents or _SIDES.get(type(pipeline).__name__)
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
        offload = None if device.type == "cpu" else render.offload
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        elif offload == "group":
            # The next layers come on a stream of their own, where there are streams.
            streams = device.type == "cuda"
            pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=streams)
        else:
            pipeline.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RenderError(
            f"{render.model} does not fit into the memory of {device}.",
            hint="Try render.offload: model (or group), render.quantize: int8 or render.dtype: "
            "float16.",
        ) from error
    if device.type == "cuda" and offload in (None, "model"):
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


# ------------------------------------------------------------------------------------- schedulers

_SAMPLERS = {
    "euler_ancestral": "Euler a",
    "euler": "Euler",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "lms": "LMS",
    "heun": "Heun",
    "PNDMScheduler": "PLMS",
}
"""Their names in web UIs."""

# Their noise comes from a source of their own that takes no seed.
_UNREPEATABLE = frozenset({"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"})


def sampler_name(scheduler: str) -> str:
    """A scheduler's name in a web UI, given its friendly or class name."""
    by_class = {cls: name for name, (cls, _) in reversed(SCHEDULERS.items())}
    friendly = by_class.get(scheduler, scheduler)
    return _SAMPLERS.get(friendly, scheduler.removesuffix("Scheduler"))


def set_scheduler(pipeline: DiffusionPipeline, name: str | None) -> str:
    """Give the pipeline another scheduler, or keep the model's own; returns the name to record.

    The name is one of `SCHEDULERS` or a diffusers class name.

    Raises:
        RenderSettingError: There is no such scheduler, or it does not go with the model.
    """
    own: Any = getattr(pipeline, "scheduler", None)
    if name is None:
        return type(own).__name__ if own is not None else "unknown"
    if own is None:
        raise RenderSettingError(
            f"render.scheduler: {type(pipeline).__name__} has no scheduler to replace."
        )
    class_name, settings = SCHEDULERS.get(name, (name, {}))
    scheduler = _scheduler_class(name, class_name)
    _refuse_mismatch(own, scheduler, name)
    # The model's own scheduler, asked for by its class name, stays as the model has it.
    known = inspect.signature(scheduler.__init__).parameters
    settings = {key: value for key, value in settings.items() if key in known}
    made = scheduler.from_config(own.config, **settings)
    if own.config.get("rescale_betas_zero_snr") and scheduler is not type(own):
        _refuse_zero_snr(made, name)
    setattr(pipeline, "scheduler", made)  # noqa: B010
    return name


def _scheduler_class(name: str, class_name: str) -> Any:
    import diffusers

    if class_name in _UNREPEATABLE:
        raise RenderSettingError(
            f"render.scheduler: {name!r} draws its noise without a seed, so that no image could "
            "be made again.",
            hint="dpmpp_2m_karras or euler_ancestral come close.",
        )
    found = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if not (inspect.isclass(found) and issubclass(found, diffusers.SchedulerMixin)):
        raise RenderSettingError(
            f"render.scheduler: {name!r} is no scheduler.{did_you_mean(name, SCHEDULERS)}",
            hint=f"There are {', '.join(SCHEDULERS)}, and the class names of diffusers.",
        )
    return found


def _refuse_mismatch(own: Any, scheduler: Any, name: str) -> None:
    own_class = type(own)
    flow = "FlowMatch" in own_class.__name__ or bool(own.config.get("use_flow_sigmas"))
    takes_flow = "FlowMatch" in scheduler.__name__ or (
        "FlowMatch" not in own_class.__name__
        and "use_flow_sigmas" in inspect.signature(scheduler.__init__).parameters
    )
    fits = takes_flow if flow else "FlowMatch" not in scheduler.__name__
    if scheduler is own_class or fits:
        return
    kind = "a flow-matching model" if flow else "no flow-matching model"
    raise RenderSettingError(
        f"render.scheduler: {name!r} does not go with this model, which is {kind} and comes with "
        f"{own_class.__name__}.",
        hint="Leave render.scheduler out.",
    )


def _refuse_zero_snr(scheduler: Any, name: str) -> None:
    """See that a model whose last time step is pure noise is drawn with from there.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed" (arXiv 2305.08891).
    """
    if "rescale_betas_zero_snr" not in inspect.signature(scheduler.__init__).parameters:
        why = "does not begin there, and its images would be gray"
    elif scheduler.config.get("use_karras_sigmas"):
        why = "spaces steps by noise levels, which have no end there (Karras)"
    else:
        return
    raise RenderSettingError(
        f"render.scheduler: {name!r} does not go with this model, which was trained down to pure "
        f"noise (zero terminal SNR): it {why}.",
        hint="ddim, euler, euler_ancestral, dpmpp_2m and unipc do, or leave render.scheduler out.",
    )


# ------------------------------------------------------------------------------------------- calls

# Nothing rewrites prompts, neither a language model nor a package that may or may not be here: they
# would not be the captions that are recorded. And one guidance scale holds for all steps.
_PLAIN = {
    "clean_caption": False,
    "use_pe": False,
    "enable_prompt_rewrite": False,
    "prompt_upsampling": False,
    "guidance_schedule": None,
}


def guidance_input(pipeline: Any) -> str | None:
    """The argument of a call that classifier-free guidance depends on; None if there is none.

    Some pipelines keep their guidance in a part of their own (HunyuanImage 2.1).
    """
    inputs = inputs_of(pipeline)
    scale = inputs.get("guidance_scale")
    if scale is not None and (scale.default is not None or "guidance_schedule" in inputs):
        return "guidance_scale"
    names = ["true_cfg_scale", "prior_guidance_scale", "guidance_scale"]
    transformer = getattr(pipeline, "transformer", None)
    if transformer is not None and getattr(transformer.config, "guidance_embeds", False):
        names.append("distilled_guidance_scale")
    return next((name for name in names if name in inputs), None)


def guidance_of(pipeline: Any, scale: float) -> dict[str, float]:
    """A guidance scale, 1 being none, as the pipeline's argument; empty if it takes none."""
    name = guidance_input(pipeline)
    from_zero = type(pipeline).__name__ in GUIDED_FROM_ZERO
    return {} if name is None else {name: max(0.0, scale - 1) if from_zero else scale}


def require_negative_prompt(pipeline_class: type | None, render: Render) -> None:
    """See that a recipe's negative prompt reaches the model; None is a class that nobody knows.

    Raises:
        RenderSettingError: The pipeline takes none.
    """
    if pipeline_class is None or not render.has_negatives:
        return
    inputs = inspect.signature(pipeline_class.__call__).parameters
    scale = inputs.get("guidance_scale")
    # A distilled model's `guidance_scale` is an input like any other, without a negative side.
    distilled = scale is not None and scale.default is not None and "true_cfg_scale" in inputs
    if "negative_prompt" not in inputs or distilled:
        raise RenderSettingError(
            f"{render.model} takes no negative prompt ({pipeline_class.__name__}).",
            hint="Leave render.negative_prompt out.",
        )


def call_settings(pipeline: Any, render: Render) -> dict[str, Any]:
    """The arguments that all calls have in common, of those that the pipeline takes.

    Raises:
        RenderSettingError: The recipe has a negative prompt, and the pipeline takes none; or a
            guidance scale likewise.
    """
    inputs, kind, scale = inputs_of(pipeline), type(pipeline).__name__, render.guidance_scale
    guidance = guidance_input(pipeline)
    require_negative_prompt(type(pipeline), render)
    if guidance is None and scale not in (
        UNDISTILLED.guidance_scale,
        (usual(render.model) or UNDISTILLED).guidance_scale,
    ):
        raise RenderSettingError(
            f"{render.model} takes no guidance scale: it guides as it was configured ({kind}).",
            hint="Leave render.guidance_scale out.",
        )
    settings: dict[str, Any] = {
        "num_inference_steps": render.steps,
        # Without a processor of images, "pt" is what the decoder gave, from -1 to 1.
        "output_type": "pt" if hasattr(pipeline, "image_processor") else "np",
        **_PLAIN,
        **guidance_of(pipeline, scale),
    }
    if scale > 1 and guidance == "true_cfg_scale":
        settings["negative_prompt"] = " "  # without one these pipelines do not guide at all
    elif scale > 1 and render.has_negatives:
        settings["negative_prompt"] = ""  # of images whose prompt set has none
    return {name: value for name, value in settings.items() if name in inputs}
