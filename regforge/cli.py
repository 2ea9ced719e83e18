"""The `regforge` command.

Each command is a few lines: it reads its arguments, hands over to the module that does the work,
and prints. Those modules are imported inside the commands, so that `regforge --help` answers at
once. Exit codes: 0 done, 1 the run failed, 2 the command or a recipe was wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regforge.errors import EXIT_FAILED, EXIT_USAGE, RegforgeError
from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.forge import Run, Until
    from regforge.progress import Reporter

_CTRL_C = 130
"""What typer exits with after Ctrl-C, where a command does not see to it itself."""

app = typer.Typer(
    name="regforge",
    help="Structured-caption regularization datasets for personalizing text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: quicker to print, easier to pipe and to read in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set prompts.count=50"),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's folder; runs/<name> if left out.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Make only the first N prompts.")]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh/--resume",
        help="Delete what an earlier run left in the folder, or go on from it (the default).",
    ),
]
DatasetName = Annotated[
    str, typer.Argument(metavar="DATASET", help="A run, a folder, an archive, or user/name[@tag].")
]
CaptionColumn = Annotated[
    str | None,
    typer.Option("--caption-column", help="Where captions stand, in somebody else's dataset."),
]
Streaming = Annotated[
    bool,
    typer.Option(
        "--streaming", help="Read from the Hub piece by piece, and download nothing first."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and results only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regforge {__version__}")
        raise typer.Exit


@app.callback()
def regforge(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Structured-caption regularization datasets for personalizing text-to-image models."""


@app.command()
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
    typer.echo(f"Wrote {written}. Look at it, then:")
    typer.echo(f"  regforge check {written}")
    typer.echo(f"  regforge run {written}")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Look a recipe over and say what a run would do; touches nothing.

    Shows the plan, how many calls and about what they cost, how long it takes, and five sample
    captions.

    Example: regforge check recipes/quickstart.yaml --set prompts.count=200
    """
    from regforge.forge.plan import make_plan
    from regforge.recipe import load_recipe

    plan = make_plan(load_recipe(recipe, overrides or ()), out=out)
    typer.echo(_as_json(plan.as_dict()) if as_json else plan.as_text())


@app.command()
def prompts(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the vocabulary and the captions of a recipe, and no images.

    Example: regforge prompts recipes/quickstart.yaml --limit 20
    """
    done = _run(recipe, overrides, out, limit, fresh, quiet, until="prompts")
    if as_json:
        typer.echo(_as_json(done.as_dict()))
        return
    for line in done.captions(10):
        typer.echo(f"  {line}")
    typer.echo(f"{done.prompts} captions in {_short(done.folder / 'prompts.jsonl')}")
    typer.echo(f"Vocabulary in {_short(done.folder / 'vocabulary.json')}")


