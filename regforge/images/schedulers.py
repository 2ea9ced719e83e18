"""Schedulers by the names that people use.

A new scheduler keeps everything that the model's own knows about the model (its betas, what it
predicts, where its steps lie).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from regforge.images.renderer import RenderSettingError
from regforge.words import did_you_mean

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": False}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
}
"""Friendly name -> diffusers class and what it is set to."""

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
    by_class = {cls: name for name, (cls, _) in reversed(NAMES.items())}
    friendly = by_class.get(scheduler, scheduler)
    return _SAMPLERS.get(friendly, scheduler.removesuffix("Scheduler"))


def set_scheduler(pipeline: DiffusionPipeline, name: str | None) -> str:
    """Give the pipeline another scheduler.

    Its name is one of `NAMES`, a diffusers class name, or None for the model's own. Returns the
    name to record: the given one, or the class of the model's own.

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
    class_name, settings = NAMES.get(name, (name, {}))
    scheduler = _scheduler_class(name, class_name)
    _refuse_mismatch(own, scheduler, name)
    # The model's own scheduler, asked for by its class name, stays as the model has it.
    known = inspect.signature(scheduler.__init__).parameters
    settings = {key: value for key, value in settings.items() if key in known}
    setattr(pipeline, "scheduler", scheduler.from_config(own.config, **settings))  # noqa: B010
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
            f"render.scheduler: {name!r} is no scheduler.{did_you_mean(name, NAMES)}",
            hint=f"There are {', '.join(NAMES)}, and the class names of diffusers.",
        )
    return found


def _refuse_mismatch(own: Any, scheduler: Any, name: str) -> None:
    """Flow-matching models and noise-predicting models have different kinds of schedulers."""
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
