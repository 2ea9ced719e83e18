"""Publishes what a training run made: its weights, card, samples and recipe, in one commit.

On the Hub the weights lie at the top, where `load_lora_weights("user/name")` and
`DiffusionPipeline.from_pretrained("user/name")` look. Nothing there tells whose machine it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regforge.dataset.card_parts import Card, merged
from regforge.hub import Contents, Remote, publish_files
from regforge.journal import Reporter
from regforge.publishing import (
    CARD,
    CannotPublish,
    PublishedRun,
    RepositoryTaken,
    card_of,
    check_other,
    check_tag,
    license_notes,
    license_of,
    refuse_secrets,
    repository_of,
)
from regforge.recipe import TrainingRecipe, resolved_yaml
from regforge.recipe.named_files import EMBEDDING_FOLDER, LEADS_OUT, embedding_in, inside
from regforge.runs import TrainingFolder
from regforge.training.card import OUR_KEYS, images_of, model_card
from regforge.training.saving import LORA_FILE, kohya_file
from regforge.version import __version__

_INDEX = "model_index.json"
_OURS = re.compile(
    r"README\.md|recipe\.yaml|loss\.svg|samples\.webp|images/\d+\.webp|[^/]+-kohya\.safetensors"
    rf"|pytorch_lora_weights\.safetensors|{EMBEDDING_FOLDER}/[^/]+\.safetensors"
)
"""What regforge writes beside a pipeline's own files."""
_NOUNS = {"lora": "LoRA", "full": "pipeline", "embedding": "embedding"}
_LOADERS = {
    "lora": "pipeline.load_lora_weights",
    "full": "diffusers.DiffusionPipeline.from_pretrained",
    "embedding": "regforge.sample",  # the card has the lines for diffusers
}


def publish_model(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    tag: str | None = None,
    license_id: str | None = None,
    create_pr: bool = False,
    reporter: Reporter | None = None,
) -> PublishedRun:
    """Put what a training run made on the Hub, in one commit; what is there already stays.

    Settings that are left out are the recipe's, section `hub`; what that leaves open is as it was
    published before, and the licence else follows from the base model.

    Raises:
        CannotPublish: The run is not finished, repository or licence are missing or wrong, or what
            would be published holds a secret. Nothing has been uploaded.
        HubError: The Hub cannot be reached, or does not let us.
    """
    run, reporter = TrainingFolder(Path(folder)), reporter or Reporter()
    check_tag(tag)
    try:  # the files that it names may be gone by now
        recipe = TrainingRecipe.model_validate(_recipe_keys(run.recipe))
    except ValidationError as error:
        raise CannotPublish(
            f"{folder} has no recipe.yaml that this version of regforge reads.",
            hint="The folder of a training run has one, such as runs/teapot-lora.",
        ) from error
    with run.locked():
        made, before = _finished(recipe, run, folder), run.state().get("published") or {}
        repo_id = repo_id or recipe.hub.repo_id or before.get("repo_id")
        repository = repository_of(repo_id, run, key="hub.repo_id")
        license_id = license_of(
            license_id or recipe.hub.license or before.get("license"),
            recipe.base_model,
            did="which was trained",
            key="hub.license",
        )
        if private is None:
            again = before.get("repo_id") == repository
            private = before["private"] if again else recipe.hub.private
        hub = {"repo_id": repository, "private": private, "license": license_id}
        recipe = recipe.model_copy(update={"hub": recipe.hub.model_copy(update=hub)})
        files = _files(recipe, run, made)
        notes = list(license_notes(license_id, recipe.base_model, cautioned=False))
        kind = recipe.method.kind
        noun = f"{'an' if kind == 'embedding' else 'a'} {_NOUNS[kind]}"
        done = publish_files(
            repository,
            _contents_of(files, _card(recipe, run.path, made), notes),
            message=f"{noun}, with regforge {__version__}",
            repo_type="model",
            private=private,
            tag=tag,
            create_pr=create_pr,
            reporter=reporter,
        )
        run.remember(published={**hub, "commit": done.commit, "tag": done.tag})
    return PublishedRun(
        done,
        what=noun,
        these=f"this {_NOUNS[kind]}",
        load=f'{_LOADERS[kind]}("{done.repo_id}")',
        facts={"kind": kind},
        license=license_id,
        files=tuple(sorted({*files, CARD})),
        notes=tuple(notes),
    )


