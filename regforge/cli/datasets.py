"""Commands that make a dataset: from a recipe to a run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regforge.cli.console import (
    AsJson,
    EngineName,
    Fresh,
    Limit,
    Only,
    Out,
    Overrides,
    Quiet,
    RecipePath,
    Workers,
    echo,
    for_each_subject,
    show,
    show_each,
)
from regforge.journal import Reporter
from regforge.words import dollars, from_here, listed

if TYPE_CHECKING:
    from regforge.forge import Run, Until
    from regforge.images import Engine
    from regforge.recipe import Recipe


def init(
    path: Annotated[
        Path, typer.Argument(help="Where to: a file name ending in .yaml, or a folder.")
    ] = Path("recipe.yaml"),
    class_noun: Annotated[
        str, typer.Option("--class-noun", help="What the subject is, as specific as fits.")
    ] = "teapot",
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder with photos of the subject.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented recipe to start from.

    It runs as it is, on the embedded models; two lines in it say how to use real ones.

    Example: regforge init mug.yaml --class-noun "coffee mug" --images photos/
    """
    from regforge.recipe import write_starter

    written = write_starter(path, class_noun=class_noun, images=images, force=force)
    echo(f"Wrote {written}. Look at it, then:")
    echo(f"  regforge check {written}")
    echo(f"  regforge run {written}")


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    only: Only = None,
    engine: EngineName = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Look a recipe over and say what a run would do; touches nothing.

    Shows the plan, how many calls and about what they cost, how long it takes, and five sample
    captions. Of a training recipe: what is trained on, and how often it is seen.

    Example: regforge check recipes/quickstart.yaml --set prompts.count=200
    """
    from regforge import api
    from regforge.forge.plan import Plan
    from regforge.recipe import load_recipes

    recipes = load_recipes(recipe, overrides or (), only or ())
    plans = {
        name: api.check(each, out / name if out else each.folder, engine=engine, workers=workers)
        for name, each in recipes.items()
    }
    show_each(plans, as_json)
    datasets = [plan for plan in plans.values() if isinstance(plan, Plan)]
    if len(datasets) > 1 and not as_json:
        costs = [plan.cost for plan in datasets if plan.cost is not None]
        cost = dollars(sum(costs)) if len(costs) == len(datasets) else "of unknown cost"
        if len({each.subject.class_noun for each in recipes.values()}) < len(recipes):
            cost = f"at most {cost}"  # of the same class noun, a language model is asked once
        images = sum(plan.images for plan in datasets)
        echo(f"In all: {len(datasets)} subjects, {images:,} images, {cost}.")


def prompts(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    only: Only = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the vocabulary and the captions of a recipe, and no images.

    Example: regforge prompts recipes/quickstart.yaml --limit 20
    """
    made = _run(recipe, overrides, out, limit, only, fresh, quiet, as_json, until="prompts")
    for name, done in made.items():
        if name:
            echo(f"\n{name}")
        for line in done.captions(10):
            echo(f"  {line}")
        echo(f"{done.prompts} captions in {from_here(done.folder / 'prompts.jsonl')}")
        echo(f"Vocabulary in {from_here(done.folder / 'vocabulary.json')}")


def render(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    engine: EngineName = "local",
    workers: Workers = None,
    only: Only = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Render the images of a recipe, and no dataset yet; makes the captions first if need be.

    Example: regforge render recipes/quickstart.yaml --limit 8
    """
    made = _run(
        recipe, overrides, out, limit, only, fresh, quiet, as_json, engine, workers, until="images"
    )
    for done in made.values():
        echo(f"{done.images} images in {from_here(done.folder / 'shards')}")
    if made and not quiet:
        echo(f"The dataset of them: {_run_command(recipe, overrides or (), out)}")


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    engine: EngineName = "local",
    workers: Workers = None,
    only: Only = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the whole dataset: captions, images, dataset, report.

    Interrupted or killed, the same command goes on where it was.

    Example: regforge run recipes/quickstart.yaml --set prompts.count=200 --out runs/mine
    """
    made = _run(
        recipe, overrides, out, limit, only, fresh, quiet, as_json, engine, workers, until="report"
    )
    if "" in made:
        echo(f"\n{made[''].as_text()}")
        if not quiet:
            echo(_what_next(made[""], recipe, overrides or (), out))
    elif made:
        for name, done in made.items():
            echo(f"\n{name}\n{done.as_text()}")
        echo(f"\nAll of them: {from_here(done.folder.parent / 'README.md')}")


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")],
) -> None:
    """Write the report page of a run again.

    Example: regforge report runs/quickstart
    """
    from regforge.forge import write_report

    echo(f"Wrote {from_here(write_report(folder))}")


