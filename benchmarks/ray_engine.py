"""What the Ray engine holds: speed by workers, equal bytes after kills, the driver's memory.

    python benchmarks/ray_engine.py speed --workers 1 2 4 8
    python benchmarks/ray_engine.py kills --of-workers 20 --of-driver 5
    python benchmarks/ray_engine.py memory --images 100000

The denoiser is simulated: it sleeps, and its images are noise that shows which images were drawn
together. One in ten is black, so that shards have images to draw again. All else is real: workers,
files, judging, shards.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regforge
from regforge import images
from regforge.images.ray_engine import RayRenderer
from regforge.images.renderer import ModelIdentity, RenderedImage, Renderer, batches
from regforge.journal import Reporter
from regforge.records import ImageJob

BATCH = 4


class Noise(Renderer):
    """Sleeps, and returns noise from the seeds of a whole batch."""

    identity = ModelIdentity("simulated", None, "none", "float32", 32, 32)

    def __init__(self, seconds: float, batch_size: int) -> None:
        self.batch_size, self._seconds = batch_size, seconds

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`."""
        for batch in batches(jobs, self.batch_size, self.identity):
            time.sleep(self._seconds * len(batch))
            for job in batch:
                noise = np.random.default_rng([job.seed, sum(each.seed for each in batch)])
                blocks = noise.integers(0, 256, (8, 8, 3), np.uint8) * (job.seed % 10 != 0)
                yield RenderedImage(job, blocks.repeat(4, 0).repeat(4, 1), nsfw=False)

    def close(self) -> None:
        """See `Renderer.close`."""


def noise(seconds: float, _render: Any, *, batch_size: int | None, **_: Any) -> Renderer:
    """Open a `Noise`."""
    return Noise(seconds, batch_size or BATCH)


def recipe(count: int) -> dict[str, Any]:
    """So many captions of many phrases."""
    slots = {
        name: [f"{name} number {n}" for n in range(100)]
        for name in ("color", "style", "background")
    }
    return {
        "name": "simulated",
        "subject": {"class_noun": "cat", "identifier": "sks"},
        "prompts": {
            "count": count,
            "sets": {"amplify": 1},
            "slots": [{"name": name, "values": values} for name, values in slots.items()],
        },
        "render": {"batch_size": BATCH, "max_attempts": 3},
    }


def draw(out: Path, count: int, workers: int, seconds: float) -> float:
    """Make the images; returns how many seconds that took once all workers were there."""
    ready = 0.0

    def opened(*arguments: Any, engine: str, **options: Any) -> Renderer:
        nonlocal ready
        renderer: Renderer
        if engine == "ray":
            renderer = RayRenderer(*arguments, opener=functools.partial(noise, seconds), **options)
        else:
            renderer = Noise(seconds, BATCH)
        ready = time.monotonic()
        return renderer

    images.open_renderer = opened
    regforge.run(
        recipe(count),
        out,
        until="images",
        engine="ray" if workers else "local",
        workers=workers or None,
        reporter=Reporter(quiet=True),
    )
    return time.monotonic() - ready


def shards(out: Path) -> list[str]:
    """Digests of the shards."""
    files = sorted((out / "shards").glob("*.parquet"))
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]


def speed(folder: Path, workers: Sequence[int], each: int, seconds: float) -> None:
    """Images a second by the number of workers."""
    one = None
    print(f"{each} images for each worker, {seconds} s an image")
    for count in workers:
        took = subprocess.run(
            _again("draw", folder / f"w{count}", each * count, count, seconds),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rate = each * count / float(took.stdout.split()[-1])
        one = one or rate / count
        print(f"{count} workers: {rate:.2f} images/s, {rate / one:.2f} x one", flush=True)


def kills(folder: Path, of_workers: int, of_driver: int, seconds: float, count: int) -> None:
    """Kill workers and the driver at random moments, and compare the shards at the end."""
    draw(folder / "plain", count, 0, 0)
    chance, out = random.Random(0), folder / "killed"
    moments = [*["worker"] * of_workers, *["driver"] * of_driver]
    chance.shuffle(moments)
    killed = {"worker": 0, "driver": 0}
    sessions = 0
    while True:
        sessions += 1
        session = subprocess.Popen(_again("draw", out, count, 3, seconds))
        while session.poll() is None:
            time.sleep(chance.uniform(0.5, 4))
            below = workers_of(session.pid)
            if not moments or not below or session.poll() is not None:
                continue  # it has not begun
            whom = moments.pop()
            killed[whom] += 1
            os.kill(chance.choice(below) if whom == "worker" else session.pid, signal.SIGKILL)
            if whom == "driver":
                session.wait()
        if session.returncode == 0:
            break
        if session.returncode != -signal.SIGKILL:
            sys.exit(f"It failed with {session.returncode}.")
    equal = shards(out) == shards(folder / "plain")
    print(
        f"{killed['worker']} workers and {killed['driver']} drivers killed in {sessions} sessions: "
        f"{len(shards(out))} shards, {'equal' if equal else 'NOT EQUAL'} to those of a plain run"
    )
    if not equal or moments:
        sys.exit(f"Not equal, or {len(moments)} kills were left when it was done.")


def workers_of(driver: int) -> list[int]:
    """Processes of the workers below a driver."""
    parents, found = dict[int, int](), list[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if (entry / "cmdline").read_bytes().startswith(b"ray::_Drawer"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended

    def is_below(process: int) -> bool:
        while process > 1 and process != driver:
            process = parents.get(process, 0)
        return process == driver

    return [process for process in found if is_below(process)]


def memory(folder: Path, count: int) -> None:
    """The driver's memory while images without a cost are made."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(10):
            status = Path("/proc/self/status").read_text()
            all_of_it, own = (
                int(status.partition(f"{name}:")[2].split()[0]) / 1024
                for name in ("VmRSS", "RssAnon")
            )
            stored = len(list((folder / "memory" / "shards").glob("*.parquet"))) * 128
            print(f"{stored} images: {all_of_it:.0f} MB, {own:.0f} of them its own", flush=True)

    threading.Thread(target=watch, daemon=True).start()
    took = draw(folder / "memory", count, 2, 0)
    ended.set()
    print(f"{count} images in {took:.0f} s: {count / took:.1f} images/s through the driver")


def _again(*words: object) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    one.add_argument("--each", type=int, default=96, help="images for each worker")
    one.add_argument("--seconds", type=float, default=0.5, help="an image")
    one = commands.add_parser("kills")
    one.add_argument("--of-workers", type=int, default=20)
    one.add_argument("--of-driver", type=int, default=5)
    one.add_argument("--seconds", type=float, default=0.2)
    one.add_argument("--images", type=int, default=1500)
    one = commands.add_parser("memory")
    one.add_argument("--images", type=int, default=100_000)
    one = commands.add_parser("draw", help="what the others start")
    one.add_argument("out", type=Path)
    one.add_argument("count", type=int)
    one.add_argument("workers", type=int)
    one.add_argument("seconds", type=float)
    asked = parser.parse_args()
    if asked.command == "draw":
        print(draw(asked.out, asked.count, asked.workers, asked.seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.command == "speed":
            speed(folder, asked.workers, asked.each, asked.seconds)
        elif asked.command == "kills":
            kills(folder, asked.of_workers, asked.of_driver, asked.seconds, asked.images)
        else:
            memory(folder, asked.images)


if __name__ == "__main__":
    main()
