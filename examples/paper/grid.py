"""What the experiment consists of: reads its YAML file and lists its runs.

Runs of an arm and an identifier differ in subject and seed alone: a pack, trained side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from regforge.evaluation.models import base_digest
from regforge.recipe import Recipe, TrainingRecipe, load_recipe, load_training_recipe, recipe_digest
from regforge.recipe.models import LIVING_SLOTS
from regforge.training.batches import key_of

Pair = tuple[str, str]
"""An arm and an identifier, by their names."""


class ExperimentError(Exception):
    """The experiment's file cannot be read."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Subject(_Section):
    """Who is learned.

    Attributes:
        images: Folder of photos; captions beside them call the subject `{}`.
        class_noun: The subject's key in the file if left out.
        references: Folder of other photos of it to measure against; those trained on if left out.
    """

    images: Path
    kind: Literal["object", "living"]
    class_noun: str | None = None
    references: Path | None = None


class Identifier(_Section):
    """What stands for the subject; with `arms` only in these."""

    is_: str | dict[str, Any] = Field(alias="is")
    arms: tuple[str, ...] | None = None

    @property
    def word(self) -> str:
        """As captions write it."""
        return self.is_ if isinstance(self.is_, str) else str(self.is_["new"])


class Dataset(_Section):
    """Regularization images: prompt sets, the slots of captions, and how often they are there.

    Captions that are fewer than the images are drawn several times each.
    """

    sets: dict[str, float]
    captions: int | None = Field(default=None, ge=1)
    slots: tuple[str, ...] | None = None
    presence: dict[str, float] = {}


class Arm(_Section):
    """What is trained beside the photos, and keys of the training recipe."""

    dataset: str | None = None
    set: tuple[str, ...] = ()


class Compared(_Section):
    """What is compared, decided beforehand; measures by `tables.MEASURES`."""

    default: Pair
    with_: tuple[Pair, ...] = Field(alias="with")
    primary: tuple[str, ...]
    at_least: dict[str, float]


class Experiment(_Section):
    """The file, see experiment.yaml."""

    name: str
    out: Path
    training: Path
    regularization: Path
    subjects: dict[str, Subject]
    seeds: tuple[int, ...]
    identifiers: dict[str, Identifier]
    datasets: dict[str, Dataset]
    arms: dict[str, Arm]
    images: int = Field(ge=1)
    steps: int = Field(ge=1)
    points: tuple[float, ...]
    together: int = Field(ge=1)
    prompts: str
    class_samples: int = Field(ge=2)
    guidance_scale: float
    compared: Compared
    structure_encoder: str | None = None
    alignment_encoder: str | None = None
    overrides: tuple[str, ...] = ()
    photos: str | None = None  # where those of the subjects come from

    @model_validator(mode="after")
    def _knows_all_names(self) -> Experiment:
        pairs = {(pack.arm, pack.identifier) for pack in packs(self)}
        unknown = [
            *(
                f"arms.{n}.dataset: {a.dataset}"
                for n, a in self.arms.items()
                if a.dataset not in (None, *self.datasets)
            ),
            *(
                f"compared: {pair}"
                for pair in (self.compared.default, *self.compared.with_)
                if pair not in pairs
            ),
        ]
        if unknown:
            raise ValueError(f"there is no {unknown[0]}")
        return self

    @property
    def folder(self) -> Path:
        """Where everything lies: other weights of the base model have another one."""
        base = _recipe(self.training)
        digest = base_digest(base["base_model"], base.get("revision"))
        return self.out / digest[:8]

    @property
    def stops(self) -> tuple[int, ...]:
        """`points` in steps."""
        return tuple(sorted({max(1, round(point * self.steps)) for point in self.points}))


@dataclass(frozen=True)
class Pack:
    """Runs that are trained side by side: an arm and an identifier, and subjects and seeds."""

    arm: str
    identifier: str
    runs: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """For people; not unique where an arm's runs do not go together."""
        return f"{self.arm} ({self.identifier})"


def packs(experiment: Experiment) -> list[Pack]:
    """All packs; those that `compared` names come first."""
    runs = [(subject, seed) for seed in experiment.seeds for subject in experiment.subjects]
    size = experiment.together
    first = (experiment.compared.default, *experiment.compared.with_)
    pairs = [
        (arm, name)
        for name, identifier in experiment.identifiers.items()
        for arm in identifier.arms or experiment.arms
    ]
    return [
        Pack(*pair, tuple(runs[start : start + size]))
        for pair in sorted(pairs, key=lambda pair: pair not in first)
        for start in range(0, len(runs), size)
    ]


# ----------------------------------------------------------------------------------------- recipes


def noun_of(experiment: Experiment, subject: str) -> str:
    """What a subject is."""
    return experiment.subjects[subject].class_noun or subject


