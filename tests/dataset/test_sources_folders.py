"""Images as files: captions beside them and in metadata files, cards, and what is left out."""

import json
import os
import re
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import (
    as_parquet,
    as_tar,
    as_zip,
    items,
    note_of,
    png,
    with_jsonl,
    with_text_files,
    write,
)

from regforge.dataset.sources import CannotOpen, open_dataset
from regforge.dataset.sources.choosing import fits


def test_images_that_no_metadata_file_names_are_kept(tmp_path: Path) -> None:
    files = with_jsonl(items("a", "b"))
    write(tmp_path, files | {"zz.png": png(7), "zy.png": png(8), "zy.txt": b"from a file\n"})
    dataset = open_dataset(tmp_path)
    assert [e.text for e in dataset.examples()] == ["a", "b", "from a file", None]
    assert note_of(dataset, "2 of 4 images are in no metadata file", "load_dataset")
    assert note_of(dataset, "1 of 4 images have no caption")


def test_metadata_of_folders_inside(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "prompt": "in one", "seed": 5, "slots": {"color": "red"}},
        {"file_name": "./x/../b.png", "prompt": "", "class_noun": "cat", "kind": "living"},
    ]
    lines = "\ufeff" + "\r\n".join(json.dumps(row) for row in rows)
    table = b"file_name,caption,seed,steps,guidance_scale\nc.png,in two,12,30,7.5\ngone.png,,,,\n"
    write(
        tmp_path,
        {
            "one/metadata.jsonl": lines.encode(),
            "one/a.png": png(0),
            "one/b.png": png(1),
            "one/b.txt": b"beside it",
            "two/metadata.csv": table,
            "two/c.png": png(2),
        },
    )
    dataset = open_dataset(tmp_path)
    first, second, third = dataset.examples()
    assert (first.id, first.text, dict(first.metadata)) == ("one/a.png", "in one", {"seed": 5})
    assert first.slots == {"color": "red"}
    assert dataset.slots == ("color",)
    assert (second.text, second.class_noun, second.kind) == ("beside it", "cat", "living")
    assert third.text == "in two"
    assert third.metadata == {"seed": 12, "steps": 30, "guidance_scale": 7.5}
    assert dataset.notes == ["two/metadata.csv names 1 image that is not there (two/gone.png)."]


def test_an_image_with_two_captions_comes_twice(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two", "three")]
    lines = "\n".join(map(json.dumps, rows)).encode()
    write(tmp_path, {"metadata.jsonl": lines, "a.png": png(0)})
    found = [(each.id, each.text) for each in open_dataset(tmp_path).examples()]
    assert found == [("a.png", "one"), ("a.png#2", "two"), ("a.png#3", "three")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"file_name": "../b.png"}', r"metadata.jsonl:2 names '../b.png', which is not inside"),
        ('{"file_name": "/etc/b.png"}', "metadata.jsonl:2 names '/etc/b.png', which is not inside"),
        ('{"file_name": "x/../../b.png"}', "which is not inside"),
        ('{"file_name": "..\\\\b.png"}', "which is not inside"),
        ('{"file_name": "file:///b.png"}', "which is not inside"),
        ('{"file_name": 3}', "metadata.jsonl:2 names no image"),
        ('{"file_name": ', "metadata.jsonl:2 is not valid JSON"),
        ("[1]", "metadata.jsonl:2 is no JSON object"),
        ("[" * 100_000, "metadata.jsonl:2 is not valid JSON"),
        ('{"file_name": "\xff"}', "metadata.jsonl:2 is not valid JSON"),
    ],
)
def test_metadata_that_is_refused(line: str, complaint: str, tmp_path: Path) -> None:
    lines = f'{{"file_name": "a.png"}}\n{line}\n'.encode("latin-1")
    inside = write(tmp_path / "inside", {"metadata.jsonl": lines, "a.png": png(0)})
    write(tmp_path, {"b.png": png(1)})
    with pytest.raises(CannotOpen, match=complaint):
        open_dataset(inside)


def test_a_caption_column_of_metadata(tmp_path: Path) -> None:
    line = json.dumps({"file_name": "a.png", "en": "English", "de": "Deutsch"}).encode()
    write(tmp_path, {"metadata.jsonl": line, "a.png": png(0)})
    assert "en and de" in note_of(open_dataset(tmp_path), "--caption-column")
    (example,) = open_dataset(tmp_path, caption_column="de").examples()
    assert (example.text, dict(example.metadata)) == ("Deutsch", {"en": "English"})
    with pytest.raises(CannotOpen, match=r"metadata.jsonl has no column 'dee'"):
        open_dataset(tmp_path, caption_column="dee")


