"""Which regularization, and which identifier, let a model train longer on a few photos?

    python examples/paper/run.py                            on the embedded pipeline
    python examples/paper/run.py examples/paper/sdxl.yaml   on a GPU
    python examples/paper/run.py --engine ray               on all GPUs of a machine or Ray cluster
    python examples/paper/run.py A.yaml --with B.yaml       tables of both, together

Makes the regularization images, trains every run, measures it on the way, and writes tables and
figures. Started again, it goes on where it was. `--only` does one of these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import grid
from grid import Experiment, ExperimentError, Pack
from regforge.files import write_atomically

HERE = Path(__file__).parent


def make_dataset(experiment: Experiment, dataset: str, subject: str) -> None:
    """Make a subject's regularization images, or what is missing of them."""
    import regforge
    from regforge.journal import Reporter

    recipe = grid.dataset_recipe(experiment, dataset, subject)
    out = grid.dataset_folder(experiment, dataset, subject)
    regforge.run(recipe, out=out, reporter=Reporter(quiet=True))


def measure_base(experiment: Experiment, subject: str) -> None:
    """Draw what the untouched model makes of a subject's class, which runs are compared with."""
    import numpy as np

    from measure import Measuring, asked, photos_in, sheet

    first = next(iter(experiment.identifiers))
    pair = next(iter(experiment.arms)), first
    measuring = Measuring(experiment, grid.training_recipe(experiment, pair, subject, 0))
    about = experiment.subjects[subject]
    questions = asked(experiment, about, grid.noun_of(experiment, subject), None)
    images = measuring.draw(questions, None)
    photos = measuring.vectors(photos_in(about.references or about.images))
    folder = grid.base_folder(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    sheet(questions, images).save(folder / f"{subject}.webp", quality=95)
    np.savez(folder / f"{subject}.npz", photos=photos, base=measuring.vectors(images))


def train_pack(experiment: Experiment, pack: Pack) -> None:
    """Train runs side by side; they are measured, and can go on, at each of their points."""
    import torch

    from many import many_loop
    from measure import Measuring
    from regforge.training.checkpoints import Checkpoints

    recipes = grid.recipes_of(experiment, pack)
    folder, runs = grid.pack_folder(experiment, pack), len(pack.runs)
    missing = [stop for stop in experiment.stops if not grid.scores_file(folder, stop).exists()]
    loop = many_loop(recipes)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, digest=folder.name)
    state = checkpoints.newest(at_most=missing[0])
    done = 0
    if state is not None:
        loop.restore(state)
        done = state.step
    measuring = Measuring(experiment, recipes[0])
    for step in range(done, experiment.stops[-1] + 1):
        if step in missing:
            weights = loop.state(step).weights
            of_run = [
                {name: value[number] if runs > 1 else value for name, value in weights.items()}
                for number in range(runs)
            ]
            _measure(experiment, pack, measuring, of_run, grid.scores_file(folder, step))
        if step == experiment.stops[-1]:
            break
        losses, _ = loop.step(step)
        if not torch.isfinite(losses).all():
            raise FloatingPointError(f"{pack.name}: the loss is not a number after step {step + 1}")
        if step + 1 in missing or (step + 1) % recipes[0].checkpoint.every == 0:
            checkpoints.save(loop.state(step + 1))
    checkpoints.wait()
    shutil.rmtree(folder / "checkpoints")


def _measure(
    experiment: Experiment, pack: Pack, measuring: Any, weights: Sequence[Any], file: Path
) -> None:
    """Draw and score all runs of a pack."""
    import numpy as np

    from measure import asked, sheet

    word = experiment.identifiers[pack.identifier].word
    found = []
    for (subject, seed), own in zip(pack.runs, weights, strict=True):
        about, noun = experiment.subjects[subject], grid.noun_of(experiment, subject)
        questions = asked(experiment, about, noun, word)
        images = measuring.draw(questions, own)
        with np.load(grid.base_folder(experiment) / f"{subject}.npz") as known:
            rows = measuring.score(questions, images, known["photos"], known["base"])
        found.append({"subject": subject, "seed": seed, "rows": rows})
        place = file.with_suffix("") / f"{subject}-{seed}.webp"
        place.parent.mkdir(parents=True, exist_ok=True)
        sheet(questions, images).save(place, quality=90)
    write_atomically(file, json.dumps(found).encode())


Job = tuple[str, Callable[..., None], tuple[Any, ...]]


