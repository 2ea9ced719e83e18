"""An ImageFolder, loaded by `datasets` itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import datasets
import pytest
from export_samples import Memory, example, export, ours, theirs

from regforge.export import imagefolder
from regforge.export.trainer import ExportError


def load(folder: Path, cache: Path, **more: Any) -> Any:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache), **more)


def test_datasets_loads_every_image_with_its_caption_and_columns(
    tmp_path: Path, photos: Path, out: Path
) -> None:
    dataset = ours(30)
    done = export(dataset, out, "imagefolder", subject=photos, check=True)
    assert not done.differs
    rows = load(out, tmp_path / "cache")
    assert rows.num_rows == 30
    known = {row.text: row for row in dataset.rows}
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        example = known.pop(row["text"])
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == example.metadata["image_digest"]
        assert (row["slots"], row["prompt_set"]) == (example.slots, example.prompt_set)
        assert row["seed"] == example.metadata["seed"]
    assert rows.features["slots"] == {
        "shape": datasets.Value("string"),
        "color": datasets.Value("string"),
    }
    assert rows.features["seed"] == datasets.Value("int64")
    assert rows[0]["image"].size == (16, 16)


def test_our_reader_sees_what_datasets_sees(tmp_path: Path, out: Path) -> None:
    rows = [
        example(number, suffix=suffix, class_noun="teapot")
        for number, suffix in enumerate(["png", "jpg", "webp"] * 3)
    ]
    export(Memory(rows), out, "imagefolder")
    theirs = {
        Path(row["image"]["path"]).relative_to(out).as_posix(): row["text"]
        for row in load(out, tmp_path / "cache").cast_column("image", datasets.Image(decode=False))
    }
    assert {each.path: each.caption for each in imagefolder.TRAINER.read(out, out)} == theirs


def test_the_card_says_the_types_of_columns(tmp_path: Path, out: Path) -> None:
    known: list[dict[str, Any]] = [{"made": "2024-01-01", "score": 1}, {"made": None, "score": 2.5}]
    rows = [
        example(number, class_noun="teapot", slots={"color": None}, metadata=more)
        for number, more in enumerate(known)
    ]
    export(Memory(rows, slots=("color",)), out, "imagefolder")
    features = load(out, tmp_path / "cache").features
    assert features["made"] == datasets.Value("string")  # not a time
    assert features["score"] == datasets.Value("float64")
    assert features["slots"] == {"color": datasets.Value("string")}  # not of type null


def test_without_the_card_datasets_would_lose_the_images(tmp_path: Path, out: Path) -> None:
    """What the note says; if this ever changes, the note should."""
    export(theirs(["a teapot"] * 12), out, "imagefolder", class_noun="teapot")
    assert "image" in load(out, tmp_path / "one").features
    (out / "README.md").unlink()
    assert "image" not in load(out, tmp_path / "two").features


@pytest.mark.parametrize(
    "caption",
    ["2024-01-01", "2024-01-01 10:00", "2024-01-01T10:00:00.5Z", "2024-01-01 10:00:00+01"],
)
def test_captions_that_would_be_read_as_dates_are_refused(out: Path, caption: str) -> None:
    with pytest.raises(ExportError, match="would read it as a time"):
        export(theirs([caption]), out, "imagefolder", class_noun="teapot")


@pytest.mark.parametrize("pattern", ["/etc/*", "../*.png"])
def test_a_card_that_leads_elsewhere_is_refused(out: Path, pattern: str) -> None:
    export(ours(4), out, "imagefolder")
    card = (out / "README.md").read_text().replace("images/*.webp", pattern)
    (out / "README.md").write_text(card)
    with pytest.raises(ExportError, match="not in its folder"):
        list(imagefolder.TRAINER.read(out, out))
