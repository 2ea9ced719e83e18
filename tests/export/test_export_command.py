"""`regforge export` as people type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from export_samples import layout, make_image
from shell import Shell

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(shell: Shell) -> Command:
    return lambda *words: (shell("export", *words), shell.out, shell.err)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of somebody else: images with captions beside them."""
    made = tmp_path / "set"
    made.mkdir()
    for number in range(12):
        (made / f"p{number}.jpg").write_bytes(make_image(number, (64, 64), "jpg"))
        (made / f"p{number}.txt").write_text(f"a teapot, number {number}", encoding="utf-8")
    return made


def test_export_and_check(command: Command, folder: Path, photos: Path, out: Path) -> None:
    words = [folder, "--to", "kohya", "--to", "imagefolder", "--out", out]
    words += ["--subject", photos, "--class-noun", "teapot", "--check"]
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
    found = json.loads(printed)
    assert code == 1
    assert "images/00005.txt: missing" in found["targets"][0]["checked"]["differences"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "khoya"], "Did you mean 'kohya'"),
        (["--to", "kohya"], "--class-noun"),
        (["--to", "kohya", "--class-noun", "teapot", "--root", "x"], "no absolute path"),
        (["--to", "kohya", "--class-noun", "teapot", "--subject", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_a_sentence(
    command: Command, folder: Path, out: Path, words: list[str], said: str
) -> None:
    code, printed, told = command(folder, *words, "--out", out, "--quiet")
    assert (code, printed) == (2, "")
    assert said in told
    assert "Traceback" not in told
    assert not (out).exists()


def test_an_export_inside_of_its_own_dataset_is_refused(command: Command, folder: Path) -> None:
    words = ["--to", "kohya", "--class-noun", "teapot", "--quiet"]
    code, _, told = command(folder, *words, "--out", folder / "out")
    assert code == 2
    assert "lies inside of the dataset" in told
