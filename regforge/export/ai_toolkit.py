"""ai-toolkit: a job in YAML.

Read at commit 27a03a9 of ostris/ai-toolkit: toolkit/config_modules.py (`DatasetConfig`), config.py
(how a job is read), data_loader.py (which files count), dataloader_mixins.py and prompt_utils.py
(what becomes of a caption), jobs/process/BaseSDTrainProcess.py (which steps are regularization).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from regforge.export import base_models, common
from regforge.export.base_models import family_of
from regforge.export.captions import class_caption
from regforge.export.interface import IMAGES, SUBJECT, ExportError, Material, Plan, Seen

FOLDER = "ai-toolkit"
JOB = f"{FOLDER}/train.yaml"

_ARCHITECTURES = {
    base_models.SD1: "sd1",
    base_models.SD2: "sd2",
    base_models.SDXL: "sdxl",
    base_models.SD3: "sd3",
    base_models.FLUX: "flux",
    base_models.FLUX2: "flux2",
    base_models.FLUX2_KLEIN: "flux2_klein_9b",
    base_models.QWEN_IMAGE: "qwen_image",
    base_models.Z_IMAGE: "zimage",
}
_SMALL_KLEIN = "flux2_klein_4b"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_REPLACED = ("[name]", "[trigger]")
_DATASET_KEYS = frozenset(
    "folder_path caption_ext is_reg resolution num_repeats caption_dropout_rate "
    "cache_latents_to_disk".split()
)
_SAVE_EVERY = 250


class AiToolkit:
    """ai-toolkit, from its repository."""

    name = "ai-toolkit"
    title = "ai-toolkit"

    def refuses(self, caption: str) -> str | None:
        """It replaces two words in square brackets wherever they stand."""
        for word in _REPLACED:
            if word in caption:
                return f"it has {word}, which would be replaced by a trigger word, or by nothing"
        if "\n" in caption or "\r" in caption:
            return "it has a line break"
        return None

    def plan(self, material: Material) -> Plan:
        """One job with two datasets."""
        root = material.root.as_posix()
        if "${" in root or "[name]" in root:
            raise ExportError(
                f"{root} has ${{ or [name] in it, which ai-toolkit would replace in its job file.",
                hint="Choose another folder with --out or --root.",
            )
        head = (
            "# Written by regforge. Start it in ai-toolkit's folder: python run.py with this file\n"
        )
        return Plan(
            files={JOB: head + _as_yaml(_job(material))},
            command=common.command_line(["python", "run.py", material.seen(JOB)]),
            notes=_notes(material),
        )

    def read(self, out: Path, root: PurePath) -> Iterator[Seen]:
        """The images of each dataset, with the captions of their text files."""
        where = out / JOB
        for dataset in _datasets(where):
            resolutions = dataset["resolution"]
            passes = len(resolutions) if isinstance(resolutions, list) else 1
            folder = out / common.below(dataset["folder_path"], root, where)
            required = folder.name != SUBJECT
            for path in common.images_in(folder, _SUFFIXES, required=required, recursive=True):
                if path.name.startswith(".") or path.parent.name == "_controls":
                    continue
                yield Seen(
                    path.relative_to(out).as_posix(),
                    _caption(path, dataset["caption_ext"]),
                    regularization=dataset.get("is_reg", False),
                    repeats=dataset.get("num_repeats", 1) * passes,
                )


def trained(caption: str) -> str:
    """What becomes of a caption: commas and what follows them, and two words (see `refuses`).

    `CaptionProcessingDTOMixin.get_caption` takes it apart at commas and puts ", " between.
    """
    caption = ", ".join(caption.split(","))
    for word in _REPLACED:
        caption = caption.replace(word, "")
    return caption


def _job(material: Material) -> dict[str, object]:
    family = family_of(material.base_model) or base_models.SD1
    sampler = "flowmatch" if family.flow else "ddpm"

    def dataset(folder: str, *, regularization: bool) -> dict[str, object]:
        return {
            "folder_path": material.seen(folder),
            "caption_ext": "txt",
            "is_reg": regularization,
            "resolution": [material.resolution],
            "num_repeats": 1,
            "caption_dropout_rate": 0.0,
            "cache_latents_to_disk": True,
        }

    process = {
        "type": "sd_trainer",
        "training_folder": material.seen(FOLDER, "output"),
        "device": "cuda:0",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
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
            "optimizer": "adamw8bit",
            "lr": 0.0001,
            "dtype": "bf16",
        },
        "model": {
            "name_or_path": material.base_model,
            "arch": _architecture(material),
            "quantize": family.flow,
        },
        "sample": {
            "sampler": sampler,
            "sample_every": _SAVE_EVERY,
            "width": material.resolution,
            "height": material.resolution,
            "prompts": [common.instance_prompt(material), class_caption(material.class_noun)],
            "seed": 0,
            "guidance_scale": 4 if family.flow else 7,
            "sample_steps": 25,
        },
    }
    config = {"name": common.run_name(material), "process": [process]}
    return {"job": "extension", "config": config, "meta": {"name": "[name]", "version": "1.0"}}


def _architecture(material: Material) -> str:
    family = family_of(material.base_model) or base_models.SD1
    if family is base_models.FLUX2_KLEIN and re.search(r"4b", material.base_model, re.I):
        return _SMALL_KLEIN
    return _ARCHITECTURES[family]


def _notes(material: Material) -> list[str]:
    count = len(material.images)
    notes = [
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
    ]
    if family_of(material.base_model) is None:
        notes.append(
            f"{base_models.unknown(material.base_model)}: arch in {JOB} says sd1, Stable Diffusion "
            "1.x. Change it, and noise_scheduler, if that is wrong."
        )
    return notes + common.without_photos(material)


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


def _as_yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _datasets(where: Path) -> list[dict[str, Any]]:
    """The datasets of a job.

    Raises:
        ExportError: The job would not start, or would do something else than was planned.
    """
    try:
        job = yaml.safe_load(common.text_of(where))
        datasets = job["config"]["process"][0]["datasets"]
        whole = job["job"] == "extension" and bool(job["config"]["name"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{where} is no job of ai-toolkit: {error}.") from error
    if not whole or not isinstance(datasets, list):
        raise ExportError(f"{where} is no job of ai-toolkit.")
    for dataset in datasets:
        _see_that_nothing_is_ignored(dataset, where)
    return datasets


def _see_that_nothing_is_ignored(dataset: Any, where: Path) -> None:
    if not isinstance(dataset, Mapping) or "folder_path" not in dataset:
        raise ExportError(f"{where}: a dataset has no folder_path.")
    name = f"{where}: {dataset['folder_path']}"
    unknown = sorted(set(dataset) - _DATASET_KEYS)
    if unknown:
        raise ExportError(f"{name} has {unknown[0]!r}, which ai-toolkit would ignore.")
    if dataset.get("caption_ext") not in ("txt", ".txt"):
        raise ExportError(f"{name} has {dataset.get('caption_ext')!r} for caption_ext, not txt.")
    if not isinstance(dataset.get("is_reg", False), bool):
        raise ExportError(f"{name} has {dataset['is_reg']!r} for is_reg; it is true or false.")
    repeats = dataset.get("num_repeats", 1)
    if not isinstance(repeats, int) or repeats < 1:
        raise ExportError(f"{name} has {repeats!r} for num_repeats; it should be 1 or more.")
    if "resolution" not in dataset:
        raise ExportError(f"{name} has no resolution: ai-toolkit would train at 512.")


def _caption(image: Path, extension: str) -> str:
    """The caption of an image, but for the spaces after commas, which no trainer's reader keeps.

    Raises:
        ExportError: More than those spaces would be lost.
    """
    file = image.with_suffix(f".{extension.removeprefix('.')}")
    caption = common.text_of(file)
    if not caption.strip():
        raise ExportError(f"{file} is empty: the image would be trained without a caption.")
    if "".join(trained(caption).split()) != "".join(caption.split()):
        raise ExportError(f"{file}: ai-toolkit would train {trained(caption)!r} instead.")
    return caption.strip()


TRAINER = AiToolkit()