def dataset_recipe(experiment: Experiment, dataset: str, subject: str) -> Recipe:
    """The recipe of a subject's regularization images."""
    of, about = experiment.datasets[dataset], experiment.subjects[subject]
    count = min(of.captions or experiment.images, experiment.images)
    slots = []
    for slot in _recipe(experiment.regularization)["prompts"].get("slots", LIVING_SLOTS):
        entry = {"name": slot} if isinstance(slot, str) else dict(slot)
        name = entry["name"]
        if name == "motion" and about.kind != "living":
            continue
        if of.slots is None or name in of.slots:
            slots.append(entry | ({"presence": of.presence[name]} if name in of.presence else {}))
    return load_recipe(
        experiment.regularization,
        _settings(
            name=f"{experiment.name}-{subject}-{dataset}",
            subjects=None,  # this one alone
            **{
                "subject.class_noun": noun_of(experiment, subject),
                "subject.kind": about.kind,
                "subject.images": str(about.images),
                "prompts.sets": of.sets,
                "prompts.count": count,
                "render.images_per_prompt": -(-experiment.images // count),
                "prompts.slots": slots,
            },
        ),
    )


def dataset_folder(experiment: Experiment, dataset: str, subject: str) -> Path:
    """Where a subject's regularization images lie."""
    digest = recipe_digest(dataset_recipe(experiment, dataset, subject))
    return experiment.folder / "sets" / f"{subject}-{dataset}-{digest[:8]}"


def training_recipe(experiment: Experiment, pair: Pair, subject: str, seed: int) -> TrainingRecipe:
    """The recipe of one run."""
    arm, identifier = experiment.arms[pair[0]], pair[1]
    images = arm.dataset and str(dataset_folder(experiment, arm.dataset, subject))
    return load_training_recipe(
        experiment.training,
        [
            *_settings(
                name=subject,
                seed=seed,
                subjects=None,
                **{
                    "subject.images": str(experiment.subjects[subject].images),
                    "subject.class_noun": noun_of(experiment, subject),
                    "subject.identifier": experiment.identifiers[identifier].is_,
                    "regularization.dataset": images,
                    "optimizer.steps": experiment.stops[-1],
                },
            ),
            *arm.set,
            *experiment.overrides,
        ],
    )


def recipes_of(experiment: Experiment, pack: Pack) -> list[TrainingRecipe]:
    """The recipes of a pack's runs."""
    pair = pack.arm, pack.identifier
    return [training_recipe(experiment, pair, subject, seed) for subject, seed in pack.runs]


def base_folder(experiment: Experiment) -> Path:
    """Where what the untouched model draws lies."""
    return experiment.folder / "base" / key_of(*_asked(experiment))[:8]


def pack_folder(experiment: Experiment, pack: Pack) -> Path:
    """Where a pack's runs lie; another training or other questions have another folder."""
    arm = experiment.arms[pack.arm]
    runs = [
        (subject, seed, arm.dataset and dataset_folder(experiment, arm.dataset, subject).name)
        for subject, seed in pack.runs
    ]
    how = _recipe(experiment.training), arm.set, experiment.overrides, experiment.stops[-1]
    identifier = experiment.identifiers[pack.identifier].is_
    key = key_of(how, identifier, runs, _asked(experiment))[:8]
    name = f"{pack.arm}-{pack.identifier}".replace(", ", "-").replace(" ", "-")
    return experiment.folder / "runs" / f"{name}-{key}"


def _asked(experiment: Experiment) -> list[Any]:
    """What is drawn and measured."""
    prompts = Path(experiment.prompts)
    return [
        prompts.read_text(encoding="utf-8") if prompts.suffix == ".yaml" else experiment.prompts,
        experiment.class_samples,
        experiment.guidance_scale,
        experiment.structure_encoder,
        experiment.alignment_encoder,
    ]


def scores_file(folder: Path, step: int) -> Path:
    """What a pack's runs score after so many steps."""
    return folder / f"step-{step:06d}.json"


def is_done(experiment: Experiment, pack: Pack) -> bool:
    """Whether a pack's runs are trained and measured."""
    folder = pack_folder(experiment, pack)
    return all(scores_file(folder, step).exists() for step in experiment.stops)


def _settings(**values: Any) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _recipe(path: Path) -> dict[str, Any]:
    """A recipe's keys, with those of what it extends."""
    content = _yaml(path)
    base = content.get("extends")
    return {**_recipe(path.parent / base), **content} if base else content


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


# -------------------------------------------------------------------------------------- the file


def read(path: Path) -> Experiment:
    """Read an experiment's file; paths in it start at the file.

    Raises:
        ExperimentError: It is not there, or says something that is not known.
    """
    content = _merged(path.resolve())
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ExperimentError(f"{path}: {where}: {first['msg']}") from error


def _subjects(path: Path) -> dict[str, Any]:
    """The subjects that a recipe lists, each by the name of its folder of photos."""
    return {Path(each["images"]).name: each for each in _yaml(path)["subjects"]}


def _merged(path: Path) -> dict[str, Any]:
    """The file, laid over the one that it extends."""
    try:
        content = _yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    base = content.pop("extends", None)
    if isinstance(content.get("subjects"), str):
        content["subjects"] = _subjects(path.parent / content["subjects"])
    for section in (content, *(content.get("subjects") or {}).values()):
        for key in ("out", "training", "regularization", "images", "references", "prompts"):
            value = section.get(key)
            if isinstance(value, str) and (key != "prompts" or value.endswith(".yaml")):
                section[key] = str((path.parent / value).resolve())
    return {**_merged((path.parent / base).resolve()), **content} if base else content
