"""`regularization.dataset: reg.yaml`: the dataset is made first, and used as it is afterwards."""

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import side_by_side
from training_runs import QUIET, recipe

from regforge.journal import Reporter
from regforge.recipe import (
    RecipeError,
    TrainingRecipe,
    checked,
    dataset_recipe_of,
    load_recipe,
    load_training_recipe,
    recipe_digest,
    resolved_yaml,
)
from regforge.runs import RunFolder, RunFolderError, TrainingFolder
from regforge.training import TrainingSetup, train
from regforge.training.data import with_dataset

REG: dict[str, Any] = {
    "name": "dogs",
    "subject": {"class_noun": "dog", "kind": "living"},
    "prompts": {
        "count": 3,
        "sets": {"amplify": 1},
        "slots": [{"name": "color", "values": ["red", "blue", "black"]}],
        "llm": {"model": "embedded/smollm2-135m"},
    },
    "render": {"model": "embedded/tinyworld", "steps": 1, "batch_size": 3},
    "curate": {"max_duplicate_distance": None},
}


@pytest.fixture
def reg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset recipe, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return written(tmp_path / "recipes" / "reg.yaml")


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**REG, **changes}))
    return path


def trained_beside(dataset: Path | str) -> TrainingRecipe:
    return recipe(regularization={"dataset": str(dataset)}, optimizer={"steps": 1})


def training_file(folder: Path, dataset: str, **regularization: Any) -> Path:
    """A training recipe beside the dataset recipe."""
    content = yaml.safe_load(resolved_yaml(trained_beside("me/reg")))
    content["regularization"] |= {"dataset": dataset, **regularization}
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_it_is_found_beside_the_recipe_and_its_problems_have_its_own_lines(reg: Path) -> None:
    path = training_file(reg.parent, "reg.yaml")
    assert load_training_recipe(path).regularization.dataset == str(reg)
    with pytest.raises(
        RecipeError,
        match=r"train\.yaml:\d+:\d+  regularization\.dataset: there is no recipe /.*other/reg\.yam",
    ):
        # Such a name could be a repository's.
        load_training_recipe(training_file(reg.parent, "other/reg.yaml"))
    with pytest.raises(RecipeError, match="revision: goes with a dataset of the Hub alone"):
        load_training_recipe(training_file(reg.parent, "reg.yaml", revision="v1"))
    reg.write_text("name: dogs\nsubject: {class_noun: dog, kind: living}\nprompts:\n  conut: 3\n")
    path = training_file(reg.parent, "reg.yaml")
    with pytest.raises(RecipeError, match=r"reg\.yaml:4:3  prompts\.conut: unknown key") as caught:
        load_training_recipe(path)
    assert "train.yaml" not in str(caught.value)
    assert load_training_recipe(path, ["regularization.prior_weight=0"])  # nobody looks at it
    with pytest.raises(RecipeError, match=r"is a training recipe.*here a dataset recipe"):
        load_training_recipe(training_file(reg.parent, "train.yaml"))


def test_the_digest_is_of_what_the_dataset_is(reg: Path) -> None:
    first = recipe_digest(trained_beside(reg))
    moved = written(reg.with_name("moved.yaml"), name="other")
    assert recipe_digest(trained_beside(moved)) == first
    assert recipe_digest(trained_beside("me/reg")) != first
    for change in ({"seed": 1}, {"prompts": {**REG["prompts"], "count": 4}}):
        assert recipe_digest(trained_beside(written(moved, **change))) != first
    checked(trained_beside("recipes/reg.yaml"))  # one made in Python too
    with pytest.raises(RecipeError, match=r"there is no recipe recipes/none\.yaml"):
        checked(trained_beside("recipes/none.yaml"))
    resolved = resolved_yaml(trained_beside(os.path.relpath(reg)))
    assert yaml.safe_load(resolved)["regularization"]["dataset"] == str(reg)
    assert str(reg.parent) not in resolved_yaml(trained_beside(reg), portable=True)


