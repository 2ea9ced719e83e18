"""diffusers' DreamBooth scripts: folders with nothing but images, and a command.

The scripts (examples/dreambooth/train_dreambooth*.py of huggingface/diffusers, and for a new token
those of examples/advanced_diffusion_training; read at commit 58eb52c) take one caption for all
class images and open every entry of the class folder as an image: `DreamBoothDataset` lists it with
`iterdir()`, and so counts the check before it that tops the folder up to `--num_class_images`. A
caption file beside the images would be opened too.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple, NoReturn

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
    entry_of,
)
from regforge.words import counted, is_token

FOLDER = "diffusers-dreambooth"
CLASS_IMAGES = f"{FOLDER}/class_images"
INSTANCE_IMAGES = f"{FOLDER}/instance_images"
SCRIPT = f"{FOLDER}/train.sh"

_OPENED = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
_MEMORY = 16 * 10**9  # bytes that repeated photos may take in a script that keeps them decoded


class _Script(NamedTuple):
    """One training script, and what it needs beyond the flags that all take.

    `folder` is where it lies in diffusers. If `bucketed`, its batches come from
    `BucketBatchSampler`, which goes through the photos alone: it pairs the i-th photo with the i-th
    class image and uses no further ones.
    """

    name: str
    bucketed: bool = False
    flags: tuple[str, ...] = ()
    folder: str = "examples/dreambooth"


_GUIDED = ("--guidance_scale=1",)
_PLAIN = _Script("train_dreambooth_lora.py")
_KLEIN = _Script("train_dreambooth_lora_flux2_klein.py", True, _GUIDED)
_SCRIPTS = {
    "sd1": _PLAIN,
    "sd2": _PLAIN,
    "sdxl": _Script("train_dreambooth_lora_sdxl.py"),
    "sd3": _Script("train_dreambooth_lora_sd3.py"),
    "sd3.5": _Script("train_dreambooth_lora_sd3.py"),
    "flux1-dev": _Script("train_dreambooth_lora_flux.py", flags=_GUIDED),
    "flux2-dev": _Script("train_dreambooth_lora_flux2.py", True, _GUIDED),
    "flux2-klein-base-4b": _KLEIN,
    "flux2-klein-base-9b": _KLEIN,
    "qwen-image": _Script("train_dreambooth_lora_qwen_image.py", True),
    # Not Z-Image: with class images, its script joins two lists of prompts as if they were tensors.
    "lumina2": _Script("train_dreambooth_lora_lumina2.py"),
    "hidream": _Script("train_dreambooth_lora_hidream.py"),
    "krea2": _Script("train_dreambooth_lora_krea2.py", True),
    "sana": _Script("train_dreambooth_lora_sana.py"),
    "ideogram4": _Script(
        "train_dreambooth_lora_ideogram4.py", True, (*_GUIDED, "--disable_training_autocast")
    ),
}
# With the embeddings of new tokens (`TokenEmbeddingsHandler`), which they call <s0>, <s1>, ...
_TOKEN_SCRIPTS = {
    name: _Script(
        f"train_dreambooth_lora_{kind}_advanced.py",
        flags=_SCRIPTS[name].flags,
        folder="examples/advanced_diffusion_training",
    )
    for name, kind in (("sd1", "sd15"), ("sdxl", "sdxl"), ("flux1-dev", "flux"))
}
_TOKEN_LR = 5e-3
_BUCKETED = frozenset(script.name for script in _SCRIPTS.values() if script.bucketed)


def _plan(material: Material) -> Plan:
    script, family = _script(material), material.kind
    step = 32 if family.name == "sana" else 16  # of the VAE times that of the patches
    if family.flow and material.resolution % step:
        raise ExportError(
            f"{script.name} crops to {material.resolution} pixels, and {family.title} takes "
            f"multiples of {step}.",
            hint=f"Name one with --resolution {material.resolution // step * step or step}.",
        )
    # A bucketed script keeps each repetition of a photo decoded, as 3 channels of float32.
    size = material.resolution**2 * 3 * 4
    most = max(1, _MEMORY // size // material.photo_count)
    repeats = min(material.repeats, most) if script.bucketed else None
    command = _command(material, script, repeats)
    return Plan(
        files={SCRIPT: f"#!/bin/sh\n# Start it in {script.folder} of diffusers.\n{command}\n"},
        links=common.links_to(CLASS_IMAGES, IMAGES, material.images)
        | common.links_to(INSTANCE_IMAGES, SUBJECT, material.photos),
        command=command,
        notes=[
            _use(material, script, repeats, size),
            *_notes(material),
            *([_TOKEN_NOTE.format(material.identifier)] if "advanced" in script.name else []),
        ],
    )


def _script(material: Material) -> _Script:
    """The script for the base model; for a new token an advanced one, with its flags."""
    advanced = entry_of(_TOKEN_SCRIPTS, material.kind) if is_token(material.identifier) else None
    if advanced is None:
        return material.entry(_SCRIPTS)
    begins = "--num_new_tokens_per_abstraction=1"
    if material.kind.flow:  # as many as its text has, and that is where they begin
        begins = f"--initializer_concept={material.class_noun.split()[-1]}"
    token = f"--token_abstraction={material.identifier}"
    training = ("--train_text_encoder_ti", "--train_text_encoder_ti_frac=1", token, begins)
    return advanced._replace(flags=(*advanced.flags, *training, f"--text_encoder_lr={_TOKEN_LR:g}"))


_TOKEN_NOTE = (
    "{} gets an embedding of its own, which the script calls <s0> and saves as *_emb.safetensors: "
    "prompts say <s0> to diffusers. For SD and SDXL it begins at random."
)


def _command(material: Material, script: _Script, repeats: int | None) -> str:
    # The older scripts keep the LoRA's weights in full precision with fp16, but not with bf16.
    precision = "bf16" if material.kind.flow else "fp16"
    return common.command_line(
        ["accelerate", "launch", script.name],
        [f"--pretrained_model_name_or_path={material.base_model}"],
        [f"--instance_data_dir={material.path(INSTANCE_IMAGES)}"],
        [f"--instance_prompt={material.instance_prompt}"],
        [f"--class_data_dir={material.path(CLASS_IMAGES)}"],
        [f"--class_prompt={common.class_caption(material.class_noun)}"],
        [
            "--with_prior_preservation",
            f"--prior_loss_weight={material.prior_weight}",
            f"--num_class_images={len(material.images)}",
            *([] if repeats is None else [f"--repeats={repeats}"]),
        ],
        [f"--resolution={material.resolution}", "--train_batch_size=1", *script.flags],
        ["--learning_rate=1e-4", "--lr_scheduler=constant", "--lr_warmup_steps=0"],
        [f"--max_train_steps={common.PAIRS}", "--gradient_checkpointing", "--seed=0"],
        [f"--mixed_precision={precision}", f"--output_dir={material.run_name}"],
    )


def _use(material: Material, script: _Script, repeats: int | None, size: int) -> str:
    count, photos = len(material.images), material.photo_count
    if repeats is None:
        return (
            f"{script.name} uses {common.every(count, 'regularization image')}: each step takes "
            f"one photo and one image, so an epoch is {counted(max(count, photos), 'step')}, "
            f"and the {common.PAIRS:,} steps of the command show {common.shown(count)}."
        )
    pairs = photos * repeats
    used = min(count, pairs)
    rest = (
        " That is as many as fit into that memory; --to custom-diffusion, kohya or regforge's own "
        "trainer use all of them."
    )
    return (
        f"{script.name} uses {used:,} of the {counted(count, 'regularization image')}: it "
        f"goes through the photos alone and pairs each with one image, so --repeats={repeats} "
        f"makes {counted(pairs, 'pair')} of {counted(photos, 'photo')}, which it keeps "
        f"decoded in {pairs * size / 10**9:.2g} GB of memory. Without --repeats it would use only "
        f"the first {min(count, photos):,}.{rest if used < count else ''}"
    )


def _notes(material: Material) -> list[str]:
    count = len(material.images)
    distinct = len({image.caption for image in material.images})
    lost = (
        f"The {distinct:,} different captions are lost."
        if distinct > 1
        else "The set has one caption anyway, so little is lost."
    )
    notes = [
        f"It reads no captions of images: {common.every(count, 'image')} share "
        f'"{common.class_caption(material.class_noun)}". {lost} The only script of diffusers that '
        "reads them is train_custom_diffusion.py: export with --to custom-diffusion, or train with "
        "regforge.",
        f"The number in --num_class_images={count} is exact. With a smaller one the script leaves "
        "images out; with a larger one it draws the others itself, all with that one prompt.",
        f"Keep everything but images out of {CLASS_IMAGES} and {INSTANCE_IMAGES}: the script "
        "opens every file in them as an image and stops in the middle of an epoch at the first "
        "that is none.",
    ]
    if "sdxl" in (material.kind.name, material.kind.like):
        notes.append(
            "Leave --train_batch_size at 1: with a larger batch, train_dreambooth_lora_sdxl.py "
            "gives half of it the wrong prompt (diffusers issue 12292). It also gives the "
            "regularization images the photos' size and crop, and --snr_gamma fails with them."
        )
    notes += common.distillation_notes(material)
    return notes + common.folder_notes(material) + common.closing_notes(material, INSTANCE_IMAGES)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExportError(message)


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `DreamBoothDataset` would show, found from the command in `train.sh`."""
    where = out / SCRIPT
    arguments = _arguments(where)
    class_folder = common.below(arguments.class_data_dir, root, where)
    class_images = _only_images(out, class_folder)
    instances = _only_images(
        out, common.below(arguments.instance_data_dir, root, where), required=False
    )
    wanted = arguments.num_class_images
    if wanted > len(class_images):
        raise ExportError(
            f"{where} asks for --num_class_images={wanted:,}, but {class_folder} holds "
            f"{len(class_images):,}: the script would draw the others itself, all with one prompt."
        )
    shown = len(instances) * arguments.repeats
    epoch = shown if arguments.script in _BUCKETED and shown else max(wanted, shown)
    for number, path in enumerate(class_images):
        # `iterdir` sorts nothing, so which come first is the file system's affair.
        times = len(range(number, epoch, wanted)) if number < wanted else 0
        yield LoadedImage(path, None, True, times)
    for path in instances:
        yield LoadedImage(path, None, False, epoch / len(instances))


