"""SimpleTuner: a list of data backends in JSON, and the configuration that names it.

Read at commit bc8e6ab of bghira/SimpleTuner: `data_backend/config/image.py` and `validators.py`
(keys and values), `data_backend/local.py` (which files count), `prompts.py` (captions),
`data_backend/runtime/dataloader_iterator.py` (which backend the next batch comes from), and in
`models/` and `configuration/cmd_args.py` what a flavour and a seed mean. All of them
below simpletuner/helpers/. A key that SimpleTuner does not know is ignored by it without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, Field

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

FOLDER = "simpletuner"
BACKENDS = f"{FOLDER}/multidatabackend.json"
CONFIG = f"{FOLDER}/config.json"

# Without the flavour, SimpleTuner loads the text encoder, the assistant adapter and the guidance of
# its default flavour, or none.
_FAMILIES: dict[str, dict[str, object]] = {
    "sd1": {"model_family": "sd1x"},
    "sd2": {"model_family": "sd2x"},
    "sdxl": {"model_family": "sdxl"},
    "sd3": {"model_family": "sd3"},
    "sd3.5": {"model_family": "sd3"},
    "flux1-dev": {"model_family": "flux", "model_flavour": "dev"},
    "flux1-krea": {"model_family": "flux", "model_flavour": "krea"},
    "flux1-schnell": {
        "model_family": "flux",
        "model_flavour": "schnell",
        "flux_fast_schedule": True,
    },
    "flux2-dev": {"model_family": "flux2", "model_flavour": "dev"},
    "flux2-klein-base-4b": {"model_family": "flux2", "model_flavour": "klein-4b"},
    "flux2-klein-base-9b": {"model_family": "flux2", "model_flavour": "klein-9b"},
    "qwen-image": {"model_family": "qwen_image"},
    "z-image": {"model_family": "z_image", "model_flavour": "base"},
    "z-image-turbo": {"model_family": "z_image", "model_flavour": "turbo-ostris-v2"},
    "chroma": {"model_family": "chroma"},
    "lumina2": {"model_family": "lumina2"},
    "hidream": {"model_family": "hidream"},
    "krea2": {"model_family": "krea2"},
    "sana": {"model_family": "sana"},
    "anima": {"model_family": "anima"},
    "ernie-image": {"model_family": "ernie"},
    "ideogram4": {"model_family": "ideogram"},
}
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


class _Backend(BaseModel, extra="forbid", strict=True):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["local"]


class _Images(_Backend):
    dataset_type: Literal["image"]
    instance_data_dir: str
    caption_strategy: Literal["textfile"]  # the default, filename, would train the files' names
    metadata_backend: Literal["discovery"]
    resolution: float
    resolution_type: Literal["pixel", "area", "pixel_area"]
    crop: bool
    crop_aspect: Literal["square", "preserve"]
    crop_style: Literal["random", "corner", "center", "centre", "face"]
    minimum_image_size: float
    repeats: Annotated[int, Field(ge=0)]
    cache_dir_vae: str
    is_regularisation_data: bool = False
    disabled: bool = False


class _Texts(_Backend):
    dataset_type: Literal["text_embeds"]
    default: bool = False
    cache_dir: str


_Backends = list[Annotated[_Images | _Texts, Field(discriminator="dataset_type")]]


class _Config(BaseModel):
    data_backend_config: str


def _plan(material: Material) -> Plan:
    repeats = round(common.mixture(material, TRAINER.title)[0])
    if material.prior_weight == 1:
        repeats = material.repeats  # so that a pair of each takes every image
    return Plan(
        files={
            BACKENDS: common.as_json(_backends(material, repeats)),
            CONFIG: common.as_json(_config(material)),
        },
        command=common.command_line(["simpletuner", "train", f"env={material.path(FOLDER)}"]),
        notes=_notes(material, repeats),
    )


def _backends(material: Material, repeats: int) -> list[dict[str, object]]:
    everything = (*material.images, *material.photos)
    squares = all(image.width == image.height for image in everything)
    noun = material.run_name.removesuffix("-lora")

    def images(name: str, folder: str, repeats: int) -> dict[str, object]:
        return {
            "id": name,
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": material.path(folder),
            "caption_strategy": "textfile",
            "metadata_backend": "discovery",
            "resolution": material.resolution,
            "resolution_type": "pixel_area",
            "crop": True,
            "crop_aspect": "square" if squares else "preserve",
            "crop_style": "center",
            "minimum_image_size": 0,
            "repeats": repeats - 1,  # SimpleTuner counts how often more
            "cache_dir_vae": material.path(FOLDER, "cache", "vae", name),
        }

    return [
        images(noun, SUBJECT, repeats),
        images(f"{noun}-regularization", IMAGES, 1),
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": material.path(FOLDER, "cache", "text"),
        },
    ]


def _config(material: Material) -> dict[str, object]:
    prediction = "v_prediction" if material.predicts_v else "epsilon"
    return {
        **material.entry(_FAMILIES),
        "pretrained_model_name_or_path": material.base_model,
        **({} if material.kind.flow else {"prediction_type": prediction}),
        "model_type": "lora",
        "lora_type": "standard",
        "lora_rank": 16,
        "lora_alpha": 16,
        "data_backend_config": material.path(BACKENDS),
        "data_backend_sampling": "auto-weighting",
        "output_dir": material.path(FOLDER, "output"),
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
        "validation_prompt": material.instance_prompt,
        "validation_resolution": f"{material.resolution}x{material.resolution}",
        "validation_guidance": material.kind.made_for.guidance_scale,
        "validation_num_inference_steps": material.kind.made_for.steps,
        "report_to": "none",
        "seed": 1,  # 0 stands for the clock
    }


def _notes(material: Material, repeats: int) -> list[str]:
    count = len(material.images)
    shown = round(2 * common.PAIRS * count / (count + material.photo_count * repeats))
    mixing, *weighed = common.mixing_notes(material, TRAINER.title, repeats, 1)
    notes = [
        f'{mixing} It counts from 0: a photo has "repeats": {repeats - 1}. The next image is drawn '
        f"from all that are left, so about {shown:,} of the {2 * common.PAIRS:,} steps of {CONFIG} "
        "show a regularization image.",
        "The regularization images are trained on like the photos: the target is the image, "
        'as in the paper. With "is_regularisation_data": true the target would be what the base '
        "model predicts for the image, with the LoRA switched off. That keeps the base model's "
        "look, needs a second pass through the model, and works for LoRA and LyCORIS only.",
        'Captions come from the text files ("caption_strategy": "textfile"). SimpleTuner\'s own '
        "default is the file's name. It ignores keys it does not know, so mind the spelling.",
        *weighed,
    ]
    how = f"for this flavour SimpleTuner loads {material.kind.adapter} while it trains"
    notes += common.distillation_notes(material, how if material.kind.name in _FAMILIES else "")
    return notes + common.folder_notes(material) + common.closing_notes(material)


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The images of each image backend, with the captions of their text files."""
    config = common.checked(_Config, common.json_of(out / CONFIG), out / CONFIG, TRAINER.title)
    where = out / common.below(config.data_backend_config, root, out / CONFIG)
    backends = common.checked(_Backends, common.json_of(where), where, TRAINER.title)
    if len({backend.id for backend in backends}) != len(backends):
        raise ExportError(f"{where}: each data backend needs an id of its own.")
    if [backend.default for backend in backends if isinstance(backend, _Texts)] != [True]:
        raise ExportError(
            f"{where}: one backend of text_embeds has to be the default, or SimpleTuner stops."
        )
    for backend in backends:
        if isinstance(backend, _Texts) or backend.disabled:
            continue
        folder = out / common.below(backend.instance_data_dir, root, where)
        regularization = folder.name != SUBJECT
        for path in common.images_in(folder, _SUFFIXES, required=regularization, recursive=True):
            file = path.with_suffix(".txt")
            # By the rules of `prepare_instance_prompt_from_textfile`.
            lines = [line for line in common.text_of(file).split("\n") if line]
            caption = common.only_line(file, lines, "SimpleTuner takes each for a caption")
            name = path.relative_to(out).as_posix()
            yield LoadedImage(name, caption, regularization, backend.repeats + 1)


TRAINER = Trainer("simpletuner", "SimpleTuner", _plan, _read, _FAMILIES)
