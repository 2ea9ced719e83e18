"""The scores of all cells, and what they say together.

Intervals are over subjects, each with all its runs: what is asked is what another subject would
do. Where there are only two (there are no more living ones), they are over training runs, and say
what other runs on these two would do. Some subjects are easier than others, for all sets
alike; in the main grid that is taken out of the intervals (Cousineau 2005, corrected as by Morey
2008, https://doi.org/10.20982/tqmp.04.2.p061). Differences between two sets are taken prompt by
prompt within the same subject and seed. Works on as many cells as are there.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grid import Cell, Experiment, cells, stem, steps_of
from regforge.evaluation.metrics import Interval, Metric, difference, interval
from regforge.evaluation.results import Evaluation

BOTH = Metric(
    "both",
    "DINO if matched",
    "Is it this subject, doing what was asked? Identity, and 0 where another prompt fits better.",
)
"""Identity alone rewards models that ignore the prompt, alignment those that ignore the subject."""

BASE = "base model"

Groups = Sequence[str]
"""Kinds of prompts; an empty one stands for all."""

PLAIN: Groups = ("place", "style")
"""Prompts that say nothing about the subject itself."""


@dataclass(frozen=True)
class Score:
    """One number of one image, and where it is from.

    Attributes:
        cell: The run.
        step: When the run was looked at; 0 is the base model.
        suite: Name of the prompts' file.
        group: What the question is about (`place`, `style`, ...); empty for images of the class.
        asked: What pairs it with images of other runs: question and number.
        metric: `Metric.key`.
        value: The number.
    """

    cell: Cell
    step: int
    suite: str
    group: str
    asked: tuple[str, int]
    metric: str
    value: float


def measured(experiment: Experiment) -> list[Score]:
    """All that was measured so far."""
    return [score for cell in cells(experiment) for score in _of_cell(experiment, cell)]


def _of_cell(experiment: Experiment, cell: Cell) -> Iterator[Score]:
    from run import evaluation_folder

    for suite, _ in cell.prompts:
        folder = evaluation_folder(experiment, cell, suite)
        if not (folder / "evaluation.json").exists():
            continue
        for result in Evaluation.load(folder).results:
            for image in result.images:
                question = image.question.text if image.question else image.prompt
                asked = (question, image.number)
                group = image.question.group if image.question else ""
                for metric, value in _with_both(image.scores).items():
                    at = result.model.steps or 0
                    yield Score(cell, at, stem(suite), group, asked, metric, value)


def _with_both(found: Mapping[str, float]) -> dict[str, float]:
    """The scores of an image, and `BOTH`."""
    if {"dino", "matched"} <= found.keys():
        return {**found, BOTH.key: found["dino"] * found["matched"]}
    return dict(found)


def mean_of(found: Sequence[Score]) -> Interval:
    """Mean and interval."""
    runs = [(s.cell.subject, s.cell.seed) for s in found]
    return interval([s.value for s in found], _clusters(runs))


def _clusters(runs: Sequence[tuple[str, int]]) -> list[Any]:
    """What is resampled as a whole, as `interval` takes it."""
    return list(runs) if len({subject for subject, _ in runs}) > 2 else [(run,) for run in runs]


def paired(first: Iterable[Score], second: Iterable[Score]) -> Interval | None:
    """Second minus first, over the same prompts of the same subjects and seeds."""

    def keyed(found: Iterable[Score]) -> dict[Any, float]:
        return {(s.cell.subject, s.cell.seed, *s.asked): s.value for s in found}

    before, after = keyed(first), keyed(second)
    both = [key for key in before if key in after]
    if not both:
        return None
    return difference(
        [before[k] for k in both], [after[k] for k in both], _clusters([k[:2] for k in both])
    )


class Found:
    """The scores, to be asked for by what they are of."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._by: dict[tuple[str, str, int, str], list[Score]] = {}
        for score in measured(experiment):
            name = self.name(score.cell) if score.step else BASE
            key = (name, score.suite, score.step, score.metric)
            self._by.setdefault(key, []).append(score)

    @staticmethod
    def name(cell: Cell) -> str:
        """The set that a cell was trained beside, whoever the subject is."""
        of = cell.regularization
        if of is None:
            return "none"
        return f"{of.arm} {of.images}" + (f" without {of.without}" if of.without else "")

    def of(self, arm: str, suite: str, step: int, metric: str) -> list[Score]:
        """Scores of an arm of the main grid, or of a set by its whole name."""
        name = arm if arm not in self.experiment.arms or arm == "none" else self._whole(arm)
        return self._by.get((name, suite, step, metric), [])

    def main(
        self, arm: str, step: int, metric: str, groups: Groups = (), suite: str | None = None
    ) -> list[Score]:
        """Scores of an arm, from the runs that all arms have: like is compared with like.

        Args:
            arm: Of the main grid.
            step: When.
            metric: `Metric.key`.
            groups: Only of these kinds of prompts; of all if there are none.
            suite: Whose prompts; those of the main grid if left out.
        """
        return [
            score
            for score in self.of(arm, suite or stem(self.experiment.prompts), step, metric)
            if (score.cell.subject, score.cell.seed) in self.common
            and (not groups or score.group in groups)
        ]

    def base(self, metric: str, groups: Groups = ()) -> Interval | None:
        """What the base model scores, asked for the class alone; over subjects."""
        had = self.of(BASE, stem(self.experiment.prompts), 0, metric)
        had = [score for score in had if not groups or score.group in groups]
        return mean_of(had) if had else None

    def mean(self, arm: str, step: int, metric: str, groups: Groups = ()) -> Interval | None:
        """Of an arm of the main grid, with what is the subject's own taken out of the interval."""
        found = {each: self.main(each, step, metric, groups) for each in self.arms}
        if not found[arm]:
            return None
        plain = mean_of(found[arm])
        if any(not had for had in found.values()) or len(found) < 2:
            return plain
        everything = [score for had in found.values() for score in had]
        level = statistics.fmean(score.value for score in everything)
        of_subject = {
            name: statistics.fmean(s.value for s in everything if s.cell.subject == name)
            for name in {score.cell.subject for score in everything}
        }
        around = mean_of(
            [replace(s, value=s.value - of_subject[s.cell.subject] + level) for s in found[arm]]
        )
        wider = math.sqrt(len(found) / (len(found) - 1))
        return replace(
            plain,
            low=plain.mean + wider * (around.low - around.mean),
            high=plain.mean + wider * (around.high - around.mean),
        )

    @functools.cached_property
    def common(self) -> set[tuple[str, int]]:
        """Subject and seed of the runs that all arms have."""
        suite, last = stem(self.experiment.prompts), self.steps[-1]
        of_arms = [
            {(s.cell.subject, s.cell.seed) for s in self.of(arm, suite, last, "dino")}
            for arm in self.arms
        ]
        return set.intersection(*of_arms) if of_arms else set()

    def _whole(self, arm: str) -> str:
        return f"{arm} {self.experiment.images}"

    def all(self) -> list[tuple[tuple[str, str, int, str], list[Score]]]:
        """Set, prompts, step and metric, and the scores of that."""
        return sorted(self._by.items(), key=lambda each: each[0])

    @property
    def arms(self) -> list[str]:
        """Those of the main grid that have anything."""
        return [
            arm for arm in self.experiment.arms if any(k[0].split(" ")[0] == arm for k in self._by)
        ]

    @property
    def steps(self) -> list[int]:
        """Points of the main grid."""
        return list(steps_of(self.experiment, self.experiment.points))
