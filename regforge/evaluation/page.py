"""The page of an evaluation: what it is told, and how it is written.

Fills templates/evaluation. The page asks the network for nothing: style, script, plots and
thumbnails are inside, and its Content-Security-Policy allows nothing else. Names, prompts and
notes reach it as escaped text only. Everything but the enlarged view works without the script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from regforge.evaluation import wording
from regforge.evaluation.interface import EvaluationError, Interval, Measured, Metric
from regforge.evaluation.page_blocks import extremes, image_blocks
from regforge.evaluation.page_images import BUDGET, Thumbnails, dot, inline_svg
from regforge.evaluation.plots import bars, drawn, identity_against_alignment
from regforge.evaluation.results import Evaluation, ModelResult, verdicts_by_pair
from regforge.evaluation.statistics import is_clear
from regforge.evaluation.steps import plots_over_steps
from regforge.files import write_atomically
from regforge.resources import templates
from regforge.version import __version__

FILE = "report.html"

_MOST_PAIRS = 3
_Scores = Mapping[str, Interval]


def write_page(evaluation: Evaluation, folder: Path, *, budget: int = BUDGET) -> Path:
    """Write `report.html`, atomically.

    Args:
        evaluation: What it shows; its images are read from its own folder, and one that is not
            there any more is said to be missing.
        folder: Where the page goes.
        budget: Bytes of all thumbnails; images beyond are left out, the last samples first, and
            the page says so.

    Returns:
        The page.

    Raises:
        StorageError: The file cannot be written.
    """
    source = templates() / "evaluation"
    css = (source / "evaluation.css").read_text(encoding="utf-8")
    script = (source / "evaluation.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = wording.number
    environment.filters["with_code"] = _with_code
    page = environment.get_template("evaluation.html.j2").render(
        **_parts(evaluation, budget),
        css=Markup(css),
        script=Markup(script),
        css_digest=_csp_digest(css),
        script_digest=_csp_digest(script),
    )
    path = folder / FILE
    # Prompts can hold what UTF-8 cannot, such as half of a surrogate pair.
    write_atomically(path, page.encode("utf-8", errors="replace"))
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


def _csp_digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---------------------------------------------------------------------------------- the whole page


def _parts(evaluation: Evaluation, budget: int) -> dict[str, Any]:
    groups = evaluation.by_subject()
    images = [each for result in evaluation.results for each in result.measured]
    photos = {name: list(evaluation.references.get(name, ())) for name in groups}
    thumbnails = Thumbnails(evaluation.folder, len(images) + sum(map(len, photos.values())), budget)
    shown_photos = {
        name: [thumbnails.uri(file) for file in files] for name, files in photos.items()
    }
    # Samples of all models and prompts in turn: a page that is full lacks the last samples of all.
    uris = {each.file: thumbnails.uri(each.file) for each in sorted(images, key=lambda p: p.number)}
    subjects = [
        _subject(evaluation, name, results, place, uris, shown_photos[name])
        for place, (name, results) in enumerate(groups.items())
    ]
    return {
        "version": __version__,
        "title": ", ".join(name for name in groups if name) or "Evaluation",
        "lead": _lead(evaluation, images),
        "verdicts": _verdicts(evaluation),
        "settings": {
            str(key).replace("_", " "): _said(value) for key, value in evaluation.settings.items()
        },
        "models": [_model(result) for result in evaluation.results],
        "notes": evaluation.notes,
        "held_out": evaluation.held_out,
        "metrics": wording.metrics_of([result.scores for result in evaluation.results]),
        "arrow": wording.arrow,
        "subjects": subjects,
        "pairs": _pairs(evaluation),
        "chance": wording.by_chance(len(evaluation.comparisons)),
        "missing": thumbnails.missing,
        "left_out": thumbnails.left_out,
    }


def _lead(evaluation: Evaluation, images: Sequence[Measured]) -> str:
    models, asked = len(evaluation.results), [each for each in images if each.question]
    prompts = len({(each.question.suite, each.question.text) for each in asked if each.question})
    return (
        f"{models} model{'' if models == 1 else 's'}, {prompts:,} prompts, "
        f"{len(asked):,} images. Each model drew the same prompts from the same noise."
    )


def _verdicts(evaluation: Evaluation) -> list[str]:
    """Two models in words; of many only each against its first; of a single one, how far it got."""
    pairs = verdicts_by_pair(evaluation.comparisons)
    if len(pairs) > _MOST_PAIRS:
        against = {second: first for first, second in reversed(pairs)}
        pairs = {pair: said for pair, said in pairs.items() if against[pair[1]] == pair[0]}
    if pairs:
        return [wording.summary(*pair, verdicts) for pair, verdicts in pairs.items()]
    texts = []
    for result in evaluation.results:
        for key, ceiling in evaluation.ceiling.get(result.subject_name, {}).items():
            if key in result.scores and key in wording.BY_KEY:
                texts.append(
                    f"“{result.model.name}” reaches {wording.BY_KEY[key].name} "
                    f"{wording.number(result.scores[key].mean)}; the photos themselves reach "
                    f"{wording.number(ceiling.mean)}."
                )
                break
    return texts


def _model(result: ModelResult) -> dict[str, Any]:
    model = result.model
    return {
        "name": model.name,
        "facts": [
            fact
            for fact in (
                f"base {model.base}" + (f" at {model.revision}" if model.revision else ""),
                f"{model.steps:,} steps" if model.steps else "",
                f"weights {model.digest[:12]}",
            )
            if fact
        ],
    }


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None else str(value)


def _pairs(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Comparisons, with a scale for each metric that holds all its intervals and zero."""
    reach: dict[str, float] = {}
    for each in evaluation.comparisons:
        widest = max(abs(each.difference.low), abs(each.difference.high))
        reach[each.metric] = max(reach.get(each.metric, 0.0), widest)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in evaluation.comparisons:
        said = wording.verdict(each)
        if said is None:
            continue
        found, end = each.difference, reach[each.metric] or 1.0
        text = wording.span(found, signed=True)
        rows.setdefault((each.first, each.second), []).append(
            {
                "metric": said.metric,
                "mean": wording.number(found.mean, signed=True),
                "interval": f"{wording.number(found.low)} to {wording.number(found.high)}",
                "count": found.count,
                "plot": dot(found.low, found.mean, found.high, (-end, end, 0.0), text),
                "winner": said.winner,
                "grade": "unknown"
                if said.winner is None
                else ("good" if said.winner == each.second else "bad"),
            }
        )
    return [
        {"first": first, "second": second, "rows": found} for (first, second), found in rows.items()
    ]


