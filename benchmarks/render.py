"""Rendering with the embedded pipeline: seconds an image, load time, memory.

python benchmarks/render.py
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from typing import Any

from regforge.embedded import load_pipeline

PROMPT = "a photo of a red teapot on a beach at sunset"


def measure(pipeline: Any, batch: int, steps: int, runs: int) -> list[float]:
    """Seconds an image, for each of `runs` calls after one that is not counted."""
    seconds = []
    for run in range(runs + 1):
        start = time.perf_counter()
        pipeline([PROMPT] * batch, num_inference_steps=steps, guidance_scale=4.0)
        if run:
            seconds.append((time.perf_counter() - start) / batch)
    return seconds


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: its default)")
    args = parser.parse_args()

    start = time.perf_counter()
    import diffusers
    import torch
    import transformers

    # Both libraries import lazily: this is where the time goes.
    from diffusers import StableDiffusionPipeline  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    imported = time.perf_counter() - start
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    )
    start = time.perf_counter()
    pipeline = load_pipeline()
    loaded = time.perf_counter() - start
    pipeline.set_progress_bar_config(disable=True)
    print(f"import {imported:.1f} s, load {loaded:.2f} s, device {pipeline.device}")
    print("precision  batch steps  s/image: median    min    max")
    for precision in (torch.float32, torch.bfloat16):
        pipeline.to(precision)
        for batch, steps in ((1, 20), (8, 20), (8, 25)):
            seconds = measure(pipeline, batch, steps, args.runs)
            print(
                f"{str(precision)[6:]:10s} {batch:5d} {steps:5d} "
                f"{statistics.median(seconds):18.3f} {min(seconds):6.3f} {max(seconds):6.3f}"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else kilobytes
    print(f"peak memory {peak / 1024 ** (1 + (sys.platform == 'darwin')):.0f} MB")


if __name__ == "__main__":
    main()
