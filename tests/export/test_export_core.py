"""What is in an export, whatever the trainer."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_samples import (
    Memory,
    contents,
    example,
    export,
    layout,
    make_image,
    ours,
    photo_folder,
    theirs,
)

from regforge.dataset.sources import open_dataset
from regforge.exporting import export_dataset, kohya, writing
from regforge.exporting.settings import typical_resolution
from regforge.exporting.trainer import ExportError
from regforge.prompts.photos import PhotosError
from regforge.records import Example


def metadata(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_bytes().splitlines()]


def test_images_keep_their_bytes_captions_and_all_that_is_known(out: Path) -> None:
    dataset = ours(30)
    done = export(dataset, out)
    assert (done.images, done.photos, done.differs) == (30, 0, False)
    known = {row.text: row for row in dataset.rows}
    laid, rows = layout(out), metadata(out)
    assert list(laid) == [f"{number:05d}.webp" for number in range(1, 31)]
    assert sorted(laid.values()) == sorted(map(str, known))
    assert [row["file_name"] for row in rows] == [f"images/{name}" for name in laid]
    assert [row["text"] for row in rows] == list(laid.values())
    for row in rows:
        example = known[row["text"]]
        assert (out / row["file_name"]).read_bytes() == example.image
        assert row["slots"] == example.slots
        assert (row["id"], row["prompt_set"]) == (example.id, example.prompt_set)
        assert row["seed"] == example.metadata["seed"]
        assert row["scores"] == {"alignment": example.metadata["scores"]["alignment"]}
        assert (row["width"], row["height"]) == (16, 16)
        assert "language_model" not in row  # nobody knows one


def test_metadata_of_somebody_else_has_one_kind_in_a_column(out: Path) -> None:
    known: list[dict[str, Any]] = [
        {"score": 1, "tag": "x", "source_file_name": "../../etc/passwd", "text": "other"},
        {"score": 0.5, "tag": 3, "blob": b"\x00", "nan": float("nan")},
        {"score": None, "tag": ["a", None], "part": {"a": 1}},
        {"part": {"a": 0.5, "b": "x"}, "big": 2**70},
    ]
    export(Memory([example(n, metadata=m, class_noun="pot") for n, m in enumerate(known)]), out)
    found = [row for _, row in sorted((row["id"], row) for row in metadata(out))]
    assert [row["score"] for row in found] == [1.0, 0.5, None, None]
    assert [row["tag"] for row in found[:3]] == ["x", "3", '["a", null]']
    assert found[2]["part"] == {"a": 1.0, "b": None}
    assert found[3]["big"] == str(2**70)
    assert found[0]["text"] == "a teapot, number 0"
    assert not {"blob", "nan"} & found[1].keys()
    assert not any("file_name" in name for name in found[0] if name != "file_name")
    assert len({tuple(row) for row in found}) == 1


def test_names_come_never_from_the_dataset(tmp_path: Path) -> None:
    rows = [
        Example(name, make_image(number), "a teapot", 16, 16, class_noun="teapot")
        for number, name in enumerate(["../../up", "/etc/passwd", "a\x00b", "CON"])
    ]
    export(Memory(rows), tmp_path / "in" / "out")
    assert len(layout(tmp_path / "in" / "out")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_files_of_the_dataset_are_linked_and_never_written_to(tmp_path: Path, out: Path) -> None:
    content = make_image(1)
    file, link = tmp_path / "original.png", tmp_path / "link.png"
    file.write_bytes(content)
    link.symlink_to(file)
    files = (file, link)
    rows = [example(n, image=content, file=f, class_noun="pot") for n, f in enumerate(files)]
    export(Memory(rows), out)
    for name in layout(out):
        laid = out / "images" / name
        assert laid.stat().st_ino == file.stat().st_ino
        assert not laid.is_symlink()


def test_a_snapshot_in_the_cache_of_the_hub_is_a_folder(tmp_path: Path, out: Path) -> None:
    cache = tmp_path / "datasets--me--teapots"
    commit = cache / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    (cache / "blobs").mkdir()

    def add(name: str, number: int) -> None:
        (cache / "blobs" / f"digest{number}").write_bytes(make_image(number, suffix=name[-3:]))
        (commit / name).symlink_to(f"../../blobs/digest{number}")

    add("a.png", 0)
    add("b.jpg", 1)
    export(open_dataset(commit), out, class_noun="teapot")
    assert sorted(Path(name).suffix for name in layout(out)) == [".jpg", ".png"]
    add("c.gif", 2)
    with pytest.raises(ExportError, match=r"c\.gif"):
        export(open_dataset(commit), tmp_path / "more", class_noun="teapot")


def test_where_there_are_no_links_there_are_copies(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert not export(ours(8), out, check=True).differs
    assert (out / "kohya" / "reg" / "1_teapot" / "00001.webp").stat().st_nlink == 1
    assert not list(out.rglob(".*.part"))


def test_a_limit_takes_the_first_of_the_same_order(tmp_path: Path) -> None:
    export(ours(40), tmp_path / "all")
    export(ours(40), tmp_path / "some", limit=12)
    everything = list(layout(tmp_path / "all").items())
    assert list(layout(tmp_path / "some").items()) == everything[:12]
    assert len(metadata(tmp_path / "some")) == 12


def test_the_same_export_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(ours(20), tmp_path / name, "kohya", "imagefolder", "webdataset", root="/data/t")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_formats_are_kept_and_others_refused(tmp_path: Path, out: Path) -> None:
    def of(*suffixes: str, **more: Any) -> Memory:
        rows = [example(n, suffix=s, class_noun="pot") for n, s in enumerate(suffixes)]
        return Memory([*rows[:-1], replace(rows[-1], **more)])

    export(of("png", "jpg", "webp"), out, "kohya", "imagefolder", check=True)
    assert sorted(Path(name).suffix for name in layout(out)) == [".jpg", ".png", ".webp"]
    for suffix in ("bmp", "gif"):  # ai-toolkit skips BMP without a word
        with pytest.raises(ExportError, match="not all trainers read: n1"):
            export(of("png", suffix), tmp_path / suffix)
    with pytest.raises(ExportError, match=r"anim\.gif"):
        export(of("png", "gif", file=tmp_path / "anim.gif"), tmp_path / "third")
    assert not (tmp_path / "third").exists()


# -------------------------------------------------------------------------------------- captions


def test_captions_are_one_line_and_none_is_missing(out: Path) -> None:
    texts = ["a teapot\nby a window", "a\tteapot\u2028 here ", None, "  ", "\ufeffplain", "ok"]
    done = export(theirs(texts), out, class_noun="urn", check=True)
    assert not done.differs
    assert sorted(layout(out).values()) == sorted(
        ["a teapot by a window", "a teapot here", *["a photo of an urn"] * 2, "plain", "ok"]
    )
    said = " ".join(done.notes)
    assert "2 captions were missing" in said
    assert "3 captions were brought onto one line" in said


def test_half_a_character_is_refused_before_anything_is_written(out: Path) -> None:
    with pytest.raises(ExportError, match=r"n1: it has half of a character.*\\ud800"):
        export(theirs(["ok", "a \ud800 teapot"]), out, class_noun="teapot")
    assert not out.exists()


def test_what_a_trainer_refuses_is_listed_with_its_reason(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = replace(kohya.TRAINER, refuses=lambda text: "it is odd" if "odd" in text else None)
    monkeypatch.setattr(writing, "TRAINERS", [odd])
    with pytest.raises(ExportError) as caught:
        export(theirs(["fine", *(f"odd {n}" for n in range(7))]), out, class_noun="teapot")
    said = str(caught.value)
    assert said.startswith("kohya sd-scripts could not keep 7 captions:")
    assert "n1: it is odd: odd 0" in said
    assert "... and 2 more" in said
    assert not out.exists()


def test_captions_that_name_the_subject_are_told(out: Path) -> None:
    done = export(theirs(["a photo of SKS teapot", "masks on a wall"]), out, class_noun="teapot")
    assert any("1 caption says 'sks'" in note for note in done.notes)


# -------------------------------------------------------------------------------------- defaults


def test_class_noun_is_the_most_common_or_given_or_asked_for(tmp_path: Path) -> None:
    rows = Memory([example(n, class_noun="cup" if n % 3 else "mug") for n in range(9)])
    done = export(rows, tmp_path / "one")
    assert "'cup', shown by 6 of them" in " ".join(done.notes)
    assert 'class_tokens = "cup"' in (tmp_path / "one" / "kohya.toml").read_text()
    export(rows, tmp_path / "two", class_noun="beaker")
    assert 'class_tokens = "beaker"' in (tmp_path / "two" / "kohya.toml").read_text()
    with pytest.raises(ExportError, match="--class-noun"):
        export(theirs(["a"]), tmp_path / "three")


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(1024, 1024)], 1024),
        ([(1216, 832), (832, 1216)], 1024),
        ([(512, 512), (512, 512), (2048, 2048)], 512),
        ([(96, 96)], 96),
        ([(100, 100)], 96),
        ([(500, 500)], 496),
        ([(1, 1)], 16),
    ],
)
def test_resolution_is_that_of_the_images(sizes: list[tuple[int, int]], side: int) -> None:
    assert typical_resolution(sizes) == side


def test_base_model_is_the_renderers_if_it_is_one(tmp_path: Path) -> None:
    done = export(ours(8), tmp_path / "one")
    assert "=stabilityai/stable-diffusion-xl-base-1.0" in done.targets[0].command
    done = export(theirs(["a"]), tmp_path / "two", class_noun="teapot")
    assert "=BASE-MODEL" in done.targets[0].command
    assert "BASE-MODEL" in " ".join(done.notes)
    done = export(ours(8), tmp_path / "three", base_model="me/mine-xl", family="sdxl")
    assert "=me/mine-xl" in done.targets[0].command


@pytest.mark.parametrize(
    ("resolution", "side", "said"),
    [(1024, 96, ["8 images of about 96 pixels", "10.7 times"]), (96, 96, []), (None, 96, [])],
)
def test_images_that_would_be_scaled_up_are_told(
    out: Path, photos: Path, resolution: int | None, side: int, said: list[str]
) -> None:
    dataset = theirs(["a teapot"] * 8, size=(side, side))
    options = {"class_noun": "teapot", "subject": photos, "resolution": resolution}
    notes = " ".join(export(dataset, out, **options).notes)
    assert [each for each in said if each not in notes] == []
    assert ("images of about" in notes) == bool(said)
    assert "4 photos of about 14 pixels" in notes  # 20 x 10


@pytest.mark.parametrize(
    ("root", "seen"),
    [("/workspace/tea pot", "/workspace/tea pot/images"), (r"D:\data", "D:/data/images")],
)
def test_root_is_where_the_trainer_will_see_it(out: Path, root: str, seen: str) -> None:
    done = export(ours(8), out, root=root, check=True)
    assert not done.differs
    assert f'image_dir = "{seen}"' in (out / "kohya.toml").read_text()
    assert ("PowerShell" in " ".join(done.notes)) == root.startswith("D:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"root": "relative/path"}, "no absolute path"),
        ({"root": "/a/../b"}, "no absolute path"),
        ({"identifier": " "}, "identifier is empty"),
        ({"class_noun": "\n"}, "class noun is empty"),
        ({"prior_weight": float("nan")}, "no weight"),
        ({"limit": 0}, "leaves no images"),
        ({"base_model": "two\nlines"}, "no repository"),
        ({"to": ["khoya"]}, "Did you mean 'kohya'"),
        ({"to": []}, "No trainer"),
        ({"dataset": Memory([])}, "no images"),
    ],
)
def test_what_makes_no_sense_is_refused(out: Path, options: dict[str, Any], said: str) -> None:
    arguments = {"dataset": ours(4), "to": ["kohya"], "out": out} | options
    with pytest.raises(ExportError, match=said):
        export_dataset(**arguments)
    assert not out.exists()


# ---------------------------------------------------------------------------------------- photos


def test_photos_are_laid_out_with_captions(tmp_path: Path, out: Path) -> None:
    folder = photo_folder(tmp_path / "photos", ["a photo of xyz teapot\non a desk", None, "a pot"])
    done = export(ours(8), out, subject=folder, identifier="xyz", check=True)
    assert layout(out, "subject") == {
        "01.jpg": "a photo of xyz teapot on a desk",
        "02.jpg": "a photo of a xyz teapot",
        "03.jpg": "a pot",
    }
    assert (done.photos, done.differs) == (3, False)
    assert "1 photo had no caption" in " ".join(done.notes)
    assert "caption of 1 photo does not say 'xyz'" in " ".join(done.notes)


def test_photos_that_no_trainer_reads_are_refused(tmp_path: Path, photos: Path, out: Path) -> None:
    (photos / "x.gif").write_bytes(make_image(1, suffix="gif"))
    with pytest.raises(ExportError, match=r"x\.gif"):
        export(ours(8), out, subject=photos)
    with pytest.raises(PhotosError):
        export(ours(8), out, subject=tmp_path / "nowhere")
    assert not out.exists()


def test_without_photos_there_is_a_place_for_them(out: Path) -> None:
    done = export(ours(40), out, check=True)
    assert list((out / "subject").iterdir()) == []
    assert "num_repeats = 8" in (out / "kohya.toml").read_text()  # 40 / 5
    assert "No photos" in " ".join(done.targets[0].notes)
    (out / "subject" / "mine.jpg").write_bytes(make_image(1, suffix="jpg"))
    assert not export(ours(40), out, check=True).differs