def review(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run, a recipe, or a folder of captioned images."),
    ],
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Take over the decisions in this file.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the decisions that count into this file.")
    ] = None,
    only: Only = None,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", help="Copy a folder that is no run, without what was rejected."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where the page listens; this machine alone by default.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the page; a free one if 0.")
    ] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the page in the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Throw out images by eye, and mend captions, on a page in the browser.

    Of a run that has no images yet, or of a recipe, the page shows the phrases and captions, so
    that nobody pays for images of a phrase that is wrong.

    Decisions are kept in review.jsonl; `regforge run` carries them out, and draws other images in
    place of those that were rejected. With --apply, --export or --copy there is no page.

    Example: regforge review runs/teapot
    """
    from regforge.reviewing import (
        Reviewed,
        apply_decisions,
        copy_cleaned,
        export_decisions,
        open_material,
    )

    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        from regforge.forge import run as run_recipe
        from regforge.recipe import Recipe, load_recipes

        recipes = load_recipes(folder, (), only or (), training=False)
        if len(recipes) > 1:
            raise typer.BadParameter(
                f"{folder} is about several subjects, and one is reviewed at a time: "
                f"{listed(list(recipes))}.",
                param_hint="--only",
            )
        (recipe,) = recipes.values()
        assert isinstance(recipe, Recipe)
        folder = run_recipe(recipe, until="prompts").folder
    elif only:
        from regforge.recipe.subjects import slug

        folder = folder / slug(only[0])
    material = open_material(folder)
    if (apply, export, copy) == (None, None, None) and not as_json:
        from regforge.reviewing.server import serve

        serve(material, host=host, port=port, open_browser=not no_open, announce=echo)
    if apply is not None:
        apply_decisions(material, apply)
    if export is not None:
        export_decisions(material, export)
    if copy is not None:
        copy_cleaned(material, copy)
    show(Reviewed.of(material), as_json)


def _run(
    path: Path,
    overrides: list[str] | None,
    out: Path | None,
    limit: int | None,
    only: list[str] | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
    engine: Engine = "local",
    workers: int | None = None,
    *,
    until: Until,
) -> dict[str, Run]:
    """Run a recipe for each of its subjects; nothing is returned if it has been printed as JSON."""
    from regforge.forge import run
    from regforge.recipe import load_recipes

    recipes = load_recipes(path, overrides or (), only or (), training=False)
    reporter = Reporter(quiet=quiet)

    def work(recipe: Recipe, folder: Path) -> Run:
        done = run(
            recipe,
            out=folder,
            limit=limit,
            fresh=fresh,
            until=until,
            engine=engine,
            workers=workers,
            reporter=reporter,
        )
        if until == "report" and "" not in recipes:  # after each: the next one may fail
            from regforge.dataset.index import write_index

            write_index(done.folder.parent)
        return done

    done = for_each_subject(recipes, out, reporter, work)
    if as_json:
        show_each(done, as_json)
    return {} if as_json else done


def _run_command(recipe: Path, overrides: Sequence[str], out: Path | None) -> str:
    words = ["regforge", "run", str(recipe), *(w for each in overrides for w in ("--set", each))]
    return shlex.join([*words, *(("--out", str(out)) if out else ())])


def _what_next(done: Run, recipe: Path, overrides: Sequence[str], out: Path | None) -> str:
    dataset, run = from_here(done.dataset_folder), shlex.quote(str(from_here(done.folder)))
    settings = [each for each in overrides if not each.startswith("prompts.count=")]
    settings.append(f"prompts.count={2 * done.prompts}")
    more = _run_command(recipe, settings, out)
    lines = [
        "",
        "Next:",
        f'  python -c "import datasets; print(datasets.load_dataset({str(dataset)!r}))"',
        f"  regforge audit {run}   (is it fit for training?)",
        f"  regforge export {run} --to kohya --out {done.folder.name}-kohya   (for that trainer)",
        f"  {more}   (as many again, beside these)",
        "  regforge init mine.yaml --class-noun teapot   (a recipe of your own)",
    ]
    return "\n".join(lines)
