"""The page of an evaluation, `report.html`.

Fills templates/evaluation. The page asks the network for nothing: style, script, plots and
thumbnails are inside, and its Content-Security-Policy allows nothing else. Names, prompts and
notes reach it as escaped text only. Everything but the enlarged view works without the script.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from regforge.display import html_page
from regforge.evaluation import plots, wording
from regforge.evaluation.metrics import BY_KEY, Interval, is_clear, metrics_of
from regforge.evaluation.results import Evaluation, ModelResult
from regforge.evaluation.suites import EvaluationError, ImageScores
from regforge.files import write_atomically
from regforge.version import __version__
from regforge.words import counted

FILE = "report.html"

BUDGET = 7_200_000
"""Bytes of all thumbnails; a third more in base64, so that a page stays near 10 MB."""

_MOST_PAIRS = 3
_EXTREMES = 3  # prompts that are named best, and as many worst
_SIZES = (320, 256, 192, 160)  # pixels of a thumbnail's longer side
_BYTES_OF_PIXEL = 0.2  # of a photo-like WebP of this quality, on the high side
_QUALITY = 82


def write_page(evaluation: Evaluation, folder: Path, *, budget: int = BUDGET) -> Path:
    """Write `report.html`, atomically, and return its path.

    Images are read from the evaluation's own folder, and those that are not there any more named.
    Beyond so many bytes of thumbnails the last samples are left out, and the page says so.
    """
    filters: dict[str, Any] = {
        "number": wording.number,
        "plus_minus": wording.plus_minus,
        "with_code": _with_code,
    }
    path = folder / FILE
    write_atomically(path, html_page("evaluation", filters, **_context(evaluation, budget)))
    return path


def _with_code(text: str) -> Markup:
    """Text with what stands in `backticks` set as code; everything is escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one of them belongs to a name
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


# ---------------------------------------------------------------------------------- the whole page


def _context(evaluation: Evaluation, budget: int) -> dict[str, Any]:
    groups = evaluation.by_subject()
    images = [each for result in evaluation.results for each in result.images]
    photos = {name: list(evaluation.references.get(name, ())) for name in groups}
    thumbnails = Thumbnails(evaluation.folder, len(images) + sum(map(len, photos.values())), budget)
    uris = {file: thumbnails.uri(file) for files in photos.values() for file in files}
    # Samples of all models and prompts in turn: a page that is full lacks the last samples of all.
    uris |= {
        each.file: thumbnails.uri(each.file) for each in sorted(images, key=attrgetter("number"))
    }
    asked = [each for each in images if each.question]
    return {
        "version": __version__,
        "title": ", ".join(name for name in groups if name) or "Evaluation",
        "lead": f"{counted(len(evaluation.results), 'model')}, "
        f"{len({each.key for each in asked}):,} prompts, {len(asked):,} images. Each model drew "
        "the same prompts from the same noise.",
        "verdicts": _verdicts(evaluation),
        "settings": {
            str(key).replace("_", " "): wording.shown(value)
            for key, value in evaluation.settings.items()
        },
        "models": [result.model for result in evaluation.results],
        "notes": evaluation.notes,
        "held_out": evaluation.held_out,
        "metrics": metrics_of(result.scores for result in evaluation.results),
        "subjects": [
            _subject(evaluation, name, f"s{place}-")
            | {"photos": [uris[file] for file in photos[name] if uris[file]]}
            for place, name in enumerate(groups)
        ],
        "pairs": _pairs(evaluation),
        "chance": wording.by_chance(len(evaluation.comparisons)),
        "missing": thumbnails.missing,
        "left_out": thumbnails.left_out,
        "uris": uris,
        "by_key": BY_KEY,
        "dot": dot,
    }


def _verdicts(evaluation: Evaluation) -> list[str]:
    """Two models in words; of many only each against its first; of a single one, how far it got."""
    pairs = wording.verdicts_by_pair(evaluation.comparisons)
    if len(pairs) > _MOST_PAIRS:
        against = {second: first for first, second in reversed(pairs)}
        pairs = {pair: verdicts for pair, verdicts in pairs.items() if against[pair[1]] == pair[0]}
    if pairs:
        return [wording.summary(*pair, verdicts) for pair, verdicts in pairs.items()]
    texts = []
    for result in evaluation.results:
        for key, ceiling in evaluation.ceiling.get(result.subject_name, {}).items():
            if key in result.scores and key in BY_KEY:
                reached, most = (wording.number(e.mean) for e in (result.scores[key], ceiling))
                texts.append(
                    f"“{result.model.name}” reaches {BY_KEY[key].name} {reached}; the photos "
                    f"themselves reach {most}."
                )
                break
    return texts


