"""What the README shows is true."""

import re
from pathlib import Path

import pytest

from regforge.recipe import RecipeError, load_recipe, shares_of


def blocks(repo: Path, language: str) -> list[str]:
    text = (repo / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_its_recipe_is_sound(repo: Path, tmp_path: Path) -> None:
    (recipe,) = blocks(repo, "yaml")
    (tmp_path / "photos").mkdir()
    photo = (repo / "examples/subjects/teapot/00.png").read_bytes()
    (tmp_path / "photos" / "01.png").write_bytes(photo)
    (tmp_path / "photos" / "01.txt").write_text("a photo of a sks teapot in the snow")
    (tmp_path / "recipe.yaml").write_text(recipe)
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert shares_of(loaded) == {"against": 0.25, "amplify": 0.75}
    assert loaded.prompts.count == 2000


def test_its_error_is_the_one_that_comes(repo: Path, tmp_path: Path) -> None:
    lines = (repo / "README.md").read_text(encoding="utf-8").splitlines()
    wanted = next(line for line in lines if "did you mean" in line)
    recipe = ["name: x", "subject: {class_noun: cat}", "prompts:", "  conut: 5"]
    (tmp_path / "recipe.yaml").write_text("\n".join(["#"] * 8 + recipe))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value).splitlines()[0].endswith(wanted)


def test_its_images_and_pages_are_there(repo: Path) -> None:
    text = (repo / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (repo / target).exists(), target
