"""OneTrainer.

`Concept` restates, at commit 23df383 of Nerogar/OneTrainer, `ConceptConfig.default_values` with
`BaseConfig.from_dict` (modules/util/config/) and the files that count
(modules/util/path_util.py, dataLoader/mixin/DataLoaderText2ImageMixin.py), and at commit 3a6994a of
Nerogar/mgds `CollectPaths`, `LoadMultipleTexts` and `VariationSorting` (src/mgds/pipelineModules/).
"""

import json
from enum import Enum
from math import floor
from pathlib import Path
from typing import Any

import pytest
from trainer_layout import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    material,
    read,
    write,
)

from regforge.export.onetrainer import CONFIG, TRAINER

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"}

Kind = Enum("Kind", ["STANDARD", "VALIDATION", "PRIOR_PREDICTION"])
Balancing = Enum("Balancing", ["REPEATS", "SAMPLES"])


class Concept:
    """A concept as it is after loading: what does not fit keeps its default, without an error."""

    def __init__(self, entries: dict[str, Any]) -> None:
        version = entries.get("__version", 0)
        if version == 0:
            entries = {("balancing" if k == "repeats" else k): v for k, v in entries.items()}
        if version <= 1 and "validation_concept" in entries:
            kind = "VALIDATION" if entries["validation_concept"] else "STANDARD"
            entries = {**entries, "type": kind}
        self.values: dict[str, Any] = {
            "name": "",
            "path": "",
            "enabled": True,
            "type": Kind.STANDARD,
            "include_subdirectories": False,
            "balancing": 1.0,
            "balancing_strategy": Balancing.REPEATS,
            "loss_weight": 1.0,
        }
        readers: dict[str, Any] = {"type": Kind.__getitem__, "name": str, "path": str}
        readers |= {"balancing_strategy": Balancing.__getitem__}
        readers |= {"balancing": float, "loss_weight": float}
        for key in self.values:
            try:
                self.values[key] = readers.get(key, lambda value: value)(entries[key])
            except (KeyError, ValueError, TypeError):
                continue
        self.prompt_source = entries.get("text", {}).get("prompt_source", "sample")

    def paths(self) -> list[Path]:
        files = sorted(path for path in Path(self.values["path"]).iterdir() if path.is_file())
        return [
            path
            for path in files
            if path.suffix.lower() in SUFFIXES
            and not path.stem.endswith(("-masklabel", "-condlabel"))
        ]

    def captions(self) -> list[list[str]]:
        assert self.prompt_source == "sample"
        found = []
        for path in self.paths():
            with path.with_suffix(".txt").open(encoding="utf-8") as file:
                lines = [line.strip() for line in file]
            found.append([line for line in lines if line] or [""])
        return found

    def epoch(self, number: int) -> list[Path]:
        """The files that an epoch shows."""
        paths, balancing = self.paths(), self.values["balancing"]
        count = int(balancing)
        if self.values["balancing_strategy"] is Balancing.REPEATS:
            count = floor(len(paths) * balancing)
        return [paths[(number * count + index) % len(paths)] for index in range(count)]


def concepts_of(out: Path) -> list[Concept]:
    """(photos, regularization images) as config.json names them."""
    config = json.loads((out / CONFIG).read_text())
    text = Path(config["concept_file_name"]).read_text(encoding="ascii")
    return [Concept(entries) for entries in json.loads(text)]


def captions_in(out: Path) -> list[str]:
    return [line for (line,) in concepts_of(out)[1].captions()]


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_onetrainer_reads_each_image_with_its_caption(tmp_path: Path, folder: str) -> None:
    made_from = material(tmp_path / folder, prior_weight=0.5)
    write(TRAINER, made_from)
    photos, images = concepts_of(made_from.out)
    assert images.captions() == [[caption] for caption in CAPTIONS]
    assert photos.captions() == [[caption] for caption in PHOTO_CAPTIONS]
    assert [images.values["type"], photos.values["type"]] == [Kind.STANDARD] * 2
    assert [images.values["loss_weight"], photos.values["loss_weight"]] == [0.5, 1.0]
    assert (images.values["name"], photos.values["name"]) == (
        "teapot regularization",
        "sks teapot",
    )


@pytest.mark.parametrize(("images", "photos"), [(6, 2), (7, 3), (2, 3)])
def test_an_epoch_has_as_many_images_as_photos_and_leaves_none_out(
    tmp_path: Path, images: int, photos: int
) -> None:
    made_from = material(tmp_path, captions=["a teapot"] * images, photos=["sks"] * photos)
    write(TRAINER, made_from)
    subject, regularization = concepts_of(tmp_path)
    assert len(subject.epoch(0)) == len(regularization.epoch(0))
    assert len(set(regularization.epoch(0))) == images
    seen = read(TRAINER, made_from)
    for ours, theirs in zip(seen, (regularization, subject), strict=True):
        assert sum(one.repeats for one in ours) == pytest.approx(len(theirs.epoch(0)))
        assert [tmp_path / one.path for one in ours] == theirs.paths()


def test_the_notes_and_the_preset(tmp_path: Path) -> None:
    plan = TRAINER.plan(material(tmp_path, captions=["a"] * 2000, photos=["b"] * 5))
    assert "uses all 2,000 regularization images" in plan.notes[0]
    assert "balancing 2000, SAMPLES" in plan.notes[0]
    assert "5 photos 400 times each (balancing 400, REPEATS)" in plan.notes[0]
    assert json.loads(plan.files[CONFIG])["epochs"] == 1


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("type", "PRIOR", Kind.STANDARD),
        ("balancing_strategy", "SAMPLE", Balancing.REPEATS),
        ("balancing", "many", 1.0),
        ("loss_weight", None, 1.0),
    ],
)
def test_a_slip_becomes_the_default_there(key: str, value: object, becomes: object) -> None:
    """Why reading back has to find it."""
    assert Concept({key: value}).values[key] == becomes