def test_names_written_in_two_ways(tmp_path: Path) -> None:
    """macOS takes é apart, in file names and not in what people write."""
    line = json.dumps({"file_name": "caf\u00e9.png", "text": "here"}).encode()
    write(tmp_path, {"metadata.jsonl": line, "cafe\u0301.png": png(0)})
    assert [each.text for each in open_dataset(tmp_path).examples()] == ["here"]


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    texts = {"a.txt": b"\xff\xfe", "b.txt": b" \n", "c.txt": b"\xef\xbb\xbfthe caption \r\n"}
    write(tmp_path, texts | {"a.png": png(0), "b.png": png(1), "c.png": png(2)})
    dataset = open_dataset(tmp_path)
    assert [each.text for each in dataset.examples()] == [None, None, "the caption "]
    assert note_of(dataset, "1 caption file", "a.txt")
    assert note_of(dataset, "2 of 3 images have no caption")


def test_images_without_captions(tmp_path: Path) -> None:
    write(tmp_path, {f"{n:02d}.png": png(n) for n in range(3)} | {"notes.txt": b"no caption"})
    dataset = open_dataset(tmp_path)
    assert [(each.id, each.text) for each in dataset.examples()] == [
        ("00.png", None),
        ("01.png", None),
        ("02.png", None),
    ]
    assert dataset.notes == ["No image has a caption."]


def test_what_is_hidden_is_not_seen(tmp_path: Path) -> None:
    hidden = (".b.png", ".cache/c.png", "__MACOSX/._a.png", "x/__MACOSX/d.png")
    files = {"a.png": png(0)} | {name: png(1) for name in hidden}
    write(tmp_path / "folder", files)
    write(tmp_path, {"x.zip": as_zip(files), "x.tar": as_tar(files)})
    for where in ("folder", "x.zip", "x.tar"):
        assert len(list(open_dataset(tmp_path / where).examples())) == 1


def test_broken_images_are_left_out_and_named(tmp_path: Path) -> None:
    good = png(0)
    broken = {"a.png": b"", "b.png": b"no image", "c.png": good[:20], "d.png": good[:10]}
    files = broken | {"e.png": good}
    write(tmp_path / "folder", files)
    write(tmp_path, {"x.zip": as_zip(files), "x.tar": as_tar(files)})
    for where in ("folder", "x.zip", "x.tar"):
        dataset = open_dataset(tmp_path / where)
        assert len(list(dataset.examples())) == 1
        assert note_of(dataset, "4 images that cannot be read (a.png, b.png, c.png and 1 more)")
    write(tmp_path / "all", broken)
    with pytest.raises(CannotOpen, match="all holds no image that can be read") as error:
        open_dataset(tmp_path / "all")
    assert "a.png" in str(error.value)


def test_a_bomb_is_not_opened(tmp_path: Path) -> None:
    header = bytearray(png(0))
    header[16:24] = (10_000).to_bytes(4, "big") * 2  # 100 megapixels, says the header
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    write(tmp_path, {"bomb.png": bytes(header), "a.png": png(1)})
    dataset = open_dataset(tmp_path)
    assert [each.id for each in dataset.examples()] == ["a.png"]
    assert note_of(dataset, "bomb.png")


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("image_folders", "tars", "tables"):
        monkeypatch.setattr(f"regforge.dataset.sources.{module}.MOST_IMAGE", 1000)
    large = png(1) + bytes(1000)
    files = {"a.png": png(0), "b.png": large}
    columns = {"image": [png(0), large], "text": ["a", "b"]}
    write(tmp_path / "folder", files)
    write(tmp_path, {"x.zip": as_zip(files, compression=8), "x.tar": as_tar(files)})
    write(tmp_path, {"x.parquet": as_parquet(columns)})
    for where in ("folder", "x.zip", "x.tar", "x.parquet"):
        dataset = open_dataset(tmp_path / where)
        for images in (True, False):
            assert len(list(dataset.examples(images=images))) == 1
            assert note_of(dataset, "1 image that cannot be read")


def test_turned_photos_keep_their_size(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path, {"a.jpg": png(0, (8, 6), format="JPEG", exif=exif), "b.jpg": png(1)})
    turned, plain = open_dataset(tmp_path).examples()
    assert (turned.width, turned.height) == (8, 6)
    assert turned.metadata == {"exif_orientation": 6}
    assert plain.metadata == {}


