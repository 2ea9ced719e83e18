"""How many processes train together, and which of them this is, as their launcher says it.

`accelerate launch` uses torchrun for GPUs and MPI's mpirun for CPUs. The names are those of
accelerate (src/accelerate/utils/environment.py, `get_cpu_distributed_information`). Knows only
environment variables, so that asking costs nothing.
"""

from __future__ import annotations

import os

_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched() -> int:
    """How many processes were started together."""
    return max(1, _first_of(_COUNT, 1))


def is_first_process() -> bool:
    """Whether this is the process that speaks."""
    return _first_of(_INDEX, 0) <= 0


def is_told_cpu() -> bool:
    """Whether somebody said `accelerate launch --cpu`."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")


def _first_of(names: tuple[str, ...], otherwise: int) -> int:
    said = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in said if value.isdecimal()), otherwise)
