"""What the settings of a recipe are in the call of a pipeline, named differently by families."""

from __future__ import annotations

import inspect
from typing import Any

from regforge.images.pipelines import inputs_of
from regforge.images.renderer import RenderSettingError
from regforge.recipe.pipelines import GUIDED_FROM_ZERO, UNDISTILLED, usual
from regforge.recipe.rendering import Render

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
