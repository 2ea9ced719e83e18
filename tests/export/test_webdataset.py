"""Tar files, loaded by the webdataset builder of `datasets` itself."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from export_samples import Memory, example, export, ours

from regforge.export import webdataset


def load(folder: Path, cache: Path, **more: Any) -> Any:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache), **more)


def test_datasets_loads_every_sample_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "SAMPLES", 8)
    dataset, out = ours(30), tmp_path / "out"
    done = export(dataset, out, "webdataset", check=True)
    assert not done.differs
    names = sorted(path.name for path in (out / "shards").glob("*.tar"))
    assert names == [f"{number:05d}.tar" for number in range(4)]
    rows = load(out / "shards", tmp_path / "cache")
    rows = rows.cast_column("webp", datasets.Image(decode=False))
    assert [row["__key__"] for row in rows] == [f"{n:05d}" for n in range(1, 31)]
    known = {row.text: row for row in dataset.rows}
    for row in rows:
        example = known.pop(row["txt"])
        digest = hashlib.sha256(row["webp"]["bytes"]).hexdigest()
        assert digest == example.metadata["image_digest"]
        assert row["json"]["slots"] == example.slots
        assert row["json"]["seed"] == example.metadata["seed"]
    assert not known


def test_members_are_what_the_library_groups_by_name(out: Path) -> None:
    export(ours(3), out, "webdataset")
    lines = (out / "metadata.jsonl").read_bytes().splitlines()
    with tarfile.open(out / "shards" / "00000.tar") as tar:
        assert tar.getnames() == [
            f"0000{number}.{suffix}" for number in (1, 2, 3) for suffix in ("webp", "txt", "json")
        ]
        for number, line in enumerate(lines, 1):
            stream = tar.extractfile(f"0000{number}.json")
            assert stream
            row = json.loads(line)
            del row["file_name"]
            assert json.load(stream) == row
        assert {(info.mtime, info.uid, info.uname, info.mode) for info in tar} == {
            (0, 0, "", 0o644)
        }


def test_a_shard_ends_where_its_bytes_are_too_many(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ours(10)
    size = len(dataset.rows[0].image)
    monkeypatch.setattr(webdataset, "BYTES", 4 * size)
    export(dataset, out, "webdataset", check=True)
    parts = sorted((out / "shards").glob("*.tar"))
    assert 3 <= len(parts) <= 5


def test_types_may_be_mixed_and_slots_empty_at_first(tmp_path: Path, out: Path) -> None:
    rows = [
        example(
            number,
            suffix="jpg" if number % 3 else "png",
            class_noun="teapot",
            slots={"color": "red" if number > 35 else None},
        )
        for number in range(40)
    ]
    done = export(Memory(rows, slots=("color",)), out, "webdataset", check=True)
    assert "several types (jpg, png)" in " ".join(done.targets[0].notes)
    loaded = list(load(out / "shards", tmp_path / "cache", streaming=True))
    assert sum(row["json"]["slots"]["color"] == "red" for row in loaded) == 4
    assert sum(row["png"] is not None for row in loaded) == 14
    assert sum(row["jpg"] is not None for row in loaded) == 26
