"""What is probably not meant in recipes of both kinds: said once each, and never of usual ones."""

from pathlib import Path
from typing import Any

import pytest

from regforge.recipe import Recipe, TrainingRecipe, recipe_warnings

OF_DATASETS: list[tuple[dict[str, Any], str]] = [
    ({"dataset": {}}, "dataset.license is left out"),
    ({"subject": {"class_noun": "cat", "identifier": "Dog"}}, "'Dog' is an ordinary word"),
    ({"subject": {"class_noun": "cat", "identifier": "my"}}, "'my' is an ordinary word"),
    ({"prompts": {"sets": {"against": 1}}}, "subject.identifier is left out"),
    ({"prompts": {"match": ["size"]}}, "prompts.match has no effect"),
    (
        {
            "prompts": {"sets": {"captions": 1}},
            "subject": {"class_noun": "cat", "identifier": "sks"},
        },
        "Set render.width and render.height",
    ),
    (
        {"subject": {"class_noun": "cat", "captions": "write"}},
        "subject.captions: write has no effect",
    ),
    (
        {
            "prompts": {"sets": {"against": 1}, "match": ["seed"]},
            "subject": {"class_noun": "cat", "identifier": "sks"},
            "render": {"images_per_prompt": 2},
        },
        "only the first image of each caption gets the photo's seed",
    ),
    (
        {"prompts": {"slots": [{"name": "style", "values": ["a  Photo of", "a photo of"]}]}},
        "slot 'style' lists 'a photo of' more than once",
    ),
    ({"subject": {"class_noun": "skyscraper"}}, "has never seen a skyscraper"),
    ({"render": {"negative_prompt": "blurry", "guidance_scale": 1}}, "has no effect"),
    (
        {"render": {"model": "some/model"}, "curate": {"alignment": {}}},
        "embedded/judge knows only images of embedded/tinyworld",
    ),
    ({"render": {"model": "some/model", "trust_remote_code": True}}, "runs code"),
    ({"render": {"model": "some/model", "speed": "fast"}}, "measured with embedded/tinyworld"),
    ({"render": {"model": "some/FLUX.1-dev", "speed": "fast"}}, "does not go with a FluxPipeline"),
    ({"render": {"model": "some/FLUX.1-dev", "cache_interval": 2}}, "measured with embedded/tinyw"),
    ({"render": {"speed": "fast", "scheduler": "euler_ancestral"}}, "an ancestral scheduler"),
    ({"render": {"cache_interval": 3, "steps": 12}}, "only 4 of 12 steps are computed whole"),
    ({"render": {"guidance_window": [0.3, 1], "guidance_scale": 1}}, "has no effect"),
    ({"render": {"offload": "group", "device": "cpu"}}, "render.offload has no effect"),
    ({"render": {"model": "some/model", "lora": "me/lcm-lora-sdxl"}}, "distilled for few steps"),
    ({"render": {"model": "some/sdxl-turbo"}}, "distilled for few steps"),
]
OF_TRAINING: list[tuple[dict[str, Any], str]] = [
    ({"subject": {"identifier": "Dog"}}, "'Dog' is an ordinary word"),
    ({"subject": {"identifier": "my"}}, "'my' is an ordinary word"),
    ({"subject": {"identifier": "cat"}}, "'cat' is part of the class noun"),
    ({"subject": {"identifier": "red", "class_noun": "red cat"}}, "is part of the class noun"),
    ({"subject": {"class_noun": "skyscraper"}}, "never seen a skyscraper"),
    ({"subject": {"class_noun": "skyscraper"}}, "Name another base_model"),
    ({"optimizer": {"name": "prodigy"}}, "optimizer.lr: prodigy finds the rate itself"),
    ({"optimizer": {"warmup_steps": 9, "steps": 9}}, "optimizer.warmup_steps: "),
    (
        {"method": {"kind": "full", "rank": 4, "dora": True}},
        "method.rank, method.dora have no effect with method.kind: full.",
    ),
    (
        {"method": {"text_encoder_lr": 1e-6}},
        "method.text_encoder_lr has no effect without method.text_encoder: true.",
    ),
    (
        {"regularization": {"dataset": "me/x", "prior_weight": 0, "target": "teacher"}},
        "regularization.dataset, regularization.target have no effect with "
        "regularization.prior_weight: 0.",
    ),
    (
        {"regularization": {"dataset": "me/x", "class_twins": 1}},
        "regularization.dataset has no effect with regularization.class_twins: 1.",
    ),
    (
        {
            "method": {"kind": "embedding"},
            "subject": {"identifier": {"new": "<x>"}},
            "regularization": {"drift_penalty": 0.1},
        },
        "regularization.drift_penalty has no effect with method.kind: embedding",
    ),
    (
        {"regularization": {"class_twins": 1, "per_instance": 2}},
        "regularization.class_twins: a photo has one twin",
    ),
    (
        {"regularization": {"target": "teacher"}},
        "regularization.target has no effect without regularization.dataset.",
    ),
    (
        {"data": {"crop": "center", "crop_scale": 0.5}},
        "data.crop_scale has no effect with data.crop: center.",
    ),
    ({"optimizer": {"ema_decay": 0.9}}, "optimizer.ema_decay has no effect without"),
    ({"revision": "v1"}, "revision has no effect where base_model is a folder"),
]


def training(photos: Path, count: int = 3, **content: Any) -> TrainingRecipe:
    for number in range(count):
        (photos / f"{number}.png").touch()
    subject = {"images": str(photos), "class_noun": "cat", **content.pop("subject", {})}
    return TrainingRecipe.model_validate({"name": "x", **content, "subject": subject})


@pytest.mark.parametrize(("content", "part"), OF_DATASETS)
def test_of_a_dataset_recipe(content: dict[str, Any], part: str) -> None:
    usual = {"name": "x", "subject": {"class_noun": "cat"}, "dataset": {"license": "other"}}
    (warning,) = recipe_warnings(Recipe.model_validate(usual | content))
    assert part in warning


@pytest.mark.parametrize(("content", "part"), OF_TRAINING)
def test_of_a_training_recipe(tmp_path: Path, content: dict[str, Any], part: str) -> None:
    (warning,) = recipe_warnings(training(tmp_path, **content))
    assert part in warning


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21])
def test_unusual_numbers_of_photos_are_said(tmp_path: Path, count: int) -> None:
    said = " ".join(recipe_warnings(training(tmp_path, count)))
    assert (f"has {count} photo" in said) is (count in (1, 2, 21))
    assert ("photos; 3 to 20" in said) is (count in (2, 21))


def test_nothing_is_said_of_usual_recipes(tmp_path: Path) -> None:
    for content in (
        {},
        {"regularization": {"dataset": "me/x", "target": "teacher", "prior_weight": 0.5}},
        {"method": {"kind": "full", "text_encoder": True, "text_encoder_lr": 1e-6}},
        {"data": {"crop": "none"}},
        {"optimizer": {"ema": True, "ema_decay": 0.99, "warmup_steps": 5}},
        {"base_model": "me/model", "revision": "v1", "subject": {"class_noun": "skyscraper"}},
    ):
        assert recipe_warnings(training(tmp_path, **content)) == []
