"""Publishes the dataset of a run: which repository, which licence, then all of it or nothing.

What is asked of repository, tag and licence is the same for models (`regforge.training`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.forge.running import RunFailed
from regforge.hub import Published, publish_files
from regforge.progress import Reporter
from regforge.recipe import Recipe, slots_of
from regforge.recipe.licenses import OVERVIEW, not_an_identifier, terms_of
from regforge.runs import RecipeFolder, RunFolder
from regforge.version import __version__

if TYPE_CHECKING:
    from regforge.publish.package import Package


# Some of what git allows, https://git-scm.com/docs/git-check-ref-format.
_TAG = re.compile(r"(?!.*(?:\.\.|\.lock$|\.$))[^\W_][\w.+-]*")


class CannotPublish(RegforgeError):
    """Something that has to be said before a dataset can be published."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class PublishedRun:
    """What became of it.

    Attributes:
        on_hub: What the Hub holds now.
        images: How many there are.
        license: The Hub's identifier.
        files: Paths of the dataset's files in the repository.
        own_files: Those of them that are not regforge's.
        notes: What people should know, a sentence each.
    """

    on_hub: Published
    images: int
    license: str
    files: tuple[str, ...]
    own_files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def unchanged(self) -> int:
        """How many files were there already."""
        return len(self.files) - self.on_hub.uploaded

    @property
    def revision(self) -> str:
        """What names this version for good: the tag, else the commit."""
        return self.on_hub.tag or self.on_hub.commit

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            **facts_of(self.on_hub, self.unchanged),
            "images": self.images,
            "license": self.license,
            "files": list(self.files),
            "own_files": list(self.own_files),
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        done = self.on_hub
        if done.pull_request:
            yield f"Offered as a pull request: {self.images} images, {self.license}."
        elif done.changed:
            yield f"Published: {self.images} images, {self.license}."
        else:
            yield f"Nothing to do: the Hub holds these {self.images} images already."
        yield ""
        yield from lines_of(done, self.unchanged)
        if self.own_files:
            yield f"  yours     {', '.join(self.own_files)}"
        for note in self.notes:
            yield f"  note      {note}"
        yield ""
        which = f'"{done.repo_id}", revision="{self.revision}", split="train"'
        yield f"  datasets.load_dataset({which})"


def facts_of(done: Published, unchanged: int) -> dict[str, Any]:
    """What the Hub holds now, for scripts."""
    return {
        "repo_id": done.repo_id,
        "url": done.url,
        "commit": done.commit,
        "tag": done.tag,
        "pull_request": done.pull_request,
        "changed": done.changed,
        "uploaded": done.uploaded,
        "deleted": done.deleted,
        "unchanged": unchanged,
    }


