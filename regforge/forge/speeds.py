"""How long an image took on this machine, so that `regforge check` can say how long a run takes.

One small JSON file in the cache folder, by model, size and steps. Deleting it is safe.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from regforge.files import StorageError, cache_folder, parse_json, write_atomically
from regforge.recipe import Render

_EMBEDDED_SECONDS_PER_STEP = 0.012
"""Of the embedded pipeline on two ordinary cores, until this machine has tried it."""


def seconds_per_image(render: Render) -> float | None:
    """What an image took here the last time; None for a model that was not tried yet."""
    known = _read().get(_key(render))
    if known is None and render.model == "embedded/tinyworld":
        return _EMBEDDED_SECONDS_PER_STEP * render.steps
    return known


def remember(render: Render, images: int, seconds: float) -> None:
    """Note what some images took, all in all."""
    speeds = _read() | {_key(render): round(seconds / images, 4)}
    with suppress(StorageError):  # a read-only cache must not stop a run
        write_atomically(_path(), json.dumps(speeds, indent=1))


def _key(render: Render) -> str:
    size = f"{render.width or 'own'}x{render.height or 'own'}"
    return f"{render.model} {size} {render.steps} steps, {render.device or 'best device'}"


def _read() -> dict[str, float]:
    try:
        content = parse_json(_path().read_bytes())
        return {str(key): float(value) for key, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _path() -> Path:
    return cache_folder() / "speeds.json"