def test_kohya_folders_name_the_class(tmp_path: Path) -> None:
    some = items("a", "b", folder="reg/1_ceramic teapot/")
    write(tmp_path, with_text_files(some))
    assert {each.class_noun for each in open_dataset(tmp_path).examples()} == {"ceramic teapot"}
    write(tmp_path, {"reg/other/x.png": png(9)})
    assert {each.class_noun for each in open_dataset(tmp_path).examples()} == {None}


def test_only_the_training_split(tmp_path: Path) -> None:
    files = {f"{split}/{n}.png": png(n) for split in ("train", "test", "dev board") for n in (1, 2)}
    write(tmp_path, files)
    dataset = open_dataset(tmp_path)
    assert {each.id.partition("/")[0] for each in dataset.examples()} == {"train", "dev board"}
    assert note_of(dataset, "split train, and not test (2 images)")

    tables = {"data/train-00000-of-00001.parquet": {"image": [png(0)], "text": ["a"]}}
    tables["data/test-00000-of-00001.parquet"] = {"image": [png(1)], "text": ["b"]}
    write(tmp_path / "x", {name: as_parquet(columns) for name, columns in tables.items()})
    assert [each.text for each in open_dataset(tmp_path / "x").examples()] == ["a"]


def test_links_are_followed_inside_of_the_folder_only_and_circles_end(tmp_path: Path) -> None:
    outside = write(tmp_path / "secret", {"a.png": png(0), "more/b.png": png(1), "c.txt": "secret"})
    folder = write(tmp_path / "folder", {"c.png": png(2), "other/d.png": png(3), "d.txt": "own"})
    (folder / "a.png").symlink_to(outside / "a.png")
    (folder / "more").symlink_to("../secret/more")
    (folder / "c.txt").symlink_to(outside / "c.txt")
    (folder / "other" / "d.txt").symlink_to("../d.txt")
    (folder / "same.png").symlink_to("c.png")
    (folder / "some").symlink_to("other")
    (folder / "again").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "other" / "c.txt")
    dataset = open_dataset(folder)
    found = {each.id: (each.file, each.text) for each in dataset.examples()}
    assert found == {
        "c.png": (folder / "c.png", None),
        "same.png": (folder / "c.png", None),
        "other/d.png": (folder / "other" / "d.png", "own"),
    }
    assert "Left out: 6 links that lead out of the folder, or nowhere" in " ".join(dataset.notes)


def test_a_folder_of_nothing_but_links_elsewhere_says_why_it_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"a.png": png(0)})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").symlink_to(tmp_path / "secret" / "a.png")
    with pytest.raises(CannotOpen) as caught:
        open_dataset(tmp_path / "folder")
    assert "a.png" in str(caught.value)


def test_what_the_user_names_may_be_a_link_and_so_may_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    write(tmp_path, {"real/a.png": png(0), "zips/x.zip": as_zip({"b.png": png(1)})})
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "y.zip").symlink_to("zips/x.zip")
    assert [each.id for each in open_dataset(tmp_path / "link").examples()] == ["a.png"]
    assert [each.id for each in open_dataset(tmp_path / "y.zip").examples()] == ["b.png"]
    commit = tmp_path / "datasets--me--cats" / "snapshots" / ("0" * 40)
    write(commit.parents[1], {"blobs/abc": png(2), "secret": png(3)})
    (commit / "deep").mkdir(parents=True)
    (commit / "deep" / "c.png").symlink_to("../../../blobs/abc")
    (commit / "d.png").symlink_to("../../secret")
    assert [each.id for each in open_dataset(commit).examples()] == ["deep/c.png"]


def test_a_dataset_that_a_run_links_to_elsewhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"a.png": png(0)})
    write(tmp_path / "run", {"recipe.yaml": "{}", "state.json": "{}"})
    (tmp_path / "run" / "dataset").symlink_to("../secret")
    with pytest.raises(CannotOpen):
        open_dataset(tmp_path / "run")
    assert len(list(open_dataset(tmp_path / "secret").examples())) == 1


NAMES = [
    ("a.png", "a.TXT"),
    ("a.PNG", "a.txt"),
    ("caf\u00e9.png", "cafe\u0301.txt"),
    ("cafe\u0301.JPG", "caf\u00e9.Caption"),
]


