"""What training recipes mean: their digest, and the resolved copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regforge.recipe import (
    RecipeError,
    TrainingRecipe,
    load_training_recipe,
    recipe_digest,
    recipe_warnings,
    resolved_yaml,
    uses_regularization,
)
from regforge.recipe.digest import is_runtime

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its files anew


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"photo %d" % number)
        (folder / f"{number}.txt").write_text(f"a photo of a sks cat {number}")
    return folder


def recipe_of(photos: Path, **content: Any) -> TrainingRecipe:
    subject = {"images": str(photos), "class_noun": "cat", **content.pop("subject", {})}
    return TrainingRecipe.model_validate({"name": "x", **content, "subject": subject})


@pytest.mark.parametrize(
    "content",
    [
        {"name": "y"},
        {"tracking": "wandb"},
        {"device": "cpu"},
        {"validation": {"prompts": ["a cat"], "every": 7, "steps": 8, "guidance_scale": 1}},
        {"checkpoint": {"every": 7, "keep": 1, "resume": "never", "snapshots": (5, 10)}},
        {"data": {"cache": "disk"}},
        {"optimizer": {"gradient_checkpointing": True, "compile": True}},
        # Defaults, written down
        {"method": {"alpha": 16}},
        {"data": {"crop": "random"}, "base_model": "embedded/tinyworld"},
        # Without effect
        {"regularization": {"dataset": "me/x", "prior_weight": 0}},
        {"regularization": {"prior_weight": 3, "target": "teacher"}},
        {"method": {"text_encoder_lr": 1e-6}},
        {"optimizer": {"ema_decay": 0.5}},
        # More steps at a constant rate go on from where it ended
        {"optimizer": {"steps": 7}},
    ],
    ids=str,
)
def test_what_changes_no_training_changes_no_digest(photos: Path, content: dict[str, Any]) -> None:
    assert recipe_digest(recipe_of(photos, **content)) == recipe_digest(recipe_of(photos))


CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"base_model": "me/model"},
    {"revision": "v1"},
    {"config": "some/config"},
    {"variant": "fp16"},
    {"subject": {"identifier": "zwx"}},
    {"subject": {"class_noun": "dog"}},
    {"subject": {"captions": "files"}},
    {"regularization": {"dataset": "me/x"}},
    {"regularization": {"dataset": "me/x", "revision": "v1"}},
    {"regularization": {"dataset": "me/y"}},
    {"regularization": {"dataset": "me/x", "prior_weight": 0.5}},
    {"regularization": {"dataset": "me/x", "target": "teacher"}},
    {"regularization": {"dataset": "me/x", "per_instance": 2}},
    {"regularization": {"dataset": "me/x", "class_twins": 0.5}},
    {"regularization": {"class_twins": 1}},
    {"regularization": {"drift_penalty": 0.1}},
    {"regularization": {"dataset": "me/x", "drift_penalty": 0.1}},
    {"regularization": {"class_twins": 1, "prior_weight": 2}},
    {"method": {"rank": 4}},
    {"method": {"rank": 4, "alpha": 16}},
    {"method": {"dropout": 0.1}},
    {"method": {"dora": True}},
    {"method": {"rslora": True}},
    {"method": {"targets": ["to_q"]}},
    {"method": {"kind": "full"}},
    {"method": {"quantize": "int8"}},
    {"method": {"text_encoder": True}},
    {"method": {"text_encoder": True, "text_encoder_lr": 1e-6}},
    {"data": {"resolution": 64}},
    {"data": {"crop": "center"}},
    {"data": {"crop_scale": 0.9}},
    {"data": {"crop_wording": False}},
    {"data": {"crops_per_image": 2}},
    {"data": {"caption_dropout": 0}},
    {"data": {"slot_dropout": 0}},
    {"data": {"flip": True}},
    {"optimizer": {"name": "prodigy"}},
    {"optimizer": {"lr": 1e-3}},
    {"optimizer": {"batch_size": 2}},
    {"optimizer": {"gradient_accumulation": 2}},
    {"optimizer": {"scheduler": "cosine"}},
    {"optimizer": {"scheduler": "cosine", "steps": 7}},
    {"optimizer": {"warmup_steps": 5}},
    {"optimizer": {"warmup_steps": 5, "steps": 4}},
    {"optimizer": {"weight_decay": 0}},
    {"optimizer": {"betas": [0.9, 0.99]}},
    {"optimizer": {"max_grad_norm": None}},
    {"optimizer": {"precision": "fp32"}},
    {"optimizer": {"min_snr_gamma": 5}},
    {"optimizer": {"timestep_sampling": "uniform"}},
    {"optimizer": {"ema": True}},
    {"optimizer": {"ema": True, "ema_decay": 0.5}},
]


def test_what_changes_the_training_changes_the_digest(photos: Path) -> None:
    recipes = [{}, *CHANGES]
    digests = {recipe_digest(recipe_of(photos, **content)): content for content in recipes}
    assert [each for each in recipes if each not in digests.values()] == []
    assert all(len(digest) == 64 for digest in digests)


def test_no_key_that_changes_the_training_was_forgotten_above() -> None:
    covered = {
        (section, key) if isinstance(value, dict) else (section,)
        for change in CHANGES
        for section, value in change.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    expected = set()
    for name, field in TrainingRecipe.model_fields.items():
        below = getattr(field.annotation, "model_fields", None)
        if below is None and not is_runtime(field):
            expected.add((name,))
        for key, each in (below or {}).items():
            if not is_runtime(each):
                expected.add((name, key))
    assert expected - covered == {("version",), ("subject", "images")}


def test_photos_and_captions_count_and_their_place_does_not(photos: Path, tmp_path: Path) -> None:
    before = recipe_digest(recipe_of(photos))
    moved = Path(shutil.copytree(photos, tmp_path / "elsewhere/images"))
    assert recipe_digest(recipe_of(moved)) == before
    (moved / "1.txt").write_text("a painting of a sks cat")
    captioned = recipe_digest(recipe_of(moved))
    (moved / "1.png").write_bytes(b"another")
    shown = recipe_digest(recipe_of(moved))
    (moved / "notes.md").write_text("nobody reads this")
    assert len({before, captioned, shown, recipe_digest(recipe_of(moved))}) == 3
    (moved / "2.png").unlink()
    assert recipe_digest(recipe_of(moved)) not in (before, captioned, shown)
    shutil.rmtree(moved)
    with pytest.raises(RecipeError, match=r"subject\.images: .*images cannot be read"):
        recipe_digest(recipe_of(moved))


def test_models_and_datasets_count_by_name_however_written(photos: Path, tmp_path: Path) -> None:
    def digest(folder: str, model: str = "sd", dataset: str = "reg") -> str:
        where = {"dataset": str(tmp_path / folder / dataset)}
        model = str(tmp_path / folder / model)
        return recipe_digest(recipe_of(photos, base_model=model, regularization=where))

    assert digest("a") == digest("b")
    assert len({digest("a"), digest("a", model="xl"), digest("a", dataset="other")}) == 3
    one = recipe_of(photos, regularization={"dataset": "me/x@v1"})
    other = recipe_of(photos, regularization={"dataset": "me/x", "revision": "v1"})
    assert recipe_digest(one) == recipe_digest(other)


def test_the_digest_of_a_known_recipe(photos: Path) -> None:
    # If this changes, so must recipe_digest.SCHEME: all checkpoints are void then.
    # (What the embedded model holds is in it too.)
    assert recipe_digest(recipe_of(photos, base_model="some/model")) == (
        "5aba533034951da5fb743a64677d5e63b4facab13416ec782a3278d9bc7214fe"
    )


@pytest.mark.slow
@given(
    content=st.fixed_dictionaries(
        {"seed": st.integers(0, 2**63 - 1)},
        optional={
            "method": st.fixed_dictionaries(
                {"rank": st.integers(1, 1024), "targets": st.just(["to_q", "yes", "1e-4"])}
            ),
            "optimizer": st.fixed_dictionaries(
                {
                    "lr": st.floats(1e-9, 10),
                    "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
                    "max_grad_norm": st.none() | st.floats(1e-3, 10),
                }
            ),
            "regularization": st.fixed_dictionaries(
                {"dataset": st.sampled_from(["me/x", "me/x@v1"]), "prior_weight": st.floats(0, 9)}
            ),
            "validation": st.fixed_dictionaries(
                {"prompts": st.lists(st.text(st.characters(exclude_categories=["Cs"])))}
            ),
        },
    )
)
@settings(max_examples=25, suppress_health_check=[SHARED_FOLDER])
def test_the_resolved_recipe_is_the_same_recipe(photos: Path, content: dict[str, Any]) -> None:
    recipe = recipe_of(photos, **content)
    path = photos.parent / "resolved.yaml"
    text = resolved_yaml(recipe)
    path.write_text(text, encoding="utf-8", newline="")
    again = load_training_recipe(path)
    assert again == recipe
    assert f"# digest: {recipe_digest(recipe)}" in text.splitlines()
    assert resolved_yaml(again) == text
    assert recipe_warnings(again) == recipe_warnings(recipe)


def test_a_portable_recipe_tells_nobody_where_it_lay(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home-of-jane"
    content = {
        "base_model": str(home / "models/sdxl"),
        "regularization": {"dataset": str(home / "runs/reg")},
    }
    moved = Path(shutil.copytree(photos, home / "photos"))
    recipe = recipe_of(moved, **content)
    text = resolved_yaml(recipe, portable=True)
    assert "home-of-jane" not in text
    shown = yaml.safe_load(text)
    assert shown["base_model"] == "sdxl"
    assert shown["regularization"]["dataset"] == "reg"
    assert shown["subject"]["images"] == "photos"
    assert f"# digest: {recipe_digest(recipe)}" in text.splitlines()
    assert "home-of-jane" in resolved_yaml(recipe)
    on_hub = recipe_of(moved, regularization={"dataset": "me/x"}, base_model="me/model")
    shown = yaml.safe_load(resolved_yaml(on_hub, portable=True))
    assert (shown["base_model"], shown["regularization"]["dataset"]) == ("me/model", "me/x")


def test_regularization_needs_a_dataset_and_a_weight(photos: Path) -> None:
    assert not uses_regularization(recipe_of(photos))
    for weight in (0, 0.5):
        named = {"dataset": "me/x", "prior_weight": weight}
        assert uses_regularization(recipe_of(photos, regularization=named)) is (weight > 0)
