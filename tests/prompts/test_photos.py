"""Reading photos and their captions: where they may stand, and every fault at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from shell import Shell

from regforge.prompts.photos import PhotosError, photo_captions


def photo(path: Path, size: tuple[int, int] = (12, 8), **options: object) -> Path:
    Image.new("RGB", size, "red").save(path, **options)
    return path


def test_captions_come_from_text_files_and_metadata(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "d.bmp", "e.jpeg"):
        photo(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffa sks  teapot\non a table\n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("sks teapot")
    lines = [
        {"file_name": "c.webp", "text": "sks by a lake"},
        {"file_name": "./d.bmp", "prompt": "sks on a bed", "seed": 7},
        {"file_name": "a.JPG", "text": "the text file wins"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "metadata.csv").write_text('file_name,caption\ne.jpeg,"sks, at night"\n')
    (tmp_path / "notes.md").write_text("not a photo")
    (tmp_path / "._a.JPG").write_bytes(b"what macOS leaves")
    found = photo_captions(tmp_path)
    assert [(each.file, each.caption) for each in found] == [
        ("a.JPG", "a sks teapot on a table"),
        ("b.png", "sks teapot"),
        ("c.webp", "sks by a lake"),
        ("d.bmp", "sks on a bed"),
        ("e.jpeg", "sks, at night"),
    ]
    assert {(each.width, each.height) for each in found} == {(12, 8)}
    assert found[3].seed == 7


@pytest.mark.parametrize(
    ("identifier", "noun", "caption"),
    [
        ("sks", "owl", "A sks owl in the snow, the sks owl asleep"),
        ("<my-owl>", "owl", "A <my-owl> owl in the snow, the <my-owl> owl asleep"),
        (None, "owl", "An owl in the snow, the owl asleep"),
        (None, "glasses", "Glasses in the snow, the glasses asleep"),
        ("my owl", "owl", "A my owl in the snow, the my owl asleep"),
    ],
)
def test_braces_stand_for_the_subject(
    tmp_path: Path, identifier: str | None, noun: str, caption: str
) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A {} in the snow, the {} asleep")
    (found,) = photo_captions(tmp_path, identifier, noun)
    assert (found.caption, found.written) == (caption, "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.png", ""),
        ("a.txt", "sks SECRET"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "sks SECRET"}'),
        ("metadata.csv", "file_name,text\na.png,sks SECRET\n"),
    ],
)
def test_a_link_that_leads_out_of_the_folder_is_refused_and_never_read(
    tmp_path: Path, shell: Shell, name: str, text: str
) -> None:
    secret, folder = tmp_path / f"secret-{name}", tmp_path / "photos"
    secret.write_text(text) if text else photo(secret)
    folder.mkdir()
    photo(folder / "a.png")
    (folder / name).symlink_to(f"../{secret.name}")
    with pytest.raises(PhotosError) as caught:
        photo_captions(folder, describe=lambda paths: {each.name: "sks" for each in paths})
    assert f"  {name}: " in str(caught.value)
    assert "SECRET" not in str(caught.value)
    (tmp_path / "r.yaml").write_text(
        "name: r\nsubject: {class_noun: teapot, identifier: sks, images: photos}\n"
    )
    assert shell("check", "r.yaml") == 2
    assert "subject.images" in shell.err + shell.out
    assert name in shell.err + shell.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": ' + "[" * 100_000),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ' + "[" * 500 + "]" * 500 + "}"),
        ("metadata.csv", "file_name,text\na.png," + "x" * 17_000_000),
        ("metadata.csv", ",".join(f"c{n}" for n in range(100_000)) + "\na\n"),
        ("a.txt", "x" * 2_000_000),
    ],
)
def test_captions_beyond_all_measure_are_named(tmp_path: Path, name: str, content: str) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(PhotosError) as caught:
        photo_captions(tmp_path)
    assert "a.png" in str(caught.value)
    if "]" not in content:
        assert name in str(caught.value)


def test_a_long_field_of_metadata_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\na.png,sks {'x' * 200_000}\n")
    assert len(photo_captions(tmp_path)[0].caption) == 200_004


def test_sizes_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "a.jpg", exif=exif).with_suffix(".txt").write_text("sks")
    assert [(each.width, each.height) for each in photo_captions(tmp_path)] == [(8, 12)]


@pytest.mark.parametrize(
    ("key", "text", "seed"),
    [
        ("parameters", "a dog\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 12345", 12345),
        ("prompt", '{"3": {"inputs": {"seed": 4294967298, "steps": 20}}}', 2),
        ("prompt", "3 dogs in a seedy bar", None),
        ("seed", "99", 99),
        ("Comment", "made with love", None),
    ],
)
def test_generated_images_keep_seeds(tmp_path: Path, key: str, text: str, seed: int | None) -> None:
    info = PngInfo()
    info.add_text(key, text)
    photo(tmp_path / "a.png", pnginfo=info).with_suffix(".txt").write_text("sks")
    (found,) = photo_captions(tmp_path)
    assert found.seed == (int(found.digest[:8], 16) if seed is None else seed)
    assert photo_captions(tmp_path) == (found,)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    photo(tmp_path / "good.png").with_suffix(".txt").write_text("sks")
    photo(tmp_path / "silent.png")
    photo(tmp_path / "blank.png").with_suffix(".txt").write_text(" \n")
    photo(tmp_path / "latin.png").with_suffix(".txt").write_bytes(b"caf\xe9 sks")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    whole = photo(tmp_path / "cut.jpg", (200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.txt").write_text("sks")
    (tmp_path / "phone.HEIC").write_bytes(b"...")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "gone.png", "text": "sks"}\nnonsense\n{"text": "sks"}\n'
    )
    with pytest.raises(PhotosError) as caught:
        photo_captions(tmp_path)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    starts = [
        *("blank.png: has no caption", "cut.jpg: cannot be read to its end", "empty.jpg: is empty"),
        *("latin.png: has no caption", "latin.txt: is not UTF-8"),
        "metadata.jsonl:1: there is no photo 'gone.png'",
        *("metadata.jsonl:2: is not valid JSON", "metadata.jsonl:3: is no entry"),
        *("phone.HEIC: .HEIC is not read", "silent.png: has no caption"),
        "text.jpg: is not an image",
    ]
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    assert caught.value.exit_code == 2


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "bomb.png", (40, 40)).with_suffix(".txt").write_text("sks")
    for limit in (1000, 100):  # Pillow warns at one limit and refuses at twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(PhotosError, match=r"bomb\.png: has more than .* pixels"):
            photo_captions(tmp_path)


def test_a_folder_without_photos_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="has no photos"):
        photo_captions(tmp_path)
    with pytest.raises(PhotosError, match="cannot be read"):
        photo_captions(tmp_path / "gone")


def test_missing_captions_can_be_written_by_a_model_and_only_those(tmp_path: Path) -> None:
    photo(tmp_path / "a.png").with_suffix(".txt").write_text("sks by hand")
    photo(tmp_path / "b.png")
    asked: list[str] = []

    def describe(photos: Sequence[Path]) -> Mapping[str, str]:
        asked.extend(path.name for path in photos)
        return {path.name: "sks by  a model" for path in photos}

    found = photo_captions(tmp_path, describe=describe)
    assert [each.caption for each in found] == ["sks by hand", "sks by a model"]
    assert asked == ["b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.txt", "b.png"]
    (tmp_path / "c.png").write_bytes(b"")  # nobody is asked while a photo cannot be used
    with pytest.raises(PhotosError, match=r"c\.png: is empty"):
        photo_captions(tmp_path, describe=describe)
    assert asked == ["b.png"]
