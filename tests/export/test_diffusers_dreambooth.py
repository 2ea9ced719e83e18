"""diffusers' DreamBooth scripts.

`Dataset` restates `DreamBoothDataset` of examples/dreambooth/train_dreambooth_lora.py (572-672),
and `bucketed` its form in train_dreambooth_lora_flux2.py with `BucketBatchSampler` (779-1060), of
huggingface/diffusers at commit 58eb52c.
"""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from trainer_layout import HARD_FOLDERS, flags_of, material, read, run_by_shell, write

from regforge.export.diffusers_dreambooth import CLASS_IMAGES, INSTANCE_IMAGES, SCRIPT, TRAINER
from regforge.export.trainer import ExportError, LoadedImage

FLUX2 = "black-forest-labs/FLUX.2-dev"


class Dataset:
    def __init__(self, flags: dict[str, str], *, bucketed: bool = False) -> None:
        self.flags = flags
        self.class_images = list(Path(flags["class_data_dir"]).iterdir())
        self.instances = list(Path(flags["instance_data_dir"]).iterdir())
        self.instances *= int(flags.get("repeats", "1"))
        wanted = int(flags.get("num_class_images", "100"))
        self.drawn_by_script = max(0, wanted - len(self.class_images))
        self.number = min(len(self.class_images), wanted)
        longest = max(self.number, len(self.instances))
        self.length = len(self.instances) if bucketed else longest

    def epoch(self) -> Counter[str]:
        """How often each file is shown, opened as the script does."""
        shown: Counter[str] = Counter()
        for index in range(self.length):
            for path in (
                self.instances[index % len(self.instances)],
                self.class_images[index % self.number],
            ):
                with Image.open(path) as image:
                    image.convert("RGB")
                shown[f"{path.parent.name}/{path.name}"] += 1
        return shown


def shown_by_us(*seen: LoadedImage) -> dict[str, float]:
    return {"/".join(one.path.split("/")[1:]): one.repeats for one in seen}


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_the_command_survives_a_shell_and_the_script_shows_every_image(
    tmp_path: Path, folder: str
) -> None:
    made_from = material(tmp_path / folder)
    write(TRAINER, made_from)
    script, *words = run_by_shell(made_from.out / SCRIPT, tmp_path / "bin")
    flags = flags_of(words)
    dataset = Dataset(flags)
    assert script == "train_dreambooth_lora_sdxl.py"
    assert dataset.drawn_by_script == 0
    assert flags["instance_prompt"] == "a photo of a sks teapot"
    assert flags["class_prompt"] == "a photo of a teapot"
    assert flags["with_prior_preservation"] == ""
    assert flags["prior_loss_weight"] == "1.0"
    assert flags["resolution"] == "64"
    regularization, photos = read(TRAINER, made_from)
    assert dataset.epoch() == shown_by_us(*regularization, *photos)
    assert [one.path for one in regularization] == [
        f"{CLASS_IMAGES}/{image.name}" for image in made_from.images
    ]
    assert {one.repeats for one in regularization} == {1}
    assert {one.caption for one in (*regularization, *photos)} == {None}


def test_a_script_that_goes_through_the_photos_repeats_them_until_all_images_are_used(
    tmp_path: Path,
) -> None:
    made_from = material(tmp_path / "x", captions=["a teapot"] * 7, base_model=FLUX2)
    plan = write(TRAINER, made_from)
    script, *words = run_by_shell(made_from.out / SCRIPT, tmp_path / "bin")
    dataset = Dataset(flags_of(words), bucketed=True)
    assert script == "train_dreambooth_lora_flux2.py"
    assert flags_of(words)["repeats"] == "4"
    shown = dataset.epoch()
    assert sum(name.startswith("class_images") for name in shown) == 7
    regularization, photos = read(TRAINER, made_from)
    assert sorted(one.repeats for one in regularization) == [1] * 6 + [2]
    assert {one.repeats for one in photos} == {4}
    assert "uses 7 of the 7" in plan.notes[0]


def test_repeated_photos_never_take_more_memory_than_a_machine_has(tmp_path: Path) -> None:
    captions = ["a teapot"] * 20_000
    made_from = material(tmp_path, captions=captions, base_model=FLUX2, resolution=1024)
    plan = TRAINER.plan(made_from)
    assert "--repeats=635" in plan.command  # two photos of 12.6 MB each, 16 GB
    assert "uses 1,270 of the 20,000 regularization images" in plan.notes[0]
    assert "Without --repeats it would use only the first 2" in plan.notes[0]


def test_a_script_that_cannot_do_it_is_said_to(tmp_path: Path) -> None:
    notes = TRAINER.plan(material(tmp_path, base_model="Tongyi-MAI/Z-Image")).notes
    assert "stops before the first step" in notes[1]
    assert not any("stops before" in note for note in TRAINER.plan(material(tmp_path)).notes)


def test_the_notes_say_what_is_lost(tmp_path: Path) -> None:
    notes = TRAINER.plan(material(tmp_path, captions=["a", "b"] * 600)).notes
    assert "uses all 1,200 regularization images" in notes[0]
    assert 'all 1,200 images share "a photo of a teapot". The 2 different captions' in notes[1]
    assert "--to custom-diffusion" in notes[1]
    one = TRAINER.plan(material(tmp_path, captions=["a"])).notes
    assert "one caption anyway" in one[1]


def test_without_photos_their_folder_is_named(tmp_path: Path) -> None:
    made_from = material(tmp_path, photos=())
    plan = write(TRAINER, made_from)
    assert str(tmp_path / INSTANCE_IMAGES) in plan.notes[-1]
    regularization, photos = read(TRAINER, made_from)
    assert len(regularization) == 6
    assert photos == []


def test_what_the_script_would_stumble_over_is_refused(tmp_path: Path) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    stray = tmp_path / CLASS_IMAGES / "00001.txt"
    stray.write_text("a teapot")
    with pytest.raises(ExportError, match=r"00001\.txt is no image"):
        read(TRAINER, made_from)
    stray.unlink()
    (tmp_path / CLASS_IMAGES / "00001.webp").unlink()
    with pytest.raises(ExportError, match=r"num_class_images=6, but .* holds 5"):
        read(TRAINER, made_from)
    text = (tmp_path / SCRIPT).read_text()
    (tmp_path / SCRIPT).write_text(text.replace("--num_class_images=6", "--num_class_images=3"))
    assert sum(one.repeats for one in read(TRAINER, made_from)[0]) == 3  # two are left out
    (tmp_path / SCRIPT).write_text(text.replace("--class_prompt", "--klass_prompt"))
    with pytest.raises(ExportError, match="class_prompt"):
        read(TRAINER, made_from)
