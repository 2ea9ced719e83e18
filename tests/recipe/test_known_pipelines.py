"""What is known of a model before it is loaded: how it is drawn with, whether it can be trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from regforge.recipe import (
    Recipe,
    RecipeError,
    TrainingRecipe,
    load_recipe,
    load_training_recipe,
    recipe_digest,
    recipe_warnings,
    resolved_yaml,
)
from regforge.recipe.pipelines import FAMILIES, NAMED, TRAINABLE, Family, family_of, likely_class

SHA = "0" * 40

BY_NAME = [
    ("stabilityai/stable-diffusion-xl-base-1.0", (30, 5.0)),
    ("me/flux-style-dreams", (30, 5.0)),
    ("stabilityai/sdxl-turbo", (4, 1.0)),
    ("stabilityai/sd-turbo", (4, 1.0)),
    ("stabilityai/stable-diffusion-3.5-large", (30, 5.0)),
    ("stabilityai/stable-diffusion-3.5-large-turbo", (4, 1.0)),
    ("me/Nice-XL-Lightning", (4, 1.0)),
    ("SimianLuo/LCM_Dreamshaper_v7", (4, 8.0)),
    ("black-forest-labs/FLUX.1-schnell", (4, 1.0)),
    ("black-forest-labs/FLUX.1-dev", (28, 3.5)),
    ("black-forest-labs/FLUX.2-klein-4B", (4, 1.0)),
    ("black-forest-labs/FLUX.2-klein-base-4B", (30, 5.0)),
    ("Tongyi-MAI/Z-Image-Turbo", (9, 1.0)),
    ("Tongyi-MAI/Z-Image", (30, 5.0)),
    ("baidu/ERNIE-Image-Turbo", (8, 1.0)),
    ("black-forest-labs/FLUX.2-dev", (28, 4.0)),
    ("me/flux-dev-of-mine", (28, 3.5)),
    ("ostris/Z-Image-De-Turbo", (30, 5.0)),
    ("HiDream-ai/HiDream-I1-Dev", (28, 1.0)),
    ("HiDream-ai/HiDream-I1-Fast", (16, 1.0)),
    ("hunyuanvideo-community/HunyuanImage-2.1-Distilled-Diffusers", (8, 3.25)),
    ("me/hyperrealistic-xl", (30, 5.0)),
    ("embedded/tinyworld", (30, 5.0)),
]


def pipeline(folder: Path, kind: str, **parts: Mapping[str, Any]) -> str:
    """A pipeline's folder without weights; `index` is more of its model_index.json."""
    index = {"_class_name": kind, **parts.pop("index", {})}
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, config in parts.items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    return str(folder)


def recipe(model: str, **render: Any) -> Recipe:
    content = {"name": "x", "subject": {"class_noun": "cat"}, "prompts": {"sets": {"naive": 1}}}
    return Recipe.model_validate({**content, "render": {"model": model, **render}})


def drawn_with(made: Recipe) -> tuple[int, float]:
    return made.render.steps, made.render.guidance_scale


@pytest.mark.parametrize(("model", "usual"), BY_NAME)
def test_a_model_is_drawn_with_as_its_name_says(model: str, usual: tuple[int, float]) -> None:
    assert drawn_with(recipe(model)) == usual
    assert drawn_with(recipe(model, steps=9)) == (9, usual[1])
    assert drawn_with(recipe(model, guidance_scale=2)) == (usual[0], 2)
    assert drawn_with(recipe(model, renderer="hosted")) == (30, 5.0), "a service is told neither"


