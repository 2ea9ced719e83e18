"""Recipes over several subjects: each is the recipe that it would be by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from regforge.recipe import (
    RecipeError,
    TrainingRecipe,
    dataset_recipe_of,
    load_recipe,
    load_recipes,
    recipe_digest,
)

SLOTS = [{"name": "color", "values": ["red", "blue", "green"]}]
SHARED: dict[str, Any] = {"prompts": {"count": 4, "sets": {"amplify": 1}, "slots": SLOTS}}
CAT, POT = {"class_noun": "cat"}, {"class_noun": "tea set", "kind": "object"}


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_each_is_the_recipe_of_that_subject_alone(tmp_path: Path) -> None:
    several = load_recipes(
        write(
            tmp_path / "many.yaml",
            name="many",
            subject={"identifier": "ohwx"},
            subjects=[CAT, {"name": "pot", **POT}],
            dataset={"repo_id": "me/{subject}-reg"},
            **SHARED,
        ),
        ["prompts.count=7"],
    )
    assert list(several) == ["cat", "pot"]
    assert [each.folder for each in several.values()] == [
        Path("runs/many/cat"),
        Path("runs/many/pot"),
    ]
    for name, subject in (("cat", CAT), ("pot", POT)):
        alone = load_recipe(
            write(
                tmp_path / "one.yaml",
                name=f"many-{name}",
                subject={"identifier": "ohwx", **subject},
                dataset={"repo_id": f"me/{name}-reg"},
                **SHARED,
            ),
            ["prompts.count=7"],
        )
        assert several[name] == alone
        assert recipe_digest(several[name]) == recipe_digest(alone)
        assert load_recipes(tmp_path / "many.yaml", ["prompts.count=7"], [name]) == {name: alone}


def test_counts(tmp_path: Path) -> None:
    recipe = {"name": "a", "subjects": [CAT | {"count": 9}, POT]}
    for more, counts in (
        ((), [9, 4]),
        (["prompts.count=5"], [5, 5]),
        (["subjects.1.count=3"], [9, 3]),
    ):
        several = load_recipes(write(tmp_path / "a.yaml", **recipe, **SHARED), more)
        assert [each.prompts.count for each in several.values()] == counts


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name in ("red_cat2", "pot", ".hidden"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / name / "1.png")
    (tmp_path / "photos" / "list.txt").write_text("no subject")
    said = {"class_noun": "teapot", "identifier": "sks", "kind": "object", "drawing": "x"}
    (tmp_path / "photos" / "pot" / "subject.json").write_text(json.dumps(said))
    several = load_recipes(write(tmp_path / "a.yaml", name="a", subjects="photos", **SHARED))
    assert {name: each.subject.class_noun for name, each in several.items()} == {
        "pot": "teapot",
        "red_cat2": "red cat",
    }
    assert several["pot"].subject.identifier == "sks"
    assert several["pot"].subject.images == tmp_path / "photos" / "pot"


def test_names_are_told_apart_by_their_letters(tmp_path: Path) -> None:
    subjects = [{"name": "K\u00e4the", **CAT}, {"name": "../b c", **POT}]
    path = write(tmp_path / "a.yaml", name="a", subjects=subjects, **SHARED)
    assert list(load_recipes(path)) == ["Kathe", "b-c"]
    assert list(load_recipes(path, (), ["Ka\u0308the"])) == ["Kathe"]


def test_what_is_wrong_in_a_folder_names_it(tmp_path: Path) -> None:
    for name in ("cat", "my_dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / name / "1.png")
    path = write(tmp_path / "a.yaml", name="a", subjects="photos", **SHARED)
    said = tmp_path / "photos/my_dog/subject.json"
    for content in (None, '{"class_noun": "dog"', "[]"):
        if content is not None:
            said.write_text(content)
        with pytest.raises(RecipeError) as raised:
            load_recipes(path)
        assert [problem.file for problem in raised.value.problems] == [str(said)]


def test_what_is_extended_gives_no_subject_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "one.yaml", name="a", subject={"class_noun": "dog", "kind": "living"})
    write(tmp_path / "many.yaml", extends="one.yaml", subjects=[POT], **SHARED)
    assert load_recipes(tmp_path / "many.yaml")["tea-set"].subject.kind == "object"
    write(tmp_path / "back.yaml", extends="many.yaml", subject={"class_noun": "owl"})
    assert load_recipe(tmp_path / "back.yaml").subject.class_noun == "owl"


@pytest.mark.parametrize(
    ("subjects", "only", "key"),
    [
        ([], [], "subjects"),
        ("photos", [], "subjects"),
        (3, [], "subjects"),
        (["cat"], [], "subjects.0"),
        ([CAT, CAT], [], "subjects"),
        ([CAT, {"class_noun": "the thing!"}], [], "subject.class_noun"),
        ([CAT, {"class_nuon": "dog"}], [], "subject.class_nuon"),
        ([{"name": ["cat"], **CAT}], [], "subjects.0"),
        ([{"class_noun": ["cat"]}], [], "subjects.0"),
        ([CAT], ["dog"], "subjects"),
        ([{**CAT, "images": "a/b"}, {**POT, "images": "a/c"}], [], "subjects"),
        ([{**CAT, "images": "a/b"}, {**POT, "images": "a/c"}], ["c"], "subject.images"),
    ],
)
def test_what_is_wrong_is_named(
    subjects: object, only: list[str], key: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.yaml", name="a", subjects=subjects, **SHARED)
    with pytest.raises(RecipeError) as raised:
        load_recipes(path, (), only)
    assert key in [problem.key for problem in raised.value.problems]
    assert raised.value.exit_code == 2
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_a_training_takes_the_dataset_of_its_subject(tmp_path: Path) -> None:
    for name in ("cat", "pot"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    subjects = [{**CAT, "images": "cat", "count": 3}, {**POT, "images": "pot"}]
    write(tmp_path / "reg.yaml", name="reg", subjects=subjects, **SHARED)
    recipes = load_recipes(
        write(
            tmp_path / "train.yaml",
            name="t",
            base_model="embedded/tinyworld",
            subject={"identifier": "ohwx"},
            subjects=subjects,
            regularization={"dataset": "reg.yaml"},
        )
    )
    for name, recipe in recipes.items():
        assert isinstance(recipe, TrainingRecipe)
        made_by = dataset_recipe_of(recipe)
        assert made_by is not None
        assert (made_by.name, made_by.folder) == (f"reg-{name}", Path("runs/reg") / name)
    write(tmp_path / "reg.yaml", name="reg", subjects=subjects[:1], **SHARED)
    with pytest.raises(RecipeError, match="pot"):
        load_recipes(tmp_path / "train.yaml")
