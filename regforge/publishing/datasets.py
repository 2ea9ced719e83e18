"""Publishes the dataset of a run: which repository, which licence, then all of it or nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regforge.dataset.build import DatasetError
from regforge.dataset.card import Refusals, Survey, write_card
from regforge.dataset.card_parts import Card
from regforge.dataset.decisions import FILE, Review
from regforge.dataset.index import subjects_in, write_index
from regforge.dataset.store import SHARD_SIZE, Store, StoreError, read_rows
from regforge.files import write_atomically
from regforge.forge.running import RunFailed
from regforge.hub import publish_files
from regforge.journal import Reporter
from regforge.publishing import (
    CannotPublish,
    PublishedRun,
    check_tag,
    license_notes,
    license_of,
    repository_of,
)
from regforge.publishing.package import Package, check_license, pack, together
from regforge.recipe import Recipe, RecipeError, slots_of
from regforge.recipe.problems import Place
from regforge.recipe.yaml_nodes import Dumper, plain, read_yaml
from regforge.runs import RunFolder
from regforge.version import __version__
from regforge.words import counted, listed


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

    Of a folder with the runs of several subjects, all of them, with a configuration each.

    Settings that are left out are the recipe's; the licence then follows from the rendering model.
    Those that are given are written into the dataset's recipe and card first, so that the folder
    and the Hub say the same.

    Raises:
        RunFailed: The folder is not a run's, or its dataset is not finished.
        CannotPublish: Repository or licence are missing or wrong.
        NotPublishable: A reader would not get the dataset as it is. Nothing has been uploaded.
        HubError: The Hub cannot be reached, or does not let us.
    """
    top, reporter = Path(folder), reporter or Reporter()
    subjects = [] if RunFolder(top).digest else subjects_in(top)
    runs = [RunFolder(top / name) for name in subjects] or [RunFolder(top)]
    rows = [_finished(run, top / name) for run, name in zip(runs, subjects or [""], strict=True)]
    check_tag(tag)
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.locked())
            _check_reviewed(run)
        recipes = [recipe_of(run.dataset) for run in runs]
        repository = _repository_of(repo_id, recipes, runs[0])
        licenses = [
            license_of(
                license_id or recipe.dataset.license,
                recipe.render.model,
                did="which drew the images",
                key="dataset.license",
            )
            for recipe in recipes
        ]
        if private is None:
            private = any(recipe.dataset.private for recipe in recipes)
        for run, terms in zip(runs, licenses, strict=True):
            check_license(run.dataset, terms)  # what is refused is not remembered
        packages = []
        for run, recipe, count, terms in zip(runs, recipes, rows, licenses, strict=True):
            # The repository of several subjects is no place for one of them alone.
            where = {} if subjects else {"repo_id": repository}
            settings = {"license": terms, **where, "private": private}
            rewrite(run.dataset, run.shards, settings)
            packages.append(_packed(run, recipe, count, repository, terms))
        package = packages[0]
        if subjects:
            parts = dict(zip(subjects, packages, strict=True))
            package = together(parts, write_index(top, repository), repository)
        package.check(reporter)
        done = publish_files(
            repository,
            package.contents,
            message=f"{sum(rows)} images, with regforge {__version__}",
            private=private,
            tag=tag,
            create_pr=create_pr,
            reporter=reporter,
        )
        published = {"repo_id": done.repo_id, "commit": done.commit, "tag": done.tag}
        for run in runs:
            run.remember(published=published)
    name = f'"{done.repo_id}"' + (f', "{subjects[0]}"' if subjects else "")
    what = f"{sum(rows)} images" + (f" of {counted(len(subjects), 'subject')}" if subjects else "")
    return PublishedRun(
        done,
        what=what,
        these=f"these {what}",
        load=f'datasets.load_dataset({name}, revision="{done.tag or done.commit}", split="train")',
        facts={"images": sum(rows), **({"subjects": subjects} if subjects else {})},
        license=listed(dict.fromkeys(licenses)),
        files=tuple(package.files),
        notes=(*package.notes, *package.hub_notes),
        own_files=tuple(package.own_files),
    )


def _repository_of(repo_id: str | None, recipes: Sequence[Recipe], run: RunFolder) -> str:
    asked = {repo_id or recipe.dataset.repo_id for recipe in recipes}
    if len(asked) > 1:
        raise CannotPublish(
            "The recipe names a repository for each subject.",
            hint="Publish their runs one by one, or name one for all of them with --repo-id.",
        )
    return repository_of(asked.pop(), run, key="dataset.repo_id")


