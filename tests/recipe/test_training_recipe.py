"""Training recipes: what is read, and the exact lines that people read about bad ones."""

# ruff: noqa: E501 (tables of long lines)

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from regforge.recipe import (
    RecipeError,
    TrainingRecipe,
    checked,
    load_recipe,
    load_training_recipe,
    recipe_digest,
    recipe_warnings,
    resolved_yaml,
    uses_regularization,
)
from regforge.recipe.training import NewToken
from regforge.recipe.training_checks import OPTIMIZERS, TRACKERS

GOOD = """\
name: pots
subject:
  images: photos
  class_noun: teapot
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write(f"photos/{number}.png", "")


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def complaints(text: str, *overrides: str) -> list[str]:
    """The lines about a recipe, without the name of its file."""
    write("recipe.yaml", text)
    with pytest.raises(RecipeError) as caught:
        load_training_recipe("recipe.yaml", overrides)
    return [str(problem).removeprefix("recipe.yaml:") for problem in caught.value.problems]


def test_three_keys_are_enough_and_more_arrive_as_they_were_written(tmp_path: Path) -> None:
    recipe = load_training_recipe(write("recipe.yaml", GOOD))
    assert recipe.subject.images == tmp_path / "photos"
    assert recipe.subject.identifier == "sks"
    assert recipe.base_model == "embedded/tinyworld"
    assert recipe.regularization.dataset is None
    assert recipe.source == tmp_path / "recipe.yaml"
    assert recipe == load_training_recipe("recipe.yaml")
    more = "method: {targets: [to_q, to_k]}\noptimizer: {betas: [0.5, 0.9], max_grad_norm: null}\n"
    recipe = load_training_recipe(write("recipe.yaml", GOOD + more))
    assert recipe.method.targets == ("to_q", "to_k")
    assert recipe.optimizer.betas == (0.5, 0.9)
    assert recipe.optimizer.max_grad_norm is None


def test_extends_and_set_compose(tmp_path: Path) -> None:
    write(
        "lib/base.yaml", GOOD.replace("photos", "../photos") + "optimizer: {lr: 1e-3, steps: 7}\n"
    )
    write("mine.yaml", "extends: lib/base.yaml\nname: mine\noptimizer: {steps: 8}\ndata:\n")
    recipe = load_training_recipe("mine.yaml", ["method.rank=4", "subject.images=photos"])
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.steps) == ("mine", 1e-3, 8)
    assert recipe.method.rank == 4
    assert recipe.subject.images == tmp_path / "photos"
    assert recipe.extends is None  # carried out


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("me/teapots", "me/teapots"),
        ("me/teapots@v1", "me/teapots@v1"),
        ("https://huggingface.co/datasets/me/teapots", "me/teapots"),
        ("here/teapots", "HERE/sub/here/teapots"),  # what lies there is not looked for on the Hub
        ("./here/teapots", "HERE/sub/here/teapots"),
        ("../photos", "HERE/photos"),
    ],
)
def test_a_dataset_is_a_path_or_a_name_on_the_hub(tmp_path: Path, written: str, read: str) -> None:
    Path("sub/here/teapots").mkdir(parents=True)
    text = GOOD.replace("photos", "../photos") + f"regularization: {{dataset: '{written}'}}\n"
    recipe = load_training_recipe(write("sub/recipe.yaml", text))
    assert recipe.regularization.dataset == read.replace("HERE", str(tmp_path))


def test_a_base_model_is_a_folder_beside_the_recipe_or_a_name(tmp_path: Path) -> None:
    index = '{"_class_name": "StableDiffusionXLPipeline"}'
    write("sub/models/sdxl/model_index.json", index)
    text = GOOD.replace("photos", "../photos") + "base_model: models/sdxl\n"
    path = write("sub/recipe.yaml", text)
    assert load_training_recipe(path).base_model == str(tmp_path / "sub/models/sdxl")
    for name in ("models/other", "embedded/tinyworld"):
        assert load_training_recipe(path, [f"base_model={name}"]).base_model == name


@pytest.mark.parametrize(
    ("more", "line"),
    [
        # Keys
        ("optimizer:\n  stesp: 5\n", "6:3  optimizer.stesp: unknown key, did you mean 'steps'?"),
        ("lr: 5\n", "5:1  lr: unknown key here, did you mean optimizer.lr?"),
        ("data: {rank: 4}\n", "5:8  data.rank: unknown key here, did you mean method.rank?"),
        ("zzz: 5\n", "5:1  zzz: unknown key; there are version, name, extends, base_model, config, revision, variant, subject, subjects, regularization, method, data, optimizer, validation, checkpoint, hub, tracking, device, offload, seed"),
        # Values
        ("optimizer:\n  steps: 0\n", "6:10  optimizer.steps: must be at least 1, not 0"),
        ("optimizer: {lr: fast}\n", "5:17  optimizer.lr: must be a number, not 'fast'"),
        ("optimizer: {lr: 0}\n", "5:17  optimizer.lr: must be more than 0, not 0"),
        ("optimizer: {betas: [0.9]}\n", "5:20  optimizer.betas: needs two numbers, such as [0.9, 0.999]"),
        ("optimizer: {betas: [0.9, 0.99, 0.999]}\n", "5:20  optimizer.betas: needs two numbers, such as [0.9, 0.999]"),
        ("optimizer: {betas: [0.9, 1]}\n", "5:26  optimizer.betas.1: must be less than 1, not 1"),
        ("optimizer: {ema_decay: 1}\n", "5:24  optimizer.ema_decay: must be less than 1, not 1"),
        ("optimizer: {precision: half}\n", "5:24  optimizer.precision: must be one of auto, fp32, fp16, bf16, not 'half'"),
        ("optimizer: {name: adam}\n", "5:19  optimizer.name: must be one of adamw, adamw8bit, prodigy; did you mean 'adamw'?"),
        ("optimizer: {name: zzz}\n", "5:19  optimizer.name: must be one of adamw, adamw8bit, prodigy, not 'zzz'"),
        ("data: {flip: maybe}\n", "5:14  data.flip: must be true or false, not 'maybe'"),
        ("data: {caption_dropout: true}\n", "5:25  data.caption_dropout: must be a number, not true"),
        ("data: {slot_dropout: 1.5}\n", "5:22  data.slot_dropout: must be at most 1, not 1.5"),
        ("data: {crop: centre}\n", "5:14  data.crop: must be one of random, center, none; did you mean 'center'?"),
        ("data: {resolution: 1001}\n", "5:20  data.resolution: must be a multiple of 8, such as 1000 or 1008, not 1001"),
        ("method: {kind: dora}\n", "5:16  method.kind: must be one of lora, full, embedding; did you mean 'lora'?"),
        ("method: {targets: to_q}\n", "5:19  method.targets: must be a list, not 'to_q'; write [to_q]"),
        ("method: {targets: []}\n", "5:19  method.targets: must not be empty"),
        ("method: {targets: [to_q, '']}\n", "5:26  method.targets.1: must not be blank"),
        ("tracking: tensorbord\n", "5:11  tracking: must be one of none, tensorboard, wandb, trackio; did you mean 'tensorboard'?"),
        ("checkpoint: {resume: yes}\n", "5:22  checkpoint.resume: must be one of auto, never, not 'yes'"),
        ("checkpoint: often\n", "5:13  checkpoint: must be a section with keys of its own, not 'often'"),
        ("device: cpu\noptimizer: {precision: fp16}\n", "6:24  optimizer.precision: fp16 is for GPUs: on the CPU choose fp32 or bf16, or leave it out"),
        ("method: {kind: full, quantize: int8}\n", "5:32  method.quantize: freezes the weights, and `full` trains them: take a LoRA, or leave it out"),
        ("offload: group\n", "5:10  offload: `group` takes weights off the device that the gradient needs afterwards; all but the denoiser leaves by itself, and method.quantize makes that smaller"),
        ("device: ' '\n", "5:9  device: must not be blank"),
        # What is named
        ("base_model: embedded/tiny\n", "5:13  base_model: there is no 'embedded/tiny', only 'embedded/tinyworld'"),
        ("base_model: ' '\n", "5:13  base_model: must not be blank"),
        ("base_model: ./models/none\n", "5:13  base_model: there is no folder HERE/models/none; a model of the Hub is owner/name"),
        ("base_model: ./photos\n", "5:13  base_model: HERE/photos has no model_index.json, so it is no diffusers pipeline"),
        ("base_model: photos/1.png\n", "5:13  base_model: HERE/photos/1.png is no model: neither .safetensors nor .gguf"),
        ("regularization: {dataset: ''}\n", "5:27  regularization.dataset: must not be empty"),
        ("regularization: {dataset: ../runs/none}\n", "5:27  regularization.dataset: there is no UP/runs/none"),
        ("regularization: {dataset: me/x@v1, revision: v2}\n", "5:46  regularization.revision: the dataset's name says 'v1' already"),
        ("regularization: {dataset: ./photos, revision: v2}\n", "5:47  regularization.revision: goes with a dataset of the Hub alone: user/name"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line(tmp_path: Path, more: str, line: str) -> None:
    line = line.replace("HERE", str(tmp_path)).replace("UP", str(tmp_path.parent))
    assert complaints(GOOD + more) == [line]


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("{class_noun: cat}", "2:1  subject.images: is missing; for example images: photos/"),
        ("{images: photos}", "2:1  subject.class_noun: is missing; for example class_noun: ceramic teapot"),
        ("{images: photo, class_noun: cat}", "2:19  subject.images: there is no folder HERE/photo"),
        ("{images: bare, class_noun: cat}", "2:19  subject.images: there are no photos in HERE/bare (JPEG, PNG, WebP)"),
        ("{images: photos/0.png, class_noun: cat}", "2:19  subject.images: there is no folder HERE/photos/0.png"),
        ("{images: photos, class_noun: ' '}", "2:39  subject.class_noun: must not be blank"),
        ("{images: photos, class_noun: cat, identifier: ' '}", "2:56  subject.identifier: must not be blank"),
        ("{images: photos, class_noun: cat, identifier: ''}", "2:56  subject.identifier: must not be empty"),
        ("{images: photos, class_noun: cat, identifier: sks cat}", "2:56  subject.identifier: must be the token alone, without the class noun 'cat'"),
        ("{images: photos, class_noun: cat, rank: 4}", "2:44  subject.rank: unknown key here, did you mean method.rank?"),
        ("{images: photos, class_noun: cat, kind: beast}", "2:50  subject.kind: must be one of object, living, not 'beast'"),
    ],
)  # fmt: skip
def test_each_mistake_about_subjects_has_its_line(tmp_path: Path, subject: str, line: str) -> None:
    Path("bare").mkdir()
    assert complaints(f"name: x\nsubject: {subject}\n") == [line.replace("HERE", str(tmp_path))]


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
name: tea pot
subject: {images: photo, class_noun: teapot}
regularization: {dataset: ../none, target: techer}
optimizer:
  stesp: 5
  name: adamm
"""
    assert complaints(text, "data.resolution=90", "seed=soon") == [
        "1:7  name: must be at most 80 letters, digits, '.', '_' and '-', the first a letter or digit, not 'tea pot'",
        f"2:19  subject.images: there is no folder {tmp_path}/photo",
        f"3:27  regularization.dataset: there is no {tmp_path.parent}/none",
        "3:44  regularization.target: must be one of pixels, teacher; did you mean 'teacher'?",
        "5:3  optimizer.stesp: unknown key, did you mean 'steps'?",
        "6:9  optimizer.name: must be one of adamw, adamw8bit, prodigy; did you mean 'adamw'?",
        "--set data.resolution=90  data.resolution: must be a multiple of 8, such as 88 or 96, not 90",
        "--set seed=soon  seed: must be a whole number, not 'soon'",
    ]  # fmt: skip