EULER = {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("kind", "parts", "usual"),
    [
        ("StableDiffusionXLPipeline", {"scheduler": EULER}, (30, 5.0)),
        (
            "StableDiffusionXLPipeline",
            {"scheduler": {**EULER, "timestep_spacing": "trailing"}},
            (4, 1.0),
        ),
        (
            "StableDiffusionXLPipeline",
            {
                "scheduler": {
                    **EULER,
                    "timestep_spacing": "trailing",
                    "prediction_type": "v_prediction",
                    "rescale_betas_zero_snr": True,
                }
            },
            (30, 5.0),
        ),
        ("StableDiffusionPipeline", {"scheduler": {"_class_name": "LCMScheduler"}}, (4, 1.0)),
        (
            "StableDiffusionXLPipeline",
            {"scheduler": {"_class_name": "LCMScheduler"}, "unet": {"time_cond_proj_dim": 256}},
            (4, 8.0),
        ),
        ("LatentConsistencyModelPipeline", {}, (4, 8.0)),
        ("FluxPipeline", {"transformer": {"guidance_embeds": False}}, (4, 1.0)),
        ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, (28, 3.5)),
        ("Flux2KleinPipeline", {"index": {"is_distilled": True}}, (4, 1.0)),
        ("Flux2KleinPipeline", {"index": {"is_distilled": False}}, (30, 5.0)),
        ("Krea2Pipeline", {"index": {"is_distilled": True}}, (8, 1.0)),
        ("HunyuanImagePipeline", {"transformer": {"guidance_embeds": True}}, (8, 3.25)),
        ("QwenImage21Pipeline", {"scheduler": FLOW}, (40, 1.0)),
        ("ZImagePipeline", {"scheduler": FLOW}, (30, 5.0)),
    ],
)
def test_a_folder_is_drawn_with_as_its_files_say(
    kind: str, parts: dict[str, Any], usual: tuple[int, float], tmp_path: Path
) -> None:
    folder = pipeline(tmp_path / "sdxl-turbo", kind, **parts)  # its name does not count
    assert drawn_with(recipe(folder)) == usual


def test_what_a_model_is_made_for_is_in_digest_and_resolved_copy(tmp_path: Path) -> None:
    file, turbo = tmp_path / "recipe.yaml", "stabilityai/sdxl-turbo"
    content = recipe(turbo).model_dump(mode="json", include={"name", "subject"})
    file.write_text(yaml.safe_dump(content | {"render": {"model": turbo}}))
    left_out = load_recipe(file)
    spelled = load_recipe(file, ["render.steps=4", "render.guidance_scale=1"])
    assert recipe_digest(left_out) == recipe_digest(spelled)
    assert recipe_digest(left_out) != recipe_digest(load_recipe(file, ["render.steps=30"]))
    assert yaml.safe_load(resolved_yaml(left_out))["render"]["steps"] == 4
    base = load_recipe(file, ["render.model=stabilityai/stable-diffusion-xl-base-1.0"])
    assert drawn_with(base) == (30, 5.0)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"steps": 30, "guidance_scale": 5}, True),
        ({"steps": 4, "guidance_scale": 5}, True),
        ({"steps": 30, "guidance_scale": 1}, True),
        ({"steps": 8, "guidance_scale": 0}, False),
        ({}, False),
    ],
)
def test_settings_that_a_distilled_model_was_not_made_for_are_told(
    settings: dict[str, Any], warned: bool, tmp_path: Path
) -> None:
    told = [
        "made for 4 steps, no guidance" in each
        for each in recipe_warnings(recipe("a/sdxl-turbo", **settings))
    ]
    assert any(told) == warned
    # Of a folder that does not say what it is, the name is a reason to ask.
    folder = pipeline(tmp_path / "sdxl-turbo", "StableDiffusionXLPipeline")
    if "steps" in settings:
        told = [each for each in recipe_warnings(recipe(folder, **settings)) if "made for" in each]
        assert bool(told) == warned


