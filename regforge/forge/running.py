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

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import read_text
from regforge.forge.plan import check_price, images_in
from regforge.forge.prompting import check_import
from regforge.journal import Journal
from regforge.progress import Reporter, duration
from regforge.recipe import (
    Recipe,
    check_recipe,
    recipe_digest,
    resolved_yaml,
    slots_of,
    template_file,
)
from regforge.runs import RunFolder, RunFolderError
from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.dataset.store import Store
    from regforge.forge.prompting import PromptStage

Until = Literal["prompts", "images", "report"]


class RunFailed(RegforgeError):
    """A folder that is no run, or no finished one."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Run:
    """What a run made.

    Attributes:
        folder: The run's folder.
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
    def dataset(self) -> Path:
        """The folder for `datasets.load_dataset`."""
        return self.folder / "dataset"

    @property
    def grid(self) -> Path:
        """An image of some of the images."""
        return self.dataset / "samples.webp"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / "report.html"

    @property
    def seconds_in_words(self) -> str:
        """Such as `1 min 20 s`."""
        return duration(self.seconds)

    def captions(self, count: int) -> list[str]:
        """The first captions."""
        from regforge.records import read_prompts

        prompts = read_prompts(self.folder / "prompts.jsonl")
        return [prompt.text for prompt in islice(prompts, count)]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "dataset": str(self.dataset),
            "report": str(self.report),
            "grid": str(self.grid),
            "prompts": self.prompts,
            "images": self.images,
            "rejected": self.rejected,
            "seconds": round(self.seconds, 1),
            "cost": self.cost,
        }


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    limit: int | None = None,
    fresh: bool = False,
    until: Until = "report",
    reporter: Reporter | None = None,
) -> Run:
    """Run a recipe, or go on with its run.

    Killed at any instant, it loses at most the batch in flight; called again, it goes on, and ends
    with the same bytes.

    Args:
        recipe: What to make; see `regforge.load_recipe`.
        out: The run's folder; `runs/<name>` if left out.
        limit: Make only the first so many prompts.
        fresh: Delete what an earlier run made in the folder.
        until: Stop after the prompts, after the images, or go all the way.
        reporter: Where progress goes; standard error by default.

    Returns:
        What there is now.

    Raises:
        RegforgeError: Something the user can put right; the message says what. Nothing that was
            made is lost.
    """
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    reporter = reporter or Reporter()
    count = min(recipe.prompts.count, limit or recipe.prompts.count)
    check_recipe(recipe)
    if until != "prompts":
        check_price(recipe)
    check_import(recipe, folder, fresh=fresh)
    if until != "prompts" and (fresh or not folder.prompts.is_file()):
        from regforge.images import require_renderer

        require_renderer(recipe.render)  # before a language model is paid for captions
    with folder.locked(), _terminated_like_interrupted():
        if until == "report" and not fresh:
            _refuse_fewer(recipe, folder, count * recipe.render.images_per_prompt)
        if folder.own(recipe, fresh=fresh):
            reporter.say(f"Going on with {folder.path}")
        return _stages(recipe, folder, count, until, reporter)


def _refuse_fewer(recipe: Recipe, folder: RunFolder, wanted: int) -> None:
    """See that a finished dataset does not become a smaller one.

    Raises:
        RunFolderError: It would.
    """
    if folder.digest == recipe_digest(recipe) and (there := images_in(folder)) > wanted:
        raise RunFolderError(
            f"{folder.dataset} has {there:,} images, and this would leave {wanted:,} of them.",
            hint="Choose another folder with --out, start over with --fresh (what was made there "
            "is deleted), or take fewer for a trainer: `regforge export ... --limit N`.",
        )


def _stages(recipe: Recipe, folder: RunFolder, count: int, until: Until, reporter: Reporter) -> Run:
    from regforge.dataset.report_facts import cost_in_all, known_cost, spending
    from regforge.forge.prompting import PromptStage

    start, journal = time.monotonic(), Journal(folder.path)
    images = rejected = 0
    with PromptStage(recipe, folder, journal, reporter) as prompts:
        with _timed(journal, "prompts"):
            made = len(prompts.prompts(count))
        if until != "prompts":
            from regforge.dataset.store import Store

            slots = [slot.name for slot in slots_of(recipe)]
            store = Store(folder.shards, slots, recipe_digest(recipe), journal)
            images = count * recipe.render.images_per_prompt
            with _timed(journal, "images"):
                _render(recipe, folder, store, prompts, count, journal, reporter)
            rejected = sum(1 for _ in store.iter_rejected())
            if until == "report":
                with _timed(journal, "dataset"):
                    _build(recipe, folder, store, images, reporter)
                folder.remember(images=images)
                write_report(folder.path)
    seconds = time.monotonic() - start
    log = list(journal.events())
    calls = [*spending(log, "llm_call"), *spending(log, "image_call")]
    cost, in_words = known_cost(calls), cost_in_all(calls)
    return Run(folder.path, made, images, rejected, seconds, cost, in_words)


def _render(
    recipe: Recipe,
    folder: RunFolder,
    store: Store,
    prompts: PromptStage,
    count: int,
    journal: Journal,
    reporter: Reporter,
) -> None:
    from regforge.forge.rendering import ImageStage
    from regforge.images.curation import Curator

    ImageStage(recipe, folder, store, Curator(recipe.curate), journal, reporter).run(prompts, count)


def _build(recipe: Recipe, folder: RunFolder, store: Store, count: int, reporter: Reporter) -> None:
    from regforge.dataset.build import build_dataset

    reporter.say(f"Building the dataset of {count} images")
    build_dataset(
        store,
        folder.dataset,
        count=count,
        recipe=recipe,
        recipe_yaml=resolved_yaml(recipe, portable=True),
        caption_template=read_text(template_file(recipe)),
        vocabulary=folder.vocabulary,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Of what made the images."""
    return {
        "regforge": __version__,
        **{name: metadata.version(name) for name in ("diffusers", "torch", "transformers")},
    }


def write_report(folder: str | Path) -> Path:
    """Write a run's report page again, with its audit, from what lies in its folder.

    Returns:
        The page.

    Raises:
        RunFailed: The folder is not a run's.
    """
    from regforge.audit import StoredRows, audit_dataset
    from regforge.dataset.report import gather
    from regforge.dataset.report import write_report as write

    run_folder = RunFolder(Path(folder))
    state = run_folder.state()
    if run_folder.digest is None:
        raise RunFailed(
            f"{folder} is not the folder of a run.", hint="Such as runs/quickstart, after `run`."
        )
    data = gather(run_folder.path, count=state.get("images"))
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
