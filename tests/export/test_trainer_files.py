"""What one trainer alone does: kohya's repeats and buckets, OneTrainer's balancing, and so on."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from export_samples import SDXL, export, layout, material, ours, photo_folder, theirs
from hypothesis import given
from hypothesis import strategies as st
from trainer_rules import (
    Balancing,
    Concept,
    Kind,
    ai_toolkit_job,
    dreambooth,
    kohya_config,
    kohya_folders,
    kohya_registered,
    onetrainer_concepts,
)
from trainer_rules import kohya as as_kohya_sees

from regforge.export import ai_toolkit, diffusers_dreambooth, kohya, onetrainer, simpletuner

# ------------------------------------------------------------------------------------------- kohya


@pytest.mark.parametrize(("images", "photos"), [(40, 4), (41, 4), (3, 4), (1, 1), (4, 4)])
def test_kohya_uses_every_image_with_its_caption(
    tmp_path: Path, out: Path, images: int, photos: int
) -> None:
    folder = photo_folder(tmp_path / "photos", [f"sks teapot {n}" for n in range(photos)])
    done = export(ours(images), out, subject=folder, check=True)
    assert not done.differs
    seen = as_kohya_sees(out)
    for name, regularization in (("images", True), ("subject", False)):
        assert {
            path: caption for path, (caption, is_reg, _) in seen.items() if is_reg is regularization
        } == {f"{name}/{image}": caption for image, caption in layout(out, name).items()}
    repeats = [times for _, is_reg, times in seen.values() if is_reg]
    assert min(repeats) >= 1
    assert sum(repeats) - images < photos  # hardly more than once each
    read_back = kohya.TRAINER.read(out, out)
    assert {one.path: (one.caption, one.regularization, one.repeats) for one in read_back} == seen


def test_the_folders_say_the_same_as_the_configuration(photos: Path, out: Path) -> None:
    export(ours(40), out, subject=photos)
    by_folders = kohya_registered(
        kohya_folders(out / "kohya" / "train", out / "kohya" / "reg"), out
    )
    assert sorted(by_folders.values()) == sorted(as_kohya_sees(out).values())
    for name in ("kohya/reg/1_teapot/00001.webp", "kohya/train/10_sks teapot/01.jpg"):
        assert (out / name).stat().st_nlink >= 2


def test_other_repeats_are_read_as_kohya_does(photos: Path, out: Path) -> None:
    done = export(ours(40), out, subject=photos)
    note = done.targets[0].notes[0]
    assert "num_repeats=10 is written for 4 photos" in note
    numbers = re.search(r"num_repeats=(\d+) it would use the first (\d+) of them", note)
    assert numbers
    config = out / "kohya.toml"
    text = config.read_text()
    used = {}
    for repeats in (1, 4, 7, 10, 23):
        config.write_text(text.replace("num_repeats = 10", f"num_repeats = {repeats}"))
        seen = as_kohya_sees(out)
        used[repeats] = sum(is_reg for _, is_reg, _ in seen.values())
        read_back = {one.path: one.repeats for one in kohya.TRAINER.read(out, out) if one.repeats}
        assert read_back == {name: times for name, (_, _, times) in seen.items()}
    assert used[int(numbers[1])] == int(numbers[2])


@pytest.mark.parametrize("resolution", [8, 63, 64, 96, 512, 768, 1000, 1024, 1536])
def test_buckets_are_such_as_kohya_takes(out: Path, resolution: int) -> None:
    done = export(ours(4), out, resolution=resolution)
    dataset, _ = kohya_config(out / "kohya.toml")
    step, side = dataset["bucket_reso_steps"], dataset["resolution"]
    assert dataset["enable_bucket"] is True
    assert step % 64 == 0  # train_network.py:175
    assert dataset["min_bucket_reso"] % step == dataset["max_bucket_reso"] % step == 0
    assert dataset["min_bucket_reso"] <= side <= dataset["max_bucket_reso"]
    assert side == max(resolution, 64)
    (said,) = re.findall(r"trained at (\d+) x", " ".join(done.targets[0].notes)) or [side]
    assert int(said) == int(side // step) * step  # model_util.py:1322


NOUNS = [
    '6" pot',
    "chef's pot",
    "back\\slash",
    "a/b",
    "..",
    "both \" and '",
    "café",
    "茶壶",
    "x" * 300,
]


@pytest.mark.parametrize("noun", NOUNS)
def test_any_class_noun_and_folder_survive(tmp_path: Path, photos: Path, noun: str) -> None:
    out = tmp_path / "out \"quoted\" 'dir' [1]"
    done = export(ours(8), out, class_noun=noun, identifier="s'k\"s", subject=photos, check=True)
    assert not done.differs
    _, subsets = kohya_config(out / "kohya.toml")
    assert [subset["class_tokens"] for subset in subsets] == [f"s'k\"s {noun}", noun]
    assert len(as_kohya_sees(out)) == 12
    assert {path.name for path in (out / "kohya").iterdir()} == {"train", "reg"}


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_a_toml_string(text: str) -> None:
    assert tomllib.loads(f"x = {kohya.toml_string(text)}\ny = 1") == {"x": text, "y": 1}


# --------------------------------------------------------------------------------------- diffusers


def test_a_script_that_goes_through_the_photos_repeats_them_until_all_images_are_used(
    photos: Path, out: Path
) -> None:
    options = {"class_noun": "teapot", "base_model": "black-forest-labs/FLUX.2-dev"}
    done = export(theirs(["a teapot"] * 7), out, "diffusers-dreambooth", subject=photos, **options)
    seen = dreambooth(out, done.targets[0].command)
    assert sorted(shown for _, is_reg, shown in seen.values() if is_reg) == [1] * 6 + [2]
    assert [shown for _, is_reg, shown in seen.values() if not is_reg] == [2] * 4
    read_back = list(diffusers_dreambooth.TRAINER.read(out, out))
    for regularization in (True, False):
        assert sorted(
            each.repeats for each in read_back if each.regularization is regularization
        ) == (sorted(shown for _, is_reg, shown in seen.values() if is_reg is regularization))
    assert "uses 7 of the 7" in done.targets[0].notes[0]


def test_a_script_that_asks_for_fewer_images_leaves_some_out(out: Path) -> None:
    export(ours(6), out, "diffusers-dreambooth")
    script = out / "diffusers-dreambooth" / "train.sh"
    script.write_text(script.read_text().replace("num_class_images=6", "num_class_images=3"))
    assert sum(one.repeats for one in diffusers_dreambooth.TRAINER.read(out, out)) == 3


# ------------------------------------------------------------------------------------- SimpleTuner


@pytest.mark.parametrize(
    ("images", "photos", "weight", "repeats"),
    [(2000, 5, 1.0, 399), (2001, 5, 1.0, 400), (3, 5, 1.0, 0), (2000, 5, 0.5, 799), (9, 1, 2.0, 3)],
)
def test_repeats_count_from_zero_and_carry_the_prior_weight(
    images: int, photos: int, weight: float, repeats: int
) -> None:
    plan = simpletuner.TRAINER.plan(material(images, photos, prior_weight=weight))
    subject, regularization, _ = json.loads(plan.files[simpletuner.BACKENDS])
    assert (subject["repeats"], regularization["repeats"]) == (repeats, 0)
    assert f'"repeats": {repeats}' in plan.notes[0]
    assert any("has no loss weight" in note for note in plan.notes) == (weight != 1)


@pytest.mark.parametrize(
    ("weight", "shown", "ratio"), [(1, 2000, ""), (0.5, 1333, "0.5"), (9, 3333, "5")]
)
def test_the_note_counts_what_the_steps_show(weight: float, shown: int, ratio: str) -> None:
    """10 images and 2 photos: the photos come 5, 10 times, and once, as they cannot come less."""
    plan = simpletuner.TRAINER.plan(material(10, prior_weight=weight))
    assert f"about {shown:,} of the 4,000 steps" in plan.notes[0]
    said = [note for note in plan.notes if "comes to" in note]
    assert [note.rpartition(" ")[2] for note in said] == [f"{ratio}."] * bool(ratio)


@pytest.mark.parametrize(("size", "aspect"), [((64, 64), "square"), ((64, 32), "preserve")])
def test_images_that_are_no_squares_keep_their_shape(size: tuple[int, int], aspect: str) -> None:
    backends = json.loads(simpletuner.TRAINER.plan(material(size=size)).files[simpletuner.BACKENDS])
    assert [backend["crop_aspect"] for backend in backends[:2]] == [aspect] * 2


@pytest.fixture
def simple(tmp_path: Path, photos: Path) -> Path:
    out = tmp_path / "it's a $HOME"
    options = {"class_noun": "teapot", "base_model": SDXL, "subject": photos}
    export(theirs(["a teapot", "a red\nteapot"] * 6), out, "simpletuner", **options)
    return out


def test_its_own_parser_reads_the_files(simple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SimpleTuner is installed (`pip install --no-deps simpletuner` is enough)."""
    image = pytest.importorskip("simpletuner.helpers.data_backend.config.image")
    json_file = pytest.importorskip("simpletuner.helpers.configuration.json_file")
    monkeypatch.setenv("ENV", str(simple / simpletuner.FOLDER))
    words = json_file.load_json_config()
    assert f"--data_backend_config={simple / simpletuner.BACKENDS}" in words
    config = json.loads((simple / simpletuner.CONFIG).read_text())
    entries = json.loads((simple / simpletuner.BACKENDS).read_text())
    for backend, folder, repeats in zip(entries[:2], ("subject", "images"), (2, 0), strict=True):
        parsed = image.ImageBackendConfig.from_dict(backend, config)
        parsed.validate(config)
        assert parsed.instance_data_dir == str(simple / folder)
        assert parsed.caption_strategy == "textfile"
        assert parsed.repeats == repeats
        assert parsed.is_regularisation_data is False
        assert (parsed.crop, parsed.crop_aspect, parsed.crop_style) == (True, "square", "center")