def test_without_weight_nobody_asks_for_the_dataset() -> None:
    more = "regularization: {dataset: ../runs/none, prior_weight: 0}\n"
    assert load_training_recipe(write("r.yaml", GOOD + more)).regularization.prior_weight == 0


@pytest.mark.parametrize(
    ("identifier", "more", "lines"),
    [
        ("{neww: <my-pot>}", "", ["5:3  subject.identifier.new: is missing; for example new: <my-cat>", "5:16  subject.identifier.neww: unknown key, did you mean 'new'?"]),
        ("{new: <My Pot>}", "", ["5:21  subject.identifier.new: must be small letters, digits, '-' and '_' in angle brackets, such as <my-cat>, at most 40 characters, not '<My Pot>'"]),
        ("{new: <my-pot>, vectors: 0}", "", ["5:40  subject.identifier.vectors: must be at least 1, not 0"]),
        ("{new: <my-pot>, init: ' '}", "", ["5:37  subject.identifier.init: must not be blank"]),
        ("sks", "regularization: {class_twins: 0.5}\n", ["6:31  regularization.class_twins: needs regularization.dataset for the other images, or must be 1"]),
        ("sks", "method: {dora: true}\nregularization: {drift_penalty: 0.5}\n", ["7:33  regularization.drift_penalty: is for plain LoRAs and full fine-tuning, not for DoRA, which has no plain product"]),
        ("[<my-pot>]", "", ["5:15  subject.identifier: must be text, not a list"]),
        ("ohwx", "method: {kind: embedding}", ["6:16  method.kind: trains a new token alone: subject.identifier must be one, {new: <my-cat>}"]),
        ("{new: <my-pot>}", "method: {kind: embedding, text_encoder: true}", ["6:41  method.text_encoder: must be false with method.kind: embedding, which trains the new token alone"]),
    ],
)  # fmt: skip
def test_a_new_token_that_cannot_be(identifier: str, more: str, lines: list[str]) -> None:
    assert complaints(f"{GOOD}  identifier: {identifier}\n{more}\n") == lines


