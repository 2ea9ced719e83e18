"""The door to all renderers.

Knows which kinds there are and opens the one that a recipe asks for. What a renderer is,
`interface` says; how it draws, `local` and `hosted` know.
"""

from __future__ import annotations

from regforge.images.interface import (
    ModelIdentity,
    ModelUnavailable,
    RenderedImage,
    Renderer,
    RenderError,
    RenderSettingError,
    batches,
    job_size,
)
from regforge.journal import Journal
from regforge.progress import Reporter
from regforge.recipe.models import Render

__all__ = [
    "ModelIdentity",
    "ModelUnavailable",
    "RenderError",
    "RenderSettingError",
    "RenderedImage",
    "Renderer",
    "batches",
    "job_size",
    "open_renderer",
    "require_renderer",
]


def require_renderer(render: Render) -> None:
    """See that the recipe's model is there and can be drawn with; nothing is loaded.

    A model or LoRA of the Hub is downloaded if it is not on this machine.

    Args:
        render: The `render` section of the recipe.

    Raises:
        ModelUnavailable: The model is not there, may not be used, or is no text-to-image model; of
            an image service, there is no key.
        LoraError: A LoRA is not there, or is none.
        RenderSettingError: A setting that image services do not take.
    """
    if render.renderer == "hosted":
        from regforge.images.hosted import require_service

        require_service(render)
        return
    from regforge.images.loading import choice_of, find_model, require_vae
    from regforge.images.loras import find_loras

    find_loras(render.lora)
    if render.vae is not None:
        require_vae(render.vae)
    find_model(choice_of(render))


def open_renderer(
    render: Render, *, journal: Journal, reporter: Reporter, batch_size: int | None = None
) -> Renderer:
    """Make the recipe's renderer ready to draw: load its model, or find its service.

    Args:
        render: The `render` section of the recipe.
        journal: Where calls, timings and refusals are written down.
        reporter: Where people are told about a smaller batch and the like.
        batch_size: What an earlier session of the same run settled on; it goes before `auto`.

    Raises:
        ModelUnavailable: The model is not there, may not be used, or is no text-to-image model.
        RenderSettingError: A setting does not go with the model or the machine.
    """
    if render.renderer == "hosted":
        from regforge.images.hosted import HostedRenderer

        return HostedRenderer(render, journal=journal, reporter=reporter)
    from regforge.images.local import open_local

    return open_local(render, journal=journal, reporter=reporter, batch_size=batch_size)
