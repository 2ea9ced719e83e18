"""Reproduce the paper's claims: which regularization images let a model train longer?

    python examples/paper/run.py                            the full grid, a night on a CPU
    python examples/paper/run.py examples/paper/small.yaml  a smaller one
    python examples/paper/run.py examples/paper/sdxl.yaml   on a GPU
    python examples/paper/run.py --engine ray               on all GPUs of a machine or Ray cluster

Makes the regularization sets, trains every cell of the grid, measures it on the way, and writes
curves, tables and a page. Started again, it goes on where it was. `--only` does one of these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import grid
from grid import Cell, Experiment, ExperimentError, RegularizationSet

if TYPE_CHECKING:
    from regforge.forge import Until

HERE = Path(__file__).parent


def make_set(experiment: Experiment, of: RegularizationSet, until: Until = "report") -> None:
    """Make one regularization set, or what is missing of it; or only its captions."""
    import regforge
    from regforge.journal import Reporter

    recipe = regforge.load_recipe(experiment.regularization, _set_overrides(experiment, of))
    out = set_folder(experiment, of)
    regforge.run(recipe, out=out, until=until, reporter=Reporter(quiet=True))


def _set_overrides(experiment: Experiment, of: RegularizationSet) -> list[str]:
    about = experiment.subjects[of.subject]
    return [
        f"name={experiment.name}-{of.subject}-{of.arm.replace('+', '-')}",
        f"subject.class_noun={about.class_noun or of.subject}",
        f"subject.kind={about.kind}",
        f"subject.images={about.images}",
        f"prompts.sets={json.dumps(experiment.arms[of.arm])}",
        f"prompts.count={of.images}",
        f"prompts.slots={json.dumps(_slots(experiment, of))}",
    ]


def _slots(experiment: Experiment, of: RegularizationSet) -> list[Any]:
    """The slots of the recipe that this set's captions have: motion is for living things."""
    recipe = yaml.safe_load(experiment.regularization.read_text(encoding="utf-8"))
    living = experiment.subjects[of.subject].kind == "living"
    unsaid = {of.without} if living else {of.without, "motion"}
    return [slot for slot in recipe["prompts"]["slots"] if _name(slot) not in unsaid]


def _name(slot: str | dict[str, Any]) -> str:
    return slot if isinstance(slot, str) else str(slot["name"])


def set_folder(experiment: Experiment, of: RegularizationSet) -> Path:
    """Where a regularization set lies."""
    return experiment.out / "sets" / of.key


def train_cell(experiment: Experiment, cell: Cell) -> None:
    """Train one cell; its weights are kept at all its points."""
    from regforge.journal import Reporter
    from regforge.recipe import load_training_recipe
    from regforge.training import train

    about = experiment.subjects[cell.subject]
    of = cell.regularization
    overrides = [
        f"name={cell.subject}",
        f"subject.images={about.images}",
        f"subject.class_noun={about.class_noun or cell.subject}",
        f"regularization.dataset={set_folder(experiment, of) if of else 'null'}",
        f"optimizer.steps={cell.points[-1]}",
        f"checkpoint.snapshots={list(cell.points)}",
        f"seed={cell.seed}",
        *experiment.overrides,
    ]
    recipe = load_training_recipe(experiment.training, overrides)
    train(recipe, out=run_folder(experiment, cell), reporter=Reporter(quiet=True))


def run_folder(experiment: Experiment, cell: Cell) -> Path:
    """Where a cell's training run lies."""
    return experiment.out / "cells" / cell.key


def evaluate_cell(experiment: Experiment, cell: Cell) -> None:
    """Draw and measure what a cell asks, at its points."""
    from regforge.evaluation import EvaluationSettings, evaluate, open_model
    from regforge.journal import Reporter

    about = experiment.subjects[cell.subject]
    run = run_folder(experiment, cell)
    for suite, points in cell.prompts:
        models = [open_model(run / "snapshots" / f"step-{step:06d}") for step in points]
        settings = EvaluationSettings(
            references=about.references,
            suites=[suite],
            **_drawing(experiment),
            structure_encoder=experiment.structure_encoder,
            alignment_encoder=experiment.alignment_encoder,
            text_fidelity=False,
            with_base=_with_base(experiment, cell),
        )
        folder = evaluation_folder(experiment, cell, suite)
        evaluate(models, settings, out=folder, reporter=Reporter(quiet=True))


