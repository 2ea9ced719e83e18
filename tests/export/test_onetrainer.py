"""OneTrainer.

`Concept` restates, at commit 23df383 of Nerogar/OneTrainer, `ConceptConfig.default_values` with
`BaseConfig.from_dict` (modules/util/config/) and the files that count
(modules/util/path_util.py, dataLoader/mixin/DataLoaderText2ImageMixin.py), and at commit 3a6994a of
Nerogar/mgds `CollectPaths`, `LoadMultipleTexts` and `VariationSorting` (src/mgds/pipelineModules/).
"""

import json
from enum import Enum
from math import floor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies
from trainer_layout import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    TEXTS,
    material,
    read,
    read_back,
    sorted_out,
    write,
)

from regforge.export.onetrainer import CONCEPTS, CONFIG, TRAINER
from regforge.export.trainer import ExportError

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


@settings(max_examples=40, deadline=None)
@given(strategies.lists(TEXTS, min_size=1, max_size=4))
def test_captions_come_through_or_are_refused(texts: list[str]) -> None:
    kept, refused = sorted_out(TRAINER, texts)
    assert all("\n" in text or "\r" in text or text != text.strip() for text in refused)
    assume(kept)
    with read_back(TRAINER, kept) as out:
        assert concepts_of(out)[1].captions() == [[caption] for caption in kept]


def test_the_notes_and_the_preset(tmp_path: Path) -> None:
    plan = TRAINER.plan(material(tmp_path, captions=["a"] * 2000, photos=["b"] * 5))
    assert "uses all 2,000 regularization images" in plan.notes[0]
    assert "balancing 2000, SAMPLES" in plan.notes[0]
    assert "5 photos 400 times each (balancing 400, REPEATS)" in plan.notes[0]
    assert json.loads(plan.files[CONFIG])["epochs"] == 1
    assert "'training_presets/SDXL/#sdxl 1.0 LoRA.json'" in plan.command
    other = TRAINER.plan(material(tmp_path, base_model="/models/mine"))
    assert "'training_presets/SD1.5/#sd 1.5 LoRA.json'" in other.command
    assert "does not tell" in other.notes[-1]


def test_elsewhere_and_without_photos(tmp_path: Path) -> None:
    root = PurePosixPath("/mnt/x")
    plan = TRAINER.plan(material(tmp_path, photos=(), captions=["a teapot"] * 10, root=root))
    subject, regularization = json.loads(plan.files[CONCEPTS])
    assert (subject["balancing"], regularization["balancing"]) == (2.0, 10.0)  # of 5 photos
    assert plan.command.endswith("--config-path /mnt/x/onetrainer/config.json")


@pytest.mark.parametrize(
    ("key", "value", "restated", "message"),
    [
        ("type", "PRIOR", Kind.STANDARD, "type is 'PRIOR'"),
        ("balancing_strategy", "SAMPLE", Balancing.REPEATS, "balancing_strategy is 'SAMPLE'"),
        ("balancing", "many", 1.0, "balancing is 'many'"),
        ("loss_weight", None, 1.0, "loss_weight is None"),
        ("__version", 0, None, "__version is 0"),
        ("repeats", 3, None, "repeats does not belong"),
        ("text", {"prompt_source": "sample"}, None, "text.__version is missing"),
        ("path", "/elsewhere", None, "does not lie in"),
    ],
)
def test_a_slip_that_onetrainer_would_pass_over_is_found(
    tmp_path: Path, key: str, value: object, restated: object, message: str
) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    concepts = json.loads((tmp_path / CONCEPTS).read_text())
    concepts[1][key] = value
    (tmp_path / CONCEPTS).write_text(json.dumps(concepts))
    if restated is not None:
        assert Concept(concepts[1]).values[key] == restated
    with pytest.raises(ExportError, match=message):
        read(TRAINER, made_from)


def test_a_key_that_is_missing_and_a_caption_that_is_not_one_line_are_found(
    tmp_path: Path,
) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    (tmp_path / "images" / "00002.txt").write_text("one\ntwo")
    with pytest.raises(ExportError, match="2 lines"):
        read(TRAINER, made_from)
    concepts = json.loads((tmp_path / CONCEPTS).read_text())
    del concepts[0]["balancing_strategy"]
    (tmp_path / CONCEPTS).write_text(json.dumps(concepts))
    with pytest.raises(ExportError, match="balancing_strategy is missing"):
        read(TRAINER, made_from)
