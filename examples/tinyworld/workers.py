"""Training on several CPU cores: one single-threaded process a core, parameters averaged often.

Two threads in one process stall at barriers as soon as anything else runs on the machine; two
processes that meet every few steps do not ("local SGD", Stich 2019, arXiv 1805.09767). On a GPU
there is one worker and none of this does anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def default_workers() -> int:
    """One a core, but no more than four: each holds the pool of images in memory."""
    return min(os.cpu_count() or 1, 4)


@dataclass(frozen=True)
class Worker:
    """This process's place among its peers."""

    rank: int
    count: int
    device: str

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, parameters: Iterable[Any]) -> None:
        """Replace every parameter by its mean over the workers."""
        import torch
        import torch.distributed as dist

        if self.count == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([p.data.reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        flat /= self.count
        offset = 0
        for p in parameters:
            p.data.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def agree(self, value: float) -> float:
        """The first worker's `value`, so that all stop at the same step."""
        import torch
        import torch.distributed as dist

        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(box, 0)
        return float(box)


def _enter(rank: int, count: int, port: int, device: str, train: Callable, args: Any) -> None:
    import torch
    import torch.distributed as dist

    if device == "cpu":
        torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count
        )
    train(Worker(rank, count, device), args)
    if count > 1:
        dist.destroy_process_group()


def launch(train: Callable[[Worker, Any], None], args: Any) -> None:
    """Run `train(worker, args)` in `args.workers` processes (on a GPU: here, once)."""
    import torch

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    count = args.workers if device == "cpu" else 1
    if count <= 1:
        _enter(0, 1, 0, device, train, args)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_enter, (count, port, device, train, args), nprocs=count)
