"""What one trainer alone does: kohya's repeats and buckets, OneTrainer's balancing, and so on."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from export_samples import SDXL, export, layout, material, ours, theirs
from hypothesis import given
from hypothesis import strategies as st
from trainer_rules import (
    ai_toolkit_job,
    dreambooth,
    kohya_config,
    kohya_folders,
    kohya_registered,
)
from trainer_rules import kohya as as_kohya_sees

from regforge.exporting import ai_toolkit, common, diffusers_dreambooth, kohya, simpletuner

# ------------------------------------------------------------------------------------------- kohya


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
    assert tomllib.loads(f"x = {common.toml_string(text)}\ny = 1") == {"x": text, "y": 1}


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
    assert sorted(one.repeats for one in read_back) == sorted(n for _, _, n in seen.values())
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


def test_its_own_parser_and_reader_read_the_files(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SimpleTuner is installed; `pip install --no-deps simpletuner` is enough for a part."""
    image = pytest.importorskip("simpletuner.helpers.data_backend.config.image")
    json_file = pytest.importorskip("simpletuner.helpers.configuration.json_file")
    out = tmp_path / "it's a $HOME"
    options = {"class_noun": "teapot", "base_model": SDXL, "subject": photos}
    export(theirs(["a teapot", "a red\nteapot"] * 6), out, "simpletuner", **options)
    monkeypatch.setenv("ENV", str(out / simpletuner.FOLDER))
    words = json_file.load_json_config()
    assert f"--data_backend_config={out / simpletuner.BACKENDS}" in words
    config = json.loads((out / simpletuner.CONFIG).read_text())
    entries = json.loads((out / simpletuner.BACKENDS).read_text())
    for backend, folder, repeats in zip(entries[:2], ("subject", "images"), (2, 0), strict=True):
        parsed = image.ImageBackendConfig.from_dict(backend, config)
        parsed.validate(config)
        assert parsed.instance_data_dir == str(out / folder)
        assert parsed.caption_strategy == "textfile"
        assert parsed.repeats == repeats
        assert parsed.is_regularisation_data is False
        assert (parsed.crop, parsed.crop_aspect, parsed.crop_style) == (True, "square", "center")

    prompts = pytest.importorskip("simpletuner.helpers.prompts", exc_type=ImportError)
    local = pytest.importorskip("simpletuner.helpers.data_backend.local", exc_type=ImportError)
    accelerator = SimpleNamespace(is_main_process=True)
    files = local.LocalDataBackend(accelerator, id="regularization")
    read = prompts.PromptHandler.prepare_instance_prompt_from_textfile
    listed = files.list_files(None, str(out / "images"))
    found = {Path(p).name: read(p, True, False, files) for _, _, paths in listed for p in paths}
    assert found == layout(out)


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
