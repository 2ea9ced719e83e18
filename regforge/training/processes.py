"""Several processes that train one model, as `accelerate launch` starts them; usually there is one.

Every process has the whole model and batches of its own. Once per optimizer step gradients are
averaged by hand: this needs no wrapper around the modules, so families and pipelines never see
that there are others, and accumulation costs no traffic. Signals that end a process are taken here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regforge.training.batches import TrainingSetup

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Environment variables of torchrun (GPUs) and of MPI's launchers (CPUs), as in accelerate's
# src/accelerate/utils/environment.py, `get_cpu_distributed_information`.
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")

_BUCKET = 32 * 1024 * 1024  # elements; fewer, larger messages are quicker


@dataclass(frozen=True)
class Processes:
    """All processes, and which of them this is (0 writes files and reports), on which device."""

    count: int = 1
    index: int = 0
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.index == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes, in place."""
        import torch

        for flat in self._flattened(tensors):
            torch.distributed.all_reduce(flat)
            flat /= self.count

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""
        import torch

        for flat in self._flattened(tensors):
            torch.distributed.broadcast(flat, src=0)

    def _flattened(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Buckets of tensors as one flat tensor each, which is copied back after its turn."""
        import torch

        for bucket in _buckets(tensors) if self.count > 1 else ():
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            yield flat
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether any process has the flag set; all have to call this."""
        import torch

        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(votes)
        return bool(votes.item())

    def wait(self) -> None:
        """Until all are here."""
        import torch

        if self.count > 1:
            torch.distributed.barrier()


def launched() -> int:
    """How many processes were started together."""
    return max(1, _environment(_COUNT, 1))


def is_first_process() -> bool:
    """Whether this is the process that reports."""
    return _environment(_INDEX, 0) <= 0


def _environment(names: Sequence[str], otherwise: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), otherwise)


def start_processes(device: torch.device) -> Processes:
    """Join the processes that `accelerate launch` or `torchrun` started; alone without them.

    `device` is the recipe's, or the best there is; `accelerate launch --cpu` overrules it.

    Raises:
        TrainingSetup: There are others, and no way to talk to them.
    """
    import torch

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    count = launched()
    if count < 2:
        return Processes(device=torch.device("cpu") if cpu else None)
    from accelerate import PartialState

    state = PartialState(cpu=cpu or device.type != "cuda")
    if state.num_processes != count:
        raise TrainingSetup(
            f"{count} processes were started, and accelerate joins {state.num_processes} of them.",
            hint="`accelerate test` tells more. One process alone: regforge train RECIPE",
        )
    return Processes(count, state.process_index, state.device)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type each, about `_BUCKET` elements together; the same in every process."""
    buckets: list[list[Tensor]] = []
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        size = _BUCKET
        for tensor in tensors:
            if tensor.dtype == dtype:
                if size >= _BUCKET:
                    buckets.append([])
                    size = 0
                buckets[-1].append(tensor)
                size += tensor.numel()
    return buckets


class StopSignals:
    """SIGTERM and Ctrl-C, taken while the block runs in the main thread.

    Attributes:
        requested: A first signal came; the loop looks after each step.
        deferred: There is something to save: a first signal is noted down. Otherwise, and for a
            second signal, it is a KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if not self.deferred or self.requested:
            raise KeyboardInterrupt
        self.requested = True