# -------------------------------------------------------------------------------------- one subject


def _subject(
    evaluation: Evaluation,
    name: str,
    results: Sequence[ModelResult],
    place: int,
    uris: Mapping[str, str | None],
    photos: Sequence[str | None],
) -> dict[str, Any]:
    ceiling = evaluation.ceiling.get(name, {})
    scores = {result.model.name: result.scores for result in results}
    metrics = wording.metrics_of([*scores.values(), ceiling])
    prefix = f"s{place}-"
    blocks = image_blocks(results, uris, f"{prefix}p", of_class=False)
    suites = list(dict.fromkeys(suite for result in results for suite in result.by_suite))
    groups = list(dict.fromkeys(group for result in results for group in result.by_group))
    return {
        "name": name,
        "prefix": prefix,
        "photos": [uri for uri in photos if uri],
        "metrics": metrics,
        "table": _table(metrics, scores, ceiling, evaluation),
        "plots": _plots(results, ceiling, prefix),
        "suites": _breakdown(suites, {r.model.name: r.by_suite for r in results}),
        "groups": _breakdown(groups, {r.model.name: r.by_group for r in results}),
        "extremes": extremes(blocks),
        "blocks": blocks,
        "class_blocks": image_blocks(results, uris, f"{prefix}c", of_class=True),
    }


