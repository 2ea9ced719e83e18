"""Reviewing a folder of somebody else's: the folder itself stays as it is."""

import json
from pathlib import Path

import pytest
from PIL import Image
from shell import Shell

from regforge.dataset.decisions import DecisionFile
from regforge.dataset.sources import open_dataset


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images as kohya's trainer takes them."""
    folder = tmp_path / "set" / "10_teapot"
    folder.mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (16, 16), (ord(name), 80, 160)).save(folder / f"{name}.png")
        (folder / f"{name}.caption").write_text(f"a teapot, {name}")
    return folder.parent


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_folder_is_reviewed_and_left_alone(photos: Path, shell: Shell, tmp_path: Path) -> None:
    before = files_in(photos)
    wanted = write(
        tmp_path / "wanted.jsonl",
        {"do": "reject", "id": "10_teapot/a.png", "reason": "blurred"},
        {"do": "caption", "id": "10_teapot/b.png", "text": "a blue teapot", "redraw": True},
    )
    clean = tmp_path / "clean"
    assert shell("review", photos, "--apply", wanted, "--copy", clean) == 0
    assert files_in(photos) == before
    decided = (tmp_path / "set.review.jsonl").read_text().splitlines()
    assert [json.loads(line).get("reason") for line in decided] == ["blurred", None]
    assert files_in(clean) == {
        "10_teapot/b.png": before["10_teapot/b.png"],
        "10_teapot/b.caption": b"a blue teapot",
        "10_teapot/c.png": before["10_teapot/c.png"],
        "10_teapot/c.caption": before["10_teapot/c.caption"],
    }
    # Whoever reads the folder itself is given the same.
    read = {each.id: each.text for each in open_dataset(photos).examples()}
    assert read == {"10_teapot/b.png": "a blue teapot", "10_teapot/c.png": "a teapot, c"}
    assert shell("review", photos, "--copy", clean) == 2
    assert shell("review", photos, "--copy", photos / "inside") == 2
    write(tmp_path / "none.jsonl", *({"do": "reject", "id": f"10_teapot/{n}.png"} for n in "bc"))
    assert shell("review", photos, "--apply", tmp_path / "none.jsonl") == 0
    assert shell("review", photos, "--copy", tmp_path / "nothing") == 2
    assert shell("audit", photos) != 0
    assert "set.review.jsonl" in shell.err


def test_metadata_files_say_the_same_in_a_copy(photos: Path, shell: Shell, tmp_path: Path) -> None:
    folder = photos / "10_teapot"
    write(
        folder / "metadata.jsonl",
        *({"file_name": f"{name}.png", "text": f"pot {name}", "seed": 7} for name in "abc"),
    )
    wanted = write(
        tmp_path / "wanted.jsonl",
        {"do": "reject", "id": "c.png"},
        {"do": "caption", "id": "b.png", "text": "a blue teapot"},
    )
    assert shell("review", folder, "--apply", wanted, "--copy", tmp_path / "clean") == 0
    rows = [json.loads(line) for line in (tmp_path / "clean/metadata.jsonl").open()]
    assert rows == [
        {"file_name": "a.png", "text": "pot a", "seed": 7},
        {"file_name": "b.png", "text": "a blue teapot", "seed": 7},
    ]


def test_a_copy_keeps_what_is_named_oddly(photos: Path, shell: Shell, tmp_path: Path) -> None:
    folder = photos / "10_teapot"
    (folder / "a.png").rename(folder / "a #1.png")
    (folder / "a.caption").rename(folder / "a #1.CAPTION")
    Image.new("RGB", (16, 16)).save(folder / "b.jpg")  # the caption of b.png is its own too
    for name in ("b.jpg", "b.png"):
        line = {"do": "caption", "id": f"10_teapot/{name}", "text": f"a teapot of {name}"}
        wanted = write(tmp_path / "wanted.jsonl", line)
        assert shell("review", photos, "--apply", wanted, "--copy", tmp_path / name) == 0
        assert (tmp_path / name / "10_teapot/b.caption").read_text() == f"a teapot of {name}"
        assert (tmp_path / name / "10_teapot/a #1.CAPTION").read_text() == "a teapot, a"
        (tmp_path / "set.review.jsonl").unlink()


def test_what_is_not_reviewed_is_said(photos: Path, shell: Shell) -> None:
    (photos / "10_teapot/broken.png").write_bytes(b"no image")
    assert shell("review", photos, "--json") == 0
    assert any("broken.png" in note for note in json.loads(shell.out)["notes"])


def test_a_list_of_decisions_is_taken_whole(photos: Path, shell: Shell, tmp_path: Path) -> None:
    whole = {"do": "reject", "id": "10_teapot/b.png"}
    wanted = write(tmp_path / "wanted.jsonl", whole)
    with wanted.open("a") as file:
        file.write('{"do": "rej')
    assert shell("review", photos, "--apply", wanted) == 2
    halves = write(
        tmp_path / "halves.jsonl", {"do": "caption", "id": whole["id"], "text": "a \ud800 pot"}
    )
    assert shell("review", photos, "--apply", halves) == 2
    assert not (tmp_path / "set.review.jsonl").exists()
    mine = tmp_path / "mine.txt"
    mine.write_text("my own words, in one line")
    assert shell("review", photos, "--export", mine) == 2
    assert mine.read_text() == "my own words, in one line"
    assert shell("review", "nobody/pots") == 2


def test_a_file_that_is_edited_while_it_is_open_is_read_again(tmp_path: Path) -> None:
    lines = [{"do": "reject", "id": name, "reason": "ugly"} for name in "abc"]
    file = DecisionFile(write(tmp_path / "review.jsonl", *lines[:2]))
    assert [each.reason for each in file.read()] == ["ugly", "ugly"]
    write(file.path, {**lines[0], "reason": "far too ugly"}, *lines[1:])
    assert [each.reason for each in file.read()] == ["far too ugly", "ugly", "ugly"]
    file.path.unlink()
    assert not file.read()