def test_the_dataset_recipe_is_read_once(reg: Path) -> None:
    recipe = load_training_recipe(training_file(reg.parent, "reg.yaml"))
    assert dataset_recipe_of(checked(recipe)) is dataset_recipe_of(recipe) is not None
    other = written(reg.with_name("other.yaml"), name="other")
    prior = recipe.regularization.model_copy(update={"dataset": str(other)})
    named = dataset_recipe_of(recipe.model_copy(update={"regularization": prior}))
    assert named is not None
    assert named.name == "other"


def test_a_folder_of_another_dataset_is_left_alone(reg: Path) -> None:
    folder = RunFolder(Path("runs/dogs"))
    folder.path.mkdir(parents=True)
    (folder.path / "mine.txt").write_text("words")
    with pytest.raises(TrainingSetup, match="holds other files than a run's") as caught:
        with_dataset(trained_beside(reg), is_main=True, reporter=QUIET)
    assert "--set regularization.dataset=RUN" in str(caught.value)
    assert [path.name for path in folder.path.iterdir() if path.name != ".lock"] == ["mine.txt"]


def test_the_training_and_its_dataset_need_folders_of_their_own(reg: Path) -> None:
    for out in ("runs/dogs", Path("recipes/../runs/dogs").absolute()):
        with pytest.raises(TrainingSetup, match=r"would both lie in .*runs/dogs"):
            train(trained_beside(reg), out, reporter=QUIET)
    assert not Path("runs").exists()


def test_a_folder_in_which_nothing_was_made_can_become_another_recipe_s(reg: Path) -> None:
    folder = TrainingFolder(Path("runs/cat"))
    with folder.locked():
        folder.own(trained_beside(reg), fresh=False)
        changed = trained_beside(written(reg, seed=1))  # its images could not be made; now they can
        assert not folder.own(changed, fresh=False)
        (folder.path / "log.jsonl").write_text("")
        for seed in (3, 1):
            assert not folder.own(trained_beside(written(reg, seed=seed)), fresh=False)
        (folder.path / "loss.svg").write_text("")
        with pytest.raises(RunFolderError, match="A file that the recipe names has changed"):
            folder.own(trained_beside(written(reg, seed=2)), fresh=False)
        assert folder.own(trained_beside(written(reg, seed=1)), fresh=False)


@pytest.mark.slow
def test_it_waits_for_whoever_makes_the_dataset(reg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = load_recipe(reg)
    folder, said = RunFolder(Path("runs/dogs")), io.StringIO()

    def finish(_: float) -> None:  # what the other process does while this one waits
        folder.dataset.mkdir()
        folder.remember(recipe_digest=recipe_digest(made_by), images=3)
        other.close()

    monkeypatch.setattr("regforge.training.data.time.sleep", finish)
    with ExitStack() as other:
        other.enter_context(folder.locked())
        found = with_dataset(trained_beside(reg), is_main=True, reporter=Reporter(stream=said))
    assert found.regularization.dataset == str(folder.path)
    assert "Another regforge is making them; waiting" in said.getvalue()


@pytest.mark.slow
def test_the_dataset_is_made_once(reg: Path) -> None:
    said = io.StringIO()
    first = train(trained_beside(reg), "first", reporter=Reporter(stream=said))
    assert "First the 3 regularization images" in said.getvalue()
    made = Path("runs/dogs/log.jsonl").stat().st_mtime_ns
    said = io.StringIO()
    # With what is there, and as if the run had been named itself.
    again = train(trained_beside(reg), "again", reporter=Reporter(stream=said))
    named = train(trained_beside("runs/dogs"), "named", reporter=QUIET)
    assert "First the" not in said.getvalue()
    assert Path("runs/dogs/log.jsonl").stat().st_mtime_ns == made
    assert first.prior_loss == again.prior_loss == named.prior_loss is not None
    assert first.weights.read_bytes() == again.weights.read_bytes() == named.weights.read_bytes()


@pytest.mark.slow
def test_of_several_processes_one_makes_the_dataset(reg: Path) -> None:
    path = training_file(reg.parent, "reg.yaml")
    both = side_by_side("train", path, "--out", "run")
    assert [each.wait() for each in both] == [0, 0], both[0].err + both[1].err
    assert (both[0].err + both[1].err).count("First the 3 regularization images") == 1
    assert (Path("run") / "lora" / "pytorch_lora_weights.safetensors").is_file()
