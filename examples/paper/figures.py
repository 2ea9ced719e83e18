"""What the cells of the experiment say together, as curves, images and a page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

import tables
from grid import Experiment, cells
from regforge.evaluation import plots
from regforge.evaluation.results import Evaluation
from regforge.files import write_atomically
from scores import BASE, PLAIN, Found, Groups, mean_of
from tables import BY_KEY

CURVES: tuple[tuple[str, Groups, str], ...] = (
    ("both", PLAIN, "This subject, in the place and style that were asked for"),
    ("dino", ("place",), "Identity, where the prompt says nothing about the subject"),
    ("dino", ("style",), "Identity, in another style"),
    ("matched", (), "Is it the image that was asked for? (all prompts)"),
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
    grid = _images(experiment, figures)
    text = "\n\n".join(tables.markdown(found))
    whole = f"# All numbers\n\n{tables.state(found)}\n\n{text}\n"
    write_atomically(folder / "results.md", whole.encode())
    write_atomically(folder / "results.json", json.dumps(tables.means(found), indent=1).encode())
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
    longest = {name: (title, groups) for name, title, _, groups in tables.side_groups(found)}
    for name, (title, groups) in longest.items():
        series = {
            label: {m: mean_of(had) for m, had in by_metric.items() if had and m != "pres"}
            for label, by_metric in groups.items()
            if not label.endswith(tables.AS_ASKED)
        }
        series = {label: had for label, had in series.items() if had}
        if len(series) < 2:
            continue
        path = folder / f"{name}.svg"
        plots.save(plots.bars(series, title=title), path)
        made.append((title, path))
    return made


# ---------------------------------------------------------------------------------------- images


def _images(experiment: Experiment, folder: Path) -> Path | None:
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
        shown = [p for p in last.images if p.question and p.number == 0][:10]
        shown += [p for p in last.images if p.question is None][:2]
        label = cell.regularization.arm if cell.regularization else "none"
        rows.append((label, [Image.open(where / p.file).convert("RGB") for p in shown]))
    if not rows:
        return None
    side = max(96, rows[0][1][0].width)
    columns = len(rows[0][1])
    margin = 150
    sheet = Image.new("RGB", (margin + side * columns, side * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, images) in enumerate(rows):
        draw.text((8, y * side + side // 2 - 8), label, fill="#1d1a17", font_size=16)
        for x, image in enumerate(images):
            sheet.paste(image.resize((side, side)), (margin + x * side, y * side))
    path = folder / "images.webp"
    sheet.save(path, quality=90, method=6)
    return path


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
    numbers: str,
) -> Path:
    """One page with everything, self-contained but for the images beside it."""
    parts = [f"<h1>Does the data help?</h1><p>{html.escape(tables.state(found))}</p>"]
    parts += [
        f'<figure><img src="figures/{path.name}" alt="{html.escape(title)}"></figure>'
        for title, path in figures
    ]
    if grid:
        parts.append(
            f'<figure><img src="figures/{grid.name}" alt="images"><figcaption>The same prompts '
            f"and noise at the longest training. The last two columns are asked for without the "
            "identifier.</figcaption></figure>"
        )
    parts += [_as_html(table) for table in numbers.split("\n\n")]
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
