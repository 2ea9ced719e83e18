"""SimpleTuner: a list of data backends in JSON, and the configuration that names it.

Read at commit bc8e6ab of bghira/SimpleTuner: `data_backend/config/image.py` and `validators.py`
(keys and values), `data_backend/local.py` (which files count), `prompts.py` (captions),
`data_backend/runtime/dataloader_iterator.py` (which backend the next batch comes from). All of them
below simpletuner/helpers/. A key that SimpleTuner does not know is ignored by it without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from regforge.export import base_models, common
from regforge.export.base_models import family_of
from regforge.export.interface import IMAGES, SUBJECT, ExportError, Material, Plan, Seen

FOLDER = "simpletuner"
BACKENDS = f"{FOLDER}/multidatabackend.json"
CONFIG = f"{FOLDER}/config.json"

_FAMILIES = {
    base_models.SD1: "sd1x",
    base_models.SD2: "sd2x",
    base_models.SDXL: "sdxl",
    base_models.SD3: "sd3",
    base_models.FLUX: "flux",
    base_models.FLUX2: "flux2",
    base_models.FLUX2_KLEIN: "flux2",
    base_models.QWEN_IMAGE: "qwen_image",
    base_models.Z_IMAGE: "z_image",
}
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
_IMAGE_KEYS = frozenset(
    "id type dataset_type instance_data_dir caption_strategy metadata_backend resolution "
    "resolution_type crop crop_aspect crop_style minimum_image_size repeats cache_dir_vae "
    "is_regularisation_data disabled".split()
)
_TEXT_KEYS = frozenset({"id", "type", "dataset_type", "default", "cache_dir"})
_CHOICES: dict[str, tuple[object, ...]] = {
    "type": ("local",),
    "caption_strategy": ("textfile",),  # the default, filename, would train the files' names
    "metadata_backend": ("discovery",),
    "resolution_type": ("pixel", "area", "pixel_area"),
    "crop": (True, False),
    "crop_aspect": ("square", "preserve"),
    "crop_style": ("random", "corner", "center", "centre", "face"),
}


class SimpleTuner:
    """SimpleTuner, of PyPI or its repository."""

    name = "simpletuner"
    title = "SimpleTuner"

    def refuses(self, caption: str) -> str | None:
        """It takes each line of a caption file for a caption of its own."""
        if "\n" in caption:
            return "it has a line break, and each line would be a caption of its own"
        return None

    def plan(self, material: Material) -> Plan:
        """Two image backends, one for embeddings, and a configuration to start with."""
        if material.prior_weight == 0:
            raise ExportError(
                "SimpleTuner has no loss weight for a set of images, so a prior weight of 0 "
                "would mean to leave the regularization images out.",
                hint="Give another --prior-weight, or train without a regularization set.",
            )
        return Plan(
            files={
                BACKENDS: common.as_json(_backends(material)),
                CONFIG: common.as_json(_config(material)),
            },
            command=common.command_line(
                ["simpletuner", "train", f"env={material.seen(FOLDER)}"],
            ),
            notes=_notes(material),
        )

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """The images of each image backend, with the captions of their text files."""
        config = common.json_of(out / CONFIG)
        named = config.get("data_backend_config") if isinstance(config, dict) else None
        where = out / common.below(named, root, out / CONFIG)
        backends = common.json_of(where)
        _see_that_it_starts(backends, where)
        for backend in backends:
            if backend["dataset_type"] != "image" or backend.get("disabled", False):
                continue
            folder = out / common.below(backend["instance_data_dir"], root, where)
            regularization = folder.name != SUBJECT
            for path in common.images_in(
                folder, _SUFFIXES, required=regularization, recursive=True
            ):
                yield Seen(
                    path.relative_to(out).as_posix(),
                    _caption(path),
                    regularization=regularization,
                    repeats=backend["repeats"] + 1,
                )


def _repeats(material: Material) -> int:
    """How often an epoch shows a photo, counted from 1.

    An epoch shows every image of every backend, so the ratio of their numbers is all that can
    weigh one against the other.
    """
    photos, images = common.photos(material), len(material.images)
    if material.prior_weight == 1:
        return common.repeats(material)
    return max(1, round(images / material.prior_weight / photos))


def _backends(material: Material) -> list[dict[str, object]]:
    everything = (*material.images, *material.photos)
    squares = all(image.width == image.height for image in everything)
    noun = common.run_name(material).removesuffix("-lora")

    def images(name: str, folder: str, repeats: int) -> dict[str, object]:
        return {
            "id": name,
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": material.seen(folder),
            "caption_strategy": "textfile",
            "metadata_backend": "discovery",
            "resolution": material.resolution,
            "resolution_type": "pixel_area",
            "crop": True,
            "crop_aspect": "square" if squares else "preserve",
            "crop_style": "center",
            "minimum_image_size": 0,
            "repeats": repeats - 1,  # SimpleTuner counts how often more
            "cache_dir_vae": material.seen(FOLDER, "cache", "vae", name),
        }

    return [
        images(noun, SUBJECT, _repeats(material)),
        images(f"{noun}-regularization", IMAGES, 1),
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": material.seen(FOLDER, "cache", "text"),
        },
    ]


def _config(material: Material) -> dict[str, object]:
    family = family_of(material.base_model)
    return {
        "model_family": _FAMILIES.get(family or base_models.SD1),
        "pretrained_model_name_or_path": material.base_model,
        "model_type": "lora",
        "lora_type": "standard",
        "lora_rank": 16,
        "lora_alpha": 16,
        "data_backend_config": material.seen(BACKENDS),
        "data_backend_sampling": "auto-weighting",
        "output_dir": material.seen(FOLDER, "output"),
        "resolution": material.resolution,
        "resolution_type": "pixel_area",
        "train_batch_size": 1,
        "max_train_steps": 2 * common.PAIRS,
        "num_train_epochs": 0,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "optimizer": "adamw_bf16",
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "caption_dropout_probability": 0.0,
        "checkpoint_step_interval": 500,
        "validation_step_interval": 500,
        "validation_prompt": common.instance_prompt(material),
        "validation_resolution": f"{material.resolution}x{material.resolution}",
        "report_to": "none",
        "seed": 0,
    }


def _notes(material: Material) -> list[str]:
    count, photos, repeats = len(material.images), common.photos(material), _repeats(material)
    shown = round(2 * common.PAIRS * count / (count + photos * repeats))
    notes = [
        f"SimpleTuner uses {common.every(count, 'regularization image')} in each epoch, every "
        f"one with its own caption and once; each of the {common.some(photos, 'photo')} comes "
        f'{common.some(repeats, "time")}, written "repeats": {repeats - 1} because SimpleTuner '
        "counts from 0. The next one is drawn from all that are left, so the two sets mix "
        f"{photos * repeats:,} to {count:,}: about {shown:,} of the {2 * common.PAIRS:,} steps of "
        f"{CONFIG} show a regularization image.",
        "The regularization images are trained on like the photos: the target is the image, "
        'as in the paper. With "is_regularisation_data": true the target would be what the base '
        "model predicts for the image, with the LoRA switched off. That keeps the base model's "
        "look, needs a second pass through the model, and works for LoRA and LyCORIS only.",
        'Captions come from the text files ("caption_strategy": "textfile"). SimpleTuner\'s own '
        "default is the file's name. It ignores keys it does not know, so mind the spelling.",
    ]
    if material.prior_weight != 1:
        notes.append(
            f"SimpleTuner has no loss weight for a set of images. Prior weight "
            f"{material.prior_weight:g} is written as the ratio of images in an epoch, which "
            f"comes to {count / (photos * repeats):.2g}."
        )
    if family_of(material.base_model) is None:
        notes.append(
            f"{base_models.unknown(material.base_model)}: model_family in {CONFIG} says sd1x, "
            "Stable Diffusion 1.x. Change it if that is wrong."
        )
    return notes + common.without_photos(material)


def _see_that_it_starts(backends: Any, where: Path) -> None:
    """Raise an `ExportError` for what SimpleTuner would refuse, or ignore without a word."""
    if not isinstance(backends, list) or not all(isinstance(b, dict) for b in backends):
        raise ExportError(f"{where} should hold a list of data backends.")
    ids = [backend.get("id") for backend in backends]
    if not all(ids) or len(set(ids)) != len(ids):
        raise ExportError(f"{where}: each data backend needs an id of its own.")
    for backend in backends:
        if backend.get("dataset_type") == "image":
            _see_that_images_are_right(backend, where)
        elif backend.get("dataset_type") != "text_embeds" or set(backend) - _TEXT_KEYS:
            raise ExportError(f"{where}: {backend['id']} is no backend of images or embeddings.")
    if [b.get("default") for b in backends if b["dataset_type"] == "text_embeds"] != [True]:
        raise ExportError(
            f"{where}: one backend of text_embeds has to be the default, or SimpleTuner stops."
        )


def _see_that_images_are_right(backend: Mapping[str, Any], where: Path) -> None:
    name = f"{where}: {backend['id']}"
    unknown = sorted(set(backend) - _IMAGE_KEYS)
    if unknown:
        raise ExportError(f"{name} has {unknown[0]!r}, which SimpleTuner would ignore.")
    for key, choices in _CHOICES.items():
        if backend.get(key) not in choices:
            raise ExportError(
                f"{name} has {backend.get(key)!r} for {key}; it should be one of "
                f"{', '.join(map(str, choices))}."
            )
    repeats = backend.get("repeats")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 0:
        raise ExportError(f"{name} has {repeats!r} for repeats; it should be 0 or more.")


def _caption(image: Path) -> str:
    """The caption of an image, by the rules of `prepare_instance_prompt_from_textfile`."""
    file = image.with_suffix(".txt")
    lines = [line for line in common.text_of(file).split("\n") if line]
    if len(lines) != 1:
        raise ExportError(
            f"{file} has {common.some(len(lines), 'line')}: SimpleTuner takes each for a caption."
        )
    return lines[0]


TRAINER = SimpleTuner()
