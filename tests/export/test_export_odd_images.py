"""Images that trainers would see otherwise than viewers, and images that break off."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from export_samples import FORMATS, Memory, example, export, make_image, ours
from odd_images import ODD, PLAIN, cut, file_of, noise
from PIL import Image

from regforge.dataset.sources import open_dataset
from regforge.export.trainer import ExportError
from regforge.image_files import decode, plain


def written(out: Path, folder: str = "images") -> Path:
    (path,) = [each for each in (out / folder).iterdir() if each.suffix != ".txt"]
    return path


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("role", ["regularization", "instance"])
def test_odd_images_are_written_upright_on_white_with_eight_bits(
    tmp_path: Path, out: Path, name: str, role: str
) -> None:
    content, said, suffix = ODD[name]
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(content)
    (folder / "a.txt").write_text("a photo of a sks teapot")
    rows = ours(4) if role == "instance" else open_dataset(folder)
    subject = folder if role == "instance" else None
    options = {"class_noun": "teapot", "subject": subject, "check": True}
    done = export(rows, out, "imagefolder", **options)
    assert said in " ".join(done.notes)
    assert not done.differs
    path = written(out, "subject" if role == "instance" else "images")
    with Image.open(path) as image:
        assert (image.format, image.mode, dict(image.getexif())) == ("PNG", "RGB", {})
        # What regforge's own training sees.
        assert np.array_equal(np.asarray(image), np.asarray(plain(decode(content))))
    again = export(rows, out, "imagefolder", **options)
    assert (again.notes, again.differs) == (done.notes, False)
    assert (folder / f"a.{suffix}").read_bytes() == content


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_keep_their_bytes(tmp_path: Path, out: Path, name: str) -> None:
    content, suffix = PLAIN[name]
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(content)
    (folder / "a.txt").write_text("a teapot")
    done = export(folder, out, class_noun="teapot", check=True)
    assert written(out).read_bytes() == content
    assert not done.differs
    assert not any("trainers do not all" in note for note in done.notes)


def test_sizes_in_the_metadata_are_those_of_the_upright_image(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(ODD["turned JPEG"][0])
    export(folder, out, "imagefolder", class_noun="teapot")
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    row = rows[0]
    assert (row["width"], row["height"]) == row["image"].size == (8, 12)
    assert "exif_orientation" not in row


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("where", ["folder", "parquet"])
def test_an_image_that_breaks_off_is_left_out_and_named(
    tmp_path: Path, out: Path, kind: str, where: str
) -> None:
    whole = file_of(noise((64, 64)), kind)
    broken = cut(file_of(noise((64, 64)), kind), 0.7)
    folder = tmp_path / "theirs"
    folder.mkdir()
    if where == "folder":
        (folder / f"whole.{kind.lower()}").write_bytes(whole)
        (folder / f"cut.{kind.lower()}").write_bytes(broken)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = {"image": [broken, whole], "id": ["cut", "whole"], "text": ["a teapot"] * 2}
        pq.write_table(
            pa.table({**rows, "width": [64] * 2, "height": [64] * 2}), folder / "a.parquet"
        )
    done = export(folder, out, class_noun="teapot", check=True)
    assert (done.images, done.differs) == (1, False)
    assert "Left out: 1" in (said := " ".join(done.notes))
    assert "(cut" in said
    assert written(out).read_bytes() == whole


def test_nothing_but_broken_images_is_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "cut.png").write_bytes(cut(file_of(noise((64, 64)))))
    with pytest.raises(ExportError):
        export(tmp_path / "theirs", out, class_noun="teapot")
    assert not (out).exists()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_the_check_decodes_every_image_to_its_end(out: Path, kind: str) -> None:
    format_ = FORMATS[kind]
    rows = [example(n, image=file_of(noise((64, 64), n), format_), size=(64, 64)) for n in range(3)]
    export(Memory(rows, layout="folder"), out, "imagefolder", class_noun="teapot")
    path = out / "images" / f"00002.{kind}"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(cut(whole, 0.7))
    done = export(
        Memory(rows, layout="folder"), out, "imagefolder", class_noun="teapot", check=True
    )
    (target,) = done.targets
    assert target.checked
    (line,) = target.checked.differences
    assert line.startswith(f"images/00002.{kind}: cannot be read")
    path.write_bytes(ODD["turned JPEG"][0])
    done = export(
        Memory(rows, layout="folder"), out, "imagefolder", class_noun="teapot", check=True
    )
    assert done.targets[0].checked
    assert any("turned by EXIF" in line for line in done.targets[0].checked.differences)


@pytest.mark.parametrize("to", ["imagefolder", "webdataset"])
def test_two_exports_of_one_name_never_share_an_entry_in_the_cache_of_datasets(
    tmp_path: Path, to: str
) -> None:
    """Same captions, sizes and columns; the images differ. For imagefolder, the places too."""
    outs = []
    for number in range(2):
        rows = [
            example(n, image=make_image(100 * number + n), class_noun="teapot") for n in range(4)
        ]
        outs.append(tmp_path / str(number) / "teapot")
        export(Memory(rows, layout="folder"), outs[-1], to)
    for out in [*outs, outs[0]]:
        where = out / "shards" if to == "webdataset" else out
        rows = datasets.load_dataset(str(where), split="train", cache_dir=str(tmp_path / "cache"))
        column = "png" if to == "webdataset" else "image"
        found = [row[column].tobytes() for row in rows]
        files = sorted((out / "images").glob("*.png"))
        assert found == [Image.open(io.BytesIO(f.read_bytes())).tobytes() for f in files]
