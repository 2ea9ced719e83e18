"""The Ray cluster that a run draws on: whether it is there, and what of it each worker gets."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.recipe.rendering import Render
from regforge.words import first_line


class ClusterError(RegforgeError):
    """A Ray cluster that cannot be reached, or is gone."""


class ClusterSettingError(ClusterError):
    """Workers that there cannot be: Ray is not installed, or the recipe does not go with it."""

    exit_code = EXIT_USAGE


def require_cluster(render: Render) -> None:
    """See that Ray is installed, the recipe goes with it, and RAY_ADDRESS answers.

    Raises:
        ClusterSettingError: Ray is not there, or has nothing to do.
        ClusterError: Nobody answers at RAY_ADDRESS.
    """
    if find_spec("ray") is None:
        raise ClusterSettingError(
            "--engine ray needs Ray, which is not installed.", hint='pip install "regforge[ray]"'
        )
    if render.renderer != "local":
        raise ClusterSettingError(
            f"--engine ray has nothing to draw: render.renderer is {render.renderer}.",
            hint="Leave --engine out; render.max_concurrency says how many images are asked for "
            "at a time.",
        )
    if render.device is not None and ":" in render.device:
        raise ClusterSettingError(
            f"render.device: {render.device!r} names one device, and --engine ray gives each "
            "worker its own.",
            hint="Leave it out, or write render.device: cpu.",
        )
    address = os.environ.get("RAY_ADDRESS", "")
    place = urlsplit(address if "//" in address else f"//{address}")
    try:
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> ClusterError:
    if not address or address == "local":
        return ClusterError(f"Ray does not start on this machine: {first_line(error)}.")
    return ClusterError(
        f"There is no Ray cluster at RAY_ADDRESS ({address}): {first_line(error)}.",
        hint="Start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone.",
    )


def connect() -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine.

    Raises:
        ClusterError: It does not answer, or does not start.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
        # It would print what it knows of dead workers among the results, and there is no option.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except Exception as error:
        raise _unreachable(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the process


def await_head(limit: float) -> None:
    """Wait until the head of the cluster answers, until a time of `time.monotonic()`.

    Raises:
        ClusterError: It does not.
    """
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            if time.monotonic() > limit:
                raise ClusterError(
                    f"The Ray cluster at {host}:{port} is gone: {first_line(error)}.",
                    hint="Nothing that was made is lost: the same command goes on, on a cluster "
                    "that is there.",
                ) from error
            time.sleep(1)


def shares(workers: int | None, *, gpus: bool = True) -> tuple[int, dict[str, float]]:
    """How many workers the cluster gets, and the GPUs or CPUs of each, as Ray's options.

    One for each GPU if the number is left out; if there is no GPU, or `gpus` are not wanted, one
    for each machine.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = [int(node.get("GPU", 0)) for node in nodes if gpus]
    if sum(there) > 0:
        workers = workers or sum(there)
        return workers, {"num_gpus": share(there, workers, most=1), "num_cpus": 0}
    there = [int(node.get("CPU", 0)) for node in nodes]
    workers = workers or max(1, sum(cpus > 0 for cpus in there))
    return workers, {"num_cpus": share(there, workers, most=max(there, default=1))}


def share(nodes: Sequence[int], workers: int, *, most: int) -> float:
    """How many CPUs or GPUs each of some workers gets, so that all find a place on the nodes.

    At most so many; a fraction if there are more workers than GPUs.
    """
    for whole in range(most, 0, -1):
        if sum(node // whole for node in nodes) >= workers:
            return whole
    together = math.ceil(workers / max(1, sum(nodes)))
    return math.floor(10_000 / together) / 10_000  # Ray counts no smaller parts
