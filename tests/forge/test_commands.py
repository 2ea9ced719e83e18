"""The commands as a person types them: what they print, and what they exit with."""

import errno
import json
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image
from shell import Shell
from small_runs import WriteRecipe

from regforge.dataset.store import read_rows
from regforge.files import recipes_folder

SHIPPED = sorted(
    path for path in recipes_folder().glob("*.yaml") if not path.stem.startswith("train-")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_check_finds_shipped_recipes_sound(path: Path, shell: Shell, tmp_path: Path) -> None:
    assert shell("check", path) == 0, shell.err
    assert "is a sound recipe" in shell.out.splitlines()[0]
    samples = shell.out.partition("Sample captions:\n")[2].splitlines()[:5]
    assert len(set(samples)) == (1 if "naive" in path.stem else 5), samples
    assert list(tmp_path.iterdir()) == []


def test_check_for_scripts_where_a_price_that_nobody_knows_is_unknown(shell: Shell) -> None:
    assert shell("check", recipes_folder() / "quickstart.yaml", "--json") == 0
    plan = json.loads(shell.out)
    assert plan["images"] == 64
    assert plan["sets"] == {"against": 16, "amplify": 48}
    assert plan["cost"] == 0
    assert len(plan["captions"]) == 5
    recipe = recipes_folder() / "objects-sdxl.yaml"
    assert shell("check", recipe, "--set", "prompts.llm.model=openai/nobody-knows-me") == 0
    assert "cost unknown" in shell.out
    assert shell("check", recipe, "--json") == 0
    assert 0 < json.loads(shell.out)["cost"] < 1


def test_from_an_empty_folder_to_a_dataset(shell: Shell, tmp_path: Path) -> None:
    assert shell("init", "mug.yaml", "--class-noun", "coffee mug") == 0
    assert "regforge run mug.yaml" in shell.out
    assert shell("check", "mug.yaml") == 0, shell.err
    fewer = ["--set", "prompts.count=6", "--set", "render.steps=2"]
    assert shell("run", "mug.yaml", *fewer, "--out", "made") == 0, shell.err
    for line in ("made/dataset", "made/report.html", "made/dataset/samples.webp", "Next:"):
        assert line in shell.out
    more = "run mug.yaml --set render.steps=2 --set prompts.count=12 --out made"
    assert more in shell.out, "as many again, of the same recipe"
    assert shell("run", "mug.yaml", *fewer, "--out", "made", "-q") == 0, shell.err
    assert "made/report.html" in shell.out
    assert "Next:" not in shell.out
    loaded = datasets.load_dataset("made/dataset", split="train", cache_dir=str(tmp_path / "hf"))
    assert len(loaded) == 6
    assert loaded[0]["image"].size == (96, 96)
    assert "mug" in loaded[0]["text"]


def test_a_file_is_not_overwritten_by_init(shell: Shell, tmp_path: Path) -> None:
    assert shell("init", "mug.yaml") == 0
    (tmp_path / "mug.yaml").write_text("mine")
    assert shell("init", "mug.yaml") == 2
    assert (tmp_path / "mug.yaml").read_text() == "mine"
    assert shell("init", "mug.yaml", "--force") == 0


@pytest.mark.slow
def test_prompts_and_render_stop(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe, out = write_recipe(), tmp_path / "run"
    assert shell("prompts", recipe, "--out", out, "--limit", 4) == 0, shell.err
    assert "4 captions in run/prompts.jsonl" in shell.out
    assert not (out / "shards").exists()
    assert shell("render", recipe, "--out", out, "--limit", 4) == 0, shell.err
    assert "4 images in run/shards" in shell.out
    assert not (out / "dataset").exists()
    assert shell("run", recipe, "--out", out, "--limit", 4, "--json", "-q") == 0
    assert json.loads(shell.out)["images"] == 4
    assert shell.err == ""
    (out / "report.html").unlink()
    assert shell("report", out) == 0
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    "command", ["init", "check", "prompts", "render", "run", "report", "schema", "doctor"]
)
def test_every_command_shows_an_example(command: str, shell: Shell) -> None:
    assert shell(command, "--help") == 0
    assert f"Example: regforge {command}" in shell.out


def test_bad_recipes_and_folders(shell: Shell, tmp_path: Path, write_recipe: WriteRecipe) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: x\nsubject: {class_noun: cat}\nprompts:\n  conut: 5\nrender:\n  steps: none\n"
    )
    assert shell("run", "bad.yaml") == 2
    assert "bad.yaml:4:3  prompts.conut: unknown key, did you mean 'count'?" in shell.err
    assert "bad.yaml:6:10  render.steps" in shell.err
    assert not (tmp_path / "runs").exists()
    assert shell("report", tmp_path) == 2
    assert "is not the folder of a run" in shell.err
    assert shell("run", write_recipe(prompts={"template": "./mine.j2"})) == 2
    assert "recipe.yaml:" in shell.err
    assert "mine.j2" in shell.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no photos"),
        ({"a.png": b"", "a.txt": b"a photo of a sks cat"}, "a.png"),
        ({"a.png": b"GIF89a nonsense", "a.txt": b"a sks cat"}, "a.png"),
        ({"a.png": "photo"}, "has no caption"),
        ({"a.png": "photo", "a.txt": b"a photo of the sea"}, "a.png"),
        ({"bomb.png": "bomb", "bomb.txt": b"a photo of a sks cat"}, "bomb.png"),
    ],
)
def test_photos_that_cannot_be_used(
    files: dict[str, bytes | str],
    says: str,
    shell: Shell,
    write_recipe: WriteRecipe,
    tmp_path: Path,
    repo: Path,
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, content in files.items():
        if content == "bomb":  # would fill the memory
            Image.new("1", (20_000, 20_000)).save(photos / name)
            continue
        photo = (repo / "examples/subjects/cat/00.png").read_bytes()
        (photos / name).write_bytes(photo if content == "photo" else content)
    recipe = write_recipe(subject={"images": str(photos)})
    for command in ("check", "run"):
        assert shell(command, recipe, *(["--out", "out"] if command == "run" else [])) == 2
        assert says in shell.err


def test_a_folder_that_is_not_made(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert shell("run", write_recipe(), "--out", tmp_path / "file" / "run") == 1
    assert "cannot be written" in shell.err


def test_a_model_that_is_nowhere(shell: Shell, write_recipe: WriteRecipe) -> None:
    recipe = write_recipe(
        render={"model": "nobody/nothing", "width": 96, "height": 96},
        prompts={"sets": {"amplify": 1}},
    )
    assert shell("check", recipe) == 0, shell.err
    assert shell("run", recipe, "--out", "out") == 1
    assert "nobody/nothing" in shell.err
    assert "HF_HUB_OFFLINE" in shell.err
    assert not Path("out").exists(), "said before anything is made"
    assert shell("prompts", recipe, "--out", "out") == 0
    assert shell("run", recipe, "--out", "out") == 1
    assert "nobody/nothing" in shell.err
    assert Path("out/prompts.jsonl").exists(), "what was made is kept"


@pytest.mark.slow
def test_a_full_disk(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write_recipe(), tmp_path / "run"
    assert shell("render", recipe, "--out", out, "--limit", 2) == 0

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert shell("run", recipe, "--out", out) == 1
    assert "The disk is full" in shell.err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert shell("run", recipe, "--out", out) == 0
    assert len(list(read_rows(out / "dataset"))) == 10
