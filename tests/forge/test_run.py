"""A recipe becomes a dataset, through the Python door."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import WriteRecipe, fingerprint, quietly, rows_of

import regforge
from regforge.errors import RegforgeError
from regforge.forge.plan import make_plan
from regforge.recipe import Recipe, load_recipe
from regforge.records import image_seed


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=np.int16)


def test_a_run_makes_what_the_recipe_says(small: Recipe, tmp_path: Path) -> None:
    done = regforge.run(small, out=tmp_path / "run")
    rows = rows_of(done)
    assert [row.index for row in rows] == list(range(10))
    assert Counter(row.prompt_set for row in rows) in (
        {"against": 3, "amplify": 7},
        {"against": 2, "amplify": 8},
    )
    for row in rows:
        assert "sks" not in row.text
        assert "cat" in row.text
        assert all(not phrase or phrase in row.text for phrase in row.slots.values())
        assert row.seed == image_seed(row.recipe_digest, row.index)
        assert pixels(row.image).shape == (96, 96, 3)
        assert row.model == "embedded/tinyworld"
    assert done.images == 10
    assert done.cost == 0.0
    for made in (done.report, done.grid, done.dataset_folder / "README.md", done.recipe):
        assert made.stat().st_size > 100


@pytest.mark.slow
def test_a_plan_rows_and_card_say_what_steps_leave_out(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    short = {"cache_interval": 2, "guidance_window": [0.5, 1]}
    recipe = load_recipe(write_recipe(render=short))
    assert "cache interval 2, guidance window 0.5-1" in make_plan(recipe).as_text()
    done = quietly(recipe, tmp_path / "run", limit=2)
    said = "DDIMScheduler, cache interval 2, guidance window 0.5-1"
    assert {row.scheduler for row in rows_of(done)} == {said}
    assert said in (done.dataset_folder / "README.md").read_text()


@pytest.mark.slow
def test_stage_by_stage_and_elsewhere_it_is_the_same(small: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert quietly(small, out, until="prompts").prompts == 10
    assert not (out / "shards").exists()
    quietly(small, out, until="images")
    assert not (out / "dataset").exists()
    assert quietly(small, out).images == 10
    before = fingerprint(out)
    assert fingerprint(quietly(small, out).folder) == before
    assert fingerprint(quietly(small, tmp_path / "other").folder) == before
    vocabulary = out / "vocabulary.json"
    vocabulary.write_text(vocabulary.read_text().replace('"on a beach"', '"on a road"'))
    texts = " ".join(row.text for row in rows_of(quietly(small, out)))
    assert "on a road" in texts
    assert "on a beach" not in texts


@pytest.mark.slow
def test_the_batch_size_changes_hardly_a_pixel(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    found = {}
    for size in (1, 8):
        recipe = load_recipe(write_recipe(render={"batch_size": size}))
        found[size] = rows_of(quietly(recipe, tmp_path / str(size)))
    for one, eight in zip(found[1], found[8], strict=True):
        assert (one.id, one.text, one.seed) == (eight.id, eight.text, eight.seed)
        assert np.abs(pixels(one.image) - pixels(eight.image)).max() <= 2  # of 255


@pytest.mark.slow
def test_images_are_added_several_for_a_prompt(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    twice = {"images_per_prompt": 2}
    few = rows_of(quietly(load_recipe(write_recipe(render=twice)), tmp_path / "run", limit=2))
    recipe = load_recipe(write_recipe(prompts={"count": 6}, render=twice))
    many = rows_of(quietly(recipe, tmp_path / "run"))
    assert [row.index for row in many] == list(range(12))
    assert many[:4] == few
    assert [a.text for a in many[::2]] == [b.text for b in many[1::2]]
    assert len({row.seed for row in many}) == 12


@pytest.mark.slow
def test_refused_images_are_drawn_anew(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    # After one step all images are much the same blur.
    recipe = load_recipe(
        write_recipe(render={"steps": 1, "max_attempts": 3}, curate={"max_duplicate_distance": 13})
    )
    done = quietly(recipe, tmp_path / "run")
    rows = rows_of(done)
    assert len(rows) == 10
    assert done.rejected > 0
    assert rows[-1].index > 9, "further prompts stand in for those given up"
    assert any(row.seed != image_seed(row.recipe_digest, row.index) for row in rows)
    ledger = [json.loads(line) for line in (done.folder / "ledger.jsonl").open()]
    refusals = [each["reason"] for each in ledger if each["stage"] == "images"]
    assert len(refusals) > done.rejected
    assert all("looks like image" in reason for reason in refusals)


@pytest.mark.slow
def test_a_recipe_that_refuses_all_says_why(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(
            prompts={"count": 2, "sets": {"naive": 1}},
            render={"steps": 1, "max_attempts": 1},
            curate={"max_duplicate_distance": 32},
        )
    )
    with pytest.raises(RegforgeError, match=r"Only \d of 2 images were good enough"):
        quietly(recipe, tmp_path / "run")


@pytest.mark.slow
def test_naive_captions_are_all_the_same(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(prompts={"count": 3, "sets": {"naive": 1}}))
    rows = rows_of(quietly(recipe, tmp_path / "run"))
    assert {row.text for row in rows} == {"a photo of a cat"}
    assert len({row.image_digest for row in rows}) == 3


def test_a_folder_keeps_to_its_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quietly(load_recipe(write_recipe()), out, until="prompts")
    other = load_recipe(write_recipe(seed=5, name="other", prompts={"count": 7}))
    with pytest.raises(RegforgeError, match=r"run of another recipe\. Changed: seed\.") as caught:
        quietly(other, out)
    assert caught.value.exit_code == 2
    quietly(other, out, fresh=True, until="prompts")
