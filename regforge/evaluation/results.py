"""What an evaluation found: summed up, compared, written to `evaluation.json` and read again.

docs/evaluation.md has the format. How results are worded is the business of `wording`, how they
look of `page`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from regforge.display import Tabular
from regforge.evaluation import wording
from regforge.evaluation.metrics import (
    METRICS,
    OVER_BASE,
    RESAMPLES,
    Comparison,
    Interval,
    Metric,
    Scores,
    difference,
    interval,
    metrics_of,
)
from regforge.evaluation.suites import (
    EvaluationError,
    ImageScores,
    PersonalizedModel,
    Subject,
)
from regforge.files import write_atomically
from regforge.version import __version__
from regforge.words import first_line

FORMAT = 1
"""Of `evaluation.json`; raised when a reader of the old one would not understand the new one."""

FILE = "evaluation.json"

_RANGES = {"matched": (0.0, 1.0), "text": (0.0, 1.0)}
_RANGES |= dict.fromkeys(("div", "class_diversity"), (0.0, math.inf))
_RANGES |= dict.fromkeys(("lift", OVER_BASE), (-2.0, 2.0))
_RANGES["class_closeness"] = (-math.inf, math.inf)  # others: a cosine


@dataclass
class ModelResult:
    """What was found about one model, in all, by benchmark and by `benchmark/group`."""

    model: PersonalizedModel
    images: list[ImageScores]
    scores: Scores = field(default_factory=dict)
    by_suite: dict[str, Scores] = field(default_factory=dict)
    by_group: dict[str, Scores] = field(default_factory=dict)

    @property
    def subject_name(self) -> str:
        """As `Evaluation.references` and `ceiling` have it; empty if unknown."""
        return self.model.subject.name if self.model.subject else ""


@dataclass
class Evaluation(Tabular):
    """What `evaluate` made. Its rows are the images, each with its scores.

    Attributes:
        folder: Where images, `evaluation.json` and `report.html` lie.
        settings: Samples, seed, steps, guidance scale, suites, encoders.
        references: `Subject.name` -> files of its reference photos, relative to the folder; the
            photos it was trained on unless `held_out`.
        held_out: Whether the references are other photos than those trained on.
        ceiling: What the reference photos themselves score, each against the others.
        results: One a model.
        comparisons: Each model with each one before it, where they share a subject.
        notes: What a reader must know to read the numbers right, a sentence each.
    """

    folder: Path
    settings: Mapping[str, Any]
    references: Mapping[str, Sequence[str]]
    held_out: bool
    ceiling: Mapping[str, Mapping[str, Interval]]
    results: list[ModelResult]
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def by_subject(self) -> dict[str, list[ModelResult]]:
        """Results by `subject_name`, in order."""
        groups: dict[str, list[ModelResult]] = {}
        for result in self.results:
            groups.setdefault(result.subject_name, []).append(result)
        return groups

    def rows(self) -> list[dict[str, Any]]:
        """One row an image: what drew it, what was asked for, the scores by `Metric.key`."""
        metrics = metrics_of(result.scores for result in self.results)
        return [
            {
                "image": str(self.folder / each.file),
                "model": result.model.name,
                "subject": result.subject_name,
                "steps": result.model.steps,
                "suite": each.question.suite if each.question else "class",
                "prompt": each.prompt,
                "number": each.number,
                **{metric.key: each.scores.get(metric.key) for metric in metrics},
            }
            for result in self.results
            for each in result.images
        ]

    def summary(self) -> list[dict[str, Any]]:
        """One row a model: the mean of each metric and its 95 % interval."""
        metrics = metrics_of(result.scores for result in self.results)
        return [
            {
                "model": result.model.name,
                **{
                    f"{each.name} {each.arrow}": wording.span(found)
                    for each in metrics
                    if (found := result.scores.get(each.key)) is not None
                },
            }
            for result in self.results
        ]

    def shown_image(self) -> Path:
        """The plots."""
        return self.folder / "summary.png"

    def __fspath__(self) -> str:
        return str(self.folder)

    def as_dict(self) -> dict[str, Any]:
        """What `evaluation.json` holds: plain values only, the same order each time."""
        return {
            "format": FORMAT,
            "regforge": __version__,
            "settings": _plain(self.settings),
            "metrics": [asdict(metric) for metric in METRICS],
            "held_out": self.held_out,
            "references": _plain(self.references),
            "ceiling": _plain(self.ceiling),
            "models": [_result_as_dict(result) for result in self.results],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """Tables and sentences for a terminal, below 100 columns; ends without a newline."""
        tables = [
            (
                {each.model.name: each.scores for each in results},
                self.ceiling.get(subject, {}),
                subject or "model",
            )
            for subject, results in self.by_subject().items()
        ]
        return "\n".join(wording.report(tables, self.comparisons, self.notes))

    def save(self, path: Path) -> None:
        """Write `evaluation.json`, whole or not at all; the same results are the same bytes."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
        write_atomically(path, (text + "\n").encode("utf-8", errors="replace"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote, by its file or its folder.

        Raises:
            EvaluationError: There is none, it is damaged, or a newer regforge wrote it.
        """
        from pydantic import TypeAdapter

        file = Path(path)
        if file.is_dir():
            file /= FILE
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EvaluationError(
                f"There is no {file}.", hint="regforge evaluate writes one."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise EvaluationError(f"{file} cannot be read: {error}.") from error
        written = found.get("format") if isinstance(found, dict) else None
        if isinstance(written, int) and written > FORMAT:
            raise EvaluationError(
                f"{file} was written by a newer regforge (format {written}; this one reads "
                f"up to {FORMAT}).",
                hint="Install a newer regforge.",
            )
        try:
            results = [{"model": each, **each} for each in found["models"]]
            facts = {**found, "folder": file.parent, "results": results}
            return TypeAdapter(Evaluation).validate_python(facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvaluationError(
                f"{file} is not an evaluation that regforge wrote ({first_line(error)}).",
                hint="Evaluate again; images that are there are not drawn again.",
            ) from error


def _result_as_dict(result: ModelResult) -> dict[str, Any]:
    facts: dict[str, Any] = _plain({**asdict(result.model), **vars(result)})
    del facts["where"], facts["model"]
    if facts["subject"]:
        del facts["subject"]["missing"]
    images = facts.pop("images")
    for image in images:
        # One that is not finite was not measured.
        scores = sorted(image["scores"].items())
        image["scores"] = {key: value for key, value in scores if value is not None}
    return {**facts, "images": images}


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; files in the current folder relative to it."""
    from pydantic_core import to_jsonable_python

    here = Path.cwd()

    def relative(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(key): relative(each) for key, each in part.items()}
        if isinstance(part, Path):
            return (part.relative_to(here) if part.is_relative_to(here) else part).as_posix()
        return [relative(each) for each in part] if isinstance(part, list | tuple) else part

    return to_jsonable_python(relative(value), inf_nan_mode="null", fallback=str)


# --------------------------------------------------------------------------------------- summing up


def summarize(
    model: PersonalizedModel,
    images: Sequence[ImageScores],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ModelResult:
    """Means and intervals over the images of a model, resampled by prompt.

    Metrics of the class are taken from images of other members of it (those without a question),
    all others from images of questions. `div` is a score of each image: its mean distance to
    the other images of its prompt; the mean over a prompt's images is then the mean over its
    pairs. A score that is not there, or not finite, was not measured and is left out.
    """
    suites: dict[str, list[ImageScores]] = {}
    groups: dict[str, list[ImageScores]] = {}
    for each in images:
        if each.question:
            suites.setdefault(each.question.suite, []).append(each)
        if each.question and each.question.group:
            groups.setdefault(f"{each.question.suite}/{each.question.group}", []).append(each)
    by_suite, by_group = (
        {name: _scores(those, seed, resamples) for name, those in parts.items()}
        for parts in (suites, groups)
    )
    return ModelResult(model, list(images), _scores(images, seed, resamples), by_suite, by_group)


def _scores(images: Sequence[ImageScores], seed: int, resamples: int) -> Scores:
    found = {}
    for metric in METRICS:
        had = [
            (each.prompt, value) for each in images if (value := _score(each, metric)) is not None
        ]
        if had:
            prompts, values = zip(*had, strict=True)
            mean = interval(values, prompts, seed=seed, resamples=resamples)
            low, high = _RANGES.get(metric.key, (-1.0, 1.0))
            # Of few prompts an interval can reach further than any score.
            found[metric.key] = replace(mean, low=max(low, mean.low), high=min(high, mean.high))
    return found


def _score(image: ImageScores, metric: Metric) -> float | None:
    """What the image says of the metric, if it is one that is to say something of it."""
    value = image.scores.get(metric.key)
    is_asked = (image.question is None) == metric.of_class
    return value if is_asked and value is not None and math.isfinite(value) else None


def compare(
    results: Sequence[ModelResult], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Each model with each one before it that knows the same subject, by every metric of both.

    Images are paired by question and sample, so models with other identifiers can be compared;
    what only one of the two has is left out. The earlier one of two is `first`.
    """
    found = []
    for first, second in combinations(results, 2):
        if not _same_subject(first.model.subject, second.model.subject):
            continue
        for metric in METRICS:
            if metric.key == OVER_BASE:
                continue
            before, after = (
                {
                    (*each.key, each.number): value
                    for each in result.images
                    if (value := _score(each, metric)) is not None
                }
                for result in (first, second)
            )
            both = [key for key in before if key in after]
            if both:
                change = difference(
                    [before[key] for key in both],
                    [after[key] for key in both],
                    [(key[:2],) for key in both],  # suite and question are one level
                    seed=seed,
                    resamples=resamples,
                )
                found.append(Comparison(first.model.name, second.model.name, metric.key, change))
    return found


def _same_subject(first: Subject | None, second: Subject | None) -> bool:
    """Of one name, or learned from one folder of photos."""
    if first is None or second is None:
        return first is second
    return first.name == second.name or (first.images is not None and first.images == second.images)


# ---------------------------------------------------------------------------------------- snapshots


def over_steps(results: Sequence[ModelResult]) -> dict[str, list[ModelResult]]:
    """Results of one subject by each run with snapshots, in the order of steps.

    What the run was trained on stands first, as step 0, where it was measured.
    """
    runs: dict[Path, list[ModelResult]] = {}
    for each in results:
        if each.model.steps:
            runs.setdefault(each.model.run, []).append(each)
    start = [each for each in results if each.model.steps == 0][:1]
    return {
        run.name: sorted([*start, *those], key=lambda each: each.model.steps or 0)
        for run, those in runs.items()
        if any(each.model.is_snapshot for each in those)
    }


def worth_comparing(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Without snapshots of which there is a later one: curves compare those."""
    last: dict[Path, int] = {}
    for each in results:
        last[each.model.run] = max(last.get(each.model.run, 0), each.model.steps or 0)
    return [e for e in results if not e.model.is_snapshot or e.model.steps == last[e.model.run]]


def best_steps(results: Sequence[ModelResult]) -> list[str]:
    """For each run with snapshots a sentence on where each metric is best.

    Identity grows while prompts are followed less, so it is a choice between the two.
    """
    sentences = []
    for run, those in over_steps(results).items():
        parts = []
        for metric in metrics_of(each.scores for each in those):
            means = {
                each.model.steps: each.scores[metric.key].mean
                for each in those
                if each.model.steps and metric.key in each.scores
            }
            if len(set(means.values())) > 1:
                best = (max if metric.higher_is_better else min)(means, key=lambda at: means[at])
                parts.append(f"{metric.name} after {best:,} ({wording.number(means[best])})")
        if parts:
            sentences.append(
                f"Best steps of {run}: {', '.join(parts)}. Identity grows and prompts are followed "
                "less the longer a model is trained, so choose between the two."
            )
    return sentences
