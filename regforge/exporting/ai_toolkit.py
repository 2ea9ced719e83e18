"""ai-toolkit: a job in YAML.

Read at commit 27a03a9 of ostris/ai-toolkit: toolkit/config_modules.py (`DatasetConfig`), config.py
(how a job is read), data_loader.py (which files count), dataloader_mixins.py and prompt_utils.py
(what becomes of a caption), jobs/process/BaseSDTrainProcess.py (which steps are regularization).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
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

FOLDER = "ai-toolkit"
JOB = f"{FOLDER}/train.yaml"

_ARCHITECTURES = {  # with timestep_type, both as ui/src/app/jobs/new/options.tsx sets them
    "sd1": ("sd1", ""),
    "sd2": ("sd2", ""),
    "sdxl": ("sdxl", ""),
    "sd3": ("sd3", ""),
    "sd3.5": ("sd3", ""),
    "flux1-dev": ("flux", "sigmoid"),
    "flux2-dev": ("flux2", "weighted"),
    "flux2-klein-base-4b": ("flux2_klein_4b", "weighted"),
    "flux2-klein-base-9b": ("flux2_klein_9b", "weighted"),
    "qwen-image": ("qwen_image", "weighted"),
    "z-image": ("zimage", "weighted"),
    "chroma": ("chroma", "sigmoid"),
    "lumina2": ("lumina2", "sigmoid"),
    "hidream": ("hidream", "shift"),
    "krea2": ("krea2", "linear"),
    "anima": ("anima", "weighted"),
    "ernie-image": ("ernie_image", "weighted"),
    "ideogram4": ("ideogram4", "linear"),
}
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_REPLACED = ("[name]", "[trigger]")
_SAVE_EVERY = 250


class _Dataset(BaseModel, extra="forbid", strict=True):
    """A dataset of a job; without a resolution ai-toolkit would train at 512."""

    folder_path: str
    caption_ext: Literal["txt", ".txt"]
    resolution: int | list[int]
    is_reg: bool = False
    num_repeats: Annotated[int, Field(ge=1)] = 1
    caption_dropout_rate: float = 0.0
    cache_latents_to_disk: bool = False


class _Process(BaseModel):
    datasets: list[_Dataset]


class _JobConfig(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    process: Annotated[list[_Process], Field(min_length=1)]


class _Job(BaseModel):
    job: Literal["extension"]
    config: _JobConfig


def _refuses(caption: str) -> str | None:
    for word in _REPLACED:
        if word in caption:
            return f"it has {word}, which would be replaced by a trigger word, or by nothing"
    return None


def trained(caption: str) -> str:
    """What becomes of a caption: commas and what follows them, and two words (see `_refuses`).

    `CaptionProcessingDTOMixin.get_caption` takes it apart at commas and puts ", " between.
    """
    caption = ", ".join(caption.split(","))
    for word in _REPLACED:
        caption = caption.replace(word, "")
    return caption


def _plan(material: Material) -> Plan:
    root = material.root.as_posix()
    if "${" in root or "[name]" in root:
        raise ExportError(
            f"{root} has ${{ or [name] in it, which ai-toolkit would replace in its job file.",
            hint="Choose another folder with --out or --root.",
        )
    head = "# Written by regforge. Start it in ai-toolkit's folder: python run.py with this file\n"
    job = yaml.dump(_job(material), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return Plan(
        files={JOB: head + job},
        command=common.command_line(["python", "run.py", material.path(JOB)]),
        notes=_notes(material),
    )


class _Dumper(yaml.SafeDumper):
    """Quotes all strings but keys.

    ai-toolkit's loader reads more of them as numbers than others do, `1e5` for one.
    """

    def represent_mapping(self, *args: Any, **kwargs: Any) -> yaml.MappingNode:
        node = super().represent_mapping(*args, **kwargs)
        for key, _ in node.value:
            key.style = None
        return node


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _quoted)


def _job(material: Material) -> dict[str, object]:
    family = material.kind
    architecture, times = material.entry(_ARCHITECTURES)
    sampler = "flowmatch" if family.flow else "ddpm"
    network: dict[str, object] = {"type": "lora", "linear": 16, "linear_alpha": 16}
    if architecture == "hidream":
        network["network_kwargs"] = {"ignore_if_contains": ["ff_i.experts", "ff_i.gate"]}
    model = {"name_or_path": material.base_model, "arch": architecture, "quantize": family.flow}
    if family.adapter:
        model["assistant_lora_path"] = family.adapter
    if material.predicts_v:
        model["is_v_pred"] = True

    def dataset(folder: str, *, regularization: bool) -> dict[str, object]:
        return {
            "folder_path": material.path(folder),
            "caption_ext": "txt",
            "is_reg": regularization,
            "resolution": [material.resolution],
            "num_repeats": 1,
            "caption_dropout_rate": 0.0,
            "cache_latents_to_disk": True,
        }

    process = {
        "type": "sd_trainer",
        "training_folder": material.path(FOLDER, "output"),
        "device": "cuda:0",
        "network": network,
        "save": {"dtype": "float16", "save_every": _SAVE_EVERY, "max_step_saves_to_keep": 4},
        "datasets": [
            dataset(SUBJECT, regularization=False),
            dataset(IMAGES, regularization=True),
        ],
        "train": {
            "batch_size": 1,
            "steps": 2 * common.PAIRS,
            "gradient_accumulation_steps": 1,
            "reg_weight": float(material.prior_weight),
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": sampler,
            **({"timestep_type": times} if times else {}),
            "optimizer": "adamw8bit",
            "lr": 0.0001,
            "dtype": "bf16",
        },
        "model": model,
        "sample": {
            "sampler": sampler,
            "sample_every": _SAVE_EVERY,
            "width": material.resolution,
            "height": material.resolution,
            "prompts": [material.instance_prompt, common.class_caption(material.class_noun)],
            "seed": 0,
            "guidance_scale": family.made_for.guidance_scale,
            "sample_steps": family.made_for.steps,
        },
    }
    config = {"name": material.run_name, "process": [process]}
    return {"job": "extension", "config": config, "meta": {"name": "[name]", "version": "1.0"}}


def _notes(material: Material) -> list[str]:
    count, adapter = len(material.images), material.kind.adapter
    return [
        f"ai-toolkit uses {common.every(count, 'regularization image')}, each with its own "
        "caption: every second step takes the next one at random, however many there are, except "
        f"steps on which it saves or samples. The {2 * common.PAIRS:,} steps of the job show "
        f"{common.shown(count)}. num_repeats does not change that share.",
        f"The loss of those steps is multiplied by reg_weight, {material.prior_weight:g}; the "
        'target is the image. With "prior_reg: true" in the dataset the target would be what '
        "the base model predicts for it.",
        "In captions it puts a space after every comma, so 'red, round' is trained as 'red,  "
        "round' and '1,000' as '1, 000'. Most text encoders see no difference in double spaces.",
        "Leave trigger_word out: the photos' captions name the subject already. It would not be "
        "added to the regularization captions.",
        "It keeps latents and image sizes in the folders of the images (_latent_cache, "
        ".aitk_size.json). An image that cannot be opened is skipped with a line on the terminal.",
        *common.distillation_notes(
            material, adapter and f"assistant_lora_path names {adapter} for the training"
        ),
        *common.closing_notes(material),
    ]


def _read(out: Path, root: PurePath) -> Iterator[LoadedImage]:
    """The images of each dataset, with the captions of their text files."""
    where = out / JOB
    try:
        job = common.checked(_Job, yaml.safe_load(common.text_of(where)), where, TRAINER.title)
    except yaml.YAMLError as error:
        raise ExportError(f"{where} is no job of ai-toolkit: {error}.") from error
    for dataset in job.config.process[0].datasets:
        resolutions = dataset.resolution
        passes = len(resolutions) if isinstance(resolutions, list) else 1
        folder = out / common.below(dataset.folder_path, root, where)
        required = folder.name != SUBJECT
        for path in common.images_in(folder, _SUFFIXES, required=required, recursive=True):
            if path.name.startswith(".") or path.parent.name == "_controls":
                continue
            yield LoadedImage(
                path.relative_to(out).as_posix(),
                _caption(path.with_suffix(f".{dataset.caption_ext.removeprefix('.')}")),
                regularization=dataset.is_reg,
                repeats=dataset.num_repeats * passes,
            )


def _caption(file: Path) -> str:
    """The caption in a file, but for the spaces after commas, which no trainer's reader keeps.

    Raises:
        ExportError: More than those spaces would be lost.
    """
    caption = common.text_of(file)
    if not caption.strip():
        raise ExportError(f"{file} is empty: the image would be trained without a caption.")
    if "".join(trained(caption).split()) != "".join(caption.split()):
        raise ExportError(f"{file}: ai-toolkit would train {trained(caption)!r} instead.")
    return caption.strip()


TRAINER = Trainer("ai-toolkit", "ai-toolkit", _plan, _read, _ARCHITECTURES, _refuses)
