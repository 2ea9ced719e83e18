"""What an evaluation found, for people, for scripts and for pages.

Holds the results, sums them up (`summarize`, `compare`), and reads and writes `evaluation.json`;
docs/evaluation.md has its format. How results are worded is the business of `wording`, how they
look of `page`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from regforge.evaluation import wording
from regforge.evaluation.interface import (
    METRICS,
    Comparison,
    EvaluationError,
    Interval,
    Measured,
    Metric,
    PersonalizedModel,
    Subject,
)
from regforge.evaluation.references import name_of
from regforge.evaluation.statistics import RESAMPLES, difference, interval
from regforge.files import write_atomically
from regforge.version import __version__

FORMAT = 1
"""Of `evaluation.json`; raised when a reader of the old one would not understand the new one."""

FILE = "evaluation.json"

Scores = dict[str, Interval]
"""By `Metric.key`."""

_RANGES = {"matched": (0.0, 1.0), "text": (0.0, 1.0), "div": (0.0, math.inf)}  # others: a cosine


@dataclass
class ModelResult:
    """What was found about one model.

    Attributes:
        model: Which.
        measured: Its images and their scores.
        scores: By `Metric.key`, over all images.
        by_suite: Likewise for each benchmark; by suite, then `Metric.key`.
        by_group: Likewise for each group of questions; by `suite/group`, then `Metric.key`.
    """

    model: PersonalizedModel
    measured: list[Measured]
    scores: Scores = field(default_factory=dict)
    by_suite: dict[str, Scores] = field(default_factory=dict)
    by_group: dict[str, Scores] = field(default_factory=dict)

    @property
    def subject_name(self) -> str:
        """Who it knows, as `Evaluation.references` and `ceiling` name it; empty if unknown."""
        return name_of(self.model.subject) if self.model.subject else ""


@dataclass
class Evaluation:
    """What `evaluate` made.

    Attributes:
        folder: Where images, `evaluation.json` and `report.html` lie.
        settings: What was asked for: samples, seed, steps, guidance scale, suites, encoders.
        references: Subject's class noun and identifier -> files of its reference photos, relative
            to the folder; the photos it was trained on unless `held_out`.
        held_out: Whether the references are other photos than those trained on.
        ceiling: What the reference photos themselves score, each against the others.
        results: One a model, in the order asked for.
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
        """Results by the subject that the models know, in order."""
        groups: dict[str, list[ModelResult]] = {}
        for result in self.results:
            groups.setdefault(result.subject_name, []).append(result)
        return groups

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
        lines: list[str] = []
        for subject, results in self.by_subject().items():
            title = wording.printable(subject) or "model"
            rows = {wording.printable(each.model.name): each.scores for each in results}
            lines += [*wording.table(rows, self.ceiling.get(subject, {}), title), ""]
        lines += [
            wording.wrapped(
                "↑ higher is better, ↓ lower is better, * best, ± half of a 95 % interval; a "
                "difference is judged by the pairs below, not by overlap."
            )
        ]
        lines += self._compared()
        lines += [wording.wrapped(f"Note: {wording.printable(note)}") for note in self.notes]
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write `evaluation.json`, whole or not at all; the same results are the same bytes.

        Raises:
            StorageError: The file cannot be written.
        """
        text = json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
        write_atomically(path, (text + "\n").encode("utf-8", errors="replace"))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Args:
            path: The file, or the folder that it lies in.

        Raises:
            EvaluationError: There is none, it is damaged, or a newer regforge wrote it.
        """
        file = path / FILE if path.is_dir() else path
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
            return _evaluation(found, file.parent)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvaluationError(
                f"{file} is not an evaluation that regforge wrote ({error!r}).",
                hint="Evaluate again; images that are there are not drawn again.",
            ) from error

    def _compared(self) -> list[str]:
        lines: list[str] = []
        for (first, second), verdicts in verdicts_by_pair(self.comparisons).items():
            lines += ["", wording.printable(f"{second} against {first}:")]
            lines += [
                wording.wrapped(wording.printable(wording.sentence(each)), "  ")
                for each in verdicts
                if each.winner is not None
            ]
            alike = [each.metric.name for each in verdicts if each.winner is None]
            if alike:
                lines += [wording.wrapped(f"No clear difference in {', '.join(alike)}.", "  ")]
        chance = wording.by_chance(len(self.comparisons))
        return [*lines, *(["", wording.wrapped(chance)] if chance else []), ""]


def verdicts_by_pair(
    comparisons: Sequence[Comparison],
) -> dict[tuple[str, str], list[wording.Verdict]]:
    """What comparisons say, by names of first and second model, in their order."""
    pairs: dict[tuple[str, str], list[wording.Verdict]] = {}
    for comparison in comparisons:
        said = wording.verdict(comparison)
        if said is not None:
            pairs.setdefault((comparison.first, comparison.second), []).append(said)
    return pairs


# --------------------------------------------------------------------------------------- summing up


