"""Which keys are named when a folder holds the run of another recipe: those that count."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from regforge.recipe import Recipe, TrainingRecipe, changed_keys, resolved_yaml


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("photos", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(name)
    return tmp_path / "photos"


def recipe_of(kind: type[Any], photos: Path, sections: dict[str, Any]) -> Any:
    subject = {"class_noun": "cat", "images": str(photos), **sections.get("subject", {})}
    return kind.model_validate({"name": "x", **sections, "subject": subject})


def differing(
    kind: type[Any], photos: Path, before: dict[str, Any], now: dict[str, Any]
) -> list[str]:
    written = yaml.safe_load(resolved_yaml(recipe_of(kind, photos, before)))
    return changed_keys(written, recipe_of(kind, photos, now))


@pytest.mark.parametrize(
    ("before", "now", "keys"),
    [
        ({}, {}, []),
        ({}, {"name": "y", "prompts": {"count": 7}, "render": {"batch_size": 2}}, []),
        ({}, {"seed": 1, "name": "y", "dataset": {"license": "mit"}}, ["seed"]),
        ({"render": {"steps": 4}}, {}, ["render.steps"]),
        ({}, {"prompts": {"slots": ["color"], "count": 7}}, ["prompts.slots"]),
        ({}, {"prompts": {"sets": {"import": 1}, "import": {"dataset": "me/cats"}}}, None),
        # The digest has it under the name of another key, and of nobody's photos.
        ({}, {"subject": {"class_noun": "dog"}}, ["subject.class_noun"]),
        ({}, {"subject": {"kind": "living"}}, []),
        ({}, {"subject": {"captions": "auto"}, "seed": 1}, ["seed"]),
        ({"prompts": {"sets": {"against": 1}}}, {"prompts": {"sets": {"against": 2}}}, []),
    ],
)
def test_of_a_dataset_recipe(
    photos: Path, before: dict[str, Any], now: dict[str, Any], keys: list[str] | None
) -> None:
    found = differing(Recipe, photos, before, now)
    if keys is None:
        assert "prompts.import.dataset" in found
        assert {key.rpartition(".")[0] for key in found} == {"prompts.sets", "prompts.import"}
    else:
        assert found == keys


@pytest.mark.parametrize(
    ("before", "now", "keys"),
    [
        ({}, {"name": "y", "validation": {"every": 7}, "optimizer": {"steps": 5}}, []),
        ({}, {"seed": 1, "optimizer": {"steps": 5}}, ["seed"]),
        (
            {"optimizer": {"scheduler": "cosine"}},
            {"optimizer": {"scheduler": "cosine", "steps": 5, "ema_decay": 0.5}},
            ["optimizer.steps"],
        ),
        (
            {},
            {"regularization": {"dataset": "me/cats", "per_instance": 2}},
            ["regularization.dataset", "regularization.per_instance"],
        ),
        ({}, {"regularization": {"per_instance": 2}, "base_model": "a/b"}, ["base_model"]),
        ({}, {"method": {"kind": "full", "rank": 4}}, ["method.kind", "method.rank"]),
    ],
)
def test_of_a_training_recipe(
    photos: Path, before: dict[str, Any], now: dict[str, Any], keys: list[str]
) -> None:
    assert differing(TrainingRecipe, photos, before, now) == keys


def test_other_photos_are_named_and_changed_ones_are_not(photos: Path) -> None:
    others = {"subject": {"images": str(photos.with_name("others"))}}
    assert differing(TrainingRecipe, photos, others, {}) == ["subject.images"]
    assert differing(TrainingRecipe, photos, {}, {}) == []


def test_when_photos_of_then_are_gone_every_key_that_differs_is_named(photos: Path) -> None:
    before = {"name": "x", "subject": {"class_noun": "cat", "images": str(photos / "gone")}}
    now = TrainingRecipe.model_validate(
        {"name": "y", "subject": {"class_noun": "cat", "images": str(photos)}}
    )
    known = {**yaml.safe_load(resolved_yaml(now)), **before}
    assert "subject.images" in changed_keys(known, now)


def test_a_file_of_another_version_or_kind_is_no_traceback(photos: Path) -> None:
    now = Recipe.model_validate({"name": "y", "subject": {"class_noun": "cat"}})
    known = yaml.safe_load(resolved_yaml(now))
    assert changed_keys({**known, "novelty": {"a": 1}, "seed": 1}, now) == ["seed", "novelty.a"]
    for nonsense in (None, [], "x"):
        assert "seed" in changed_keys(nonsense, now)
