"""kohya's sd-scripts: a dataset configuration in TOML, and folders for its graphical interfaces.

Rules as in kohya-ss/sd-scripts at commit 48d368f: `library/config_util.py` (what a configuration
may say, what a folder's name means), `library/train_util.py`, class `DreamBoothDataset` (which
files are images, which text is the caption, how many regularization images are used), and for the
arguments `setup_parser` of each script with its page in `docs/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path, PurePath
from typing import NamedTuple

from pydantic import BaseModel

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    NO_BASE_MODEL,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)
from regforge.recipe.pipelines import zero_snr
from regforge.words import counted

CONFIG = "kohya.toml"
TRAIN, REG = "kohya/train", "kohya/reg"

_STEP = 64  # of bucket sizes; the scripts for Stable Diffusion 1 and 2 take no other
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class _Script(NamedTuple):
    """One training script: the module of its networks, other flags, and further files it needs.

    The defaults of FLUX.1 are not what its models were trained with, so its page gives others.
    """

    name: str
    network: str = "lora"
    flags: tuple[str, ...] = ("--max_token_length=225",)
    files: tuple[str, ...] = ()


# Text encoders are not trained, so that what they say can be cached.
_FLOW = ("--network_train_unet_only", "--cache_text_encoder_outputs")
_FLUX = (*_FLOW, "--model_prediction_type=raw")
_CLIP_L, _T5, _AE = "--clip_l=clip_l", "--t5xxl=t5xxl_fp16", "--ae=ae"
_SD3 = _Script("sd3_train_network.py", "lora_sd3", _FLOW, (_CLIP_L, "--clip_g=clip_g", _T5))
# fmt: off
_SCRIPTS = {
    "sd1": _Script("train_network.py"),
    "sd2": _Script("train_network.py", flags=("--max_token_length=225", "--v2")),
    "sdxl": _Script("sdxl_train_network.py"),
    "sd3": _SD3,
    "sd3.5": _SD3,
    "flux1-dev": _Script("flux_train_network.py", "lora_flux",
                         (*_FLUX, "--guidance_scale=1.0", "--timestep_sampling=flux_shift"),
                         (_CLIP_L, _T5, _AE)),
    "chroma": _Script("flux_train_network.py", "lora_flux",
                      (*_FLUX, "--guidance_scale=0.0", "--timestep_sampling=sigmoid",
                       "--model_type=chroma", "--apply_t5_attn_mask"), (_T5, _AE)),
    "lumina2": _Script("lumina_train_network.py", "lora_lumina",
                       (*_FLUX, "--timestep_sampling=nextdit_shift", "--discrete_flow_shift=6.0",
                        "--system_prompt=You are an assistant designed to generate high-quality "
                        "images based on user prompts."), ("--gemma2=gemma_2_2b_fp16", _AE)),
    "hunyuan-image": _Script("hunyuan_image_train_network.py", "lora_hunyuan_image",
                             (*_FLUX, "--discrete_flow_shift=5.0", "--attn_mode=torch",
                              "--split_attn"),
                             ("--text_encoder=qwen_2.5_vl_7b", "--byt5=byt5_small_glyphxl_fp16",
                              "--vae=hunyuan_image_2.1_vae_fp16")),
    "anima": _Script("anima_train_network.py", "lora_anima",
                     (*_FLOW, "--timestep_sampling=sigmoid", "--discrete_flow_shift=1.0"),
                     ("--qwen3=qwen_3_06b_base", "--vae=qwen_image_vae")),
}
# fmt: on


# What our configuration uses of what kohya allows; it refuses keys that it does not know, and what
# others of its keys do to captions is not restated here. A subset has from the tables above it what
# it does not say itself.


class _General(BaseModel, extra="forbid", strict=True):
    caption_extension: str = ".caption"
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64


class _Subset(BaseModel, extra="forbid", strict=True):
    image_dir: str
    is_reg: bool = False
    num_repeats: int = 1
    class_tokens: str = ""
    caption_extension: str | None = None


class _Dataset(_General):
    resolution: int | list[int]
    batch_size: int = 1
    subsets: list[_Subset] = []


class _Config(BaseModel, extra="forbid", strict=True):
    general: _General = _General()
    datasets: list[_Dataset] = []


def _plan(material: Material) -> Plan:
    reg = f"{REG}/1_{common.folder_name(material.class_noun)}"
    links = common.links_to(reg, IMAGES, material.images, captions=True)
    links |= common.links_to(_train_folder(material), SUBJECT, material.photos, captions=True)
    return Plan(
        files={CONFIG: _config(material)},
        links=links,
        command=_command(material),
        notes=_notes(material),
    )


def _train_folder(material: Material) -> str:
    name = common.folder_name(f"{material.identifier} {material.class_noun}")
    return f"{TRAIN}/{material.repeats}_{name}"


def _resolution(material: Material) -> int:
    """kohya refuses a side below the smallest bucket, and buckets come in steps of 64."""
    return max(material.resolution, _STEP)


def _config(material: Material) -> str:
    side = _resolution(material)
    subject = f"{material.identifier} {material.class_noun}"
    return f"""\