# --------------------------------------------------------------------------------------- training


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training recipe, and an empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"a photo")
    content = {"name": "x", "subject": {"class_noun": "cat", "images": "photos"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def loaded(training: Path, model: str) -> TrainingRecipe:
    return load_training_recipe(training, [f"base_model={model}"])


def in_cache(hub: Path, repository: str, kind: str) -> None:
    folder = hub / f"models--{repository.replace('/', '--')}"
    pipeline(folder / "snapshots" / SHA, kind)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)


@pytest.mark.parametrize(
    ("kind", "trains"),
    [("KolorsPipeline", False), ("ZImagePipeline", True), ("StableDiffusionXLPipeline", True)],
)
def test_a_base_model_in_the_cache_is_looked_at(
    kind: str, trains: bool, training: Path, tmp_path: Path
) -> None:
    assert not recipe_warnings_about(loaded(training, "me/mine"))
    in_cache(tmp_path / "hub", "me/mine", kind)
    if trains:
        assert not recipe_warnings_about(loaded(training, "me/mine"))
        return
    with pytest.raises(RecipeError, match=kind) as error:
        loaded(training, "me/mine")
    assert [problem.key for problem in error.value.problems] == ["base_model"]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("ZImagePipeline", "method.text_encoder", "true"),
        ("StableDiffusion3Pipeline", "optimizer.min_snr_gamma", "5"),
        ("FluxPipeline", "optimizer.min_snr_gamma", "5"),
        ("StableDiffusionXLPipeline", "optimizer.timestep_sampling", "uniform"),
        ("FluxPipeline", "method.text_encoder", None),
    ],
)
def test_what_a_kind_of_model_cannot_do_is_said_by_check(
    kind: str, key: str, value: str | None, training: Path, tmp_path: Path
) -> None:
    in_cache(tmp_path / "hub", "me/mine", kind)
    wanted = ["base_model=me/mine", f"{key}={value or 'true'}"]
    if value is None:
        load_training_recipe(training, wanted)
        return
    with pytest.raises(RecipeError) as error:
        load_training_recipe(training, wanted)
    assert [problem.key for problem in error.value.problems] == [key]


def recipe_warnings_about(made: TrainingRecipe) -> list[str]:
    return [each for each in recipe_warnings(made) if each.startswith(("base_model", "validation"))]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("black-forest-labs/FLUX.1-dev", "FluxPipeline"),
        ("black-forest-labs/FLUX.2-dev", "Flux2Pipeline"),
        ("Qwen/Qwen-Image", "QwenImagePipeline"),
        ("Tongyi-MAI/Z-Image", "ZImagePipeline"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "StableDiffusion3Pipeline"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline"),
        ("Kwai-Kolors/Kolors-diffusers", "KolorsPipeline"),
        ("me/my-style", None),
    ],
)
def test_a_name_that_promises_nothing_trainable_is_told(
    model: str, kind: str | None, training: Path
) -> None:
    assert likely_class(model) == kind
    told = recipe_warnings_about(loaded(training, model))
    assert any(str(kind) in each for each in told) == (kind is not None and kind not in TRAINABLE)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_recipes_and_exports_know_a_model_alike(family: Family, training: Path) -> None:
    """Of steps and guidance as of the class, and whether it is distilled."""
    model, made_for = family.repository, family.made_for
    assert family_of(model) is family
    assert likely_class(model) == family.pipeline
    as_made = family.distilled or family.drawn_so
    assert drawn_with(recipe(model)) == (made_for if as_made else (30, 5.0))
    told = [each for each in recipe_warnings_about(loaded(training, model)) if "distilled" in each]
    assert bool(told) == family.distilled
    if family.distilled and family.like:  # what to train in its place
        assert NAMED[family.like].repository in told[0]
        assert family.adapter in told[0]


def test_a_distilled_base_model_is_told_and_validated_as_it_is_made(training: Path) -> None:
    turbo = loaded(training, "stabilityai/sdxl-turbo")
    assert (turbo.validation.steps, turbo.validation.guidance_scale) == (4, 1.0)
    assert [each for each in recipe_warnings_about(turbo) if "distilled" in each]
    wrong = load_training_recipe(
        training, ["base_model=stabilityai/sdxl-turbo", "validation.guidance_scale=5"]
    )
    assert [each for each in recipe_warnings_about(wrong) if each.startswith("validation")]
    base = loaded(training, "stabilityai/stable-diffusion-xl-base-1.0")
    assert (base.validation.steps, base.validation.guidance_scale) == (25, 5.0)
    assert not recipe_warnings_about(base)
