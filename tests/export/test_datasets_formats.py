"""ImageFolder and WebDataset, loaded by `datasets` itself."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from export_samples import HARD_FOLDERS, Memory, example, export, ours, theirs
from trainer_rules import calls_of

from regforge.exporting import datasets_formats
from regforge.exporting.trainer import ExportError

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, out: Path) -> Load:
    def load(folder: Path = out, cache: str = "cache", **more: Any) -> Any:
        where = str(tmp_path / cache)
        return datasets.load_dataset(str(folder), split="train", cache_dir=where, **more)

    return load


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_the_command_names_any_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: found.append(path))
    ((_, _, code),) = calls_of(datasets_formats.load_command(f"/data/{folder}"))
    exec(code)
    assert found == [f"/data/{folder}"]


# ------------------------------------------------------------------------------------- ImageFolder


def test_datasets_loads_every_image_with_its_caption_and_columns(
    photos: Path, out: Path, load: Load
) -> None:
    dataset = ours(30)
    assert not export(dataset, out, "imagefolder", subject=photos, check=True).differs
    rows = load()
    assert rows.num_rows == 30
    known = {row.text: row for row in dataset.rows}
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        example = known.pop(row["text"])
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == example.metadata["image_digest"]
        assert (row["slots"], row["prompt_set"]) == (example.slots, example.prompt_set)
        assert row["seed"] == example.metadata["seed"]
    text = datasets.Value("string")
    assert rows.features["slots"] == {"shape": text, "color": text}
    assert rows.features["seed"] == datasets.Value("int64")
    assert rows[0]["image"].size == (16, 16)


def test_our_reader_sees_what_datasets_sees(out: Path, load: Load) -> None:
    suffixes = ["png", "jpg", "webp"] * 3
    rows = [example(n, suffix=each, class_noun="teapot") for n, each in enumerate(suffixes)]
    export(Memory(rows), out, "imagefolder")
    theirs = {
        Path(row["image"]["path"]).relative_to(out).as_posix(): row["text"]
        for row in load().cast_column("image", datasets.Image(decode=False))
    }
    assert {
        each.path: each.caption for each in datasets_formats.IMAGEFOLDER.read(out, out)
    } == theirs


def test_the_card_says_the_types_of_columns(out: Path, load: Load) -> None:
    known: list[dict[str, Any]] = [{"made": "2024-01-01", "score": 1}, {"made": None, "score": 2.5}]
    rows = [
        example(number, class_noun="teapot", slots={"color": None}, metadata=more)
        for number, more in enumerate(known)
    ]
    export(Memory(rows, slots=("color",)), out, "imagefolder")
    features = load().features
    assert features["made"] == datasets.Value("string")  # not a time
    assert features["score"] == datasets.Value("float64")
    assert features["slots"] == {"color": datasets.Value("string")}  # not of type null


def test_without_the_card_datasets_would_lose_the_images(out: Path, load: Load) -> None:
    """What the note says; if this ever changes, the note should."""
    export(theirs(["a teapot"] * 12), out, "imagefolder", class_noun="teapot")
    assert "image" in load(cache="one").features
    (out / "README.md").unlink()
    assert "image" not in load(cache="two").features


@pytest.mark.parametrize("pattern", ["/etc/*", "../*.png"])
def test_a_card_that_leads_elsewhere_is_refused(out: Path, pattern: str) -> None:
    export(ours(4), out, "imagefolder")
    card = (out / "README.md").read_text().replace("images/*.webp", pattern)
    (out / "README.md").write_text(card)
    with pytest.raises(ExportError, match="not in its folder"):
        list(datasets_formats.IMAGEFOLDER.read(out, out))


# -------------------------------------------------------------------------------------- WebDataset


def test_datasets_loads_every_sample_in_order(
    out: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets_formats, "SAMPLES", 8)
    dataset = ours(30)
    assert not export(dataset, out, "webdataset", check=True).differs
    shards = out / "shards"
    assert sorted(path.name for path in shards.glob("*.tar")) == [f"{n:05d}.tar" for n in range(4)]
    rows = load(shards).cast_column("webp", datasets.Image(decode=False))
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
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_bytes().splitlines()]
    with tarfile.open(out / "shards" / "00000.tar") as tar:
        assert tar.getnames() == [
            f"0000{number}.{suffix}" for number in (1, 2, 3) for suffix in ("webp", "txt", "json")
        ]
        for number, row in enumerate(rows, 1):
            stream = tar.extractfile(f"0000{number}.json")
            assert stream
            assert json.load(stream) == {k: v for k, v in row.items() if k != "file_name"}
        assert {(i.mtime, i.uid, i.uname, i.mode) for i in tar} == {(0, 0, "", 0o644)}


def test_a_shard_ends_where_its_bytes_are_too_many(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ours(10)
    monkeypatch.setattr(datasets_formats, "BYTES", 4 * len(dataset.rows[0].image))
    export(dataset, out, "webdataset", check=True)
    assert 3 <= len(list((out / "shards").glob("*.tar"))) <= 5


def test_types_may_be_mixed_and_slots_empty_at_first(out: Path, load: Load) -> None:
    rows = []
    for number in range(40):
        slots = {"color": "red" if number > 35 else None}
        suffix = "jpg" if number % 3 else "png"
        rows.append(example(number, suffix=suffix, class_noun="teapot", slots=slots))
    done = export(Memory(rows, slots=("color",)), out, "webdataset", check=True)
    assert "several types (jpg, png)" in " ".join(done.targets[0].notes)
    loaded = list(load(out / "shards", streaming=True))
    assert sum(row["json"]["slots"]["color"] == "red" for row in loaded) == 4
    assert sum(row["png"] is not None for row in loaded) == 14
    assert sum(row["jpg"] is not None for row in loaded) == 26
