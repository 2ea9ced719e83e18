"""Commands about the model: training it, drawing with it, and measuring what it draws."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regforge.cli.console import (
    AsJson,
    BaseModel,
    EngineName,
    Fresh,
    Only,
    Out,
    Overrides,
    Quiet,
    RecipePath,
    Seed,
    Workers,
    echo,
    for_each_subject,
    kept_if_interrupted,
    show,
    show_each,
)
from regforge.journal import Reporter
from regforge.words import from_here

if TYPE_CHECKING:
    from regforge.recipe import TrainingRecipe
    from regforge.training import TrainedModel


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    only: Only = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Personalize a model: photos of one subject beside a regularization dataset.

    Takes a training recipe (docs/training-recipe.md). The LoRA is written to the run's folder, as
    lora/pytorch_lora_weights.safetensors. Interrupted or killed, the same command goes on where it
    was. On several GPUs: accelerate launch -m regforge train recipe.yaml

    Example: regforge train recipes/train-quickstart.yaml --set optimizer.steps=50
    """
    from regforge.recipe import load_recipes, recipe_warnings

    recipes = load_recipes(recipe, overrides or (), only or (), training=True)
    from regforge import training  # after the recipe: a bad one is refused at once
    from regforge.training.processes import is_first_process

    first = is_first_process()  # `accelerate launch` starts several of us
    reporter = Reporter(quiet=quiet or not first)

    def work(wanted: TrainingRecipe, folder: Path) -> TrainedModel:
        for warning in recipe_warnings(wanted):
            reporter.say(f"warning: {warning}")
        return training.train(wanted, out=folder, fresh=fresh, reporter=reporter)

    made = for_each_subject(recipes, out, reporter, work)
    if first:
        show_each(made, as_json)
    for done in made.values() if first and not as_json else ():
        echo(f"card     {from_here(done.folder / 'README.md')}   (how to use it)")
        if "" in made and not quiet:
            echo(_what_next(done))


def sample(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A training run, a LoRA's file, a pipeline, or user/name."
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="Repeatable. {} stands for the subject. The model's own validation prompts by "
            "default.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images per prompt.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; samples/<n> beside the model by default.")
    ] = None,
    base_model: BaseModel = None,
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=1000, help="Denoising steps.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", min=0, max=50, help="Guidance scale."),
    ] = None,
    beside_base: Annotated[
        bool,
        typer.Option("--beside-base", help="Draw the same with the untouched base model."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw images with a trained model, and a grid of them with captions.

    The same command again resumes, or finds everything done.

    Example: regforge sample runs/train-quickstart --prompt "a {} on the moon" --beside-base
    """
    from regforge.evaluation.sampling import sample as draw

    done = draw(
        model,
        prompt or (),
        count=count,
        out=out,
        base=base_model,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        beside_base=beside_base,
        reporter=Reporter(quiet=quiet),
    )
    show(done, as_json)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Training runs, LoRA files, pipelines, or user/name."
        ),
    ],
    subject: Annotated[
        Path | None,
        typer.Option(
            "--subject", help="Folder of the subject's photos, if a model does not name it."
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option("--references", help="Photos of the subject that were not trained on."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="dreambench, motion, ..., or a file with one prompt a line; repeatable. The usual "
            "ones of model and subject by default.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images per prompt.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; evaluations/<names> by default.")
    ] = None,
    snapshots: Annotated[
        bool,
        typer.Option("--snapshots", help="Each snapshot of a run too: which step is the best?"),
    ] = False,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Do not read the writing on the subject.")
    ] = False,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Leave out the untrained base model.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Only the first N prompts of each benchmark, for a quick look."
        ),
    ] = None,
    base_model: BaseModel = None,
    structure_encoder: Annotated[
        str | None,
        typer.Option(
            "--structure-encoder", help="For DINO: a transformers model by name, or its folder."
        ),
    ] = None,
    alignment_encoder: Annotated[
        str | None, typer.Option("--alignment-encoder", help="For CLIP-I and CLIP-T, likewise.")
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale", min=0, max=50, help="That of the first model's recipe by default."
        ),
    ] = None,
    engine: EngineName = "local",
    workers: Workers = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure what models draw: is it the subject, and does it do what the prompt says?

    Draws a benchmark's prompts with each model, scores the images, and writes a page with all of
    them side by side (docs/evaluation.md). Interrupted, the same command resumes.

    Example: regforge evaluate runs/teapot-naive runs/teapot-structured --limit 8 --samples 1
    """
    from regforge.evaluation.evaluation_run import default_folder
    from regforge.evaluation.evaluation_run import evaluate as measure
    from regforge.evaluation.planning import EvaluationSettings

    settings = EvaluationSettings(
        subject=subject,
        references=references,
        base_model=base_model,
        suites=suite or None,
        samples=samples,
        limit=limit,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        structure_encoder=structure_encoder,
        alignment_encoder=alignment_encoder,
        text_fidelity=not no_text,
        with_base=not no_base,
        snapshots=snapshots,
    )
    folder = out or default_folder(models)
    with kept_if_interrupted(folder):
        done = measure(
            models,
            settings,
            out=folder,
            fresh=fresh,
            engine=engine,
            workers=workers,
            reporter=Reporter(quiet=quiet),
        )
    show(done, as_json)
    if not as_json:
        echo(f"\nImages and plots: {from_here(done.folder / 'report.html')}")


def _what_next(done: TrainedModel) -> str:
    run = shlex.quote(str(from_here(done.folder)))
    return (
        "\nNext:\n"
        f'  regforge sample {run} --prompt "a {{}} on the moon"\n'
        f"  regforge evaluate {run} --samples 1   (is it the subject, and does it obey prompts?)\n"
        f"  regforge publish {run} --repo-id me/{shlex.quote(done.folder.name)}"
    )
