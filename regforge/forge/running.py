"""A run from recipe to dataset."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regforge.display import Displayed
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import read_text
from regforge.forge.plan import check_price, images_in
from regforge.forge.prompting import PromptStage, check_import
from regforge.journal import Journal, Reporter
from regforge.recipe import (
    Recipe,
    RecipeSource,
    checked,
    load_recipe,
    recipe_digest,
    resolved_yaml,
    slots_of,
    template_file,
    templates_of,
)
from regforge.records import read_prompts
from regforge.runs import RunFolder, RunFolderError, is_training_run
from regforge.version import __version__
from regforge.words import duration, from_here

if TYPE_CHECKING:
    import datasets
    import pandas

    from regforge.images import Engine

Until = Literal["prompts", "images", "report"]


class RunFailed(RegforgeError):
    """A folder that is no run, or no finished one."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Run(Displayed):
    """What a run made. It stands for its folder wherever a path is expected.

    Attributes:
        prompts: How many captions there are.
        images: How many images were accepted.
        rejected: How many were given up.
        seconds: Of work in this session.
        cost: Of the language model and a hosted renderer in all sessions, in US dollars; None if
            unknown.
        cost_in_words: Such as `$0.031`, `unknown`, or `over $0.42` where some calls have no price.
    """

    folder: Path
    prompts: int
    images: int
    rejected: int
    seconds: float
    cost: float | None
    cost_in_words: str

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def dataset_folder(self) -> Path:
        """The folder for `datasets.load_dataset`."""
        return self.folder / "dataset"

    @property
    def grid(self) -> Path:
        """An image of some of the images."""
        return self.dataset_folder / "samples.webp"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / "report.html"

    def captions(self, count: int) -> list[str]:
        """The first captions."""
        prompts = read_prompts(self.folder / "prompts.jsonl")
        return [prompt.text for prompt in islice(prompts, count)]

    def dataset(self) -> datasets.Dataset:
        """The images with their captions and metadata; docs/dataset.md has the columns."""
        import datasets

        if not self.dataset_folder.is_dir():
            raise RunFailed(
                f"{self.folder} has no dataset yet.",
                hint="Run the recipe to its end.",
            )
        return datasets.load_dataset(str(self.dataset_folder), split="train")

    def to_pandas(self) -> pandas.DataFrame:
        """The dataset's rows without the images themselves."""
        return self.dataset().remove_columns("image").to_pandas()

    def __fspath__(self) -> str:
        return str(self.folder)

    def shown_image(self) -> Path:
        """The grid."""
        return self.grid

    def as_text(self) -> str:
        """For a terminal."""
        refused = f", {self.rejected} others refused" if self.rejected else ""
        return (
            f"Done: {self.images} images{refused}, {duration(self.seconds)}, "
            f"cost {self.cost_in_words}.\n\n"
            f"  dataset   {from_here(self.dataset_folder)}\n"
            f"  grid      {from_here(self.grid)}\n"
            f"  report    {from_here(self.report)}   (open it in a browser)"
        )

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "dataset": str(self.dataset_folder),
            "report": str(self.report),
            "grid": str(self.grid),
            "prompts": self.prompts,
            "images": self.images,
            "rejected": self.rejected,
            "seconds": round(self.seconds, 1),
            "cost": self.cost,
        }