def test_its_own_reader_gives_the_captions(simple: Path) -> None:
    prompts = pytest.importorskip("simpletuner.helpers.prompts", exc_type=ImportError)
    local = pytest.importorskip("simpletuner.helpers.data_backend.local", exc_type=ImportError)

    class Accelerator:
        is_main_process = True

    backend = local.LocalDataBackend(Accelerator(), id="regularization")
    read = prompts.PromptHandler.prepare_instance_prompt_from_textfile
    found = {
        Path(path).name: read(path, True, False, backend)
        for _, _, paths in backend.list_files(None, str(simple / "images"))
        for path in paths
    }
    assert found == layout(simple)


# -------------------------------------------------------------------------------------- OneTrainer


@pytest.mark.parametrize(("images", "photos"), [(6, 2), (7, 3), (2, 3)])
def test_an_epoch_has_as_many_images_as_photos_and_leaves_none_out(
    tmp_path: Path, out: Path, images: int, photos: int
) -> None:
    folder = photo_folder(tmp_path / "photos", ["sks"] * photos)
    export(theirs(["a teapot"] * images), out, "onetrainer", subject=folder, class_noun="teapot")
    subject, regularization = onetrainer_concepts(out)
    assert len(subject.epoch()) == len(regularization.epoch())
    assert len(set(regularization.epoch())) == images
    read_back = list(onetrainer.TRAINER.read(out, out))
    for concept, is_reg in ((subject, False), (regularization, True)):
        loaded = [one for one in read_back if one.regularization is is_reg]
        assert sum(one.repeats for one in loaded) == pytest.approx(len(concept.epoch()))
        assert [out / one.path for one in loaded] == concept.paths()


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


# -------------------------------------------------------------------------------------- ai-toolkit


def test_an_identifier_that_looks_like_a_number_stays_text(photos: Path, out: Path) -> None:
    options: dict[str, Any] = {"identifier": "1e5", "prior_weight": 0.5, "subject": photos}
    export(ours(6), out, "ai-toolkit", **options)
    job = ai_toolkit_job(out)
    assert job["name"] == "1e5-teapot-lora"
    process = job["process"][0]
    assert [dataset["is_reg"] for dataset in process["datasets"]] == [False, True]
    assert process["train"]["reg_weight"] == 0.5
    assert process["model"]["name_or_path"] == SDXL


def test_a_space_comes_after_every_comma() -> None:
    assert ai_toolkit.trained("a, b,c") == "a,  b, c"
    assert ai_toolkit.trained("a [name] b[trigger]") == "a  b"
