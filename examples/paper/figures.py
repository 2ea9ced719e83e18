"""What the cells of the experiment say together: numbers, curves, pictures and a page.

Means and intervals are over training runs (subject and seed together): a run's pictures are alike,
and what is asked is what another run would do. Differences between two sets are taken prompt by
prompt within the same subject and seed. Works on as many cells as are there, and says how many.
"""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid import Cell, Experiment, cells, stem, steps_of
from PIL import Image

from regforge.evaluation import plots
from regforge.evaluation.interface import METRICS, Interval
from regforge.evaluation.results import Evaluation
from regforge.evaluation.statistics import difference, interval, is_clear
from regforge.files import write_atomically

SHOWN = ("dino", "clip_t", "matched", "pres")
"""The metrics of curves and tables."""

BY_KEY = {metric.key: metric for metric in METRICS}

LABELS = {
    "dino": "identity (DINO): is it this subject?",
    "clip_i": "identity (CLIP-I)",
    "clip_t": "alignment (CLIP-T): does it show the prompt?",
    "matched": "R-precision: does its own prompt fit best?",
    "pres": "PRES: has the whole class become the subject? (low is good)",
    "div": "DIV: do pictures of one prompt differ?",
}


@dataclass(frozen=True)
class Score:
    """One number of one picture, and where it is from.

    Attributes:
        cell: The run.
        step: When the run was looked at.
        suite: Name of the prompts' file.
        asked: What pairs it with pictures of other runs: question and number.
        metric: `Metric.key`.
        value: The number.
    """

    cell: Cell
    step: int
    suite: str
    asked: tuple[str, int]
    metric: str
    value: float


def scores(experiment: Experiment) -> list[Score]:
    """All that was measured so far."""
    return [score for cell in cells(experiment) for score in _of_cell(experiment, cell)]


def _of_cell(experiment: Experiment, cell: Cell) -> Iterator[Score]:
    from run import evaluation_folder

    for suite, _ in cell.prompts:
        folder = evaluation_folder(experiment, cell, suite)
        if not (folder / "evaluation.json").exists():
            continue
        for result in Evaluation.load(folder).results:
            for picture in result.measured:
                question = picture.question.text if picture.question else picture.prompt
                asked = (question, picture.number)
                for metric, value in picture.scores.items():
                    yield Score(cell, result.model.steps or 0, stem(suite), asked, metric, value)


def mean_of(found: Sequence[Score]) -> Interval:
    """Mean and interval over runs."""
    return interval([s.value for s in found], [(s.cell.subject, s.cell.seed) for s in found])


def paired(first: Iterable[Score], second: Iterable[Score]) -> Interval | None:
    """Second minus first, over the same prompts of the same subjects and seeds."""

    def keyed(found: Iterable[Score]) -> dict[Any, float]:
        return {(s.cell.subject, s.cell.seed, *s.asked): s.value for s in found}

    before, after = keyed(first), keyed(second)
    both = [key for key in before if key in after]
    if not both:
        return None
    return difference([before[k] for k in both], [after[k] for k in both], [k[:2] for k in both])