def work_off(name: str, jobs: Sequence[Job], workers: int | None, engine: str) -> bool:
    """Run jobs side by side, and say how far they are.

    Returns:
        Whether all went well: a night's other runs are not lost to one that fails.
    """
    started, failed = time.monotonic(), 0
    side_by_side = _on_ray if engine == "ray" else _in_processes
    for done, (key, error) in enumerate(side_by_side(jobs, workers), start=1):
        left = (time.monotonic() - started) / done * (len(jobs) - done)
        state = f"failed: {error}" if error else f"{left / 60:.0f} min left"
        print(f"{name} {done}/{len(jobs)}  {key}  {state}", flush=True)
        failed += error is not None
    return not failed


def _in_processes(
    jobs: Sequence[Job], workers: int | None
) -> Iterator[tuple[str, BaseException | None]]:
    """Run jobs in processes of one thread each."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or _workers(), mp_context=context, initializer=_begin) as pool:
        running = {pool.submit(function, *arguments): key for key, function, arguments in jobs}
        try:
            for future in as_completed(running):
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                yield running[future], error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_ray(jobs: Sequence[Job], workers: int | None) -> Iterator[tuple[str, BaseException | None]]:
    """Run each job on a GPU of its own, or a CPU if there is none; all machines share the disk."""
    import ray

    from regforge.images.ray_cluster import connect, shares

    if not jobs:
        return
    connect()
    try:
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        each = shares(workers)[1] if workers else {"num_gpus": 1} if gpus else {"num_cpus": 1}
        running = {
            ray.remote(function).options(**each).remote(*arguments): key
            for key, function, arguments in jobs
        }
        while running:
            done, _ = ray.wait(list(running))
            try:
                error = ray.get(done[0])
            except ray.exceptions.RayError as problem:
                error = getattr(problem, "cause", None) or problem
            yield running.pop(done[0]), error
    finally:
        ray.shutdown()


def _begin() -> None:
    """Many processes of one thread each are quicker than one process of many; all end together."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", type=Path, default=HERE / "experiment.yaml")
    parser.add_argument(
        "--workers", type=int, default=None, help="at a time; one a CPU core or GPU"
    )
    parser.add_argument("--engine", choices=["processes", "ray"], default="processes")
    parser.add_argument("--only", choices=["sets", "train", "tables"])
    parser.add_argument(
        "--with",
        dest="others",
        nargs="+",
        type=Path,
        default=[],
        help="only write together.md: tables of the runs of these experiments too",
    )
    parser.add_argument("--until", type=int, help="stop after so many groups of runs")
    arguments = parser.parse_args()
    try:
        experiment = grid.read(arguments.experiment)
        others = [grid.read(path) for path in arguments.others]
    except ExperimentError as error:
        sys.exit(str(error))
    if others:
        import tables

        print(tables.write(experiment, others))
        return
    for about in experiment.subjects.values():
        if not about.images.is_dir():
            source = f" They come from {experiment.photos}" if experiment.photos else ""
            sys.exit(f"There are no photos in {about.images}.{source}")
    only, how = arguments.only, (arguments.workers, arguments.engine)
    chosen = grid.packs(experiment)[: arguments.until]
    well = True
    if only in (None, "sets"):
        named = {(experiment.arms[pack.arm].dataset, s) for pack in chosen for s, _ in pack.runs}
        missing = [
            (dataset, subject)
            for dataset, subject in sorted((d, s) for d, s in named if d)
            if not (grid.dataset_folder(experiment, dataset, subject) / "dataset").exists()
        ]
        jobs = [(f"{s} {d}", make_dataset, (experiment, d, s)) for d, s in missing]
        well = work_off("sets", jobs, *how)
    if only in (None, "train"):
        bases = [
            (subject, measure_base, (experiment, subject))
            for subject in experiment.subjects
            if not (grid.base_folder(experiment) / f"{subject}.npz").exists()
        ]
        well = work_off("base model", bases, *how) and well
        left = [pack for pack in chosen if not grid.is_done(experiment, pack)]
        well = (
            work_off("runs", [(p.name, train_pack, (experiment, p)) for p in left], *how) and well
        )
    if only in (None, "tables"):
        import figures
        import tables

        print(tables.write(experiment))
        figures.write(experiment)
    if not well:
        sys.exit("Something failed, see above. The same command goes on with it.")


def _workers() -> int:
    """One process a core; one alone on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
