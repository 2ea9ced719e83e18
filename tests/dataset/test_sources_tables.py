"""Parquet files of anybody: columns, sizes, damage, and what is not read."""

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import (
    IMAGE,
    as_parquet,
    note_of,
    png,
    write,
)

from regforge.dataset.sources import CannotOpen, open_dataset


def test_images_are_not_touched_where_columns_say_all(tmp_path: Path) -> None:
    """A file whose image column is cut out of it can be read without images, and not with."""
    count = 2000
    columns = {
        "id": [f"{n}" for n in range(count)],
        "text": [f"caption {n}" for n in range(count)],
        "width": [64] * count,
        "height": [48] * count,
        "image": pa.array([{"bytes": b"no image", "path": None}] * count, IMAGE),
    }
    path = tmp_path / "rows.parquet"
    path.write_bytes(as_parquet(columns, compression="none", use_dictionary=False))
    chunk = next(
        column
        for column in map(pq.read_metadata(path).row_group(0).column, range(6))
        if column.path_in_schema == "image.bytes"
    )
    content = bytearray(path.read_bytes())
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)

    dataset = open_dataset(path)
    read_back = [(e.id, e.text, e.width, e.height) for e in dataset.examples(images=False)]
    assert read_back == [(f"{n}", f"caption {n}", 64, 48) for n in range(count)]
    with pytest.raises(CannotOpen, match="cannot be read"):
        next(dataset.examples())


@pytest.mark.parametrize("name", ["x.parquet", "metadata.parquet"])
def test_a_table_that_pyarrow_does_not_know(name: str, tmp_path: Path) -> None:
    """One whose stored schema speaks of integers of four bits."""
    schema = pa.schema({"image": pa.binary(), "file_name": pa.string(), "n": pa.int16()})
    stored, wider = (
        each.serialize().to_pybytes() for each in (schema, schema.set(2, pa.field("n", pa.int32())))
    )
    pq.write_table(schema.empty_table(), tmp_path / name)
    (at,) = (at for at, pair in enumerate(zip(stored, wider, strict=True)) if pair == (16, 32))
    broken = stored[:at] + b"\4" + stored[at + 1 :]
    content = (tmp_path / name).read_bytes()
    assert base64.b64encode(stored) in content
    content = content.replace(base64.b64encode(stored), base64.b64encode(broken))
    write(tmp_path, {"a.png": png(0), name: content})
    with pytest.raises(CannotOpen, match=f"{name} cannot be read"):
        open_dataset(tmp_path if name == "metadata.parquet" else tmp_path / name)


def test_captions_in_a_column_of_another_name(tmp_path: Path) -> None:
    columns = {"image": [png(0), png(1)], "blip_caption": ["a", "b"], "seed": [4, None]}
    path = write(tmp_path, {"x.parquet": as_parquet(columns)}) / "x.parquet"
    dataset = open_dataset(path)
    assert [e.text for e in dataset.examples()] == [None, None]
    assert "blip_caption" in note_of(dataset, "--caption-column")
    assert note_of(dataset, "No image has a caption")

    dataset = open_dataset(path, caption_column="blip_caption")
    assert [(e.text, dict(e.metadata)) for e in dataset.examples()] == [
        ("a", {"seed": 4}),
        ("b", {}),
    ]
    assert dataset.notes == []
    with pytest.raises(CannotOpen, match=r"no column 'blip_captoin'") as error:
        open_dataset(path, caption_column="blip_captoin")
    assert "Did you mean --caption-column blip_caption?" in str(error.value)


def test_lists_of_captions_odd_values_and_rows_without_images(tmp_path: Path) -> None:
    columns = {
        "caption": [["first", "second"], [], None],
        "image": [png(0), png(1), png(2)],
        "id": ["same", "same", ""],
        "embedding": [[0.5] * 8] * 3,
        "mask": [b"..."] * 3,
        "score": [float("nan"), 1.5, None],
    }
    path = write(tmp_path, {"x.parquet": as_parquet(columns)}) / "x.parquet"
    found = list(open_dataset(path).examples())
    assert [each.text for each in found] == ["first", None, None]
    assert [each.id for each in found] == ["same", "same#2", "x.parquet:2"]
    assert [dict(each.metadata) for each in found] == [{}, {"score": 1.5}, {}]
    images = [{"bytes": png(0), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    columns = {"image": pa.array(images, IMAGE), "text": ["a", "b", "c"]}
    dataset = open_dataset(write(tmp_path, {"x.parquet": as_parquet(columns)}))
    assert [each.text for each in dataset.examples()] == ["a"]
    assert note_of(dataset, "2 images that cannot be read", "b.png")


def test_memory_stays_flat_whatever_the_size_of_a_row_group(tmp_path: Path) -> None:
    columns = {"image": [png(0, (200, 200))] * 160, "text": ["a"] * 160}
    path = tmp_path / "x.parquet"
    # In pages of 1 MB, as `datasets` writes them.
    path.write_bytes(as_parquet(columns, use_dictionary=False, use_content_defined_chunking=True))
    assert pq.read_metadata(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    most = 0
    for _ in open_dataset(path).examples():
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 3
