"""Images that trainers would see otherwise than viewers, and images that break off."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_samples import FORMATS, Memory, example, export, image_folder, make_image, ours
from odd_images import ODD, PLAIN, cut, file_of, noise
from PIL import Image

from regforge.dataset.sources import open_dataset
from regforge.exporting.trainer import ExportError
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
    folder = image_folder(tmp_path / "theirs", {f"a.{suffix}": content})
    rows = ours(4) if role == "instance" else open_dataset(folder)
    subject = folder if role == "instance" else None
    options = {"class_noun": "teapot", "subject": subject, "check": True}
    done = export(rows, out, "imagefolder", **options)
    assert said in " ".join(done.notes)
    assert not done.differs
    with Image.open(written(out, "subject" if role == "instance" else "images")) as image:
        assert (image.format, image.mode, dict(image.getexif())) == ("PNG", "RGB", {})
        # What regforge's own training sees.
        assert np.array_equal(np.asarray(image), np.asarray(plain(decode(content))))
    again = export(rows, out, "imagefolder", **options)
    assert (again.notes, again.differs) == (done.notes, False)
    assert (folder / f"a.{suffix}").read_bytes() == content


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_keep_their_bytes(tmp_path: Path, out: Path, name: str) -> None:
    content, suffix = PLAIN[name]
    folder = image_folder(tmp_path / "theirs", {f"a.{suffix}": content})
    done = export(folder, out, class_noun="teapot", check=True)
    assert written(out).read_bytes() == content
    assert not done.differs
    assert not any("trainers do not all" in note for note in done.notes)


def test_sizes_in_the_metadata_are_those_of_the_upright_image(tmp_path: Path, out: Path) -> None:
    folder = image_folder(tmp_path / "theirs", {"a.jpg": ODD["turned JPEG"][0]})
    export(folder, out, "imagefolder", class_noun="teapot")
    row = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))[0]
    assert (row["width"], row["height"]) == row["image"].size == (8, 12)
    assert "exif_orientation" not in row


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("where", ["folder", "parquet"])
def test_an_image_that_breaks_off_is_left_out_and_named(
    tmp_path: Path, out: Path, kind: str, where: str
) -> None:
    whole = file_of(noise((64, 64)), kind)
    images = {"cut": cut(whole, 0.7), "whole": whole}
    suffix = kind.lower() if where == "folder" else "parquet"
    files = {f"{name}.{suffix}": content for name, content in images.items()}
    folder = image_folder(tmp_path / "theirs", files if where == "folder" else {})
    if where == "parquet":
        sizes = {"width": [64] * 2, "height": [64] * 2, "text": ["a teapot"] * 2}
        rows = {"image": [*images.values()], "id": [*images], **sizes}
        pq.write_table(pa.table(rows), folder / "a.parquet")
    done = export(folder, out, class_noun="teapot", check=True)
    assert (done.images, done.differs) == (1, False)
    assert "Left out: 1" in (said := " ".join(done.notes))
    assert "(cut" in said
    assert written(out).read_bytes() == whole


def test_nothing_but_broken_images_is_refused(tmp_path: Path, out: Path) -> None:
    folder = image_folder(tmp_path / "theirs", {"cut.png": cut(file_of(noise((64, 64))))})
    with pytest.raises(ExportError):
        export(folder, out, class_noun="teapot")
    assert not out.exists()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_the_check_decodes_every_image_to_its_end(out: Path, kind: str) -> None:
    images = [file_of(noise((64, 64), n), FORMATS[kind]) for n in range(3)]
    rows = [example(n, image=each, size=(64, 64)) for n, each in enumerate(images)]

    def differences(check: bool = True) -> list[str]:
        dataset = Memory(rows, layout="folder")
        (target,) = export(dataset, out, "imagefolder", class_noun="pot", check=check).targets
        return list(target.checked.differences) if target.checked else []

    assert differences(check=False) == []
    path = out / "images" / f"00002.{kind}"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(cut(whole, 0.7))
    (line,) = differences()
    assert line.startswith(f"images/00002.{kind}: cannot be read")
    path.write_bytes(ODD["turned JPEG"][0])
    assert any("turned by EXIF" in line for line in differences())


@pytest.mark.parametrize(("to", "below"), [("imagefolder", ""), ("webdataset", "shards")])
def test_two_exports_of_one_name_never_share_an_entry_in_the_cache_of_datasets(
    tmp_path: Path, to: str, below: str
) -> None:
    """Same captions, sizes and columns; the images differ. For imagefolder, the places too."""
    outs = [tmp_path / str(number) / "teapot" for number in range(2)]
    for number, out in enumerate(outs):
        images = [make_image(100 * number + n) for n in range(4)]
        rows = [example(n, image=each, class_noun="teapot") for n, each in enumerate(images)]
        export(Memory(rows, layout="folder"), out, to)
    for out in [*outs, outs[0]]:
        rows = datasets.load_dataset(
            str(out / below), split="train", cache_dir=str(tmp_path / "cache")
        )
        found = [row["png" if below else "image"].tobytes() for row in rows]
        files = sorted((out / "images").glob("*.png"))
        assert found == [Image.open(io.BytesIO(f.read_bytes())).tobytes() for f in files]
