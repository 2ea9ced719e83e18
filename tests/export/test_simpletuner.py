"""SimpleTuner.

`Backend` restates, at commit bc8e6ab of bghira/SimpleTuner, below simpletuner/helpers/:
`ImageBackendConfig.from_dict` (data_backend/config/image.py, 95-257) with the values of
config/validators.py, `LocalDataBackend.list_files` (data_backend/local.py, 127-170),
`PromptHandler.prepare_instance_prompt_from_textfile` (prompts.py, 397-433) and the length of
`MultiAspectSampler` (multiaspect/sampler.py, 1148-1161). Where SimpleTuner is installed
(`pip install --no-deps simpletuner` is enough), its own parser reads the files too.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from trainer_layout import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    captions_of,
    material,
    read,
    write,
)

from regforge.export.simpletuner import BACKENDS, CONFIG, FOLDER, TRAINER
from regforge.export.trainer import ExportError

LISTED = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
DEFAULTS = {"caption_strategy": "filename", "repeats": 0, "is_regularisation_data": False}


class Backend:
    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = DEFAULTS | entries
        assert self.entries["crop_aspect"] in ("square", "preserve")  # the others need buckets
        assert self.entries["crop_style"] in ("random", "corner", "center", "centre", "face")
        assert self.entries["resolution_type"] in ("pixel", "area", "pixel_area")
        self.shown = int(self.entries["repeats"]) + 1

    def captions(self) -> dict[str, list[str]]:
        """By the name of the image; several where a file has several lines."""
        found = {}
        for path in Path(self.entries["instance_data_dir"]).rglob("*"):
            if path.name.lower().endswith(tuple(f".{suffix}" for suffix in LISTED)):
                found[path.name] = self._captions(path)
        return dict(sorted(found.items()))

    def _captions(self, path: Path) -> list[str]:
        if self.entries["caption_strategy"] == "filename":
            return [path.stem.replace("_", " ")]
        text = path.with_suffix(".txt").read_bytes().decode("utf-8")
        return [line for line in text.split("\n") if line] if "\n" in text else [text]


def backends_of(out: Path) -> tuple[Backend, Backend, dict[str, Any]]:
    """(photos, regularization images, embeddings) as config.json names them."""
    config = json.loads((out / CONFIG).read_text())
    photos, images, texts = json.loads(Path(config["data_backend_config"]).read_text())
    return Backend(photos), Backend(images), texts


def captions_in(out: Path) -> list[str]:
    return [line for (line,) in backends_of(out)[1].captions().values()]


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_simpletuner_reads_each_image_with_its_caption(tmp_path: Path, folder: str) -> None:
    made_from = material(tmp_path / folder)
    plan = write(TRAINER, made_from)
    photos, images, texts = backends_of(made_from.out)
    assert list(images.captions().values()) == [[caption] for caption in CAPTIONS]
    assert list(photos.captions().values()) == [[caption] for caption in PHOTO_CAPTIONS]
    assert (images.shown, photos.shown) == (1, 3)
    assert images.entries["is_regularisation_data"] is False
    assert (texts["dataset_type"], texts["default"]) == ("text_embeds", True)
    assert plan.command.startswith("simpletuner train ")


@pytest.mark.parametrize(
    ("images", "photos", "weight", "repeats"),
    [(2000, 5, 1.0, 399), (2001, 5, 1.0, 400), (3, 5, 1.0, 0), (2000, 5, 0.5, 799), (9, 1, 2.0, 3)],
)
def test_repeats_count_from_zero_and_carry_the_prior_weight(
    tmp_path: Path, images: int, photos: int, weight: float, repeats: int
) -> None:
    made_from = material(
        tmp_path, captions=["a"] * images, photos=["b"] * photos, prior_weight=weight
    )
    plan = TRAINER.plan(made_from)
    subject, regularization, _ = json.loads(plan.files[BACKENDS])
    assert (subject["repeats"], regularization["repeats"]) == (repeats, 0)
    assert f'"repeats": {repeats}' in plan.notes[0]
    assert any("has no loss weight" in note for note in plan.notes) == (weight != 1)


def test_a_prior_weight_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="prior weight of 0"):
        TRAINER.plan(material(tmp_path, prior_weight=0.0))


def test_images_that_are_no_squares_keep_their_shape(tmp_path: Path) -> None:
    square = json.loads(TRAINER.plan(material(tmp_path)).files[BACKENDS])
    oblong = json.loads(TRAINER.plan(material(tmp_path, size=(64, 32))).files[BACKENDS])
    assert [b["crop_aspect"] for b in square[:2]] == ["square"] * 2
    assert [b["crop_aspect"] for b in oblong[:2]] == ["preserve"] * 2


def test_embeddings_have_to_be_there(tmp_path: Path) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    backends = json.loads((tmp_path / BACKENDS).read_text())
    (tmp_path / BACKENDS).write_text(json.dumps(backends[:2]))
    with pytest.raises(ExportError, match="text_embeds has to be the default"):
        read(TRAINER, made_from)


@pytest.mark.parametrize(
    ("weight", "shown", "ratio"), [(1, 2000, ""), (0.5, 1333, "0.5"), (9, 3333, "5")]
)
def test_the_note_counts_what_the_steps_show(
    tmp_path: Path, weight: float, shown: int, ratio: str
) -> None:
    """10 images and 2 photos: the photos come 5, 10 times, and once, as they cannot come less."""
    plan = TRAINER.plan(material(tmp_path, captions=["a teapot"] * 10, prior_weight=weight))
    assert f"about {shown:,} of the 4,000 steps" in plan.notes[0]
    said = [note for note in plan.notes if "comes to" in note]
    assert [note.rpartition(" ")[2] for note in said] == [f"{ratio}."] * bool(ratio)


def test_its_own_parser_reads_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("simpletuner.helpers.data_backend.config.image")
    json_file = pytest.importorskip("simpletuner.helpers.configuration.json_file")
    made_from = material(tmp_path / "it's a $HOME")
    write(TRAINER, made_from)
    monkeypatch.setenv("ENV", str(made_from.out / FOLDER))
    words = json_file.load_json_config()
    assert f"--data_backend_config={made_from.out / BACKENDS}" in words
    config = json.loads((made_from.out / CONFIG).read_text())
    entries = json.loads((made_from.out / BACKENDS).read_text())
    for backend, folder, repeats in zip(entries[:2], ("subject", "images"), (2, 0), strict=True):
        parsed = image.ImageBackendConfig.from_dict(backend, config)
        parsed.validate(config)
        assert parsed.instance_data_dir == str(made_from.out / folder)
        assert parsed.caption_strategy == "textfile"
        assert parsed.repeats == repeats
        assert parsed.is_regularisation_data is False
        assert (parsed.crop, parsed.crop_aspect, parsed.crop_style) == (True, "square", "center")


def test_its_own_reader_gives_the_captions(tmp_path: Path) -> None:
    prompts = pytest.importorskip("simpletuner.helpers.prompts", exc_type=ImportError)
    local = pytest.importorskip("simpletuner.helpers.data_backend.local", exc_type=ImportError)
    made_from = material(tmp_path)
    write(TRAINER, made_from)

    class Accelerator:
        is_main_process = True

    backend = local.LocalDataBackend(Accelerator(), id="regularization")
    found = {
        path: prompts.PromptHandler.prepare_instance_prompt_from_textfile(
            path, True, False, backend
        )
        for _, _, paths in backend.list_files(None, str(tmp_path / "images"))
        for path in paths
    }
    assert [found[path] for path in sorted(found)] == captions_of(made_from.images)