def run(
    recipe: Recipe | RecipeSource,
    out: str | Path | None = None,
    *,
    limit: int | None = None,
    fresh: bool = False,
    until: Until = "report",
    engine: Engine = "local",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Run a recipe, or go on with its run.

    Killed at any instant, it loses at most the batch in flight; called again, it goes on, and ends
    with the same bytes.

    Args:
        recipe: What to make: a recipe, its file, or a mapping of its keys; see `load_recipe`.
        out: The run's folder; `runs/<name>` if left out.
        limit: Make only the first so many prompts.
        fresh: Delete what an earlier run made in the folder.
        until: Stop after the prompts, after the images, or go all the way.
        engine: Where images are drawn: in this process, or by `workers` of a Ray cluster (the one
            at RAY_ADDRESS, else one that is started here); the bytes are the same.
        workers: One for each GPU if left out; more than there are GPUs share them.
        reporter: Where progress goes; standard error by default.

    Returns:
        What there is now.

    Raises:
        RegforgeError: Something the user can put right; the message says what. Nothing that was
            made is lost.
    """
    recipe = checked(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    folder = RunFolder(Path(out) if out is not None else recipe.folder)
    reporter = reporter or Reporter()
    count = min(recipe.prompts.count, limit or recipe.prompts.count)
    if until != "prompts":
        check_price(recipe)
    check_import(recipe, folder, fresh=fresh)
    if until != "prompts":  # before a language model is paid for captions
        from regforge.images import require_engine, require_renderer

        require_engine(recipe.render, engine, workers)
        if fresh or not folder.prompts.is_file():
            require_renderer(recipe.render)
    with folder.locked(), _terminated_like_interrupted():
        if until == "report" and not fresh and folder.digest == recipe_digest(recipe):
            _refuse_fewer(folder, count * recipe.render.images_per_prompt)
        if folder.own(recipe, fresh=fresh):
            reporter.say(f"Going on with {folder.path}")
        return _stages(recipe, folder, count, until, engine, workers, reporter)


def _refuse_fewer(folder: RunFolder, wanted: int) -> None:
    """See that a finished dataset does not become a smaller one."""
    if (there := images_in(folder)) > wanted:
        raise RunFolderError(
            f"{folder.dataset} has {there:,} images, and this would leave {wanted:,} of them.",
            hint="Choose another folder with --out, start over with --fresh (what was made there "
            "is deleted), or take fewer for a trainer: `regforge export ... --limit N`.",
        )


def _stages(
    recipe: Recipe,
    folder: RunFolder,
    count: int,
    until: Until,
    engine: Engine,
    workers: int | None,
    reporter: Reporter,
) -> Run:
    from regforge.dataset.report_facts import cost_in_all, known_cost, spending

    start, journal = time.monotonic(), Journal(folder.path)
    images = rejected = 0
    with PromptStage(recipe, folder, journal, reporter) as prompts:
        with _timed(journal, "prompts"):
            made = len(prompts.prompts(count))
        if until != "prompts":
            from regforge.dataset.store import Store
            from regforge.forge.rendering import ImageStage
            from regforge.images.curation import Curator

            slots = [slot.name for slot in slots_of(recipe)]
            store = Store(folder.shards, slots, recipe_digest(recipe), journal)
            images = count * recipe.render.images_per_prompt
            with _timed(journal, "images"):
                curator = Curator(recipe.curate)
                stage = ImageStage(
                    recipe, folder, store, curator, journal, reporter, engine, workers
                )
                stage.run(prompts, count)
            rejected = sum(1 for _ in store.iter_rejected())
        if until == "report":
            from regforge.dataset.build import build_dataset

            with _timed(journal, "dataset"):
                reporter.say(f"Building the dataset of {images} images")
                libraries = ("diffusers", "torch", "transformers")
                build_dataset(
                    store,
                    folder.dataset,
                    count=images,
                    recipe=recipe,
                    recipe_yaml=resolved_yaml(recipe, portable=True),
                    caption_template="\n---\n".join(
                        read_text(template_file(each.file)) for each in templates_of(recipe)
                    ),
                    vocabulary=folder.vocabulary,
                    versions={
                        "regforge": __version__,
                        **{name: metadata.version(name) for name in libraries},
                    },
                )
            folder.remember(images=images)
            write_report(folder.path)
    seconds = time.monotonic() - start
    log = list(journal.events())
    calls = [*spending(log, "llm_call"), *spending(log, "image_call")]
    return Run(folder.path, made, images, rejected, seconds, known_cost(calls), cost_in_all(calls))


def write_report(folder: str | Path) -> Path:
    """Write a run's report page again, with its audit, from what lies in its folder.

    Returns:
        The page.

    Raises:
        RunFailed: The folder is not a run's.
    """
    from regforge.auditing import StoredRows, audit_dataset
    from regforge.dataset.report import gather
    from regforge.dataset.report import write_report as write

    run_folder = RunFolder(Path(folder))
    if is_training_run(run_folder.path):
        raise RunFailed(
            f"{folder} is a training run: it has a card and no report page.",
            hint=f"Read {Path(folder) / 'README.md'}; `regforge evaluate` makes a page of models.",
        )
    if run_folder.digest is None:
        raise RunFailed(
            f"{folder} is not the folder of a run.", hint="Such as runs/quickstart, after `run`."
        )
    data = gather(run_folder.path, count=run_folder.state().get("images"))
    rows = StoredRows(data.name, data.rows, run_folder.path)
    # As plain data: the page is made by a stage, and stages know nothing of audits.
    write(run_folder.report, replace(data, audit=audit_dataset(rows).as_dict()))
    return run_folder.report


@contextmanager
def _timed(journal: Journal, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    journal.event("stage", stage=stage, seconds=round(time.monotonic() - start, 3))


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a job scheduler's stop leaves a run as tidy."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