class Found:
    """The scores, to be asked for by what they are of."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._by: dict[tuple[str, str, int, str], list[Score]] = {}
        for score in scores(experiment):
            key = (self.name(score.cell), score.suite, score.step, score.metric)
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

    def main(self, arm: str, step: int, metric: str) -> list[Score]:
        """Scores of an arm, from the runs that all arms have: like is compared with like."""
        suite = stem(self.experiment.prompts)
        return [
            score
            for score in self.of(arm, suite, step, metric)
            if (score.cell.subject, score.cell.seed) in self.common
        ]

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


# ----------------------------------------------------------------------------------------- figures


def write_all(experiment: Experiment) -> Path:
    """Numbers, figures and the page, from what is there.

    Returns:
        The page.
    """
    found = Found(experiment)
    folder = experiment.out
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, Path]] = []
    for metric in SHOWN:
        path = _curve(found, metric, figures)
        if path:
            made.append((LABELS[metric], path))
    made += _side_figures(found, figures)
    grid = _pictures(experiment, figures)
    tables = [_main_table(found), _difference_table(found), *_side_tables(found)]
    text = "\n\n".join(table for table in tables if table)
    write_atomically(folder / "results.md", (text + "\n").encode())
    write_atomically(folder / "results.json", json.dumps(_numbers(found), indent=1).encode())
    return _page(experiment, found, made, grid, text)


def _curve(found: Found, metric: str, folder: Path) -> Path | None:
    """Fig. 5: a metric over training, one line a set."""
    unit = found.experiment.steps
    series = {
        arm: [
            (step / unit, mean_of(had))
            for step in found.steps
            if (had := found.main(arm, step, metric))
        ]
        for arm in found.arms
    }
    if not any(series.values()):
        return None
    figure = plots.curves(
        series,
        title=LABELS[metric],
        x_label=f"training, in multiples of {unit} steps",
        y_label=BY_KEY[metric].name,
        log_x=True,
    )
    path = folder / f"{metric}.svg"
    plots.save(figure, path)
    return path


def _side_figures(found: Found, folder: Path) -> list[tuple[str, Path]]:
    """Figures 3 and 4, the size of the set, and what each slot is good for."""
    made = []
    for name, title, groups in _side_groups(found):
        series = {
            label: {metric: mean_of(had) for metric, had in by_metric.items() if had}
            for label, by_metric in groups.items()
        }
        series = {label: had for label, had in series.items() if had}
        if len(series) < 2:
            continue
        path = folder / f"{name}.svg"
        plots.save(plots.bars(series, title=title), path)
        made.append((title, path))
    return made


def _side_groups(
    found: Found,
) -> Iterator[tuple[str, str, dict[str, dict[str, list[Score]]]]]:
    """Name, title, and what is compared: label -> metric -> scores."""
    experiment = found.experiment
    main, last = stem(experiment.prompts), list(experiment.arms)[-1]

    def at(arm: str, suite: str, step: int) -> dict[str, list[Score]]:
        return {metric: found.of(arm, suite, step, metric) for metric in SHOWN}

    for name, study in experiment.studies.items():
        suite = stem(study.prompts) if study.prompts else main
        step = round(max(study.points) * experiment.steps)
        times = f"at {max(study.points):g}x"
        if name == "rephrased":
            groups = {}
            for arm in found.arms:
                groups[f"{arm}, as asked"] = at(arm, main, step)
                groups[f"{arm}, rephrased"] = at(arm, suite, step)
            yield name, f"Rephrased prompts, {times} (Fig. 3)", groups
        elif name == "motion":
            slot = study.without
            groups = {
                "with motion": at(last, suite, step),
                "without motion": at(f"{last} {experiment.images} without {slot}", suite, step),
            }
            yield name, f"Prompts with motion, living subjects, {times} (Fig. 4)", groups
        elif name == "size":
            sizes = sorted({*study.images, experiment.images})
            groups = {f"{size} images": at(f"{last} {size}", suite, step) for size in sizes}
            yield name, f"Size of the set, {times}", _of_same_runs(groups)
        else:
            slots = (study.without,) if isinstance(study.without, str) else study.without or ()
            groups = {"all slots": at(last, suite, step)}
            for slot in slots:
                groups[f"without {slot}"] = at(
                    f"{last} {experiment.images} without {slot}", suite, step
                )
            yield name, f"One slot less, {times}", _of_same_runs(groups)


def _of_same_runs(
    groups: dict[str, dict[str, list[Score]]],
) -> dict[str, dict[str, list[Score]]]:
    """Only the subjects and seeds that every group has: some studies have fewer seeds."""

    def runs(by_metric: Mapping[str, list[Score]]) -> set[tuple[str, int]]:
        return {(s.cell.subject, s.cell.seed) for had in by_metric.values() for s in had}

    had = [runs(each) for each in groups.values() if any(each.values())]
    common = set.intersection(*had) if had else set()
    return {
        label: {
            metric: [s for s in found if (s.cell.subject, s.cell.seed) in common]
            for metric, found in by_metric.items()
        }
        for label, by_metric in groups.items()
    }


# ------------------------------------------------------------------------------------------ tables


def _main_table(found: Found) -> str:
    """Means of the main grid: one row a set and point."""
    unit = found.experiment.steps
    lines = [
        "| set | runs | training | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
        "| --- | ---: | ---: | " + " | ".join("---:" for _ in SHOWN) + " |",
    ]
    for arm in found.arms:
        for step in found.steps:
            row = " | ".join(_number(found.main(arm, step, metric)) for metric in SHOWN)
            lines.append(f"| {arm} | {len(found.common)} | {step / unit:g}x | {row} |")
    return "\n".join(lines)


def _difference_table(found: Found) -> str:
    """Each set against none and against naive, at the longest training; clear ones in bold."""
    step = found.steps[-1]
    lines = [
        "| | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
        "| --- | " + " | ".join("---:" for _ in SHOWN) + " |",
    ]
    for first in ("none", "naive"):
        for arm in found.arms:
            if arm == first or (first, arm) == ("naive", "none"):
                continue
            row = []
            for metric in SHOWN:
                change = paired(found.main(first, step, metric), found.main(arm, step, metric))
                row.append(_change(change))
            lines.append(f"| {arm} against {first} | {' | '.join(row)} |")
    return "\n".join(lines)


def _side_tables(found: Found) -> Iterator[str]:
    """What the bars of the side studies show, as numbers."""
    for _, title, groups in _side_groups(found):
        if not any(had for each in groups.values() for had in each.values()):
            continue
        lines = [
            f"**{title}**",
            "",
            "| | runs | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
            "| --- | ---: | " + " | ".join("---:" for _ in SHOWN) + " |",
        ]
        for label, by_metric in groups.items():
            runs = {(s.cell.subject, s.cell.seed) for had in by_metric.values() for s in had}
            row = " | ".join(_number(by_metric[metric]) for metric in SHOWN)
            lines.append(f"| {label} | {len(runs)} | {row} |")
        yield "\n".join(lines)


def _number(had: Sequence[Score]) -> str:
    if not had:
        return ""
    found = mean_of(had)
    return f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"


def _change(change: Interval | None) -> str:
    if change is None:
        return ""
    text = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return f"**{text}**" if is_clear(change) else text


def _numbers(found: Found) -> list[dict[str, Any]]:
    """All means, for whoever wants to plot them otherwise."""
    rows = []
    for (name, suite, step, metric), had in sorted(found._by.items()):
        mean = mean_of(had)
        rows.append(
            {
                "set": name,
                "prompts": suite,
                "step": step,
                "metric": metric,
                "mean": round(mean.mean, 5),
                "low": round(mean.low, 5),
                "high": round(mean.high, 5),
                "pictures": mean.count,
                "runs": len({(s.cell.subject, s.cell.seed) for s in had}),
            }
        )
    return rows


# ---------------------------------------------------------------------------------------- pictures


def _pictures(experiment: Experiment, folder: Path) -> Path | None:
    """The same prompts and noise: one row a set, at the longest training; first seed."""
    from run import evaluation_folder

    rows: list[tuple[str, list[Image.Image]]] = []
    seed = experiment.seeds[0]
    subject = next(iter(experiment.subjects))
    for cell in cells(experiment):
        main = Found.name(cell) in {"none", *(f"{a} {experiment.images}" for a in experiment.arms)}
        if cell.seed != seed or cell.subject != subject or not main:
            continue
        where = evaluation_folder(experiment, cell, experiment.prompts)
        if not (where / "evaluation.json").exists():
            continue
        last = Evaluation.load(where).results[-1]
        shown = [p for p in last.measured if p.question and p.number == 0][:10]
        shown += [p for p in last.measured if p.question is None][:2]
        label = cell.regularization.arm if cell.regularization else "none"
        rows.append((label, [Image.open(where / p.file).convert("RGB") for p in shown]))
    if not rows:
        return None
    side = rows[0][1][0].width
    sheet = Image.new("RGB", (side * len(rows[0][1]), side * len(rows)), "white")
    for y, (_, pictures) in enumerate(rows):
        for x, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side)), (x * side, y * side))
    path = folder / "pictures.webp"
    sheet.save(path, quality=90, method=6)
    write_atomically(folder / "pictures.txt", "\n".join(label for label, _ in rows).encode())
    return path


def _page(
    experiment: Experiment,
    found: Found,
    figures: Sequence[tuple[str, Path]],
    grid: Path | None,
    tables: str,
) -> Path:
    """One page with everything, self-contained but for the pictures beside it."""
    whole = len(experiment.subjects) * len(experiment.seeds)
    state = f"{len(found.common)} of {whole} runs of each set ({', '.join(found.arms)})"
    parts = [
        f"<h1>Does the data help? {html.escape(experiment.name)}</h1><p>{html.escape(state)}</p>"
    ]
    parts += [
        f'<figure><img src="figures/{path.name}" alt="{html.escape(title)}"></figure>'
        for title, path in figures
    ]
    if grid:
        labels = html.escape((grid.with_suffix(".txt")).read_text().replace("\n", ", "))
        parts.append(
            f'<figure><img src="figures/{grid.name}" alt="pictures"><figcaption>The same prompts '
            f"and noise at the longest training; rows: {labels}. The last two columns are asked "
            "for without the identifier.</figcaption></figure>"
        )
    parts.append(f"<pre>{html.escape(tables)}</pre>")
    page = (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>Does the data help?</title><style>body{font:16px/1.5 system-ui;max-width:60rem;"
        "margin:2rem auto;padding:0 1rem;background:#fff;color:#1d1a17}img{max-width:100%}"
        "pre{overflow:auto;font-size:12px}</style>" + "".join(parts)
    )
    path = experiment.out / "report.html"
    write_atomically(path, page.encode())
    return path
