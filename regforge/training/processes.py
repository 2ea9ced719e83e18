"""Several processes that train one model, as `accelerate launch` starts them; usually there is one.

Every process has the whole model and batches of its own. Once per optimizer step gradients are
averaged by hand: this needs no wrapper around the modules, so families and pipelines never see
that there are others, and accumulation costs no traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regforge.training.launching import is_told_cpu, launched
from regforge.training.problems import TrainingSetup

_BUCKET = 32 * 1024 * 1024  # elements; fewer, larger messages are quicker


@dataclass(frozen=True)
class Processes:
    """All processes, and which of them this is.

    Attributes:
        count: How many there are.
        index: Which one this is, from 0; 0 writes files and speaks.
        device: This one's, where accelerate decided it.
    """

    count: int = 1
    index: int = 0
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.index == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes, in place."""
        if self.count > 1:
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                torch.distributed.all_reduce(flat)
                flat /= self.count
                _unpack(flat, bucket)

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""
        if self.count > 1:
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                torch.distributed.broadcast(flat, src=0)
                _unpack(flat, bucket)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all have to ask."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(votes)
        return bool(votes.item())

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


def start_processes(device: torch.device) -> Processes:
    """Join the processes that `accelerate launch` or `torchrun` started; alone without them.

    Args:
        device: The recipe's, or the best there is; `accelerate launch --cpu` overrules it.

    Raises:
        TrainingSetup: There are others, and no way to talk to them.
    """
    cpu = is_told_cpu() or device.type != "cuda"
    count = launched()
    if count < 2:
        return Processes(device=torch.device("cpu") if is_told_cpu() else None)
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
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


def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
