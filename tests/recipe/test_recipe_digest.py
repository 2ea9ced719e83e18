"""The digest changes with what is made, and with nothing else."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_servers import plain_workflow
from pydantic import BaseModel

from regforge.recipe import Recipe, RecipeError, Slot, load_recipe, recipe_digest
from regforge.recipe.rendering import Lora
from regforge.recipe.sections import Section, TemplateShare

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its files anew
BASE: dict[str, Any] = {
    "name": "cats",
    "subject": {"class_noun": "cat", "kind": "living", "identifier": "sks", "images": "photos"},
    "prompts": {
        "sets": {"against": 1, "amplify": 3, "import": 1},
        "import": {"dataset": "me/cats", "revision": "v1"},
        "slots": [
            {"name": "color", "from": "list", "values": ["red", "blue"], "weights": [1, 2]},
            {"name": "background", "file": "places.txt"},
            {"name": "motion", "from": "llm", "values": ["running"], "count": 1},
            "style",
        ],
        "template": "mine.j2",
        "exclude": ["dreambench", "phrases.txt"],
        "vocabulary": "vocabulary.json",
        "llm": {"model": "gpt-4o-mini"},
    },
    "curate": {"alignment": {"model": "openai/clip"}},
    "render": {"model": "some/model"},
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("1.png", "2.JPG", "1.txt", "metadata.jsonl", "notes.md", ".hidden.png"):
        (tmp_path / "photos" / name).write_text(name)
    for name in ("places.txt", "other.txt", "mine.j2", "other.j2", "phrases.txt"):
        (tmp_path / name).write_text(f"in {name}\n")
    (tmp_path / "vocabulary.json").write_text('{"format": 1, "slots": {}}')
    (tmp_path / "other.json").write_text('{"format": 1, "slots": {"color": 1}}')
    nodes = plain_workflow()
    (tmp_path / "workflow.json").write_text(json.dumps(nodes))
    nodes["3"]["inputs"]["denoise"] = 0.5
    (tmp_path / "other_workflow.json").write_text(json.dumps(nodes))
    (tmp_path / "messages").mkdir()
    shutil.copytree(tmp_path / "photos", tmp_path / "other")
    (tmp_path / "other" / "3.png").write_text("3")
    return tmp_path


def digest(folder: Path, content: dict[str, Any] | str = "") -> str:
    content = content or BASE
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path = folder / "recipe.yaml"
    path.write_text(text)
    return recipe_digest(load_recipe(path))


def changed(location: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    content = copy.deepcopy(BASE if base is None else base)
    below: Any = content
    *above, last = location.split(".")
    for key in above:
        below = below[int(key)] if key.isdecimal() else below.setdefault(key, {})
    below[last] = value
    return content


# A change of every field that decides what is made.
DATA: dict[str, Any] = {
    "seed": 1,
    "subject.class_noun": "kitten",
    "subject.kind": "object",  # with the slots that objects have; see below
    "subject.identifier": "zwx",
    "subject.images": "other",
    "subject.captions": "auto",
    "prompts.sets": {"against": 1, "amplify": 4},
    "prompts.mode": "compose",
    "prompts.template": "other.j2",
    "prompts.template.0.file": "other.j2",
    "prompts.template.0.share": 2,
    "prompts.slots": ["style", "color"],
    "prompts.slots.0.name": "shape",
    "prompts.slots.0.from": "llm",
    "prompts.slots.0.values": ["red", "green"],
    "prompts.slots.0.weights": [2, 1],
    "prompts.slots.1.file": "other.txt",
    "prompts.slots.1.mode": "grid",
    "prompts.slots.1.presence": 0.5,
    "prompts.slots.2.count": 2,
    "prompts.phrases_per_slot": 41,
    "prompts.photo_share": 0.5,
    "prompts.compatibility": False,
    "prompts.compose_batch": 11,
    "prompts.near_duplicates": 0.8,
    "prompts.max_tokens": 70,
    "prompts.over_limit": "refuse",
    "prompts.exclude": ["dreambench", "other.txt"],
    "prompts.vocabulary": "other.json",
    "prompts.match": ["size"],
    "prompts.import": {"dataset": "me/dogs"},
    "prompts.import.dataset": "you/cats",
    "prompts.import.revision": "v2",
    "prompts.import.caption_column": "blip",
    "prompts.llm.model": "gpt-4o",
    "prompts.llm.api_base": "http://localhost/v1",
    "prompts.llm.temperature": 0.5,
    "prompts.llm.max_tokens": 100,
    "prompts.llm.vision_model": "gpt-4o",
    "render.model": "other/model",
    "render.renderer": "hosted",
    "render.revision": "abc",
    "render.variant": "fp16",
    "render.lora": "some/lora",
    "render.vae": "some/vae",
    "render.config": "some/config",
    "render.lora.0.path": "other/lora",
    "render.lora.0.scale": 0.5,
    "render.width": 64,
    "render.height": 64,
    "render.steps": 31,
    "render.guidance_scale": 5.5,
    "render.speed": "fast",
    "render.cache_interval": 2,
    "render.quantize": "int8",
    "render.guidance_window": [0.5, 1],
    "render.scheduler": "ddim",
    "render.negative_prompt": "blurry",
    "render.images_per_prompt": 2,
    "render.dtype": "float32",
    "render.format": "png",
    "render.jpeg_quality": 90,
    "render.max_attempts": 4,
    "render.trust_remote_code": True,
    "render.api_base": "http://localhost/v1",
    "render.workflow": "other_workflow.json",
    "render.nodes": {"steps": []},
    "curate.max_duplicate_distance": 5,
    "curate.constant": False,
    "curate.nsfw": False,
    "curate.alignment": None,
    "curate.alignment.model": "other/clip",
    "curate.alignment.min": 0.2,
}

LISTS: dict[str, list[dict[str, Any]]] = {
    "render.lora": [{"path": "some/lora"}],
    "prompts.template": [{"file": "mine.j2"}, {"file": "caption/tags.j2"}],
}

# And of every one that does not.
RUNTIME: dict[str, Any] = {
    "name": "other",
    "prompts.count": 3,
    "prompts.messages": "messages",
    "prompts.llm.max_concurrency": 1,
    "prompts.llm.rpm": 1,
    "prompts.llm.tpm": 1,
    "prompts.llm.timeout": 1,
    "prompts.llm.max_attempts": 1,
    "prompts.llm.max_cost": 1,
    "prompts.llm.input_cost_per_token": 1,
    "prompts.llm.output_cost_per_token": 1,
    "prompts.llm.cache": False,
    "render.batch_size": 3,
    "render.device": "cpu",
    "render.folder": "drawn",
    "render.compile": True,
    "render.offload": True,
    "render.max_concurrency": 1,
    "render.rpm": 1,
    "render.max_cost": 1,
    "render.cost_per_image": 1,
    "dataset.license": "other",
    "dataset.repo_id": "me/cats",
    "dataset.private": False,
    "dataset.language": "de",
}


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """All keys of a recipe that are no sections, with a list's items as `0`."""
    for name, field in model.model_fields.items():
        key = f"{above}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{key}.")
            continue
        yield key
        for option in get_args(field.annotation):
            for part in (option, *get_args(option)):
                if isinstance(part, type) and issubclass(part, Section):
                    yield from leaves(
                        part, f"{key}.0." if part in (Slot, Lora, TemplateShare) else f"{key}."
                    )


