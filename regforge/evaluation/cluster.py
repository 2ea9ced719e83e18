"""Draws what an evaluation lacks with the workers of a Ray cluster, before it is scored."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regforge.errors import RegforgeError
from regforge.evaluation.drawing import ModelPool, is_made_from
from regforge.evaluation.planning import ModelPlan, Plan
from regforge.evaluation.suites import ImageRequest, PersonalizedModel
from regforge.files import write_atomically
from regforge.images.ray_cluster import ClusterError, connect, shares
from regforge.words import first_line

_AT_ONCE = 64
"""Images that a worker is given at a time: whole batches of the sizes that are usual."""
_MOST_DEATHS = 4
"""Times that a worker is started again."""
_SETTINGS = ("device", "dtype", "steps", "guidance_scale", "batch_size", "resolution")
"""What decides the images of a pool of models."""


class _Drawer:
    """What a worker runs: it keeps the base model for the next model on it."""

    def __init__(self, pool: dict[str, Any]) -> None:
        self._pool = ModelPool(**pool)

    def draw(
        self, number: int, model: PersonalizedModel, requests: Sequence[ImageRequest]
    ) -> tuple[int, list[bytes], list[str]] | RegforgeError:
        """The number again, the images as PNG files, and what people should know about them."""
        try:
            with tempfile.TemporaryDirectory() as folder, self._pool.use(model) as loaded:
                for _ in loaded.draw(requests, folder=Path(folder)):
                    pass
                files = [Path(folder, str(each.file)).read_bytes() for each in requests]
        except RegforgeError as error:
            return error  # Ray would wrap it
        return number, files, self._pool.notes


def draw_on_cluster(plan: Plan, folder: Path, workers: int | None) -> None:
    """Draw the images of all models that are not in the folder yet, and write them there.

    Models have to be at the same paths on all machines.

    Raises:
        ClusterError: There is no cluster, or its workers die again and again.
        RegforgeError: What a worker says that it cannot draw.
    """
    import ray
    from ray.util import ActorPool

    pool = plan.pool
    parts = list(_missing(plan, folder))
    if not parts:
        return
    ours = not ray.is_initialized()
    if ours:
        connect()
    try:
        workers, options = shares(workers, gpus=pool.device != "cpu")
        settings = {key: getattr(pool, key) for key in _SETTINGS}
        drawer: Any = ray.remote(_Drawer).options(
            **options, max_restarts=_MOST_DEATHS, max_task_retries=_MOST_DEATHS
        )
        drawers = [drawer.remote(settings) for _ in range(min(workers, len(parts)))]
        with pool.reporter.task("drawing", sum(len(p[1]) for p in parts), "images") as task:
            for answer in ActorPool(drawers).map_unordered(
                lambda actor, number: actor.draw.remote(
                    number, parts[number][0].model, parts[number][1]
                ),
                list(range(len(parts))),
            ):
                if isinstance(answer, RegforgeError):
                    raise answer
                number, files, notes = answer
                model, requests = parts[number]
                for request, content in zip(requests, files, strict=True):
                    write_atomically(folder / model.folder / str(request.file), content)
                for note in notes:
                    pool.note(note)
                task.advance(len(files))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"The workers of Ray cannot draw: {first_line(error)}.",
            hint="Nothing that was drawn is lost: the same command goes on.",
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _missing(plan: Plan, folder: Path) -> Iterator[tuple[ModelPlan, Sequence[ImageRequest]]]:
    """What is not drawn yet: models, and whole batches of each."""
    batch = plan.pool.batch_size or 1
    size = max(1, _AT_ONCE // batch) * batch
    for each in plan.models:
        facts = plan.pool.settings_for(each.model)
        for start in range(0, len(each.drawn), size):
            requests = each.drawn[start : start + size]
            if not all(
                is_made_from(
                    folder / each.folder / str(request.file),
                    {"prompt": request.prompt, "seed": request.seed, **facts},
                )
                for request in requests
            ):
                yield each, requests
