"""`regforge check` of a training recipe: what it would do; touches nothing, loads nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from shell import Shell

from regforge.recipe import RecipeError, TrainingRecipe, load_any_recipe, recipe_digest
from regforge.training import plan
from regforge.training.plan import TrainingPlan, make_training_plan

REG = {
    "name": "cats",
    "subject": {"class_noun": "cat"},
    "prompts": {"count": 8},
    "render": {"images_per_prompt": 2},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 6 photos, of which two have no caption, and 10 regularization images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fill(tmp_path / "photos", [f"sks cat in place {n}" for n in range(4)] + [None, None])
    fill(tmp_path / "reg", [f"a cat, number {n}" for n in range(10)])
    return tmp_path


def fill(folder: Path, captions: list[str | None]) -> None:
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (16, 16), (number, 80, 160)).save(folder / f"{number}.png")
        if caption is not None:
            (folder / f"{number}.txt").write_text(caption)


def recipe(dataset: str | None = None, **sections: Any) -> TrainingRecipe:
    prior = {"dataset": dataset, **sections.pop("regularization", {})}
    return TrainingRecipe.model_validate(
        {
            "name": "mine",
            "subject": {"class_noun": "cat", "images": str(Path("photos").absolute())},
            "regularization": prior,
            "optimizer": {"steps": 30, "batch_size": 2, **sections.pop("optimizer", {})},
            **sections,
        }
    )


def planned(dataset: str | None = None, **sections: Any) -> TrainingPlan:
    return make_training_plan(recipe(dataset, **sections))


def line(made: TrainingPlan, name: str) -> str:
    """What the plan says beside a name."""
    (found,) = (each for each in made.as_text().splitlines() if each.startswith(f"  {name}  "))
    return found.removeprefix(f"  {name}").strip()


def test_photos_are_shown_with_their_captions_and_the_one_they_get(here: Path) -> None:
    made = planned()
    assert line(made, "subject") == "sks cat, 6 photos"
    assert made.without_caption == ["4.png", "5.png"]
    _, _, shown = made.as_text().partition("Captions of the photos:\n")
    assert [each.split(maxsplit=1) for each in shown.splitlines()[:6]] == [
        *([f"{n}.png", f"sks cat in place {n}"] for n in range(4)),
        ["4.png", "a photo of a sks cat *"],
        ["and", "1 more"],
    ]
    assert "note: 4.png and 5.png have no caption" in shown


def test_what_the_model_makes_of_the_identifier(here: Path) -> None:
    """As its own tokenizer has it, and what is known of the word."""
    assert line(planned(), "identifier") == "2 tokens of embedded/tinyworld"
    assert not any("'sks'" in note for note in planned().notes)  # its encoder has never met it
    subject = {"class_noun": "cat", "images": str(here / "photos")}
    other = planned(subject={**subject, "identifier": "teapot"})
    assert line(other, "identifier") == "1 token of embedded/tinyworld"
    new = planned(subject={**subject, "identifier": {"new": "<my-cat>", "vectors": 2}})
    said = "a new token of 2 vectors, from 'cat' on, learning rate 0.005"
    assert line(new, "identifier") == said
    assert new.captions["4.png"] == "a photo of a <my-cat> cat"
    assert any("'<my-cat>': nothing will tie" in note for note in new.notes)  # of the other photos
    not_here = planned(base_model="stabilityai/stable-diffusion-xl-base-1.0")
    assert not_here.identifier == ""
    assert any("rifle" in note for note in not_here.notes)


@pytest.mark.parametrize(
    ("optimizer", "per_instance", "batch", "training"),
    [
        ({}, 1, (2, 2), "30 steps: each photo is seen 10 times, {} 6 times"),
        (
            {"gradient_accumulation": 2, "batch_size": 1, "steps": 7},
            3,
            (1, 3),
            "7 steps of 2 batches: each photo is seen about 2.3 times, {} about 4.2 times",
        ),
        (
            {"steps": 3},
            1,
            (2, 2),
            "3 steps: each photo is seen once, 6 of the regularization images once",
        ),
        (
            {"steps": 2},
            1,
            (2, 2),
            "2 steps: 4 of the photos are seen once, 4 of the regularization images once",
        ),
    ],
)
def test_how_often_each_is_seen(
    here: Path, optimizer: dict[str, int], per_instance: int, batch: tuple[int, int], training: str
) -> None:
    prior = {"per_instance": per_instance}
    made = planned(str(here / "reg"), optimizer=optimizer, regularization=prior)
    photos, images = batch
    beside = f"{photos} photo{'s' * (photos > 1)} and {images} regularization images"
    assert (made.batch, line(made, "a batch")) == (batch, beside)
    assert line(made, "training") == training.format("each regularization image")
    assert line(made, "regularization").startswith(f"{here / 'reg'}, 10 images; weight 1")


def test_class_twins_are_shown_and_counted(here: Path) -> None:
    half = planned(str(here / "reg"), regularization={"class_twins": 0.5})
    assert (half.images, half.seen_image) == (10, 3)
    alone = planned(regularization={"class_twins": 1})
    assert alone.batch == (2, 2)
    assert (alone.images, alone.seen_image) == (None, None)
    for made in (half, alone):
        assert "'a cat in place 0'" in line(made, "regularization")


def test_without_regularization_images_on_this_machine(here: Path) -> None:
    for made in (planned(), planned("me/cats", regularization={"prior_weight": 0})):
        assert (line(made, "regularization"), line(made, "a batch")) == ("none", "2 photos")
        assert line(made, "training") == "30 steps: each photo is seen 10 times"
        assert (made.images, made.seen_image) == (None, None)
    made = planned("me/cats", regularization={"revision": "v1"})
    assert line(made, "regularization").startswith("me/cats@v1 on the Hub, not read yet")
    assert line(made, "a batch") == "2 photos and 2 regularization images"
    assert line(made, "training") == "30 steps: each photo is seen 10 times"


def test_a_dataset_that_its_recipe_would_make_first(here: Path) -> None:
    (here / "reg.yaml").write_text(yaml.safe_dump(REG))
    made = planned(str(here / "reg.yaml"))
    first = f"{here / 'runs' / 'cats'}, made first: 16 images; "
    assert line(made, "regularization").startswith(first)
    assert made.seen_image == 60 / 16
    assert not (here / "runs").exists()
    fill(here / "runs", [])  # and one that it cannot make
    fill(here / "runs" / "cats", [None])
    (need,) = planned(str(here / "reg.yaml")).needs
    assert need.startswith("the regularization images, which cannot be made: ")
    assert need.endswith("runs/cats holds other files than a run's.")


def test_warnings_of_the_recipe_are_in_the_plan(here: Path) -> None:
    hub = "regularization.dataset: there is no run runs/reg here, so the Hub is asked"
    assert planned("runs/reg").warnings[-1].startswith(hub)
    (here / "runs").mkdir()
    (here / "reg").rename(here / "runs" / "reg")
    assert not any(hub in each for each in planned("runs/reg").warnings)
    late = "checkpoint.snapshots: training ends at step 30, before 40, 50."
    assert late in planned(checkpoint={"snapshots": [50, 30, 40]}).warnings
    assert not any("checkpoint" in each for each in planned().warnings)


def test_a_dataset_that_cannot_be_trained_on_is_said_now(here: Path, shell: Shell) -> None:
    fill(here / "silent", [None])
    (here / "mine.yaml").write_text("name: x\nsubject: {class_noun: cat, images: photos}\n")
    assert shell("check", "mine.yaml", "--set", "regularization.dataset=silent") == 2
    assert "silent has no captions" in shell.err


def test_what_is_trained_and_what_it_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"targets": ["a", "b", "c", "d", "e"], "dora": True, "text_encoder": True}
    (offline,) = planned(base_model="me/model").needs
    assert "HF_HUB_OFFLINE" in offline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    made = planned(method=many, base_model="me/model", revision="v2")
    assert line(made, "method") == "DoRA of rank 16, on a, b, c, d and 1 more, the text encoder too"
    assert line(made, "base model") == "me/model@v2"
    assert made.needs == ["me/model@v2, which is not on this machine: it will be downloaded"]
    assert made.result == here / "runs/mine/lora/pytorch_lora_weights.safetensors"
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name in ("peft", "torch") else name)
    assert planned().needs == ["packages that are not here: pip install torch peft"]
    full = planned(method={"kind": "full"})
    assert full.needs == ["packages that are not here: pip install torch peft"]
    assert line(full, "method") == "all weights, not the text encoder"
    assert full.result == here / "runs/mine/model"


def test_what_is_in_the_folder_already(here: Path) -> None:
    folder = here / "runs" / "mine"
    (folder / "checkpoints" / "step-000020").mkdir(parents=True)
    (folder / "checkpoints" / "step-000020" / "state.json").write_text("{}")
    state: dict[str, Any] = {"recipe_digest": recipe_digest(recipe())}

    def done() -> str:
        (folder / "state.json").write_text(json.dumps(state))
        return line(planned(), "run folder").removeprefix(str(folder)).strip()

    assert done() == "(begun: `train` goes on after step 20)"
    state["finished"] = {"steps": 30, "weights": "checkpoints"}
    assert done() == "(finished)"
    state["finished"]["weights"] = "lora/deleted"
    assert done() == "(begun: `train` goes on after step 20)"
    state["recipe_digest"] = "f" * 64
    assert done() == "(holds the run of another recipe; choose another with --out)"
    state.clear()
    assert done() == "(holds other files than a run's; choose another with --out)"


def test_a_base_model_that_was_downloaded_is_not_needed(here: Path) -> None:
    downloaded = here / "hub" / "models--me--model"
    for folder, name, text in (("snapshots/abc", "model_index.json", "{}"), ("refs", "v2", "abc")):
        (downloaded / folder).mkdir(parents=True)
        (downloaded / folder / name).write_text(text)
    assert planned(base_model="me/model", revision="v2").needs == []
    assert len(planned(base_model="me/model").needs) == 1


CHECK = """
import sys
from regforge import cli
try:
    cli.main()
finally:
    assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""


@pytest.mark.slow
def test_the_command_touches_nothing_and_loads_no_torch(here: Path) -> None:
    (here / "mine.yaml").write_text(
        "name: x\nsubject: {class_noun: cat, images: photos}\nregularization: {dataset: reg}\n"
    )
    before = sorted(here.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, "check", "mine.yaml", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["photos"], found["images"], found["batch"]) == (6, 10, [1, 1])
    assert (found["folder"], found["needs"]) == (str(here / "runs" / "x"), [])
    assert sorted(here.rglob("*")) == before


def test_the_keys_tell_the_kind_of_a_recipe_those_of_set_too(here: Path) -> None:
    path = here / "some.yaml"
    path.write_text("name: x\nsubject: {class_noun: cat, images: photos}\n")
    assert type(load_any_recipe(path)).__name__ == "Recipe"
    found = load_any_recipe(path, ["optimizer.steps=5"])
    assert isinstance(found, TrainingRecipe)
    assert found.optimizer.steps == 5
    with pytest.raises(RecipeError, match=r"prompts\.conut: unknown key"):
        load_any_recipe(path, ["prompts.conut=5"])
    with pytest.raises(RecipeError, match="there is no such file"):
        load_any_recipe(here / "none.yaml")