def test_the_tables_here_have_every_key() -> None:
    numbered = {key.replace(".1.", ".0.").replace(".2.", ".0.") for key in {**DATA, **RUNTIME}}
    # The format has one version; `extends` and `subjects` are carried out when a recipe is read.
    assert numbered | {"version", "extends", "subjects"} == set(leaves(Recipe))


@pytest.mark.parametrize("key", DATA)
def test_every_key_that_decides_what_is_made_changes_it(here: Path, key: str) -> None:
    for section, several in LISTS.items():
        if key.startswith(f"{section}.0"):
            base = changed(section, several)
            assert digest(here, base) != digest(here, changed(key, DATA[key], base))
            return
    if key == "render.config":
        base = changed("render.model", "https://huggingface.co/me/x/blob/main/x.safetensors")
        assert digest(here, base) != digest(here, changed(key, DATA[key], base))
        return
    if key in ("render.workflow", "render.nodes"):
        base = changed("render", {"renderer": "comfyui", "workflow": "workflow.json", "steps": 9})
        assert digest(here, base) != digest(here, changed(key, DATA[key], base))
        return
    content = changed(key, DATA[key])
    if key == "subject.kind":
        base = changed("prompts.slots", ["color"])
        assert digest(here, base) != digest(here, changed(key, DATA[key], base))
        return
    if key == "prompts.slots.0.from":  # weights go with a list alone
        content["prompts"]["slots"][0].pop("weights")
    assert digest(here, content) != digest(here)


@pytest.mark.parametrize("key", RUNTIME)
def test_no_runtime_knob_changes_it(here: Path, key: str) -> None:
    assert digest(here, changed(key, RUNTIME[key])) == digest(here)


def test_which_server_draws_a_workflow_and_how_its_file_is_laid_out_changes_nothing(
    here: Path,
) -> None:
    base = changed("render", {"renderer": "comfyui", "workflow": "workflow.json"})
    before = digest(here, base)
    (here / "workflow.json").write_text(json.dumps(plain_workflow(), indent=2))
    assert digest(here, changed("render.api_base", ["http://a:1", "http://b:2"], base)) == before
    assert digest(here, changed("render.steps", 20, base)) == before, "what the workflow says"
    assert digest(here, changed("render.steps", 21, base)) != before


