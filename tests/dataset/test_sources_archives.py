"""Zip and tar archives, also hostile and damaged ones."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from layouts import (
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


def test_zips_of_several_classes(tmp_path: Path) -> None:
    cats, dogs = items("a cat", "two cats"), items("a dog", None)
    other = with_jsonl([each._replace(image=png(n + 5)) for n, each in enumerate(dogs)])
    files = {"cats.zip": as_zip(with_text_files(cats)), "dogs.zip": as_zip(other)}
    write(tmp_path, files | {"preview.png": png(0)})
    dataset = open_dataset(tmp_path)
    assert [(each.id, each.text) for each in dataset.examples()] == [
        ("dogs.zip/000.png", "a dog"),
        ("dogs.zip/001.png", None),
        ("cats.zip/000.png", "a cat"),
        ("cats.zip/001.png", "two cats"),
    ]
    assert note_of(dataset, "Left out: 1 image (preview.png)")
    assert note_of(dataset, "2 of 4 images are in no metadata file")


def test_names_and_links_in_archives_lead_nowhere(tmp_path: Path) -> None:
    secret = write(tmp_path, {"secret.png": png(9)}) / "secret.png"
    files = {"../../a.png": png(0), "../../a.txt": b"caption", "/etc/b.png": png(1)}
    folder = write(tmp_path / "x", {"x.zip": as_zip(files), "x.tar": as_tar(files)})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "x.zip", "a") as archive:
        archive.writestr(link, str(secret))
    with tarfile.open(folder / "x.tar", "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            entry = tarfile.TarInfo(f"link{kind!r}.png")
            entry.type, entry.linkname = kind, str(secret)
            tar.addfile(entry)
    before = sorted(tmp_path.rglob("*"))
    for name in ("x.zip", "x.tar"):
        dataset = open_dataset(folder / name)
        found = {each.text: (each.image, each.file) for each in dataset.examples()}
        assert found == {"caption": (png(0), None), None: (png(1), None)}
        assert len(list(dataset.examples())) == 2
        assert dataset.notes == ["1 of 2 images have no caption."]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_whose_member_lies_about_its_size(tmp_path: Path) -> None:
    large = png(0, (400, 400))
    content = bytearray(as_zip({"a.png": large, "b.png": png(1)}, compression=8))
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (500).to_bytes(4, "little")
    dataset = open_dataset(write(tmp_path, {"x.zip": bytes(content)}))
    assert [each.id for each in dataset.examples()] == ["b.png"]
    assert note_of(dataset, "1 image that cannot be read (a.png)")


@pytest.mark.parametrize("archives", [("x.zip",), ("x.zip", "y.zip")])
def test_a_member_without_a_name(archives: tuple[str, ...], tmp_path: Path) -> None:
    content = as_zip({"a.png": png(0), "?.png": png(1)}).replace(b"?.png", b"\0.png")
    dataset = open_dataset(write(tmp_path, dict.fromkeys(archives, content)))
    assert [each.image for each in dataset.examples()] == [png(0)] * len(archives)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("cut", [0.31, 0.41, 0.49, 0.52])
def test_an_archive_that_was_cut(cut: float, mode: str, tmp_path: Path) -> None:
    whole = as_tar(with_text_files(items(*"abcdefgh")), mode)
    path = write(tmp_path, {"x.tar": whole[: int(len(whole) * cut)]}) / "x.tar"
    dataset = open_dataset(path)
    with pytest.raises(CannotOpen, match=r"x.tar is no tar archive, or is damaged"):
        list(dataset.examples())


def test_an_archive_without_its_end(tmp_path: Path) -> None:
    whole = as_tar(with_text_files(items(*"abcdefgh"))).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    dataset = open_dataset(write(tmp_path, {"x.tar": whole}) / "x.tar")
    assert len(list(dataset.examples())) == 8
    assert note_of(dataset, "x.tar lacks the mark of its end")


def test_webdataset_samples(tmp_path: Path) -> None:
    said = {"caption": "from JSON", "seed": 7, "nested": [1]}
    files = {
        "./a/1.jpg": png(0, format="JPEG"),
        "./a/1.json": json.dumps(said).encode(),
        "./a/2.json": json.dumps({**said, "caption": "not this"}).encode(),
        "./a/2.txt": b"from text",
        "./a/2.png": png(1),
        "./a/3 0.5.png": png(2),  # not WebDataset's way, and two images of one key
        "./a/3 0.5.txt": b"first",
        "./a/3 0.6.png": png(3),
        "./a/3 0.6.txt": b"second",
        "./a/4.cls": b"3",
    }
    dataset = open_dataset(write(tmp_path, {"x.tar": as_tar(files)}) / "x.tar")
    found = list(dataset.examples())
    assert [each.id for each in found] == ["a/1", "a/2", "a/3 0.5.png", "a/3 0.6.png"]
    assert [each.text for each in found] == ["from JSON", "from text", "first", "second"]
    assert found[0].metadata == {"seed": 7}
    with pytest.raises(CannotOpen, match="'a/1' has no 'txt'; it has json"):
        open_dataset(tmp_path, caption_column="txt")
    asked = open_dataset(tmp_path, caption_column="caption")
    assert [each.text for each in asked.examples()] == ["from JSON", "not this", None, None]


def test_the_same_key_in_two_shards(tmp_path: Path) -> None:
    one = {"1.png": png(0), "1.txt": b"a"}
    two = {"1.png": png(1), "1.txt": b"b", "metadata.jsonl": b"{}"}
    write(tmp_path, {"0.tar": as_tar(one), "1.tar": as_tar(two)})
    dataset = open_dataset(tmp_path)
    assert [(each.id, each.text) for each in dataset.examples()] == [
        ("0.tar/1", "a"),
        ("1.tar/1", "b"),
    ]
    assert note_of(dataset, "Not read: metadata.jsonl")
