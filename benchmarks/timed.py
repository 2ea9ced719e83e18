"""Runs a training program unchanged, and writes down when each of its optimizer steps was done.

    python benchmarks/timed.py OUT.json --measured 20:120 script.py ARGS...
    python benchmarks/timed.py OUT.json --measured 20:120 -m module ARGS...

The file says of the steps that were measured: seconds of wall time and of processor time, the
median step, and the most memory that the process (and the GPU) had needed by then. Nothing of the
program is touched: PyTorch calls every optimizer's hooks after each step. The GPU is waited for
twice, at the first and at the last of these steps. `benchmarks/training.py` uses it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """Told of each optimizer step; writes its file at the last one that counts.

    Args:
        out: The file.
        first: How many steps warm up.
        last: How many steps are waited for.
    """

    def __init__(self, out: Path, first: int, last: int) -> None:
        self.out, self.first, self.last = out, first, last
        self.begin = time.perf_counter()
        self.times: list[float] = []
        self.processor = 0.0

    def __call__(self, *_: Any) -> None:
        """One more optimizer step is done."""
        import torch

        done = len(self.times) + 1
        if done in (self.first, self.last) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if done == self.first:
            self.processor = processor_seconds()
        if done == self.last:
            self.write()

    def write(self) -> None:
        """What was measured."""
        import torch

        times = self.times[self.first - 1 :]
        steps = [after - before for before, after in itertools.pairwise(times)]
        measured: dict[str, Any] = {
            "steps": len(steps),
            "seconds": times[-1] - times[0],
            "processor_seconds": processor_seconds() - self.processor,
            "median_step": statistics.median(steps),
            "before": self.times[0] - self.begin,
            "peak_memory": peak_resident(),
            "threads": torch.get_num_threads(),
        }
        if torch.cuda.is_available():
            measured["peak_gpu"] = torch.cuda.max_memory_allocated()
        self.out.write_text(json.dumps(measured))


def processor_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    return sum(os.times()[:4])


def peak_resident() -> int:
    """Bytes that this process had in main memory at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def stand_in_for_torchvision() -> None:
    """Let a script import `image_transforms.py` as torchvision's, where that cannot be imported."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # not there, or built for another PyTorch
        import image_transforms
        from transformers.utils import is_torchvision_available

        is_torchvision_available()  # transformers asks once, and is not to take it for the whole
        image_transforms.transforms = image_transforms  # type: ignore[attr-defined]
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = image_transforms


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--measured", default="20:120", help="first and last step")
    parser.add_argument("-m", dest="module", action="store_true")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    first, last = map(int, args.measured.split(":"))

    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(Clock(args.out, first, last))
    if not args.module:
        stand_in_for_torchvision()
    sys.argv = [args.program, *args.arguments]
    sys.path[0] = str(Path(args.program).parent)
    if args.module:
        runpy.run_module(args.program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(args.program, run_name="__main__")


if __name__ == "__main__":
    main()