def _table(
    metrics: Sequence[Metric],
    scores: Mapping[str, _Scores],
    ceiling: _Scores,
    evaluation: Evaluation,
) -> list[dict[str, Any]]:
    """A row a model, and one for the photos; the best of each column is marked."""
    columns = {
        metric.key: [had[metric.key] for had in [*scores.values(), ceiling] if metric.key in had]
        for metric in metrics
    }
    scales = {
        key: (min(each.low for each in found), max(each.high for each in found))
        for key, found in columns.items()
    }
    best = {
        metric.key: wording.best_of(
            metric,
            {name: had[metric.key].mean for name, had in scores.items() if metric.key in had},
        )
        for metric in metrics
    }
    rows: list[dict[str, Any]] = []
    for name, had in [*scores.items(), ("", ceiling)]:
        if not had and not name:
            continue
        cells = []
        for metric in metrics:
            found = had.get(metric.key)
            mark = ""
            if found and name in best[metric.key]:
                mark = "best" if _beats_all(name, metric.key, evaluation) else "ahead"
            cells.append(_cell(found, scales[metric.key], mark))
        rows.append({"name": name, "cells": cells})
    return rows


def _cell(found: Interval | None, scale: Sequence[float], mark: str = "") -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "mean": wording.number(found.mean),
        "half": wording.plus_minus(found),
        "plot": dot(found.low, found.mean, found.high, scale, wording.span(found)),
        "mark": mark,
        "count": found.count,
    }


def _beats_all(name: str, key: str, evaluation: Evaluation) -> bool:
    """Whether it is clearly another score than that of every model it was compared with."""
    theirs = [
        each
        for each in evaluation.comparisons
        if each.metric == key and name in (each.first, each.second)
    ]
    return bool(theirs) and all(is_clear(each.difference) for each in theirs)


def _breakdown(
    names: Sequence[str], scores: Mapping[str, Mapping[str, _Scores]]
) -> dict[str, Any] | None:
    """Scores by part of the benchmark; None where there is one part, which says nothing new."""
    if len(names) < 2:
        return None
    metrics = wording.metrics_of([part for parts in scores.values() for part in parts.values()])
    scales = {
        metric.key: [
            pick(getattr(part[metric.key], end) for parts in scores.values()
                 for part in parts.values() if metric.key in part)
            for pick, end in ((min, "low"), (max, "high"))
        ]
        for metric in metrics
    }  # fmt: skip
    return {
        "metrics": metrics,
        "parts": [
            {
                "name": part,
                "rows": [
                    {
                        "name": model,
                        "cells": [
                            _cell(parts[part].get(metric.key), scales[metric.key])
                            for metric in metrics
                        ],
                    }
                    for model, parts in scores.items()
                    if part in parts
                ],
            }
            for part in names
        ],
    }


def _plots(results: Sequence[ModelResult], ceiling: _Scores, prefix: str) -> list[Markup] | None:
    """The plots, as elements; None where matplotlib is not there."""
    scores = {result.model.name: result.scores for result in results}
    try:
        made = [inline_svg(drawn(bars(scores), "svg"), "Scores of each model", f"{prefix}bars-")]
        if any("dino" in had and "clip_t" in had for had in scores.values()):
            figure = identity_against_alignment(scores, ceiling=ceiling)
            plot = inline_svg(drawn(figure, "svg"), "Identity against alignment", f"{prefix}plane-")
            made.insert(0, plot)
        for place, (title, figure) in enumerate(plots_over_steps(results, ceiling).items()):
            made.insert(place, inline_svg(drawn(figure, "svg"), title, f"{prefix}steps{place}-"))
    except EvaluationError:
        return None
    return made