def test_a_new_token_is_read_and_written_and_its_settings_count() -> None:
    text = GOOD + "  identifier: {new: <my-pot>}\n"
    recipe = load_training_recipe(write("recipe.yaml", text))
    assert recipe.subject.token == NewToken(new="<my-pot>")
    assert (recipe.subject.word, recipe.trains_text) == ("<my-pot>", True)
    assert load_training_recipe(write("again.yaml", resolved_yaml(recipe))) == recipe
    digests = {
        recipe_digest(load_training_recipe("recipe.yaml", [f"subject.identifier.{setting}"]))
        for setting in ("lr=5e-3", "lr=1e-3", "vectors=2", "init=jug", "new=<jug>")
    }
    assert len(digests) == 5
    assert recipe_digest(recipe) in digests
    # The class noun in its name is no word.
    assert not [line for line in recipe_warnings(recipe) if "identifier" in line]
    alone = load_training_recipe(
        "recipe.yaml", ["method.kind=embedding", "regularization.dataset=me/x"]
    )
    assert not uses_regularization(alone)
    assert any("their captions lack the token" in line for line in recipe_warnings(alone))


def test_a_dataset_that_was_never_made_comes_with_the_way_to_it(tmp_path: Path) -> None:
    more = "regularization: {dataset: ../runs/quickstart}\n"
    text = GOOD.replace("photos", "../photos") + more
    for place, means in (
        ("runs/quickstart", "run `make quickstart` first"),
        ("runs/sd15", "/sd15.yaml` first"),
    ):
        path = write("sub/recipe.yaml", text.replace("runs/quickstart", place))
        with pytest.raises(RecipeError) as caught:
            load_training_recipe(path)
        assert f"there is no {tmp_path}/{place} yet: run " in str(caught.value)
        assert means in str(caught.value)
        assert "--set regularization.dataset=null" in str(caught.value)
    # Of a recipe in another place, such as the installed package, the run may be here.
    Path("runs/quickstart").mkdir(parents=True)
    path = write("far/away/recipe.yaml", text.replace("../photos", "../../photos"))
    with pytest.raises(RecipeError, match=r"--set regularization\.dataset=runs/quickstart$"):
        load_training_recipe(path)
    load_training_recipe(path, ["regularization.dataset=runs/quickstart"])