def lines_of(done: Published, unchanged: int) -> Iterator[str]:
    """What the Hub holds now, for people."""
    yield f"  page      {done.url}"
    if done.pull_request:
        yield f"  request   {done.pull_request}   (a person has to merge it)"
    yield f"  commit    {done.commit}" + (f"   (tag {done.tag})" if done.tag else "")
    if done.changed:
        counts = f"{done.uploaded} uploaded, {done.deleted} deleted, {unchanged} unchanged"
        yield f"  files     {counts}"


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

    Settings that are left out are the recipe's. Those that are given are written into the dataset's
    recipe and card first, so that the folder and the Hub say the same.

    Args:
        folder: The run's.
        repo_id: `user/name`.
        private: Whether a new repository is private.
        tag: Names this version.
        license_id: The Hub's identifier; the rendering model's if nobody says.
        create_pr: Leave it as a pull request.
        reporter: Gets progress.

    Raises:
        RunFailed: The folder is not a run's, or its dataset is not finished.
        CannotPublish: Repository or licence are missing or wrong.
        NotPublishable: A reader would not get the dataset as it is. Nothing has been uploaded.
        HubError: The Hub cannot be reached, or does not let us.
    """
    from regforge.publish import package as packages
    from regforge.publish import rewriting

    run, reporter = RunFolder(Path(folder)), reporter or Reporter()
    images = _finished(run, folder)
    check_tag(tag)
    with run.locked():
        recipe = rewriting.recipe_of(run.dataset)
        repository = repository_of(repo_id or recipe.dataset.repo_id, run, key="dataset.repo_id")
        license_id = license_of(
            license_id or recipe.dataset.license,
            recipe.render.model,
            did="which drew the images",
            key="dataset.license",
        )
        private = recipe.dataset.private if private is None else private
        settings = {"license": license_id, "repo_id": repository, "private": private}
        packages.check_license(run.dataset, license_id)  # what is refused is not remembered
        rewriting.rewrite(run.dataset, run.shards, settings)
        package = packages.pack(
            run.dataset,
            rows=images,
            recipe_digest=str(run.digest),
            slots=tuple(slot.name for slot in slots_of(recipe)),
        )
        package.notes += _about_the_license(license_id, recipe)
        done = _upload(package, repository, private, tag, create_pr, reporter)
        run.remember(published={"repo_id": done.repo_id, "commit": done.commit, "tag": done.tag})
    return PublishedRun(
        done,
        images,
        license_id,
        tuple(package.files),
        tuple(package.own_files),
        tuple(package.notes),
    )


def _upload(
    package: Package,
    repository: str,
    private: bool,
    tag: str | None,
    create_pr: bool,
    reporter: Reporter,
) -> Published:
    from regforge.publish.package import check, wanted_by

    name, notes = repository.partition("/")[2], list[str]()
    check(package, name, reporter)
    done = publish_files(
        repository,
        wanted_by(package, name, notes),
        message=f"{package.expected.rows} images, with regforge {__version__}",
        private=private,
        tag=tag,
        create_pr=create_pr,
        reporter=reporter,
    )
    package.notes += notes
    return done


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


def repository_of(repo_id: str | None, run: RecipeFolder, *, key: str) -> str:
    """The repository, if there is one and it can be one.

    Args:
        repo_id: As it was given.
        run: Knows where it was published before.
        key: The recipe's.

    Raises:
        CannotPublish: It is missing, or wrong.
    """
    if repo_id is None:
        before = (run.state().get("published") or {}).get("repo_id")
        raise CannotPublish(
            f"Where to? Neither --repo-id nor the recipe's {key} is given.",
            hint=f"It was published to {before} before." if before else "Such as me/teapot-reg.",
        )
    if repo_id.count("/") != 1 or not _is_repository(repo_id):
        raise CannotPublish(
            f"A repository is named user/name, not {repo_id!r}.",
            hint="Of letters, digits, '-', '_' and '.'; a part neither begins nor ends with '-' or "
            "'.'.",
        )
    return repo_id


def _is_repository(repo_id: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return True


def check_tag(tag: str | None) -> None:
    """Whether git can have it as a tag, and `user/name@tag` can say it.

    Raises:
        CannotPublish: It cannot.
    """
    if tag is None or (_TAG.fullmatch(tag) and tag != "main"):
        return
    raise CannotPublish(
        f"{tag!r} cannot name a version.",
        hint="Such as v1 or 2024-05: letters, digits, '-', '_' and '.', beginning with a letter or "
        "digit.",
    )


def license_of(license_id: str | None, model: str, *, did: str, key: str) -> str:
    """The licence that was named, or the one that follows from a model.

    Args:
        license_id: As it was given.
        model: Whose terms count.
        did: What it did, such as "which drew the images".
        key: The recipe's.

    Raises:
        CannotPublish: Nobody knows it, or the Hub does not.
    """
    if license_id is None:
        terms = terms_of(model)
        if terms is None:
            raise CannotPublish(
                f"No licence is named, and regforge does not know the terms of {model}, {did}.",
                hint=f"Look at its card, and name what it asks for: {key} in the recipe, "
                f"or --license. Identifiers: {OVERVIEW}",
            )
        return terms.license
    problem = not_an_identifier(license_id)
    if problem:
        raise CannotPublish(problem, hint=f"All of them: {OVERVIEW}. For any other: other")
    return license_id


def license_notes(license_id: str, model: str, *, cautioned: bool) -> Iterator[str]:
    """What people should know of a model's licence, a sentence each.

    Args:
        license_id: The one that was chosen.
        model: Whose terms count.
        cautioned: Whether to say what it means for images.
    """
    terms = terms_of(model)
    if terms is not None:
        which = terms.license + (f" ({terms.name})" if terms.name else "")
        if terms.license != license_id:
            yield f"{license_id} was chosen as the licence; that of {model} is {which}."
        if terms.caution:
            caution = f" {terms.caution}" if cautioned else ""
            yield f"The licence of {model} is {which}.{caution} {terms.link}"


def _about_the_license(license_id: str, recipe: Recipe) -> Iterator[str]:
    yield from license_notes(license_id, recipe.render.model, cautioned=True)
    for lora in recipe.render.lora:
        yield f"The terms of the LoRA {lora.path} count as well."
