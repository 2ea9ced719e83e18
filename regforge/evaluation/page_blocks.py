"""The prompts of the page: their images beside their scores, and which went best and worst.

Knows what was measured; nothing of files or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regforge.evaluation import wording
from regforge.evaluation.interface import Measured
from regforge.evaluation.results import ModelResult

EXTREMES = 3
"""How many prompts are named best, and how many worst."""


def image_blocks(
    results: Sequence[ModelResult],
    uris: Mapping[str, str | None],
    prefix: str,
    *,
    of_class: bool,
) -> list[dict[str, Any]]:
    """A block a prompt: for each model its images, in the order of their samples.

    Args:
        results: Of models with one subject; each has a cell in every block.
        uris: Thumbnails by file.
        prefix: Of the blocks' anchors.
        of_class: Take images of other members of the class, and not those of questions.
    """
    prompts: dict[tuple[str, str], dict[str, list[Measured]]] = {}
    for result in results:
        for each in result.measured:
            if (each.question is None) == of_class:
                # By what was asked: the base model is asked without the identifier.
                key = (
                    (each.question.suite, each.question.text)
                    if each.question
                    else ("", each.prompt)
                )
                of_model = prompts.setdefault(key, {})
                of_model.setdefault(result.model.name, []).append(each)
    return [
        {
            "anchor": f"{prefix}{place}",
            "suite": suite,
            "group": _group(found),
            "text": list(found.values())[-1][0].prompt,
            "cells": [
                _images(result.model.name, found.get(result.model.name, []), uris)
                for result in results
            ],
        }
        for place, ((suite, _), found) in enumerate(prompts.items(), start=1)
    ]  # fmt: skip


def _group(found: Mapping[str, Sequence[Measured]]) -> str:
    asked = (each.question for images in found.values() for each in images if each.question)
    return next((question.group for question in asked), "")


def _images(
    model: str, images: Sequence[Measured], uris: Mapping[str, str | None]
) -> dict[str, Any]:
    shots = [
        {
            "number": each.number,
            "uri": uris.get(each.file),
            "scores": [
                (metric, each.scores[key])
                for key, metric in wording.BY_KEY.items()
                if key in each.scores
            ],
        }
        for each in sorted(images, key=lambda image: image.number)
    ]
    means = {}
    for key in wording.BY_KEY:
        values = [each.scores[key] for each in images if key in each.scores]
        if values:
            means[key] = sum(values) / len(values)
    return {
        "model": model,
        "shots": shots,
        "means": [(wording.BY_KEY[key], mean) for key, mean in means.items()],
    }


def extremes(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each metric the prompts that it finds best and worst, by the mean over models."""
    found = []
    for key, metric in wording.BY_KEY.items():
        scored = []
        for block in blocks:
            by_model = {
                cell["model"]: {m.key: mean for m, mean in cell["means"]}.get(key)
                for cell in block["cells"]
            }
            known = [value for value in by_model.values() if value is not None]
            if known:
                scored.append(
                    {
                        "anchor": block["anchor"],
                        "text": block["text"],
                        "mean": sum(known) / len(known),
                        "models": [(name, v) for name, v in by_model.items() if v is not None],
                    }
                )
        if len(scored) <= EXTREMES:
            continue
        scored.sort(key=lambda each: each["mean"], reverse=metric.higher_is_better)
        most = min(EXTREMES, len(scored) // 2)
        found.append({"metric": metric, "best": scored[:most], "worst": scored[: -most - 1 : -1]})
    return found
