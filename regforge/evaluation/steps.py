"""How scores change while a model is trained: the snapshots of a run, in the order of their steps.

Answers which step is the best one, as far as that has an answer: identity grows while prompts are
followed less, so it is a choice between the two. Knows results; nothing of files but their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.evaluation import wording
from regforge.evaluation.interface import Interval, PersonalizedModel
from regforge.evaluation.model_files import snapshot_step
from regforge.evaluation.plots import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regforge.evaluation.results import ModelResult

_SHOWN = ("dino", "clip_t", "pres")


def is_snapshot(model: PersonalizedModel) -> bool:
    """Whether it is what a run was on the way."""
    return snapshot_step(_folder(model)) is not None


def run_of(model: PersonalizedModel) -> Path:
    """The folder of the run that a model is of, or of a snapshot of it."""
    folder = _folder(model)
    return folder.parent.parent if is_snapshot(model) else folder


def over_steps(results: Sequence[ModelResult]) -> dict[str, list[ModelResult]]:
    """The results of each run of which there are several, by its name, in the order of steps.

    What the run was trained on stands first, as step 0, where it was measured.

    Args:
        results: Of one subject.
    """
    runs: dict[Path, list[ModelResult]] = {}
    for each in results:
        if each.model.steps:
            runs.setdefault(run_of(each.model), []).append(each)
    start = [each for each in results if each.model.steps == 0][:1]
    found = {}
    for run, those in runs.items():
        if any(is_snapshot(each.model) for each in those):
            found[run.name] = sorted([*start, *those], key=lambda each: each.model.steps or 0)
    return found


def worth_comparing(results: Iterable[ModelResult]) -> list[ModelResult]:
    """Without snapshots of which there is a later one: curves compare those."""
    listed = list(results)
    last: dict[Path, int] = {}
    for each in listed:
        last[run_of(each.model)] = max(last.get(run_of(each.model), 0), each.model.steps or 0)
    return [
        each
        for each in listed
        if not is_snapshot(each.model) or each.model.steps == last[run_of(each.model)]
    ]


def best_steps(results: Sequence[ModelResult]) -> list[str]:
    """For each run with snapshots a sentence on where each metric is best.

    Args:
        results: Of one subject.
    """
    sentences = []
    for run, those in over_steps(results).items():
        parts = []
        for metric in wording.metrics_of(each.scores for each in those):
            means = {
                each.model.steps: each.scores[metric.key].mean
                for each in those
                if each.model.steps and metric.key in each.scores
            }
            if len(set(means.values())) < 2:
                continue
            best = (max if metric.higher_is_better else min)(means, key=lambda at: means[at])
            parts.append(f"{metric.name} after {best:,} ({wording.number(means[best])})")
        if not parts:
            continue
        sentences.append(
            f"Best steps of {run}: {', '.join(parts)}. Identity grows and prompts are followed "
            "less the longer a model is trained, so choose between the two."
        )
    return sentences


def plots_over_steps(
    results: Sequence[ModelResult], ceiling: Mapping[str, Interval]
) -> dict[str, Figure]:
    """Curves of the scores that training moves most, by title; none without snapshots.

    Args:
        results: Of one subject.
        ceiling: What its reference photos score.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    runs = over_steps(results)
    figures = {}
    for key in _SHOWN:
        metric = wording.BY_KEY[key]
        series = {
            run: [
                (float(each.model.steps or 0), each.scores[key])
                for each in those
                if key in each.scores
            ]
            for run, those in runs.items()
        }
        if any(series.values()):
            title = f"{metric.name} over training steps"
            lines = {"the photos themselves": ceiling[key].mean} if key in ceiling else None
            figures[title] = curves(
                series,
                title=title,
                x_label="optimizer steps",
                y_label=f"{metric.name} ({'up' if metric.higher_is_better else 'down'} is better)",
                reference_lines=lines,
            )
    return figures


def _folder(model: PersonalizedModel) -> Path:
    """The folder that holds it, beside `lora` or `model` if it lies in one."""
    folder = Path(model.base) if model.weights is None else model.weights.parent
    return folder.parent if folder.name in ("lora", "model") else folder