def _recipe_keys(path: Path) -> Mapping[str, Any]:
    """A recipe's keys; none if there is no such file, or something else in it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _finished(recipe: TrainingRecipe, run: TrainingFolder, given: str | Path) -> dict[str, Any]:
    """What the run made, as it remembers it."""
    made, steps = run.state().get("finished"), recipe.optimizer.steps
    if not isinstance(made, dict) or not (run.path / made["weights"]).exists():
        problem = f"{given} holds no finished training."
    elif made["steps"] != steps:  # its recipe asked for other steps since
        problem = (
            f"{given} holds the weights of step {made['steps']}, and its training to step {steps} "
            "is not finished."
        )
    else:
        return made
    raise CannotPublish(
        problem, hint=f"Train its recipe first, to the end: regforge train RECIPE --out {given}"
    )


def _files(
    recipe: TrainingRecipe, run: TrainingFolder, made: Mapping[str, Any]
) -> dict[str, Path | bytes]:
    """All files but the card, by their paths in the repository."""
    weights, files = run.path / made["weights"], dict[str, Path]()
    if weights.is_dir():
        for path in sorted(weights.rglob("*")):
            if path.is_file():
                files[path.relative_to(weights).as_posix()] = path
    else:
        if (token := embedding_in(run.path)) is not None:
            files[f"{EMBEDDING_FOLDER}/{token.name}"] = token
        if weights != token:
            files[weights.name] = weights
        if (other := kohya_file(run.path)) is not None:
            files[other.name] = other
    shown = ["samples.webp", "loss.svg", *(name for _, name in images_of(recipe, run.path))]
    files |= {name: run.path / name for name in shown if (run.path / name).is_file()}
    for each in (*files.values(), run.path / CARD):
        if each.exists() and inside(each, run.path) is None:
            raise CannotPublish(f"{each} {LEADS_OUT}.", hint="Nothing has been uploaded.")
    text = resolved_yaml(recipe, portable=True, digest=str(run.digest))
    refuse_secrets("recipe.yaml", text.splitlines())
    return {**files, "recipe.yaml": text.encode()}


def _contents_of(
    files: Mapping[str, Path | bytes], local: str, notes: list[str]
) -> Callable[[Remote], Contents]:
    """What the repository shall hold, see `publish_files`; `notes` get what was left out."""
    before = list(notes)

    def contents(remote: Remote) -> Contents:
        theirs = card_of(remote, files, "model")
        if _INDEX in remote.files and _INDEX not in files:
            raise RepositoryTaken(
                "The repository holds a whole pipeline, which this LoRA would lie beside.",
                hint="Choose another one with --repo-id, or delete its files on the Hub first.",
            )
        card, left_out = merged(local, theirs, our_keys=OUR_KEYS)
        notes[:] = before + left_out
        refuse_secrets(CARD, card.splitlines())
        front = Card.parse(card).front
        where = f"{CARD} in the run's folder; the link is a URL"
        check_other(front.get("license"), front, where, CannotPublish)
        stale = sorted(p for p in remote.files if _OURS.fullmatch(p) and p not in {*files, CARD})
        return Contents({**files, CARD: card.encode()}, tuple(stale))

    return contents


def _card(recipe: TrainingRecipe, folder: Path, made: Mapping[str, Any]) -> str:
    """The run's card as it is on the Hub, with the words that somebody wrote into the run's."""
    path = folder / CARD
    other = kohya_file(folder) if Path(made["weights"]) == LORA_FILE else None
    return model_card(
        recipe,
        repo_id=recipe.hub.repo_id,
        base_revision=made.get("base_revision"),
        dataset_revision=made.get("dataset_revision"),
        samples="samples.webp" if (folder / "samples.webp").is_file() else None,
        images=images_of(recipe, folder),
        other=other.name if other else None,
        token=embedding_in(folder),
        family=made.get("family"),
        existing=path.read_text(encoding="utf-8") if path.is_file() else None,
    )
