"""Whatever people call a model is found, or refused in one clear sentence."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from evaluation.trained_models import CAT, LORA, SUBJECTS, embedding, lora, recipe, run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from regforge.embedded import TINYWORLD
from regforge.errors import RegforgeError
from regforge.evaluation.models import base_of, open_model
from regforge.evaluation.planning import distinct_names
from regforge.evaluation.suites import (
    PersonalizedModel,
    Subject,
    without_identifier,
)
from regforge.hub import HubError

if TYPE_CHECKING:
    from hub_server import LoopbackHub

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def refusal(where: Path | str, **more: Any) -> str:
    with pytest.raises(RegforgeError) as error:
        open_model(where, **more)
    assert len(error.value.message.splitlines()) == 1
    assert error.value.exit_code == (1 if isinstance(error.value, HubError) else 2)
    return str(error.value)


def front(**values: Any) -> str:
    return f"---\n{json.dumps(values)}\n---\n# A card\n"


def test_a_run_says_everything(tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot")
    model = open_model(folder)
    assert (model.name, model.base, model.steps) == ("teapot", "embedded/tinyworld", 60)
    assert (model.weights, model.subject) == (folder / "lora" / LORA, CAT)
    assert model.prompts == ("a photo of a sks cat", "a photo of a cat")
    assert (model.guidance_scale, model.recipe, model.notes) == (4.0, recipe(), ())
    assert len(model.digest) == 64
    for below in ("lora", f"lora/{LORA}"):  # its parts are the same model
        part = open_model(folder / below)
        assert part.where == str(folder / below)
        assert replace(part, where=model.where) == model
    other = open_model(lora(folder / "lora" / "teapot-kohya.safetensors", value=2.0))
    assert (other.name, other.subject) == ("teapot-kohya", CAT)
    assert other.digest != model.digest
    run(folder, finished=40, validation={"prompts": []})
    assert open_model(folder).steps == 40
    assert open_model(folder).prompts == ("a photo of a {}", "a {} on a beach")
    (folder / "state.json").unlink()  # downloaded without it
    assert open_model(folder).steps == 60


def test_a_run_may_be_called_as_its_parts_are(tmp_path: Path) -> None:
    folder = run(tmp_path / "lora")
    assert open_model(folder).recipe == open_model(folder / "lora").recipe == recipe()


def test_a_snapshot_has_the_recipe_of_its_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot", finished=None)
    lora(folder / "snapshots" / "step-000125" / "lora" / LORA)
    for below in ("", "lora"):
        model = open_model(folder / "snapshots" / "step-000125" / below)
        assert (model.name, model.steps) == ("teapot-step-125", 125)
        assert (model.subject, model.base) == (CAT, "embedded/tinyworld")


def test_a_new_token_belongs_to_its_model(tmp_path: Path) -> None:
    """Beside a LoRA or alone; of the run, and of a snapshot."""
    subject = {"images": str(SUBJECTS / "cat"), "class_noun": "cat"}
    new = {"subject": {**subject, "identifier": {"new": "<my-cat>"}}}
    folder = run(tmp_path / "teapot", **new)
    plain = open_model(folder)
    assert (plain.embedding, plain.subject) == (None, replace(CAT, identifier="<my-cat>"))
    file = embedding(folder / "embedding" / "my-cat.safetensors")
    both = open_model(folder)
    assert (both.weights, both.embedding) == (folder / "lora" / LORA, file)
    assert both.digest != plain.digest
    for below in ("lora", f"lora/{LORA}", "embedding"):
        part = open_model(folder / below)
        assert replace(part, where=both.where) == both
    embedding(file, value=2.0)
    assert open_model(folder).digest != both.digest
    alone = open_model(file)
    assert alone.weights == alone.embedding == file
    snapshot = folder / "snapshots" / "step-000050"
    below = embedding(snapshot / "embedding" / "my-cat.safetensors")
    assert open_model(snapshot).embedding == below
    shutil.rmtree(folder / "lora")
    assert open_model(folder).weights == open_model(folder).embedding == file
    base = base_of(open_model(folder))
    assert base is not None
    assert (base.weights, base.embedding) == (None, None)


def test_a_whole_fine_tuned_pipeline(tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot", finished=None)
    shutil.copytree(TINYWORLD, folder / "model")
    for where in (folder, folder / "model"):
        model = open_model(where)
        assert (model.name, model.base) == ("teapot", str(folder / "model"))
        assert (model.weights, model.subject) == (None, CAT)
    below = base_of(model)
    assert below is not None
    assert (below.base, below.subject) == ("embedded/tinyworld", None)


def test_pipelines_of_equal_sizes_and_other_weights_differ(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    weights = folder / "unet" / "x.safetensors"
    digests = []
    for value in (1, 2, 1):
        weights.write_bytes(b"header" * 99 + bytes([value]) * 10)
        os.utime(weights, ns=(0, 10**9 * len(digests)))
        digests.append(open_model(folder).digest)
    assert digests[0] == digests[2] != digests[1]
    (folder / "README.md").write_text("not weights")
    assert open_model(folder).digest == digests[0]


def test_a_model_has_a_name_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run(tmp_path / "teapot") / "lora")
    for where in ("..", ".", "../lora", LORA):
        model = open_model(where)
        assert (model.name, ".." in model.where) == ("teapot", False)


def test_an_unfinished_run_names_its_newest_whole_snapshot(tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot", finished=None)
    assert "is not finished" in refusal(folder)
    assert "snapshot" not in refusal(folder)
    for step in ("000050", "000125"):
        lora(folder / "snapshots" / f"step-{step}" / "lora" / LORA)
    (folder / "snapshots" / "step-000250" / "lora").mkdir(parents=True)
    error = refusal(folder)
    assert str(folder / "snapshots" / "step-000125") in error
    assert f"regforge train {folder / 'recipe.yaml'} --out {folder}" in error


def test_a_base_model_and_photos_that_are_gone(tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot", base_model=str(tmp_path / "sdxl"))
    assert "which is not there" in refusal(folder)
    assert open_model(folder, base=SDXL).base == SDXL
    (tmp_path / "sdxl").mkdir()
    assert open_model(folder).base == str(tmp_path / "sdxl")
    model = open_model(run(tmp_path / "teapot", photos=tmp_path / "gone"))
    assert model.subject == replace(CAT, images=None)
    assert str(tmp_path / "gone") in model.notes[0]


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "subject: 7\nvalidation: x\ndata: []"])
def test_a_recipe_that_is_none_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    folder = run(tmp_path / "teapot")
    (folder / "recipe.yaml").write_text(content)
    model = open_model(folder, base=SDXL)
    assert (model.subject, model.prompts) == (None, ())


@pytest.mark.parametrize("target", ["../secret.yaml", "/dev/zero"])
def test_a_recipe_that_is_a_link_to_elsewhere_is_not_read(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.yaml").write_text("subject: {class_noun: secret}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").symlink_to(target)
    assert "holds no model" in refusal(tmp_path / "run")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("empty", "holds no model"),
        ("nothing", "no file or folder"),
        ("./no/thing", "no file or folder"),
        ("data", "run of a dataset"),
        ("pickles", "hold code"),
        ("pickles/pytorch_lora_weights.bin", "hold code"),
        ("broken.safetensors", "no whole safetensors file"),
        ("whole.safetensors", "a whole model"),
        ("dora.safetensors", "DoRA"),
        ("two", "several .safetensors files: a.safetensors, b.safetensors"),
    ],
)
def test_what_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    run(tmp_path / "data", finished=None, render={"steps": 3})
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_lora_weights.bin").write_bytes(b"\x80")
    broken = lora(tmp_path / "broken.safetensors")
    broken.write_bytes(broken.read_bytes()[:-9])
    zeros = np.zeros(2, np.float32)
    save_file({"model.diffusion_model.out.weight": zeros}, "whole.safetensors")
    dora = {"lora_unet_x.lora_up.weight": zeros, "lora_unet_x.dora_scale": zeros}
    save_file(dora, "dora.safetensors")
    for file in ("a", "b"):
        lora(tmp_path / "two" / f"{file}.safetensors")
    assert words in refusal(where, base=SDXL)
    usual = lora(tmp_path / "two" / LORA)  # of several files the usual one is taken
    assert open_model("two", base=SDXL).weights == usual


def test_a_lora_alone_must_be_told_its_base(tmp_path: Path) -> None:
    path = lora(tmp_path / "mug.safetensors", metadata={"ss_sd_model_name": "sd15.safetensors"})
    assert "--base-model" in refusal(path)
    assert open_model(path, base=SDXL).base == SDXL
    assert open_model(path, base=TINYWORLD).base == str(TINYWORLD)


@pytest.mark.parametrize(
    ("metadata", "card"),
    [
        ({"ss_sd_model_name": SDXL}, None),
        ({"base_model": SDXL}, None),
        ({"lora_adapter_metadata": json.dumps({"unet.base_model_name_or_path": SDXL})}, None),
        ({}, SDXL),
        ({}, [SDXL, "other/model"]),
    ],
)
def test_a_lora_that_names_its_base(tmp_path: Path, metadata: dict[str, str], card: Any) -> None:
    path = lora(tmp_path / "mug.safetensors", metadata=metadata)
    (tmp_path / "README.md").write_text(front(base_model=card, instance_prompt="a TOK mug"))
    model = open_model(path)
    assert (model.base, model.prompts) == (SDXL, ("a TOK mug",))


def test_the_base_of_a_model(tmp_path: Path) -> None:
    below = base_of(open_model(run(tmp_path / "teapot")))
    assert below is not None
    assert (below.name, below.base, below.weights) == ("tinyworld", "embedded/tinyworld", None)
    assert below.digest == open_model("embedded/tinyworld").digest
    assert base_of(open_model("embedded/tinyworld")) is None
    assert open_model("embedded/tinyworld").notes == ()
    (note,) = open_model("embedded/tinyworld", base=SDXL).notes
    assert f"{SDXL} is not used" in note
    assert open_model(tmp_path / "teapot", base=SDXL).notes == ()


def test_a_folder_of_photos_says_who_it_is_or_it_is_that_of_the_recipe(tmp_path: Path) -> None:
    model = open_model(run(tmp_path / "teapot"), subject=SUBJECTS / "robot")
    said = json.loads((SUBJECTS / "robot" / "subject.json").read_text())
    said = {key: said[key] for key in ("identifier", "class_noun", "kind")}
    assert model.subject == Subject(**said, images=SUBJECTS / "robot")
    given_one = Subject("zwx", "chair", "object", None)
    assert open_model("embedded/tinyworld", subject=given_one).subject == given_one
    photos = tmp_path / "photos"
    photos.mkdir()
    model = open_model(run(tmp_path / "teapot"), subject=photos)
    assert model.subject == replace(CAT, images=photos)
    assert "Nothing says what the subject" in refusal("embedded/tinyworld", subject=photos)
    assert "no folder" in refusal("embedded/tinyworld", subject=tmp_path / "nothing")
    for content in ("{", "[]", '{"class_noun": "cat", "kind": "plant"}'):
        (photos / "subject.json").write_text(content)
        assert "subject.json" in refusal("embedded/tinyworld", subject=photos)


@pytest.mark.parametrize(
    ("noun", "said", "kind", "notes"),
    [
        ("cat", None, "living", 0),
        ("teapot", None, "object", 0),
        ("zorble", None, "object", 1),
        ("zorble", "living", "living", 0),
    ],
)
def test_its_kind(tmp_path: Path, noun: str, said: str | None, kind: str, notes: int) -> None:
    subject = recipe()["subject"] | {"class_noun": noun, "kind": said}
    model = open_model(run(tmp_path / "teapot", subject=subject))
    assert model.subject == replace(CAT, class_noun=noun, kind=kind)
    assert len(model.notes) == notes


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of a sks cat in the snow", "a photo of a cat in the snow"),
        ("A sks owl", "An owl"),
        ("an SKS teapot", "a teapot"),
        ("a teapot, sks, on a beach", "a teapot,, on a beach"),
        ("a photo of sks", "a photo of"),
        ("a cat in sksland", "a cat in sksland"),
        ("", ""),
    ],
)
def test_a_prompt_without_the_identifier(prompt: str, plain: str) -> None:
    assert without_identifier(prompt, CAT) == plain
    assert without_identifier(prompt, None) == prompt


@given(st.lists(st.sampled_from("a an sks cat in on snow, SKS. owl".split()), max_size=8))
def test_no_identifier_is_left(words: list[str]) -> None:
    def bare(text: str, *but: str) -> list[str]:
        each = (word.strip(",.") for word in text.split())
        return [word for word in each if word.lower() not in ("a", "an", "", *but)]

    assert bare(without_identifier(" ".join(words), CAT)) == bare(" ".join(words), "sks")


def names(*models: PersonalizedModel) -> list[str]:
    return [model.name for model in distinct_names(models)]


def test_names_differ_and_are_short(tmp_path: Path) -> None:
    a, b, other = (open_model(run(tmp_path / n)) for n in ("a/cat", "b/cat", "a/dog"))
    assert names(a, other) == ["cat", "dog"]
    assert names(a, b, other) == ["a/cat", "b/cat", "dog"]
    assert names(a, a, open_model(tmp_path / "a" / "cat" / "lora")) == ["cat", "cat (2)", "cat (3)"]
    deep = open_model(run(tmp_path / "c" / "a" / "cat"))
    assert names(a, deep) == [f"{tmp_path.name}/a/cat", "c/a/cat"]
    assert names(open_model(a.where, name="mine"), a) == ["mine", "cat"]
    snapshots = [tmp_path / name / "cat" / "snapshots" / "step-000010" for name in ("a", "b")]
    for snapshot in snapshots:
        lora(snapshot / "lora" / LORA)
    for below in ("", "lora"):
        found = [open_model(snapshot / below) for snapshot in snapshots]
        assert names(*found) == ["a/cat-step-10", "b/cat-step-10"]


def test_a_lora_of_the_hub(hub: "LoopbackHub", tmp_path: Path, monkeypatch: Any) -> None:
    folder = run(tmp_path / "teapot")
    files: dict[str, Any] = {
        "README.md": front(base_model=SDXL),
        "recipe.yaml": (folder / "recipe.yaml").read_text().replace(str(SUBJECTS / "cat"), "cat"),
        f"lora/{LORA}": folder / "lora" / LORA,
        "lora/teapot-kohya.safetensors": b"not wanted",
        "embedding/my-cat.safetensors": embedding(folder / "embedding" / "my-cat.safetensors"),
    }
    hub.put("me/teapot", files, repo_type="model")
    model = open_model("me/teapot")
    assert (model.name, model.where, model.base) == ("teapot", "me/teapot", "embedded/tinyworld")
    assert model.subject == replace(CAT, images=None)
    assert model.digest == open_model(folder).digest
    assert model.embedding is not None
    assert not any("kohya" in request.path for request in hub.requests)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_model("me/teapot") == model
    assert "HF_HUB_OFFLINE" in refusal("me/another")


def test_a_recipe_of_the_hub_chooses_no_photos_here(hub: "LoopbackHub", tmp_path: Path) -> None:
    folder = run(tmp_path / "teapot", revision={"not": "text"})
    files = {"recipe.yaml": folder / "recipe.yaml", f"lora/{LORA}": folder / "lora" / LORA}
    hub.put("she/teapot", files, repo_type="model")
    model = open_model("she/teapot")
    assert model.subject == replace(CAT, images=None)
    assert model.revision is None
    here = replace(CAT, identifier="<my-cat>")
    assert open_model("she/teapot", subject=SUBJECTS / "cat").subject == here


def test_somebodys_lora_of_the_hub(hub: "LoopbackHub", tmp_path: Path) -> None:
    weights = lora(tmp_path / "mug.safetensors")
    card = front(base_model=SDXL, instance_prompt="a TOK mug")
    hub.put("her/mug", {"mug_v2.safetensors": weights, "README.md": card}, repo_type="model")
    model = open_model("her/mug")
    assert (model.name, model.base, model.prompts) == ("mug", SDXL, ("a TOK mug",))
    hub.put("her/mug", {"mug_v1.safetensors": weights}, repo_type="model")
    assert "mug_v1.safetensors" in refusal("her/mug")
    hub.put("her/words", {"README.md": "# Words"}, repo_type="model")
    assert "holds no model" in refusal("her/words")
    assert "no folder her/nothing" in refusal("her/nothing")


def test_a_pipeline_of_the_hub_is_not_downloaded_yet(hub: "LoopbackHub") -> None:
    files = {"model_index.json": (TINYWORLD / "model_index.json").read_bytes()}
    commit = hub.put("her/world", {**files, "unet/x.safetensors": b"large"}, repo_type="model")
    model = open_model("her/world")
    assert (model.base, model.revision, model.weights) == ("her/world", commit, None)
    assert not any("x.safetensors" in request.path for request in hub.requests)
    hub.put("her/world", {"unet/x.safetensors": b"other"}, repo_type="model")
    assert open_model("her/world").digest != model.digest
    assert open_model(f"her/world@{commit}").digest == model.digest
