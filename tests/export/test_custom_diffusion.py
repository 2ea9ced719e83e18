"""diffusers' Custom Diffusion script.

`examples_of` restates what examples/custom_diffusion/train_custom_diffusion.py of
huggingface/diffusers does at commit 58eb52c: the checks of `--real_prior` (lines 735-750) and
`CustomDiffusionDataset.__init__` (193-218). Lines are split with `str.splitlines`.
"""

import json
from pathlib import Path

import pytest
from trainer_layout import (
    HARD_FOLDERS,
    flags_of,
    material,
    read,
    run_by_shell,
    write,
)

from regforge.export.custom_diffusion import CLASS_IMAGES, CONCEPTS, FOLDER, TRAINER
from regforge.export.trainer import ExportError


def examples_of(flags: dict[str, str]) -> tuple[list[tuple[str, str]], list[tuple[Path, str]]]:
    """([path and caption of a class image], [path and prompt of a photo])."""
    class_images, photos = [], []
    number = int(flags["num_class_images"])
    for concept in json.loads(Path(flags["concepts_list"]).read_text()):
        folder = Path(concept["class_data_dir"])
        assert len(list((folder / "images").iterdir())) == number
        with (folder / "images.txt").open() as file:
            paths = file.read().splitlines()
        with (folder / "caption.txt").open() as file:
            captions = file.read().splitlines()
        class_images += list(zip(paths, captions, strict=False))[:number]
        photos += [
            (path, concept["instance_prompt"])
            for path in Path(concept["instance_data_dir"]).iterdir()
            if path.is_file()
        ]
    return class_images, photos


def captions_in(out: Path) -> list[str]:
    count = len(list((out / CLASS_IMAGES).iterdir()))
    flags = {"concepts_list": str(out / CONCEPTS), "num_class_images": str(count)}
    return [caption for _, caption in examples_of(flags)[0]]


def command_flags(tmp_path: Path, command: str) -> dict[str, str]:
    script = tmp_path / "command.sh"
    script.write_text(command)
    name, *words = run_by_shell(script, tmp_path / "bin")
    assert name == "train_custom_diffusion.py"
    return flags_of(words)


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_the_script_pairs_each_image_with_its_caption(tmp_path: Path, folder: str) -> None:
    made_from = material(tmp_path / folder)
    plan = write(TRAINER, made_from)
    flags = command_flags(tmp_path, plan.command)
    class_images, photos = examples_of(flags)
    assert class_images == [
        (str(made_from.out / CLASS_IMAGES / image.name), image.caption)
        for image in made_from.images
    ]
    assert all(Path(path).is_file() for path, _ in class_images)
    assert {prompt for _, prompt in photos} == {"photo of a <new1> teapot"}
    assert sorted(path.name for path, _ in photos) == ["01.jpg", "02.jpg"]
    assert flags["modifier_token"] == "<new1>"
    assert {"real_prior", "with_prior_preservation"} <= flags.keys()


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n"])
def test_what_splitlines_would_take_apart_is_refused(tmp_path: Path, separator: str) -> None:
    assert TRAINER.refuses(f"a{separator}teapot")
    assert TRAINER.refuses(f"a teapot{separator}")
    with pytest.raises(ExportError, match="line separator"):
        TRAINER.plan(material(tmp_path / f"a{separator}b"))


def test_a_model_that_it_cannot_train_is_replaced_with_a_word(tmp_path: Path) -> None:
    plan = TRAINER.plan(material(tmp_path, resolution=1024))
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in plan.command
    assert "--resolution=512" in plan.command
    assert "instead of stabilityai/stable-diffusion-xl-base-1.0" in plan.notes[1]
    own = TRAINER.plan(material(tmp_path, base_model="stabilityai/stable-diffusion-2-1"))
    assert "stable-diffusion-2-1" in own.command
    assert not any("instead of" in note for note in own.notes)


def test_what_the_script_would_stop_at_is_refused(tmp_path: Path) -> None:
    made_from = material(tmp_path, photos=())
    plan = write(TRAINER, made_from)
    assert "No photos" in plan.notes[-1]
    assert read(TRAINER, made_from)[1] == []
    captions = tmp_path / FOLDER / "caption.txt"
    text = captions.read_text()
    captions.write_text(text + "one too many\n")
    with pytest.raises(ExportError, match=r"images\.txt lists 6 and caption\.txt 7"):
        read(TRAINER, made_from)
    captions.write_text(text)
    (tmp_path / CLASS_IMAGES / "stray.webp").write_bytes(b"")
    with pytest.raises(ExportError, match="holds 7 images"):
        read(TRAINER, made_from)
    concept = json.loads((tmp_path / CONCEPTS).read_text())[0]
    (tmp_path / CONCEPTS).write_text(json.dumps([{**concept, "class_prompt": None}]))
    with pytest.raises(ExportError, match="class_prompt"):
        read(TRAINER, made_from)
    (tmp_path / CONCEPTS).write_text(json.dumps([{**concept, "class_data_dir": "/elsewhere"}]))
    with pytest.raises(ExportError, match="does not lie in"):
        read(TRAINER, made_from)
