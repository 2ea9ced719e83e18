"""Models, pictures and intervals as `evaluation.json` has them, and back.

Knows the records that the parts of evaluation share, and JSON's few types; not where files lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from regforge.evaluation.interface import Interval, Measured, PersonalizedModel, Question, Subject


def of(value: Any) -> Any:
    """What JSON can say of it; files in the current folder by their way from there."""
    if isinstance(value, Mapping):
        return {str(key): of(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [of(each) for each in value]
    if isinstance(value, PurePath):
        here = Path.cwd()
        return (value.relative_to(here) if value.is_relative_to(here) else value).as_posix()
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def of_intervals(scores: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """By `Metric.key`."""
    return {key: asdict(found) for key, found in scores.items()}


def to_interval(found: Mapping[str, Any]) -> Interval:
    """Back again."""
    mean, low, high = (float(found[name]) for name in ("mean", "low", "high"))
    return Interval(mean, low, high, int(found["count"]))


def to_intervals(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    """Back again."""
    return {key: to_interval(each) for key, each in found.items()}


def of_model(model: PersonalizedModel) -> dict[str, Any]:
    """All that is known of it."""
    subject = model.subject
    return {
        "name": model.name,
        "base": model.base,
        "revision": model.revision,
        "variant": model.variant,
        "weights": of(model.weights),
        "digest": model.digest,
        "subject": None
        if subject is None
        else {
            "identifier": subject.identifier,
            "class_noun": subject.class_noun,
            "kind": subject.kind,
            "images": of(subject.images),
        },
        "steps": model.steps,
        "guidance_scale": model.guidance_scale,
        "prompts": list(model.prompts),
        "recipe": of(model.recipe),
        "notes": list(model.notes),
    }


def to_model(found: Mapping[str, Any]) -> PersonalizedModel:
    """Back again."""
    subject = found["subject"]
    return PersonalizedModel(
        name=str(found["name"]),
        base=str(found["base"]),
        digest=str(found["digest"]),
        revision=found["revision"],
        variant=found["variant"],
        weights=_path(found["weights"]),
        subject=None
        if subject is None
        else Subject(
            identifier=str(subject["identifier"]),
            class_noun=str(subject["class_noun"]),
            kind="living" if subject["kind"] == "living" else "object",
            images=_path(subject["images"]),
        ),
        steps=found["steps"],
        prompts=tuple(map(str, found["prompts"])),
        guidance_scale=found["guidance_scale"],
        recipe=found["recipe"],
        notes=tuple(map(str, found["notes"])),
    )


def of_picture(picture: Measured) -> dict[str, Any]:
    """A picture and its scores; one that is not finite was not measured."""
    return {
        "question": asdict(picture.question) if picture.question else None,
        "prompt": picture.prompt,
        "number": picture.number,
        "file": picture.file,
        "scores": {
            key: float(value)
            for key, value in sorted(picture.scores.items())
            if math.isfinite(value)
        },
    }


def to_picture(found: Mapping[str, Any]) -> Measured:
    """Back again."""
    asked = found["question"]
    return Measured(
        question=None
        if asked is None
        else Question(str(asked["text"]), str(asked["suite"]), str(asked["group"])),
        prompt=str(found["prompt"]),
        number=int(found["number"]),
        file=str(found["file"]),
        scores={str(key): float(value) for key, value in found["scores"].items()},
    )


def _path(written: str | None) -> Path | None:
    return None if written is None else Path(written)
