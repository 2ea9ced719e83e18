"""What the runs say together, as one figure and one image."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

import grid
from grid import Experiment, Pair
from measure import CLASS, PARTS, PLAIN, SHOWN, asked, photos_in
from regforge.evaluation import plots
from tables import MEASURES, Found, label

_ACROSS, _UP = "closeness", ("lift", "shown")
_ROWS = ((SHOWN, "place"), (SHOWN, "style"), (PLAIN, "style"), (CLASS, ""))
_SIDE, _HEAD, _BAND = 144, 34, 20


def write(experiment: Experiment) -> None:
    """Write figures/frontier.svg and figures/images.webp of what is there."""
    folder = experiment.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    _frontier(Found(experiment), folder / "frontier.svg")
    _images(experiment, folder / "images.webp")


def _frontier(found: Found, path: Path) -> None:
    """The class across, the subject upwards; a line a set, from the shortest training on."""
    from matplotlib.figure import Figure

    compared = found.experiment.compared
    figure = Figure(figsize=(8, 4.2), dpi=100)
    panels = figure.subplots(1, len(_UP))
    for axes, measure in zip(panels, _UP, strict=True):
        for pair, color in zip((*compared.with_, compared.default), plots.COLORS, strict=False):
            steps = [step for step in found.experiment.stops if found.runs(pair, step)]
            across, up = ([found.mean(pair, step, m) for step in steps] for m in (_ACROSS, measure))
            points = [(x.mean, y.mean) for x, y in zip(across, up, strict=True) if x and y]
            if points:
                width = 2.5 if pair == compared.default else 1.5
                axes.plot(*zip(*points, strict=True), color=color, linewidth=width,
                          label=label(pair))  # fmt: skip
                sizes = [20 + 40 * place for place in range(len(points))]
                axes.scatter(*zip(*points, strict=True), s=sizes, color=color)
        axes.axvline(1, color="#6c655d", linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(MEASURES[_ACROSS].name)
        axes.set_title(MEASURES[measure].name, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    plots.save(figure, path)


def _images(experiment: Experiment, path: Path) -> None:
    """Columns: a photo, the untouched model, and three sets at the longest training, one noise."""
    pairs = [*experiment.compared.with_[::2], experiment.compared.default]
    heads = ["photos", "base model", *map(label, pairs)]
    kinds = {about.kind: name for name, about in reversed(experiment.subjects.items())}
    made = Image.new(
        "RGB", (_SIDE * len(heads), _HEAD + len(kinds) * len(_ROWS) * (_SIDE + _BAND)), "white"
    )
    draw = ImageDraw.Draw(made)
    for x, head in enumerate(heads):
        draw.text((x * _SIDE + 3, 3), textwrap.fill(head, 20), fill="#1d1a17", font_size=12)
    y = _HEAD
    for subject in kinds.values():
        photos = photos_in(experiment.subjects[subject].images)
        for row, (part, group) in enumerate(_ROWS):
            tiles = [_tile(experiment, subject, pair, part, group) for pair in (None, *pairs)]
            noun = grid.noun_of(experiment, subject)
            this = f"this {noun}" if part == SHOWN else f"a {noun}"
            text = tiles[0][0].replace("a {}", this)
            draw.text((3, y + 3), text, fill="#6c655d", font_size=12)
            for x, image in enumerate([photos[row % len(photos)], *(image for _, image in tiles)]):
                made.paste(image.resize((_SIDE, _SIDE)), (x * _SIDE, y + _BAND))
            y += _SIDE + _BAND
    made.save(path, quality=92, method=6)


def _tile(
    experiment: Experiment, subject: str, pair: Pair | None, part: str, group: str
) -> tuple[str, Image.Image]:
    """A prompt, and what a set (None: the untouched model) drew for it; grey if it has not yet."""
    about, noun = experiment.subjects[subject], grid.noun_of(experiment, subject)
    if pair is None:
        file = grid.base_folder(experiment) / f"{subject}.webp"
        part = PLAIN if part == SHOWN else part
    else:
        seed = experiment.seeds[0]
        pack = next(
            p
            for p in grid.packs(experiment)
            if (p.arm, p.identifier) == pair and (subject, seed) in p.runs
        )
        scores = grid.scores_file(grid.pack_folder(experiment, pack), experiment.stops[-1])
        file = scores.with_suffix("") / f"{subject}-{seed}.webp"
    questions = [q for q in asked(experiment, about, noun, "*" if pair else None) if q.part == part]
    x, question = next((n, q) for n, q in enumerate(questions) if q.group == group)
    if not file.exists():
        return question.text, Image.new("RGB", (_SIDE, _SIDE), "#e6e1da")
    sheet = Image.open(file).convert("RGB")
    side, y = sheet.height // len(PARTS), PARTS.index(part)
    return question.text, sheet.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
