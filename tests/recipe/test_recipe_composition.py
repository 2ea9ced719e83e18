"""`extends`, `--set`, and the paths in both."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regforge.recipe import RecipeError, load_recipe

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its files anew
BASE = {"name": "base", "subject": {"class_noun": "teapot", "kind": "object"}}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_keys_merge_lists_and_shares_replace_and_the_nearer_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {**BASE, "seed": 1, "render": {"steps": 5, "width": 64}})
    write(tmp_path / "b.yaml", {"extends": "a.yaml", "render": {"steps": 6}, "name": "b"})
    recipe = load_recipe(write(tmp_path / "c.yaml", {"extends": "b.yaml", "name": "c"}))
    assert (recipe.name, recipe.seed) == ("c", 1)
    assert (recipe.render.steps, recipe.render.width) == (6, 64)
    assert recipe.extends is None  # carried out
    base = {"sets": {"naive": 1, "amplify": 1}, "slots": ["color", "style"], "count": 7}
    write(tmp_path / "a.yaml", {**BASE, "prompts": base})
    over = {"sets": {"amplify": 2}, "slots": ["shape"]}
    recipe = load_recipe(write(tmp_path / "b.yaml", {"extends": "a.yaml", "prompts": over}))
    assert recipe.prompts.sets == {"amplify": 2}
    assert [slot.name for slot in recipe.prompts.slots or ()] == ["shape"]
    assert recipe.prompts.count == 7


def test_null_takes_a_value_of_the_base_away_and_extends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {**BASE, "render": {"width": 64}, "curate": {"alignment": {}}})
    over = {"extends": "a.yaml", "render": {"width": None}, "curate": {"alignment": None}}
    recipe = load_recipe(write(tmp_path / "b.yaml", over))
    assert recipe.render.width is None
    assert recipe.curate.alignment is None
    assert load_recipe(write(tmp_path / "a.yaml", {**BASE, "extends": None})).name == "base"


def test_problems_name_the_file_they_are_in_and_ones_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("lib/a.yaml"), "render:\n  stps: 3\n  width: 9\nsubject: {class_noun: cat}\n")
    write(Path("mine.yaml"), "extends: lib/a.yaml\nname: x\nseed: soon\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.yaml", ["zeed=1"])
    assert [str(problem) for problem in caught.value.problems] == [
        "mine.yaml:3:7  seed: must be a whole number, not 'soon'",
        "lib/a.yaml:2:3  render.stps: unknown key, did you mean 'steps'?",
        "lib/a.yaml:3:10  render.width: must be a multiple of 8, such as 8 or 16, not 9",
        "--set zeed=1  zeed: unknown key, did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("extends", "line"),
    [
        ("none.yaml", "1:10  extends: there is no file none.yaml"),
        (".", "1:10  extends: . is a folder"),
        ("[a]", "1:10  extends: must be the path of a recipe, not a list"),
        ("r.yaml", "1:10  extends: goes round in a circle: r.yaml -> r.yaml"),
        ("other.yaml", "other.yaml:1:10  extends: goes round in a circle: r.yaml -> other.yaml -> r.yaml"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extends: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("other.yaml"), "extends: r.yaml\n")
    subject = "subject: {class_noun: cat}\n"
    write(Path("r.yaml"), f"extends: {extends}\nname: x\n{subject}")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert str(caught.value.problems[0]).removeprefix("r.yaml:") == line


def test_paths_start_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lib/photos/1.png", "lib/w.txt", "lib/e.txt", "mine/t.j2", "mine/v.json", "k.txt"):
        write(tmp_path / name, "words\n")
    write(
        tmp_path / "lib/a.yaml",
        {
            **BASE,
            "subject": {**BASE["subject"], "images": "photos"},  # type: ignore[dict-item]
            "prompts": {
                "slots": [{"name": "style", "file": "w.txt"}],
                "exclude": ["dreambench", "e.txt"],
            },
        },
    )
    over = {"extends": "../lib/a.yaml", "prompts": {"template": "t.j2", "vocabulary": "v.json"}}
    path = write(tmp_path / "mine/b.yaml", over)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("mine/b.yaml", ["prompts.slots.0.file=k.txt"])
    assert recipe.subject.images == tmp_path / "lib/photos"
    assert recipe.prompts.template == str(tmp_path / "mine/t.j2")
    assert recipe.prompts.vocabulary == tmp_path / "mine/v.json"
    assert recipe.prompts.exclude == ("dreambench", str(tmp_path / "lib/e.txt"))
    assert recipe.prompts.slots
    assert recipe.prompts.slots[0].file == tmp_path / "k.txt"
    assert recipe.source == path


def imported(recipe: Path, *overrides: str) -> str:
    taken = load_recipe(recipe, overrides).prompts.imported
    assert taken
    return taken.dataset


def test_what_is_imported_is_a_path_where_it_is_there_and_an_address_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "lib/me/cats/1.txt", "a cat")
    write(tmp_path / "lib/cats.zip", "a zip")
    write(tmp_path / "here/me/dogs/1.txt", "a dog")
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "lib/r.yaml"
    for named, meant in {
        "me/cats": str(tmp_path / "lib/me/cats"),
        "cats.zip": str(tmp_path / "lib/cats.zip"),
        "./me/none": str(tmp_path / "lib/me/none"),
        "none": str(tmp_path / "lib/none"),
        "~/none": str(Path("~/none").expanduser()),
        "me/dogs": "me/dogs",  # there is one here, but paths start at the recipe
        "me/dogs@v1": "me/dogs@v1",
        "https://jane:secret@hub.example/datasets/me/dogs/tree/v1": "me/dogs@v1",
    }.items():
        write(recipe, {**BASE, "prompts": {"import": {"dataset": named}}})
        assert imported(recipe) == meant, named
    again = imported(recipe, "prompts.import.dataset=me/dogs")
    assert again == str(tmp_path / "here/me/dogs"), "in --set they start at the current directory"
    base = {"extends": "lib/r.yaml", "prompts": {"import": {"revision": "v1"}}}
    assert imported(write(tmp_path / "b.yaml", base)) == "me/dogs@v1"


def test_a_shipped_template_stays_a_name_and_none_outside_passes_for_one(tmp_path: Path) -> None:
    write(tmp_path / "caption/object.j2", "mine")
    content = {**BASE, "prompts": {"template": "caption/object.j2"}}
    assert load_recipe(write(tmp_path / "a.yaml", content)).prompts.template == "caption/object.j2"
    content["prompts"] = {"template": "./caption/object.j2"}
    # A path that says where it starts is a path all the same.
    loaded = load_recipe(write(tmp_path / "a.yaml", content)).prompts.template
    assert loaded == str(tmp_path / "caption/object.j2")
    content = {**BASE, "prompts": {"template": "../pyproject.toml"}}
    with pytest.raises(RecipeError, match="there is no template"):
        load_recipe(write(tmp_path / "a.yaml", content))


def test_settings_take_yaml_and_one_share_or_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", {**BASE, "prompts": {"slots": ["color", "style"]}})
    recipe = load_recipe(
        path,
        [
            "prompts.count=50",
            "render.width=null",
            "render.height=",
            "render.negative_prompt=blurry, = and ugly",
            "prompts.exclude=[dreambench]",
            "prompts.slots.1.values=[a photo of]",
            "prompts.llm={temperature: 0.5}",
            "prompts.llm.rpm=3",
            "curate.alignment.min=0.2",
            "seed=1",
            "seed=2",
        ],
    )
    assert recipe.prompts.count == 50
    assert (recipe.render.width, recipe.render.height) == (None, None)
    assert recipe.render.negative_prompt == "blurry, = and ugly"
    assert recipe.prompts.exclude == ("dreambench",)
    assert [slot.values for slot in recipe.prompts.slots or ()] == [None, ("a photo of",)]
    assert (recipe.prompts.llm.temperature, recipe.prompts.llm.rpm) == (0.5, 3)
    assert recipe.curate.alignment
    assert recipe.curate.alignment.min == 0.2
    assert recipe.seed == 2
    path = write(tmp_path / "a.yaml", {**BASE, "prompts": {"sets": {"amplify": 1}}})
    assert load_recipe(path, ["prompts.sets.naive=2"]).prompts.sets == {"amplify": 1, "naive": 2}
    assert load_recipe(path, ["prompts.sets={naive: 2}"]).prompts.sets == {"naive": 2}


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("prompts.conut=5", "prompts.conut: unknown key, did you mean 'count'?"),
        ("prompts.count=0", "prompts.count: must be at least 1, not 0"),
        ("promts.count=5", "promts: unknown key, did you mean 'prompts'?"),
        ("prompts.count", "expected key=value, such as seed=1"),
        ("=5", "expected key=value, such as seed=1"),
        ("a b=5", "expected key=value, such as seed=1"),
        ("prompts..count=5", "expected key=value, such as seed=1"),
        ("prompts.count=[5", "prompts.count: '[' is never closed, or a comma is missing in the list"),  # noqa: E501
        ("render.model={a: 1, a: 2}", "render.model.a: given twice"),
        ("seed.x=5", "seed.x: seed is a single value and has no keys"),
        ("prompts.slots.1.mode=grid", "prompts.slots.1.mode: prompts.slots is a list of 1 item, counted from 0"),  # noqa: E501
        ("prompts.slots.x=1", "prompts.slots.x: prompts.slots is a list of 1 item, counted from 0"),
        ("extends=other.yaml", "extends: can be said only in a file"),
        ("subject.images=none", "subject.images: there is no folder {here}/none"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.yaml", {**BASE, "seed": 3, "prompts": {"slots": ["color"]}})
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [setting])
    assert str(caught.value) == f"--set {setting}  " + line.format(here=tmp_path)


_scalars = {
    ("seed",): st.integers(0, 99),
    ("render", "steps"): st.integers(1, 99),
    ("render", "negative_prompt"): st.text(st.characters(codec="ascii", categories=["L", "P"])),
    ("render", "width"): st.sampled_from([None, 64, 512]),
    ("prompts", "count"): st.integers(1, 99),
    ("prompts", "match"): st.lists(st.sampled_from(["size", "seed"]), max_size=2),
    ("prompts", "llm", "temperature"): st.floats(0, 2),
    ("prompts", "llm", "model"): st.sampled_from(["gpt-4o-mini", "no", "1"]),
    ("curate", "constant"): st.booleans(),
}
_choices = st.fixed_dictionaries({}, optional=_scalars)


def nested(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for location, value in flat.items():
        below = root
        for key in location[:-1]:
            below = below.setdefault(key, {})
        below[location[-1]] = value
    return root


def said(folder: Path, content: dict[str, Any], overrides: list[str] | None = None) -> Any:
    whole = {**copy.deepcopy(BASE), **content}
    return load_recipe(write(folder / "whole.yaml", whole), overrides or ())


@pytest.mark.slow
@given(base=_choices, over=_choices)
@settings(max_examples=60, suppress_health_check=[SHARED_FOLDER])
def test_extending_is_the_same_as_writing_it_all_in_one_file(
    tmp_path: Path, base: dict[Any, Any], over: dict[Any, Any]
) -> None:
    write(tmp_path / "base.yaml", {**BASE, **nested(base)})
    extended = write(tmp_path / "over.yaml", {"extends": "base.yaml", **nested(over)})
    assert load_recipe(extended) == said(tmp_path, nested({**base, **over}))


@pytest.mark.slow
@given(base=_choices, over=_choices)
@settings(max_examples=60, suppress_health_check=[SHARED_FOLDER])
def test_set_is_like_writing(tmp_path: Path, base: dict[Any, Any], over: dict[Any, Any]) -> None:
    overrides = [f"{'.'.join(key)}={json.dumps(value)}" for key, value in over.items()]
    assert said(tmp_path, nested(base), overrides) == said(tmp_path, nested({**base, **over}))
