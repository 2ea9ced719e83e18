"""Renderers and curation. Opens the renderer that a recipe asks for, here or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from regforge.journal import Journal, Reporter

if TYPE_CHECKING:
    from regforge.images.renderer import Renderer
    from regforge.recipe.rendering import Render

Engine = Literal["local", "ray"]
"""Where images are drawn: in this process, or by the workers of a Ray cluster."""


def require_renderer(render: Render) -> None:
    """See that the recipe's model is there and can be drawn with; nothing is loaded.

    A model or LoRA of the Hub is downloaded if it is not on this machine.

    Raises:
        ModelUnavailable: The model is not there, may not be used, or is no text-to-image model; of
            an image service, there is no key or no server.
        LoraError: A LoRA is not there, or is none.
        RenderSettingError: A setting that image services do not take, or a server does not have.
    """
    if render.renderer == "local":
        from regforge.images.loading import require_model

        require_model(render)
    elif render.renderer == "hosted":
        from regforge.images.services import require_service

        require_service(render)
    elif render.renderer != "files":  # opening it asks the servers
        open_renderer(render, journal=Journal(None), reporter=Reporter(quiet=True)).close()


def require_engine(render: Render, engine: Engine, workers: int | None) -> None:
    """See that a recipe can be drawn by an engine; nothing is started.

    Raises:
        ClusterSettingError: Ray is not installed or has nothing to do, or `workers` is no number of
            its workers.
        ClusterError: Nobody answers at RAY_ADDRESS.
        RenderSettingError: This machine is to draw and cannot quantize; workers say it themselves.
    """
    from regforge.images.loading import require_quantizer
    from regforge.images.ray_cluster import ClusterSettingError, require_cluster

    if engine not in get_args(Engine):
        raise ClusterSettingError(f"There is no engine {engine!r}: it is local or ray.")
    if workers is not None and (engine == "local" or workers < 1):
        raise ClusterSettingError(
            f"--workers {workers}: it is the number of workers of --engine ray, 1 or more."
        )
    if engine == "ray":
        require_cluster(render)
    else:
        require_quantizer(render.quantize, render.device, "render.quantize", "render.device")


def open_renderer(
    render: Render,
    *,
    journal: Journal,
    reporter: Reporter,
    batch_size: int | None = None,
    engine: Engine = "local",
    workers: int | None = None,
) -> Renderer:
    """Make the recipe's renderer ready to draw: load its model, or find its service.

    The `batch_size` of an earlier session of the same run goes before `auto`. The engine `ray` has
    so many `workers`; one for each GPU by default.

    Raises:
        ModelUnavailable: The model is not there, may not be used, or is no text-to-image model.
        RenderSettingError: A setting does not go with the model or the machine.
        ClusterError: There is no Ray cluster.
    """
    if engine == "ray":
        from regforge.images.ray_engine import RayRenderer

        return RayRenderer(
            render,
            journal=journal,
            reporter=reporter,
            batch_size=batch_size,
            opener=open_renderer,
            workers=workers,
        )
    if render.renderer == "hosted":
        from regforge.images.services import HostedRenderer

        return HostedRenderer(render, journal=journal, reporter=reporter)
    if render.renderer == "comfyui":
        from regforge.images.comfyui import ComfyRenderer

        return ComfyRenderer(render, journal=journal, reporter=reporter)
    if render.renderer == "files":
        from regforge.images.elsewhere import ElsewhereRenderer

        return ElsewhereRenderer(render, journal=journal)
    if render.renderer == "a1111":
        from regforge.images.webui import WebuiRenderer

        return WebuiRenderer(render, journal=journal, reporter=reporter)
    from regforge.images.local import open_local

    return open_local(render, journal=journal, reporter=reporter, batch_size=batch_size)