def _arguments(where: Path) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for word in ("accelerate", "launch"):
        parser.add_argument(word, choices=[word])
    parser.add_argument("script")
    for name in ("instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--with_prior_preservation", action="store_true", required=True)
    parser.add_argument("--num_class_images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    try:
        words = shlex.split(common.text_of(where).replace(" \\\n", " "), comments=True)
        return parser.parse_known_args(words)[0]
    except (ExportError, ValueError) as error:
        raise ExportError(f"{where} does not hold the command: {error}.") from error


def _only_images(out: Path, folder: str, *, required: bool = True) -> list[str]:
    """The entries of a folder, all of which the script will open as images."""
    entries = common.files_in(out / folder, required=required)
    for entry in entries:
        if entry.is_dir() or entry.suffix.lower() not in _OPENED:
            raise ExportError(
                f"{entry} is no image, but the script opens everything in {folder} as one.",
                hint="Move it elsewhere.",
            )
    if required and not entries:
        raise ExportError(f"{out / folder} is empty: the script would draw all images itself.")
    return [f"{folder}/{entry.name}" for entry in entries]


TRAINER = Trainer(
    "diffusers-dreambooth",
    "diffusers DreamBooth",
    _plan,
    _read,
    _SCRIPTS,
    tokens=_TOKEN_SCRIPTS,
)
