"""What the experiment consists of: reads its YAML file and lists its cells.

A cell is one training run: a subject, a regularization set, a seed. Cells come in the order in
which they are worked off, all of one seed before the next, so that an experiment that was stopped
early has something to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ExperimentError(Exception):
    """The experiment's file cannot be read."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Subject(_Section):
    """Who is learned.

    Attributes:
        images: Folder of photos and captions.
        kind: `object` or `living`.
        class_noun: The subject's key in the file if left out.
        references: Folder of other photos of it to measure against; those trained on if left out.
    """

    images: Path
    kind: Literal["object", "living"]
    class_noun: str | None = None
    references: Path | None = None


class Study(_Section):
    """A side question, answered with runs beside those of the main grid.

    Attributes:
        prompts: A benchmark's name or file; the experiment's prompts if left out.
        points: When, in multiples of `steps`.
        seeds: Of its runs; the experiment's if left out.
        without: Slots that are taken out of the regularization captions, one at a time.
        images: Sizes of the regularization set.
        arm: Whose set is varied; the last of the experiment's arms if left out.
    """

    prompts: str | None = None
    points: tuple[float, ...]
    seeds: tuple[int, ...] | None = None
    without: str | tuple[str, ...] | None = None
    images: tuple[int, ...] = ()
    arm: str | None = None


class Experiment(_Section):
    """The file, see experiment.yaml."""

    name: str
    out: Path
    training: Path
    regularization: Path
    subjects: dict[str, Subject]
    arms: dict[str, dict[str, float] | None]
    images: int = Field(ge=1)
    steps: int = Field(ge=1)
    points: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: str
    samples: int = Field(ge=1)
    class_samples: int = Field(ge=1)
    sampling_steps: int = Field(ge=1)
    guidance_scale: float
    studies: dict[Literal["rephrased", "motion", "size", "slots", "color"], Study] = {}
    structure_encoder: str | None = None
    alignment_encoder: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegularizationSet:
    """One dataset.

    Attributes:
        arm: Its name in the experiment; `none` is no dataset.
        subject: For whom.
        images: How many.
        without: A slot that its captions do not have.
    """

    arm: str
    subject: str
    images: int
    without: str | None = None

    @property
    def key(self) -> str:
        """Its folder's name."""
        less = f"-no-{self.without}" if self.without else ""
        return f"{self.subject}-{self.arm}-{self.images}{less}"


@dataclass(frozen=True)
class Cell:
    """One training run, and what is asked of it.

    Attributes:
        study: `main`, or the side study that it belongs to.
        regularization: What it is trained beside; None for nothing.
        subject: Who is learned.
        seed: Of the training.
        points: When it is looked at, in steps.
        prompts: The suites that are asked: file, and at which points.
    """

    study: str
    subject: str
    regularization: RegularizationSet | None
    seed: int
    points: tuple[int, ...]
    prompts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def key(self) -> str:
        """Its folder."""
        of = self.regularization.key if self.regularization else f"{self.subject}-none"
        return f"{of}/seed-{self.seed}"


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


def _merged(path: Path) -> dict[str, Any]:
    """The file, laid over the one that it extends."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path}: {error}") from error
    base = content.pop("extends", None)
    for key in ("out", "training", "regularization"):
        if key in content:
            content[key] = (path.parent / content[key]).resolve()
    asking = [content, *(content.get("studies") or {}).values()]
    for section in asking:
        if str(section.get("prompts", "")).endswith(".yaml"):
            section["prompts"] = str((path.parent / section["prompts"]).resolve())
    for section in (content.get("subjects") or {}).values():
        for key in ("images", "references"):
            if key in section:
                section[key] = (path.parent / section[key]).resolve()
    return {**_merged((path.parent / base).resolve()), **content} if base else content


def cells(experiment: Experiment) -> list[Cell]:
    """All runs, in the order in which they are done; the main grid first."""
    found = {}
    for cell in [*_main(experiment), *_side(experiment)]:
        found.setdefault(cell.key, []).append(cell)
    return [_joined(same) for same in found.values()]


def _main(experiment: Experiment) -> Iterator[Cell]:
    asked = [(experiment.prompts, steps_of(experiment, experiment.points))]
    rephrased = experiment.studies.get("rephrased")
    if rephrased is not None and rephrased.prompts is not None:
        asked.append((rephrased.prompts, steps_of(experiment, rephrased.points)))
    for seed in experiment.seeds:
        for subject in experiment.subjects:
            for arm, sets in experiment.arms.items():
                of = RegularizationSet(arm, subject, experiment.images) if sets else None
                yield Cell("main", subject, of, seed, asked[0][1], tuple(asked))


def _side(experiment: Experiment) -> Iterator[Cell]:
    """The runs of the side studies; those that the main grid has too are joined with it."""
    for name, study in experiment.studies.items():
        arm = study.arm or list(experiment.arms)[-1]
        steps = steps_of(experiment, study.points)
        asked = ((study.prompts or experiment.prompts, steps),)
        living = name == "motion"
        for seed in study.seeds or experiment.seeds:
            for subject, about in experiment.subjects.items():
                if living and about.kind != "living":
                    continue
                whole = RegularizationSet(arm, subject, experiment.images)
                for of in _varied(name, study, whole):
                    yield Cell(name, subject, of, seed, steps, asked)


def _varied(name: str, study: Study, whole: RegularizationSet) -> Iterator[RegularizationSet]:
    if name == "rephrased":
        return
    yield whole
    slots = (study.without,) if isinstance(study.without, str) else study.without or ()
    for slot in slots:
        yield RegularizationSet(whole.arm, whole.subject, whole.images, slot)
    for images in study.images:
        yield RegularizationSet(whole.arm, whole.subject, images)


def stem(prompts: str) -> str:
    """A short name of prompts: of a benchmark its own, of a file that of the file."""
    return Path(prompts).stem


def steps_of(experiment: Experiment, points: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(point * experiment.steps)) for point in points}))


def _joined(same: list[Cell]) -> Cell:
    """Cells of one training run as one: looked at whenever any of them is, asked all of it."""
    first = same[0]
    asked: dict[str, set[int]] = {}
    for cell in same:
        for file, points in cell.prompts:
            asked.setdefault(file, set()).update(points)
    return Cell(
        first.study,
        first.subject,
        first.regularization,
        first.seed,
        tuple(sorted({point for cell in same for point in cell.points})),
        tuple((file, tuple(sorted(points))) for file, points in asked.items()),
    )


def sets(all_cells: list[Cell]) -> list[RegularizationSet]:
    """The datasets that the cells need, each once, in the order of need."""
    return list(dict.fromkeys(cell.regularization for cell in all_cells if cell.regularization))