@app.command()
def render(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Render the images of a recipe, and no dataset yet; makes the captions first if need be.

    Example: regforge render recipes/quickstart.yaml --limit 8
    """
    done = _run(recipe, overrides, out, limit, False, quiet, until="images")
    if as_json:
        typer.echo(_as_json(done.as_dict()))
        return
    typer.echo(f"{done.images} images in {_short(done.folder / 'shards')}")
    typer.echo(f"The dataset of them: regforge run {recipe}")


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    limit: Limit = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the whole dataset: captions, images, dataset, report.

    Interrupted or killed, the same command goes on where it was.

    Example: regforge run recipes/quickstart.yaml --set prompts.count=200 --out runs/mine
    """
    done = _run(recipe, overrides, out, limit, fresh, quiet, until="report")
    typer.echo(_as_json(done.as_dict()) if as_json else _what_next(done, recipe, out))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")],
) -> None:
    """Write the report page of a run again.

    Example: regforge report runs/quickstart
    """
    from regforge.forge import write_report

    typer.echo(f"Wrote {_short(write_report(folder))}")


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")
    ],
    repo_id: Annotated[
        str | None,
        typer.Option("--repo-id", help="user/name; the recipe's dataset.repo_id if left out."),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Of a new repository; the recipe's dataset.private if left out.",
        ),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Name this version, such as v1.")] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", help="Hub identifier; the recipe's if left out."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Leave it as a pull request.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Put the dataset of a run on the Hugging Face Hub, in one commit.

    What is there already is not uploaded again. Log in first: hf auth login.

    Example: regforge publish runs/teapot --repo-id me/teapot-reg --tag v1
    """
    from regforge.forge.publishing import publish_run

    done = publish_run(
        folder,
        repo_id=repo_id,
        private=private,
        tag=tag,
        license_id=license_id,
        create_pr=create_pr,
        reporter=_reporter(quiet),
    )
    typer.echo(_as_json(done.as_dict()) if as_json else done.as_text())


@app.command()
def export(
    dataset: DatasetName,
    to: Annotated[
        list[str],
        typer.Option("--to", help="kohya, diffusers-dreambooth, ...; may be given several times."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    subject: Annotated[
        Path | None, typer.Option("--subject", help="Folder with the photos of the subject.")
    ] = None,
    identifier: Annotated[
        str, typer.Option("--identifier", help="The token that stands for the subject.")
    ] = "sks",
    class_noun: Annotated[
        str | None, typer.Option("--class-noun", help="Where the dataset does not say it.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=8, help="Side of a square to train at.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The model to be trained.")
    ] = None,
    prior_weight: Annotated[
        float, typer.Option("--prior-weight", min=0, help="Weight of the regularization loss.")
    ] = 1.0,
    root: Annotated[
        str | None,
        typer.Option("--root", help="Where the folder will lie on the machine that trains."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many pictures, balanced.")
    ] = None,
    caption_column: CaptionColumn = None,
    streaming: Streaming = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read everything back the way the trainer does.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a dataset the way a trainer wants it, and say what the trainer will do with it.

    Example: regforge export runs/teapot --to kohya --out teapot-kohya --subject photos/
    """
    from regforge.dataset.sources import open_dataset
    from regforge.export import export_dataset

    source = (
        open_dataset(dataset, streaming=True, caption_column=caption_column)
        if streaming
        else dataset
    )
    done = export_dataset(
        source,
        to=to,
        out=out,
        subject=subject,
        identifier=identifier,
        class_noun=class_noun,
        resolution=resolution,
        base_model=base_model,
        prior_weight=prior_weight,
        root=root,
        limit=limit,
        caption_column=caption_column,
        check=check,
        reporter=_reporter(quiet),
    )
    typer.echo(_as_json(done.as_dict()) if as_json else done.as_text())
    if done.differs:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def audit(
    dataset: DatasetName,
    subject: Annotated[
        Path | None,
        typer.Option("--subject", help="Folder with photos of the subject, to look for it."),
    ] = None,
    identifier: Annotated[
        str | None, typer.Option("--identifier", help="The token that captions must not say.")
    ] = None,
    photos: Annotated[
        int | None, typer.Option("--photos", min=1, help="How many photos the subject has.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=8, help="Side of a square to train at.")
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option("--class-noun", help="Where the dataset does not say it.")
    ] = None,
    caption_column: CaptionColumn = None,
    streaming: Streaming = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Open all pictures, also where their hashes are stored."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Grade a regularization set, regforge's or anybody's; touches nothing.

    Looks for copies, poor captions, uneven slots, missing metadata, the subject itself, captions
    over the token limit, and suggests repeats. Exits with 0 whatever it finds.

    Example: regforge audit ostris/sdxl_10_reg --resolution 1024
    """
    from regforge.audit import audit_dataset
    from regforge.dataset.sources import open_dataset

    found = audit_dataset(
        open_dataset(dataset, streaming=streaming, caption_column=caption_column),
        subject=subject,
        identifier=identifier,
        class_noun=class_noun,
        photos=photos,
        resolution=resolution,
        thorough=thorough,
        reporter=_reporter(quiet),
    )
    typer.echo(_as_json(found.as_dict()) if as_json else found.as_text())


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
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
    from regforge.recipe import load_training_recipe, training_warnings

    wanted = load_training_recipe(recipe, overrides or ())
    folder = out or Path("runs") / wanted.name
    first = os.environ.get("RANK", "0") == "0"  # `accelerate launch` starts several of us
    reporter = _reporter(quiet or not first)
    for warning in training_warnings(wanted):
        reporter.say(f"warning: {warning}")
    from regforge import training  # it takes seconds to import; a bad recipe is refused at once

    with _kept_if_interrupted(folder):
        done = training.train(wanted, out=folder, fresh=fresh, reporter=reporter)
    if first:
        typer.echo(_as_json(done.as_dict()) if as_json else done.as_text())


@app.command()
def schema(
    training: Annotated[bool, typer.Option("--training", help="Of training recipes.")] = False,
) -> None:
    """Print the JSON schema of recipes, from which editors complete and check.

    Example: regforge schema > regforge.schema.json
    """
    from regforge.recipe import json_schema, training_schema

    typer.echo(_as_json(training_schema() if training else json_schema()))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine and say what is missing.

    Shows the installed libraries, what torch runs on, and whether the embedded models are in
    place. Reaches no network and shows no secret. Exits with 0 if all essentials are there,
    otherwise with 1.

    Example: regforge doctor --json
    """
    from regforge import doctor

    checks = doctor.examine()
    typer.echo(_as_json(doctor.as_dict(checks)) if as_json else doctor.as_text(checks))
    if not doctor.is_healthy(checks):
        raise typer.Exit(EXIT_FAILED)


# ---------------------------------------------------------------------------------------- helpers


def _run(
    path: Path,
    overrides: list[str] | None,
    out: Path | None,
    limit: int | None,
    fresh: bool,
    quiet: bool,
    until: Until,
) -> Run:
    from regforge import forge
    from regforge.recipe import load_recipe

    recipe = load_recipe(path, overrides or ())
    folder = out or Path("runs") / recipe.name
    with _kept_if_interrupted(folder):
        return forge.run(
            recipe, out=folder, limit=limit, fresh=fresh, until=until, reporter=_reporter(quiet)
        )


@contextmanager
def _kept_if_interrupted(folder: Path) -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = " ".join(["regforge", *(_quoted(word) for word in sys.argv[1:])])
        again = again.replace(" --fresh", "")
        typer.secho(
            f"\nInterrupted. What was made is kept in {_short(folder)}; go on with\n  {again}",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED) from None


def _reporter(quiet: bool) -> Reporter:
    from regforge.progress import Reporter

    return Reporter(quiet=quiet)


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def _what_next(done: Run, recipe: Path, out: Path | None) -> str:
    dataset, run = _short(done.dataset), _quoted(str(_short(done.folder)))
    more = f"regforge run {recipe} --set prompts.count={2 * done.prompts}"
    more += f" --out {out}" if out else ""
    lines = [
        f"\nDone: {done.images} images"
        + (f", {done.rejected} others refused" if done.rejected else "")
        + f", {done.seconds_in_words}, language model cost {done.cost_in_words}.",
        "",
        f"  dataset   {dataset}",
        f"  grid      {_short(done.grid)}",
        f"  report    {_short(done.report)}   (open it in a browser)",
        "",
        "Next:",
        f'  python -c "import datasets; print(datasets.load_dataset({str(dataset)!r}))"',
        f"  regforge audit {run}   (is it fit for training?)",
        f"  regforge export {run} --to kohya --out {done.folder.name}-kohya   (for that trainer)",
        f"  {more}   (as many again, beside these)",
        "  regforge init mine.yaml --class-noun teapot   (a recipe of your own)",
    ]
    return "\n".join(lines)


def _short(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _as_json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


def main() -> None:
    """Runs the command line; what users can cause ends in one sentence, not in a traceback."""
    try:
        app(prog_name="regforge")
    except RegforgeError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == _CTRL_C:
            typer.secho("\nInterrupted. The same command goes on, or starts over.", err=True)
            sys.exit(EXIT_FAILED)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