def test_a_speed_is_what_it_fills_in(here: Path) -> None:
    parts = {"scheduler": "unipc", "steps": 15, "cache_interval": 2}
    written = changed("render", BASE["render"] | parts)
    assert digest(here, changed("render.speed", "balanced")) == digest(here, written)
    assert digest(here, changed("render.steps", 16, written)) != digest(here, written)


def test_it_is_64_hex_digits_and_stays_what_it_is(here: Path) -> None:
    # A change here voids the runs that people have begun: say so in the changelog.
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "subject": {"class_noun": "teapot", "kind": "object"},
            "prompts": {"template": str(here / "mine.j2"), "slots": ["color"]},
            "render": {"model": "some/model"},  # what is on this machine is in it with its content
        }
    )
    assert (
        recipe_digest(recipe) == "3d91df49e50765ffa9cd587a74fd6a2f4f307c91145c2ac41f4ec50d24f9ad90"
    )


@given(st.randoms(use_true_random=False), st.sets(st.sampled_from(sorted(RUNTIME))))
@settings(max_examples=15, suppress_health_check=[SHARED_FOLDER])
def test_order_and_knobs_never_matter(here: Path, rng: random.Random, knobs: set[str]) -> None:
    content = copy.deepcopy(BASE)
    for knob in knobs:
        content = changed(knob, RUNTIME[knob], content)
    text = yaml.safe_dump(shuffled(content, rng), sort_keys=False)
    commented = "".join(f"{line}  # why\n# and\n" for line in text.splitlines())
    assert digest(here, commented) == digest(here)