def summarize(
    model: PersonalizedModel,
    measured: Sequence[Measured],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ModelResult:
    """Means and intervals over the images of a model, resampled by prompt.

    `pres` is taken from images of other members of the class (those without a question), all
    other metrics from images of questions. `div` is a score of each image: its mean distance to
    the other images of its prompt; the mean over a prompt's images is then the mean over its
    pairs. A score that is not there, or not finite, was not measured and is left out.

    Args:
        model: Which.
        measured: Its images.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    questions = [each.question for each in measured if each.question is not None]
    suites = dict.fromkeys(question.suite for question in questions)
    groups = dict.fromkeys((each.suite, each.group) for each in questions if each.group)

    def scores(images: Iterable[Measured]) -> dict[str, Interval]:
        return _scores(list(images), seed, resamples)

    return ModelResult(
        model=model,
        measured=list(measured),
        scores=scores(measured),
        by_suite={
            suite: scores(
                each for each in measured if each.question and each.question.suite == suite
            )
            for suite in suites
        },
        by_group={
            f"{suite}/{group}": scores(
                each
                for each in measured
                if each.question and (each.question.suite, each.question.group) == (suite, group)
            )
            for suite, group in groups
        },
    )


def compare(
    results: Sequence[ModelResult], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Each model with each one before it that knows the same subject, by every metric of both.

    Images are paired by question and sample, so models with other identifiers can be compared;
    what only one of the two has is left out.

    Args:
        results: In the order asked for; the earlier one of two is `first`.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    found = []
    for first, second in combinations(results, 2):
        if not _same_subject(first.model.subject, second.model.subject):
            continue
        for metric in METRICS:
            before, after = _by_image(first, metric), _by_image(second, metric)
            both = [key for key in before if key in after]
            if not both:
                continue
            change = difference(
                [before[key] for key in both],
                [after[key] for key in both],
                [(key[:2],) for key in both],  # suite and question are one level
                seed=seed,
                resamples=resamples,
            )
            found.append(Comparison(first.model.name, second.model.name, metric.key, change))
    return found


def _scores(images: Sequence[Measured], seed: int, resamples: int) -> dict[str, Interval]:
    found = {}
    for metric in METRICS:
        had = [(each, value) for each in images if (value := _score(each, metric)) is not None]
        if had:
            values, prompts = [value for _, value in had], [each.prompt for each, _ in had]
            mean = interval(values, prompts, seed=seed, resamples=resamples)
            low, high = _RANGES.get(metric.key, (-1.0, 1.0))
            # Of few prompts an interval can reach further than any score.
            found[metric.key] = replace(mean, low=max(low, mean.low), high=min(high, mean.high))
    return found


def _same_subject(first: Subject | None, second: Subject | None) -> bool:
    """Of one name, or learned from one folder of photos."""
    if first is None or second is None:
        return first is second
    by_photos = first.images is not None and first.images == second.images
    return by_photos or name_of(first) == name_of(second)


def _score(image: Measured, metric: Metric) -> float | None:
    """What the image says of the metric, if it is one that is to say something of it."""
    value = image.scores.get(metric.key)
    of_class = image.question is None
    if value is None or not math.isfinite(value) or of_class != (metric.key == "pres"):
        return None
    return value


def _by_image(result: ModelResult, metric: Metric) -> dict[tuple[str, str, int], float]:
    """Scores by what is the same in all models: suite, question and number of the sample."""
    found = {}
    for each in result.measured:
        value = _score(each, metric)
        if value is not None:
            suite, text = (
                (each.question.suite, each.question.text) if each.question else ("", each.prompt)
            )
            found[suite, text, each.number] = value
    return found


# --------------------------------------------------------------------------------- evaluation.json


def _result_as_dict(result: ModelResult) -> dict[str, Any]:
    model = asdict(result.model)
    del model["where"]
    parts: dict[str, Any] = _plain({**model, **vars(result)})
    del parts["model"], parts["measured"]
    for image in (images := _plain([vars(each) for each in result.measured])):
        # One that is not finite was not measured.
        scores = image["scores"].items()
        image["scores"] = {key: value for key, value in sorted(scores) if value is not None}
    return {**parts, "images": images}


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; files in the current folder relative to it."""
    from pydantic_core import to_jsonable_python

    here = Path.cwd()

    def relative(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(key): relative(each) for key, each in part.items()}
        if isinstance(part, list | tuple):
            return [relative(each) for each in part]
        if isinstance(part, Path):
            return (part.relative_to(here) if part.is_relative_to(here) else part).as_posix()
        return part

    return to_jsonable_python(relative(value), inf_nan_mode="null", fallback=str)


def _evaluation(found: Mapping[str, Any], folder: Path) -> Evaluation:
    return Evaluation(
        folder=folder,
        settings=found["settings"],
        references=found["references"],
        held_out=bool(found["held_out"]),
        ceiling=_read(dict[str, Scores], found["ceiling"]),
        results=[
            ModelResult(
                model=_read(PersonalizedModel, each),
                measured=_read(list[Measured], each["images"]),
                scores=_read(Scores, each["scores"]),
                by_suite=_read(dict[str, Scores], each["by_suite"]),
                by_group=_read(dict[str, Scores], each["by_group"]),
            )
            for each in found["models"]
        ],
        comparisons=_read(list[Comparison], found["comparisons"]),
        notes=_read(list[str], found["notes"]),
    )


def _read(kind: Any, value: Any) -> Any:
    """A value of a type, from what JSON holds of it; ValueError if it is none."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(value)