@pytest.mark.parametrize(
    ("more", "package"),
    [(f"optimizer: {{name: {name}}}", package) for name, package in OPTIMIZERS.items() if package]
    + [(f"tracking: {name}", package) for name, package in TRACKERS.items()],
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, more: str, package: str) -> None:
    find = importlib.util.find_spec
    there: dict[str, Any] = {package: None}
    monkeypatch.setattr(
        "regforge.recipe.training_checks.find_spec", lambda name: there.get(name, find("json"))
    )
    (line,) = complaints(f"{GOOD}{more}\n")
    assert line.endswith(f" needs a package that is not here: pip install {package}")
    there[package] = find("json")
    load_training_recipe("recipe.yaml")


def test_each_kind_of_recipe_says_which_command_it_is_for() -> None:
    dataset = "name: x\nsubject: {class_noun: cat}\nprompts: {count: 5}\nfoo: 1\n"
    assert complaints(dataset) == [
        "1:1  is a dataset recipe, for `regforge run`; here a training recipe is needed"
    ]
    write("recipe.yaml", GOOD + "optimizer: {steps: 5}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    assert str(caught.value) == (
        "recipe.yaml:1:1  is a training recipe, for `regforge train`; here a dataset recipe is needed"
    )
    # With keys of both, each wrong key is named.
    assert complaints(GOOD + "optimizer: {steps: 5}\nprompts: {count: 5}\n") == [
        "6:1  prompts: unknown key here, did you mean validation.prompts?"
    ]
    # What both may say is fine for both.
    write("recipe.yaml", GOOD)
    assert load_recipe("recipe.yaml").subject.class_noun == "teapot"


def test_a_recipe_made_in_python_is_checked_without_places() -> None:
    content = {"name": "x", "subject": {"images": "none", "class_noun": "cat"}}
    recipe = TrainingRecipe.model_validate({**content, "extends": "base.yaml"})
    with pytest.raises(RecipeError) as caught:
        checked(recipe)
    assert [str(problem) for problem in caught.value.problems] == [
        "subject.images: there is no folder none",
        "extends: works only in recipes that are files",
    ]
