"""What the cells of the experiment say together, as numbers, curves, pictures and a page."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from grid import Experiment, cells, stem
from regforge.evaluation import plots
from regforge.evaluation.interface import METRICS, Interval
from regforge.evaluation.results import Evaluation
from regforge.evaluation.statistics import is_clear
from regforge.files import write_atomically
from scores import BASE, BOTH, Found, Groups, Score, mean_of, paired

SHOWN = ("dino", "clip_t", "matched", "both", "pres")
"""The metrics of tables."""

BY_KEY = {metric.key: metric for metric in (*METRICS, BOTH)}

_PLAIN = ("place", "style")  # prompts that say nothing about the subject itself

_AS_ASKED = ", as asked"

CURVES: tuple[tuple[str, Groups, str], ...] = (
    ("both", _PLAIN, "This subject, in the place and style that were asked for"),
    ("dino", ("place",), "Identity, where the prompt says nothing about the subject"),
    ("dino", ("style",), "Identity, in another style"),
    ("matched", (), "Is it the picture that was asked for? (all prompts)"),
    ("clip_t", (), "Alignment (all prompts)"),
    ("pres", (), "Has the whole class become the subject? (low is good)"),
)
"""Metric, kinds of prompts (none: all), and title of each curve.

Identity is not averaged over all prompts here: a model that draws "a red sks cat" red is right, and
less like the photos; one that ignores the colour scores higher.
"""


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
    for metric, groups, title in CURVES:
        path = _curve(found, metric, groups, title, figures)
        if path:
            made.append((title, path))
    made += _side_figures(found, figures)
    grid = _pictures(experiment, figures)
    tables = [
        _main_table(found),
        *_difference_tables(found),
        *(table for group in _groups(found) for table in _group_tables(found, group)),
        *_side_tables(found),
    ]
    text = "\n\n".join(table for table in tables if table)
    whole = f"# All numbers\n\n{_state(found)}\n\n{text}\n"
    write_atomically(folder / "results.md", whole.encode())
    write_atomically(folder / "results.json", json.dumps(_numbers(found), indent=1).encode())
    return _page(experiment, found, made, grid, text)


def _curve(found: Found, metric: str, groups: Groups, title: str, folder: Path) -> Path | None:
    """Fig. 5: a metric over training, one line a set."""
    unit = found.experiment.steps
    series = {
        arm: [
            (step / unit, mean)
            for step in found.steps
            if (mean := found.mean(arm, step, metric, groups))
        ]
        for arm in found.arms
    }
    if not any(series.values()):
        return None
    start = found.base(metric, groups)
    figure = plots.curves(
        series,
        title=title,
        x_label=f"training, in multiples of {unit} steps",
        y_label=BY_KEY[metric].name,
        log_x=True,
        reference_lines={BASE: start.mean} if start else None,
    )
    path = folder / ("-".join((metric, *groups)) + ".svg")
    plots.save(figure, path)
    return path


def _side_figures(found: Found, folder: Path) -> list[tuple[str, Path]]:
    """Figures 3 and 4, the size of the set, and what each slot is good for."""
    made = []
    for name, title, groups in _side_groups(found):
        series = {
            label: {m: mean_of(had) for m, had in by_metric.items() if had and m != "pres"}
            for label, by_metric in groups.items()
            if not label.endswith(_AS_ASKED)
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
                groups[f"{arm}{_AS_ASKED}"] = at(arm, main, step)
                groups[arm] = at(arm, suite, step)
            yield name, f"Rephrased prompts, {times} (Fig. 3)", _of_same_runs(groups)
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
    base = " | ".join(_shown(found.base(metric)) for metric in SHOWN)
    lines.append(f"| {BASE} | {len(found.experiment.subjects)} | | {base} |")
    for arm in found.arms:
        for step in found.steps:
            row = " | ".join(_shown(found.mean(arm, step, metric)) for metric in SHOWN)
            lines.append(f"| {arm} | {len(found.common)} | {step / unit:g}x | {row} |")
    return "\n".join(lines)


def _difference_tables(found: Found) -> Iterator[str]:
    """Sets against none and against naive, at the longest training; clear ones in bold."""
    unit, step = found.experiment.steps, found.steps[-1]
    rephrased = found.experiment.studies.get("rephrased")
    yield f"**Differences at {step / unit:g}x**"
    yield _differences(found, step, stem(found.experiment.prompts))
    if rephrased and rephrased.prompts:
        yield f"**The same in other words, at {step / unit:g}x**"
        yield _differences(found, step, stem(rephrased.prompts))


def _differences(found: Found, step: int, suite: str) -> str:
    lines = [
        "| | " + " | ".join(BY_KEY[m].name for m in SHOWN) + " |",
        "| --- | " + " | ".join("---:" for _ in SHOWN) + " |",
    ]
    for first in ("none", "naive"):
        for arm in found.arms:
            if arm == first or (first, arm) == ("naive", "none"):
                continue
            row = (
                _change(
                    paired(
                        found.main(first, step, metric, suite=suite),
                        found.main(arm, step, metric, suite=suite),
                    )
                )
                for metric in SHOWN
            )
            lines.append(f"| {arm} against {first} | {' | '.join(row)} |")
    return "\n".join(lines)


def _groups(found: Found) -> list[str]:
    """What the prompts of the main grid are about."""
    arm, step = found.arms[0], found.steps[-1]
    return list(dict.fromkeys(score.group for score in found.main(arm, step, "dino")))


def _group_tables(found: Found, group: str) -> Iterator[str]:
    """A heading, and identity and R-precision of one kind of prompts."""
    yield f"**Prompts about {group}**"
    columns = [
        (metric, step)
        for metric in ("dino", "matched", "both")
        for step in (found.experiment.steps, found.steps[-1])
    ]
    names = [f"{BY_KEY[m].name} {step / found.experiment.steps:g}x" for m, step in columns]
    lines = [
        "| | " + " | ".join(names) + " |",
        "| --- | " + " | ".join("---:" for _ in names) + " |",
    ]
    base = " | ".join(_shown(found.base(metric, (group,))) for metric, _ in columns)
    lines.append(f"| {BASE} | {base} |")
    for arm in found.arms:
        row = (_shown(found.mean(arm, step, metric, (group,))) for metric, step in columns)
        lines.append(f"| {arm} | {' | '.join(row)} |")
    for arm in found.arms:
        if arm in ("none", "naive"):
            continue
        row = (
            _change(
                paired(
                    found.main("naive", step, metric, (group,)),
                    found.main(arm, step, metric, (group,)),
                )
            )
            for metric, step in columns
        )
        lines.append(f"| {arm} against naive | {' | '.join(row)} |")
    yield "\n".join(lines)


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
    return _shown(mean_of(had) if had else None)


def _shown(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"


def _change(change: Interval | None) -> str:
    if change is None:
        return ""
    text = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return f"**{text}**" if is_clear(change) else text


def _numbers(found: Found) -> list[dict[str, Any]]:
    """All means, for whoever wants to plot them otherwise."""
    rows = []
    for (name, suite, step, metric), had in found.all():
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
    side = max(96, rows[0][1][0].width)
    columns = len(rows[0][1])
    margin = 150
    sheet = Image.new("RGB", (margin + side * columns, side * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, pictures) in enumerate(rows):
        draw.text((8, y * side + side // 2 - 8), label, fill="#1d1a17", font_size=16)
        for x, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side)), (margin + x * side, y * side))
    path = folder / "pictures.webp"
    sheet.save(path, quality=90, method=6)
    return path


def _state(found: Found) -> str:
    """What was compared, and how the numbers are to be read."""
    experiment = found.experiment
    whole = len(experiment.subjects) * len(experiment.seeds)
    return (
        f"{len(found.common)} of {whole} runs of each set ({', '.join(found.arms)}). Means ± half "
        "of their 95 % interval over runs. Differences are taken prompt by prompt within the same "
        "subject and seed; where one is bold, its interval does not hold 0."
    )


def _as_html(table: str) -> str:
    """A Markdown table, or a bold heading, as HTML."""
    if not table.startswith("|"):
        return f"<h2>{html.escape(table.strip('*'))}</h2>"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    lines = ["".join(f"<td>{_bold(cell)}" for cell in row) for row in [rows[0], *rows[2:]]]
    return "<table>" + "".join(f"<tr>{line}" for line in lines) + "</table>"


def _bold(cell: str) -> str:
    text = html.escape(cell)
    return f"<b>{text.strip('*')}</b>" if text.startswith("**") else text


def _page(
    experiment: Experiment,
    found: Found,
    figures: Sequence[tuple[str, Path]],
    grid: Path | None,
    tables: str,
) -> Path:
    """One page with everything, self-contained but for the pictures beside it."""
    parts = [f"<h1>Does the data help?</h1><p>{html.escape(_state(found))}</p>"]
    parts += [
        f'<figure><img src="figures/{path.name}" alt="{html.escape(title)}"></figure>'
        for title, path in figures
    ]
    if grid:
        parts.append(
            f'<figure><img src="figures/{grid.name}" alt="pictures"><figcaption>The same prompts '
            f"and noise at the longest training. The last two columns are asked for without the "
            "identifier.</figcaption></figure>"
        )
    parts += [_as_html(table) for table in tables.split("\n\n")]
    page = (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>Does the data help?</title><style>body{font:16px/1.5 system-ui;max-width:60rem;"
        "margin:2rem auto;padding:0 1rem;background:#fff;color:#1d1a17}img{max-width:100%}"
        "table{border-collapse:collapse;font-size:14px;display:block;overflow:auto}"
        "td{padding:.15rem .7rem;border-bottom:1px solid #e6e1da;white-space:nowrap}"
        "tr:first-child td{font-weight:600}</style>" + "".join(parts)
    )
    path = experiment.out / "report.html"
    write_atomically(path, page.encode())
    return path