@pytest.mark.parametrize(("image", "text"), NAMES)
def test_names_are_alike_whatever_system_wrote_them(tmp_path: Path, image: str, text: str) -> None:
    """The same rule for datasets and for photos of the subject."""
    from regforge.prompts.photos import photo_captions

    write(tmp_path / "beside", {image: png(0), text: "a sks cat"})
    other = unicodedata.normalize("NFD", image).replace(".png", ".Png")
    row = json.dumps({"file_name": f"./{other}", "text": "a sks cat"})
    write(tmp_path / "metadata", {image: png(0), "metadata.jsonl": row})
    for where in ("beside", "metadata"):
        (example,) = open_dataset(tmp_path / where).examples()
        assert example.text == "a sks cat"
        (photo,) = photo_captions(tmp_path / where)
        assert (photo.file, photo.caption) == (image, "a sks cat")


def test_of_names_that_are_alike_each_has_the_one_that_is_written_as_its_own(
    tmp_path: Path,
) -> None:
    from regforge.prompts.photos import photo_captions

    files = {"caf\u00e9": "one", "cafe\u0301": "two"}
    for stem, text in files.items():
        write(tmp_path, {f"{stem}.png": png(0), f"{stem}.txt": text, f"{stem}.TXT": "no"})
    expected = {f"{stem}.png": text for stem, text in files.items()}
    assert {each.id: each.text for each in open_dataset(tmp_path).examples()} == expected
    assert {each.file: each.caption for each in photo_captions(tmp_path)} == expected


def test_the_card_says_which_files(tmp_path: Path) -> None:
    card = """---
license: [mit, openrail]
configs:
- config_name: other
  data_files: "other/*.png"
- config_name: default
  data_dir: images
  data_files:
  - {split: validation, path: "v/**"}
  - {split: train, path: ["t/*.png", "u/**/*.png"]}
---
# Images
"""
    names = ("other/1", "images/v/2", "images/t/3", "images/t/x/4", "images/u/5", "u/6")
    files = {f"{name}.png": png(n) for n, name in enumerate(names)}
    files["images/t/3.txt"] = b"beside"
    write(tmp_path, files | {"README.md": card.replace("\n", "\r\n").encode()})
    dataset = open_dataset(tmp_path)
    assert {each.id: each.text for each in dataset.examples()} == {
        "images/t/3.png": "beside",
        "images/u/5.png": None,
    }
    assert dataset.license == "mit, openrail"
    assert note_of(dataset, "configuration default, and not other")
    assert note_of(dataset, "split train, and not validation")


@pytest.mark.parametrize(
    ("card", "note"),
    [
        ("---\nconfigs: [\n---\n", "not valid YAML"),
        ("---\nconfigs: [{config_name: a, data_files: '*.csv'}]\n---\n", "where no images are"),
        ("---\nconfigs: {a: 1}\nlicense: 3\n---\n", ""),
        ("---\n- a\n---\n", ""),
        ("no front matter", ""),
        ("---\nconfigs: [{config_name: a, data_files: {train: ['a.png']}}]\n---", ""),
        ("---\nconfigs: [{config_name: a, data_files: ['./a.png']}]\n---", ""),
    ],
)
def test_odd_cards(card: str, note: str, tmp_path: Path) -> None:
    write(tmp_path, {"README.md": card.encode(), "a.png": png(0), "a.txt": b"a", "x.csv": b""})
    dataset = open_dataset(tmp_path)
    assert [each.text for each in dataset.examples()] == ["a"]
    assert dataset.license is None
    assert [note in each for each in dataset.notes] == [True] * bool(note)


_NAMES = st.lists(st.text("ab.p", min_size=1, max_size=4), min_size=1, max_size=4).map("/".join)
_PARTS = ["**", "*", "a*", "*a", "a", "?", "[ab]*", "*.p", "b", "a?b*", "[!a]", "["]


@given(_NAMES, st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4).map("/".join))
def test_patterns_name_what_datasets_takes_them_to_name(path: str, pattern: str) -> None:
    from fsspec.utils import glob_translate

    assert fits(path, pattern) == bool(re.match(glob_translate(pattern), path))


@pytest.mark.parametrize("pattern", ["a" + "*a" * 40 + "b", "**/" * 200 + "b", "*" * 900])
def test_no_pattern_keeps_it_busy(pattern: str) -> None:
    assert not fits("/".join(["a" * 200] * 30), pattern)
