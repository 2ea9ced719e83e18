"""diffusers' Custom Diffusion script: the only one of them with a caption for each class image.

Read in examples/custom_diffusion/train_custom_diffusion.py of huggingface/diffusers at commit
58eb52c. With `--real_prior` it wants `images/`, `images.txt` and `caption.txt` in the class folder
(lines 735-748) and pairs the lines of the two files, split with `str.splitlines` (206-218).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

from pydantic import BaseModel

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    ExportError,
    LoadedImage,
    Material,
    Plan,
    Trainer,
)
from regforge.recipe.pipelines import read_json
from regforge.words import counted

FOLDER = "custom-diffusion"
"""The class folder, as the script calls it; everything else lies in it too."""

CONCEPTS = f"{FOLDER}/concepts.json"
CLASS_IMAGES = f"{FOLDER}/images"
INSTANCE_IMAGES = f"{FOLDER}/instance_images"

MODIFIER_TOKEN = "<new1>"
"""Stands for the subject. The script adds it to the tokenizer, and refuses one that is in it."""

_BASE_MODELS = dict.fromkeys(("sd1", "sd2"), "train_custom_diffusion.py")


class _Concept(BaseModel):
    instance_prompt: str
    class_prompt: str
    instance_data_dir: str
    class_data_dir: str


def _plan(material: Material) -> Plan:
    paths = [material.path(CLASS_IMAGES, image.name) for image in material.images]
    if any(len(path.splitlines()) != 1 for path in paths):
        raise ExportError(
            f"{material.path(CLASS_IMAGES)!r} has a line separator in it, and images.txt holds "
            "one path a line.",
            hint="Choose another folder with --out or --root.",
        )
    concept = {
        "instance_prompt": f"photo of a {MODIFIER_TOKEN} {material.class_noun}",
        "class_prompt": material.class_noun,
        "instance_data_dir": material.path(INSTANCE_IMAGES),
        "class_data_dir": material.path(FOLDER),
    }
    return Plan(
        files={
            CONCEPTS: common.as_json([concept]),
            f"{FOLDER}/images.txt": "".join(f"{path}\n" for path in paths),
            f"{FOLDER}/caption.txt": "".join(f"{each.caption}\n" for each in material.images),
        },
        links=common.links_to(CLASS_IMAGES, IMAGES, material.images)
        | common.links_to(INSTANCE_IMAGES, SUBJECT, material.photos),
        command=_command(material),
        notes=_notes(material),
    )


def _initializer(material: Material) -> str:
    """A word that is one token: the script refuses others.

    CLIP's rare "ktn" is the script's own; a tokenizer that does not have it has the class noun, or
    "photo".
    """
    read = partial(read_json, material.base_model)
    vocabulary = read("tokenizer/vocab.json") or read("tokenizer/tokenizer.json").get(
        "model", {}
    ).get("vocab", {})
    words = ("ktn", *reversed(material.class_noun.lower().split()), "photo")
    return next((word for word in words if f"{word}</w>" in vocabulary), "ktn")


def _command(material: Material) -> str:
    return common.command_line(
        ["accelerate", "launch", "train_custom_diffusion.py"],
        [f"--pretrained_model_name_or_path={material.base_model}"],
        [f"--concepts_list={material.path(CONCEPTS)}"],
        [
            "--with_prior_preservation",
            "--real_prior",
            f"--prior_loss_weight={material.prior_weight}",
            f"--num_class_images={len(material.images)}",
        ],
        [f"--modifier_token={MODIFIER_TOKEN}", f"--initializer_token={_initializer(material)}"],
        [f"--resolution={material.resolution}", "--train_batch_size=1", "--gradient_checkpointing"],
        ["--learning_rate=1e-5", "--lr_scheduler=constant", "--lr_warmup_steps=0"],
        [f"--max_train_steps={common.PAIRS}", "--seed=0"],
        [f"--output_dir={material.run_name.removesuffix('lora')}custom-diffusion"],
    )


def _notes(material: Material) -> list[str]:
    count, noun = len(material.images), material.class_noun
    epoch = max(count, material.photo_count)
    return [
        f"train_custom_diffusion.py uses {common.every(count, 'regularization image')}, each with "
        "its own caption: each step takes one photo and one image, so an epoch is "
        f"{counted(epoch, 'step')}, and the {common.PAIRS:,} steps of the command show "
        f"{common.shown(count)}.",
        f"The subject is called {MODIFIER_TOKEN}, not {material.identifier}: the script adds a "
        "token of its own to the tokenizer, and refuses one that is in it already. All photos "
        f'share "photo of a {MODIFIER_TOKEN} {noun}", and captions beside them are not read. Ask '
        f"the trained model for {MODIFIER_TOKEN} {noun}.",
        f"--num_class_images={count} has to be exact: the script counts the files in "
        f"{CLASS_IMAGES} and stops at any other number. images.txt and caption.txt are paired line "
        "by line.",
        "Photos are scaled at random, with words such as 'very small' added to the prompt; "
        "--noaug turns that off. Regularization images are only cropped.",
        "images.txt has absolute paths. If the folder will lie elsewhere, export with --root.",
        *common.distillation_notes(material),
        *common.folder_notes(material),
        *common.closing_notes(material, INSTANCE_IMAGES),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """What `CustomDiffusionDataset` would show, by concepts.json."""
    where = out / CONCEPTS
    for concept in common.checked(list[_Concept], common.json_of(where), where, TRAINER.title):
        pairs = _pairs(out / common.below(concept.class_data_dir, root, where), root)
        instances = out / common.below(concept.instance_data_dir, root, where)
        photos = [path for path in common.files_in(instances, required=False) if path.is_file()]
        epoch = max(len(pairs), len(photos))
        for number, (path, caption) in enumerate(pairs):
            yield LoadedImage(path, caption, True, len(range(number, epoch, len(pairs))))
        for photo in photos:
            yield LoadedImage(photo.relative_to(out).as_posix(), None, False, epoch / len(photos))


def _pairs(folder: Path, root: PurePath) -> list[tuple[str, str]]:
    """The images of a class folder with their captions, in their order."""
    held = len(common.files_in(folder / "images"))
    listed = common.text_of(folder / "images.txt").splitlines()
    captions = common.text_of(folder / "caption.txt").splitlines()
    if not held == len(listed) == len(captions):
        raise ExportError(
            f"{folder} holds {held:,} images, but images.txt lists {len(listed):,} and "
            f"caption.txt {len(captions):,}: the script would stop, or pair them wrongly.",
            hint="Export again.",
        )
    inside = [common.below(path, root, folder / "images.txt") for path in listed]
    return list(zip(inside, captions, strict=True))


TRAINER = Trainer(
    "custom-diffusion",
    "diffusers Custom Diffusion",
    _plan,
    _read,
    _BASE_MODELS,
    tokens=_BASE_MODELS,  # it always adds one of its own
)