def _drawing(experiment: Experiment) -> dict[str, Any]:
    """How images are drawn, as `EvaluationSettings` and `evaluation.json` have it."""
    return {
        "samples": experiment.samples,
        "class_samples": experiment.class_samples,
        "steps": experiment.sampling_steps,
        "guidance_scale": experiment.guidance_scale,
    }


def _with_base(experiment: Experiment, cell: Cell) -> bool:
    """Whether the base model is measured as well: once a subject, as the level to start from."""
    return cell.regularization is None and cell.seed == experiment.seeds[0]


def evaluation_folder(experiment: Experiment, cell: Cell, suite: str) -> Path:
    """Where what was measured of a cell lies."""
    return run_folder(experiment, cell) / "evaluations" / grid.stem(suite)


def is_done(experiment: Experiment, cell: Cell, only: str | None) -> bool:
    """Whether nothing is left to do for a cell."""
    if only == "train":
        run = run_folder(experiment, cell)
        return all((run / "snapshots" / f"step-{step:06d}").exists() for step in cell.points)
    return all(_is_measured(experiment, cell, suite, points) for suite, points in cell.prompts)


def _is_measured(experiment: Experiment, cell: Cell, suite: str, points: tuple[int, ...]) -> bool:
    """Whether what is there is what the experiment asks for now: its file may have changed."""
    from regforge.evaluation import Evaluation

    folder = evaluation_folder(experiment, cell, suite)
    if not (folder / "evaluation.json").exists():
        return False
    there = Evaluation.load(folder)
    as_asked = _drawing(experiment).items() <= there.settings.items()
    asked = [0, *points] if _with_base(experiment, cell) else list(points)
    return as_asked and [result.model.steps for result in there.results] == asked


Job = tuple[str, Callable[..., None], tuple[Any, ...]]


def work_off(name: str, jobs: Sequence[Job], workers: int | None, engine: str) -> bool:
    """Run jobs side by side, and say how far they are.

    Returns:
        Whether all went well: a night's other cells are not lost to one that fails.
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


def _train_and_evaluate(experiment: Experiment, cell: Cell, only: str | None) -> None:
    if only != "evaluate":
        train_cell(experiment, cell)
    if only != "train":
        evaluate_cell(experiment, cell)


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
    parser.add_argument("--only", choices=["sets", "train", "evaluate", "figures"])
    parser.add_argument("--study", help="main, motion, size or slots: these cells alone")
    parser.add_argument("--until", type=int, help="stop after so many cells")
    arguments = parser.parse_args()
    try:
        experiment = grid.read(arguments.experiment)
    except ExperimentError as error:
        sys.exit(str(error))
    only, how = arguments.only, (arguments.workers, arguments.engine)
    chosen = [c for c in grid.cells(experiment) if arguments.study in (None, c.study)]
    chosen = chosen[: arguments.until]
    well = True
    if only in (None, "sets"):
        missing = [
            s for s in grid.sets(chosen) if not (set_folder(experiment, s) / "dataset").exists()
        ]
        well = work_off(
            "sets", [(each.key, make_set, (experiment, each)) for each in missing], *how
        )
    if only in (None, "train", "evaluate"):
        left = [cell for cell in chosen if not is_done(experiment, cell, only)]
        jobs = [(cell.key, _train_and_evaluate, (experiment, cell, only)) for cell in left]
        well = work_off("cells", jobs, *how) and well
    if only in (None, "figures"):
        import figures

        print(figures.write_all(experiment))
    if not well:
        sys.exit("Something failed, see above. The same command goes on with it.")


def _workers() -> int:
    """One process a core; one alone on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