def _packed(run: RunFolder, recipe: Recipe, rows: int, repository: str, license_id: str) -> Package:
    slots = tuple(slot.name for slot in slots_of(recipe))
    name, digest = repository.partition("/")[2], str(run.digest)
    package = pack(run.dataset, name, rows=rows, recipe_digest=digest, slots=slots)
    package.notes += license_notes(license_id, recipe.render.model, cautioned=True)
    package.notes += [
        f"The terms of the LoRA {lora.path} count as well." for lora in recipe.render.lora
    ]
    return package


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


def _check_reviewed(run: RunFolder) -> None:
    """See that the dataset is what people decided that it should be.

    Raises:
        CannotPublish: Decisions of theirs are not carried out yet.
    """
    if pending := sum(map(Review.of(run.path).is_pending, read_rows(run.dataset, images=False))):
        raise CannotPublish(
            f"{run.path / FILE} has decisions about {counted(pending, 'image')} of {run.dataset} "
            "that are not carried out.",
            hint=f"Carry the decisions out: {run.command}",
        )


# -------------------------------------------------------------------- the dataset's recipe and card


_SECTION = re.compile(r"^dataset:\n(?:[ #].*\n|\n)*", re.MULTILINE)
_MADE_WITH = re.compile(r"^\| made with \| (.*) \|$", re.MULTILINE)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a finished dataset, with the names of files alone; none of them is looked for.

    Raises:
        DatasetError: It has none, or one that cannot be read.
    """
    return _parsed(_text_of(folder / "recipe.yaml"), folder / "recipe.yaml")


def rewrite(folder: Path, shards: Path, settings: Mapping[str, Any]) -> bool:
    """Change the recipe's `dataset` section, and write the card that goes with it.

    Killed at any instant, the files are those of before, those of afterwards, or the new card
    beside the old recipe; the next call goes on from there.

    `settings` has the keys of the section with their new values; the shards that it was built from
    know what was refused. Returns whether anything had to be written.

    Raises:
        DatasetError: The recipe or the card cannot be read, or a shard is missing.
        NoDataset, ParquetError: The data is not complete, or damaged.
        StorageError: The folder cannot be written.
    """
    text, card = _text_of(folder / "recipe.yaml"), _text_of(folder / "README.md")
    section = recipe_of(folder).dataset.model_dump(mode="json")
    known = Card.parse(card)
    if known.ours is None:
        raise _unreadable(folder / "README.md")
    if {**section, **settings} == section and known.front.get("license") == section["license"]:
        return False
    body = {"dataset": {**section, **settings}}
    changed = yaml.dump(body, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=88)
    text = _SECTION.sub(lambda _: changed, text, count=1)
    recipe = _parsed(text, folder / "recipe.yaml")
    write_atomically(folder / "README.md", _card(folder, shards, recipe, card))
    write_atomically(folder / "recipe.yaml", text)
    return True


def _card(folder: Path, shards: Path, recipe: Recipe, existing: str) -> str:
    survey = Survey([slot.name for slot in slots_of(recipe)])
    digest = ""
    for row in read_rows(folder, images=False):
        survey.add(row)
        digest = row.recipe_digest
    store, refusals = Store(shards, list(survey.slots), digest), Refusals()
    for number in range(survey.last_index // SHARD_SIZE + 1):
        try:
            rejected = store.rejected(number)
        except StoreError as error:
            raise DatasetError(
                f"The card cannot be written anew: {error.message}",
                hint="Run the recipe again; `dataset.license` and `dataset.repo_id` in it do the "
                "same.",
            ) from error
        for each in rejected:
            if each.index <= survey.last_index:
                refusals.add(each)
    return write_card(
        survey,
        refusals,
        recipe,
        versions=_versions(existing),
        vocabulary=(folder / "vocabulary.json").is_file(),
        existing=existing,
    )


def _versions(card: str) -> dict[str, str]:
    """What made the images, as the card says it; they may have been made on another machine."""
    found = _MADE_WITH.search(Card.parse(card).ours or "")
    words = [html.unescape(each).split() for each in found.group(1).split(", ")] if found else []
    return {pair[0]: pair[1] for pair in words if len(pair) == 2}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path) from error


def _parsed(text: str, path: Path) -> Recipe:
    try:
        node, problems = read_yaml(text, Place(str(path), path.parent, 1, 1))
        if node is not None and not problems:
            return Recipe.model_validate(plain(node))
    except (ValidationError, RecipeError) as error:
        raise _unreadable(path) from error
    raise _unreadable(path)


def _unreadable(path: Path) -> DatasetError:
    return DatasetError(
        f"{path} is missing, or not what regforge wrote there.",
        hint="Run the recipe again: it is written anew, and your own text in the card is kept.",
    )
