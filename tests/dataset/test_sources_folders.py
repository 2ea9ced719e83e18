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
    as_zip,
    everywhere,
    items,
    note_of,
    png,
    with_jsonl,
    with_text_files,
    write,
)
from odd_images import turned as turned_photo

from regforge.dataset.sources import CannotOpen, open_dataset
from regforge.dataset.sources.choosing import fits


def bomb() -> bytes:
    """An image of 100 megapixels, as its header says."""
    content = bytearray(png(0))
    content[16:24] = (10_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


GOOD, UNNAMED = png(0), "No image has a caption"
BROKEN = {"a.png": b"", "b.png": b"no image", "c.png": GOOD[:20], "d.png": GOOD[:10]}
HIDDEN = ("a/.b.png", ".cache/c.png", "__MACOSX/._a.png", "x/__MACOSX/d.png")
TWICE = b"".join(b'{"file_name": "a.png", "text": "%s"}\n' % text for text in (b"one", b"two"))
READ: dict[str, tuple[dict[str, bytes], list[str | None], list[str]]] = {
    "images that no metadata file names": (
        with_jsonl(items("a", "b")) | {"y.png": png(8), "y.txt": b"from a file\n", "z.png": GOOD},
        ["a", "b", "from a file", None],
        ["2 of 4 images are in no metadata file", "1 of 4 images have no caption"],
    ),
    "an image of two captions": ({"metadata.jsonl": TWICE, "a.png": GOOD}, ["one", "two"], []),
    "captions that are no text": (
        {f"{name}.png": png(n) for n, name in enumerate("abc")}
        | {"a.txt": b"\xff\xfe", "b.txt": b" \n", "c.txt": b"\xef\xbb\xbfthe caption \r\n"},
        [None, None, "the caption "],
        ["a.txt", "2 of 3 images have no caption"],
    ),
    "no captions": ({"1.png": GOOD, "2.png": GOOD, "notes.txt": b"n"}, [None, None], [UNNAMED]),
    "hidden": ({"a.png": GOOD} | dict.fromkeys(HIDDEN, png(1)), [None], [UNNAMED]),
    "broken": (
        BROKEN | {"e.png": GOOD, "e.txt": b"whole"},
        ["whole"],
        ["4 images that cannot be read (a.png, b.png, c.png and 1 more)"],
    ),
    "bomb": ({"bomb.png": bomb(), "a.png": GOOD, "a.txt": b"a"}, ["a"], ["bomb.png"]),
}


@pytest.mark.parametrize("name", READ)
def test_captions_and_what_is_said_about_them(name: str, tmp_path: Path) -> None:
    files, texts, notes = READ[name]
    for dataset in everywhere(tmp_path, files):
        found = list(dataset.examples())
        assert [each.text for each in found] == texts, dataset.layout
        assert len({each.id for each in found}) == len(texts)
        assert len(dataset.notes) == len(notes), dataset.notes
        for words in notes:
            assert note_of(dataset, words)


def test_images_of_a_kind_that_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.heic": b"...", "b.png": GOOD})
    assert note_of(open_dataset(tmp_path), "1 image of a kind", "a.heic")


def test_of_broken_images_alone_nothing_is_opened(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match="holds no image that can be read") as error:
        open_dataset(write(tmp_path, BROKEN))
    assert "a.png" in str(error.value)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("image_folders", "tars", "tables"):
        monkeypatch.setattr(f"regforge.dataset.sources.{module}.MOST_IMAGE", 1000)
    files = {"a.png": GOOD, "b.png": png(1) + bytes(1000)}
    write(tmp_path, {"x.parquet": as_parquet({"image": [*files.values()], "text": ["a", "b"]})})
    for dataset in (*everywhere(tmp_path, files), open_dataset(tmp_path / "x.parquet")):
        for images in (True, False):
            assert len(list(dataset.examples(images=images))) == 1
            assert note_of(dataset, "1 image that cannot be read")


def test_turned_photos_keep_their_size(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": turned_photo(), "b.jpg": png(1)})
    turned, plain = open_dataset(tmp_path).examples()
    assert (turned.width, turned.height) == (12, 8)
    assert turned.metadata == {"exif_orientation": 6}
    assert plain.metadata == {}


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


def test_links_to_elsewhere_alone_or_as_a_run_s_dataset_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"a.png": png(0)})
    write(tmp_path / "run", {"recipe.yaml": "{}", "state.json": "{}"})
    (tmp_path / "run" / "dataset").symlink_to("../secret")
    with pytest.raises(CannotOpen):
        open_dataset(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").symlink_to(tmp_path / "secret" / "a.png")
    with pytest.raises(CannotOpen, match=r"a\.png"):  # why it is empty
        open_dataset(tmp_path / "folder")
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


def test_of_names_that_are_alike_each_has_the_one_written_as_its_own(tmp_path: Path) -> None:
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
        (f"---\nlicense: {'[' * 1000}\n---\n", "not valid YAML"),
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
