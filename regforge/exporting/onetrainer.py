"""OneTrainer: a list of concepts in JSON, and a configuration that names it.

Read at commit 23df383 of Nerogar/OneTrainer: modules/util/config/ConceptConfig.py and BaseConfig.py
(keys and values), dataLoader/mixin/DataLoaderText2ImageMixin.py (which files count), and at commit
3a6994a of Nerogar/mgds: CollectPaths, LoadMultipleTexts and VariationSorting (files, captions,
balancing). A key or value that is wrong becomes the default there, with a line on the terminal at
most; so reading back refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePath
from typing import Literal

from pydantic import BaseModel, Field

from regforge.exporting import common
from regforge.exporting.trainer import (
    IMAGES,
    SUBJECT,
    LoadedImage,
    Material,
    Plan,
    Trainer,
    entry_of,
)
from regforge.words import counted, is_token

FOLDER = "onetrainer"
CONCEPTS = f"{FOLDER}/concepts.json"
CONFIG = f"{FOLDER}/config.json"

_PRESETS = {
    "sd1": "SD1.5/#sd 1.5 LoRA.json",
    "sd2": "SD2.1/#sd 2.1 LoRA.json",
    "sdxl": "SDXL/#sdxl 1.0 LoRA.json",
    "sd3": "SD3/#sd 3 LoRA.json",
    "sd3.5": "SD3/#sd 3 LoRA.json",
    "flux1-dev": "Flux Dev.1/#flux LoRA.json",
    "flux2-dev": "Flux 2/#flux2 LoRA 16GB.json",
    "flux2-klein-base-4b": "Flux 2/#flux2 LoRA 16GB.json",
    "flux2-klein-base-9b": "Flux 2/#flux2 LoRA 16GB.json",
    "qwen-image": "QwenImage/#qwen LoRA 24GB.json",
    "z-image": "Z-Image/#z-image LoRA 16GB.json",
    # Trains a copy of it whose distillation was undone.
    "z-image-turbo": "Z-Image/#z-image DeTurbo LoRA 16GB.json",
    "chroma": "Chroma/#chroma LoRA 24GB.json",
    "hidream": "HiDream Full/#hidream LoRA.json",
    "krea2": "Krea 2/#krea2 LoRA 24GB.json",
    "sana": "Sana/#sana 1.6b.json",
    "anima": "Anima/#anima LoRA.json",
    "ernie-image": "Ernie Image/#ernie LoRA 16GB.json",
    "ideogram4": "Ideogram 4/#ideogram LoRA 24GB.json",
}
_NOT_IN_PRESET: dict[str, dict[str, object]] = {
    "sd3.5": {"model_type": "STABLE_DIFFUSION_35"},
    "sana": {"training_method": "LORA", "output_model_format": "DIFFUSERS_LORA"},
}
_TOKENS = dict.fromkeys(("sd1", "sd2", "sdxl", "sd3", "sd3.5", "flux1-dev"), True)
_TOKEN_LR = 5e-3
_SUFFIXES = frozenset({".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"})
_LEFT_OUT = ("-masklabel", "-condlabel")  # ends of the names of masks and conditioning images


class _Text(BaseModel, extra="forbid", strict=True):
    version: Literal[0] = Field(alias="__version")
    prompt_source: Literal["sample"]


class _Concept(BaseModel, extra="forbid", strict=True):
    version: Literal[2] = Field(alias="__version")
    name: str
    path: str
    seed: int
    enabled: bool
    type: Literal["STANDARD", "VALIDATION", "PRIOR_PREDICTION"]
    include_subdirectories: Literal[False]
    balancing: float
    balancing_strategy: Literal["REPEATS", "SAMPLES"]
    loss_weight: float
    text: _Text


class _Config(BaseModel):
    concept_file_name: str
    samples: list[object]


def _plan(material: Material) -> Plan:
    return Plan(
        files={
            CONCEPTS: common.as_json(_concepts(material)),
            CONFIG: common.as_json(_config(material)),
        },
        command=common.command_line(
            ["python", "scripts/train.py"],
            ["--preset-path", f"training_presets/{material.entry(_PRESETS)}"],
            ["--config-path", material.path(CONFIG)],
        ),
        notes=_notes(material),
    )


def _samples(material: Material) -> int:
    """Images of each concept in an epoch."""
    return material.photo_count * material.repeats


def _concepts(material: Material) -> list[dict[str, object]]:
    def concept(
        name: str, folder: str, balancing: int, strategy: str, weight: float
    ) -> dict[str, object]:
        return {
            "__version": 2,
            "name": name,
            "path": material.path(folder),
            "seed": 0,
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            "balancing": float(balancing),
            "balancing_strategy": strategy,
            "loss_weight": float(weight),
            "text": {"__version": 0, "prompt_source": "sample"},
        }

    noun, weight = material.class_noun, material.prior_weight
    return [
        concept(f"{material.identifier} {noun}", SUBJECT, material.repeats, "REPEATS", 1),
        concept(f"{noun} regularization", IMAGES, _samples(material), "SAMPLES", weight),
    ]


def _config(material: Material) -> dict[str, object]:
    """What differs from the preset. Without a version: with a preset, neither is migrated.

    Samples are written because the file that has them by default is not there in a fresh checkout.
    """
    output = material.path(FOLDER, "output", f"{material.run_name}.safetensors")
    return {
        "base_model_name": material.base_model,
        "concept_file_name": material.path(CONCEPTS),
        "resolution": str(material.resolution),
        "epochs": ceil(common.PAIRS / _samples(material)),
        "workspace_dir": material.path(FOLDER, "workspace"),
        "cache_dir": material.path(FOLDER, "cache"),
        "output_model_destination": output,
        "samples": [],
        **({"force_v_prediction": True} if material.predicts_v else {}),
        **(_token(material) if _trains_token(material) else {}),
        **(entry_of(_NOT_IN_PRESET, material.kind) or {}),
    }


def _trains_token(material: Material) -> bool:
    return is_token(material.identifier) and entry_of(_TOKENS, material.kind) is not None


def _token(material: Material) -> dict[str, object]:
    """The identifier as one of the additional embeddings, beside the LoRA.

    It begins as the first token of its text, so that is the noun alone (`_create_new_embedding` in
    modules/modelSetup/mixin/ModelSetupEmbeddingMixin.py).
    """
    embedding = {
        "placeholder": material.identifier,
        "train": True,
        "token_count": 1,
        "initial_embedding_text": material.class_noun.split()[-1],
        "is_output_embedding": False,
    }
    return {"additional_embeddings": [embedding], "embedding_learning_rate": _TOKEN_LR}


def _notes(material: Material) -> list[str]:
    samples, repeats = _samples(material), material.repeats
    count, photos = len(material.images), material.photo_count
    how = "the preset trains a copy without that, ostris/Z-Image-De-Turbo"
    preset, epochs = material.entry(_PRESETS), ceil(common.PAIRS / samples)
    return [
        f"OneTrainer uses {common.every(count, 'regularization image')}, each with its own "
        f"caption: an epoch takes {counted(samples, 'image')} (balancing {samples}, SAMPLES) "
        f"and as many photos, {counted(photos, 'photo')} {counted(repeats, 'time')} each "
        f"(balancing {repeats}, REPEATS). With a smaller number of SAMPLES, each epoch takes the "
        f"next so many of them. {CONFIG} asks for {counted(epochs, 'epoch')}.",
        "Both concepts are STANDARD: the target is the image, as in the paper, and loss_weight "
        f"{material.prior_weight:g} weighs the regularization. With type PRIOR_PREDICTION the "
        "target would be what the model predicted for the image before training. That keeps the "
        "base model's look, predicts every batch twice, and works for LoRA only.",
        "OneTrainer takes the default for a key or value that it does not know, with a line on "
        "the terminal at most: a type of PRIOR means STANDARD to it. `regforge export --check` "
        "finds such slips.",
        f"The command takes everything else from the preset {preset!r}. Where "
        "scripts/train.py knows no --preset-path, load the preset in the window and choose "
        f"{CONCEPTS} under Concepts.",
        *(
            [
                f"{material.identifier} is an additional embedding of {CONFIG}, trained with the "
                f"LoRA at a rate of {_TOKEN_LR:g} and bundled into its file."
            ]
            if _trains_token(material)
            else []
        ),
        *common.distillation_notes(material, how if material.kind.name in _PRESETS else ""),
        *common.closing_notes(material),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The images of each concept, with the captions of their text files."""
    config = common.checked(_Config, common.json_of(out / CONFIG), out / CONFIG, TRAINER.title)
    where = out / common.below(config.concept_file_name, root, out / CONFIG)
    for concept in common.checked(list[_Concept], common.json_of(where), where, TRAINER.title):
        if concept.enabled and concept.type != "VALIDATION":
            yield from _images(concept, out, out / common.below(concept.path, root, where))


def _images(concept: _Concept, out: Path, folder: Path) -> Iterator[LoadedImage]:
    regularization = folder.name != SUBJECT
    paths = [
        path
        for path in common.images_in(folder, _SUFFIXES, required=regularization)
        if not path.stem.endswith(_LEFT_OUT)
    ]
    by_sample = concept.balancing_strategy == "SAMPLES"
    shown = int(concept.balancing * (1 if by_sample else len(paths)))
    for path in paths:
        file = path.with_suffix(".txt")
        # By the rules of `LoadMultipleTexts`: taken apart at \n, \r\n and \r, and at nothing else.
        text = common.text_of(file).replace("\r\n", "\n").replace("\r", "\n")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        caption = common.only_line(file, lines, "OneTrainer draws one of them each time")
        name = path.relative_to(out).as_posix()
        yield LoadedImage(name, caption, regularization, shown / len(paths))


TRAINER = Trainer("onetrainer", "OneTrainer", _plan, _read, _PRESETS, tokens=_TOKENS)