# For --dataset_config of kohya's sd-scripts. Both subsets are in one block: alone in
# a block, regularization images are not used.

[general]
caption_extension = ".txt"
enable_bucket = true
min_bucket_reso = {max(side // 2 // _STEP * _STEP, _STEP)}
max_bucket_reso = {-(-2 * side // _STEP) * _STEP}
bucket_reso_steps = {_STEP}

[[datasets]]
resolution = {side}
batch_size = 2

  # The subject.
  [[datasets.subsets]]
  image_dir = {common.toml_string(material.path(SUBJECT))}
  class_tokens = {common.toml_string(subject)}
  num_repeats = {material.repeats}

  # Regularization.
  [[datasets.subsets]]
  image_dir = {common.toml_string(material.path(IMAGES))}
  is_reg = true
  class_tokens = {common.toml_string(material.class_noun)}
  num_repeats = 1
"""


def _command(material: Material) -> str:
    script = material.entry(_SCRIPTS)
    return common.command_line(
        ["accelerate", "launch", script.name],
        [f"--pretrained_model_name_or_path={_base_model(material)}"],
        *([f"{file}.safetensors"] for file in script.files),
        [f"--dataset_config={material.path(CONFIG)}"],
        [f"--prior_loss_weight={material.prior_weight}"],
        [f"--network_module=networks.{script.network}", "--network_dim=16", "--network_alpha=16"],
        ["--learning_rate=1e-4", f"--max_train_steps={common.PAIRS}", "--seed=0"],
        ["--mixed_precision=bf16", "--gradient_checkpointing", "--sdpa"],
        *([flag] for flag in script.flags),
        ["--v_parameterization"] if material.predicts_v else [],
        ["--zero_terminal_snr"] if zero_snr(material.base_model) else [],
        ["--output_dir=output", f"--output_name={material.run_name}"],
    )


def _base_model(material: Material) -> str:
    """The scripts with files for the text encoders take a file for the model too."""
    name = material.base_model
    if not material.entry(_SCRIPTS).files or name.endswith((".safetensors", ".sft")):
        return name
    return f"{NO_BASE_MODEL}.safetensors"


def _notes(material: Material) -> list[str]:
    side, script = _resolution(material), material.entry(_SCRIPTS)
    photos = material.path(_train_folder(material))
    place = "" if material.photos else f" Put the photos into {photos}."
    notes = [
        _use(material),
        "Each image is trained with its own caption. The weight of the regularization loss is "
        f"--prior_loss_weight={material.prior_weight} on the command line; the configuration has "
        "no key for it.",
        f"For a graphical interface such as kohya_ss, name {material.path(TRAIN)} as image folder "
        f"and {material.path(REG)} as regularisation folder, and set the caption extension to "
        f".txt.{place}",
    ]
    if side != material.resolution:
        notes.append(f"kohya's smallest bucket is {_STEP} pixels wide, so it trains at {side}.")
    elif side % _STEP:
        bucket = side // _STEP * _STEP
        notes.append(
            f"kohya's buckets come in steps of {_STEP} pixels, so a square image is trained at "
            f"{bucket} x {bucket}, not {side} x {side}."
        )
    if script.files:
        files = [
            _base_model(material),
            *(f"{file.partition('=')[2]}.safetensors" for file in script.files),
        ]
        notes.append(
            f"{script.name} takes weights as files on the machine that trains, not as a "
            f"repository of the Hub. Put their paths where the command says {', '.join(files)}; "
            f"docs/{script.name.removesuffix('.py')}.md of sd-scripts tells where to get them."
        )
    return notes + common.distillation_notes(material) + common.closing_notes(material)


def _use(material: Material) -> str:
    images, photos = len(material.images), material.photo_count
    everything = common.every(images, "regularization image")
    if photos >= images:
        return f"kohya will use {everything} in each epoch."
    fewer = 4 if 4 * photos < images else 1
    return (
        f"kohya will use {everything} in each epoch. It takes as many as there are photos times "
        f"num_repeats: with num_repeats={fewer} it would use the first {fewer * photos:,} of them "
        f"and leave out the others; num_repeats={material.repeats} is written for "
        f"{counted(photos, 'photo')}, so that all are used."
    )


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `DreamBoothDataset` would register."""
    where = out / CONFIG
    config = common.checked(_Config, common.toml_of(where), where, TRAINER.title)
    for dataset in config.datasets:
        above = dataset if "caption_extension" in dataset.model_fields_set else config.general
        yield from _registered(out, root, dataset.subsets, above.caption_extension)


def _registered(
    out: Path, root: PurePath, subsets: Sequence[_Subset], extension: str
) -> Iterator[LoadedImage]:
    """The images of a block.

    Regularization images are taken in the order of their names until there are as many as photos
    with their repeats; if they are too few, the first ones come again.
    """
    regularization: list[tuple[str, str, int]] = []
    wanted = 0
    for subset in subsets:
        if subset.num_repeats < 1:
            continue
        folder = common.below(subset.image_dir, root, out / CONFIG)
        for name, caption in _images(out / folder, subset, subset.caption_extension or extension):
            if subset.is_reg:
                regularization.append((f"{folder}/{name}", caption, subset.num_repeats))
            else:
                wanted += subset.num_repeats
                yield LoadedImage(f"{folder}/{name}", caption, False, subset.num_repeats)
    before = accumulate((repeats for _, _, repeats in regularization), initial=0)
    first = [
        repeats if so_far < wanted else 0
        for (_, _, repeats), so_far in zip(regularization, before, strict=False)
    ]
    more, rest = divmod(max(wanted - sum(first), 0), max(len(first), 1))
    for number, (path, caption, _) in enumerate(regularization):
        yield LoadedImage(path, caption, True, first[number] + more + (number < rest))


def _images(folder: Path, subset: _Subset, extension: str) -> Iterator[tuple[str, str]]:
    """Name and caption of each image of a folder, by name."""
    for path in common.images_in(folder, _SUFFIXES, required=False):
        if path.name.startswith("."):  # glob does not find it
            continue
        caption = subset.class_tokens
        beside = path.with_suffix(extension)
        if beside.is_file():
            text = common.text_of(beside)
            if not text:
                raise ExportError(f"{beside} is empty: kohya would stop.")
            caption = re.split(r"\r\n|\r|\n", text, maxsplit=1)[0].strip()
        yield path.name, caption


TRAINER = Trainer("kohya", "kohya sd-scripts", _plan, _read, _SCRIPTS)
