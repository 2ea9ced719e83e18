"""Commands that take a finished dataset further: to the Hub, to a trainer, under the lens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regforge.cli.console import (
    AsJson,
    CaptionColumn,
    ClassNoun,
    DatasetName,
    Quiet,
    Resolution,
    Streaming,
    show,
)
from regforge.errors import EXIT_FAILED
from regforge.journal import Reporter


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")
    ],
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", help="user/name; the recipe's value by default.")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of a new repository; the recipe's value by default, else private.",
        ),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Name this version, such as v1.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Hub identifier; the recipe's value by default.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Leave it as a pull request.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Put what a run made on the Hugging Face Hub, in one commit: its dataset, or its model.

    What is there already is not uploaded again. Log in first: hf auth login.

    Example: regforge publish runs/teapot --repo-id me/teapot-reg --tag v1
    """
    from regforge import api

    done = api.publish(
        folder,
        repo_id=repo_id,
        private=private,
        tag=tag,
        license_id=license_id,
        create_pr=create_pr,
        reporter=Reporter(quiet=quiet),
    )
    show(done, as_json)


def export(
    dataset: DatasetName,
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="kohya, diffusers-dreambooth, custom-diffusion, simpletuner, onetrainer, "
            "ai-toolkit, musubi-tuner, diffusion-pipe, zip, diffsynth, comfyui, imagefolder or "
            "webdataset; may be given several times.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    subject: Annotated[
        Path | None, typer.Option("--subject", help="Folder with the photos of the subject.")
    ] = None,
    identifier: Annotated[
        str | None,
        typer.Option(
            "--identifier",
            help="The token that stands for the subject; the run's own, else sks, by default.",
        ),
    ] = None,
    class_noun: ClassNoun = None,
    resolution: Resolution = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The model to be trained.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", help="What kind of model that is, such as sdxl.")
    ] = None,
    prior_weight: Annotated[
        float, typer.Option("--prior-weight", min=0, help="Weight of the regularization loss.")
    ] = 1.0,
    root: Annotated[
        str | None,
        typer.Option("--root", help="Where the folder will lie on the machine that trains."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many images, balanced.")
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
    from regforge.exporting import export_dataset

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
        family=family,
        prior_weight=prior_weight,
        root=root,
        limit=limit,
        caption_column=caption_column,
        check=check,
        reporter=Reporter(quiet=quiet),
    )
    show(done, as_json)
    if done.differs:
        raise typer.Exit(EXIT_FAILED)


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
    resolution: Resolution = None,
    class_noun: ClassNoun = None,
    caption_column: CaptionColumn = None,
    streaming: Streaming = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Open all images, also where their hashes are stored."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Grade a regularization set, regforge's or anybody's; touches nothing.

    Looks for copies, poor captions, uneven slots, missing metadata, the subject itself, captions
    over the token limit, and suggests repeats. Exits with 0 whatever it finds.

    Example: regforge audit ostris/sdxl_10_reg --resolution 1024
    """
    from regforge.auditing import audit_dataset
    from regforge.dataset.sources import open_dataset

    found = audit_dataset(
        open_dataset(dataset, streaming=streaming, caption_column=caption_column),
        subject=subject,
        identifier=identifier,
        class_noun=class_noun,
        photos=photos,
        resolution=resolution,
        thorough=thorough,
        reporter=Reporter(quiet=quiet),
    )
    show(found, as_json)
