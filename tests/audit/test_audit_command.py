"""`regforge audit` on folders as they lie around."""

import json
from pathlib import Path
from typing import Any

import pytest
from audit_samples import file_of, make_image
from shell import Shell


@pytest.fixture
def command(shell: Shell) -> Any:
    return lambda *words: (shell("audit", *words), shell.out, shell.err)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A community set: images and texts, one text empty, one image twice."""
    folder = tmp_path / "woman"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.png").write_bytes(file_of(make_image(number % 11, (64, 64))))
        text = "" if number == 3 else "a photo of a woman"
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_of_images_and_texts(command: Any, folder: Path) -> None:
    before = everything_in(folder)
    options = ["--class-noun", "woman", "--resolution", 512, "--photos", 4]
    code, out, err = command(folder, "--json", *options)
    assert everything_in(folder) == before
    assert code == 0, err
    found = json.loads(out)
    assert (found["images"], found["grade"]) == (12, "bad")
    checks = {check["name"]: check for check in found["checks"]}
    grades = {"caption variety": "bad", "class noun": "good"}
    assert {name: checks[name]["grade"] for name in grades} == grades
    for name, key, number in (
        ("exact duplicates", "spare", 1),
        ("captions", "without", 1),
        ("image sizes", "too_small", 12),
        ("size and repeats", "repeats", 3),
    ):
        assert checks[name]["numbers"][key] == number, name


def test_images_that_were_left_out_are_worth_a_look(command: Any, folder: Path) -> None:
    def image_files() -> tuple[str, str]:
        checks = json.loads(command(folder, "--json")[1])["checks"]
        return next((c["grade"], c["finding"]) for c in checks if c["name"] == "image files")

    assert image_files() == ("good", "All 12 can be read.")
    (folder / "12.png").write_bytes(b"cut off")
    grade, finding = image_files()
    assert grade == "look"
    assert "All 12 can be read. Left out: 1 image that cannot be read (12.png)." in finding


def test_a_bad_grade_is_no_failure_of_the_command(command: Any, folder: Path) -> None:
    code, out, _ = command(folder, "--quiet", "--subject", folder)
    assert code == 0
    assert "Not fit for training as it is: exact duplicates, " in out
    assert "\x1b" not in out  # not a terminal


def test_what_is_no_dataset_is_wrong_usage(command: Any, tmp_path: Path) -> None:
    code, out, err = command(tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
