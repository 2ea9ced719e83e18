"""`regforge export` as people type it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import export_samples as samples
import pytest

from regforge import cli

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regforge", "export", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of somebody else: pictures with captions beside them."""
    made = tmp_path / "set"
    made.mkdir()
    for number in range(12):
        (made / f"p{number}.jpg").write_bytes(samples.picture(number, (64, 64), "jpg"))
        (made / f"p{number}.txt").write_text(f"a teapot, number {number}", encoding="utf-8")
    return made


def test_export_and_check(shell: Shell, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos = samples.photos(tmp_path / "photos")
    words = [folder, "--to", "kohya", "--to", "imagefolder", "--out", out]
    words += ["--subject", photos, "--class-noun", "teapot", "--check"]
    code, printed, _ = shell(*words, "--quiet")
    assert code == 0
    assert "kohya will use all 12 regularization pictures" in printed
    assert printed.count("checked: 12 pictures and 4 photos, captions and sizes equal") == 2
    assert len(samples.layout(out)) == 12
    # Linked, not copied.
    assert (folder / "p0.jpg").stat().st_nlink > 1

    (out / "images" / "00005.txt").unlink()
    code, printed, _ = shell(*words, "--quiet")
    assert code == 1
    assert "images/00005.txt: missing" in printed
    code, printed, _ = shell(*words, "--json", "--quiet")
    found = json.loads(printed)
    assert code == 1
    assert "images/00005.txt: missing" in found["targets"][0]["checked"]["differences"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "khoya"], "did you mean 'kohya'"),
        (["--to", "kohya"], "--class-noun"),
        (["--to", "kohya", "--class-noun", "teapot", "--root", "x"], "no absolute path"),
        (["--to", "kohya", "--class-noun", "teapot", "--subject", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_a_sentence(
    shell: Shell, folder: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    code, printed, told = shell(folder, *words, "--out", tmp_path / "out", "--quiet")
    assert (code, printed) == (2, "")
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_an_export_inside_of_its_own_dataset_is_refused(shell: Shell, folder: Path) -> None:
    words = ["--to", "kohya", "--class-noun", "teapot", "--quiet"]
    code, _, told = shell(folder, *words, "--out", folder / "out")
    assert code == 2
    assert "lies inside of the dataset" in told
