"""Publishes the dataset of a run: which repository, which licence, then all of it or nothing."""

from __future__ import annotations

from pathlib import Path

from regforge.forge.running import RunFailed
from regforge.hub import publish_files
from regforge.journal import Reporter
from regforge.publish.package import check_license, pack
from regforge.publish.requirements import (
    PublishedRun,
    check_tag,
    license_notes,
    license_of,
    repository_of,
)
from regforge.publish.rewriting import recipe_of, rewrite
from regforge.recipe import slots_of
from regforge.runs import RunFolder
from regforge.version import __version__


def publish_run(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    tag: str | None = None,
    license_id: str | None = None,
    create_pr: bool = False,
    reporter: Reporter | None = None,
) -> PublishedRun:
    """Put the dataset of a run on the Hub, in one commit; what is there already stays.

    Settings that are left out are the recipe's; the licence then follows from the rendering model.
    Those that are given are written into the dataset's recipe and card first, so that the folder
    and the Hub say the same.

    Raises:
        RunFailed: The folder is not a run's, or its dataset is not finished.
        CannotPublish: Repository or licence are missing or wrong.
        NotPublishable: A reader would not get the dataset as it is. Nothing has been uploaded.
        HubError: The Hub cannot be reached, or does not let us.
    """
    run, reporter = RunFolder(Path(folder)), reporter or Reporter()
    rows = _finished(run, folder)
    check_tag(tag)
    with run.locked():
        recipe = recipe_of(run.dataset)
        repository = repository_of(repo_id or recipe.dataset.repo_id, run, key="dataset.repo_id")
        license_id = license_of(
            license_id or recipe.dataset.license,
            recipe.render.model,
            did="which drew the images",
            key="dataset.license",
        )
        private = recipe.dataset.private if private is None else private
        check_license(run.dataset, license_id)  # what is refused is not remembered
        settings = {"license": license_id, "repo_id": repository, "private": private}
        rewrite(run.dataset, run.shards, settings)
        slots = tuple(slot.name for slot in slots_of(recipe))
        name, digest = repository.partition("/")[2], str(run.digest)
        package = pack(run.dataset, name, rows=rows, recipe_digest=digest, slots=slots)
        package.notes += license_notes(license_id, recipe.render.model, cautioned=True)
        package.notes += [
            f"The terms of the LoRA {lora.path} count as well." for lora in recipe.render.lora
        ]
        package.check(reporter)
        done = publish_files(
            repository,
            package.contents,
            message=f"{rows} images, with regforge {__version__}",
            private=private,
            tag=tag,
            create_pr=create_pr,
            reporter=reporter,
        )
        run.remember(published={"repo_id": done.repo_id, "commit": done.commit, "tag": done.tag})
    which = f'"{done.repo_id}", revision="{done.tag or done.commit}", split="train"'
    return PublishedRun(
        done,
        what=f"{rows} images",
        these=f"these {rows} images",
        load=f"datasets.load_dataset({which})",
        facts={"images": rows},
        license=license_id,
        files=tuple(package.files),
        notes=(*package.notes, *package.hub_notes),
        own_files=tuple(package.own_files),
    )


def _finished(run: RunFolder, given: str | Path) -> int:
    """How many images the run's dataset has."""
    if run.digest is None:
        raise RunFailed(
            f"{given} is not the folder of a run.", hint="Such as runs/quickstart, after `run`."
        )
    images = run.state().get("images")
    if not isinstance(images, int) or not run.dataset.is_dir():
        raise RunFailed(
            f"{given} holds no finished dataset.",
            hint=f"Run its recipe first, to the end: regforge run RECIPE --out {given}",
        )
    return images
