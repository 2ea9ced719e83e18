"""Publishes what a training run made: its weights, card, samples and recipe, in one commit.

On the Hub the weights lie at the top, where `load_lora_weights("user/name")` and
`DiffusionPipeline.from_pretrained("user/name")` look. Nothing there tells whose machine it was.
Knows what a run's folder holds; knows nothing about how files get there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regforge.dataset.card_parts import Card, merged
from regforge.hub import Contents, Published, Remote, publish_files
from regforge.journal import without_secrets
from regforge.progress import Reporter
from regforge.publish.datasets import (
    CannotPublish,
    check_tag,
    facts_of,
    license_notes,
    license_of,
    lines_of,
    repository_of,
)
from regforge.recipe import TrainingRecipe, resolved_yaml
from regforge.recipe.named_files import LEADS_OUT, inside
from regforge.runs import TrainingFolder
from regforge.training.card import OUR_KEYS, model_card
from regforge.training.saving import LORA_FILE, images_of, kohya_file
from regforge.version import __version__

_CARD = "README.md"
_INDEX = "model_index.json"
_OURS = re.compile(
    r"README\.md|recipe\.yaml|loss\.svg|samples\.webp|images/\d+\.webp|[^/]+-kohya\.safetensors"
    r"|pytorch_lora_weights\.safetensors"
)
"""What regforge writes beside a pipeline's own files."""
_NO_MODEL = re.compile(r"(?:.*/)?\..*|licen[cs]e[^/]*|[^/]*\.md", re.IGNORECASE)
"""Files that a repository may hold before there is a model in it: hidden ones, and words."""


class AnotherModel(CannotPublish):
    """A repository that holds something else."""


@dataclass(frozen=True)
class PublishedModel:
    """What became of it.

    Attributes:
        on_hub: What the Hub holds now.
        kind: `lora` or `full`.
        license: The Hub's identifier.
        files: Paths in the repository.
        notes: What people should know, a sentence each.
    """

    on_hub: Published
    kind: str
    license: str
    files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def unchanged(self) -> int:
        """How many files were there already."""
        return len(self.files) - self.on_hub.uploaded

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            **facts_of(self.on_hub, self.unchanged),
            "kind": self.kind,
            "license": self.license,
            "files": list(self.files),
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        done, what = self.on_hub, _WHAT[self.kind]
        if done.pull_request:
            yield f"Offered as a pull request: {what}, {self.license}."
        elif done.changed:
            yield f"Published: {what}, {self.license}."
        else:
            yield f"Nothing to do: the Hub holds this {what.partition(' ')[2]} already."
        yield ""
        yield from lines_of(done, self.unchanged)
        for note in self.notes:
            yield f"  note      {note}"
        yield ""
        load = "pipeline.load_lora_weights" if self.kind == "lora" else _FROM_PRETRAINED
        yield f'  {load}("{done.repo_id}")'


_WHAT = {"lora": "a LoRA", "full": "a pipeline"}
_FROM_PRETRAINED = "diffusers.DiffusionPipeline.from_pretrained"


def is_training_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run, finished or not."""
    return "base_model" in _content(Path(folder) / "recipe.yaml")


def publish_model(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    tag: str | None = None,
    license_id: str | None = None,
    create_pr: bool = False,
    reporter: Reporter | None = None,
) -> PublishedModel:
    """Put what a training run made on the Hub, in one commit; what is there already stays.

    Settings that are left out are the recipe's, section `hub`; what that leaves open is as it was
    published before.

    Args:
        folder: The run's.
        repo_id: `user/name`.
        private: Whether a new repository is private.
        tag: Names this version.
        license_id: The Hub's identifier; the base model's if nobody says.
        create_pr: Leave it as a pull request.
        reporter: Gets progress.

    Raises:
        CannotPublish: The run is not finished, repository or licence are missing or wrong, or what
            would be published holds a secret. Nothing has been uploaded.
        HubError: The Hub cannot be reached, or does not let us.
    """
    run, reporter = TrainingFolder(Path(folder)), reporter or Reporter()
    check_tag(tag)
    recipe = _recipe_of(run, folder)
    with run.locked():
        state = run.state()
        made, before = _finished(recipe, run, folder), state.get("published") or {}
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
        files = _files(recipe, run, made, str(run.digest))
        notes = list(license_notes(license_id, recipe.base_model, cautioned=False))
        done = publish_files(
            repository,
            _wanted_by(recipe, run.path, made, files, notes),
            message=f"{_WHAT[recipe.method.kind]}, with regforge {__version__}",
            repo_type="model",
            private=private,
            tag=tag,
            create_pr=create_pr,
            reporter=reporter,
        )
        run.remember(published={**hub, "commit": done.commit, "tag": done.tag})
    names = tuple(sorted({*files, _CARD}))
    return PublishedModel(done, recipe.method.kind, license_id, names, tuple(notes))


# ---------------------------------------------------------------------------------------- the run


def _content(path: Path) -> Mapping[str, Any]:
    """A recipe's keys; none if there is no such file, or something else in it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _recipe_of(run: TrainingFolder, given: str | Path) -> TrainingRecipe:
    """The run's recipe; the files that it names may be gone by now."""
    try:
        return TrainingRecipe.model_validate(_content(run.recipe))
    except ValidationError as error:
        raise CannotPublish(
            f"{given} has no recipe.yaml that this version of regforge reads.",
            hint="The folder of a training run has one, such as runs/teapot-lora.",
        ) from error


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
    recipe: TrainingRecipe, run: TrainingFolder, made: Mapping[str, Any], digest: str
) -> dict[str, Path | bytes]:
    """All files but the card, by their paths in the repository."""
    weights, files = run.path / made["weights"], dict[str, Path | bytes]()
    if weights.is_dir():
        for path in sorted(weights.rglob("*")):
            if path.is_file():
                files[path.relative_to(weights).as_posix()] = path
    else:
        files[weights.name] = weights
        if (other := kohya_file(run.path)) is not None:
            files[other.name] = other
    shown = ["samples.webp", "loss.svg", *(name for _, name in images_of(recipe, run.path))]
    files |= {name: run.path / name for name in shown if (run.path / name).is_file()}
    for each in (*files.values(), run.path / _CARD):
        if isinstance(each, Path) and each.exists() and inside(each, run.path) is None:
            raise CannotPublish(f"{each} {LEADS_OUT}.", hint="Nothing has been uploaded.")
    text = resolved_yaml(recipe, portable=True, digest=digest)
    _refuse_secrets("recipe.yaml", text)
    return files | {"recipe.yaml": text.encode()}


