"""`regforge export` as people type it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from export_samples import image_folder, layout, make_image
from shell import Shell

from regforge.exporting.writing import TRAINERS

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(shell: Shell) -> Command:
    return lambda *words: (shell("export", *words), shell.out, shell.err)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {f"p{number}.jpg": make_image(number, (64, 64), "jpg") for number in range(12)}
    return image_folder(tmp_path / "set", files, "a teapot")


def test_export_and_check(command: Command, folder: Path, photos: Path, out: Path) -> None:
    words = [folder, "--to", "kohya", "--to", "imagefolder", "--out", out]
    words += ["--subject", photos, "--class-noun", "teapot", "--family", "sd1", "--check"]
    code, printed, _ = command(*words, "--quiet")
    assert code == 0
    assert "kohya will use all 12 regularization images" in printed
    assert printed.count("checked: 12 images and 4 photos, captions and sizes equal") == 2
    assert len(layout(out)) == 12
    # Linked, not copied.
    assert (folder / "p0.jpg").stat().st_nlink > 1

    (out / "images" / "00005.txt").unlink()
    code, printed, _ = command(*words, "--quiet")
    assert code == 1
    assert "images/00005.txt: missing" in printed
    code, printed, _ = command(*words, "--json", "--quiet")
    assert code == 1
    checked = json.loads(printed)["targets"][0]["checked"]
    assert "images/00005.txt: missing" in checked["differences"]


def test_the_help_names_all_trainers(command: Command) -> None:
    code, printed, _ = command("--help")
    assert code == 0
    said = re.sub(r"[\s│]", "", printed)  # it breaks lines within names, too
    assert [trainer.name for trainer in TRAINERS if trainer.name not in said] == []


@pytest.mark.parametrize(
    ("used", "said"), [("{dataset: runs/teapot-reg}", "runs/teapot-reg"), ("null", "evaluate")]
)
def test_a_training_is_no_dataset(
    command: Command, tmp_path: Path, out: Path, used: str, said: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "state.json").write_text("{}")
    (run / "recipe.yaml").write_text(f"base_model: me/sdxl\nregularization: {used}\n")
    code, _, told = command(run, "--to", "kohya", "--out", out)
    assert code == 2
    assert "training of me/sdxl" in told
    assert said in told
    assert "regforge run" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "khoya"], "Did you mean 'kohya'"),
        (["--to", "kohya"], "--class-noun"),
        (["--to", "kohya", "--class-noun", "teapot", "--root", "x"], "no absolute path"),
        (["--to", "kohya", "--class-noun", "teapot"], "--family"),
        (["--to", "imagefolder", "--class-noun", "teapot", "--subject", "nowhere"], "nowhere"),
        (["--to", "kohya", "--class-noun", "teapot", "--out", "set/out"], "inside of the dataset"),
    ],
)
def test_mistakes_end_in_a_sentence(
    command: Command, folder: Path, out: Path, words: list[str], said: str
) -> None:
    code, printed, told = command(folder, "--out", out, *words, "--quiet")
    assert (code, printed) == (2, "")
    assert said in told
    assert "Traceback" not in told
    assert not out.exists()
    assert not (folder / "out").exists()