def _pairs(evaluation: Evaluation) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Comparisons, with a scale for each metric that holds all its intervals and zero."""
    reach: dict[str, float] = {}
    for each in evaluation.comparisons:
        widest = max(abs(each.difference.low), abs(each.difference.high))
        reach[each.metric] = max(reach.get(each.metric, 0.0), widest)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in evaluation.comparisons:
        verdict, end = wording.verdict(each), reach[each.metric] or 1.0
        if verdict is not None:
            grade = {None: "unknown", each.second: "good"}.get(verdict.winner, "bad")
            rows.setdefault((each.first, each.second), []).append(
                {
                    "metric": verdict.metric,
                    "difference": each.difference,
                    "scale": (-end, end, 0.0),
                    "winner": verdict.winner,
                    "grade": grade,
                }
            )
    return rows


# -------------------------------------------------------------------------------------- one subject


def _subject(evaluation: Evaluation, name: str, prefix: str) -> dict[str, Any]:
    results, ceiling = evaluation.by_subject()[name], evaluation.ceiling.get(name, {})
    rows = {result.model.name: result.scores for result in results}
    blocks = _blocks(results, f"{prefix}p", of_class=False)
    return {
        "name": name,
        "prefix": prefix,
        "table": _table({"": {**rows, **({"": ceiling} if ceiling else {})}}),
        "marks": _marks(rows, evaluation),
        "plots": _plots(results, ceiling, prefix),
        "suites": _breakdown({result.model.name: result.by_suite for result in results}),
        "groups": _breakdown({result.model.name: result.by_group for result in results}),
        "extremes": _extremes(blocks),
        "blocks": blocks,
        "class_blocks": _blocks(results, f"{prefix}c", of_class=True),
    }


def _table(parts: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> dict[str, Any]:
    """Scores by part and model, and the metrics and scales that they share."""
    rows = [scores for models in parts.values() for scores in models.values()]
    metrics = metrics_of(rows)
    scales = {}
    for metric in metrics:
        found = [scores[metric.key] for scores in rows if metric.key in scores]
        scales[metric.key] = (min(e.low for e in found), max(e.high for e in found))
    return {"parts": parts, "metrics": metrics, "scales": scales}


def _breakdown(
    scores: Mapping[str, Mapping[str, Mapping[str, Interval]]],
) -> dict[str, Any] | None:
    """Scores by part of the benchmark; None where there is one part, which says nothing new."""
    parts: dict[str, dict[str, Mapping[str, Interval]]] = {}
    for model, by_part in scores.items():
        for part, found in by_part.items():
            parts.setdefault(part, {})[model] = found
    return _table(parts) if len(parts) > 1 else None


def _marks(
    rows: Mapping[str, Mapping[str, Interval]], evaluation: Evaluation
) -> dict[tuple[str, str], str]:
    """By model and metric: `best` is clearly another score than that of all it is compared with."""
    marks = {}
    for key, metric in BY_KEY.items():
        means = {name: scores[key].mean for name, scores in rows.items() if key in scores}
        for name in metric.best_of(means):
            compared = [
                is_clear(each.difference)
                for each in evaluation.comparisons
                if each.metric == key and name in (each.first, each.second)
            ]
            marks[name, key] = "best" if compared and all(compared) else "ahead"
    return marks


def _blocks(results: Sequence[ModelResult], prefix: str, *, of_class: bool) -> list[dict[str, Any]]:
    """A block a prompt: for each model its images, in the order of their samples, and their means.

    Each model has a cell in every block. `prefix` is that of the blocks' anchors.
    """
    prompts: dict[tuple[str, str], dict[str, list[ImageScores]]] = {}
    for result in results:
        for each in result.images:
            if (each.question is None) == of_class:
                prompts.setdefault(each.key, {}).setdefault(result.model.name, []).append(each)
    blocks = []
    for place, ((suite, _), found) in enumerate(prompts.items(), start=1):
        last = list(found.values())[-1][0]  # the base model's has no identifier
        cells = {
            result.model.name: sorted(found.get(result.model.name, ()), key=attrgetter("number"))
            for result in results
        }
        blocks.append(
            {
                "anchor": f"{prefix}{place}",
                "suite": suite,
                "group": last.question.group if last.question else "",
                "text": last.prompt,
                "cells": cells,
                "means": {model: _means(images) for model, images in cells.items()},
            }
        )
    return blocks


def _means(images: Iterable[ImageScores]) -> dict[str, float]:
    """By `Metric.key`."""
    values = {key: [each.scores[key] for each in images if key in each.scores] for key in BY_KEY}
    return {key: sum(found) / len(found) for key, found in values.items() if found}


def _extremes(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each metric the prompts that it finds best and worst, by the mean over models."""
    found = []
    for key, metric in BY_KEY.items():
        scored = []
        for block in blocks:
            models = {name: means[key] for name, means in block["means"].items() if key in means}
            if models:
                mean = sum(models.values()) / len(models)
                scored.append({"block": block, "mean": mean, "models": models})
        if len(scored) > _EXTREMES:
            scored.sort(key=lambda each: each["mean"], reverse=metric.higher_is_better)
            most = min(_EXTREMES, len(scored) // 2)
            worst = scored[: -most - 1 : -1]
            found.append({"metric": metric, "best": scored[:most], "worst": worst})
    return found


def _plots(
    results: Sequence[ModelResult], ceiling: Mapping[str, Interval], prefix: str
) -> list[Markup] | None:
    """The plots, as elements; None where matplotlib is not there."""
    scores = {result.model.name: result.scores for result in results}
    try:
        figures = plots.over_training(results, ceiling)
        if any("dino" in had and "clip_t" in had for had in scores.values()):
            figure = plots.identity_against_alignment(scores, ceiling=ceiling)
            figures["Identity against alignment"] = figure
        figures["Scores of each model"] = plots.bars(scores)
        return [
            plots.as_element(figure, title, f"{prefix}plot{place}-")
            for place, (title, figure) in enumerate(figures.items())
        ]
    except EvaluationError:
        return None


# -------------------------------------------------------------------------------- images and marks


class Thumbnails:
    """Makes thumbnails until the page is full; `count`, the most there will be, decides their size.

    Files are relative to the folder; nothing outside of it is ever shown.
    """

    def __init__(self, folder: Path, count: int, budget: int = BUDGET) -> None:
        self._folder = folder.resolve()
        self._left = budget
        share = budget / max(1, count)
        self.size = next(
            (size for size in _SIZES if size * size * _BYTES_OF_PIXEL <= share), _SIZES[-1]
        )
        self._full = False
        self.missing: list[str] = []
        self.left_out = 0

    def uri(self, file: str) -> str | None:
        """The image as a data URI; None where there is none, or no room for it."""
        content = None if self._full else self._read(file)
        if self._full or (content is not None and len(content) > self._left):
            self._full = True  # and stays so: what is left out are the last ones, not the large
            self.left_out += 1
            return None
        if content is None:
            self.missing.append(file)
            return None
        self._left -= len(content)
        return f"data:image/webp;base64,{base64.b64encode(content).decode()}"

    def _read(self, file: str) -> bytes | None:
        try:
            path = (self._folder / file).resolve()
            if not path.is_relative_to(self._folder):
                return None
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=4)
        return buffer.getvalue()


def dot(found: Interval, scale: Sequence[float], *, signed: bool = False) -> Markup:
    """A small mark for an interval: a line from low to high and a dot for the mean.

    `scale` is what the left and the right edge stand for; a third number is marked with a line.
    """
    width, height, edge = 120.0, 14.0, 5.0
    reach = scale[1] - scale[0]

    def x(value: float) -> str:
        share = (value - scale[0]) / reach if reach > 0 else 0.5
        share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.5
        return f"{edge + share * (width - 2 * edge):.1f}"

    middle = height / 2
    marked = "".join(
        f'<line class="zero" x1="{x(at)}" x2="{x(at)}" y1="0" y2="{height:g}"/>' for at in scale[2:]
    )
    return Markup(
        f'<svg class="dot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{wording.span(found, signed=signed)}">{marked}'
        f'<line class="arm" x1="{x(found.low)}" x2="{x(found.high)}" y1="{middle:g}" '
        f'y2="{middle:g}"/><circle cx="{x(found.mean)}" cy="{middle:g}" r="3.6"/></svg>'
    )
