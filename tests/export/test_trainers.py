"""What holds for several trainers, or is asked of each in the same way."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
import test_ai_toolkit
import test_custom_diffusion
import test_onetrainer
import test_simpletuner
import yaml
from hypothesis import assume, given, settings, strategies
from trainer_layout import ONE_LINE_TEXTS, TEXTS, captions_of, material, read, write

from regforge.export import (
    ai_toolkit,
    custom_diffusion,
    diffusers_dreambooth,
    kohya,
    onetrainer,
    simpletuner,
)
from regforge.export.trainer import ExportError, Family, Trainer, family_of

KOHYA, DREAMBOOTH, CUSTOM = kohya.TRAINER, diffusers_dreambooth.TRAINER, custom_diffusion.TRAINER
SIMPLE, ONE, AI = simpletuner.TRAINER, onetrainer.TRAINER, ai_toolkit.TRAINER
TRAINERS = [KOHYA, DREAMBOOTH, CUSTOM, SIMPLE, ONE, AI]
FOLDERS = {DREAMBOOTH: "diffusers-dreambooth/class_images", CUSTOM: "custom-diffusion/images"}
PHOTO_REPEATS = {KOHYA: 3, SIMPLE: 3, ONE: 3, AI: 1, DREAMBOOTH: 3, CUSTOM: 3}


# ------------------------------------------------------------------------------------- base models


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", Family.SDXL),
        ("RunDiffusion/Juggernaut-XL-v9", Family.SDXL),
        ("stabilityai/sdxl-turbo", Family.SDXL),
        ("stabilityai/stable-diffusion-3.5-medium", Family.SD3),
        ("stabilityai/stable-diffusion-2-1", Family.SD2),
        ("runwayml/stable-diffusion-v1-5", Family.SD1),
        ("/models/SD15/mine.safetensors", Family.SD1),
        ("black-forest-labs/FLUX.1-dev", Family.FLUX),
        ("black-forest-labs/FLUX.2-dev", Family.FLUX2),
        ("black-forest-labs/FLUX.2-klein-4B", Family.FLUX2_KLEIN),
        ("Qwen/Qwen-Image", Family.QWEN_IMAGE),
        ("Tongyi-MAI/Z-Image-Turbo", Family.Z_IMAGE),
        # Not what a part of their name says.
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", None),
        ("Qwen/Qwen-Image-Edit", None),
        ("black-forest-labs/FLUX.1-Kontext-dev", None),
        ("segmind/SSD-1B", None),
        ("HiDream-ai/HiDream-I1-Full", None),
    ],
)
def test_the_name_tells_the_family_or_nothing(name: str, family: Family | None) -> None:
    assert family_of(name) is family


def test_what_the_folder_says_counts_more_than_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "flux-or-so"
    folder.mkdir()
    assert family_of(str(folder)) is Family.FLUX
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert family_of(str(folder)) is Family.SDXL


SD15, SD2 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"
SDXL, SD3 = "SG161222/RealVisXL_V5.0", "stabilityai/stable-diffusion-3.5-medium"
FLUX, FLUX2 = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.2-dev"
KLEIN, QWEN = "black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen-Image"
MINE = "/models/mine"


@pytest.mark.parametrize(
    ("trainer", "base_model", "said"),
    [
        (KOHYA, SDXL, ["launch sdxl_train_network.py ", "networks.lora "]),
        (KOHYA, SD15, ["launch train_network.py ", "networks.lora "]),
        (KOHYA, SD2, ["launch train_network.py ", "--v2"]),
        (KOHYA, FLUX, ["launch flux_train_network.py ", "networks.lora_flux"]),
        (KOHYA, SD3, ["launch sd3_train_network.py ", "networks.lora_sd3"]),
        (KOHYA, MINE, ["launch train_network.py "]),
        (DREAMBOOTH, SD15, ["launch train_dreambooth_lora.py "]),
        (DREAMBOOTH, SDXL, ["launch train_dreambooth_lora_sdxl.py "]),
        (DREAMBOOTH, SD3, ["launch train_dreambooth_lora_sd3.py "]),
        (DREAMBOOTH, FLUX, ["launch train_dreambooth_lora_flux.py "]),
        (DREAMBOOTH, KLEIN, ["launch train_dreambooth_lora_flux2_klein.py "]),
        (DREAMBOOTH, QWEN, ["launch train_dreambooth_lora_qwen_image.py "]),
        (DREAMBOOTH, MINE, ["launch train_dreambooth_lora.py "]),
        (SIMPLE, SD15, ['"model_family": "sd1x"']),
        (SIMPLE, SDXL, ['"model_family": "sdxl"']),
        (SIMPLE, FLUX2, ['"model_family": "flux2"']),
        (SIMPLE, "Tongyi-MAI/Z-Image", ['"model_family": "z_image"']),
        (SIMPLE, MINE, ['"model_family": "sd1x"']),
        (ONE, SDXL, ["'training_presets/SDXL/#sdxl 1.0 LoRA.json'"]),
        (ONE, MINE, ["'training_presets/SD1.5/#sd 1.5 LoRA.json'"]),
        (AI, SD15, ['arch: "sd1"', 'noise_scheduler: "ddpm"', 'sampler: "ddpm"']),
        (AI, SDXL, ['arch: "sdxl"', 'noise_scheduler: "ddpm"', 'sampler: "ddpm"']),
        (AI, FLUX, ['arch: "flux"', 'noise_scheduler: "flowmatch"', 'sampler: "flowmatch"']),
        (AI, KLEIN, ['arch: "flux2_klein_4b"', 'noise_scheduler: "flowmatch"']),
        (AI, KLEIN.replace("4B", "base-9B"), ['arch: "flux2_klein_9b"']),
        (AI, QWEN, ['arch: "qwen_image"', 'sampler: "flowmatch"']),
        (AI, MINE, ['arch: "sd1"', 'noise_scheduler: "ddpm"']),
    ],
)
def test_the_command_and_the_files_go_by_the_base_model(
    tmp_path: Path, trainer: Trainer, base_model: str, said: list[str]
) -> None:
    plan = trainer.plan(material(tmp_path, base_model=base_model))
    text = plan.command + "".join(plan.files.values())
    assert [each for each in said if each not in text] == []
    assert any("does not tell" in note for note in plan.notes) == (base_model == MINE)
    needs_a_file = trainer is KOHYA and base_model in (FLUX, SD3)
    assert any("not as a repository of the Hub" in note for note in plan.notes) == needs_a_file


# ------------------------------------------------------------------------------------ reading back


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_it_is_read_back(tmp_path: Path, trainer: Trainer) -> None:
    made_from = material(tmp_path)
    write(trainer, made_from)
    regularization, photos = read(trainer, made_from)
    folder = FOLDERS.get(trainer, "images")
    assert [one.path for one in regularization] == [
        f"{folder}/{image.name}" for image in made_from.images
    ]
    assert {one.repeats for one in regularization} == {1}
    assert {one.repeats for one in photos} == {PHOTO_REPEATS[trainer]}
    if trainer is not DREAMBOOTH:
        assert [one.caption for one in regularization] == captions_of(made_from.images)
    if trainer not in (DREAMBOOTH, CUSTOM):
        assert [one.caption for one in photos] == captions_of(made_from.photos)
        assert [one.path for one in photos] == [f"subject/{p.name}" for p in made_from.photos]


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (KOHYA, ["num_repeats = 2", "--prior_loss_weight=0.5", "'--dataset_config=/mnt/x y/ko"]),
        (DREAMBOOTH, ["--prior_loss_weight=0.5", "/mnt/x y/diffusers-dreambooth/class_images"]),
        (CUSTOM, ["--prior_loss_weight=0.5", "\n/mnt/x y/custom-diffusion/images/00002.webp\n"]),
        (SIMPLE, ['"repeats": 3', "train 'env=/mnt/x y/simpletuner'"]),
        (ONE, ['"balancing": 2.0', '"balancing": 10.0', "'/mnt/x y/onetrainer/config.json'"]),
        (AI, ["reg_weight: 0.5", "python run.py '/mnt/x y/ai-toolkit/train.yaml'"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_without_photos_and_elsewhere(tmp_path: Path, trainer: Trainer, said: list[str]) -> None:
    """Repeats are computed for 5 photos."""
    root = PurePosixPath("/mnt/x y")
    options = {"photos": (), "root": root, "captions": ["a teapot"] * 10, "prior_weight": 0.5}
    made_from = material(tmp_path, **options)
    plan = write(trainer, made_from)
    text = plan.command + "".join(plan.files.values())
    assert [each for each in said if each not in text] == []
    folder = f"{trainer.name}/instance_images" if trainer in FOLDERS else "subject"
    assert f"into /mnt/x y/{folder} " in plan.notes[-1]
    regularization, photos = read(trainer, made_from)
    assert (len(regularization), photos) == (10, [])


READERS: dict[Trainer, tuple[Callable[[Path], list[str]], Callable[[str], object]]] = {
    AI: (test_ai_toolkit.captions_in, re.compile(r"\[name\]|\[trigger\]").search),
    ONE: (test_onetrainer.captions_in, re.compile(r"[\n\r]|\A\s|\s\Z").search),
    SIMPLE: (test_simpletuner.captions_in, re.compile(r"\n").search),
    CUSTOM: (test_custom_diffusion.captions_in, lambda text: text.splitlines() != [text]),
}
"""The captions as the restated rules of a trainer read them, and what it may refuse."""


@pytest.mark.parametrize("trainer", READERS, ids=lambda trainer: trainer.name)
@settings(max_examples=40)
@given(data=strategies.data())
def test_captions_come_through_or_are_refused(
    trainer: Trainer, data: strategies.DataObject
) -> None:
    texts = ONE_LINE_TEXTS if trainer is AI else TEXTS
    drawn = data.draw(strategies.lists(texts, min_size=1, max_size=4))
    reader, refusable = READERS[trainer]
    kept = [text for text in drawn if trainer.refuses and trainer.refuses(text) is None]
    assert all(refusable(text) for text in drawn if text not in kept)
    assume(kept)
    with TemporaryDirectory() as folder:
        made_from = material(Path(folder), captions=kept, size=(8, 8))
        write(trainer, made_from)
        assert [one.caption for one in read(trainer, made_from)[0]] == kept
        if trainer is AI:
            kept = [re.sub(r",\s*", ",", text) for text in kept]
        assert reader(made_from.out) == kept


MISSING = object()


@pytest.mark.parametrize(
    ("trainer", "key", "value"),
    [
        (AI, "is_regularization", True),
        (AI, "is_reg", "yes please"),
        (AI, "caption_ext", "caption"),
        (AI, "num_repeats", 0),
        (AI, "buckets", True),
        (AI, "resolution", MISSING),
        (SIMPLE, "caption_strategy", "textfiles"),
        (SIMPLE, "caption_strategy", None),
        (SIMPLE, "is_regularization", True),
        (SIMPLE, "repeats", -1),
        (SIMPLE, "repeats", "2"),
        (SIMPLE, "crop_style", "middle"),
        (SIMPLE, "instance_data_dir", "/elsewhere"),
        (SIMPLE, "id", "text-embeds"),
        (SIMPLE, "dataset_type", "images"),
        (ONE, "type", "PRIOR"),
        (ONE, "balancing_strategy", "SAMPLE"),
        (ONE, "balancing_strategy", MISSING),
        (ONE, "balancing", "many"),
        (ONE, "loss_weight", None),
        (ONE, "__version", 0),
        (ONE, "repeats", 3),
        (ONE, "text", {"prompt_source": "sample"}),
        (ONE, "path", "/elsewhere"),
    ],
)
def test_a_slip_that_the_trainer_would_pass_over_is_found(
    tmp_path: Path, trainer: Trainer, key: str, value: object
) -> None:
    made_from = material(tmp_path)
    write(trainer, made_from)
    files = {AI: ai_toolkit.JOB, SIMPLE: simpletuner.BACKENDS, ONE: onetrainer.CONCEPTS}
    path = tmp_path / files[trainer]
    content = yaml.safe_load(path.read_text())  # JSON is YAML
    entries = content["config"]["process"][0]["datasets"] if trainer is AI else content
    if value is MISSING:
        del entries[1][key]
    else:
        entries[1][key] = value
    path.write_text(json.dumps(content))
    said = {"/elsewhere": "does not lie in", "text-embeds": "id of its own"}
    expected = said.get(value, rf"\b{key}\b") if isinstance(value, str) else rf"\b{key}\b"
    with pytest.raises(ExportError, match=expected):
        read(trainer, made_from)


@pytest.mark.parametrize("trainer", [SIMPLE, ONE], ids=lambda trainer: trainer.name)
def test_a_caption_that_is_not_one_line_is_found(tmp_path: Path, trainer: Trainer) -> None:
    made_from = material(tmp_path)
    write(trainer, made_from)
    caption = tmp_path / "images" / "00002.txt"
    caption.write_text("one\ntwo\n")
    with pytest.raises(ExportError, match="2 lines"):
        read(trainer, made_from)
    caption.unlink()
    with pytest.raises(ExportError, match=r"00002\.txt is missing"):
        read(trainer, made_from)