def _refuse_secrets(name: str, text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if without_secrets(line) != line:
            raise CannotPublish(
                f"{name}:{number} holds something that looks like a token or a key.",
                hint="Take it out; nothing has been uploaded.",
            )


# --------------------------------------------------------------------------------- the repository


def _wanted_by(
    recipe: TrainingRecipe,
    folder: Path,
    made: Mapping[str, Any],
    files: Mapping[str, Path | bytes],
    notes: list[str],
) -> Callable[[Remote], Contents]:
    """What the repository shall hold, see `hub.publish_files`; `notes` get what was left out."""
    local = _card(recipe, folder, made)
    said = list(notes)

    def wanted(remote: Remote) -> Contents:
        theirs = remote.read(_CARD)
        text = None if theirs is None else theirs.decode(errors="replace")
        _refuse_foreign(files, remote, Card.parse(text))
        card, left_out = merged(local, text, our_keys=OUR_KEYS)
        notes[:] = said + left_out
        _refuse_secrets(_CARD, card)
        _check_license(card)
        stale = sorted(p for p in remote.files if _OURS.fullmatch(p) and p not in {*files, _CARD})
        return Contents({**files, _CARD: card.encode()}, tuple(stale))

    return wanted


def _card(recipe: TrainingRecipe, folder: Path, made: Mapping[str, Any]) -> str:
    """The run's card as it is on the Hub, with the words that somebody wrote into the run's."""
    path = folder / _CARD
    other = kohya_file(folder) if Path(made["weights"]) == LORA_FILE else None
    return model_card(
        recipe,
        repo_id=recipe.hub.repo_id,
        base_revision=made.get("base_revision"),
        dataset_revision=made.get("dataset_revision"),
        samples="samples.webp" if (folder / "samples.webp").is_file() else None,
        images=images_of(recipe, folder),
        other=other.name if other else None,
        family=made.get("family"),
        existing=path.read_text(encoding="utf-8") if path.is_file() else None,
    )


def _refuse_foreign(files: Mapping[str, Path | bytes], remote: Remote, card: Card) -> None:
    """Never replace files that regforge did not write, nor shadow a model beside them."""
    if card.ours is not None:
        if _INDEX in remote.files and _INDEX not in files:
            raise AnotherModel(
                "The repository holds a whole pipeline, which this LoRA would lie beside.",
                hint="Choose another one with --repo-id, or delete its files on the Hub first.",
            )
        return
    taken = sorted(
        path
        for path in remote.files
        if path != _CARD and (path in files or not _NO_MODEL.fullmatch(path))
    )
    if taken:
        raise AnotherModel(
            f"The repository holds a model that regforge did not make: {taken[0]} is there, and "
            "its README.md has no part of regforge's.",
            hint="Choose another one with --repo-id, or delete those files on the Hub first.",
        )


def _check_license(card: str) -> None:
    front = Card.parse(card).front
    if front.get("license") == "other" and not {"license_name", "license_link"} <= front.keys():
        raise CannotPublish(
            "The licence is `other`, and README.md does not say which one.",
            hint="Add `license_name: ...` and `license_link: https://...` to the front matter of "
            "README.md in the run's folder.",
        )
