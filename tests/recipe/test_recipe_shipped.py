"""The recipes that regforge brings along or writes: each is sound, and says what it should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from evaluation.trained_models import lora
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shell import Shell

from regforge.embedded import load_vocabulary
from regforge.files import recipes_folder
from regforge.recipe import (
    Recipe,
    RecipeError,
    TrainingRecipe,
    dataset_recipe_of,
    json_schema,
    kind_of,
    load_any_recipe,
    load_recipe,
    load_training_recipe,
    recipe_digest,
    recipe_warnings,
    resolved_yaml,
    shares_of,
    slots_of,
    starter_recipe,
    template_file,
    templates_of,
    write_starter,
)
from regforge.recipe.problems import PATTERNS
from regforge.recipe.schema import (
    SCHEMA_FILE,
    SCHEMA_LINE,
    TRAINING_SCHEMA_FILE,
    StarterError,
    schema_text,
)

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its files anew
SHIPPED = sorted(recipes_folder().glob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_shipped_recipes_are_these_and_the_readme_lists_them() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {
        *("quickstart", "objects-sdxl", "living-sdxl", "sd15", "naive-baseline", "against-only"),
        *("train-quickstart", "train-sdxl"),
    }
    readme = (recipes_folder() / "README.md").read_text(encoding="utf-8")
    of_datasets = {name for name in names if not name.startswith("train-")}
    assert of_datasets <= set(re.findall(r"\]\(([\w-]+)\.yaml\)", readme))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_recipe_is_sound_short_and_resolves_alike(path: Path, tmp_path: Path) -> None:
    training = path.stem.startswith("train-")
    recipe = load_any_recipe(path, ["regularization.dataset=me/x"] if training else [])
    assert isinstance(recipe, TrainingRecipe) is training
    assert recipe_warnings(recipe) == []
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == SCHEMA_LINE + (TRAINING_SCHEMA_FILE if training else SCHEMA_FILE)
    assert len(lines) < 80
    jsonschema.Draft202012Validator(json_schema(training=training)).validate(read(path))
    if isinstance(recipe, TrainingRecipe):
        assert read(path)["regularization"]["dataset"]
    else:
        assert all(template_file(each.file).is_file() for each in templates_of(recipe))
    text = resolved_yaml(recipe)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    again = load_any_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert resolved_yaml(again) == text
    assert re.fullmatch("[0-9a-f]{64}", recipe_digest(recipe))
    assert f"# digest: {recipe_digest(recipe)}" in text.splitlines()


def test_the_quickstart_says_only_what_can_be_drawn() -> None:
    recipe = load_recipe(recipes_folder() / "quickstart.yaml")
    words = load_vocabulary()
    assert recipe.subject.class_noun in words["class_noun"]
    for slot in slots_of(recipe):
        assert slot.values
        assert set(slot.values) <= set(words[slot.name])
    assert shares_of(recipe) == {"against": 0.25, "amplify": 0.75}
    assert recipe.render.model == "embedded/tinyworld"
    assert (recipe.render.speed, recipe.render.guidance_scale) == ("fast", 4.0)


def test_the_baselines_differ_from_the_quickstart_in_their_prompt_sets_alone() -> None:
    folder = recipes_folder()
    quickstart = load_recipe(folder / "quickstart.yaml").model_dump()
    for name, sets in (("naive-baseline", {"naive": 1.0}), ("against-only", {"against": 1.0})):
        found = load_recipe(folder / f"{name}.yaml").model_dump()
        assert found.pop("name") == name
        assert found["prompts"].pop("sets") == sets
        rest = json.loads(json.dumps(quickstart, default=str))
        rest.pop("name")
        rest["prompts"].pop("sets")
        assert json.loads(json.dumps(found, default=str)) == rest


def test_the_quickstarts_fit_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = Path(shutil.copytree(recipes_folder(), tmp_path / "recipes"))
    cat = Path("examples/subjects/cat")
    shutil.copytree(recipes_folder().parent / cat, tmp_path / cat)
    recipe = load_training_recipe(recipes / "train-quickstart.yaml")  # with nothing made yet
    dataset = yaml.safe_load((recipes / "quickstart.yaml").read_text(encoding="utf-8"))
    made_by = dataset_recipe_of(recipe)
    assert made_by == load_recipe(recipes / "quickstart.yaml")
    assert recipe.subject.class_noun == dataset["subject"]["class_noun"]
    assert recipe.subject.word == dataset["subject"]["identifier"]
    assert recipe.base_model == dataset["render"]["model"]
    assert recipe.subject.class_noun in load_vocabulary()["class_noun"]


def test_schemas_and_reference_pages_are_up_to_date(repo: Path) -> None:
    command = [sys.executable, "docs/reference.py"]
    env = os.environ | {"PYTHONPATH": str(repo)}
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}run: python docs/reference.py --write"
    assert done.stdout.count("up to date") == 6


@pytest.mark.parametrize("training", [False, True])
def test_the_schema_is_a_schema_with_words_for_every_key(training: bool, shell: Shell) -> None:
    schema = json_schema(training=training)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(schema_text(training=training)) == schema
    assert shell("schema", *(["--training"] if training else [])) == 0
    assert json.loads(shell.out) == schema
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
    described = [d for s in schema["$defs"].values() for d in s["properties"].values()]
    assert all("description" in each for each in described)
    both = schema_text() + schema_text(training=True)
    assert set(re.findall(r'"pattern": "(.*)"', both)) == set(PATTERNS)


OF_TRAINING = {"class_noun": "cat", "images": "p"}


@pytest.mark.parametrize(
    ("training", "content", "sound"),
    [
        (False, {"name": "x", "subject": {"class_noun": "cat"}}, True),
        (False, {"name": "x", "subject": {"class_noun": "cat"}, "render": None}, True),
        (False, {"extends": "b.yaml", "prompts": {"slots": ["color", {"name": "style"}]}}, True),
        (False, {"extends": "base.yaml", "subject": {"identifier": "sks"}}, True),
        (False, {"name": "x"}, False),
        (False, {"name": "x", "subject": {"identifier": "sks"}}, False),
        (False, {"extends": "base.yaml", "seeds": 1}, False),
        (False, {"extends": "base.yaml", "prompts": {"sets": {"aganst": 1}}}, False),
        (False, {"extends": "base.yaml", "prompts": {"slots": ["Color"]}}, False),
        (False, {"extends": "base.yaml", "render": {"steps": 0}}, False),
        (True, {"name": "x", "subject": OF_TRAINING}, True),
        (True, {"name": "x", "subject": OF_TRAINING, "optimizer": None}, True),
        (True, {"extends": "base.yaml", "subject": {"identifier": "sks"}}, True),
        (True, {"extends": "base.yaml", "optimizer": {"betas": [0.9, 0.99]}}, True),
        (True, {"name": "x", "subject": {"class_noun": "cat"}}, False),
        (True, {"name": "x"}, False),
        (True, {"extends": "base.yaml", "optimiser": {}}, False),
        (True, {"extends": "base.yaml", "optimizer": {"betas": [0.9]}}, False),
        (True, {"extends": "base.yaml", "method": {"kind": "dora"}}, False),
    ],
)
def test_the_schema_accepts_what_a_file_may_say(training: bool, content: Any, sound: bool) -> None:
    schema = json_schema(training=training)
    assert jsonschema.Draft202012Validator(schema).is_valid(content) is sound


@pytest.mark.parametrize(
    "asked",
    [
        {"class_noun": "teapot"},
        {"class_noun": "cat", "kind": "living"},
        {"class_noun": "flurb", "identifier": "no"},
        {"class_noun": "dog", "images": "photos", "identifier": "1"},
        {"class_noun": "corgi", "model": "some/model"},
        {"class_noun": "corgi", "model": "some/model", "language_model": "gpt-4o-mini"},
    ],
)
def test_a_starter_is_sound_as_it_is(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").touch()
    text = starter_recipe("my-set", **asked)
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.subject.class_noun == asked["class_noun"]
    assert recipe.subject.identifier == asked.get("identifier", f"<my-{asked['class_noun']}>")
    assert ("against" in shares_of(recipe)) == ("images" in asked)
    assert len(text.splitlines()) < 60
    assert text.count("#") > 10
    jsonschema.Draft202012Validator(json_schema()).validate(read(tmp_path / "a.yaml"))


def test_a_starter_needs_nobody_to_be_asked() -> None:
    recipe = Recipe.model_validate(yaml.safe_load(starter_recipe("x", "cat")))
    words = load_vocabulary()
    for slot in slots_of(recipe):
        assert slot.origin == "list"
        assert set(slot.values or ()) <= set(words[slot.name])
    assert "motion" in [slot.name for slot in slots_of(recipe)]
    assert recipe_warnings(recipe) == []
    assert "(2) gpt-4o-mini" in starter_recipe("x", "cat")


def test_writing_a_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").touch()
    assert write_starter(Path("mug"), class_noun="coffee mug") == Path("mug.yaml")
    assert load_recipe("mug.yaml").name == "mug"
    assert Path(SCHEMA_FILE).read_text(encoding="utf-8") == schema_text()
    with pytest.raises(StarterError, match=r"mug\.yaml is there already"):
        write_starter(Path("mug.yaml"))
    write_starter(Path("mug.yaml"), class_noun="teapot", force=True)
    assert load_recipe("mug.yaml").subject.class_noun == "teapot"
    # In a folder, with photos named from here.
    (tmp_path / "sub").mkdir()
    written = write_starter(Path("sub"), class_noun="coffee mug", images=Path("photos"))
    assert written == Path("sub/recipe.yaml")
    assert "images: ../photos " in written.read_text(encoding="utf-8")
    recipe = load_recipe(written)
    assert (recipe.name, recipe.subject.images) == ("coffee-mug-reg", tmp_path / "photos")
    with pytest.raises(StarterError, match="no folder none"):
        write_starter(Path("x"), images=Path("none"))
    for bad in (" ", "my cat", "flurb: # 'x'"):
        with pytest.raises(StarterError, match="class-noun"):
            write_starter(Path("x"), class_noun=bad)
    assert not Path("x.yaml").exists()


_STYLES = (
    "a photo of",
    "in the style of Monet",
    "a 35mm photo of",
    "caf\u00e9 art",
    "on: off",
    "5",
)
_words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), min_size=1).filter(
    lambda text: text.strip() != ""
)
_recipes = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
        "subject": st.fixed_dictionaries(
            {"class_noun": st.just("teapot")}, optional={"kind": st.just("object")}
        ),
        "seed": st.integers(0, 2**63 - 1),
        "render": st.fixed_dictionaries(
            {"negative_prompt": st.text(st.characters(exclude_categories=["Cs"]))},
            optional={"guidance_scale": st.floats(0, 50), "revision": _words},
        ),
        "prompts": st.fixed_dictionaries(
            {},
            optional={
                "sets": st.fixed_dictionaries({"naive": st.floats(0.1, 9)}),
                "slots": st.just(["color"])
                | st.lists(st.sampled_from(_STYLES), min_size=1).map(
                    lambda v: [{"name": "style", "values": v}]
                ),
            },
        ),
    }
)


@pytest.mark.slow
@given(content=_recipes)
@settings(max_examples=25, suppress_health_check=[SHARED_FOLDER])
def test_the_resolved_recipe_is_the_same_recipe(tmp_path: Path, content: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(content)
    for portable in (False, True):  # it names no files, so both are whole
        path = tmp_path / "resolved.yaml"
        text = resolved_yaml(recipe, portable=portable)
        path.write_text(text, encoding="utf-8", newline="")
        again = load_recipe(path)
        assert again == recipe
        assert recipe_digest(again) == recipe_digest(recipe)
        assert yaml.safe_load(text)["seed"] == recipe.seed  # other readers read it alike
        assert yaml.safe_load(text)["render"]["negative_prompt"] == recipe.render.negative_prompt


def test_words_that_yaml_readers_take_for_something_else_stay_words(tmp_path: Path) -> None:
    words = (
        "yes", "No", "on", "y", "true", "null", "~", "1", "0o7", "0x1f", "1e-4", ".5", ".inf",
        "1:30", "1_000", "2024-01-01", "<<", "=", "- a", "a: b", "#a", "'a'", '"a"', "[a]", "*a",
        "a\x85b", "a\u2028b", "a\nb\n", "a\tb", " a ", "\ufeffa", "é", "\U0001f431",
    )  # fmt: skip
    for word in words:
        text = resolved_yaml(recipe_of(render={"negative_prompt": word}))
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8", newline="")
        assert load_recipe(tmp_path / "r.yaml").render.negative_prompt == word
        assert yaml.safe_load(text)["render"]["negative_prompt"] == word


def test_a_portable_recipe_hides_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home-of-jane"
    monkeypatch.setenv("HOME", str(tmp_path))
    (home / "photos").mkdir(parents=True)
    lora(home / "l.safetensors")
    for name in ("models/sdxl/model_index.json", "clip/config.json"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("{}")
    for name in ("photos/1.png", "mine.j2", "w.txt", "e.txt", "v.json", "m.txt"):
        (home / name).write_text("x")
    for name in ("messages", "old/reg"):
        (home / name).mkdir(parents=True)
    prompts = {
        "sets": {"against": 1, "import": 1},
        "import": {"dataset": "old/reg", "caption_column": "blip"},
        "template": "mine.j2",
        "messages": "messages",
        "vocabulary": "v.json",
        "exclude": ["dreambench", "e.txt"],
        "slots": [{"name": "style", "file": "w.txt"}, "color"],
        "llm": {"model": "gpt-4o-mini", "api_base": "https://llm.example/v1?version=2"},
    }
    render = {"model": str(home / "models/sdxl"), "lora": "~/home-of-jane/l.safetensors"}
    content = {
        "name": "x",
        "subject": {"class_noun": "cat", "kind": "living", "images": "photos"},
        "prompts": prompts,
        "render": render,
        "curate": {"alignment": {"model": str(home / "clip")}},
    }
    (home / "r.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(home / "r.yaml")
    text = resolved_yaml(recipe, portable=True)
    assert "home-of-jane" not in text
    shown = yaml.safe_load(text)
    assert shown["subject"]["images"] == "photos"
    assert shown["prompts"]["template"] == "mine.j2"
    assert shown["prompts"]["exclude"] == ["dreambench", "e.txt"]
    assert shown["prompts"]["slots"][0]["file"] == "w.txt"
    assert shown["prompts"]["import"]["dataset"] == "reg"
    assert shown["prompts"]["llm"]["api_base"] == "https://llm.example/v1"
    assert shown["render"]["model"] == "sdxl"
    assert shown["render"]["lora"] == [{"path": "l.safetensors", "scale": 1.0}]
    assert "home-of-jane" in resolved_yaml(recipe)
    # With the files put beside it again, it is the same recipe once more but for the models.
    shutil.copytree(home, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/models/sdxl").rename(tmp_path / "elsewhere/sdxl")
    (tmp_path / "elsewhere/r.yaml").write_text(text)
    again = load_recipe(tmp_path / "elsewhere/r.yaml")
    assert again.prompts.slots == slots_of(again)


def recipe_of(**content: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", "subject": {"class_noun": "cat"}, **content})


def test_kind_slots_and_template_follow_from_the_class_noun_and_shares_sum_to_one() -> None:
    recipe = recipe_of()
    assert kind_of(recipe) == "living"
    assert "motion" in [slot.name for slot in slots_of(recipe)]
    assert [each.file for each in templates_of(recipe)] == ["caption/living.j2"]
    thing = recipe_of(subject={"class_noun": "ceramic teapot"})
    assert kind_of(thing) == "object"
    assert [slot.name for slot in slots_of(thing)] == [
        "shape", "color", "texture", "background", "lighting", "style"
    ]  # fmt: skip
    assert [each.file for each in templates_of(thing)] == ["caption/object.j2"]
    assert kind_of(recipe_of(subject={"class_noun": "cat", "kind": "object"})) == "object"
    assert slots_of(recipe_of(prompts={"slots": []})) == ()
    with pytest.raises(RecipeError, match=r"subject\.kind: is needed"):
        slots_of(recipe_of(subject={"class_noun": "flurb"}))
    recipe = recipe_of(prompts={"sets": {"amplify": 3, "naive": 0, "against": 1}})
    assert shares_of(recipe) == {"against": 0.25, "amplify": 0.75}
    assert list(shares_of(recipe)) == ["against", "amplify"]


def test_a_recipe_knows_its_file_but_is_not_changed_by_it(tmp_path: Path) -> None:
    text = "name: x\nsubject: {class_noun: cat}\n"
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(text)
    first, second = load_recipe(tmp_path / "a.yaml"), load_recipe(tmp_path / "b.yaml")
    assert first == second == recipe_of()
    assert first.source == tmp_path / "a.yaml"
    assert "source" not in first.model_dump()
    assert recipe_of().source is None