def shuffled(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    keys = list(value)
    rng.shuffle(keys)
    return {key: shuffled(value[key], rng) for key in keys}


PLAIN = {"name": "x", "subject": {"class_noun": "cat"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subject.kind", "living"),
        ("prompts.sets", {"amplify": 1}),
        ("prompts.sets", {"naive": 0, "amplify": 7}),
        ("prompts.template", "caption/living.j2"),
        (
            "prompts.slots",
            [{"name": name, "presence": 0.5} for name in "shape color texture motion".split()]
            + ["background", "lighting", "style"],
        ),
        (
            "prompts.slots",
            [
                {"name": name, "from": "llm", "mode": "sample", "count": 40, "presence": share}
                for name, share in zip(
                    "shape color texture motion background lighting style".split(),
                    [0.5] * 4 + [1] * 3,
                    strict=True,
                )
            ],
        ),
        ("prompts.phrases_per_slot", 40),
        ("prompts.exclude", []),
        ("prompts.llm", {}),
        ("prompts.llm.temperature", 1),
        ("render.guidance_scale", 5),
        ("render.speed", "exact"),
        ("render.cache_interval", 1),
        ("render.guidance_window", [0, 1]),
        ("render.model", "embedded/tinyworld"),
        ("curate.alignment", None),
        ("version", 1),
    ],
)
def test_writing_a_default_down_changes_nothing(here: Path, key: str, value: Any) -> None:
    assert digest(here, changed(key, value, PLAIN)) == digest(here, PLAIN)


@pytest.mark.parametrize(
    "change",
    [
        lambda here: (here / "photos/1.png").write_text("another image"),
        lambda here: (here / "photos/1.txt").write_text("a photo of a sks cat asleep"),
        lambda here: (here / "photos/2.txt").write_text("a photo of a sks cat"),
        lambda here: (here / "photos/2.caption").write_text("a photo of a sks cat"),
        lambda here: (here / "photos/metadata.csv").write_text("file_name,text"),
        lambda here: (here / "photos/metadata.jsonl").write_text("{}"),
        lambda here: (here / "photos/2.JPG").rename(here / "photos/3.JPG"),
        lambda here: (here / "photos/1.png").unlink(),
        lambda here: (here / "mine.j2").write_text("{{ color }}  x"),
        lambda here: (here / "places.txt").write_text("in a box"),
        lambda here: (here / "phrases.txt").write_text("in a box"),
        lambda here: (here / "vocabulary.json").write_text('{"format": 1, "slots": {"x": 1}}'),
    ],
)
def test_it_follows_what_the_files_say(here: Path, change: Callable[[Path], object]) -> None:
    before = digest(here)
    change(here)
    assert digest(here) != before


def test_moving_files_and_what_nobody_reads_in_them_changes_nothing(here: Path) -> None:
    before = digest(here)
    (here / "far/away").mkdir(parents=True)
    moved = copy.deepcopy(BASE)
    (here / "photos").rename(here / "far/images")
    moved["subject"]["images"] = "far/images"
    for at, key in (("template", "mine.j2"), ("vocabulary", "vocabulary.json")):
        (here / key).rename(here / "far/away" / f"new-{key}")
        moved["prompts"][at] = f"far/away/new-{key}"
    (here / "phrases.txt").rename(here / "far/p")
    moved["prompts"]["exclude"] = ["far/p", "dreambench", "dreambench"]
    (here / "far/places.list").write_bytes(b"\xef\xbb\xbf# places\r\n\r\n  in places.txt # one\r\n")
    moved["prompts"]["slots"][1] = {"from": "file", "name": "background", "file": "far/places.list"}
    (here / "far/images/notes.md").write_text("nobody reads this")
    (here / "far/images/.hidden.png").unlink()
    (here / "far/away/new-vocabulary.json").write_text('{\n  "format": 1,\n  "slots": {}\n}\n')
    assert digest(here, moved) == before


ONLY_IMPORT = changed("prompts.sets", {"import": 1})


@pytest.mark.parametrize(
    ("dataset", "revision"),
    [
        ("me/cats@v1", None),
        ("me/cats@v1", "v1"),
        ("datasets/me/cats", "v1"),
        ("hf://datasets/me/cats", "v1"),
        ("https://huggingface.co/datasets/me/cats/tree/v1", None),
    ],
)
def test_one_hub_dataset_has_many_names(here: Path, dataset: str, revision: str | None) -> None:
    named = changed("prompts.import", {"dataset": dataset, "revision": revision})
    assert digest(here, named) == digest(here)


def test_an_imported_folder_counts_by_its_name_alone(here: Path) -> None:
    """The run keeps the captions, so that it goes on when the folder has changed or is gone."""
    (here / "reg").mkdir()
    (here / "reg/1.txt").write_text("a photo of a cat")
    before = digest(here, changed("prompts.import", {"dataset": "reg"}))
    (here / "reg/1.txt").write_text("another caption")
    assert digest(here, changed("prompts.import", {"dataset": "./reg"})) == before
    (here / "far").mkdir()
    (here / "reg").rename(here / "far/reg")
    assert digest(here, changed("prompts.import", {"dataset": "far/reg"})) == before
    assert digest(here, changed("prompts.import", {"dataset": "./gone/reg"})) == before
    assert digest(here, changed("prompts.import", {"dataset": "./gone/other"})) != before


def test_slots_count_by_their_names_where_all_captions_are_imported(here: Path) -> None:
    before = digest(here, ONLY_IMPORT)
    named = changed("prompts.slots", ["color", "background", "motion", "style"], ONLY_IMPORT)
    assert digest(here, named) == before
    (here / "places.txt").write_text("in a box")
    assert digest(here, ONLY_IMPORT) == before
    assert digest(here, changed("prompts.slots", ["color"], ONLY_IMPORT)) != before


def test_what_has_no_order_and_what_nobody_uses_changes_nothing(here: Path) -> None:
    one, other = changed("prompts.match", ["size", "seed"]), changed("prompts.match", [])
    other["prompts"]["match"] = ["seed", "size", "seed"]
    assert digest(here, one) == digest(here, other)
    # How many phrases to ask for means nothing where the phrases are given.
    assert digest(here, changed("prompts.slots.0.count", 7)) == digest(here)
    one = changed("prompts.sets", {"amplify": 1})
    assert digest(here, one) == digest(here, changed("prompts.import", None, one))


def test_braces_in_captions_are_what_they_stand_for(here: Path) -> None:
    (here / "photos/1.txt").write_text("a photo of a sks cat asleep")
    before = digest(here, BASE)
    (here / "photos/1.txt").write_text("a photo of a {} asleep")
    assert digest(here, BASE) == before


def test_photos_count_only_where_a_set_needs_them(here: Path) -> None:
    content = changed("prompts.sets", {"amplify": 1})
    before = digest(here, content)
    (here / "photos/1.png").write_text("another image")
    assert digest(here, content) == before
    content["subject"].pop("images")
    content["subject"]["captions"] = "auto"
    content["prompts"]["llm"]["vision_model"] = "gpt-4o"
    assert digest(here, content) == before


def test_a_file_that_has_gone_since_is_named(here: Path) -> None:
    path = here / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    recipe = load_recipe(path)
    (here / "places.txt").unlink()
    with pytest.raises(RecipeError, match=r"prompts\.slots\.1\.file: .*places\.txt cannot be read"):
        recipe_digest(recipe)
    shutil.rmtree(here / "photos")
    (here / "places.txt").touch()
    with pytest.raises(RecipeError, match=r"subject\.images: .*photos cannot be read: No such"):
        recipe_digest(recipe)
